"""A course-style needle: one module per chapter, every shape spelled out, optimizer state in Tensors, by parameter."""

from . import data, init, nn, ops, optim
from .autograd import Tensor, Value, cpu
from .init import ones, ones_like, zeros, zeros_like
from .ops import *  # noqa: F403

__all__ = ["Tensor", "Value", "cpu", "data", "init", "nn", "ones", "ones_like", "ops", "optim", "zeros", "zeros_like"]
