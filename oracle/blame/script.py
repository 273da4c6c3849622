"""The standalone script beside a failing case: numpy, torch and a needle, no oracle.

It is written from the case: the model built in needle and in torch, the data and the state before the failing step as
literals, one step, and the numbers of the failure block. Its exit code says whether they still part.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import functools
import io
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from oracle import operations
from oracle.apart import CASE_SECONDS
from oracle.blame.headline import headline, shown
from oracle.blame.locate import suspect
from oracle.cases import case as c
from oracle.cases import inputs
from oracle.rules.verdict import Divergence
from oracle.systems.trace import CHANGED, ENDED, UNSEEN, State

Array = npt.NDArray[Any]

UPDATED = ("clip norm", "clipped", "gradient after step", "velocity", "first moment", "second moment", "parameter")
WRITTEN_OUT = 240  # elements; longer arrays are packed


def script(case: c.Case, divergence: Divergence, ndl: Any, *, replayed: bool = False) -> str:
    """The text of the script. ``replayed`` lets it take all steps from the first one on, for faults that count steps."""
    if divergence.quantity in ("graph", "live tensors", "cycles"):
        raise ValueError("what a step leaves in memory is counted by the oracle alone; replay the case")
    if isinstance(case, c.OpCase):
        return _op(case, divergence)
    if isinstance(case, c.SecondOrderCase):
        return _second(case, divergence)
    if isinstance(case, c.ProgramCase):
        raise ValueError("a program has no script yet; replay the case")
    return _train(case, divergence, ndl, replayed)


def checked(case: c.Case, divergence: Divergence) -> str:
    """The script, run once. Where one step from its state does not show the fault, it takes all steps from the first."""
    import needle

    text = script(case, divergence, needle)
    if divergence.name == CHANGED:
        raise ValueError("a script with needle and torch alone does not look at the state of the process")
    if divergence.name == ENDED or _endless(divergence):
        return text
    if isinstance(case, c.TrainCase) and divergence.step and not fails(text):
        longer = script(case, divergence, needle, replayed=True)
        return longer if fails(longer) else text
    return text


def _endless(divergence: Divergence) -> bool:
    return divergence.failure is not None and divergence.failure.kind == "TimeoutError"


def fails(text: str) -> bool:
    """Whether a script ends with 1, run in this process."""
    path = list(sys.path)
    space: dict[str, Any] = {"__name__": "script"}
    try:
        with np.errstate(), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(text, "script", "exec"), space)
            return bool(space["main"]() == 1)
    finally:
        sys.path[:] = path


# -- the parts --------------------------------------------------------------------------------------------------------


def _render(template: str, **values: Any) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template(template).render(**values)
    text = re.sub(r"\n{3,}(?=[ \t])", "\n\n", text)  # one blank line inside a block, two outside
    return re.sub(r"\n{4,}", "\n\n\n", text)


def _common(case: c.Case, divergence: Divergence) -> dict[str, Any]:
    """What every script says at its top and its end."""
    import needle

    folder = str(Path(str(needle.__file__)).resolve().parents[1])
    d = divergence
    expected, kind = None, "number"
    if d.rule == "unexpected":
        kind = "unexpected"
    elif d.quantity in ("kept", "untouched"):
        kind = "flag"
    elif d.quantity == "parameters":
        kind = "text"
    elif d.quantity == "gradient after step" or (d.quantity == "parameter" and d.rule == "exact"):
        kind = "bits"
    if d.quantity == "operator" and isinstance(d.truth, float):
        # judged against the definition of the op; what it must give is written down, for there is no such thing in torch
        expected = f"np.full(ours.shape, {_number(d.truth)}) if ours is not None else None"
    head = headline(d)
    return {
        "headline": _safe(head),
        "head": repr(head),
        "description": "\n    ".join(textwrap.wrap(_safe(c.describe(case)), 110)),
        "suspect": "\n".join(textwrap.wrap(_safe(suspect(case, d)), 110)),
        "numbers": [_safe(f"{name:<8} {text}"[:110]) for name, text in shown(d)],
        "needle": repr(folder),
        "folder": _safe(folder),
        "digest": case.digest,
        "quantity": repr(d.quantity),
        "name": repr(d.name),
        "index": repr(d.index),
        "rule": d.rule,
        "patience": int(CASE_SECONDS) + (case.steps if isinstance(case, c.TrainCase) else 0),
        "allowed": "0.0" if d.allowed is None else _number(d.allowed),
        "dtype": repr("float64" if d.quantity == "clip norm" else "float32"),
        "raised": d.failure is not None,
        "expected": expected,
        "kind": kind,
        "unwatched": d.name.endswith(UNSEEN),
        "op": None,
    }


def _safe(text: str) -> str:
    """Text for a docstring."""
    return text.replace("\\", "/").replace('"""', "'''")


def _number(value: float | str | None) -> str:
    """A float as Python reads it; inf and nan are imported by name."""
    return repr(float(value)) if value is not None else "None"


def _literal(value: Array) -> str:
    """An array as an expression: numbers where they are few, packed otherwise."""
    value = np.asarray(value)
    if value.size > WRITTEN_OUT:
        text = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        lines = "\n".join(f'    "{text[i : i + 104]}"' for i in range(0, len(text), 104))
        return f"unpack(\n{lines},\n    {value.shape},\n    np.{value.dtype.name},\n)"
    if value.size == 0:
        return f"np.zeros({value.shape}, dtype=np.{value.dtype.name})"
    return f"np.array({_nested(value)}, dtype=np.{_dtype(value)})"


def _dtype(value: Array) -> str:
    return "bool_" if value.dtype == bool else value.dtype.name


def _nested(value: Array) -> str:
    if value.ndim == 0:
        return _element(value[()])
    if value.ndim == 1:
        return f"[{', '.join(_element(v) for v in value)}]"
    rows = [_nested(v) for v in value]
    line = f"[{', '.join(rows)}]"
    return line if len(line) < 90 else "[\n" + textwrap.indent(",\n".join(rows), "    ") + ",\n]"


def _element(value: Any) -> str:
    """The shortest number that reads back as the same bits."""
    if isinstance(value, np.bool_):
        return str(bool(value))
    if not isinstance(value, np.floating):
        return str(int(value))
    short = str(value)
    return short if np.isnan(value) or value.dtype.type(float(short)) == value else repr(float(value))


def _dict(values: dict[str, Any]) -> str:
    """A dict of ready expressions."""
    if not values:
        return "{}"
    return "{\n" + textwrap.indent("".join(f"{k!r}: {v},\n" for k, v in values.items()), "    ") + "}"


def _list(values: Sequence[str]) -> str:
    line = f"[{', '.join(values)}]"
    return line if len(line) < 90 else "[\n" + textwrap.indent("".join(f"{v},\n" for v in values), "    ") + "]"


# -- operations: the two sides of their blocks, as source -------------------------------------------------------------


@functools.cache
def _blocks() -> tuple[dict[str, ast.FunctionDef], dict[str, str], dict[str, tuple[ast.expr, ast.expr]]]:
    """The functions of `oracle.operations`, what it imports from elsewhere, and both sides of every block."""
    functions: dict[str, ast.FunctionDef] = {}
    imports: dict[str, str] = {}
    sides: dict[str, tuple[ast.expr, ast.expr]] = {}
    for path in sorted(Path(operations.__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                imports |= {a.asname or a.name: ast.unparse(node) for a in node.names}
            elif isinstance(node, ast.FunctionDef):
                functions[node.name] = node
                for call in node.decorator_list:
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "operation":
                        said = {keyword.arg: keyword.value for keyword in call.keywords}
                        sides[node.name] = said["needle"], said["torch"]
    return functions, imports, sides


def _operations(names: Sequence[str]) -> str:
    """The functions needle_op(name, …) and torch_op(name, …) for the operations of a case."""
    functions, imports, sides = _blocks()
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


# -- models -----------------------------------------------------------------------------------------------------------

DROPOUT = '''class Dropout(torch.nn.Module):
    """Dropout with the mask that needle draws."""

    def __init__(self, p):
        super().__init__()
        self.p, self.mask = p, None

    def forward(self, x):
        if not self.training:
            return x
        return x * (self.mask / (1 - self.p) if self.p < 1 else torch.zeros_like(x))
'''
FLATTEN = """class Flatten(torch.nn.Module):
    def forward(self, x):
        return x.view_as(x)  # rows are flat already; a tensor of its own, as in needle
"""
TORCH_APPLY = '''class TorchApply(torch.nn.Module):
    """A function as a module of torch."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, torch.nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)
'''
JOINS = {"add": "+", "subtract": "-", "multiply": "*"}


class _Model:
    """The lines that build the model in both systems."""

    def __init__(self, case: c.TrainCase | c.SecondOrderCase) -> None:
        self.needle: list[str] = []
        self.torch: list[str] = []
        self.helpers: list[str] = []
        self.paths: list[str] = []
        self.quiet: list[str] = []
        self.ops: list[str] = []
        self.linears: list[str] = []
        self.apply = False
        self.widths = c.input_widths(case)
        top = self._body(case.model, "")
        self.needle.append(f"model = nn.Sequential({', '.join(top)})")
        self.torch.append(f"model = nn.Sequential({', '.join(top)})")

    @property
    def layers_text(self) -> str:
        """Layers by path."""
        return ", ".join(f'"{p}": {_variable(p)}' for p in self.paths)

    def _body(self, part: Sequence[c.Layer], prefix: str) -> list[str]:
        return [self._layer(layer, f"{prefix}{i}") for i, layer in enumerate(part)]

    def _helper(self, text: str) -> None:
        if text not in self.helpers:
            self.helpers.append(text)

    def _layer(self, layer: c.Layer, path: str) -> str:
        name, width = _variable(path), self.widths[path]
        children = {p: self._body(part, f"{path}.{p}") for p, part in c.bodies(layer)}
        ours, theirs = self._made(layer, name, width, children)
        self.needle.append(f"{name} = {ours}")
        self.torch.append(f"{name} = {theirs}")
        self.paths.append(path)
        if isinstance(layer, c.Linear):
            if layer.tie is not None:
                for lines in (self.needle, self.torch):
                    lines.append(f"{name}.weight = {self.linears[layer.tie]}.weight")
            self.linears.append(name)
        if isinstance(layer, c.Linear | c.BatchNorm | c.LayerNorm) and layer.frozen:
            bare = isinstance(layer, c.Linear) and not layer.bias
            for attribute in ("weight",) if bare else ("weight", "bias"):
                for lines in (self.needle, self.torch):
                    lines.append(f"{name}.{attribute}.requires_grad = False")
        if isinstance(layer, c.Unused):
            self.needle.append(f"{name}.weight = nn.Parameter(ndl.init.zeros({layer.size}))")
            self.torch.append(f"{name}.weight = nn.Parameter(torch.zeros({layer.size}))")
        elif isinstance(layer, c.Eval):
            self.quiet.append(name)
        return name

    def _made(self, layer: c.Layer, name: str, width: int, children: dict[str, list[str]]) -> tuple[str, str]:
        """The expressions that build one layer in needle and in torch."""
        if isinstance(layer, c.Linear):
            same = f"nn.Linear({width}, {layer.out}{'' if layer.bias else ', bias=False'})"
            return same, same
        if isinstance(layer, c.Activation):
            self.ops.append(layer.op)
            kind = type(layer).__name__
            ours, theirs = (f"lambda x: {side}({layer.op!r}, x)" for side in ("needle_op", "torch_op"))
            made = self._applied(ours, [])[0]
            return f'nn.{kind}() if hasattr(nn, "{kind}") else {made}', self._applied(theirs, [])[1]
        if isinstance(layer, c.ReLU | c.Identity):
            return (f"nn.{type(layer).__name__}()",) * 2
        if isinstance(layer, c.Flatten):
            self._helper(FLATTEN)
            return "nn.Flatten()", "Flatten()"
        if isinstance(layer, c.BatchNorm | c.LayerNorm):
            given = "".join(
                f", {k}={getattr(layer, k)!r}" for k in ("eps", "momentum") if getattr(layer, k, None) is not None
            )
            kind = "BatchNorm1d" if isinstance(layer, c.BatchNorm) else "LayerNorm1d"
            return f"nn.{kind}({width}{given})", f"nn.{kind.replace('LayerNorm1d', 'LayerNorm')}({width}{given})"
        if isinstance(layer, c.Dropout):
            self._helper(DROPOUT)
            return f"nn.Dropout({'' if layer.p is None else f'p={layer.p!r}'})", f"Dropout({inputs.dropout_p(layer)!r})"
        if isinstance(layer, c.Unused):
            return self._applied("lambda x: x", [])
        if isinstance(layer, c.Branch):
            join = JOINS[layer.join]
            left, right = children["left."], children["right."]
            both = [f"nn.Sequential({', '.join(left)})", f"nn.Sequential({', '.join(right)})"]
            return self._applied(f"lambda x, left, right: left(x) {join} right(x)", both)
        if isinstance(layer, c.Ops):
            self.ops += [s.op for s in layer.steps]
            self._helper(_program(layer, f"program_{name}"))
            ours, theirs = (f"lambda x: program_{name}(x, {side})" for side in ("needle_op", "torch_op"))
            return self._applied(ours, [])[0], self._applied(theirs, [])[1]
        body = f"nn.Sequential({', '.join(children[''])})"
        if isinstance(layer, c.Residual):
            return f"nn.Residual({body})", self._applied("lambda x, body: body(x) + x", [body])[1]
        return body, body

    def _applied(self, function: str, parts: list[str]) -> tuple[str, str]:
        self.apply = True
        self._helper(TORCH_APPLY)
        text = ", ".join([function, *parts])
        return f"Apply({text})", f"TorchApply({text})"


def _variable(path: str) -> str:
    return "layer_" + path.replace(".", "_")


def _program(layer: c.Ops, name: str) -> str:
    lines = [f"def {name}(v0, op):", '    """The operations of one layer."""']
    for i, step in enumerate(layer.steps, 1):
        given = "".join(f", {k}={v!r}" for k, v in step.attributes.items())
        lines.append(f"    v{i} = op({step.op!r}, {', '.join(f'v{a}' for a in step.args)}{given})")
    lines.append(f"    return v{len(layer.steps)}\n")
    return "\n".join(lines)


def _model_values(case: c.TrainCase | c.SecondOrderCase) -> dict[str, Any]:
    model = _Model(case)
    return {
        "needle_lines": model.needle,
        "torch_lines": model.torch,
        "helpers": model.helpers,
        "layers_text": model.layers_text,
        "quiet_text": ", ".join(model.quiet),
        "apply": model.apply,
        "ops": _operations(model.ops) if model.ops else "",
        "loss": type(case.loss).__name__,
        "rows": case.data.rows,
    }


def _data(case: c.TrainCase | c.SecondOrderCase, first: int, last: int) -> Iterator[tuple[str, str]]:
    """Batches, labels, drawn tensors, dropout masks and seeds of some steps."""
    batches, masks = inputs.batches(case), inputs.masks(case, last + 1)
    steps = range(first, last + 1)

    def by_step(values: Array) -> str:
        return _dict_of_steps({t: [_literal(v) for v in values[t]] for t in steps})

    yield "X", by_step(batches.x)
    if batches.labels is not None:
        yield "LABELS", by_step(batches.labels)
    if batches.drawn is not None:
        yield "DRAWN", by_step(batches.drawn)
    yield "MASKS", _dict({path: by_step(mask) for path, mask in masks.items()})
    yield "STEP_SEEDS", repr({t: inputs.step_seed(case, t) for t in steps})


def _dict_of_steps(values: dict[int, list[str]]) -> str:
    body = "".join(f"{t}: {_list(v)},\n" for t, v in values.items())
    return "{\n" + textwrap.indent(body, "    ") + "}"


def _state(state: State) -> str:
    parts = {"tensors": _dict({n: _literal(v) for n, v in state.tensors.items()})}
    parts |= {q: _dict({n: _literal(v) for n, v in values.items()}) for q, values in state.slots.items() if values}
    return _dict(parts)


# -- the three kinds --------------------------------------------------------------------------------------------------


def _train(case: c.TrainCase, divergence: Divergence, ndl: Any, replayed: bool) -> str:
    from oracle.systems import peer as peer
    from oracle.systems.lockstep import Lockstep

    last = divergence.step
    # the steps of a parameter are not those of the case if it missed one: then from the start
    ended = divergence.name == ENDED  # needle cannot be run here without ending this process
    first = 0 if replayed or case.gap or ended else max(0, last - 1) if divergence.quantity == "kept" else last
    state = State(inputs.initial_state(case))
    if first:
        for step in Lockstep(case, ndl).steps():
            if step.ours.step == first:
                state = step.before
                break
    spec = case.optimizer
    parameters, buffers = inputs.slots(case)
    rates = {t: case.lr_at(t) for t in range(first, last + 1)}
    given = ", ".join(f"{n}={getattr(spec, n)!r}" for n in spec.__struct_fields__ if getattr(spec, n) is not None)
    default = peer.DEFAULT_LR
    lr = default if spec.lr is None else spec.lr
    decay = spec.weight_decay or 0.0
    adam = isinstance(spec, c.Adam)
    about: dict[str, Any] = {"adam": adam, "decay": repr(decay), "beta": "0.0", "dampened": False}
    if isinstance(spec, c.Adam):
        b1 = 0.9 if spec.beta1 is None else spec.beta1
        b2 = 0.999 if spec.beta2 is None else spec.beta2
        eps = 1e-8 if spec.eps is None else spec.eps
        about |= {"b1": repr(b1), "b2": repr(b2), "eps": repr(eps)}
        torch_optimizer = (
            f"torch.optim.Adam(\n            list(self.model.parameters()), lr={lr!r}, betas=({b1!r}, {b2!r}), eps={eps!r}, "
            f"weight_decay={decay!r}, foreach=False\n        )"
        )
        keys = {"first moment": "exp_avg", "second moment": "exp_avg_sq"}
    else:
        beta = spec.momentum or 0.0
        about |= {"beta": repr(beta), "dampened": bool(beta)}
        torch_optimizer = (
            f"torch.optim.SGD(\n            list(self.model.parameters()), lr={lr!r}, momentum={beta!r}, dampening={beta!r}, "
            f"weight_decay={decay!r}, foreach=False\n        )"
        )
        keys = {"velocity": "momentum_buffer"}
    data = list(_data(case, first, last))
    data += [
        ("STATE", _state(state)),
        ("PARAMETERS", repr([s.name for s in parameters])),
        ("BUFFERS", repr([s.name for s in buffers])),
        ("FIRST, LAST", f"{first}, {last}"),
        ("LR", repr({t: default if r is None else r for t, r in rates.items()})),
        (
            "RATES",
            repr(
                {t: r for t, r in rates.items() if r is not None and r != (case.lr_at(t - 1) if t > first else spec.lr)}
            ),
        ),
        ("HOLDS", repr({t: (case.seed_for("holds") + t) % 2 == 0 for t in rates})),
        ("STATE_KEYS", repr(keys)),
        ("BUILD_SEED", repr(case.seed_for("build"))),
    ]
    values = _common(case, divergence) | _model_values(case) | about
    if divergence.quantity == "operator":
        values["op"] = _place(divergence.name)
    if divergence.quantity == "initial":
        shape = next(slot.shape for slot in (*parameters, *buffers) if slot.name == divergence.name)
        right = divergence.truth if isinstance(divergence.truth, float) else 0.0
        values["expected"] = f"np.full({shape}, {_number(right)})"
    if divergence.quantity == "operator" and not isinstance(divergence.truth, float):
        # a wrong shape or dtype, or nothing at all
        is_shape = isinstance(divergence.truth, str) and divergence.truth.startswith("(")
        values["expected"] = f"np.zeros({divergence.truth})" if is_shape else "ours"
    tied = any(isinstance(layer, c.Linear) and layer.tie is not None for _, layer in c.walk(case.model))
    listed = f"p for p in model.parameters(){' for _ in range(2)' if tied else ''}"
    listed = f"[{listed}] if not hasattr(ndl.Tensor, 'retain_grad') else ({listed})"  # the course wants a list
    clip = None if case.clip is None else 0.25 if case.clip.max_norm is None else case.clip.max_norm
    return _render(
        "script.py.j2",
        **values,
        mode="train",
        data=data,
        packed=any("unpack(" in v for _, v in data),
        needle_optimizer=f"ndl.optim.{type(spec).__name__}({listed}{', ' if given else ''}{given})",
        torch_optimizer=torch_optimizer,
        micro=inputs.micro_batches(case),
        input_grad=case.input_grad,
        backward=case.backward,
        clip=clip,
        gap=inputs.gap(case) if case.gap else None,
        clip_text="" if case.clip is None or case.clip.max_norm is None else repr(clip),
        buffers=buffers,
        updated=divergence.quantity in UPDATED,
        evaluated=divergence.quantity in ("evaluation", "untouched", "exception in evaluation"),
    )


def _place(name: str) -> dict[str, Any]:
    """The node that a name of rule OP speaks of: ``BatchNorm backward, operand 0 (node 2 of pass 1)``."""
    node = re.search(r"\(node (\d+)", name)
    operand = re.search(r"operand (\d+)", name)
    tape = re.search(r"of pass (\d+)", name)
    assert node is not None
    return {
        "node": int(node[1]),
        "operand": None if operand is None else int(operand[1]),
        "tape": 0 if tape is None else int(tape[1]),
    }


def _second(case: c.SecondOrderCase, divergence: Divergence) -> str:
    from oracle.systems.second_order import directions

    data = list(_data(case, 0, 0))
    data += [
        ("STATE", _state(State(inputs.initial_state(case)))),
        ("PARAMETERS", repr([s.name for s in inputs.slots(case)[0]])),
        ("DIRECTIONS", _dict({n: _literal(v) for n, v in directions(case).items()})),
    ]
    values = _common(case, divergence) | _model_values(case)
    return _render("script.py.j2", **values, mode="second", data=data, packed=any("unpack(" in v for _, v in data))


def _op(case: c.OpCase, divergence: Divergence) -> str:
    operands = [np.ascontiguousarray(o.array) if o.array.ndim else o.array for o in case.operands]
    data = [
        ("OPERANDS", _list([_literal(x) for x in operands])),
        ("LAYOUTS", repr([o.layout for o in case.operands])),
        ("COTANGENT", _literal(case.cotangent_array)),
        ("CONSTANTS", repr(case.constants)),
    ]
    given = {k: f"np.float64({v!r})" if isinstance(v, float) else repr(v) for k, v in case.attributes.items()}
    ours = (
        "{" + ", ".join(f"{k!r}: {v}" for k, v in given.items()) + "}" if case.numpy_scalars else repr(case.attributes)
    )
    return _render(
        "script_op.py.j2",
        **_common(case, divergence),
        data=data,
        ops=_operations([case.op]),
        graph=divergence.quantity in ("gradient with graph", "exception in backward with create_graph"),
        op_name=repr(case.op),
        needle_attributes=ours,
        attributes=repr(case.attributes),
        packed=any("unpack(" in v for _, v in data),
    )
