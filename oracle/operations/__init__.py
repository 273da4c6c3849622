"""What does each operation mean, and how is it called here and there? One block per operation, grouped by family.

A block is a definition, in float64 and written from the mathematics in NumPy alone, under a decorator that says how
needle calls it (``n`` is the needle), how torch does (``t`` is torch), how its operands are drawn (``d`` draws), and which
class of needle's nodes means exactly this. needle, torch and Hypothesis are given to a block: no family imports them.

The truth (rule G) is the definitions run on replicas with rounding noise (`tape`), rule OP the same definitions run on
arrays that carry error bounds (`bounds`).
"""

from oracle.operations import elementwise, indexing, losses, norms, products, reductions, shapes, tuples
from oracle.operations.operation import (
    MEANINGS,
    MOST,
    MOST_AXES,
    OPERATIONS,
    Operation,
    extent,
    largest,
    result_shape,
)

__all__ = [
    "MEANINGS",
    "MOST",
    "MOST_AXES",
    "OPERATIONS",
    "Operation",
    "elementwise",
    "extent",
    "indexing",
    "largest",
    "losses",
    "norms",
    "products",
    "reductions",
    "result_shape",
    "shapes",
    "tuples",
]
