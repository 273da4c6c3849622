"""The standalone script of a program: what the user does, as plain code, and the number that needle must show in the end."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np

from oracle.blame.literals import literal, mapping, number
from oracle.blame.written import WrittenSide
from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import inputs, programs
from oracle.cases.built import build_layers
from oracle.cases.known import SETTINGS, STATES, Known
from oracle.rules.verdict import Divergence

_LOSSES = {
    "SoftmaxLoss": "nn.SoftmaxLoss()(out, ndl.Tensor(TARGETS[t], requires_grad=False)), ()",
    "Cotangent": "out, (ndl.Tensor(TARGETS[t], requires_grad=False),)",
    "WeightedSum": "(out * ndl.Tensor(TARGETS[t], requires_grad=False)).sum(), ()",
    "MSELoss": "nn.MSELoss()(out, ndl.Tensor(TARGETS[t], requires_grad=False)), ()",
    "MeanSquare": "((out - ndl.Tensor(TARGETS[t], requires_grad=False)) ** 2).sum() / len(TARGETS[t]), ()",
}


def program_values(case: c.ProgramCase, f: Divergence) -> dict[str, Any]:
    """What the template says; ValueError for what a script cannot show."""
    refused = f.quantity == "promise" and isinstance(case.actions[f.step], a.Refuse)
    if f.failure is None and f.quantity in ("promise", "twin") and not refused:
        raise ValueError(f"the oracle alone sees that {f.name}; replay the case")
    done = case.actions[: f.step + 1]
    own = case.held != "sequential" or any(isinstance(layer, c.Branch) for layer in case.model)
    if own and any(isinstance(x, a.Copy) and x.how == "pickle" for x in done):
        raise ValueError("a class of a script cannot be pickled while the script is checked; replay the case")
    run, batches = case.training, programs.batches(case)
    k = programs.start(case)
    state = {n.partition(" ")[2]: literal(v) for n, v in k.values.items() if n.startswith(("parameter ", "buffer "))}
    first = k.optimizers[0]
    given = {n: getattr(case.optimizer, n) for n in SETTINGS[first[0]] if getattr(case.optimizer, n) is not None}
    listed = ", ".join(f"parameters[{name!r}]" for name in first[1])
    settings = "".join(f", {name}={value}" for name, value in given.items())
    passes = range(run.steps)
    target = batches.labels if batches.labels is not None else batches.drawn
    assert target is not None
    lines = list(_lines(case, k, f.step))
    values = {
        "settings": {kind: tuple(known) for kind, known in SETTINGS.items()},
        "state": mapping(state),
        "seeds": [inputs.step_seed(run, t) for t in passes],
        "x": mapping({t: literal(batches.x[t, 0]) for t in passes}),
        "target_name": "TARGETS",
        "target": mapping({t: literal(target[t, 0]) for t in passes}),
        "laid_out": inspect.getsource(a.laid_out),
        "loss": _LOSSES[type(case.loss).__name__],
        "replaced": any(isinstance(x, a.PutLayer | a.SwapLayers) for x in done),
        "schedules": any(isinstance(x, a.Attach) for x in done),
        "no_grad": any("nested_no_grad" in line for line in lines),
        "held": case.held,
        "optimizer": f"{first[0]}([{listed}]{settings})",
        "actions": lines,
        "shown": "refused" if refused else _shown(f, done[-1]),
        "right": "True" if refused else _right(f),
        **({"allowed": "inf"} if f.rule == "missing" else {}),
        **_model(case),
    }
    return values | {"packed": any("unpack(" in str(value) for value in values.values())}


def _model(case: c.ProgramCase) -> dict[str, Any]:
    side = WrittenSide(in_torch=False)
    build_layers(case.training, side, lambda layer, *about: layer.needle(side, *about), side.sequential, side.named)
    made = []
    for i, layer in enumerate(case.model):
        if case.functions and (op := programs.function_of(layer)):
            side.lines.append(f"layer_{i} = nn.Residual(ndl.{op})")
        made.append(f"layer_{i}")
    made += [] if case.again is None else [made[case.again % len(made)]]
    whole = "nn.Sequential" if case.held == "sequential" else "Held"
    paths = programs.switched(case)
    names = programs.names_of(case)
    dotted = {name: name.rsplit(".", 1) for name in names}
    return {
        "lines": [*side.lines, f"model = {whole}({', '.join(made)})"],
        "layers_text": "{" + ", ".join(f"{path!r}: layer_{path.replace('.', '_')}" for path in paths) + "}",
        "parameters_text": "{" + ", ".join(f"{n!r}: layers[{p!r}].{x}" for n, (p, x) in dotted.items()) + "}",
    }


def _lines(case: c.ProgramCase, k: Known, last: int) -> Iterator[str]:
    for index, action in enumerate(case.actions[: last + 1]):
        k.index = index
        yield f"# {index}: {action.text}"
        yield from action.code(k, literal)
        if isinstance(action, a.Pass):  # which gradients there are, and no more, is what the next lines ask for
            k.values |= {f"gradient {n}": np.zeros(k.shape(n), np.float32) for n in programs.flowing(k)}
        action.meaning(k)
        if isinstance(action, a.Pass):
            k.values |= {f"gradient {n}": np.zeros(k.shape(n), np.float32) for n in programs.flowing(k)}
        if isinstance(action, a.Step):
            i = k.optimizer(action.optimizer)
            for name in k.graded(i):
                zeros = np.zeros(k.shape(name), np.float32)
                k.values |= {f"optimizer {i}: {q} {name}": zeros for q in STATES[k.optimizers[i][0]]}


def _shown(f: Divergence, action: a.Action) -> str:
    """The expression that gives what has diverged."""
    i = getattr(action, "optimizer", 0)
    attributes = {q: attribute for states in STATES.values() for q, attribute in states.items()}
    if f.failure is not None:
        return "None"
    if f.quantity == "state":
        owner, _, rest = f.name.rpartition(": ")
        quantity, _, name = rest.rpartition(" ")
        if owner:
            number_ = owner.rpartition(" ")[2]
            if owner.startswith("schedule"):
                return f"schedules[{number_}].{name}"
            if not quantity:
                return f"optimizers[{number_}].{name}"
            return f"optimizers[{number_}].{attributes.get(quantity, quantity)}.get(parameters[{name!r}])"
        path, _, attribute = name.rpartition(".")
        return {
            "parameter": f"parameters[{name!r}]",
            "gradient": f"parameters[{name!r}].grad",
            "requires_grad": f"parameters[{name!r}].requires_grad",
            "buffer": f"layers[{path!r}].{attribute}",
            "mode": f"layers[{name!r}].training",
        }[quantity]
    if f.quantity in attributes:
        return f"optimizers[{i if isinstance(i, int) else 0} % len(optimizers)].{attributes[f.quantity]}.get(parameters[{f.name!r}])"
    path, _, attribute = f.name.rpartition(".")
    return {
        "activation": "out",
        "evaluation": "out",
        "loss": "loss",
        "adjoint": "x.grad",
        "gradient": f"fresh.get({f.name!r})",
        "clip norm": "norm",
        "clipped": f"parameters.get({f.name!r}).grad" if f.quantity == "clipped" else "",
        "parameter": f"parameters.get({f.name!r})",
        "buffer": f"layers[{path!r}].{attribute}" if f.quantity == "buffer" else "",
    }[f.quantity]


def _right(f: Divergence) -> str:
    if f.rule == "missing":
        return "0.0"  # any number will do
    if f.failure is not None or f.truth is None:
        return "None"
    if isinstance(f.truth, str):
        raise ValueError("shapes and dtypes are compared by the oracle alone; replay the case")
    return number(f.truth)
