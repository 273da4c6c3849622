"""Where in a needle something is defined."""

from __future__ import annotations

import inspect
import re
from typing import Any


def line_of(ndl: Any, path: str, *methods: str) -> str:
    """Where a class of needle defines a method: ``needle/ops.py:351``; empty where that cannot be known."""
    thing = ndl
    for name in path.split("."):
        thing = getattr(thing, name, None)
    return "" if thing is None else line_in(thing, *methods)


def line_in(thing: Any, *methods: str) -> str:
    """Where a class, or one of its bases, defines the first of the methods that it has; where a function is, without methods."""
    for owner in inspect.getmro(thing) if inspect.isclass(thing) else (thing,):
        try:
            # from the class's own text: a method that was replaced at run time is still defined there
            lines, start = inspect.getsourcelines(owner)
            file = inspect.getsourcefile(owner) or ""
        except (OSError, TypeError, IndexError):
            continue
        name = "/".join(file.replace("\\", "/").split("/")[-2:])
        for method in methods:
            for i, text in enumerate(lines):
                if re.match(rf"\s+def {method}\b", text):
                    return f"{name}:{start + i}"
        if not methods:
            return f"{name}:{start}"
    return ""
