"""Rounding noise in any torch program: the operands of every operation that runs below autograd are perturbed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from oracle.operations.tape import ANY_ORDER, Noise


class Rounding(TorchDispatchMode):
    """Perturbs every floating-point operand of every operation by uniform noise in ±2u, as a float32 kernel might."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noise = Noise(seed, replicas=2)

    def _drawn(self, shape: torch.Size) -> Tensor:
        """Uniform in ±2u."""
        return torch.from_numpy(self.noise.draw(shape)[0, ...])

    def _perturbed(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            known = value.is_floating_point() and value.numel()
            return value.addcmul(value, self._drawn(value.shape)) if known else value
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
            terms = func(*(a.abs() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args), **kwargs)
            out = out + self._drawn(out.shape) * (ANY_ORDER * k) * terms
        return out


_MOVES = {f"aten::{n}" for n in ("clone", "detach", "cat", "stack", "flip", "zeros_like", "ones_like", "new_zeros",
                                  "_to_copy", "gt", "eq", "equal", "copy")}  # fmt: skip
_PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm"}  # the product's factors come last
_SUMS = {"aten::sum", "aten::mean"}
