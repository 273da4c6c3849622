"""SGD: velocity, decay, learning rate, skipped parameters, and what a step may not write into."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from needle.autograd import Tensor
from oracle.trust.faults.chapter import Chapter, const
from oracle.trust.patches import Patch, around, replace, wrap

fault = Chapter("optimizer")


def sgd(**formulas: Callable[[Any], Any]) -> Patch:
    """SGD.step written out plainly, with some of its formulas replaced; each sees what came before it."""
    rules = {
        "skip": lambda s: s.grad is None,
        "old": lambda s: held(s.o.u, s.p),
        "lr": lambda s: s.o.lr,
        "beta": lambda s: s.o.momentum,
        "decay": lambda s: s.o.weight_decay,
        "rest": lambda s: 1 - s.beta,
        "g": lambda s: s.grad.cached_data.astype(s.x.dtype, copy=False),
        "d": lambda s: s.g + s.decay * s.x,
        "v": lambda s: s.beta * s.old + s.rest * s.d,
        "kept": lambda s: s.v,
        "new": lambda s: s.x - s.lr * s.v,
    }
    return replace("optim.SGD.step", step_written_out(rules, formulas, ("u",)))


def held(state: dict[Any, Any], p: Any) -> Any:
    """What an optimizer has kept for a parameter, whatever a user has put there; zeros at first."""
    value = state.get(p)
    return np.zeros(p.shape, p.dtype) if value is None else np.asarray(getattr(value, "cached_data", value), p.dtype)


def step_written_out(rules: dict[str, Any], formulas: dict[str, Any], states: Sequence[str]) -> Any:
    assert set(formulas) <= set(rules), f"no such formula: {set(formulas) - set(rules)}"
    rules = {**rules, **formulas}

    def step(self: Any) -> None:
        self._check()
        self._gradients()  # all of which are checked before anything is updated
        done = vars(self).setdefault("steps_done", 0)
        self.steps_done = done + 1
        for p in self.params:
            s = SimpleNamespace(o=self, p=p, n=done + 1, x=p.cached_data, grad=p.grad)
            for name, rule in rules.items():
                setattr(s, name, rule(s))
                if name == "skip" and s.skip:
                    break
            else:
                for state, name in zip(states, ("kept", "kept2", "kept3"), strict=False):
                    value = getattr(s, name)
                    if value is not None:
                        getattr(self, state)[p] = value if isinstance(value, int | Tensor) else const(value)
                p.cached_data = np.asarray(s.new)

    return step


def _shared_velocity(key: Callable[[Any], Any]) -> Patch:
    """One velocity for all parameters with the same key."""

    def old(s: Any) -> Any:
        table = vars(s.o).setdefault("by_key", {})
        s.entry = table.setdefault(key(s), const(np.zeros(s.p.shape, s.p.dtype)))
        return s.entry.cached_data if s.entry.shape == s.p.shape else np.zeros(s.p.shape, s.p.dtype)

    def kept(s: Any) -> Any:
        s.entry.cached_data = np.asarray(s.v)
        return s.entry

    return sgd(old=old, kept=kept)


def _swapped(gradients: list[Any]) -> list[Any]:
    """The first two neighbours of equal shape, but for the number of elements 1, in each other's place."""
    for i, (a, b) in enumerate(itertools.pairwise(gradients)):
        if a.shape == b.shape and a.size > 1:
            gradients[i], gradients[i + 1] = b, a
            break
    return gradients


def _mutated(change: Callable[[Any, Any], Any]) -> Patch:
    """The gradient changed in place before it is used."""

    def g(s: Any) -> Any:
        array = s.grad.cached_data
        array[...] = change(s, array)
        return _as_parameter(s, array)

    return sgd(g=g, d=lambda s: s.g, v=lambda s: s.beta * s.old + s.rest * s.g)


def _as_parameter(s: Any, gradient: Any) -> Any:
    """A gradient as the skeleton takes it: in the dtype of the parameter, or the fault would be another one beside the planted one."""
    return gradient.astype(s.x.dtype, copy=False)


def _or_zero(s: Any) -> Any:
    return np.zeros_like(s.x) if s.grad is None else _as_parameter(s, s.grad.cached_data)


def first_lr(s: Any) -> float:
    return float(vars(s.o).setdefault("lr_at_first", s.o.lr))


def _late_lr(s: Any) -> float:
    """The learning rate of the step before."""
    known = vars(s.o).setdefault("lr_seen", {})
    before = known.get(s.n - 1, s.o.lr)
    known[s.n] = s.o.lr
    return float(before)


def lr_changed(s: Any) -> bool:
    return bool(s.o.lr != first_lr(s))


fault.controls["SGD.step written out"] = sgd()

VELOCITY, UPDATE = "SGD velocity", "SGD parameter update"

fault(
    "sgd-undampened",
    "velocity u = βu + g', without 1 − β",
    VELOCITY,
    sgd(v=lambda s: s.beta * s.old + s.d),
    words="undampened",
)
fault("sgd-undampened-first-step", "the first velocity is g' itself, as in torch", VELOCITY,
      sgd(v=lambda s: s.beta * s.old + s.rest * s.d if s.p in s.o.u else s.d), words="undampened")  # fmt: skip
fault(
    "sgd-dampened-twice",
    "1 − β enters squared",
    VELOCITY,
    sgd(rest=lambda s: (1 - s.beta) ** 2),
    words="dampened twice",
)
fault(
    "sgd-beta-squared",
    "the old velocity decays with β²",
    VELOCITY,
    sgd(beta=lambda s: s.o.momentum**2, rest=lambda s: 1 - s.o.momentum),
    words="β²",
)
fault("sgd-decay-outside-momentum", "decay is added to the update and not to the gradient", f"{VELOCITY}|SGD decay",
      sgd(d=lambda s: s.g, new=lambda s: s.x - s.lr * (s.v + s.decay * s.x)), words="outside the momentum: ")  # fmt: skip
fault("sgd-decay-decoupled", "decay shrinks the parameter, without the learning rate", f"{VELOCITY}|SGD decay",
      sgd(d=lambda s: s.g, new=lambda s: (1 - s.decay) * s.x - s.lr * s.v), words="without the learning rate")  # fmt: skip
fault(
    "sgd-decay-sign",
    "decay with the wrong sign",
    f"{VELOCITY}|SGD decay",
    sgd(d=lambda s: s.g - s.decay * s.x),
    words="decay has the wrong sign",
)
fault("sgd-decay-ignored", "no decay at all", f"{VELOCITY}|SGD decay", sgd(d=lambda s: s.g), words="decay is missing")
fault(
    "sgd-decay-doubled",
    "decay is the derivative of λθ², not of λθ²/2",
    f"{VELOCITY}|SGD decay",
    sgd(d=lambda s: s.g + 2 * s.decay * s.x),
    words="decay counts twice",
)
fault(
    "sgd-decay-only-with-momentum",
    "decay is ignored where β = 0",
    f"{VELOCITY}|SGD decay",
    sgd(decay=lambda s: s.o.weight_decay if s.beta else 0.0),
    words="decay is missing",
)
fault(
    "sgd-decay-undampened",
    "decay enters the velocity without 1 − β",
    f"{VELOCITY}|SGD decay",
    sgd(v=lambda s: s.beta * s.old + s.rest * s.g + s.decay * s.x),
    words="decay is not dampened",
)
fault(
    "sgd-decay-not-for-vectors",
    "parameters of one dimension are exempt from decay",
    f"{VELOCITY}|SGD decay",
    sgd(decay=lambda s: s.o.weight_decay if s.p.ndim > 1 else 0.0),
    words="decay is missing",
)
fault(
    "sgd-decay-not-for-rows",
    "biases of shape (1, n) are exempt from decay",
    f"{VELOCITY}|SGD decay",
    sgd(decay=lambda s: 0.0 if s.p.ndim > 1 and s.p.shape[0] == 1 else s.o.weight_decay),
    words="decay is missing",
)
fault("sgd-velocity-not-stored", "the velocity is used and thrown away", VELOCITY, sgd(kept=lambda s: None))
fault("sgd-velocity-lags", "the old velocity is stored", VELOCITY, sgd(kept=lambda s: s.old), words="velocity stays")
fault(
    "sgd-old-velocity-used",
    "the update uses the velocity of the step before",
    UPDATE,
    sgd(new=lambda s: s.x - s.lr * s.old),
    words="old velocity is used",
)
fault(
    "sgd-velocity-float64",
    "velocities are float64",
    f"{VELOCITY}|dtype",
    sgd(kept=lambda s: s.v.astype(np.float64)),
    words="dtype is float64",
)
fault(
    "sgd-parameter-float64",
    "parameters become float64",
    f"{UPDATE}|dtype",
    sgd(new=lambda s: (s.x - s.lr * s.v).astype(np.float64)),
    words="dtype is float64",
)
fault(
    "sgd-velocity-by-shape",
    "velocities are kept by shape: equal shapes share one",
    VELOCITY,
    _shared_velocity(lambda s: s.p.shape),
    words="velocity of",
)
fault(
    "sgd-velocity-by-size",
    "velocities are kept by number of elements",
    VELOCITY,
    _shared_velocity(lambda s: s.p.size),
    words="velocity of",
)
fault(
    "sgd-velocity-by-gradient",
    "velocities are kept by the gradient, which is new in each step",
    VELOCITY,
    sgd(old=lambda s: np.zeros_like(s.x)),
    words="taken as zero",
)
fault("sgd-velocity-of-neighbour", "velocities are taken in the wrong order where shapes allow it", VELOCITY,
      sgd(old=lambda s: next((s.o.u[q].cached_data for q in s.o.params[::-1] if q in s.o.u and q.shape == s.p.shape), np.zeros_like(s.x))), words="velocity of")  # fmt: skip
fault(
    "sgd-lr-captured", "the learning rate of the first step is used for ever", UPDATE, sgd(lr=first_lr), words="stale"
)
fault("sgd-lr-late", "a new learning rate takes effect one step late", UPDATE, sgd(lr=_late_lr), words="stale")
fault(
    "sgd-lr-in-velocity",
    "the learning rate goes into the velocity",
    VELOCITY,
    sgd(v=lambda s: s.beta * s.old + s.lr * s.rest * s.d, new=lambda s: s.x - s.v),
    words="learning rate is in the velocity",
)
fault("sgd-ascent", "steps go uphill", UPDATE, sgd(new=lambda s: s.x + s.lr * s.v), words="uphill")
fault(
    "sgd-nesterov",
    "the update looks ahead, as Nesterov's does",
    UPDATE,
    sgd(new=lambda s: s.x - s.lr * (s.rest * s.d + s.beta * s.v)),
    words="Nesterov",
)
fault(
    "sgd-gradient-used",
    "the update uses the gradient and not the velocity",
    UPDATE,
    sgd(new=lambda s: s.x - s.lr * s.d),
    words="the gradient is used",
)
fault("sgd-none-stepped", "a parameter without gradient is stepped as if it were 0", "SGD skip|SGD parameter update|SGD velocity",
      sgd(skip=lambda s: False, g=_or_zero))  # fmt: skip
fault("sgd-none-gets-velocity", "a parameter without gradient is left alone but gets a velocity", "velocity should not exist|SGD velocity",
      around("optim.SGD.step", lambda step, self: (self.u.update({p: const(np.zeros_like(p.cached_data)) for p in self.params if p.grad is None}), step(self))[1]))  # fmt: skip
fault("sgd-none-crash", "a parameter without gradient is an error", "step", sgd(skip=lambda s: False))
fault(
    "sgd-skipped-decays",
    "the velocity of a parameter that has no gradient in this step decays",
    "SGD velocity update|SGD skip",
    sgd(
        skip=lambda s: s.grad is None and s.p not in s.o.u,
        g=_or_zero,
        d=lambda s: s.g if s.grad is None else s.g + s.decay * s.x,
        new=lambda s: s.x if s.grad is None else s.x - s.lr * s.v,
    ),
)
fault(
    "sgd-skipped-coasts",
    "a parameter that has no gradient in this step moves on with its velocity",
    "SGD parameter update|SGD skip",
    sgd(
        skip=lambda s: s.grad is None and s.p not in s.o.u,
        g=_or_zero,
        v=lambda s: s.old if s.grad is None else s.beta * s.old + s.rest * s.d,
    ),
)
fault("sgd-repeated-parameter", "a parameter that is given twice is stepped twice", "Optimizer|SGD parameter update|SGD velocity|repeated",
      wrap("optim.Optimizer.__init__", lambda old: lambda self, params: _with_repetitions(old, self, list(params))))  # fmt: skip
fault(
    "sgd-last-parameter-skipped",
    "the last parameter is never stepped",
    "SGD",
    sgd(skip=lambda s: s.grad is None or s.p is s.o.params[-1]),
    words="stays",
)
fault(
    "run-blind",
    "small parameters side by side: one whose array was replaced is not noticed",
    "SGD|Adam",
    replace("optim.Optimizer._in_place", lambda self, params: params == self._params),
    words="stays",
)
fault(
    "run-alone",
    "small parameters side by side: whoever holds one of their arrays is not noticed",
    "writes into|alias",
    replace("optim.Optimizer._count_holders", lambda self: []),
)
fault(
    "run-swapped",
    "small parameters side by side: two of equal shape get each other's gradient",
    "SGD|Adam",
    around("optim._Run.blocks", lambda old, self, gs: old(self, _swapped(list(gs)))),
    words="the gradient of",
)
fault(
    "sgd-decay-in-gradient",
    "decay is added to the gradient in place",
    "writes into gradient",
    _mutated(lambda s, g: g + s.decay * s.x),
    words="decay is added",
)
fault(
    "sgd-gradient-scaled",
    "1 − β is multiplied into the gradient in place",
    "writes into gradient",
    sgd(
        g=lambda s: _as_parameter(s, np.multiply(s.grad.cached_data, s.rest, s.grad.cached_data)),
        v=lambda s: s.beta * s.old + s.g + s.rest * s.decay * s.x,
    ),
    words="scaled with 1 − β",
)
fault(
    "sgd-velocity-is-gradient",
    "without momentum the velocity is the gradient's own array",
    "SGD alias|writes into",
    sgd(kept=lambda s: s.grad if not s.beta and not s.decay else s.v),
)
fault(
    "sgd-parameter-in-place",
    "a step writes into an array that the user holds",
    "writes into|alias",
    sgd(new=lambda s: np.subtract(s.x, s.lr * s.v, s.x)),
)
fault(
    "sgd-default-lr",
    "the default learning rate is 0.1",
    "SGD",
    wrap("optim.SGD.__init__", lambda old: lambda self, params, lr=0.1, **kw: old(self, params, lr, **kw)),
    words="as if the learning rate were 0.1",
)
fault(
    "sgd-default-momentum",
    "the default momentum is 0.9",
    "SGD",
    wrap(
        "optim.SGD.__init__",
        lambda old: lambda self, params, lr=0.01, momentum=0.9, **kw: old(self, params, lr, momentum, **kw),
    ),
)
fault(
    "sgd-default-decay",
    "the default weight decay is 1e-4",
    "SGD",
    wrap(
        "optim.SGD.__init__",
        lambda old: (
            lambda self, params, lr=0.01, momentum=0.0, weight_decay=1e-4: old(self, params, lr, momentum, weight_decay)
        ),
    ),
)


def _with_repetitions(init: Any, self: Any, params: list[Any]) -> None:
    init(self, params)
    self.params = params
