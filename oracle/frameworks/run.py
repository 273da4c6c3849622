"""The command: all rows, the table on the screen, and the page in HTML and Markdown."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from oracle import files
from oracle.check.measuring import LIMIT
from oracle.commands import command, meant
from oracle.exits import ExitCode, decided, saved
from oracle.frameworks import programs
from oracle.frameworks.judging import NOT_RUN, Outcome, judged
from oracle.frameworks.libraries import LIBRARIES, missing, version
from oracle.frameworks.pairs import AGREES, CONVENTION, DIFFERS, Pair
from oracle.frameworks.table import PAIRS
from oracle.pages import terminal
from oracle.pages.markdown import table as markdown_table
from oracle.pages.templates import render

TITLE = "How six libraries differ from PyTorch, by more than rounding"
FOLDER, NAME = Path("reports"), "frameworks"
SHORT = 96  # letters of an expression in a table


@dataclass
class Run:
    """What is known so far."""

    asked: Sequence[Pair]
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def interrupted(self) -> bool:
        """Whether rows are missing."""
        return len(self.outcomes) < len(self.asked)

    def of(self, claim: str, library: str = "") -> list[Outcome]:
        """The rows that are what the table calls ``claim``."""
        return [o for o in self.outcomes if o.verdict == claim and library in ("", o.pair.library)]

    @property
    def unexpected(self) -> list[Outcome]:
        """Rows that are not what the table says."""
        return [o for o in self.outcomes if not o.as_claimed]

    @property
    def not_borne_out(self) -> list[Outcome]:
        """Differences that their own program does not show."""
        return [o for o in self.outcomes if o.shown is not None and o.shown.problem]


def frameworks(*, seed: int, accept: bool, libraries: Sequence[str] = (), names: Sequence[str] = ()) -> int:
    """Run, print and write; 0 all is as the table says, 1 something is not, 2 no such row, 4 a difference that its program does
    not show, 5 no library is installed, 130 interrupted.
    """
    console = terminal.console()
    pairs = [p for p in PAIRS if not libraries or p.library in libraries]
    pairs = [p for p in pairs if not names or any(name in p.ours or name in p.torch for name in names)]
    if not pairs:
        console.print(f"no such row; libraries are {', '.join(LIBRARIES)}", markup=False)
        return ExitCode.USAGE
    run = Run(pairs, seed)
    started = time.perf_counter()
    stopped = False
    try:
        with terminal.progress(console, every=50) as show:
            for i, pair in enumerate(pairs):
                show(f"{pair.library}: {short(pair.ours, 60)}", i, len(pairs))
                run.outcomes.append(looked_at(pair, seed))
    except KeyboardInterrupt:
        stopped = True
    run.seconds = time.perf_counter() - started
    folder = FOLDER if accept and not stopped and not (libraries or names) else meant(FOLDER / "latest")
    with nullcontext() if accept else saved(str(folder)):
        files.save(folder / f"{NAME}.md", markdown(run))
        files.save(folder / f"{NAME}.html", page(run))
    for outcome in (*run.unexpected, *run.not_borne_out):
        console.print(told(outcome), markup=False, soft_wrap=True)
    console.print(f"{verdict(run)}; {run.seconds:.0f} s; {folder / NAME}.html", markup=False)
    return decided(
        part=run.unexpected,
        harness=run.not_borne_out,
        interrupted=stopped,
        no_verdict=all(o.state == NOT_RUN for o in run.outcomes),
    )


def looked_at(pair: Pair, seed: int) -> Outcome:
    """A row, and its program run if there is a difference to show."""
    torch.manual_seed(seed)
    outcome = judged(pair, seed)
    if outcome.shown is not None:
        programs.run(pair, outcome.shown)
    return outcome


def told(outcome: Outcome) -> str:
    """A row that is not as it should be, with the program that shows it."""
    lines = [f"{outcome.pair.library}: {outcome.pair.ours}  against  {outcome.pair.torch}: {outcome.verdict}"]
    if outcome.shown is not None:
        lines += [outcome.shown.problem, outcome.shown.program, outcome.shown.printed]
    return "\n".join(line for line in lines if line)


def verdict(run: Run) -> str:
    """The last line."""
    counts = Counter(o.state if o.state == NOT_RUN else o.verdict for o in run.outcomes)
    words = [
        f"{counts[c]} {w}" for c, w in ((AGREES, "agree"), (CONVENTION, "differ by convention"), (DIFFERS, "differ"))
    ]
    words += [f"{counts[NOT_RUN]} not run"] if counts[NOT_RUN] else []
    words += [f"{len(run.unexpected)} not as the table says"] if run.unexpected else []
    words += [f"{len(run.not_borne_out)} not shown by their program"] if run.not_borne_out else []
    head = (
        f"interrupted after {len(run.outcomes)} of {len(run.asked)} pairs"
        if run.interrupted
        else f"{len(run.asked)} pairs"
    )
    return f"{head}: {', '.join(words)}"


# -- the page -------------------------------------------------------------------------------------------------------------


def short(text: str, most: int = SHORT) -> str:
    """The beginning of an expression."""
    return text if len(text) <= most else text[: most - 1] + "…"


def number(x: Any) -> str:
    """As float32 has it."""
    return f"{float(x):.7g}"


def summary(run: Run) -> list[list[str]]:
    """A row a library: pairs, agree, differ by convention, differ, not run."""
    rows = []
    for name, library in LIBRARIES.items():
        own = [o for o in run.outcomes if o.pair.library == name]
        if own:
            counts = [sum(o.verdict == c for o in own) for c in (AGREES, CONVENTION, DIFFERS)]
            left = sum(o.state == NOT_RUN for o in own)
            rows.append([library.title, version(name), *map(str, (len(own), *counts, left)), missing(name)])
    return rows


HEADINGS = ("library", "version", "pairs", "agree", "by convention", "differ", "not run", "why not")


def facts(run: Run) -> list[str]:
    """How it came about."""
    cases = sum(o.cases for o in run.outcomes)
    largest = max((o.share for o in run.outcomes if o.state == AGREES and o.torch <= LIMIT), default=0.0)
    return [
        f"{len(run.outcomes)} pairs, {cases:,} cases (values and gradients), seed {run.seed}, torch {version('torch')}; "
        f"made again by {command('frameworks', accept=True)}.",
        "Whether they agree is decided by oracle.check: the tolerance is what rounding noise in the torch program moves, "
        f"{LIMIT:g} times. Pairs that agree use at most {largest:.1f} of {LIMIT:g}, where torch itself stays within.",
        "Each difference is on inputs as small as they could be made; the program beside it was run by the command, and printed "
        "what stands below it. The right value is that of mpmath with 40 digits, or of the same program in float64.",
    ]


def differences(run: Run, claim: str) -> list[tuple[str, list[Outcome]]]:
    """Rows of a claim, by library; those that are not as the table says come first, of whatever claim."""
    found = [o for o in run.of(claim) if o.shown is not None]
    return [(LIBRARIES[name].title, list(group)) for name, group in itertools.groupby(
        sorted(found, key=lambda o: list(LIBRARIES).index(o.pair.library)), key=lambda o: o.pair.library)]  # fmt: skip


def line_of(outcome: Outcome) -> list[str]:
    """A difference in one line: expression, torch's, at which input, what, yours, torch's, right, why."""
    shown, pair = outcome.shown, outcome.pair
    assert shown is not None
    at = ", ".join(
        f"{name} = {number(a.flat[0])}" if a.size == 1 else f"{name}: {'×'.join(map(str, a.shape))}"
        for name, a in shown.inputs.items()
        if name != "w0"
    )
    what = shown.name.replace("gradient of input", "gradient")
    if what.startswith("gradient"):
        what = "gradient" if len(pair.names) == 1 else f"gradient of {pair.names[int(what.split()[1])]}"
    numbers = [number(v) if v is not None else "–" for v in (shown.ours, shown.torch, shown.right)]
    return [f"`{short(pair.ours)}`", f"`{short(pair.torch)}`", at, what, *numbers, pair.why or "not in the table"]


LINE = ("expression", "torch", "at", "of", "its value", "torch's", "right", "why")


def markdown(run: Run) -> str:
    """The page for a terminal or a forge."""
    lines = [f"# {TITLE}", ""]
    if run.interrupted:
        lines += [
            f"**Interrupted** after {len(run.outcomes)} of {len(run.asked)} pairs: this is what is known so far.",
            "",
        ]
    lines += [f"{verdict(run)}.", "", *itertools.chain.from_iterable((text, "") for text in facts(run))]
    lines += [*markdown_table(HEADINGS, summary(run), ("library", "version", "why not")), ""]
    if run.unexpected:
        lines += ["## Not as the table says", ""]
        lines += [f"- {o.pair.library}: `{o.pair.ours}` against `{o.pair.torch}`: {o.verdict}" for o in run.unexpected]
        lines += [""]
    for title, claim in (("Real differences", DIFFERS), ("Differences by convention", CONVENTION)):
        lines += [f"## {title}", ""]
        for library, found in differences(run, claim):
            lines += [f"### {library}", "", *markdown_table(LINE, map(line_of, found), LINE), ""]
            if claim == DIFFERS:
                for o in found:
                    assert o.shown is not None
                    lines += ["<details><summary><code>" + _escaped(short(o.pair.ours)) + "</code></summary>", ""]
                    lines += [
                        "```python",
                        o.shown.program.rstrip(),
                        "```",
                        "",
                        "```text",
                        o.shown.printed.rstrip(),
                        "```",
                        "",
                        "</details>",
                        "",
                    ]
    lines += ["## All pairs", "", "The largest share of the limit, over all kinds of numbers, where they agree.", ""]
    rows = [
        [o.pair.chapter, o.pair.library, f"`{short(o.pair.ours)}`", f"`{short(o.pair.torch)}`", o.verdict, _share(o)]
        for o in run.outcomes
    ]
    heads = ("chapter", "library", "expression", "torch", "verdict", "share of 16")
    return "\n".join([*lines, *markdown_table(heads, rows, heads[:-1]), ""])


def _share(outcome: Outcome) -> str:
    if outcome.state == NOT_RUN:
        return outcome.why_not
    if outcome.state != AGREES:
        return f"on {', '.join(outcome.where)}"
    return f"{outcome.share:.1f}" if outcome.torch <= LIMIT or outcome.share < LIMIT else "as far off as torch"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def page(run: Run) -> str:
    """The page for a browser."""
    return render(
        Path(__file__).with_name("page.html"),
        title=TITLE,
        run=run,
        verdict=verdict(run),
        facts=facts(run),
        headings=HEADINGS,
        summary=summary(run),
        unexpected=[(o.pair, o.verdict, o.shown) for o in run.unexpected],
        parts=[
            (heading, [(library, [(o, line_of(o)) for o in found]) for library, found in differences(run, claim)])
            for heading, claim in (("Real differences", DIFFERS), ("Differences by convention", CONVENTION))
        ],
        line=LINE,
        rows=[(o, _share(o)) for o in run.outcomes],
        plain=lambda text: text.strip("`"),
    )
