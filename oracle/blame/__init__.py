"""Whose fault is it? The part of needle to look at, in words, with the line, and with what shows it again.

Rules give a divergence and evidence; `locate` hears two witnesses, the first bad tensor and the first bad node of the tape,
and names the operator, layer or phase of the optimizer. `words` says what an optimizer seems to do instead, `report` and
`script` write what a reader and a debugger need. `judged` is a verdict with its suspect.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from oracle.blame.course import refined
from oracle.blame.locate import culprit, investigate, suspect
from oracle.cases import case as c
from oracle.rules.judge import judge
from oracle.rules.verdict import Divergence, Evidence, Verdict
from oracle.systems.ours import is_ours
from oracle.systems.source import line_of

__all__ = ["culprit", "judged", "named", "suspect"]


def judged(case: c.Case, ndl: Any, *, peer_too: bool = True, validate: bool = False) -> Verdict:
    """`oracle.rules.judge.judge`, and who is to blame."""
    return named(judge(case, ndl, peer_too=peer_too, validate=validate), ndl)


def named(verdict: Verdict, ndl: Any) -> Verdict:
    """The verdict with its suspect, and the line of ``ndl`` where that is defined."""
    for i, beside in enumerate(verdict.beside):
        verdict.beside[i] = _suspected(verdict.case, beside, verdict.evidence_beside.get(i, Evidence()), ndl)
    if verdict.divergence is not None:
        verdict.divergence = _suspected(verdict.case, verdict.divergence, verdict.evidence, ndl)
    return verdict


def _suspected(case: c.Case, divergence: Divergence, evidence: Evidence, ndl: Any) -> Divergence:
    found = investigate(case, divergence, evidence)
    if found.definition and not found.line:
        found = dataclasses.replace(found, line=line_of(ndl, *found.definition))
    if not is_ours(ndl):
        found = refined(case, divergence, found, ndl)
    return dataclasses.replace(divergence, suspect=found)
