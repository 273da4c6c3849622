"""Optimizers. State is kept by the id of a parameter, in Tensors; arrays of parameters are written into."""

from .autograd import Tensor


class Optimizer:
    def __init__(self, params):
        self.params = list({id(p): p for p in params}.values())

    def reset_grad(self):
        for p in self.params:
            p.grad = None

    def wanted(self):
        for p in self.params:
            if getattr(p, "grad", None) is not None:
                yield id(p), p, p.grad.detach() + p.detach() * self.weight_decay


class SGD(Optimizer):
    def __init__(self, params, lr=0.01, momentum=0.0, weight_decay=0.0):
        super().__init__(params)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocity = {}

    def step(self):
        for key, p, grad in self.wanted():
            fresh = grad * (1 - self.momentum)
            if key in self.velocity:
                fresh = self.velocity[key] * self.momentum + fresh
            self.velocity[key] = fresh
            p.cached_data -= (fresh * self.lr).numpy()


class Adam(Optimizer):
    def __init__(self, params, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        super().__init__(params)
        self.lr, self.beta1, self.beta2, self.eps, self.weight_decay = lr, beta1, beta2, eps, weight_decay
        self.first, self.second, self.steps = {}, {}, 0

    def step(self):
        self.steps += 1
        for key, p, grad in self.wanted():
            nothing = Tensor.make_const(0 * grad.numpy())
            self.first[key] = self.first.get(key, nothing) * self.beta1 + grad * (1 - self.beta1)
            self.second[key] = self.second.get(key, nothing) * self.beta2 + grad * grad * (1 - self.beta2)
            mean = self.first[key] / (1 - self.beta1**self.steps)
            square = self.second[key] / (1 - self.beta2**self.steps)
            p.cached_data -= (mean / (square**0.5 + self.eps) * self.lr).numpy()
