"""What a library has that one likes: places in containers, losses, layers, loaders, and messages with the way out."""

import _thread
import copy
import importlib.util
import pickle
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from rounding import Rounded, within

import needle as ndl
from needle import nn, ops
from needle.data import DataLoader, NDArrayDataset, RandomFlipHorizontal


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


# -- containers


def test_a_sequential_has_places():
    first, second, third = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
    model = nn.Sequential(first, second, third)
    assert len(model) == 3
    assert list(model) == [first, second, third]
    assert model[0] is first
    assert model[-1] is third
    assert model[np.int64(1)] is second
    part = model[1:]
    assert type(part) is nn.Sequential
    assert list(part) == [second, third]
    assert list(model[::-1]) == [third, second, first]
    assert part.parameters()[0] is third.weight
    x = ndl.Tensor(normal(4, 2))
    np.testing.assert_array_equal(model[1:](model[:1](x)).numpy(), model(x).numpy())


@pytest.mark.parametrize(
    "make", [lambda *m: nn.Sequential(*m), lambda *m: nn.ModuleList(m)], ids=["Sequential", "list"]
)
def test_what_is_no_place_or_no_module_is_refused(make):
    model = make(nn.ReLU(), nn.Tanh())
    name = type(model).__name__
    for place in (2, -3):
        with pytest.raises(IndexError, match=f"{name}: there is no module {place} among 2"):
            model[place]
        with pytest.raises(IndexError, match=f"{name}: there is no module {place} among 2"):
            model[place] = nn.ReLU()
    with pytest.raises(TypeError, match=f"{name}: a place must be an integer or a slice, but got '0'"):
        model["0"]
    with pytest.raises(TypeError, match=f"{name} takes modules, but got int"):
        model[0] = 3
    assert [type(m) for m in model] == [nn.ReLU, nn.Tanh]


def test_a_replaced_layer_counts_at_once():
    """Also in a chain that is prepared already, and in one that holds the Sequential."""
    inner = nn.Sequential(nn.ReLU(), nn.Tanh())
    model = nn.Sequential(nn.Identity(), inner)
    x = ndl.Tensor(normal(4, 2))
    np.testing.assert_array_equal(model(x).numpy(), np.tanh(np.maximum(x.numpy(), 0)))
    inner[-1] = nn.Identity()
    np.testing.assert_array_equal(model(x).numpy(), np.maximum(x.numpy(), 0))
    model[1] = nn.Tanh()
    np.testing.assert_array_equal(model(x).numpy(), np.tanh(x.numpy()))


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = ops.relu(layer(x))
        return x


def test_a_module_list_is_part_of_its_module():
    np.random.seed(0)
    model = Listed()
    names = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    assert [name for name, _ in model.named_parameters()] == names
    assert repr(model) == "Listed(\n  (layers): ModuleList(\n    (0): Linear(2, 2)\n    (1): Linear(2, 2)\n  )\n)"
    model.layers.append(nn.Dropout())
    assert [m.training for m in model.eval().layers] == [False] * 3
    assert len(model.layers) == 3
    assert isinstance(model.layers[1:], nn.ModuleList)
    assert model.layers[1:][0] is model.layers[1]
    model.layers[2] = nn.Identity()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        x = ndl.Tensor(normal(3, 2))
        np.testing.assert_array_equal(twin(x).numpy(), model(x).numpy())
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_module_list_is_not_called():
    with pytest.raises(TypeError, match="a ModuleList cannot be called: call the modules in it, or use a Sequential"):
        nn.ModuleList()(ndl.ones(1))


def test_the_mode_can_be_given():
    model = nn.Sequential(nn.Dropout(), nn.Residual(nn.Dropout()))
    assert model.train(False) is model
    assert not any(m.training for m in model.modules_in())
    assert model.train(True).train() is model
    assert all(m.training for m in model.modules_in())
    with pytest.raises(TypeError, match=r"Sequential\.train: mode must be True or False, got mode='eval'"):
        model.train("eval")


def test_zero_grad_of_a_model_resets_what_is_frozen_too():
    model = nn.Linear(2, 3)
    model(ndl.Tensor(np.ones((1, 2), np.float32))).sum().backward()
    model.weight.requires_grad = False
    model.zero_grad()
    assert model.weight.grad is None
    assert model.bias.grad is None


def test_zero_grad_is_the_optimizers_reset_grad_and_follows_it():
    reset = []

    class Own(ndl.optim.SGD):
        def reset_grad(self):
            reset.append(True)
            super().reset_grad()

    p = nn.Parameter([1.0])
    p.grad = ndl.ones(1)
    Own([p]).zero_grad()
    assert reset
    assert p.grad is None


# -- which layer


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(), nn.Linear(7, 2))

    def forward(self, x):
        return self.body(x)


def twice(layer):
    return nn.Sequential(layer, nn.ReLU(), layer)


FAILING = {
    "a chain": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 2)),
        r"layer 2, Linear\(5, 2\): linear needs",
    ),
    "in a Sequential": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Sequential(nn.LayerNorm1d(5)))),
        r"layer 1\.1\.0, LayerNorm1d\(5, eps=1e-05\): layer_norm needs",
    ),
    "in a Residual": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Residual(nn.Sequential(nn.Tanh(), nn.Linear(5, 4)))),
        r"layer 1\.fn\.1, Linear\(5, 4\): linear",
    ),
    "behind a Residual": (
        lambda: nn.Sequential(nn.Residual(nn.Sequential(nn.Tanh(), nn.Residual(nn.ReLU()))), nn.BatchNorm1d(5)),
        r"layer 1, BatchNorm1d\(5, eps=1e-05, momentum=0.1\): BatchNorm1d\(5\) needs",
    ),
    "the sum of a Residual": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Residual(nn.Linear(4, 2))),
        r"layer 1, Residual: add: shapes \(4, 2\) and \(4, 4\)",
    ),
    "the same layer twice": (lambda: twice(nn.Linear(3, 4)), r"layer 2, Linear\(3, 4\): linear"),
    "layers that are called": (
        lambda: nn.Sequential(nn.Linear(3, 4), lambda x: x, nn.Linear(5, 2)),
        r"layer 2, Linear\(5, 2\): linear",
    ),
    "a module of one's own": (
        lambda: nn.Sequential(nn.Linear(3, 4), Block()),
        r"layer 1\.body\.1, Linear\(7, 2\): linear",
    ),
    "its own forward": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Sequential(lambda x: x + ndl.ones(3, 3))),
        r"layer 1\.0, <function .*>: add: shapes",
    ),
    "no tensor": (
        lambda: nn.Sequential(nn.Linear(3, 4), lambda x: 3, nn.Linear(4, 4)),
        r"layer 2, Linear\(4, 4\): Linear",
    ),
}


@pytest.mark.parametrize("what", FAILING)
@pytest.mark.parametrize("recording", [True, False])
def test_an_error_names_the_layer(what, recording):
    make, match = FAILING[what]
    model = make()
    call = model if recording else ndl.no_grad()(model)
    with pytest.raises((TypeError, ValueError), match="^" + match) as error:
        call(ndl.Tensor(normal(4, 3)))
    assert str(error.value).count("layer ") == 1
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    assert all(not isinstance(value, nn.Module) for value in vars(error.value).values())


def test_an_error_that_is_no_text_stays_as_it_is():
    class Own(ValueError):
        pass

    def failing(x):
        raise Own("a", 1)

    with pytest.raises(Own) as error:
        nn.Sequential(failing)(ndl.ones(1))
    assert error.value.args == ("a", 1)


# -- losses and layers


def test_mse():
    prediction, target = ndl.Tensor(normal(4, 3)), ndl.Tensor(normal(4, 3, seed=1), requires_grad=False)
    loss = nn.MSELoss()(prediction, target)
    difference = Rounded(prediction.numpy()) - target.numpy()
    within(loss, (difference * difference).mean(None))
    loss.backward()
    share = difference * Rounded.of(1 / 12)
    within(prediction.grad, share + share)
    assert target.grad is None
    assert loss.shape == ()


@pytest.mark.parametrize("shapes", [((4, 1), (4,)), ((4,), (4, 1)), ((3,), (1, 3)), ((2, 3), ())])
def test_mse_does_not_broadcast(shapes):
    with pytest.raises(
        ValueError, match=r"MSELoss needs a prediction and a target of one shape, but got .* with reshape"
    ):
        nn.MSELoss()(*(ndl.Tensor(normal(*s)) for s in shapes))


def test_mse_of_what_is_no_tensor_is_refused():
    with pytest.raises(ValueError, match=r"MSELoss needs .* but got \(3,\) and None"):
        nn.MSELoss()(ndl.ones(3), 1.0)
    assert nn.MSELoss()(ndl.ones(3), np.ones(3)).item() == 0


def test_softmax():
    x = normal(3, 5)
    for axis in (-1, 0, 1):
        y = nn.Softmax(axis)(ndl.Tensor(x))
        e = Rounded(x - x.max(axis, keepdims=True), np.abs(x).max() * 2.0**-23).exp()
        within(y, e / e.sum(axis, keepdims=True))
    assert repr(nn.Softmax()) == "Softmax()"
    assert repr(nn.Softmax(0)) == "Softmax(axis=0)"
    assert nn.Softmax()(ndl.Tensor([[1e4, 0.0], [-1e4, 0.0]])).numpy().tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int8", "float16"])
def test_softmax_of_small_dtypes(dtype):
    x = np.array([[1, 0, 1], [1, 1, 1]]).astype(dtype)
    wide = np.exp(x.astype(float))
    y = ops.softmax(ndl.Tensor(x))
    assert y.dtype == ("float16" if dtype == "float16" else "float32")
    # float16 is rounded once; 2^-11 is its unit roundoff
    np.testing.assert_allclose(
        y.numpy(), wide / wide.sum(1, keepdims=True), rtol=2.0**-11 if dtype == "float16" else 1e-6
    )


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda: nn.Softmax("1"), TypeError, "Softmax: axis must be an integer, got axis='1'"),
        (lambda: ops.softmax(ndl.ones(2, 3), 2), ValueError, "softmax: axis 2 does not exist in 2 dimensions"),
        (lambda: nn.Softmax()(ndl.ones()), ValueError, "softmax: axis -1 does not exist in 0 dimensions"),
        (lambda: nn.Softmax()(ndl.ones(2, 0)), ValueError, "softmax needs at least one element along axis -1"),
        (lambda: nn.Softmax()(np.ones((2, 3))), TypeError, "Softmax takes needle Tensors, but got ndarray"),
    ],
    ids=range(5),
)
def test_softmax_refuses_by_name(call, kind, match):
    with pytest.raises(kind, match=match):
        call()


def by_hand(x, weight, bias, stride, padding):
    """The convolution as its definition has it, of (n, c, h, w) in float64 with the bound of its rounding."""
    x = np.pad(x.astype(float), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    n, _, h, w = x.shape
    k, _, _, o = weight.shape
    rows, columns = (h - k) // stride + 1, (w - k) // stride + 1
    windows = np.zeros((n, rows, columns, k, k, x.shape[1]))
    for i in range(rows):
        for j in range(columns):
            window = x[:, :, i * stride : i * stride + k, j * stride : j * stride + k]
            windows[:, i, j] = window.transpose(0, 2, 3, 1)
    y = Rounded(windows.reshape(n * rows * columns, -1)) @ Rounded(weight.reshape(-1, o))
    y = y if bias is None else y + bias
    shape = (n, rows, columns, o)
    return Rounded(y.value.reshape(shape).transpose(0, 3, 1, 2), y.error.reshape(shape).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("k", "stride", "padding"), [(3, 1, None), (3, 2, None), (2, 1, None), (1, 3, 0), (3, 1, 2)])
def test_conv(k, stride, padding, bias):
    np.random.seed(0)
    layer = nn.Conv(2, 4, k, stride, bias, padding=padding)
    x = normal(3, 2, 6, 5)
    expected = by_hand(
        x,
        layer.weight.numpy(),
        layer.bias.numpy() if bias else None,
        stride,
        (k - 1) // 2 if padding is None else padding,
    )
    y = layer(ndl.Tensor(x))
    within(y, expected)
    if k == 3 and stride == 1 and padding is None:
        assert y.shape == (3, 4, 6, 5)


def test_conv_draws_weight_then_bias():
    np.random.seed(3)
    layer = nn.Conv(2, 4, 3)
    np.random.seed(3)
    bound = np.sqrt(2) * np.sqrt(3 / 18)
    weight = np.random.rand(3, 3, 2, 4) * 2 * bound - bound
    bias = (np.random.rand(4) * 2 - 1) / np.sqrt(18)
    assert layer.weight.shape == (3, 3, 2, 4)
    assert layer.bias.shape == (4,)
    np.testing.assert_allclose(layer.weight.numpy(), weight, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(layer.bias.numpy(), bias, rtol=1e-6, atol=1e-7)
    assert nn.Conv(1, 1, 1, dtype="float64").weight.dtype == np.float64


def test_conv_shows_its_settings():
    assert repr(nn.Conv(3, 8, 5)) == "Conv(3, 8, 5)"
    assert repr(nn.Conv(3, 8, (3, 3), (2, 2), bias=False)) == "Conv(3, 8, 3, stride=2, bias=False)"
    assert repr(nn.Conv(3, 8, 3, padding=0)) == "Conv(3, 8, 3, padding=0)"


# -- loaders


def loader(n, **settings):
    return DataLoader(NDArrayDataset(np.arange(n)), **settings)


@pytest.mark.parametrize("n", range(8))
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_loader_is_as_long_as_it_says(n, drop_last, shuffle):
    batches = loader(n, batch_size=3, drop_last=drop_last, shuffle=shuffle)
    sizes = [len(x) for (x,) in batches]
    assert len(batches) == len(sizes)
    assert sizes == [3] * (n // 3) + [n % 3] * (n % 3 > 0 and not drop_last)
    seen = sorted(int(i) for (x,) in batches for i in x.numpy())
    if shuffle and drop_last:
        assert len(set(seen)) == n // 3 * 3
    else:
        assert seen == list(range(sum(sizes)))


def test_dropping_the_last_batch_draws_the_same_order():
    np.random.seed(1)
    (whole,), _ = loader(4, batch_size=3, shuffle=True)
    np.random.seed(1)
    ((dropped,),) = loader(4, batch_size=3, shuffle=True, drop_last=True)
    np.testing.assert_array_equal(whole.numpy(), dropped.numpy())


def test_a_loader_shows_its_settings():
    assert repr(loader(7, batch_size=3)) == "DataLoader(NDArrayDataset, 7 items in 3 batches of 3)"
    assert repr(loader(7, batch_size=7, shuffle=True, drop_last=True)) == (
        "DataLoader(NDArrayDataset, 7 items in 1 batch of 7, shuffle=True, drop_last=True)"
    )


# -- messages

MESSAGES = [
    (lambda: ndl.optim.SGD(nn.Linear(1, 1)), TypeError, r"SGD: params must be Parameters, but got a Linear: pass its \.parameters\(\)"),
    (lambda: ndl.optim.SGD(nn.Linear(1, 1).parameters), TypeError, r"SGD: .* but got a function: call it, as in model\.parameters\(\)"),
    (lambda: ndl.optim.SGD([np.ones(2)]), TypeError, r"SGD: .* but got ndarray: wrap an array in nn\.Parameter"),
    (lambda: ndl.optim.SGD(None), TypeError, r"SGD: params must be an iterable of Parameters, but got NoneType: pass model\.par"),
    (lambda: ndl.optim.SGD(0.1), TypeError, "SGD: params must be an iterable of Parameters, but got float"),
    (lambda: ndl.optim.Adam(nn.Linear(1, 1)), TypeError, "Adam: params must be Parameters, but got a Linear"),
    (lambda: ndl.optim.Adam([[nn.Parameter(1.0)]]), TypeError, "Adam: params must be Parameters, but got list"),
    (lambda: nn.Sequential(nn.Linear(1, 1), nn.ReLU), TypeError, r"Sequential .* got the class ReLU: write ReLU\(\.\.\.\)"),
    (lambda: nn.Sequential([nn.ReLU()]), TypeError, r"Sequential .* got a list: write nn\.Sequential\(\*modules\)"),
    (lambda: nn.Sequential(nn.ReLU(), ndl.ones(1)), TypeError, "Sequential takes modules, but got Tensor"),
    (lambda: nn.Sequential(None), TypeError, "Sequential takes modules, but got NoneType"),
    (lambda: nn.ModuleList(nn.ReLU), TypeError, r"ModuleList .* got the class ReLU: write ModuleList\(\[\.\.\.\]\)"),
    (lambda: nn.ModuleList(nn.ReLU()), TypeError, r"ModuleList takes a list of modules, but got a ReLU"),
    (lambda: nn.ModuleList([nn.ReLU]), TypeError, "ModuleList takes modules, but got the class ReLU"),
    (lambda: nn.Residual(nn.ReLU), TypeError, r"Residual takes a module, but got the class ReLU: write ReLU\(\.\.\.\)"),
    (lambda: nn.Residual([nn.ReLU()]), TypeError, r"Residual takes a module, but got a list: write nn\.Sequential\(\*modules\)"),
    (lambda: nn.Linear("3", 4), TypeError, "Linear: in_features must be an integer, got in_features='3'"),
    (lambda: nn.Linear(3, 4.0), TypeError, r"Linear: out_features must be an integer, got out_features=4\.0"),
    (lambda: nn.Linear(3, 0), ValueError, "Linear: out_features must be at least 1, got out_features=0"),
    (lambda: nn.BatchNorm1d("3"), TypeError, "BatchNorm1d: dim must be an integer, got dim='3'"),
    (lambda: nn.BatchNorm1d(3, eps="x"), ValueError, "BatchNorm1d: eps must be a positive finite number, got eps='x'"),
    (lambda: nn.BatchNorm1d(3, momentum="x"), ValueError, r"BatchNorm1d: momentum must be in \[0, 1\], got momentum='x'"),
    (lambda: nn.LayerNorm1d(None), TypeError, "LayerNorm1d: dim must be an integer, got dim=None"),
    (lambda: nn.Dropout("x"), ValueError, r"Dropout: p must be in \[0, 1\], got p='x'"),
    (lambda: nn.Dropout(nn.ReLU()), ValueError, r"Dropout: p must be in \[0, 1\], got p=ReLU\(\)"),
    (lambda: nn.Dropout(float("nan")), ValueError, "Dropout: p must be .* got p=nan"),
    (lambda: nn.Conv(3, 8, 3.0), TypeError, r"Conv: kernel_size must be an integer, got kernel_size=3\.0"),
    (lambda: nn.Conv(3, 8, (3, 5)), ValueError, r"Conv: kernel_size must be the same for both .* kernel_size=\(3, 5\)"),
    (lambda: nn.Conv(3, 8, 3, 0), ValueError, "Conv: stride must be at least 1, got stride=0"),
    (lambda: nn.Conv(0, 8, 3), ValueError, "Conv: in_channels must be at least 1"),
    (lambda: nn.Conv(3, 8, 3, padding=-1), ValueError, "Conv: padding must be at least 0"),
    (lambda: nn.Conv(3, 8, 3)(ndl.ones(2, 28, 28, 3)), ValueError, r"Conv\(3, 8, 3\) needs images \(n, 3, h, w\) .* got \(2, 28"),
    (lambda: nn.Conv(3, 8, 5, padding=0)(ndl.ones(2, 3, 4, 9)), ValueError, "with h and w at least 5, but got"),
    (lambda: nn.Linear(1, 1).load_state_dict("m.npz"), TypeError, r"load_state_dict .* got str: .* np\.load\(path\)"),
    (lambda: nn.Linear(1, 1).load_state_dict(nn.Linear(1, 1)), TypeError, r"load_state_dict .* a Linear: pass its \.state_dict\(\)"),
    (lambda: nn.Linear(1, 1).load_state_dict({"weight": [[1, 2], [3]], "bias": [[1]]}), TypeError, "weight must be an array"),
    (lambda: DataLoader(NDArrayDataset), TypeError, "DataLoader takes a dataset .* but got the class NDArrayDataset"),
    (lambda: DataLoader(3), TypeError, "DataLoader takes a dataset with a length and items, but got int"),
    (lambda: DataLoader(NDArrayDataset([1]), 0), ValueError, "DataLoader: batch_size must be at least 1, got batch_size=0"),
    (lambda: DataLoader(NDArrayDataset([1]), None), TypeError, "DataLoader: batch_size must be an integer, got batch_size=None"),
    (lambda: RandomFlipHorizontal("x"), ValueError, r"RandomFlipHorizontal: p must be in \[0, 1\], got p='x'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "match"), MESSAGES, ids=range(len(MESSAGES)))
def test_a_mistake_is_refused_with_the_way_out(call, kind, match):
    with pytest.raises(kind, match=match):
        call()


def test_a_refused_load_changes_nothing():
    layer = nn.Linear(2, 2)
    before = layer.state_dict()
    for bad in (
        {"weight": np.zeros((2, 2))},
        {"weight": np.zeros((2, 2)), "bias": "x"},
        {**before, "bias": np.zeros(2)},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            layer.load_state_dict(bad)
        for name, value in layer.state_dict().items():
            np.testing.assert_array_equal(value, before[name])


def test_float64_data_in_a_float32_model_is_said_once(monkeypatch):
    monkeypatch.setattr(ops, "_warned", False)
    x = ndl.Tensor(np.ones((2, 3)))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for model in (
            nn.Linear(3, 2, dtype="float64"),
            nn.ReLU(),
            nn.Sequential(nn.ReLU(), nn.Linear(3, 2)),
            nn.Linear(3, 2),
        ):
            model(x)
        nn.Conv(1, 1, 1)(ndl.Tensor(np.ones((1, 1, 2, 2))))
        nn.Linear(3, 2, dtype="float64")(ndl.ones(2, 3))
    (warning,) = seen
    assert warning.category is ndl.PrecisionWarning
    assert "float64 data of shape (2, 3) goes into a layer with float32 weights" in str(warning.message)
    assert "x.astype('float32')" in str(warning.message)
    assert warning.filename == __file__  # the user's line, however deep in needle it was noticed


def test_float64_data_beside_a_float32_weight_without_a_bias(monkeypatch):
    monkeypatch.setattr(ops, "_warned", False)
    with pytest.warns(ndl.PrecisionWarning, match=r"shape \(1, 3\) goes into"):
        y = nn.Linear(3, 2, bias=False)(ndl.Tensor(np.ones((1, 3))))
    assert y.dtype == np.float64


def test_float64_images_beside_a_float32_kernel(monkeypatch):
    monkeypatch.setattr(ops, "_warned", False)
    with pytest.warns(ndl.PrecisionWarning, match=r"shape \(1, 2, 2, 1\) goes into"):
        y = ops.conv(ndl.Tensor(np.ones((1, 2, 2, 1))), ndl.ones(2, 2, 1, 1))
    assert y.dtype == np.float64


def test_nothing_has_been_said_before_the_first_float64_data():
    spec = importlib.util.find_spec("needle.ops")
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)  # as in a new process
    with pytest.warns(fresh.PrecisionWarning, match="float64 data"):
        fresh.linear(ndl.Tensor(np.ones((1, 3))), ndl.ones(3, 2))


def test_the_warning_where_needle_is_all_that_a_thread_runs(monkeypatch):
    raised = []
    monkeypatch.setattr(ops, "_warned", False)
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    before = _thread._count()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        _thread.start_new_thread(ops.linear, (ndl.Tensor(np.ones((1, 3))), ndl.ones(3, 2)))
        for _ in range(1_000):
            time.sleep(0.01)
            if seen or raised or (ops._warned and _thread._count() == before):
                break
    assert not raised
    assert [w.category for w in seen] == [ndl.PrecisionWarning]


def test_the_warning_is_once_for_a_process_also_where_every_warning_is_shown():
    program = (
        "import numpy as np, needle as ndl\nfor _ in range(3):\n    ndl.nn.Linear(2, 2)(ndl.Tensor(np.ones((1, 2))))\n"
    )
    run = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, check=True)
    assert run.stderr.count("PrecisionWarning") == 1
    assert "<string>:3: PrecisionWarning" in run.stderr


# -- digits


def test_drawn_digits_are_the_same_for_a_seed_and_leave_the_generator_alone():
    before = np.random.get_state()[1].tobytes()
    images, labels = ndl.data.drawn_digits(50, seed=3)
    assert np.random.get_state()[1].tobytes() == before
    assert images.shape == (50, 9, 7)
    assert (images.dtype, labels.dtype) == (np.float32, np.uint8)
    again, _ = ndl.data.drawn_digits(50, seed=3)
    np.testing.assert_array_equal(images, again)
    assert (ndl.data.drawn_digits(50, seed=4)[0] != images).any()


GLYPHS = """
.###. ..#.. .###. ##### ...#. ##### ..##. ##### .###. .###.
#...# .##.. #...# ...#. ..##. #.... .#... ....# #...# #...#
#..## ..#.. ....# ..#.. .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ...#. #..#. ....# ####. ..#.. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# .#... #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# .#... #...# ...#.
.###. .###. ##### .###. ...#. .###. .###. .#... .###. .##..
"""


def test_drawn_digits_look_like_digits():
    """Each image, noise taken away, is the glyph of its label somewhere in the frame, as bright as was drawn."""
    rows = [line.split() for line in GLYPHS.strip().splitlines()]
    clean, labels = ndl.data.drawn_digits(300, noise=0, seed=5)
    for image, label in zip(clean, labels, strict=True):
        glyph = np.array([[dot == "#" for dot in row[label]] for row in rows])
        places = [(i, j) for i in range(3) for j in range(3) if ((image > 0)[i : i + 7, j : j + 5] == glyph).all()]
        assert places
        assert (image > 0).sum() == glyph.sum()
        assert 0.7 <= image.max() <= 1.3
        assert len(np.unique(image)) == 2
    bright = clean.max((1, 2))
    assert bright.min() < 0.75
    assert bright.max() > 1.25
    noisy, same = ndl.data.drawn_digits(300, noise=0.5, seed=5)
    np.testing.assert_array_equal(labels, same)
    noise = noisy - clean
    assert abs(noise.mean()) < 0.02  # 5.5 standard deviations of a mean of 18,900
    assert abs(noise.std() - 0.5) < 0.02
    by_default = ndl.data.drawn_digits(300, seed=5)[0] - clean
    assert abs(by_default.std() - 0.25) < 0.01
    np.testing.assert_array_equal(ndl.data.drawn_digits(4)[0], ndl.data.drawn_digits(4, seed=0)[0])


def test_drawn_digits_have_the_noise_of_their_generator():
    clean, labels = ndl.data.drawn_digits(20, noise=0, seed=5)
    noisy, _ = ndl.data.drawn_digits(20, noise=0.5, seed=5)
    rng = np.random.RandomState(5)
    np.testing.assert_array_equal(rng.randint(0, 10, 20), labels)
    rng.randint(0, 3, 20), rng.randint(0, 3, 20), rng.uniform(0.7, 1.3, (20, 1, 1))  # down, right, brightness
    np.testing.assert_allclose(noisy - clean, 0.5 * rng.standard_normal(clean.shape), atol=1e-6)


def test_drawn_digits_may_be_none_but_not_fewer():
    images, labels = ndl.data.drawn_digits(0)
    assert (images.shape, labels.shape) == ((0, 9, 7), (0,))
    with pytest.raises(ValueError, match="drawn_digits: n"):
        ndl.data.drawn_digits(-1)
    with pytest.raises(TypeError, match="drawn_digits: n"):
        ndl.data.drawn_digits(1.5)


def test_drawn_digits_without_noise_are_ten_glyphs_in_nine_places():
    images, labels = ndl.data.drawn_digits(3000, noise=0)
    kinds = {(int(label), (image > 0).tobytes()) for image, label in zip(images, labels, strict=True)}
    assert len(kinds) == 90
    assert len({image for _, image in kinds}) == 90
    assert (images > 0).any(0).all()
    for bad in (-1.0, "x", float("nan")):
        with pytest.raises(ValueError, match="drawn_digits: noise must be finite and not negative"):
            ndl.data.drawn_digits(1, noise=bad)
