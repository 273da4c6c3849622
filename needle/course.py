"""What only code of the course uses: its device, its gradient rules, and its functions over a graph.

All of it is found where the course has it, in `needle.autograd` (and `needle.cpu`), and nothing here is in the way of a
program that does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from needle.autograd import Tensor, TensorTuple, Value, _apart, _walk_tensors, _with_grad, no_grad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from needle.autograd import Op

__all__ = ["CPUDevice", "all_devices", "compute_gradient_of_variables", "cpu", "find_topo_sort"]


class CPUDevice:
    """The only device there is; accepted wherever the course passes one."""

    def __repr__(self) -> str:
        return "needle.cpu()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CPUDevice)

    def __hash__(self) -> int:
        return hash(CPUDevice)

    def enabled(self) -> bool:
        """Say whether the device can be used: always."""
        return True


_CPU = CPUDevice()


def cpu() -> CPUDevice:
    """Return the CPU device."""
    return _CPU


def all_devices() -> list[CPUDevice]:
    """Return every device: a list with the CPU."""
    return [_CPU]


# ------------------------------------------------------------------------------------------------- gradient rules


def vjp(self: Op, g: Any, y: Any, needs: Sequence[bool], *xs: Any) -> tuple[Any, ...]:
    """The ``vjp`` of an op that has the course's ``gradient(out_grad, node)`` instead: Tensors in, Tensors out.

    Of arrays it is asked for as constants. A node of the graph is handed on as it is, and stays differentiable.
    """
    if isinstance(y, Value):
        return tuple(_checked(self, xs, self.gradient_as_tuple(g, y)))
    with no_grad():
        node = _wrapped(y, requires_grad=True)
        node.op, node.inputs = self, [_wrapped(x, need) for x, need in zip(xs, needs, strict=True)]
        answer = _checked(self, node.inputs, self.gradient_as_tuple(_wrapped(g), node))
    # A rule may hand out an array that something else holds; a view is never taken for our own.
    datas = (None if c is None else c.cached_data for c in answer)
    return tuple(d if d is None or type(d) is tuple else d[...] for d in datas)


def _wrapped(data: Any, requires_grad: bool = False) -> Value:
    return (TensorTuple if type(data) is tuple else Tensor).make_const(data, requires_grad)


def _checked(op: Op, inputs: Sequence[Any], answer: Sequence[Any]) -> Sequence[Any]:
    """Refuse what a user's gradient rule got wrong, naming the op."""
    name = type(op).__name__
    if len(answer) != len(inputs):
        raise ValueError(f"{name}.gradient must return one gradient per input: {len(inputs)}, but got {len(answer)}")
    for x, c in zip(inputs, answer, strict=True):
        if c is None:
            continue
        if not isinstance(c, Value):
            raise TypeError(f"{name}.gradient must return Tensors, but got {type(c).__name__}")
        if isinstance(x, Tensor) and isinstance(c, Tensor) and x.shape != c.shape:
            raise ValueError(f"{name}.gradient must return the shape {x.shape} of the input, but got {c.shape}")
    return answer


# ---------------------------------------------------------------------------------------------------- over a graph


def compute_gradient_of_variables(output_tensor: Tensor, out_grad: Tensor) -> None:
    """Set a differentiable ``.grad`` on every node that requires one below output_tensor; keeps the graph.

    The course's function: out_grad has the shape of output_tensor, and the gradients can be differentiated
    again.
    """
    with _with_grad():
        _walk_tensors(output_tensor, _apart(output_tensor._checked_out_grad(out_grad)), everywhere=True)


def find_topo_sort(node_list: Sequence[Value]) -> list[Value]:
    """Return the nodes below node_list in the post-order of a depth-first walk, inputs left to right."""
    order: list[Value] = []
    seen: set[Value] = set()
    for root in node_list:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(root.inputs))]
        while stack:
            node, rest = stack[-1]
            for x in rest:
                if x not in seen:
                    seen.add(x)
                    stack.append((x, iter(x.inputs)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order
