"""A finding in the words of whoever wrote the needle: what is wrong, the smallest program, the numbers, the line.

An `Entry` is made in a child, because it runs the program and looks into the package.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import os
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from oracle.apart import home
from oracle.blame import program as written
from oracle.blame.course import SHARED
from oracle.blame.headline import number
from oracle.blame.locate import IN_THE_GRAPH
from oracle.cases import case as c
from oracle.operations import OPERATIONS
from oracle.rules.judge import judge
from oracle.rules.single_op import op_truth
from oracle.rules.verdict import BACKWARD, FORWARD, Divergence, Suspect
from oracle.systems import ours as ours_side
from oracle.systems import peer as peer_side
from oracle.systems.ours.contract import Course, contract_of
from oracle.systems.trace import CHANGED, ENDED, HIGHER

Array = npt.NDArray[Any]

ENDS, RAISES, WRONG, HAZARD, HINT = range(5)  # how bad, the worst first
SEVERITY = ("ends the process", "raises", "wrong numbers", "hazard", "hint")

# What NumPy 2 has removed, and what stands in its place.
_REMOVED = {
    "newshape": "shape", "product": "prod", "cumproduct": "cumprod", "sometrue": "any", "alltrue": "all", "in1d": "isin",
    "trapz": "trapezoid", "row_stack": "vstack", "float_": "float64", "complex_": "complex128", "Inf": "inf", "NaN": "nan",
    "infty": "inf", "mat": "asmatrix", "asfarray": "asarray", "find_common_type": "result_type", "round_": "round",
    "bool8": "bool_", "msort": "sort", "string_": "bytes_", "unicode_": "str_", "float": "float", "int": "int", "bool": "bool",
}  # fmt: skip


@dataclass
class Entry:
    """One finding."""

    key: str
    severity: int
    sentence: str
    place: str = ""  # "needle/ops.py:351 in Exp.gradient"
    program: str = ""
    theirs: str = ""
    torch: str = ""
    exact: str = ""
    count: int = 1
    again: str = ""  # the command that shows it again
    details: list[str] = field(default_factory=list)
    also: dict[str, int] = field(default_factory=dict)  # what it causes elsewhere, and how often
    ran: frozenset[str] = frozenset()  # functions of the package that ran in the case, for what follows from what
    follows: bool = False  # whether it may follow from another finding: not what is judged from numbers of its own
    higher: bool = False  # of the second derivatives or the third alone: the first ones agree


def entry(case: c.Case, divergence: Divergence, ndl: Any) -> Entry:
    """The finding of a failing case."""
    suspect = divergence.suspect or Suspect("something")
    failure = divergence.failure
    severity = (
        ENDS if failure is not None and failure.kind in (ENDED, CHANGED) else RAISES if failure is not None else WRONG
    )
    if divergence.rule == "dtype" or divergence.quantity in ("kept", "untouched"):
        severity = HAZARD
    made = Entry(suspect.key or suspect.what, severity, sentence(case, divergence, suspect), _place(suspect))
    following = (*FORWARD, *BACKWARD, "initial")
    made.follows = (divergence.quantity in following or failure is not None) and divergence.rule != "dtype"
    made.ran = functions_run(case, ndl) if made.follows and severity != ENDS else frozenset()
    made.higher = divergence.quantity in ("second", *HIGHER.values()) or (
        failure is not None and failure.phase.startswith(("second ", "third "))
    )
    summed = suspect.what.startswith("accumulation")
    try:
        made.program = _SUMMED if summed else written.program(case, divergence)
        if divergence.quantity == "parameters":
            made.program = _how_many(made.program)
            made.exact = str(len(ast.literal_eval(divergence.message.rpartition(", not ")[2])))
        printed, raised = run(made.program)
        made.theirs = raised or printed
    except (written.TooLong, ValueError, KeyError, IndexError, SyntaxError):
        pass
    if failure is not None:
        made.theirs = made.theirs if "Error" in made.theirs else f"{failure.kind}: {failure.message}"
    elif summed:
        made.exact = "[12.0, 12.0]"
    elif divergence.name.startswith("eval()"):
        made.exact = "False for every layer"
    elif isinstance(case, c.OpCase) and divergence.quantity in ("activation", "gradient"):
        _numbers_of_op(made, case, divergence, ndl)
    elif divergence.truth is not None and divergence.rule not in ("dtype", "exact"):
        at = divergence.place
        made.theirs = f"{at} is {number(divergence.ours)}"
        made.torch = "" if divergence.peer is None else number(divergence.peer)
        made.exact = number(divergence.truth)
    known = [suspect.words, suspect.known, suspect.place if "node" not in suspect.place else ""]
    if divergence.quantity in HIGHER.values():
        known = [suspect.words, "its first gradients agree"]  # each op right by itself says nothing of its derivatives
    made.details = [text for text in known if text and text not in made.sentence]
    return made


_SUMMED = """import numpy as np
import needle as ndl

x = ndl.Tensor(np.ones(2, dtype="float32"))
y = x * 1.0
(y * 2.0 + y * 3.0 + y * 7.0).sum().backward()
print(x.grad.numpy())
"""


def _how_many(program: str) -> str:
    """The model of a program, and how many parameters are found in it."""
    head, _, rest = program.partition("\nmodel = ")
    head = re.sub(r"\ndef put\(.*?\n\n\n", "\n", head, flags=re.DOTALL)
    return f"{head}\nmodel = {rest.partition(chr(10))[0]}\nprint(len(model.parameters()))\n"


def functions_run(case: c.Case, ndl: Any) -> frozenset[str]:
    """Names of all functions of the package that run in a case."""
    contract = contract_of(ndl)
    if isinstance(contract, Course):
        contract.hidden()  # what is tried out about the package once is no part of the case
    # a value that is computed late may be wrong only when it is looked at
    with functions_called(ndl) as found, contextlib.suppress(Exception):
        if isinstance(case, c.OpCase):
            ours_side.run_op(case, ndl, OPERATIONS[case.op].needle)
        else:
            judge(case, ndl, peer_too=False)
    return frozenset(found)


@contextlib.contextmanager
def functions_called(ndl: Any) -> Iterator[set[str]]:
    """Names of all functions of the package that are called meanwhile."""
    inside, found = home(ndl) + os.sep, set[str]()

    def note(frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(inside):
            found.add(frame.f_code.co_qualname)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(before)


def _place(suspect: Suspect) -> str:
    if not suspect.line:
        return ""
    function = suspect.key if re.fullmatch(r"[\w.<>]+\.[\w.<>]+", suspect.key) else ""
    return f"{suspect.line} in {function}" if function else suspect.line


def run(text: str) -> tuple[str, str]:
    """What a program prints, and what it raises."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), np.errstate(all="ignore"):
            exec(compile(text, "program", "exec"), {"__name__": "program"})
    except Exception as error:
        return "", f"{type(error).__name__}: {error}"
    return out.getvalue().strip(), ""


# -- what is wrong, in a sentence --------------------------------------------------------------------------------------


def sentence(case: c.Case, divergence: Divergence, suspect: Suspect) -> str:
    """One sentence."""
    failure = divergence.failure
    if failure is not None:
        return _of_failure(case, divergence, suspect)
    if divergence.rule == "dtype" and divergence.ours == "float64":
        return f"{_part(suspect.what.partition(',')[0], case)} makes float64 of float32"
    if suspect.what.startswith("accumulation"):
        return f"the gradient of a tensor that is used more than once is wrong: {suspect.words}"
    if isinstance(case, c.OpCase):
        return _of_op(case, divergence)
    if re.fullmatch(r"\w+\.(gradient|backward|gradient_as_tuple)", suspect.key):
        return f"the gradient rule {suspect.key} is wrong: {suspect.place.partition(', node')[0]}"
    if re.fullmatch(r"\w+\.(compute|forward)", suspect.key) and "node" in suspect.place:
        return f"{suspect.key} is wrong: {suspect.place.partition(', node')[0]}"
    return _of_model(case, divergence, suspect)


def _of_failure(case: c.Case, divergence: Divergence, suspect: Suspect) -> str:
    failure = divergence.failure
    assert failure is not None
    if failure.kind == CHANGED:
        return f"the state of the process is changed in {failure.phase}: {failure.message}"
    if failure.kind == ENDED:
        return f"{_subject(case)} does not return from {failure.phase}: {failure.message}"
    when = "when its value is asked for" if failure.phase == "being looked at" else f"in {failure.phase}"
    hint = removed(failure.kind, failure.message)
    return f"{_subject(case)} raises {failure.kind} {when}: {failure.message}{hint}"


def removed(kind: str, message: str) -> str:
    """What stands in the place of a name or a keyword that NumPy has not, or has no more."""
    found = re.search(r"keyword argument '(\w+)'", message) or re.search(
        r"module 'numpy' has no attribute '(\w+)'", message
    )
    found = found or re.search(r"`np\.(\w+)` was removed", message)
    if found is None:
        return ""
    name = found[1]
    keyword = "keyword" in message
    if name in _REMOVED and (keyword == (name == "newshape")):
        instead = f"`{_REMOVED[name]}=`" if keyword else f"`np.{_REMOVED[name]}`"
        return f" (NumPy 2 has removed `{name}`: write {instead})"
    if name in ("keep_dims", "axes", "keepdim", "dim"):
        right = {"keep_dims": "keepdims", "keepdim": "keepdims"}.get(name, "axis")
        return f" (NumPy calls it `{right}=`)"
    return ""


def _subject(case: c.Case) -> str:
    if isinstance(case, c.OpCase):
        return f"`{written.call_of(case)}`"
    for _, layer in c.walk(case.model):
        if isinstance(layer, c.Linear) and not layer.bias and len(case.model) == 1:
            return "Linear(bias=False)"
    kinds = dict.fromkeys(_layer(layer) for _, layer in c.walk(case.model))
    return f"a model of {', '.join(kinds)}"


def _layer(layer: c.Layer) -> str:
    kind = type(layer).__name__
    if isinstance(layer, c.Ops):
        return "ops"
    if isinstance(layer, c.Linear) and not layer.bias:
        return "Linear(bias=False)"
    return written.CLASSES.get(kind, kind)


def _of_op(case: c.OpCase, divergence: Divergence) -> str:
    text, quantity = written.call_of(case), divergence.quantity
    if quantity == "kept":
        return f"`{text}` writes into its operand {_operand(divergence)}"
    of = f"the gradient of `{text}` with respect to {_operand(divergence)}" if quantity == "gradient" else f"`{text}`"
    if quantity in HIGHER.values():
        by = "the incoming gradient" if divergence.name == "cotangent" else _operand(divergence)
        of = f"the {quantity.partition(' ')[0]} derivative of `{text}` with respect to {by}"
    if divergence.rule == "shape":
        return f"{of} has shape {divergence.ours}, not {divergence.truth}"
    if divergence.rule == "missing":
        return f"{of} is missing"
    return f"{of} is wrong"


def _operand(divergence: Divergence) -> str:
    place = divergence.name.rpartition(" ")[2]
    return written.NAMES[int(place)] if place.isdigit() and int(place) < len(written.NAMES) else "x"


def _part(what: str, case: c.Case) -> str:
    if isinstance(case, c.OpCase):
        return f"`{written.call_of(case)}`"
    for short, long in written.CLASSES.items():
        what = re.sub(rf"\b{short}\b", long, what)
    return what


def _of_model(case: c.Case, divergence: Divergence, suspect: Suspect) -> str:
    what, words = _part(suspect.what, case), suspect.words
    quantity = divergence.quantity
    if isinstance(case, c.ProgramCase) and divergence.name.startswith("eval()"):
        where = "" if case.held == "sequential" else f", where a module has its layers in a {case.held}"
        return f"{what}() does not reach every layer{where}"
    if suspect.key.endswith(SHARED):
        return f"{what}: what is done with one optimizer changes the state of another"
    if what in ("Module.train", "Module.eval"):
        return f"{what}() leaves a layer in the other mode: {suspect.place}"
    said = {
        " forward in training mode": "{} gives wrong values in training",
        " forward in evaluation mode": "{} gives wrong values in evaluation",
        " backward in evaluation mode": "gradients through {} in evaluation mode are wrong",
        f" {IN_THE_GRAPH}": "gradients through {} are wrong",
        " second backward": "second derivatives through {} are wrong",
        " running statistics": "{}: its running statistics are wrong",
        " constructor": "{}: its initial values are not those of the course",
        " forward": "{} gives wrong values",
        " backward": "gradients through {} are wrong",
    }
    for end, text in said.items():
        if what.endswith(end):
            text = text.format(what.removesuffix(end))
            break
    else:
        text = (
            f"{what} is wrong"
            if not what.endswith(("gradients", "parameters"))
            else f"{what}: {suspect.place or divergence.message}"
        )
    if quantity == "parameters":
        return divergence.message
    if divergence.rule in ("shape", "missing", "exact", "unexpected"):
        text = f"{what}: {divergence.message}"
    return f"{text}: {words}" if words else text


# -- numbers of a single operation ------------------------------------------------------------------------------------


def _numbers_of_op(made: Entry, case: c.OpCase, divergence: Divergence, ndl: Any) -> None:
    """Whole arrays, theirs and the right ones; and what theirs look like."""
    op, quantity, name = OPERATIONS[case.op], divergence.quantity, divergence.name
    with np.errstate(all="ignore"):
        value, grads = op_truth(case, None)
        right = (value if quantity == "activation" else grads[name])[0, 0]
        seen = ours_side.run_op(case, ndl, op.needle)
        peer = peer_side.run_op(case, functools.partial(op.torch, torch))
    theirs = seen.values.get(quantity, {}).get(name)
    if theirs is None:
        return
    made.theirs, made.exact = _array(theirs), _array(right)
    made.torch = _array(np.asarray(peer.values[quantity][name]))
    words = looks_like(case, divergence, theirs.astype(np.float64), right)
    if words:
        made.sentence = f"{made.sentence.removesuffix(' is wrong')} {words}"


def _array(array: Array) -> str:
    if array.size > 40:
        return f"array of shape {array.shape}"
    return str(np.vectorize(lambda v: float(f"{v:.6g}"), otypes=[float])(array).tolist() if array.size else [])


def looks_like(case: c.OpCase, divergence: Divergence, theirs: Array, right: Array) -> str:
    """What wrong numbers look like; empty if like nothing known."""
    if theirs.shape != right.shape:
        return ""
    if not np.isfinite(theirs).all() and np.isfinite(right).all():
        return "is not finite: it overflows on the way"
    verb = "returns" if divergence.quantity == "activation" else "is"
    for words, value in _guesses(case, divergence, right):
        close = value.shape == theirs.shape and np.allclose(theirs, value, rtol=1e-4, atol=1e-6)
        if close and not np.allclose(value, right, rtol=1e-4, atol=1e-6):
            return f"{verb} {words}"
    nonzero = np.abs(right) > 1e-6
    if nonzero.any() and np.allclose(theirs[~nonzero], 0, atol=1e-6):
        factors = theirs[nonzero] / right[nonzero]
        if factors.size > 1 and np.allclose(factors, factors.flat[0], rtol=1e-4):
            return f"{verb} {factors.flat[0]:.4g} times what it should be"
    return ""


def _guesses(case: c.OpCase, divergence: Divergence, right: Array) -> Iterator[tuple[str, Array]]:
    xs = [o.array.astype(np.float64) for o in case.operands]
    g, number_ = case.cotangent_array.astype(np.float64), float(case.attributes.get("c", 1.0))
    x = xs[0]
    with np.errstate(all="ignore"):
        if divergence.quantity == "activation":
            if case.op in ("rsub", "rdiv", "rpow"):
                sign, value = {"rsub": ("-", x - number_), "rdiv": ("/", x / number_), "rpow": ("**", x**number_)}[
                    case.op
                ]
                yield f"x {sign} {number_}", value
            yield "x as it is", x
        else:
            yield "the incoming gradient as it is", g
            if g.shape == x.shape:
                yield "the incoming gradient times x", g * x
                yield "the incoming gradient times the result", g * op_truth(case, None)[0][0, 0]
        yield "0", np.zeros_like(right)
        yield "the right one with the other sign", -right
        if right.ndim >= 2:
            yield "the right one transposed", np.swapaxes(right, -1, -2)
