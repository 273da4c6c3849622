"""needle: a small NumPy deep-learning library in the style of the CMU deep-learning-systems course.

>>> import numpy as np
>>> import needle as ndl
>>> from needle import nn
>>> x = ndl.Tensor(np.eye(3), dtype="float32")
>>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
>>> optimizer = ndl.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
>>> loss = nn.SoftmaxLoss()(model(x), ndl.Tensor([0, 1, 1]))
>>> optimizer.reset_grad()
>>> loss.backward()
>>> optimizer.step()
"""

__version__ = "0.1.0"

from needle import autograd as autograd  # first: the other modules build on it
from needle import data, init, nn, ops, optim, schedules
from needle.autograd import Op, Tensor, TensorOp, TensorTuple, TensorTupleOp, all_devices, cpu, no_grad
from needle.init import ones, ones_like, zeros, zeros_like
from needle.ops import (
    PrecisionWarning,
    add,
    add_scalar,
    amax,
    batch_norm,
    broadcast_to,
    cast,
    conv,
    dilate,
    divide,
    divide_scalar,
    exp,
    flip,
    fused_add_scalars,
    get_item,
    layer_norm,
    linear,
    log,
    logsoftmax,
    logsumexp,
    make_tuple,
    matmul,
    mul_scalar,
    multiply,
    negate,
    power,
    power_scalar,
    put_item,
    relu,
    reshape,
    sigmoid,
    softmax,
    softmax_cross_entropy,
    softplus,
    split,
    stack,
    summation,
    tanh,
    transpose,
    tuple_get_item,
)
from needle.saving import load, save

__all__ = [
    "Op",
    "PrecisionWarning",
    "Tensor",
    "TensorOp",
    "TensorTuple",
    "TensorTupleOp",
    "add",
    "add_scalar",
    "all_devices",
    "amax",
    "autograd",
    "batch_norm",
    "broadcast_to",
    "cast",
    "conv",
    "cpu",
    "data",
    "dilate",
    "divide",
    "divide_scalar",
    "exp",
    "flip",
    "fused_add_scalars",
    "get_item",
    "init",
    "layer_norm",
    "linear",
    "load",
    "log",
    "logsoftmax",
    "logsumexp",
    "make_tuple",
    "matmul",
    "mul_scalar",
    "multiply",
    "negate",
    "nn",
    "no_grad",
    "ones",
    "ones_like",
    "ops",
    "optim",
    "power",
    "power_scalar",
    "put_item",
    "relu",
    "reshape",
    "save",
    "schedules",
    "sigmoid",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "split",
    "stack",
    "summation",
    "tanh",
    "transpose",
    "tuple_get_item",
    "zeros",
    "zeros_like",
]
