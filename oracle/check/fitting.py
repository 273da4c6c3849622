"""Which sizes torch takes: a kernel is no larger than what it goes over, two factors fit each other."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch

from oracle.apart import FORKS, Broken, Died, apart, begin, tell

Choices = dict[str, tuple[int, ...]]
Leading = tuple[int, ...]
Sizes = tuple[dict[str, int], Leading]


def key(sizes: Sizes) -> tuple[int, ...]:
    """Sizes as what can be looked up."""
    return (*sizes[0].values(), -1, *sizes[1])


class Fitting:
    """Sizes by name, and what ``...`` stands for: any, as long as torch has refused none. Afterwards those of which torch alone,
    asked before any numbers are compared, has taken the shapes; most of them without a size of 1, where much that is wrong is
    right.

    names: the sizes that each name may have, the one of the first draw in front. takes: whether torch takes such shapes.
    enough: so many are looked for.

    Torch is asked in a forked process: a kernel may trust what it has not looked at, and end the process (GRU's does, on the CPU, where
    weights have too few rows). ``deadly`` has the sizes with which it did, and those that were not tried after that.
    """

    MOST = 400  # questions: some 20 µs each, for most functions
    DEATHS, OF_SHORT = (
        3,
        2,
    )  # after so many processes that ended it is asked no more, of a size of 1 or 0: each takes 40 ms

    def __init__(
        self, names: Choices, leads: Sequence[Leading], takes: Callable[[Sizes], bool], enough: int, seed: int
    ) -> None:
        self.names, self.leads, self.takes = names, list(leads) or [()], takes
        self.enough, self.seed = enough, seed
        self.asked = self.taken = 0
        self._found: list[Sizes] | None = None
        self._varied: list[Sizes] = []
        self._answers = (
            ""  # to all questions, in their order, which is the same each time: 1, 0, or x for what is not to be tried
        )
        self._at = self._deaths = 0
        self.deadly: set[tuple[int, ...]] = set()
        self._others: Iterator[Sizes | None] | None = None

    def varied(self, draws: int) -> list[Sizes]:
        """Sizes for so many draws: each name takes all of its sizes in turn, in an order of its own."""
        rng = random.Random(self.seed)
        orders = {n: rng.sample(some, len(some)) for n, some in self.names.items()}
        leads = rng.sample(self.leads, len(self.leads))
        self._varied = [self.first] + [
            ({n: some[i % len(some)] for n, some in orders.items()}, leads[i % len(leads)]) for i in range(1, draws)
        ]
        return self._varied

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
            self._found = self._asked_apart() if self.names or len(self.leads) > 1 else []
        return self._found

    @property
    def rare(self) -> bool:
        """Whether most of what is drawn would be refused."""
        return self.taken * 3 < self.asked

    @property
    def unlike(self) -> Sizes:
        """Of what torch takes, that in which most sizes differ; `first` if there is nothing."""
        return self._unlike(self.found)

    def _unlike(self, found: list[Sizes]) -> Sizes:
        return max(found, key=lambda s: (_large(s), len(set(s[0].values())), sum(s[0].values())), default=self.first)

    def _asked_apart(self) -> list[Sizes]:
        """Asks until a process lives to the end; one that died told all answers before that."""
        forked = FORKS and not torch.cuda.is_initialized()
        for _ in range(self.DEATHS + 1 if forked else 0):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of Python, about forks beside threads
                    self._answers = apart(self._all_answers, heard=bytearray())
                break
            except Died as death:
                self._answers = death.doing + "x"
                self._deaths += 1
            except (Broken, OSError):  # it cannot be asked there
                break
        return self._ask_all()

    def _all_answers(self) -> str:
        torch.set_num_threads(1)  # a pool of threads does not come along
        self._ask_all()
        return self._answers

    def _ask_all(self) -> list[Sizes]:
        """What may be drawn, too: the draws that are left, and empty arrays with what they are compared with."""
        self._at = self.asked = self.taken = 0
        for sizes in self._varied:
            self._takes(sizes)
        found = self._search()
        drawn, leading = self._unlike(found)
        for name, size in itertools.product(self.names, (0, 1, 2)):
            self._takes((drawn | {name: size}, leading))
        return found

    def _takes(self, sizes: Sizes) -> bool:
        """Whether torch takes sizes, as it has answered before."""
        at, self._at = self._at, self._at + 1
        if at == len(self._answers):
            short = min(sizes[0].values(), default=2) < 2  # what is taken for any other size is mostly 1
            if self._deaths >= (self.OF_SHORT if short else self.DEATHS):
                self._answers += "x"
            else:
                begin()
                tell(self._answers)
                self._answers += "01"[self.takes(sizes)]
        if self._answers[at] == "x":
            self.deadly.add(key(sizes))
        return self._answers[at] == "1"

    def _search(self) -> list[Sizes]:
        rng = random.Random(self.seed)
        seen: set[tuple[int, ...]] = set()
        large: list[Sizes] = []
        small: list[Sizes] = []
        for i in range(self.MOST):
            near = large or small
            sizes = self._beside(rng.choice(near), rng) if near and i % 2 else self._any(rng, ones=i % 8 == 0)
            if key(sizes) in seen:
                continue
            seen.add(key(sizes))
            self.asked += 1
            if self._takes(sizes):
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
