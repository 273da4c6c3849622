"""Several faults at once: as many entries as faults, each with its own suspect and its count."""

import os

import pytest

import needle
from oracle.blame import culprit, judged, suspect
from oracle.cases import case as c
from oracle.rules.verdict import Divergence, Suspect
from oracle.runs import runner
from oracle.runs.result import Failed, Result
from oracle.trust.faults import FAULTS
from oracle.trust.kill_table import matches

TRIPLES = [
    ("tanh-backward", "sgd-decay-ignored", "bn-running-never"),
    # two that show in the same quantity under the same rule, and one that shows in three ways
    ("relu-backward-guided", "tanh-backward", "dropout-in-eval"),
]


@pytest.mark.parametrize("names", TRIPLES, ids="+".join)
def test_three_faults_are_three_entries(names, tmp_path):
    first, second, third = (FAULTS[name] for name in names)
    plan = runner.Plan(seed=1, cases=200, workers=os.cpu_count() or 1, digits=False, keep_going=True, folder=tmp_path)
    with (first.patch + second.patch + third.patch).applied():
        outcome = runner.run(plan)
        again = [judged(failed.case, needle).divergence for failed in outcome.failures]
    assert outcome.exit_code == 1
    assert outcome.result.oracle_errors == []
    named = [suspect(failed.case, failed.divergence) for failed in outcome.failures]
    assert len(named) == 3, named
    for name in names:
        assert sum(matches(FAULTS[name].suspect, text) for text in named) == 1, (name, named)
    assert sum(failed.count for failed in outcome.failures) == sum(failed.count for failed in outcome.result.failed)
    assert all(failed.count >= 5 for failed in outcome.failures), "and none is masked by the others"
    assert [culprit(f.case, d) for f, d in zip(outcome.failures, again, strict=True)] == [
        failed.culprit for failed in outcome.failures
    ], "the shrunk case still shows what the entry says"
    assert len(list(tmp_path.glob("*.json"))) == 3
    assert all(failed.case.digest in {path.stem for path in tmp_path.glob("*.json")} for failed in outcome.failures)


CASE = c.OpCase(op="tanh", operands=(c.Operand((1,), (1.0,)),))


def _failed(what: str, count: int) -> Failed:
    divergence = Divergence(0, "activation", "x", "G", "planted", suspect=Suspect(what))
    return Failed(CASE, divergence, count)


def test_what_follows_from_a_wrong_value_is_no_entry_of_its_own():
    result = Result()
    for what, count in [("LayerNorm backward", 2), ("Tanh backward", 3), ("LayerNorm forward", 40), ("clip scaling", 1),
                        ("clip norm", 5), ("Tanh second backward", 1), ("LayerNorm backward", 1)]:  # fmt: skip
        result.fold(_failed(what, count))
    result.fold_consequences()
    assert [(f.culprit, f.count, dict(f.also)) for f in result.failed] == [
        ("Tanh backward", 3, {}),
        ("LayerNorm forward", 43, {"LayerNorm backward": 3}),
        ("clip norm", 6, {"clip scaling": 1}),
        ("Tanh second backward", 1, {}),
    ]


def test_a_dropout_that_draws_in_evaluation_is_one_suspect_however_it_shows():
    def train(*model: c.Layer) -> c.TrainCase:
        data, loss = c.Data(rows=1, features=1), c.WeightedSum()
        return c.TrainCase(model=model, data=data, loss=loss, optimizer=c.SGD(lr=0.1), seed=0)

    zero = c.Ops((c.OpStep("mul_scalar", (0,), {"c": 0.0}),))
    named = {}
    with FAULTS["dropout-in-eval"].patch.applied():
        for case in (
            train(c.Linear(1), zero, c.Dropout()),
            train(c.Linear(1), c.Eval((c.Sequential((c.Dropout(),)),))),
        ):
            found = judged(case, needle).divergence
            assert found is not None
            named[found.quantity] = culprit(case, found)
    assert set(named.values()) <= {"Dropout forward in evaluation mode", "Dropout backward in evaluation mode"}
    assert named["untouched"] == "Dropout forward in evaluation mode"
