"""``python -m oracle kernels``: the same verdict under other kernels of BLAS and other vector code.

Which kernels and which vector code compute is settled when NumPy and torch are loaded, so each check is a child process.
Beside what was asked stands what the child reads back, and a setting that did not come about has no verdict.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from oracle.apart import threads
from oracle.memory import blas
from oracle.pages import terminal

FOLDER = Path("reports/latest/kernels")
CASES = 200  # of every variant of the calibration, in the full form
SHORT_CASES = 100  # of needle as it is, in the short form
SHORT_MODEL = "MLPResNet BatchNorm"  # one whose allocations depend on the kernels
PLAIN_NUMPY, PLAIN_TORCH = "plain NumPy", "plain torch"
CLIPPED = 160  # characters of such a line
SHOWN = 15  # lines of a check that fails
LIMIT = 3600.0  # seconds for one check
GRACE = 10.0  # seconds that a child has after Ctrl-C

# The tests that compare numbers; what looks at processes, pages and the catalogue of faults is left to `nox -s tests`.
NUMBERS = (
    "tests/unit/needle",
    "tests/unit/needle_and_torch",
    *(f"tests/unit/oracle/test_{name}.py" for name in ("compare", "contracts", "tape_rule")),
    "tests/unit/test_rounding.py",
)
MORE_NUMBERS = (  # in the full form: what is in float64 and far from its bounds, and two loops that train side by side
    *(f"tests/unit/oracle/test_{name}.py" for name in ("locate", "operations", "truth")),
    "tests/unit/oracle/test_bench.py::test_limit_needle_and_torch_train_alike",
    "tests/unit/oracle/test_bench.py::test_with_dropout_limit_and_needle_draw_the_same_masks",
    "tests/unit/oracle/test_bench.py::test_the_running_statistics_of_the_limit_follow_needles",
)
KEPT = "tests/diff/test_diff.py::test_a_case_that_once_failed_agrees"


@dataclass(frozen=True)
class Setting:
    """What a row of the table runs under."""

    name: str  # a kernel, or which library is without its vector code
    kernel: str | None = None  # asked for; None: what the CPU's own is
    chosen: dict[str, str] = field(default_factory=dict)  # other variables
    reads_back: str = ""  # what a child must read back, or the setting has not come about

    @property
    def environment(self) -> dict[str, str]:
        """For a child."""
        return blas.environment(self.kernel, self.chosen) | threads(1) | {"CI": "true", "NO_COLOR": "1"}

    @property
    def prefix(self) -> str:
        """What to type before a command for the same setting."""
        asked = ({} if self.kernel is None else {"OPENBLAS_CORETYPE": self.kernel}) | self.chosen
        preset = [f"-u {name}" for name in blas.CHOOSING if name not in asked and name in os.environ]
        return " ".join(["env", *preset, *(shlex.quote(f"{k}={v}") for k, v in asked.items())])


@dataclass
class Outcome:
    """What became of a check: its exit code, or why there is none."""

    state: str = "-"  # ok, FAILS, no verdict, stopped; - has not run
    code: int | None = None
    seconds: float = 0.0
    log: Path | None = None

    def __str__(self) -> str:
        return f"{self.state} {self.seconds:.0f} s" if self.log else self.state


@dataclass
class Row:
    """A setting and its checks."""

    setting: Setting
    checks: dict[str, list[str]]  # name -> what follows `python -m`
    read: str = ""  # what the child reads back
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.outcomes = {name: Outcome() for name in self.checks}


@dataclass
class Run:
    """A whole run."""

    rows: list[Row]
    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    children: set[subprocess.Popen[bytes]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def interrupted(self) -> bool:
        """Whether it was to end early."""
        return self.stop.is_set()

    @property
    def outcomes(self) -> list[tuple[Row, str, Outcome]]:
        """Every check."""
        return [(row, name, o) for row in self.rows for name, o in row.outcomes.items()]

    @property
    def exit_code(self) -> int:
        """4 a check or a setting broke down, 3 the oracle contradicts itself, 1 a check fails, 130 interrupted, 0 all hold."""
        codes = {o.code for _, _, o in self.outcomes if o.state in ("FAILS", "no verdict")}
        if codes - {1, 3}:
            return 4
        return 3 if 3 in codes else 1 if 1 in codes else 130 if self.interrupted else 0


# -- what runs --------------------------------------------------------------------------------------------------------


def settings(machine: blas.Machine, names: Sequence[str] = (), short: bool = False) -> list[Setting]:
    """All kernels that this CPU can run, or those named; and NumPy, then torch, without its vector code.

    The short form leaves out what reads back as the kernel that the CPU chooses by itself: all tests run under that one.
    """
    chosen = list(names) or machine.kernels
    if short and not names:
        chosen = [name for name in chosen if blas.KERNELS[name][0] != machine.kernel]
    found = [Setting(name, name, reads_back=blas.KERNELS[name][0]) for name in chosen]
    if not names:
        if machine.dispatched:
            off = {"NPY_DISABLE_CPU_FEATURES": " ".join(machine.dispatched)}
            found.append(Setting(PLAIN_NUMPY, None, off, f"{machine.kernel}, NumPy baseline"))
        found.append(Setting(PLAIN_TORCH, None, {"ATEN_CPU_CAPABILITY": "default"}, f"{machine.kernel}, torch DEFAULT"))
    return found


def checks(setting: Setting, folder: Path, short: bool, cases: int | None) -> dict[str, list[str]]:
    """Name -> the command of a check, behind `python -m`."""
    tests = ["pytest", "-q", "-p", "no:cacheprovider"]
    calibrate = ["oracle", "calibrate", "--workers", "1", "--cases", str(cases or (SHORT_CASES if short else CASES))]
    memory = ["oracle", "memory", "--workers", "1", "--out", str(folder / setting.name.replace(" ", "-"))]
    if short:  # one process less, of which most only imports torch; what is freed, and when, no kernel decides
        tested = {"cases and tests": [*tests, "-k", "not memory_check and not deep_chain", KEPT, *NUMBERS]}
        calibrate += ["--variants", "as it is"]
    else:
        tested = {"cases": [*tests, KEPT], "tests": [*tests, *NUMBERS, *MORE_NUMBERS]}
    found = {**tested, "calibration": calibrate}
    # what is allocated does not depend on vector code, and memray does not exist everywhere
    if importlib.util.find_spec("memray") is not None and (setting.kernel or not short):
        found["memory"] = [*memory, *(["--model", SHORT_MODEL] if short else ["--panel-only"])]
    return found


_LOOK = """
import sys
from oracle.memory import blas
found = blas.read_back()
if "numpy" in sys.argv:
    from numpy._core import _multiarray_umath as m
    found += ", NumPy " + (" ".join(n for n in m.__cpu_dispatch__ if m.__cpu_features__[n]) or "baseline")
if "torch" in sys.argv:
    import torch
    found += ", torch " + torch.backends.cpu.get_cpu_capability()
print(found)
"""


def look(setting: Setting) -> str:
    """What a child of this setting reads back; "" if it cannot say."""
    what = {PLAIN_NUMPY: "numpy", PLAIN_TORCH: "torch"}.get(setting.name, "kernel")
    command = [sys.executable, "-c", _LOOK, what]
    done = subprocess.run(
        command, env=setting.environment, stdout=subprocess.PIPE, encoding="utf-8", errors="replace", check=False
    )
    return done.stdout.strip()


# -- running it -------------------------------------------------------------------------------------------------------


def kernels(
    *, short: bool, names: Sequence[str], cases: int | None, workers: int | None, accept_memory: bool,
    folder: Path = FOLDER,
) -> int:  # fmt: skip
    """Run the checks under every setting, show the table; returns the exit code."""
    machine = blas.machine()
    for name in names:
        if name not in blas.KERNELS:
            return _usage(f"--kernels must be of {', '.join(blas.KERNELS)}, got {name!r}")
        if name not in machine.kernels:
            here = ", ".join(machine.kernels) or "none, for NumPy is not built on an OpenBLAS that can choose"
            return _usage(f"{name} cannot be run on this machine; these can: {here}")
    if accept_memory and short:
        return _usage("an entry of the baseline is the whole panel: --accept-memory goes without --short")
    chosen = settings(machine, names, short)
    if accept_memory:
        chosen = list({s.reads_back: s for s in reversed(chosen) if s.kernel is not None}.values())[::-1]
    rows = [Row(s, checks(s, folder, short, cases)) for s in chosen]
    workers = workers or os.cpu_count() or 1
    if accept_memory:  # all write one file
        for row in rows:
            row.checks = {"memory": [*row.checks["memory"], "--accept", "--workers", str(workers)]}
            row.outcomes = {"memory": Outcome()}
        workers = 1
    console = terminal.console()
    console.print(f"OpenBLAS chooses {machine.kernel} here; {len(rows)} settings, {workers} checks at a time")
    run = Run(rows, folder)
    started = time.perf_counter()
    with console.status("looking") as status:

        def tell(text: str) -> None:
            status.update(text)

        go(run, workers, tell, console.print)
    show(run, console, time.perf_counter() - started)
    return run.exit_code


def _usage(text: str) -> int:
    print(f"kernels: {text}", file=sys.stderr)
    return 2


def go(run: Run, workers: int, tell: Callable[[str], None], say: Callable[[str], None]) -> None:
    """Run all checks; Ctrl-C (or SIGTERM) ends it early, with what is known so far."""
    run.folder.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    pool = ThreadPoolExecutor(workers)
    try:
        for row in run.rows:
            tell(f"looking at {row.setting.name}")
            row.read = look(row.setting)
        jobs: dict[Future[None], tuple[Row, str]] = {
            pool.submit(perform, run, row, name): (row, name) for row in run.rows for name in row.checks
        }
        left, count = set(jobs), 0
        while left:
            done, left = wait(left, timeout=0.5, return_when="FIRST_COMPLETED")
            for future in sorted(done, key=list(jobs).index):
                future.result()
                count += 1
                row, name = jobs[future]
                say(f"{count:3} of {len(jobs)}  {row.setting.name}: {name} {row.outcomes[name]}")
            tell(f"{count} of {len(jobs)} checks done")
    except KeyboardInterrupt:
        with run.lock:
            run.stop.set()
            for child in run.children:
                _end(child, signal.SIGINT)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def perform(run: Run, row: Row, name: str) -> None:
    """One check, in a process of its own; its output goes into a file."""
    outcome = row.outcomes[name]
    if row.read != row.setting.reads_back:
        outcome.state = "no verdict"
        return
    log = run.folder / f"{row.setting.name} {name}.txt".replace(" ", "-")
    started = time.perf_counter()
    with log.open("wb") as file:
        with run.lock:
            if run.stop.is_set():
                return
            child = subprocess.Popen(
                [sys.executable, "-m", *row.checks[name]],
                env=row.setting.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            run.children.add(child)
        code = _code(run, child)
    run.children.discard(child)
    outcome.seconds, outcome.log = time.perf_counter() - started, log
    if run.stop.is_set() and code != 0:  # 1 may be a program's way to say that it was interrupted
        outcome.state = "stopped"
        return
    outcome.code = code
    outcome.state = {0: "ok", 1: "FAILS"}.get(code, "no verdict")


def _code(run: Run, child: subprocess.Popen[bytes]) -> int:
    """The exit code, of a child that is killed when it takes too long, or too long to stop."""
    end = time.monotonic() + LIMIT
    while True:
        try:
            return child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if run.stop.is_set():
                end = min(end, time.monotonic() + GRACE)
            if time.monotonic() > end:
                _end(child, signal.SIGKILL)


def _end(child: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Signal a child and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, how)


# -- what it says -----------------------------------------------------------------------------------------------------


def show(run: Run, console: Console, wall: float) -> None:
    """What does not hold, with the command that shows it alone; the table; the verdict comes last."""
    for row, name, outcome in run.outcomes:
        if outcome.state not in ("FAILS", "no verdict"):
            continue
        if outcome.log is None:
            console.print(f"{row.setting.name}: asked for {row.setting.reads_back}, read back {row.read or 'nothing'}")
            continue
        command = shlex.join(["python", "-m", *row.checks[name]])
        tail = outcome.log.read_text("utf-8", errors="replace").rstrip().splitlines()[-SHOWN:]
        console.print(f"\n[bold red]{row.setting.name}: {name} ends with exit code {outcome.code}[/]")
        console.print(*(f"  {line[:CLIPPED]}" for line in tail), sep="\n", markup=False, soft_wrap=True)
        console.print(f"  whole    {outcome.log}", markup=False, soft_wrap=True)
        console.print(f"  alone    {row.setting.prefix} {command}", markup=False, soft_wrap=True)
    names = list(dict.fromkeys(name for row in run.rows for name in row.checks))
    table = terminal.table(("asked", "read back", *names, "seconds"), left=("asked", "read back", *names))
    for row in run.rows:
        cells = [str(row.outcomes[name]) if name in row.checks else "not for this" for name in names]
        seconds = sum(o.seconds for o in row.outcomes.values())
        table.add_row(row.setting.name, row.read or "?", *(_coloured(c) for c in cells), f"{seconds:.0f}")
    console.print()
    console.print(table)
    if "memory" not in names:
        console.print("memory: not checked, for memray is not installed here", style="yellow")
    console.print(verdict(run, wall))


def _coloured(text: str) -> str:
    return f"[bold red]{text}[/]" if text.startswith(("FAILS", "no verdict")) else text


def verdict(run: Run, wall: float) -> str:
    """The last line."""
    states = [o.state for _, _, o in run.outcomes]
    count = {state: states.count(state) for state in ("FAILS", "no verdict", "ok")}
    bad = [f"{count[state]} of {len(states)} checks: {state}" for state in ("FAILS", "no verdict") if count[state]]
    if run.interrupted:
        bad.append(f"interrupted, {count['ok'] + count['FAILS']} of {len(states)} checks came to an end")
    if bad:
        return f"[bold {'red' if count['FAILS'] or count['no verdict'] else 'yellow'}]{'; '.join(bad)}[/]; {wall:.0f} s"
    return f"[bold green]the same verdict everywhere[/]: {len(states)} checks in {len(run.rows)} settings; {wall:.0f} s"
