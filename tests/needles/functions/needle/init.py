"""Tensors to start from."""

import math

import numpy as np

from .engine import Tensor


def rand(*shape, low=0.0, high=1.0, device=None, dtype="float32", requires_grad=False):
    return Tensor(np.random.rand(*shape) * (high - low) + low, dtype=dtype, requires_grad=requires_grad)


def randn(*shape, mean=0.0, std=1.0, device=None, dtype="float32", requires_grad=False):
    return Tensor(np.random.randn(*shape) * std + mean, dtype=dtype, requires_grad=requires_grad)


def constant(*shape, c=1.0, device=None, dtype="float32", requires_grad=False):
    return Tensor(np.full(shape, c), dtype=dtype, requires_grad=requires_grad)


def ones(*shape, **given):
    return constant(*shape, c=1.0, **given)


def zeros(*shape, **given):
    return constant(*shape, c=0.0, **given)


def randb(*shape, p=0.5, device=None, dtype="bool", requires_grad=False):
    return Tensor(np.random.rand(*shape) <= p, dtype=dtype, requires_grad=requires_grad)


def one_hot(n, i, device=None, dtype="float32", requires_grad=False):
    return Tensor(np.eye(n)[i.numpy()], dtype=dtype, requires_grad=requires_grad)


def zeros_like(array, *, device=None, requires_grad=False):
    return zeros(*array.shape, dtype=array.dtype, requires_grad=requires_grad)


def ones_like(array, *, device=None, requires_grad=False):
    return ones(*array.shape, dtype=array.dtype, requires_grad=requires_grad)


def xavier_uniform(fan_in, fan_out, gain=1.0, **given):
    a = gain * math.sqrt(6 / (fan_in + fan_out))
    return rand(fan_in, fan_out, low=-a, high=a, **given)


def xavier_normal(fan_in, fan_out, gain=1.0, **given):
    return randn(fan_in, fan_out, std=gain * math.sqrt(2 / (fan_in + fan_out)), **given)


def kaiming_uniform(fan_in, fan_out, nonlinearity="relu", **given):
    bound = math.sqrt(2) * math.sqrt(3 / fan_in)
    return rand(fan_in, fan_out, low=-bound, high=bound, **given)


def kaiming_normal(fan_in, fan_out, nonlinearity="relu", **given):
    return randn(fan_in, fan_out, std=math.sqrt(2) / math.sqrt(fan_in), **given)
