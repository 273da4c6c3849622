"""Which sizes torch takes: a kernel is no larger than what it goes over, two factors fit each other."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

Choices = dict[str, tuple[int, ...]]
Leading = tuple[int, ...]
Sizes = tuple[dict[str, int], Leading]


class Fitting:
    """Sizes by name, and what ``...`` stands for: any, as long as torch has refused none. Afterwards those of which torch alone,
    asked before any numbers are compared, has taken the shapes; most of them without a size of 1, where much that is wrong is
    right.

    names: the sizes that each name may have, the one of the first draw in front. takes: whether torch takes such shapes.
    enough: so many are looked for.
    """

    MOST = 400  # questions: some 20 µs each, for most functions

    def __init__(
        self, names: Choices, leads: Sequence[Leading], takes: Callable[[Sizes], bool], enough: int, seed: int
    ) -> None:
        self.names, self.leads, self.takes = names, list(leads) or [()], takes
        self.enough, self.seed = enough, seed
        self.asked = self.taken = 0
        self._found: list[Sizes] | None = None
        self._others: Iterator[Sizes | None] | None = None

    def varied(self, draws: int) -> list[Sizes]:
        """Sizes for so many draws: each name takes all of its sizes in turn, in an order of its own."""
        rng = random.Random(self.seed)
        orders = {n: rng.sample(some, len(some)) for n, some in self.names.items()}
        leads = rng.sample(self.leads, len(self.leads))
        return [self.first] + [
            ({n: some[i % len(some)] for n, some in orders.items()}, leads[i % len(leads)]) for i in range(1, draws)
        ]

    def another(self) -> Sizes | None:
        """Sizes that torch takes, others each time, as long as there are any."""
        if self._others is None:
            rest = random.Random(self.seed).sample(self.found, len(self.found))
            self._others = itertools.cycle([self.unlike, *rest] if rest else [None])
        return next(self._others)

    @property
    def first(self) -> Sizes:
        """Every name has a size of its own."""
        return {n: some[0] for n, some in self.names.items()}, self.leads[0]

    @property
    def found(self) -> list[Sizes]:
        """What torch takes, the smallest first; looked for once."""
        if self._found is None:
            self._found = self._search() if self.names or len(self.leads) > 1 else []
        return self._found

    @property
    def rare(self) -> bool:
        """Whether most of what is drawn would be refused."""
        return self.taken * 3 < self.asked

    @property
    def unlike(self) -> Sizes:
        """Of what torch takes, that in which most sizes differ; `first` if there is nothing."""
        return max(
            self.found, key=lambda s: (_large(s), len(set(s[0].values())), sum(s[0].values())), default=self.first
        )

    def _search(self) -> list[Sizes]:
        rng = random.Random(self.seed)
        seen: set[tuple[int, ...]] = set()
        large: list[Sizes] = []
        small: list[Sizes] = []
        for i in range(self.MOST):
            near = large or small
            sizes = self._beside(rng.choice(near), rng) if near and i % 2 else self._any(rng, ones=i % 8 == 0)
            key = (*sizes[0].values(), -1, *sizes[1])
            if key in seen:
                continue
            seen.add(key)
            self.asked += 1
            if self.takes(sizes):
                self.taken += 1
                (large if _large(sizes) else small).append(sizes)
            if len(large) >= self.enough:
                break
        few = small[: max(1, len(large) // 4)] if large else small
        return sorted(large + few, key=lambda s: (len(s[1]), sum(s[0].values())))

    def _any(self, rng: random.Random, ones: bool) -> Sizes:
        drawn = {n: rng.choice([k for k in some if ones or k > 1]) for n, some in self.names.items()}
        return drawn, rng.choice(self.leads)

    def _beside(self, sizes: Sizes, rng: random.Random) -> Sizes:
        """The same but for one name, or for ``...``."""
        drawn, leading = sizes
        name = rng.choice([*self.names, ""])
        if not name:
            return drawn, rng.choice(self.leads)
        return drawn | {name: rng.choice(self.names[name])}, leading


def _large(sizes: Sizes) -> bool:
    """Whether no size is 1: there any axis is any other, and a sum is a mean."""
    return all(n > 1 for n in sizes[0].values())
