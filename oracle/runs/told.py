"""How a run on another needle is shown: on a terminal, as Markdown, as a page and as data."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from oracle import commands, files
from oracle.blame.entry import HINT, SEVERITY, Entry
from oracle.cases import fitting
from oracle.exits import ExitCode
from oracle.pages import markdown
from oracle.pages.made import commit, now
from oracle.pages.templates import render
from oracle.systems.foreign import LOADER

AT_LENGTH = 10  # entries that a terminal shows at length; the page has all
WAYS = 3  # in which a mistake shows elsewhere that are named, those of the most cases
TEMPLATE = Path(__file__).with_name("told.html")


def head(console: Console, run: Any) -> None:
    """The verdict, which comes first."""
    bad = run.exit_code == ExitCode.PART
    style = "bold red" if bad else "bold green" if run.exit_code == ExitCode.AGREE else "bold yellow"
    page = (
        f"; the page: {commands.shown(run.plan.folder / 'needle.html')}"
        if run.written or (bad and not run.failures)
        else ""
    )
    for line in textwrap.wrap(
        verdict(run) + page, max(console.width, 40), break_long_words=False, break_on_hyphens=False
    ):
        console.print(line, soft_wrap=True, markup=False, style=style)


def show(console: Console, run: Any) -> None:
    """The entries, the worst first, then what was judged, what differs by design, and what is not offered."""
    width = max(console.width, 40)

    def say(text: str, indent: int = 0, first: int = 0, style: str | None = None) -> None:
        for line in textwrap.wrap(text, width, initial_indent=" " * first, subsequent_indent=" " * indent,
                                  break_long_words=False, break_on_hyphens=False) or [""]:  # fmt: skip
            console.print(line, soft_wrap=True, markup=False, style=style)

    for i, entry in enumerate(run.entries[:AT_LENGTH]):
        console.print()
        number = f"{i + 1}. " if entry.severity < HINT else "hint: "
        say(f"{number}{entry.sentence}", 3, style="bold" if entry.severity < HINT else None)
        for name, text in _lines(entry):
            if name == "program":
                console.print(textwrap.indent(text.rstrip(), "       "), soft_wrap=True, markup=False, style="dim")
            elif name == "again":
                console.print(f"   {name:<7} {text}", soft_wrap=True, markup=False)
            else:
                say(f"{name:<7} {text}", 11, 3)
    if len(run.entries) > AT_LENGTH:
        console.print()
        for i, entry in enumerate(run.entries[AT_LENGTH:], AT_LENGTH):
            say(f"{i + 1}. {entry.sentence} ({entry.place or 'no line'})", 4)
    console.print()
    for name, text in table(run, whole=False):
        say(f"{name:<13} {text}", 14)


def _lines(entry: Entry) -> Iterator[tuple[str, str]]:
    if entry.place:
        yield "at", entry.place
    if entry.program:
        yield "program", entry.program
    for name in ("theirs", "torch", "exact"):
        if getattr(entry, name):
            yield name, getattr(entry, name)
    for text in entry.details:
        if not re.fullmatch(r"(layer )?[\w.]+", text):  # where in the case it was: the program has that
            yield (
                "note",
                text.replace("every node of the tape is right by itself (rule OP)", "each op in it is right by itself"),
            )
    often = f"in {entry.count} case{'s' * (entry.count != 1)}"
    ways = sorted(entry.also.items(), key=lambda way: -way[1])
    named = ways if len(ways) <= WAYS + 1 else ways[:WAYS]
    rest = sum(count for _, count in ways[len(named) :])
    parts = [f"{count} of them as {what}" for what, count in named] + [f"{rest} in other ways"] * bool(rest)
    also = ", ".join(parts)
    # of a case, and not of a look at what no case shows
    if entry.severity < HINT and ("replay" in entry.again or entry.also):
        yield "seen", often + (f": {also}" if also else "")
    if entry.again and entry.severity < HINT:
        yield "again", entry.again


def verdict(run: Any) -> str:
    """One line."""
    code = run.exit_code
    real = [e for e in run.entries if e.severity < HINT]
    total = sum(run.result.cases.values())
    if code == ExitCode.NO_VERDICT:
        why = ", ".join(run.plan.offer.cannot_train) or "nothing could be judged"
        return f"no verdict: {why} {'is not offered, and without it there is no training run' if run.plan.offer.cannot_train else ''}".strip()
    if not real:
        return f"0 findings in {total:,} cases"
    lacking = ", ".join(run.plan.offer.cannot_train)
    untrained = f"; no training run, for {lacking} is not offered" if lacking else ""
    return f"{len(real)} finding{'s' * (len(real) > 1)} in {total:,} cases{untrained}"


# What no case has, each with its reason: the course leaves it open.
NOT_DRAWN = (
    "frozen parameters and those without a gradient (the course's optimizers may update, skip or refuse them); nan and "
    "infinities, NumPy scalars, powers of what is not positive (anything may come of them); other dtypes (layers and "
    "initialisers are float32); programs that freeze, share, replace, copy or load (the course has no word for it); more than "
    f"{fitting.MOST_CLASSES:,} classes (one-hot rows out of np.eye(k) are k × k numbers)"
)
# … and what this one cannot be asked.
NOT_ASKED = {
    fitting.HIGHER: "second and third derivatives (its gradients carry no graph)",
    fitting.PROGRAMS: "programs of several optimizers and settings (the state of an optimizer was not found)",
    fitting.PATHS: f"models with more than {fitting.MOST_PATHS:,} paths (its backward pass takes every one)",
    fitting.SECOND: "programs with a second optimizer (parameters keep the state of theirs themselves)",
    fitting.UNBIASED: "programs with BatchNorm (its running variance is the unbiased one)",
    fitting.BROADCASTING: "operands of different shapes (implicit broadcasting is not the course's)",
}
# What is called otherwise where it is said not to be there.
SAID = {"optimizer clipping": "SGD.clip_grad_norm", fitting.CLIPPED_ADAM: "Adam.clip_grad_norm"}
# What homeworks 1 and 2 ask for.
_OPS = (
    "add add_scalar multiply mul_scalar power_scalar power divide divide_scalar transpose reshape broadcast_to summation "
    "matmul negate log exp relu logsumexp logsoftmax subtract rsub softmax_loss"
)
_LAYERS = (
    "Linear",
    "Linear, no bias",
    "ReLU",
    "Sequential",
    "BatchNorm",
    "LayerNorm",
    "Dropout",
    "Residual",
    "Identity",
    "Flatten",
)
COURSE = {
    *(f"op {name}" for name in _OPS.split()), *(f"layer {name}" for name in _LAYERS), "loss SoftmaxLoss",
    "optimizer SGD", "optimizer Adam", "backward second order", LOADER,
}  # fmt: skip


def table(run: Any, *, whole: bool = True) -> Iterator[tuple[str, str]]:
    """What was judged, what differs by design, what is not offered; ``whole`` says also what is done about it."""
    result, offer = run.result, run.plan.offer
    kinds = {"op": "single operations", "train": "training runs", "program": "programs", "second": "second order"}
    counts = ", ".join(f"{result.cases[kind]:,} {words}" for kind, words in kinds.items() if result.cases[kind])
    yield "judged", f"{sum(result.cases.values()):,} cases: {counts}; {result.tally.tensors:,} tensors"
    ops = sorted(label.removeprefix("op ") for label in result.coverage if label.startswith("op "))
    layers = sorted(
        {label.removeprefix("layer ").partition(",")[0] for label in result.coverage if label.startswith("layer ")}
    )
    yield "", f"ops {', '.join(ops)}"
    yield "", f"layers {', '.join(layers)}"
    design = [(row["matter"], row["place"], f"{row['course']}; {row['done']}") for row in offer.by_design]
    if whole:
        for matter, place, text in design:
            yield "by design", f"{matter}{f' ({place})' if place else ''}: {text}"
    elif design:
        yield "by design", ", ".join(f"{matter}{f' ({place})' if place else ''}" for matter, place, _ in design)
    own = [words for name, words in NOT_ASKED.items() if name in offer.left_open]
    settings = sorted(name.removeprefix("setting ") for name in offer.left_open if name.startswith("setting "))
    settings = [f"changes of {', '.join(settings)} (no attribute has it)"] if settings else []
    yield "not drawn", "; ".join([NOT_DRAWN, *own, *settings])
    missing = sorted(offer.missing)
    if of_course := [name for name in missing if name in COURSE]:
        yield "not offered", ", ".join(of_course)
    if more := [name for name in missing if name not in COURSE]:
        yield (
            "" if of_course else "not offered",
            f"what homeworks 1 and 2 do not ask for: {', '.join(SAID.get(n, n) for n in more)}",
        )
    for text, count in result.absent.most_common(3):
        yield "", f"with some inputs: {text} ({count} cases)"
    for note in run.notes:
        yield "note", note


def to_json(run: Any) -> list[dict[str, Any]]:
    """The entries as data."""
    of_the_run = {"ran", "follows", "higher"}  # for what follows from what
    return [
        {k: v for k, v in dataclasses.asdict(entry).items() if k not in of_the_run}
        | {"severity": SEVERITY[entry.severity]}
        for entry in run.entries
    ]


def write(run: Any) -> None:
    """``needle.md`` and ``needle.html`` beside the summary."""
    files.save(run.plan.folder / "needle.md", _markdown(run))
    rows = [(name, text) for name, text in table(run)]
    entries = [(entry, list(_lines(entry)), SEVERITY[entry.severity]) for entry in run.entries]
    page = render(
        TEMPLATE,
        folder=commands.shown(run.plan.needle),
        made=f"{now()}, commit {commit(run.plan.needle) or 'none'}",
        verdict=verdict(run),
        entries=entries,
        rows=rows,
    )
    files.save(run.plan.folder / "needle.html", page)


def _markdown(run: Any) -> str:
    lines = [f"# The needle of {commands.shown(run.plan.needle)}", "", verdict(run), ""]
    for i, entry in enumerate(run.entries):
        lines += [f"## {i + 1}. {entry.sentence}", "", f"{SEVERITY[entry.severity]}", ""]
        for name, text in _lines(entry):
            lines += ["", "```python", text.rstrip(), "```", ""] if name == "program" else [f"- {name}: {text}"]
        lines.append("")
    lines += ["## What was judged", ""]
    lines += markdown.table(["what", "which"], list(table(run)), left=("what", "which"))
    return "\n".join(lines) + "\n"
