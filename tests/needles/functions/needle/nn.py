"""Modules; parameters are found wherever they are."""

import numpy as np

from . import engine as F
from . import init
from .engine import Tensor


class Parameter(Tensor):
    pass


class Module:
    training = True

    def _all(self, kind):
        found, todo = {}, [self]
        while todo:
            thing = todo.pop(0)
            if isinstance(thing, kind):
                found[id(thing)] = thing
            if isinstance(thing, Module):
                todo = [*thing.__dict__.values(), *todo]
            elif isinstance(thing, dict):
                todo = [*thing.values(), *todo]
            elif isinstance(thing, (list, tuple)):
                todo = [*thing, *todo]
        return list(found.values())

    def parameters(self):
        return self._all(Parameter)

    def train(self):
        for m in self._all(Module):
            m.training = True

    def eval(self):
        for m in self._all(Module):
            m.training = False

    def forward(self, x):
        return x

    def __call__(self, *args):
        return self.forward(*args)


class Identity(Module):
    pass


class Linear(Module):
    def __init__(self, in_features, out_features, bias=True, device=None, dtype="float32"):
        self.weight = Parameter(init.kaiming_uniform(in_features, out_features, dtype=dtype))
        self.bias = None
        if bias:
            self.bias = Parameter(init.kaiming_uniform(out_features, 1, dtype=dtype).numpy().reshape(-1))

    def forward(self, x):
        y = x @ self.weight
        return y if self.bias is None else y + self.bias.broadcast_to(y.shape)


class Flatten(Module):
    def forward(self, x):
        return x.reshape(x.shape[0], int(np.prod(x.shape[1:])))


class ReLU(Module):
    def forward(self, x):
        return F.relu(x)


class Tanh(Module):
    def forward(self, x):
        return F.tanh(x)


class Sequential(Module):
    def __init__(self, *modules):
        self.layers = {f"layer{i}": m for i, m in enumerate(modules)}

    def forward(self, x):
        for m in self.layers.values():
            x = m(x)
        return x


class Residual(Module):
    def __init__(self, fn):
        self.fn = fn

    def forward(self, x):
        return x + self.fn(x)


class SoftmaxLoss(Module):
    def forward(self, logits, y):
        picked = F.logsoftmax(logits) * init.one_hot(logits.shape[1], y)
        return -picked.sum() / logits.shape[0]


def _rows(v, x):
    return F.broadcast_to(F.reshape(v, (1, x.shape[1])), x.shape)


class BatchNorm1d(Module):
    def __init__(self, dim, eps=1e-5, momentum=0.1, device=None, dtype="float32"):
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = Parameter(np.ones(dim, dtype)), Parameter(np.zeros(dim, dtype))
        self.running_mean = Tensor(np.zeros(dim, dtype), requires_grad=False)
        self.running_var = Tensor(np.ones(dim, dtype), requires_grad=False)

    def forward(self, x):
        if self.training:
            n = x.shape[0]
            mean = x.sum(0) / n
            var = ((x - _rows(mean, x)) ** 2).sum(0) / n
            for kept, new in ((self.running_mean, mean), (self.running_var, var)):
                kept.value = kept.value * (1 - self.momentum) + new.value * self.momentum
        else:
            mean, var = self.running_mean, self.running_var
        normal = (x - _rows(mean, x)) * _rows((var + self.eps) ** -0.5, x)
        return normal * _rows(self.weight, x) + _rows(self.bias, x)


class LayerNorm1d(Module):
    def __init__(self, dim, eps=1e-5, device=None, dtype="float32"):
        self.eps = eps
        self.weight, self.bias = Parameter(np.ones(dim, dtype)), Parameter(np.zeros(dim, dtype))

    def forward(self, x):
        def mean(t):
            return F.broadcast_to(F.reshape(t.sum(1) / x.shape[1], (x.shape[0], 1)), x.shape)

        off = x - mean(x)
        return off / (mean(off**2) + self.eps) ** 0.5 * _rows(self.weight, x) + _rows(self.bias, x)


class Dropout(Module):
    def __init__(self, p=0.5):
        self.p = p

    def forward(self, x):
        if self.training:
            kept = init.randb(*x.shape, p=1 - self.p).numpy()
            x = x * Tensor(kept * (1 / (1 - self.p) if self.p < 1 else 0), dtype="float32", requires_grad=False)
        return x
