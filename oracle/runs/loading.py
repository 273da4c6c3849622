"""Does another needle's DataLoader hand out each row once? No case uses it, because its data are the oracle's."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from oracle.apart import home
from oracle.blame.entry import RAISES, WRONG, Entry, run
from oracle.systems.candidate import candidate
from oracle.systems.ours.model import Array, array_of
from oracle.systems.ours.phase import lines_of
from oracle.systems.source import line_in

_PROGRAM = """import numpy as np
import needle as ndl
import needle.data

class Rows:
    def __init__(self, *arrays):
        self.arrays = arrays

    def __len__(self):
        return len(self.arrays[0])

    def __getitem__(self, i):
        return tuple(a[i] for a in self.arrays)

np.random.seed(0)
rows = Rows(np.arange({twice}, dtype="float32").reshape({rows}, 2), np.arange({rows}))
loader = ndl.data.DataLoader(rows, batch_size={size}, shuffle={shuffle})
for epoch in range(2):
    print([batch[1].numpy().tolist() for _, batch in zip(range({most}), loader)])
"""
# rows, of a batch, shuffled: with a rest, without one, with fewer rows than a batch has, row by row; in 20! orders none comes twice
TRIED = ((7, 3, False), (6, 3, False), (3, 5, False), (3, 1, False), (20, 6, False), (20, 6, True))
Batches = Sequence[tuple[Array, Array]]  # of an epoch: row i of the data set is (2i, 2i + 1), its label i


def wrong(epochs: Sequence[Batches], rows: int, size: int, shuffle: bool) -> str:
    """What is wrong with the batches of two epochs; empty if nothing is."""
    plain, right = list(range(rows)), sizes(rows, size)
    orders = []
    for nth, batches in zip(("", "in the second epoch "), epochs, strict=True):
        found = [len(y) if y.ndim else 0 for _, y in batches]
        if found != right:
            lost = "the last batch is lost" if found == right[:-1] else f"gives batches of {found} rows, not {right}"
            return nth + (lost if found else "gives no batch at all")
        for x, y in batches:
            if (x.shape, y.shape) != ((len(y), 2), (len(y),)):
                return f"{nth}gives batches of shapes {x.shape} and {y.shape} for rows of shape (2,) with a label each"
            if not np.array_equal(x, np.stack([2 * y, 2 * y + 1], 1)):
                return f"{nth}gives rows with the labels of others"
        orders.append([int(label) for _, y in batches for label in y])
        if sorted(orders[-1]) != plain:
            return f"{nth}gives some rows more than once and others never"
        if (orders[-1] == plain) == shuffle:
            return nth + ("does not shuffle" if shuffle else "gives rows in another order than that of the data set")
    return "gives the same order in each epoch" if shuffle and orders[0] == orders[1] else ""


def sizes(rows: int, size: int) -> list[int]:
    """How many rows each batch of an epoch has: the last one what is left."""
    return [min(size, rows - i) for i in range(0, rows, size)]


def look(ndl: Any) -> list[Entry]:
    """What is wrong without shuffling, the first of it; and with it, where the same rows show something else than without."""
    found: list[Entry] = []
    before = ""
    for rows, size, shuffle in () if absent() else TRIED:
        place, severity = line_in(ndl.data.DataLoader, "__iter__", "__next__"), WRONG
        try:
            about = wrong(_epochs(ndl, rows, size, shuffle), rows, size, shuffle)
        except Exception as error:
            about, severity = f"raises {type(error).__name__}", RAISES
            place = next(iter(lines_of(error.__traceback__, home(ndl))), place)
        if about and (about != before if shuffle else not found):
            sentence = f"DataLoader(data, batch_size={size}{', shuffle=True' * shuffle}) on {rows} rows: {about}"
            text = _program(rows, size, shuffle)
            printed, raised = run(text)
            exact = f"batches of {sizes(rows, size)} rows, each row once, {'shuffled anew' if shuffle else 'in order'} in both epochs"
            theirs = raised or printed.strip().replace("\n", ", then ")
            found.append(Entry(f"DataLoader: {about}", severity, sentence, place, text, theirs, exact=exact))
        before = about
    return found


def absent() -> str:
    """Why the needle under test has no DataLoader of the course; empty if it has one, right or wrong."""
    ndl = candidate()
    try:
        importlib.import_module(f"{ndl.__name__}.data")
        _epochs(ndl, *TRIED[0])
    except Exception as error:
        inside = lines_of(error.__traceback__, home(ndl)) and not isinstance(error, NotImplementedError)
        return "" if inside else f"{type(error).__name__}: {error}"
    return ""


def _program(rows: int, size: int, shuffle: bool) -> str:
    return _PROGRAM.format(rows=rows, twice=2 * rows, size=size, shuffle=shuffle, most=rows + 1)


def _epochs(ndl: Any, rows: int, size: int, shuffle: bool) -> list[Batches]:
    space: dict[str, Any] = {"__name__": "program"}
    exec(compile(_program(rows, size, shuffle).partition("for epoch")[0], "program", "exec"), space)
    # it need not end, here and in the program: one batch more than there can be is too many
    return [[(array_of(x), array_of(y)) for x, y in itertools.islice(space["loader"], rows + 1)] for _ in range(2)]
