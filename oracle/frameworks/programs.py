"""The few lines that show a difference; they are run, and what they print stands beside them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from typing import Any

import numpy as np

from oracle.check.arrays import Array
from oracle.check.drawing import assigned
from oracle.frameworks.judging import Shown
from oracle.frameworks.libraries import LIBRARIES, USUAL, is_float
from oracle.frameworks.pairs import Pair

MPMATH = ("from mpmath import mp, mpf",)
DIGITS = 40  # of mpmath


def written(pair: Pair, shown: Shown) -> str:
    """The program: imports, inputs, the library, torch, the right value, and a line for each."""
    library = LIBRARIES[pair.library]
    by_mpmath = bool(pair.right) and pair.elementwise and all(a.size == 1 for a in shown.inputs.values())
    body = _steps(pair, shown) if pair.steps else _call(pair, shown, by_mpmath)
    used = [*library.imports, *(MPMATH if by_mpmath else ())]
    text = "\n".join(body)
    imports = [line for line in (*USUAL, *used) if _needed(line, text)]
    settings = [f'os.environ.setdefault("{k}", "{v}")' for k, v in library.environment]
    if settings:
        imports = ["import os", *settings, *imports]
    return "\n".join([*dict.fromkeys(imports), "", *body, ""])


def _needed(line: str, text: str) -> bool:
    """Whether what a line imports is used."""
    names = [part.split(" as ")[-1].strip() for part in line.split("import ", 1)[1].split(",")]
    return any(re.search(rf"(?<![\w.]){name}[.(]", text) for name in names)


def _inputs(shown: Shown) -> list[str]:
    given = {n if n in ("grads", "w0") else f"{n}0": a for n, a in shown.inputs.items()}
    if shown.cotangent is not None:
        given["g0"] = shown.cotangent
    return [_assigned(name, a) for name, a in given.items()]


def _assigned(name: str, a: Array) -> str:
    """An array as code, however large: a program needs all of it."""
    text = assigned(name, a)
    return text if "error.inputs" not in text else f"{name} = np.array({a.tolist()}, np.{a.dtype})"


def _call(pair: Pair, shown: Shown, by_mpmath: bool) -> list[str]:
    library, names = LIBRARIES[pair.library], pair.names
    wrt = ""
    if shown.cotangent is not None:
        wrt = names[int(shown.name.rsplit(" ", 1)[1])]

    def leaf(name: str, how: str) -> str:
        return f"{name} = {how.format(f'{name}0')}"

    floats = {n for n, a in shown.inputs.items() if is_float(a)}
    # a library takes whole numbers (labels, indices) as they are, torch as a tensor
    whole = {"mygrad": "{}", "torch": "torch.from_numpy({})"}.get(pair.library, library.leaf)
    lines = [*_inputs(shown), "", f"# {library.title}"]
    lines += [leaf(n, library.leaf if n in floats else whole) for n in names]
    template = library.gradient if wrt else library.value
    lines += template.format(
        call=pair.ours, names=", ".join(names), wrt=wrt, at=names.index(wrt) if wrt else 0
    ).splitlines()

    def torchs(result: str, double: str) -> list[str]:
        made = []
        for n in names:
            rest = f"{double}{'.requires_grad_()' if wrt else ''}" if n in floats else ""
            made.append(f"{n} = torch.from_numpy({n}0){rest}")
        if wrt:
            cotangent = f"torch.from_numpy(g0){double}"
            return [*made, f"{result} = torch.autograd.grad({pair.torch}, {wrt}, {cotangent})[0].numpy()"]
        return [*made, f"{result} = ({pair.torch}).numpy()"]

    lines += ["", "# PyTorch" if pair.library != "torch" else "# the same by another formula", *torchs("theirs", "")]
    if by_mpmath:
        right = pair.right
        lines += ["", "# right", f"mp.dps = {DIGITS}"]
        lines += [f"{n} = mpf(float({n}0[0]))" for n in names if n in floats]
        if wrt:
            right = f"mp.diff(lambda {wrt}: {right}, {wrt}) * mpf(float(g0[0]))"
        lines += [f"right = np.array([float({right})])"]
    else:
        lines += ["", "# right: the same in float64", *torchs("right", ".double()")]
    return [*lines, *_printed(pair, shown)]


def _steps(pair: Pair, shown: Shown) -> list[str]:
    library = LIBRARIES[pair.library]
    lines = [*_inputs(shown), "", f"# {library.title}", *library.steps.format(call=pair.ours).splitlines(), ""]

    def torchs(result: str, double: str) -> list[str]:
        return [
            f"p = [nn.Parameter(torch.from_numpy(w0.copy()){double})]",
            f"rule = {pair.torch}",
            "for g in grads:",
            f"    p[0].grad = torch.from_numpy(g){double}",
            "    rule.step()",
            f"{result} = p[0].detach().numpy()",
        ]

    lines += ["# PyTorch", *torchs("theirs", ""), "", "# right: the same in float64", *torchs("right", ".double()")]
    return [*lines, *_printed(pair, shown)]


def _printed(pair: Pair, shown: Shown) -> list[str]:
    at = f"[{', '.join(map(str, shown.index))}]" if shown.index else "[()]"
    names = {
        "ours": LIBRARIES[pair.library].title,
        "theirs": "PyTorch" if pair.library != "torch" else "by another formula",
        "right": "right",
    }
    width = max(map(len, names.values()))
    return ["", *(f'print("{title:<{width}}", np.asarray({name}){at})' for name, title in names.items())]


def run(pair: Pair, shown: Shown) -> None:
    """Write the program, run it, and keep what it prints; `Shown.problem` says so where it does not show the difference."""
    shown.program = written(pair, shown)
    there: dict[str, Any] = {}
    out = io.StringIO()
    before = dict(os.environ)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(out), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            exec(compile(shown.program, "a program of the page", "exec"), there)
    except Exception as error:
        shown.problem = f"the program ends with {type(error).__name__}: {error}"
        return
    finally:
        os.environ.clear()
        os.environ.update(before)
    shown.printed = out.getvalue()
    shown.problem = problem(pair, shown, there)


def problem(pair: Pair, shown: Shown, there: dict[str, Any]) -> str:
    """Why the numbers of a program that was run do not bear out what was found; "" if they do."""
    ours, right = (np.asarray(there[name]) for name in ("ours", "right"))
    if ours.shape != right.shape:
        return "" if shown.ours is None else f"the shapes differ: {ours.shape}, {right.shape}"
    mine, true = (a[shown.index] for a in (ours, right))
    with np.errstate(all="ignore"):
        if not _near(true, shown.right, shown.allowed):
            return f"the right value was {shown.right:.9g} before, and is {true:.9g} in the program"
        if _near(mine, true, shown.allowed):
            return f"{mine:.9g} is within {shown.allowed:.3g} of {true:.9g}"
    shown.right = true
    return ""


def _near(a: Any, b: Any, allowed: float) -> bool:
    """Within the tolerance, of which 16 is the limit; nan is nothing but nan."""
    same: bool = bool(a == b) or (bool(np.isnan(a)) and bool(np.isnan(b)))
    return same or bool(abs(a - b) <= allowed)
