"""The state of the process around needle: an operation, a model or an optimizer leaves it as it found it.

`AROUND_A_CALL`, `OF_TORCH` and `AROUND_A_CASE` list what must be the same afterwards; a change is a finding, and is undone.
What a course's needle may well change is undone without a word: `FREE`. NumPy's global generator is another matter, that
the cases look at themselves (the quantity "untouched"): dropout and the initializers draw from it.

Where torch, imported bit by bit, changes something of its own accord, it is looked at around every call of needle; the rest
once a case.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # as signal, without the detour by way of enumerations
import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

Way = tuple[Callable[[], Any], Callable[[Any], Any]]  # how to look at it, how to put it back


def _filters(found: Any) -> None:
    warnings.filters[:] = found  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _handlers() -> tuple[Any, ...]:
    return tuple(map(_signal.getsignal, _SIGNALS))


def _set_handlers(found: tuple[Any, ...]) -> None:
    for number, handler in zip(_SIGNALS, found, strict=True):
        if handler is not None:  # None: not one of Python's, and it cannot be set from here
            _signal.signal(number, handler)


_SIGNALS = [int(getattr(signal, n)) for n in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, n)]


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "(it is gone)"


def _set_folder(found: str) -> None:
    if os.path.isdir(found):
        os.chdir(found)


AROUND_A_CALL: Mapping[str, Way] = {
    "np.seterr": (np.geterr, lambda found: np.seterr(**found)),
    "warnings.filters": (lambda: list(warnings.filters), _filters),
    "gc.isenabled": (gc.isenabled, lambda found: gc.enable() if found else gc.disable()),
    "sys.gettrace": (sys.gettrace, sys.settrace),
    "sys.getprofile": (sys.getprofile, sys.setprofile),
}
OF_TORCH = {  # if it has been imported: what looks, and what puts back
    "torch.get_default_dtype": ("get_default_dtype", "set_default_dtype"),
    "torch.is_grad_enabled": ("is_grad_enabled", "set_grad_enabled"),
    "torch.get_num_threads": ("get_num_threads", "set_num_threads"),
    "torch.are_deterministic_algorithms_enabled": (
        "are_deterministic_algorithms_enabled",
        "use_deterministic_algorithms",
    ),
}
AROUND_A_CASE: Mapping[str, Way] = {
    "gc.get_threshold": (gc.get_threshold, lambda found: gc.set_threshold(*found)),
    "os.getcwd": (_folder, _set_folder),
    "signal handlers": (_handlers, _set_handlers),
}
FREE: Mapping[str, Way] = {
    "sys.getrecursionlimit": (sys.getrecursionlimit, sys.setrecursionlimit),  # a recursive walk over a deep graph
    "np.printoptions": (np.get_printoptions, lambda found: np.set_printoptions(**found)),
}


class Surroundings:
    """What they were when this was made; ``restore`` puts them back, and names what should not have changed."""

    def __init__(self, ways: Mapping[str, Way], free: Mapping[str, Way] | None = None) -> None:
        self._ways, self._free = ways, free or {}
        self._modules = len(sys.modules)
        self._before = [way[0]() for way in ways.values()]
        self._before_free = [look() for look, _ in self._free.values()]

    def restore(self) -> list[str]:
        """Put back what has changed; what should not have, with what it was and is, in words."""
        changed: list[str] = []
        if not self._free and [way[0]() for way in self._ways.values()] == self._before:
            return changed  # in short: this is asked around every call of needle
        for (name, (look, put_back)), before in zip(self._ways.items(), self._before, strict=True):
            now = look()
            if now != before:
                if name == "warnings.filters" and len(sys.modules) != self._modules:
                    continue  # a module that is imported late brings its own
                changed.append(f"{name} ({_difference(before, now)})")
                put_back(before)
        for (look, put_back), before in zip(self._free.values(), self._before_free, strict=True):
            if look() != before:
                put_back(before)
        return changed


_around_a_call: dict[str, Way] = {}


def around_a_call() -> Surroundings:
    """What must be the same behind a call of needle."""
    if len(_around_a_call) <= len(AROUND_A_CALL):
        _around_a_call.update(AROUND_A_CALL)
        torch = sys.modules.get("torch")
        if hasattr(torch, "use_deterministic_algorithms"):
            _around_a_call.update({n: (getattr(torch, a), getattr(torch, b)) for n, (a, b) in OF_TORCH.items()})
    return Surroundings(_around_a_call)


@contextmanager
def without_advice(ndl: Any) -> Iterator[None]:
    """Without needle's advice on dtypes, given once in a process: the harness compares dtypes itself, and an "error" filter would
    make an exception of the first wrong one, and not of the next.
    """
    advice = getattr(ndl, "PrecisionWarning", None)
    with warnings.catch_warnings():
        if isinstance(advice, type) and issubclass(advice, Warning):
            warnings.simplefilter("ignore", advice)
        yield


def around_a_case() -> Surroundings:
    """What must be the same behind a case."""
    return Surroundings(AROUND_A_CASE, FREE)


def around_an_import() -> Surroundings:
    """All of it."""
    around_a_call()
    return Surroundings({**_around_a_call, **AROUND_A_CASE}, FREE)


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [f"{k}: {_short(before.get(k))} -> {_short(now.get(k))}" for k in {**before, **now}
                 if before.get(k) != now.get(k)]  # fmt: skip
        return ", ".join(parts[:3])
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        added = [x for x in now if x not in before]
        return f"now with {_short(added[0])}" if added else f"{len(before)} entries -> {len(now)}"
    return f"{_short(before)} -> {_short(now)}"


def _short(value: Any) -> str:
    return repr(value)[:60]
