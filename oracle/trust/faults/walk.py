"""The backward pass: order, addition at a fan-out, what leaves get, chains of layers, broadcasting undone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from needle import autograd
from needle.autograd import Tensor
from oracle.trust.faults.chapter import Chapter, const, f16
from oracle.trust.patches import Patch, around, of_chain, replace

fault = Chapter("autograd")


def walk(
    order: Callable[[list[Any]], list[Any]] = lambda nodes: nodes,
    add: Callable[[Any, Any], Any] = lambda before, c: before + c,
    seen: Callable[[Any, Any, int, Any], Any] = lambda c, x, i, node: c,
    leaf: Callable[[Any, Any], Any] = lambda g, x: g.copy(),
    flows: Callable[[Any], bool] = lambda x: bool(x.requires_grad),
    keep: Callable[[Any, Any], Any] = lambda g, node: g.copy(),
    seed: Callable[[Any], Any] = lambda g: g,
) -> Patch:
    """The plain backward written out, with some of its parts replaced; ``order`` gets the nodes oldest first."""

    def walk_arrays(root: Any, g: Any, free: bool) -> None:
        nodes = autograd._graph(root)
        autograd._refuse_changes(nodes, tensors=False)
        nodes = order(nodes)
        adjoints = {root: seed(g)}
        kept = []
        while nodes:
            node = nodes.pop()
            op: Any = node.op
            inputs = node.inputs
            if free:
                node.op, node.inputs = autograd._FREED, ()
            g = adjoints.pop(node, None)
            if g is None:
                continue
            if type(g) is tuple:
                g = tuple((np.zeros_like(a) if c is None else c) for c, a in zip(g, node.cached_data, strict=True))
            if node._keeps_grad:
                kept.append((node, g))
            needs = [x.requires_grad for x in inputs]
            contributions = autograd._contributions(op, inputs, needs, node, g)
            for i, (x, c) in enumerate(zip(inputs, contributions, strict=True)):
                if c is None or not flows(x):
                    continue
                before = adjoints.get(x)
                if type(x.cached_data) is tuple:
                    adjoints[x] = c if before is None else autograd._sum_of_tuples(before, c)
                    continue
                c = seen(autograd._in_dtype_of(np.asarray(c), x.cached_data), x, i, node)
                if c is not None:
                    adjoints[x] = c if before is None else np.asarray(add(before, c))
        for x, g in adjoints.items():
            x.grad = const(leaf(g, x))
        for node, g in kept:
            node.grad = autograd.TensorTuple.make_const(g) if type(g) is tuple else const(keep(g, node))

    return replace("autograd._walk_arrays", walk_arrays)


def _once_per_op(c: Any, x: Any, i: int, node: Any) -> Any:
    """Only the first of the positions in which one op uses a tensor; `inputs` may be freed already."""
    known = vars(node).setdefault("positions", {})
    first = known.setdefault(id(x), i)
    if i != first:
        return None
    return c


def _in_place(before: Any, c: Any) -> Any:
    if before.flags.writeable and before.shape == c.shape and before.ndim:
        before += c
        return before
    return before + c


def _no_graph(walk_tensors: Any, root: Any, g: Any) -> None:
    walk_tensors(root, g)
    for node in autograd._graph(root):
        for x in node.inputs:
            if isinstance(x, Tensor) and x.grad is not None:
                x.grad = x.grad.detach()


def _reduced(total: Callable[[Any, tuple[int, ...], tuple[int, ...]], Any]) -> Patch:
    """How a gradient is brought back to the shape of an operand that was broadcast, for arrays."""

    def patched(old: Any, g: Any, shape: tuple[int, ...]) -> Any:
        if not isinstance(g, np.ndarray) or g.shape == shape:
            return old(g, shape)
        lead = g.ndim - len(shape)
        axes = tuple(i for i in range(g.ndim) if i < lead or (shape[i - lead] == 1 and g.shape[i] != 1))
        return np.asarray(total(g, axes, shape)).reshape(shape)

    return around("ops._reduced", patched)


fault.controls["backward written out"] = walk()

ACCUMULATION = "accumulation"

CHAIN = "chain"

fault(
    "add-overwrites",
    "at a fan-out the last contribution wins",
    ACCUMULATION,
    walk(add=lambda before, c: c),
    words="only one",
)
fault(
    "add-keeps-first",
    "at a fan-out the first contribution wins",
    ACCUMULATION,
    walk(add=lambda before, c: before),
    words="only one",
)
fault(
    "add-doubles-first",
    "at a fan-out the first contribution counts twice",
    ACCUMULATION,
    walk(add=lambda before, c: 2 * before + c),
    words="counts twice",
)
fault(
    "add-averages",
    "at a fan-out contributions are averaged",
    ACCUMULATION,
    walk(add=lambda before, c: (before + c) / 2),
    words="averaged",
)
fault(
    "add-subtracts",
    "at a fan-out contributions are subtracted",
    ACCUMULATION,
    walk(add=lambda before, c: before - c),
    words="are subtracted",
)
fault(
    "add-largest",
    "at a fan-out the larger contribution wins",
    ACCUMULATION,
    walk(add=np.maximum),
    words="the largest contribution wins",
)
fault(
    "add-smallest",
    "at a fan-out the smaller contribution wins",
    ACCUMULATION,
    walk(add=np.minimum),
    words="the smallest contribution wins",
)
fault(
    "add-multiplies",
    "at a fan-out contributions are multiplied",
    ACCUMULATION,
    walk(add=lambda before, c: before * c),
    words="are multiplied",
)
fault(
    "add-subtracts-from-last",
    "at a fan-out what is there is subtracted from what arrives",
    ACCUMULATION,
    walk(add=lambda before, c: c - before),
    words="are subtracted",
)
fault("add-float16", "contributions are added in float16", ACCUMULATION, walk(add=lambda before, c: f16(before + c)))
fault(
    "add-in-place",
    "contributions are added into arrays that others hold",
    ACCUMULATION,
    walk(add=_in_place),
    words="added in place",
)
fault(
    "same-operand-once",
    "a tensor that is both operands of one op gets one contribution",
    ACCUMULATION,
    walk(seen=_once_per_op),
    words="is missing|only one",
)
fault(
    "cancelled-dropped",
    "a sum of contributions that is small is set to 0",
    ACCUMULATION,
    walk(add=lambda before, c: np.where(np.abs(before + c) < 1e-3, np.float32(0), before + c)),
)
fault(
    "tiny-flushed",
    "contributions below 1e-6 are dropped",
    f"{ACCUMULATION}|backward",
    walk(seen=lambda c, x, i, node: np.where(np.abs(c) < 1e-6, c.dtype.type(0), c)),
)
fault(
    "order-reversed",
    "among nodes, the oldest comes first",
    f"{ACCUMULATION}|backward",
    walk(order=lambda nodes: nodes[:1] + nodes[:0:-1] if len(nodes) > 9 else nodes),
)
fault(
    "order-last-two",
    "the two newest inner nodes are visited in the wrong order",
    f"{ACCUMULATION}|backward|missing",
    walk(order=lambda nodes: [*nodes[:-3], nodes[-2], nodes[-3], nodes[-1]] if len(nodes) > 2 else nodes),
)
fault("out-grad-ignored", "backward starts from ones", "seed|out_grad|Cotangent", walk(seed=np.ones_like))
fault(
    "out-grad-summed",
    "backward starts from the mean of out_grad",
    "seed|out_grad|Cotangent",
    walk(seed=lambda g: np.full_like(g, g.mean())),
)
fault(
    "grad-accumulates",
    "a second backward adds to .grad",
    "second backward|accumulat|gradient",
    walk(leaf=lambda g, x: g.copy() if x.grad is None else g + x.grad.cached_data),
    words="twice",
)
fault("grad-kept-over-steps", "gradients of earlier steps stay in the sum", "reset_grad|accumulat|gradient",
      walk(leaf=lambda g, x: g.copy() if x.grad is None else g + x.grad.cached_data) + replace("optim.Optimizer.reset_grad", lambda self: None))  # fmt: skip
fault(
    "retain-graph-ignored",
    "retain_graph=True frees the graph",
    "backward",
    around("autograd._walk_arrays", lambda old, root, g, free: old(root, g, True)),
)
fault("grad-float64", "gradients of leaves are float64", "gradient|dtype", walk(leaf=lambda g, x: g.astype(np.float64)))
fault("frozen-gets-gradient", "requires_grad=False does not stop the gradient", "gradient|requires_grad|frozen",
      around("autograd._contributions", lambda old, op, inputs, needs, node, g: old(op, inputs, [True] * len(inputs), node, g)) + walk(flows=lambda x: True))  # fmt: skip
fault(
    "chain-forgets-result",
    "a chain of layers lets go of the result that the rule of ReLU reads",
    CHAIN,
    replace("ops.ReLU.reads_result", False),
)
fault(
    "chain-forgets-input",
    "a chain of layers lets go of the input that the rule of Linear reads, where it has the shape of the result",
    CHAIN,
    replace("ops.Linear.reads_inputs", False),
)
fault(
    "chain-loses-skip",
    "the gradient past a Residual in the middle of a chain is dropped",
    CHAIN,
    replace("chain._sum", lambda parts: parts[-1]),
)
fault(
    "chain-flat-order",
    "a chain of layers adds up to a tensor that is used three times in another order",
    CHAIN,
    of_chain(lambda got: got[::-1]),
)
fault(
    "chain-unfolds-without-base",
    "a chain of layers that is unfolded passes nothing on to what it was computed from",
    CHAIN,
    around("chain._nodes", lambda old, records, x, numbers: old(records, x.detach(), numbers)),
)
fault(
    "input-gets-none",
    "only Parameters get a gradient",
    "missing|input",
    walk(leaf=lambda g, x: g.copy())
    + around("autograd._walk_arrays", lambda old, root, g, free: _parameters_only(old, root, g, free)),
)
fault(
    "retained-halved",
    "the kept gradient of an inner tensor is not what flows on",
    "retain_grad|backward",
    walk(keep=lambda g, node: g / 2 if node.ndim == 2 and node.shape[0] > 4 else g.copy()),
)
fault(
    "leaf-transposed",
    "the gradient of a square leaf is transposed",
    "gradient|backward",
    walk(leaf=lambda g, x: g.T.copy() if g.ndim == 2 and g.shape[0] == g.shape[1] else g.copy()),
)
fault(
    "broadcast-mean",
    "broadcasting is undone by a mean",
    "backward",
    _reduced(lambda g, axes, shape: g.mean(axis=axes)),
    words="reduced",
)
fault(
    "broadcast-first",
    "broadcasting is undone by taking the first",
    "backward",
    _reduced(
        lambda g, axes, shape: (
            np.moveaxis(g, axes, range(len(axes))).reshape(-1, math.prod(shape))[:1] if g.size else g.sum(axis=axes)
        )
    ),
    words="reduced",
)
fault(
    "broadcast-lead-only",
    "only the leading axes of a broadcast are summed",
    "backward",
    _reduced(
        lambda g, axes, shape: (
            g.sum(axis=axes)
            if len(shape) < g.ndim
            else np.take(g.sum(axis=axes[:-1], keepdims=True), [-1], axis=axes[-1])
            if g.size
            else g.sum(axis=axes)
        )
    ),
    words="reduced",
)
fault(
    "tuple-first-only",
    "of the elements of a tuple only the first contribution counts",
    ACCUMULATION + "|stack|split|TupleGetItem",
    around("autograd._sum_of_tuples", lambda old, a, b: a),
    words="nothing arrives|only one|is missing",
)
fault(
    "no-grad-stays",
    "recording stays off after no_grad",
    "missing|backward|gradient|constant",
    replace("autograd._GradMode.__exit__", lambda self, *exception: None),
)

fault(
    "second-order-constant",
    "create_graph=True makes gradients that are constants",
    "second",
    around("autograd._walk_tensors", _no_graph),
)
fault(
    "second-order-add",
    "the differentiable walk drops contributions",
    "second|accumulation|gradient",
    around("autograd.sum_node_list", lambda old, nodes: nodes[0]),
    words="only one|is missing",
)
fault(
    "leaf-requires-no-grad",
    "the gradient of a one-element leaf is lost",
    "gradient|missing",
    walk(seen=lambda c, x, i, node: None if x.op is None and x.size == 1 else c),
)


def _parameters_only(walk_arrays: Any, root: Any, g: Any, free: bool) -> None:
    leaves = {x for node in autograd._graph(root) for x in node.inputs if x.is_leaf()}
    walk_arrays(root, g, free)
    for x in leaves:
        if not isinstance(x, autograd.Parameter):
            x.grad = None
