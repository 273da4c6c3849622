"""One table of what a run can reach; what has been reached least is drawn more often."""

import random
from collections import Counter

import pytest

from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import coverage, features, inputs, programs
from oracle.cases.corners import CORNERS
from oracle.runs.draws import OP_NAMES, SHARD, SHARD_SIZE, draw, shard_cases
from oracle.runs.real_data import digits_case

KINDS = {c.TrainCase: "train", c.SecondOrderCase: "second", c.OpCase: "op", c.ProgramCase: "program"}
PLAIN = {kind: draw(name, 60 if name == "program" else 240, 5) for kind, name in KINDS.items()}
LARGE = [*draw("long", 5 * len(OP_NAMES) + 1, 5), *(case for i in range(32) for case in draw("long", 4, 6, i))]
LARGE += draw("large", 60, 5) + draw("whole", 72, 5)
LARGE += [*draw("dtype", 3 * len(OP_NAMES), 5), *draw("dtype", 4 * len(OP_NAMES), 6)]
LARGE += [case for i in range(12) for case in draw("op", len(OP_NAMES), 7, i)]
LARGE += draw("corner", 3 * len(CORNERS), 5)
EDITS = [(label, kind) for kind in KINDS for label in features.EDITS[kind]]


def test_cases_reach_nothing_but_what_the_table_has():
    reached = {label for cases in (*PLAIN.values(), LARGE) for case in cases for label in coverage.covered(case)}
    assert reached <= set(coverage.LABELS)
    assert coverage.covered(digits_case()) <= set(coverage.LABELS)
    assert len(set(coverage.LABELS)) == len(coverage.LABELS)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_rows_of_what_is_no_number_lie_nowhere(value):
    """And say nothing on the terminal: warnings are errors here."""
    case = c.OpCase("logsumexp", (c.Operand((3, 2), (value, 1.0, value, 2.0, value, 3.0)),), {})
    assert "argument all axes of logsumexp, a row far above the first" not in coverage.covered(case)


def test_all_labels_without_an_edit_are_drawn_anyway():
    reached = Counter(label for cases in (*PLAIN.values(), LARGE) for case in cases for label in coverage.covered(case))
    edited = {label for label, _ in EDITS}
    assert min(reached[label] for label in coverage.LABELS if label not in edited) >= 2


@pytest.mark.parametrize(("label", "kind"), EDITS)
def test_an_edit_leads_to_its_label(label, kind):
    edit = features.EDITS[kind][label]
    edited = [case for case in (coverage._edited(case, edit) for case in PLAIN[kind]) if case is not None]
    reaching = [case for case in edited if label in coverage.covered(case)]
    assert len(reaching) >= 3, "an edit that is hardly ever possible steers nothing"
    assert all(c.decode(c.encode(case)) == case for case in reaching[:5])


def test_in_four_shards_every_operation_is_differentiated_once_and_twice_and_three_times():
    for seed in (0, 3):
        cases = [case for index in range(4) for case in shard_cases(seed, index)]
        found = Counter((case.op, case.order) for case in cases if isinstance(case, c.OpCase))
        # what is differentiated three times, is judged twice on the way: test_higher.py has it
        assert all(found[name, order] >= 1 for name in OP_NAMES for order in (1, 3))
        reached = Counter(label for case in cases for label in coverage.covered(case))
        assert all(reached[f"{times} {name}"] for name in OP_NAMES for times in ("op", "twice", "three times"))


def test_in_twelve_shards_every_operation_has_nan_or_infinities():
    cases = [case for index in range(12) for case in draw("op", SHARD["op"], index, index)]
    assert {case.op for case in cases if case.no_number} == set(OP_NAMES)
    assert (
        0.2 < sum(case.no_number for case in cases if case.order == 1) / sum(case.order == 1 for case in cases) < 0.45
    )


def test_half_of_a_shard_trains_a_model_or_nearly_so():
    assert sum(SHARD.values()) == SHARD_SIZE == len(shard_cases(0, 0))
    assert sum(SHARD[kind] for kind in ("train", "whole", "second", "large", "program")) >= 0.48 * SHARD_SIZE


def test_what_is_rarely_drawn_is_drawn_more_often():
    """Plain cases have the rarest features once in fifty to seventy cases; steered ones have every feature once in 60."""
    plain: Counter[str] = Counter()
    steered: Counter[str] = Counter()
    for seed in range(8, 12):
        cases = draw("train", 240, seed)
        reached: Counter[str] = Counter()
        for case in cases:
            plain.update(coverage.covered(case))
        for i in range(0, len(cases), 60):
            for case in coverage.steer(cases[i : i + 60], reached, random.Random(i)):
                steered.update(coverage.covered(case))
    edits = features.EDITS[c.TrainCase]
    rare = [label for label, count in plain.items() if count < 16 and label in edits]
    assert "mode Dropout in nested eval" in rare
    assert min(steered[label] for label in rare) >= 960 / 60
    assert min(steered[label] for label in plain if label in edits) >= 960 / 60


def test_the_rarest_label_comes_first_and_the_others_stay_as_they_were():
    cases = PLAIN[c.TrainCase][:40]
    known = Counter(dict.fromkeys(coverage.LABELS, 1000))
    known["dropout 1"] = 0
    before = Counter(known)
    steered = coverage.steer(cases, known, random.Random(0))
    changed = [case for case, was in zip(steered, cases, strict=True) if case != was]
    assert 5 <= len(changed) <= len(cases) / 4
    assert all("dropout 1" in coverage.covered(case) for case in changed)
    assert known - before == Counter(label for case in steered for label in coverage.covered(case)), "counts are kept"


def test_what_a_needle_lacks_is_neither_wished_for_nor_missed():
    lacking = frozenset({"optimizer Adam", "layer BatchNorm"})
    known = Counter(dict.fromkeys(coverage.LABELS, 1000))
    known["adam beta1 0"] = known["norm momentum 1"] = 0
    cases = [case for case in PLAIN[c.TrainCase] if lacking.isdisjoint(coverage.covered(case))]
    steered = coverage.steer(cases, Counter(known), random.Random(0), lacking)
    assert all(lacking.isdisjoint(coverage.covered(case)) for case in steered)
    assert coverage.missed({}, lacking) == [label for label in coverage.LABELS if label not in lacking]
    assert coverage.missed(dict.fromkeys(coverage.LABELS, 1)) == []


@pytest.mark.parametrize(
    "label", [label for label in features.EDITS[c.ProgramCase] if " set " in label or label.endswith("vector")]
)
def test_an_action_that_is_steered_to_does_something(label):
    """A setting that no layer has, one that is what it was already, a row for what is no bias: nothing happens then."""
    for case in draw("program", 8, 5):
        try:
            edited = features.EDITS[c.ProgramCase][label](case)
        except c.CaseError:
            continue
        *_, action, _, _ = edited.actions
        if isinstance(action, a.SetLayer):
            given = [now[action.setting] for now in programs.settings_of(edited).values() if action.setting in now]
            assert given, label
            assert given[0] != action.value, label
        elif isinstance(action, a.Set) and action.value == 0:
            assert getattr(edited.optimizer, action.setting) != 0, label
        elif isinstance(action, a.ReplaceData):
            names = programs.names_of(edited)
            shapes = {slot.name: slot.shape for slot in inputs.slots(edited.training)[0]}
            assert shapes[names[action.parameter % len(names)]][:-1] == (1,), label


def test_a_case_of_other_dtypes_has_one():
    assert all(set(case.dtypes) != {"float32"} for case in draw("dtype", 60, 3))
