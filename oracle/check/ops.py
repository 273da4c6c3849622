"""One operation on drawn inputs: its value, and what it passes back."""

from __future__ import annotations

import inspect
import itertools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch

from oracle.check.arrays import Array, array
from oracle.check.comparing import Agreement, compared
from oracle.check.difference import Difference, line
from oracle.check.drawing import KINDS, LEADING, assigned, choices, length, numbers, resolved
from oracle.check.measuring import LIMIT
from oracle.check.smaller import shorter
from oracle.operations.tape import REPLICAS
from oracle.systems.noise import current, widened

_DTYPES = {
    "float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": np.float32,
    "complex64": np.complex64, "complex128": np.complex128,
}  # fmt: skip
Draw = Callable[[int], bytes]


def op(
    candidate: Callable[..., Any],
    torch_fn: Callable[..., Any],
    *inputs: Any,
    draws: int = 12,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    dtype: str = "float32",
    cotangents: Sequence[Any] | None = None,
    limit: float = LIMIT,
    report: bool = False,
) -> Agreement:
    """Hold an operation to a torch function, on inputs of six kinds: `Difference` where rounding does not explain what differs.

    candidate: arrays -> out, or (out, vjp) as ``jax.vjp`` gives it: ``vjp(cotangent)`` is the gradient of each input; several
    outputs are a tuple, and their cotangents too. torch_fn: the same in ordinary torch.
    inputs: a tuple is a shape to be drawn: numbers are sizes, a name is drawn (equal names alike; also 1, and once 0), ``"3*name"``
    is a multiple of it, ``...`` is any number of dimensions. ValueError where torch refuses more than half of what is drawn, other
    than empty arrays. Anything else is handed on as it is. ``kinds``: of numbers, see `KINDS`. ``dtype``: of drawn inputs;
    torch gets bfloat16, the candidate float32 with the same values. ``cotangents`` are drawn where not given.
    A failing draw is made small, few elements and short numbers, and the message ends with the lines that show it again.
    Deterministic: the same ``seed``, the same draws.
    """
    __tracebackhide__ = True  # pytest shows the test and the message
    for what, given in (("candidate", candidate), ("torch_fn", torch_fn)):
        if not callable(given):
            raise TypeError(f"{what} is a function of arrays, not what it gives, but got {type(given).__name__}")
    for given in inputs:
        if isinstance(given, list) and any(isinstance(dim, str) or dim is ... for dim in given):
            raise TypeError(f"a shape is a tuple: {_as_tuple(given)}, but got the list {given!r}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is one of {', '.join(_DTYPES)}, but got {dtype!r}")
    if not kinds or draws < 1:
        raise ValueError(f"at least one kind and one draw are needed, but got kinds={kinds!r}, draws={draws}")
    shapes = [x for x in inputs if isinstance(x, tuple)]
    sizes, leads = choices(shapes), any(... in s for s in shapes)
    trial = Trial(candidate, torch_fn, inputs, dtype, cotangents, limit)
    for i, name in enumerate(_parameters(candidate)[: len(inputs)]):
        trial.labels[i] = f"gradient of {name} (input {i})"
    if not shapes:
        rows = trial(kinds[0], {}, (), _random_bytes(seed)).rows
        return _reported(Agreement(rows), report)
    search = _Search(trial, patience=max(20, 4 * draws))
    best: list[Agreement] = []
    try:
        best += _beside(search, kinds[0], sizes, leads, seed)
        for i, kind in enumerate(kinds):
            share = len(range(i, draws, len(kinds)))
            if share:
                best += _drawn(search, kind, sizes, leads, share, seed)
        if trial.refused * 2 <= trial.called:
            best += _empty(search, kinds[0], sizes, seed)
    except _Enough:
        pass
    if search.first is not None:
        search.looking = False
        _drawn(search, search.kind, {n: tuple(sorted(some)) for n, some in sizes.items()}, leads, _AGAIN, seed)
        if search.best is None:
            _drawn(search, search.kind, sizes, leads, draws, seed)
        failure = search.confirmed()
        raise failure
    if trial.refused * 2 > trial.called:
        raise ValueError(
            f"torch refused {trial.refused} of {trial.called} draws ({trial.refusal}): fix the shapes, "
            f"so that they fit torch_fn whatever the sizes"
        )
    return _reported(max(best), report)


def _as_tuple(shape: list[Any]) -> str:
    return repr(tuple(shape)).replace("Ellipsis", "...")


def _parameters(candidate: Callable[..., Any]) -> list[str]:
    """The names of the inputs, as far as the candidate has any; a ufunc has none of use."""
    if isinstance(candidate, np.ufunc):
        return []
    try:
        parameters = inspect.signature(candidate).parameters.values()
    except (TypeError, ValueError):  # of C
        return []
    ordinary = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in itertools.takewhile(lambda p: p.kind in ordinary, parameters)]


def _reported(agreement: Agreement, report: bool) -> Agreement:
    if report:
        print(agreement)
    return agreement


def _random_bytes(seed: int) -> Draw:
    rng = np.random.default_rng(seed)
    return lambda n: rng.bytes(n)


Choices = dict[str, tuple[int, ...]]


def _beside(search: _Search, kind: str, sizes: Choices, leads: bool, seed: int) -> list[Agreement]:
    """One draw in which the sizes differ, where sizes are drawn at all: Hypothesis' first one has numbers of 0 alone."""
    if not sizes:
        return []
    agreement = search(
        kind, {n: some[0] for n, some in sizes.items()}, LEADING[0] if leads else (), _random_bytes(seed)
    )
    return [] if agreement is None else [agreement]


def _empty(search: _Search, kind: str, sizes: Choices, seed: int) -> list[Agreement]:
    """Each size as 0, on top of the draws. Where torch or the candidate has no answer, as to the maximum of nothing, there is
    nothing to compare, and no matter of the shapes.
    """
    found = []
    for name in sizes:
        one = {n: 0 if n == name else some[0] for n, some in sizes.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a mean of nothing
            found.append(search(kind, one, LEADING[0], _random_bytes(seed)))
    return [agreement for agreement in found if agreement is not None]


def _drawn(search: _Search, kind: str, sizes: Choices, leads: bool, draws: int, seed: int) -> list[Agreement]:
    """Some draws of one kind, by Hypothesis, which also makes the failure small that the search is for."""
    import hypothesis
    from hypothesis import strategies as st

    found: list[Agreement] = []
    phases = [hypothesis.Phase.generate, *([] if search.looking else [hypothesis.Phase.shrink])]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=draws,
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        print_blob=False,
        phases=phases,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def run(data: Any) -> None:
        drawn = {n: data.draw(st.sampled_from(some)) for n, some in sizes.items()}
        leading = data.draw(st.sampled_from(LEADING if search.looking else sorted(LEADING, key=len))) if leads else ()
        agreement = search(kind, drawn, leading, lambda n: data.draw(st.binary(min_size=n, max_size=n)))
        if agreement is None:
            hypothesis.reject()
        found.append(agreement)

    try:
        run()
    except hypothesis.errors.Unsatisfiable:
        return found
    except (Exception, _Enough):  # whatever words Hypothesis has for the end
        if search.looking:
            if search.out_of_patience():  # Hypothesis, too, may have words for a search that ends halfway
                raise _Enough from None
            raise
    return found


class _Enough(BaseException):
    """Ends Hypothesis' search."""


_FAILED = Agreement(())
_AGAIN = 10  # draws to meet a failure again, where the smallest sizes come first: Hypothesis moves towards those


class _Search:
    """First the failure to be shown is looked for: that of the earliest tensor in all draws, for a gradient may be wrong because the
    output is. Then it is made smaller, as long as it stays the same one: by so many calls and no more, however slow the
    operation is, and with few replicas. What comes out of it is judged by all of them.
    """

    MOST, FEW, MORE = 120, 3, 200

    def __init__(self, trial: Trial, patience: int) -> None:
        self.trial = trial
        self.patience = patience  # so many refusals of torch, and the shapes are taken for wrong
        self.looking = True
        self.calls = 0
        self.first: Exception | None = None  # as it was drawn
        self.kind = ""  # of its numbers
        self.best: Exception | None = None

    def __call__(self, kind: str, *drawn: Any) -> Any:
        """One draw. While it is looked on, a failure is kept and no error; then only one that is the same as the first is an error."""
        return self._look(kind, *drawn) if self.looking else self._reduce(kind, *drawn)

    def _look(self, kind: str, *drawn: Any) -> Any:
        try:
            agreement = self.trial(kind, *drawn)
            if agreement is not None or not self.out_of_patience():
                return agreement
        except Exception as error:
            raised = not isinstance(error, Difference)
            if raised and 0 in drawn[0].values():  # to refuse what is empty is no wrong value
                return None
            if self.first is not None and (raised or _rank(error) >= _rank(self.first)):
                return _FAILED
            self.first, self.kind = error, kind
            if _rank(error) > 0:
                return _FAILED
        raise _Enough

    def out_of_patience(self) -> bool:
        """Torch has refused so many draws that others will not help."""
        return self.trial.refused >= self.patience and self.trial.refused * 2 > self.trial.called

    def _reduce(self, kind: str, *drawn: Any) -> Any:
        first = self.first
        assert first is not None
        self.calls += self.best is not None
        if self.calls > self.MOST:
            raise _Enough
        self.trial.most = REPLICAS if self.best is None else self.FEW
        try:
            return self.trial(kind, *drawn)
        except Exception as error:
            if _what(error) != _what(first):
                return _FAILED
            if self.best is None or _size(error) < _size(self.best):
                self.best = error
            raise

    def confirmed(self) -> Exception:
        """The smallest failure, judged by all replicas; if it is none then, the first one. What it looks like, and what agrees and
        differs beside it, is said of the first: few numbers look like much, and agree where more do not.
        """
        first, best = self.first, self.best or self.first
        assert first is not None
        assert best is not None
        if not isinstance(first, Difference) or not isinstance(best, Difference):
            return best.with_traceback(_behind_the_search(best))
        best = self._shorter(best)
        self.trial.most = REPLICAS
        if best is not first:
            try:
                self.trial.once_more(best.inputs, best.cotangents, self.kind)
            except Difference as again:
                best = again if _what(again) == _what(first) else first
            else:
                best = first
        if best is not first:
            best.args = (_with_words_of(first, best),)
            best.bad = first.bad
        return best.with_traceback(None)

    def _shorter(self, best: Difference) -> Difference:
        """Numbers that are 0, 1 or short, as long as what differs is called the same."""
        self.trial.most = self.FEW
        calls, count = 0, len(best.inputs)
        for change in shorter([*best.inputs, *best.cotangents]):
            arrays = change([*best.inputs, *best.cotangents])
            if arrays is None:
                continue
            if calls == self.MORE:
                break
            calls += 1
            try:
                self.trial.once_more(arrays[:count], arrays[count:], self.kind)
            except Difference as again:
                best = again if _what(again) == _what(best) else best
            except Exception:  # numbers that the candidate does not take
                continue
        return best


def _rank(error: Exception) -> int:
    """How early the tensor is that an error is about: 0 the first one, or all."""
    if not isinstance(error, Difference) or not error.name:
        return 0
    numbered = re.search(r"(\d+)\)?$", error.name)
    return (1000 if error.name.startswith("gradient") else 0) + int(numbered[1] if numbered else 0)


def _behind_the_search(error: Exception) -> TracebackType | None:
    """An error's traceback from the candidate on: what Hypothesis does before it is of no use to anybody."""
    at = error.__traceback__
    while at is not None and at.tb_frame.f_code is not Trial._compared.__code__:
        at = at.tb_next
    return error.__traceback__ if at is None else at


def _what(error: Exception) -> tuple[Any, ...]:
    """What failed, and how: a number beside none is something else than one number beside another."""
    if not isinstance(error, Difference):
        return (type(error),)
    finite = [bool(np.isfinite(x).all()) if x is not None else None for x in (error.ours, error.truth)]
    return (error.name, str(error).splitlines()[0], *finite)


_OF_THE_FIRST = tuple(line(what, "").rstrip() for what in ("as if", "before it", "after it"))


def _with_words_of(first: Difference, best: Difference) -> str:
    """The message of the smaller failure, with the lines of the first that say what is true beyond few numbers."""
    lines = [text for text in str(best).splitlines() if not text.startswith(_OF_THE_FIRST)]
    words = [text for text in str(first).splitlines() if text.startswith(_OF_THE_FIRST)]
    same = str(best).splitlines()
    hinted = _OF_THE_FIRST[0]
    words = [f"{w}, before it was made small" if w.startswith(hinted) and w not in same else w for w in words]
    at = next((i for i, text in enumerate(lines) if text.startswith(line("inputs", ""))), len(lines))
    return "\n".join([*lines[:at], *words, *lines[at:]])


def _size(error: Exception) -> tuple[float, ...]:
    """How long a failing draw is to read."""
    arrays = error.inputs if isinstance(error, Difference) else ()
    if not arrays:
        return (math.inf,)
    return (sum(a.size for a in arrays), sum(int(np.count_nonzero(a)) for a in arrays), len(str(error)))


def _passed_back(
    vjp: Callable[..., Any], cotangents: list[Array], given: list[Any], wanted: list[int], labels: list[str]
) -> dict[str, Any]:
    """The candidate's gradients by name."""
    copies = tuple(c.copy() for c in cotangents)
    back = vjp(*copies) if len(copies) == 1 else vjp(copies)
    back = list(back) if isinstance(back, tuple | list) else [back]
    if len(back) == len(given) != len(wanted):  # one for each input, as jax.vjp has them
        back = [back[i] for i in wanted]
    if len(back) != len(wanted):
        raise Difference(f"vjp gave {len(back)} gradients, but {len(wanted)} inputs have one")
    return {labels[i]: g for i, g in zip(wanted, back, strict=True)}


class Trial:
    """The operation on one draw."""

    def __init__(
        self,
        candidate: Callable[..., Any],
        torch_fn: Callable[..., Any],
        inputs: Sequence[Any],
        dtype: str,
        cotangents: Sequence[Any] | None,
        limit: float,
    ) -> None:
        self.candidate, self.torch_fn, self.inputs = candidate, torch_fn, inputs
        self.dtype, self.cotangents, self.limit = dtype, cotangents, limit
        self.most = REPLICAS
        self.labels = [f"gradient of input {i}" for i in range(len(inputs))]
        self.drawn = any(isinstance(dim, str) or dim is ... for x in inputs if isinstance(x, tuple) for dim in x)
        self.called = self.refused = 0  # how often, and how often torch took the shapes for none of its own
        self.refusal = ""

    def __call__(self, kind: str, sizes: dict[str, int], leading: tuple[int, ...], draw: Draw) -> Any:
        """The agreement; None if torch refuses shapes that were drawn."""
        __tracebackhide__ = True
        given: list[Any] = []
        for x in self.inputs:
            if isinstance(x, tuple):
                shape = resolved(x, sizes, leading)
                a = numbers(draw(length(shape, _DTYPES[self.dtype])), shape, kind, _DTYPES[self.dtype])
                given.append(_as_bfloat16(a) if self.dtype == "bfloat16" else a)
            elif _is_array(x):
                given.append(array(x)[0])
            else:
                given.append(x)
        self.called += 1
        try:
            shown = self.outputs(given)
        except (RuntimeError, IndexError, ValueError) as error:
            if not self.drawn:
                raise
            self.refused += 1
            self.refusal = (str(error).splitlines() or [type(error).__name__])[0]
            return None
        return self.judged(given, shown, draw, kind)

    def once_more(self, inputs: Sequence[Array], cotangents: Sequence[Array], kind: str) -> Agreement:
        """The arrays of a failure again, or such as they could be."""
        arrays = iter(inputs)
        given = [next(arrays) if isinstance(x, tuple) or _is_array(x) else x for x in self.inputs]
        had, self.cotangents = self.cotangents, cotangents or self.cotangents
        try:
            return self.judged(given, self.outputs(given), _random_bytes(0), kind)
        finally:
            self.cotangents = had

    def judged(self, given: list[Any], shown: list[torch.Tensor], draw: Draw, kind: str) -> Agreement:
        __tracebackhide__ = True
        arrays = [a for a in given if isinstance(a, np.ndarray)]
        try:
            return self._compared(given, shown, draw, kind)
        except Difference as difference:
            difference.inputs = tuple(arrays)
            raise
        except Exception as error:
            error.add_note(
                "check.op called the candidate with\n"
                + "\n".join(f"  {assigned(f'x{i}', a)}" for i, a in enumerate(arrays))
            )
            raise

    def outputs(self, given: list[Any]) -> list[torch.Tensor]:
        """What torch gives, for its form."""
        try:
            with torch.no_grad():
                results = _several(self.torch_fn(*(self._tensor(x) for x in given)))
        except (AttributeError, TypeError) as error:
            sizes = [x for x in given if isinstance(x, list) and x and all(type(n) is int for n in x)]
            if not sizes:
                raise
            said = str(error).splitlines()[0]
            raise TypeError(
                f"a shape is a tuple: {_as_tuple(sizes[0])}; torch_fn does not take the list {sizes[0]!r} ({said})"
            ) from None
        for out in results:
            if not isinstance(out, torch.Tensor):
                raise TypeError(f"torch_fn returns a tensor, or a tuple of tensors, but got {type(out).__name__}")
        return results

    def _tensor(self, x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        t = torch.from_numpy(x.copy())
        return t.to(torch.bfloat16) if self.dtype == "bfloat16" and t.dtype is torch.float32 else t

    def _compared(self, given: list[Any], shown: list[torch.Tensor], draw: Draw, kind: str) -> Agreement:
        __tracebackhide__ = True
        mine, program, cotangents = self.paired(given, shown, draw)
        try:
            return compared(mine, program, self.limit, most=self.most)
        except Difference as difference:
            difference.cotangents = tuple(cotangents)
            difference.args = (f"{difference}\n{self._again(given, cotangents, kind)}",)
            raise

    def paired(
        self, given: list[Any], shown: list[torch.Tensor], draw: Draw
    ) -> tuple[dict[str, Any], Callable[[], dict[str, Any]], list[Array]]:
        """What the candidate gives by name, the program that it is held to, and the cotangents that both take."""
        __tracebackhide__ = True
        frozen = [x.copy() if isinstance(x, np.ndarray) else x for x in given]
        got = self.candidate(*frozen)
        out, vjp = got if isinstance(got, tuple) and len(got) == 2 and callable(got[1]) else (got, None)
        outs = list(out) if isinstance(out, tuple | list) else [out]
        names = ["output"] if len(shown) == 1 else [f"output {i}" for i in range(len(shown))]
        mine: dict[str, Any] = dict(zip(names, outs, strict=False))
        mine |= {f"output {i}": o for i, o in enumerate(outs) if i >= len(names)}
        wanted = [i for i, x in enumerate(given) if isinstance(x, np.ndarray) and x.dtype.kind in "fc"]
        cotangents: list[Array] = []
        if vjp is not None:
            cotangents = self._cotangents(shown, draw)
            mine |= _passed_back(vjp, cotangents, given, wanted, self.labels)

        def program() -> dict[str, Any]:
            tensors = [self._tensor(x) for x in given]
            if current() is not None:  # a float32 leaf would get its gradient rounded
                tensors = [widened(t) for t in tensors]
            for i in wanted:
                tensors[i].requires_grad_(vjp is not None)
            results = _several(self.torch_fn(*tensors))
            named = dict(zip(names, results, strict=True))
            if vjp is None:
                return named
            pairs = [
                (o, self._tensor(c).to(o.dtype))
                for o, c in zip([r for r in results if _has_gradient(r)], cotangents, strict=True)
                if o.requires_grad
            ]
            leaves = [tensors[i] for i in wanted]
            grads: Sequence[Any] = [None] * len(leaves)
            if pairs:
                grads = torch.autograd.grad([o for o, _ in pairs], leaves, [c for _, c in pairs], allow_unused=True)
            for i, t, g in zip(wanted, leaves, grads, strict=True):
                named[self.labels[i]] = torch.zeros_like(t) if g is None else g
            return named

        return mine, program, cotangents

    def _cotangents(self, shown: list[torch.Tensor], draw: Draw) -> list[Array]:
        outs = [o for o in shown if _has_gradient(o)]
        if self.cotangents is not None:
            if len(self.cotangents) != len(outs):
                raise ValueError(f"{len(outs)} outputs need as many cotangents, but got {len(self.cotangents)}")
            return [array(c)[0] for c in self.cotangents]
        found = []
        for o in outs:
            dtype = np.dtype(str(o.dtype).removeprefix("torch.").replace("bfloat16", "float32"))
            drawn = numbers(draw(length(tuple(o.shape), dtype)), tuple(o.shape), "normal", dtype)
            drawn = np.where(drawn == 0, dtype.type(1), drawn)  # a zero hides what stands behind it
            found.append(_as_bfloat16(drawn) if o.dtype is torch.bfloat16 else drawn)
        return found

    def _again(self, given: list[Any], cotangents: list[Array], kind: str) -> str:
        """The lines that show it once more."""
        lines = [line("inputs", f"{kind}; this shows it again:")]
        words = []
        for i, x in enumerate(given):
            words.append(f"x{i}" if isinstance(x, np.ndarray) else repr(x))
            if isinstance(x, np.ndarray):
                lines.append(f"    {assigned(f'x{i}', x)}")
        if cotangents:
            words.append(f"cotangents=[{', '.join(f'g{i}' for i in range(len(cotangents)))}]")
            lines += [f"    {assigned(f'g{i}', c)}" for i, c in enumerate(cotangents)]
        words += [f"dtype={self.dtype!r}"] if self.dtype == "bfloat16" else []
        return "\n".join([*lines, f"    check.op(candidate, torch_fn, {', '.join(words)})"])


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray | torch.Tensor) or (hasattr(x, "__array__") and not isinstance(x, np.generic))


def _several(out: Any) -> list[torch.Tensor]:
    return list(out) if isinstance(out, tuple | list) else [out]


def _has_gradient(t: torch.Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _as_bfloat16(a: Array) -> Array:
    """The same numbers as bfloat16 has them, in float32."""
    return torch.from_numpy(np.ascontiguousarray(a)).to(torch.bfloat16).float().numpy()
