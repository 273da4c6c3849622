"""What is right in the place of what is wrong: correct needles stay correct, consequences go, and other mistakes stay."""

import sys
from collections import Counter
from pathlib import Path

import pytest
from needles.mistakes import CORRECT, MISTAKES

from oracle.apart import apart
from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import fitting
from oracle.cases.battery import battery
from oracle.rules.arrival import Explanation
from oracle.rules.verdict import Divergence, Suspect
from oracle.runs import basics, entries, hazards, instead, mended
from oracle.runs.result import Failed
from oracle.runs.shard import judge_all
from oracle.systems import candidate
from oracle.systems.ours.contract import contract_of

NEEDLES = Path(__file__).parents[2] / "needles"
KNOWN = {mistake.name: mistake for mistake in MISTAKES}
KEYS = (*(f"{kind} backward" for kind in instead.LAYERS), "SoftmaxLoss forward", *(f"Module.{m}" for m in instead.WALKS),
        hazards.EXPONENTIAL)  # fmt: skip


class Here:
    """A pool of this process."""

    def submit(self, function, *args):
        return Done(function(*args))


class Done:
    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value


def of(folder, function, *args):
    """In a child in which the needle of a folder is the one under test."""

    def called():
        for name in [name for name in sys.modules if name.partition(".")[0] == "needle"]:
            del sys.modules[name]  # ours, if some other test has imported it
        candidate.choose(folder)
        return function(*args)

    return apart(called)


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_needle_is_correct_with_all_that_can_be_put_in(name):
    def judged():
        ndl = candidate.candidate()
        lacking = fitting.LEFT_OPEN | {fitting.BROADCASTING, "backward second order"}
        lacking |= {fitting.SECOND} if contract_of(ndl).shared() else set()
        lacking |= {fitting.UNBIASED} if contract_of(ndl).unbiased else set()
        assert all(mended.mend(ndl, key) for key in KEYS)
        result = judge_all([case for case in battery(lacking) if isinstance(case, c.TrainCase | c.ProgramCase)][::2])
        return sum(result.cases.values()), [f.divergence.message for f in result.failed] + result.harness_errors

    judged_cases, found = of(NEEDLES / name, judged)
    assert judged_cases > 25
    assert not found


def run(*model, features=2, rows=2, **given):
    fields = {
        "data": c.Data(rows=rows, features=features),
        "loss": c.WeightedSum(),
        "optimizer": c.SGD(lr=0.1),
        "seed": 1,
    }
    return c.TrainCase(model=model, **(fields | given))


def told(folder, *cases):
    def judged():
        found = judge_all(cases).failed
        return Counter({f.culprit: f.count for f in found}), Counter(
            {f.culprit: f.count for f in entries.without_consequences(Here(), found)}
        )

    return of(folder, judged)


NORM = run(c.LayerNorm())
BEHIND_NORM = tuple(run(c.LayerNorm(), c.Linear(n), features=33, seed=s) for n in (64, 128) for s in range(4))


def test_what_a_wrong_layer_does_to_others_is_its_own(tmp_path):
    """The error of a norm is small at its output, and beyond what is allowed behind a product."""
    before, after = told(KNOWN["eps beside the root"].planted(tmp_path), NORM, *BEHIND_NORM)
    assert len(before) > 1, "nothing to fold"
    assert set(after) == {"LayerNorm forward in training mode"}
    assert after.total() == before.total()


def test_two_layers_that_are_wrong_are_two(tmp_path):
    mistake = KNOWN["eps beside the root"]
    folder = mistake.planted(tmp_path)
    nn = folder / "needle" / "nn.py"
    text = nn.read_text("utf-8")
    nn.write_text(text.replace("y = x @ self.weight\n", "y = x @ self.weight * 1.5\n"), "utf-8")
    _, after = told(folder, NORM, run(c.Linear(2)), *BEHIND_NORM)
    assert set(after) == {"LayerNorm forward in training mode", "Linear forward in training mode"}


@pytest.mark.parametrize(("own", "expected"), [(False, 1), (True, 2)])
def test_methods_of_module_that_go_the_same_way_miss_the_same(tmp_path, own, expected):
    """`arrays`: parameters() and train() both look into `_inside`; with a mistake of its own, eval() is told beside it."""
    mistake = KNOWN["parameters of a list are not found"]
    folder = mistake.planted(tmp_path)
    if own:
        nn = folder / "needle" / "nn.py"
        text = nn.read_text("utf-8")
        assert text.count("self.train(False)") == 1
        nn.write_text(text.replace("self.train(False)", "self.training = False"), "utf-8")
    listed = run(c.Branch((), (c.Linear(1),)), features=1)
    held = c.ProgramCase(
        model=(c.Linear(1),), data=c.Data(1, 1), loss=c.WeightedSum(), optimizer=c.SGD(lr=0.1), seed=1,
        actions=(a.Evaluate(),), held="list",
    )  # fmt: skip
    before, after = told(folder, listed, held)
    assert set(before) == {"Module.parameters", "Module.eval"}
    assert len(after) == expected


def test_a_walk_that_takes_every_path_is_counted_and_gets_no_deep_models(tmp_path):
    folder = KNOWN["every path is walked"].planted(tmp_path)
    assert of(folder, hazards.is_exponential)
    assert not of(NEEDLES / "named", hazards.is_exponential)
    doubled = c.Ops(tuple(c.OpStep("add", (i, i)) for i in range(10)))
    assert fitting.PATHS in fitting.needs(run(doubled, c.Linear(1)))
    assert fitting.PATHS not in fitting.needs(run(c.Ops(doubled.steps[:9]), c.Linear(1)))
    # six paths of the norm, two of the sum, and one beside the body
    assert fitting.paths((c.LayerNorm(), c.Residual((c.Ops(doubled.steps[:1]),)))) == 18


def test_what_rounds_otherwise_on_every_path_is_of_the_walk(tmp_path):
    folder = KNOWN["every path is walked"].planted(tmp_path)

    def judged():
        cases = [run(c.Linear(2), c.BatchNorm(), c.BatchNorm(), seed=s) for s in range(6)]
        found = judge_all(cases).failed
        return len(found), mended.gone(hazards.EXPONENTIAL, found)

    count, (own, answers) = of(folder, judged)
    assert count, "nothing to fold"
    assert own
    assert all(answers)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a result asks for no gradient", basics.ASKS),
        ("a tensor is the array that it is made of", basics.SHARED),
        ("gradients are added up", basics.ADDED),
        ("every path is walked", hazards.EXPONENTIAL),
    ],
)
def test_what_is_wrong_with_every_tensor_is_found_first_and_can_be_mended(tmp_path, name, key):
    def looked():
        ndl = candidate.candidate()
        before = basics.LOOKS[key](ndl)
        assert mended.mend(ndl, key)
        return before, basics.LOOKS[key](ndl)

    before, after = of(KNOWN[name].planted(tmp_path), looked)
    assert [entry.key for entry in before] == [key]
    assert before[0].place.startswith("needle/")
    assert before[0].theirs != before[0].exact
    assert after == []


def test_two_mistakes_that_show_in_the_same_way_are_two(tmp_path):
    """Where neither is mended alone, the other one still shows: they are mended one after the other."""
    one, other = KNOWN["a result asks for no gradient"], KNOWN["eps beside the root"]
    folder = one.planted(tmp_path, other)

    def judged():
        cases = [NORM, *(run(c.Linear(1), c.LayerNorm(), features=n, seed=n) for n in (1, 2, 3)), run(c.Linear(1))]
        kept, basic = entries.told_once(Here(), judge_all(cases).failed)
        return [failed.culprit for failed in kept], [entry.key for entry in basic]

    kept, basic = of(folder, judged)
    assert kept == ["LayerNorm forward in training mode"]
    assert basic == [basics.ASKS]


def test_the_bits_that_float64_leaves_where_nobody_looks_are_its_own(tmp_path):
    """Between layers that are looked at stand float32; where nobody looks, what a layer makes in float64 goes on as it is."""
    folder = KNOWN["float64 in evaluation"].planted(tmp_path)
    before, after = told(folder, *(run(c.Eval((c.BatchNorm(),)), rows=3, seed=seed) for seed in range(8)))
    assert set(before) == {
        "float64 of BatchNorm",
        "a chain of layers gives something else than the layers one by one (chain)",
    }
    assert set(after) == {"float64 of BatchNorm"}
    assert after.total() == before.total()


def update_of(
    kind, count, line="needle/optim.py:12", words=("the parameter stays what it was",), phase="parameter update"
):
    explained = tuple(Explanation(w, w) for w in words)
    suspect = Suspect(f"{kind} {phase}", line=line, explanations=explained)
    divergence = Divergence(0, "parameter", "0.weight", "L", f"{kind} is wrong", suspect=suspect)
    optimizer = {"SGD": c.SGD(), "Adam": c.Adam()}[kind]
    return Failed(run(c.Linear(2), optimizer=optimizer), divergence, count)


STAYS = update_of("SGD", 56, words=("the parameter stays what it was", "the old velocity is used"))


def test_a_step_that_two_optimizers_inherit_is_wrong_once():
    (one,) = entries.folded([update_of("Adam", 16), STAYS])
    assert (one.culprit, one.count, one.also) == ("SGD parameter update", 72, Counter({"Adam parameter update": 16}))


@pytest.mark.parametrize(
    "other",
    [
        update_of("Adam", 16, line="needle/optim.py:57"),  # a step of its own
        update_of("Adam", 16, words=("lr is doubled",)),  # in the same step, but something else
        update_of("Adam", 16, line=""),
        update_of("Adam", 16, phase="first moment update"),
    ],
)
def test_what_two_optimizers_do_wrong_in_two_ways_is_two(other):
    assert len(entries.folded([STAYS, other])) == 2
