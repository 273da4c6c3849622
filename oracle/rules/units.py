"""What a dtype can tell apart, and which operations of float16 add up in float32: the table at the top of needle/ops.py."""

from __future__ import annotations

from oracle.operations import OPERATIONS
from oracle.operations.dtypes import DTYPES

UNITS = {name: dtype.rounding.unit for name, dtype in DTYPES.items()}
LEAST = {name: dtype.least for name, dtype in DTYPES.items()}  # what is smaller may be lost
HUGE = 1e30  # beyond it a correct float32 program may overflow on the way
# what adds up: in float16 it does so in float32
ADDING = (
    "summation",
    "matmul",
    "linear",
    "conv",
    "batch_norm",
    "layer_norm",
    "logsumexp",
    "logsoftmax",
    "softmax_loss",
)
ADDING_KINDS = frozenset(kind for name in ADDING for kind in OPERATIONS[name].covers)  # their classes in needle
