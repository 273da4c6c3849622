"""A Case validates itself, and survives the way through JSON."""

import json
import os

import numpy as np
import pytest
from hypothesis import given

from oracle.cases import case as c
from oracle.cases.edits import value
from oracle.cases.shrink import candidates
from oracle.cases.strategies import op_cases, second_order_cases, train_cases
from oracle.operations import OPERATIONS, result_shape
from oracle.runs.draws import draw_from

DATA = c.Data(rows=4, features=3)


def train(*model, **changes):
    given_by_default = {"data": DATA, "loss": c.SoftmaxLoss(), "optimizer": c.SGD(), "seed": 0}
    return c.TrainCase(model=model or (c.Linear(2),), **(given_by_default | changes))


@given(train_cases() | op_cases() | second_order_cases())
def test_a_case_equals_what_its_json_says(case):
    again = c.decode(c.encode(case))
    assert again == case
    assert again.digest == case.digest
    assert c.describe(case)


def test_the_digest_names_the_case():
    assert train().digest == train().digest
    assert train(seed=1).digest != train().digest
    assert train().digest == "c2d4163b", "digests are the names of files: they must not change between versions"


def test_streams_are_apart_and_repeatable():
    case = train()
    assert np.array_equal(case.rng("a").random_sample(5), case.rng("a").random_sample(5))
    assert not np.array_equal(case.rng("a").random_sample(5), case.rng("b").random_sample(5))
    assert not np.array_equal(case.rng("a").random_sample(5), train(seed=1).rng("a").random_sample(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train(c.Residual((c.Linear(5),))), r"model\[0\]: Residual body must keep the width 3, but gives 5"),
        (lambda: train(c.Branch((c.Linear(2),), (c.Linear(4),)), c.Linear(2)), r"got 2 and 4"),
        (lambda: train(c.BatchNorm(), data=c.Data(rows=1, features=3)), "at least 2 rows in training, got 1"),
        (lambda: train(c.Linear(2), c.Linear(2, tie=0)), r"model\[1\]: tie=0 names a Linear of shape \(3, 2\)"),
        (lambda: train(c.Linear(2), c.Linear(2, tie=5)), "tie=5 names a Linear of shape None"),
        (lambda: train(c.Linear(3, frozen=True), c.Linear(3, tie=0, frozen=True)), "cannot be frozen"),
        (lambda: train(c.ReLU()), "at least one layer must have a parameter to train"),
        (lambda: train(c.Linear(2, frozen=True)), "at least one layer must have a parameter"),
        (lambda: train(c.BatchNorm(frozen=True)), "model: at least one layer must have a parameter"),
        (lambda: train(lr_changes=(c.LrChange(3, 0.1),)), "step 3 is not below steps=1"),
        (lambda: train(gap=c.Gap(3)), "gap: step 3 is not below steps=1"),
        (lambda: train(gap=c.Gap(1), steps=2, clip=c.Clip()), "gap: not together with clip"),
        (lambda: train(c.Linear(300), loss=c.SoftmaxLoss("uint8")), "uint8 allow 256 classes"),
        (lambda: train(c.Linear(3), data=c.Digits()), "Digits have 10 classes, but the model's output is 3 wide"),
        (lambda: train(c.Ops((c.OpStep("exq", (0,)),))), "unknown op 'exq'"),
        (lambda: train(c.Ops((c.OpStep("exp", (1,)),))), "must index the 1 values so far"),
        (lambda: train(c.Ops((c.OpStep("summation", (0,)),)), c.Linear(2)), r"must end with shape \(4, width\)"),
        (
            lambda: train(c.Ops((c.OpStep("matmul", (0, 0)),)), c.Linear(2)),
            "matmul does not apply to operands of shape",
        ),
        (lambda: c.Operand((2, 2), (1.0,)), r"an operand of shape \(2, 2\) has 4 values, not 1"),
        (
            lambda: c.OpCase("add", (c.Operand((2,), (1.0, 2.0)), c.Operand((3,), (1.0, 2.0, 3.0)))),
            "add does not apply",
        ),
        (lambda: c.OpCase("exp", (c.Operand((), (1.0,)),), cotangent=()), "at least one value"),
        (
            lambda: c.OpCase("exp", (c.Operand((), (1.0,)),), constants=(0,)),
            r"constants=\(0,\) leave none of 1 operands",
        ),
    ],
)
def test_a_bad_case_cannot_exist(make, message):
    with pytest.raises(c.CaseError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("format"), 'an object with "format" and "kind" is needed'),
        (lambda d: d.update(format=99), "this version reads format 1"),
        (lambda d: d.update(kind="trian"), "Invalid value 'trian'"),
        (lambda d: d.update(sede=1), "unknown field `sede`"),
        (lambda d: d.update(seed=-1), r">= 0 - at `\$.seed`"),
        (lambda d: d.update(steps="3"), r"Expected `int`, got `str` - at `\$.steps`"),
        (lambda d: d["model"][0].update(out=0), r"at `\$.model\[0\].out`"),
        (lambda d: d["optimizer"].update(lr=-1), r"at `\$.optimizer.lr`"),
        (lambda d: d["optimizer"].update(momentum=1.0), r"at `\$.optimizer.momentum`"),
        (lambda d: d.pop("seed"), "missing required field `seed`"),
    ],
)
def test_a_broken_file_is_refused_with_the_place(change, message):
    data = json.loads(c.encode(train(optimizer=c.SGD(lr=0.1))))
    change(data)
    with pytest.raises(c.CaseError, match=message):
        c.decode(json.dumps(data))


def test_a_file_that_is_not_json_or_not_there(tmp_path):
    with pytest.raises(c.CaseError, match="not JSON"):
        c.decode("{")
    with pytest.raises(c.CaseError, match=r"absent.json: No such file"):
        c.read(tmp_path / "absent.json")


@pytest.mark.parametrize("layout", ["C", "F", "strided", "reversed"])
def test_memory_layouts_hold_the_same_numbers(layout):
    operand = c.Operand((2, 3), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), layout)
    assert operand.array.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert operand.array.flags.c_contiguous == (layout == "C")
    assert c.Operand((), (7.0,), layout).array.shape == ()


def op(name, *shapes, **attributes):
    operands = tuple(c.Operand(s, (0.0,) * int(np.prod(s))) for s in shapes)
    return c.OpCase(name, operands, attributes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: op("summation", (0, 4096, 4096), axes=0), "may take 16,777,216 numbers: 1,048,576 are the most"),
        (lambda: op("add", (4096, 1), (1, 4096)), r"add on .* may take 16,777,216 numbers"),
        (lambda: op("matmul", (4096, 1), (1, 4096)), r"matmul on .* may take 16,777,216 numbers"),
        (lambda: op("dilate", (64, 64), axes=(0, 1), dilation=64), "may take 17,305,600 numbers"),
        (lambda: op("conv", (1, 64, 64, 8), (8, 8, 8, 1), stride=1, padding=64), "may take 18,874,368 numbers"),
        (lambda: op("broadcast_to", (1,), shape=(2**20, 2)), "may take 2,097,152 numbers"),
        (lambda: op("broadcast_to", (1,), shape=(2**20 + 1,)), "shape of broadcast_to: Expected `int` <= 1048576"),
        (lambda: op("conv", (1, 8, 8, 1), (2, 2, 1, 1), stride=1, padding=10**6), "Expected `int` <= 64"),
        (lambda: op("conv", (1, 8, 8, 1), (2, 2, 1, 1), stride=1), "conv needs 'padding'"),
        (lambda: op("add_scalar", (1,), c=True), "Expected `float`, got `bool`"),
        (lambda: op("add_scalar", (1,), c="1"), "Expected `float`, got `str`"),
        (lambda: op("add_scalar", (1,), c=1e39), r"Expected `float` <= 3.4028"),
        (lambda: op("exp", (1,), c=1.0), "exp has no 'c', but none at all"),
        (lambda: op("cast", (1,), dtype="float64"), "cast has no 'dtype'"),
        (lambda: op("transpose", (2, 2), axes=(0, 1, 0)), "Expected `array` of length 2"),
        (lambda: op("softmax_loss", (2, 2), labels=(0, -1)), "Expected `int` >= 0"),
        (lambda: op("getitem", (2,), index=((0, 2, 0),)), "Expected `int` >= 1"),
        (lambda: train(*[c.ReLU()] * 1000, c.Linear(2)), "1,001 layers and operations are more than 1,000"),
        (lambda: c.decode(" " * (5 << 20)), "5,242,880 bytes are more than the 4,194,304 of the largest case"),
    ],
)
def test_what_no_machine_has_is_refused_with_the_figure(make, message):
    with pytest.raises(c.CaseError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({"data": c.Data(rows=4096, features=4096)}, "asks for about 6.0 GB and 67 s: at most 2 GB and 300 s"),
        ({"steps": 100_000, "data": c.Data(rows=64, features=64)}, "asks for about 2.1 GB and 1,842 s"),
        ({"steps": 100_000, "model": (c.Linear(2),) * 20}, "asks for about 0.0 GB and 2,"),
    ],
)
def test_what_a_file_asks_for_is_refused_beforehand(changes, figure):
    case = train(*changes.pop("model", ()), **changes)
    with pytest.raises(c.CaseError, match=figure):
        c.decode(c.encode(case))


def test_a_whole_number_is_a_float_where_that_is_meant():
    assert op("add_scalar", (1,), c=2) == op("add_scalar", (1,), c=2.0)
    assert isinstance(op("add_scalar", (1,), c=2).attributes["c"], float)
    assert op("add_scalar", (1,), c=2).digest == op("add_scalar", (1,), c=2.0).digest


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "large.json").write_bytes(b" " * (5 << 20))
    for path, message in ((tmp_path / "pipe.json", "not a file"), (tmp_path / "folder.json", "not a file"),
                          ("/dev/zero", "not a file"), (tmp_path / "large.json", "more than the 4,194,304 bytes")):  # fmt: skip
        with pytest.raises(c.CaseError, match=message):
            c.read(type(tmp_path)(path))


def test_a_shape_or_a_width_that_is_kept_is_that_of_what_was_asked():
    assert [result_shape("summation", [(2, 3)], {"axes": axes}) for axes in (0, (1,), 0, None)] == [
        (3,),
        (2,),
        (3,),
        (),
    ]
    for _ in range(2):
        with pytest.raises(ValueError, match="does not apply"):
            result_shape("summation", [(2, 3)], {"axes": 2})
    model = (c.Conv(2), c.Linear(4))
    widths = [c.checked(model, rows, features).widths for rows, features in ((3, 4), (3, 5), (3, 4))]
    assert widths[0] == widths[2] != widths[1]
    assert c.checked((c.Flatten(), *model), 3, 4).widths != widths[0]


def beside(first, cotangent=(1.0,), name="matmul", second=(0.5, 4.0)):
    """A product of (1, 2) and (2, 1), or an op on the operand alone."""
    operands = (c.Operand((1, 2), first), c.Operand((2, 1), second))
    return c.OpCase(name, operands if name == "matmul" else operands[:1], cotangent=cotangent)


@pytest.mark.parametrize(
    ("case", "cleared"),
    [
        (beside(("inf", 0.0)), beside(("inf", 0.25))),
        (beside(("nan", -0.0)), beside(("nan", 0.25))),
        (beside(("-inf", 2.0), second=(0.0, 1e18)), beside(("-inf", 2.0), second=(0.25, 1.0))),
        (beside((3.0, -1e30), second=("inf", 1.0)), beside((3.0, -1.0), second=("inf", 1.0))),
        (beside(("inf", 1.0), cotangent=(0.0, -1e20, 7.0)), beside(("inf", 1.0), cotangent=(0.25, -1.0, 7.0))),
    ],
)
def test_beside_what_is_no_number_no_factor_is_0_or_so_large_that_products_overflow(case, cleared):
    """Whether a BLAS skips a factor of 0, and what it makes of 0 * inf, depends on the machine: no verdict could be given."""
    assert case.unclear
    assert case.cleared == cleared
    assert not cleared.unclear


@pytest.mark.parametrize(
    "case",
    [
        beside(("inf", 1.0)),  # nothing to skip
        beside((0.0, 1e30)),  # nothing that is no number: 0 is as good as any other
        beside((2.0, 1.0), cotangent=(0.0,)),
        beside(("inf", 0.0), name="exp"),  # multiplies nothing: 0 beside inf is what every machine makes of it
    ],
)
def test_what_every_machine_takes_alike_is_left_as_it_is(case):
    assert not case.unclear
    assert case.cleared is case


def test_no_case_is_drawn_edited_or_shrunk_to_what_depends_on_the_machine():
    drawn = draw_from(op_cases([name for name, op in OPERATIONS.items() if op.factors]), 300, 3)
    special = [case for case in drawn if any(isinstance(v, str) for o in case.operands for v in o.values)]
    assert len(special) > 10
    assert not any(case.unclear for case in drawn)
    smaller = [candidate for case in special[:10] for candidate in candidates(case)]
    assert len(smaller) > 100
    assert not any(case.unclear for case in smaller)
    assert value("inf")(beside((0.0, 2.0), cotangent=(0.0,))).cotangent == (0.25,)
    with pytest.raises(c.CaseError, match=r"is not compared on 0\.0 beside what is no number"):
        value(0.0)(beside((1.0, 2.0), second=("nan", 1.0)))
