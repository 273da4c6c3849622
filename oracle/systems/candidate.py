"""The needle under test, ours or the one of ``--needle DIR``: its import runs whatever is written there.

So it is imported by `candidate`, in the processes that run it, and nowhere else: the process that decides and writes only
knows where it lies. One trial at the start, in a child, says whether it can be imported at all, and brings home what it
was compiled to: all children of a run have the same needle, also while somebody edits it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import marshal
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from oracle import apart, exits
from oracle.apart import Broken, Died, is_interrupt, one_line, plain
from oracle.commands import CARRIED
from oracle.systems.foreign import ForeignError, recognise
from oracle.systems.surroundings import around_an_import

_folder: Path | None = None  # that holds the package, where it is not ours
_compiled: dict[str, tuple[str, bytes]] = {}  # module -> its file, and what that was compiled to


def choose(folder: Path | None) -> None:
    """Which needle is under test: the one in a folder, or ours. ForeignError if it cannot be imported."""
    global _folder
    if folder is not None:
        package = folder / "needle"
        if not (package / "__init__.py").is_file():
            raise ForeignError(f"--needle {folder}: there is no package {package}; name the folder that holds needle/")
        _folder = folder.resolve()
    what = "needle" if folder is None else f"--needle {folder}"
    if "needle" in sys.modules:
        if folder is not None:
            raise ForeignError("another needle has been imported already")
        return
    try:
        compiled, why = apart.apart(_tried, folder, patience=exits.IMPORT_SECONDS, heard=bytearray())
    except Died as death:
        raise ForeignError(f"{what}: cannot be imported: its import {death.how}") from None
    except Broken as error:  # what it gives cannot be handed over, or worse
        raise ForeignError(f"{what}: cannot be imported: {error}") from None
    if why:
        raise ForeignError(f"{what}: {why}")
    _compiled.update(compiled)


def chosen() -> Path | None:
    """The folder of the needle under test, where it is not ours."""
    return _folder


def _tried(folder: Path | None) -> tuple[dict[str, tuple[str, bytes]], str]:
    """In a child: what the modules of needle were compiled to, and why it cannot be imported, or ""."""
    try:
        found = candidate()
    except ForeignError as error:
        return {}, plain(str(error))
    where = Path(str(found.__file__)).resolve()
    if folder is not None and (folder / "needle").resolve() not in where.parents:
        return {}, f"Python imports needle from {where.parent} instead"
    return _compiled, ""


def candidate() -> Any:
    """The needle under test. It is imported by the first call, which belongs into a process of `oracle.apart`.

    ForeignError if its import raises anything at all, ``sys.exit(0)`` too.
    """
    if "needle" in sys.modules:
        return sys.modules["needle"]
    sys.meta_path.insert(0, _Remembering())
    folder = _where()
    if folder is not None:
        sys.path.insert(0, str(folder))
    before = around_an_import()
    try:
        import needle
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise ForeignError(f"cannot be imported: {plain(type(error).__name__)}: {one_line(error)}") from error
    finally:
        before.restore()  # what an import changes is no finding, and must not change what is judged
    if _folder is not None:
        try:
            recognise(needle)
        except Exception as error:
            raise ForeignError(f"not the needle of the course: {one_line(error)}") from error
    return needle


def _where() -> Path | None:
    """The folder of the needle under test, or None where it is ours, in a clone, and Python finds it by itself."""
    return _folder if _folder is not None else CARRIED if CARRIED.is_dir() else None


def home() -> str:
    """The folder of the package under test; nothing is imported for it."""
    if "needle" in sys.modules:
        return apart.home(sys.modules["needle"])
    folder = _where()
    if folder is not None:
        return str((folder / "needle").resolve())
    spec = importlib.util.find_spec("needle")
    return str(Path((spec and spec.origin) or "nowhere/x").resolve().parent)


def is_inside(file: str) -> bool:
    """Whether a file belongs to the package under test."""
    return os.path.abspath(file).startswith(os.path.join(home(), ""))


class _Remembering:
    """Finds the modules of needle as Python does, and has them compiled once in a run."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """The spec that Python finds, with another loader for a file of source."""
        if name.partition(".")[0] != "needle":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _Loader(name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        """What the file was compiled to when it was imported first."""
        file, known = _compiled.get(fullname, ("", b""))
        if file == self.path:
            code: CodeType = marshal.loads(known)
            return code
        found: CodeType | None = super().get_code(fullname)
        if found is not None:
            _compiled[fullname] = self.path, marshal.dumps(found)
        return found
