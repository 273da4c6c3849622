"""The verdict on a case, also where needle raises while it is looked at, or ends the process that it runs in."""

from __future__ import annotations

import dataclasses

from oracle.apart import Died, Frame, frames_of, is_interrupt, one_line, place, plain
from oracle.blame import judged, named
from oracle.blame.locate import investigate
from oracle.cases import case as c
from oracle.rules.verdict import Divergence, Evidence, Verdict
from oracle.systems.candidate import candidate, home, is_inside
from oracle.systems.ours import lines_of
from oracle.systems.trace import ENDED, Failure


def verdict_on(case: c.Case, *, peer_too: bool = True, validate: bool = False) -> Verdict:
    """`oracle.blame.judged`, where code of needle may raise while the harness looks at what needle has made, too."""
    needle = candidate()
    try:
        return judged(case, needle, peer_too=peer_too, validate=validate)
    except BaseException as error:
        frames = frames_of(error.__traceback__)
        if is_interrupt(error) or not any(is_inside(file) for file, _, _ in frames):
            raise
        return _looked_at(case, error, frames)


def _looked_at(case: c.Case, error: BaseException, frames: tuple[Frame, ...]) -> Verdict:
    phase = "being looked at"
    kind = plain(type(error).__name__)
    theirs = lines_of(error.__traceback__, home())
    failure = Failure(phase, kind, one_line(error), place(frames, home()), theirs=theirs)
    message = f"needle raised {kind} while {phase}: {failure.message}"
    found = Divergence(0, f"exception in {phase}", kind, "exception", message, failure=failure)
    return named(Verdict(case, found), candidate())


def of_needle(death: Died) -> bool:
    """Whether the end of a process is needle's doing: in a phase of its own, in a line of its own, or by an exit, which no code
    of the harness has.
    """
    inside = any(is_inside(file) for file, _, _ in death.frames)
    return bool(death.doing) or inside or not (death.number or death.endless)


def died(case: c.Case, death: Died) -> Divergence:
    """The end of a process inside needle as a divergence."""
    step, _, phase = (death.doing or "0 being looked at").partition(" ")
    where = place(death.frames, home()) if death.frames else ""
    failure = Failure(phase, ENDED, death.how + (f" in {where}" if where and not death.endless else ""), where)
    message = f"needle does not return from {phase}: {death}"
    found = Divergence(int(step), f"exception in {phase}", ENDED, "exception", message, failure=failure)
    return dataclasses.replace(found, suspect=investigate(case, found, Evidence()))
