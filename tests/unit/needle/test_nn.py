"""Modules, layers, their parameters and state."""

import numpy as np
import pytest
from rounding import Rounded, U, within

import needle as ndl
from needle import init, nn, ops


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


def rounded_once(wide):
    """What is computed in float64 and then converted."""
    return Rounded(wide, U * np.abs(wide))


def normalised(x, axis, eps=1e-5):
    """Mean, variance and (x - mean) / sqrt(var + eps), from centred values."""
    x = Rounded(x)
    mean = x.mean(axis, keepdims=True)
    centred = x - mean
    var = (centred * centred).mean(axis, keepdims=True)
    return mean, var, centred / (var + eps).sqrt()


def test_linear():
    layer = nn.Linear(3, 2)
    assert layer.weight.shape == (3, 2)
    assert layer.bias.shape == (1, 2)
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    for shape in ((5, 3), (2, 5, 3), (3,)):
        x = normal(*shape)
        y = layer(ndl.Tensor(x))
        within(y, Rounded(x) @ Rounded(layer.weight.numpy()) + layer.bias.numpy()[0])
    without = nn.Linear(3, 2, bias=False)
    assert without.bias is None
    assert len(without.parameters()) == 1
    assert nn.Linear(3, 2, dtype="float64").weight.dtype == np.float64


def test_linear_draws_weight_then_bias():
    np.random.seed(3)
    layer = nn.Linear(3, 2)
    np.random.seed(3)
    bound = np.sqrt(2) * np.sqrt(3 / 3)
    weight = np.random.rand(3, 2) * 2 * bound - bound
    bound = np.sqrt(2) * np.sqrt(3 / 2)
    bias = (np.random.rand(2, 1) * 2 * bound - bound).reshape(1, 2)
    within(layer.weight, rounded_once(weight))
    within(layer.bias, rounded_once(bias))
    state = np.random.get_state()[2]
    nn.Linear(3, 2, bias=False)
    assert np.random.get_state()[2] != state


def test_batch_norm_statistics_are_biased_and_hold_no_graph():
    layer = nn.BatchNorm1d(3, momentum=0.25)
    x = normal(6, 3) * 2 + 1
    y = layer(ndl.Tensor(x))
    mean, var, expected = normalised(x, 0)
    within(layer.running_mean, 0.25 * mean[0])
    within(layer.running_var, 0.75 + 0.25 * var[0])
    within(y, expected)
    for running in (layer.running_mean, layer.running_var):
        assert running.dtype == np.float32
        assert running.op is None
        assert not running.requires_grad
    assert [n for n, _ in layer.named_buffers()] == ["running_mean", "running_var"]
    assert layer.parameters() == [layer.weight, layer.bias]
    mean, var = layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()
    layer.eval()
    out = layer(ndl.Tensor(x[:1]))
    within(out, (Rounded(x[:1]) - mean) * (1 / (Rounded(var) + 1e-5).sqrt()))
    np.testing.assert_array_equal(layer.running_mean.numpy(), mean)
    np.testing.assert_array_equal(layer.running_var.numpy(), var)
    assert out.requires_grad


def test_batch_norm_refuses():
    layer = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match=r"at least 2 rows in training .* got shape \(1, 3\): use a larger batch"):
        layer(ndl.ones(1, 3))
    np.testing.assert_array_equal(layer.running_mean.numpy(), np.zeros(3))
    with pytest.raises(ValueError, match=r"BatchNorm1d\(3\) needs shape \(batch, 3\), but got \(2, 4\)"):
        layer(ndl.ones(2, 4))


# Whole numbers with a whole mean, so that mean, deviations and variance are exact in any order of the sums.
@pytest.mark.parametrize(
    "columns", [[1e6, 1e6 + 1, 1e6 + 2, 1e6 + 5], [5.0] * 4, [7.0]], ids=["offset", "equal", "one"]
)
def test_norms_are_fine_on_hard_inputs(columns):
    row = np.array(columns, "float32")
    layer = nn.LayerNorm1d(len(row))
    x = ndl.Tensor(np.tile(row, (4, 1)))
    y = layer(x)
    within(y, normalised(x.numpy(), 1)[2])
    batch = nn.BatchNorm1d(1)
    column = row.repeat(2)[:, None]
    out = batch(ndl.Tensor(column))
    mean, var, expected = normalised(column, 0)
    assert not mean.error.any()
    assert not var.error.any()
    within(out, expected)
    (y * ndl.Tensor(normal(*y.shape))).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize(("make", "axis"), [(nn.BatchNorm1d, 0), (nn.LayerNorm1d, 1)])
def test_norm_gradients_sum_to_zero_where_they_should(make, axis):
    """However far from 0 the data are: the mean of the gradient is subtracted last, and what was rounded before,
    the mean of the data above all, plays no part. A formula that relies on Σ(x - mean) = 0 is off by some hundred times the bound.
    """
    x = ndl.Tensor(normal(16, 16) + 10_000)
    g = normal(16, 16, seed=1)
    y = make(16)(x)
    (y * ndl.Tensor(g)).sum().backward()
    n = x.shape[axis]
    # z - mean(z) times a scale, with mean(z) = mean(g) to first order: n u Σ|z| for the mean, 2 u for what is left
    scale = 1 / x.numpy().astype(float).std(axis)
    terms = np.abs(x.grad.numpy()).sum(axis) + np.abs(g.sum(axis)) * scale
    within(x.grad.numpy().astype(float).sum(axis), Rounded(np.zeros(16), (n + 1) * U * terms))


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout(p):
    layer = nn.Dropout(p)
    x = ndl.Tensor(normal(40, 50))
    np.random.seed(5)
    y = layer(x)
    after = np.random.rand()
    np.random.seed(5)
    mask = np.random.rand(40, 50) <= 1 - p
    assert np.random.rand() == after  # exactly one draw
    scale = Rounded.of(mask / (1 - p) if p < 1 else 0 * mask)
    assert y.dtype == np.float32
    within(y, x.numpy() * scale)
    y.backward(ndl.ones(40, 50))
    within(x.grad, scale)
    layer.eval()
    np.random.seed(5)
    assert layer(x) is x
    first = np.random.rand()
    np.random.seed(5)
    assert np.random.rand() == first


def test_softmax_loss():
    z, y = normal(6, 4) * 5, np.arange(6) % 4
    loss = nn.SoftmaxLoss()(ndl.Tensor(z), ndl.Tensor(y.astype("uint8")))
    assert loss.shape == ()
    assert loss.dtype == np.float32
    shifted = Rounded(z) - z.max(1, keepdims=True)
    within(loss, (shifted.exp().sum(1).log() - shifted[np.arange(6), y]).mean())
    with pytest.raises(ValueError, match=r"labels in 0\.\.3, but got 4"):
        nn.SoftmaxLoss()(ndl.Tensor(z), ndl.Tensor(y + 1))


def test_simple_layers():
    x = ndl.Tensor(normal(2, 3, 4))
    assert nn.Identity()(x) is x
    assert nn.Flatten()(x).shape == (2, 12)
    assert nn.Flatten()(ndl.ones(0, 3)).shape == (0, 3)
    assert nn.Flatten()(ndl.ones(3)).shape == (3, 1)
    np.testing.assert_array_equal(nn.ReLU()(x).numpy(), np.maximum(x.numpy(), 0))
    np.testing.assert_array_equal(nn.Tanh()(x).numpy(), np.tanh(x.numpy()))
    within(nn.Sigmoid()(x), 1 / (1 + Rounded(-x.numpy()).exp()))
    np.testing.assert_allclose(nn.Softplus()(x).numpy(), np.log1p(np.exp(x.numpy().astype(float))), rtol=4e-7)
    np.testing.assert_array_equal(nn.Residual(nn.Identity())(x).numpy(), 2 * x.numpy())


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = {"a": nn.Linear(2, 2), "b": [nn.Linear(2, 2, bias=False), (nn.Dropout(), nn.BatchNorm1d(2))]}
        self.scale = nn.Parameter([1.0])
        self.tied = self.blocks["a"]
        self.itself = [self]
        self.rate = 0.5

    def forward(self, x):
        return self.tied(self.blocks["a"](x)) * self.scale


def test_parameters_of_nested_containers():
    model = Nested()
    names = [name for name, _ in model.named_parameters()]
    assert names == [
        "blocks.a.weight",
        "blocks.a.bias",
        "blocks.b.0.weight",
        "blocks.b.1.1.weight",
        "blocks.b.1.1.bias",
        "scale",
    ]
    assert len(model.parameters()) == 6
    assert len(model._children()) == 4
    model.eval()
    assert not any(m.training for m in [model, *model._children()])
    model.train()
    assert all(m.training for m in [model, *model._children()])


def test_state_dict_round_trip():
    a, b = Nested(), Nested()
    state = a.state_dict()
    assert "blocks.b.1.1.running_var" in state
    state["scale"][0] = 5
    assert a.scale.numpy()[0] == 1  # copies
    b.load_state_dict(state)
    assert b.scale.numpy()[0] == 5
    assert b.tied is b.blocks["a"]
    np.testing.assert_array_equal(b.tied.weight.numpy(), a.tied.weight.numpy())
    state["scale"][0] = 6
    assert b.scale.numpy()[0] == 5
    before = b.state_dict()
    with pytest.raises(KeyError, match=r"missing \['scale'\], unknown \['scales'\]"):
        b.load_state_dict({("scales" if k == "scale" else k): v + 1 for k, v in state.items()})
    with pytest.raises(ValueError, match=r"scale has the shape \(1,\), but got \(2,\)"):
        b.load_state_dict({k: np.ones(2) if k == "scale" else v + 1 for k, v in state.items()})
    for name, value in b.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_repr():
    model = nn.Sequential(nn.Flatten(), nn.Residual(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))))
    assert repr(model) == (
        "Sequential(\n  (0): Flatten()\n  (1): Residual(\n    (fn): Sequential(\n      (0): Linear(2, 2)\n"
        "      (1): Dropout(p=0.1)\n    )\n  )\n)"
    )
    assert repr(nn.Parameter([1.0])) == "nn.Parameter([1.], requires_grad=True)"


@pytest.mark.parametrize(
    ("action", "kind", "match"),
    [
        (lambda: nn.Linear(0, 2), ValueError, r"Linear: in_features must be at least 1, got in_features=0"),
        (lambda: nn.Dropout(1.5), ValueError, r"Dropout: p must be in \[0, 1\], got p=1.5"),
        (lambda: nn.Dropout(float("nan")), ValueError, "got p=nan"),
        (lambda: nn.BatchNorm1d(0), ValueError, "BatchNorm1d: dim must be at least 1"),
        (lambda: nn.BatchNorm1d(2, eps=-1), ValueError, "eps must be a positive finite number, got eps=-1"),
        (lambda: nn.BatchNorm1d(2, momentum=2), ValueError, "momentum=2"),
        (lambda: nn.LayerNorm1d(2, eps=float("inf")), ValueError, "eps=inf"),
        (lambda: nn.LayerNorm1d(2)(ndl.ones(2, 3)), ValueError, r"layer_norm needs .* got \(2, 3\)"),
        (lambda: nn.Linear(3, 2)(ndl.ones(2, 4)), ValueError, r"got \(2, 4\) @ \(3, 2\)"),
        (lambda: nn.Sequential(nn.ReLU(), 3), TypeError, "Sequential takes modules, but got int"),
        (lambda: nn.Module()(1), NotImplementedError, r"Module must define forward\(self, ...\)"),
        (lambda: nn.Flatten()(ndl.Tensor(1.0)), ValueError, "batch dimension"),
    ],
    ids=range(12),
)
def test_refused(action, kind, match):
    with pytest.raises(kind, match=match):
        action()


def times(owner, name, factor=1 + 2**-17):
    """Each result of a method, or the first of them, off by some 100 roundings."""
    old = vars(owner)[name]

    def wrong(*args):
        y = old(*args)
        if name == "vjp":
            return y[0] * np.float32(factor), *y[1:]
        return np.asarray(y * np.float32(factor))

    return owner, name, wrong


def mean_subtracted_first(self, g, y, needs, x, weight, bias):
    """BatchNorm's gradient as in many a textbook."""
    centred, inv = self._statistics(x)[:2]
    xh = centred * inv
    return (g - g.mean(0) - xh * (g * xh).mean(0)) * inv * weight, (g * xh).sum(0), g.sum(0)


@pytest.mark.parametrize(
    ("test", "plant"),
    [
        (test_linear, times(ops.Linear, "compute")),
        (test_linear_draws_weight_then_bias, (init, "kaiming_uniform", lambda *a, **k: init.rand(*a, low=-1.0001))),
        (test_batch_norm_statistics_are_biased_and_hold_no_graph, times(ops.BatchNorm, "compute")),
        (test_batch_norm_statistics_are_biased_and_hold_no_graph, times(ops.EWiseMul, "compute")),
        (
            test_batch_norm_statistics_are_biased_and_hold_no_graph,
            (nn.BatchNorm1d, "_follow", lambda s, m, v, old=nn.BatchNorm1d._follow: old(s, m, v * np.float32(1.0001))),
        ),
        (lambda: test_norms_are_fine_on_hard_inputs([1e6, 1e6 + 1, 1e6 + 2, 1e6 + 5]), times(ops.LayerNorm, "compute")),
        (lambda: test_norms_are_fine_on_hard_inputs([1e6, 1e6 + 1, 1e6 + 2, 1e6 + 5]), times(ops.BatchNorm, "compute")),
        (
            lambda: test_norm_gradients_sum_to_zero_where_they_should(nn.BatchNorm1d, 0),
            (ops.BatchNorm, "vjp", mean_subtracted_first),
        ),
        (lambda: test_dropout(0.3), times(ops.EWiseMul, "compute")),
        (test_softmax_loss, times(ops.SoftmaxCrossEntropy, "compute")),
        (test_simple_layers, times(ops.Sigmoid, "compute")),
        (test_simple_layers, times(ops.Softplus, "compute")),
    ],
)
def test_a_small_error_is_not_taken_for_rounding(test, plant, monkeypatch):
    test()
    monkeypatch.setattr(*plant)
    with pytest.raises(AssertionError):
        test()


def test_buffers_are_what_is_neither_learned_nor_frozen():
    module = nn.Module()
    module.frozen = nn.Parameter([1.0])
    module.frozen.requires_grad = False
    module.tracked = ndl.Tensor([1.0])
    module.kept = ndl.Tensor([1.0], requires_grad=False)
    assert [name for name, _ in module.named_buffers()] == ["kept"]
    assert [name for name, _ in module.named_parameters()] == ["frozen"]


def test_what_is_loaded_has_the_dtype_of_the_model():
    layer = nn.Linear(1, 1)
    layer.load_state_dict({"weight": np.array([[0.1]]), "bias": [[2]]})
    assert (layer.weight.dtype, layer.bias.dtype) == ("float32", "float32")
    np.testing.assert_array_equal(layer.weight.numpy(), np.float32([[0.1]]))


@pytest.mark.parametrize(
    "held", [nn.Sequential, lambda *modules: nn.ModuleList(modules)], ids=["Sequential", "ModuleList"]
)
@pytest.mark.parametrize("place", [0, 1, 2, -1, -3])
def test_one_module_is_replaced_and_the_others_stay(held, place):
    layers = [nn.ReLU(), nn.Tanh(), nn.Identity()]
    model, new = held(*layers), nn.Flatten()
    model[place] = new
    layers[place] = new
    assert list(model) == layers


@pytest.mark.parametrize(
    ("what", "kind", "match"),
    [
        (lambda: nn.ModuleList().append(3), TypeError, "ModuleList"),
        (lambda: nn.Conv(0, 1, 1), ValueError, "Conv: in_channels must be at least 1, got in_channels=0"),
        (lambda: nn.Conv(1, 0, 1), ValueError, "Conv: out_channels must be at least 1, got out_channels=0"),
        (lambda: nn.Conv(1, 1, 0), ValueError, "Conv: kernel_size must be at least 1, got kernel_size=0"),
        (lambda: nn.Conv(1, 1, 1, stride=0), ValueError, "Conv: stride must be at least 1, got stride=0"),
        (lambda: nn.Conv(1, 1, 1, padding=-1), ValueError, "Conv: padding must be at least 0, got padding=-1"),
        (lambda: nn.Conv(1, 1, (3, 3, 3)), TypeError, "Conv: kernel_size must be an integer"),
        (lambda: nn.MSELoss()(3.0, ndl.Tensor([1.0])), ValueError, r"of one shape, but got None and \(1,\)"),
        (lambda: nn.MSELoss()(ndl.Tensor([1.0]), 3.0), ValueError, r"of one shape, but got \(1,\) and None"),
    ],
    ids=["append", "in", "out", "no size", "stride", "padding", "three sizes", "number", "target"],
)
def test_what_makes_no_layer_is_refused_by_name(what, kind, match):
    with pytest.raises(kind, match=match):
        what()


def test_an_error_without_a_text_stays_as_it_is():
    class Odd(nn.Module):
        def forward(self, x):
            raise ValueError(5)

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - it has no text
        nn.Sequential(Odd())(ndl.Tensor([1.0]))
    assert caught.value.args == (5,)


def test_a_tuple_of_modules_is_found_among_many_attributes():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = (nn.Linear(1, 1), [nn.Linear(1, 1), (nn.Linear(1, 1),)])
            for i in range(12):
                setattr(self, f"part{i}", nn.Linear(1, 1))
            self.last = {"a": (nn.Linear(1, 1),)}

    names = [name for name, _ in Many().named_parameters()]
    assert len(names) == 2 * (3 + 12 + 1)
    assert [name for name in names if "weight" in name][:3] == [
        "first.0.weight",
        "first.1.0.weight",
        "first.1.1.0.weight",
    ]


def test_a_mean_square_is_differentiated_by_the_target_too():
    prediction, target = ndl.Tensor([1.0, 2.0]), ndl.Tensor([3.0, 1.0])
    nn.MSELoss()(prediction, target).backward()
    assert prediction.grad.tolist() == [-2, 1]
    assert target.grad.tolist() == [2, -1]


def test_the_gradient_of_a_loss_that_is_rounded_to_zero_is_not():
    logits = ndl.Tensor([[20.0, 0.0], [0.0, 25.0]], dtype="float32", requires_grad=True)
    loss = nn.SoftmaxLoss()(logits, ndl.Tensor([0, 1]))
    loss.backward()
    assert loss.numpy() == 0
    others = np.exp([-20.0, -25.0]) / 2
    np.testing.assert_allclose(logits.grad.numpy()[[0, 1], [1, 0]], others, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("in_channels", 0, 1), ("out_channels", 0, 1), ("kernel_size", 0, 1), ("stride", 0, 1), ("padding", -1, 0)],
)
def test_a_convolution_of_nothing_is_refused(name, value, least):
    sizes = {"in_channels": 1, "out_channels": 1, "kernel_size": 3} | {name: value}
    with pytest.raises(ValueError, match=f"^Conv: {name} must be at least {least}, got {name}={value}$"):
        nn.Conv(**sizes)
