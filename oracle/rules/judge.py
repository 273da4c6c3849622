"""The verdict on a case of any kind."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from numpy._core import multiarray

from oracle.cases import case as c
from oracle.rules import precision, program, second_order, single_op, training
from oracle.rules.verdict import Divergence, Verdict
from oracle.systems.surroundings import around_a_case, without_advice
from oracle.systems.trace import CHANGED, Failure


def judge(case: c.Case, ndl: Any, *, peer_too: bool = True, validate: bool = False, evidence: bool = True) -> Verdict:
    """The verdict on a case. ``peer_too`` applies rule P; ``validate`` checks the truth against torch float64; without
    ``evidence``, nothing is looked for that says more about a divergence.

    If needle leaves the process otherwise than it was, that is the verdict: what has been compared was compared in a process
    in which torch may round otherwise, or not work at all. The state is put back.
    """
    before = around_a_case()
    try:
        verdict = _judge(case, ndl, peer_too=peer_too, validate=validate, evidence=evidence)
    except Exception:
        if changed := before.restore():
            return left_changed(case, changed)
        raise
    changed = before.restore()
    return left_changed(case, changed) if changed else verdict


def left_changed(case: c.Case, changed: list[str]) -> Verdict:
    """The verdict on a needle that has changed the state of the process."""
    failure = Failure("the case", CHANGED, "; ".join(changed))
    message = f"needle leaves the process otherwise than it was: {failure.message}"
    return Verdict(case, Divergence(0, "exception in the case", CHANGED, "exception", message, failure=failure))


def _judge(case: c.Case, ndl: Any, *, peer_too: bool, validate: bool, evidence: bool) -> Verdict:
    with np.errstate(all="ignore"), without_advice(ndl):
        verdict = _by_kind(case, ndl, peer_too=peer_too, validate=validate)
        if evidence:
            verdict.look()
        verdict.search = None  # it holds all of the run
    return verdict


def _by_kind(case: c.Case, ndl: Any, *, peer_too: bool, validate: bool) -> Verdict:
    if isinstance(case, c.TrainCase) and case.dtypes is not None:  # torch has no such model to stand beside it
        return training.judge(case, ndl, peer_too=False)
    if isinstance(case, c.TrainCase):
        return training.judge(case, ndl, peer_too=peer_too, validate=validate)
    if isinstance(case, c.ProgramCase):
        return program.judge(case, ndl, peer_too=peer_too, validate=validate)
    if isinstance(case, c.OpCase) and case.dtypes:
        return precision.judge(case, ndl)
    if isinstance(case, c.OpCase):
        return single_op.judge(case, ndl, peer_too)
    return second_order.judge(case, ndl)


def _keep_freed_memory() -> None:
    """glibc gives large blocks back to the system as soon as they are free, and gets them again, page by page: half of
    the time of the truth on wide models. (No other C library has, or needs, this switch.)
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(option, 1 << 30)


def _no_huge_pages() -> None:
    """NumPy asks Linux for huge pages where an array takes megabytes. To find, or make, as much room in one piece takes the system
    longer than a child, whose memory is all new, gains by it: two fifths of the time of the widest models.
    """
    getattr(multiarray, "_set_madvise_hugepage", bool)(False)


_keep_freed_memory()
_no_huge_pages()
