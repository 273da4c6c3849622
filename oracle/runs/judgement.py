"""The verdict on a case, also where needle raises while it is looked at, or ends the process that it runs in."""

from __future__ import annotations

import os

import needle
from oracle.apart import Died, Frame, frames_of, home, is_interrupt, one_line, place, plain
from oracle.blame import judged, named
from oracle.cases import case as c
from oracle.rules.verdict import Divergence, Verdict
from oracle.systems.trace import ENDED, Failure


def verdict_on(case: c.Case, *, peer_too: bool = True, validate: bool = False) -> Verdict:
    """`oracle.blame.judged`, where code of needle may raise while the harness looks at what needle has made, too."""
    try:
        return judged(case, needle, peer_too=peer_too, validate=validate)
    except BaseException as error:
        frames = frames_of(error.__traceback__)
        if is_interrupt(error) or not any(file.startswith(home(needle) + os.sep) for file, _, _ in frames):
            raise
        return _looked_at(case, error, frames)


def _looked_at(case: c.Case, error: BaseException, frames: tuple[Frame, ...]) -> Verdict:
    phase = "being looked at"
    kind = plain(type(error).__name__)
    failure = Failure(phase, kind, one_line(error), place(frames, home(needle)))
    message = f"needle raised {kind} while {phase}: {failure.message}"
    found = Divergence(0, f"exception in {phase}", kind, "exception", message, failure=failure)
    return named(Verdict(case, found), needle)


def of_needle(death: Died) -> bool:
    """Whether the end of a process is needle's doing: in a phase of its own, in a line of its own, or by an exit, which no code
    of the harness has.
    """
    inside = any(os.path.abspath(file).startswith(home(needle) + os.sep) for file, _, _ in death.frames)
    return bool(death.doing) or inside or not (death.number or death.endless)


def died(case: c.Case, death: Died) -> Divergence:
    """The end of a process inside needle as a divergence."""
    step, _, phase = (death.doing or "0 being looked at").partition(" ")
    where = place(death.frames, home(needle)) if death.frames else ""
    failure = Failure(phase, ENDED, death.how + (f" in {where}" if where and not death.endless else ""), where)
    message = f"needle does not return from {phase}: {death}"
    found = Divergence(int(step), f"exception in {phase}", ENDED, "exception", message, failure=failure)
    verdict = named(Verdict(case, found), needle)
    assert verdict.divergence is not None
    return verdict.divergence
