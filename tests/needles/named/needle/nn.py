"""Modules with `add_bias`; norms have rows (1, dim), and the running variance of BatchNorm is the unbiased one."""

import numpy as np

from . import init, ops
from .core import Tensor


class Parameter(Tensor):
    pass


class Module:
    def __init__(self):
        self.training = True

    def _walk(self):
        """This module, and those in it."""
        yield self
        for value in self.__dict__.values():
            parts = value.values() if isinstance(value, dict) else value
            for part in parts if isinstance(value, (list, tuple, dict)) else (value,):
                if isinstance(part, Module):
                    yield from part._walk()

    def _children(self):
        return list(self._walk())[1:]

    def parameters(self):
        known = {}
        for module in self._walk():
            for value in module.__dict__.values():
                if isinstance(value, Parameter):
                    known[id(value)] = value
        return [*known.values()]

    def train(self):
        for module in self._walk():
            module.training = True

    def eval(self):
        for module in self._walk():
            module.training = False

    def __call__(self, x, *rest):
        return self.forward(x, *rest)


class Identity(Module):
    def forward(self, x):
        return x


class Flatten(Module):
    def forward(self, x):
        return ops.reshape(x, (x.shape[0], int(np.prod(x.shape[1:]))))


class ReLU(Module):
    def forward(self, x):
        return ops.relu(x)


class Linear(Module):
    def __init__(self, in_features, out_features, bias=True, device=None, dtype="float32"):
        super().__init__()
        self.weight = Parameter(init.kaiming_uniform(in_features, out_features), dtype=dtype)
        self.bias = Parameter(init.kaiming_uniform(out_features, 1).numpy()[:, 0], dtype=dtype) if bias else None

    def forward(self, x):
        y = ops.matmul(x, self.weight)
        return y if self.bias is None else ops.add_bias(y, self.bias)


class Sequential(Module):
    def __init__(self, *modules):
        super().__init__()
        self.layers = modules

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Residual(Module):
    def __init__(self, fn):
        super().__init__()
        self.inner = fn

    def forward(self, x):
        return self.inner(x) + x


class SoftmaxLoss(Module):
    def forward(self, logits, y):
        chosen = init.one_hot(logits.shape[1], y)
        losses = ops.logsumexp(logits, 1) - ops.summation(logits * chosen, 1)
        return ops.summation(losses) / logits.shape[0]


class BatchNorm1d(Module):
    def __init__(self, dim, eps=1e-5, momentum=0.1, device=None, dtype="float32"):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(init.ones(1, dim))
        self.bias = Parameter(init.zeros(1, dim))
        self.running_mean = init.zeros(1, dim)
        self.running_var = init.ones(1, dim)

    def forward(self, x):
        n, dim = x.shape
        if self.training:
            mean = ops.reshape(ops.summation(x, 0) / n, (1, dim))
            off = x - ops.broadcast_to(mean, x.shape)
            var = ops.reshape(ops.summation(off * off, 0) / n, (1, dim))
            self._remember(mean.numpy(), var.numpy() * np.float32(n / max(n - 1, 1)))
        else:
            off, var = x - ops.broadcast_to(self.running_mean, x.shape), self.running_var
        deviation = ops.broadcast_to((var + self.eps) ** 0.5, x.shape)
        return ops.broadcast_to(self.weight, x.shape) * (off / deviation) + ops.broadcast_to(self.bias, x.shape)

    def _remember(self, mean, var):
        for kept, new in ((self.running_mean, mean), (self.running_var, var)):
            kept.cached_data = (1 - self.momentum) * kept.cached_data + self.momentum * new


class LayerNorm1d(Module):
    def __init__(self, dim, eps=1e-5, device=None, dtype="float32"):
        super().__init__()
        self.eps = eps
        self.weight = Parameter(init.ones(1, dim))
        self.bias = Parameter(init.zeros(1, dim))

    def forward(self, x):
        n, dim = x.shape

        def mean(t):
            return ops.broadcast_to(ops.reshape(ops.summation(t, 1) / dim, (n, 1)), x.shape)

        off = x - mean(x)
        normal = off / (mean(off * off) + self.eps) ** 0.5
        return normal * ops.broadcast_to(self.weight, x.shape) + ops.broadcast_to(self.bias, x.shape)


class Dropout(Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training:
            return x
        kept = init.randb(*x.shape, p=1 - self.p, dtype="float32")
        return x * (kept * (1 / (1 - self.p) if self.p < 1 else 0.0))
