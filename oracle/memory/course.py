"""What is said of the memory of another needle: one finding for each holder, in its author's words; what is by design, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from oracle.cases import case as c
from oracle.memory.gates import Row, rates
from oracle.memory.outcome import Run

Finding = tuple[str, list[tuple[str, str]]]  # a sentence, and what there is to say about it

HEADINGS = ("model", "growth", "blocks", "Tensors", "peak", "torch", "verdict")
UNITS = (
    "growth, blocks, Tensors: bytes, allocated blocks and live Tensors that are more after each step, once loss and gradients "
    "are dropped and garbage is collected; peak: bytes; torch: its peak as a multiple of torch's; !: what grows"
)


def cells(row: Row) -> list[str]:
    """What the table says of a row; the worst of its runs."""
    m = row.main
    if m is None or row.errors:
        return [row.name, *["-"] * (len(HEADINGS) - 2), "error" if row.errors else "not measured"]
    grown = [rates(run) for run in row.runs.values()]
    numbers = [f"{max(rate[name] for rate in grown):,.3g}" for name in ("growth", "blocks", "Tensors")]
    torch = f"x{m.peak / row.torch.peak:.2f}" if row.torch is not None and row.torch.peak else "-"
    texts = [row.name, *numbers, f"{m.peak:,}", torch, "grows" if row.failures else "ok"]
    return [text + "!" * (column in row.marked) for column, text in zip(HEADINGS, texts, strict=True)]


def findings(run: Run) -> Iterator[Finding]:
    """A sentence for each holder, and what there is to say about it: (name, text)."""
    measured = sum(1 for row in run.rows if not row.errors)
    for owner, rows in run.leaks.items():
        row = rows[0]
        names = row.keepers_of.get(owner, [])
        yield _sentence(names, row), [*_about(names, row), _seen(rows, measured), ("again", row.replay)]
    for row, error in run.errors:
        yield f"{row.name} could not be measured: {error}", [("again", row.replay)]


def of_row(row: Row) -> Iterator[Finding]:
    """The findings of one model alone."""
    for names in row.keepers_of.values() or [[]]:
        yield _sentence(names, row), [*_about(names, row), ("case", c.describe(row.case)), ("again", row.replay)]


def lines(found: Iterable[Finding]) -> Iterator[str]:
    """As a terminal shows them."""
    for i, (sentence, about) in enumerate(found):
        yield f"{i + 1}. {sentence}"
        yield from (f"   {name:<8} {text}" for name, text in about)
        yield ""


def _sentence(names: list[str], row: Row) -> str:
    rate = {name: max(rates(m)[name] for m in row.runs.values()) for name in ("growth", "Tensors")}
    more = [f"{rate[name]:,.0f} {what}" for name, what in (("growth", "bytes"), ("Tensors", "Tensors")) if rate[name]]
    grows = f"memory grows with each step, by {' and '.join(more) or 'a few blocks'}"
    if not names:
        return f"{grows}: nothing that leads there from the optimizer, the model or a module was found"
    held = [(words, place) for name, words, place in _held(row) if name in names]
    graph = any("with its graph" in words for words, _ in held)
    what = "the graph of every step" if graph else "something of every step"
    others = [name for name in dict.fromkeys(row.keepers) if name and name not in names]
    return f"{grows}: {' and '.join(names)} hold{'s' * (len(names) == 1)} {what}" + (
        f" ({' and '.join(others)} too)" if others else ""
    )


def _held(row: Row) -> list[tuple[str, str, str]]:
    return list(zip(row.keepers, row.holders, row.places, strict=True))


def _about(names: list[str], row: Row) -> Iterator[tuple[str, str]]:
    held = [(words, place) for name, words, place in _held(row) if name in names]
    for place in dict.fromkeys(place for _, place in held if place):
        yield "at", place
    for words, _ in held:
        yield "held by", words
    run = row.runs.get("python") or row.main
    for site in run.survivors[:3] if run is not None else ():
        yield "born at", f"{site.where}, in {site.births} steps: {site.line}"
    if row.flame:
        yield "flames", row.flame


def _seen(rows: list[Row], measured: int) -> tuple[str, str]:
    names = [row.name for row in rows]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return "seen", f"in {len(names)} of {measured} models: {shown}"


def by_design(run: Run) -> list[str]:
    """What the course's own design brings, and what does not grow: each once, from the row that shows it most."""
    found: dict[str, str] = {}
    for row in sorted(run.rows, key=lambda row: -(row.main.with_graph if row.main is not None else 0)):
        for kind, text in row.hints.items():
            found.setdefault(kind, text)
            if kind == "kept" and row.holders and not row.failures:
                found[kind] = f"{text}; held by {row.holders[-1]}"
    return list(found.values())


def verdict(run: Run) -> tuple[str, str]:
    """Its state (good, bad, open), and one line."""
    if run.plan.offer.cannot_train:
        what = ", ".join(run.plan.offer.cannot_train)
        return "open", f"no verdict: {what} is not offered, and without it there is no training run"
    if run.leaks:
        names = ", ".join(" and ".join(rows[0].keepers_of.get(owner, [owner])) for owner, rows in run.leaks.items())
        return "bad", f"memory grows in {len(run.failed)} of {len(run.rows)} models: {names}"
    if run.errors:
        state = "bad" if any(row.broken for row in run.rows) else "open"
        return state, f"{len(run.errors)} of {len(run.rows)} models could not be measured, {len(run.failed)} grow"
    if run.interrupted or not run.rows:
        return "open", f"no verdict: {len(run.rows)} models so far, none grows"
    return "good", f"memory does not grow in any of {len(run.rows)} models; {run.wall:.0f} s"
