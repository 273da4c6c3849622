"""Another needle under test: ``nox -s diff -- --needle DIR``, DIR being the folder that holds the package ``needle``.

The harness drives the API of the course. What the course does not promise is made up for here, in the package that
`oracle.systems.candidate` has imported: `adapt`. What the package does not offer at all is found out by `oracle.runs.offered`.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any


class ForeignError(ValueError):
    """There is no needle where one was said to be, or it cannot be imported."""


def adapt(ndl: Any) -> None:
    """Give a needle of the course what only ours promises, where it can be done without changing a result."""
    tensor = ndl.Tensor
    if not hasattr(tensor, "grad"):
        tensor.grad = None  # in the course, absent before the first backward
    if not hasattr(tensor, "retain_grad"):
        tensor.retain_grad = lambda self: None  # the course keeps the gradient of every node anyway
    accepted = inspect.signature(tensor.backward).parameters
    unknown = {"retain_graph", "create_graph"} - set(accepted)
    if unknown and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
        tensor.backward = _without_keywords(tensor.backward, unknown)  # the course's graph stays, and has gradients
    for name in ("SGD", "Adam"):
        kind = getattr(ndl.optim, name, None)
        if kind is not None:
            kind.__init__ = _with_a_list(kind.__init__)


def _without_keywords(function: Any, names: set[str]) -> Any:
    @functools.wraps(function)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **{k: v for k, v in kwargs.items() if k not in names})

    return called


def _with_a_list(init: Any) -> Any:
    """The course iterates over its parameters again and again: not over a generator."""

    @functools.wraps(init)
    def called(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        init(self, list(params), *args, **kwargs)

    return called
