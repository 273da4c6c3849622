"""Which dtype an op gives, and that its values are right in the small ones: the table in needle/ops.py."""

import copy
import math
import pickle

import numpy as np
import pytest

import needle as ndl
from needle import nn, ops

BYTE, HALF, SINGLE = np.uint8, np.float16, np.float32


def t(values, dtype):
    return ndl.Tensor(np.array(values, dtype))


def check(result, expected, dtype, rtol=2e-6):
    assert result.dtype == dtype
    np.testing.assert_allclose(result.numpy().astype(np.float64), expected, rtol=rtol, atol=1e-30)


def both(y, x, cotangent=None):
    """The gradient of x by both walks."""
    y.backward(cotangent, retain_graph=True)
    plain = x.grad.numpy()
    y.backward(cotangent, create_graph=True)
    np.testing.assert_array_equal(x.grad.numpy(), plain, strict=True)
    x.grad = None
    return plain


# ------------------------------------------------------------------------------------------------- small integers


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64])
@pytest.mark.parametrize(
    ("op", "of"),
    [
        (ops.exp, np.exp),
        (ops.log, np.log),
        (ops.tanh, np.tanh),
        (ops.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
        (ops.softplus, lambda x: np.log1p(np.exp(x))),
        (ops.sqrt, np.sqrt),
        (ops.var, np.var),
        (lambda x: x / 3, lambda x: x / 3),
        (lambda x: 3 / x, lambda x: 3 / x),
        (lambda x: x / x, lambda x: x / x),
        (lambda x: x * 0.5, lambda x: x * 0.5),
        (lambda x: x + 0.5, lambda x: x + 0.5),
        (lambda x: x - 0.5, lambda x: x - 0.5),
        (lambda x: 0.5 - x, lambda x: 0.5 - x),
        (lambda x: x**0.5, lambda x: x**0.5),
        (lambda x: x**2.0, lambda x: x**2.0),
        (lambda x: 1.5**x, lambda x: 1.5**x),
        (lambda x: x.mean(), lambda x: x.mean()),
        (ops.logsumexp, lambda x: np.log(np.exp(x).sum())),
        (lambda x: ops.logsoftmax(x.reshape(1, 3)), lambda x: (x - np.log(np.exp(x).sum()))[None]),
        (lambda x: ops.fused_add_scalars(x, 0.5, 1.5)[1], lambda x: x + 1.5),
    ],
    ids=[
        "exp",
        "log",
        "tanh",
        "sigmoid",
        "softplus",
        "sqrt",
        "var",
        "x/3",
        "3/x",
        "x/x",
        "x*.5",
        "x+.5",
        "x-.5",
        ".5-x",
        "x**.5",
        "x**2.",
        "1.5**x",
        "mean",
        "logsumexp",
        "logsoftmax",
        "fused",
    ],
)
def test_integers_in_a_formula_with_fractions_are_single_precision(dtype, op, of):
    values = [3, 20, 80]
    check(op(t(values, dtype)), of(np.array(values, np.float64)), SINGLE, 4e-6)


def test_bools_in_a_formula_with_fractions_are_single_precision():
    check(ops.exp(t([True, False], bool)), [math.e, 1], SINGLE)
    check(t([True, False, True], bool).mean(), 2 / 3, SINGLE)
    check(ops.sigmoid(t([True, False], bool)), [1 / (1 + math.exp(-1)), 0.5], SINGLE)


NORMALISED = [[-(3**-0.5)] * 3 + [3**0.5]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("weight", [SINGLE, np.float64])
def test_norms_of_integers(dtype, weight):
    x = t([[100, 100, 100, 120]], dtype)
    check(nn.LayerNorm1d(4, dtype=weight)(x), NORMALISED, weight, 1e-6)
    check(nn.BatchNorm1d(1, dtype=weight)(x.T), np.transpose(NORMALISED), weight, 1e-6)
    ones = ndl.Tensor(np.ones(4, dtype))
    check(ops.layer_norm(x, ones, ones * 0), NORMALISED, SINGLE, 1e-6)


def test_running_statistics_that_begin_as_integers_move_by_fractions():
    norm = nn.BatchNorm1d(1, dtype=np.int64)
    norm(t([[100.0], [120.0]], SINGLE))
    np.testing.assert_allclose(norm.running_mean.numpy(), [11], rtol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), [10.9], rtol=1e-6)


def test_the_loss_of_integer_logits():
    loss = nn.SoftmaxLoss()(t([[200, 100], [1, 2]], BYTE), ndl.Tensor([0, 1]))
    check(loss, math.log1p(math.exp(-1)) / 2, SINGLE)


def test_the_loss_of_labels_that_are_whole_floats():
    for labels in (SINGLE, np.float64, HALF):
        for logits in (BYTE, SINGLE):
            loss = nn.SoftmaxLoss()(t([[200, 100], [1, 2]], logits), t([0, 1], labels))
            check(loss, math.log1p(math.exp(-1)) / 2, SINGLE)


def test_dropout_of_integers():
    check(nn.Dropout(0.0)(t([5, 6], np.int64)), [5, 6], SINGLE)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
@pytest.mark.parametrize("other", [HALF, SINGLE, np.float64])
def test_beside_a_float_integers_take_its_dtype(dtype, other):
    whole, x = t([[1, 0], [1, 1]], dtype), t([[2, 3], [4, 5]], other)
    check(x + whole, [[3, 3], [5, 6]], other)
    check(whole * x, [[2, 0], [4, 5]], other)
    check(x - whole, [[1, 3], [3, 4]], other)
    check(whole - x, [[-1, -3], [-3, -4]], other)
    check(whole / x, [[0.5, 0], [0.25, 0.2]], other, 1e-3)
    check(x**whole, [[2, 1], [4, 5]], other)
    check(whole @ x, [[2, 3], [6, 8]], other)
    check(ops.linear(whole, x), [[2, 3], [6, 8]], other)
    check(ops.stack([whole, x])[0], [[1, 0], [1, 1]], other)
    image = ndl.Tensor(whole.numpy().reshape(1, 2, 2, 1))
    check(ops.conv(image, ndl.Tensor(x.numpy().reshape(2, 2, 1, 1))), [[[[11]]]], other)


def test_integers_among_themselves_stay_integers():
    x = t([250, 3], BYTE)
    for y, expected in [(x + x, [244, 6]), (x * x, [36, 9]), (-x, [6, 253]), (ops.relu(x), [250, 3]), (x**2, [36, 9])]:
        assert y.dtype == BYTE
        assert y.numpy().tolist() == expected
    assert x.sum().item() == 253
    assert x.max().dtype == BYTE
    for n in (1, ops._ZEROS):
        assert ops.relu(t([True, False] * n, bool)).dtype == bool


def test_integers_of_two_sizes_take_the_larger():
    small, large = t([1, 2], BYTE), t([300, 70_000], np.int64)
    for y in (large + small, small + large):
        check(y, [301, 70_002], np.int64)
    check(large * small, [300, 140_000], np.int64)
    check(ops.maximum(large, small), [300, 70_000], np.int64)


@pytest.mark.parametrize(
    ("mine", "its", "expected"),
    [
        (np.int8, BYTE, np.int16),
        (bool, BYTE, BYTE),
        (BYTE, bool, BYTE),
        (SINGLE, np.uint64, SINGLE),
        (HALF, np.uint32, HALF),
    ],
)
def test_what_is_subtracted_is_negated_in_the_dtype_of_the_result(mine, its, expected):
    a, b = t([1, 1], mine), t([200, 1] if its is not bool else [True, False], its)
    check(a - b, a.numpy().astype(expected) - b.numpy().astype(expected), expected)


@pytest.mark.parametrize("swap", [False, True])
def test_gradients_of_two_dtypes_add_up_in_the_larger_where_the_tensor_has_no_fractions(swap):
    x, parts = t([1, 2], np.int64), [t([0.1, 0.2], SINGLE), t([0.1, 0.2], np.float64)]
    first, second = reversed(parts) if swap else parts
    np.testing.assert_array_equal(
        both((x * first).sum() + (x * second).sum(), x), parts[0].numpy() + parts[1].numpy(), strict=True
    )


@pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=str)
def test_a_divisor_of_whole_numbers_gets_its_gradient_in_the_dtype_of_the_quotient(dtype):
    a, b = t([1, 3], dtype), t([4, 2], np.int64)
    (a / b).backward()
    check(a.grad, [0.25, 0.5], dtype)
    check(b.grad, [-0.0625, -0.75], dtype)


def test_limits_of_integers():
    x = t([250, 3], BYTE)
    check(x.clip(high=100), [100, 3], BYTE)
    check(x.clip(high=2.5), [2.5, 2.5], SINGLE)
    check(x.clip(np.int64(5), np.array([100])), [100, 5], BYTE)
    check(t([0.0, 9.0], SINGLE).clip(np.float32(0.5), np.array([2.5])), [0.5, 2.5], SINGLE)
    untouched = x.clip(-5, 300)
    assert not np.shares_memory(untouched.numpy(), x.numpy())


def test_numbers_alone_are_chosen_as_constants():
    y = ops.where(np.array([True, False]), 0.5, 1)
    check(y, [0.5, 1], SINGLE)
    assert not y.requires_grad
    assert not ops.maximum(1, np.array([0, 2])).requires_grad


def test_integers_that_are_compared_and_chosen_stay_integers():
    x = t([[250, 3], [7, 0]], BYTE)
    for y, expected in [
        (abs(x), [[250, 3], [7, 0]]),
        (x.min(0), [7, 0]),
        (x.clip(5, 100), [[100, 5], [7, 5]]),
        (x.clip(-5, 300), [[250, 3], [7, 0]]),
        (x.clip(low=-1), [[250, 3], [7, 0]]),
        (ops.maximum(x, 5), [[250, 5], [7, 5]]),
        (ops.minimum(5, x), [[5, 3], [5, 0]]),
        (ops.where(x > 4, x, 1), [[250, 1], [7, 1]]),
        (ops.stack([x[0], x[1]]), [[250, 3], [7, 0]]),
        (ops.concatenate([x, x], 1), [[250, 3, 250, 3], [7, 0, 7, 0]]),
        (x.flatten(), [250, 3, 7, 0]),
        (x.clone(), [[250, 3], [7, 0]]),
    ]:
        assert y.dtype == BYTE
        assert y.tolist() == expected
    assert abs(t([-3, 2], np.int8)).tolist() == [3, 2]
    assert abs(t([True, False], bool)).dtype == bool
    for y in (x.argmax(), x.argmin(1), t([0.5, 2], HALF).argmax()):
        assert y.dtype == np.int64
        assert not y.requires_grad
    check(ops.where(np.array([True, False]), 1, 2), [1, 2], np.int64)
    check(ops.where(np.array([True, False]), 1, 0.5), [1, 0.5], SINGLE)


@pytest.mark.parametrize("other", [HALF, SINGLE, np.float64])
def test_beside_a_float_integers_are_chosen_in_its_dtype(other):
    whole, x = t([1, 4], np.int64), t([2.5, 3], other)
    check(ops.maximum(whole, x), [2.5, 4], other)
    check(ops.minimum(x, whole), [1, 3], other)
    check(ops.where(x > 2.5, whole, x), [2.5, 4], other)
    check(ops.concatenate([whole, x]), [1, 4, 2.5, 3], other)
    for y in (ops.maximum(x, 0.1), x.clip(0.1, 9), ops.where(x > 0, x, 0.1), ops.minimum(np.float64(9), x)):
        check(y, [2.5, 3], other)
    for y in (ops.maximum(whole, 0.5), whole.clip(0.5), ops.where(whole > 0, whole, 0.5)):
        check(y, [1, 4], SINGLE)


def test_gradients_of_integers_that_are_chosen():
    x = t([3, 1, 3, 0], np.int64)
    check(ndl.Tensor(both(x.min() * 0.5, x)), [0, 0, 0, 0.5], SINGLE)
    check(ndl.Tensor(both((abs(x - 1) * 0.5).sum(), x)), [0.5, 0, 0.5, -0.5], SINGLE)
    check(ndl.Tensor(both((x.clip(1, 2) * 0.5).sum(), x)), [0, 0.5, 0, 0], SINGLE)
    check(ndl.Tensor(both((ops.maximum(x, 1) * 0.5).sum(), x)), [0.5, 0.25, 0.5, 0], SINGLE)
    check(ndl.Tensor(both((ops.where(x > 1, x, 7) * 0.5).sum(), x)), [0.5, 0, 0.5, 0], SINGLE)
    # a gradient of integers becomes one of fractions where it is shared or chosen
    check(ndl.Tensor(both(abs(x - 1).sum(), x)), [1, 0, 1, -1], SINGLE)
    check(ndl.Tensor(both(ops.maximum(x, 1).sum(), x)), [1, 0.5, 1, 0], SINGLE)
    check(ndl.Tensor(both(ops.where(x > 1, x, 7).sum(), x)), [1, 0, 1, 0], SINGLE)
    check(ndl.Tensor(both((ops.relu(x - 1) * 0.5).sum(), x)), [0.5, 0, 0.5, 0], SINGLE)
    check(ndl.Tensor(both((x.clip(1, 2) * 100.0).sum(), x)), [0, 100, 0, 0], SINGLE)
    check(ndl.Tensor(both((ops.concatenate([x, x]) * 0.5).sum(), x)), [1] * 4, SINGLE)
    check(ndl.Tensor(both(x.var(), x)), [0.625, -0.375, 0.625, -0.875], SINGLE)
    check(ndl.Tensor(both(ops.sqrt(x + 1).sum(), x)), [0.25, 8**-0.5, 0.25, 0.5], SINGLE)


@pytest.mark.parametrize(
    ("difference", "expected", "dtype"),
    [
        (lambda: t([0, 3], BYTE) - 1, [255, 2], BYTE),
        (lambda: t([0, 3], BYTE) - np.uint8(1), [255, 2], BYTE),
        (lambda: 1 - t([0, 3], BYTE), [1, 254], BYTE),
        (lambda: t([0, -3], np.int8) - (-128), [-128, 125], np.int8),
        (lambda: t([0, 3], SINGLE) - t([1, 1], BYTE), [-1, 2], SINGLE),
        (lambda: t([0, 3], np.int64) - t([1, 1], BYTE), [-1, 2], np.int64),
        (lambda: np.array([0, 3]) - t([1, 1], BYTE), [-1, 2], np.int64),
        (lambda: t([0, 3], np.int64) - np.array([1, 1], BYTE), [-1, 2], np.int64),
        (lambda: t([0, 3], BYTE) - t([1, 1], np.int64), [-1, 2], np.int64),
        (lambda: t([0, 3], SINGLE) - t([True, False], bool), [-1, 3], SINGLE),
        (lambda: 1 - t([True, False], bool), [0, 1], np.int64),
        (lambda: t([True, False], bool) - 1, [0, -1], np.int64),
        (lambda: 0.5 - t([5], BYTE), [-4.5], SINGLE),
    ],
    ids=range(13),
)
def test_differences_of_small_integers(difference, expected, dtype):
    check(difference(), expected, dtype)


def test_bools_are_not_subtracted():
    with pytest.raises(TypeError, match=r"bools cannot be subtracted: compare them with !="):
        t([True], bool) - t([True], bool)


def test_a_cast_passes_fractions_back_to_integers():
    x = t([1, 2], np.int64)
    check(ndl.Tensor(both((x.astype("float32") * 0.5).sum(), x)), [0.5, 0.5], SINGLE)


def test_a_cast_passes_gradients_back():
    x = t([1.5, 2.5], np.float64)
    check(ndl.Tensor(both((x.astype("int64") * 0.5).sum(), x)), [0.5, 0.5], np.float64)
    x = t([[1.5, 2.5]], np.float64)
    check(ndl.Tensor(both(x.astype("float32").sum(), x)), [[1, 1]], np.float64)


def test_gradients_of_powers_of_two_precisions():
    """As in the wider one: in float16 the exponent 0.1 - 1 would be off by 1e-4, and log 3 too."""
    for dtype, beside in ((SINGLE, HALF), (np.float64, HALF), (np.float64, SINGLE)):
        rtol = 2e-6 if dtype is SINGLE else 1e-12
        x, n = t([3.0], dtype), t([0.1], beside)
        power = n.item()
        y = x**n
        check(ndl.Tensor(both(y, x)), [power * 3 ** (power - 1)], dtype, rtol)
        check(ndl.Tensor(both(y, n)), [3**power * math.log(3)], beside, 5e-4)
        x, n = t([3.0], beside), t([0.1], dtype)
        power = n.item()
        y = x**n
        check(ndl.Tensor(both(y, n)), [3**power * math.log(3)], dtype, rtol)
        check(ndl.Tensor(both(y, x)), [power * 3 ** (power - 1)], beside, 5e-4)


def test_gradients_beside_and_of_integers():
    x = t([20], BYTE)
    check(ndl.Tensor(both(x**3 * 1.0, x)), [1200], SINGLE)
    check(ndl.Tensor(both(x**0 * 2.5, x)), [0], SINGLE)
    x, n = t([1.0, 2.0], SINGLE), t([2, 0], np.int64)
    check(ndl.Tensor(both((x**n).sum(), n)), [0, math.log(2)], SINGLE)
    check(ndl.Tensor(both((n**n).sum(), n)), [4 + 4 * math.log(2), 0], SINGLE)
    wide, n = t([1.0], np.float64), t([2**24 + 1], np.int64)
    check(ndl.Tensor(both(wide / n, wide)), [1 / (2**24 + 1)], np.float64, 1e-12)
    n = t([2, 3], BYTE)
    check(ndl.Tensor(both((x / n).sum(), n)), [-1 / 4, -2 / 9], SINGLE)
    n = t([[200, 201]], BYTE)
    p = 1 / (1 + math.exp(-1))
    check(ndl.Tensor(both(nn.SoftmaxLoss()(n, ndl.Tensor([0])), n)), [[-p, p]], SINGLE)
    check(ndl.Tensor(both(ops.logsumexp(n), n)), [[1 - p, p]], SINGLE)
    layer = nn.Sequential(nn.Tanh(), nn.Linear(2, 3), nn.LayerNorm1d(3))
    float_x, n = t([[1, 0]], SINGLE), t([[1, 0]], BYTE)
    np.testing.assert_array_equal(both(layer(n)[0, 0], n), both(layer(float_x)[0, 0], float_x))


def test_ties_of_integers_share_the_gradient():
    x = t([3, 1, 3], np.int64)
    check(ndl.Tensor(both(x.max(), x)), [0.5, 0, 0.5], SINGLE)


def test_the_gradient_of_a_logsumexp_of_large_integers():
    x, p = t([10_000, 10_001], np.int64), 1 / (1 + math.exp(-1))
    check(ndl.Tensor(both(ops.logsumexp(x), x)), [1 - p, p], SINGLE, 1e-3)


@pytest.mark.parametrize("product", [ops.matmul, ops.linear])
def test_gradients_of_products_of_integers(product):
    many = 2**24 + 1  # one more than float32 can count
    x, w = t([[many]], np.int64), t([[1]], np.float64)
    check(ndl.Tensor(both(product(x, w).sum(), w)), [[many]], np.float64, 0)
    for weights in (np.int64, HALF):
        x, w = t([[1, -1]], np.int64), t([[300], [301]], weights)
        y = product(x, w) * t([[400]], HALF)  # the gradient of x is out of its range
        check(y, [[-400]], HALF)
        check(ndl.Tensor(both(y, x)), [[120_000, 120_400]], SINGLE, 0)


def test_a_wider_bias_makes_a_wider_sum(monkeypatch):
    monkeypatch.setattr(ops, "_warned", True)  # of float64
    little = 2.0**-12
    for bias, dtype in ((SINGLE, SINGLE), (np.float64, np.float64), (HALF, HALF)):
        y = ops.linear(t([[1]], HALF), t([[1]], HALF), t([little], bias))
        check(y, [[1 + little * (dtype is not HALF)]], dtype, 0)
    x, w = t([[1, 1]], SINGLE), t([[1, 0, 100], [2.0**-30, 0, 0]], SINGLE)
    check(ops.linear(x, w, t([[2.0**-40, 0, 0]], np.float64)), [[1 + 2.0**-30 + 2.0**-40, 0, 100]], np.float64, 0)
    x, w = t([[1, 1]], np.int64), t([[1, 0, 100], [3, 0, 0]], np.int64)
    check(ops.linear(x, w, t([0.5, 0, 0], SINGLE)), [[4.5, 0, 100]], SINGLE, 0)


@pytest.mark.parametrize("op", [ops.BatchNorm, ops.LayerNorm])
@pytest.mark.parametrize(
    "dtypes",
    ["f4 f4 f8", "f4 f8 f4", "f8 f4 f4", "f4 i8 f4", "i8 i8 f4", "i8 f4 f8", "f2 f2 f4", "f2 f4 f2", "f4 f2 f2"],
)
def test_norms_of_operands_of_several_dtypes(op, dtypes):
    of_x, of_w, of_b = map(np.dtype, dtypes.split())
    far = 10_000 if "f8" in dtypes else 100  # from zero, or float32 would do as well as float64
    x = ndl.Tensor((np.array([[0, 1.1], [3.3, 2.2], [7.7, 5.5]]) + far).astype(of_x))
    w, b = ndl.Tensor(np.array([2, 3], of_w)), ndl.Tensor(np.array([0.1, 0.7]).astype(of_b))
    g = np.array([[1, 0.5], [-2, 3], [0.25, 1]])
    y = op()(x, w, b)
    wide = [ndl.Tensor(p.numpy().astype(np.float64)) for p in (x, w, b)]
    exact = op()(*wide)
    dtype = np.result_type(*(d for d in (of_x, of_w, of_b) if d.kind == "f"))
    check(y, exact.numpy(), dtype, {np.float64: 1e-10, SINGLE: 2e-4, HALF: 1e-3}[dtype.type])
    if dtype == np.float64:
        exact.backward(ndl.Tensor(g))
        for p, q in zip((x, w, b), wide, strict=True):
            tolerance = 1e-6 if p.dtype == SINGLE else 1e-10
            np.testing.assert_allclose(both(y, p, ndl.Tensor(g)), q.grad.numpy(), rtol=tolerance, atol=1e-9)


def test_a_tensor_of_strings_is_made_by_no_cast():
    with pytest.raises(TypeError, match="cast: a Tensor holds real numbers or bools, but got dtype <U3"):
        t([1], np.int64).astype("U3")


# -------------------------------------------------------------------------------------------------- half precision


def test_sums_and_means_in_half_precision():
    ones = ndl.Tensor(np.ones((20_000, 3), HALF))
    check(ones.sum(0), [20_000] * 3, HALF)  # counted in float16, it stops at 2,048
    check(ndl.Tensor(np.full((2_000, 3), 0.1, HALF)).sum(0), [2_000 * float(HALF(0.1))] * 3, HALF, 1e-3)
    check(ndl.Tensor(np.ones((2_000, 100), HALF)).mean(), 1, HALF)  # the sum is out of range
    check(ops.logsumexp(ndl.Tensor(np.zeros(70_000, HALF))), math.log(70_000), HALF, 1e-3)
    check(ops.logsoftmax(ndl.Tensor(np.zeros((1, 70_000), HALF)))[0, 0], -math.log(70_000), HALF, 1e-3)
    loss = nn.SoftmaxLoss()(ndl.Tensor(np.zeros((70_000, 2), HALF)), ndl.Tensor(np.zeros(70_000, BYTE)))
    check(loss, math.log(2), HALF, 1e-3)


def test_variances_in_half_precision():
    x = (600 + 300 * (np.arange(4_000) % 2)).astype(HALF)  # the sum, the squares and their sum are out of range
    check(ndl.Tensor(x).var(), 22_500, HALF, 1e-3)
    x = ndl.Tensor(np.array([[700, 100]], HALF))
    with np.errstate(over="ignore"):
        assert np.isinf(x.var().item())  # 90,000, which float16 does not have
    check(ndl.Tensor(both((x / 100).var(1), x)), [[0.03, -0.03]], HALF, 1e-3)
    check(ops.sqrt(t([6e4, 1e-7], HALF)), [244.9, 3.45e-4], HALF, 2e-3)


def test_norms_in_half_precision():
    x = (200 + np.arange(512) % 2).astype(HALF)  # the sum of a row is out of range
    expected = np.where(np.arange(512) % 2, 1, -1)
    check(nn.LayerNorm1d(512, dtype=HALF)(ndl.Tensor(x)), expected, HALF, 1e-3)
    norm = nn.BatchNorm1d(1, dtype=HALF)
    check(norm(ndl.Tensor(x[:, None])), expected[:, None], HALF, 1e-3)
    check(norm.running_mean, [20.05], HALF, 1e-3)
    check(nn.LayerNorm1d(512)(ndl.Tensor(x)), expected, SINGLE, 1e-4)


def test_products_in_half_precision():
    a, b = np.full((2, 1, 20_000), 0.1, HALF), np.full((2, 20_000, 1), 0.1, HALF)
    expected = 20_000 * float(HALF(0.1)) ** 2
    check(ndl.Tensor(a) @ ndl.Tensor(b), np.full((2, 1, 1), expected), HALF, 1e-3)
    check(ndl.Tensor(a[0]) @ ndl.Tensor(b[0]), [[expected]], HALF, 1e-3)
    check(
        ops.linear(ndl.Tensor(a[0]), ndl.Tensor(b[0]), ndl.Tensor(np.array([[0.5]], HALF))),
        [[expected + 0.5]],
        HALF,
        1e-3,
    )
    many = ndl.Tensor(np.full((1, 3, 3, 4_000), 0.1, HALF))
    kernel = ndl.Tensor(np.full((3, 3, 4_000, 1), 0.1, HALF))
    check(ops.conv(many, kernel), [[[[36_000 * float(HALF(0.1)) ** 2]]]], HALF, 1e-3)


def test_gradients_in_half_precision():
    x = ndl.Tensor(np.array([2000, 2001], HALF))
    p = 1 / (1 + math.exp(-1))
    check(ndl.Tensor(both(ops.logsumexp(x), x)), [1 - p, p], HALF, 1e-3)  # log(sum) itself is rounded to 2002
    x = ndl.Tensor(np.array([[2000, 2001]], HALF))
    check(ndl.Tensor(both(nn.SoftmaxLoss()(x, ndl.Tensor([0])), x)), [[-p, p]], HALF, 1e-3)
    check(ndl.Tensor(both(ops.logsoftmax(x)[0, 0], x)), [[p, -p]], HALF, 1e-3)
    x = ndl.Tensor(np.ones(3, HALF))
    check(ndl.Tensor(both(x[np.zeros(4_000, int)].sum(), x)), [4_000, 0, 0], HALF)
    x = ndl.Tensor(np.ones((1, 2), HALF))
    check(ndl.Tensor(both((x + ndl.Tensor(np.zeros((4_000, 2), HALF))).sum(), x)), [[4_000] * 2], HALF)
    rows = ndl.Tensor(np.ones((4_000, 3), HALF), requires_grad=False)
    weight, bias = ndl.Tensor(np.ones((3, 2), HALF)), ndl.Tensor(np.ones((1, 2), HALF))
    y = ops.linear(rows, weight, bias).sum()
    check(ndl.Tensor(both(y, weight)), np.full((3, 2), 4_000), HALF)
    check(ndl.Tensor(both(y, bias)), [[4_000] * 2], HALF)


def test_the_gradient_of_a_norm_in_half_precision_is_that_in_single_precision():
    rng = np.random.default_rng(0)
    for dim, norm in ((64, nn.LayerNorm1d), (8, nn.BatchNorm1d)):
        values = (rng.standard_normal((512, dim)) * 2 + 150).astype(HALF)
        cotangent = rng.standard_normal((512, dim)).astype(HALF)
        found = []
        for dtype in (HALF, SINGLE):
            x = ndl.Tensor(values.astype(dtype))
            found.append(both(norm(dim, dtype=dtype)(x), x, ndl.Tensor(cotangent.astype(dtype))))
        assert found[0].dtype == HALF
        np.testing.assert_allclose(found[0].astype(SINGLE), found[1], rtol=1e-3, atol=1e-4)


def test_clipping_float16_scales_by_a_factor_with_all_its_digits():
    p = ndl.nn.Parameter(np.zeros(3, np.float16))
    g = np.array([0.75, 500, -1000], np.float16)
    p.grad = ndl.Tensor(g, requires_grad=False)
    norm = ndl.optim.SGD([p]).clip_grad_norm(0.0017)
    right = g.astype(np.float64) * (0.0017 / (norm + 1e-6))
    assert p.grad.dtype == np.float16
    assert (abs(p.grad.numpy() - right) <= 2.0**-11 * abs(right) + 2.0**-25).all(), (
        "in float16 the factor is 1.5e-6, of a few digits"
    )


def test_the_gradient_of_a_softmax_in_half_precision():
    x = ndl.Tensor(np.zeros((1, 2), HALF))
    g = ndl.Tensor(np.array([[2000, 2001]], HALF))  # their mean is no float16
    check(ndl.Tensor(both(ops.softmax(x), x, g)), [[-0.25, 0.25]], HALF)


def test_the_gradient_of_a_logsoftmax_in_half_precision():
    x = ndl.Tensor(np.zeros((1, 4_000), HALF))
    g = np.where(np.arange(4_000) % 2, 200, 0)[None]  # the sum is out of range
    check(ndl.Tensor(both(ops.logsoftmax(x), x, ndl.Tensor(g.astype(HALF)))), g - 100, HALF, 1e-3)
    x = ndl.Tensor(np.array([[0, 5, 5, 5, 5]], HALF))
    p = 1 / (1 + 4 * math.exp(5))  # of whose logarithm float16 has three digits
    check(ndl.Tensor(both(ops.logsoftmax(x)[0, 1], x))[0, 0], -p, HALF, 6e-4)


@pytest.mark.parametrize(("op", "shape"), [(ops.BatchNorm, (2049, 1)), (ops.LayerNorm, (1, 2049))])
def test_the_gradient_of_a_norm_of_more_than_half_precision_can_count(op, shape):
    values, g = (np.arange(2049) % 7).reshape(shape), (1000 + np.arange(2049) % 2).reshape(shape)
    found = []
    for dtype in (HALF, SINGLE):
        x, weight, bias = t(values, dtype), ndl.ones(shape[1], dtype=dtype), ndl.zeros(shape[1], dtype=dtype)
        found.append(both(op()(x, weight, bias), x, t(g, dtype)).astype(SINGLE))
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("x_dtype", [HALF, SINGLE, "float64", "int32"])
@pytest.mark.parametrize("weight_dtype", [HALF, SINGLE, "float64", "int64"])
def test_a_linear_has_the_dtype_of_product_and_sum_whatever_its_bias(monkeypatch, x_dtype, weight_dtype):
    """An integer bias takes the dtype of the product. A wider bias is no reason to warn of float64 data."""
    double = x_dtype == "float64" and weight_dtype == SINGLE
    monkeypatch.setattr(ops, "_warned", double)
    for bias_dtype in ("bool", "int16", "int32", "int64", HALF, SINGLE, "float64"):
        x, weight, bias = t([[1, 2]], x_dtype), t([[3, 0, 1], [4, 1, 2]], weight_dtype), t([[0, 1, 1]], bias_dtype)
        y, apart = ops.linear(x, weight, bias), (x @ weight) + bias
        assert y.dtype == apart.dtype, bias_dtype
        assert y.tolist() == apart.tolist() == [[11, 3, 6]]
        if y.requires_grad:
            y.sum().backward()
            for operand in (x, weight, bias):
                if operand.dtype.kind == "f":
                    assert operand.grad.dtype == operand.dtype
    assert ops._warned is double


def test_a_linear_of_integers_and_a_float_adds_up_as_floats_do():
    """All three operands have the dtype of the result from the start: a product of bools is no bool, and one in half precision is rounded once."""
    counted = ops.linear(t([[1, 1, 1]], bool), t([[1], [1], [1]], bool), t([0.5], SINGLE))
    check(counted, [[3.5]], SINGLE, 0)
    check(ops.linear(t([[200, 200]], BYTE), t([[1], [1]], BYTE), t([0.5], SINGLE)), [[400.5]], SINGLE, 0)
    for weight in (HALF, "int64"):  # 2,049 is no number of half precision, 2,050 is one
        check(ops.linear(t([[2048, 1]], HALF), t([[1], [1]], weight), t([1], HALF)), [[2050]], HALF, 0)


def test_a_linear_of_many_integers_and_a_wider_bias():
    x, weight = np.arange(40).reshape(8, 5), np.arange(35).reshape(5, 7)
    for dtypes, bias_dtype in [(("int64", BYTE), SINGLE), ((bool, bool), HALF), ((SINGLE, SINGLE), np.float64)]:
        left, right = x.astype(dtypes[0]), weight.astype(dtypes[1])
        bias = np.arange(7) / 4
        exact = left.astype(np.float64) @ right.astype(np.float64) + bias
        check(ops.linear(t(left, dtypes[0]), t(right, dtypes[1]), t(bias, bias_dtype)), exact, bias_dtype, 0)


@pytest.mark.parametrize("dtype", [HALF, SINGLE, np.float64])
def test_the_gradient_of_an_integer_kernel_has_the_dtype_of_the_images(dtype):
    images, kernel = t(np.ones((1, 3, 3, 1)), dtype), t(np.ones((2, 2, 1, 1)), np.int64)
    check(ndl.Tensor(both(ops.conv(images, kernel).sum(), kernel)), np.full((2, 2, 1, 1), 4), dtype)
    images, kernel = t(np.ones((1, 2, 2, 1)), np.int64), t(np.ones((2, 2, 1, 1)), dtype)
    check(ndl.Tensor(both(ops.conv(images, kernel).sum(), images)), np.ones((1, 2, 2, 1)), dtype)


def test_the_gradient_of_images_in_half_precision_is_rounded_once():
    images = t(np.ones((1, 3, 3, 1)), HALF)
    kernel = t([[2048, 1], [1, 0]], HALF).reshape((2, 2, 1, 1))
    found = both(ops.conv(images, kernel).sum(), images)[0, :, :, 0]
    np.testing.assert_array_equal(found, [[2048, 2048, 1], [2048, 2050, 1], [1, 1, 0]])


def test_the_gradient_of_a_loss_in_half_precision_is_rounded_once():
    """A share of 1 / 3,000 in half precision has ten digits, and so has what is made of it."""
    values = np.linspace(-3, 3, 6_000).reshape(3_000, 2)
    labels = ndl.Tensor(np.arange(3_000) % 2)
    found = []
    for dtype in (HALF, SINGLE):
        x = t(values.astype(HALF), dtype)
        found.append(both(nn.SoftmaxLoss()(x, labels) * 3, x))
    np.testing.assert_array_equal(found[0], found[1].astype(HALF))


def unpickled(array):
    return pickle.loads(pickle.dumps(array))  # whose dtype is another object


def swapped(array):
    return array.astype(array.dtype.newbyteorder())


@pytest.mark.parametrize("foreign", [unpickled, swapped])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "bool"])
def test_a_dtype_is_numpys_own_wherever_numbers_come_from(foreign, dtype):
    """Ops ask for it by identity."""
    a = foreign(np.ones((2, 3), dtype))
    assert a.dtype is not np.dtype(dtype) or dtype == "bool"
    dataset = ndl.data.NDArrayDataset(a, np.zeros(2, "int64"))
    (batch,) = [x for x, _ in ndl.data.DataLoader(dataset, batch_size=2)]
    floats = ndl.Tensor(np.ones((2, 3)))
    found = [
        *(
            ndl.Tensor(a),
            ndl.Tensor(np.ones(2), dtype=a.dtype),
            batch,
            ndl.maximum(ndl.Tensor(a), a),
            ndl.Tensor(a) * a,
        ),
        *(
            floats.astype(a.dtype),
            ndl.ones(2, dtype=a.dtype),
            ndl.init.rand(2, dtype=a.dtype),
            pickle.loads(pickle.dumps(ndl.Tensor(a))),
        ),
        copy.deepcopy(ndl.Tensor(a)),
    ]
    assert [t.dtype for t in found if t.dtype is not np.dtype(dtype)] == []
    for t in (found[0], batch):
        np.testing.assert_array_equal(t.numpy(), np.ones((2, 3)))


@pytest.mark.parametrize("foreign", [unpickled, swapped])
def test_half_precision_from_elsewhere_adds_up_in_single(foreign):
    zeros = ndl.Tensor(foreign(np.zeros(70_000, "float16")))
    assert ops.logsumexp(zeros).item() == np.float16(math.log(70_000))
    assert ndl.Tensor(foreign(np.ones((2000, 100), "float16"))).mean().item() == 1


@pytest.mark.parametrize("made", [unpickled, copy.deepcopy, lambda model: model], ids=["pickle", "deepcopy", "load"])
def test_an_unpickled_model_goes_on_with_the_same_plan(made):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    state = {name: unpickled(array) for name, array in model.state_dict().items()}
    other = made(model)
    other.load_state_dict(state)
    x = ndl.Tensor(np.ones((2, 3), "float32"))
    model(x), other(x)
    assert {p.dtype is np.dtype("float32") for p in other.parameters()} == {True}
    assert other._plan.code.widths == model._plan.code.widths == (3,)
