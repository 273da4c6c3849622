"""How is a layer of a case built in needle, and how in torch? One row for each; those that are one op have no row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from oracle.cases import case as c
from oracle.operations import OPERATIONS
from oracle.systems import peer


@dataclass(frozen=True)
class LayerRow:
    """One layer: how a user of needle builds it and how a user of torch does; ``body`` builds what is nested in it."""

    needle: Callable[[Any, Any, int, Callable[..., Any]], Any]
    torch: Callable[[Any, int, Callable[..., nn.Module]], nn.Module]


def _given(**keywords: Any) -> dict[str, Any]:
    """Only the keywords that the case sets: what it leaves out tests the defaults."""
    return {k: v for k, v in keywords.items() if v is not None}


def _applied(ndl: Any, function: Callable[..., Any], *children: Any) -> Any:
    """A module of the user's own, as course code writes it."""

    class Applied(ndl.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.parts = list(children)

        def forward(self, x: Any) -> Any:
            return function(x, *self.parts)

    return Applied()


def _needle_activation(ndl: Any, s: c.Activation, width: int, body: Callable[..., Any]) -> Any:
    """A layer that not every course needle has; the function as a module where it has not."""
    kind = getattr(ndl.nn, type(s).__name__, None)
    return _applied(ndl, lambda x: OPERATIONS[s.op].needle(ndl, x)) if kind is None else kind()


def _torch_activation(s: c.Activation, width: int, body: Callable[..., Any]) -> nn.Module:
    return peer.Apply(lambda x: OPERATIONS[s.op].torch(torch, x))


_JOINS: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
}


def _needle_branch(ndl: Any, s: c.Branch, width: int, body: Callable[..., Any]) -> Any:
    left, right = body("left.", s.left), body("right.", s.right)
    return _applied(ndl, lambda x, a, b: _JOINS[s.join](a(x), b(x)), left, right)


def _needle_unused(ndl: Any, s: c.Unused, width: int, body: Callable[..., Any]) -> Any:
    module = _applied(ndl, lambda x: x)
    module.weight = ndl.nn.Parameter(ndl.init.zeros(s.size))
    return module


def _program(layer: c.Ops, x: Any, call: Callable[..., Any]) -> Any:
    values = [x]
    for step in layer.steps:
        values.append(call(step.op, *(values[a] for a in step.args), **step.attributes))
    return values[-1]


def _needle_ops(ndl: Any, s: c.Ops, width: int, body: Callable[..., Any]) -> Any:
    return _applied(ndl, lambda x: _program(s, x, lambda op, *xs, **a: OPERATIONS[op].needle(ndl, *xs, **a)))


def _torch_ops(s: c.Ops, width: int, body: Callable[..., Any]) -> nn.Module:
    return peer.Apply(lambda x: _program(s, x, lambda op, *xs, **a: OPERATIONS[op].torch(torch, *xs, **a)))


LAYERS: Mapping[type, LayerRow] = {
    c.Linear: LayerRow(
        lambda n, s, d, _: n.nn.Linear(d, s.out, **({} if s.bias else {"bias": False})),
        lambda s, d, _: nn.Linear(d, s.out, bias=s.bias),
    ),
    c.ReLU: LayerRow(lambda n, s, d, _: n.nn.ReLU(), lambda s, d, _: peer.ReLU()),
    **dict.fromkeys(c.ACTIVATIONS.values(), LayerRow(_needle_activation, _torch_activation)),
    c.Identity: LayerRow(lambda n, s, d, _: n.nn.Identity(), lambda s, d, _: nn.Identity()),
    c.Flatten: LayerRow(lambda n, s, d, _: n.nn.Flatten(), lambda s, d, _: nn.Flatten()),
    c.BatchNorm: LayerRow(
        lambda n, s, d, _: n.nn.BatchNorm1d(d, **_given(eps=s.eps, momentum=s.momentum)),
        lambda s, d, _: nn.BatchNorm1d(d, **_given(eps=s.eps, momentum=s.momentum)),
    ),
    c.LayerNorm: LayerRow(
        lambda n, s, d, _: n.nn.LayerNorm1d(d, **_given(eps=s.eps)),
        lambda s, d, _: nn.LayerNorm(d, **_given(eps=s.eps)),
    ),
    c.Dropout: LayerRow(
        lambda n, s, d, _: n.nn.Dropout(**_given(p=s.p)),
        lambda s, d, _: peer.Dropout(0.5 if s.p is None else s.p),
    ),
    c.Unused: LayerRow(_needle_unused, lambda s, d, _: peer.Unused(s.size)),
    c.Sequential: LayerRow(lambda n, s, d, body: body("", s.body), lambda s, d, body: body("", s.body)),
    c.Eval: LayerRow(lambda n, s, d, body: body("", s.body), lambda s, d, body: body("", s.body)),
    c.Residual: LayerRow(
        lambda n, s, d, body: n.nn.Residual(body("", s.body)),
        lambda s, d, body: peer.Residual(body("", s.body)),
    ),
    c.Branch: LayerRow(
        _needle_branch,
        lambda s, d, body: peer.Branch(body("left.", s.left), body("right.", s.right), s.join),
    ),
    c.Ops: LayerRow(_needle_ops, _torch_ops),
}

NEEDLE_LAYERS = {kind: row.needle for kind, row in LAYERS.items()}
TORCH_LAYERS = {kind: row.torch for kind, row in LAYERS.items()}
