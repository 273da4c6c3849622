"""Where do the batches of a program come from? The oracle's own arrays, or a DataLoader of needle's over their rows.

Which rows a loader must give is worked out here, by NumPy, from the state of the generator that the user has seeded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from oracle.cases.action import Action, Array, Hands, Plan, Write
from oracle.cases.known import Known
from oracle.operations.drawn import Draw


class Loader(Action, frozen=True, tag="Loader"):
    """``[*DataLoader(NDArrayDataset(x, y), batch_size=rows)]``: from now on the passes take their batches from there.

    The data set has the rows of all batches that are left. "in order" is without shuffling, "shuffled" with it, and from "short" on there is a
    row more, which is a last batch of its own, or, "dropped", is left out by ``drop_last``.
    """

    form: Literal["in order", "shuffled", "short", "dropped"] = "in order"

    weight = 4

    @property
    def words(self) -> str:
        """What it is called."""
        return f"batches of a loader, {self.form}"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Loader:
        """Any form; of a batch of one row, none that is short."""
        return cls(draw.of(_FORMS if plan.rows > 1 else _FORMS[:2]))

    @property
    def more(self) -> int:
        """How many rows there are beside those of whole batches."""
        return int(self.form in ("short", "dropped"))

    @property
    def shuffle(self) -> bool:
        """Whether the rows come in another order."""
        return self.form in ("shuffled", "short")

    def order(self, seed: int, rows: int) -> Array:
        """The rows of the data set in the order in which they must come, the global generator being seeded with that."""
        return np.random.RandomState(seed).permutation(rows) if self.shuffle else np.arange(rows)

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script: there, the batches are in the order already in which the loader must give them."""
        yield "# X and TARGETS have its batches"

    def needle(self, w: Hands) -> None:
        """``DataLoader(…)``."""
        w.load_batches(self)


_FORMS: tuple[Literal["in order", "shuffled", "short", "dropped"], ...] = ("in order", "shuffled", "short", "dropped")
Loader.examples = tuple(Loader(form) for form in _FORMS)
