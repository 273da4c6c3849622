"""Tensors, and the walk back on arrays."""

import numpy as np


class Value:
    __slots__ = ("__weakref__", "cached_data", "grad", "inputs", "op", "requires_grad")

    def realize_cached_data(self):
        return self.cached_data

    def is_leaf(self):
        return self.op is None


class Op:
    __slots__ = ()

    def __call__(self, *inputs):
        data = self.compute(*(x.cached_data for x in inputs))
        needs = any(x.requires_grad for x in inputs)
        return Tensor._make(np.asarray(data), self if needs else None, inputs if needs else (), needs)


class Tensor(Value):
    __slots__ = ()

    def __init__(self, array, *, device=None, dtype=None, requires_grad=True, **_):
        if isinstance(array, Tensor):
            array = array.cached_data
        self.cached_data = np.array(array, dtype=dtype)
        self.op, self.inputs, self.requires_grad, self.grad = None, (), requires_grad, None

    @classmethod
    def _make(cls, data, op=None, inputs=(), requires_grad=False):
        self = object.__new__(Tensor)
        self.cached_data, self.op, self.inputs, self.requires_grad, self.grad = data, op, inputs, requires_grad, None
        return self

    make_const = _make

    def numpy(self):
        return self.cached_data

    def detach(self):
        return Tensor._make(self.cached_data)

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        self.cached_data = other.cached_data if isinstance(other, Tensor) else np.asarray(other)

    @property
    def shape(self):
        return self.cached_data.shape

    @property
    def dtype(self):
        return self.cached_data.dtype

    @property
    def device(self):
        return "cpu"

    def backward(self, out_grad=None):
        """Gradients are arrays."""
        if out_grad is None:
            out_grad = np.ones_like(self.cached_data)
        elif isinstance(out_grad, Tensor):
            out_grad = out_grad.cached_data
        pending = {self: out_grad}
        for node in reversed(sorted_nodes(self)):
            g = pending.pop(node)
            node.grad = g
            if node.op is None:
                continue
            parts = node.op.gradient(g, *(x.cached_data for x in node.inputs))
            for x, part in zip(node.inputs, parts if isinstance(parts, tuple) else (parts,), strict=True):
                if x.requires_grad:
                    pending[x] = pending[x] + part if x in pending else part

    def _other(self, other, of_two, of_one):
        return of_two(self, other) if isinstance(other, Tensor) else of_one(self, other)

    def __add__(self, other):
        return self._other(other, ops.add, ops.add_scalar)

    __radd__ = __add__

    def __mul__(self, other):
        return self._other(other, ops.multiply, ops.mul_scalar)

    __rmul__ = __mul__

    def __truediv__(self, other):
        return self._other(other, ops.divide, ops.divide_scalar)

    def __pow__(self, other):
        return self._other(other, ops.power, ops.power_scalar)

    def __sub__(self, other):
        return self + (-other)

    def __rsub__(self, other):
        return (-self) + other

    def __rtruediv__(self, other):
        return (self**-1) * other

    def __neg__(self):
        return ops.negate(self)

    def __matmul__(self, other):
        return ops.matmul(self, other)

    matmul = __matmul__

    def sum(self, axes=None):
        return ops.summation(self, axes)

    def broadcast_to(self, shape):
        return ops.broadcast_to(self, shape)

    def reshape(self, shape):
        return ops.reshape(self, shape)

    def transpose(self, axes=None):
        return ops.transpose(self, axes)


def sorted_nodes(root):
    order, seen, stack = [], {root}, [(root, iter(root.inputs))]
    while stack:
        node, rest = stack[-1]
        for x in rest:
            if x not in seen and x.requires_grad:
                seen.add(x)
                stack.append((x, iter(x.inputs)))
                break
        else:
            order.append(node)
            stack.pop()
    return order


from . import ops  # noqa: E402
