"""Modules."""

import numpy as np

from . import init, ops
from .autograd import Tensor


class Parameter(Tensor):
    pass


def _unpack(value):
    if isinstance(value, Parameter):
        return [value]
    if isinstance(value, Module):
        return value.parameters()
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, (list, tuple, type({}.values()))):
        return [p for v in value for p in _unpack(v)]
    return []


def _modules(value):
    if isinstance(value, Module):
        return [value, *_modules(value.__dict__)]
    if isinstance(value, dict):
        return [m for v in value.values() for m in _modules(v)]
    if isinstance(value, (list, tuple)):
        return [m for v in value for m in _modules(v)]
    return []


class Module:
    def __init__(self):
        self.training = True

    def parameters(self):
        return _unpack(self.__dict__)

    def _children(self):
        return _modules(self.__dict__)

    def eval(self):
        self.training = False
        for m in self._children():
            m.training = False

    def train(self):
        self.training = True
        for m in self._children():
            m.training = True

    def __call__(self, *args):
        return self.forward(*args)


class Identity(Module):
    def forward(self, x):
        return x


class Linear(Module):
    def __init__(self, in_features, out_features, bias=True, device=None, dtype="float32"):
        super().__init__()
        self.weight = Parameter(init.kaiming_uniform(in_features, out_features, dtype=dtype))
        self.bias = None
        if bias:
            self.bias = Parameter(init.kaiming_uniform(out_features, 1, dtype=dtype).reshape((1, out_features)))

    def forward(self, x):
        y = x @ self.weight
        if self.bias is not None:
            y = y + self.bias.broadcast_to(y.shape)
        return y


class Flatten(Module):
    def forward(self, x):
        return x.reshape((x.shape[0], int(np.prod(x.shape[1:]))))


class ReLU(Module):
    def forward(self, x):
        return ops.relu(x)


class Tanh(Module):
    def forward(self, x):
        return ops.tanh(x)


class Sequential(Module):
    def __init__(self, *modules):
        super().__init__()
        self.modules = modules

    def forward(self, x):
        for module in self.modules:
            x = module(x)
        return x


class SoftmaxLoss(Module):
    def forward(self, logits, y):
        rows, classes = logits.shape
        picked = (logits * init.one_hot(classes, y)).sum(axes=(1,))
        return (ops.logsumexp(logits, axes=(1,)) - picked).sum() / rows


class BatchNorm1d(Module):
    def __init__(self, dim, eps=1e-5, momentum=0.1, device=None, dtype="float32"):
        super().__init__()
        self.dim, self.eps, self.momentum = dim, eps, momentum
        self.weight = Parameter(init.ones(dim, dtype=dtype))
        self.bias = Parameter(init.zeros(dim, dtype=dtype))
        self.running_mean = init.zeros(dim, dtype=dtype)
        self.running_var = init.ones(dim, dtype=dtype)

    def _spread(self, v, shape):
        return v.reshape((1, self.dim)).broadcast_to(shape)

    def forward(self, x):
        if self.training:
            rows = x.shape[0]
            mean = x.sum(axes=(0,)) / rows
            centred = x - self._spread(mean, x.shape)
            var = (centred * centred).sum(axes=(0,)) / rows
            self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean.data
            self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var.data
        else:
            mean, var = self.running_mean, self.running_var
            centred = x - self._spread(mean, x.shape)
        normal = centred / self._spread((var + self.eps) ** 0.5, x.shape)
        return normal * self._spread(self.weight, x.shape) + self._spread(self.bias, x.shape)


class LayerNorm1d(Module):
    def __init__(self, dim, eps=1e-5, device=None, dtype="float32"):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = Parameter(init.ones(dim, dtype=dtype))
        self.bias = Parameter(init.zeros(dim, dtype=dtype))

    def forward(self, x):
        rows = x.shape[0]
        mean = (x.sum(axes=(1,)) / self.dim).reshape((rows, 1)).broadcast_to(x.shape)
        centred = x - mean
        var = ((centred * centred).sum(axes=(1,)) / self.dim).reshape((rows, 1)).broadcast_to(x.shape)
        normal = centred / (var + self.eps) ** 0.5
        weight = self.weight.reshape((1, self.dim)).broadcast_to(x.shape)
        return normal * weight + self.bias.reshape((1, self.dim)).broadcast_to(x.shape)


class Dropout(Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training:
            return x
        mask = init.randb(*x.shape, p=1 - self.p, dtype="float32")
        return x * mask / (1 - self.p) if self.p < 1 else x * 0


class Residual(Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x) + x
