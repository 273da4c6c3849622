"""Functions, and the classes behind them."""

import numpy as np

from .core import Function, Tensor


class Plus(Function):
    def forward(self, a, b):
        assert a.shape == b.shape, f"add: {a.shape} and {b.shape}"
        return a + b

    def backward(self, g, a, b):
        return g, g


class Minus(Function):
    def forward(self, a, b):
        assert a.shape == b.shape, f"subtract: {a.shape} and {b.shape}"
        return a - b

    def backward(self, g, a, b):
        return g, negate(g)


class Times(Function):
    def forward(self, a, b):
        assert a.shape == b.shape, f"multiply: {a.shape} and {b.shape}"
        return a * b

    def backward(self, g, a, b):
        return g * b, g * a


class Over(Function):
    def forward(self, a, b):
        assert a.shape == b.shape, f"divide: {a.shape} and {b.shape}"
        return a / b

    def backward(self, g, a, b):
        by_b = g / b
        return by_b, negate(by_b * (a / b))


class ToThe(Function):
    def forward(self, a, b):
        assert a.shape == b.shape, f"power: {a.shape} and {b.shape}"
        return a**b

    def backward(self, g, a, b):
        return g * b * power(a, b - 1), g * power(a, b) * log(a)


class WithNumber(Function):
    def __init__(self, number):
        self.number = float(number)


class Shifted(WithNumber):
    def forward(self, a):
        return a + self.number

    def backward(self, g, a):
        return g


class Scaled(WithNumber):
    def forward(self, a):
        return a * self.number

    def backward(self, g, a):
        return g * self.number


class Divided(WithNumber):
    def forward(self, a):
        return a / self.number

    def backward(self, g, a):
        return g / self.number


class Raised(WithNumber):
    def forward(self, a):
        return a**self.number

    def backward(self, g, a):
        slope = Raised(self.number - 1)(a) * self.number if self.number else a * 0
        return g * slope


class AddBias(Function):
    """(n, k) and (k,) or (1, k)."""

    def forward(self, x, bias):
        return x + bias

    def backward(self, g, x, bias):
        return g, reshape(summation(g, tuple(range(len(g.shape) - 1))), bias.shape)


class Swap(Function):
    def __init__(self, axes):
        self.pair = axes or (-2, -1)

    def forward(self, a):
        return np.swapaxes(a, *self.pair)

    def backward(self, g, a):
        return Swap(self.pair)(g)


class View(Function):
    def __init__(self, shape):
        self.to = shape

    def forward(self, a):
        return np.reshape(a, self.to)

    def backward(self, g, a):
        return View(a.shape)(g)


class Expand(Function):
    def __init__(self, shape):
        self.to = tuple(shape)

    def forward(self, a):
        return np.broadcast_to(a, self.to)

    def backward(self, g, a):
        before = len(self.to) - len(a.shape)
        over = [i for i in range(len(self.to)) if i < before or a.shape[i - before] != self.to[i]]
        return reshape(summation(g, tuple(over)), a.shape) if over else g


class Total(Function):
    def __init__(self, axes):
        self.over = axes

    def forward(self, a):
        return np.sum(a, axis=self.over)

    def backward(self, g, a):
        return broadcast_to(reshape(g, narrowed(a.shape, self.over)), a.shape)


def narrowed(shape, axes):
    if axes is None:
        return (1,) * len(shape)
    chosen = {axis % len(shape) for axis in ((axes,) if isinstance(axes, int) else axes)}
    return tuple(1 if i in chosen else n for i, n in enumerate(shape))


class Product(Function):
    def forward(self, a, b):
        return a @ b

    def backward(self, g, a, b):
        return (
            self.like(matmul(g, transpose(b)), a.shape),
            self.like(matmul(transpose(a), g), b.shape),
        )

    def like(self, part, shape):
        extra = len(part.shape) - len(shape)
        if extra:
            part = summation(part, tuple(range(extra)))
        ones = tuple(i for i, n in enumerate(shape[:-2]) if n == 1 and part.shape[i] != 1)
        return reshape(summation(part, ones), shape) if ones else part


class Opposite(Function):
    def forward(self, a):
        return -a

    def backward(self, g, a):
        return negate(g)


class NaturalLog(Function):
    def forward(self, a):
        return np.log(a)

    def backward(self, g, a):
        return g / a


class Exponential(Function):
    def forward(self, a):
        return np.exp(a)

    def backward(self, g, a):
        return g * exp(a)


class Rectified(Function):
    def forward(self, a):
        self.on = a > 0
        return a * self.on

    def backward(self, g, a):
        return g * Tensor(self.on.astype(g.dtype), requires_grad=False)


class Soft(Function):
    """ln of the sum of exponentials."""

    def __init__(self, axes):
        self.over = axes

    def forward(self, a):
        top = np.max(a, axis=self.over, keepdims=True)
        return np.squeeze(top + np.log(np.sum(np.exp(a - top), axis=self.over, keepdims=True)), axis=self.over)

    def backward(self, g, a):
        shape = narrowed(a.shape, self.over)
        level = broadcast_to(reshape(logsumexp(a, self.over), shape), a.shape)
        return broadcast_to(reshape(g, shape), a.shape) * exp(a - level)


def add(a, b):
    return Plus()(a, b)


def add_scalar(a, scalar):
    return Shifted(scalar)(a)


def add_bias(x, bias):
    return AddBias()(x, bias)


def multiply(a, b):
    return Times()(a, b)


def mul_scalar(a, scalar):
    return Scaled(scalar)(a)


def divide(a, b):
    return Over()(a, b)


def divide_scalar(a, scalar):
    return Divided(scalar)(a)


def power(a, b):
    return ToThe()(a, b)


def power_scalar(a, scalar):
    return Raised(scalar)(a)


def transpose(a, axes=None):
    return Swap(axes)(a)


def reshape(a, shape):
    return View(shape)(a)


def broadcast_to(a, shape):
    return Expand(shape)(a)


def summation(a, axes=None):
    return Total(axes)(a)


def matmul(a, b):
    return Product()(a, b)


def negate(a):
    return Opposite()(a)


def log(a):
    return NaturalLog()(a)


def exp(a):
    return Exponential()(a)


def relu(a):
    return Rectified()(a)


def logsumexp(a, axes=None):
    return Soft(axes)(a)
