"""The definitions are right: against central differences, and whole models against torch float64."""

import dataclasses

import numpy as np
import pytest

import needle
from oracle.blame import judged
from oracle.cases import case as c
from oracle.cases import strategies
from oracle.cases.strategies import op_cases
from oracle.operations import OPERATIONS, elementwise
from oracle.operations import tape as d
from oracle.rules import compare as cmp
from oracle.rules.single_op import op_truth
from oracle.runs.draws import draw


def differences(f, x, g, step=1e-6):
    """Central differences of <f(x), g>."""
    out = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        out[i] = ((f(up) - f(down)) * g).sum() / (2 * step)
    return out


def _drawn(strategy, count):
    from hypothesis import HealthCheck, Phase, given, seed, settings

    cases = []

    @seed(0)
    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(case):
        cases.append(case)

    collect()
    return cases


NO_GRADIENT = {"where": {0}}  # by contract: the condition


def _ordinary(case):
    away = strategies.FAR if OPERATIONS[case.op].values == "far" else 0.0
    numbers = [v if isinstance(v, str) else v - away for o in case.operands for v in o.values]
    # far from the kinks of relu and max, and of a size at which differences mean something
    return (
        numbers
        and len(numbers) <= 60
        and all(isinstance(v, float) and 1e-2 < abs(v) < 5 for v in numbers)
        and (case.op not in ("maximum", "minimum", "picked") or len(set(numbers)) == len(numbers))
        and not (case.op == "clip" and set(numbers) & set(case.attributes.values()))
    )


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_vjp_is_the_derivative_of_its_forward(name):
    found = [case for case in _drawn(op_cases([name]), 60) if _ordinary(case)]
    assert found, f"no ordinary case of {name} was drawn"
    for case in found[-4:]:
        check_vjps(case)


def check_vjps(case):
    value, grads = op_truth(case, None)
    g = case.cotangent_array.astype(np.float64)
    arrays = [o.array.astype(np.float64) for o in case.operands]
    attributes = dict(case.attributes)
    if "labels" in attributes:
        attributes["labels"] = np.asarray(attributes["labels"])[None]

    def forward(i, x):
        operands = [d.Var((x if j == i else a)[None, None]) for j, a in enumerate(arrays)]
        return OPERATIONS[case.op].definition(d.Tape(None), *operands, **attributes).value[0, 0]

    assert value.shape[2:] == case.result_shape
    flows = set(range(len(arrays))) - NO_GRADIENT.get(case.op, set()) - set(case.constants)
    assert set(grads) == {f"operand {i}" for i in flows}
    for i, x in enumerate(arrays):
        if i in case.constants:
            continue
        expected = differences(lambda v, i=i: forward(i, v), x, g)
        if i not in flows:
            assert not expected.any(), c.describe(case)
            continue
        found = grads[f"operand {i}"][0, 0]
        assert found.shape == expected.shape
        none = np.isnan(expected)  # the logarithm of a negative base
        assert (np.isnan(found) == none).all(), c.describe(case)
        found, expected = np.where(none, 0, found), np.where(none, 0, expected)
        assert np.abs(found - expected).max(initial=0) <= 1e-6 * max(1, np.abs(expected).max(initial=0)), c.describe(
            case
        )


def test_replica_0_is_exact_and_the_others_differ_by_roundings():
    x = np.linspace(1, 2, 12).reshape(1, 1, 3, 4)
    tape = d.Tape(d.Noise(1))
    noisy = tape.noisy(x)
    assert noisy.shape == (d.REPLICAS, 1, 3, 4)
    assert np.array_equal(noisy[0], x[0])
    relative = np.abs(noisy[1:] / x - 1)
    assert relative.min() > 0
    assert relative.max() <= 2 * d.U * (1 + 1e-9)
    assert relative.max() > 1.5 * d.U, "the noise must reach its amplitude"
    assert np.array_equal(noisy, d.Tape(d.Noise(1)).noisy(x)), "the same seed gives the same noise"


def test_more_noise_than_there_is_in_the_pool_is_independent_too():
    x = np.ones((1, 1, 512, 512))  # of which a pool has four, so that laps would line up
    off = d.Tape(d.Noise(1 << 19)).noisy(x)[1:, 0] - 1
    assert 1.5 * d.U < np.abs(off).max() <= 2 * d.U * (1 + 1e-9)
    for axis in (1, 2):  # what a sum over rows or columns of each replica makes of it
        sums = off.sum(axis)
        assert np.std(sums) == pytest.approx(np.std(off) * off.shape[axis] ** 0.5, rel=0.05)
    apart = np.corrcoef(off.reshape(d.REPLICAS - 1, -1)) - np.eye(d.REPLICAS - 1)
    assert np.abs(apart).max() < 0.02


@pytest.mark.parametrize(
    "layers",
    [
        (c.Linear(3), c.ReLU(), c.Linear(2, bias=False)),
        (c.BatchNorm(), c.Linear(2)),
        (c.LayerNorm(1e-3), c.Tanh(), c.Linear(2)),
        (c.Linear(3), c.Sigmoid(), c.Dropout(0.5), c.Flatten(), c.Identity(), c.Linear(2)),
        (c.Residual((c.Linear(3), c.BatchNorm(momentum=0.3))), c.Unused(2), c.Linear(2)),
        (c.Branch((c.Linear(3),), (c.Tanh(),), "multiply"), c.Sequential((c.Linear(3), c.Linear(3, tie=1)))),
        (c.Eval((c.BatchNorm(), c.Dropout())), c.Linear(2)),
    ],
    ids=lambda layers: "-".join(type(x).__name__ for x in layers),
)
@pytest.mark.parametrize(
    "loss", [c.SoftmaxLoss(), c.MeanSquare(), c.MSELoss(), c.WeightedSum(), c.Cotangent()], ids=type
)
def test_the_truth_is_torch_in_float64(layers, loss):
    case = c.TrainCase(
        model=layers,
        data=c.Data(rows=4, features=3),
        loss=loss,
        optimizer=c.SGD(lr=0.1, momentum=0.9, weight_decay=0.1),
        seed=3,
        steps=3,
        backward="accumulate",
        input_grad=True,
    )
    verdict = judged(case, needle, validate=True)
    assert verdict.oracle_errors == []
    assert verdict.divergence is None
    validated = [k for k in verdict.tally.largest if k.startswith("validation ")]
    assert {"validation activation", "validation adjoint", "validation gradient"} <= set(validated)
    assert max(verdict.tally.largest[k] for k in validated) < 0.1


def tanh_with_a_slope_of(factor):
    """The block of tanh, with a definition whose derivative is off by a factor."""

    def tanh(t, x):
        return elementwise.by_output(t, x, np.tanh, lambda y: (1 - y * y) * factor)

    return dataclasses.replace(OPERATIONS["tanh"], definition=tanh)


def test_a_wrong_definition_is_found_by_torch_float64(monkeypatch):
    right = OPERATIONS["tanh"]
    wrong = tanh_with_a_slope_of(1 + 1e-9)
    monkeypatch.setitem(OPERATIONS, "tanh", wrong)
    case = c.TrainCase(
        model=(c.Linear(3), c.Tanh(), c.Linear(2)),
        data=c.Data(rows=4, features=3),
        loss=c.SoftmaxLoss(),
        optimizer=c.SGD(),
        seed=0,
    )
    errors = judged(case, needle, validate=True).oracle_errors
    assert errors
    assert "the truth is wrong: adjoint 0" in errors[0]
    monkeypatch.setitem(OPERATIONS, "tanh", right)
    assert judged(case, needle, validate=True).oracle_errors == []


def test_rule_p_says_when_the_oracle_is_wrong(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "tanh", tanh_with_a_slope_of(1.001))
    case = c.TrainCase(
        model=(c.Linear(3), c.Tanh(), c.Linear(2)),
        data=c.Data(rows=4, features=3),
        loss=c.SoftmaxLoss(),
        optimizer=c.SGD(),
        seed=0,
    )
    errors = judged(case, needle).oracle_errors
    assert any(e.startswith("rule P: torch's adjoint 0") for e in errors)


def test_rounding_that_both_share_is_held_against_nobody(monkeypatch):
    """A product of two numbers is rounded alike everywhere; here even that is more than rules G and P allow."""
    case = c.TrainCase(
        model=(c.Linear(1, bias=False),),
        data=c.Data(rows=4, features=1),
        loss=c.Cotangent(),
        optimizer=c.SGD(lr=0.1),
        seed=0,
        steps=2,
    )
    monkeypatch.setattr(cmp, "G_LIMIT", 1e-3)
    verdict = judged(case, needle)
    assert (verdict.divergence, verdict.oracle_errors) == (None, [])
    assert verdict.common >= 2
    monkeypatch.setattr(cmp, "VALIDATED", -1.0)  # torch in float64 says no: then the oracle is wrong
    assert all(e.startswith("rule P: torch's ") for e in judged(case, needle).oracle_errors)
    assert judged(case, needle).oracle_errors


def test_drawing_is_repeatable():
    assert [k.digest for k in draw("train", 20, 5)] == [k.digest for k in draw("train", 20, 5)]
    assert [k.digest for k in draw("train", 20, 5)] != [k.digest for k in draw("train", 20, 6)]


def test_tolerance_grows_with_noise_and_size_alone():
    exact = np.array([[1.0, 1000.0]])
    quiet = np.repeat(exact[None], 8, axis=0)
    tolerance = cmp.tolerance(quiet)[0]
    assert tolerance[0] == pytest.approx(d.U * (1 + 0.01 * 1000))
    assert tolerance[1] == pytest.approx(d.U * (1000 + 0.01 * 1000))
    loud = quiet.copy()
    loud[3, 0, 0] += 1e-3
    assert cmp.tolerance(loud)[0, 0] == pytest.approx(1e-3 * 1.01, rel=0.1)


def test_a_sum_over_repeated_places_has_the_rounding_of_every_order():
    """0.715 − 0.008 − 0.72 is off by the rounding of 0.7, not of −0.013; what is put at places of its own is exact."""
    values = np.array([[0.715], [-0.008], [-0.72]])[None, None]
    tape = d.Tape(d.Noise(1))
    repeated = tape.scattered(values, (1, 1), (np.array([0, 0, 0]),))
    assert np.abs(repeated[1:] - repeated[:1]).max() > 0.01 * d.U
    apart = tape.scattered(values, (3, 1), (np.array([2, 0, 1]),))
    assert apart.shape[0] == 1
