"""Another needle under test: ``nox -s diff -- --needle DIR``, DIR being the folder that holds the package ``needle``.

The harness drives the API of the course. What the course does not promise is made up for here, in the loaded package
only: `adapt`. What the package does not offer at all is found out by `oracle.runs.offered`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from pathlib import Path
from typing import Any

from oracle.apart import is_interrupt, one_line
from oracle.exits import importing
from oracle.systems.surroundings import around_an_import


class ForeignError(ValueError):
    """There is no needle where one was said to be, or it cannot be imported."""


def load(folder: Path) -> Any:
    """Import ``needle`` from a folder, in place of ours; must come before anything else imports needle."""
    package = folder / "needle"
    if not (package / "__init__.py").is_file():
        raise ForeignError(f"--needle {folder}: there is no package {package}; name the folder that holds needle/")
    if "needle" in sys.modules:
        raise ForeignError("another needle has been imported already")
    sys.path.insert(0, str(folder.resolve()))
    needle = imported(f"--needle {folder}")
    where = Path(str(needle.__file__)).resolve()
    if package.resolve() not in where.parents:
        raise ForeignError(f"--needle {folder}: Python imports needle from {where.parent} instead")
    try:
        adapt(needle)
    except Exception as error:
        raise ForeignError(f"--needle {folder}: not the needle of the course: {error}") from error
    return needle


def imported(what: str) -> Any:
    """``needle``; ForeignError if its import raises anything at all, ``sys.exit(0)`` too."""
    try:
        with importing():
            before = around_an_import()
            try:
                import needle
            finally:
                before.restore()  # what an import changes is no finding, and must not change what is judged
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise ForeignError(f"{what}: cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    return needle


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
