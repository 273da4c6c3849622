"""Which of the usual mistakes explains the numbers of an optimizer or of clipping? NumPy alone.

All of them are tried, on every parameter and on every step that is at hand, and each must do more than come near: what it leaves
unexplained is a tenth of what is to be explained, at most. Where several do, all are told, for nobody can know which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.cases import case as c
from oracle.cases import inputs
from oracle.operations.tape import TINY, U
from oracle.rules.update import L_LIMIT, expected_update
from oracle.rules.verdict import Clipping, Explanation, Update

Array = npt.NDArray[Any]

LEFT = 0.1  # of what is to be explained, at most, may be left
NEAR = 32 * U  # relative, of a norm
TOLD = 3  # explanations that are told; of more, these


def told(found: Sequence[Explanation]) -> str:
    """Explanations in words: the one that fits, or that several do."""
    if len(found) < 2:
        return "".join(e.words for e in found)
    more = ", and others" if len(found) > TOLD else ""
    return f"several explanations fit: {' / '.join(e.words for e in found[:TOLD])}{more}"


def common(smaller: Sequence[Explanation], larger: Sequence[Explanation]) -> tuple[Explanation, ...]:
    """What explains two cases of one fault, in the words of the first: a small case leaves much open."""
    known = {e.key for e in larger}
    return tuple(e for e in smaller if e.key in known)


@dataclass(frozen=True)
class Guess:
    """What a mistake would give: quantity -> value. The first is what it is about; all must be there."""

    words: str
    values: Mapping[str, Array]
    key: str  # the same on every parameter, and in every case


def _guess(quantity: str, words: str, value: Array, key: str = "") -> Guess:
    return Guess(words, {quantity: value}, key or words)


class _Numbers:
    """One update: what is right, what is there, and what each mistake would give."""

    def __init__(self, case: c.TrainCase, quantity: str, step: Update, rate: float | None) -> None:
        self.step, self.quantity = step, quantity
        guesses: Callable[[Any, Update, float | None], Iterator[Guess]]
        guesses = {c.SGD: _sgd, c.Adam: _adam}[type(case.optimizer)]  # type: ignore[assignment]
        if quantity == "gradient after step":
            guesses = _written
        given = np.asarray(step.rates[-1]), step.p, step.g, step.old, np.asarray(float(step.index + 1))
        self.expected = expected_update(case, *given, 0).values
        self.guesses = [g for g in guesses(case.optimizer, step, rate) if next(iter(g.values)) == quantity]
        self.ours = step.new.get(quantity)
        right, bound = self.expected.get(quantity, (step.g, np.zeros(step.g.shape)))
        self.right, self.allowed = right, L_LIMIT * bound + TINY
        self.whole = self.ours is not None and self.ours.shape == step.p.shape
        self.wrong = self.whole and not bool((self._off(right) <= self.allowed).all())

    def _off(self, value: Array) -> Array:
        assert self.ours is not None
        off: Array = np.abs(self.ours - value)
        return off

    def fits(self, guess: Guess, *, wrong: bool | None = None) -> bool:
        """Whether a mistake gives the numbers that are there; where they are wrong, all but a tenth of how wrong they are."""
        for quantity, value in guess.values.items():
            ours = self.step.new.get(quantity)
            if ours is None or ours.shape != value.shape:
                return False
            slack = self.expected[quantity][1] if quantity in self.expected else 0.0
            if not bool((np.abs(ours - value) <= 3 * slack + 6 * U * np.abs(value) + TINY).all()):
                return False
        if not (self.wrong if wrong is None else wrong):
            return True
        left, all_of_it = (self._off(value) / self.allowed for value in (guess.values[self.quantity], self.right))
        return bool(np.sqrt((left * left).sum()) <= LEFT * np.sqrt((all_of_it * all_of_it).sum()))


def optimizer_words(case: c.TrainCase, quantity: str, step: Update) -> tuple[Explanation, ...]:
    """The usual mistakes that give needle's numbers: for every parameter and step, or for all of those of a kind that says so."""
    with np.errstate(all="ignore"):
        rate = _rate(case.optimizer, step) if quantity == "parameter" else None
        first = _Numbers(case, quantity, step, rate)
        if not first.whole:
            return ()
        fitting = {g.key: g for g in reversed(first.guesses) if first.fits(g, wrong=True)}
        rest = [n for n in (_Numbers(case, quantity, other, rate) for other in step.beside) if n.whole]
        without: dict[str, list[Update]] = {}  # mistake -> the updates that are right, and would not be
        for numbers in rest:
            theirs: dict[str, list[Guess]] = {}
            for g in numbers.guesses:
                theirs.setdefault(g.key, []).append(g)
            for key in list(fitting):
                if any(numbers.fits(g) for g in theirs.get(key, ())):
                    continue
                if numbers.wrong:
                    del fitting[key]
                elif key in theirs:
                    without.setdefault(key, []).append(numbers.step)
    ordered = [fitting[g.key] for g in first.guesses if fitting.get(g.key) is g]
    whole = tuple(Explanation(g.key, g.words) for g in ordered if g.key not in without)
    if whole:
        return whole
    wrong = [step, *(n.step for n in rest if n.wrong)]
    of = {g.key: _apart_by(wrong, without[g.key]) for g in ordered}
    return tuple(Explanation(g.key + of[g.key], g.words + of[g.key]) for g in ordered if of[g.key])


def _apart_by(wrong: Sequence[Update], right: Sequence[Update]) -> str:
    """By what updates that are wrong can be told from those that are not: the first step, vectors, or many elements."""
    if all(u.index == 0 for u in wrong) and all(u.index > 0 for u in right):
        return ", in the first step"

    def vector(u: Update) -> bool:
        return u.p.size == max(u.p.shape, default=1)

    if all(map(vector, wrong)) and not any(map(vector, right)):
        return ", of parameters that are vectors"
    least, most = min(u.p.size for u in wrong), max(u.p.size for u in right)
    return f", of a parameter of {least:,} elements and not of one of {most:,}" if least > max(most, 1000) else ""


def _half(x: Any) -> Any:
    return np.asarray(x).astype(np.float16).astype(np.float64)


def _earlier(s: Update, setting: str, now: float) -> list[float]:
    """What a setting was before, where it was something else."""
    return [value for value in dict.fromkeys(reversed(s.past.get(setting, ()))) if value != now]


def _written(spec: Any, s: Update, rate: float | None) -> Iterator[Guess]:
    decay = spec.weight_decay or 0.0
    rest = 1 - (getattr(spec, "momentum", None) or 0.0)
    d = s.g + decay * s.p
    for words, value in (
        ("the decay is added to the gradient in place", d),
        ("the gradient is scaled with 1 − β in place", rest * s.g),
        ("the decay is added and 1 − β multiplied in place", rest * d),
        ("the gradient is zeroed", 0 * s.g),
        ("the gradient holds the new velocity", s.new.get("velocity", s.g)),
    ):
        yield _guess("gradient after step", words, value)


def _sgd(spec: c.SGD, s: Update, rate: float | None) -> Iterator[Guess]:
    """Wrong steps of SGD. The velocity's come first."""
    beta, decay, lr = spec.momentum or 0.0, spec.weight_decay or 0.0, s.rates[-1]
    g, p, old, rest = s.g, s.p, s.old["velocity"], 1 - beta
    d = g + decay * p
    u = s.new.get("velocity")
    u = beta * old + rest * d if u is None else u
    truth = beta * old + rest * d
    outside = (
        ("the decay is outside the momentum: θ − α(u + λθ)", p - lr * (u + decay * p)),
        ("the decay is outside the momentum, without the learning rate: θ − αu − λθ", p - lr * u - decay * p),
    )
    if decay:
        undecayed = beta * old + rest * g
        for words, moved in (("the decay is missing: g′ = g", p - lr * u), *outside):
            yield Guess(words, {"velocity": undecayed, "parameter": moved}, words)
    velocities = [
        ("as if undampened: u = βu + g′", beta * old + d),
        ("the decay has the wrong sign: g′ = g − λθ", beta * old + rest * (g - decay * p)),
        ("the decay counts twice: g′ = g + 2λθ", beta * old + rest * (g + 2 * decay * p)),
        ("the decay is not dampened: u = βu + (1 − β)g + λθ", beta * old + rest * g + decay * p),
        ("the old velocity is taken as zero: u = (1 − β)g′", rest * d),
        ("dampened twice: u = βu + (1 − β)²g′", beta * old + rest * rest * d),
        ("the old velocity is not multiplied with β: u = u + (1 − β)g′", old + rest * d),
        ("the old velocity decays with β²", beta * beta * old + (1 - beta * beta) * d),
        ("the old velocity decays with β²", beta * beta * old + rest * d),
        ("β and 1 − β change places: u = (1 − β)u + βg′", rest * old + beta * d),
        ("without momentum: u = g′", d),
        ("the velocity stays what it was", old),
        ("the gradient enters with the wrong sign", beta * old - rest * d),
        ("the learning rate is in the velocity: u = βu + α(1 − β)g′", beta * old + lr * rest * d),
        ("the learning rate is in the velocity, undampened: u = βu + αg′", beta * old + lr * d),
        ("1 − β is computed in float32", beta * old + float(np.float32(1) - np.float32(beta)) * d),
        ("β is rounded to float16", float(_half(beta)) * old + (1 - float(_half(beta))) * d),
        ("λ is rounded to float16", beta * old + rest * (g + float(_half(decay)) * p)),
        ("the velocity is rounded to float16", _half(truth)),
        ("the gradient is rounded to float16", beta * old + rest * (_half(g) + decay * p)),
    ]
    if s.raw is not None:
        velocities.append(("the gradient before clipping is used", beta * old + rest * (s.raw + decay * p)))
    if decay > 1:
        velocities.append(("λ is taken as 1", beta * old + rest * (g + p)))
    for words, value in velocities:
        yield _guess("velocity", words, value)
    for was in _earlier(s, "momentum", beta):
        yield _guess("velocity", f"β is stale: {was:g}, not {beta:g}", was * old + (1 - was) * d, "β is stale")
        yield _guess(
            "velocity", f"β of 1 − β is stale: {was:g}, not {beta:g}", beta * old + (1 - was) * d, "1 − β is stale"
        )
    for was in _earlier(s, "weight_decay", decay):
        yield _guess("velocity", f"λ is stale: {was:g}, not {decay:g}", beta * old + rest * (g + was * p), "λ is stale")
    for name, (grad, state) in s.others.items():
        if name != s.name and grad.shape == g.shape:
            value = beta * old + rest * (grad + decay * p)
            yield _guess("velocity", f"the gradient of {name} is used", value, "the gradient of another one is used")
            if "velocity" in state:
                value = beta * state["velocity"] + rest * d
                yield _guess(
                    "velocity", f"the velocity of {name} is used", value, "the velocity of another one is used"
                )
    yield from (_guess("parameter", words, value) for words, value in outside)
    yield from _rates(s, 0.01, lambda rate: p - rate * u)
    updates = [
        ("the parameter stays what it was", p),
        ("the old velocity is used: θ − αu₀", p - lr * old),
        ("Nesterov's look-ahead: θ − α(βu + (1 − β)g′)", p - lr * (beta * u + rest * d)),
        ("Nesterov's look-ahead: θ − α(βu + g′)", p - lr * (beta * u + d)),
        ("as if undampened: θ − α(βu + g′)", p - lr * (beta * old + d)),
        ("the gradient is used, not the velocity: θ − αg′", p - lr * d),
        ("the gradient is used, without decay: θ − αg", p - lr * g),
        ("the step goes uphill: θ + αu", p + lr * u),
        ("the step is made twice", p - 2 * lr * u),
        ("1 − β is multiplied in once more", p - lr * rest * u),
        ("the velocity is divided by 1 − β", p - lr * u / rest),
        ("the velocity is corrected for its start, as Adam's is", p - lr * u / (1 - beta ** (s.index + 1))),
        ("α is rounded to float16", p - float(_half(lr)) * u),
        ("the parameter is rounded to float16", _half(p - lr * u)),
        ("the update is rounded to float16", p - _half(lr * u)),
    ]
    for words, value in updates:
        yield _guess("parameter", words, value)
    yield from _as_if(s, rate, lambda rate: p - rate * u)


def _rates(s: Update, default: float, moved: Callable[[float], Array]) -> Iterator[Guess]:
    """Steps at another learning rate."""
    lr = s.rates[-1]
    for rate in dict.fromkeys(reversed(s.rates)):
        if rate != lr:
            yield _guess("parameter", f"the learning rate is stale: {rate:g}, not {lr:g}", moved(rate), "α is stale")
    if default != lr:  # also where it was in force before: then nobody can know which it is
        yield _guess(
            "parameter",
            f"the learning rate is the default: {default:g}, not {lr:g}",
            moved(default),
            "α is the default",
        )
    if lr > 1:
        yield _guess("parameter", "α is taken as 1", moved(1.0))


def _as_if(s: Update, rate: float | None, moved: Callable[[float], Array]) -> Iterator[Guess]:
    """A step at the learning rate that the first of the wrong ones looks like, unless that one is told already."""
    told_already = (*s.rates, 0.01, 1.0 if s.rates[-1] > 1 else 0.01)
    if rate is not None and not np.isclose(told_already, rate, rtol=1e-4, atol=0).any():
        words = f"as if the learning rate were {rate:g}, not {s.rates[-1]:g}"
        yield _guess("parameter", words, moved(rate), "α is another one")


def _rate(spec: c.Optimizer, s: Update) -> float | None:
    """The learning rate, in as few digits as the numbers tell, that a step looks like; None where that says nothing.

    What explains a factor may be told as something else, a default for one. Adam's corrections are factors too, but not
    the same ones in every step.
    """
    new = s.new.get("parameter")
    if new is None or new.shape != s.p.shape:
        return None
    if isinstance(spec, c.SGD):
        way = s.new.get("velocity")
    else:
        if len({u.index for u in (s, *s.beside)}) < 2:
            return None
        b1, b2 = (default if given is None else given for given, default in ((spec.beta1, 0.9), (spec.beta2, 0.999)))
        eps, t = 1e-8 if spec.eps is None else spec.eps, s.index + 1
        m, v = s.new.get("first moment"), s.new.get("second moment")
        way = None if m is None or v is None else m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    size = 0.0 if way is None or way.shape != s.p.shape else float((way * way).sum())
    if way is None or not 0 < size < np.inf:
        return None
    found = float(((s.p - new) * way).sum()) / size
    if not 0 < found < np.inf:
        return None
    off = 4 * U * (found + float(np.sqrt((s.p * s.p).sum() / size)))  # what rounding in the parameters makes of it
    return next(r for d in range(1, 18) if abs((r := float(f"{found:.{d}g}")) - found) <= off)


def _adam(spec: c.Adam, s: Update, rate: float | None) -> Iterator[Guess]:
    """Wrong steps of Adam."""
    lr, t = s.rates[-1], s.index + 1
    decay = spec.weight_decay or 0.0
    b1 = 0.9 if spec.beta1 is None else spec.beta1
    b2 = 0.999 if spec.beta2 is None else spec.beta2
    eps = 1e-8 if spec.eps is None else spec.eps
    g, p, m0, v0 = s.g, s.p, s.old["first moment"], s.old["second moment"]
    d = g + decay * p
    m = s.new.get("first moment", b1 * m0 + (1 - b1) * d)
    v = s.new.get("second moment", b2 * v0 + (1 - b2) * d * d)
    for words, value in (
        ("the decay is missing, or decoupled as in AdamW", b1 * m0 + (1 - b1) * g),
        ("the decay has the wrong sign", b1 * m0 + (1 - b1) * (g - decay * p)),
        ("as if undampened: m = β₁m + g′", b1 * m0 + d),
        ("the old moment is taken as zero", (1 - b1) * d),
        ("β₁ and β₂ change places", b2 * m0 + (1 - b2) * d),
        ("1 − β₁ is computed in float32", b1 * m0 + float(np.float32(1) - np.float32(b1)) * d),
        ("the moment stays what it was", m0),
    ):
        yield _guess("first moment", words, value)
    for was in _earlier(s, "beta1", b1):
        yield _guess("first moment", f"β₁ is stale: {was:g}, not {b1:g}", was * m0 + (1 - was) * d, "β₁ is stale")
    for was in _earlier(s, "weight_decay", decay):
        value = b1 * m0 + (1 - b1) * (g + was * p)
        yield _guess("first moment", f"λ is stale: {was:g}, not {decay:g}", value, "λ is stale")
    for words, value in (
        ("the decay is missing from g²", b2 * v0 + (1 - b2) * g * g),
        ("|g| is averaged, not g²", b2 * v0 + (1 - b2) * np.abs(d)),
        ("it never falls, as in AMSGrad", np.maximum(v0, b2 * v0 + (1 - b2) * d * d)),
        ("as if undampened: v = β₂v + g′²", b2 * v0 + d * d),
        ("the old moment is taken as zero", (1 - b2) * d * d),
        ("β₁ is used for β₂", b1 * v0 + (1 - b1) * d * d),
        ("1 − β₂ is computed in float32", b2 * v0 + float(np.float32(1) - np.float32(b2)) * d * d),
        ("the moment stays what it was", v0),
    ):
        yield _guess("second moment", words, value)
    for was in _earlier(s, "beta2", b2):
        yield _guess("second moment", f"β₂ is stale: {was:g}, not {b2:g}", was * v0 + (1 - was) * d * d, "β₂ is stale")
    c1, c2 = 1 - b1**t, 1 - b2**t
    roots = np.sqrt(v / c2)
    updates = [
        ("no bias correction", p - lr * m / (np.sqrt(v) + eps)),
        ("only the first moment is corrected", p - lr * m / c1 / (np.sqrt(v) + eps)),
        ("only the second moment is corrected", p - lr * m / (roots + eps)),
        ("ε is inside the square root", p - lr * m / c1 / np.sqrt(v / c2 + eps)),
        ("ε is added before the correction of v", p - lr * m / c1 / ((np.sqrt(v) + eps) / np.sqrt(c2))),
        ("v is divided by, not its root", p - lr * m / c1 / (v / c2 + eps)),
        ("the decay is outside, as in AdamW", p - lr * (m / c1 / (roots + eps) + decay * p)),
        ("the decay is outside, as in AdamW", (1 - lr * decay) * p - lr * m / c1 / (roots + eps)),
        ("the parameter stays what it was", p),
        ("the step goes uphill", p + lr * m / c1 / (roots + eps)),
        ("the gradient is used, not the first moment", p - lr * d / (roots + eps)),
        ("α is rounded to float16", p - float(_half(lr)) * m / c1 / (roots + eps)),
        ("the parameter is rounded to float16", _half(p - lr * m / c1 / (roots + eps))),
    ]
    for k in dict.fromkeys((1, t - 1, t + 1, *range(1, 2 * t + 6))):
        if k >= 1:  # the right one, too: a counter that stands still is right at first
            a, b = 1 - b1**k, 1 - b2**k
            value = p - lr * m / a / (np.sqrt(v / b) + eps)
            yield _guess("parameter", f"the step counter is {k}, not {t}", value, "the step counter is another one")
    yield from _rates(s, 0.01, lambda rate: p - rate * m / c1 / (roots + eps))
    for was in _earlier(s, "eps", eps):
        yield _guess("parameter", f"ε is stale: {was:g}, not {eps:g}", p - lr * m / c1 / (roots + was), "ε is stale")
    if eps > 1:
        updates.append(("ε is taken as 1", p - lr * m / c1 / (roots + 1)))
    for words, value in updates:
        yield _guess("parameter", words, value)
    yield from _as_if(s, rate, lambda rate: p - rate * m / c1 / (roots + eps))


def clip_words(case: c.TrainCase, quantity: str, clipping: Clipping) -> tuple[Explanation, ...]:
    """The usual mistakes of clipping that give needle's numbers."""
    assert case.clip is not None
    most = 0.25 if case.clip.max_norm is None else case.clip.max_norm
    place = {slot.name: i for i, slot in enumerate(inputs.slots(case)[0])}  # gradients are taken down last layer first
    raw = dict(sorted(clipping.raw.items(), key=lambda item: place.get(item[0], len(place))))
    squares = {n: float((g * g).sum()) for n, g in raw.items()}
    norm = float(np.sqrt(sum(squares.values())))
    if quantity == "clip norm":
        between = range(2, len(raw) - 1)  # one, and all but one, are told by their names
        guesses: list[tuple[str, float]] = [
            ("the sum of squares, without the root", norm * norm),
            ("the sum of absolute values", sum(float(np.abs(g).sum()) for g in raw.values())),
            ("the largest absolute value", max((float(np.abs(g).max(initial=0)) for g in raw.values()), default=0.0)),
            ("the sum of the norms", sum(float(np.sqrt(s)) for s in squares.values())),
            ("the norm after clipping", min(1.0, most / (norm + 1e-6)) * norm),
            ("1e-6 is a part of it", norm + 1e-6),
            ("every parameter counts twice", float(np.sqrt(2)) * norm),
            *((f"{n} counts twice", float(np.sqrt(norm * norm + s))) for n, s in squares.items() if len(raw) > 1),
            ("the mean square", norm / np.sqrt(max(1, sum(g.size for g in raw.values())))),
            *(
                (f"{n} is left out", _together([s for other, s in squares.items() if other != n]))
                for n in squares
                if len(raw) > 1
            ),
            *((f"the norm of {n} alone", float(np.sqrt(s))) for n, s in squares.items() if len(raw) > 1),
            *(
                (f"only the first {k} of {len(raw)} gradients count", _together(list(squares.values())[:k]))
                for k in between
            ),
            *(
                (f"only the last {k} of {len(raw)} gradients count", _together(list(squares.values())[-k:]))
                for k in between
            ),
            ("the gradients are rounded to float16", float(np.sqrt(sum(_norm(_half(g)) ** 2 for g in raw.values())))),
            *(
                (
                    f"the gradient of {n} is rounded to float16",
                    float(np.sqrt(norm * norm - s + _norm(_half(raw[n])) ** 2)),
                )
                for n, s in squares.items()
                if len(raw) > 1
            ),
            ("no gradient counts", 0.0),
        ]
        off = abs(clipping.norm - norm)
        # a single number comes near to many guesses by chance: what fits is as exact as a sum in float32
        fitting = [
            w for w, x in guesses if abs(clipping.norm - x) <= min(NEAR * abs(x), LEFT * off) and _apart(x, norm)
        ]
        return tuple(Explanation(words, words) for words in dict.fromkeys(fitting))
    factor = min(1.0, most / (norm + 1e-6))
    scaled: list[tuple[str, Callable[[Array], Array]]] = [
        ("not clipped", lambda g: g),
        ("clipped by its own norm, not by that of all gradients", lambda g: g * min(1.0, most / (_norm(g) + 1e-6))),
        ("scaled up to max_norm", lambda g: g * (most / (norm + 1e-6))),
        ("the factor is max_norm / norm, without 1e-6", lambda g: g * min(1.0, most / norm) if norm else g),
        ("scaled twice", lambda g: g * factor * factor),
        ("scaled with 1 / norm", lambda g: g / (norm + 1e-6)),
        ("scaled with max_norm / norm²", lambda g: g * min(1.0, most / (norm * norm + 1e-6))),
        ("max_norm is taken as 0.25", lambda g: g * min(1.0, 0.25 / (norm + 1e-6))),
        ("max_norm is taken as 1", lambda g: g * min(1.0, 1 / (norm + 1e-6))),
        ("each element is cut to ±max_norm", lambda g: np.clip(g, -most, most)),
        ("the factor is rounded to float16", lambda g: g * float(_half(factor))),
        ("the gradient is rounded to float16", lambda g: _half(g * factor)),
    ]

    def explains(rule: Callable[[Array], Array]) -> bool:
        """For every parameter: what fits one alone may be chance."""
        left = all_of_it = 0.0
        for name, g in raw.items():
            ours, value = clipping.clipped.get(name), rule(g)
            if ours is None or ours.shape != g.shape:
                return False
            if not bool((np.abs(ours - value) <= 8 * U * np.abs(value) + TINY).all()):
                return False
            left += float(((ours - value) ** 2).sum())
            all_of_it += float(((ours - g * factor) ** 2).sum())
        return bool(np.sqrt(left) <= LEFT * np.sqrt(all_of_it))

    return tuple(Explanation(words, words) for words, rule in scaled if explains(rule))


def _together(squares: Sequence[float]) -> float:
    return float(np.sqrt(sum(squares)))


def _norm(g: Array) -> float:
    return float(np.sqrt((g * g).sum()))


def _apart(x: float, y: float) -> bool:
    return abs(x - y) > 1e-7 * abs(y)
