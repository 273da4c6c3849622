"""Optimizers. What they keep is by parameter, in Tensors without a graph."""

import numpy as np

from .autograd import Tensor


class Optimizer:
    def __init__(self, params):
        self.params = list(params)

    def step(self):
        raise NotImplementedError

    def reset_grad(self):
        for p in self.params:
            p.grad = None


class SGD(Optimizer):
    def __init__(self, params, lr=0.01, momentum=0.0, weight_decay=0.0):
        super().__init__(params)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.u = {}

    def step(self):
        for p in self.params:
            if p.grad is None:
                continue
            grad = p.grad.data + self.weight_decay * p.data
            if p in self.u:
                self.u[p] = self.momentum * self.u[p] + (1 - self.momentum) * grad
            else:
                self.u[p] = (1 - self.momentum) * grad
            p.data = p.data - self.lr * self.u[p]

    def clip_grad_norm(self, max_norm=0.25):
        total = np.linalg.norm([np.linalg.norm(p.grad.numpy()) for p in self.params if p.grad is not None])
        factor = min(1.0, float(max_norm / (total + 1e-6)))
        for p in self.params:
            if p.grad is not None:
                p.grad = p.grad.detach() * factor


class Adam(Optimizer):
    def __init__(self, params, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        super().__init__(params)
        self.lr, self.beta1, self.beta2, self.eps, self.weight_decay = lr, beta1, beta2, eps, weight_decay
        self.t = 0
        self.m, self.v = {}, {}

    def step(self):
        self.t += 1
        for p in self.params:
            if p.grad is None:
                continue
            grad = p.grad.data + self.weight_decay * p.data
            if p not in self.m:
                self.m[p], self.v[p] = grad * 0, grad * 0
            self.m[p] = self.beta1 * self.m[p] + (1 - self.beta1) * grad
            self.v[p] = self.beta2 * self.v[p] + (1 - self.beta2) * (grad * grad)
            m_hat = self.m[p] / (1 - self.beta1**self.t)
            v_hat = self.v[p] / (1 - self.beta2**self.t)
            update = m_hat / (Tensor(v_hat, requires_grad=False) ** 0.5 + self.eps)
            p.data = p.data - self.lr * update
