"""``python -m oracle calibrate``: correct variants of needle, which the rules must not flag.

A variant computes the same thing in another order or from other operations, as another BLAS, another machine or a
student might. Each runs on cases that were never used to tune anything. Every divergence is a false alarm, unless the
variant itself is wrong; beside the count stands the largest share of the tolerance that was used.
"""

from __future__ import annotations

import importlib
import math
import os
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import needle
from needle import ops
from needle.autograd import Tensor, Value
from oracle import files
from oracle.apart import Died
from oracle.blame import judged, report, suspect
from oracle.cases import case as c
from oracle.commands import Asked, meant, session
from oracle.exits import ExitCode, decided, saved
from oracle.pages import terminal
from oracle.pages.markdown import table as markdown_table
from oracle.rules.verdict import Tally
from oracle.runs import runner
from oracle.runs.draws import SHARD_SIZE, shard_cases
from oracle.runs.workers import Pool
from oracle.trust.faults import CONTROLS
from oracle.trust.patches import Patch, around, replace
from oracle.trust.rewrites import REWRITES, in_single

PAGE = Path("reports/calibration.md")
DATA = Path("reports/baselines/calibration.json")
HEADINGS = ("variant", "cases", "steps", "tensors", "false alarms", "largest share", "where")
WORDS = ("variant", "where")

# -- other orders of summation ----------------------------------------------------------------------------------------


def _sums(add_up: Callable[[Any], Any]) -> Callable[..., Any]:
    """np.add.reduce by way of ``add_up``, which sums over the last axis."""

    def total(a: Any, axis: Any = None, keepdims: bool = False, **_: Any) -> Any:
        a = np.asarray(a)
        axes = tuple(range(a.ndim)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        axes = tuple(i % a.ndim for i in axes) if a.ndim else ()
        rest = tuple(i for i in range(a.ndim) if i not in axes)
        shape = tuple(a.shape[i] for i in rest)
        flat = a.transpose(*rest, *axes).reshape(*shape, math.prod(a.shape[i] for i in axes))
        y = np.asarray(add_up(flat)) if flat.shape[-1] else np.zeros(shape, a.dtype)
        if keepdims:
            y = y.reshape(tuple(1 if i in axes else n for i, n in enumerate(a.shape)))
        return y[()]

    return total


class _NumPy(types.ModuleType):
    """NumPy with another tensordot, which convolutions are made of."""

    def __init__(self, tensordot: Callable[..., Any]) -> None:
        super().__init__("numpy")
        self.tensordot = tensordot

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _ordered(add_up: Callable[[Any], Any], product: Callable[[Any, Any], Any] | None = None) -> Patch:
    """Every sum and every product of needle by way of ``add_up`` (over the last axis), or ``product``."""
    total = _sums(add_up)

    def plain(a: Any, b: Any) -> Any:
        if not a.shape[-1]:
            return np.matmul(a, b)
        return np.asarray(add_up(a[..., :, None, :] * np.swapaxes(b, -1, -2)[..., None, :, :]))

    def multiplied(a: Any, b: Any) -> Any:
        a, b = ops._alike(a, b)
        if a.dtype.kind != "f":  # exact in every order
            return np.matmul(a, b)
        if (dtype := np.result_type(a, b)) == np.float16:  # which adds up in float32
            return multiplied(a.astype(np.float32), b.astype(np.float32)).astype(dtype)
        return (product or plain)(a, b)

    def matmul(old: Any, self: Any, a: Any, b: Any) -> Any:
        return multiplied(a, b) if a.ndim >= 2 and b.ndim >= 2 and a.shape[-1] == b.shape[-2] else old(self, a, b)

    def linear(old: Any, self: Any, x: Any, weight: Any, bias: Any = None) -> Any:
        dtype = old(self, x, weight, *(() if bias is None else (bias,))).dtype  # and for its errors
        if dtype == np.float16:  # which adds up in float32
            x, weight, bias = (v if v is None else v.astype(np.float32) for v in (x, weight, bias))
        y = multiplied(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], weight.shape[1])
        return (y if bias is None else y + bias.reshape(-1)).astype(dtype)

    def linear_vjp(old: Any, self: Any, g: Any, y: Any, needs: Any, x: Any, weight: Any, *bias: Any) -> Any:
        dx, dw, *db = old(self, g, y, needs, x, weight, *bias)
        if isinstance(g, Tensor):
            return dx, dw, *db
        rows = g.reshape(-1, g.shape[-1])
        dx = None if dx is None else multiplied(rows, weight.T).reshape(x.shape)
        dw = None if dw is None else multiplied(x.reshape(-1, x.shape[-1]).T, rows)
        rows = rows.astype(np.float32) if rows.dtype == np.float16 else rows
        return dx, dw, *(None if c is None else np.asarray(total(rows, 0)).reshape(c.shape).astype(c.dtype) for c in db)

    def tensordot(a: Any, b: Any, axes: Any) -> Any:
        of_a, of_b = (list(np.atleast_1d(i)) for i in axes)
        rest_a, rest_b = ([i for i in range(x.ndim) if i not in of] for x, of in ((a, of_a), (b, of_b)))
        outer_a, outer_b = [a.shape[i] for i in rest_a], [b.shape[i] for i in rest_b]
        inner = math.prod(a.shape[i] for i in of_a)
        left = a.transpose(rest_a + of_a).reshape(math.prod(outer_a), inner)
        right = b.transpose(of_b + rest_b).reshape(inner, math.prod(outer_b))
        return multiplied(left, right).reshape(outer_a + outer_b)

    def columns(old: Any, x: Any) -> Any:
        return old(x) if isinstance(x, Tensor) else lambda a: np.asarray(total(a, 0))

    def rows(old: Any, x: Any) -> Any:
        return old(x) if isinstance(x, Tensor) else lambda a: np.asarray(total(a, -1, keepdims=True))

    return (
        replace("ops._sum", total)
        + replace("ops.np", _NumPy(tensordot))
        + around("ops.MatMul.compute", matmul)
        + around("ops.Linear.compute", linear)
        + around("ops.Linear.vjp", linear_vjp)
        + around("ops._column_sums_like", columns)
        + around("chain._column_sums_like", columns)
        + around("ops._row_sums_like", rows)
    )


def _one_after_the_other(a: Any) -> Any:
    return np.add.accumulate(a, axis=-1)[..., -1]


def _shuffled(a: Any) -> Any:
    return np.add.accumulate(a[..., np.random.RandomState(a.shape[-1]).permutation(a.shape[-1])], axis=-1)[..., -1]


def _wide(a: Any) -> Any:
    return a.astype(np.float64).sum(-1).astype(a.dtype) if a.dtype == np.float32 else a.sum(-1)


def _wide_product(a: Any, b: Any) -> Any:
    return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.result_type(a, b))


# -- fused operations from plain ones ---------------------------------------------------------------------------------


@in_single
def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    if bias is not None and bias.dtype.kind == "f" != x.dtype.kind:  # floats from the start
        x = ops.cast(x, bias.dtype)
    y = ops.matmul(x, weight)
    return y if bias is None else y + bias


@in_single
def _softmax_cross_entropy(logits: Any, labels: Any) -> Any:
    y = labels.cached_data if isinstance(labels, Value) else np.asarray(labels)
    onehot = np.zeros(logits.shape, logits.dtype)
    onehot[np.arange(len(y)), y.astype(int)] = 1
    # not logsumexp(z) - z_y, whose gradient exp(z - lse) carries the rounding of a large lse
    return -(ops.logsoftmax(logits) * Tensor.make_const(onehot)).sum() / logits.shape[0]


class _Norm:
    """A norm from plain operations. Its backward subtracts the mean last, as `x - mean(x)` comes first."""

    axis = 0

    def __init__(self, eps: float = 1e-5, follow: Callable[[Any, Any], None] | None = None) -> None:
        self.eps, self.follow = eps, follow

    def __call__(self, x: Any, weight: Any, bias: Any) -> Any:
        """(…, d), (d,), (d,) -> (…, d)."""
        floats = [v.dtype for v in (x, weight, bias) if v.dtype.kind == "f"]
        dtype = np.result_type(*floats) if floats else np.dtype(np.float32)
        x = ops.cast(x, np.result_type(dtype, np.float32).name)  # float16 adds up in float32
        axis = self.axis % x.ndim
        n = x.shape[axis]
        kept = tuple(1 if i == axis else m for i, m in enumerate(x.shape))
        mean = ops.reshape(x.sum(axis) / n, kept)
        centred = x - mean
        var = ops.reshape((centred * centred).sum(axis) / n, kept)
        if self.follow is not None:
            self.follow(mean.cached_data.reshape(-1), var.cached_data.reshape(-1))
        made = centred * (1 / (var + self.eps) ** 0.5) * weight + bias
        return ops.cast(made, "float16") if dtype == np.float16 else made


class _RowNorm(_Norm):
    axis = -1


def _called(layer: str) -> Patch:
    """A layer that a Sequential has to call, because it does not know which op this forward stands for."""
    return around(f"nn.{layer}.forward", lambda old, self, x: old(self, x))


UNFUSED = {
    "Linear": replace("ops.linear", _linear) + _called("Linear"),
    "SoftmaxCrossEntropy": replace("ops.softmax_cross_entropy", _softmax_cross_entropy),
    "BatchNorm": replace("ops.BatchNorm", _Norm) + _called("BatchNorm1d"),
    "LayerNorm": replace("ops.LayerNorm", _RowNorm) + _called("LayerNorm1d"),
}


@dataclass(frozen=True)
class Variant:
    """A correct needle that computes differently."""

    name: str
    patch: Patch
    threads: int = 1


NOTHING = Patch(())
VARIANTS = (
    Variant("as it is", NOTHING),
    Variant("sequential sums", _ordered(_one_after_the_other)),
    Variant("reversed sums", _ordered(lambda a: _one_after_the_other(a[..., ::-1]))),
    Variant("shuffled sums", _ordered(_shuffled)),
    Variant(  # times 1, because the sum of bools is a bool there
        "einsum for BLAS",
        _ordered(lambda a: np.einsum("...i->...", a * 1), lambda a, b: np.einsum("...ij,...jk->...ik", a, b)),
    ),
    Variant("float64 accumulation", _ordered(_wide, _wide_product)),
    *(Variant(f"unfused {op}", patch) for op, patch in UNFUSED.items()),
    Variant("all unfused and sequential", sum(UNFUSED.values(), _ordered(_one_after_the_other))),
    Variant("optimizers and backward written out", sum(CONTROLS.values(), NOTHING)),
    *(Variant(name, patch) for name, patch in REWRITES.items()),
    Variant("two BLAS threads", NOTHING, threads=2),
)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    if count == 1:
        yield
        return
    with importlib.import_module("threadpoolctl").threadpool_limits(count):
        yield


# -- running ----------------------------------------------------------------------------------------------------------


@dataclass
class Alarm:
    """A false alarm."""

    variant: str
    digest: str
    case: str
    message: str
    suspect: str


@dataclass
class Outcome:
    """What one variant came to."""

    name: str
    cases: int = 0
    steps: int = 0
    out_of_domain: int = 0
    tally: Tally = field(default_factory=Tally)
    alarms: list[Alarm] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Add another shard of the same variant."""
        self.cases += other.cases
        self.steps += other.steps
        self.out_of_domain += other.out_of_domain
        self.tally.add(other.tally)
        self.alarms.extend(other.alarms)
        self.errors.extend(other.errors)

    @property
    def top(self) -> tuple[str, float]:
        """The comparison that came nearest to its limit."""
        shares = {k: v for k, v in self.tally.largest.items() if not k.startswith(("P ", "validation"))}
        return max(shares.items(), key=lambda item: item[1], default=("", 0.0))


def run_shard(which: int, seed: int, index: int) -> Outcome:
    """One shard of cases for one variant."""
    variant = VARIANTS[which]
    outcome = Outcome(variant.name)
    with variant.patch.applied(), _threads(variant.threads):
        for case in shard_cases(seed, index):
            try:
                verdict = judged(case, needle, peer_too=False)
            except Exception as error:
                outcome.errors.append(f"{case.digest}: {type(error).__name__}: {error}")
                continue
            outcome.cases += 1
            outcome.steps += verdict.steps
            outcome.out_of_domain += verdict.out_of_domain
            outcome.tally.add(verdict.tally)
            found = verdict.divergence
            if found is not None:
                with saved(f"{report.LATEST / case.digest}.json"):
                    report.write(case, found, Asked(folder=meant(report.LATEST)))
                outcome.alarms.append(
                    Alarm(
                        variant.name,
                        case.digest,
                        c.describe(case),
                        f"step {found.step}: {found.message}",
                        suspect(case, found),
                    )
                )
    return outcome


def run(
    variants: Sequence[int], cases: int, seed: int, workers: int, progress: Callable[[Outcome], None]
) -> tuple[list[Outcome], bool]:
    """All variants on the same cases, and whether Ctrl-C ended the run early."""
    runner.warm_up()
    outcomes = {which: Outcome(VARIANTS[which].name) for which in variants}
    shards = -(-cases // SHARD_SIZE)
    executor, interrupted = Pool(workers), False
    try:
        futures = [(which, executor.submit(run_shard, which, seed, i)) for i in range(shards) for which in variants]
        for which, future in futures:
            outcomes[which].add(future.result())
            progress(outcomes[which])
    except Died:
        next(iter(outcomes.values())).errors.append(
            "a worker process died; with too little memory, `--workers 1` takes less"
        )
    except KeyboardInterrupt:
        interrupted = True
    finally:
        executor.close()
    return list(outcomes.values()), interrupted


def calibrate(*, cases: int, variants: Sequence[str], seed: int, workers: int | None, accept: bool) -> int:
    """Run, print and write the table; 0 no false alarm, 1 some, 2 usage, 4 errors of the oracle itself."""
    console = terminal.console()
    chosen = [i for i, v in enumerate(VARIANTS) if not variants or v.name in variants]
    if not chosen:
        console.print("variants: " + ", ".join(v.name for v in VARIANTS), markup=False)
        return ExitCode.USAGE
    started = time.perf_counter()
    with console.status("judging correct variants") as status:

        def progress(outcome: Outcome) -> None:
            status.update(f"{outcome.name}: {outcome.tally.tensors:,} tensors, {len(outcome.alarms)} false alarms")

        outcomes, interrupted = run(chosen, cases, seed, workers or os.cpu_count() or 1, progress)
    tensors = sum(o.tally.tensors for o in outcomes)
    alarms = [a for o in outcomes for a in o.alarms]
    errors = [e for o in outcomes for e in o.errors]
    table = terminal.table(HEADINGS, WORDS)
    for o in outcomes:
        table.add_row(*_cells(o))
    console.print(table)
    for alarm in alarms[:20]:
        console.print(
            f"{alarm.variant}, {alarm.digest}: {alarm.message}; {alarm.suspect}", soft_wrap=True, markup=False
        )
        console.print(f"  {alarm.case}", soft_wrap=True, markup=False, style="dim")
    for error in errors[:5]:
        console.print(f"the oracle failed: {error}", soft_wrap=True, markup=False, style="yellow")
    page, data = (PAGE, DATA) if accept else (report.LATEST / PAGE.name, report.LATEST / DATA.name)
    with nullcontext() if accept else saved(str(page)):
        page.parent.mkdir(parents=True, exist_ok=True)
        files.save(page, markdown(outcomes, seed))
        report.dump(data, to_json(outcomes, seed))
    word = f"{len(alarms)} false alarms in {tensors:,} tensors, {len(outcomes)} variants, seed {seed}"
    console.print(
        f"{word}; {time.perf_counter() - started:.0f} s; {page}", style="bold red" if alarms else "bold green"
    )
    if interrupted:
        console.print("interrupted: this is what was judged until then", style="bold yellow")
    return decided(part=alarms, harness=errors, interrupted=interrupted)


def _cells(o: Outcome) -> tuple[str, ...]:
    where, share = o.top
    counts = (o.cases, o.steps, o.tally.tensors, len(o.alarms))
    return (o.name, *(f"{n:,}" for n in counts), f"{share:.1%}", where)


def _shares(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Comparison -> variant -> largest share of the tolerance."""
    keys = Counter(k for o in outcomes for k in o.tally.largest if not k.startswith(("P ", "validation")))
    return {k: {o.name: o.tally.largest[k] for o in outcomes if k in o.tally.largest} for k in sorted(keys)}


def markdown(outcomes: Sequence[Outcome], seed: int) -> str:
    """The table as a page."""
    tensors = sum(o.tally.tensors for o in outcomes)
    alarms = sum(len(o.alarms) for o in outcomes)
    lines = [
        "# Calibration",
        "",
        f"`{session('calibrate')}` lets the rules judge correct variants of needle, on cases that nothing was tuned on "
        f"(seed {seed}).",
        "",
        f"- false alarms: **{alarms}** in **{tensors:,}** tensors of {sum(o.steps for o in outcomes):,} synchronised "
        f"steps and {sum(o.cases for o in outcomes):,} cases, {len(outcomes)} variants",
        "- share: the largest error in units of what the rule allows; 100 % is the limit",
        "",
        *markdown_table(HEADINGS, map(_cells, outcomes), WORDS),
        "",
        "## Largest share per comparison",
        "",
    ]
    rows = []
    for key, by_variant in _shares(outcomes).items():
        name = max(by_variant, key=lambda v: by_variant[v])
        own = by_variant.get("as it is")
        rows.append((key, "" if own is None else f"{own:.1%}", f"{by_variant[name]:.1%}", name))
    lines += markdown_table(("comparison", "as it is", "any variant", "which"), rows, ("comparison", "which"))
    return "\n".join([*lines, ""])


def to_json(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """The table as data."""
    return {
        "seed": seed,
        "tensors": sum(o.tally.tensors for o in outcomes),
        "false_alarms": sum(len(o.alarms) for o in outcomes),
        "variants": [
            {
                "name": o.name,
                "cases": o.cases,
                "steps": o.steps,
                "tensors": o.tally.tensors,
                "elements": o.tally.elements,
                "out_of_domain": o.out_of_domain,
                "false_alarms": [vars(a) for a in o.alarms],
                "errors": o.errors,
                "largest_share": dict(sorted(o.tally.largest.items())),
            }
            for o in outcomes
        ],
    }
