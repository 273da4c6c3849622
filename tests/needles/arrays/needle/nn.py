"""Modules; parameters and buffers of norms are rows, (1, dim), and so broadcast by themselves."""

import numpy as np

from . import init, ops
from .autograd import Tensor


class Parameter(Tensor):
    pass


class Module:
    def __init__(self):
        self.training = True

    def _inside(self):
        stack = list(self.__dict__.values())[::-1]
        while stack:
            value = stack.pop()
            yield value
            if isinstance(value, dict):
                stack.extend(list(value.values())[::-1])
            elif isinstance(value, (list, tuple)):
                stack.extend(value[::-1])

    def _children(self):
        found = []
        for value in self._inside():
            if isinstance(value, Module):
                found += [value, *value._children()]
        return found

    def parameters(self):
        found = {}
        for value in self._inside():
            if isinstance(value, Parameter):
                found[id(value)] = value
            elif isinstance(value, Module):
                found.update({id(p): p for p in value.parameters()})
        return list(found.values())

    def train(self, mode=True):
        for module in (self, *self._children()):
            module.training = mode

    def eval(self):
        self.train(False)

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)


class Identity(Module):
    def forward(self, x):
        return x


class Linear(Module):
    def __init__(self, in_features, out_features, bias=True, device=None, dtype="float32"):
        super().__init__()
        self.weight = Parameter(init.kaiming_uniform(in_features, out_features, dtype=dtype))
        if bias:
            self.bias = Parameter(init.kaiming_uniform(out_features, 1, dtype=dtype).reshape(out_features))

    def forward(self, x):
        y = x @ self.weight
        return y + self.bias if hasattr(self, "bias") else y


class Flatten(Module):
    def forward(self, x):
        return x.reshape(x.shape[0], int(np.prod(x.shape[1:])))


class ReLU(Module):
    def forward(self, x):
        return ops.relu(x)


class Tanh(Module):
    def forward(self, x):
        return ops.tanh(x)


class Sigmoid(Module):
    def forward(self, x):
        return ops.sigmoid(x)


class Sequential(Module):
    def __init__(self, *modules):
        super().__init__()
        self.modules = modules

    def forward(self, x):
        for module in self.modules:
            x = module(x)
        return x


class Residual(Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return x + self.fn(x)


class SoftmaxLoss(Module):
    def forward(self, logits, y):
        n, k = logits.shape
        hot = init.one_hot(k, y)
        return (ops.logsoftmax(logits) * hot).sum() * (-1.0 / n)


class BatchNorm1d(Module):
    def __init__(self, dim, eps=1e-5, momentum=0.1, device=None, dtype="float32"):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(np.ones((1, dim)), dtype=dtype)
        self.bias = Parameter(np.zeros((1, dim)), dtype=dtype)
        self.running_mean = Tensor(np.zeros((1, dim)), dtype=dtype, requires_grad=False)
        self.running_var = Tensor(np.ones((1, dim)), dtype=dtype, requires_grad=False)

    def _moved(self, old, new):
        kept = old.numpy() * (1 - self.momentum) + new.numpy() * self.momentum
        return Tensor(kept.astype(old.dtype), requires_grad=False)

    def forward(self, x):
        if not self.training:
            normal = (x - self.running_mean) / (self.running_var + self.eps) ** 0.5
            return self.weight * normal + self.bias
        n, dim = x.shape
        mean = x.sum((0,)).reshape(1, dim) / n
        off = x - mean
        var = (off**2).sum((0,)).reshape(1, dim) / n
        self.running_mean = self._moved(self.running_mean, mean)
        self.running_var = self._moved(self.running_var, var)
        return self.weight * (off / (var + self.eps) ** 0.5) + self.bias


class LayerNorm1d(Module):
    def __init__(self, dim, eps=1e-5, device=None, dtype="float32"):
        super().__init__()
        self.eps = eps
        self.weight = Parameter(np.ones((1, dim)), dtype=dtype)
        self.bias = Parameter(np.zeros((1, dim)), dtype=dtype)

    def forward(self, x):
        n, dim = x.shape
        off = x - x.sum((1,)).reshape(n, 1) / dim
        var = (off**2).sum((1,)).reshape(n, 1) / dim
        return self.weight * (off / (var + self.eps) ** 0.5) + self.bias


class Dropout(Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.training:
            mask = init.randb(*x.shape, p=1 - self.p).numpy()
            scale = 1 / (1 - self.p) if self.p < 1 else 0.0
            x = x * Tensor((mask * scale).astype(x.dtype), requires_grad=False)
        return x
