"""Modules, in the way of PyTorch: parameters, modules and the rest are kept apart."""

import numpy as np

from . import init, ops
from .autograd import Tensor


class Parameter(Tensor):
    __slots__ = ()


class Module:
    """Parameters, modules and the rest are kept apart, as in PyTorch."""

    def __init__(self):
        object.__setattr__(self, "_kept", {})
        object.__setattr__(self, "_inner", {})
        self.training = True

    def __setattr__(self, name, value):
        if isinstance(value, Parameter):
            self._kept[name] = value
        elif isinstance(value, Module):
            self._inner[name] = value
        elif isinstance(value, (list, tuple)) and value and all(isinstance(v, Module) for v in value):
            self._inner.update({f"{name}.{i}": v for i, v in enumerate(value)})
            object.__setattr__(self, name, value)
        elif isinstance(value, dict) and value and all(isinstance(v, Module) for v in value.values()):
            self._inner.update({f"{name}.{i}": v for i, v in value.items()})
            object.__setattr__(self, name, value)
        else:
            object.__setattr__(self, name, value)

    def __getattr__(self, name):
        for where in ("_kept", "_inner"):
            held = self.__dict__.get(where, {})
            if name in held:
                return held[name]
        raise AttributeError(name)

    def walk(self):
        yield self
        for m in self._inner.values():
            yield from m.walk()

    def parameters(self):
        seen = {}
        for m in self.walk():
            for p in m._kept.values():
                seen.setdefault(id(p), p)
        return list(seen.values())

    def train(self, mode=True):
        for m in self.walk():
            m.training = mode

    def eval(self):
        self.train(False)

    def __call__(self, *args):
        return self.forward(*args)


class Identity(Module):
    def forward(self, x):
        return x


class Linear(Module):
    def __init__(self, in_features, out_features, bias=True, device=None, dtype="float32"):
        super().__init__()
        self.weight = Parameter(init.kaiming_uniform(in_features, out_features), dtype=dtype)
        self.bias = Parameter(init.kaiming_uniform(out_features, 1).numpy().T, dtype=dtype) if bias else None

    def forward(self, x):
        y = x @ self.weight
        return y + self.bias if self.bias is not None else y


class Flatten(Module):
    def forward(self, x):
        return x.reshape((x.shape[0], -1) if x.cached_data.size else (x.shape[0], int(np.prod(x.shape[1:]))))


class ReLU(Module):
    def forward(self, x):
        return ops.relu(x)


class Sequential(Module):
    def __init__(self, *modules):
        super().__init__()
        self.modules = list(modules)

    def forward(self, x):
        for m in self.modules:
            x = m(x)
        return x


class Residual(Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x) + x


class SoftmaxLoss(Module):
    def forward(self, logits, y):
        n, k = logits.shape
        hot = init.one_hot(k, y)
        return (ops.logsumexp(logits, (1,)) - (logits * hot).sum((1,))).sum() / n


class BatchNorm1d(Module):
    def __init__(self, dim, eps=1e-5, momentum=0.1, device=None, dtype="float32"):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(np.ones(dim), dtype=dtype)
        self.bias = Parameter(np.zeros(dim), dtype=dtype)
        self.running_mean, self.running_var = np.zeros(dim, "float32"), np.ones(dim, "float32")

    def forward(self, x):
        n = x.shape[0]
        if self.training:
            mean = x.sum((0,)) / n
            off = x - mean
            var = (off * off).sum((0,)) / n
            m = self.momentum
            self.running_mean = (1 - m) * self.running_mean + m * mean.numpy()
            self.running_var = (1 - m) * self.running_var + m * var.numpy()
            return off / (var + self.eps) ** 0.5 * self.weight + self.bias
        off = x - Tensor(self.running_mean, requires_grad=False)
        return (
            off / Tensor(np.sqrt(self.running_var + np.float32(self.eps)), requires_grad=False) * self.weight
            + self.bias
        )


class LayerNorm1d(Module):
    def __init__(self, dim, eps=1e-5, device=None, dtype="float32"):
        super().__init__()
        self.eps = eps
        self.weight = Parameter(np.ones(dim), dtype=dtype)
        self.bias = Parameter(np.zeros(dim), dtype=dtype)

    def forward(self, x):
        n, dim = x.shape
        off = x - (x.sum((1,)) / dim).reshape((n, 1))
        var = ((off * off).sum((1,)) / dim).reshape((n, 1))
        return off / (var + self.eps) ** 0.5 * self.weight + self.bias


class Dropout(Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training or self.p == 0:
            if self.training:
                init.randb(*x.shape, p=1.0)
            return x
        mask = init.randb(*x.shape, p=1 - self.p).numpy().astype("float32")
        return x * Tensor(mask / np.float32(1 - self.p) if self.p < 1 else mask * 0, requires_grad=False)
