"""Optimizers in plain NumPy; what they keep is in lists, one array per parameter."""

import numpy as np


class Optimizer:
    def __init__(self, params):
        self.params = list(params)

    def reset_grad(self):
        for p in self.params:
            p.grad = None

    def clip_grad_norm(self, max_norm=0.25):
        """Gradients of constant Tensors; the norm before clipping."""
        grads = [p for p in self.params if p.grad is not None]
        norm = float(np.sqrt(sum(float((p.grad.numpy().astype("float64") ** 2).sum()) for p in grads)))
        scale = max_norm / (norm + 1e-6)
        for p in grads:
            p.grad = p.grad.data * (scale if scale < 1 else 1.0)
        return norm


class SGD(Optimizer):
    def __init__(self, params, lr=0.01, momentum=0.0, weight_decay=0.0):
        super().__init__(params)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.u = [np.zeros(p.shape, p.dtype) for p in self.params]

    def step(self):
        for i, p in enumerate(self.params):
            if p.grad is None:
                continue
            grad = p.grad.numpy() + self.weight_decay * p.numpy()
            self.u[i] = self.momentum * self.u[i] + (1 - self.momentum) * grad
            p.cached_data = p.numpy() - self.lr * self.u[i]


class Adam(Optimizer):
    def __init__(self, params, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        super().__init__(params)
        self.lr, self.beta1, self.beta2, self.eps, self.weight_decay = lr, beta1, beta2, eps, weight_decay
        self.t = 0
        self.m = [np.zeros(p.shape, p.dtype) for p in self.params]
        self.v = [np.zeros(p.shape, p.dtype) for p in self.params]

    def step(self):
        self.t += 1
        for i, p in enumerate(self.params):
            if p.grad is None:
                continue
            grad = p.grad.numpy() + self.weight_decay * p.numpy()
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * grad
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * grad**2
            m_hat = self.m[i] / (1 - self.beta1**self.t)
            v_hat = self.v[i] / (1 - self.beta2**self.t)
            p.cached_data = p.numpy() - self.lr * m_hat / (np.sqrt(v_hat) + self.eps)
