"""Optimizers: SGD has a dict for each parameter, as PyTorch's; Adam's moments are attributes of the parameters."""

import numpy as np


class Optimizer:
    def __init__(self, params, **given):
        self.params, self.state = list(params), {}
        vars(self).update(given)

    def reset_grad(self):
        for p in self.params:
            p.grad = None

    def step(self):
        for p in self.params:
            if p.grad is not None:
                self.update(p, p.grad.numpy() + self.weight_decay * p.numpy())

    def clip_grad_norm(self, max_norm=0.25):
        norm = np.sqrt(sum((p.grad.numpy() ** 2).sum() for p in self.params))
        for p in self.params:
            p.grad = p.grad.detach() * float(min(1.0, max_norm / (norm + 1e-6)))


class SGD(Optimizer):
    def __init__(self, params, lr=0.01, momentum=0.0, weight_decay=0.0):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(self, p, g):
        state = self.state.setdefault(p, {"velocity": 0})
        state["velocity"] = self.momentum * state["velocity"] + (1 - self.momentum) * g
        p.value = p.value - self.lr * state["velocity"]


class Adam(Optimizer):
    def __init__(self, params, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    def update(self, p, g):
        p.t = getattr(p, "t", 0) + 1
        p.m = self.beta1 * getattr(p, "m", 0) + (1 - self.beta1) * g
        p.v = self.beta2 * getattr(p, "v", 0) + (1 - self.beta2) * g * g
        change = p.m / (1 - self.beta1**p.t) / (np.sqrt(p.v / (1 - self.beta2**p.t)) + self.eps)
        p.value = p.value - self.lr * change
