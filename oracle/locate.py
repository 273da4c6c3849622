"""From a Divergence to the Suspect: which part of needle to look at. NumPy alone.

Quantities arise in a fixed order, so the first one that differs is nearest to the cause: a layer whose output is wrong
while its input is right is to blame for its forward; an adjoint that is wrong points at the layer that consumes it.
"""

from __future__ import annotations

import re

from oracle import case as c
from oracle.compare import Divergence


def suspect(case: c.Case, divergence: Divergence) -> str:
    """One line: the operator, layer or optimizer phase to blame, and what is known to be right."""
    quantity, name = divergence.quantity, divergence.name.split("#")[0]
    if divergence.failure is not None:
        f = divergence.failure
        return f"{f.phase}, at {f.where}" if f.where else f.phase
    if isinstance(case, c.OpCase):
        if quantity == "kept":
            return f"{case.op}: writes into its operand"
        return f"{case.op} {'forward' if quantity == 'activation' else f'gradient with respect to {name}'}"
    layers = dict(c.walk(case.model))
    kind = "SGD" if isinstance(case, c.SecondOrderCase) else type(case.optimizer).__name__
    mode = {"activation": "in training mode", "evaluation": "in evaluation mode"}.get(quantity, "")
    if quantity in ("activation", "evaluation"):
        return f"{_layer(layers, name)} forward {mode}; every output before it agrees"
    if quantity == "loss":
        return f"{type(case.loss).__name__} forward; all layer outputs agree"
    if quantity == "adjoint":
        return f"{_consumer(case, layers, name)} backward; all outputs and the adjoints behind it agree"
    if quantity == "gradient":
        return f"{_layer(layers, name.rpartition('.')[0])} backward; all adjoints agree"
    if quantity == "second":
        return f"second backward through {_layer(layers, name.rpartition('.')[0])}; first-order gradients agree"
    phases = {
        "parameters": "Module.parameters",
        "initial": "the constructor of " + _layer(layers, name.rpartition(".")[0]),
        "clip norm": f"{kind}.clip_grad_norm, the norm; all gradients agree",
        "clipped": f"{kind}.clip_grad_norm, the scaling; all gradients and their norm agree",
        "gradient after step": f"{kind}.step, which writes into gradients",
        "velocity": f"{kind}.step, velocity update; all gradients agree",
        "first moment": f"{kind}.step, first moment; all gradients agree",
        "second moment": f"{kind}.step, second moment; all gradients agree",
        "parameter": f"{kind}.step, parameter update; all gradients and the optimizer's state agree",
        "buffer": f"running statistics of {_layer(layers, name.rpartition('.')[0])}; its outputs agree",
        "kept": "something that writes into an array which a user may hold",
        "untouched": "evaluation mode, which must leave buffers and random numbers alone",
    }
    return phases.get(quantity, quantity)


def culprit(case: c.Case, divergence: Divergence) -> str:
    """The suspect without paths and places: what makes two failures the same one."""
    if divergence.failure is not None:
        f = divergence.failure
        return f"{f.kind} in {f.phase}, at {f.where.rpartition(' in ')[2]}"
    text = suspect(case, divergence).partition(";")[0]
    return re.sub(r" (?:\d+|left|right)(?:\.(?:\d+|left|right))*\b", "", text)


def _layer(layers: dict[str, c.Layer], path: str) -> str:
    layer = layers.get(path)
    if layer is None:
        return path or "the model"
    if isinstance(layer, c.Ops):
        return f"Ops {path} ({' '.join(s.op for s in layer.steps)})"
    return f"{type(layer).__name__} {path}"


def _consumer(case: c.TrainCase | c.SecondOrderCase, layers: dict[str, c.Layer], name: str) -> str:
    """The layer that takes the output ``name`` as its input: a bad adjoint is its consumer's fault."""
    if name == "input":
        return _layer(layers, "0") if layers else "the loss"
    prefix, _, last = name.rpartition(".")
    following = f"{prefix}.{int(last) + 1}" if prefix else str(int(last) + 1)
    if following in layers:
        return _layer(layers, following)
    container = prefix
    while container and container not in layers:  # "2.left" is not a layer, "2" is
        container = container.rpartition(".")[0]
    if container and isinstance(layers[container], c.Residual | c.Branch):
        return _layer(layers, container)
    if container:
        return _consumer(case, layers, container)
    return type(case.loss).__name__
