"""A course-style needle that computes late: a value is made when somebody asks for it. Optimizers know parameters by id."""

from . import init, nn, ops, optim
from .autograd import LAZY_MODE, Tensor, Value, cpu
from .init import ones, ones_like, zeros, zeros_like
from .ops import *  # noqa: F403

__all__ = [
    "LAZY_MODE", "Tensor", "Value", "cpu", "init", "nn", "ones", "ones_like", "ops", "optim", "zeros", "zeros_like",
]  # fmt: skip
