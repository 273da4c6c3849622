"""The verdict on a case of any kind."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from oracle.cases import case as c
from oracle.rules import second_order, single_op, training
from oracle.rules.verdict import Verdict


def judge(case: c.Case, ndl: Any, *, peer_too: bool = True, validate: bool = False) -> Verdict:
    """The verdict on a case. ``peer_too`` applies rule P; ``validate`` checks the truth against torch float64."""
    with np.errstate(all="ignore"):
        if isinstance(case, c.TrainCase):
            return training.judge(case, ndl, peer_too=peer_too, validate=validate)
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


_keep_freed_memory()
