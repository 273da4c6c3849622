"""Ops."""

import numpy

from .autograd import Tensor, TensorOp


class EWiseAdd(TensorOp):
    def compute(self, a, b):
        return numpy.add(a, b)

    def gradient(self, out_grad, node):
        return out_grad, out_grad


class AddScalar(TensorOp):
    def __init__(self, scalar):
        self.scalar = scalar

    def compute(self, a):
        return a + numpy.asarray(self.scalar, dtype=a.dtype)

    def gradient(self, out_grad, node):
        return out_grad


class EWiseMul(TensorOp):
    def compute(self, a, b):
        return numpy.multiply(a, b)

    def gradient(self, out_grad, node):
        return out_grad * node.inputs[1], out_grad * node.inputs[0]


class MulScalar(TensorOp):
    def __init__(self, scalar):
        self.scalar = scalar

    def compute(self, a):
        return a * numpy.asarray(self.scalar, dtype=a.dtype)

    def gradient(self, out_grad, node):
        return out_grad * self.scalar


class EWisePow(TensorOp):
    def compute(self, a, b):
        return numpy.power(a, b)

    def gradient(self, out_grad, node):
        a, b = node.inputs
        return out_grad * b * a ** (b - 1), out_grad * a**b * log(a)


class PowerScalar(TensorOp):
    def __init__(self, scalar):
        self.scalar = scalar

    def compute(self, a):
        return a ** numpy.asarray(self.scalar, dtype=a.dtype)

    def gradient(self, out_grad, node):
        if self.scalar == 0:
            return out_grad * 0.0
        return out_grad * (self.scalar * node.inputs[0] ** (self.scalar - 1))


class EWiseDiv(TensorOp):
    def compute(self, a, b):
        return numpy.divide(a, b)

    def gradient(self, out_grad, node):
        a, b = node.inputs
        return out_grad / b, -(out_grad / b) * (a / b)


class DivScalar(TensorOp):
    def __init__(self, scalar):
        self.scalar = scalar

    def compute(self, a):
        return a / numpy.asarray(self.scalar, dtype=a.dtype)

    def gradient(self, out_grad, node):
        return out_grad / self.scalar


class Transpose(TensorOp):
    def __init__(self, axes=None):
        self.axes = axes

    def compute(self, a):
        order = list(range(a.ndim))
        i, j = (-1, -2) if self.axes is None else self.axes
        order[i], order[j] = order[j], order[i]
        return a.transpose(order)

    def gradient(self, out_grad, node):
        return out_grad.transpose(self.axes)


class Reshape(TensorOp):
    def __init__(self, shape):
        self.shape = shape

    def compute(self, a):
        return a.reshape(self.shape)

    def gradient(self, out_grad, node):
        return out_grad.reshape(node.inputs[0].shape)


class BroadcastTo(TensorOp):
    def __init__(self, shape):
        self.shape = shape

    def compute(self, a):
        return numpy.broadcast_to(a, self.shape)

    def gradient(self, out_grad, node):
        old = node.inputs[0].shape
        padded = (1,) * (len(self.shape) - len(old)) + tuple(old)
        axes = tuple(i for i, n in enumerate(padded) if n == 1)
        return out_grad.sum(axes).reshape(old)


class Summation(TensorOp):
    def __init__(self, axes=None):
        self.axes = (axes,) if isinstance(axes, int) else axes

    def compute(self, a):
        return numpy.sum(a, axis=None if self.axes is None else tuple(self.axes))

    def gradient(self, out_grad, node):
        return spread(out_grad, node.inputs[0].shape, self.axes)


def spread(x, shape, axes):
    """A result of reduction, back in the shape it came from."""
    rank = len(shape)
    gone = range(rank) if axes is None else [axis + rank if axis < 0 else axis for axis in axes]
    return x.reshape(tuple(1 if i in gone else n for i, n in enumerate(shape))).broadcast_to(shape)


class MatMul(TensorOp):
    def compute(self, a, b):
        return numpy.matmul(a, b)

    def gradient(self, out_grad, node):
        a, b = node.inputs
        return folded(out_grad @ b.transpose(), a.shape), folded(a.transpose() @ out_grad, b.shape)


def folded(grad, shape):
    """Batch dimensions that a factor has not, or has once, are summed away."""
    lead = len(grad.shape) - len(shape)
    padded = (1,) * lead + tuple(shape)
    axes = tuple(i for i in range(len(padded) - 2) if padded[i] == 1)
    return grad.sum(axes).reshape(shape) if axes else grad


class Negate(TensorOp):
    def compute(self, a):
        return numpy.negative(a)

    def gradient(self, out_grad, node):
        return -out_grad


class Log(TensorOp):
    def compute(self, a):
        return numpy.log(a)

    def gradient(self, out_grad, node):
        return out_grad / node.inputs[0]


class Exp(TensorOp):
    def compute(self, a):
        return numpy.exp(a)

    def gradient(self, out_grad, node):
        return out_grad * node


class ReLU(TensorOp):
    def compute(self, a):
        out = a.copy()
        out[a < 0] = 0
        return out

    def gradient(self, out_grad, node):
        positive = node.inputs[0].realize_cached_data() > 0
        return out_grad * Tensor.make_const(positive.astype(node.dtype))


class LogSumExp(TensorOp):
    def __init__(self, axes=None):
        self.axes = (axes,) if isinstance(axes, int) else axes

    def compute(self, z):
        high = numpy.max(z, axis=self.axes, keepdims=True)
        low = numpy.log(numpy.sum(numpy.exp(z - high), axis=self.axes))
        return low + high.reshape(numpy.shape(low))

    def gradient(self, out_grad, node):
        z = node.inputs[0]
        soft = exp(z - spread(node, z.shape, self.axes))
        return spread(out_grad, z.shape, self.axes) * soft


class Stack(TensorOp):
    def __init__(self, axis):
        self.axis = axis

    def __call__(self, parts):
        return super().__call__(*parts)

    def compute(self, *parts):
        return numpy.stack(parts, axis=self.axis)

    def gradient(self, out_grad, node):
        return tuple(Pick(self.axis, i)(out_grad) for i in range(len(node.inputs)))


class Pick(TensorOp):
    """One slice along an axis."""

    def __init__(self, axis, index):
        self.axis, self.index = axis, index

    def compute(self, a):
        return numpy.take(a, self.index, axis=self.axis)

    def gradient(self, out_grad, node):
        a = node.inputs[0]
        rest = Tensor.make_const(numpy.zeros(out_grad.shape, out_grad.dtype))
        count = a.shape[self.axis]
        return Stack(self.axis)([out_grad if i == self.index else rest for i in range(count)])


def add(a, b):
    return EWiseAdd()(a, b)


def add_scalar(a, scalar):
    return AddScalar(scalar)(a)


def multiply(a, b):
    return EWiseMul()(a, b)


def mul_scalar(a, scalar):
    return MulScalar(scalar)(a)


def power(a, b):
    return EWisePow()(a, b)


def power_scalar(a, scalar):
    return PowerScalar(scalar)(a)


def divide(a, b):
    return EWiseDiv()(a, b)


def divide_scalar(a, scalar):
    return DivScalar(scalar)(a)


def transpose(a, axes=None):
    return Transpose(axes)(a)


def reshape(a, shape):
    return Reshape(shape)(a)


def broadcast_to(a, shape):
    return BroadcastTo(shape)(a)


def summation(a, axes=None):
    return Summation(axes)(a)


def matmul(a, b):
    return MatMul()(a, b)


def negate(a):
    return Negate()(a)


def log(a):
    return Log()(a)


def exp(a):
    return Exp()(a)


def relu(a):
    return ReLU()(a)


def logsumexp(a, axes=None):
    return LogSumExp(axes)(a)


def stack(parts, axis):
    return Stack(axis)(parts)
