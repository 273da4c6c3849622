"""Optimizers; what they keep is by the id of a parameter."""

import numpy as np


class Optimizer:
    def __init__(self, params, **settings):
        self.params = list(params)
        self.state = {}
        self.__dict__.update(settings)

    def reset_grad(self):
        for p in self.params:
            p.grad = None

    def grads(self):
        for p in self.params:
            if p.grad is not None:
                g = np.asarray(p.grad if isinstance(p.grad, np.ndarray) else p.grad.numpy())
                yield p, g + self.weight_decay * p.cached_data


class SGD(Optimizer):
    def __init__(self, params, lr=0.01, momentum=0.0, weight_decay=0.0):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def step(self):
        for p, g in self.grads():
            state = self.state.setdefault(id(p), {"velocity": np.zeros_like(p.cached_data)})
            state["velocity"] = self.momentum * state["velocity"] + (1 - self.momentum) * g
            p.cached_data = p.cached_data - self.lr * state["velocity"]


class Adam(Optimizer):
    def __init__(self, params, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    def step(self):
        for p, g in self.grads():
            s = self.state.setdefault(
                id(p), {"step": 0, "m": np.zeros_like(p.cached_data), "v": np.zeros_like(p.cached_data)}
            )
            s["step"] += 1
            s["m"] = self.beta1 * s["m"] + (1 - self.beta1) * g
            s["v"] = self.beta2 * s["v"] + (1 - self.beta2) * g * g
            m, v = s["m"] / (1 - self.beta1 ** s["step"]), s["v"] / (1 - self.beta2 ** s["step"])
            p.cached_data = p.cached_data - self.lr * m / (np.sqrt(v) + self.eps)
