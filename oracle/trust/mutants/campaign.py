"""All mutants of a run: drawn cases, the unmutated baseline, the trials, and what is known to be equivalent."""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oracle import files
from oracle.cases import case as c
from oracle.commands import ROOT
from oracle.exits import ExitCode, decided
from oracle.runs import runner
from oracle.runs.draws import SHARD_SIZE, shard_cases
from oracle.trust.mutants import tested, trial
from oracle.trust.mutants.claims import ALL_FILES, named_tests
from oracle.trust.mutants.mutant import Mutant, mutants_of
from oracle.trust.mutants.operators import OPERATORS
from oracle.trust.mutants.trial import Judged, Outcome
from oracle.trust.source import source

BASELINE = Path("reports/baselines/mutants.json")
EXCUSED = Path("reports/baselines/mutants_excused.toml")
TABLE = Path("reports/mutants.md")
LATEST = Path("reports/latest/mutants.json")
PARTS = 5  # a run judges the mutants whose key is its seed modulo this: edits elsewhere do not change the sample
REACHING = 120  # models, of those that reach a mutant, after which it counts as alive; single operations are all tried
LADDER_CASES = 30  # per rung
REQUIRED, REQUIRED_NUMERIC = 0.95, 0.90


class NotAlive(RuntimeError):
    """The unmutated needle does not survive: nothing can be said about mutants."""


@dataclass(frozen=True)
class Excuse:
    """Why a mutant need not be killed."""

    kind: str  # "equivalent" or "unclaimed"
    reason: str


def excuses(path: Path) -> dict[str, Excuse]:
    """Mutants that need not be killed, by key: groups of ``"key text"`` lines that share a reason."""
    if not path.exists():
        return {}
    found: dict[str, Excuse] = {}
    for group in tomllib.loads(path.read_text("utf-8")).get("group", []):
        if group["kind"] not in ("equivalent", "unclaimed") or not group["reason"].strip():
            raise ValueError(f"{path}: kind must be equivalent or unclaimed, with a reason, but got {group['kind']!r}")
        for line in group["mutants"]:
            key = line.partition(" ")[0]
            if group["kind"] == "unclaimed" and not named_tests(group["reason"]):
                raise ValueError(f"{path}: {key} is unclaimed, and its reason names no test file that kills it")
            if key in found:
                raise ValueError(f"{path}: {key} is listed twice")
            found[key] = Excuse(group["kind"], group["reason"])
    return found


@dataclass
class Plan:
    """What to run."""

    files: Sequence[str] = ALL_FILES
    operators: Sequence[str] = tuple(OPERATORS)
    budget: int = 1000  # cases, at most
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    seed: int = 0
    part: tuple[int, int] = (0, PARTS)  # the mutants whose key is r modulo m
    diff: bool = True  # without it the unit tests alone
    tests: bool = True  # needle's unit tests judge what is theirs, and what diff leaves alive
    keys: frozenset[str] | None = None  # only these
    ladder: bool = True
    resume: bool = False  # what the last run killed stays killed, as far as nothing has changed since
    root: Path = ROOT
    draw: Callable[[int, int], Sequence[c.Case]] | None = None  # (seed, shard) -> cases


@dataclass
class Campaign:
    """What a run found."""

    plan: Plan
    mutants: list[Mutant] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    excused: dict[str, Excuse] = field(default_factory=dict)
    cases: int = 0
    interrupted: bool = False
    baseline_seconds: float = 0.0
    wall: float = 0.0

    def chosen(self, kind: str = "mutant") -> list[Mutant]:
        """The judged mutants of a kind."""
        return [m for m in self.mutants if m.kind == kind and m.key in self.outcomes]

    def counted(self) -> list[Mutant]:
        """The mutants of the score: judged and not excused."""
        return [m for m in self.chosen() if m.key not in self.excused]

    def survivors(self) -> list[Mutant]:
        """What should have been killed and was not, by diff nor by a unit test."""
        return [m for m in self.counted() if not _noticed(self.outcomes[m.key])]

    def resurrected(self) -> list[Mutant]:
        """Excused mutants whose reason is wrong: diff kills it; "equivalent", and a unit test fails; "unclaimed", and none does."""
        return [m for m in self.chosen() if m.key in self.excused and self._wrongly(m)]

    def _wrongly(self, m: Mutant) -> bool:
        outcome, kind = self.outcomes[m.key], self.excused[m.key].kind
        return wrongly(kind, outcome.status, outcome.test, self.plan.tests)

    def false_alarms(self) -> list[Mutant]:
        """Probes, which only round differently, that were killed: by a rule about rounding, and not because one of two ways that
        needle promises the same bits of was changed.
        """
        outcomes = self.outcomes
        return [m for m in self.chosen("probe") if is_alarm(outcomes[m.key].status, outcomes[m.key].rule)]

    @property
    def exit_code(self) -> ExitCode:
        """0 good; 1 an excused mutant was killed, a probe raised an alarm, or too few were killed; 130 interrupted."""
        wrong: object = self.resurrected() or self.false_alarms()
        if not wrong and not self.interrupted:
            overall, numeric = score([self.outcomes[m.key] for m in self.counted()])
            wrong = overall < REQUIRED or numeric < REQUIRED_NUMERIC
        return decided(part=wrong, interrupted=self.interrupted)


def is_alarm(status: str, rule: str) -> bool:
    """Whether what became of a probe is a false alarm; one that ends in a crash, without a rule, is one too."""
    return status == "killed" and rule != "exact"


def wrongly(kind: str, status: str, test: str, tested: bool) -> bool:
    """Whether an excuse is shown to be wrong."""
    if status == "killed":
        return True
    return tested and bool(test) != (kind == "unclaimed")


def _noticed(outcome: Outcome) -> bool:
    return outcome.status == "killed" or bool(outcome.test)


def score(outcomes: Iterable[Outcome]) -> tuple[float, float]:
    """The share killed, and the share killed of those that do not crash."""
    outcomes = list(outcomes)
    killed = sum(map(_noticed, outcomes))
    calm = [o for o in outcomes if not o.crashed]
    share = killed / len(outcomes) if outcomes else 1.0  # all are excused: nothing is missed
    return share, sum(map(_noticed, calm)) / len(calm) if calm else 1.0


def run(plan: Plan, progress: Callable[[Campaign, str], None] = lambda campaign, text: None) -> Campaign:
    """Judge all mutants of a plan. Ctrl-C ends it early with what is known so far."""
    started = time.perf_counter()
    campaign = Campaign(plan, excused=excuses(plan.root / EXCUSED))
    texts = trial.sources(plan.root)
    for file in plan.files:
        for m in mutants_of(file, texts[file]):
            if _chosen(m, plan) and (plan.tests or not m.by_tests):
                campaign.mutants.append(m)
    if not campaign.mutants:
        return campaign
    if plan.resume:
        here = {m.key for m in campaign.mutants}
        campaign.outcomes = {k: o for k, o in resumed(plan, read(plan.root / LATEST)).items() if k in here}
    try:
        judged, always = _baseline(campaign, texts, progress)
        campaign.baseline_seconds = time.perf_counter() - started
        for stage in _stages(campaign, judged, always) if plan.diff else ():
            for mutant, outcome in trial.try_mutants(texts, stage, plan.workers):
                _record(campaign, mutant, outcome)
                campaign.wall = time.perf_counter() - started
                progress(campaign, "judging")
        if plan.tests:
            for mutant, outcome in _before_the_tests(campaign, texts):
                _record_test(campaign, mutant, outcome)
                campaign.wall = time.perf_counter() - started
                progress(campaign, "unit tests")
    except KeyboardInterrupt:
        campaign.interrupted = True
    campaign.wall = time.perf_counter() - started
    return campaign


def _chosen(m: Mutant, plan: Plan) -> bool:
    if plan.keys is not None:
        return m.key in plan.keys
    if m.kind == "ladder":  # every hyperparameter, and every fourth result of an op
        return plan.ladder and (m.file in ("nn", "optim") or int(m.key, 16) % 4 == 0)
    return m.operator in plan.operators and int(m.key, 16) % plan.part[1] == plan.part[0]


def _baseline(
    campaign: Campaign, texts: trial.Sources, progress: Callable[[Campaign, str], None]
) -> tuple[list[Judged], trial.Lines]:
    plan = campaign.plan
    draw = plan.draw or shard_cases
    shards = range(max(1, -(-plan.budget // SHARD_SIZE)))
    if not plan.diff or all(m.by_tests for m in campaign.mutants):
        return [], frozenset()
    found: dict[int, list[Judged]] = {}
    always: trial.Lines = frozenset()
    runner.warm_up()
    for shard, judged, lines in trial.try_baseline(texts, shards, lambda i: draw(plan.seed, i), plan.workers):
        found[shard], always = judged, lines
        campaign.cases = sum(map(len, found.values()))
        progress(campaign, "unmutated needle")
    judged = [j for shard in sorted(found) for j in found[shard]][: plan.budget]
    campaign.cases = len(judged)
    for j in judged:
        if j.failure:
            raise NotAlive(f"the unmutated needle fails on {j.case.digest}, {c.describe(j.case)}: {j.failure}")
    return judged, always


Stage = Iterator[tuple[Mutant, Sequence[tuple[int, Judged]]]]


def _stages(campaign: Campaign, judged: Sequence[Judged], always: trial.Lines) -> Iterator[Stage]:
    """Every mutant on the first cases that reach it; then those that are still alive on all others."""
    mutants = [m for m in campaign.mutants if not m.by_tests and m.key not in campaign.outcomes]
    reaching = {m.key: _reaching(m, judged, always) for m in mutants}
    for m in mutants:
        if not reaching[m.key]:
            campaign.outcomes[m.key] = Outcome("unreached")
    todo = [m for m in mutants if reaching[m.key]]
    plain = [m for m in todo if m.kind != "ladder"]
    yield ((m, reaching[m.key][: trial.FIRST]) for m in plain)
    alive = [m for m in plain if campaign.outcomes[m.key].status == "survived"]
    # the longest first, so that no worker is left alone with one at the end
    rest = {m.key: _rest(reaching[m.key]) for m in alive}
    alive.sort(key=lambda m: -sum(j.seconds for _, j in rest[m.key]))
    yield ((m, rest[m.key]) for m in alive if rest[m.key])
    yield ((m, reaching[m.key][:LADDER_CASES]) for m in todo if m.kind == "ladder")


def _reaching(m: Mutant, judged: Sequence[Judged], always: trial.Lines) -> list[tuple[int, Judged]]:
    lines = {(m.file, line) for line in m.reach}
    if not lines or lines & always:
        return list(enumerate(judged))
    return [(i, j) for i, j in enumerate(judged) if not lines.isdisjoint(j.lines)]


def _rest(reaching: Sequence[tuple[int, Judged]]) -> list[tuple[int, Judged]]:
    """What a mutant that outlives its first cases is judged on."""
    models = [(i, j) for i, j in reaching if not isinstance(j.case, c.OpCase)][:REACHING]
    last = models[-1][0] if len(models) == REACHING else len(reaching) and reaching[-1][0]
    return [(i, j) for i, j in reaching[trial.FIRST :] if isinstance(j.case, c.OpCase) or i <= last]


def _record(campaign: Campaign, mutant: Mutant, outcome: Outcome) -> None:
    if outcome.status == "invalid":
        campaign.mutants.remove(mutant)
        campaign.outcomes.pop(mutant.key, None)
        return
    before = campaign.outcomes.get(mutant.key)
    if before is not None:
        outcome.cases += before.cases
        outcome.doubtful += before.doubtful
        outcome.fired += before.fired
        outcome.oracle_errors = (before.oracle_errors + outcome.oracle_errors)[: trial.ORACLE_ERRORS]
    campaign.outcomes[mutant.key] = outcome


def _before_the_tests(campaign: Campaign, texts: trial.Sources) -> Iterator[tuple[Mutant, Outcome]]:
    """Needle's unit tests on what is theirs, and on what diff leaves alive, excused or not."""
    tasks: list[tuple[Mutant | None, Sequence[str]]] = []
    for m in campaign.mutants:
        outcome = campaign.outcomes.get(m.key) if campaign.plan.diff else Outcome("survived")
        if m.kind == "mutant" and (m.by_tests if outcome is None else outcome.status != "killed"):
            excuse = campaign.excused.get(m.key)
            tasks.append((m, tested.judges_of(m, excuse.reason if excuse and excuse.kind == "unclaimed" else "")))
    every = sorted({path for _, paths in tasks for path in paths})
    for _, outcome in tested.try_tests(texts, [(None, every)] if every else [], 1):
        if outcome.status != "survived":
            raise NotAlive(f"needle as it is fails {outcome.test or outcome.how}: no unit test can judge a mutant")
    seen = tested.watched(texts, every, campaign.plan.workers) if len(tasks) >= tested.MANY else None
    for mutant, outcome in tested.try_tests(texts, tasks, campaign.plan.workers, seen):
        assert mutant is not None
        yield mutant, outcome


def _record_test(campaign: Campaign, mutant: Mutant, outcome: Outcome) -> None:
    if outcome.status == "invalid":
        campaign.mutants.remove(mutant)
        campaign.outcomes.pop(mutant.key, None)
    elif mutant.by_tests:
        campaign.outcomes[mutant.key] = outcome
    else:  # diff has left it alive: what tests say of it is told, and decides about its excuse
        kept = campaign.outcomes.setdefault(mutant.key, Outcome("survived"))
        kept.test = outcome.test or ("(import)" if outcome.status == "killed" else "")
        kept.oracle_errors += outcome.oracle_errors


# -- files ------------------------------------------------------------------------------------------------------------


def to_json(campaign: Campaign) -> dict[str, Any]:
    """Everything that is kept of a run."""
    plan = campaign.plan
    return {
        "seed": plan.seed,
        "budget": plan.budget,
        "source": source(plan.root),
        "cases": campaign.cases,
        "part": list(plan.part),
        "tests": plan.tests,
        "note": "",
        "complete": not campaign.interrupted and plan.keys is None and set(plan.files) == set(ALL_FILES)
        and set(plan.operators) == set(OPERATORS),
        "mutants": {
            m.key: {
                "file": m.file, "function": m.function, "line": m.line, "kind": m.kind, "operator": m.operator,
                "before": m.before, "after": m.after,
                **{k: v for k, v in asdict(campaign.outcomes[m.key]).items() if v},
                **({"excused": campaign.excused[m.key].kind} if m.key in campaign.excused else {}),
            }
            for m in campaign.mutants if m.key in campaign.outcomes
        },
    }  # fmt: skip


def resumed(plan: Plan, kept: dict[str, Any]) -> dict[str, Outcome]:
    """What an earlier run of the same seed and source has killed; all else is judged anew."""
    if (kept.get("seed"), kept.get("budget"), kept.get("source")) != (plan.seed, plan.budget, source(plan.root)):
        return {}
    fields = Outcome.__dataclass_fields__
    killed = {k: v for k, v in kept["mutants"].items() if v["status"] == "killed"}
    return {k: Outcome(**{name: x for name, x in v.items() if name in fields}) for k, v in killed.items()}


def write(path: Path, content: dict[str, Any]) -> None:
    """One mutant a line, so that a diff of two runs can be read."""
    files.save(path, files.in_lines(content, "mutants"))


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; empty if there is nothing yet."""
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {"mutants": {}}


def keys_of(root: Path, *wanted: str) -> frozenset[str]:
    """Keys of the mutants of today's source that a run of all judges."""
    texts, every = trial.sources(root), Plan(part=(0, 1))
    found = (m for file in wanted or ALL_FILES for m in mutants_of(file, texts[file]))
    return frozenset(m.key for m in found if _chosen(m, every))


def strangers(root: Path, files: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Keys that no mutant of today's source has."""
    texts = trial.sources(root)
    here = {m.key for file in files for m in mutants_of(file, texts[file])}
    return [key for key in keys if key not in here]


def still_there(root: Path, kept: dict[str, Any]) -> dict[str, Any]:
    """What a run has found, without the mutants of source that has been edited since."""
    here = keys_of(root)
    return {**kept, "mutants": {k: v for k, v in kept["mutants"].items() if k in here}}


def excusing(content: dict[str, Any], excused: Mapping[str, Excuse]) -> dict[str, Any]:
    """What a run has found, with the excuses of today."""
    rows = {k: {name: x for name, x in row.items() if name != "excused"} for k, row in content["mutants"].items()}
    for key in rows.keys() & excused.keys():
        rows[key]["excused"] = excused[key].kind
    return {**content, "mutants": rows}


def survivors_of(path: Path) -> frozenset[str]:
    """Keys of the mutants that nobody killed in a run, excused ones not counted."""
    found = read(path)["mutants"].items()
    left = (
        k
        for k, v in found
        if v["kind"] == "mutant" and v["status"] != "killed" and "excused" not in v and not v.get("test")
    )
    return frozenset(left)


def with_tests(kept: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any]:
    """What the unit tests alone have found, beside what diff had found before of the mutants that it judges."""
    return {
        k: {
            **{name: x for name, x in kept[k].items() if name != "test"},
            **({"test": row["test"]} if row.get("test") else {}),
        }
        if k in kept and kept[k]["status"] != "killed" and row["status"] != "killed"
        else row
        for k, row in rows.items()
    }
