"""What is told of another needle: one entry for one mistake, the worst first.

What an op does wrong shows in every layer and every chain that uses it: it is told once, where it is smallest, with the number of
cases in which it showed. Another finding follows from it if it is gone where that op, or that layer, is right (`mended`); that a case
runs the same function says nothing, and counts only where nothing can be tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from oracle.apart import Broken, Died, apart
from oracle.blame.entry import HAZARD, RAISES, Entry, entry
from oracle.cases import case as c
from oracle.commands import Asked
from oracle.rules.verdict import FORWARD
from oracle.runs import basics, hazards, mended
from oracle.runs.result import Failed
from oracle.runs.workers import Does
from oracle.systems.candidate import candidate
from oracle.systems.trace import UNSEEN

CAUSES = 12  # that are tried; there are hardly ever as many
TOLD = 30  # findings that get a sentence and a program; there are hardly ever as many


def told_once(pool: Does, found: Sequence[Failed]) -> tuple[list[Failed], list[Entry]]:
    """Without what follows from another finding, and what is wrong with the package as a whole (`basics`)."""
    basic: list[Entry] = pool.submit(basics.found).result()
    kept = folded(without_programs(pool, found))
    right: list[str] = []
    for one in basic:
        own, answers = pool.submit(mended.gone, one.key, kept, right).result()
        right += [one.key] if own else []
        for failed, gone in zip(kept[:], answers, strict=True):
            if gone:
                one.also[failed.culprit] = failed.count
                kept.remove(failed)
        one.count = sum(one.also.values()) or 1
    return without_consequences(pool, kept, right), basic


def folded(found: Sequence[Failed]) -> list[Failed]:
    """Without what is the same mistake by what it is called."""
    kept = list(found)
    by_key = {failed.culprit: failed for failed in kept}
    ops = {failed.case.op: failed for failed in kept if isinstance(failed.case, c.OpCase)}
    for failed in found:
        cause = _cause(failed, by_key, ops) or _of_both(failed, found)
        if cause is not None and cause is not failed and cause in kept:
            cause.count += failed.count
            cause.also[failed.culprit] += failed.count
            kept.remove(failed)
    return kept


def _cause(failed: Failed, by_key: dict[str, Failed], ops: dict[str, Failed]) -> Failed | None:
    key = failed.culprit
    # a gradient rule builds on the value
    for end, before in (
        (".gradient", ".compute"),
        (".vjp", ".compute"),
        (".backward", ".forward"),
        (" backward", " forward"),
    ):
        if key.endswith(end) and key.removesuffix(end) + before in by_key:
            return by_key[key.removesuffix(end) + before]
    if isinstance(failed.case, c.OpCase):
        return None
    # what has no modes is the same mistake in both of them
    kind = key.partition(" ")[0]
    if key == f"{kind} forward in evaluation mode" and kind not in ("BatchNorm", "Dropout"):
        known = by_key.get(f"{kind} forward in training mode") or by_key.get(f"{kind} forward")
        if known is not None:
            return known
    # a chain of ops is the harness's own: what is wrong with it is wrong with one of the ops, or with the walk
    if re.match(r"Ops\b", key):
        steps = [s.op for _, layer in c.walk(failed.case.model) if isinstance(layer, c.Ops) for s in layer.steps]
        return next((ops[op] for op in steps if op in ops), None)
    return ops.get(c.ACTIVATIONS[kind].op) if kind in c.ACTIVATIONS else None


def _of_both(failed: Failed, found: Sequence[Failed]) -> Failed | None:
    """The same of another optimizer, more often: in the step that both inherit, with an explanation that fits both. What it is given,
    gradients and state, agrees there.
    """
    kind, _, phase = failed.culprit.partition(" ")
    if phase != "parameter update":
        return None
    line, words = _explained(failed)
    for other in found:
        same = other.culprit.endswith(f" {phase}") and not other.culprit.startswith(f"{kind} ")
        if same and (other.count, other.culprit) > (failed.count, failed.culprit):
            its_line, its_words = _explained(other)
            if line and line == its_line and words & its_words:
                return other
    return None


def _explained(failed: Failed) -> tuple[str, set[str]]:
    """The line of a finding, and what explains its numbers."""
    suspect = failed.divergence.suspect
    return (suspect.line, {e.words for e in suspect.explanations}) if suspect else ("", set())


def without_consequences(pool: Does, found: Sequence[Failed], right: Sequence[str] = ()) -> list[Failed]:
    """Without what is gone once another one is mended, in all cases that are known of it; ``right`` is mended already."""
    kept, mends = list(found), list(right)
    promotes = [failed for failed in kept if failed.culprit.startswith(mended.PROMOTES)]
    causes = [failed for failed in kept if failed not in promotes and mended.can_be_mended(failed.culprit)]
    causes.sort(key=_before)
    for cause in causes[:CAUSES]:
        others = [failed for failed in kept if failed is not cause and failed.culprit not in mends]
        if cause not in kept:
            continue
        cause.tried[cause.culprit], answers = pool.submit(mended.gone, cause, others, mends).result()
        if not cause.tried[cause.culprit]:
            continue
        # what is mended already is gone of course: would it be gone if it were not?
        for known in [failed for failed in kept if failed.culprit in mends]:
            rest = [key for key in mends if key != known.culprit]
            _, one = pool.submit(mended.gone, cause, [known], rest).result()
            others, answers = [*others, known], [*answers, *one]
        mends.append(cause.culprit)
        for failed, answer in zip(others, answers, strict=True):
            failed.tried[cause.culprit] = answer
            if answer:
                _into(cause, failed)
                kept.remove(failed)
    # Who looks at the layers has float32 between them: a layer that makes float64 shows other bits where nobody does. What else
    # is wrong with it is another mistake, although it is gone too where the whole layer is right.
    for cause in promotes:
        bits = [failed for failed in kept if failed.divergence.name.endswith(UNSEEN)]
        if cause in kept and bits and mended.can_be_mended(cause.culprit):
            own, answers = pool.submit(mended.gone, cause, bits, mends).result()
            for failed in [failed for failed, answer in zip(bits, answers, strict=True) if own and answer]:
                _into(cause, failed)
                kept.remove(failed)
    return kept


def _before(failed: Failed) -> tuple[bool, bool, bool, int]:
    """Which of two that are both gone with one another is told: an op is never wrong because of a layer, what a module finds in itself
    shows in what it has, gradients build on values, and else it is the one that shows more often.
    """
    of_an_op, found = isinstance(failed.case, c.OpCase), failed.culprit == "Module.parameters"
    return not of_an_op, not found, failed.divergence.quantity not in FORWARD, -failed.count


def _into(cause: Failed, failed: Failed) -> None:
    cause.count += failed.count
    cause.also[failed.culprit] += failed.count
    cause.also.update(failed.also)


def without_programs(pool: Does, found: Sequence[Failed]) -> list[Failed]:
    """A program whose plain training run fails too is a case of what fails there: the same mistake is told of a model."""
    kept = [failed for failed in found if not isinstance(failed.case, c.ProgramCase)]
    tasks = [
        (failed, pool.submit(mended.plainly, failed)) for failed in found if isinstance(failed.case, c.ProgramCase)
    ]
    for failed, task in tasks:
        plain: list[Failed] = task.result()
        known = next((one for one in kept for other in plain if one.culprit == other.culprit), None)
        if known is not None:
            known.count += failed.count
            known.also[failed.culprit] += failed.count
        elif plain:
            kept.append(plain[0])
        else:
            kept.append(failed)
    return kept


def described(failed: Failed) -> Entry:
    """The entry of a failing case, made in a child."""
    try:
        made = apart(_entry, failed, heard=bytearray())
    except (Died, Broken):
        suspect = failed.divergence.suspect
        made = Entry(failed.culprit, HAZARD, failed.divergence.message, suspect.line if suspect else "")
    made.count, made.also = failed.count, dict(failed.also)
    return made


def _entry(failed: Failed) -> Entry:
    return entry(failed.case, failed.divergence, candidate())


def entries(
    pool: Does,
    failures: Sequence[Failed],
    asked: Asked,
    again: str,
    required: Sequence[str],
    progress: Callable[[str], None],
    lacking: frozenset[str] = frozenset(),
    basic: Sequence[Entry] = (),
) -> list[Entry]:
    """All entries, the worst first; ``lacking`` as for `cases.battery`, ``basic`` as in `told_once`."""
    wrong = [one.key for one in basic if one.also]
    wrong += [f.culprit for f in failures if f.tried.get(f.culprit) and f.divergence.failure is None]
    known = {f.culprit for f in failures}
    hidden = pool.submit(mended.behind, wrong, known, lacking) if wrong else None
    progress("looking for hazards")
    task = pool.submit(hazards.hazards)
    told = [pool.submit(described, failed) for failed in failures[:TOLD]]
    found: list[Entry] = [
        Entry(f"required {name}", HAZARD, f"{name} is required, and is not offered", again=again) for name in required
    ]
    for of_all in basic:
        of_all.again = again
    found += basic
    of: dict[int, Failed] = {}  # of which failing case an entry is
    for failed, made in zip(failures, told, strict=False):
        progress("telling what is wrong")
        one: Entry = made.result()
        one.again = asked.replay(failed.case.digest)
        found.append(one)
        of[id(one)] = failed
    for one in hidden.result() if hidden is not None else ():
        one.again = again
        found.append(one)
    try:
        for one in task.result():
            one.again = asked.memory() if one.key.startswith("growth") else again
            found.append(one)
    except (Broken, Died):
        pass

    def tried(one: Entry, cause: Entry) -> bool | None:
        return of[id(one)].tried.get(cause.key) if id(one) in of else None

    return sorted(_causes(_once(found), tried), key=lambda e: (e.severity, -e.count))


def _causes(found: Sequence[Entry], tried: Callable[[Entry, Entry], bool | None]) -> list[Entry]:
    """Without what follows from another finding: its case runs a function that another, smaller case finds wrong, and with
    that function mended it is gone. Where that cannot be ``tried``, to run it is enough, with two exceptions: where rule OP has
    looked at all ops of a model and found each of them right, what is wrong is the model's own (an operator of Tensor is no op of its
    own, and may be the cause of that too); and what raises makes no wrong numbers.
    """
    kept = sorted(found, key=lambda e: len(e.ran))
    promotion = next((e for e in kept if e.key.startswith(mended.PROMOTES)), None)
    for one in kept[::-1]:
        if promotion is not None and one.severity == RAISES and "float64" in one.sentence:
            promotion.count += one.count
            promotion.also[one.key] = promotion.also.get(one.key, 0) + one.count
            kept = [e for e in kept if e is not one]
            continue
        right = any("every node of the tape is right" in text and "as far as" not in text for text in one.details)
        for cause in kept:
            touches = cause.key.endswith((" seeds", " draws")) and cause.place == one.place
            runs = cause.key in one.ran and len(cause.ran) < len(one.ran)
            if cause is one or not (touches or (one.follows and runs)):
                continue
            if cause.higher and not one.higher:  # its first gradients agree
                continue
            evidence = None if touches else tried(one, cause)
            if evidence is False:
                continue
            if touches and one.key.endswith("forward in training mode"):  # it is wrong in both modes: that is told
                one.details.append(cause.sentence)
                kept = [e for e in kept if e is not cause]
                break
            of_tensor = cause.key.startswith("Tensor.") or "writes into" in cause.sentence
            if (
                evidence is None
                and not touches
                and ((right and not of_tensor) or one.severity > cause.severity == RAISES)
            ):
                continue
            cause.count += one.count
            cause.also[one.key] = cause.also.get(one.key, 0) + one.count
            kept = [e for e in kept if e is not one]
            break
    return kept


def _once(found: Sequence[Entry]) -> list[Entry]:
    """Entries of the same key are one."""
    kept: dict[str, Entry] = {}
    for one in found:
        known = kept.setdefault(one.key, one)
        if known is not one:
            known.count += one.count
    return list(kept.values())
