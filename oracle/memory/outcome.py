"""What a run of the gates was asked for, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from oracle.commands import LATEST
from oracle.exits import ExitCode, decided
from oracle.memory import baseline
from oracle.memory.gates import Row


@dataclass
class Plan:
    """What to run."""

    cases: int
    seed: int
    workers: int
    panel_only: bool = False
    model: str | None = None  # of the panel: this one alone
    accept: bool = False
    folder: Path = LATEST
    baseline: Path = baseline.PATH


@dataclass
class Run:
    """What a run found."""

    plan: Plan
    key: dict[str, str]
    commit: str
    rows: list[Row] = field(default_factory=list)
    baseline_key: dict[str, str] | None = None  # of the entry that was looked at
    jobs: int = 0
    done: int = 0
    interrupted: bool = False
    accepted: bool = False
    wall: float = 0.0

    @property
    def failed(self) -> list[Row]:
        """Rows with a failing gate."""
        return [r for r in self.rows if r.failures]

    @property
    def errors(self) -> list[tuple[Row, str]]:
        """Rows whose measurement came to nothing."""
        return [(r, e) for r in self.rows for e in r.errors]

    @property
    def exit_code(self) -> ExitCode:
        """0 all gates hold, 1 one does not, or needle ends its process; 4 something was not measured, 130 interrupted."""
        broken = [row for row in self.rows if row.broken]
        harness = [row for row, _ in self.errors if not row.broken]
        return decided(part=self.failed or broken, interrupted=self.interrupted, harness=harness)
