"""Activations that no gradient rule reads are let go of after the layer that used them: nobody may notice."""

import numpy as np
import pytest

import needle as ndl
from needle import nn, ops


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


def model():
    np.random.seed(0)
    block = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.LayerNorm1d(64))
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Residual(block), nn.ReLU(), nn.Linear(64, 64), nn.Tanh())


def below(root):
    return ndl.autograd.find_topo_sort([root])


def released(root):
    """The classes of the ops whose results are released, below root."""
    return [type(t.op).__name__ for t in below(root) if t._released]


def hold(module, kept):
    """Let every module below keep its results, as a user does who looks at activations."""
    for part in module.modules_in():
        forward = part.forward

        def keeping(*args, forward=forward):
            kept.append(forward(*args))
            return kept[-1]

        part.forward = keeping


def gradients(net, x, **how):
    loss = (net(ndl.Tensor(x, requires_grad=False)) * normal(64, 64, seed=7)).sum()
    loss.backward(**how)
    return loss.numpy().copy(), [p.grad.numpy().copy() for p in net.parameters()]


def test_what_no_rule_reads_is_released():
    out = model()(ndl.Tensor(normal(64, 64)))
    # before a ReLU, an addition and a normalisation; what a Linear, a Tanh or a ReLU reads is there
    assert released(out) == ["Linear", "Linear", "BatchNorm", "Linear", "LayerNorm", "EWiseAdd", "Linear"]


def test_nothing_that_somebody_holds_is_released_and_the_numbers_are_the_same():
    x, kept = normal(64, 64), []
    loss, grads = gradients(model(), x)
    other = model()
    hold(other, kept)
    held_loss, held_grads = gradients(other, x)
    assert not any(t._released for t in kept)
    np.testing.assert_array_equal(loss, held_loss)
    for a, b in zip(grads, held_grads, strict=True):
        np.testing.assert_array_equal(a, b)


def test_released_data_is_computed_again_for_whoever_asks():
    x, kept = normal(64, 64), []
    net, other = model(), model()
    hold(other, kept)
    tensors, held = below(net(ndl.Tensor(x))), below(other(ndl.Tensor(x)))
    assert any(t._released for t in tensors)
    for t, h in zip(tensors[::-1], held[::-1], strict=True):
        np.testing.assert_array_equal(t.cached_data, h.cached_data)
        assert t.shape == h.shape
    assert not any(t._released for t in tensors)


def test_every_kind_of_backward_works_on_released_data():
    x = normal(64, 64)
    expected = gradients(model(), x)[1]
    net = model()
    loss = (net(ndl.Tensor(x, requires_grad=False)) * normal(64, 64, seed=7)).sum()
    for how in ({"retain_graph": True}, {"create_graph": True}, {}):
        loss.backward(**how)
        for p, g in zip(net.parameters(), expected, strict=True):
            if "create_graph" in how:  # the norms are differentiated by other operations there
                np.testing.assert_allclose(p.grad.numpy(), g, rtol=2e-5, atol=2e-5 * np.abs(g).max() + 2e-4)
            else:
                np.testing.assert_array_equal(p.grad.numpy(), g)


def test_released_data_is_freed_with_the_graph():
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    out = net(ndl.Tensor(normal(64, 64)))
    (before,) = out.inputs
    out.backward()
    with pytest.raises(RuntimeError, match="was freed with the graph by a backward"):
        before.numpy()


def test_a_long_chain_of_released_data_is_computed_again_without_recursion():
    net = nn.Sequential(*[nn.Residual(nn.Identity()) for _ in range(1)], *[Negate() for _ in range(3000)])
    x = ndl.Tensor(normal(64, 64))
    out = net(x)
    (before,) = out.inputs
    np.testing.assert_array_equal(before.numpy(), -2 * x.numpy())


class Negate(nn.Module):
    def forward(self, x):
        return -x


def test_small_and_shared_results_are_kept():
    small = nn.Sequential(nn.Linear(2, 2), nn.ReLU())(ndl.Tensor(normal(3, 2)))
    assert released(small) == []

    class Twice(nn.Module):
        def forward(self, x):
            return ops.relu(x) + ops.negate(x)

    out = nn.Sequential(nn.Linear(64, 64), Twice())(ndl.Tensor(normal(64, 64)))
    assert released(out) == []


class Shift(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = nn.Parameter(by)

    def forward(self, x):
        return x + self.by


def test_a_broadcast_sum_keeps_its_operand():
    net = nn.Sequential(nn.Linear(64, 64), Shift(normal(5, 64, 64)))
    out = net(ndl.Tensor(normal(64, 64)))
    assert released(out) == []
    out.backward()
    assert net.modules[0].bias.grad.shape == (1, 64)


@pytest.mark.parametrize("make", [ops.BatchNorm, ops.LayerNorm])
def test_a_norm_that_is_called_twice_keeps_for_neither_call(make):
    a, b = normal(6, 4), normal(6, 4, seed=1)
    w, c = normal(4), normal(4, seed=2)

    def grads(first, second):
        xs = [ndl.Tensor(a), ndl.Tensor(b)]
        ys = [op(x, ndl.Tensor(w), ndl.Tensor(c)) for op, x in zip((first, second), xs, strict=True)]
        ((ys[0] * a).sum() + (ys[1] * b).sum()).backward()
        return [x.grad.numpy() for x in xs]

    op = make(1e-5)
    for once, twice in zip(grads(make(1e-5), make(1e-5)), grads(op, op), strict=True):
        np.testing.assert_array_equal(once, twice)


def test_a_subclass_with_a_rule_of_its_own_gets_what_it_reads():
    class Leaky(ops.ReLU):
        def compute(self, a):
            return np.where(a > 0, a, 0.5 * a).astype(a.dtype)

        def vjp(self, g, y, needs, a):
            return (g * np.where(a > 0, 1, 0.5).astype(a.dtype),)

    class Other(ops.ReLU):
        """The base's rule, which needs no more than the base's."""

    assert Leaky.reads_inputs
    assert not Other.reads_inputs
    leaky = Leaky()
    net = nn.Sequential(nn.Linear(64, 64, bias=False), lambda x: leaky(x))
    x = normal(64, 64)
    out = net(ndl.Tensor(x))
    assert released(out) == []
    out.backward()
    slope = np.where(x @ net.modules[0].weight.numpy() > 0, 1, 0.5)
    np.testing.assert_allclose(net.modules[0].weight.grad.numpy(), x.T @ slope, rtol=1e-5, atol=1e-5)


def test_modules_may_pass_on_other_things_than_tensors():
    class Two(nn.Module):
        def forward(self, x):
            return x, ops.relu(x)

    class Join(nn.Module):
        def forward(self, both):
            return both[0] + both[1]

    net = nn.Sequential(nn.Linear(64, 64), Two(), Join(), nn.ReLU())
    net(ndl.Tensor(normal(64, 64))).backward()
    assert net.modules[0].weight.grad.shape == (64, 64)


def test_a_sum_of_two_dtypes_keeps_its_operands():
    net = nn.Sequential(nn.Linear(64, 64), Shift(normal(64, 64).astype("float64")))
    out = net(ndl.Tensor(normal(64, 64)))
    assert released(out) == []
    out.backward()
    assert net.modules[0].weight.grad.dtype == np.float32
    assert net.modules[1].by.grad.dtype == np.float64


SAMPLES = {
    "EWiseAdd": (ops.EWiseAdd(), 2),
    "AddScalar": (ops.AddScalar(2.0), 1),
    "MulScalar": (ops.MulScalar(2.0), 1),
    "DivScalar": (ops.DivScalar(2.0), 1),
    "Negate": (ops.Negate(), 1),
    "ReLU": (ops.ReLU(), 1),
    "Tanh": (ops.Tanh(), 1),
    "Sigmoid": (ops.Sigmoid(), 1),
    "Exp": (ops.Exp(), 1),
    "EWiseMul": (ops.EWiseMul(), 2),
    "MatMul": (ops.MatMul(), 2),
    "Linear": (ops.Linear(), 2),
    "BatchNorm": (ops.BatchNorm(), 3),
    "LayerNorm": (ops.LayerNorm(), 3),
}


def test_every_op_that_claims_not_to_read_is_tested():
    claims = {n for n, kind in vars(ops).items() if isinstance(kind, type) and issubclass(kind, ndl.Op)}
    claims = {n for n in claims if not (getattr(ops, n).reads_inputs and getattr(ops, n).reads_result)}
    assert claims == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_rule_does_not_look_at_what_its_op_claims_not_to_read(name):
    op, count = SAMPLES[name]
    xs = [normal(4, 4, seed=i) if i == 0 or count == 2 else normal(4, seed=i) for i in range(count)]
    g, y = normal(4, 4, seed=9), op.compute(*xs)
    needs = [True] * count
    right = op.vjp(g, y, needs, *xs)
    if not op.reads_inputs:
        xs[0] = np.full_like(xs[0], np.nan)  # the first alone may be an intermediate result that is let go of
    if not op.reads_result:
        y = np.full_like(y, np.nan)
    for a, b in zip(right, op.vjp(g, y, needs, *xs), strict=True):
        np.testing.assert_array_equal(a, b)
