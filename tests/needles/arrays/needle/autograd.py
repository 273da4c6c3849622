"""Tensors, and the walk back."""

import numpy as np

TENSOR_COUNTER = 0


def cpu():
    return "cpu"


class Op:
    """compute works on arrays, gradient on Tensors."""

    def __call__(self, *inputs):
        out = Tensor.__new__(Tensor)
        out.op, out.inputs = self, list(inputs)
        out.requires_grad = any(x.requires_grad for x in inputs)
        out.grad = None
        out.cached_data = np.asarray(self.compute(*[x.cached_data for x in inputs]))
        if not out.requires_grad:
            out.op, out.inputs = None, []
        return out

    def gradient_as_tuple(self, out_grad, node):
        grads = self.gradient(out_grad, node)
        return grads if isinstance(grads, tuple) else (grads,)


class Value:
    op = None
    inputs = ()

    def is_leaf(self):
        return self.op is None

    def realize_cached_data(self):
        return self.cached_data


class Tensor(Value):
    def __init__(self, array, *, device=None, dtype=None, requires_grad=True, **kwargs):
        if isinstance(array, Tensor):
            array = array.cached_data if dtype in (None, array.dtype) else array.cached_data.astype(dtype)
            self.cached_data = array
        else:
            self.cached_data = np.array(array, dtype=dtype)
        self.op, self.inputs, self.grad, self.requires_grad = None, [], None, requires_grad

    @classmethod
    def make_const(cls, data, requires_grad=False):
        out = cls.__new__(cls)
        out.op, out.inputs, out.grad, out.requires_grad, out.cached_data = None, [], None, requires_grad, data
        return out

    @property
    def data(self):
        return Tensor.make_const(self.cached_data)

    @data.setter
    def data(self, value):
        if value.dtype != self.dtype:
            raise TypeError(f"{value.dtype} into {self.dtype}")
        self.cached_data = value.cached_data

    def detach(self):
        return self.data

    @property
    def shape(self):
        return self.cached_data.shape

    @property
    def dtype(self):
        return self.cached_data.dtype

    @property
    def device(self):
        return cpu()

    def numpy(self):
        return self.cached_data

    def backward(self, out_grad=None):
        compute_gradient_of_variables(self, out_grad or Tensor.make_const(np.ones(self.shape, self.dtype)))

    def __len__(self):
        return self.shape[0] if self.shape else 1

    def __bool__(self):
        return True

    def __add__(self, other):
        return ops.add(self, other) if isinstance(other, Tensor) else ops.add_scalar(self, other)

    def __sub__(self, other):
        return self + (-other)

    def __rsub__(self, other):
        return ops.add_scalar(-self, other)

    def __mul__(self, other):
        return ops.multiply(self, other) if isinstance(other, Tensor) else ops.mul_scalar(self, other)

    def __truediv__(self, other):
        return ops.divide(self, other) if isinstance(other, Tensor) else ops.divide_scalar(self, other)

    def __rtruediv__(self, other):
        return ops.mul_scalar(ops.power_scalar(self, -1), other)

    def __pow__(self, other):
        return ops.power(self, other) if isinstance(other, Tensor) else ops.power_scalar(self, other)

    def __neg__(self):
        return ops.negate(self)

    def __matmul__(self, other):
        return ops.matmul(self, other)

    __radd__, __rmul__, matmul = __add__, __mul__, __matmul__

    def sum(self, axes=None):
        return ops.summation(self, axes)

    def broadcast_to(self, shape):
        return ops.broadcast_to(self, shape)

    def reshape(self, *shape):
        return ops.reshape(self, shape[0] if isinstance(shape[0], (tuple, list)) else shape)

    def transpose(self, axes=None):
        return ops.transpose(self, axes)


def compute_gradient_of_variables(output, out_grad):
    adjoints = {id(output): [out_grad]}
    for node in reversed(find_topo_sort([output])):
        node.grad = sum_node_list(adjoints[id(node)])
        if node.op is not None:
            for x, part in zip(node.inputs, node.op.gradient_as_tuple(node.grad, node), strict=True):
                if x.requires_grad:
                    adjoints.setdefault(id(x), []).append(part)


def find_topo_sort(nodes):
    """Only what needs a gradient is walked through."""
    order, seen, stack = [], set(), [(node, iter(node.inputs)) for node in nodes]
    seen.update(id(node) for node in nodes)
    while stack:
        node, rest = stack[-1]
        for x in rest:
            if id(x) not in seen and x.requires_grad:
                seen.add(id(x))
                stack.append((x, iter(x.inputs)))
                break
        else:
            order.append(node)
            stack.pop()
    return order


def sum_node_list(nodes):
    total = nodes[0]
    for node in nodes[1:]:
        total = total + node
    return total


from . import ops  # noqa: E402
