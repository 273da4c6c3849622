"""An operation differentiated two and three times, in torch. The truth is torch in float64, norms and losses written out, with
noise at the operands of every operation of every pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oracle.cases import case as c
from oracle.operations import OPERATIONS
from oracle.operations.tape import REPLICAS
from oracle.systems.noise import Operands
from oracle.systems.trace import HIGHER

Array = npt.NDArray[Any]
Results = dict[str, dict[str, Array]]  # quantity -> name -> array


def _normalised(x: Tensor, w: Tensor, b: Tensor, eps: float, axis: int) -> Tensor:
    n = x.shape[axis]
    centred = 0 * x if n == 1 else x - x.sum(axis, keepdim=True) / n
    var = (centred * centred).sum(axis, keepdim=True) / n
    return centred * (1 / torch.sqrt(var + eps)) * w + b


def _softmax_loss(_: Any, z: Tensor, labels: Any) -> Tensor:
    lse = _logsumexp(z, 1)
    return (lse - z.gather(1, torch.as_tensor(labels, dtype=torch.int64)[:, None])).sum() / z.shape[0]


def _logsumexp(z: Tensor, axis: int) -> Tensor:
    top = z.amax(axis, keepdim=True).detach()
    return torch.log(torch.exp(z - top).sum(axis, keepdim=True)) + top


def _power(t: Any, a: Tensor, b: Tensor) -> Tensor:
    """torch's own rule says 0 for the base where the exponent is 0, and then takes that for a constant: a wrong second order."""
    positive = a > 0
    return torch.where(positive, torch.exp(b * torch.log(torch.where(positive, a, 1.0))), a**b)


LARGEST_WHOLE = 8  # exponent that is written out as a product


def _whole_power(t: Any, a: Tensor, b: Tensor) -> Tensor:
    """As a product: noise makes a fraction of a whole exponent, and that of a negative number is none. ``b`` is a constant."""
    made = torch.ones_like(a * b)
    for k in range(LARGEST_WHOLE):
        made = made * torch.where(torch.abs(b) > k + 0.5, a, 1.0)
    return torch.where(b < 0, 1 / torch.where(b < 0, made, 1.0), made)


# what torch does in one kernel, and with one rounding for all of it, in steps
WRITTEN_OUT: dict[str, Callable[..., Tensor]] = {
    "batch_norm": lambda t, x, w, b, eps=1e-5: _normalised(x, w, b, eps, 0),
    "layer_norm": lambda t, x, w, b, eps=1e-5: _normalised(x, w, b, eps, -1),
    "softmax_loss": _softmax_loss,
    "logsoftmax": lambda t, z: z - _logsumexp(z, 1),
    "cast": lambda t, x: x * 1,
    "power": _power,
    "whole_power": _power,
}


def truth(case: c.OpCase) -> Results:
    """The gradients of the second order and, if the case asks for it, of the third: float64 (replicas, *shape)."""
    return truth_and_largest(case)[0]


def truth_and_largest(case: c.OpCase) -> tuple[Results, float]:
    """The same, and the largest number on the way there, in all its passes: a program in float32 has none beyond its range."""
    exact = _in_torch(case, torch.float64, None, WRITTEN_OUT)
    noise = Operands(case.seed_for("rounding"))
    noisy = _in_torch(case, torch.float64, noise, WRITTEN_OUT)
    return _with_replicas(exact, noisy), noise.largest


def _with_replicas(exact: Results, noisy: Results) -> Results:
    return {q: {n: np.concatenate([v, noisy[q][n]]) for n, v in values.items()} for q, values in exact.items()}


def peer(case: c.OpCase) -> Results:
    """The same in float32, in torch's own kernels.

    Its norms have wrong derivatives of the third order: to their double backward the saved statistics are constants.
    """
    own = {name: WRITTEN_OUT[name] for name in ("batch_norm", "layer_norm") if case.order == 3}
    own |= {name: WRITTEN_OUT[name] for name in ("power", "whole_power")}
    found = _in_torch(case, torch.float32, None, own)
    return {quantity: {name: v[0] for name, v in values.items()} for quantity, values in found.items()}


def _in_torch(
    case: c.OpCase, dtype: torch.dtype, noise: Operands | None, own: Mapping[str, Callable[..., Tensor]]
) -> Results:
    """What does not flow is left out. With noise, all replicas at once: a sum over replicas has each one's own gradients."""
    function = own.get(case.op, OPERATIONS[case.op].torch)
    if (
        case.op == "whole_power"
        and 1 in case.constants
        and np.abs(case.operands[1].array).max(initial=0) <= LARGEST_WHOLE
    ):
        function = _whole_power
    op = functools.partial(function, torch, **case.attributes)
    many = 1 if noise is None else REPLICAS - 1
    by = {f"operand {i}": _leaf(case.array(i), many, dtype, i not in case.constants) for i in range(len(case.operands))}
    cotangent = _leaf(case.cotangent_array.astype(case.dtype), many, dtype, True)
    results: Results = {}
    with nullcontext() if noise is None else noise:
        # one alone without vmap, under which torch takes some kernels apart: for that it imports 0.25 s of what compiles
        alone = (x.squeeze(0) for x in by.values())
        out = op(*alone).unsqueeze(0) if noise is None else torch.vmap(op)(*by.values())
        by = {name: x for name, x in by.items() if x.requires_grad}
        grads = torch.autograd.grad(out, list(by.values()), cotangent, create_graph=True, allow_unused=True)
        made: dict[str, Tensor | None] = dict(zip(by, grads, strict=True))
        by["cotangent"] = cotangent
        for order in range(2, case.order + 1):
            total = torch.zeros((), dtype=dtype)
            for name, grad in made.items():
                if grad is not None:
                    # what torch knows to be zero it adds up by a way that imports sympy, half a second
                    grad = grad.clone() if grad._is_zerotensor() else grad
                    direction = case.direction(order - 1, name, tuple(by[name].shape[1:]))
                    total = total + (grad * torch.from_numpy(direction).to(dtype)).sum()
            if not total.requires_grad:
                break
            grads = torch.autograd.grad(total, list(by.values()), create_graph=order < case.order, allow_unused=True)
            made = dict(zip(by, grads, strict=True))
            results[HIGHER[order]] = {n: g.detach().numpy(force=True) for n, g in made.items() if g is not None}
    return results


def _leaf(array: Array, many: int, dtype: torch.dtype, needs: bool) -> Tensor:
    return torch.from_numpy(np.repeat(array[None], many, 0)).to(dtype).requires_grad_(needs)
