"""needle's functions and modules, and whatever else has ``backward()``, as candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from oracle.check.arrays import Array, array
from oracle.check.comparing import Agreement, same
from oracle.check.difference import Difference
from oracle.check.measuring import LIMIT

Function = Callable[..., Any]


def backward(function: Function, tensor: Function) -> Function:
    """A candidate for `op` out of a function whose result has ``backward(cotangent)``; ``tensor(array)`` makes a leaf of it.

    For torch itself: ``check.backward(MyFunction.apply, lambda a: torch.from_numpy(a).requires_grad_())``.
    """

    def candidate(*inputs: Any) -> tuple[Any, Function]:
        leaves = [tensor(x) if isinstance(x, np.ndarray) and x.dtype.kind in "fc" else x for x in inputs]
        out = function(*leaves)

        def vjp(cotangent: Array) -> list[Any]:
            out.backward(tensor(cotangent))
            wanted = [(x, leaf) for x, leaf in zip(inputs, leaves, strict=True) if leaf is not x]
            return [None if leaf.grad is None else leaf.grad for _, leaf in wanted]

        return out, vjp

    return candidate


def needle(function: Function) -> Function:
    """A candidate for `op` out of a function of needle, or an Op of one's own: ``check.needle(ndl.tanh)``."""
    import needle as ndl

    return backward(function, lambda a: ndl.Tensor(a, dtype=str(a.dtype)))


def module(
    ours: Any, theirs: nn.Module, shape: tuple[int, ...], *, seed: int = 0, limit: float = LIMIT, report: bool = False
) -> Agreement:
    """Hold a module of needle to one of torch, with the same weights: output, gradients of input and parameters, buffers.

    Weights and buffers of ``theirs`` are copied into ``ours`` by name; one of two dimensions is transposed if that is how the
    shapes fit (Linear), and one of one dimension becomes a row. shape: of the input. Both are in the mode that they are in.
    """
    __tracebackhide__ = True
    import needle as ndl

    state = {n: array(t)[0] for n, t in theirs.state_dict().items() if not n.endswith("num_batches_tracked")}
    own = ours.state_dict()
    if state.keys() != own.keys():
        ours_only, theirs_only = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        raise Difference(f"the modules have other names: only needle's {ours_only}, only torch's {theirs_only}")
    linear = {f"{n}.weight".lstrip(".") for n, m in theirs.named_modules() if isinstance(m, nn.Linear)}
    turned = {n: n in linear for n in state}

    def to_ours(name: str, a: Array) -> Array:
        a = a.T if turned[name] else a
        if a.size != own[name].size:
            raise Difference(f"{name} is {own[name].shape} in needle, {a.shape} in torch")
        return np.ascontiguousarray(a).reshape(own[name].shape)

    ours.load_state_dict({n: to_ours(n, a) for n, a in state.items()})
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    given = ndl.Tensor(x, dtype="float32", requires_grad=True)
    out = ours(given)
    cotangent = rng.standard_normal(out.shape).astype(np.float32)
    out.backward(ndl.Tensor(cotangent, dtype="float32"))
    parameters = dict(ours.named_parameters())
    mine = {"output": out, "gradient of input": given.grad}
    mine |= {f"gradient of {n}": p.grad for n, p in parameters.items()}
    mine |= {f"buffer {n}": a for n, a in ours.state_dict().items() if n not in parameters}

    def program() -> dict[str, Any]:
        leaf = torch.from_numpy(x.copy()).requires_grad_()
        weights = {n: p for n, p in theirs.named_parameters() if n in parameters}
        y = theirs(leaf)
        grads = torch.autograd.grad(
            y, [leaf, *weights.values()], torch.from_numpy(cotangent).to(y.dtype), allow_unused=True
        )
        results: dict[str, Any] = {"output": y, "gradient of input": grads[0]}

        def shaped(name: str, t: torch.Tensor) -> torch.Tensor:
            return (t.T if turned[name] else t).reshape(own[name].shape)

        results |= {f"gradient of {n}": shaped(n, g) for n, g in zip(weights, grads[1:], strict=True) if g is not None}
        buffers = {n: b for n, b in theirs.named_buffers() if n in own}
        return results | {f"buffer {n}": shaped(n, b) for n, b in buffers.items()}

    return same(mine, program, limit=limit, report=report)
