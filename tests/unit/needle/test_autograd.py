"""The graph, the backward walk, and what a Tensor is."""

import contextlib
import copy
import gc
import operator
import subprocess
import sys

import numpy as np
import pytest

import needle as ndl
from needle import nn, ops
from needle.autograd import find_topo_sort


def leaf(*numbers):
    return ndl.Tensor([float(n) for n in numbers])


# -- what a Tensor is


def test_a_tensor_copies_arrays_and_shares_tensors():
    source = np.ones(3, "float32")
    t = ndl.Tensor(source)
    source[0] = 7
    assert t.dtype == np.float32
    assert t.requires_grad
    assert t.numpy()[0] == 1
    assert ndl.Tensor(t).cached_data is t.cached_data
    assert ndl.Tensor(t, dtype="float32").cached_data is t.cached_data
    assert ndl.Tensor(t, dtype="float64").cached_data is not t.cached_data
    assert ndl.Tensor(ndl.zeros(2)).requires_grad
    assert ndl.Tensor([1, 2]).dtype == np.int64
    assert t.device == ndl.cpu() == ndl.all_devices()[0]


def test_what_numpy_users_reach_for():
    t = ndl.Tensor([[1.0, 2.0], [3.0, 4.0]])
    assert np.asarray(t) is t.numpy() is t.cached_data
    assert np.asarray(t, "float32").dtype == np.float32
    assert t.__array__(np.dtype("float32")).dtype == np.float32
    assert len(t) == 2
    assert t.ndim == 2
    assert t.size == 4
    assert [row.shape for row in t] == [(2,), (2,)]
    assert t[1, 0].item() == 3.0
    assert float(t[0, 0]) == 1.0
    assert int(t[1, 1]) == 4
    assert t in {t}
    assert t not in {ndl.Tensor(t)}
    assert bool(ndl.Tensor([2.0]))
    assert not ndl.Tensor(0)
    assert repr(t) == "needle.Tensor([[1., 2.],\n               [3., 4.]], requires_grad=True)"
    assert str(t) == "[[1. 2.]\n [3. 4.]]"
    assert copy.deepcopy(t).numpy().tolist() == t.numpy().tolist()


@pytest.mark.parametrize("t", [leaf(1, 2), ndl.Tensor(3.0)], ids=["vector", "number"])
def test_the_transpose_of_a_vector_or_a_number_is_itself(t):
    assert t.T.tolist() == t.tolist()


def test_the_class_says_what_a_leaf_has():
    assert ndl.Tensor.op is None
    assert len(ndl.Tensor.inputs) == 0


@pytest.mark.parametrize("number", [0, 0.0, -0.0, False, np.float32(-0.0), 3, -3, np.zeros(3, int)], ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_a_zero_that_is_subtracted_has_the_sign_that_numpy_gives_it(number, dtype):
    a = np.array([0.0, -0.0, 1.0]).astype(dtype)
    for result, expected in [(ndl.Tensor(a) - number, a - number), (number - ndl.Tensor(a), number - a)]:
        np.testing.assert_array_equal(result.numpy(), expected)
        np.testing.assert_array_equal(np.signbit(result.numpy()), np.signbit(expected))


class Theirs:
    """Takes a Tensor on the left, and knows nothing of one on the right."""

    def answer(self, other):
        return "theirs"

    __rsub__ = __radd__ = __rmul__ = __rtruediv__ = __rpow__ = __rmatmul__ = answer


OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul]


@pytest.mark.parametrize("of", OPERATORS)
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_what_is_no_number_is_asked_for_its_own_operators(of, dtype):
    t = ndl.Tensor([1.0, 2.0], dtype=dtype)
    assert of(t, Theirs()) == "theirs"
    with pytest.raises(TypeError, match="unsupported operand"):
        of(Theirs(), t)


@pytest.mark.parametrize(
    ("action", "kind", "match"),
    [
        (lambda: bool(leaf(1, 2)), ValueError, r"exactly one element, but the shape is \(2,\)"),
        (lambda: leaf(1, 2).item(), ValueError, "exactly one element"),
        (lambda: len(ndl.Tensor(1.0)), TypeError, "without dimensions"),
        (lambda: ndl.Tensor("text"), TypeError, "real numbers or bools, but got dtype"),
        (lambda: ndl.Tensor([1j]), TypeError, "complex128"),
        (lambda: ndl.zeros(2).retain_grad(), RuntimeError, "requires_grad=False"),
    ],
    ids=["bool", "item", "len", "text", "complex", "retain_grad"],
)
def test_refused(action, kind, match):
    with pytest.raises(kind, match=match):
        action()


def test_data_is_detached_and_can_be_rebound():
    t = leaf(1, 2)
    assert t.data.cached_data is t.cached_data
    assert not t.data.requires_grad
    new = leaf(3, 4)
    t.data = new
    assert t.cached_data is new.cached_data
    with pytest.raises(TypeError, match="keep its dtype float64, but got float32"):
        t.data = ndl.Tensor([1.0, 2.0], dtype="float32")
    with pytest.raises(ValueError, match=r"keep its shape \(2,\), but got \(1, 2\)"):
        t.data = ndl.Tensor([[1.0, 2.0]])
    with pytest.raises(TypeError, match="must be set to a Tensor, but got ndarray"):
        t.data = np.ones(2)
    assert t.cached_data is new.cached_data


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_result_without_dimensions_is_an_array_and_not_a_scalar_of_numpy(n):
    class Sum(ndl.TensorOp):
        def compute(self, *args):
            return sum(args[1:], args[0] * 1)

        def vjp(self, g, y, needs, *xs):
            return tuple(g * 1 for _ in xs)

    x = ndl.Tensor(2.0, dtype="float32")
    y = Sum()(*[x] * n)
    y.backward()
    for t in (y, x.grad, y.data):
        assert type(t.numpy()) is np.ndarray
        assert t.dtype == np.float32
        assert t.shape == ()


def test_parts_without_dimensions_are_arrays_too():
    class Both(ndl.TensorTupleOp):
        def compute(self, a):
            return a + 1, a * 1

    pair = Both()(ndl.Tensor(1.0))
    assert [type(a) for a in pair.cached_data] == [np.ndarray] * 2
    parts = pair.tuple()
    assert type(parts) is tuple
    assert [part.item() for part in parts] == [2, 1]


def test_results_of_constants_are_constants():
    y = ndl.ones(2) + ndl.ones(2)
    assert y.op is None
    assert len(y.inputs) == 0
    assert not y.requires_grad
    with ndl.no_grad():
        z = leaf(1) * 2
        with ndl.no_grad():
            pass
        assert not (leaf(1) * 2).requires_grad
    assert z.op is None
    assert (leaf(1) * 2).requires_grad

    @ndl.no_grad()
    def double(x):
        return x * 2

    assert not double(leaf(1)).requires_grad
    with pytest.raises(ZeroDivisionError), ndl.no_grad():
        raise ZeroDivisionError
    assert (leaf(1) * 2).requires_grad


def test_tensor_counter():
    before = ndl.autograd.TENSOR_COUNTER
    kept = [leaf(1) for _ in range(5)]
    assert before + len(kept) == ndl.autograd.TENSOR_COUNTER
    with pytest.raises(AttributeError, match="NO_SUCH_THING"):
        _ = ndl.autograd.NO_SUCH_THING


HOW = [{}, {"retain_graph": True}, {"create_graph": True}]
HOW_IDS = ["plain", "retain", "create"]


# -- backward


def test_backward_overwrites():
    x = leaf(2)
    for _ in range(2):
        (x * x).backward()
        assert x.grad.numpy() == 4


def test_fan_out_adds_up_and_leaves_never_share_memory():
    x, y = leaf(1, 2), leaf(3, 4)
    seed = ndl.Tensor([5.0, 6.0])
    (x + y).backward(seed)
    np.testing.assert_array_equal(x.grad.numpy(), [5, 6])
    assert not np.shares_memory(x.grad.numpy(), y.grad.numpy())
    assert not np.shares_memory(x.grad.numpy(), seed.numpy())
    x.grad.cached_data[:] = 0
    np.testing.assert_array_equal(y.grad.numpy(), [5, 6])
    np.testing.assert_array_equal(seed.numpy(), [5, 6])
    (x + x + x * 2 + y + x).backward(seed)
    np.testing.assert_array_equal(x.grad.numpy(), [25, 30])
    np.testing.assert_array_equal(y.grad.numpy(), [5, 6])
    np.testing.assert_array_equal(seed.numpy(), [5, 6])


def test_gradients_through_views_own_their_memory():
    x = ndl.Tensor(np.ones((2, 3)))
    for y in (x.sum(), x.T.sum(), x.reshape(6)[::2], ops.split(x)[0], x.broadcast_to((4, 2, 3)), x.T * 2):
        y.backward()
        assert x.grad.cached_data.flags.carray
        assert x.grad.cached_data.base is None
        x.grad.cached_data[:] = 1


def test_tuple_elements_passed_on_are_not_shared():
    a, b = leaf(1, 2), leaf(3, 4)
    parts = ops.split(ops.stack([a, b]))
    seed = leaf(1, 1)
    (parts[0] + parts[1] + a).backward(seed)
    np.testing.assert_array_equal(a.grad.numpy(), [2, 2])
    np.testing.assert_array_equal(b.grad.numpy(), [1, 1])
    np.testing.assert_array_equal(seed.numpy(), [1, 1])


def test_tuples_are_added_part_by_part():
    a, b = ndl.Tensor([1.0, 2.0]), ndl.Tensor([3.0])
    total = ops.make_tuple(a, b) + ops.make_tuple(a * 2, b * 3)
    assert isinstance(total, ndl.TensorTuple)
    assert [part.numpy().tolist() for part in total] == [[3.0, 6.0], [12.0]]
    (total[0].sum() + total[1].sum()).backward()
    assert (a.grad.numpy().tolist(), b.grad.numpy().tolist()) == ([3.0, 3.0], [4.0])
    for other in (ops.make_tuple(a), a, (a, b)):
        with pytest.raises(TypeError, match="unsupported operand"):
            ops.make_tuple(a, b) + other


def test_a_tuple_passes_its_gradient_on_without_giving_it_away():
    a, b, seed = leaf(1, 2), leaf(3, 4), leaf(5, 6)
    first = ops.TupleGetItem(0)(ops.make_tuple(a, b))
    (first + a).backward(seed)
    np.testing.assert_array_equal(a.grad.numpy(), [10, 12])
    np.testing.assert_array_equal(b.grad.numpy(), [0, 0])
    np.testing.assert_array_equal(seed.numpy(), [5, 6])


@pytest.mark.parametrize("kind", [tuple, list, np.asarray])
@pytest.mark.parametrize("how", HOW, ids=HOW_IDS)
def test_the_parts_may_be_computed_as_a_tuple_a_list_or_an_array(kind, how):
    class Rows(ndl.TensorTupleOp):
        def compute(self, a):
            return kind(a)

        def vjp(self, g, y, needs, a):
            return (ops.Stack(0).on(g),)

    x = ndl.Tensor([[1.0, 2.0], [3.0, 4.0]])
    rows = Rows()(x)
    (rows[0] * rows[1]).sum().backward(**how)
    assert x.grad.tolist() == [[3, 4], [1, 2]]
    x.grad = None


@pytest.mark.parametrize("how", HOW, ids=HOW_IDS)
def test_a_part_that_is_used_twice_gets_the_sum(how):
    x = ndl.Tensor([[1.0, 2.0], [3.0, 4.0]])
    parts = ops.split(x)
    (parts[0] * 2 + parts[0] * 5 + parts[1]).sum().backward(**how)
    assert x.grad.tolist() == [[7, 7], [1, 1]]
    assert not x.grad.requires_grad  # it depends on nothing
    x.grad = None
    ops.split(x)[1].sum().backward(create_graph=True)
    assert x.grad.tolist() == [[0, 0], [1, 1]]
    assert not x.grad.requires_grad


@pytest.mark.parametrize("how", [{}, {"create_graph": True}], ids=["plain", "create"])
def test_a_retained_gradient_of_a_tuple_is_a_constant_in_memory_of_its_own(how):
    seed = ndl.Tensor([5.0, 6.0], requires_grad=False)
    pair = ops.split(ndl.Tensor([[1.0, 2.0], [3.0, 4.0]]))
    pair.retain_grad()
    pair[0].backward(seed, **how)
    assert [a.tolist() for a in pair.grad.cached_data] == [[5, 6], [0, 0]]
    assert not pair.grad.requires_grad
    assert not np.shares_memory(pair.grad.cached_data[0], seed.numpy())


def test_a_number_that_gets_its_gradient_from_two_sides_has_it_as_an_array():
    x = ndl.Tensor(2.0)
    (x + x).backward()
    assert type(x.grad.numpy()) is np.ndarray
    assert x.grad.item() == 2


@pytest.mark.parametrize("how", HOW, ids=HOW_IDS)
def test_a_result_that_is_told_to_need_no_gradient_is_a_constant(how):
    x, w = leaf(3), leaf(5)
    y = x * x
    y.backward()
    x.grad, y.requires_grad = None, False
    (y * w).backward(**how)  # its graph has been freed, but nobody asks for it
    assert w.grad.tolist() == [9]
    assert x.grad is None


@pytest.mark.parametrize("how", HOW, ids=HOW_IDS)
def test_backward_of_a_leaf(how):
    x = leaf(1, 2)
    seed = leaf(3, 4)
    x.backward(seed, **how)
    np.testing.assert_array_equal(x.grad.numpy(), [3, 4])
    assert x.grad.cached_data is not seed.cached_data
    x.backward(**how)
    np.testing.assert_array_equal(x.grad.numpy(), [1, 1])


def test_only_leaves_keep_gradients_unless_asked():
    x = leaf(2)
    y = x * 3
    z = y * y
    y.retain_grad()
    z.backward()
    assert y.grad.numpy() == 12
    assert y.grad.op is None
    assert not y.grad.requires_grad
    assert z.grad is None
    y = x * 3
    (y * y).backward()
    assert y.grad is None


def test_second_backward_needs_retain_graph():
    x = leaf(2)
    y = x * x
    z = y * 3
    z.backward(retain_graph=True)
    z.backward()
    assert x.grad.numpy() == 12
    x.grad = None
    for again in (z, y, y + 1):
        with pytest.raises(RuntimeError, match=r"already freed .* retain_graph=True"):
            again.backward()
    assert x.grad is None
    assert not z.is_leaf()


def test_backward_without_graph():
    for constant in (ndl.ones(2), ndl.ones(2) * 2, leaf(1).data, ndl.Tensor(1.0, requires_grad=False)):
        with pytest.raises(RuntimeError, match=r"constant without a graph .*create_graph=True"):
            constant.backward()


def test_out_grad_is_checked():
    x = leaf(1, 2)
    with pytest.raises(ValueError, match=r"out_grad must have the shape \(2,\) of its tensor, but got \(1, 2\)"):
        (x * 2).backward(ndl.ones(1, 2))
    with pytest.raises(TypeError, match="out_grad must be a Tensor, but got list"):
        (x * 2).backward([1.0, 2.0])
    (x * 2).backward(ndl.ones(2, dtype="float32"))
    assert x.grad.dtype == np.float64


@pytest.mark.parametrize("how", HOW, ids=HOW_IDS)
@pytest.mark.parametrize("out_grad", [ndl.Tensor([2, 3]), ndl.Tensor([True, False], requires_grad=False)], ids=str)
def test_integers_take_their_gradient_as_it_comes(out_grad, how):
    x = ndl.Tensor([1, 2])
    x.backward(out_grad, **how)
    np.testing.assert_array_equal(x.grad.numpy(), out_grad.numpy(), strict=True)


def test_a_gradient_that_depends_on_nothing_is_a_constant():
    x = leaf(1, 2)
    (x * 2).backward(ndl.Tensor([3.0, 4.0], requires_grad=False), create_graph=True)
    assert x.grad.tolist() == [6, 8]
    assert not x.grad.requires_grad


def test_create_graph_sets_the_gradients_of_leaves_and_those_asked_for():
    x = leaf(6)
    y = leaf(0)
    product = x * x
    other = x * y
    z = product + other
    product.retain_grad()
    z.retain_grad()
    z.backward(create_graph=True)
    assert other.grad is None
    grad_x, grad_y = x.grad, y.grad
    assert grad_x.numpy() == 12
    assert grad_y.numpy() == 6
    assert product.grad.numpy() == z.grad.numpy() == 1
    grad_x.backward()
    assert x.grad.numpy() == 2
    assert y.grad.numpy() == 1
    x.grad = y.grad = None


@pytest.mark.parametrize("how", HOW, ids=HOW_IDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
@pytest.mark.parametrize("shape", [(), (2,)], ids=str)
def test_what_a_backward_starts_from_is_ones_in_the_dtype_of_its_tensor(shape, dtype, how):
    x = ndl.Tensor(np.full(shape, 3), dtype=dtype)
    x.backward(**how)
    np.testing.assert_array_equal(x.grad.numpy(), np.ones(shape, dtype), strict=True)


def test_third_order():
    x = leaf(2)
    (x**4).backward(create_graph=True)
    x.grad.backward(create_graph=True)
    x.grad.backward()
    assert x.grad.numpy() == 48


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (lambda b: b * b, lambda b: 2 * b),
        (lambda b: b * ops.exp(b), lambda b: (1 + b) * np.exp(b)),
        (lambda b: ops.exp(b) * b, lambda b: (1 + b) * np.exp(b)),
        (lambda b: b * (b * b), lambda b: 3 * b**2),
        (lambda b: b + ops.exp(b + ops.exp(b)), lambda b: 1 + np.exp(b + np.exp(b)) * (1 + np.exp(b))),
        (lambda b: ops.stack([b, ops.exp(b)]).sum(), lambda b: 1 + np.exp(b)),
    ],
    ids=["two nodes", "three, the older first", "three, the newer first", "three, products", "five", "a tuple"],
)
@pytest.mark.parametrize("how", [{}, {"retain_graph": True}, {"create_graph": True}], ids=["plain", "retain", "create"])
def test_a_node_waits_for_all_that_was_made_of_it_in_the_smallest_graphs(function, slope, how):
    """Up to two nodes are not sorted: whichever was found first is then the newer."""
    x = leaf(0.5)
    function(x * 2).backward(**how)
    assert x.grad.item() == pytest.approx(2 * slope(1.0), rel=1e-14)


def test_a_retained_gradient_is_in_memory_of_its_own():
    x, start = leaf(1, 2), ndl.Tensor([3.0, 4.0])
    inner = x * 2
    y = inner + 0
    for t in (inner, y):
        t.retain_grad()
    y.backward(start)
    arrays = [t.numpy() for t in (start, x.grad, inner.grad, y.grad)]
    y.grad.numpy()[:] = 7
    assert [a.tolist() for a in arrays] == [[3, 4], [6, 8], [3, 4], [7, 7]]


def test_deep_chain_and_diamond():
    x = leaf(1)
    y = x
    for _ in range(10_000):
        y = y + 1
    y.backward(retain_graph=True)
    assert x.grad.numpy() == 1
    assert len(find_topo_sort([y])) == 10_001
    del y  # 10,000 tensors, each held by the next
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad.numpy() == 2.0**60
    y = x
    for _ in range(60):
        y = y + y
    y.backward(create_graph=True)
    assert x.grad.numpy() == 2.0**60


def test_topological_order_is_the_post_order():
    a, b = leaf(1), leaf(2)
    c = a * b
    d = c + a
    e = b * d
    order = find_topo_sort([e, c])
    expected, seen = [], set()

    def visit(node):
        if node in seen:
            return
        seen.add(node)
        for x in node.inputs:
            visit(x)
        expected.append(node)

    visit(e)
    assert [id(n) for n in order] == [id(n) for n in expected]


def test_course_topological_order():
    a1, b1 = ndl.Tensor([[0.88282157]]), ndl.Tensor([[0.90170084]])
    c1 = 3 * a1 * a1 + 4 * b1 * a1 - a1
    values = [t.numpy().item() for t in find_topo_sort([c1])]
    expected = [
        0.88282157,
        2.64846471,
        2.33812177,
        0.90170084,
        3.60680336,
        3.1841638,
        5.52228557,
        -0.88282157,
        4.63946401,
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


# -- ops written by a user, in the style of the course


class Square(ndl.TensorOp):
    def compute(self, a):
        return a * a

    def gradient(self, out_grad, node):
        (a,) = node.inputs
        return out_grad * 2 * a


class Swap(ndl.TensorTupleOp):
    def compute(self, a, b):
        return b, a

    def gradient(self, out_grad, node):
        return out_grad[1], out_grad[0]


class PassOn(ndl.TensorOp):
    """Returns out_grad itself for both inputs."""

    def compute(self, a, b):
        return a + b

    def gradient(self, out_grad, node):
        return out_grad, out_grad


class Kept(ndl.TensorOp):
    """Returns a tensor that it goes on holding."""

    def __init__(self):
        self.slope = leaf(7)

    def compute(self, a):
        return a * 7

    def gradient(self, out_grad, node):
        return self.slope


class Wrong(ndl.TensorOp):
    def __init__(self, answer):
        self.answer = answer

    def compute(self, a):
        return a * 1

    def gradient(self, out_grad, node):
        return self.answer


class Nothing(ndl.TensorOp):
    """Gives nothing to the first of its inputs, whether it asks or not."""

    def compute(self, a, b):
        return a + b

    def gradient(self, out_grad, node):
        return None, out_grad


@pytest.mark.parametrize("create_graph", [False, True])
def test_what_lies_behind_an_input_that_gets_nothing_gets_nothing(create_graph):
    x, y = leaf(3), leaf(4)
    Nothing()(x * 2, y).backward(create_graph=create_graph)
    assert x.grad is None
    assert y.grad.numpy() == 1


def test_the_gradients_asked_for_everywhere_outlive_those_of_the_leaves():
    x = leaf(3)
    y = x * 2
    z = y * y
    ndl.autograd.compute_gradient_of_variables(z, leaf(1))
    x.grad = None
    gc.collect()
    assert y.grad.numpy() == 12


def test_user_op_in_every_mode():
    x = leaf(3, 4)
    y = Square()(x * 2)
    y.backward(leaf(1, 10))
    np.testing.assert_array_equal(x.grad.numpy(), [24, 320])
    assert not x.grad.requires_grad
    y = Square()(x * 2)
    ndl.autograd.compute_gradient_of_variables(y, ndl.ones(2, dtype="float64"))
    np.testing.assert_array_equal(x.grad.numpy(), [24, 32])
    x.grad.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [8, 8])


class Exponential(ndl.TensorOp):
    """Uses the node itself, and looks at what it is given."""

    def compute(self, a):
        return np.exp(a)

    def gradient(self, out_grad, node):
        answer = out_grad * node
        self.seen = node, out_grad, answer
        return answer


@pytest.mark.parametrize("create_graph", [False, True])
def test_user_op_in_full_precision(create_graph):
    """Every element of a large gradient has the bits that the rule gave it."""
    data = np.linspace(-1, 1, 101, dtype="float32")
    x = ndl.Tensor(data)
    Exponential()(x).sum().backward(create_graph=create_graph)
    np.testing.assert_array_equal(x.grad.numpy(), np.exp(data))
    assert x.grad.dtype == "float32"
    if create_graph:
        x.grad.sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), np.exp(data))


def test_user_op_without_a_graph_is_given_constants_and_makes_no_graph():
    op = Exponential()
    y = op(leaf(1, 2))
    y.backward(leaf(3, 4))
    node, out_grad, answer = op.seen
    assert node.op is op
    assert node.requires_grad
    np.testing.assert_array_equal(node.numpy(), y.numpy())
    assert not out_grad.requires_grad
    assert answer.is_leaf()
    assert not answer.requires_grad
    y = op(leaf(1, 2))
    y.backward(leaf(3, 4), create_graph=True)
    assert op.seen[0] is y
    assert op.seen[2].requires_grad


class Outer(ndl.TensorOp):
    """Takes a tuple, and gives a tuple back to it."""

    def compute(self, pair):
        return pair[0] * pair[1]

    def gradient(self, out_grad, node):
        a, b = node.inputs[0]
        return ndl.make_tuple(out_grad * b, out_grad * a)


@pytest.mark.parametrize("create_graph", [False, True])
def test_user_op_of_a_tuple(create_graph):
    x, y = leaf(3, 4), leaf(5, 6)
    Outer()(ndl.make_tuple(x, y)).sum().backward(create_graph=create_graph)
    np.testing.assert_array_equal(x.grad.numpy(), [5, 6])
    np.testing.assert_array_equal(y.grad.numpy(), [3, 4])


def test_gradients_of_variables_are_differentiable_under_no_grad_too():
    x = leaf(3)
    y = x * x * x
    with ndl.no_grad():
        ndl.autograd.compute_gradient_of_variables(y, leaf(1))
    assert x.grad.numpy() == 27
    x.grad.backward()
    assert x.grad.numpy() == 18


def test_a_node_is_in_the_order_once_however_often_it_is_asked_for():
    a = leaf(1)
    b = a * 2
    assert find_topo_sort([a, b, a, b]) == [a, b]


def test_user_tuple_op():
    for create_graph in (False, True):
        x, y = leaf(3), leaf(4)
        first, second = Swap()(x, y)
        assert first.numpy() == 4
        (first * 10 + second * second).backward(create_graph=create_graph)
        assert x.grad.numpy() == 6
        assert y.grad.numpy() == 10
        only = Swap()(x, y)[0]
        only.backward(create_graph=create_graph)
        assert x.grad.numpy() == 0
        x.grad = y.grad = None


def test_user_op_that_passes_its_gradient_on():
    x, y = leaf(1), leaf(2)
    (PassOn()(x, y) + x).backward()
    assert x.grad.numpy() == 2
    assert y.grad.numpy() == 1
    assert not np.shares_memory(x.grad.numpy(), y.grad.numpy())


def test_user_op_that_holds_what_it_returns():
    x, op = leaf(1), Kept()
    (op(x) + op(x)).backward()
    assert x.grad.numpy() == 14
    assert op.slope.numpy() == 7
    op(x).backward()
    assert not np.shares_memory(x.grad.numpy(), op.slope.numpy())


def test_the_gradient_of_what_a_rule_returns_is_not_that_of_the_leaf():
    x, op = leaf(1), Kept()
    op.slope.grad = leaf(2)
    op(x).backward(create_graph=True)
    assert x.grad.numpy() == 7
    assert x.grad.grad is None
    assert op.slope.grad.numpy() == 2


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_rule_may_be_given_as_a_tuple_alone(create_graph):
    class Double(ops.Negate):
        def compute(self, a):
            return 2 * a

        def gradient_as_tuple(self, out_grad, node):
            return (out_grad * 2,)

    x = leaf(1)
    Double()(x).backward(create_graph=create_graph)
    assert x.grad.numpy() == 2


def test_an_op_may_have_other_bases_that_want_to_know_of_it():
    class Listed:
        known: dict = {}  # noqa: RUF012

        def __init_subclass__(cls, called, **kwargs):
            super().__init_subclass__(**kwargs)
            cls.known[called] = cls

    class Mine(ndl.TensorOp, Listed, called="mine"):
        pass

    assert Listed.known == {"mine": Mine}


@pytest.mark.parametrize(
    ("answer", "kind", "match"),
    [
        ((ndl.ones(1), ndl.ones(1)), ValueError, "Wrong.gradient must return one gradient per input: 1, but got 2"),
        (ndl.ones(2), ValueError, r"Wrong.gradient must return the shape \(1,\) of the input, but got \(2,\)"),
        (np.ones(1), TypeError, "Wrong.gradient must return Tensors, but got ndarray"),
    ],
    ids=["two", "shape", "array"],
)
@pytest.mark.parametrize("create_graph", [False, True])
def test_wrong_user_op(answer, kind, match, create_graph):
    x = leaf(1)
    with pytest.raises(kind, match=match):
        Wrong(answer)(x).backward(create_graph=create_graph)
    assert x.grad is None


@pytest.mark.parametrize(
    ("answer", "kind", "match"),
    [
        (lambda g: (g, g), ValueError, "Lost.vjp must return one gradient per input: 1, but got 2"),
        (lambda g: (), ValueError, "Lost.vjp must return one gradient per input: 1, but got 0"),
        (lambda g: g, TypeError, "Lost.vjp must return a tuple with one gradient per input, but got (ndarray|Tensor)"),
        (lambda g: None, TypeError, "Lost.vjp must return a tuple with one gradient per input, but got NoneType"),
    ],
    ids=["two", "none", "bare", "nothing"],
)
@pytest.mark.parametrize("create_graph", [False, True])
def test_wrong_vjp(answer, kind, match, create_graph):
    class Lost(ndl.TensorOp):
        def compute(self, a):
            return a * 1

        def vjp(self, g, y, needs, a):
            return answer(g)

    x = leaf(1)
    with pytest.raises(kind, match=match):
        Lost()(x).backward(create_graph=create_graph)
    assert x.grad is None


def test_ops_that_define_too_little():
    class Nothing(ndl.TensorOp):
        def compute(self, a):
            return a * 1

    with pytest.raises(NotImplementedError, match="Nothing has no gradient: define vjp"):
        Nothing()(leaf(1)).backward()
    with pytest.raises(NotImplementedError, match=r"Op must define compute\(self, \*arrays\)"):
        ndl.Op().compute()


def test_course_gradient_signature():
    x, w = ndl.Tensor(np.ones((2, 3))), ndl.Tensor(np.ones((3, 4)))
    y = x @ w
    dx, dw = y.op.gradient_as_tuple(ndl.ones(2, 4, dtype="float64"), y)
    assert dx.shape == (2, 3)
    assert dw.shape == (3, 4)
    single = ops.relu(x)
    assert single.op.gradient(ndl.ones(2, 3), single).shape == (2, 3)
    part = ops.split(x)[1]
    ((zero, one),) = part.op.gradient_as_tuple(ndl.ones(3, dtype="float64"), part)
    assert zero.numpy().sum() == 0
    assert one.numpy().sum() == 3


def test_error_in_backward_changes_no_gradient():
    x = leaf(1)
    (x * 2).backward()
    old = x.grad
    y = Wrong(np.ones(1))(x * 2) + x
    with pytest.raises(TypeError):
        y.backward()
    assert x.grad is old


# -- memory


def train_step(model, optimizer, x, y):
    optimizer.reset_grad()
    loss = nn.SoftmaxLoss()(model(x), y)
    loss.backward()
    optimizer.clip_grad_norm(1.0)
    optimizer.step()
    return loss.item()


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("make", [ndl.optim.SGD, ndl.optim.Adam])
def test_memory_check_training_leaves_nothing_behind(make, no_collector):
    np.random.seed(0)
    block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 8))
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm1d(8), nn.Residual(block), nn.Tanh(), nn.Linear(8, 3))
    optimizer = make(model.parameters(), lr=0.01)
    x, y = ndl.init.randn(16, 4), ndl.Tensor(np.arange(16) % 3)
    counts = {}
    for i in range(1, 121):
        train_step(model, optimizer, x, y)
        if i in (20, 120):
            optimizer.reset_grad()
            counts[i] = ndl.autograd.TENSOR_COUNTER
    assert counts[20] == counts[120]
    assert gc.collect() == 0


def test_memory_check_every_op_frees_its_graph(no_collector):
    x = ndl.Tensor(np.ones((2, 3)))
    for _ in range(3):
        y = ops.stack(list(ops.split(ops.logsoftmax(x * x)))) @ x.T
        z = (y[0] + y.max() + ops.logsumexp(y) + ops.fused_add_scalars(y, 1, 2)[0].sum()).sum()
        z.backward()
    del y, z
    x.grad = None
    assert gc.collect() == 0


def test_memory_check_errors_leave_no_cycles(no_collector):
    x = leaf(1)
    for _ in range(3):
        with contextlib.suppress(TypeError):
            (Wrong(np.ones(1))(x * 2) + x).backward()
        with contextlib.suppress(ValueError):
            x @ x
    assert gc.collect() == 0


def test_memory_check_second_order_is_freed_by_the_next_backward(no_collector):
    x, w = leaf(1, 2), leaf(3, 4)
    for _ in range(3):
        y = ops.tanh(x * w).sum()
        y.backward(create_graph=True)
        (y + (w.grad * w.grad).sum() + (x.grad * x.grad).sum()).backward()
    del y
    assert gc.collect() == 0


def test_memory_check_second_order_leaves_no_cycles_once_leaves_are_reset(no_collector):
    x, other = leaf(1, 2), leaf(3, 4)
    y = ops.tanh(x * 3) + other
    (y * y).sum().backward(create_graph=True)
    assert y.grad is None
    x.grad = other.grad = None
    y.retain_grad()
    (y * y).sum().backward(create_graph=True)
    assert y.grad.numpy().tolist() == (2 * y.numpy()).tolist()
    x.grad = other.grad = y.grad = None
    del y
    assert gc.collect() == 0


def test_leaves_own_their_gradients_under_create_graph():
    a, b = leaf(1, 2), leaf(3, 4)
    out_grad = leaf(1, 1)
    (a + b).backward(out_grad, create_graph=True)
    assert a.grad is not b.grad
    assert a.grad is not out_grad


def test_memory_check_a_plain_backward_drops_gradients_of_inner_nodes(no_collector):
    x = leaf(1, 2)
    y = x * 2
    loss = (y * y).sum()  # the gradient of y is computed from y
    ndl.autograd.compute_gradient_of_variables(loss, ndl.Tensor(1.0))
    assert y.grad is not None
    loss.backward()
    assert y.grad is None
    del y, loss
    assert gc.collect() == 0


def test_memory_check_activations_die_while_walking(no_collector):
    alive = []

    class Count(ndl.TensorOp):
        def compute(self, a):
            return a * 1

        def gradient(self, out_grad, node):
            alive.append(ndl.autograd.TENSOR_COUNTER)
            return out_grad

    y = leaf(1)
    for _ in range(10):
        y = Count()(y)
    y.backward()
    assert alive == sorted(alive, reverse=True)
    assert alive[0] - alive[-1] >= 8


def test_import_is_light():
    code = (
        "import sys, needle; bad = {'torch', 'hypothesis', 'memray', 'oracle', 'msgspec'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gradients_of_leaves_lie_in_row_order_whatever_the_rule_made():
    x = ndl.Tensor(np.arange(6.0).reshape(2, 3))
    w = ndl.Tensor(np.asfortranarray(np.ones((2, 3))), requires_grad=False)
    w.cached_data = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    (ndl.transpose(x) * w.T).sum().backward()
    assert x.grad.numpy().flags.c_contiguous
    np.testing.assert_array_equal(x.grad.numpy(), w.numpy())
    y = ndl.Tensor(np.asfortranarray(np.ones((2, 3))))
    y.cached_data = np.asfortranarray(np.ones((2, 3)))
    (y * w).sum().backward()
    assert y.grad.numpy().flags.c_contiguous
