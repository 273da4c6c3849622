"""Operators that generic tools lack: axes, shapes, copies and dtypes, what gradient rules return, rounding."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator

from oracle.trust.mutants.damage import CONDITIONS
from oracle.trust.mutants.site import (
    Change,
    Site,
    called,
    is_axis,
    is_number,
    text_of,
    text_with,
)


def axis_changed(s: Site) -> Iterator[Change]:
    n = s.node
    if is_axis(s):
        assert isinstance(n, ast.Constant)
        assert isinstance(n.value, int)
        yield n, str(1 - n.value if n.value in (0, 1) else n.value - 1)
    elif isinstance(n, ast.Call) and called(n) in ("_sum", "_max", "_kept", "_sum_kept"):
        for arg in n.args[1:]:
            if isinstance(arg, ast.Name | ast.Call):
                yield arg, f"({text_of(arg)})[:1]"
                yield arg, f"({text_of(arg)})[1:]"


def keepdims_dropped(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.Call) and any(k.arg == "keepdims" for k in n.keywords):
        yield n, text_with(n, keywords=[k for k in n.keywords if k.arg != "keepdims"])


_FIRST = {"_swapped": "transpose", "transpose": "transpose", "_as_matrix": "reshape",
          "_reduced": "reshape", "reshape": "reshape", "np.asarray": "copy", "_in_dtype_of": "cast", "_whole": "whole",
          "_value": "value", "np.moveaxis": "transpose", "np.log": "function", "np.exp": "function", "np.abs": "function",
          "math.sqrt": "function", "_number": "cast", "_writable": "aliased", "_sum_kept": "sum", "row_sums": "sum",
          "_fixed": "fixed", "np.sqrt": "function"}  # fmt: skip
_METHOD = {".swapaxes": "transpose", ".reshape": "reshape", ".copy": "copy", ".astype": "cast", ".detach": "detach",
           ".removeprefix": "text"}  # fmt: skip


def taken_out(*wanted: str) -> Callable[[Site], Iterator[Change]]:
    """A call is replaced by its (main) operand."""

    def operator(s: Site) -> Iterator[Change]:
        n = s.node
        if isinstance(n, ast.Attribute) and n.attr == "T" and "transpose" in wanted and isinstance(n.ctx, ast.Load):
            yield n, f"({text_of(n.value)})"
        if not isinstance(n, ast.Call):
            return
        name = called(n)
        if _FIRST.get(name) in wanted and n.args and not isinstance(n.args[0], ast.Starred):
            last = 1 if name == "_fixed" and len(n.args) > 1 else 0
            yield n, f"({text_of(n.args[last])})"
        elif _METHOD.get(name) in wanted and isinstance(n.func, ast.Attribute):
            yield n, f"({text_of(n.func.value)})"
        elif name == ".on" and len(n.args) == 1 and isinstance(n.func, ast.Attribute):
            what = called(n.func.value) or text_of(n.func.value)
            kinds = {"Reshape": "reshape", "kept": "reshape", "BroadcastTo": "reshape", "Transpose": "transpose",
                     "Flip": "transpose", "_exp": "function", "_log": "function", "Summation": "sum"}  # fmt: skip
            if kinds.get(what, "function") in wanted:
                yield n, f"({text_of(n.args[0])})"
        elif "copy" in wanted and name == "np.array":
            yield n.func, "np.asarray"

    return operator


def aliased(s: Site) -> Iterator[Change]:
    """An array that something else holds is handed out or written into."""
    n = s.node
    if isinstance(n, ast.Call) and called(n) == "_writable":
        yield n, f"({text_of(n.args[0])}).cached_data"
    elif isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Constant) and n.slice.value is ...:
        yield n, f"({text_of(n.value)})"


def _array(s: Site, n: ast.AST) -> bool:
    """A name that stands for an array of somebody else's: an operand, a gradient, what a tensor holds."""
    if isinstance(n, ast.Attribute):
        return n.attr == "cached_data"
    given = {a.arg for a in s.function.args.args} if s.function is not None else set()
    own = {
        "weight",
        "bias",
        "shape",
        "needs",
        "eps",
        "norm",
        "max_norm",
        "start",
    }  # too small for the result, or numbers
    return isinstance(n, ast.Name) and n.id in given - own


def in_place(s: Site) -> Iterator[Change]:
    n = s.node
    symbols = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
    if isinstance(n, ast.BinOp) and type(n.op) in symbols and s.numeric:
        left, right = text_of(n.left), text_of(n.right)
        if _array(s, n.left):
            yield n, f"_m.in_place('{symbols[type(n.op)]}', {left}, {right})"
        if _array(s, n.right) and isinstance(n.op, ast.Add | ast.Mult):
            yield n, f"_m.in_place('{symbols[type(n.op)]}', {right}, {left})"


def augmented(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.AugAssign):
        yield n, f"{text_of(n.target)} = {text_of(n.value)}"
        if s.name.startswith("_walk"):  # elsewhere the array is the function's own, and a new one is as good
            whole = ast.BinOp(left=_loaded(n.target), op=n.op, right=n.value)
            yield n, f"{text_of(n.target)} = {text_of(whole)}"


def _loaded(n: ast.expr) -> ast.expr:
    return ast.parse(text_of(n), mode="eval").body


def results(s: Site) -> Iterator[ast.expr]:
    """What a numeric function returns: each element of a tuple on its own."""
    n = s.node
    if isinstance(n, ast.Return) and n.value is not None and s.numeric:
        for part in n.value.elts if isinstance(n.value, ast.Tuple) else [n.value]:
            inner = part.body if isinstance(part, ast.IfExp) and text_of(part.orelse) == "None" else part
            if not isinstance(inner, ast.Starred | ast.Constant) and text_of(inner) not in ("x", "out", "norm"):
                yield inner


def outputs(s: Site) -> Iterator[ast.expr]:
    """What ops and layers return; the dtype of a gradient is not the rule's business but the walk's."""
    if s.outer is not None and s.outer.name in ("compute", "forward"):
        yield from results(s)


def hyperparameters(s: Site) -> Iterator[ast.expr]:
    """``float(self.lr)`` and its like, and what a layer hands to its op."""
    n = s.node
    if isinstance(n, ast.Call) and called(n) == "float" and n.args and text_of(n.args[0]).startswith("self."):
        yield n
    if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load) and isinstance(n.value, ast.Name):
        inside = s.outer is not None and s.outer.name in ("forward", "compute", "vjp", "_statistics", "_normalised")
        if n.value.id == "self" and n.attr in ("eps", "momentum", "p", "scalar", "c0", "c1") and inside:
            yield n


def intermediates(s: Site) -> Iterator[ast.expr]:
    """What a numeric function computes on the way."""
    n = s.node
    if not isinstance(n, ast.Assign) or not s.numeric or not isinstance(n.value, ast.BinOp | ast.Call):
        return
    if len(n.targets) == 1 and isinstance(n.targets[0], ast.Name) and called(n.value) not in _NO_ARRAY:
        yield n.value


_NO_ARRAY = ("_axes", "_kept", "len", "slice", "PutItem", "type", "Reshape", "_graph", "set", "_label_places", "float",
             "partial", "tuple", ".pop", ".get", "._gradients", "_state_of", "list", "slice", "._checked_out_grad")  # fmt: skip


def values(s: Site) -> Iterator[ast.expr]:
    yield from results(s)
    yield from hyperparameters(s)
    yield from intermediates(s)


def rungs(s: Site) -> Iterator[ast.expr]:
    """The places of the ladder: what ops return, and hyperparameters."""
    if s.outer is not None and s.outer.name in ("compute", "vjp"):
        yield from results(s)
    yield from hyperparameters(s)


def wrapped(call: str, sites: Callable[[Site], Iterator[ast.expr]]) -> Callable[[Site], Iterator[Change]]:
    def operator(s: Site) -> Iterator[Change]:
        for n in sites(s):
            yield n, call.format(text_of(n))

    return operator


def eps_moved(s: Site) -> Iterator[Change]:
    n = s.node
    if not isinstance(n, ast.BinOp) or not isinstance(n.op, ast.Pow) or not isinstance(n.left, ast.BinOp):
        return
    if isinstance(n.left.op, ast.Add) and "eps" in text_of(n.left.right):
        yield n, f"({text_of(n.left.left)} ** {text_of(n.right)} + {text_of(n.left.right)})"
        yield n, f"(({text_of(n.left.left)}) + 0.1 * {text_of(n.left.right)}) ** {text_of(n.right)}"


def gradient_swapped(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.Return) and isinstance(n.value, ast.Tuple) and s.rule:
        parts = [p for p in n.value.elts if text_of(p) != "None"]
        for i, part in enumerate(parts):
            inner = part.body if isinstance(part, ast.IfExp) else part
            yield inner, "None"
            if len(parts) > 1:
                other = parts[(i + 1) % len(parts)]
                yield inner, f"({text_of(other.body if isinstance(other, ast.IfExp) else other)})"


def graph_kept(s: Site) -> Iterator[Change]:
    """no_grad, detach and freeing dropped."""
    n = s.node
    if isinstance(n, ast.withitem) and ("grad" in text_of(n.context_expr)):
        yield n.context_expr, "__import__('contextlib').nullcontext()"
    elif isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load) and n.attr == "requires_grad":
        yield n, "True"
    elif isinstance(n, ast.Call) and called(n) == ".make_const" and len(n.args) == 1 and not n.keywords:
        yield n, text_with(n, args=[*n.args, ast.Constant(True)])


def mean_for_maximum(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.Call) and called(n) == "_max":
        yield n.func, "_m.mean"


def rare(s: Site) -> Iterator[Change]:
    """1.5 times too large where a rare condition holds: two conditions per result, in turn."""
    names = list(CONDITIONS)
    for n in results(s):
        turn = int(hashlib.sha256(f"{s.name} {text_of(n)}".encode()).hexdigest(), 16)
        for name in {names[turn % len(names)], names[(turn // 7 + 3) % len(names)]}:
            yield n, f"_m.rare({text_of(n)}, '{name}')"


def rounding_only(s: Site) -> Iterator[Change]:
    """Correct code with other rounding: whoever kills it raises a false alarm."""
    n = s.node
    if isinstance(n, ast.Call) and s.numeric and not any(isinstance(a, ast.Starred) for a in n.args):
        if called(n) in ("_sum", "np.matmul", ".dot", "np.tensordot", "np.exp", "np.log", "np.tanh"):
            args = ", ".join([*map(text_of, n.args), *map(text_of, n.keywords)])
            yield n, f"_m.wide({text_of(n.func)}, {args})"
    elif isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div) and s.numeric and not is_number(n.left):
        yield n, f"(({text_of(n.left)}) * (1 / ({text_of(n.right)})))"
