"""A course-style needle without classes of ops: functions with a pullback. Adam keeps its state on the parameters."""

from . import engine, init, nn, optim
from .engine import *  # noqa: F403
from .init import ones, ones_like, zeros, zeros_like

autograd = ops = engine

__all__ = [
    "autograd",
    "engine",
    "init",
    "nn",
    "ones",
    "ones_like",
    "ops",
    "optim",
    "zeros",
    "zeros_like",
    *engine.__all__,
]
