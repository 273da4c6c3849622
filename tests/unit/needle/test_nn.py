"""Modules, layers, their parameters and state."""

import numpy as np
import pytest
import torch

import needle as ndl
from needle import nn


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


def test_linear():
    layer = nn.Linear(3, 2)
    assert layer.weight.shape == (3, 2)
    assert layer.bias.shape == (1, 2)
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    for shape in ((5, 3), (2, 5, 3), (3,)):
        x = normal(*shape)
        y = layer(ndl.Tensor(x))
        expected = x @ layer.weight.numpy() + layer.bias.numpy()[0]
        assert y.shape == expected.shape
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-5, atol=1e-6)
    without = nn.Linear(3, 2, bias=False)
    assert without.bias is None
    assert len(without.parameters()) == 1
    assert nn.Linear(3, 2, dtype="float64").weight.dtype == np.float64


def test_linear_draws_weight_then_bias():
    np.random.seed(3)
    layer = nn.Linear(3, 2)
    np.random.seed(3)
    bound = np.sqrt(2) * np.sqrt(3 / 3)
    weight = (np.random.rand(3, 2) * 2 * bound - bound).astype("float32")
    bound = np.sqrt(2) * np.sqrt(3 / 2)
    bias = (np.random.rand(2, 1) * 2 * bound - bound).astype("float32").reshape(1, 2)
    np.testing.assert_allclose(layer.weight.numpy(), weight, rtol=1e-6)
    np.testing.assert_allclose(layer.bias.numpy(), bias, rtol=1e-6)
    state = np.random.get_state()[2]
    nn.Linear(3, 2, bias=False)
    assert np.random.get_state()[2] != state


def test_batch_norm_statistics_are_biased_and_hold_no_graph():
    layer = nn.BatchNorm1d(3, momentum=0.25)
    x = normal(6, 3) * 2 + 1
    y = layer(ndl.Tensor(x))
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.25 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.75 + 0.25 * x.var(0), rtol=1e-5)
    np.testing.assert_allclose(y.numpy().mean(0), 0, atol=1e-6)
    for running in (layer.running_mean, layer.running_var):
        assert running.dtype == np.float32
        assert running.op is None
        assert not running.requires_grad
    assert [n for n, _ in layer.named_buffers()] == ["running_mean", "running_var"]
    assert layer.parameters() == [layer.weight, layer.bias]
    mean, var = layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()
    layer.eval()
    out = layer(ndl.Tensor(x[:1]))
    np.testing.assert_allclose(out.numpy(), (x[:1] - mean) / np.sqrt(var + 1e-5), rtol=1e-5)
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


@pytest.mark.parametrize("columns", [[1000.0, 1001.0, 1002.0], [5.0, 5.0, 5.0], [7.0]], ids=["offset", "equal", "one"])
def test_norms_are_fine_on_hard_inputs(columns):
    row = np.array(columns, "float32")
    layer = nn.LayerNorm1d(len(row))
    x = ndl.Tensor(np.tile(row, (4, 1)))
    y = layer(x)
    wide = row.astype(float)
    np.testing.assert_allclose(y.numpy()[0], (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5), atol=1e-4)
    batch = nn.BatchNorm1d(1)
    out = batch(ndl.Tensor(row.repeat(2)[:, None]))
    column = wide.repeat(2)
    np.testing.assert_allclose(out.numpy()[:, 0], (column - column.mean()) / np.sqrt(column.var() + 1e-5), atol=1e-4)
    (y * ndl.Tensor(normal(*y.shape))).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


def test_norm_gradients_sum_to_zero_where_they_should():
    x = ndl.Tensor(normal(16, 5) + 100)
    y = nn.BatchNorm1d(5)(x)
    (y * ndl.Tensor(normal(16, 5, seed=1))).sum().backward()
    assert np.abs(x.grad.numpy().sum(0)).max() < 1e-6


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
    expected = x.numpy() * (mask / (1 - p) if p < 1 else 0 * mask)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6, atol=0)
    y.backward(ndl.ones(40, 50))
    np.testing.assert_allclose(x.grad.numpy(), mask / (1 - p) if p < 1 else 0 * mask, rtol=1e-6)
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
    expected = torch.nn.functional.cross_entropy(torch.tensor(z), torch.tensor(y))
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-6)
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
    np.testing.assert_allclose(nn.Sigmoid()(x).numpy(), 1 / (1 + np.exp(-x.numpy())), rtol=1e-6)
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
