"""The ops: a class with compute and gradient, and a function, for each."""

import numpy as array_api

from .autograd import TensorOp, TensorTuple, TensorTupleOp


class MakeTensorTuple(TensorTupleOp):
    def compute(self, *args):
        return tuple(args)

    def gradient(self, out_grad, node):
        return tuple(out_grad[i] for i in range(len(out_grad)))


def make_tuple(*args):
    return MakeTensorTuple()(*args)


class TupleGetItem(TensorOp):
    def __init__(self, index):
        self.index = index

    def __call__(self, a):
        if isinstance(a.op, MakeTensorTuple):
            return a.inputs[self.index]
        return super().__call__(a)

    def compute(self, a):
        return a[self.index]

    def gradient(self, out_grad, node):
        from .init import zeros_like

        (a,) = node.inputs
        values = a.realize_cached_data()
        parts = [
            out_grad if i == self.index else zeros_like(TensorTuple.make_const(values)[i]) for i in range(len(values))
        ]
        return make_tuple(*parts)


def tuple_get_item(value, index):
    return TupleGetItem(index)(value)


class EWiseAdd(TensorOp):
    def compute(self, a, b):
        return a + b

    def gradient(self, out_grad, node):
        return out_grad, out_grad


def add(a, b):
    return EWiseAdd()(a, b)


class AddScalar(TensorOp):
    def __init__(self, scalar):
        self.scalar = scalar

    def compute(self, a):
        return a + self.scalar

    def gradient(self, out_grad, node):
        return out_grad


def add_scalar(a, scalar):
    return AddScalar(scalar)(a)


class EWiseMul(TensorOp):
    def compute(self, a, b):
        return a * b

    def gradient(self, out_grad, node):
        lhs, rhs = node.inputs
        return out_grad * rhs, out_grad * lhs


def multiply(a, b):
    return EWiseMul()(a, b)


class MulScalar(TensorOp):
    def __init__(self, scalar):
        self.scalar = scalar

    def compute(self, a):
        return a * self.scalar

    def gradient(self, out_grad, node):
        return out_grad * self.scalar


def mul_scalar(a, scalar):
    return MulScalar(scalar)(a)


class PowerScalar(TensorOp):
    def __init__(self, scalar):
        self.scalar = scalar

    def compute(self, a):
        return array_api.power(a, self.scalar)

    def gradient(self, out_grad, node):
        (a,) = node.inputs
        if self.scalar == 0:
            return out_grad * 0
        return out_grad * self.scalar * power_scalar(a, self.scalar - 1)


def power_scalar(a, scalar):
    return PowerScalar(scalar)(a)


class EWisePow(TensorOp):
    def compute(self, a, b):
        return array_api.power(a, b)

    def gradient(self, out_grad, node):
        a, b = node.inputs
        return out_grad * b * power(a, b + (-1)), out_grad * power(a, b) * log(a)


def power(a, b):
    return EWisePow()(a, b)


class EWiseDiv(TensorOp):
    def compute(self, a, b):
        return a / b

    def gradient(self, out_grad, node):
        a, b = node.inputs
        return out_grad / b, negate(out_grad) * (a / (b * b))


def divide(a, b):
    return EWiseDiv()(a, b)


class DivScalar(TensorOp):
    def __init__(self, scalar):
        self.scalar = scalar

    def compute(self, a):
        return a / self.scalar

    def gradient(self, out_grad, node):
        return out_grad / self.scalar


def divide_scalar(a, scalar):
    return DivScalar(scalar)(a)


class Transpose(TensorOp):
    """Two axes swapped, by default the last two."""

    def __init__(self, axes=None):
        self.axes = axes

    def compute(self, a):
        first, second = self.axes if self.axes is not None else (a.ndim - 2, a.ndim - 1)
        return array_api.swapaxes(a, first, second)

    def gradient(self, out_grad, node):
        return transpose(out_grad, self.axes)


def transpose(a, axes=None):
    return Transpose(axes)(a)


class Reshape(TensorOp):
    def __init__(self, shape):
        self.shape = shape

    def compute(self, a):
        return array_api.reshape(a, self.shape)

    def gradient(self, out_grad, node):
        return reshape(out_grad, node.inputs[0].shape)


def reshape(a, shape):
    return Reshape(shape)(a)


class BroadcastTo(TensorOp):
    def __init__(self, shape):
        self.shape = shape

    def compute(self, a):
        return array_api.broadcast_to(a, self.shape)

    def gradient(self, out_grad, node):
        shape = node.inputs[0].shape
        added = len(self.shape) - len(shape)
        axes = list(range(added))
        for i, n in enumerate(shape):
            if n == 1 and self.shape[added + i] != 1:
                axes.append(added + i)
        if not axes:
            return out_grad
        return reshape(summation(out_grad, tuple(axes)), shape)


def broadcast_to(a, shape):
    return BroadcastTo(shape)(a)


class Summation(TensorOp):
    def __init__(self, axes=None):
        self.axes = axes

    def compute(self, a):
        return array_api.sum(a, axis=self.axes)

    def gradient(self, out_grad, node):
        shape = node.inputs[0].shape
        return broadcast_to(reshape(out_grad, kept(shape, self.axes)), shape)


def kept(shape, axes):
    """A shape in which the axes have size 1."""
    if axes is None:
        return (1,) * len(shape)
    if isinstance(axes, int):
        axes = (axes,)
    axes = [axis % len(shape) for axis in axes]
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def summation(a, axes=None):
    return Summation(axes)(a)


class MatMul(TensorOp):
    def compute(self, a, b):
        return a @ b

    def gradient(self, out_grad, node):
        a, b = node.inputs
        da = matmul(out_grad, transpose(b))
        db = matmul(transpose(a), out_grad)
        return self.fitted(da, a.shape), self.fitted(db, b.shape)

    def fitted(self, grad, shape):
        added = len(grad.shape) - len(shape)
        axes = [*range(added)]
        axes += [added + i for i in range(len(shape) - 2) if shape[i] == 1 and grad.shape[added + i] != 1]
        return reshape(summation(grad, tuple(axes)), shape) if axes else grad


def matmul(a, b):
    return MatMul()(a, b)


class Negate(TensorOp):
    def compute(self, a):
        return -a

    def gradient(self, out_grad, node):
        return negate(out_grad)


def negate(a):
    return Negate()(a)


class Log(TensorOp):
    def compute(self, a):
        return array_api.log(a)

    def gradient(self, out_grad, node):
        return out_grad / node.inputs[0]


def log(a):
    return Log()(a)


class Exp(TensorOp):
    def compute(self, a):
        return array_api.exp(a)

    def gradient(self, out_grad, node):
        return out_grad * exp(node.inputs[0])


def exp(a):
    return Exp()(a)


class ReLU(TensorOp):
    def compute(self, a):
        return array_api.maximum(a, 0)

    def gradient(self, out_grad, node):
        from .autograd import Tensor

        mask = node.inputs[0].realize_cached_data() > 0
        return out_grad * Tensor(mask, dtype=out_grad.dtype, requires_grad=False)


def relu(a):
    return ReLU()(a)


class Tanh(TensorOp):
    def compute(self, a):
        return array_api.tanh(a)

    def gradient(self, out_grad, node):
        y = tanh(node.inputs[0])
        return out_grad * (1 - y * y)


def tanh(a):
    return Tanh()(a)


class LogSumExp(TensorOp):
    def __init__(self, axes=None):
        self.axes = axes

    def compute(self, z):
        top = array_api.max(z, axis=self.axes, keepdims=True)
        total = array_api.sum(array_api.exp(z - top), axis=self.axes)
        return array_api.log(total) + array_api.reshape(top, total.shape)

    def gradient(self, out_grad, node):
        (z,) = node.inputs
        shape = kept(z.shape, self.axes)
        spread = broadcast_to(reshape(logsumexp(z, self.axes), shape), z.shape)
        return broadcast_to(reshape(out_grad, shape), z.shape) * exp(z - spread)


def logsumexp(a, axes=None):
    return LogSumExp(axes)(a)


class LogSoftmax(TensorOp):
    def compute(self, z):
        top = array_api.max(z, axis=1, keepdims=True)
        return z - top - array_api.log(array_api.sum(array_api.exp(z - top), axis=1, keepdims=True))

    def gradient(self, out_grad, node):
        (z,) = node.inputs
        total = broadcast_to(reshape(summation(out_grad, 1), (z.shape[0], 1)), z.shape)
        return out_grad - exp(logsoftmax(z)) * total


def logsoftmax(a):
    return LogSoftmax()(a)
