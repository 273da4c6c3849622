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
from torch import Tensor, nn

from oracle.cases import case as c
from oracle.cases import inputs
from oracle.systems import layers
from oracle.systems import peer as peer_side
from oracle.systems.noise import Rounding

Array = npt.NDArray[Any]
Results = dict[str, dict[str, Array]]  # quantity -> name -> array


class BatchNorm(nn.Module):
    """Training-mode batch normalisation, written out, with the parameters of a torch layer."""

    def __init__(self, layer: nn.BatchNorm1d | nn.LayerNorm, axis: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.axis = layer.weight, layer.bias, layer.eps, axis
        self.source = layer

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, d)."""
        if isinstance(self.source, nn.BatchNorm1d) and not self.source.training:
            mean, var = self.source.running_mean, self.source.running_var
            assert mean is not None
            assert var is not None
            return (x - mean) * (1 / torch.sqrt(var + self.eps)) * self.weight + self.bias
        n = x.shape[self.axis]
        # The mean of one number is that number: noise there would take the replicas to where no correct program goes.
        centred = 0 * x if n == 1 else x - x.sum(self.axis, keepdim=True) / n
        var = (centred * centred).sum(self.axis, keepdim=True) / n
        return centred * (1 / torch.sqrt(var + self.eps)) * self.weight + self.bias


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
    model = peer_side.TorchModel(case, layers.TORCH_LAYERS)
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
        _write_out(model.module)
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


def _write_out(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.LayerNorm):
            setattr(module, name, BatchNorm(child, 0 if isinstance(child, nn.BatchNorm1d) else 1))
        else:
            _write_out(child)


def directions(case: c.SecondOrderCase) -> dict[str, Array]:
    """The tensors that the first-order gradients are multiplied with, float32."""
    rng = case.rng("directions")
    return {s.name: rng.standard_normal(s.shape).astype(np.float32) for s in inputs.slots(case)[0]}
