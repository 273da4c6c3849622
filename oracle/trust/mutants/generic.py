"""Operators that any tool for mutants has: arithmetic, conditions, constants, arguments, statements."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator

from oracle.trust.mutants.site import (
    Change,
    Site,
    called,
    is_axis,
    is_docstring,
    is_text,
    text_of,
    text_with,
)

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
    if (isinstance(n, ast.BinOp) and type(n.op) in _SWAPS and not is_text(n.left) and not is_text(n.right)) or (
        isinstance(n, ast.AugAssign) and type(n.op) in _SWAPS and not is_text(n.value)
    ):
        yield n, text_with(n, op=_SWAPS[type(n.op)]())
    elif isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.USub) and not isinstance(s.parent, ast.Subscript):
        yield n, f"({text_of(n.operand)})"
    elif isinstance(n, ast.Call) and called(n) in _UFUNCS and isinstance(n.func, ast.Attribute):
        yield n.func, f"np.{_UFUNCS[called(n)]}"


def operand_dropped(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.BinOp) and not is_text(n.left) and not is_text(n.right) and type(n.op) in _SWAPS:
        yield n, f"({text_of(n.left)})"
        if not isinstance(n.op, ast.Pow | ast.Mod | ast.FloorDiv):
            yield n, f"({text_of(n.right)})"


def comparison(s: Site) -> Iterator[Change]:
    n = s.node
    if not isinstance(n, ast.Compare):
        return
    for i, op in enumerate(n.ops):
        for other in _COMPARISONS[type(op)]:
            yield n, f"({text_with(n, ops=[*n.ops[:i], other(), *n.ops[i + 1 :]])})"


def condition(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.If | ast.IfExp | ast.While):
        if not isinstance(n.test, ast.Compare):
            yield n.test, f"(not ({text_of(n.test)}))"
        if not text_of(n.test).startswith("needs["):  # to compute what nobody asked for only costs time
            yield n.test, "True"
        yield n.test, "False"
    elif isinstance(n, ast.comprehension):
        for test in n.ifs:
            yield test, "True"
            yield test, "False"


def logic(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.BoolOp):
        yield n, f"({text_with(n, op=ast.Or() if isinstance(n.op, ast.And) else ast.And())})"
        for i in range(len(n.values)):
            rest = [*n.values[:i], *n.values[i + 1 :]]
            yield n, f"({text_of(rest[0]) if len(rest) == 1 else text_with(n, values=rest)})"
    elif isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.Not):
        yield n, f"({text_of(n.operand)})"


def constant(s: Site) -> Iterator[Change]:
    n = s.node
    if not isinstance(n, ast.Constant) or is_axis(s) or _is_default(s):
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
            yield n, text_with(n, keywords=[*n.keywords[:i], *n.keywords[i + 1 :]])
    name = called(n)
    if len(n.args) > 1 and (name.startswith("np.") or name in ("_sum", "_max", "getattr")):
        yield n, text_with(n, args=n.args[:-1])


_ORDERED = ("np.subtract", "np.divide", "np.matmul", "np.where", ".divide", ".power", ".matmul", ".dot", "_dot", "matmul",
            "np.full", ".on")  # fmt: skip


def arguments_swapped(s: Site) -> Iterator[Change]:
    n = s.node
    if not isinstance(n, ast.Call) or called(n) not in _ORDERED:
        return
    if called(n) == ".dot" and len(n.args) == 1 and isinstance(n.func, ast.Attribute):
        yield n, f"({text_of(n.args[0])}).dot({text_of(n.func.value)})"
    elif len(n.args) >= 2:
        at = 1 if called(n) == "np.where" else 0
        args = [*n.args]
        args[at], args[at + 1] = args[at + 1], args[at]
        yield n, text_with(n, args=args)


def statement_deleted(s: Site) -> Iterator[Change]:
    n = s.node
    gone = isinstance(n, ast.AugAssign | ast.Continue | ast.Break)
    gone |= isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and "_check" not in called(n.value)
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
    if isinstance(n, ast.Return) and n.value is not None and text_of(n.value) != "None":
        yield n, "return None"


def statements_swapped(s: Site) -> Iterator[Change]:
    body = getattr(s.node, "body", None)
    if not isinstance(body, list) or not s.numeric:
        return
    for first, second in itertools.pairwise(body):
        if not all(isinstance(n, ast.AugAssign | ast.Expr) and not is_docstring(n) for n in (first, second)):
            continue
        if _written(first) & _names(second) or _written(second) & _names(first):
            span = ast.Pass(lineno=first.lineno, col_offset=first.col_offset,
                            end_lineno=second.end_lineno, end_col_offset=second.end_col_offset)  # fmt: skip
            yield span, f"{text_of(second)}; {text_of(first)}"


def _names(n: ast.AST) -> set[str]:
    return {x.id for x in ast.walk(n) if isinstance(x, ast.Name)}


def _written(n: ast.AST) -> set[str]:
    """The variable that a statement writes into: the target, or the last argument of a ufunc."""
    if isinstance(n, ast.AugAssign):
        return _names(n.target)
    if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and n.value.args:
        return _names(n.value.args[-1])
    return set()


def loop(s: Site) -> Iterator[Change]:
    n = s.node
    if isinstance(n, ast.For):
        yield n.iter, f"list({text_of(n.iter)})[1:]"
        yield n.iter, f"list({text_of(n.iter)})[:-1]"
        if s.outer is not None and s.outer.name == "forward":
            yield n.iter, f"list({text_of(n.iter)})[::-1]"
    elif isinstance(n, ast.Call) and called(n) == "reversed":
        yield n, text_of(n.args[0])


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
