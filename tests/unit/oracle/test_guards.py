"""Every label of the coverage table has a fault that only cases with the label can notice, or a reason why not."""

import random
import warnings

import pytest

import needle
from oracle.cases import case as c
from oracle.cases import coverage
from oracle.cases.features import LABELS
from oracle.runs.draws import shard_cases
from oracle.trust.guards import table
from oracle.trust.guards.guard import Guard
from oracle.trust.guards.planted import GUARDS, killed, looked_at

SEED = 977  # held out: the table is made with others
LOOKED_AT = 30  # cases
SAMPLED = 6  # guards that are planted


def test_every_label_has_a_guard_or_a_reason():
    """The committed table, and `unguarded.toml`; whoever adds a label adds a guard, and ``nox -s faults -- --guards --accept``."""
    missing, needless = table.open_labels(set(table.known()))
    assert missing == [], "neither a guard in reports/baselines/guards.json nor a reason in unguarded.toml"
    assert needless == [], "a reason for what is guarded, or is no label"
    assert set(table.known()) <= set(GUARDS)
    assert all(len(row["kills"]) >= table.KILLS and not row["strays"] for row in table.known().values())


def test_a_label_without_either_is_found(monkeypatch):
    monkeypatch.setattr(table, "reasons", lambda: {"steps 1": "for the sake of it", "no label": "too"})
    missing, needless = table.open_labels(set(LABELS) - {"op exp", "steps 2"})
    assert (missing, needless) == (["op exp", "steps 2"], ["steps 1", "no label"])


@pytest.fixture(scope="module")
def cases():
    shard = shard_cases(SEED, 0)
    return shard[:: len(shard) // LOOKED_AT][:LOOKED_AT]


@pytest.fixture(scope="module")
def looked(cases):
    """Of each case, the labels of the guards that would be wrong in it; nothing is."""
    guards = list(GUARDS.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [looked_at(case, guards) for case in cases]
    assert [words for _, words in found if words] == [], "needle that is only looked at diverges"
    return [fired for fired, _ in found]


def test_no_guard_would_be_wrong_in_a_case_without_its_label(cases, looked):
    strays = [(fired - coverage.covered(case), c.describe(case)) for case, fired in zip(cases, looked, strict=True)]
    assert [stray for stray in strays if stray[0]] == []


def test_sampled_guards_are_noticed_by_cases_with_the_label_alone(cases, looked):
    often = sorted({label for fired in looked for label in fired if sum(label in f for f in looked) > 2})
    chosen = random.Random(SEED).sample(often, SAMPLED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for label in chosen:
            fired = [i for i, labels in enumerate(looked) if label in labels]
            others = [i for i, case in enumerate(cases) if label not in coverage.covered(case)]
            assert any(killed(cases[i], GUARDS[label]) for i in fired[:6]), f"{label}: no case notices it"
            assert not any(killed(cases[i], GUARDS[label]) for i in others[:2]), f"{label}: another case notices it"


def case_of(op):
    return c.OpCase(op=op, operands=(c.Operand((2,), (0.5, -0.25)),))


def test_a_guard_that_says_too_much_or_nothing_is_none():
    """What such a line looks like: the test above, and the table, would show it."""
    always, never = Guard("op exp", "op", lambda f: f.leaves), Guard("op exp", "op", lambda f: False)
    exp, tanh = case_of("exp"), case_of("tanh")
    seen = table.Looked()
    for i, case in enumerate((exp, tanh)):
        seen.fired[0, i], words = looked_at(case, [always])
        seen.labels[0, i] = coverage.covered(case)
        assert words == ""
    (row,) = table.rows_of(seen, [always])
    assert (row.cases, row.strays) == ([(0, 0)], [(0, 1)])
    assert not row.guarded
    assert killed(exp, always)
    assert killed(tanh, always)
    assert not killed(exp, never)


def test_needle_is_what_it_was_afterwards():
    before = {name: vars(needle.ops)[name] for name in ("exp", "tanh")} | {"call": needle.nn.Module.__call__}
    assert killed(case_of("exp"), GUARDS["op exp"])
    assert {name: vars(needle.ops)[name] for name in ("exp", "tanh")} | {"call": needle.nn.Module.__call__} == before
    assert not killed(case_of("tanh"), GUARDS["op exp"])
    with pytest.raises(ValueError, match="the moments are op, "):
        Guard("op exp", "sometimes", lambda f: True)
