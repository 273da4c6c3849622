"""save and load: a model and what trains it in one ``.npz`` file, without pickle.

The file is a zip of NumPy arrays: ``needle`` (the version of this format), ``model/0.weight``, ``optimizer/u.0``,
``schedule/t``, ``random/keys``, ``extra/epoch`` and so on; ``np.load`` reads it too.

A run that is resumed has the same bits as one that never stopped: the parameters and buffers, the states and settings of
the optimizer, the schedule, and the state of NumPy's global generator, from which Dropout, shuffling and the initialisers
draw. Not kept: the classes and the settings of the layers (the program that loads makes the same model first), the mode
(``train`` or ``eval``), gradients, and how far a DataLoader has come, so save between two epochs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.nn import Module
from needle.optim import Optimizer
from needle.schedules import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["load", "save"]

_FORMAT = 1
_PARTS = {"model": Module, "optimizer": Optimizer, "schedule": Schedule}


def save(
    path: str | os.PathLike[str],
    model: Module,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    **extra: Any,
) -> None:
    """Write a model to a file; with an optimizer (and its schedule) also what is needed to go on training.

    With an optimizer, the state of NumPy's global generator is written too. ``extra``: numbers, texts and arrays by
    name, such as ``epoch=3``, which ``load`` returns. The file is written whole or not at all: what was at ``path`` stays
    until the new file is complete.

    TypeError for what is no model, optimizer or schedule, or cannot be kept without pickle; OSError if the file cannot
    be written.

    >>> import os, tempfile
    >>> from needle import nn
    >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
    >>> save(path, nn.Linear(2, 3), epoch=3)
    >>> load(path, nn.Linear(2, 3))
    {'epoch': 3}
    """
    entries: dict[str, Any] = {"needle": _FORMAT}
    for part, thing in _checked("save", model, optimizer, schedule):
        entries |= {f"{part}/{name}": value for name, value in thing.state_dict().items()}
    if optimizer is not None:
        entries |= _random_state()
    entries |= {f"extra/{name}": value for name, value in extra.items()}
    arrays = {}
    for name, value in entries.items():
        arrays[name] = array = np.asarray(getattr(value, "cached_data", value))
        if array.dtype.kind not in "fiubU" or "\0" in name:
            raise TypeError(
                f"save: {name.split('/', 1)[-1]} must be a number, a text or an array of them, got {value!r}"
            )
    _write(os.path.realpath(os.fspath(path)), arrays)


def load(
    path: str | os.PathLike[str],
    model: Module,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
) -> dict[str, Any]:
    """Read what ``save`` has written into a model of the same shape, and an optimizer and a schedule of the same kind.

    Returns what was saved as ``extra``. With an optimizer, training goes on with the same bits, so NumPy's global
    generator is put back too; without one, only the model is read, whatever else there is, and the generator is left alone.

    Everything is checked first, and after an error nothing has been loaded. ValueError, naming the file, if it is
    damaged, is a pickle or something else that ``save`` has not written, or if a shape, a dtype, the class of the
    optimizer or a setting of the schedule differs; KeyError if a name is missing or unknown, or the file has no
    optimizer, or a schedule that would be forgotten; TypeError for what is no model, optimizer or schedule; OSError if it cannot be read.
    """
    parts = _checked("load", model, optimizer, schedule)
    entries = _read(os.fspath(path))
    puts: list[Callable[[], None]] = []
    for part, thing in parts:
        state = {name[len(part) + 1 :]: value for name, value in entries.items() if name.startswith(part + "/")}
        if part != "model" and not state:
            raise KeyError(f"load: {path} has no {part}; it was saved without one")
        try:
            puts.append(thing._loading(state, exact=True) if isinstance(thing, Module) else thing._loading(state))
        except KeyError as error:
            raise KeyError(f"load: {path}: {error.args[0]}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"load: {path}: {error}") from None
    if optimizer is not None:
        if schedule is None and any(name.startswith("schedule/") for name in entries):
            raise KeyError(
                f"load: {path} has a schedule, which would begin anew: write ndl.load(path, model, optimizer, schedule), or "
                "load the model alone"
            )
        puts.append(_restoring(path, entries))
    for put in puts:
        put()
    return {name[6:]: value if value.ndim else value.item() for name, value in entries.items() if name[:6] == "extra/"}


def _checked(what: str, *things: Any) -> list[tuple[str, Any]]:
    """What is there of model, optimizer and schedule, by name."""
    found = []
    for (part, kind), thing in zip(_PARTS.items(), things, strict=True):
        if thing is None and part != "model":
            continue
        if not isinstance(thing, kind):
            is_class = f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
            raise TypeError(
                f"{what}: {part} must be {'an' if part[0] == 'o' else 'a'} {kind.__name__}, but got {is_class}; "
                f"write ndl.{what}(path, model, optimizer, schedule)"
            )
        found.append((part, thing))
    return found


# -- the state of the generator


def _random_state() -> dict[str, Any]:
    state: Any = np.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        raise TypeError(
            f"save: NumPy's global generator must be MT19937, its usual one, but is {state['bit_generator']}"
        )
    return {
        "random/keys": state["state"]["key"],
        "random/position": state["state"]["pos"],
        "random/has_gauss": state["has_gauss"],
        "random/gauss": state["gauss"],
    }


def _restoring(path: Any, entries: dict[str, Array]) -> Callable[[], None]:
    keys, position, has_gauss, gauss = (entries.get(name, np.array("")) for name in _random_state())
    numbers = all(not v.ndim and v.dtype.kind in "if" for v in (position, has_gauss, gauss))
    if keys.shape != (624,) or keys.dtype != np.uint32 or not numbers or not 0 <= position <= 624:
        raise ValueError(f"load: {path} is damaged: what it has as the state of NumPy's generator is none")
    state = ("MT19937", keys, int(position), int(has_gauss), float(gauss))
    return lambda: np.random.set_state(state)


# -- the file


def _write(path: str, arrays: dict[str, Array]) -> None:
    """Write the arrays beside the file, and then put them in its place."""
    import secrets  # here and below, because importing needle should cost nothing
    import zipfile

    beside = f"{path}.{secrets.token_hex(4)}.part"
    try:
        with open(beside, "xb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with suppress(OSError):
            os.remove(beside)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, path) from None
        raise


def _read(path: str) -> dict[str, Array]:
    """Every array of a file that ``save`` has written, by name; each byte is checked against its checksum."""
    import io
    import zipfile
    import zlib

    with open(path, "rb") as file:
        start = file.read(8)
        if not start.startswith(b"PK"):
            is_a = "is no .npz file"
            if not start:
                is_a = "is empty"
            elif start.startswith(b"\x80"):
                is_a = "looks like a pickle, and loading one runs whatever is in it: write the model anew with ndl.save"
            elif start.startswith(b"\x93NUMPY"):
                is_a = "holds one array (.npy): np.load reads it"
            raise ValueError(f"load: {path} {is_a}")
        arrays: dict[str, Array] = {}
        try:
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    content = io.BytesIO(archive.read(name))
                    if name.removesuffix(".npy") in arrays:
                        raise ValueError(f"there are two of {name}")
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(content, allow_pickle=False)
                    if content.read(1):
                        raise ValueError(f"{name} is longer than it says")
        except (
            EOFError,
            MemoryError,
            NotImplementedError,
            OSError,
            RuntimeError,
            ValueError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            if "Object arrays" in str(error):
                raise ValueError(
                    f"load: {path} holds pickled objects, and loading them runs whatever is in them"
                ) from None
            raise ValueError(f"load: {path} is damaged: {error or type(error).__name__}") from None
    version = arrays.get("needle")
    if version is None:
        raise ValueError(
            f"load: {path} was not written by ndl.save; "
            "if it holds the arrays of a model by name, model.load_state_dict(np.load(path)) reads it"
        )
    if version.ndim or version.dtype.kind not in "iu" or version != _FORMAT:
        raise ValueError(f"load: {path} has the format {version}, but this needle reads the format {_FORMAT}")
    return arrays
