"""Arrays with error bounds: float32 stays within them, and a little more than that does not."""

import numpy as np
import pytest

from oracle.operations import OPERATIONS
from oracle.operations.bounds import LIMIT, Bounded, BoundTape
from oracle.operations.tape import TINY, U, Var


def softmax(x):
    e = np.exp(np.minimum(x - x.max(axis=-1, keepdims=True), 0))
    return e / e.sum(axis=-1, keepdims=True)


FORMULAS = {
    "+ - * /": lambda a, b: (a + b) * a - a / (b * b + 1.5),
    "sum": lambda a, b: (a * b).sum(axis=-1) / 3,
    "matmul": lambda a, b: np.matmul(a * 1.1, np.swapaxes(b - a, -1, -2)),
    "exp, log": lambda a, b: np.log(np.exp(a) + np.exp(-np.abs(b))),
    "log1p": lambda a, b: np.log1p(np.exp(-np.abs(a))) + np.maximum(a * b, 0),
    "tanh": lambda a, b: 1 - np.tanh(a) * np.tanh(b),
    "sqrt": lambda a, b: a / np.sqrt((b * b).sum(axis=-1, keepdims=True) + 1e-5),
    "power": lambda a, b: np.abs(a) ** 2.5 + (b * b / 100 + 0.1) ** np.tanh(a),
    "where": lambda a, b: np.where(np.asarray(a) >= 0 if isinstance(a, np.ndarray) else a >= 0, a * b, a / 3),
    "softmax": lambda a, b: softmax(a * 30) * b,
    "moved": lambda a, b: np.stack([np.flip(a * b, 1), np.broadcast_to((a + b)[:1], (7, 5))], 1).reshape(-1)[3:],
}  # fmt: skip


def operands(seed):
    rng = np.random.RandomState(seed)
    size = rng.choice([1e-3, 1.0, 30.0]) if seed % 2 else 1.0
    return [(rng.standard_normal((7, 5)) * size).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize("name", FORMULAS)
def test_float32_is_within_the_bound_and_the_bound_is_not_idle(name):
    largest = 0.0
    for seed in range(40):
        ours = operands(seed)
        right = FORMULAS[name](*(Bounded(x.astype(np.float64)) for x in ours))
        with np.errstate(under="ignore"):
            found = FORMULAS[name](*ours)
        assert found.dtype == np.float32
        assert np.array_equal(right.v, FORMULAS[name](*(x.astype(np.float64) for x in ours))), "not the same value"
        assert np.isfinite(right.error).all()
        share = np.abs(found - right.v) / (LIMIT * right.error + TINY)
        largest = max(largest, float(share.max()))
    assert largest < 1
    assert largest > 0.02, "a bound that no rounding comes near to finds nothing"


@pytest.mark.parametrize("name", FORMULAS)
def test_an_error_of_an_operand_is_passed_on(name):
    """What a formula makes of an operand that is off by as much as its bound says stays within the bound."""
    a, b = (x.astype(np.float64) for x in operands(2))
    off = 1e-5 * np.abs(a)
    bound = FORMULAS[name](Bounded(a, off), Bounded(b)).error
    moved = [np.abs(FORMULAS[name](a + s * off, b) - FORMULAS[name](a, b)) for s in (1, -1, 0.5)]
    assert (np.max(moved, axis=0) <= LIMIT * bound).all()
    assert np.max(moved) > 10 * U, "an error that rounding hides shows nothing"


@pytest.mark.parametrize(
    "formula",
    [np.sin, np.cumsum, np.argmax, lambda x: x > 0, lambda x: x % 2, lambda x: np.add.reduce(x), np.median, np.sign],
    ids=["sin", "cumsum", "argmax", ">", "%", "reduce", "median", "sign"],
)
def test_what_has_no_bound_is_an_error(formula):
    with pytest.raises(TypeError):
        formula(Bounded(np.ones((2, 3))))


def test_what_underflows_may_be_lost_before_it_is_scaled_up():
    small = np.full((1, 1, 1, 1), 1e-30)
    for lost in (
        Bounded(small) * small,
        np.matmul(Bounded(small), Bounded(small)),
        np.exp(Bounded(small * -1e32)),
        Bounded(small) / 1e30,
        Bounded(small) ** 2.0,
        Bounded(small) ** 1.5,
    ):
        scaled = lost * 1e30
        assert (scaled.v <= LIMIT * scaled.error).all(), "0 · 1e30 is right too"
        assert (scaled.error < 1e-6).all()


def test_a_divisor_that_may_be_zero_has_no_bound():
    with np.errstate(divide="ignore"):
        x = Bounded(np.array([1.0, 2.0])) / Bounded(np.array([1e-3, 1.0]), np.array([1e-3, 1e-3]))
    assert np.isinf(x.error[0])
    assert x.error[1] < 0.01
    known = Bounded(np.array([1.0])) / Bounded(np.array([1e-3]), np.array([1e-3]), low=1e-4)
    assert np.isfinite(known.error).all()


def test_the_variance_of_values_far_from_zero_is_known_well():
    """The mean is off by as much as the values vary; its error cancels."""
    x = (1e4 + np.random.RandomState(0).standard_normal((1, 1, 64, 3))).astype(np.float32).astype(np.float64)
    t = BoundTape()
    mean = t.noisy(x).sum(axis=2, keepdims=True) / 64
    centred = t.noisy(x) - mean
    assert (mean.error > 0.01).all()
    plain, better = (centred * centred).sum(axis=2, keepdims=True) / 64, t.variance(x, centred, mean, (2,))
    assert np.allclose(plain.v, better.v)
    assert (better.error < plain.error / 20).all()


def test_the_tape_adds_no_noise_and_counts_what_falls_on_the_same_place():
    t = BoundTape()
    x = Bounded(np.ones((1, 1, 4)))
    y = t.scattered(x, (2,), (np.array([0, 0, 0, 1]),))
    assert np.array_equal(y.v[0, 0], [3, 1])
    assert (y.error[0, 0] >= [3 * U, U]).all()
    out = t.emit(t.noisy(np.ones((1, 1, 2))) * 3.0, (v := Var(np.ones((1, 1, 2))),), lambda g: (t.noisy(g) * 3.0,))
    t.backward([(out, np.ones((1, 1, 2)))])
    assert isinstance(v.adjoint, Bounded)
    assert (t.constant(0.1, (1, 2)).error > 0).all()


def test_the_bias_of_a_linear_may_be_the_first_term_of_its_sum():
    """Beside small products each of them is rounded as part of the bias."""
    largest = {"in the sum": 0.0, "added last": 0.0}
    for seed in range(20):
        rng = np.random.RandomState(seed)
        x, w, b = (
            rng.standard_normal(shape).astype(np.float32) * np.float32(scale)
            for shape, scale in (((9, 64), 0.01), ((64, 3), 0.1), ((3,), 0.3))
        )
        t = BoundTape()
        right = OPERATIONS["linear"].definition(t, *(Var(v[None, None].astype(np.float64)) for v in (x, w, b))).value
        summed = np.broadcast_to(b, (9, 3))
        for i in range(64):
            summed = summed + x[:, i : i + 1] * w[i]
        for how, found in (("in the sum", summed), ("added last", x @ w + b)):
            assert found.dtype == np.float32
            share = np.abs(found - right.v[0, 0]) / (LIMIT * right.error[0, 0])
            largest[how] = max(largest[how], float(share.max()))
    assert max(largest.values()) < 1
    assert largest["in the sum"] > 0.02
    assert (right.error > x.shape[1] * U * np.abs(b) / 2).all()
    assert (right.error < 2 * x.shape[1] * U * (np.abs(b) + np.abs(x) @ np.abs(w))).all()
