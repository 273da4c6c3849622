"""One operation on drawn inputs: its value, and what it passes back."""

from __future__ import annotations

import inspect
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Any

import numpy as np
import torch

from oracle.check.arrays import Array, array
from oracle.check.comparing import Agreement, compared, form, said
from oracle.check.difference import Difference, fits, line, reasons, times
from oracle.check.drawing import KINDS, LEADING, assigned, choices, length, numbers, resolved
from oracle.check.fitting import Fitting, Sizes, key
from oracle.check.measuring import LIMIT, same_random_numbers
from oracle.check.modules import by_torch
from oracle.check.smaller import shorter
from oracle.operations.tape import REPLICAS
from oracle.systems.noise import Nothing, current, widened

_DTYPES = {
    "float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": np.float32,
    "complex64": np.complex64, "complex128": np.complex128,
}  # fmt: skip
Draw = Callable[[int], bytes]
# What torch raises for shapes, and numbers, that are none of its own: modules and functional.py assert some.
_REFUSALS = (RuntimeError, IndexError, ValueError, AssertionError)


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
    outputs are a tuple, or a dict, and their cotangents too; or a module of torch (a function of torch: `by_torch`). torch_fn: the same in
    ordinary torch. Where both draw random numbers, they begin at the same state of torch's, NumPy's and Python's generators.
    inputs: a tuple is a shape to be drawn: numbers are sizes, a name is drawn (equal names alike; also 1, and once 0), ``"3*name"``
    is a multiple of it, ``...`` is any number of dimensions. Where torch refuses some sizes, others are drawn that it takes; ValueError
    where too few draws are left that say something. Anything else is handed on as it is. ``kinds``: of numbers, see `KINDS`. ``dtype``: of drawn inputs;
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
    if isinstance(candidate, torch.nn.Module):
        candidate = by_torch(candidate, torch.bfloat16 if dtype == "bfloat16" else None)
    trial = Trial(candidate, torch_fn, inputs, dtype, cotangents, limit)
    for i, name in enumerate(_parameters(candidate)[: len(inputs)]):
        trial.labels[i] = f"gradient of {name} (input {i})"
    if not shapes:
        rows = trial(kinds[0], {}, (), _random_bytes(seed)).rows
        return _reported(Agreement(rows), report)
    leads = LEADING if any(... in s for s in shapes) else ()
    fitting = Fitting(choices(shapes), leads, lambda sizes: trial.takes(sizes, seed), 2 * draws, seed)
    trial.deadly = fitting.deadly
    search = _Search(trial)
    best: list[Agreement] = []
    try:
        best += _drawn(search, kinds, fitting, draws, seed)
        if _suffices(trial, fitting, kinds, draws):
            best += _empty(search, kinds[0], fitting, seed)
    except _Enough:
        pass
    if search.first is not None:
        search.looking = False
        search.reasoned(fitting, seed)
        _made_small(search, fitting, _AGAIN, seed)
        if search.best is None:
            _made_small(search, fitting, 4 * _AGAIN, seed + 1)
        failure = search.confirmed()
        raise failure
    if not _suffices(trial, fitting, kinds, draws):
        raise ValueError(_too_few(trial, fitting, kinds, draws))
    return _reported(max(best), report)


def _telling(trial: Trial, fitting: Fitting, kinds: Sequence[str]) -> tuple[int, str]:
    """How many of the draws that were judged say something, and of which name they say least: where all numbers are 0, or a size is
    always 1, much that is wrong is right.
    """
    some = [sizes for kind, sizes in trial.told if kind != "zeros" or set(kinds) == {"zeros"}]
    return min(((sum(sizes[n] > 1 for sizes in some), n) for n in fitting.names), default=(len(some), ""))


def _suffices(trial: Trial, fitting: Fitting, kinds: Sequence[str], draws: int) -> bool:
    """Whether a quarter of the draws says something, where torch has refused any."""
    return not trial.refused or _telling(trial, fitting, kinds)[0] * 4 >= draws


def _too_few(trial: Trial, fitting: Fitting, kinds: Sequence[str], draws: int) -> str:
    """What there was to judge, and why it was not more."""
    count, name = _telling(trial, fitting, kinds)
    words = f"torch refused {trial.refused} of {trial.called} draws ({trial.refusal})"
    if fitting.asked:
        words += f", and {fitting.asked - fitting.taken} of {fitting.asked} other shapes that it was asked about"
    if fitting.deadly:
        words += " (with some it crashed, and then it was asked about few)"
    judged = f"draws with {name} > 1 could be judged" if name else "draws could be judged"
    return (
        f"{words}: {count} {judged}, and {math.ceil(draws / 4)} are needed. Fix the shapes, so that they fit torch_fn, or let it "
        "bring the numbers to where it is defined, as in torch.sigmoid(x)"
    )


_RANDOM = line(
    "note", "torch_fn draws random numbers: what draws others differs. Judge it as after .eval(), or hand them to both"
)


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
    return said(agreement)


def _random_bytes(seed: int) -> Draw:
    rng = np.random.default_rng(seed)
    return lambda n: rng.bytes(n)


def _drawn(search: _Search, kinds: Sequence[str], fitting: Fitting, draws: int, seed: int) -> list[Agreement]:
    """The draws, dealt to the kinds in turn. What torch refuses is drawn again, with sizes that it takes."""
    found = []
    for i, sizes in enumerate(fitting.varied(draws)):
        for again in range(_PATIENCE):
            if again:
                sizes = fitting.another() or sizes
            agreement = search(kinds[i % len(kinds)], *sizes, np.random.default_rng([seed, i, again]).bytes)
            if agreement is not None:
                found.append(agreement)
                break
    return found


_PATIENCE = 6  # that the numbers of a draw are refused so often says that others will be, too


def _empty(search: _Search, kind: str, fitting: Fitting, seed: int) -> list[Agreement]:
    """Each size as 0, on top of the draws. Where torch or the candidate has no answer, as to the maximum of nothing, there is
    nothing to compare, and no matter of the shapes.
    """
    found = []
    sizes, leading = fitting.unlike if search.trial.refused else fitting.first
    for name in sizes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a mean of nothing
            found.append(search(kind, sizes | {name: 0}, leading, _random_bytes(seed)))
    return [agreement for agreement in found if agreement is not None]


def _made_small(search: _Search, fitting: Fitting, draws: int, seed: int) -> None:
    """Hypothesis draws until it meets the failure that the search is for, and makes it small."""
    import hypothesis
    from hypothesis import strategies as st

    # sizes by themselves get smaller, as long as torch takes many and survives all
    of_those = search.trial.refused > 0 and bool(fitting.found) and (fitting.rare or bool(fitting.deadly))
    leadings = sorted(fitting.leads, key=len)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=draws,
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        print_blob=False,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def run(data: Any) -> None:
        if of_those:
            sizes, leading = data.draw(st.sampled_from(fitting.found))
        else:
            sizes = {n: data.draw(st.sampled_from(sorted(some))) for n, some in fitting.names.items()}
            leading = data.draw(st.sampled_from(leadings))
        if search(search.kind, sizes, leading, lambda n: data.draw(st.binary(min_size=n, max_size=n))) is None:
            hypothesis.reject()

    with suppress(Exception, _Enough):  # whatever words Hypothesis has for the end
        run()


class _Enough(BaseException):
    """Ends a search, Hypothesis' too."""


_FAILED = Agreement(())
_AGAIN = 10  # draws to meet a failure again, where the smallest sizes come first: Hypothesis moves towards those


class _Search:
    """First the failure to be shown is looked for: that of the earliest tensor in all draws, for a gradient may be wrong because the
    output is. Then it is made smaller, as long as it stays the same one: by so many calls and no more, however slow the
    operation is, and with few replicas. What comes out of it is judged by all of them.
    """

    MOST, FEW, MORE, OTHERS = 120, 3, 200, 6

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
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
            return self.trial(kind, *drawn)
        except Exception as error:
            raised = not isinstance(error, Difference)
            if 0 in drawn[0].values() and (raised or not self._tells(error, *drawn)):
                return None
            if self.first is not None and (raised or _rank(error) >= _rank(self.first)):
                return _FAILED
            self.first, self.kind = error, kind
            if _rank(error) > 0:
                return _FAILED
        raise _Enough

    def _tells(self, error: Exception, sizes: dict[str, int], leading: tuple[int, ...], draw: Draw) -> bool:
        """Whether a difference of empty arrays says something. To refuse them is no wrong value, and neither is nan: 0 / 0 is nan
        in one formula and left out in another. Nor is a shape of torch's with which it does not go on from those of 2 and 1:
        its convolution of no channels has none.
        """
        if not _is_finite(error):
            return False
        ones, twos = ({n: k or some for n, k in sizes.items()} for some in (1, 2))
        try:
            shapes = [[t.shape for t in self.trial.shaped((s, leading), draw).values()] for s in (sizes, ones, twos)]
        except Exception:  # one of these it does not take
            return True
        return all(
            len(none) == len(one) == len(two)
            and all(n == max(0, 2 * k - m) for n, k, m in zip(none, one, two, strict=True))
            for none, one, two in zip(*shapes, strict=True)
        )

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

    def reasoned(self, fitting: Fitting, seed: int) -> None:
        """What the first failure's factor may come from is said if it holds in other draws too, in which it is another number."""
        first = self.first
        if not isinstance(first, Difference) or (factor := _factor(first)) is None:
            return
        left = {what: value for what, value in reasons(first.shape).items() if fits(factor, value)}
        if not left:
            return
        self.trial.most = self.FEW
        holds = ""
        for i, sizes in (
            enumerate(fitting.varied(self.OTHERS + 1)[1:]) if fitting.names or len(fitting.leads) > 1 else ()
        ):
            drawn = (fitting.another() or sizes) if self.trial.refused else sizes
            try:
                self.trial(self.kind, *drawn, np.random.default_rng([seed, i, 1]).bytes)
            except Difference as other:
                another, values = _factor(other), reasons(other.shape)
                if other.name != first.name or another is None:
                    continue
                moved = [what for what, value in left.items() if values.get(what, value) != value]
                holds = next((what for what in moved if fits(another, values[what])), "")
                left = {what: value for what, value in left.items() if what not in moved}
            except Exception:  # a matter of its own
                continue
            if holds or not left:
                break
        said = line("as if", times(factor, holds))
        first.args = ("\n".join(said if _factor_of(text) else text for text in str(first).splitlines()),)

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


def _is_finite(error: Exception) -> bool:
    """Whether a difference is one of numbers, or of form."""
    return all(x is None or bool(np.isfinite(x)) for x in (getattr(error, "ours", None), getattr(error, "truth", None)))


def _rank(error: Exception) -> int:
    """How early the tensor is that an error is about: 0 the first one, or all."""
    if not isinstance(error, Difference) or not error.name:
        return 0
    numbered = re.search(r"(\d+)\)?$", error.name)
    return (1000 if error.name.startswith("gradient") else 0) + int(numbered[1] if numbered else 0)


def _behind_the_search(error: Exception) -> TracebackType | None:
    """An error's traceback from the candidate, or torch_fn, on: what Hypothesis does before it is of no use to anybody."""
    at = error.__traceback__
    while at is not None and at.tb_frame.f_code not in (Trial._compared.__code__, Trial.outputs.__code__):
        at = at.tb_next
    return error.__traceback__ if at is None else at


def _what(error: Exception) -> tuple[Any, ...]:
    """What failed, and how: a number beside none is something else than one number beside another."""
    if not isinstance(error, Difference):
        return (type(error),)
    finite = [bool(np.isfinite(x).all()) if x is not None else None for x in (error.ours, error.truth)]
    return (error.name, str(error).splitlines()[0], *finite)


_OF_THE_FIRST = tuple(line(what, "").rstrip() for what in ("as if", "before it", "after it"))


def _factor_of(text: str) -> str:
    """The factor in a line of a message, if it is the one with it."""
    found = re.match(r" +as if +torch's times (\S+)", text)
    return "" if found is None else found[1]


def _factor(error: Difference) -> float | None:
    """By what number a candidate's is torch's; None if it is by none, or a complex one."""
    found = next(filter(None, map(_factor_of, str(error).splitlines())), "")
    return float(found) if found and "j" not in found else None


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
    vjp: Callable[..., Any],
    cotangents: list[Array],
    names: list[str],
    given: list[Any],
    wanted: list[int],
    labels: list[str],
) -> dict[str, Any]:
    """The candidate's gradients by name. ``names``: of the outputs that have gradients, where the candidate gives them names."""
    copies = tuple(c.copy() for c in cotangents)
    cotangent = dict(zip(names, copies, strict=True)) if names else copies[0] if len(copies) == 1 else copies
    back = vjp(cotangent)
    back = list(back) if isinstance(back, tuple | list) else [back]
    if len(back) == len(given) != len(wanted):  # one for each input, as jax.vjp has them
        back = [back[i] for i in wanted]
    if len(back) != len(wanted):
        raise Difference(
            f"vjp gave {len(back)} gradient{'s' * (len(back) != 1)}, but {len(wanted)} inputs have one: "
            f"{', '.join(labels[i].removeprefix('gradient of ') for i in wanted)}"
        )
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
        self.random = False  # whether torch has drawn random numbers
        self.deadly: set[tuple[int, ...]] = set()  # sizes with which torch ends the process
        self.told: list[
            tuple[str, dict[str, int]]
        ] = []  # kind and sizes of the draws that agreed, of more than a number

    def __call__(self, kind: str, sizes: dict[str, int], leading: tuple[int, ...], draw: Draw) -> Any:
        """The agreement; None if torch refuses shapes that were drawn."""
        __tracebackhide__ = True
        given = self._given(kind, sizes, leading, draw)
        self.called += 1
        try:
            self._lives((sizes, leading))
            shown = self.outputs(given)
        except _REFUSALS as error:
            if not self.drawn:
                raise
            self.refused += 1
            self.refusal = (str(error).splitlines() or [type(error).__name__])[0]
            return None
        agreement = self.judged(given, shown, draw, kind)
        drawn = [a.size for a, x in zip(given, self.inputs, strict=True) if isinstance(x, tuple)]
        if min(drawn, default=0) > 0 and max(drawn) > 1:
            self.told.append((kind, sizes))
        return agreement

    def _given(self, kind: str, sizes: dict[str, int], leading: tuple[int, ...], draw: Draw) -> list[Any]:
        """What both are called with."""
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
        return given

    def takes(self, sizes: Sizes, seed: int) -> bool:
        """Whether torch takes shapes, be it with ordinary numbers."""
        try:
            self.shaped(sizes, _random_bytes(seed))
        except Exception:  # what is no refusal is raised where it is judged
            return False
        return True

    def shaped(self, sizes: Sizes, draw: Draw) -> dict[str, torch.Tensor]:
        """What torch gives for ordinary numbers in such shapes."""
        self._lives(sizes)
        return self.outputs(self._given("normal", *sizes, draw))

    def _lives(self, sizes: Sizes) -> None:
        """RuntimeError, as torch raises it for sizes that do not fit, where torch does not look at them and would crash."""
        if key(sizes) in self.deadly:
            raise RuntimeError(f"torch crashed when it was tried with {sizes[0]}")

    def once_more(self, inputs: Sequence[Array], cotangents: Sequence[Array], kind: str) -> Agreement:
        """The arrays of a failure again, or such as they could be."""
        arrays = iter(inputs)
        given = [next(arrays) if isinstance(x, tuple) or _is_array(x) else x for x in self.inputs]
        had, self.cotangents = self.cotangents, cotangents or self.cotangents
        try:
            return self.judged(given, self.outputs(given), _random_bytes(0), kind)
        finally:
            self.cotangents = had

    def judged(self, given: list[Any], shown: dict[str, torch.Tensor], draw: Draw, kind: str) -> Agreement:
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
            if isinstance(error, AttributeError | TypeError) and "numpy.ndarray" in str(error):
                error.add_note("It gets NumPy arrays; a function of torch gets tensors as check.by_torch(candidate).")
            raise

    def outputs(self, given: list[Any]) -> dict[str, torch.Tensor]:
        """What torch gives by name, for its form."""
        __tracebackhide__ = True
        before = torch.get_rng_state()
        try:
            empty = any(isinstance(x, np.ndarray) and not x.size for x in given)
            with torch.no_grad(), Nothing() if empty else nullcontext():
                results = _by_name(self.torch_fn(*(self._tensor(x) for x in given)))
        except (AttributeError, TypeError) as error:
            sizes = [x for x in given if isinstance(x, list) and x and all(type(n) is int for n in x)]
            if not sizes:
                raise
            said = str(error).splitlines()[0]
            raise TypeError(
                f"a shape is a tuple: {_as_tuple(sizes[0])}; torch_fn does not take the list {sizes[0]!r} ({said})"
            ) from None
        self.random = self.random or not torch.equal(before, torch.get_rng_state())
        for name, out in results.items():
            if not isinstance(out, torch.Tensor):
                raise TypeError(
                    "torch_fn returns a tensor, a tuple of tensors or tensors by name, and nothing within one another, "
                    f"but {name} is of the type {type(out).__name__}"
                )
        return results

    def _tensor(self, x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        t = torch.from_numpy(x.copy())
        return t.to(torch.bfloat16) if self.dtype == "bfloat16" and t.dtype is torch.float32 else t

    def _compared(self, given: list[Any], shown: dict[str, torch.Tensor], draw: Draw, kind: str) -> Agreement:
        __tracebackhide__ = True
        cotangents: list[Array] = []
        try:
            mine, program, cotangents = self.paired(given, shown, draw)
            return compared(mine, program, self.limit, most=self.most)
        except Difference as difference:
            difference.cotangents = tuple(cotangents)
            words = [str(difference), *([_RANDOM] if self.random else []), self._again(given, cotangents, kind)]
            difference.args = ("\n".join(words),)
            raise

    def paired(
        self, given: list[Any], shown: dict[str, torch.Tensor], draw: Draw
    ) -> tuple[dict[str, Any], Callable[[], dict[str, Any]], list[Array]]:
        """What the candidate gives by name, the program that it is held to, and the cotangents that both take."""
        __tracebackhide__ = True
        frozen = [x.copy() if isinstance(x, np.ndarray) else x for x in given]
        again = same_random_numbers()
        got = self.candidate(*frozen)
        again()  # what torch draws, the candidate could draw too
        out, vjp = got if isinstance(got, tuple) and len(got) == 2 and callable(got[1]) else (got, None)
        names = list(shown)
        if out is None:
            raise Difference("the candidate gave None and no output: is there a `return`?")
        mine = _by_name(out, one=len(names) == 1)
        _same_structure(isinstance(out, Mapping), list(mine), names)
        if not isinstance(out, Mapping):  # in torch's order
            mine = dict(zip(names, mine.values(), strict=True))
        wanted = [i for i, x in enumerate(given) if isinstance(x, np.ndarray) and x.dtype.kind in "fc"]
        cotangents: list[Array] = []
        if (
            vjp is not None
        ):  # it is made for outputs of the candidate's form, and would fail on torch's in words of its own
            form(
                {n: None if a is None else array(a, f"the candidate's {n}")[0] for n, a in mine.items()},
                {n: array(t)[0] for n, t in shown.items()},
            )
            cotangents = self._cotangents(list(shown.values()), draw)
            floats = [n for n, o in shown.items() if _has_gradient(o)] if isinstance(out, Mapping) else []
            mine |= _passed_back(vjp, cotangents, floats, given, wanted, self.labels)

        def program() -> dict[str, Any]:
            tensors = [self._tensor(x) for x in given]
            if current() is not None:  # a float32 leaf would get its gradient rounded
                tensors = [widened(t) for t in tensors]
            for i in wanted:
                tensors[i].requires_grad_(vjp is not None)
            named = _by_name(self.torch_fn(*tensors))
            results = list(named.values())
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


def _by_name(out: Any, one: bool = False) -> dict[str, Any]:
    """One output, several, or such as have names. Lists of numbers, as a loop in Python makes them, are an array, if it is to be one."""
    if isinstance(out, Mapping):
        return {str(name): o for name, o in out.items()}
    if isinstance(out, tuple) or (isinstance(out, list) and not (one and _is_of_numbers(out))):
        return {"output": out[0]} if len(out) == 1 else {f"output {i}": o for i, o in enumerate(out)}
    return {"output": out}


def _same_structure(by_name: bool, mine: list[str], torchs: list[str]) -> None:
    """One output, several, or a dict of them: `Difference` where torch has another. Names in dicts are compared with the numbers."""
    __tracebackhide__ = True
    if set(torchs) == {"output"}:
        has = "a tensor"
    elif all(re.fullmatch(r"output \d+", name) for name in torchs):
        has = f"a tuple of {len(torchs)}"
    else:
        has = f"a dict with {_quoted(torchs)}"
    if by_name and not has.startswith("a dict") and set(mine) != set(torchs):
        raise Difference(f"the candidate gave a dict with {_quoted(mine)}, torch {has}")
    if not by_name and len(mine) != len(torchs):
        words = f" ({has})" if has.startswith("a dict") else ""
        raise Difference(f"the candidate gave {len(mine)} output{'s' * (len(mine) != 1)}, torch {len(torchs)}{words}")


def _quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def _is_of_numbers(x: Any) -> bool:
    return all(map(_is_of_numbers, x)) if isinstance(x, list) else isinstance(x, int | float | complex | np.generic)


def _has_gradient(t: torch.Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _as_bfloat16(a: Array) -> Array:
    """The same numbers as bfloat16 has them, in float32."""
    return torch.from_numpy(np.ascontiguousarray(a)).to(torch.bfloat16).float().numpy()
