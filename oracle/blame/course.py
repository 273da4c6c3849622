"""Whose fault, in a needle of the course: named by its own functions, so that one mistake has one name wherever it shows.

Rules and blame speak of what ours has; here the suspect gets the function and the line of the package under test, and a key by which
what an op does wrong in layers and in chains of ops is the same finding.
"""

from __future__ import annotations

import dataclasses
import re
import types
from typing import Any

from oracle.cases import case as c
from oracle.cases import programs
from oracle.cases.actions import NewOptimizer
from oracle.rules.alone import known_ops
from oracle.rules.verdict import Divergence, Suspect
from oracle.systems.source import COMPUTE, GRADIENT, line_in, line_of, method_in
from oracle.systems.trace import CHANGED, ENDED

_REFLECTED = {"rsub": "__rsub__", "rdiv": "__rtruediv__", "rpow": "__rpow__", "subtract": "__sub__"}
_TENSOR = ("Tensor.", "Value.", "Op.", "TensorOp.", "TensorTupleOp.", "TensorTuple.", "Module.", "Function.")


SHARED = ", state of another optimizer"  # ends the key of what one of them does with that

_NAMES = (
    "AttributeError",
    "ImportError",
    "NameError",
    "TypeError",
)  # of a name that is not there: that line is to blame


def refined(case: c.Case, divergence: Divergence, found: Suspect, ndl: Any) -> Suspect:
    """The suspect, by what the package calls it."""
    failure = divergence.failure
    if divergence.rule == "dtype" and divergence.ours == "float64":
        what = re.sub(r" (forward|backward)\b.*", "", found.what)
        return dataclasses.replace(found, what=f"{what}, float64", key=f"float64 of {what}")
    if failure is not None:
        if failure.kind in (CHANGED, ENDED) or not failure.theirs:
            return found
        guilty = _innermost(failure.theirs) if failure.kind in _NAMES else _guilty(failure.theirs, failure.phase)
        if "NoneType" in failure.message:  # the layer that hands on what it has not is to blame
            layers = (p for p in failure.theirs if hasattr(ndl.nn, p.partition(" in ")[2].partition(".")[0]))
            guilty = next((p for p in layers if not p.partition(" in ")[2].startswith("Module.")), guilty)
        line, _, function = guilty.partition(" in ")
        return dataclasses.replace(
            found, what=function, line=line, place=f"{failure.kind} in {failure.phase}", key=function
        )
    if isinstance(case, c.ProgramCase) and divergence.quantity == "state":
        return _of_state(case, divergence, found, ndl)
    switches = found.what.startswith(
        "Module."
    )  # who has left a layer in the other mode is to blame for what it then does
    if divergence.quantity == "untouched" and not isinstance(case, c.OpCase) and not switches:
        owner = dict(c.walk(case.model)).get(divergence.name.rpartition(".")[0])
        if owner is not None:  # a buffer: what it must not do is the same mistake as what it then gives
            kind = type(owner).__name__
            what, line = f"{kind} forward in evaluation mode", line_of(ndl, f"nn.{owner.called or kind}", "forward")
            return dataclasses.replace(found, what=what, line=line, key=what)
    if isinstance(case, c.OpCase) and not found.line:
        return _of_op(case, found, ndl)
    return found


def _of_state(case: c.ProgramCase, divergence: Divergence, found: Suspect, ndl: Any) -> Suspect:
    """The state of an optimizer that is not the one at work: whatever is done, that is one mistake."""
    of = re.match(r"optimizer (\d+): (velocity|first moment|second moment|t)\b", divergence.name)
    made = sum(isinstance(action, NewOptimizer) for action in case.actions[: divergence.step])
    at_work = getattr(case.actions[divergence.step], "optimizer", None)  # of the one that is made, it is its kind
    if of is None or (isinstance(at_work, int) and int(of[1]) == at_work % (1 + made)):
        return found
    kind = programs.kind_at(case, divergence.step)
    line = line_of(ndl, f"optim.{kind}", "__init__")
    return dataclasses.replace(found, what=kind, line=line, key=f"{kind}{SHARED}")


def _guilty(theirs: tuple[str, ...], phase: str) -> str:
    """The line to look at: in a backward pass, the gradient rule that was at work; else where it was raised."""
    if "backward" in phase:
        for place in reversed(theirs):  # the outermost first: what it calls is asked for a wrong thing
            function = place.partition(" in ")[2]
            if function.endswith((".gradient", ".vjp", ".backward")) and not function.startswith(_TENSOR):
                return place
    return _innermost(theirs)


def _innermost(theirs: tuple[str, ...]) -> str:
    """The line that raised it, or called what raised it."""
    return next((place for place in theirs if not place.partition(" in ")[2].startswith(_TENSOR[2:])), theirs[0])


def _of_op(case: c.OpCase, found: Suspect, ndl: Any) -> Suspect:
    method = _REFLECTED.get(case.op)
    if method is not None:
        line = line_of(ndl, "Tensor", method)
        return dataclasses.replace(found, what=f"Tensor.{method}", line=line, key=f"Tensor.{method}")
    if case.op == "softmax_loss":
        line = line_of(ndl, "nn.SoftmaxLoss", "forward")
        return dataclasses.replace(found, what=found.what.replace("softmax_loss", "SoftmaxLoss"), line=line, key="")
    methods = GRADIENT if "backward" in found.what else COMPUTE
    for kind, known in known_ops(ndl).items():
        if known.name == case.op:  # as rule OP names it
            line, method = method_in(kind, *methods)
            return dataclasses.replace(found, line=line, key=f"{kind.__name__}.{method}" if method else found.key)
    for name, kind in vars(ndl.ops).items() if hasattr(ndl, "ops") else ():
        if isinstance(kind, type) and name.lower() == case.op.replace("_", ""):
            return dataclasses.replace(found, line=line_in(kind, *methods) or line_in(kind))
    line = line_of(ndl, f"ops.{case.op}") or line_of(ndl, case.op)
    function = getattr(getattr(ndl, "ops", ndl), case.op, None) or getattr(ndl, case.op, None)
    # an op that is a function, without a class: whatever else runs it may follow from it
    key = function.__qualname__ if isinstance(function, types.FunctionType) else found.key
    return dataclasses.replace(found, line=line, key=key)
