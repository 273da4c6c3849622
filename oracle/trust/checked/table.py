"""``calibrate --check``: false alarms of `oracle.check` on correct pairs, and the faults that it finds."""

from __future__ import annotations

import time
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from oracle import check, files
from oracle.check.arrays import array
from oracle.check.comparing import compared
from oracle.check.drawing import length, numbers
from oracle.check.ops import Trial
from oracle.commands import command, meant
from oracle.exits import ExitCode, decided, saved
from oracle.pages import terminal
from oracle.pages.markdown import table as markdown_table
from oracle.trust.checked.pairs import PAIRS, Pair, of_library
from oracle.trust.checked.power import faults

PAGE = Path("reports/check.md")
# Who else is asked, on the same arrays against torch's float32: name -> (rtol, atol)
FIXED = {
    "assert_close (1.3e-6, 1e-5)": (1.3e-6, 1e-5),
    "rtol 1e-5, atol 0": (1e-5, 0.0),
    "allclose (1e-5, 1e-8)": (1e-5, 1e-8),
    "1e-4, 1e-5": (1e-4, 1e-5),
    "1e-3, 1e-4": (1e-3, 1e-4),
    "1e-3, 1e-3": (1e-3, 1e-3),
}
MEASURED = "measured"


@dataclass
class Outcome:
    """What came of a pair on one kind of inputs."""

    pair: Pair
    kind: str
    share: float
    flagged: dict[str, bool]
    message: str = ""
    by_torch: bool = False  # torch's own float32 is beyond the limit
    tensors: int = 0


@dataclass
class Tally:
    """Cases and how many were flagged, by who judged them."""

    cases: int = 0
    flagged: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, outcome: Outcome) -> None:
        self.cases += 1
        for who, flag in outcome.flagged.items():
            self.flagged[who] += flag

    def share(self, who: str) -> str:
        """Of the cases, how many were flagged."""
        return f"{self.flagged[who] / self.cases:.1%}" if self.cases else "–"


def judged(pair: Pair, kind: str, seed: int, early: bool = False) -> Outcome:
    """One pair on one kind of inputs."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{pair.name} {pair.way} {kind}".encode())])
    given = [
        numbers(rng.bytes(length(x, np.float32)), x, kind, np.float32) if isinstance(x, tuple) else x
        for x in pair.inputs
    ]
    trial = Trial(pair.candidate, pair.torch_fn, pair.inputs, "float32", None, check.LIMIT)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        mine, program, _ = trial.paired(given, trial.outputs(given), rng.bytes)
        flagged, message = {}, ""
        try:
            agreement = compared(mine, program, check.LIMIT, early=early)
            share, by_torch = float(agreement), bool(agreement.findings)
        except check.Difference as difference:
            share, message, by_torch = difference.share, str(difference), False
        flagged[MEASURED] = bool(message)
        peer = {n: array(t)[0] for n, t in program().items()}
        ours = {n: array(v if v is not None else np.zeros(peer[n].shape))[0] for n, v in mine.items()}
        for name, (rtol, atol) in FIXED.items():
            flagged[name] = not all(
                np.shape(ours[n]) == t.shape and np.allclose(ours[n], t, rtol, atol, equal_nan=True)
                for n, t in peer.items()
            )
    return Outcome(pair, kind, share, flagged, message, by_torch, len(mine))


def outcomes(pairs: Sequence[Pair], seed: int) -> Iterator[Outcome]:
    """All pairs on all of their kinds."""
    for pair in pairs:
        for kind in pair.kinds:
            yield judged(pair, kind, seed)


def planted(seed: int) -> Iterator[tuple[str, Outcome]]:
    """All faults on all kinds on which they are one: further from the truth than the noise moves it (a share of 1 in 16)."""
    for fault in faults():
        for kind in fault.pair.kinds:
            outcome = judged(fault.pair, kind, seed, early=True)
            if outcome.flagged[MEASURED] or outcome.share > 1:
                yield fault.kind, outcome


def calibrate(*, seed: int, accept: bool, names: Sequence[str] = ()) -> int:
    """Run, print and write the tables; 0 no false alarm, 1 some, 2 no such pair."""
    console = terminal.console()
    known = [*PAIRS, *of_library("jax")]
    pairs = [p for p in known if not names or p.name in names]
    if not pairs:
        console.print(", ".join(dict.fromkeys(p.name for p in known)), markup=False)
        return ExitCode.USAGE
    started = time.perf_counter()
    torch.manual_seed(seed)
    honest: list[Outcome] = []
    with terminal.progress(console) as show:
        for i, pair in enumerate(pairs):
            show(pair.name, i, len(pairs))
            honest += outcomes([pair], seed)
    power: dict[str, Tally] = defaultdict(Tally)
    if not names:
        for kind, outcome in planted(seed):
            power[kind].add(outcome)
    alarms = [o for o in honest if o.flagged[MEASURED]]
    for o in alarms:
        console.print(f"{o.pair.name}, {o.pair.way}, {o.kind}:\n{o.message}", markup=False, soft_wrap=True)
    page = PAGE if accept else meant(Path("reports/latest")) / PAGE.name
    if not names:
        with nullcontext() if accept else saved(str(page)):
            files.save(page, markdown(honest, power, seed))
    console.print(
        f"{len(alarms)} false alarms in {len(honest):,} cases of {len(pairs)} pairs, largest share "
        f"{largest(honest):.1f} of {check.LIMIT:g}; {time.perf_counter() - started:.0f} s; {page}"
    )
    return decided(part=alarms, harness=[], interrupted=False)


def largest(honest: Sequence[Outcome]) -> float:
    """The largest share, where torch itself is within the limit: beyond it, what both make counts as the limit."""
    return max((o.share for o in honest if not o.by_torch), default=0.0)


def markdown(honest: Sequence[Outcome], power: dict[str, Tally], seed: int) -> str:
    """Both tables as a page."""
    alarms = [o for o in honest if o.flagged[MEASURED]]
    pairs = {(o.pair.name, o.pair.way) for o in honest}
    whole = Tally()
    for o in honest:
        whole.add(o)
    lines = [
        "# How far `oracle.check` can be trusted",
        "",
        f"`{command('calibrate', check=True)}` holds correct implementations to torch, and plants faults (seed {seed}). Each pair "
        "takes all kinds of inputs on which it is defined.",
        "",
        f"- pairs: **{len(pairs)}** of {len({o.pair.name for o in honest})} functions; cases: **{len(honest):,}**, "
        f"tensors {sum(o.tensors for o in honest):,}",
        f"- false alarms: **{len(alarms)}**; largest share of the limit: **{largest(honest):.1f} of {check.LIMIT:g}**, where "
        "torch itself stays within",
        f"- cases in which torch's own float32 is beyond the limit: {sum(o.by_torch for o in honest)}; an error that it makes too is none",
        "",
        "## Correct cases that are flagged, and faults that are found",
        "",
        "Everybody judges the same arrays; the fixed tolerances against torch's float32, as a test would. A fault counts on "
        "inputs on which it errs by more than the noise moves the truth (a sixteenth of the limit).",
        "",
    ]
    total = Tally()
    for tally in power.values():
        total.cases += tally.cases
        for who, n in tally.flagged.items():
            total.flagged[who] += n
    judges = [MEASURED, *FIXED]
    rows = [(w, whole.share(w), total.share(w)) for w in judges]
    heads = ("judge", f"correct ({whole.cases:,}), flagged", f"faulty ({total.cases:,}), found")
    lines += [*markdown_table(heads, rows, ("judge",)), "", "## Found, by kind of fault", ""]
    by_kind = [(k, str(t.cases), *(f"{t.flagged[w] / t.cases:.0%}" for w in judges)) for k, t in power.items()]
    lines += [*markdown_table(("fault", "cases", *judges), by_kind, ("fault",)), ""]
    lines += ["## Pairs", "", "The largest share of the limit, over all kinds of inputs.", ""]
    worst: dict[tuple[str, str], Outcome] = {}
    for o in honest:
        key = (o.pair.name, o.pair.way)
        if key not in worst or o.share > worst[key].share:
            worst[key] = o
    rows_ = [
        (n, w, f"{o.share:.1f}" if o.share < check.LIMIT or not o.by_torch else "as far off as torch", o.kind)
        for (n, w), o in worst.items()
    ]
    lines += markdown_table(("torch", "against", "share of 16", "on"), rows_, ("torch", "against", "on"))
    return "\n".join([*lines, ""])
