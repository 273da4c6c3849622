"""Whole training runs in other dtypes than float32."""

import msgspec
import numpy as np
import pytest

import needle
from oracle.blame import judged
from oracle.cases import case as c
from oracle.cases import dtypes, features, inputs
from oracle.cases.shrink import candidates
from oracle.operations.dtypes import DTYPES, LARGEST_OF_A_RUN, LARGEST_OF_AN_OPERATION
from oracle.operations.tape import Noise, Tape, Var
from oracle.runs.draws import draw
from oracle.systems import truth
from oracle.trust.faults import FAULTS

CASES = draw("whole", 72, 3)


def run(model="float64", data="float64", loss=None, optimizer=None, layers=None, **more):
    return c.TrainCase(
        model=layers or (c.BatchNorm(), c.Linear(3), c.LayerNorm()),
        data=c.Data(rows=64, features=4),
        loss=loss or c.SoftmaxLoss(),
        optimizer=optimizer or c.SGD(lr=0.1, momentum=0.9),
        seed=1,
        dtypes=c.Dtypes(model, data),
        **more,
    )


def test_a_right_needle_agrees_in_every_mixture():
    assert len({case.dtypes for case in CASES}) == 8
    outside = 0
    for case in CASES:
        verdict = judged(case, needle)
        outside += verdict.out_of_domain
        assert verdict.divergence is None, (c.describe(case), verdict.divergence)
        assert not verdict.oracle_errors
        assert c.decode(c.encode(case)) == case
    assert outside < len(CASES) / 4


@pytest.mark.parametrize(
    ("fault", "case", "what"),
    [
        ("sgd-double-velocity-by-single", run(), "SGD velocity update"),
        ("adam-double-second-moment-by-single", run(optimizer=c.Adam()), "Adam second moment update"),
        ("loss-double-by-single", run(data="float32"), "SoftmaxCrossEntropy forward"),
        ("labels-short-wrap", run(loss=c.SoftmaxLoss("uint8"), layers=(c.Linear(9),)), "SoftmaxCrossEntropy forward"),
        ("batchnorm-running-single", run(), "BatchNorm constructor"),
        ("gradient-keeps-its-dtype", run(model="float32"), "LayerNorm backward"),
        ("clip-double-by-single", run(clip=c.Clip(0.01)), "clip scaling"),
        ("dropout-double-by-single", run(layers=(c.Dropout(0.3), c.Linear(2))), "Dropout forward in training mode"),
    ],
)
def test_what_goes_through_another_dtype_is_found_and_named(fault, case, what):
    assert judged(case, needle).divergence is None
    with FAULTS[fault].patch.applied():
        found = judged(case, needle).divergence
    assert found is not None
    assert found.suspect.what == what
    assert any(smaller.dtypes is None for smaller in candidates(case))


@pytest.mark.parametrize("labels", ["int64", *features.LABEL_DTYPES])
def test_every_kind_of_whole_labels_is_judged(labels):
    case = run("float32", "float32", loss=c.SoftmaxLoss(labels), steps=2)
    given = inputs.batches(case).labels
    assert given.dtype == ("int64" if labels == "list" else labels)
    assert judged(case, needle).divergence is None


def test_the_widest_operand_gives_the_dtype_and_a_gradient_has_that_of_its_tensor():
    layers = (c.ReLU(), c.Residual((c.Tanh(), c.Linear(4))), c.Dropout())
    made = dtypes.made(run("float64", "float16", layers=layers))
    assert made == {
        dtypes.INPUT: "float16", "0": "float16", "1": "float64", "1.0": "float16", "1.1": "float64", "2": "float64",
    }  # fmt: skip
    tied = (c.Linear(4, bias=False), c.Linear(4, bias=False, tie=0))
    assert dtypes.made(run("float64", "float32", layers=tied))["1"] == "float64"
    case = run("float32", "float64", layers=layers)
    assert dtypes.of_tensor(case, "gradient", "1.1.weight", dtypes.made(case)) == "float32"


def test_noise_is_that_of_the_dtype_at_its_place():
    x = np.ones((1, 1, 1000))
    for dtype in DTYPES.values():
        tape = Tape(Noise(1), rounding=dtype.rounding)
        off = np.abs(tape.noisy(x)[1:] - 1).max()
        assert dtype.rounding.unit < off <= 2.1 * dtype.rounding.unit
        wide = Tape(Noise(1), rounding=DTYPES["float64"].rounding)
        kept = wide.coarse(x, Var(x, rounding=dtype.rounding))
        assert np.abs(kept - 1).max() <= 2.1 * dtype.rounding.unit
        assert (kept is x) == (dtype is DTYPES["float64"])


def test_single_precision_beside_doubles_shows_where_a_layer_is_in_float32():
    """What a float32 layer hands on has been rounded, also for a reader in float64."""
    case = run("float64", "float32", layers=(c.Sigmoid(), c.Linear(2)))
    args = inputs.slots(case), [inputs.initial_state(case)], inputs.batches(case)
    seen = truth.training(case, *args[0], args[1], args[2], {}, [{}], Noise(1)).values["activation"]["1"]
    assert np.abs(seen[1:] / seen[:1] - 1).max() > 2.0**-30


def test_what_a_case_cannot_say():
    with pytest.raises(c.CaseError, match="cast, in model"):
        run(layers=(c.Ops((c.OpStep("cast", (0,)),)), c.Linear(2)))
    with pytest.raises(c.CaseError, match="128 classes"):
        run(loss=c.SoftmaxLoss("int8"), layers=(c.Linear(129),))


@pytest.mark.parametrize("value", [9e3, 2e4, 6e4])
def test_float16_is_judged_further_in_an_operation_than_in_a_run(value):
    """In a run one formula follows the other, and each may overflow on its way."""
    alone = c.OpCase("negate", (c.Operand((2,), (value, 1.0)),), dtypes=("float16",))
    layers, data = (
        (c.Identity(), c.LayerNorm(), c.Linear(2)),
        c.Data(rows=4, features=3, scale=value / 50, offset=value),
    )
    for case, limit in (
        (alone, LARGEST_OF_AN_OPERATION),
        (msgspec.structs.replace(run("float16", "float16", layers=layers), data=data), LARGEST_OF_A_RUN),
    ):
        verdict = judged(case, needle)
        assert verdict.divergence is None
        assert not verdict.oracle_errors
        assert bool(verdict.out_of_domain) == (value > limit)
    assert LARGEST_OF_A_RUN < 2e4 < LARGEST_OF_AN_OPERATION < np.finfo(np.float16).max / 2
