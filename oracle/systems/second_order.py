"""Second-order cases in torch. The truth is torch in float64, on norm layers and losses written out in elementary operations,
with noise at the operands of every operation, forward, backward and in the second backward.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oracle.cases import case as c
from oracle.cases import inputs
from oracle.operations.tape import REPLICAS
from oracle.systems import peer as peer_side
from oracle.systems.noise import Largest, Rounding

Array = npt.NDArray[Any]
Results = dict[str, dict[str, Array]]  # quantity -> name -> array


def _cross_entropy(z: Tensor, labels: Tensor) -> Tensor:
    top = z.max(dim=1, keepdim=True).values.detach()
    lse = torch.log(torch.exp(z - top).sum(dim=1)) + top[:, 0]
    return (lse - z.gather(1, labels[:, None])[:, 0]).sum() / z.shape[0]


def _on_the_side(kink: Tensor, x: Tensor) -> Tensor:
    return torch.where(kink, x, torch.zeros_like(x))


def in_torch(
    case: c.SecondOrderCase,
    kinks: Mapping[str, Array],
    dtype: torch.dtype,
    noise: int | None,
    written_out: bool,
    largest: Largest | None = None,
) -> Results:
    """First-order gradients and second ones; ``written_out``: norms and losses in elementary operations.

    With ``noise``, of all replicas but the exact one, at once: a sum over replicas has each one's own gradients. ``largest`` looks on
    where there is none.
    """
    slots = inputs.slots(case)
    batches = inputs.batches(case)
    masks = inputs.masks(case, 1)
    model = peer_side.TorchModel(case)
    model.module.to(dtype)
    state = inputs.initial_state(case)
    with torch.no_grad():
        for slot in (*slots[0], *slots[1]):
            model.tensor(slot).copy_(peer_side.to_torch(slot, state[slot.name]))
    for path, module in model.modules.items():
        if isinstance(module, peer_side.ReLU) and path in kinks:
            module.kink = torch.from_numpy(kinks[path])
            if (
                noise is not None
            ):  # it looks which side its input is on, which several replicas at once have no one answer to
                vars(module)["forward"] = functools.partial(_on_the_side, module.kink)
        elif isinstance(module, peer_side.Dropout) and path in masks:
            module.mask = torch.from_numpy(masks[path][0, 0]).to(dtype)
    if written_out:
        for path, layer in c.walk(case.model):
            forward = layer.written_out(torch, model.modules[path])
            if forward is not None:
                model.modules[path].forward = forward
    many = REPLICAS - 1

    def replicas(value: Tensor) -> Tensor:
        return value if noise is None else value.detach().expand(many, *value.shape).clone()

    own = {id(p): name for name, p in model.module.named_parameters()}
    by_name = {s.name: s for s in slots[0]}
    inside = {s.name: own[id(model.tensor(s))] for s in slots[0]}  # the same parameter as the module names it
    parameters = {s.name: model.tensor(s) for s in slots[0]}
    if noise is not None:
        parameters = {n: replicas(p).requires_grad_(p.requires_grad) for n, p in parameters.items()}
    x = replicas(torch.from_numpy(batches.x[0, 0]).to(dtype))
    drawn = {n: replicas(peer_side.to_torch(by_name[n], v).to(dtype)) for n, v in directions(case).items()}
    results: Results = {"gradient": {}, "second": {}}

    def put(quantity: str, name: str, gradient: Tensor) -> None:
        each = [gradient] if noise is None else list(gradient)
        values = [peer_side.to_needle(by_name[name], g) for g in each]
        results[quantity][name] = values[0] if noise is None else np.stack(values)

    def loss_of(given: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor | None]:
        out = torch.func.functional_call(model.module, {inside[n]: p for n, p in given.items()}, (x,))
        if written_out and isinstance(case.loss, c.SoftmaxLoss):
            assert batches.labels is not None
            return _cross_entropy(out, torch.from_numpy(batches.labels[0, 0].astype(np.int64))), None
        if written_out and isinstance(case.loss, c.MSELoss):
            assert batches.drawn is not None
            off = out - torch.from_numpy(batches.drawn[0, 0]).to(dtype)
            return (off * off).sum() / off.numel(), None
        return peer_side.torch_loss(case, out, batches, 0, 0)

    def work() -> None:
        cotangent: Tensor | None
        if noise is None:
            loss, cotangent = loss_of(parameters, x)
        else:
            loss = torch.vmap(lambda given, x: loss_of(given, x)[0])(parameters, x)
            # whatever that is: the cotangent does not depend on the replica
            bare = isinstance(case.loss, c.Cotangent)
            cotangent = replicas(loss_of({n: p[0] for n, p in parameters.items()}, x[0])[1]) if bare else None  # type: ignore[arg-type]
            cotangent = torch.ones_like(loss) if cotangent is None else cotangent
        wanted = {n: p for n, p in parameters.items() if p.requires_grad}
        grads = torch.autograd.grad(loss, list(wanted.values()), cotangent, create_graph=True, allow_unused=True)
        first = {n: g for n, g in zip(wanted, grads, strict=True) if g is not None}
        for name, grad in first.items():
            put("gradient", name, grad)
        if not any(g.requires_grad for g in first.values()):
            return
        total = sum(((g * drawn[n]).sum() for n, g in first.items()), torch.zeros((), dtype=dtype))
        seconds = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        for name, grad in zip(wanted, seconds, strict=True):
            if grad is not None:
                put("second", name, grad)

    with (largest or nullcontext()) if noise is None else Rounding(noise):
        work()
    return results


def directions(case: c.SecondOrderCase) -> dict[str, Array]:
    """The tensors that the first-order gradients are multiplied with, float32."""
    rng = case.rng("directions")
    return {s.name: rng.standard_normal(s.shape).astype(np.float32) for s in inputs.slots(case)[0]}
