"""What shows only where the batches of a program come from a DataLoader."""

from __future__ import annotations

from typing import Any

import numpy as np

from needle.autograd import Tensor
from oracle.trust.faults.chapter import Chapter
from oracle.trust.patches import Patch, around

fault = Chapter("program")

LOADER = "batches of a loader"


def _made(change: Any) -> Patch:
    """A loader that is made with other settings than it is given."""

    def init(
        old: Any, self: Any, dataset: Any, batch_size: Any = 1, shuffle: Any = False, drop_last: Any = False
    ) -> None:
        old(self, dataset, *change(batch_size, shuffle, drop_last))

    return around("data.DataLoader.__init__", init)


def _columns(change: Any) -> Patch:
    """What a loader makes of the rows, changed: ``change(column, indices)``."""

    def batch(old: Any, self: Any, indices: Any) -> Any:
        return tuple(change(i, column) for i, column in enumerate(old(self, indices)))

    return around("data.DataLoader._batch", batch)


def _own_generator(old: Any, self: Any) -> Any:
    before = np.random.get_state()
    np.random.seed(0)
    made = old(self)
    np.random.set_state(before)
    return made


def _other_rows(i: int, column: Any) -> Any:
    return Tensor.make_const(column.cached_data[::-1].copy()) if i else column


def _wide(i: int, column: Any) -> Any:
    return Tensor.make_const(column.cached_data.astype(np.float64)) if column.dtype.kind == "f" else column


def _asking(i: int, column: Any) -> Any:
    return Tensor(column.cached_data) if column.dtype.kind == "f" else column


fault(
    "program-loader-shuffle-ignored",
    "a loader does not shuffle",
    LOADER,
    _made(lambda size, shuffle, drop: (size, False, drop)),
)
fault(
    "program-loader-always-shuffles",
    "a loader shuffles although nobody asks for it",
    LOADER,
    _made(lambda size, shuffle, drop: (size, True, drop)),
)
fault(
    "program-loader-drops-last",
    "a loader leaves the last batch out if it is short",
    LOADER,
    _made(lambda size, shuffle, drop: (size, shuffle, True)),
)
fault(
    "program-loader-keeps-last",
    "drop_last is ignored",
    LOADER,
    _made(lambda size, shuffle, drop: (size, shuffle, False)),
)
fault(
    "program-loader-two-by-default",
    "a batch has two rows where no batch_size is given",
    LOADER,
    _made(lambda size, shuffle, drop: (2 if size == 1 else size, shuffle, drop)),
)
fault(
    "program-loader-own-generator",
    "a loader shuffles with a generator of its own",
    LOADER,
    around("data.DataLoader.__iter__", _own_generator),
)
fault(
    "program-loader-labels-of-others",
    "what is beside the rows of a batch is in the other order",
    LOADER,
    _columns(_other_rows),
)
fault("program-loader-float64", "batches are float64", LOADER, _columns(_wide))
fault("program-loader-asks-for-gradients", "batches ask for gradients", LOADER, _columns(_asking))
fault(
    "program-loader-length-of-whole-batches",
    "len() of a loader counts whole batches alone",
    LOADER,
    around("data.DataLoader.__len__", lambda old, self: len(self.dataset) // self.batch_size),
)
fault(
    "program-dataset-copies-first",
    "a data set gives its first row for each index",
    LOADER,
    around("data.NDArrayDataset.__getitem__", lambda old, self, index: old(self, np.zeros_like(index))),
)
