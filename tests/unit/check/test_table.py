"""The tables of reports/check.md: correct pairs pass, planted faults do not, and a false alarm would be seen."""

import dataclasses

import pytest

from oracle import check
from oracle.trust.checked import table
from oracle.trust.checked.pairs import PAIRS, of_library
from oracle.trust.checked.power import faults

SEED = 7  # not that of the committed table


def test_there_are_enough_pairs_and_no_two_are_the_same():
    assert len(PAIRS) >= 300
    names = [(p.name, p.way) for p in PAIRS]
    assert len(set(names)) == len(names), [n for n in names if names.count(n) > 1]


@pytest.mark.parametrize("part", range(7))
def test_correct_pairs_pass(part):
    """Every seventh, on one kind of inputs each: the command has them all."""
    for i, pair in enumerate(PAIRS[part::7]):
        outcome = table.judged(pair, pair.kinds[(i + part) % len(pair.kinds)], SEED)
        assert not outcome.message, f"{pair.name}, {pair.way}, {outcome.kind}:\n{outcome.message}"
        assert outcome.share <= check.LIMIT / 2, (pair.name, pair.way, outcome.kind, outcome.share)


def test_a_wrong_pair_would_be_an_alarm(capsys, monkeypatch, tmp_path):
    wrong = dataclasses.replace(PAIRS[0], candidate=lambda x: abs(x) * x.dtype.type(1.001))
    monkeypatch.setattr(table, "PAIRS", [wrong])
    assert table.calibrate(seed=SEED, accept=False, names=[wrong.name]) == 1
    assert "false alarms in 6 cases of 1 pairs" in capsys.readouterr().out
    assert table.calibrate(seed=SEED, accept=False, names=["no such"]) == 2


def test_planted_faults_are_found_and_the_page_counts_them():
    chosen = [
        f for f in faults() if f.pair.name in ("tanh", "gelu") and f.kind in ("2^-12, all elements", "tanh for erf")
    ]
    power = {f.kind: table.Tally() for f in chosen}
    for fault in chosen:
        power[fault.kind].add(table.judged(fault.pair, "normal", SEED))
    assert {k: t.flagged[table.MEASURED] for k, t in power.items()} == {k: t.cases for k, t in power.items()}
    page = table.markdown([table.judged(PAIRS[0], "normal", SEED)], power, SEED)
    assert "| measured | 0.0% | 100.0% |" in page


def test_rows_of_a_library_that_is_installed_are_correct_pairs_too():
    """Torch itself stands for it: JAX is in the environment of the session alone."""
    pairs = of_library("torch")
    assert len({(p.name, p.way) for p in pairs}) == len(pairs) >= 5
    for pair in pairs[:3]:
        outcome = table.judged(pair, pair.kinds[0], SEED)
        assert not outcome.message, outcome.message


def test_of_a_library_that_is_not_installed_there_are_none(monkeypatch):
    from oracle.frameworks import libraries

    monkeypatch.setattr(libraries, "missing", lambda name: f"{name} is not installed")
    assert of_library("jax") == []
