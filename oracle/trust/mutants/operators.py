"""What is changed in needle's source: an operator is a generator ``(site) -> (node, text)``, the node whose text is replaced,
and by what. Generic operators come first, then the numeric ones that generic tools lack.

Not generated: ``inputs[0]`` → ``inputs[-1]``, swaps of commutative operands, and what `claims` leaves to unit tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from oracle.trust.mutants import generic, numeric
from oracle.trust.mutants.site import Change, Site

OPERATORS: dict[str, Callable[[Site], Iterator[Change]]] = {
    # generic
    "arithmetic": generic.arithmetic,
    "operand dropped": generic.operand_dropped,
    "comparison": generic.comparison,
    "condition": generic.condition,
    "logic": generic.logic,
    "constant": generic.constant,
    "default": generic.default,
    "argument dropped": generic.argument_dropped,
    "arguments swapped": generic.arguments_swapped,
    "statement deleted": generic.statement_deleted,
    "statements swapped": generic.statements_swapped,
    "return dropped": generic.return_dropped,
    "loop": generic.loop,
    "operand replaced": generic.operand_replaced,
    # numeric
    "axis changed": numeric.axis_changed,
    "keepdims dropped": numeric.keepdims_dropped,
    "transpose dropped": numeric.taken_out("transpose"),
    "reshape dropped": numeric.taken_out("reshape"),
    "function dropped": numeric.taken_out("function", "sum", "mean"),
    "copy dropped": numeric.taken_out("copy"),
    "cast dropped": numeric.taken_out("cast"),
    "detach dropped": numeric.taken_out("detach", "fixed", "value"),
    "aliased": numeric.aliased,
    "in place": numeric.in_place,
    "augmented": numeric.augmented,
    "eps moved": numeric.eps_moved,
    "gradient swapped": numeric.gradient_swapped,
    "graph kept": numeric.graph_kept,
    "mean for maximum": numeric.mean_for_maximum,
    "float64": numeric.wrapped("_m.cast({}, 'float64')", numeric.outputs),
    "float16": numeric.wrapped("_m.rounded({}, 'float16')", numeric.values),
    "scaled by 1 + 2⁻⁴": numeric.wrapped("_m.scaled({}, 4)", numeric.values),
    "rare": numeric.rare,
    "rounding only": numeric.rounding_only,
}
GENERIC = tuple(OPERATORS)[: tuple(OPERATORS).index("axis changed")]
