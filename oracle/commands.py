"""Every command that is printed or written down is rendered here, from the options in force: pasted, it does what it says.

`tests/unit/test_commands.py` holds that no other place of oracle builds one.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

LATEST = Path("reports/latest")
ROOT = Path(__file__).resolve().parents[1]
# A wheel of oracle has our needle in here: whoever installs it may have another package of that name, and keeps it.
CARRIED = Path(__file__).resolve().parent / "_carried"
_started = time.perf_counter()
_started_in = Path.cwd()  # where commands are pasted; a needle may well change the working directory


def started_here() -> None:
    """A command starts: paths that it was given, and those that it shows, are meant from here."""
    global _started, _started_in
    _started, _started_in = time.perf_counter(), Path.cwd()


def running() -> float:
    """Seconds since the command has started; Python itself was 0.1 s earlier."""
    return time.perf_counter() - _started


def meant(path: Path) -> Path:
    """The full path of one that was given."""
    return _started_in / path


def in_a_clone() -> bool:
    """Whether this is a clone of the project, and no installed wheel: it has sessions, baselines and tests."""
    return (ROOT / "noxfile.py").is_file()


def called() -> str:
    """How oracle was started: ``oracle`` where its wheel is installed, else ``python -m oracle``."""
    return "oracle" if Path(sys.argv[0]).stem == "oracle" else "python -m oracle"


def session(name: str) -> str:
    """A command without options, as prose names it: ``nox -s faults``."""
    return f"nox -s {name}"


def command(name: str, *words: object, **options: object) -> str:
    """``nox -s replay -- f93132ed --needle 'another needle'``; outside the project's folder, ``oracle replay …``.

    An option that is None, False or the default folder is left out; ``from_=…`` is ``--from``.
    """
    given = [_word(word) for word in words]
    for option, value in options.items():
        if value is None or value is False or (isinstance(value, Path) and shown(value) == str(LATEST)):
            continue
        given.append("--" + option.strip("_").replace("_", "-"))
        if value is not True:
            given.append(_word(value))
    if not (_started_in == ROOT and in_a_clone()):
        return " ".join([called(), name, *given])
    return " ".join([session(name), *(["--"] if given else []), *given])


def _word(value: object) -> str:
    """A word as a shell reads it; paths from where the command was started."""
    text = shown(value) if isinstance(value, Path) else str(value)
    if text.startswith("-"):
        text = f"./{text}"  # a file that is no flag
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)


def shown(path: Path) -> str:
    """A path from where the command was started, in full where it lies elsewhere."""
    whole = meant(path)
    return str(whole.relative_to(_started_in)) if whole.is_relative_to(_started_in) else str(whole)


def keep(path: Path) -> str:
    """Makes a case file one that the tests replay; outside a clone, keeps it from the next run."""
    if not in_a_clone():
        return f"cp {_word(path)} ."
    return f"mv {_word(path)} {_word(ROOT / 'tests' / 'cases')}{os.sep}"


def script(path: Path) -> str:
    """Runs a standalone script with the Python that runs this: it has the numpy and the torch that it needs."""
    return f"{_word(Path(sys.executable))} {_word(path)}"


@dataclass(frozen=True)
class Asked:
    """What the commands of a run have in common: the needle under test and the folder for the cases."""

    needle: Path | None = None  # None is ours
    folder: Path = LATEST

    def replay(self, case: object) -> str:
        """Shows a case, by its digest or its path, on the same needle."""
        return command("replay", case, needle=self.needle, from_=None if isinstance(case, Path) else self.folder)

    def memory(self) -> str:
        """Measures what grows, with who holds it."""
        return command("memory", needle=self.needle, out=self.folder)

    def diff(
        self, seed: int, *, cases: int | None, minutes: float | None = None, digits: bool, keep_going: bool = False
    ) -> str:
        """Runs the same cases again."""
        return command(
            "diff",
            seed=seed,
            cases=cases,
            minutes=None if minutes is None else f"{minutes:g}",
            needle=self.needle,
            no_digits=not digits,
            keep_going=keep_going and self.needle is None,
            no_keep_going=not keep_going and self.needle is not None,  # on another needle, a run keeps going by default
            out=self.folder,
        )
