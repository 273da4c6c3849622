"""What needle offers is what the cases call, or stands in a list with the test that checks it instead."""

from collections import Counter
from pathlib import Path
from types import ModuleType

import needle
from oracle.blame import judged
from oracle.cases import case as c
from oracle.cases.actions import Pass, Step
from oracle.cases.coverage import covered, missed
from oracle.cases.features import EDITS
from oracle.cases.strategies import op_cases
from oracle.runs import surface
from oracle.runs.draws import OP_NAMES, draw, independent, shard_cases

ROOT = Path(__file__).parents[2]
SHARDS = 3  # of seed 0, of which those cases are run that have something new, and a dozen more of each operation

PLAIN = c.ProgramCase(
    model=(c.Linear(3), c.Tanh(), c.Linear(2)), data=c.Data(rows=4, features=3), loss=c.SoftmaxLoss(), optimizer=c.SGD(lr=0.1, momentum=0.9),
    seed=0, actions=(Pass(), Step()),
)  # fmt: skip


def reached_by(cases):
    """What of needle's surface those of the cases call that are listened to in a run; the others are not judged here."""
    listener = surface.Listener(needle)
    for case in cases:
        if listener.tells_more(case):
            with listener.listening():
                judged(case, needle)
    return listener.reached


def steered_to(labels):
    """A program with each of the labels that is one of programs: as a run is steered to what the fewest of its cases have."""
    edits = {label: edit for label, edit in EDITS[c.ProgramCase].items() if label in labels}
    return [edit(PLAIN) for edit in edits.values()]


def test_what_needle_offers_is_what_the_cases_call():
    cases = [case for i in range(SHARDS) for case in shard_cases(0, i)]
    cases += draw("op", 16 * len(OP_NAMES), 0) + draw("program", 48, 0)
    # doors of theirs open to odd ranks alone, and need neither axes nor a correction
    cases += independent(op_cases(["minimum", "var"]), 80, 0)
    cases += steered_to(missed(Counter(label for case in cases for label in covered(case))))
    reached = reached_by(cases)
    items = surface.Surface(needle).items
    assert reached <= set(items)
    found = surface.problems(items, reached, surface.excuses(), ROOT)
    assert not found, "\n".join(["", *found])


def offered(**things):
    """A package that offers these, and nothing else."""
    module = ModuleType("fake")
    module.__all__ = list(things)
    for name, thing in things.items():
        thing.__module__ = "fake"
        setattr(module, name, thing)
    return module


def test_calls_keywords_and_defaults_are_told_apart(tmp_path):
    def scale(x, by=2.0, *, dtype=None):
        return x * by

    class Base:
        def run(self, times=1):
            return times

    class _Hidden:
        def step(self):
            return 0

    class Child(Base, _Hidden):
        pass

    _Hidden.__module__ = "fake"
    fake = offered(scale=scale, Base=Base, Child=Child)
    seen = surface.Surface(fake)
    with surface.Watch(seen) as watch:
        scale(1.0)
        scale(1.0, by=2.0)
        Child().run(times=3)
    unreached = [item for item in seen.items if item not in watch.reached]
    assert unreached == ["Base", "scale(by=…)", "scale(dtype=…)", "Base.run(times by default)", "Child.step"]
    with surface.Watch(seen) as watch:
        Base().run()
        Child().step()
    assert watch.reached == {"Base", "Base.run", "Base.run(times by default)", "Child", "Child.step"}


def test_what_is_wrong_with_the_list_is_said(tmp_path):
    (tmp_path / "test_it.py").write_text("scale(by=3)")
    items = ["scale", "scale(by=…)", "scale(dtype=…)", "Base", "fresh"]
    excuses = [
        surface.Excuse(("scale(*=…)",), ("test_it.py",), ""),
        surface.Excuse(("Base", "gone"), ("test_none.py",), ""),
        surface.Excuse(("scale",), ("test_it.py",), ""),
    ]
    found = surface.problems(items, {"scale"}, excuses, tmp_path)
    assert [text.partition(": let")[0] for text in found] == [
        "no case reaches fresh",
        "unreached.toml names test_none.py, which is no file",
        "unreached.toml lists gone, but needle has no such thing: take it out",
        "unreached.toml lists scale, but cases reach it: take it out",
        "test_none.py: said to check Base, which is not mentioned",
        "test_it.py: said to check scale(dtype=…), which is not mentioned",
    ]
    assert "let one call it" in found[0]
    assert "unreached.toml with the test that checks it" in found[0]
