"""Second-order cases: the gradient of ⟨first-order gradients, drawn directions⟩.

The truth is torch in float64, on norm layers and losses written out in elementary operations; its noise comes from
perturbing the operands of every operation that runs, forward, backward and in the second backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from oracle import case as c
from oracle import compare as cmp
from oracle import inputs, locate, op_rule, pairs
from oracle import needle_executor as ours_side
from oracle import torch_executor as peer_side
from oracle.definitions import ANY_ORDER, REPLICAS, U
from oracle.trace import Clock

Array = npt.NDArray[Any]
Results = dict[str, dict[str, Array]]  # quantity -> name -> array


class Rounding(TorchDispatchMode):
    """Perturbs every floating-point operand of every operation by uniform noise in ±2u, as a float32 kernel might."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = torch.Generator().manual_seed(seed)

    def _perturbed(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            noise = torch.rand(value.shape, generator=self.generator, dtype=value.dtype)
            return value * (1 + (4 * U) * (noise - 0.5))
        if isinstance(value, list | tuple):
            return type(value)(self._perturbed(v) for v in value)
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Operations that only move elements stay exact; sums get the rounding of every order, see `ANY_ORDER`."""
        kwargs = kwargs or {}
        if func.is_view or func._schema.is_mutable or func._schema.name in _MOVES:
            return func(*args, **kwargs)
        out = func(*(self._perturbed(a) for a in args), **kwargs)
        if func._schema.name in _PRODUCTS:
            k = args[-2].shape[-1]
        elif func._schema.name in _SUMS:
            k = args[0].numel() // max(out.numel(), 1)
        else:
            return out
        if k > 1:
            terms = func(*(a.abs() if isinstance(a, Tensor) else a for a in args), **kwargs)
            noise = torch.rand(out.shape, generator=self.generator, dtype=out.dtype)
            out = out + (4 * U) * (noise - 0.5) * (ANY_ORDER * k) * terms
        return out


_MOVES = {f"aten::{n}" for n in ("clone", "detach", "cat", "stack", "flip", "zeros_like", "ones_like", "new_zeros",
                                  "_to_copy", "gt", "eq", "equal", "copy")}  # fmt: skip
_PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm"}  # the product's factors come last
_SUMS = {"aten::sum", "aten::mean"}


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


def _run(
    case: c.SecondOrderCase, kinks: Mapping[str, Array], dtype: torch.dtype, noise: int | None, written_out: bool
) -> Results:
    slots = inputs.slots(case)
    batches = inputs.batches(case)
    masks = inputs.masks(case, 1)
    model = peer_side.TorchModel(case, pairs.TORCH_LAYERS)
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

    if noise is None:
        work()
    else:
        with Rounding(noise):
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


def judge(case: c.SecondOrderCase, ndl: Any) -> Any:
    """The verdict on a second-order case, by rule G on the gradients of both orders."""
    from oracle.engine import Verdict

    verdict = Verdict(case, steps=1)
    clock = Clock()
    clock.turn("observing")
    slots, batches = inputs.slots(case), inputs.batches(case)
    seen = ours_side.run_second(
        case,
        ndl,
        pairs.NEEDLE_LAYERS,
        slots,
        batches,
        inputs.initial_state(case),
        directions(case),
        clock=clock,
    )
    clock.turn("rules")
    verdict.seconds = clock.seconds
    if seen.failure is not None:
        f = seen.failure
        message = f"needle raised {f.kind} in {f.phase}: {f.message}"
        raised = cmp.Divergence(0, f"exception in {f.phase}", f.kind, "exception", message, failure=f)
        verdict.divergence = locate.named(case, raised, locate.Evidence(ndl))
        return verdict
    relus = {path for path, layer in c.walk(case.model) if isinstance(layer, c.ReLU)}
    kinks = {p: k for p, k in seen.kinks.items() if p in relus}
    clock.turn("truth")
    exact = _run(case, kinks, torch.float64, None, written_out=True)
    noisy = [
        _run(case, kinks, torch.float64, case.seed_for(f"rounding {m}"), written_out=True) for m in range(1, REPLICAS)
    ]
    clock.turn("torch")
    peer = _run(case, kinks, torch.float32, None, written_out=False)
    clock.turn("rules")
    for quantity, values in exact.items():
        for name, value in values.items():
            replicas = np.stack([value, *(n[quantity][name] for n in noisy)])[:, None]
            if not np.abs(replicas).max(initial=0) < cmp.DOMAIN:
                verdict.out_of_domain = 1
                return verdict
            ours, theirs = seen.values.get(quantity, {}).get(name), peer[quantity].get(name)
            if ours is None and not value.any():
                # a second derivative that is zero everywhere: needle may know that nothing flows there
                verdict.tally.count(f"G {quantity}", 0.0, 1, value.size)
                continue
            wrong = cmp.check_form(0, quantity, name, ours, value.shape, "float32")
            if wrong is None:
                assert ours is not None
                share = cmp.share_g(ours[None], replicas)[0]
                at = cmp.worst(share)
                verdict.tally.count(f"G {quantity}", float(share[at]), 1, ours.size, f"{case.digest} {quantity} {name}")
                if share[at] > 1:
                    allowed = cmp.G_LIMIT * cmp.tolerance(replicas)[0]
                    wrong = cmp.numeric(0, quantity, name, "G", at, ours, theirs, value, allowed)
            if wrong is not None and verdict.divergence is None:
                verdict.divergence = wrong
        for name in seen.values.get(quantity, {}).keys() - values.keys():
            if verdict.divergence is None and seen.values[quantity][name].any():
                message = f"needle has a {quantity} of {name}, which torch has not"
                verdict.divergence = cmp.Divergence(0, quantity, name, "unexpected", message)
    for name, same in seen.values.get("kept", {}).items():
        verdict.tally.count("exact kept", 0.0, 1, 1)
        if not same and verdict.divergence is None:
            verdict.divergence = cmp.Divergence(0, "kept", name, "exact", f"{name} has other bits")
    if verdict.divergence is not None:
        verdict.divergence = _named(case, ndl, verdict.divergence)
    clock.turn("")
    return verdict


def _named(case: c.SecondOrderCase, ndl: Any, divergence: cmp.Divergence) -> cmp.Divergence:
    """The divergence with its suspect: that of a plain training step on the same model, if that fails too."""
    from oracle import engine

    evidence = locate.Evidence(ndl)
    given = {n: getattr(case, n) for n in case.__struct_fields__}
    evidence.twin = engine.judge(c.TrainCase(**given, optimizer=c.SGD()), ndl, peer_too=False).divergence
    if evidence.twin is not None and evidence.twin.quantity not in (*locate.FORWARD, *locate.BACKWARD):
        evidence.twin = None  # another matter: the optimizer's, for one
    if evidence.twin is None:
        evidence.findings = op_rule.Findings()
        about = (inputs.slots(case), inputs.batches(case), inputs.initial_state(case), directions(case))
        ours_side.run_second(case, ndl, pairs.NEEDLE_LAYERS, *about, evidence.findings)
    return locate.named(case, divergence, evidence)
