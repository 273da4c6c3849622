"""Which of the usual mistakes explains the numbers of an optimizer or of clipping? NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.cases import case as c
from oracle.operations.tape import TINY, U
from oracle.rules.update import expected_update
from oracle.rules.verdict import Clipping, Update

Array = npt.NDArray[Any]


def optimizer_words(case: c.TrainCase, quantity: str, step: Update) -> str:
    """The first of the usual mistakes that gives needle's numbers, in words; empty if none does."""
    guesses: Callable[[Any, Update], Iterator[tuple[str, str, Array]]]
    guesses = {c.SGD: _sgd, c.Adam: _adam}[type(case.optimizer)]  # type: ignore[assignment]
    if quantity == "gradient after step":
        guesses = _written
    ours = step.new.get(quantity)
    if ours is None or ours.shape != step.p.shape:
        return ""
    lr = np.asarray(step.rates[-1])
    bounds = expected_update(case, lr, step.p, step.g, step.old, np.asarray(float(step.index + 1)), 8).values
    with np.errstate(all="ignore"):
        for what, words, value in guesses(case.optimizer, step):
            if what != quantity:
                continue
            slack = bounds[quantity][1] if quantity in bounds else 0.0
            if bool((np.abs(ours - value) <= 3 * slack + 6 * U * np.abs(value) + TINY).all()):
                return words
    return ""


def _half(x: Any) -> Any:
    return np.asarray(x).astype(np.float16).astype(np.float64)


def _written(spec: Any, s: Update) -> Iterator[tuple[str, str, Array]]:
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
        yield "gradient after step", words, value


def _sgd(spec: c.SGD, s: Update) -> Iterator[tuple[str, str, Array]]:
    """(quantity, words, value) of wrong steps of SGD. The velocity's come first."""
    beta, decay, lr = spec.momentum or 0.0, spec.weight_decay or 0.0, s.rates[-1]
    g, p, old, rest = s.g, s.p, s.old["velocity"], 1 - beta
    d = g + decay * p
    new, u = s.new["parameter"], s.new.get("velocity")
    u = beta * old + rest * d if u is None else u
    truth = beta * old + rest * d
    undecayed = "the decay is missing: g′ = g"
    if decay and new.shape == p.shape:
        for words, moved in (
            ("the decay is outside the momentum: θ − α(u + λθ)", p - lr * (u + decay * p)),
            ("the decay is outside the momentum, without the learning rate: θ − αu − λθ", p - lr * u - decay * p),
        ):
            if bool((np.abs(new - moved) <= 16 * U * (np.abs(p) + np.abs(lr * u)) + TINY).all()):
                undecayed = words
    velocities = [
        ("as if undampened: u = βu + g′", beta * old + d),
        (undecayed, beta * old + rest * g),
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
    for name, (grad, state) in s.others.items():
        if name != s.name and grad.shape == g.shape:
            velocities.append((f"the gradient of {name} is used", beta * old + rest * (grad + decay * p)))
            if "velocity" in state:
                velocities.append((f"the velocity of {name} is used", beta * state["velocity"] + rest * d))
    for words, value in velocities:
        yield "velocity", words, value
    updates = [
        ("the decay is outside the momentum: θ − α(u + λθ)", p - lr * (u + decay * p)),
        ("the decay is outside the momentum, without the learning rate: θ − αu − λθ", p - lr * u - decay * p),
        ("the decay counts twice: θ − α(u + λθ)", p - lr * (truth + decay * p)),
    ]
    updates += [
        (f"the learning rate is stale: {rate:g}, not {lr:g}", p - rate * u)
        for rate in dict.fromkeys((*reversed(s.rates), 0.01)) if rate != lr
    ]  # fmt: skip
    updates += [
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
        yield "parameter", words, value


def _adam(spec: c.Adam, s: Update) -> Iterator[tuple[str, str, Array]]:
    """(quantity, words, value) of wrong steps of Adam."""
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
        yield "first moment", words, value
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
        yield "second moment", words, value
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
        if k >= 1 and k != t:
            a, b = 1 - b1**k, 1 - b2**k
            words = f"the step counter is {k}, not {t}"
            updates.append((words, p - lr * m / a / (np.sqrt(v / b) + eps)))
    updates += [
        (f"the learning rate is stale: {rate:g}, not {lr:g}", p - rate * m / c1 / (roots + eps))
        for rate in dict.fromkeys((*reversed(s.rates), 0.01, 0.001)) if rate != lr
    ]  # fmt: skip
    for words, value in updates:
        yield "parameter", words, value


def clip_words(case: c.TrainCase, quantity: str, clipping: Clipping) -> str:
    """The first of the usual mistakes of clipping that gives needle's numbers, in words; empty if none does."""
    assert case.clip is not None
    most = 0.25 if case.clip.max_norm is None else case.clip.max_norm
    raw = clipping.raw
    squares = {n: float((g * g).sum()) for n, g in raw.items()}
    norm = float(np.sqrt(sum(squares.values())))
    if quantity == "clip norm":
        guesses: list[tuple[str, float]] = [
            ("the sum of squares, without the root", norm * norm),
            ("the sum of absolute values", sum(float(np.abs(g).sum()) for g in raw.values())),
            ("the largest absolute value", max((float(np.abs(g).max(initial=0)) for g in raw.values()), default=0.0)),
            ("the sum of the norms", sum(float(np.sqrt(s)) for s in squares.values())),
            ("the norm after clipping", min(1.0, most / (norm + 1e-6)) * norm),
            ("1e-6 is a part of it", norm + 1e-6),
            ("every parameter counts twice", float(np.sqrt(2)) * norm),
            *((f"{n} counts twice", float(np.sqrt(norm * norm + s))) for n, s in squares.items()),
            ("the mean square", norm / np.sqrt(max(1, sum(g.size for g in raw.values())))),
            *((f"{n} is left out", float(np.sqrt(norm * norm - s))) for n, s in squares.items() if len(raw) > 1),
            *((f"the norm of {n} alone", float(np.sqrt(s))) for n, s in squares.items() if len(raw) > 1),
        ]
        return next((w for w, x in guesses if abs(clipping.norm - x) <= 1e-5 * abs(x) and _apart(x, norm)), "")
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
        for name, g in raw.items():
            ours, value = clipping.clipped.get(name), rule(g)
            if ours is None or ours.shape != g.shape:
                return False
            if not bool((np.abs(ours - value) <= 8 * U * np.abs(value) + TINY).all()):
                return False
        return True

    return next((words for words, rule in scaled if explains(rule)), "")


def _norm(g: Array) -> float:
    return float(np.sqrt((g * g).sum()))


def _apart(x: float, y: float) -> bool:
    return abs(x - y) > 1e-7 * abs(y)
