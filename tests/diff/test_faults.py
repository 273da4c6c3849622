"""The fault catalogue is what tests the tester: what was killed according to the committed table must be killed."""

import json
import os
import re
import sys
import time
from collections import Counter

import numpy as np
import pytest

import needle
from oracle.rules.verdict import Explanation, Suspect
from oracle.trust import kill_table
from oracle.trust.faults import CONTROLS, FAULTS, Fault
from oracle.trust.patches import Patch, PatchError, find, replace, wrap
from oracle.trust.touched import Touched

LEAST = {"optimizer": 35, "autograd": 20, "op": 50, "layer": 35, "conditional": 30, "small": 15}


def _state() -> dict[str, object]:
    """Everything that a patch may replace, by path."""
    paths = {path for patch in (*_patches().values(),) for path, _ in patch.changes}
    return {path: vars(find(path)[0])[find(path)[1]] for path in paths}


def _patches() -> dict[str, Patch]:
    return {**{name: fault.patch for name, fault in FAULTS.items()}, **CONTROLS}


def test_the_catalogue_is_large_enough() -> None:
    count = Counter(fault.group for fault in FAULTS.values())
    assert all(count[group] >= least for group, least in LEAST.items()), count


@pytest.mark.parametrize("name", _patches())
def test_every_patch_applies_and_undoes_itself(name: str) -> None:
    before = _state()
    patch = _patches()[name]
    with patch.applied():
        during = _state()
    assert {path for path, value in during.items() if value is not before[path]} == {path for path, _ in patch.changes}
    after = _state()
    assert all(after[path] is value for path, value in before.items())


def test_a_patch_of_what_is_gone_is_an_error() -> None:
    for path in ("ops.Gone.vjp", "optim.SGD.gone", "nn.ReLU.parameters"):
        with pytest.raises(PatchError, match="must follow"), replace(path, None).applied():
            pass


def test_a_patch_undoes_itself_when_a_later_one_cannot_be_made() -> None:
    right = needle.optim.SGD.step
    with pytest.raises(PatchError), (replace("optim.SGD.step", None) + wrap("ops.Gone", lambda old: old)).applied():
        pass
    assert needle.optim.SGD.step is right


def test_suspects_match_by_words() -> None:
    assert kill_table.matches("Tanh backward", "Tanh backward (needle/ops.py:391); layer 3")
    assert kill_table.matches("Tanh backward", "tanh vjp")
    assert kill_table.matches("EWiseMul backward", "multiply gradient with respect to operand 1")
    assert kill_table.matches("clip norm|SGD velocity", "SGD velocity update (needle/optim.py:269)")
    assert not kill_table.matches("Tanh backward", "Tanh forward; the gradient agrees")
    assert not kill_table.matches("SGD velocity", "SGD parameter update")


def test_what_is_no_fault_survives() -> None:
    plan = kill_table.Plan(
        kill_table.controls(), seeds=(0,), budget=60, workers=os.cpu_count() or 1, shrinks=0, estimated=0
    )
    rows = kill_table.run(plan)
    assert [(r.name, r.rules, r.suspect, r.error) for r in rows] == [(n, "", "", "") for n in CONTROLS]


def test_every_fault_that_was_killed_is_killed() -> None:
    known = kill_table.known_kills()
    gone = sorted(set(known) - set(FAULTS))
    assert not gone, f"the committed table has faults that the catalogue has not: {gone}"
    table = json.loads(kill_table.BASELINE.read_text("utf-8"))["faults"]
    early = {row["name"] for row in table if row["kills"] and row["kills"][0]["cases"] <= 40}  # with seed 0, as here
    chosen = [FAULTS[name] for name in known if name in early]
    assert len(chosen) >= 100, "the committed table must say enough to be worth a comparison"
    plan = kill_table.Plan(chosen, seeds=(0,), budget=400, workers=os.cpu_count() or 1, shrinks=0, estimated=0)
    rows = kill_table.run(plan)
    survived = [f"{r.name}: {r.about}{r.error}" for r in rows if not r.killed]
    assert not survived, "\n".join(survived)


def test_only_cases_that_have_nothing_to_do_with_a_fault_are_passed_over() -> None:
    x = needle.Tensor(np.linspace(-1, 1, 6).reshape(2, 3).astype(np.float32))
    names = ("tanh-backward", "max-forward", "linear-no-bias", "sgd-ascent", "add-overwrites", "chain-loses-skip")
    patches = {name: FAULTS[name].patch for name in names}
    touched = Touched(list(patches.values()))

    def shows(run) -> set[str]:
        paths = touched.by(run)
        return {name for name, patch in patches.items() if touched.may_show(patch, paths)}

    always = shows(lambda: None)
    assert shows(lambda: needle.tanh(x)) >= {"tanh-backward"} | always
    assert "max-forward" in shows(lambda: needle.ops.amin(x, 0))  # of which Min is made
    assert not shows(lambda: needle.exp(x)) & {"tanh-backward", "max-forward", "linear-no-bias", "sgd-ascent"}
    assert "linear-no-bias" in shows(lambda: needle.nn.Linear(3, 2))  # whatever its forward pass is replaced by
    assert "sgd-ascent" in shows(lambda: needle.optim.SGD([needle.nn.Parameter([1.0])]))


def test_passing_over_cases_changes_no_kill(monkeypatch) -> None:
    chosen = [FAULTS[n] for n in ("tanh-backward", "broadcast-new-axis", "min-forward")]
    plan = kill_table.Plan(chosen, seeds=(0,), budget=25, workers=1, shrinks=0, estimated=0)
    found = []
    for few in (0, len(chosen)):
        monkeypatch.setattr(kill_table, "FEW", few)
        found.append([(r.name, r.kills) for r in kill_table.run(plan)])
    assert found[0] == found[1]


def test_words_are_right_if_they_are_among_those_that_fit() -> None:
    several = Suspect(
        "SGD", words="several explanations fit: a / b", explanations=(Explanation("a", "a"), Explanation("b", "b 1"))
    )
    assert kill_table.explains("b", several)
    assert kill_table.explains("c|a", several)
    assert not kill_table.explains("c", several)
    assert not kill_table.explains("", several), "words for a fault of which none are expected are wrong"


def test_a_run_is_resumed_with_what_it_has_judged_if_nothing_has_changed(tmp_path, monkeypatch) -> None:
    chosen = [FAULTS["sgd-undampened"], FAULTS["sgd-ascent"]]
    plan = kill_table.Plan(chosen, seeds=(0,), budget=10, workers=1, shrinks=0, estimated=0)
    rows = kill_table.run(kill_table.Plan(chosen[:1], seeds=(0,), budget=10, workers=1, shrinks=0, estimated=0))
    kill_table.write(rows, plan, tmp_path / "faults.md", tmp_path / "faults.json")
    known = kill_table.resumed(plan, tmp_path / "faults.json")
    assert [(r.name, r.kills) for r in known] == [(r.name, r.kills) for r in rows]
    monkeypatch.setattr(kill_table, "run_fault", lambda fault, row, *about: kill_table.failed(fault, "run again"))
    assert [r.error for r in kill_table.run(plan, known=known)] == ["", "run again"]
    assert kill_table.resumed(kill_table.Plan(chosen, seeds=(0, 1), budget=10), tmp_path / "faults.json") == []
    monkeypatch.setattr(kill_table, "source", lambda: "another")
    assert kill_table.resumed(plan, tmp_path / "faults.json") == []


def test_a_table_is_written_and_read(tmp_path) -> None:
    fault = FAULTS["sgd-undampened"]
    dead = Fault("dead", "optimizer", "nothing is wrong", "SGD", CONTROLS["SGD.step written out"])
    plan = kill_table.Plan([fault, dead], seeds=(0,), budget=40, workers=1, shrinks=60, estimated=10)
    rows = kill_table.run(plan)
    kill_table.write(rows, plan, tmp_path / "faults.md", tmp_path / "faults.json")
    assert set(kill_table.known_kills(tmp_path / "faults.json")) == {"sgd-undampened"}
    page = (tmp_path / "faults.md").read_text()
    assert re.search(r"sgd-undampened .* SGD velocity", page)
    assert re.search(r"dead .* \*\*survived\*\*", page)


def test_a_fault_that_ends_its_process_or_never_ends_is_an_error_and_no_kill(monkeypatch) -> None:
    ends = {"dies": lambda: os._exit(1), "hangs": lambda: time.sleep(60), "raises": lambda: sys.exit("no")}
    monkeypatch.setattr(kill_table, "run_fault", lambda fault, *about: ends[fault.name]())
    monkeypatch.setattr(kill_table, "PATIENCE", 1)
    monkeypatch.setattr(kill_table.runner, "warm_up", lambda: None)
    faults = [Fault(name, "small", "", "", CONTROLS["SGD.step written out"]) for name in ends]
    rows = kill_table.run(kill_table.Plan(faults, seeds=(), workers=2, estimated=0))
    assert [(r.name, r.killed) for r in rows] == [(name, False) for name in ends]
    assert [r.error.strip().splitlines()[-1] for r in rows] == [
        "the process died",
        "no end after 1 s",
        "SystemExit: no",
    ]
