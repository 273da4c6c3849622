"""Functions and modules of torch and needle, and whatever else has ``backward()``, as candidates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from oracle.check.arrays import Array, array
from oracle.check.comparing import Agreement, same
from oracle.check.difference import Difference
from oracle.check.measuring import LIMIT
from oracle.systems.noise import Nothing

Function = Callable[..., Any]


def backward(function: Function, tensor: Function) -> Function:
    """A candidate for `op` out of a function whose result has ``backward(cotangent)``; ``tensor(array)`` makes a leaf of it.

    For functions of torch there is `by_torch`.
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


def by_torch(function: Function, dtype: torch.dtype | None = None) -> Function:
    """A candidate for `op` out of a function of torch, or a module: a rewrite, a kernel, a ``torch.autograd.Function``.

    It gets tensors, of ``dtype`` where they are to be drawn in float32 and turned into it, and has the gradient that autograd makes. One
    that has none to give is held to values alone as ``lambda x: function(torch.from_numpy(x))``.
    """

    def leaf(x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        t = torch.from_numpy(x.copy())
        t = t.to(dtype) if dtype is not None and t.dtype is torch.float32 else t
        return t.requires_grad_(x.dtype.kind in "fc")

    def candidate(*inputs: Any) -> Any:
        # what of torch's would end the process where it meets nothing raises here
        careful = Nothing if any(isinstance(x, np.ndarray) and not x.size for x in inputs) else nullcontext
        leaves = [leaf(x) for x in inputs]
        wanted = [t for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad]
        with careful():
            out = function(*leaves)
        if not wanted:
            return out

        def vjp(cotangents: Any) -> list[Any]:
            outs = out.values() if isinstance(out, Mapping) else out if isinstance(out, tuple | list) else [out]
            given = cotangents.values() if isinstance(cotangents, Mapping) else cotangents
            given = given if isinstance(cotangents, Mapping | tuple) else [cotangents]
            numbers = [o for o in outs if o.is_floating_point() or o.is_complex()]
            pairs = [
                (o, torch.from_numpy(g).to(o.dtype)) for o, g in zip(numbers, given, strict=True) if o.requires_grad
            ]
            if not pairs:
                return [None] * len(wanted)
            with careful():
                found = torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
            return list(found)

        return out, vjp

    of = function.forward if isinstance(function, nn.Module) else function
    return functools.update_wrapper(
        candidate, of, assigned=(), updated=()
    )  # the names of its inputs are those of messages


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
