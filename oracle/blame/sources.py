"""Operations as source: the two sides of their blocks, with what these call."""

from __future__ import annotations

import ast
import functools
from collections.abc import Sequence
from pathlib import Path

from oracle import operations


@functools.cache
def _sides() -> tuple[dict[str, ast.FunctionDef], dict[str, str], dict[str, tuple[ast.expr, ast.expr]]]:
    """The functions of `oracle.operations`, what it imports from elsewhere, and both sides of every block."""
    functions: dict[str, ast.FunctionDef] = {}
    imports: dict[str, str] = {}
    sides: dict[str, tuple[ast.expr, ast.expr]] = {}
    for path in sorted(Path(operations.__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                imports |= {a.asname or a.name: ast.unparse(node) for a in node.names}
            elif isinstance(node, ast.FunctionDef):
                if not node.decorator_list:  # a definition: a side that calls one would be judged by itself
                    functions[node.name] = node
                for call in node.decorator_list:
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "operation":
                        said = {keyword.arg: keyword.value for keyword in call.keywords}
                        sides[node.name] = said["needle"], said["torch"]
    return functions, imports, sides


def operations_text(names: Sequence[str]) -> str:
    """The functions needle_op(name, …) and torch_op(name, …) for the operations of a case."""
    functions, imports, sides = _sides()
    wanted: dict[str, ast.FunctionDef] = {}
    imported: dict[str, str] = {}

    def collect(tree: ast.AST) -> None:
        for node in ast.walk(tree):
            if not isinstance(node, ast.Name):
                continue
            if node.id in functions and node.id not in wanted:
                wanted[node.id] = plain = _plain(functions[node.id])
                collect(plain)
            elif node.id in imports and node.id != "np":
                imported[node.id] = imports[node.id]

    ours: list[str] = []
    theirs: list[str] = []
    for name in dict.fromkeys(names):
        for side, lines in zip(sides[name], (ours, theirs), strict=True):
            collect(side)
            lines.append(f"    {name!r}: {ast.unparse(side)},\n")
    helpers = "".join(f"\n\n{ast.unparse(f)}\n" for f in wanted.values())
    return (
        "".join(f"{line}  # noqa: E402\n" for line in dict.fromkeys(imported.values()))
        + helpers
        + f"\n\nIN_NEEDLE = {{\n{''.join(ours)}}}\nIN_TORCH = {{\n{''.join(theirs)}}}\n"
        + "\n\ndef needle_op(name, *tensors, **attributes):\n    return IN_NEEDLE[name](ndl, *tensors, **attributes)\n"
        + "\n\ndef torch_op(name, *tensors, **attributes):\n    return IN_TORCH[name](torch, *tensors, **attributes)\n"
    )


def _plain(function: ast.FunctionDef) -> ast.FunctionDef:
    """A function without its annotations."""
    copy = ast.parse(ast.unparse(function)).body[0]
    assert isinstance(copy, ast.FunctionDef)
    copy.returns = None
    for argument in (*copy.args.args, *copy.args.kwonlyargs, copy.args.vararg, copy.args.kwarg):
        if argument is not None:
            argument.annotation = None
    return copy
