"""A plugin of pytest: ``pytest -v -p oracle.check.shares`` shows the share of the tolerance that each test used."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from oracle.check.comparing import heard
from oracle.check.measuring import LIMIT


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Listens to all checks of a test that agree; the largest share travels with its report, also from a worker of xdist."""
    shares: list[float] = []
    token = heard.set(shares)
    try:
        return (yield)
    finally:
        heard.reset(token)
        if shares:
            item.user_properties.append(("share", f"{max(shares):.1f} of {LIMIT:g}"))


def pytest_report_teststatus(report: Any) -> tuple[str, str, str] | None:
    """``PASSED (2.1 of 16)``."""
    share = dict(getattr(report, "user_properties", ())).get("share")
    if getattr(report, "when", "") == "call" and report.passed and share:
        return "passed", ".", f"PASSED ({share})"
    return None
