"""Ops: gradients are computed on arrays, from what the op was given."""

import numpy as np

from .autograd import Op


def unbroadcast(g, shape):
    if g.shape == shape:
        return g
    lead = g.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(i + lead for i, n in enumerate(shape) if n == 1 and g.shape[i + lead] != 1)
    return g.sum(axis=axes, keepdims=True).reshape(shape)


class Add(Op):
    __slots__ = ()

    def compute(self, a, b):
        return a + b

    def gradient(self, g, a, b):
        return unbroadcast(g, a.shape), unbroadcast(g, b.shape)


class Mul(Op):
    __slots__ = ()

    def compute(self, a, b):
        return a * b

    def gradient(self, g, a, b):
        return unbroadcast(g * b, a.shape), unbroadcast(g * a, b.shape)


class Div(Op):
    __slots__ = ()

    def compute(self, a, b):
        return a / b

    def gradient(self, g, a, b):
        return unbroadcast(g / b, a.shape), unbroadcast(-g * a / (b * b), b.shape)


class Pow(Op):
    __slots__ = ()

    def compute(self, a, b):
        return a**b

    def gradient(self, g, a, b):
        return unbroadcast(g * b * a ** (b - 1), a.shape), unbroadcast(g * a**b * np.log(a), b.shape)


class Scalar(Op):
    __slots__ = ("c",)

    def __init__(self, c):
        self.c = c if isinstance(c, int) else float(c)


class AddScalar(Scalar):
    __slots__ = ()

    def compute(self, a):
        return a + self.c

    def gradient(self, g, a):
        return g


class MulScalar(Scalar):
    __slots__ = ()

    def compute(self, a):
        return a * self.c

    def gradient(self, g, a):
        return g * self.c


class DivScalar(Scalar):
    __slots__ = ()

    def compute(self, a):
        return a / self.c

    def gradient(self, g, a):
        return g / self.c


class PowScalar(Scalar):
    __slots__ = ()

    def compute(self, a):
        return a ** float(self.c)

    def gradient(self, g, a):
        return g * self.c * a ** float(self.c - 1)


class Neg(Op):
    __slots__ = ()

    def compute(self, a):
        return -a

    def gradient(self, g, a):
        return -g


class Log(Op):
    __slots__ = ()

    def compute(self, a):
        return np.log(a)

    def gradient(self, g, a):
        return g / a


class Exp(Op):
    __slots__ = ()

    def compute(self, a):
        return np.exp(a)

    def gradient(self, g, a):
        return g * np.exp(a)


class Relu(Op):
    __slots__ = ()

    def compute(self, a):
        return np.maximum(a, 0)

    def gradient(self, g, a):
        return g * (a > 0)


class MatMul(Op):
    __slots__ = ()

    def compute(self, a, b):
        return a @ b

    def gradient(self, g, a, b):
        return unbroadcast(g @ b.swapaxes(-1, -2), a.shape), unbroadcast(a.swapaxes(-1, -2) @ g, b.shape)


class Transpose(Op):
    __slots__ = ("axes",)

    def __init__(self, axes):
        self.axes = axes or (-1, -2)

    def compute(self, a):
        return a.swapaxes(*self.axes)

    def gradient(self, g, a):
        return g.swapaxes(*self.axes)


class Reshape(Op):
    __slots__ = ("shape",)

    def __init__(self, shape):
        self.shape = shape

    def compute(self, a):
        return a.reshape(self.shape)

    def gradient(self, g, a):
        return g.reshape(a.shape)


class BroadcastTo(Op):
    __slots__ = ("shape",)

    def __init__(self, shape):
        self.shape = shape

    def compute(self, a):
        return np.broadcast_to(a, self.shape)

    def gradient(self, g, a):
        return unbroadcast(g, a.shape)


class Axes(Op):
    __slots__ = ("axes",)

    def __init__(self, axes):
        self.axes = tuple(axes) if isinstance(axes, (list, tuple)) else axes

    def wide(self, g, a):
        return g.reshape(a.sum(axis=self.axes, keepdims=True).shape)


class Summation(Axes):
    __slots__ = ()

    def compute(self, a):
        return a.sum(axis=self.axes)

    def gradient(self, g, a):
        return np.broadcast_to(self.wide(g, a), a.shape)


class LogSumExp(Axes):
    __slots__ = ()

    def compute(self, a):
        top = a.max(axis=self.axes, keepdims=True)
        return (np.log(np.exp(a - top).sum(axis=self.axes, keepdims=True)) + top).squeeze(self.axes)

    def gradient(self, g, a):
        top = a.max(axis=self.axes, keepdims=True)
        e = np.exp(a - top)
        return self.wide(g, a) * (e / e.sum(axis=self.axes, keepdims=True))


def add(a, b):
    return Add()(a, b)


def multiply(a, b):
    return Mul()(a, b)


def divide(a, b):
    return Div()(a, b)


def power(a, b):
    return Pow()(a, b)


def add_scalar(a, c):
    return AddScalar(c)(a)


def mul_scalar(a, c):
    return MulScalar(c)(a)


def divide_scalar(a, c):
    return DivScalar(c)(a)


def power_scalar(a, c):
    return PowScalar(c)(a)


def negate(a):
    return Neg()(a)


def log(a):
    return Log()(a)


def exp(a):
    return Exp()(a)


def relu(a):
    return Relu()(a)


def matmul(a, b):
    return MatMul()(a, b)


def transpose(a, axes=None):
    return Transpose(axes)(a)


def reshape(a, shape):
    return Reshape(shape)(a)


def broadcast_to(a, shape):
    return BroadcastTo(shape)(a)


def summation(a, axes=None):
    return Summation(axes)(a)


def logsumexp(a, axes=None):
    return LogSumExp(axes)(a)
