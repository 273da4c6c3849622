"""What the tests' bounds promise: no order of a sum is outside, an error of some roundings is."""

import numpy as np
import pytest
from rounding import Rounded, U, within

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 7)).astype("float32")
W = RNG.standard_normal((7, 5)).astype("float32")


def one_after_the_other(a):
    total = np.zeros_like(a[0])
    for row in a:
        total = total + row
    return total


def in_blocks(a):
    return np.stack([one_after_the_other(a[i : i + 8]) for i in range(0, len(a), 8)]).sum(0)


@pytest.mark.parametrize(
    "add_up",
    [one_after_the_other, lambda a: one_after_the_other(a[::-1]), in_blocks, lambda a: np.ones(len(a), "float32") @ a,
     lambda a: a.astype(float).sum(0).astype("float32")],
    ids=["forwards", "backwards", "blocks", "BLAS", "float64"],
)  # fmt: skip
@pytest.mark.parametrize("offset", [0, 1000])
def test_no_order_of_a_sum_is_outside(add_up, offset):
    x = X + np.float32(offset)
    within(add_up(x), Rounded(x).sum(0))
    within(add_up(x) / np.float32(50), Rounded(x).mean(0))
    products = x[:, :, None] * W
    within(np.stack([add_up(np.ascontiguousarray(p)) for p in products]), Rounded(x) @ Rounded(W))


def test_whole_numbers_have_one_sum_and_anything_else_is_noticed():
    x = RNG.integers(-100, 100, (50, 7)).astype("float32")
    expected = Rounded(x).sum(0)
    assert not expected.error.any()
    within(x.sum(0), expected)
    assert not Rounded(x * 2.0**-9).sum(0).error.any()
    assert Rounded(x + np.float32(2.0**20)).sum(0).error.all(), "50 · 2²⁰ has no room for the last bit"
    assert not (Rounded(x) @ Rounded(np.ones((7, 2)))).error.any()
    with pytest.raises(AssertionError):
        within(np.nextafter(x.sum(0), np.float32(1e9)), expected)


@pytest.mark.parametrize(
    ("compute", "bound"),
    [
        (lambda x: x / np.float32(3) - x, lambda x: x / 3 - x),
        (lambda x: (x * x + np.float32(0.1)) ** np.float32(0.5), lambda x: (x * x + 0.1).sqrt()),
        (np.exp, Rounded.exp),
        (lambda x: np.log(np.abs(x)), lambda x: Rounded(np.abs(x.value)).log()),
        (lambda x: x @ W, lambda x: x @ Rounded(W)),
        (lambda x: x - x.mean(0), lambda x: x - x.mean(0)),
    ],
    ids=["divide", "root", "exp", "log", "matmul", "centred"],
)
def test_float32_is_inside_and_a_hundred_roundings_are_outside(compute, bound):
    expected = bound(Rounded(X))
    within(compute(X), expected)
    assert np.median(expected.error / (U * np.abs(expected.value))) < 100
    with pytest.raises(AssertionError, match="times what any order explains"):
        within(compute(X) * np.float32(1 + 200 * U), expected)


def test_a_wrong_shape_does_not_pass_by_broadcasting():
    with pytest.raises(AssertionError):
        within(np.zeros((1, 3)), Rounded(np.zeros(3), 1.0))


def test_nan_is_outside():
    with pytest.raises(AssertionError):
        within(np.full(3, np.nan), Rounded(np.zeros(3), 1.0))
