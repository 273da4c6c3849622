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


# What holds the forward pass of an op, and its gradient: by the course, and in ours (`vjp`, which a base's `gradient` calls).
COMPUTE = ("compute", "forward")
GRADIENT = ("gradient", "vjp", "backward", "gradient_as_tuple")


def line_in(thing: Any, *methods: str) -> str:
    """Where a class defines the first of the methods that it has, itself before its bases; where a function is, without methods."""
    return method_in(thing, *methods)[0]


def method_in(thing: Any, *methods: str) -> tuple[str, str]:
    """The line as `line_in` gives it, and which of the methods that is; empty where it cannot be known."""
    for owner in inspect.getmro(thing) if inspect.isclass(thing) else (thing,):
        try:
            # from the class's own text: a method that was replaced at run time is still defined there
            lines, start = inspect.getsourcelines(owner)
            file = inspect.getsourcefile(owner) or ""
        except (OSError, TypeError, IndexError):  # it was made at run time
            held = next((method for method in methods if method in getattr(owner, "__dict__", ())), "")
            if held:
                return "", held
            continue
        name = "/".join(file.replace("\\", "/").split("/")[-2:])
        for method in methods:
            for i, text in enumerate(lines):
                if re.match(rf"\s+def {method}\b", text):
                    return f"{name}:{start + i}", method
        if not methods:
            return f"{name}:{start}", ""
    return "", ""
