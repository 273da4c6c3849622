"""What is right, in the place of a layer, of `Module` or of a loss of another needle: in a child, to see what then is gone.

A layer is written with the package's own ops, so that its graph is the package's and what is wrong with an op stays wrong; its
parameters and buffers are its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from oracle.blame.entry import functions_called
from oracle.cases import case as c
from oracle.operations import OPERATIONS
from oracle.systems.ours.contract import contract_of
from oracle.systems.ours.model import NeedleSide, array_of
from oracle.systems.source import GRADIENT

Forward = Callable[[Any], Any]


class Ops:
    """The ops of a package on its own Tensors, and what layers are made of."""

    def __init__(self, ndl: Any) -> None:
        self.ndl = ndl

    def __call__(self, name: str, *operands: Any, **attributes: Any) -> Any:
        return OPERATIONS[name].needle(self.ndl, *operands, **attributes)

    def constant(self, array: Any, shape: tuple[int, ...]) -> Any:
        """Numbers, spread to a shape."""
        whole = np.array(np.broadcast_to(np.asarray(array, np.float32), shape))
        return self.ndl.Tensor(whole, requires_grad=False)

    def row(self, vector: Any, shape: tuple[int, ...]) -> Any:
        """A parameter of as many elements as a row has, in every row."""
        return self("broadcast_to", self("reshape", vector, shape=(1, shape[1])), shape=shape)

    def mean(self, x: Any, axis: int) -> tuple[Any, Any]:
        """The mean along an axis, and the same in the shape of x."""
        shape = tuple(x.shape)
        mean = self("divide_scalar", self("summation", x, axes=(axis,)), c=float(shape[axis]))
        kept = tuple(1 if i == axis else n for i, n in enumerate(shape))
        return mean, self("broadcast_to", self("reshape", mean, shape=kept), shape=shape)

    def minus(self, a: Any, b: Any) -> Any:
        """a - b, by ops that every needle has."""
        return self("add", a, self("mul_scalar", b, c=-1.0))

    def normal(self, module: Any, centred: Any, var: Any, eps: float) -> Any:
        """Divided by the root of a variance in its shape, then weighted."""
        shape = tuple(centred.shape)
        root = self("power_scalar", self("add_scalar", var, c=eps), c=0.5)
        weighted = self("multiply", self("divide", centred, root), self.row(module.weight, shape))
        return self("add", weighted, self.row(module.bias, shape))


def _linear(op: Ops, layer: c.Linear, module: Any, parts: list[Any]) -> Forward:
    def forward(x: Any) -> Any:
        y = op("matmul", x, module.weight)
        return op("add", y, op.row(module.bias, tuple(y.shape))) if layer.bias else y

    return forward


def _layer_norm(op: Ops, layer: c.LayerNorm, module: Any, parts: list[Any]) -> Forward:
    def forward(x: Any) -> Any:
        centred = op.minus(x, op.mean(x, 1)[1])
        var = op.mean(op("multiply", centred, centred), 1)[1]
        return op.normal(module, centred, var, 1e-5 if layer.eps is None else layer.eps)

    return forward


def _batch_norm(op: Ops, layer: c.BatchNorm, module: Any, parts: list[Any]) -> Forward:
    contract = contract_of(op.ndl)
    momentum = 0.1 if layer.momentum is None else layer.momentum

    def forward(x: Any) -> Any:
        shape = tuple(x.shape)
        if module.training:
            mean, spread = op.mean(x, 0)
            centred = op.minus(x, spread)
            var, root = op.mean(op("multiply", centred, centred), 0)
            unbiased = shape[0] / (shape[0] - 1) if contract.unbiased else 1.0
            for name, new in (("running_mean", array_of(mean)), ("running_var", array_of(var) * np.float32(unbiased))):
                old = array_of(getattr(module, name)).reshape(new.shape)
                moved = (1 - momentum) * old + momentum * new
                contract.put(module, name, moved.astype(np.float32), into=False)
        else:
            centred = op.minus(x, op.constant(np.ravel(array_of(module.running_mean)), shape))
            root = op.constant(np.ravel(array_of(module.running_var)), shape)
        return op.normal(module, centred, root, 1e-5 if layer.eps is None else layer.eps)

    return forward


def _dropout(op: Ops, layer: c.Dropout, module: Any, parts: list[Any]) -> Forward:
    p = layer.probability

    def forward(x: Any) -> Any:
        if not module.training:
            return x
        mask = np.random.random_sample(tuple(x.shape)) <= 1 - p
        dropped = op("multiply", x, op.constant(mask, tuple(x.shape)))
        return op("divide_scalar", dropped, c=1 - p) if p < 1 else dropped

    return forward


def _residual(op: Ops, layer: c.Residual, module: Any, parts: list[Any]) -> Forward:
    return lambda x: op("add", parts[0](x), x)


def _plain(name: str, **attributes: Callable[[Any], Any]) -> Callable[..., Forward]:
    def made(op: Ops, layer: Any, module: Any, parts: list[Any]) -> Forward:
        return lambda x: op(name, x, **{keyword: value(x) for keyword, value in attributes.items()})

    return made


# kind of layer -> its forward, given the layer of the case, the module that was built, and what it was built around
LAYERS: Mapping[str, Callable[..., Forward]] = {
    "Linear": _linear,
    "LayerNorm": _layer_norm,
    "BatchNorm": _batch_norm,
    "Dropout": _dropout,
    "Residual": _residual,
    "ReLU": _plain("relu"),
    "Identity": lambda op, layer, module, parts: lambda x: x,
    "Flatten": _plain("reshape", shape=lambda x: (x.shape[0], int(np.prod(x.shape[1:])))),
}


def put_layer(ndl: Any, kind: str) -> bool:
    """Models of cases get the right layer of that kind from now on, with what the constructor of theirs has made."""
    if kind not in LAYERS:
        return False
    block, right, op = c.LAYERS[kind], LAYERS[kind], Ops(ndl)
    theirs = block.needle

    def needle(layer: Any, n: Any, width: int, body: Callable[[str], Any]) -> Any:
        parts: list[Any] = []
        if not isinstance(n, NeedleSide):  # torch is built by the same words
            return theirs(layer, n, width, body)

        def kept(name: str) -> Any:
            parts.append(body(name))
            return parts[-1]

        module = theirs(layer, n, width, kept)
        forward = right(op, layer, module, parts)
        owner = type(module)
        module.__class__ = type(owner.__name__, (owner,), {"forward": lambda self, x: forward(x)})
        return module

    block.needle = needle  # type: ignore[method-assign, assignment]
    return True


def put_loss(ndl: Any) -> bool:
    """`SoftmaxLoss`."""

    def forward(self: Any, logits: Any, y: Any) -> Any:
        labels = np.asarray(y if isinstance(y, list) else array_of(y)).astype(int)
        op, (rows, classes) = Ops(ndl), logits.shape
        picked = op("multiply", logits, op.constant(np.eye(classes)[labels], (rows, classes)))
        losses = op.minus(op("logsumexp", logits, axes=(1,)), op("summation", picked, axes=(1,)))
        return op("divide_scalar", op("summation", losses, axes=None), c=float(rows))

    ndl.nn.SoftmaxLoss.forward = forward
    return True


# -- what Module finds in itself ----------------------------------------------------------------------------------------

WALKS = ("parameters", "train", "eval")


def _found(ndl: Any, value: Any, kind: type) -> Iterator[Any]:
    if isinstance(value, kind):
        yield value
    if isinstance(value, ndl.nn.Module):
        value = vars(value)
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _found(ndl, part, kind)


def put_walk(ndl: Any, method: str) -> bool:
    """A method of `Module`; with it those that go the same way, and miss the same: see `_gone_alike`."""
    alike = [name for name in WALKS if name == method or _alike(ndl, name, method)]

    def parameters(self: Any) -> list[Any]:
        return list({id(p): p for p in _found(ndl, self, ndl.nn.Parameter)}.values())

    def switch(training: bool) -> Callable[..., None]:
        def switched(self: Any, mode: bool = training) -> None:  # which eval() may hand to train()
            for module in _found(ndl, self, ndl.nn.Module):
                module.training = mode

        return switched

    right = {"parameters": parameters, "train": switch(True), "eval": switch(False)}
    for name in alike:
        setattr(ndl.nn.Module, name, right[name])
    return True


def _alike(ndl: Any, one: str, other: str) -> bool:
    """Whether two methods of `Module` run a function of the package in common, and miss the same of all that a module may hold
    its layers in: then what is wrong is wrong with what they have in common.
    """
    missed = [{held for held in HOLDS if not _reached(ndl, name, held)} for name in (one, other)]
    return missed[0] == missed[1] and bool(missed[0]) and bool(_helpers(ndl, one) & _helpers(ndl, other))


HOLDS: Mapping[str, Callable[[Any], Any]] = {
    "attribute": lambda inner: inner,
    "list": lambda inner: [inner],
    "tuple": lambda inner: (inner,),
    "dict": lambda inner: {"inner": inner},
    "list of lists": lambda inner: [[inner]],
}


def _holding(ndl: Any, held: str) -> tuple[Any, Any]:
    outer, inner = ndl.nn.Module(), ndl.nn.Linear(1, 1)
    outer.held = HOLDS[held](inner)
    return outer, inner


def _reached(ndl: Any, method: str, held: str) -> bool:
    outer, inner = _holding(ndl, held)
    if method == "parameters":
        return any(p is inner.weight for p in outer.parameters())
    inner.training = method == "eval"
    getattr(outer, method)()
    return bool(inner.training) == (method == "train")


def _helpers(ndl: Any, method: str) -> set[str]:
    """Functions of the package that run in a method of `Module`, itself among them."""
    outer, _ = _holding(ndl, "attribute")
    with functions_called(ndl) as called:
        getattr(outer, method)()
    return called


# -- the backward pass --------------------------------------------------------------------------------------------------


def put_backward(ndl: Any) -> bool:
    """Each node once, when all that arrives at it has arrived."""
    arrays = contract_of(ndl).array_gradients

    def backward(self: Any, out_grad: Any = None) -> None:
        given = np.ones(self.shape, np.float32) if out_grad is None else array_of(out_grad)
        seed = given if arrays else ndl.Tensor(given, requires_grad=False)
        arrived = {id(self): seed}
        for node in reversed(_in_order(self)):
            gradient = arrived.pop(id(node), None)
            if gradient is None:
                continue
            node.grad = gradient
            parts = () if node.op is None else _passed_back(node, gradient, arrays)
            for x, part in zip(node.inputs if parts else (), parts, strict=True):
                arrived[id(x)] = arrived[id(x)] + part if id(x) in arrived else part

    ndl.Tensor.backward = backward
    return True


def _passed_back(node: Any, gradient: Any, arrays: bool) -> Sequence[Any]:
    """What an op passes back, whatever the method is called and whether it is given the node or its inputs."""
    inputs = [array_of(x) for x in node.inputs] if arrays else node.inputs
    method = next(getattr(node.op, name) for name in reversed(GRADIENT) if hasattr(node.op, name))
    names = list(inspect.signature(method).parameters)
    made = method(gradient, node) if names[1:2] == ["node"] else method(gradient, *inputs)
    return made if isinstance(made, tuple | list) else (made,)


def _in_order(root: Any) -> list[Any]:
    """The nodes that a Tensor was made by, inputs first, without recursion."""
    order: list[Any] = []
    seen: set[int] = set()
    todo = [(root, False)]
    while todo:
        node, done = todo.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            todo.append((node, True))
            todo += [(x, False) for x in node.inputs]
    return order
