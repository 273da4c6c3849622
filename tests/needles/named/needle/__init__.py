"""A course-style needle whose ops have names of their own; gradients stay on leaves alone; there is a `no_grad`."""

from . import init, nn, ops, optim
from .core import Tensor, no_grad
from .init import ones, ones_like, zeros, zeros_like
from .ops import *  # noqa: F403

from . import core as autograd  # isort: skip

__all__ = [
    "Tensor", "autograd", "init", "nn", "no_grad", "ones", "ones_like", "ops", "optim", "zeros", "zeros_like",
]  # fmt: skip
