"""A place in needle's source, and what can be said about it."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass, field

Change = tuple[ast.AST, str]  # the node whose text is replaced, and by what
Function = ast.FunctionDef


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
        return bool(own & {*names, "_walk_arrays", "_reduced", "_sum_kept", "_column_sums", "_sums_of_rows", "step"})


def text_of(node: ast.AST) -> str:
    """The source of a node."""
    return ast.unparse(node)


def called(node: ast.AST) -> str:
    """``np.add`` of a call of np.add; the name of the method of any other call."""
    if not isinstance(node, ast.Call):
        return ""
    f = node.func
    if isinstance(f, ast.Name):
        return f.id
    if isinstance(f, ast.Attribute):
        return f"np.{f.attr}" if isinstance(f.value, ast.Name) and f.value.id == "np" else f".{f.attr}"
    return ""


def text_with(node: ast.AST, **fields: object) -> str:
    """The source of a node that has other fields."""
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return text_of(changed)


def is_number(node: ast.AST) -> bool:
    """A number that is written out."""
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def is_text(node: ast.AST) -> bool:
    """Text, a list or a type: nothing to calculate with."""
    if isinstance(node, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp | ast.GeneratorExp):
        return True
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_docstring(n: ast.AST) -> bool:
    """Text that stands by itself."""
    return isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)


_WITH_AXIS = (
    "_sum",
    "_max",
    "summation",
    "_sum_kept",
    "np.moveaxis",
    ".swapaxes",
    "np.stack",
    "_kept",
    "np.flip",
)


def is_axis(s: Site) -> bool:
    """A number that names an axis."""
    if not is_number(s.node):
        return False
    inside = s.parents[-1]
    if isinstance(inside, ast.UnaryOp | ast.Tuple) and len(s.parents) > 1:
        inside = s.parents[-2]
    return (isinstance(inside, ast.keyword) and inside.arg in ("axis", "axes")) or called(inside) in _WITH_AXIS
