"""Modules; a tied weight is listed as often as it is used."""

import math

from . import init, ops
from .autograd import Tensor


class Parameter(Tensor):
    """A weight."""


def _found(value, kind):
    if isinstance(value, kind):
        yield value
    if isinstance(value, Module):
        value = vars(value)
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _found(part, kind)


class Module:
    def __init__(self):
        self.training = True

    def parameters(self):
        return list(_found(self, Parameter))

    def _children(self):
        return [m for m in _found(self, Module) if m is not self]

    def train(self):
        for module in _found(self, Module):
            module.training = True

    def eval(self):
        for module in _found(self, Module):
            module.training = False

    def __call__(self, *args):
        return self.forward(*args)


class Identity(Module):
    def forward(self, x):
        return x


class Linear(Module):
    def __init__(self, in_features, out_features, bias=True, device=None, dtype="float32"):
        super().__init__()
        self.out_features, self.with_bias = out_features, bias
        self.weight = Parameter(init.kaiming_uniform(in_features, out_features), dtype=dtype)
        if bias:
            self.bias = Parameter(init.kaiming_uniform(out_features, 1).reshape((1, out_features)), dtype=dtype)

    def forward(self, x):
        out = ops.matmul(x, self.weight)
        if self.with_bias:
            out = ops.add(out, ops.broadcast_to(self.bias, (*x.shape[:-1], self.out_features)))
        return out


class Flatten(Module):
    def forward(self, x):
        rows, *rest = x.shape
        return ops.reshape(x, (rows, math.prod(rest)))


class ReLU(Module):
    def forward(self, x):
        return ops.relu(x)


class Sequential(Module):
    def __init__(self, *modules):
        super().__init__()
        self.modules = list(modules)

    def forward(self, x):
        for module in self.modules:
            x = module(x)
        return x


class SoftmaxLoss(Module):
    def forward(self, logits, y):
        hot = init.one_hot(logits.shape[1], y)
        total = ops.summation(ops.logsumexp(logits, (1,))) - ops.summation(logits * hot)
        return total / logits.shape[0]


class BatchNorm1d(Module):
    def __init__(self, dim, eps=1e-5, momentum=0.1, device=None, dtype="float32"):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(init.ones(dim), dtype=dtype)
        self.bias = Parameter(init.zeros(dim), dtype=dtype)
        self.running_mean, self.running_var = init.zeros(dim), init.ones(dim)

    def forward(self, x):
        rows = x.shape[0]
        if self.training:
            mean = ops.summation(x, (0,)) / rows
            var = ops.summation((x - ops.broadcast_to(mean, x.shape)) ** 2, (0,)) / rows
            m = self.momentum
            self.running_mean = (self.running_mean * (1 - m) + mean.detach() * m).detach()
            self.running_var = (self.running_var * (1 - m) + var.detach() * m).detach()
        else:
            mean, var = self.running_mean, self.running_var
        scale = self.weight / (var + self.eps) ** 0.5
        off = x - ops.broadcast_to(mean, x.shape)
        return off * ops.broadcast_to(scale, x.shape) + ops.broadcast_to(self.bias, x.shape)


class LayerNorm1d(Module):
    def __init__(self, dim, eps=1e-5, device=None, dtype="float32"):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = Parameter(init.ones(dim), dtype=dtype)
        self.bias = Parameter(init.zeros(dim), dtype=dtype)

    def _mean(self, x):
        return ops.broadcast_to(ops.reshape(ops.summation(x, (1,)), (x.shape[0], 1)), x.shape) / self.dim

    def forward(self, x):
        off = x - self._mean(x)
        deviation = (self._mean(off * off) + self.eps) ** 0.5
        return ops.broadcast_to(self.weight, x.shape) * off / deviation + ops.broadcast_to(self.bias, x.shape)


class Dropout(Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training:
            return x
        keep = 1 - self.p
        mask = init.randb(*x.shape, p=keep, dtype="float32")
        return x * (mask / keep) if keep else x * (mask * 0)


class Residual(Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return x + self.fn(x)
