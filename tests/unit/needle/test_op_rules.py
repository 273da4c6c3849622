"""Ops: dtypes, labels, messages, and where each is found."""

import array
import inspect
import math
import tracemalloc

import numpy as np
import pytest

import needle as ndl
from needle import ops


def normal(*shape, seed=0, offset=0.0, scale=1.0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape) * scale + offset


def positive(*shape, seed=0):
    return np.abs(normal(*shape, seed=seed)) + 0.5


LABELS = np.array([2, 0, 1, 1, 2])


@pytest.mark.parametrize("shape", [(3, 4), (7, 5), (16, 33), (50, 20)])
@pytest.mark.parametrize("op", [ops.BatchNorm, ops.LayerNorm])
def test_a_norm_far_from_zero_rounds_its_mean_alike_on_the_way_back(op, shape):
    """Or what cancels with a norm behind it, such as the gradient of the scale, does not (case 2a8251f5)."""
    for seed in range(10):
        x = normal(*shape, seed=seed, offset=100).astype("float32")
        w, b = normal(2, shape[1], seed=seed).astype("float32")
        g = normal(*shape, seed=seed + 100).astype("float32")
        norm = op()
        y = norm.compute(x, w, b)
        plain = norm.vjp(g, y, [True] * 3, x, w, b)
        tensors = norm.vjp(ndl.Tensor(g), ndl.Tensor(y), [True] * 3, *map(ndl.Tensor, (x, w, b)))
        for a, t in zip(plain, tensors, strict=True):
            np.testing.assert_array_equal(a, t.numpy())


def test_every_function_is_at_the_top():
    functions = [
        n for n, f in vars(ops).items() if inspect.isfunction(f) and f.__module__ == "needle.ops" and n[0] != "_"
    ]
    assert len(functions) > 35
    for name in functions:
        assert getattr(ndl, name) is getattr(ops, name)
        assert name in ndl.__all__


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm", "SoftmaxCrossEntropy"])
def test_fused_op_used_twice_does_not_mix_up_its_calls(name):
    op = getattr(ops, name)()
    rest = [ndl.Tensor(LABELS)] if name.startswith("Soft") else [ndl.ones(3, dtype="float64")] * 2
    a, b = ndl.Tensor(normal(5, 3)), ndl.Tensor(normal(5, 3, seed=1))
    y = op(a, *rest)
    op(b, *rest)
    g = ndl.Tensor(normal(*y.shape, seed=2))
    y.backward(g)
    twice = a.grad
    type(op)()(a, *rest).backward(g)
    np.testing.assert_array_equal(twice.numpy(), a.grad.numpy())
    np.testing.assert_array_equal(a.numpy(), normal(5, 3))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_dtype_is_kept(dtype):
    x = ndl.Tensor(positive(3, 4), dtype=dtype)
    scalars = [x * np.float64(2), np.float64(2) * x, x + np.array(1.0), 1 / x, 2**x, 2.5 - x, x**0.5, x / np.float64(3)]
    for y in [*scalars, ops.sigmoid(x), ops.logsumexp(x, 1), x.max(0), x.mean(), ops.relu(x), x @ x.T]:
        assert isinstance(y, ndl.Tensor)
        assert y.dtype == dtype
        y.backward()
        assert x.grad.dtype == dtype


def test_ndarray_on_the_left():
    x = ndl.Tensor(normal(3))
    y = np.arange(3.0) * x
    assert isinstance(y, ndl.Tensor)
    y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0.0, 1.0, 2.0])
    assert isinstance(np.ones((2, 3)) @ ndl.Tensor(normal(3, 1)), ndl.Tensor)


def test_mixed_dtypes_give_each_leaf_its_own():
    x, w = ndl.Tensor(normal(3), dtype="float32"), ndl.Tensor(normal(3))
    for create_graph in (False, True):
        (x * w + x).backward(create_graph=create_graph)
        assert x.grad.dtype == np.float32
        assert w.grad.dtype == np.float64
        x.grad = w.grad = None


def test_integer_tensors_take_gradients_as_they_come():
    x = ndl.Tensor([1, 2])
    (x * 2.5 + x * x).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [4.5, 6.5])


def test_zero_size():
    x, w = ndl.Tensor(np.zeros((0, 3))), ndl.Tensor(normal(3, 2))
    ops.linear(ops.relu(x), w, ndl.Tensor(normal(1, 2))).sum().backward()
    assert x.grad.shape == (0, 3)
    np.testing.assert_array_equal(w.grad.numpy(), np.zeros((3, 2)))


def a(*shape):
    return ndl.Tensor(np.ones(shape))


MESSAGES = {
    "matmul": (lambda: a(3, 4) @ a(5, 2), ValueError, r"matmul needs \(n, k\) @ \(k, m\), but got \(3, 4\) @ \(5, 2\)"),
    "matmul flat": (lambda: a(4) @ a(4, 2), ValueError, r"matmul needs .* got \(4,\) @ \(4, 2\)"),
    "matmul vector": (lambda: a(2, 4) @ a(4), ValueError, r"matmul needs .* got \(2, 4\) @ \(4,\)"),
    "matmul vectors": (lambda: a(4) @ a(4), ValueError, r"matmul needs .* got \(4,\) @ \(4,\)"),
    "matmul stack": (lambda: a(2, 3, 4) @ a(4), ValueError, r"matmul needs .* got \(2, 3, 4\) @ \(4,\)"),
    "add": (lambda: a(3) + a(2), ValueError, r"add: shapes \(3,\) and \(2,\) do not broadcast"),
    "multiply": (lambda: a(3) * a(2), ValueError, r"multiply: shapes \(3,\) and \(2,\)"),
    "divide": (lambda: a(3) / a(2), ValueError, r"divide: shapes \(3,\) and \(2,\)"),
    "power": (lambda: a(3) ** a(2), ValueError, r"power: shapes \(3,\) and \(2,\)"),
    "axis": (lambda: a(2, 3).sum(2), ValueError, r"summation: axis 2 does not exist in 2 dimensions; use -2\.\.1"),
    "axis twice": (lambda: a(2, 3).sum((0, -2)), ValueError, "name an axis twice"),
    "max axis": (lambda: a(2, 3).max(5), ValueError, "max: axis 5 does not exist"),
    "max empty": (lambda: a(2, 0).max(1), ValueError, r"at least one element, but the shape is \(2, 0\)"),
    "min axis": (lambda: a(2, 3).min(5), ValueError, "min: axis 5 does not exist"),
    "min empty": (lambda: a(2, 0).min(1), ValueError, r"min over axes \(1,\) needs at least one element"),
    "argmax axes": (lambda: a(2, 3).argmax((0, 1)), TypeError, r"argmax: axis must be an integer or None.*\(0, 1\)"),
    "argmin axis": (lambda: a(2, 3).argmin(2), ValueError, "argmin: axis 2 does not exist"),
    "argmin empty": (lambda: a(0).argmin(), ValueError, "argmin over axes .* at least one element"),
    "var axis": (lambda: a(2, 3).var(2), ValueError, "var: axis 2 does not exist"),
    "var of one": (lambda: a(2, 1).var(1, correction=1), ValueError, r"more than correction=1 elements, .*\(2, 1\)"),
    "var of none": (lambda: a(0).var(), ValueError, "more than correction=0 elements"),
    "var correction": (lambda: a(3).var(correction=-1), ValueError, "finite and not negative, got correction=-1"),
    "var correction text": (lambda: a(3).var(correction="1"), TypeError, "must be a real number, but got '1'"),
    "var unbiased": (lambda: a(3).var(unbiased=True), TypeError, "axes .* and keepdims, but got unbiased=True"),
    "clip nothing": (lambda: a(2).clip(), TypeError, "needs a limit: low, high or both"),
    "clip nan": (lambda: a(2).clip(math.nan), ValueError, "clip: low must not be nan"),
    "clip tensor": (lambda: a(2).clip(0, a(2)), TypeError, r"high must be a number, got Tensor: .*needle.minimum\("),
    "clip array": (lambda: a(2).clip(0, np.ones(2)), TypeError, "clip: high must be a number, got ndarray"),
    "maximum": (lambda: ops.maximum(a(3), a(2)), ValueError, r"maximum: shapes \(3,\) and \(2,\) do not"),
    "minimum": (lambda: ops.minimum(a(3), a(2)), ValueError, r"minimum: shapes \(3,\) and \(2,\) do not"),
    "minimum list": (lambda: ops.minimum(a(2), [1, 2]), TypeError, "minimum takes Tensors, arrays .*got list"),
    "maximum texts": (lambda: ops.maximum("a", 1), TypeError, "maximum takes Tensors, arrays .*got str"),
    "maximum text": (lambda: ops.maximum("a", a(2)), TypeError, "maximum takes Tensors, arrays .*got str"),
    "where": (lambda: ops.where([True] * 4, a(3), a(3)), ValueError, r"where: a condition of shape \(4,\) and shapes"),
    "where number": (lambda: ops.where(a(3), a(3), a(3)), TypeError, "must be bools, but got dtype float64: compare"),
    "concatenate": (lambda: ops.concatenate([a(2, 3), a(3, 2)]), ValueError, r"axis 0 alone, .*\[\(2, 3\), \(3, 2\)\]"),
    "concatenate rank": (lambda: ops.concatenate([a(2), a(2, 3)]), ValueError, "equal, not zero, rank"),
    "concatenate numbers": (lambda: ops.concatenate([a(), a()]), ValueError, "equal, not zero, rank"),
    "concatenate nothing": (lambda: ops.concatenate([]), ValueError, r"one or more .* but got shapes \[\]"),
    "concatenate axis": (lambda: ops.concatenate([a(2)], 1), ValueError, "concatenate: axis 1 does not exist"),
    "concatenate None": (lambda: ops.concatenate([a(2)], None), TypeError, r"an integer, got axis=None: flatten\(\)"),
    "concatenate floats": (lambda: ops.concatenate([a(2), 1.0]), TypeError, "takes needle Tensors, but got float"),
    "flatten": (lambda: a(2, 3).flatten(1, 0), ValueError, r"axis start=1 comes after end=0 in the shape \(2, 3\)"),
    "assignment": (lambda: a(2).__setitem__(0, 1), TypeError, r"cannot be assigned.* needle.where\(mask, value, t\)"),
    "format": (lambda: f"{a(2):.3f}", TypeError, r"'.3f' needs exactly one element, but the shape is \(2,\)"),
    "index of a float": (lambda: [1, 2][a()], TypeError, "an index must be an integer, .* dtype float64"),
    "logsumexp axis": (lambda: ops.logsumexp(a(2), 1), ValueError, "logsumexp: axis 1"),
    "logsumexp empty": (lambda: ops.logsumexp(a(2, 0), 1), ValueError, "at least one element"),
    "mean empty": (lambda: a(0).mean(), ValueError, "at least one element"),
    "logsoftmax": (lambda: ops.logsoftmax(a(3)), ValueError, r"\(batch, classes\).* got \(3,\)"),
    "softmax axis": (lambda: ops.softmax(a(2), -(2**31)), ValueError, "softmax: axis -2147483648 does not exist"),
    "softmax far": (lambda: ops.softmax(a(2), -(2**31) - 1), ValueError, "softmax: axis must be at least -2147483648"),
    "transpose": (lambda: ops.transpose(a(2, 3), (0, 2)), ValueError, "transpose: axis 2"),
    "transpose first": (lambda: ops.transpose(a(2, 3), (2, 0)), ValueError, "transpose: axis 2 does not exist"),
    "transpose triple": (lambda: ops.transpose(a(2, 3), (0, 1, 2)), ValueError, r"a pair of axes, .*\(0, 1, 2\)"),
    "transpose flat": (lambda: ops.transpose(a(3)), ValueError, "at least 2 dimensions"),
    "T": (lambda: a(2, 3, 4).T, ValueError, r"use transpose\(\(i, j\)\)"),
    "reshape": (lambda: a(2, 3).reshape((4,)), ValueError, r"6 elements of shape \(2, 3\) do not fill \(4,\)"),
    "broadcast_to": (lambda: a(2, 3).broadcast_to((2, 4)), ValueError, r"\(2, 3\) does not broadcast to \(2, 4\)"),
    "index": (lambda: a(3)[5], IndexError, "5 is out of bounds"),
    "stack": (lambda: ops.stack([a(2), a(3)]), ValueError, r"equal shape, but got shapes \[\(2,\), \(3,\)\]"),
    "stack nothing": (lambda: ops.stack([]), ValueError, "one or more"),
    "stack axis": (lambda: ops.stack([a(2)], 2), ValueError, r"stack: axis 2 does not exist in 2 .*; use -2\.\.1"),
    "split": (lambda: ops.split(a(2), 1), ValueError, "split: axis 1"),
    "tuple index": (lambda: ops.split(a(2))[2], IndexError, "index 2 is out of range for a tuple of 2"),
    "flip": (lambda: ops.flip(a(2), (1,)), ValueError, "flip: axis 1"),
    "dilate": (lambda: ops.dilate(a(2), (0,), -1), ValueError, "dilate: dilation must be at least 0, got dilation=-1"),
    "linear": (lambda: ops.linear(a(2, 3), a(4, 5)), ValueError, r"got \(2, 3\) @ \(4, 5\)"),
    "linear bias": (lambda: ops.linear(a(2, 3), a(3, 5), a(1, 1)), ValueError, r"bias of shape .* got \(1, 1\)"),
    "conv": (lambda: ops.conv(a(1, 3, 3, 2), a(2, 2, 3, 1)), ValueError, "conv needs images"),
    "conv size": (lambda: ops.conv(a(1, 3, 3, 1), a(4, 4, 1, 1)), ValueError, "does not fit"),
    "conv stride": (lambda: ops.Conv(0), ValueError, "stride=0"),
    "conv padding": (lambda: ops.conv(a(1, 3, 3, 1), a(2, 2, 1, 1), 1, -1), ValueError, "at least 0, got padding=-1"),
    "batch_norm": (lambda: ops.batch_norm(a(2, 3), a(2), a(3)), ValueError, r"batch_norm needs .*\(2, 3\), \(2,\)"),
    "layer_norm": (lambda: ops.layer_norm(a(2, 3), a(3), a(2)), ValueError, "layer_norm needs"),
    "eps": (lambda: ops.LayerNorm(0), ValueError, "eps must be a positive finite number, got eps=0"),
    "scalar": (lambda: ops.mul_scalar(a(2), "3"), TypeError, "real number, but got '3'"),
    "not a tensor": (lambda: ops.add(a(2), 3), TypeError, "EWiseAdd takes needle Tensors, but got int"),
    "text": (lambda: a(2) + "3", TypeError, "unsupported operand"),
    "text left": (lambda: "3" - a(2), TypeError, "unsupported operand"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_message(name):
    action, kind, match = MESSAGES[name]
    with pytest.raises(kind, match=match):
        action()


def test_labels_do_not_ask_for_a_gradient():
    labels = ndl.Tensor([0, 2])  # which asks for one, as every Tensor that is not told otherwise
    logits = ndl.Tensor(normal(2, 3), requires_grad=False)
    assert not ops.softmax_cross_entropy(logits, labels).requires_grad
    logits = ndl.Tensor(normal(2, 3))
    ops.softmax_cross_entropy(logits, labels).backward()
    assert labels.grad is None
    assert logits.grad is not None


@pytest.mark.parametrize(
    ("labels", "kind", "match"),
    [
        ([0, 3], ValueError, r"labels in 0\.\.2, but got 3"),
        ([0, -1], ValueError, r"labels in 0\.\.2, but got -1"),
        ([0.0, 1.5], ValueError, "integer labels, but got 1.5"),
        ([0.0, np.nan], ValueError, "integer labels, but got nan"),
        ([0.0, np.inf], ValueError, "integer labels, but got inf"),
        ([False, True], TypeError, "integer labels, but got dtype bool"),
        ([0], ValueError, r"labels of shape \(2,\) for logits \(2, 3\), but got \(1,\)"),
        ([[0], [1]], ValueError, r"but got \(2, 1\)"),
        ([0, 1, 2], ValueError, r"but got \(3,\)"),
    ],
    ids=["high", "negative", "fraction", "nan", "inf", "bool", "short", "column", "long"],
)
@pytest.mark.parametrize("more", [0, ops._FEW_ROWS])
def test_labels_are_checked(labels, kind, match, more):
    match = match.replace("(2,", f"({2 + more},").replace("(1,", f"({1 + more},").replace("(3,", f"({3 + more},")
    labels = np.array([*labels[:1] * more, *labels])
    with pytest.raises(kind, match=match):
        ops.softmax_cross_entropy(a(2 + more, 3), ndl.Tensor(labels))


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
@pytest.mark.parametrize("n", [1, ops._FEW_ROWS, ops._FEW_ROWS + 1])
@pytest.mark.parametrize("m", [5, ops._FEW_CLASSES, ops._FEW_CLASSES + 1])
def test_few_labels_are_found_where_many_are(n, m, dtype):
    labels = (np.arange(n) * 7 % m).astype(dtype)
    places = ops._label_places((n, m), labels)
    assert places.tolist() == [m * row + label for row, label in enumerate(labels.tolist())]
    for wrong in [m, -1][: 2 - (dtype == "uint8")]:
        labels[-1] = wrong
        with pytest.raises(ValueError, match=rf"labels in 0\.\.{m - 1}, but got {wrong}"):
            ops._label_places((n, m), labels)


@pytest.mark.parametrize("m", [1, 2, ops._FEW_CLASSES, ops._FEW_CLASSES + 1])
@pytest.mark.parametrize("n", [1, ops._FEW_ROWS, ops._FEW_ROWS + 1])
def test_row_maxima_of_few_and_of_many_are_those_of_numpy(n, m):
    x = np.sin(np.arange(n * m, dtype="float32")).reshape(n, m)
    x[0, 0], x[-1, -1] = -np.inf, np.nan
    for given in (x, np.asfortranarray(x), x[:, ::-1]):
        np.testing.assert_array_equal(ops._row_maxima(given), given.max(1, keepdims=True))


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32"])
def test_softmax_needs_a_batch(dtype):
    with pytest.raises(ValueError, match=r"not empty, but got \(0, 3\)"):
        ops.softmax_cross_entropy(a(0, 3), ndl.Tensor(np.zeros(0, dtype)))


@pytest.mark.parametrize("norm", [ops.batch_norm, ops.layer_norm])
def test_norms_of_integers_keep_their_eps(norm):
    x = np.array([[3, 3], [3, 3], [3, 3]])
    y = norm(ndl.Tensor(x), ndl.ones(2), ndl.zeros(2))
    np.testing.assert_array_equal(y.numpy(), np.zeros((3, 2)))


@pytest.mark.parametrize("op", [ops.add_scalar, ops.mul_scalar, ops.divide_scalar, ops.power_scalar])
def test_functions_of_a_scalar_take_those_of_numpy_as_numbers(op):
    x = ndl.Tensor([4.0, 8.0], dtype="float32")
    for two in (np.float64(2), np.array([2.0])):
        assert op(x, two).dtype == np.float32
        np.testing.assert_array_equal(op(x, two).numpy(), op(x, 2).numpy())
    with pytest.raises(TypeError, match="a scalar operand must be a real number, but got '2'"):
        op(x, "2")


def test_softmax_along_the_first_of_three_axes():
    x = normal(2, 3, 4)
    np.testing.assert_allclose(ops.softmax(ndl.Tensor(x), -3).numpy(), np.exp(x) / np.exp(x).sum(0), rtol=1e-14)


def test_a_number_is_a_shape():
    assert ops.broadcast_to(ndl.Tensor([2.0]), 3).tolist() == [2, 2, 2]


@pytest.mark.parametrize("create_graph", [False, True])
def test_the_gradient_of_what_where_repeats(create_graph):
    x, y = a(2, 3), a(3)
    ops.where(np.array([[True, False, False], [True, True, False]]), x, y).backward(create_graph=create_graph)
    assert x.grad.tolist() == [[1, 0, 0], [1, 1, 0]]
    assert y.grad.tolist() == [0, 1, 2]
    x.grad = y.grad = None


def test_the_largest_of_each_row_of_a_cube():
    x = normal(3, 3, 2)
    np.testing.assert_array_equal(ndl.Tensor(x).max(2).numpy(), x.max(2))


class FromElsewhere:
    """A sequence that NumPy takes for an array, such as a column of another library."""

    def __init__(self, places):
        self.places = places

    def __len__(self):
        return len(self.places)

    def __getitem__(self, i):
        return self.places[i]


def test_an_index_of_every_kind():
    x = ndl.Tensor([1.0, 2.0, 3.0])
    assert x[[]].tolist() == []
    assert x[np.array(1)].item() == 2
    assert x[np.array([], int)].shape == (0,)
    places = ndl.Tensor([0, 0, 2])
    y = x[places].sum() + x[[]].sum()
    places.numpy()[:] = 1  # the index is a copy
    y.backward()
    assert x.grad.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    "kind", [np.array, list, tuple, lambda places: array.array("q", places), ndl.Tensor, FromElsewhere]
)
def test_what_an_index_of_any_kind_names_twice_gets_both_gradients(kind):
    """``rows, columns = zip(*pairs)`` gives tuples, for one."""
    weights = np.array([1.0, 10.0, 100.0])
    x = ndl.Tensor(np.zeros((2, 3)))
    (x[kind([0, 0, 1]), kind([2, 2, -1])] * weights).sum().backward()
    assert x.grad.tolist() == [[0, 0, 11], [0, 0, 100]]
    (x[..., kind([1, 1, 1])] * weights).sum().backward()
    assert x.grad.tolist() == [[0, 111, 0]] * 2
    (x[kind([1, 1, 0]),] * weights[:, None]).sum().backward()
    assert x.grad.tolist() == [[100] * 3, [11] * 3]
    assert ops.put_item(ndl.Tensor(weights), (2,), (kind([1, 1, 0]),)).tolist() == [100, 11]


@pytest.mark.parametrize("wrap", [lambda i: i, lambda i: (i,), lambda i: (i, i)], ids=["array", "tuple", "two"])
def test_a_place_may_be_named_from_both_ends(wrap):
    x = ndl.Tensor(np.zeros((3, 3)))
    index = wrap(np.array([0, -3, 2, -1]))
    taken = x[index]
    weights = np.array([1.0, 10.0, 100.0, 1000.0]).reshape(-1, *[1] * (taken.ndim - 1))
    (taken * weights).sum().backward()
    expected = np.zeros((3, 3))
    np.add.at(expected, index, weights)
    assert x.grad.tolist() == expected.tolist()
    assert x.grad.numpy()[0, 0] == 11


@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("place", [0, 700, 1030])
def test_the_largest_logit_may_stand_anywhere_in_a_wide_row(rows, place):
    """A shift by another number, that of a part of the row or of another row, overflows or leaves nothing."""
    logits = normal(rows, 1031).astype("float32")
    logits[rows // 2 :, place] = 1e3
    x = ndl.Tensor(logits)
    loss = ops.softmax_cross_entropy(x, np.full(rows, 5))
    loss.backward()
    wide = logits.astype("float64")
    soft = np.exp(wide - wide.max(1, keepdims=True))
    soft /= soft.sum(1, keepdims=True)
    expected = np.mean(wide.max(1) + np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) - wide[:, 5])
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-6)
    soft[:, 5] -= 1
    np.testing.assert_allclose(x.grad.numpy(), soft / rows, rtol=1e-5, atol=1e-9)


def test_what_is_put_at_one_place_adds_up():
    x = ndl.Tensor([1.0, 2.0])
    assert ops.put_item(x, (2, 2), ([0, 0], [1, 1])).tolist() == [[0, 3], [0, 0]]
    assert ops.put_item(ndl.Tensor([0.1]), (2,), [0]).tolist() == [0.1, 0]  # in the dtype that it has
    assert ops.put_item(ndl.Tensor([2**24 + 1]), (2,), [0]).tolist() == [2**24 + 1, 0]
    assert ops.put_item(ndl.Tensor(x, dtype="float16"), (2,), [0, 0]).dtype == np.float16


def test_ones_and_zeros_that_all_share_are_not_written_to():
    for shared in (ops._zeros((2,), np.dtype("float32")), ops._ones((2,), np.dtype("float32"))):
        with pytest.raises(ValueError, match="read-only"):
            shared[0] = 5


def test_a_gradient_that_depends_on_nothing_is_a_constant():
    """Else a second backward would go through masks and ones, and give them gradients of their own."""
    for op in (ops.relu, abs, ops.amax, lambda x: x.clip(0), lambda x: ops.maximum(x, 0.5), lambda x: x**0):
        x = ndl.Tensor([1.0, -2.0])
        op(x).sum().backward(create_graph=True)
        assert not x.grad.requires_grad
    one, bias = ndl.Tensor(np.eye(2), requires_grad=False), ndl.Tensor([[1.0, 2.0]])
    ops.linear(one, ndl.Tensor(np.eye(2)), bias).sum().backward(create_graph=True)
    assert bias.grad.tolist() == [[2, 2]]
    assert not bias.grad.requires_grad


def test_the_graph_of_a_gradient_holds_arrays():
    x = ndl.Tensor(-3.0)  # of which NumPy's comparisons make scalars
    (abs(x) ** 2).backward(create_graph=True)
    nodes = ndl.autograd.find_topo_sort([x.grad])
    assert len(nodes) > 4
    assert {type(node.numpy()) for node in nodes} == {np.ndarray}
    x.grad = None


def test_memory_check_relu_keeps_no_zeros_of_a_large_shape():
    x = ndl.Tensor(np.ones(10 * ops._ZEROS, "float32"), requires_grad=False)
    tracemalloc.start()
    try:
        ops.relu(x)
        assert tracemalloc.get_traced_memory()[0] < x.numpy().nbytes / 2
    finally:
        tracemalloc.stop()


WIDE = (500, 1000)  # a float32 array of this shape is what each of these may take, and no second one beside it
ONE_ARRAY = {
    "a Tensor of a given dtype": (lambda x: ndl.Tensor(x, dtype="float32"), [np.ones(WIDE, "float32")]),
    "a loss": (ops.softmax_cross_entropy, [np.ones(WIDE, "float32"), np.zeros(500, int)]),
    "a Linear": (ops.linear, [np.ones((500, 2), "float32"), np.ones((2, 1000), "float32"), np.ones(1000, "float32")]),
    "a Linear in half precision with a wider bias": (
        ops.linear,
        [np.ones((500, 2), "float16"), np.ones((2, 1000), "float16"), np.ones(1000, "float32")],
    ),
}


@pytest.mark.parametrize(("function", "arrays"), ONE_ARRAY.values(), ids=ONE_ARRAY)
def test_what_is_large_is_in_memory_once(function, arrays):
    operands = [ndl.Tensor.make_const(a) for a in arrays] if function in vars(ops).values() else arrays
    function(*operands)  # ones and numbers that are kept come to be
    tracemalloc.start()
    try:
        function(*operands)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = 4 * math.prod(WIDE)
    assert size < peak < 1.5 * size


def test_an_op_has_the_defaults_of_its_function():
    functions = {n.replace("_", ""): f for n, f in vars(ops).items() if inspect.isfunction(f) and n[0] != "_"}
    seen = set()
    for name, kind in vars(ops).items():
        if inspect.isclass(kind) and issubclass(kind, ndl.autograd.Op) and name.lower() in functions:
            of_function = inspect.signature(functions[name.lower()]).parameters
            for p in inspect.signature(kind).parameters.values():
                if p.default is not p.empty and p.name in of_function:
                    assert p.default == of_function[p.name].default, (name, p.name)
                    assert getattr(kind(), p.name) == p.default, (name, p.name)
                    seen.add((name, p.name))
    assert len(seen) >= 14, seen


SQUARE = np.array([[1.0, 2.0], [3.0, 5.0]])
BLOCK = np.array([[[1.0, 2.0, 6.0], [0.0, 3.0, 3.0]], [[70.0, 71.0, 72.0], [5.0, 5.0, 5.0]]])


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (lambda: ops.var(ndl.Tensor(BLOCK), 2), BLOCK.var(2)),
        (lambda: ops.concatenate([ndl.Tensor(SQUARE[:1]), ndl.Tensor(SQUARE[1:])]), SQUARE),
        (lambda: ops.fused_add_scalars(ndl.Tensor(SQUARE), -1, 2.5)[0], SQUARE - 1),
        (lambda: ops.fused_add_scalars(ndl.Tensor(SQUARE), -1, 2.5)[1], SQUARE + 2.5),
        (lambda: ops.stack([ndl.Tensor(SQUARE)]), SQUARE[None]),
    ],
    ids=["var", "concatenate", "fused 0", "fused 1", "stack"],
)
def test_square_results_with_zeros_in_them(result, expected):
    np.testing.assert_allclose(result().numpy(), expected, rtol=1e-14)


def test_a_place_is_an_array_of_numbers_also_without_dimensions():
    for place in (a(3).argmax(), a(3).argmin(0), a(2, 3).argmax(1, keepdims=True)):
        assert type(place.numpy()) is np.ndarray
        assert place.dtype == np.int64


def test_what_was_put_into_a_tuple_is_what_is_taken_out():
    x, y = a(2), a(3) * 2
    both = ops.make_tuple(x, y)
    assert both[0] is x
    assert both[1] is y
    parts = ops.split(a(2, 3))
    assert ops.stack(parts).inputs[0] is parts  # and is not taken apart to be put together again


@pytest.mark.parametrize("how", [{}, {"create_graph": True}], ids=["plain", "create"])
@pytest.mark.parametrize(
    "take",
    [lambda t: t[-1], lambda t: ops.tuple_get_item(t, -1), ops.TupleGetItem(-1), ops.TupleGetItem(np.int64(-1))],
    ids=["item", "function", "op", "numpy"],
)
def test_the_last_of_a_tuple_is_also_the_one_that_gets_the_gradient(take, how):
    x = ndl.Tensor([[1.0, 2.0], [3.0, 4.0]])
    last = take(ops.split(x))
    (last * last).sum().backward(**how)
    assert x.grad.tolist() == [[0, 0], [6, 8]]


class HowMany(ndl.TensorOp):
    """The number of tensors in a tuple, which does not depend on what is in them."""

    def compute(self, args):
        return np.float64(len(args))

    def vjp(self, g, y, needs, args):
        return (tuple(x * 0 for x in args),)


@pytest.mark.parametrize("how", [{}, {"create_graph": True}], ids=["plain", "create"])
def test_the_gradient_of_what_is_split_into_nothing(how):
    x = a(0, 3)
    HowMany()(ops.split(x)).backward(**how)
    assert x.grad.shape == (0, 3)
    assert x.grad.dtype == np.float64


@pytest.mark.parametrize("how", [{}, {"create_graph": True}], ids=["plain", "create"])
@pytest.mark.parametrize("shape", [(2, 3), (2,), (3,), (1, 1, 2, 2), ()])
def test_linear_passes_back_what_came_in_rows_of_any_number(shape, how):
    x = ndl.Tensor(np.ones((*shape, 2), "float32"))
    weight = ndl.Tensor(np.array([[1], [2049]], "float32"))
    g = np.arange(1, 1 + math.prod(shape), dtype="float32").reshape(*shape, 1)
    ops.linear(x, weight).backward(ndl.Tensor(g), **how)
    np.testing.assert_array_equal(x.grad.numpy(), g * np.array([1, 2049], "float32"), strict=True)
    np.testing.assert_array_equal(weight.grad.numpy(), np.full((2, 1), g.sum()), strict=True)


@pytest.mark.parametrize("shape", [(1, 33), (33,)])
def test_the_gradient_of_a_wide_bias_beside_many_rows(shape):
    n = ops._LONG + 1
    bias = ndl.zeros(*shape, requires_grad=True)
    ops.linear(ndl.ones(n, 2), ndl.ones(2, 33), bias).sum().backward()
    np.testing.assert_array_equal(bias.grad.numpy(), np.full(shape, n, "float32"), strict=True)


@pytest.mark.parametrize(("norm", "shape"), [(ops.batch_norm, (2, 1)), (ops.layer_norm, (1, 2))])
def test_the_second_derivative_of_a_norm(norm, shape):
    """Of two numbers d above and below their mean, where y = d / (d^2 + eps)^0.5, with d = eps = 1."""
    x = ndl.Tensor(np.reshape([3.0, 1.0], shape))
    norm(x, a(shape[1]), a(shape[1]), eps=1.0).reshape((2,))[0].backward(create_graph=True)
    first, x.grad = x.grad, None
    np.testing.assert_allclose(first.numpy().reshape(-1), [0.5 * 2**-1.5, -0.5 * 2**-1.5], rtol=1e-12)
    first.reshape((2,))[0].backward()
    np.testing.assert_allclose(x.grad.numpy().reshape(-1), [-0.75 * 2**-2.5, 0.75 * 2**-2.5], rtol=1e-12)


@pytest.mark.parametrize(
    ("op", "function", "shapes"),
    [
        (ops.Softmax, ops.softmax, [(2, 3, 4)]),
        (ops.Var, ops.var, [(2, 3)]),
        (ops.Split, ops.split, [(2, 2)]),
        (ops.Conv, ops.conv, [(1, 3, 3, 1), (2, 2, 1, 1)]),
        (ops.BatchNorm, ops.batch_norm, [(4, 2), (2,), (2,)]),
        (ops.LayerNorm, ops.layer_norm, [(4, 2), (2,), (2,)]),
        (ops.Concatenate, lambda *xs: ops.concatenate(xs), [(2, 2), (2, 2)]),
        (lambda: lambda *xs: ops.Stack()(ops.make_tuple(*xs)), lambda *xs: ops.stack(xs), [(2, 2), (2, 2)]),
    ],
    ids=["softmax", "var", "split", "conv", "batch norm", "layer norm", "concatenate", "stack"],
)
def test_an_op_that_is_told_nothing_is_its_function(op, function, shapes):
    xs = [ndl.Tensor(normal(*shape, seed=i, scale=1e-3)) for i, shape in enumerate(shapes)]
    y, expected = op()(*xs), function(*xs)
    for part, other in [(y, expected)] if isinstance(y, ndl.Tensor) else zip(y, expected, strict=True):
        np.testing.assert_array_equal(part.numpy(), other.numpy(), strict=True)


@pytest.mark.parametrize("shape", [(2, 3, 3), (3, 2, 3), (3, 3, 2), (4,)])
@pytest.mark.parametrize("of", [np.asarray, lambda x: np.broadcast_to(x, (2, *x.shape))[1]], ids=["one", "view"])
def test_a_softmax_adds_up_to_1_along_each_axis(shape, of):
    for axis in range(len(shape)):
        y = ops.softmax(ndl.Tensor(of(normal(*shape))), axis).numpy()
        np.testing.assert_allclose(y.sum(axis), np.ones(shape[:axis] + shape[axis + 1 :]), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("factor", [0, 0.5, 1, 2, -3, 1000])
@pytest.mark.parametrize("how", [{}, {"create_graph": True}], ids=["plain", "create"])
def test_the_gradient_of_a_loss_times_a_number(how, factor, dtype):
    """The loss is 1, exactly, as is the gradient of a loss that is not multiplied: neither is taken for the other."""
    n = 128
    logits = ndl.Tensor(np.tile([0, -n], (n, 1)), dtype=dtype)
    labels = np.zeros(n, int)
    labels[-1] = 1
    loss = ops.softmax_cross_entropy(logits, labels)
    assert loss.item() == 1
    (loss * factor).backward(**how)
    expected = np.zeros((n, 2), dtype)
    expected[-1] = factor / n, -factor / n  # the probability of the second is e^-128, nothing beside 1
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=1e-6, atol=1e-50)
    one = ndl.Tensor(np.zeros((1, 2), dtype))
    (ops.softmax_cross_entropy(one, np.array([1])) * factor).backward(**how)
    np.testing.assert_array_equal(one.grad.numpy(), [[factor / 2, -factor / 2]])


def test_the_rule_of_a_loss_that_has_not_been_computed():
    """The rule alone, as an exercise's own tests call it: it has kept nothing, and leaves its operands alone."""
    logits, labels = normal(5, 3), LABELS
    wanted = ops.SoftmaxCrossEntropy()
    y = wanted.compute(logits, labels)
    g = np.array(2.0)
    expected = wanted.vjp(g, y, [True, False], logits, labels)[0]
    found = ops.SoftmaxCrossEntropy().vjp(g, y, [True, False], logits, labels)[0]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(logits, normal(5, 3))
    assert type(found) is type(expected) is np.ndarray  # of arrays it makes arrays, and no Tensors


def test_the_gradient_of_a_loss_has_all_digits_of_its_dtype():
    x = ndl.Tensor(np.zeros((3, 2), np.longdouble))
    ops.softmax_cross_entropy(x, np.array([0, 1, 1])).backward()
    third = np.longdouble(0.5) / 3  # the double nearest to 1 / 3 is another
    np.testing.assert_allclose(x.grad.numpy(), [[-third, third], [third, -third], [third, -third]], rtol=2e-19)
    assert x.grad.dtype == np.longdouble
