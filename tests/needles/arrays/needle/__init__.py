"""A course-style needle: NumPy's broadcasting is offered, and reduced on the way back; optimizers keep lists of arrays."""

from . import init, nn, ops, optim
from .autograd import Tensor, cpu
from .init import ones, ones_like, zeros, zeros_like
from .ops import *  # noqa: F403

__all__ = ["Tensor", "cpu", "init", "nn", "ones", "ones_like", "ops", "optim", "zeros", "zeros_like"]
