"""Named arrays against a torch program: form before numbers, then each element with the tolerance measured for it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from oracle.check.arrays import Array, array
from oracle.check.difference import Difference, as_if, line, number
from oracle.check.measuring import LIMIT, Measured, Program, by_name, callable_program, replicas
from oracle.operations.tape import REPLICAS, U
from oracle.rules.compare import made_by_both, unravelled

# More replicas only widen the tolerance: who uses no more than this share of the limit needs no more of them.
EARLY = 1 / 4


@dataclass(frozen=True)
class Row:
    """One tensor of the report."""

    name: str
    shape: tuple[int, ...]
    share: float  # of 16, at the element where it is largest
    torch: float  # the same for torch itself
    error: float  # at that element
    allowed: float
    unjudged: int = 0  # elements where the noise decides between a number and none


class Agreement(float):
    """The largest share of the tolerance that was used, of 16; ``rows`` has each tensor, str() makes a table of them."""

    rows: tuple[Row, ...]

    def __new__(cls, rows: tuple[Row, ...]) -> Agreement:
        made = super().__new__(cls, max((r.share for r in rows), default=0.0))
        made.rows = rows
        return made

    def __str__(self) -> str:
        head = f"{'tensor':<24} {'shape':<16} {'share':>8} {'torch':>8} {'error':>10} {'allowed':>10}"
        body = [
            f"{r.name:<24} {'×'.join(map(str, r.shape)) or 'scalar':<16} {r.share:>8.2f} {r.torch:>8.2f} {r.error:>10.2g} {r.allowed:>10.2g}"
            for r in self.rows
        ]
        return "\n".join([head, *body, f"largest share {float(self):.2f} of {LIMIT:g}"])

    @property
    def findings(self) -> list[str]:
        """Where torch's own float32 is further from the truth than rounding explains: a matter of the program."""
        return [f"{r.name}: torch itself {r.torch:.3g} of {LIMIT:g}" for r in self.rows if r.torch > LIMIT]


class _Instead(torch.autograd.Function):
    """The candidate's value in the place of the program's; gradients pass."""

    @staticmethod
    def forward(ctx: Any, here: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.to(here.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad, None


class _Taps:
    """What a run of a program hands to `tap`."""

    def __init__(self, ours: Mapping[str, Array]) -> None:
        self.ours = ours
        self.seen: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, value: torch.Tensor) -> torch.Tensor:
        if name in self.seen:
            raise ValueError(f"the program taps {name!r} twice: each tap needs a name of its own")
        self.seen[name] = value.detach()
        ours = self.ours.get(name)
        if ours is None or ours.shape != tuple(value.shape) or not np.isfinite(ours).all():
            return value
        return _Instead.apply(value, torch.from_numpy(ours))  # type: ignore[no-untyped-call,no-any-return]


# Whoever sets a list hears the share of every check that agrees: `oracle.check.shares` does, for pytest -v.
heard: ContextVar[list[float] | None] = ContextVar("heard", default=None)
_taps: ContextVar[_Taps | None] = ContextVar("taps", default=None)


def tap(name: str, value: torch.Tensor) -> torch.Tensor:
    """Inside a program: give an intermediate value a name. What follows goes on from the candidate's value of it, so that
    each stage is judged by itself. Outside a check, ``value`` as it is.
    """
    taps = _taps.get()
    return value if taps is None else taps(name, value)


def same(candidate: Mapping[str, Any], program: Program, *, limit: float = LIMIT, report: bool = False) -> Agreement:
    """Hold arrays to what ``program()`` gives, by name; `Difference` where rounding does not explain what differs.

    candidate: name -> array (NumPy's, or anything with ``.numpy()``, ``__array__`` or ``__dlpack__``); None stands for zero.
    program: ordinary float32 torch that returns name -> tensor; it is run up to ten times from the same state, and what it writes to is put
    back. It must not depend on anything else that changes from call to call. Returns the largest share used, of 16, or a bound
    of it, because replicas end as soon as a quarter is not used; ``report=True`` runs all and prints a table. A candidate of lower precision than the program is judged at its own.
    """
    __tracebackhide__ = True  # pytest shows the test and the message

    def show(agreement: Agreement) -> None:
        if report:
            print("\n".join([str(agreement), *agreement.findings]))

    try:
        return said(compared(candidate, program, limit, early=not report, show=show))
    except Difference as failure:
        failure.args = ("\n".join([str(failure), *_one_array(candidate, failure.name)]),)
        raise


def said(agreement: Agreement) -> Agreement:
    """What a check returns: of its draws those that count, and of those where nothing can be said none."""
    listening = heard.get()
    if listening is not None:
        listening.append(float(agreement))
    return agreement


def compared(
    candidate: Mapping[str, Any],
    program: Program,
    limit: float,
    *,
    early: bool = True,
    most: int = REPLICAS,
    show: Callable[[Agreement], None] = lambda agreement: None,
) -> Agreement:
    """See `same`. ``early``: no more replicas than it takes. With fewer than all of them (``most``), what fails may yet be
    right: it is no verdict. ``show``: what to do with the table, before a failure is raised.
    """
    __tracebackhide__ = True
    if not isinstance(candidate, Mapping):
        raise TypeError(f'the candidate must be arrays by name, {{"y": array}}, but got {type(candidate).__name__}')
    callable_program(program)
    ours: dict[str, Array | None] = {}
    unit = 0.0
    for name, value in candidate.items():
        ours[name] = None
        if value is not None:
            ours[name], own = array(value, f"the candidate's {name}")
            unit = max(unit, own)

    def run() -> dict[str, Any]:
        taps = _Taps({k: v for k, v in ours.items() if v is not None})
        token = _taps.set(taps)
        try:
            given = program()
        finally:
            _taps.reset(token)
        return {**taps.seen, **by_name(given)}

    for found in itertools.islice(replicas(run, unit if unit > U else 0.0), most - 1):
        form(ours, found.truth)
        rows = [_row(name, ours[name], found, limit) for name in found.truth]
        if early and max((row.share for row in rows), default=0.0) <= limit * EARLY:
            break
    agreement = Agreement(tuple(rows))
    show(agreement)
    bad = [row.name for row in rows if row.share > limit]
    if bad:
        raise _difference(bad, ours, found, agreement, limit)
    return agreement


def _one_array(candidate: Mapping[str, Any], name: str) -> list[str]:
    """What a loop that writes into its arrays hands over: the last values, under every name."""

    def where(a: Any) -> Any:
        return (a.ctypes.data, a.shape, a.strides) if isinstance(a, np.ndarray) and a.size else None

    at = where(candidate.get(name))
    alike = [n for n, a in candidate.items() if n != name and at is not None and where(a) == at]
    return (
        [line("note", f"your {name} and {alike[-1]} are one array, written into again and again: keep copies")]
        if alike
        else []
    )


def form(ours: Mapping[str, Array | None], torchs: Mapping[str, Array]) -> None:
    """Names, shapes, and complex parts, before any number is compared."""
    __tracebackhide__ = True
    extra = [k for k, v in ours.items() if k not in torchs and v is not None and v.any()]
    missing = [k for k in torchs if k not in ours]
    if extra or missing:
        said = [f"the torch program has no {_few(extra)}"] if extra else []
        said += [f"the candidate has no {_few(missing)}"] if missing else []
        message = f"{'; '.join(said)}\n" + line("torch has", _few(list(torchs), 8))
        raise _failure(message, (extra + missing)[0], tuple(extra + missing))
    for name, truth in torchs.items():
        a = ours[name]
        if a is None:
            continue
        if a.shape != truth.shape:
            lines = [f"{name} has another shape than torch's", line("yours", str(a.shape))]
            lines += [line("torch", str(truth.shape))]
            hint = as_if(a.astype(truth.dtype), truth, name, torchs) if a.dtype.kind != "c" else ""
            raise _failure("\n".join([*lines, *([line("as if", hint)] if hint else [])]), name, (name,))
        if (a.dtype.kind == "c") != (truth.dtype.kind == "c"):
            which = ("real", "complex") if truth.dtype.kind == "c" else ("complex", "real")
            raise _failure(f"{name} is {which[0]}, torch's is {which[1]}", name, (name,))


def _few(names: list[str], most: int = 4) -> str:
    """The first of many names."""
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")


def _failure(message: str, name: str, bad: tuple[str, ...]) -> Difference:
    failure = Difference(message)
    failure.name, failure.bad = name, bad
    return failure


def _shares(name: str, a: Array, found: Measured) -> tuple[Array, Array, Array]:
    """Of each element: the share used, torch's, and whether both make one and the same error."""
    peer = found.torch.get(name)
    share = found.share(name, a)
    if peer is None or peer.shape != share.shape:
        return share, np.zeros_like(share), np.zeros(share.shape, bool)
    alike = shared_error(a, peer, found.truth[name])
    return share, found.share(name, peer), alike


def shared_error(ours: Array, peer: Array, truth: Array) -> Array:
    """Where torch makes at least half of the error, in the same direction: rounding that both share."""
    with np.errstate(all="ignore"):
        ours, peer = ours.astype(truth.dtype), peer.astype(truth.dtype)
        same = (ours == peer) | (np.isnan(ours) & np.isnan(peer))
        near = made_by_both(ours, peer, truth) & np.isfinite(ours - peer)
    return np.asarray(near | same)


def _row(name: str, ours: Array | None, found: Measured, limit: float) -> Row:
    truth = found.truth[name]
    a = np.zeros_like(truth) if ours is None else ours.astype(truth.dtype)
    if not truth.size:
        return Row(name, truth.shape, 0.0, 0.0, 0.0, 0.0)
    share, own, alike = _shares(name, a, found)
    counted = np.where(alike, np.minimum(share, limit), share)
    at = unravelled(int(np.argmax(counted)), counted.shape)
    with np.errstate(all="ignore"):
        error = float(np.abs(a - truth)[at])
    unjudged = int(np.isinf(found.allowed[name]).sum())
    return Row(name, truth.shape, float(counted[at]), float(own.max()), error, float(found.allowed[name][at]), unjudged)


def _difference(
    bad: list[str],
    ours: Mapping[str, Array | None],
    found: Measured,
    agreement: Agreement,
    limit: float,
) -> Difference:
    """The first tensor that differs, at the element where it is worst."""
    name, names = bad[0], list(found.truth)
    truth, given = found.truth[name], ours[name]
    a = np.zeros_like(truth) if given is None else given.astype(truth.dtype)
    share, own, alike = _shares(name, a, found)
    counted = np.where(alike, 0.0, share)
    at = unravelled(int(np.argmax(counted)), counted.shape)
    wrong = int((counted > limit).sum())
    with np.errstate(all="ignore"):
        error = float(np.abs(a - truth)[at])
    peer = found.torch.get(name)
    allowed = float(found.allowed[name][at]) * limit / LIMIT
    lines = [
        f"{name} differs from torch by more than rounding",
        line("where", f"{list(at)}; {wrong} of {a.size} elements"),
        line("yours", number(a[at]) + ("   (None, which means zero)" if given is None else "")),
        *([line("torch", f"{number(peer[at])}   ({peer.dtype})")] if peer is not None else []),
        line("truth", f"{number(truth[at])}   (the same program in float64)"),
        line(
            "error",
            f"{error:.2g}; rounding explains {allowed:.2g} at most   "
            f"({share[at]:.3g} of {limit:g}; torch itself {float(own[at]):.2g})",
        ),
    ]
    hint = as_if(a, truth, name, found.truth)
    lines += [line("as if", hint)] if hint else []
    before = [n for n in names[: names.index(name)] if n not in bad]
    lines += [line("before it", f"{', '.join(before[-4:])} agree")] if before else []
    lines += [line("after it", f"{', '.join(bad[1:5])}{' …' if len(bad) > 5 else ''} differ too")] if bad[1:] else []
    failure = _failure("\n".join(lines), name, tuple(bad))
    failure.index, failure.ours, failure.truth = at, a[at], truth[at]
    failure.torch = None if peer is None else peer[at]
    failure.shape = truth.shape
    failure.error, failure.allowed = error, allowed
    failure.share = float(share[at]) if not math.isnan(share[at]) else math.inf
    return failure
