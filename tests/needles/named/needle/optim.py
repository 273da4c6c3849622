"""Optimizers whose state is on arrays, by parameter, made when it is asked for."""

from collections import defaultdict

import numpy as np

from .core import Tensor


class Optimizer:
    def __init__(self, params):
        self.params = list(params)

    def reset_grad(self):
        for p in self.params:
            p.grad = None

    def moved(self, p, change):
        p.data = Tensor(p.numpy() - self.lr * change, dtype=p.dtype, requires_grad=False)


class SGD(Optimizer):
    def __init__(self, params, lr=0.01, momentum=0.0, weight_decay=0.0):
        super().__init__(params)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.u = defaultdict(float)

    def step(self):
        for p in self.params:
            if p.grad is None:
                continue
            wanted = p.grad.numpy() + self.weight_decay * p.numpy()
            self.u[p] = self.momentum * self.u[p] + (1 - self.momentum) * wanted
            self.moved(p, self.u[p])


class Adam(Optimizer):
    def __init__(self, params, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        super().__init__(params)
        self.lr, self.beta1, self.beta2, self.eps, self.weight_decay = lr, beta1, beta2, eps, weight_decay
        self.t, self.m, self.v = 0, defaultdict(float), defaultdict(float)

    def step(self):
        self.t += 1
        for p in self.params:
            if p.grad is None:
                continue
            wanted = p.grad.numpy() + self.weight_decay * p.numpy()
            self.m[p] = self.beta1 * self.m[p] + (1 - self.beta1) * wanted
            self.v[p] = self.beta2 * self.v[p] + (1 - self.beta2) * wanted**2
            mean, square = self.m[p] / (1 - self.beta1**self.t), self.v[p] / (1 - self.beta2**self.t)
            self.moved(p, mean / (np.sqrt(square) + self.eps))
