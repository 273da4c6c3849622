"""A course-style needle whose Tensors have slots, and gradients that are arrays; state is by id, in a dict for each parameter."""

from . import init, nn, ops, optim
from .autograd import Tensor
from .init import ones, ones_like, zeros, zeros_like
from .ops import *  # noqa: F403

__all__ = ["Tensor", "init", "nn", "ones", "ones_like", "ops", "optim", "zeros", "zeros_like"]
