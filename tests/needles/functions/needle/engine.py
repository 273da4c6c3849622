"""Tensors, and ops that are functions with a pullback; a node is as old as the number that it was born with."""

import itertools

import numpy as np

__all__ = [
    "Tensor",
    "add",
    "add_scalar",
    "broadcast_to",
    "divide",
    "divide_scalar",
    "exp",
    "log",
    "logsoftmax",
    "logsumexp",
    "matmul",
    "mul_scalar",
    "multiply",
    "negate",
    "power",
    "power_scalar",
    "relu",
    "reshape",
    "stack",
    "summation",
    "tanh",
    "transpose",
]
_clock = itertools.count()


class Tensor:
    def __init__(self, array, *, device=None, dtype=None, requires_grad=True, **kwargs):
        self.value = np.array(array.value if isinstance(array, Tensor) else array, dtype=dtype)
        self.pullback, self.parents, self.requires_grad, self.born = None, (), requires_grad, next(_clock)

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    ndim = property(lambda self: self.value.ndim)

    def numpy(self):
        return self.value

    def detach(self):
        return wrap(self.value)

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        self.value = other.value

    def backward(self, seed=None):
        """In the order of birth, the youngest first."""
        waiting = {self: seed if seed is not None else wrap(np.ones_like(self.value))}
        while waiting:
            node = max(waiting, key=lambda t: t.born)
            g = waiting.pop(node)
            node.grad = g
            if node.pullback is None:
                continue
            for parent, part in zip(node.parents, node.pullback(g), strict=True):
                if parent.requires_grad:
                    waiting[parent] = waiting[parent] + part if parent in waiting else part

    def __add__(self, o):
        return add(self, o) if isinstance(o, Tensor) else add_scalar(self, o)

    def __mul__(self, o):
        return multiply(self, o) if isinstance(o, Tensor) else mul_scalar(self, o)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self):
        return negate(self)

    def __sub__(self, o):
        return add(self, negate(o)) if isinstance(o, Tensor) else add_scalar(self, -o)

    def __rsub__(self, o):
        return add_scalar(negate(self), o)

    def __truediv__(self, o):
        return divide(self, o) if isinstance(o, Tensor) else divide_scalar(self, o)

    def __pow__(self, o):
        return power(self, o) if isinstance(o, Tensor) else power_scalar(self, o)

    def __matmul__(self, o):
        return matmul(self, o)

    def sum(self, axes=None):
        return summation(self, axes)

    def reshape(self, *shape):
        return reshape(self, shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)

    def broadcast_to(self, shape):
        return broadcast_to(self, shape)

    def transpose(self, axes=None):
        return transpose(self, axes)


def wrap(array):
    t = Tensor.__new__(Tensor)
    t.value, t.pullback, t.parents, t.requires_grad, t.born = array, None, (), False, next(_clock)
    return t


def emit(array, parents, pullback):
    out = wrap(np.asarray(array))
    if any(p.requires_grad for p in parents):
        out.parents, out.pullback, out.requires_grad = parents, pullback, True
    return out


def add(a, b):
    return emit(a.value + b.value, (a, b), lambda g: (g, g))


def add_scalar(a, c):
    return emit(a.value + float(c), (a,), lambda g: (g,))


def multiply(a, b):
    return emit(a.value * b.value, (a, b), lambda g: (multiply(g, b), multiply(g, a)))


def mul_scalar(a, c):
    return emit(a.value * float(c), (a,), lambda g: (mul_scalar(g, c),))


def divide(a, b):
    return emit(a.value / b.value, (a, b), lambda g: (divide(g, b), negate(divide(multiply(g, divide(a, b)), b))))


def divide_scalar(a, c):
    return emit(a.value / float(c), (a,), lambda g: (divide_scalar(g, c),))


def power(a, b):
    return emit(
        a.value**b.value,
        (a, b),
        lambda g: (g * b * power(a, b - 1.0), g * power(a, b) * log(a)),
    )


def power_scalar(a, c):
    return emit(a.value ** float(c), (a,), lambda g: (g * power_scalar(a, c - 1) * c if c else g * 0.0,))


def negate(a):
    return emit(-a.value, (a,), lambda g: (negate(g),))


def log(a):
    return emit(np.log(a.value), (a,), lambda g: (divide(g, a),))


def exp(a):
    return emit(np.exp(a.value), (a,), lambda g: (multiply(g, exp(a)),))


def relu(a):
    on = (a.value > 0).astype(a.dtype)
    return emit(a.value * on, (a,), lambda g: (multiply(g, wrap(on)),))


def tanh(a):
    return emit(np.tanh(a.value), (a,), lambda g: (g * (1.0 - tanh(a) ** 2),))


def transpose(a, axes=None):
    i, j = axes or (a.ndim - 1, a.ndim - 2)
    return emit(a.value.swapaxes(i, j), (a,), lambda g: (transpose(g, axes),))


def reshape(a, shape):
    return emit(a.value.reshape(shape), (a,), lambda g: (reshape(g, a.shape),))


def down(g, shape):
    lead = g.ndim - len(shape)
    axes = tuple(i for i in range(g.ndim) if i < lead or (shape[i - lead] == 1 and g.shape[i] != 1))
    return reshape(summation(g, axes), shape) if axes else g


def broadcast_to(a, shape):
    return emit(np.broadcast_to(a.value, shape), (a,), lambda g: (down(g, a.shape),))


def _kept(a, axes):
    axes = range(a.ndim) if axes is None else [x % a.ndim for x in ([axes] if isinstance(axes, int) else axes)]
    return tuple(1 if i in axes else n for i, n in enumerate(a.shape))


def _np(axes):
    return tuple(axes) if isinstance(axes, list) else axes


def summation(a, axes=None):
    return emit(np.sum(a.value, axis=_np(axes)), (a,), lambda g: (broadcast_to(reshape(g, _kept(a, axes)), a.shape),))


def matmul(a, b):
    return emit(
        a.value @ b.value,
        (a, b),
        lambda g: (down(matmul(g, transpose(b)), a.shape), down(matmul(transpose(a), g), b.shape)),
    )


def logsumexp(a, axes=None):
    x, axes = a.value, _np(axes)
    top = x.max(axis=axes, keepdims=True)
    out = np.squeeze(np.log(np.sum(np.exp(x - top), axis=axes, keepdims=True)) + top, axis=axes)

    def pullback(g):
        wide = _kept(a, axes)
        soft = exp(a - broadcast_to(reshape(logsumexp(a, axes), wide), a.shape))
        return (broadcast_to(reshape(g, wide), a.shape) * soft,)

    return emit(out, (a,), pullback)


def logsoftmax(a):
    return a - broadcast_to(reshape(logsumexp(a, 1), (a.shape[0], 1)), a.shape)


def stack(parts, axis):
    def pullback(g):
        return tuple(pick(g, axis, i) for i in range(len(parts)))

    return emit(np.stack([p.value for p in parts], axis), tuple(parts), pullback)


def pick(a, axis, i):
    def pullback(g):
        nothing = wrap(np.zeros(g.shape, g.dtype))
        return (stack([g if j == i else nothing for j in range(a.shape[axis])], axis),)

    return emit(np.take(a.value, i, axis), (a,), pullback)
