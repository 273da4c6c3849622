"""The smallest case that fails as a failing case does, each try in a child where needle may end it."""

from __future__ import annotations

import dataclasses

from oracle.apart import Broken, Died, apart, begin
from oracle.blame import culprit
from oracle.blame.words import common, told
from oracle.cases import case as c
from oracle.cases import shrink
from oracle.rules.verdict import Divergence, Verdict
from oracle.runs.judgement import died, of_needle, verdict_on
from oracle.runs.result import Failed
from oracle.runs.shard import judge_all
from oracle.systems.trace import ENDED

DEADLY_TRIES = 40  # of smaller cases, each in a process of its own
ENDLESS_TRIES = 12  # of smaller cases that may not come back
ENDLESS_SECONDS = 2.0  # for one of those
SHRINK_SECONDS = 10.0  # for one try of a smaller case


def shrink_failure(failed: Failed) -> tuple[Failed, list[str]]:
    """The smallest case that fails in the same quantity, and what the oracle has to say against itself."""
    if failed.divergence.name == ENDED:
        return _shrink_deadly(failed), []
    heard = bytearray()
    try:
        smaller, errors = apart(_shrink_failure, failed, patience=SHRINK_SECONDS, heard=heard)
    except Died:  # a smaller case does worse; what is known is kept
        return failed, []
    heard.clear()
    try:
        smaller.divergence, errors = apart(_once_more, smaller, heard=heard)
    except Died:
        return failed, []
    smaller.printed = bytes(heard)
    return smaller, errors


def _shrink_deadly(failed: Failed) -> Failed:
    """The smallest case that ends its process, or does not come back, in the same place: a child for each try."""
    known = {failed.case.digest: (failed.divergence, failed.printed)}
    patience = ENDLESS_SECONDS if failed.endless else None

    def fails(case: c.Case) -> bool:
        heard = bytearray()
        try:
            apart(judge_all, [case], patience=patience, heard=heard)
        except Died as death:
            if not of_needle(death) or death.endless != failed.endless:
                return False
            found = died(case, death)
            known[case.digest] = found, bytes(heard)
            # an endless loop is somewhere else each time that it is looked at
            return death.endless or culprit(case, found) == failed.culprit
        except Broken:
            pass  # a case that the harness cannot count
        return False

    smallest = shrink.shrink(failed.case, fails, ENDLESS_TRIES if failed.endless else DEADLY_TRIES)
    divergence, printed = known[smallest.digest]
    return dataclasses.replace(failed, case=smallest, divergence=divergence, printed=printed)


def _shrink_failure(failed: Failed) -> tuple[Failed, list[str]]:
    def fails(case: c.Case) -> bool:
        begin()
        try:
            found = _of_its_kind(verdict_on(case), failed)
        except Exception:
            return False
        # a smaller case may fail elsewhere in the model, but in the same way, and the same part must be to blame: with
        # several faults, the case of a rare one could end as one more case of a common one
        if found is None or (found.quantity, found.rule) != (failed.divergence.quantity, failed.divergence.rule):
            return False
        return culprit(case, found) == failed.culprit

    return dataclasses.replace(failed, case=shrink.shrink(failed.case, fails)), []


def _once_more(failed: Failed) -> tuple[Divergence, list[str]]:
    """The last judgement of a case that is reported, with all that the oracle has to say against itself."""
    begin()
    verdict = verdict_on(failed.case, validate=True)
    found = _of_its_kind(verdict, failed) or verdict.divergence or failed.divergence
    return _explaining_both(found, failed.divergence), verdict.oracle_errors


def _explaining_both(smaller: Divergence, larger: Divergence) -> Divergence:
    """What a mistake would give may fit a small case by chance: the words must explain the case before it was shrunk, too."""
    new, old = smaller.suspect, larger.suspect
    if new is None or old is None or not (new.explanations or old.explanations):
        return smaller
    fit = common(new.explanations, old.explanations)
    return dataclasses.replace(smaller, suspect=dataclasses.replace(new, words=told(fit), explanations=fit))


def _of_its_kind(verdict: Verdict, failed: Failed) -> Divergence | None:
    """What a verdict says that is the same finding: a case may have findings beside the one that ends it."""
    told = [d for d in (verdict.divergence, *verdict.beside) if d is not None]
    return next((d for d in told if culprit(verdict.case, d) == failed.culprit), verdict.divergence)
