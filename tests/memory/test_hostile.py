"""A needle that ends its process is a failing needle for the memory gates too, and the other models are measured."""

import os

import pytest

from oracle.memory.panel import PANEL

pytest.importorskip("memray")
CASE = next(case for case in PANEL.values() if case.memory is not None)
WAYS = {
    "crash": (os.abort, "needle crashes: aborted"),
    "exit": (lambda: os._exit(0), "needle ended with exit status 0"),
    "SystemExit": (lambda: exec("raise SystemExit(0)"), "needle raises SystemExit"),
    "endless": (lambda: exec("while True: pass"), "needle does not come back within 2 s"),
}
