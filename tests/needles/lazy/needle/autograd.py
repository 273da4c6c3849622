"""Values that are computed when they are needed."""

import numpy

LAZY_MODE = True


class Device:
    name = "cpu"


def cpu():
    return Device()


class Op:
    def gradient_as_tuple(self, out_grad, node):
        output = self.gradient(out_grad, node)
        if isinstance(output, tuple):
            return output
        return (output,)


class TensorOp(Op):
    def __call__(self, *args):
        return Tensor.make_from_op(self, args)


class Value:
    cached_data = None

    def realize_cached_data(self):
        """Computes what is not there yet, the oldest first; long chains need no deep stack."""
        waiting = [self]
        while waiting:
            value = waiting[-1]
            if value.cached_data is not None:
                waiting.pop()
                continue
            missing = [x for x in value.inputs if x.cached_data is None]
            if missing:
                waiting.extend(missing)
            else:
                value.cached_data = numpy.asarray(value.op.compute(*(x.cached_data for x in value.inputs)))
                waiting.pop()
        return self.cached_data

    def is_leaf(self):
        return self.op is None


class Tensor(Value):
    def __init__(self, array, *, device=None, dtype=None, requires_grad=True, **kwargs):
        if isinstance(array, Tensor):
            array = array.realize_cached_data()
            self.cached_data = array if dtype is None else array.astype(dtype, copy=False)
        else:
            self.cached_data = numpy.array(array, dtype=dtype)
        self.op, self.inputs, self.requires_grad = None, (), requires_grad

    @staticmethod
    def make_const(data, requires_grad=False):
        return Tensor.with_data(data, None, (), requires_grad)

    @staticmethod
    def make_from_op(op, inputs):
        asks = any(x.requires_grad for x in inputs)
        out = Tensor.with_data(None, op, tuple(inputs), asks)
        return out if asks else out.detach()

    @staticmethod
    def with_data(data, op, inputs, requires_grad):
        out = Tensor.__new__(Tensor)
        out.cached_data, out.op, out.inputs, out.requires_grad = data, op, inputs, requires_grad
        return out

    def detach(self):
        return Tensor.make_const(self.realize_cached_data())

    data = property(detach)

    @data.setter
    def data(self, value):
        self.cached_data = value.realize_cached_data()

    def numpy(self):
        return self.realize_cached_data()

    shape = property(lambda self: self.realize_cached_data().shape)
    dtype = property(lambda self: self.realize_cached_data().dtype)
    device = property(lambda self: cpu())

    def backward(self, out_grad=None):
        if out_grad is None:
            out_grad = Tensor.make_const(numpy.ones_like(self.numpy()))
        compute_gradient_of_variables(self, out_grad)

    def __add__(self, other):
        return ops.EWiseAdd()(self, other) if isinstance(other, Tensor) else ops.AddScalar(other)(self)

    def __sub__(self, other):
        return self + ops.Negate()(other) if isinstance(other, Tensor) else ops.AddScalar(-other)(self)

    def __rsub__(self, other):
        return ops.AddScalar(other)(ops.Negate()(self))

    def __mul__(self, other):
        return ops.EWiseMul()(self, other) if isinstance(other, Tensor) else ops.MulScalar(other)(self)

    def __truediv__(self, other):
        return ops.EWiseDiv()(self, other) if isinstance(other, Tensor) else ops.DivScalar(other)(self)

    def __rtruediv__(self, other):
        return ops.MulScalar(other)(ops.PowerScalar(-1)(self))

    def __pow__(self, other):
        return ops.EWisePow()(self, other) if isinstance(other, Tensor) else ops.PowerScalar(other)(self)

    def __neg__(self):
        return ops.Negate()(self)

    def __matmul__(self, other):
        return ops.MatMul()(self, other)

    def matmul(self, other):
        return ops.MatMul()(self, other)

    __radd__ = __add__
    __rmul__ = __mul__

    def sum(self, axes=None):
        return ops.Summation(axes)(self)

    def broadcast_to(self, shape):
        return ops.BroadcastTo(shape)(self)

    def reshape(self, shape):
        return ops.Reshape(shape)(self)

    def transpose(self, axes=None):
        return ops.Transpose(axes)(self)


def compute_gradient_of_variables(output_tensor, out_grad):
    """Gradients are values like others: they are computed when somebody asks for them."""
    contributions = {output_tensor: [out_grad]}
    for node in reversed(find_topo_sort([output_tensor])):
        node.grad = sum_node_list(contributions.pop(node))
        if node.op is not None:
            for x, contribution in zip(node.inputs, node.op.gradient_as_tuple(node.grad, node), strict=True):
                contributions.setdefault(x, []).append(contribution)


def find_topo_sort(node_list):
    visited, topo_order = set(), []
    stack = list(node_list)
    while stack:
        node = stack[-1]
        waits = [x for x in node.inputs if x not in visited]
        if node in visited:
            stack.pop()
        elif waits:
            stack += reversed(waits)
        else:
            visited.add(node)
            topo_order.append(node)
            stack.pop()
    return topo_order


def sum_node_list(node_list):
    total, *others = node_list
    for other in others:
        total = total + other
    return total


from . import ops  # noqa: E402
