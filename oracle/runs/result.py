"""What a shard found, or several of them: counts, failing cases folded by culprit, and a digest."""

from __future__ import annotations

import hashlib
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from oracle.apart import is_interrupt, plain
from oracle.blame import culprit
from oracle.cases import case as c
from oracle.cases import coverage
from oracle.rules.verdict import Divergence, Tally, Verdict
from oracle.runs.judgement import verdict_on
from oracle.systems.candidate import candidate
from oracle.systems.ours import is_ours
from oracle.systems.trace import ENDED

# Checks of the oracle itself, on one case in so many, chosen by digest; a failing case gets both before it is reported.
PEER_SHARE = 4  # rule P
VALIDATION_SHARE = 8  # the truth against torch float64
OTHERS = 2  # cases of a failure that are kept beside the one that is told
# Groups of coverage for whose labels a run says how near its cases come to a limit: of an operation alone, and of a model.
ALONE, WITHIN = ("op", "shape"), ("layer",)


@dataclass
class Failed:
    """A failing case."""

    case: c.Case
    divergence: Divergence
    count: int = 1
    also: Counter[str] = field(default_factory=Counter)  # of these, cases in which only this consequence showed
    printed: bytes = b""  # by needle while the case was judged, cut at a size
    others: tuple[c.Case, ...] = ()  # some more of those cases, as they were drawn
    tried: dict[str, bool | None] = field(
        default_factory=dict
    )  # culprit -> whether all of this is gone where that is right

    @property
    def culprit(self) -> str:
        """What is to blame, without places."""
        return culprit(self.case, self.divergence)

    @property
    def endless(self) -> bool:
        """Whether needle does not come back."""
        failure = self.divergence.failure
        return failure is not None and failure.kind == ENDED and "does not come back" in failure.message


@dataclass
class Result:
    """What a shard found, or several of them."""

    cases: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    out_of_domain: int = 0
    left_out: int = 0
    absent: Counter[str] = field(default_factory=Counter)  # what another needle does not offer with some inputs
    tally: Tally = field(default_factory=Tally)
    coverage: Counter[str] = field(default_factory=Counter)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)  # see `near`
    seconds: dict[str, float] = field(default_factory=dict)  # what the time went into, see `oracle.systems.trace.Clock`
    cpu_seconds: float = 0.0  # of the processes that judged the generated cases
    largest_difference: float = 0.0
    common: int = 0  # tensors that needle and torch round alike, beyond what the noise allows
    failed: list[Failed] = field(default_factory=list)
    oracle_errors: list[str] = field(default_factory=list)  # the oracle contradicts itself
    harness_errors: list[str] = field(default_factory=list)  # the harness itself failed
    surface: dict[str, bool] = field(default_factory=dict)  # what needle offers, and whether the first cases call it
    unjudged: int = 0  # cases behind an endless loop in their shard: each of them could take as long
    digests: list[str] = field(default_factory=list)  # one per shard: cases and verdicts

    def add(self, other: Result) -> None:
        """Merge another result; failures are folded by culprit."""
        self.cases.update(other.cases)
        self.steps += other.steps
        self.out_of_domain += other.out_of_domain
        self.left_out += other.left_out
        self.absent.update(other.absent)
        self.tally.add(other.tally)
        self.coverage.update(other.coverage)
        for label, shares in other.shares.items():
            self._near(label, shares)
        self.spend(other.seconds)
        self.cpu_seconds += other.cpu_seconds
        self.largest_difference = max(self.largest_difference, other.largest_difference)
        self.common += other.common
        self.oracle_errors.extend(other.oracle_errors)
        self.harness_errors.extend(other.harness_errors)
        self.surface |= {item: called or self.surface.get(item, False) for item, called in other.surface.items()}
        self.unjudged += other.unjudged
        self.digests.extend(other.digests)
        for failed in other.failed:
            self.fold(failed)

    def spend(self, seconds: dict[str, float]) -> None:
        """Count time by what it went into."""
        for what, spent in seconds.items():
            self.seconds[what] = self.seconds.get(what, 0.0) + spent

    def fold(self, failed: Failed) -> None:
        """Count a failure, as one more of its kind where the kind is known."""
        for known in self.failed:
            if known.culprit == failed.culprit:
                known.count += failed.count
                known.others = (*known.others, failed.case, *failed.others)[:OTHERS]
                return
        self.failed.append(failed)

    def fold_consequences(self) -> None:
        """Fold what a part passes back into what it gives, where both are wrong, and clipping into its norm.

        A gradient rule builds on the value and on what was kept beside it: while the value is wrong, its verdict says
        nothing of its own.
        """
        by_culprit = {failed.culprit: failed for failed in self.failed}
        for failed in list(self.failed):
            before = (
                "clip norm" if failed.culprit == "clip scaling" else failed.culprit.replace(" backward", " forward")
            )
            cause = by_culprit.get(before)
            if cause is not None and cause is not failed:
                cause.count += failed.count
                cause.also[failed.culprit] += failed.count
                self.failed.remove(failed)

    @property
    def failing(self) -> int:
        """How many cases have failed."""
        return sum(failed.count for failed in self.failed)

    @property
    def digest(self) -> str:
        """The same seed and number of cases give the same digest, whatever the number of workers."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()[:16]

    def judge(self, case: c.Case, *, validate: bool | None = None) -> None:
        """Judge one case and count it."""
        try:
            number = int(case.digest, 16)
            verdict = verdict_on(
                case,
                peer_too=number % PEER_SHARE == 0,
                validate=number % VALIDATION_SHARE == 0 if validate is None else validate,
            )
        except BaseException as error:
            if is_interrupt(error):
                raise
            # a failure of the harness is a finding about the harness, and must not end the run
            last = plain(traceback.format_exc(limit=-2).strip(), 2000)
            self.harness_errors.append(f"{case.digest}: {c.describe(case)}: {last}")
            return
        self.count(verdict)

    def count(self, verdict: Verdict) -> None:
        """Count a verdict."""
        case = verdict.case
        self.cases[case.__struct_config__.tag] += 1  # type: ignore[index]
        self.steps += verdict.steps
        self.out_of_domain += verdict.out_of_domain
        self.tally.add(verdict.tally)
        labels = coverage.covered(case)
        self.coverage.update(labels)
        self.near(labels, verdict)
        self.spend(verdict.seconds)
        self.largest_difference = max(self.largest_difference, verdict.largest_difference)
        self.common += verdict.common
        self.oracle_errors.extend(f"{case.digest}: {c.describe(case)}: {e}" for e in verdict.oracle_errors)
        found = verdict.divergence
        if found is not None and found.failure is not None and found.failure.absent and not is_ours(candidate()):
            self.absent[f"{found.failure.kind}: {found.failure.message}"] += 1  # with these inputs
            found = None
        for divergence in (*verdict.beside, *([] if found is None else [found])):
            self.fold(Failed(case, divergence))

    def near(self, labels: Iterable[str], verdict: Verdict) -> None:
        """Note how near a case came to the limits: ``shares["op exp"]["G"]`` is the largest share of rule G's, in any tensor of
        the cases with that label, and ``["cases"]`` their number. Operations count where they stand alone.
        """
        shares = {"cases": 1.0}
        for key, share in verdict.tally.largest.items():
            rule = key.partition(" ")[0]
            shares[rule] = max(share, shares.get(rule, 0.0))
        alone = isinstance(verdict.case, c.OpCase)
        for label in labels:
            if label.partition(" ")[0] in (ALONE if alone else WITHIN) and "," not in label:
                self._near(label, shares)

    def _near(self, label: str, shares: Mapping[str, float]) -> None:
        known = self.shares.setdefault(label, {})
        for rule, share in shares.items():
            before = known.get(rule, 0.0)
            known[rule] = before + share if rule == "cases" else max(before, share)
