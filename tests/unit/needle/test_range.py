"""Large and long, tiny and tied: where float32 ends, needle does what torch does, or better."""

import math

import numpy as np
import pytest

import needle as ndl
from needle import nn, ops

F4 = np.float32


# --------------------------------------------------------------------------------------------------- optimizers


def test_the_weight_decay_of_adam_rounds_as_without_the_detour():
    """What keeps the square in range is a power of two: no bit of v depends on it."""
    rng = np.random.default_rng(0)
    for beta2 in (0.999, 0.99, 0.5, 0.0):
        theta, g = rng.standard_normal(1000).astype(F4), rng.standard_normal(1000).astype(F4)
        p = nn.Parameter(theta)
        adam = ndl.optim.Adam([p], beta2=beta2, weight_decay=0.1)
        p.grad = ndl.Tensor(g)
        adam.step()
        decayed = g + theta * F4(0.1)
        np.testing.assert_array_equal(adam.v[p].numpy(), decayed * decayed * F4(1 - beta2))


# ----------------------------------------------------------------------------------------------------- long sums

MANY = 1_000_000


def test_the_mean_loss_of_many_rows():
    loss = nn.SoftmaxLoss()(ndl.Tensor(np.zeros((MANY, 3), F4)), ndl.Tensor(np.zeros(MANY, np.uint8)))
    assert abs(loss.item() / math.log(3) - 1) < 5e-7


def columns():
    return (np.random.default_rng(0).random((MANY, 2)) + 3).astype(F4)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_sums_across_many_rows():
    x = columns()
    exact = x.astype(np.float64).sum(0)
    close(ndl.Tensor(x).sum(0).numpy(), exact)
    close(ndl.Tensor(x).T.sum(1).numpy(), exact)
    close(ndl.Tensor(x.reshape(2, -1, 2)).sum(1).numpy(), x.reshape(2, -1, 2).astype(np.float64).sum(1))
    close(ndl.Tensor(x[:-77].reshape(-1, 1, 2)).sum((0, 1)).numpy(), x[:-77].astype(np.float64).sum(0))
    close(ndl.Tensor(x).sum((0, 1)).numpy(), exact.sum())
    close(ndl.Tensor(x).mean(0).numpy(), exact / MANY)
    close(ops.logsumexp(ndl.Tensor(x), 0).numpy(), np.log(np.exp(x.astype(np.float64)).sum(0)))
    assert ndl.Tensor(np.zeros((2000, 0))).sum(0).shape == (0,)
    assert ndl.Tensor(np.ones((2000, 3), np.uint8)).sum(0).numpy().tolist() == [2000] * 3


def test_sums_of_one_number_many_times():
    """Whose rounding errors do not cancel: added up one after the other it is off by 1e-2."""
    found = ndl.Tensor(np.full((MANY, 2), 0.1, F4)).sum(0).numpy()
    np.testing.assert_allclose(found, MANY * float(F4(0.1)), rtol=1e-5)


@pytest.mark.parametrize("lie", [np.ascontiguousarray, np.asfortranarray], ids=["rows", "columns"])
def test_many_numbers_add_up_however_they_lie(lie):
    """Of numbers that do not lie side by side NumPy adds one after the other, and float32 loses what is small."""
    logits = np.full((2, MANY), math.log(0.1), F4)
    logits[:, 0] = 0
    e = np.exp(logits.astype(float))
    right = e / e.sum(1, keepdims=True)
    found = ndl.Tensor(lie(logits))
    found.cached_data = lie(logits)
    np.testing.assert_allclose(ops.softmax(found).numpy(), right, rtol=3e-6)
    np.testing.assert_allclose(np.exp(ops.logsoftmax(found).numpy().astype(float)), right, rtol=3e-6)
    np.testing.assert_allclose(ops.softmax(ndl.Tensor(logits.T), 0).numpy(), right.T, rtol=3e-6)
    x = np.random.default_rng(0).standard_normal((2, MANY)).astype(F4) + F4(3)
    rows = ndl.Tensor(x)
    rows.cached_data = lie(x)
    wide = x.astype(float)
    centred = wide - wide.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred * centred).mean(1, keepdims=True) + 1e-5)
    y = ops.layer_norm(rows, ndl.ones(MANY), ndl.zeros(MANY))
    np.testing.assert_allclose(y.numpy(), expected, atol=5e-6)


@pytest.mark.parametrize("lie", [np.ascontiguousarray, np.asfortranarray], ids=["rows", "columns"])
def test_the_loss_over_many_classes(lie):
    logits = np.full((2, MANY), math.log(0.1), F4)
    logits[:, 0] = 0
    x = ndl.Tensor(logits)
    x.cached_data = lie(logits)
    nn.SoftmaxLoss()(x, ndl.Tensor([0, 1])).backward()
    e = math.exp(logits[0, 1].item())
    np.testing.assert_allclose(x.grad.numpy()[:, 2:], e / (1 + (MANY - 1) * e) / 2, rtol=4e-6)  # in 250 additions each


def test_long_rows_of_a_cube_and_of_many():
    x = np.random.default_rng(0).random((2, 20, ops._LONG + 76))
    weight, bias = np.ones(x.shape[-1]), np.zeros(x.shape[-1])
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    for shape in (x.shape, (40, -1)):
        y = ops.layer_norm(*map(ndl.Tensor, (x.reshape(shape), weight, bias)))
        np.testing.assert_allclose(y.numpy(), expected.reshape(y.shape), rtol=1e-10)


def test_a_long_row_of_one_number_is_its_mean():
    """Whose rounding errors do not cancel: added up one after the other, what should be 0 is 8e-3."""
    n = 1 << 20
    row = ndl.Tensor(np.full((1, n), 0.1, F4))
    np.testing.assert_allclose(ops.layer_norm(row, ndl.ones(n), ndl.zeros(n)).numpy(), 0, atol=1e-4)


def test_a_long_row_of_zeros_beside_another():
    rows = np.zeros((2, ops._LONG + 1), F4)
    rows[1, ::2] = 3
    n = rows.shape[1]
    expected = (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True).clip(1)
    y = ops.layer_norm(ndl.Tensor(rows), ndl.ones(n), ndl.zeros(n))
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_row_of_gradients_that_cancel_beside_another(create_graph):
    x, g = ndl.Tensor(np.zeros((2, 3))), np.array([[1.0, 1, -2], [1, 2, 3]])
    (ops.logsoftmax(x) * ndl.Tensor(g)).sum().backward(create_graph=create_graph)
    np.testing.assert_allclose(x.grad.numpy(), g - g.sum(1, keepdims=True) / 3, atol=1e-12)
    x.grad = None


def test_a_row_with_one_outlier_in_thousands():
    """Normalised it is √(n - 1), and the others -1 / √(n - 1)."""
    n = 6401
    row = np.zeros((1, n))
    row[0, 3] = n * 100
    expected = np.full((1, n), -1 / 80)
    expected[0, 3] = 80
    y = ops.layer_norm(ndl.Tensor(row), ndl.Tensor(np.ones(n)), ndl.Tensor(np.zeros(n)))
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-9)


def test_the_rows_of_a_cube_are_normalised_as_those_of_a_matrix():
    """To the last bit: shapes that say the same give the same."""
    x = np.random.default_rng(0).standard_normal((7, 5, 300)).astype(F4)
    weight, bias = ndl.ones(300), ndl.zeros(300)
    cube, matrix = (ops.layer_norm(ndl.Tensor(a), weight, bias).numpy() for a in (x, x.reshape(35, 300)))
    np.testing.assert_array_equal(cube.reshape(35, 300), matrix)


def test_the_gradients_of_many_biases_over_many_rows():
    rows, layer = np.ones((ops._LONG + 76, 1), F4), nn.Linear(1, 40)
    for model in (layer, nn.Sequential(layer)):
        model(ndl.Tensor(rows)).sum().backward()
        np.testing.assert_array_equal(layer.bias.grad.numpy(), np.full((1, 40), len(rows)))


def test_statistics_of_many_rows():
    x = columns()
    norm = nn.BatchNorm1d(2, momentum=1.0)
    norm(ndl.Tensor(x))
    close(norm.running_mean.numpy(), x.astype(np.float64).mean(0))
    close(norm.running_var.numpy(), x.astype(np.float64).var(0))
    row = x.reshape(1, -1)
    y = ops.layer_norm(ndl.Tensor(row), ndl.ones(2 * MANY), ndl.zeros(2 * MANY)).numpy()
    wide = row.astype(np.float64)
    np.testing.assert_allclose(y, (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5), atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"create_graph": True}], ids=["plain", "create"])
def test_gradients_over_many_rows(how):
    x = columns()
    exact = x.astype(np.float64).sum(0)
    for shape in ((1, 2), (2,)):
        weight, bias = ndl.Tensor(np.ones((2, 2), F4)), ndl.Tensor(np.ones(shape, F4))
        ops.linear(ndl.Tensor(x), weight, bias).backward(ndl.Tensor(x), **how)
        assert bias.grad.shape == shape
        close(bias.grad.numpy(), exact.reshape(shape))
        (bias + ndl.Tensor(x)).backward(ndl.Tensor(x), **how)
        close(bias.grad.numpy(), exact.reshape(shape))
        weight.grad = bias.grad = None


@pytest.mark.parametrize("rows", [1000, ops._LONG, 1500])
def test_both_walks_give_the_same_bits_on_either_side_of_long(rows):
    rng = np.random.default_rng(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LayerNorm1d(4), nn.Linear(4, 3))
    x, y = rng.standard_normal((rows, 3)).astype(F4), rng.integers(0, 3, rows)
    found = []
    for how in ({}, {"create_graph": True}):
        nn.SoftmaxLoss()(model(ndl.Tensor(x)), ndl.Tensor(y)).backward(**how)
        found.append([p.grad.numpy() for p in model.parameters()])
    for p, plain, created in zip(model.parameters(), *found, strict=True):
        np.testing.assert_array_equal(plain, created)
        p.grad = None


# ---------------------------------------------------------------------------------- tiny numbers, zeros and ties


@pytest.mark.parametrize("base", [2.0, 0.5, 4e-39])
def test_the_second_derivative_of_a_power_beside_the_exponent_0(base):
    a, b = ndl.Tensor([base], dtype="float32"), ndl.Tensor([0.0], dtype="float32")
    (a**b).backward(create_graph=True)
    with np.errstate(over="ignore", invalid="ignore"):  # of the smallest base, that with respect to the base itself
        a.grad.backward()
    assert b.grad.item() == pytest.approx(1 / a.item(), rel=1e-6)  # d/db of b a^(b-1)
    a.grad = b.grad = None


@pytest.mark.parametrize("how", [{}, {"create_graph": True}], ids=["plain", "create"])
def test_powers_of_zero_and_of_what_is_almost_zero(how):
    smallest = [0.0, 1e-39, 2.0**-128]  # of the last, too, 1 / a is out of range
    a, b = ndl.Tensor([*smallest, 0.0, 0.0], dtype="float32"), ndl.Tensor([0.0, 0, 0, 1, 2], dtype="float32")
    before = a.numpy().copy()
    (a**b).backward(**how)
    assert a.grad.tolist() == [0, 0, 0, 1, 0]
    assert b.grad.tolist()[3:] == [0, 0]
    np.testing.assert_array_equal(a.numpy(), before)
    a.grad = b.grad = None


def test_ties_share_and_zeros_keep_their_sign():
    x = ndl.Tensor(np.array([[1, 1, 0], [-0.0, 0, -1], [np.inf, np.inf, 1]], F4))
    x.max(1).sum().backward()
    assert x.grad.numpy().tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]
    zero = ndl.Tensor(np.array([-0.0, 0.0], F4))
    for y, signs in [(zero - 0, [True, False]), (zero - 0.0, [True, False]), (-zero, [False, True]), (zero * 2, [True, False]),
                     (0 - zero, [False, False]), (zero - ndl.Tensor(np.zeros(2, F4)), [True, False])]:  # fmt: skip
        assert np.signbit(y.numpy()).tolist() == signs
    zero = ndl.Tensor(np.array([-0.0, 0.0], F4))
    assert np.signbit(ops.put_item(zero, (3,), slice(2)).numpy()).tolist() == [True, False, False]
    ops.relu(zero).sum().backward()
    assert zero.grad.numpy().tolist() == [0, 0]


def test_subnormal_numbers_go_through():
    x = ndl.Tensor(np.array([1e-40, -1e-42], F4))
    for y in (x * 1, x + 0, ops.tanh(x), ops.relu(x) - ops.relu(-x), x.sum(axis=0, keepdims=True) - ndl.Tensor([0, 0])):
        assert (y.numpy() != 0).all()
    np.testing.assert_array_equal(ops.tanh(x).numpy(), x.numpy())
    assert ops.exp(ndl.Tensor(np.array([-100], F4))).item() == pytest.approx(math.exp(-100), rel=0.02)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-np.inf, -np.inf], -np.inf),
        ([np.inf, 1], np.inf),
        ([np.inf, -np.inf], np.inf),
        ([-np.inf, 3], 3),
        ([1e5, 1e5], 1e5 + np.log(2)),
        ([-1e5, -1e5], -1e5 + np.log(2)),
        ([3e38, 0], 3e38),
        ([[-np.inf, 0], [-np.inf, 0]], [-np.inf, np.log(2)]),
    ],
    ids=range(8),
)
def test_logsumexp_of_what_is_infinite_or_nearly_so(values, expected):
    close(ops.logsumexp(ndl.Tensor(np.array(values, F4)), 0).numpy(), expected)


# ------------------------------------------------------------------------------------------------- what is no number


NO_NUMBER = {
    "relu": ops.relu,
    "tanh": ops.tanh,
    "sigmoid": ops.sigmoid,
    "softplus": ops.softplus,
    "abs": abs,
    "clip": lambda x: x.clip(-1, 1),
    "maximum": lambda x: ops.maximum(x, 0.5),
    "minimum": lambda x: ops.minimum(0.5, x),
    "max": lambda x: x.max(1),
    "min": lambda x: x.min(1),
    "softmax": ops.softmax,
    "logsumexp": lambda x: ops.logsumexp(x, 1),
    "a layer": nn.Sequential(nn.ReLU(), nn.Tanh()),
    "a layer behind another": nn.Sequential(nn.Identity(), nn.Residual(nn.ReLU())),
}


@pytest.mark.parametrize("name", NO_NUMBER)
@pytest.mark.parametrize("rows", [2, 40, 12_000])
def test_what_is_no_number_is_not_taken_for_one(name, rows):
    """NumPy has a maximum that passes over nan, and a network would go on training as if nothing had happened."""
    data = np.ones((rows, 3), F4)
    data[rows // 2, 1] = np.nan
    y = NO_NUMBER[name](ndl.Tensor(data, requires_grad=False)).numpy()
    assert np.isnan(y[rows // 2]).any()
    assert np.isnan(y).any(axis=tuple(range(1, y.ndim))).sum() == 1


def test_what_is_no_number_goes_through_a_relu_between_layers():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    for rows in (2, 12_000):
        data = np.ones((rows, 3), F4)
        data[1] = np.nan
        assert np.isnan(model(ndl.Tensor(data)).numpy()).sum(0).tolist() == [1, 1]


def test_the_gradient_where_something_is_no_number_is_that_of_torch():
    nan = np.array([np.nan, np.inf, -np.inf, 0, 2], F4)
    x, zero = ndl.Tensor(nan), ndl.Tensor(np.zeros(5, F4), requires_grad=False)
    passed = [1, 1, 0, 0, 1]
    for relu in (ops.relu, nn.Sequential(nn.Identity(), nn.ReLU())):
        for graph in (False, True):
            relu(x).backward(ndl.Tensor(np.ones(5, F4)), create_graph=graph)
            assert x.grad.numpy().tolist() == passed
    (x**zero).backward(ndl.Tensor(np.ones(5, F4)))
    assert x.grad.numpy().tolist() == [0] * 5  # x⁰ is 1 whatever x is


@pytest.mark.parametrize(("dtype", "at"), [(F4, -95), (F4, -102), ("float64", -720), ("float64", -740)])
def test_the_sigmoid_where_only_the_smallest_numbers_are_left(dtype, at):
    y = ops.sigmoid(ndl.Tensor(np.array([at], dtype))).numpy()
    assert y[0] > 0
    np.testing.assert_allclose(y[0], np.exp(np.array(at, dtype)), rtol=0, atol=np.finfo(dtype).smallest_subnormal)


@pytest.mark.parametrize("rows", [1, ops._LONG - 1, ops._LONG, ops._LONG + 1, 2 * ops._LONG + 1])
def test_a_bias_between_layers_hears_of_every_row(rows):
    model = nn.Sequential(nn.Linear(2, 3), nn.Identity())
    g = np.random.default_rng(0).integers(-3, 4, (rows, 3)).astype(F4)  # of which every sum is exact
    g[-1] += 100
    model(ndl.Tensor(np.ones((rows, 2), F4))).backward(ndl.Tensor(g))
    assert model.modules[0].bias.grad.tolist() == [g.sum(0).tolist()]
