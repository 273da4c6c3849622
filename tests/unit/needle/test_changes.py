"""Data that changes between forward and backward: noticed where a gradient rule reads it, and only there."""

from contextlib import nullcontext

import numpy as np
import pytest

import needle as ndl
from needle import nn, ops

CHANGED = r"backward: the data of a \w+ of shape .* has changed since \w+ computed with it"


def leaf(*values):
    return nn.Parameter(np.array(values, np.float64))


def replace_by(p, number):
    p.data = ndl.Tensor(p.numpy() + number)


def replace(p):
    replace_by(p, 1)


def step(p):
    p.grad = ndl.Tensor(np.ones(p.shape))
    ndl.optim.SGD([p], lr=1.0).step()


def adam(p):
    p.grad = ndl.Tensor(np.ones(p.shape))
    ndl.optim.Adam([p], lr=1.0).step()


def load(p):
    module = nn.Module()
    module.p = p
    module.load_state_dict({"p": p.numpy() + 1})


def test_a_gradient_that_would_be_right_for_neither_point_is_refused():
    p = leaf(3.0)
    loss = (p * p * p).sum()
    replace(p)
    with pytest.raises(RuntimeError, match=r"a Parameter of shape \(1,\) has changed since EWiseMul .* loss again"):
        loss.backward()
    assert p.grad is None
    loss = (p * p * p).sum()
    loss.backward()
    assert p.grad.numpy() == 48


@pytest.mark.parametrize("change", [replace, step, adam, load])
@pytest.mark.parametrize("how", [{}, {"retain_graph": True}, {"create_graph": True}], ids=["plain", "retain", "create"])
def test_every_way_to_change_is_noticed_by_every_walk(change, how):
    p = leaf(3.0)
    loss = (p**3).sum()
    change(p)
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward(**how)
    change(p)
    loss = (p**3).sum()
    loss.backward(**how)
    p.grad = None


@pytest.mark.parametrize("how", [{}, {"retain_graph": True}, {"create_graph": True}], ids=["plain", "retain", "create"])
@pytest.mark.parametrize("which", [0, 2])
def test_a_step_between_the_passes_of_a_model(how, which):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    x, y = ndl.Tensor(np.eye(2), dtype="float32", requires_grad=False), ndl.Tensor([0, 1])
    optimizer = ndl.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the second step finds its parameters side by side
        loss = nn.SoftmaxLoss()(model(x), y)
        again = nn.SoftmaxLoss()(model(x), y)
        loss.backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match=CHANGED):
            again.backward(**how)
    loss = nn.SoftmaxLoss()(model(x), y)
    model.modules[which].weight.data = model.modules[which].weight.data
    if which or how:
        with pytest.raises(RuntimeError, match=r"a Parameter of shape .* has changed since Linear computed with it"):
            loss.backward(**how)
    else:
        loss.backward()  # beside a constant nobody reads the first weight


def test_the_second_backward_after_a_step_is_refused():
    p = leaf(3.0)
    optimizer = ndl.optim.SGD([p], lr=0.1)
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


def test_a_result_that_its_own_rule_reads_must_not_change_either():
    p = leaf(1.0)
    y = ops.exp(p)
    loss = y.sum()
    y.data = y.data
    with pytest.raises(RuntimeError, match=r"a Tensor of shape \(1,\) has changed since Exp"):
        loss.backward()


class Twice(ops.Summation):
    """Another rule than that of its base, which reads what it likes."""

    def vjp(self, g, y, needs, a):
        return (g * a,)


def test_a_rule_that_is_overridden_may_read_everything():
    p = leaf(1.0)
    loss = Twice()(p)
    replace(p)
    with pytest.raises(RuntimeError, match="has changed since Twice"):
        loss.backward()


def test_a_rule_that_is_overridden_may_read_the_result_of_a_base_that_does_not():
    class Base(ndl.TensorOp):
        reads_result = False

        def compute(self, a):
            return np.exp(a)

        def vjp(self, g, y, needs, a):
            return (g * ops.Exp().on(a),)

    class Shorter(Base):
        def vjp(self, g, y, needs, a):
            return (g * y,)

    for op, refused in ((Base(), False), (Shorter(), True)):
        y = op(leaf(1.0))
        y.data = y.data
        with pytest.raises(RuntimeError, match="has changed since Shorter") if refused else nullcontext():
            y.backward()


class Product(ops.EWiseDiv):
    """Another rule than that of the base, which said what its own reads, and reads what that does not."""

    def compute(self, a, b):
        return a * b

    def vjp(self, g, y, needs, a, b):
        return g * b, g * a


def test_what_a_base_reads_is_said_of_its_own_rule_alone():
    p = leaf(1.0)
    loss = Product()(p, leaf(2.0))
    replace(p)
    with pytest.raises(RuntimeError, match="has changed since Product"):
        loss.backward()


class ShapesAlone(ndl.TensorOp):
    """Without a rule, but it is known what that will read."""

    def compute(self, a):
        return a * 3

    def looks_at(self, needs, tensors):
        return [False] * len(needs), False


class Between(ShapesAlone):
    pass


@pytest.mark.parametrize("base", [ShapesAlone, Between, ops.Summation])
def test_a_rule_or_its_base_says_what_it_reads(base):
    class Thrice(base):
        def vjp(self, g, y, needs, a):
            return (g * np.full(a.shape, 3.0),)

        if base is ops.Summation:  # whose own rule said something else
            looks_at = ShapesAlone.looks_at

    p = leaf(1.0)
    y = Thrice()(p)
    replace(p)
    y.data = y.data
    y.backward()
    assert p.grad.tolist() == [3]


NORMAL = np.random.default_rng(0).standard_normal


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda p: (p * 2 + 1 - p / 4).sum(), [[1.75] * 2] * 2),
        (lambda p: (-p).T.reshape((4,)).broadcast_to((2, 4)).sum(), [[-2] * 2] * 2),
        (lambda p: p[0].sum() + ops.flip(p).sum(), [[2, 2], [1, 1]]),
        (lambda p: (p + 1).sum(), [[1, 1], [1, 1]]),
        (lambda p: (p + np.ones((2, 2))).mean(), [[0.25] * 2] * 2),
        (lambda p: (p * ndl.Tensor(np.eye(2), requires_grad=False)).sum(), [[1, 0], [0, 1]]),
        (lambda p: (ndl.Tensor(np.eye(2), requires_grad=False) @ p).sum(), [[1, 1], [1, 1]]),
        # of a quotient, looks_at says that the rule reads the divisor alone
        (lambda p: (p / ndl.Tensor(np.full((2, 2), 2.0), requires_grad=False)).sum(), [[0.5] * 2] * 2),
        (lambda p: ops.stack(list(ops.split(p))).sum(), [[1, 1], [1, 1]]),
        (lambda p: ops.linear(ndl.Tensor(np.eye(2), requires_grad=False), ndl.Tensor(np.eye(2)), p[0]).sum(), [[2, 2], [0, 0]]),
        (lambda p: p.astype("float32").sum(), [[1, 1], [1, 1]]),
        (lambda p: ops.exp(p.detach()).sum() + p.sum(), [[1, 1], [1, 1]]),
    ],
    ids=range(12),
)  # fmt: skip
@pytest.mark.parametrize("how", [{}, {"create_graph": True}], ids=["plain", "create"])
def test_what_no_rule_reads_may_change(forward, expected, how):
    p = leaf([1.0, 2.0], [3.0, 4.0])
    loss = forward(p)
    replace(p)
    loss.backward(**how)
    np.testing.assert_array_equal(p.grad.numpy(), expected)
    p.grad = None


@pytest.mark.parametrize("how", [{}, {"create_graph": True}], ids=["plain", "create"])
def test_a_bias_may_change_before_backward(how):
    one = ndl.Tensor(np.eye(2), requires_grad=False)
    bias = leaf([1.0, 2.0])
    loss = ops.linear(one, one, bias).sum()
    replace(bias)
    loss.backward(**how)
    assert bias.grad.tolist() == [[2, 2]]


@pytest.mark.parametrize(
    "forward",
    [
        *(lambda p: p + p, lambda p: p + 1, lambda p: p * p, lambda p: p * 2, lambda p: p / 2, lambda p: -p),
        *(lambda p: p @ p, lambda p: ops.linear(p, p), lambda p: p.reshape((4,)), lambda p: p[0], abs, ops.softplus),
    ],
    ids=range(12),
)
@pytest.mark.parametrize("how", [{}, {"create_graph": True}], ids=["plain", "create"])
def test_a_result_that_no_rule_reads_may_change(forward, how):
    p = leaf([1.0, 2.0], [3.0, 4.0])
    forward(p).sum().backward()
    expected = p.grad.numpy()
    y = forward(p)
    loss = y.sum()
    y.data = ndl.Tensor(y.numpy() + 1)
    loss.backward(**how)
    np.testing.assert_array_equal(p.grad.numpy(), expected)
    p.grad = None


def test_a_divisor_must_not_change():
    p, q = leaf(1.0), leaf(2.0)
    loss = p / q
    replace(q)
    with pytest.raises(RuntimeError, match=r"a Parameter of shape \(1,\) has changed since EWiseDiv"):
        loss.backward()


def test_running_statistics_may_move_on_before_backward():
    norm = nn.BatchNorm1d(2)
    x = ndl.Tensor(NORMAL((4, 2)), dtype="float32")
    norm(x)
    norm.eval()
    loss = (norm(x) ** 2).sum()
    norm.train()
    norm(x)
    loss.backward()
    assert norm.weight.grad is not None
    loss = (x * norm.running_var).sum()  # whereas this reads them
    norm(x)
    with pytest.raises(RuntimeError, match=r"a Tensor of shape \(2,\) has changed since EWiseMul"):
        loss.backward()


def test_what_was_computed_after_the_change_is_fine_and_before_is_not():
    p, q = leaf(2.0), leaf(3.0)
    early = p * q
    replace(p)
    (early.detach() * p * q).sum().backward()
    assert p.grad.numpy() == 18
    with pytest.raises(RuntimeError, match=CHANGED):
        (early * p).sum().backward()


def test_a_layer_that_is_used_twice_around_a_change():
    layer = nn.Sequential(nn.Linear(2, 2, dtype="float64"))
    x = leaf([1.0, 2.0])
    once = layer(x)
    replace(layer.modules[0].weight)
    with pytest.raises(RuntimeError, match=CHANGED):
        layer(once).sum().backward()
    layer(layer(x)).sum().backward()


def test_a_change_before_a_row_of_layers_is_noticed_too():
    layers = nn.Sequential(nn.Linear(2, 2, dtype="float64"), nn.Tanh())
    p = leaf([1.0, 2.0])
    loss = layers(p * p).sum()
    replace(p)
    with pytest.raises(RuntimeError, match=r"a Parameter of shape .* has changed since EWiseMul"):
        loss.backward()


BOTH = pytest.mark.parametrize("how", [{}, {"create_graph": True}], ids=["plain", "create"])
NORMS = pytest.mark.parametrize("norm", [ops.BatchNorm, ops.LayerNorm])


@BOTH
@NORMS
def test_a_norm_reads_neither_its_bias_nor_its_result(norm, how):
    x, weight, bias = leaf([1.0, 2.0], [3.0, 5.0]), leaf(1.0, 1.0), leaf(0.0, 0.0)
    y = norm()(x, weight, bias)
    loss = y.sum()
    replace(bias)
    y.data = y.data
    loss.backward(**how)
    assert bias.grad.tolist() == [2, 2]
    x.grad = weight.grad = bias.grad = None


@NORMS
def test_a_norm_keeps_what_it_reads_of_its_input_unless_it_serves_two_nodes_or_makes_a_graph(norm):
    x, rest = leaf([1.0, 2.0], [3.0, 5.0]), (leaf(1.0, 2.0), leaf(0.0, 0.0))
    g = ndl.Tensor(np.array([[1.0, 2.0], [3.0, 7.0]]))
    norm()(x, *rest).backward(g)
    before = x.grad.tolist()
    for how in ({}, {"retain_graph": True}):
        y = norm()(x, *rest)
        replace(x)
        y.backward(g, **how)
        assert x.grad.tolist() == before
        replace_by(x, -1)
    y = norm()(x, *rest)
    replace(x)
    with pytest.raises(RuntimeError, match=CHANGED):
        y.backward(g, create_graph=True)
    twice = norm()
    y = twice(x, *rest)
    twice(x + 1, *rest)
    replace(x)
    with pytest.raises(RuntimeError, match=CHANGED):
        y.backward(g)


@NORMS
def test_a_norm_reads_its_weight_for_the_gradient_of_its_input_alone(norm):
    data, weight, bias = np.array([[1.0, 2.0], [3.0, 5.0]]), leaf(1.0, 2.0), leaf(0.0, 0.0)
    loss = norm()(ndl.Tensor(data, requires_grad=False), weight, bias).sum()
    replace(weight)
    loss.backward()
    assert bias.grad.tolist() == [2, 2]
    loss = norm()(ndl.Tensor(data), weight, bias).sum()
    replace(weight)
    with pytest.raises(RuntimeError, match=r"a Parameter of shape \(2,\) has changed since"):
        loss.backward()


def test_other_labels_after_the_loss():
    labels = ndl.Tensor([0, 1], requires_grad=False)
    loss = nn.SoftmaxLoss()(leaf([1.0, 2.0], [3.0, 5.0]), labels)
    labels.data = ndl.Tensor([1, 0])
    with pytest.raises(RuntimeError, match=r"a Tensor of shape \(2,\) has changed since SoftmaxCrossEntropy"):
        loss.backward(create_graph=True)


def test_a_rule_of_its_own_two_classes_below_looks_at_everything():
    class Between(ops.MatMul):
        """Neither a rule nor what one looks at."""

    class Below(Between):
        def vjp(self, g, y, needs, a, b):
            return g * y, None

    assert Between.looks_at is ops.MatMul.looks_at  # which is not that of Op
    assert Below.looks_at is ndl.Op.looks_at
