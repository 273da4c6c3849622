"""What is changed in needle's source: each mutant replaces the text of one node of the syntax tree.

An operator is a generator ``(site) -> (node, text)``: the node whose text is replaced, and by what. A `Site` is a node
together with where it stands. Generic operators come first, then the numeric ones that generic tools lack.

Not generated: ``inputs[0]`` → ``inputs[-1]``, swaps of commutative operands, and what `claims` leaves to unit tests.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from oracle.trust.mutants.claims import unclaimed
from oracle.trust.mutants.damage import CONDITIONS

LADDER = "ladder"
RUNGS = (4, 6, 8, 10, 12, 14, 16, 18, 20)  # k of a value scaled by 1 + 2⁻ᵏ
Change = tuple[ast.AST, str]
Function = ast.FunctionDef


@dataclass(frozen=True)
class Mutant:
    """One changed place."""

    key: str  # of the function's syntax tree, the operator, before, after: unrelated edits leave it as it is
    file: str
    function: str
    line: int
    operator: str
    before: str
    after: str
    start: int  # bytes of the source that are replaced …
    end: int
    text: str  # … by this
    reach: tuple[int, ...]  # lines one of which a case must run to notice anything; empty: any case might

    @property
    def kind(self) -> str:
        """Counted in the score, a place of the sensitivity ladder, or a probe for false alarms."""
        return {LADDER: "ladder", "rounding only": "probe"}.get(self.operator, "mutant")

    def apply(self, source: bytes, k: int = RUNGS[0]) -> bytes:
        """The mutated source; ``k`` is the rung of the ladder."""
        text = self.text.replace("RUNG", str(k))
        return source[: self.start] + text.encode() + source[self.end :]

    def __str__(self) -> str:
        return f"{self.file}.py:{self.line} {self.function}: {self.operator}: {self.before} → {self.after}"


@dataclass
class Site:
    """A node, and where it stands."""

    node: ast.AST
    parents: list[ast.AST]  # outermost first
    function: Function | None  # the innermost one
    outer: Function | None  # the outermost one
    name: str  # like "Tensor.backward"
    bound: set[str] = field(default_factory=set)  # names that the function has bound so far

    @property
    def parent(self) -> ast.AST:
        return self.parents[-1]

    @property
    def rule(self) -> bool:
        """Inside a gradient rule."""
        return self.outer is not None and self.outer.name == "vjp"

    @property
    def numeric(self) -> bool:
        """Inside a function that computes with arrays."""
        names = (
            "vjp",
            "compute",
            "kernel",
            "_adam",
            "_statistics",
            "_normalised",
            "forward",
            "clip_grad_norm",
        )
        own = {f.name for f in (self.function, self.outer) if f is not None}
        return bool(own & {*names, "_walk_arrays", "_reduced", "_sum_kept", "_column_sums", "_row_sums", "step"})


def _source(node: ast.AST) -> str:
    return ast.unparse(node)


def _called(node: ast.AST) -> str:
    """``np.add`` of a call of np.add; the name of the method of any other call."""
    if not isinstance(node, ast.Call):
        return ""
    f = node.func
    if isinstance(f, ast.Name):
        return f.id
    if isinstance(f, ast.Attribute):
        return f"np.{f.attr}" if isinstance(f.value, ast.Name) and f.value.id == "np" else f".{f.attr}"
    return ""


def _with(node: ast.AST, **fields: object) -> str:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return _source(changed)


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _wordy(node: ast.AST) -> bool:
    """Text, a list or a type: nothing to calculate with."""
    if isinstance(node, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp | ast.GeneratorExp):
        return True
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# -- generic ----------------------------------------------------------------------------------------------------------

_SWAPS: dict[type, type] = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
                            ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.Mod: ast.Add, ast.BitAnd: ast.BitOr}  # fmt: skip
_UFUNCS = {"np.add": "subtract", "np.subtract": "add", "np.multiply": "divide", "np.divide": "multiply",
           "np.sqrt": "square", "np.exp": "expm1", "np.log": "log1p", "np.maximum": "minimum", "np.tanh": "arctan",
           "np.zeros": "ones", "np.ones": "zeros", "np.zeros_like": "ones_like", "np.empty": "zeros"}  # fmt: skip
_COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt,), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt,), ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip


def arithmetic(s: Site) -> Iterator[Change]:
    n = s.node
    if (isinstance(n, ast.BinOp) and type(n.op) in _SWAPS and not _wordy(n.left) and not _wordy(n.right)) or (
        isinstance(n, ast.AugAssign) and type(n.op) in _SWAPS and not _wordy(n.value)
    ):
        yield n, _with(n, op=_SWAPS[type(n.op)]())
    elif isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.USub) and not isinstance(s.parent, ast.Subscript):
        yield n, f"({_source(n.operand)})"
    elif isinstance(n, ast.Call) and _called(n) in _UFUNCS and isinstance(n.func, ast.Attribute):
        yield n.func, f"np.{_UFUNCS[_called(n)]}"


def operand_dropped(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.BinOp) and not _wordy(n.left) and not _wordy(n.right) and type(n.op) in _SWAPS:
        yield n, f"({_source(n.left)})"
        if not isinstance(n.op, ast.Pow | ast.Mod | ast.FloorDiv):
            yield n, f"({_source(n.right)})"


def comparison(s: Site) -> Iterator[Change]:
    n = s.node
    if not isinstance(n, ast.Compare):
        return
    for i, op in enumerate(n.ops):
        for other in _COMPARISONS[type(op)]:
            yield n, f"({_with(n, ops=[*n.ops[:i], other(), *n.ops[i + 1 :]])})"


def condition(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.If | ast.IfExp | ast.While):
        if not isinstance(n.test, ast.Compare):
            yield n.test, f"(not ({_source(n.test)}))"
        if not _source(n.test).startswith("needs["):  # to compute what nobody asked for only costs time
            yield n.test, "True"
        yield n.test, "False"
    elif isinstance(n, ast.comprehension):
        for test in n.ifs:
            yield test, "True"
            yield test, "False"


def logic(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.BoolOp):
        yield n, f"({_with(n, op=ast.Or() if isinstance(n.op, ast.And) else ast.And())})"
        for i in range(len(n.values)):
            rest = [*n.values[:i], *n.values[i + 1 :]]
            yield n, f"({_source(rest[0]) if len(rest) == 1 else _with(n, values=rest)})"
    elif isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.Not):
        yield n, f"({_source(n.operand)})"


def constant(s: Site) -> Iterator[Change]:
    n = s.node
    if not isinstance(n, ast.Constant) or _is_axis(s) or _is_default(s):
        return
    if isinstance(s.parent, ast.keyword) and s.parent.arg == "strict":
        return
    if isinstance(n.value, bool):
        yield n, str(not n.value)
    elif isinstance(n.value, int):
        if isinstance(s.parent, ast.Subscript):  # which element: the next one, or the one before
            yield n, str(n.value + 1)
            return
        yield n, str(n.value + 1)
        yield n, str(n.value - 1)
    elif isinstance(n.value, float):
        yield n, str(2 * n.value)
        yield n, "0.0"


def default(s: Site) -> Iterator[Change]:
    n = s.node
    if not isinstance(n, ast.Constant) or not _is_default(s):
        return
    if isinstance(n.value, bool):
        yield n, str(not n.value)
    elif isinstance(n.value, int):
        yield n, str(n.value + 1)
    elif isinstance(n.value, float):
        yield n, str(n.value * 2 if n.value else 0.5)
        yield n, str(n.value / 10 if n.value else 1e-3)
    elif n.value == "float32":
        yield n, "'float64'"


def _is_default(s: Site) -> bool:
    return isinstance(s.parent, ast.arguments)


def argument_dropped(s: Site) -> Iterator[Change]:
    n = s.node
    if not isinstance(n, ast.Call):
        return
    for i, keyword in enumerate(n.keywords):
        if keyword.arg not in (None, "keepdims", "strict"):
            yield n, _with(n, keywords=[*n.keywords[:i], *n.keywords[i + 1 :]])
    name = _called(n)
    if len(n.args) > 1 and (name.startswith("np.") or name in ("_sum", "_max", "getattr")):
        yield n, _with(n, args=n.args[:-1])


_ORDERED = ("np.subtract", "np.divide", "np.matmul", "np.where", ".divide", ".power", ".matmul", ".dot", "_dot", "matmul",
            "np.full", ".on")  # fmt: skip


def arguments_swapped(s: Site) -> Iterator[Change]:
    n = s.node
    if not isinstance(n, ast.Call) or _called(n) not in _ORDERED:
        return
    if _called(n) == ".dot" and len(n.args) == 1 and isinstance(n.func, ast.Attribute):
        yield n, f"({_source(n.args[0])}).dot({_source(n.func.value)})"
    elif len(n.args) >= 2:
        at = 1 if _called(n) == "np.where" else 0
        args = [*n.args]
        args[at], args[at + 1] = args[at + 1], args[at]
        yield n, _with(n, args=args)


def statement_deleted(s: Site) -> Iterator[Change]:
    n = s.node
    gone = isinstance(n, ast.AugAssign | ast.Continue | ast.Break)
    gone |= isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and "_check" not in _called(n.value)
    gone |= isinstance(n, ast.Return) and (n.value is None or isinstance(s.parent, ast.If | ast.For))
    if isinstance(n, ast.Assign):
        # deleting the first binding of a name is a NameError and teaches nothing
        names = {t.id for target in n.targets for t in ast.walk(target) if isinstance(t, ast.Name)}
        elsewhere = [t for t in n.targets if isinstance(t, ast.Attribute | ast.Subscript)]
        gone |= bool(elsewhere) or (bool(names) and names <= s.bound)
    if gone:
        yield n, "pass"


def return_dropped(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.Return) and n.value is not None and _source(n.value) != "None":
        yield n, "return None"


def statements_swapped(s: Site) -> Iterator[Change]:
    body = getattr(s.node, "body", None)
    if not isinstance(body, list) or not s.numeric:
        return
    for first, second in itertools.pairwise(body):
        if not all(isinstance(n, ast.AugAssign | ast.Expr) and not _docstring(n) for n in (first, second)):
            continue
        if _written(first) & _names(second) or _written(second) & _names(first):
            span = ast.Pass(lineno=first.lineno, col_offset=first.col_offset,
                            end_lineno=second.end_lineno, end_col_offset=second.end_col_offset)  # fmt: skip
            yield span, f"{_source(second)}; {_source(first)}"


def _names(n: ast.AST) -> set[str]:
    return {x.id for x in ast.walk(n) if isinstance(x, ast.Name)}


def _written(n: ast.AST) -> set[str]:
    """The variable that a statement writes into: the target, or the last argument of a ufunc."""
    if isinstance(n, ast.AugAssign):
        return _names(n.target)
    if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and n.value.args:
        return _names(n.value.args[-1])
    return set()


def _docstring(n: ast.AST) -> bool:
    return isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)


def loop(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.For):
        yield n.iter, f"list({_source(n.iter)})[1:]"
        yield n.iter, f"list({_source(n.iter)})[:-1]"
        if s.outer is not None and s.outer.name == "forward":
            yield n.iter, f"list({_source(n.iter)})[::-1]"
    elif isinstance(n, ast.Call) and _called(n) == "reversed":
        yield n, _source(n.args[0])


def operand_replaced(s: Site) -> Iterator[Change]:
    """A parameter of a gradient rule or kernel in place of another."""
    n = s.node
    if not isinstance(n, ast.Name) or not isinstance(n.ctx, ast.Load) or s.function is None:
        return
    if s.function.name not in ("vjp", "kernel", "_adam", "compute", "_statistics", "_normalised"):
        return
    names = [a.arg for a in s.function.args.args if a.arg not in ("self", "needs")]
    if s.function.name == "vjp":
        others = [x for x in names if x != n.id]
        wanted = names[1] if n.id == "g" else "g" if n.id == "y" else (others[-1] if len(names) > 3 else "y")
    else:
        wanted = names[(names.index(n.id) + 1) % len(names)] if n.id in names else ""
    if n.id in names and wanted and wanted != n.id:
        yield n, wanted


# -- numeric ----------------------------------------------------------------------------------------------------------

_WITH_AXIS = (
    "_sum",
    "_max",
    "summation",
    "_sum_kept",
    "np.moveaxis",
    ".swapaxes",
    "np.stack",
    "_swap",
    "_kept",
    "np.flip",
)


def _is_axis(s: Site) -> bool:
    if not _number(s.node):
        return False
    inside = s.parents[-1]
    if isinstance(inside, ast.UnaryOp | ast.Tuple) and len(s.parents) > 1:
        inside = s.parents[-2]
    return (isinstance(inside, ast.keyword) and inside.arg in ("axis", "axes")) or _called(inside) in _WITH_AXIS


def axis_changed(s: Site) -> Iterator[Change]:
    n = s.node
    if _is_axis(s):
        assert isinstance(n, ast.Constant)
        assert isinstance(n.value, int)
        yield n, str(1 - n.value if n.value in (0, 1) else n.value - 1)
    elif isinstance(n, ast.Call) and _called(n) in ("_sum", "_max", "_kept", "_sum_kept"):
        for arg in n.args[1:]:
            if isinstance(arg, ast.Name | ast.Call):
                yield arg, f"({_source(arg)})[:1]"
                yield arg, f"({_source(arg)})[1:]"


def keepdims_dropped(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.Call) and any(k.arg == "keepdims" for k in n.keywords):
        yield n, _with(n, keywords=[k for k in n.keywords if k.arg != "keepdims"])


_FIRST = {"_swapped": "transpose", "_swap": "transpose", "transpose": "transpose", "_as_matrix": "reshape",
          "_reduced": "reshape", "reshape": "reshape", "np.asarray": "copy", "_in_dtype_of": "cast", "_whole": "whole",
          "_value": "value", "np.moveaxis": "transpose", "np.log": "function", "np.exp": "function", "np.abs": "function",
          "math.sqrt": "function", "_number": "cast", "_writable": "aliased", "_sum_kept": "sum", "_row_sums": "sum",
          "_fixed": "fixed", "np.sqrt": "function", "_checked": "check"}  # fmt: skip
_METHOD = {".swapaxes": "transpose", ".reshape": "reshape", ".copy": "copy", ".astype": "cast", ".detach": "detach",
           ".removeprefix": "text"}  # fmt: skip


def _taken_out(*wanted: str) -> Callable[[Site], Iterator[Change]]:
    """A call is replaced by its (main) operand."""

    def operator(s: Site) -> Iterator[Change]:
        n = s.node
        if isinstance(n, ast.Attribute) and n.attr == "T" and "transpose" in wanted and isinstance(n.ctx, ast.Load):
            yield n, f"({_source(n.value)})"
        if not isinstance(n, ast.Call):
            return
        name = _called(n)
        if _FIRST.get(name) in wanted and n.args and not isinstance(n.args[0], ast.Starred):
            last = 1 if name == "_fixed" and len(n.args) > 1 else 0
            yield n, f"({_source(n.args[last])})"
        elif _METHOD.get(name) in wanted and isinstance(n.func, ast.Attribute):
            yield n, f"({_source(n.func.value)})"
        elif name == ".on" and len(n.args) == 1 and isinstance(n.func, ast.Attribute):
            what = _called(n.func.value) or _source(n.func.value)
            kinds = {"Reshape": "reshape", "kept": "reshape", "BroadcastTo": "reshape", "Transpose": "transpose",
                     "Flip": "transpose", "_exp": "function", "_log": "function", "Summation": "sum"}  # fmt: skip
            if kinds.get(what, "function") in wanted:
                yield n, f"({_source(n.args[0])})"
        elif "copy" in wanted and name == "np.array":
            yield n.func, "np.asarray"

    return operator


def aliased(s: Site) -> Iterator[Change]:
    """An array that something else holds is handed out or written into."""
    n = s.node
    if isinstance(n, ast.Call) and _called(n) == "_writable":
        yield n, f"({_source(n.args[0])}).cached_data"
    elif isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Constant) and n.slice.value is ...:
        yield n, f"({_source(n.value)})"


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
        left, right = _source(n.left), _source(n.right)
        if _array(s, n.left):
            yield n, f"_m.in_place('{symbols[type(n.op)]}', {left}, {right})"
        if _array(s, n.right) and isinstance(n.op, ast.Add | ast.Mult):
            yield n, f"_m.in_place('{symbols[type(n.op)]}', {right}, {left})"


def augmented(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.AugAssign):
        yield n, f"{_source(n.target)} = {_source(n.value)}"
        if s.name.startswith("_walk"):  # elsewhere the array is the function's own, and a new one is as good
            whole = ast.BinOp(left=_loaded(n.target), op=n.op, right=n.value)
            yield n, f"{_source(n.target)} = {_source(whole)}"


def _loaded(n: ast.expr) -> ast.expr:
    return ast.parse(_source(n), mode="eval").body


def results(s: Site) -> Iterator[ast.expr]:
    """What a numeric function returns: each element of a tuple on its own."""
    n = s.node
    if isinstance(n, ast.Return) and n.value is not None and s.numeric:
        for part in n.value.elts if isinstance(n.value, ast.Tuple) else [n.value]:
            inner = part.body if isinstance(part, ast.IfExp) and _source(part.orelse) == "None" else part
            if not isinstance(inner, ast.Starred | ast.Constant) and _source(inner) not in ("x", "out", "norm"):
                yield inner


def outputs(s: Site) -> Iterator[ast.expr]:
    """What ops and layers return; the dtype of a gradient is not the rule's business but the walk's."""
    if s.outer is not None and s.outer.name in ("compute", "forward"):
        yield from results(s)


def hyperparameters(s: Site) -> Iterator[ast.expr]:
    """``float(self.lr)`` and its like, and what a layer hands to its op."""
    n = s.node
    if isinstance(n, ast.Call) and _called(n) == "float" and n.args and _source(n.args[0]).startswith("self."):
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
    if len(n.targets) == 1 and isinstance(n.targets[0], ast.Name) and _called(n.value) not in _NO_ARRAY:
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


def _wrapped(call: str, sites: Callable[[Site], Iterator[ast.expr]]) -> Callable[[Site], Iterator[Change]]:
    def operator(s: Site) -> Iterator[Change]:
        for n in sites(s):
            yield n, call.format(_source(n))

    return operator


def eps_moved(s: Site) -> Iterator[Change]:
    n = s.node
    if not isinstance(n, ast.BinOp) or not isinstance(n.op, ast.Pow) or not isinstance(n.left, ast.BinOp):
        return
    if isinstance(n.left.op, ast.Add) and "eps" in _source(n.left.right):
        yield n, f"({_source(n.left.left)} ** {_source(n.right)} + {_source(n.left.right)})"
        yield n, f"(({_source(n.left.left)}) + 0.1 * {_source(n.left.right)}) ** {_source(n.right)}"


def gradient_swapped(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.Return) and isinstance(n.value, ast.Tuple) and s.rule:
        parts = [p for p in n.value.elts if _source(p) != "None"]
        for i, part in enumerate(parts):
            inner = part.body if isinstance(part, ast.IfExp) else part
            yield inner, "None"
            if len(parts) > 1:
                other = parts[(i + 1) % len(parts)]
                yield inner, f"({_source(other.body if isinstance(other, ast.IfExp) else other)})"


def graph_kept(s: Site) -> Iterator[Change]:
    """no_grad, detach and freeing dropped."""
    n = s.node
    if isinstance(n, ast.withitem) and ("grad" in _source(n.context_expr)):
        yield n.context_expr, "__import__('contextlib').nullcontext()"
    elif isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load) and n.attr == "requires_grad":
        yield n, "True"
    elif isinstance(n, ast.Call) and _called(n) == ".make_const" and len(n.args) == 1 and not n.keywords:
        yield n, _with(n, args=[*n.args, ast.Constant(True)])


def mean_for_maximum(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.Call) and _called(n) == "_max":
        yield n.func, "_m.mean"


def rare(s: Site) -> Iterator[Change]:
    """1.5 times too large where a rare condition holds: two conditions per result, in turn."""
    names = list(CONDITIONS)
    for n in results(s):
        turn = int(hashlib.sha256(f"{s.name} {_source(n)}".encode()).hexdigest(), 16)
        for name in {names[turn % len(names)], names[(turn // 7 + 3) % len(names)]}:
            yield n, f"_m.rare({_source(n)}, '{name}')"


def rounding_only(s: Site) -> Iterator[Change]:
    """Correct code with other rounding: whoever kills it raises a false alarm."""
    n = s.node
    if isinstance(n, ast.Call) and s.numeric and not any(isinstance(a, ast.Starred) for a in n.args):
        if _called(n) in ("_sum", "np.matmul", ".dot", "np.tensordot", "np.exp", "np.log", "np.tanh"):
            args = ", ".join([*map(_source, n.args), *map(_source, n.keywords)])
            yield n, f"_m.wide({_source(n.func)}, {args})"
    elif isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div) and s.numeric and not _number(n.left):
        yield n, f"(({_source(n.left)}) * (1 / ({_source(n.right)})))"


OPERATORS: dict[str, Callable[[Site], Iterator[Change]]] = {
    # generic
    "arithmetic": arithmetic,
    "operand dropped": operand_dropped,
    "comparison": comparison,
    "condition": condition,
    "logic": logic,
    "constant": constant,
    "default": default,
    "argument dropped": argument_dropped,
    "arguments swapped": arguments_swapped,
    "statement deleted": statement_deleted,
    "statements swapped": statements_swapped,
    "return dropped": return_dropped,
    "loop": loop,
    "operand replaced": operand_replaced,
    # numeric
    "axis changed": axis_changed,
    "keepdims dropped": keepdims_dropped,
    "transpose dropped": _taken_out("transpose"),
    "reshape dropped": _taken_out("reshape"),
    "function dropped": _taken_out("function", "sum", "mean"),
    "copy dropped": _taken_out("copy"),
    "cast dropped": _taken_out("cast"),
    "detach dropped": _taken_out("detach", "fixed", "value"),
    "aliased": aliased,
    "in place": in_place,
    "augmented": augmented,
    "eps moved": eps_moved,
    "gradient swapped": gradient_swapped,
    "graph kept": graph_kept,
    "mean for maximum": mean_for_maximum,
    "float64": _wrapped("_m.cast({}, 'float64')", outputs),
    "float16": _wrapped("_m.rounded({}, 'float16')", values),
    "scaled by 1 + 2⁻⁴": _wrapped("_m.scaled({}, 4)", values),
    "rare": rare,
    "rounding only": rounding_only,
}
GENERIC = tuple(OPERATORS)[: tuple(OPERATORS).index("axis changed")]


# -- finding the sites ------------------------------------------------------------------------------------------------


def _guard(node: ast.AST) -> bool:
    """An ``if`` that only raises, or a ``try`` that only reports better."""
    if isinstance(node, ast.For):
        return all(_guard(b) for b in node.body)
    if isinstance(node, ast.If) and not node.orelse:
        body = [b for b in node.body if not isinstance(b, ast.Assign)]
        return len(body) == 1 and (isinstance(body[0], ast.Raise) or _guard(body[0]))
    return isinstance(node, ast.ExceptHandler)


def _skipped(node: ast.AST, parent: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert) or _docstring(node):
        return True
    if _guard(node):
        return True
    if isinstance(node, ast.If) and _source(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.expr):
        if isinstance(parent, ast.arg) or node in (
            getattr(parent, "returns", None),
            getattr(parent, "annotation", None),
        ):
            return True
        if isinstance(parent, ast.FunctionDef | ast.ClassDef) and node in [
            *parent.decorator_list,
            *getattr(parent, "bases", ()),
        ]:
            return True
        if (
            isinstance(parent, ast.Call)
            and _called(parent) in ("cast", "isinstance", "lru_cache")
            and node in parent.args
        ):
            # types, and tests of types: they choose between ways of calling
            return _called(parent) != "cast" or node is parent.args[0]
    return False


class _Finder:
    def __init__(self, file: str, source: bytes) -> None:
        self.file = file
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.source = source
        self.found: list[Mutant] = []
        self.seen: Counter[str] = Counter()
        self._dumps: dict[int, str] = {}

    def sites(self, tree: ast.Module) -> Iterator[Site]:
        bound: dict[int, set[str]] = {}

        def visit(
            node: ast.AST, parents: list[ast.AST], inner: Function | None, outer: Function | None, name: str
        ) -> Iterator[Site]:
            if parents and _skipped(node, parents[-1]):
                return
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                if outer is None:
                    name = f"{name}.{node.name}" if name else node.name
                if isinstance(node, ast.FunctionDef):
                    inner, outer = node, outer or node
                    if unclaimed(self.file, name) or node.name in ("__repr__", "__str__", "_settings"):
                        return
                    bound[id(node)] = {a.arg for a in node.args.args}
            if isinstance(node, ast.Assign | ast.AnnAssign) and outer is None and _source(node).startswith("__all__"):
                return
            known = bound.get(id(inner), set())
            yield Site(node, parents, inner, outer, name or "module", known)
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    known |= {t.id for t in ast.walk(target) if isinstance(t, ast.Name)}
            for child in ast.iter_child_nodes(node):
                yield from visit(child, [*parents, node], inner, outer, name)

        yield from visit(tree, [], None, None, "")

    def add(self, s: Site, operator: str, change: Change) -> None:
        node, text = change
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.lines[node.lineno - 1] + node.col_offset
        end = self.lines[node.end_lineno - 1] + node.end_col_offset
        before = _short(self.source[start:end].decode())
        if before == _short(text) or f"({before})" == _short(text):
            return
        identity = f"{self._hash(s)} {operator} {before} → {_short(text)}"
        self.seen[identity] += 1
        key = hashlib.sha256(f"{identity} {self.seen[identity]}".encode()).hexdigest()[:12]
        self.found.append(
            Mutant(key, self.file, s.name, node.lineno, operator, before, _short(text), start, end, text,
                   _reach(s, node))
        )  # fmt: skip

    def _hash(self, s: Site) -> str:
        where = s.outer if s.outer is not None else s.node
        if id(where) not in self._dumps:
            bare = copy.deepcopy(where)
            body = getattr(bare, "body", None)
            if isinstance(body, list) and body and _docstring(body[0]):
                del body[0]
            self._dumps[id(where)] = hashlib.sha256(f"{s.name} {ast.dump(bare)}".encode()).hexdigest()
        return self._dumps[id(where)]


def _short(text: str) -> str:
    return " ".join(text.split())


def _reach(s: Site, node: ast.AST) -> tuple[int, ...]:
    """The lines of which one must run before the mutant can matter."""
    if s.outer is None:
        return ()  # runs on import
    chain = [*s.parents, s.node, node]
    statements = [p for p in chain if isinstance(p, ast.stmt) and not isinstance(p, ast.FunctionDef | ast.ClassDef)]
    if any(isinstance(p, ast.arguments) for p in chain) or not statements:
        inner = s.function or s.outer
        return tuple(range(inner.lineno, (inner.end_lineno or inner.lineno) + 1))
    last = statements[-1]
    body = getattr(last, "body", None)
    end = last.end_lineno or last.lineno
    if isinstance(body, list) and body:
        end = max(last.lineno, body[0].lineno - 1)  # only the head of a compound statement
    return tuple(range(last.lineno, end + 1))


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a file, in the order of its lines; the ladder's last."""
    finder = _Finder(file, source)
    ladder: list[tuple[Site, Change]] = []
    for s in finder.sites(ast.parse(source)):
        for name, operator in OPERATORS.items():
            for change in operator(s):
                finder.add(s, name, change)
        ladder += [(s, change) for change in _wrapped("_m.scaled({}, RUNG)", rungs)(s)]
    for s, change in ladder:
        finder.add(s, LADDER, change)
    return [m for m in _distinct(finder.found) if _changes(m, source)]


def _distinct(mutants: list[Mutant]) -> Iterator[Mutant]:
    """Two operators may make the same change: the first one counts."""
    seen = set()
    for m in mutants:
        # "True", "(not (x))" and their like: compare the texts without outer brackets
        change = (m.start, m.end, _short(m.text).removeprefix("(").removesuffix(")"), m.kind == "ladder")
        if change not in seen:
            seen.add(change)
            yield m


def _changes(m: Mutant, source: bytes) -> bool:
    """The text is Python, and not the same thing in other words."""
    try:
        return _meaning(m.text) != _meaning(source[m.start : m.end].decode())
    except SyntaxError:
        return False


def _meaning(text: str) -> str:
    lines = text.split("\n")
    whole = "\n".join([lines[0], *(line.strip() for line in lines[1:])])  # brackets hold it together, not indentation
    try:
        return ast.dump(ast.parse(whole.strip(), mode="eval").body)
    except SyntaxError:
        body = ast.parse("while True:\n    def f():\n        " + text.strip() if "return" in text else
                         "while True:\n    " + text.strip())  # fmt: skip
        return ast.dump(body)
