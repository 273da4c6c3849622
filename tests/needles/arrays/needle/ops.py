"""Ops on arrays that broadcast; what a gradient has more than its operand is summed away."""

import numpy as np

from .autograd import Op, Tensor


def fitted(grad, like):
    """A gradient, reduced to the shape of the operand."""
    shape = like.shape
    if grad.shape == shape:
        return grad
    added = len(grad.shape) - len(shape)
    axes = tuple(range(added)) + tuple(i + added for i, n in enumerate(shape) if n == 1 and grad.shape[i + added] != 1)
    return reshape(summation(grad, axes), shape)


class EWiseAdd(Op):
    def compute(self, a, b):
        return a + b

    def gradient(self, out_grad, node):
        a, b = node.inputs
        return fitted(out_grad, a), fitted(out_grad, b)


class AddScalar(Op):
    def __init__(self, scalar):
        self.scalar = scalar

    def compute(self, a):
        return np.add(a, self.scalar, dtype=a.dtype)

    def gradient(self, out_grad, node):
        return out_grad


class EWiseMul(Op):
    def compute(self, a, b):
        return a * b

    def gradient(self, out_grad, node):
        a, b = node.inputs
        return fitted(out_grad * b, a), fitted(out_grad * a, b)


class MulScalar(Op):
    def __init__(self, scalar):
        self.scalar = scalar

    def compute(self, a):
        return np.multiply(a, self.scalar, dtype=a.dtype)

    def gradient(self, out_grad, node):
        return out_grad * self.scalar


class EWisePow(Op):
    def compute(self, a, b):
        return a**b

    def gradient(self, out_grad, node):
        a, b = node.inputs
        return fitted(out_grad * (b * a ** (b - 1)), a), fitted(out_grad * (a**b * log(a)), b)


class PowerScalar(Op):
    def __init__(self, scalar):
        self.scalar = scalar

    def compute(self, a):
        return np.power(a, self.scalar, dtype=a.dtype)

    def gradient(self, out_grad, node):
        if self.scalar == 0:
            return out_grad * 0
        return out_grad * (node.inputs[0] ** (self.scalar - 1) * self.scalar)


class EWiseDiv(Op):
    def compute(self, a, b):
        return a / b

    def gradient(self, out_grad, node):
        a, b = node.inputs
        return fitted(out_grad / b, a), fitted(-out_grad * (a / b / b), b)


class DivScalar(Op):
    def __init__(self, scalar):
        self.scalar = scalar

    def compute(self, a):
        return np.divide(a, self.scalar, dtype=a.dtype)

    def gradient(self, out_grad, node):
        return out_grad / self.scalar


class Transpose(Op):
    def __init__(self, axes=None):
        self.axes = (-1, -2) if axes is None else axes

    def compute(self, a):
        return a.swapaxes(*self.axes)

    def gradient(self, out_grad, node):
        return transpose(out_grad, self.axes)


class Reshape(Op):
    def __init__(self, shape):
        self.shape = tuple(shape)

    def compute(self, a):
        return a.reshape(self.shape)

    def gradient(self, out_grad, node):
        return reshape(out_grad, node.inputs[0].shape)


class BroadcastTo(Op):
    def __init__(self, shape):
        self.shape = tuple(shape)

    def compute(self, a):
        return np.broadcast_to(a, self.shape)

    def gradient(self, out_grad, node):
        return fitted(out_grad, node.inputs[0])


class Summation(Op):
    def __init__(self, axes=None):
        self.axes = tuple(axes) if isinstance(axes, list) else axes

    def compute(self, a):
        return a.sum(axis=self.axes)

    def gradient(self, out_grad, node):
        shape = node.inputs[0].shape
        wide = np.empty(shape, dtype=bool).sum(axis=self.axes, keepdims=True).shape
        return broadcast_to(reshape(out_grad, wide), shape)


class MatMul(Op):
    def compute(self, a, b):
        return np.matmul(a, b)

    def gradient(self, out_grad, node):
        a, b = node.inputs
        return fitted(out_grad @ transpose(b), a), fitted(transpose(a) @ out_grad, b)


class Negate(Op):
    def compute(self, a):
        return -a

    def gradient(self, out_grad, node):
        return -out_grad


class Log(Op):
    def compute(self, a):
        return np.log(a)

    def gradient(self, out_grad, node):
        return out_grad / node.inputs[0]


class Exp(Op):
    def compute(self, a):
        return np.exp(a)

    def gradient(self, out_grad, node):
        return out_grad * node  # the result itself is on the tape


class ReLU(Op):
    def compute(self, a):
        return np.where(a > 0, a, np.zeros_like(a))

    def gradient(self, out_grad, node):
        mask = node.inputs[0].cached_data > 0
        return out_grad * Tensor.make_const(mask.astype(out_grad.dtype))


class Tanh(Op):
    def compute(self, a):
        return np.tanh(a)

    def gradient(self, out_grad, node):
        return out_grad * (1 - node**2)


class Sigmoid(Op):
    def compute(self, a):
        e = np.exp(-np.abs(a))
        return np.where(a >= 0, 1 / (1 + e), e / (1 + e))

    def gradient(self, out_grad, node):
        return out_grad * (node * (1 - node))


class LogSumExp(Op):
    def __init__(self, axes=None):
        self.axes = axes

    def compute(self, z):
        top = z.max(axis=self.axes, keepdims=True)
        summed = np.log(np.exp(z - top).sum(axis=self.axes, keepdims=True)) + top
        return summed.squeeze(axis=self.axes)

    def gradient(self, out_grad, node):
        (z,) = node.inputs
        wide = np.empty(z.shape, dtype=bool).sum(axis=self.axes, keepdims=True).shape
        return reshape(out_grad, wide) * exp(z - reshape(node, wide))


class LogSoftmax(Op):
    def compute(self, z):
        shifted = z - z.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    def gradient(self, out_grad, node):
        total = reshape(summation(out_grad, (1,)), (out_grad.shape[0], 1))
        return out_grad - exp(node) * total


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


def tanh(a):
    return Tanh()(a)


def sigmoid(a):
    return Sigmoid()(a)


def logsumexp(a, axes=None):
    return LogSumExp(axes)(a)


def logsoftmax(a):
    return LogSoftmax()(a)
