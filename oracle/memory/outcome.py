"""What a run of the gates was asked for, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from oracle.commands import LATEST, command
from oracle.exits import ExitCode, decided
from oracle.memory import baseline
from oracle.memory.gates import Row
from oracle.systems.foreign import Offer
from oracle.systems.ours import is_foreign


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
    needle: Path | None = None  # where a needle other than ours lies
    offer: Offer = field(default_factory=Offer)  # what that one offers, and what it does by design

    @property
    def course(self) -> bool:
        """Whether it is judged under the course's contract."""
        return is_foreign(self.needle)

    def again(self, **options: object) -> str:
        """The command that measures something of this run again."""
        return command("memory", needle=self.needle, out=self.folder, **options)


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
    def leaks(self) -> dict[str, list[Row]]:
        """Who holds on to things ("SGD") -> the rows in which it does: of another needle, that is one finding."""
        found: dict[str, list[Row]] = {}
        for row in sorted(self.failed, key=lambda row: (len(row.keepers_of), not row.panel)):
            for owner in row.keepers_of or [row.name]:
                found.setdefault(owner, []).append(row)
        return found

    @property
    def errors(self) -> list[tuple[Row, str]]:
        """Rows whose measurement came to nothing."""
        return [(r, e) for r in self.rows for e in r.errors]

    @property
    def exit_code(self) -> ExitCode:
        """0 all gates hold, 1 one does not, or needle ends its process; 4 something was not measured, 5 nothing could be,
        130 interrupted.
        """
        broken = [row for row in self.rows if row.broken]
        harness = [row for row, _ in self.errors if not row.broken]
        return decided(
            part=self.failed or broken,
            interrupted=self.interrupted,
            harness=harness,
            no_verdict=self.plan.course and not self.rows and not self.interrupted,
        )
