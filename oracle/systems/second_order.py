"""Second-order cases in torch. The truth is torch in float64, on norm layers and losses written out in elementary operations,
with noise at the operands of every operation, forward, backward and in the second backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oracle.cases import case as c
from oracle.cases import inputs
from oracle.systems import peer as peer_side
from oracle.systems.noise import Rounding

Array = npt.NDArray[Any]
Results = dict[str, dict[str, Array]]  # quantity -> name -> array


def _cross_entropy(z: Tensor, labels: Tensor) -> Tensor:
    top = z.max(dim=1, keepdim=True).values.detach()
    lse = torch.log(torch.exp(z - top).sum(dim=1)) + top[:, 0]
    return (lse - z.gather(1, labels[:, None])[:, 0]).sum() / z.shape[0]


def in_torch(
    case: c.SecondOrderCase, kinks: Mapping[str, Array], dtype: torch.dtype, noise: int | None, written_out: bool
) -> Results:
    """First-order gradients and second ones; ``written_out``: norms and losses in elementary operations."""
    slots = inputs.slots(case)
    batches = inputs.batches(case)
    masks = inputs.masks(case, 1)
    model = peer_side.TorchModel(case)
    model.module.to(dtype)
    state = inputs.initial_state(case)
    with torch.no_grad():
        for slot in (*slots[0], *slots[1]):
            model.tensor(slot).copy_(peer_side.to_torch(slot, state[slot.name]))
    parameters = {s.name: model.tensor(s) for s in slots[0]}
    for path, module in model.modules.items():
        if isinstance(module, peer_side.ReLU) and path in kinks:
            module.kink = torch.from_numpy(kinks[path])
        elif isinstance(module, peer_side.Dropout) and path in masks:
            module.mask = torch.from_numpy(masks[path][0, 0]).to(dtype)
    if written_out:
        for path, layer in c.walk(case.model):
            forward = layer.written_out(torch, model.modules[path])
            if forward is not None:
                model.modules[path].forward = forward
    x = torch.from_numpy(batches.x[0, 0]).to(dtype)
    drawn = {
        n: peer_side.to_torch(s, v).to(dtype) for s, (n, v) in zip(slots[0], directions(case).items(), strict=True)
    }
    results: Results = {"gradient": {}, "second": {}}

    def work() -> None:
        out = model.module(x)
        cotangent = None
        if written_out and isinstance(case.loss, c.SoftmaxLoss):
            assert batches.labels is not None
            loss = _cross_entropy(out, torch.from_numpy(batches.labels[0, 0].astype(np.int64)))
        else:
            loss, cotangent = peer_side.torch_loss(case, out, batches, 0, 0)
        wanted = {n: p for n, p in parameters.items() if p.requires_grad}
        grads = torch.autograd.grad(loss, list(wanted.values()), cotangent, create_graph=True, allow_unused=True)
        first = {n: g for n, g in zip(wanted, grads, strict=True) if g is not None}
        by_name = {s.name: s for s in slots[0]}
        for name, grad in first.items():
            results["gradient"][name] = peer_side.to_needle(by_name[name], grad)
        if not any(g.requires_grad for g in first.values()):
            return
        total = sum(((g * drawn[n]).sum() for n, g in first.items()), torch.zeros((), dtype=dtype))
        seconds = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        for name, grad in zip(wanted, seconds, strict=True):
            if grad is not None:
                results["second"][name] = peer_side.to_needle(by_name[name], grad)

    with nullcontext() if noise is None else Rounding(noise):
        work()
    return results


def directions(case: c.SecondOrderCase) -> dict[str, Array]:
    """The tensors that the first-order gradients are multiplied with, float32."""
    rng = case.rng("directions")
    return {s.name: rng.standard_normal(s.shape).astype(np.float32) for s in inputs.slots(case)[0]}
