"""What diff is asked to notice, and what is left to needle's unit tests, which then have to: every mutant is judged.

Beside these: docstrings, messages, annotations and imports are never mutated, nor are guards, the ``if`` and ``try``
statements that do nothing but raise. What must be refused is a matter of needle's unit tests.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from oracle.commands import session

FILES = ("autograd", "chain", "ops", "nn", "optim")  # judged by diff

# Files that no case trains with, and the unit tests that judge their mutants.
BY_TESTS: dict[str, tuple[str, ...]] = {
    "init": ("test_data_init.py", "test_init_exact.py"),
    "data": ("test_data_init.py", "test_init_exact.py"),
    "schedules": ("test_schedules.py",),
    "saving": ("test_saving.py",),
    "dispatch": ("test_dispatch.py",),
    "course": ("test_course.py",),
}

ALL_FILES = (*FILES, *BY_TESTS)

# file, function (a pattern), reason
_LOOKS = "how it prints; tests/unit/needle"
_COURSE = "gradient rules in the course's style: no op of needle has one; test_autograd.py"
_CONVERTS = "conversion to Python and NumPy, which computes nothing; test_autograd.py"
_STATE = "saving and loading; test_nn.py"
_TESTED = "a name of the course for something that is claimed; test_autograd.py, test_ops.py"
_COPIES = "pickle and copy; test_copies.py"
_HANDED_IN = "what is handed in; test_handed_in.py"
_DTYPES = "what becomes of other dtypes than float32; test_dtypes.py"
_CHANGES = "data that changes between forward and backward; test_changes.py"
_REFUSES = "refuses what is not allowed; test_optim.py, test_ops.py"

UNCLAIMED: tuple[tuple[str, str, str], ...] = (
    ("autograd", "__getattr__", f"counts live tensors for the memory report; test_autograd.py, `{session('memory')}`"),
    ("autograd", "Tensor.device", "there is one device"),
    ("autograd", "Op.__init_subclass__", _COURSE),
    ("autograd", "Op.gradient*", _COURSE),
    ("autograd", "_refuse_other_than_tensors", _REFUSES),
    ("autograd", "Value.realize_cached_data", _CONVERTS),
    *(("autograd", f"Tensor.{name}", _CONVERTS) for name in (
        "numpy", "item", "__array__", "__len__", "__bool__", "__float__", "__int__", "__iter__", "size", "__pos__")),
    ("nn", "Module.__*attr__", "when a plan is made again; test_chain.py"),
    ("nn", "_Plan.*", "whether layers are computed together, which changes no number; test_chain.py"),
    *(("autograd", f"TensorTuple.{name}", _CONVERTS) for name in ("__len__", "__iter__", "tuple", "__add__", "detach")),
    *(("autograd", f"Tensor.{name}", _TESTED) for name in ("mean", "matmul", "astype", "__rmatmul__")),
    ("autograd", "_GradMode.__call__", "no_grad as a decorator; test_modes.py"),
    ("autograd", "Value.__getstate__", _COPIES),
    ("autograd", "Value.__copy__", _COPIES),
    *(("autograd", f"Tensor.{name}", "comparisons; test_compare.py") for name in (
        "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "_compared")),
    ("autograd", "Parameter._update", _HANDED_IN),
    ("autograd", "Parameter.__i*__", _HANDED_IN),
    ("autograd", "_apart", _HANDED_IN),
    ("autograd", "Tensor._subtrahend", _DTYPES),
    ("autograd", "_integer", _REFUSES),
    ("autograd", "_refuse_changes", _CHANGES),
    ("autograd", "_a_change", _CHANGES),
    *((file, "*.looks_at", _CHANGES) for file in ("autograd", "chain", "ops")),
    *(("ops", name, _DTYPES) for name in ("_float", "_wide", "_beside", "_alike", "_fractions", "_normalisable")),
    ("ops", "_own", _HANDED_IN),
    ("nn", "_stands_in", "whether a plan may be made; test_chain.py"),
    ("nn", "Sequential.__getstate__", _COPIES),
    ("optim", "Optimizer.__*state__", _COPIES),
    ("ops", "_index_of", "lists and Tensors as an index; test_ops.py"),
    ("ops", "put_item", "how other ops are written"),
    ("nn", "Module._settings", _LOOKS),
    ("nn", "Module.forward", "raises"),
    ("nn", "Module.named_buffers", _STATE),
    ("nn", "Module.buffers", _STATE),
    ("nn", "Module._children", "a name of the course; test_nn.py"),
    ("nn", "Module._state", _STATE),
    ("nn", "Module.*state_dict", _STATE),
    ("nn", "_check_norm", _REFUSES),
    ("optim", "Optimizer.step", "raises"),
    ("optim", "*._check", _REFUSES),
    ("optim", "_within", _REFUSES),
    ("ops", "_no_broadcast", "the text of an error"),
    ("ops", "_checked_eps", _REFUSES),
)  # fmt: skip


def named_tests(reason: str) -> tuple[str, ...]:
    """The test files that a reason names."""
    return tuple(dict.fromkeys(re.findall(r"\btest_\w+\.py", reason)))


def unclaimed(file: str, function: str) -> str | None:
    """The reason why a function is not mutated, or None."""
    for where, pattern, reason in UNCLAIMED:
        if where == file and fnmatchcase(function, pattern):
            return reason
    return None
