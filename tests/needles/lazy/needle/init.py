"""Tensors from the global generator of NumPy, and constant ones."""

import math

import numpy

from .autograd import Tensor


def _made(array, dtype, requires_grad):
    return Tensor(array, dtype=dtype, requires_grad=requires_grad)


def rand(*shape, low=0.0, high=1.0, device=None, dtype="float32", requires_grad=False):
    return _made(numpy.random.rand(*shape) * (high - low) + low, dtype, requires_grad)


def randn(*shape, mean=0.0, std=1.0, device=None, dtype="float32", requires_grad=False):
    return _made(numpy.random.randn(*shape) * std + mean, dtype, requires_grad)


def randb(*shape, p=0.5, device=None, dtype="bool", requires_grad=False):
    return _made(numpy.random.rand(*shape) <= p, dtype, requires_grad)


def constant(*shape, c=1.0, device=None, dtype="float32", requires_grad=False):
    return _made(numpy.ones(shape) * c, dtype, requires_grad)


def ones(*shape, device=None, dtype="float32", requires_grad=False):
    return constant(*shape, c=1.0, dtype=dtype, requires_grad=requires_grad)


def zeros(*shape, device=None, dtype="float32", requires_grad=False):
    return constant(*shape, c=0.0, dtype=dtype, requires_grad=requires_grad)


def ones_like(array, *, device=None, requires_grad=False):
    return ones(*array.shape, dtype=array.dtype, requires_grad=requires_grad)


def zeros_like(array, *, device=None, requires_grad=False):
    return zeros(*array.shape, dtype=array.dtype, requires_grad=requires_grad)


def one_hot(n, i, device=None, dtype="float32", requires_grad=False):
    labels = i.numpy().astype("int64")
    table = numpy.zeros((labels.size, n))
    table[numpy.arange(labels.size), labels.ravel()] = 1
    return _made(table, dtype, requires_grad)


def kaiming_uniform(fan_in, fan_out, nonlinearity="relu", **kwargs):
    assert nonlinearity == "relu"
    bound = math.sqrt(2) * math.sqrt(3 / fan_in)
    return rand(fan_in, fan_out, low=-bound, high=bound, **kwargs)
