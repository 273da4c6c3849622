"""The fault catalogue: deliberate mistakes in needle, each a few lines, with the part of needle to blame.

A fault is a `Patch`; `oracle.kill_table` runs them all and says which are found, how fast, and by which rule. The suspect
is written as words that must occur in what the oracle says ("Tanh backward"; alternatives with "|"); a class of
needle.ops stands for the names of its rows in `oracle.pairs`. `CONTROLS` are the skeletons of the faults without a
fault: they must survive, or a kill would say nothing about the fault planted in them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from needle import autograd, nn, ops
from needle.autograd import Tensor
from oracle.patches import Patch, around, compute, contribution, reading, replace, vjp, wrap

S = SimpleNamespace


@dataclass(frozen=True)
class Fault:
    """One deliberate mistake."""

    name: str
    group: str  # "optimizer", "autograd", "op", "layer", "conditional", "small"
    about: str  # what is wrong, in words
    suspect: str  # who is to blame, in words that the oracle should use
    patch: Patch


FAULTS: dict[str, Fault] = {}
CONTROLS: dict[str, Patch] = {}


def _group(group: str) -> Callable[[str, str, str, Patch], None]:
    def add(name: str, about: str, suspect: str, patch: Patch) -> None:
        if name in FAULTS:
            raise ValueError(f"two faults are called {name}")
        FAULTS[name] = Fault(name, group, about, suspect, patch)

    return add


def _f16(x: Any) -> Any:
    """Rounded to float16, in the old dtype."""
    return np.asarray(x).astype(np.float16).astype(np.asarray(x).dtype)


def _number16(x: float) -> float:
    return float(np.float16(x))


def _tf32(x: Any) -> Any:
    """float32 with a mantissa of 10 bits, as tensor cores read it."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _const(x: Any) -> Tensor:
    return Tensor.make_const(np.asarray(x))


# -- SGD --------------------------------------------------------------------------------------------------------------


def sgd(**formulas: Callable[[Any], Any]) -> Patch:
    """SGD.step written out plainly, with some of its formulas replaced; each sees what came before it."""
    rules = {
        "skip": lambda s: s.grad is None,
        "old": lambda s: s.o.u[s.p].cached_data if s.p in s.o.u else np.zeros(s.p.shape, s.p.dtype),
        "lr": lambda s: s.o.lr,
        "beta": lambda s: s.o.momentum,
        "decay": lambda s: s.o.weight_decay,
        "rest": lambda s: 1 - s.beta,
        "g": lambda s: s.grad.cached_data,
        "d": lambda s: s.g + s.decay * s.x,
        "v": lambda s: s.beta * s.old + s.rest * s.d,
        "kept": lambda s: s.v,
        "new": lambda s: s.x - s.lr * s.v,
    }
    return replace("optim.SGD.step", _step(rules, formulas, ("u",)))


def adam(**formulas: Callable[[Any], Any]) -> Patch:
    """Adam.step written out plainly, with some of its formulas replaced."""
    rules = {
        "skip": lambda s: s.grad is None,
        "m0": lambda s: s.o.m[s.p].cached_data if s.p in s.o.m else np.zeros(s.p.shape, s.p.dtype),
        "v0": lambda s: s.o.v[s.p].cached_data if s.p in s.o.v else np.zeros(s.p.shape, s.p.dtype),
        "t": lambda s: s.o.t.get(s.p, 0) + 1,
        "lr": lambda s: s.o.lr,
        "b1": lambda s: s.o.beta1,
        "b2": lambda s: s.o.beta2,
        "eps": lambda s: s.o.eps,
        "decay": lambda s: s.o.weight_decay,
        "d": lambda s: s.grad.cached_data + s.decay * s.x,
        "m": lambda s: s.b1 * s.m0 + (1 - s.b1) * s.d,
        "v": lambda s: s.b2 * s.v0 + (1 - s.b2) * s.d * s.d,
        "kept": lambda s: s.m,
        "kept2": lambda s: s.v,
        "kept3": lambda s: s.t,
        "c1": lambda s: 1 - s.b1**s.t,
        "c2": lambda s: 1 - s.b2**s.t,
        "root": lambda s: np.sqrt(s.v / s.c2) + s.eps,
        "new": lambda s: s.x - s.lr * (s.m / s.c1) / s.root,
    }
    return replace("optim.Adam.step", _step(rules, formulas, ("m", "v", "t")))


def _step(rules: dict[str, Any], formulas: dict[str, Any], states: Sequence[str]) -> Any:
    assert set(formulas) <= {*rules, "order", "before"}, f"no such formula: {set(formulas) - set(rules)}"
    rules = {**rules, **formulas}

    def step(self: Any) -> None:
        done = vars(self).setdefault("steps_done", 0)
        self.steps_done = done + 1
        params = formulas["order"](self.params) if "order" in formulas else self.params
        for i, p in enumerate(params):
            s = S(o=self, p=p, i=i, n=done + 1, x=p.cached_data, grad=p.grad)
            for name, rule in rules.items():
                if name == "order":
                    continue
                setattr(s, name, rule(s))
                if name == "skip" and s.skip:
                    break
            else:
                for state, name in zip(states, ("kept", "kept2", "kept3"), strict=False):
                    value = getattr(s, name)
                    if value is not None:
                        getattr(self, state)[p] = value if isinstance(value, int | Tensor) else _const(value)
                p.cached_data = np.asarray(s.new)

    return step


def _shared_velocity(key: Callable[[Any], Any]) -> Patch:
    """One velocity for all parameters with the same key."""

    def old(s: Any) -> Any:
        table = vars(s.o).setdefault("by_key", {})
        s.entry = table.setdefault(key(s), _const(np.zeros(s.p.shape, s.p.dtype)))
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
        return array

    return sgd(g=g, d=lambda s: s.g, v=lambda s: s.beta * s.old + s.rest * s.g)


def _first_lr(s: Any) -> float:
    return float(vars(s.o).setdefault("lr_at_first", s.o.lr))


def _late_lr(s: Any) -> float:
    """The learning rate of the step before."""
    known = vars(s.o).setdefault("lr_seen", {})
    before = known.get(s.n - 1, s.o.lr)
    known[s.n] = s.o.lr
    return float(before)


def _lr_changed(s: Any) -> bool:
    return bool(s.o.lr != _first_lr(s))


optimizer = _group("optimizer")
CONTROLS["SGD.step written out"] = sgd()
CONTROLS["Adam.step written out"] = adam()
VELOCITY, UPDATE = "SGD velocity", "SGD parameter update"

optimizer("sgd-undampened", "velocity u = βu + g', without 1 − β", VELOCITY, sgd(v=lambda s: s.beta * s.old + s.d))
optimizer("sgd-undampened-first-step", "the first velocity is g' itself, as in torch", VELOCITY,
          sgd(v=lambda s: s.beta * s.old + s.rest * s.d if s.p in s.o.u else s.d))  # fmt: skip
optimizer("sgd-dampened-twice", "1 − β enters squared", VELOCITY, sgd(rest=lambda s: (1 - s.beta) ** 2))
optimizer(
    "sgd-beta-squared",
    "the old velocity decays with β²",
    VELOCITY,
    sgd(beta=lambda s: s.o.momentum**2, rest=lambda s: 1 - s.o.momentum),
)
optimizer("sgd-decay-outside-momentum", "decay is added to the update and not to the gradient", f"{VELOCITY}|SGD decay",
          sgd(d=lambda s: s.g, new=lambda s: s.x - s.lr * (s.v + s.decay * s.x)))  # fmt: skip
optimizer("sgd-decay-decoupled", "decay shrinks the parameter, without the learning rate", f"{VELOCITY}|SGD decay",
          sgd(d=lambda s: s.g, new=lambda s: (1 - s.decay) * s.x - s.lr * s.v))  # fmt: skip
optimizer("sgd-decay-sign", "decay with the wrong sign", f"{VELOCITY}|SGD decay", sgd(d=lambda s: s.g - s.decay * s.x))
optimizer("sgd-decay-ignored", "no decay at all", f"{VELOCITY}|SGD decay", sgd(d=lambda s: s.g))
optimizer(
    "sgd-decay-doubled",
    "decay is the derivative of λθ², not of λθ²/2",
    f"{VELOCITY}|SGD decay",
    sgd(d=lambda s: s.g + 2 * s.decay * s.x),
)
optimizer(
    "sgd-decay-only-with-momentum",
    "decay is ignored where β = 0",
    f"{VELOCITY}|SGD decay",
    sgd(decay=lambda s: s.o.weight_decay if s.beta else 0.0),
)
optimizer(
    "sgd-decay-undampened",
    "decay enters the velocity without 1 − β",
    f"{VELOCITY}|SGD decay",
    sgd(v=lambda s: s.beta * s.old + s.rest * s.g + s.decay * s.x),
)
optimizer(
    "sgd-decay-not-for-vectors",
    "parameters of one dimension are exempt from decay",
    f"{VELOCITY}|SGD decay",
    sgd(decay=lambda s: s.o.weight_decay if s.p.ndim > 1 else 0.0),
)
optimizer(
    "sgd-decay-not-for-rows",
    "biases of shape (1, n) are exempt from decay",
    f"{VELOCITY}|SGD decay",
    sgd(decay=lambda s: 0.0 if s.p.ndim > 1 and s.p.shape[0] == 1 else s.o.weight_decay),
)
optimizer("sgd-velocity-not-stored", "the velocity is used and thrown away", VELOCITY, sgd(kept=lambda s: None))
optimizer("sgd-velocity-lags", "the old velocity is stored", VELOCITY, sgd(kept=lambda s: s.old))
optimizer(
    "sgd-old-velocity-used",
    "the update uses the velocity of the step before",
    UPDATE,
    sgd(new=lambda s: s.x - s.lr * s.old),
)
optimizer(
    "sgd-velocity-float64", "velocities are float64", f"{VELOCITY}|dtype", sgd(kept=lambda s: s.v.astype(np.float64))
)
optimizer(
    "sgd-parameter-float64",
    "parameters become float64",
    f"{UPDATE}|dtype",
    sgd(new=lambda s: (s.x - s.lr * s.v).astype(np.float64)),
)
optimizer(
    "sgd-velocity-by-shape",
    "velocities are kept by shape: equal shapes share one",
    VELOCITY,
    _shared_velocity(lambda s: s.p.shape),
)
optimizer(
    "sgd-velocity-by-size", "velocities are kept by number of elements", VELOCITY, _shared_velocity(lambda s: s.p.size)
)
optimizer(
    "sgd-velocity-by-gradient",
    "velocities are kept by the gradient, which is new in each step",
    VELOCITY,
    sgd(old=lambda s: np.zeros_like(s.x)),
)
optimizer("sgd-velocity-of-neighbour", "velocities are taken in the wrong order where shapes allow it", VELOCITY,
          sgd(old=lambda s: next((s.o.u[q].cached_data for q in s.o.params[::-1] if q in s.o.u and q.shape == s.p.shape), np.zeros_like(s.x))))  # fmt: skip
optimizer("sgd-lr-captured", "the learning rate of the first step is used for ever", UPDATE, sgd(lr=_first_lr))
optimizer("sgd-lr-late", "a new learning rate takes effect one step late", UPDATE, sgd(lr=_late_lr))
optimizer(
    "sgd-lr-in-velocity",
    "the learning rate goes into the velocity",
    VELOCITY,
    sgd(v=lambda s: s.beta * s.old + s.lr * s.rest * s.d, new=lambda s: s.x - s.v),
)
optimizer("sgd-ascent", "steps go uphill", UPDATE, sgd(new=lambda s: s.x + s.lr * s.v))
optimizer(
    "sgd-nesterov",
    "the update looks ahead, as Nesterov's does",
    UPDATE,
    sgd(new=lambda s: s.x - s.lr * (s.rest * s.d + s.beta * s.v)),
)
optimizer(
    "sgd-gradient-used",
    "the update uses the gradient and not the velocity",
    UPDATE,
    sgd(new=lambda s: s.x - s.lr * s.d),
)
optimizer("sgd-none-stepped", "a parameter without gradient is stepped as if it were 0", "SGD skip|SGD parameter update|SGD velocity",
          sgd(skip=lambda s: False, g=lambda s: np.zeros_like(s.x) if s.grad is None else s.grad.cached_data))  # fmt: skip
optimizer("sgd-none-gets-velocity", "a parameter without gradient is left alone but gets a velocity", "velocity should not exist|SGD velocity",
          around("optim.SGD.step", lambda step, self: (self.u.update({p: _const(np.zeros_like(p.cached_data)) for p in self.params if p.grad is None}), step(self))[1]))  # fmt: skip
optimizer("sgd-none-crash", "a parameter without gradient is an error", "step", sgd(skip=lambda s: False))


def _or_zero(s: Any) -> Any:
    return np.zeros_like(s.x) if s.grad is None else s.grad.cached_data


optimizer(
    "sgd-skipped-decays",
    "the velocity of a parameter that has no gradient in this step decays",
    "SGD velocity update",
    sgd(
        skip=lambda s: s.grad is None and s.p not in s.o.u,
        g=_or_zero,
        d=lambda s: s.g if s.grad is None else s.g + s.decay * s.x,
        new=lambda s: s.x if s.grad is None else s.x - s.lr * s.v,
    ),
)
optimizer(
    "sgd-skipped-coasts",
    "a parameter that has no gradient in this step moves on with its velocity",
    "SGD parameter update",
    sgd(
        skip=lambda s: s.grad is None and s.p not in s.o.u,
        g=_or_zero,
        v=lambda s: s.old if s.grad is None else s.beta * s.old + s.rest * s.d,
    ),
)
optimizer("sgd-repeated-parameter", "a parameter that is given twice is stepped twice", "Optimizer|SGD parameter update|SGD velocity|repeated",
          wrap("optim.Optimizer.__init__", lambda old: lambda self, params: _with_repetitions(old, self, list(params))))  # fmt: skip
optimizer(
    "sgd-last-parameter-skipped",
    "the last parameter is never stepped",
    "SGD",
    sgd(skip=lambda s: s.grad is None or s.p is s.o.params[-1]),
)
optimizer(
    "run-blind",
    "small parameters side by side: one whose array was replaced is not noticed",
    "SGD",
    replace("optim.Optimizer._in_place", lambda self, params: params == self._params),
)
optimizer(
    "run-alone",
    "small parameters side by side: whoever holds one of their arrays is not noticed",
    "writes into|alias",
    replace("optim.Optimizer._count_holders", lambda self: []),
)
optimizer(
    "run-swapped",
    "small parameters side by side: two of equal shape get each other's gradient",
    "SGD",
    around("optim._Run.blocks", lambda old, self, gs: old(self, _swapped(list(gs)))),
)
optimizer(
    "sgd-decay-in-gradient",
    "decay is added to the gradient in place",
    "writes into gradient",
    _mutated(lambda s, g: g + s.decay * s.x),
)
optimizer(
    "sgd-gradient-scaled",
    "1 − β is multiplied into the gradient in place",
    "writes into gradient",
    sgd(
        g=lambda s: np.multiply(s.grad.cached_data, s.rest, s.grad.cached_data),
        v=lambda s: s.beta * s.old + s.g + s.rest * s.decay * s.x,
    ),
)
optimizer(
    "sgd-velocity-is-gradient",
    "without momentum the velocity is the gradient's own array",
    "SGD alias|writes into",
    sgd(kept=lambda s: s.grad if not s.beta and not s.decay else s.v),
)
optimizer(
    "sgd-parameter-in-place",
    "a step writes into an array that the user holds",
    "writes into|alias",
    sgd(new=lambda s: np.subtract(s.x, s.lr * s.v, s.x)),
)
optimizer(
    "sgd-default-lr",
    "the default learning rate is 0.1",
    "SGD",
    wrap("optim.SGD.__init__", lambda old: lambda self, params, lr=0.1, **kw: old(self, params, lr, **kw)),
)
optimizer(
    "sgd-default-momentum",
    "the default momentum is 0.9",
    "SGD",
    wrap(
        "optim.SGD.__init__",
        lambda old: lambda self, params, lr=0.01, momentum=0.9, **kw: old(self, params, lr, momentum, **kw),
    ),
)
optimizer(
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

optimizer("adam-no-correction", "no bias correction", "Adam parameter update", adam(c1=lambda s: 1.0, c2=lambda s: 1.0))
optimizer(
    "adam-first-correction-only", "only the first moment is corrected", "Adam parameter update", adam(c2=lambda s: 1.0)
)
optimizer(
    "adam-second-correction-only",
    "only the second moment is corrected",
    "Adam parameter update",
    adam(c1=lambda s: 1.0),
)
optimizer(
    "adam-eps-in-root",
    "ε inside the square root",
    "Adam parameter update",
    adam(root=lambda s: np.sqrt(s.v / s.c2 + s.eps)),
)
optimizer(
    "adam-eps-before-correction",
    "ε is added before the correction of v",
    "Adam parameter update",
    adam(root=lambda s: (np.sqrt(s.v) + s.eps) / math.sqrt(s.c2)),
)
optimizer("adam-t-shared", "one step counter for all parameters, which each of them advances", "Adam parameter update",
          adam(t=lambda s: vars(s.o).__setitem__("ticks", vars(s.o).get("ticks", 0) + 1) or s.o.ticks))  # fmt: skip
optimizer(
    "adam-t-from-zero",
    "the step counter starts at 0 in the correction",
    "Adam parameter update",
    adam(c1=lambda s: 1 - s.b1 ** max(s.t - 1, 1), c2=lambda s: 1 - s.b2 ** max(s.t - 1, 1)),
)
optimizer(
    "adam-t-of-all",
    "a parameter that missed a step counts it all the same",
    "Adam parameter update",
    adam(t=lambda s: s.n),
)
optimizer(
    "adam-run-mixed",
    "small parameters side by side: one that has made fewer steps is corrected like its neighbour",
    "Adam parameter update",
    replace("optim.Adam._alike", lambda self, params: [p.dtype for p in params]),
)
optimizer("adam-t-stuck", "the step counter stays at 1", "Adam parameter update", adam(t=lambda s: 1))
optimizer(
    "adam-decay-decoupled",
    "decay shrinks the parameter, as in AdamW",
    "Adam first moment|Adam decay",
    adam(d=lambda s: s.grad.cached_data, new=lambda s: (1 - s.lr * s.decay) * s.x - s.lr * (s.m / s.c1) / s.root),
)
optimizer(
    "adam-betas-swapped",
    "β1 and β2 change places",
    "Adam first moment",
    adam(b1=lambda s: s.o.beta2, b2=lambda s: s.o.beta1),
)
optimizer(
    "adam-no-root",
    "the update divides by v and not by its root",
    "Adam parameter update",
    adam(root=lambda s: s.v / s.c2 + s.eps),
)
optimizer(
    "adam-v-of-raw-gradient",
    "decay does not reach the second moment",
    "Adam second moment",
    adam(v=lambda s: s.b2 * s.v0 + (1 - s.b2) * s.grad.cached_data**2),
)
optimizer(
    "adam-absolute",
    "v averages |g| and not g²",
    "Adam second moment",
    adam(v=lambda s: s.b2 * s.v0 + (1 - s.b2) * np.abs(s.d)),
)
optimizer(
    "adam-amsgrad",
    "v never falls",
    "Adam second moment",
    adam(v=lambda s: np.maximum(s.v0, s.b2 * s.v0 + (1 - s.b2) * s.d * s.d)),
)
optimizer(
    "adam-default-beta2",
    "the default β2 is 0.99",
    "Adam",
    wrap(
        "optim.Adam.__init__",
        lambda old: (
            lambda self, params, lr=0.01, beta1=0.9, beta2=0.99, **kw: old(self, params, lr, beta1, beta2, **kw)
        ),
    ),
)


def _with_repetitions(init: Any, self: Any, params: list[Any]) -> None:
    init(self, params)
    self.params = params


# -- clipping ---------------------------------------------------------------------------------------------------------


def _norm(gs: list[Any]) -> float:
    return math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gs))


def clip(
    norm: Callable[[list[Any]], float] = _norm,
    factor: Callable[[float, float], float] = lambda norm, most: min(1.0, most / (norm + 1e-6)),
    apply: Callable[[Any, float], Any] = lambda g, factor: g * factor,
    answer: Callable[[float, float], float] = lambda norm, factor: norm,
    which: Callable[[list[Any]], list[Any]] = lambda ps: ps,
) -> Patch:
    """clip_grad_norm written out plainly, with some of its parts replaced."""

    def clip_grad_norm(self: Any, max_norm: float = 0.25) -> float:
        params = which([p for p in self.params if p.grad is not None])
        total = norm([p.grad.cached_data for p in params])
        f = factor(total, max_norm)
        for p in params:
            p.grad = _const(apply(p.grad.cached_data, f))
        return answer(total, f)

    return replace("optim.Optimizer.clip_grad_norm", clip_grad_norm)


def _clip_each(self: Any, max_norm: float = 0.25) -> float:
    total = 0.0
    for p in self.params:
        if p.grad is not None:
            g = p.grad.cached_data
            size = math.sqrt(float((g.astype(np.float64) ** 2).sum()))
            total += size**2
            p.grad = _const(g * min(1.0, max_norm / (size + 1e-6)))
    return math.sqrt(total)


CONTROLS["clip_grad_norm written out"] = clip()
NORM, SCALING = "clip norm", "clip scal"
optimizer(
    "clip-per-parameter",
    "each gradient is clipped by its own norm",
    SCALING,
    replace("optim.Optimizer.clip_grad_norm", _clip_each),
)
optimizer(
    "clip-no-epsilon",
    "max_norm / norm, without 1e-6",
    SCALING,
    clip(factor=lambda norm, most: min(1.0, most / norm) if norm else 1.0),
)
optimizer(
    "clip-upwards",
    "gradients below max_norm are scaled up to it",
    SCALING,
    clip(factor=lambda norm, most: most / (norm + 1e-6)),
)
optimizer("clip-never", "gradients are not clipped", SCALING, clip(factor=lambda norm, most: 1.0))
optimizer(
    "clip-l1",
    "the norm is the sum of absolute values",
    NORM,
    clip(norm=lambda gs: sum(float(np.abs(g.astype(np.float64)).sum()) for g in gs)),
)
optimizer(
    "clip-max",
    "the norm is the largest absolute value",
    NORM,
    clip(norm=lambda gs: max((float(np.abs(g).max(initial=0)) for g in gs), default=0.0)),
)
optimizer(
    "clip-no-root",
    "the norm is not the root of the sum of squares",
    NORM,
    clip(norm=lambda gs: sum(float((g.astype(np.float64) ** 2).sum()) for g in gs)),
)
optimizer(
    "clip-sum-of-norms",
    "norms are added, not their squares",
    NORM,
    clip(norm=lambda gs: sum(math.sqrt(float((g.astype(np.float64) ** 2).sum())) for g in gs)),
)
optimizer(
    "clip-in-place",
    "clipping writes into gradients that the user holds",
    "writes into|alias",
    clip(apply=lambda g, f: np.multiply(g, np.float32(f), g) if f < 1 else g),
)
optimizer("clip-returns-clipped", "the norm after clipping is returned", NORM, clip(answer=lambda norm, f: norm * f))
optimizer("clip-ignores-first", "the first parameter is left out", NORM, clip(which=lambda ps: ps[1:]))
optimizer("clip-ignores-last", "the last parameter is left out", NORM, clip(which=lambda ps: ps[:-1] or ps))
optimizer(
    "clip-default",
    "the default max_norm is 1",
    SCALING,
    wrap("optim.Optimizer.clip_grad_norm", lambda old: lambda self, max_norm=1.0: old(self, max_norm)),
)
optimizer(
    "clip-by-value",
    "gradients are cut to ±max_norm",
    SCALING,
    clip(factor=lambda norm, most: most, apply=lambda g, f: np.clip(g, -f, f)),
)
optimizer("clip-epsilon-in-norm", "1e-6 is a part of the returned norm", NORM, clip(answer=lambda norm, f: norm + 1e-6))

# -- autograd ---------------------------------------------------------------------------------------------------------


def walk(
    order: Callable[[list[Any]], list[Any]] = lambda nodes: nodes,
    add: Callable[[Any, Any], Any] = lambda before, c: before + c,
    seen: Callable[[Any, Any, int, Any], Any] = lambda c, x, i, node: c,
    leaf: Callable[[Any, Any], Any] = lambda g, x: g.copy(),
    flows: Callable[[Any], bool] = lambda x: bool(x.requires_grad),
    keep: Callable[[Any, Any], Any] = lambda g, node: g.copy(),
    seed: Callable[[Any], Any] = lambda g: g,
) -> Patch:
    """The plain backward written out, with some of its parts replaced; ``order`` gets the nodes oldest first."""

    def walk_arrays(root: Any, g: Any, free: bool) -> None:
        nodes = order(autograd._graph(root))
        adjoints = {root: seed(g)}
        kept = []
        while nodes:
            node = nodes.pop()
            op, inputs = node.op, node.inputs
            if free:
                node.op, node.inputs = autograd._FREED, ()
            g = adjoints.pop(node, None)
            if g is None:
                continue
            if type(g) is tuple:
                g = tuple((np.zeros_like(a) if c is None else c) for c, a in zip(g, node.cached_data, strict=True))
            if node._keeps_grad:
                kept.append((node, g))
            needs = [x.requires_grad for x in inputs]
            contributions = autograd._contributions(op, inputs, needs, node, g)
            for i, (x, c) in enumerate(zip(inputs, contributions, strict=True)):
                if c is None or not flows(x):
                    continue
                before = adjoints.get(x)
                if type(x.cached_data) is tuple:
                    adjoints[x] = c if before is None else autograd._sum_of_tuples(before, c)
                    continue
                c = seen(autograd._in_dtype_of(np.asarray(c), x.cached_data), x, i, node)
                if c is not None:
                    adjoints[x] = c if before is None else np.asarray(add(before, c))
        for x, g in adjoints.items():
            x.grad = _const(leaf(g, x))
        for node, g in kept:
            node.grad = autograd.TensorTuple.make_const(g) if type(g) is tuple else _const(keep(g, node))

    return replace("autograd._walk_arrays", walk_arrays)


def _once_per_op(c: Any, x: Any, i: int, node: Any) -> Any:
    """Only the first of the positions in which one op uses a tensor; `inputs` may be freed already."""
    known = vars(node).setdefault("positions", {})
    first = known.setdefault(id(x), i)
    if i != first:
        return None
    return c


def _in_place(before: Any, c: Any) -> Any:
    if before.flags.writeable and before.shape == c.shape and before.ndim:
        before += c
        return before
    return before + c


def _without_inputs(records: list[Any]) -> list[Any]:
    return [
        (op, operands, flows, None if type(op) is ops.Linear and _square(operands[0]) else x, y)
        for op, operands, flows, x, y in records
    ]


def _no_graph(walk_tensors: Any, root: Any, g: Any) -> None:
    walk_tensors(root, g)
    for node in autograd._graph(root):
        for x in node.inputs:
            if isinstance(x, Tensor) and x.grad is not None:
                x.grad = x.grad.detach()


def _reduced(total: Callable[[Any, tuple[int, ...], tuple[int, ...]], Any]) -> Patch:
    """How a gradient is brought back to the shape of an operand that was broadcast, for arrays."""

    def patched(old: Any, g: Any, shape: tuple[int, ...]) -> Any:
        if not isinstance(g, np.ndarray) or g.shape == shape:
            return old(g, shape)
        lead = g.ndim - len(shape)
        axes = tuple(i for i in range(g.ndim) if i < lead or (shape[i - lead] == 1 and g.shape[i] != 1))
        return np.asarray(total(g, axes, shape)).reshape(shape)

    return around("ops._reduced", patched)


autograd_ = _group("autograd")
CONTROLS["backward written out"] = walk()
ACCUMULATION = "accumulation"
CHAIN = "chain"

autograd_("add-overwrites", "at a fan-out the last contribution wins", ACCUMULATION, walk(add=lambda before, c: c))
autograd_(
    "add-keeps-first", "at a fan-out the first contribution wins", ACCUMULATION, walk(add=lambda before, c: before)
)
autograd_(
    "add-doubles-first",
    "at a fan-out the first contribution counts twice",
    ACCUMULATION,
    walk(add=lambda before, c: 2 * before + c),
)
autograd_(
    "add-averages",
    "at a fan-out contributions are averaged",
    ACCUMULATION,
    walk(add=lambda before, c: (before + c) / 2),
)
autograd_(
    "add-subtracts", "at a fan-out contributions are subtracted", ACCUMULATION, walk(add=lambda before, c: before - c)
)
autograd_("add-largest", "at a fan-out the larger contribution wins", ACCUMULATION, walk(add=np.maximum))
autograd_(
    "add-float16", "contributions are added in float16", ACCUMULATION, walk(add=lambda before, c: _f16(before + c))
)
autograd_("add-in-place", "contributions are added into arrays that others hold", ACCUMULATION, walk(add=_in_place))
autograd_(
    "same-operand-once",
    "a tensor that is both operands of one op gets one contribution",
    ACCUMULATION,
    walk(seen=_once_per_op),
)
autograd_(
    "cancelled-dropped",
    "a sum of contributions that is small is set to 0",
    ACCUMULATION,
    walk(add=lambda before, c: np.where(np.abs(before + c) < 1e-3, np.float32(0), before + c)),
)
autograd_(
    "tiny-flushed",
    "contributions below 1e-6 are dropped",
    f"{ACCUMULATION}|backward",
    walk(seen=lambda c, x, i, node: np.where(np.abs(c) < 1e-6, c.dtype.type(0), c)),
)
autograd_(
    "order-reversed",
    "among nodes, the oldest comes first",
    f"{ACCUMULATION}|backward",
    walk(order=lambda nodes: nodes[:1] + nodes[:0:-1] if len(nodes) > 9 else nodes),
)
autograd_(
    "order-last-two",
    "the two newest inner nodes are visited in the wrong order",
    f"{ACCUMULATION}|backward|missing",
    walk(order=lambda nodes: [*nodes[:-3], nodes[-2], nodes[-3], nodes[-1]] if len(nodes) > 2 else nodes),
)
autograd_("out-grad-ignored", "backward starts from ones", "seed|out_grad|Cotangent", walk(seed=np.ones_like))
autograd_(
    "out-grad-summed",
    "backward starts from the mean of out_grad",
    "seed|out_grad|Cotangent",
    walk(seed=lambda g: np.full_like(g, g.mean())),
)
autograd_(
    "grad-accumulates",
    "a second backward adds to .grad",
    "second backward|accumulat|gradient",
    walk(leaf=lambda g, x: g.copy() if x.grad is None else g + x.grad.cached_data),
)
autograd_("grad-kept-over-steps", "gradients of earlier steps stay in the sum", "reset_grad|accumulat|gradient",
          walk(leaf=lambda g, x: g.copy() if x.grad is None else g + x.grad.cached_data) + replace("optim.Optimizer.reset_grad", lambda self: None))  # fmt: skip
autograd_(
    "retain-graph-ignored",
    "retain_graph=True frees the graph",
    "backward",
    around("autograd._walk_arrays", lambda old, root, g, free: old(root, g, True)),
)
autograd_(
    "grad-float64", "gradients of leaves are float64", "gradient|dtype", walk(leaf=lambda g, x: g.astype(np.float64))
)
autograd_("frozen-gets-gradient", "requires_grad=False does not stop the gradient", "gradient|requires_grad|frozen",
          around("autograd._contributions", lambda old, op, inputs, needs, node, g: old(op, inputs, [True] * len(inputs), node, g)) + walk(flows=lambda x: True))  # fmt: skip
autograd_(
    "chain-forgets-result",
    "a chain of layers lets go of the result that the rule of ReLU reads",
    CHAIN,
    replace("ops.ReLU.reads_result", False),
)
autograd_(
    "chain-forgets-input",
    "a chain of layers lets go of the input that the rule of Linear reads, where it has the shape of the result",
    CHAIN,
    around("chain._backward", lambda old, records, *rest: old(_without_inputs(records), *rest)),
)
autograd_(
    "chain-loses-skip",
    "the gradient past a Residual in the middle of a chain is dropped",
    CHAIN,
    replace("chain._sum", lambda parts: parts[-1]),
)
autograd_(
    "chain-flat-order",
    "a chain of layers adds up to a tensor that is used three times in another order",
    CHAIN,
    around("chain.Chain.backward", lambda old, self, g: tuple(part[::-1] for part in old(self, g))),
)
autograd_(
    "chain-unfolds-without-base",
    "a chain of layers that is unfolded passes nothing on to what it was computed from",
    CHAIN,
    around("chain._nodes", lambda old, records, x, numbers: old(records, x.detach(), numbers)),
)
autograd_(
    "input-gets-none",
    "only Parameters get a gradient",
    "missing|input",
    walk(leaf=lambda g, x: g.copy())
    + around("autograd._walk_arrays", lambda old, root, g, free: _parameters_only(old, root, g, free)),
)
autograd_(
    "retained-halved",
    "the kept gradient of an inner tensor is not what flows on",
    "retain_grad|backward",
    walk(keep=lambda g, node: g / 2 if node.ndim == 2 and node.shape[0] > 4 else g.copy()),
)
autograd_(
    "leaf-transposed",
    "the gradient of a square leaf is transposed",
    "gradient|backward",
    walk(leaf=lambda g, x: g.T.copy() if g.ndim == 2 and g.shape[0] == g.shape[1] else g.copy()),
)
autograd_(
    "broadcast-mean", "broadcasting is undone by a mean", "backward", _reduced(lambda g, axes, shape: g.mean(axis=axes))
)
autograd_(
    "broadcast-first",
    "broadcasting is undone by taking the first",
    "backward",
    _reduced(
        lambda g, axes, shape: (
            np.moveaxis(g, axes, range(len(axes))).reshape(-1, math.prod(shape))[:1] if g.size else g.sum(axis=axes)
        )
    ),
)
autograd_(
    "broadcast-lead-only",
    "only the leading axes of a broadcast are summed",
    "backward",
    _reduced(
        lambda g, axes, shape: (
            g.sum(axis=axes)
            if len(shape) < g.ndim
            else np.take(g.sum(axis=axes[:-1], keepdims=True), [-1], axis=axes[-1])
            if g.size
            else g.sum(axis=axes)
        )
    ),
)
autograd_(
    "tuple-first-only",
    "of the elements of a tuple only the first contribution counts",
    ACCUMULATION + "|stack|split|TupleGetItem",
    around("autograd._sum_of_tuples", lambda old, a, b: a),
)
autograd_(
    "second-order-constant",
    "create_graph=True makes gradients that are constants",
    "second",
    around("autograd._walk_tensors", _no_graph),
)
autograd_(
    "second-order-add",
    "the differentiable walk drops contributions",
    "second|accumulation|gradient",
    around("autograd.sum_node_list", lambda old, nodes: nodes[0]),
)
autograd_(
    "leaf-requires-no-grad",
    "the gradient of a one-element leaf is lost",
    "gradient|missing",
    walk(seen=lambda c, x, i, node: None if x.op is None and x.size == 1 else c),
)


def _parameters_only(walk_arrays: Any, root: Any, g: Any, free: bool) -> None:
    leaves = {x for node in autograd._graph(root) for x in node.inputs if x.is_leaf()}
    walk_arrays(root, g, free)
    for x in leaves:
        if not isinstance(x, autograd.Parameter):
            x.grad = None


# -- operations -------------------------------------------------------------------------------------------------------

op = _group("op")


def _swap(x: Any) -> Any:
    return np.swapaxes(x, -1, -2)


def _square(x: Any) -> bool:
    return bool(x.ndim >= 2 and x.shape[-1] == x.shape[-2])


op(
    "add-forward",
    "the second operand is rounded to float16",
    "EWiseAdd forward",
    compute("EWiseAdd", lambda y, a, b: a + _f16(b)),
)
op(
    "add-backward-sign",
    "the gradient of the second operand has the wrong sign",
    "EWiseAdd backward",
    contribution("EWiseAdd", np.negative, 1),
)
op(
    "add-backward-lost",
    "the second operand gets no gradient where it broadcasts",
    "EWiseAdd backward",
    vjp("EWiseAdd", lambda r, g, y, a, b: (r[0], r[1] if a.shape == b.shape else np.zeros_like(b))),
)
op(
    "add-scalar-forward",
    "the scalar is cut to a whole number",
    "AddScalar forward",
    replace("ops.AddScalar.compute", lambda self, a: a + int(self.scalar)),
)
op(
    "add-scalar-backward",
    "the gradient is multiplied by the scalar",
    "AddScalar backward",
    wrap("ops.AddScalar.vjp", lambda old: lambda self, g, y, needs, a: (g * self.scalar,)),
)
op(
    "multiply-forward",
    "a small operand is taken as its absolute value",
    "EWiseMul forward",
    compute("EWiseMul", lambda y, a, b: np.where(np.abs(b) < 0.1, np.abs(y), y)),
)
op(
    "multiply-backward-swapped",
    "each operand gets the other's gradient where shapes are equal",
    "EWiseMul backward",
    vjp("EWiseMul", lambda r, g, y, a, b: r[::-1] if a.shape == b.shape and None not in r else r),
)
op(
    "multiply-backward-plain",
    "the second gradient lacks the first operand",
    "EWiseMul backward",
    vjp("EWiseMul", lambda r, g, y, a, b: (r[0], ops._reduced(np.asarray(g), b.shape))),
)
op(
    "mul-scalar-forward",
    "negative scalars lose their sign",
    "MulScalar forward",
    replace("ops.MulScalar.compute", lambda self, a: np.asarray(a * abs(self.scalar))),
)
op(
    "mul-scalar-backward",
    "the gradient lacks the scalar",
    "MulScalar backward",
    vjp("MulScalar", lambda r, g, y, a: (g,)),
)
op(
    "divide-forward",
    "the divisor is kept away from 0 by 1e-4",
    "EWiseDiv forward",
    compute("EWiseDiv", lambda y, a, b: a / (b + np.float32(1e-4))),
)
op(
    "divide-backward-sign",
    "the gradient of the divisor has the wrong sign",
    "EWiseDiv backward",
    contribution("EWiseDiv", np.negative, 1),
)
op(
    "divide-backward-power",
    "the gradient of the divisor lacks a division",
    "EWiseDiv backward",
    vjp("EWiseDiv", lambda r, g, y, a, b: (r[0], ops._reduced(np.asarray(-g * y), b.shape))),
)
op(
    "divide-scalar-forward",
    "division by a scalar multiplies with its float16 inverse",
    "DivScalar forward",
    replace("ops.DivScalar.compute", lambda self, a: np.asarray(a * _number16(1 / self.scalar))),
)
op(
    "divide-scalar-backward",
    "the gradient is multiplied by the divisor",
    "DivScalar backward",
    wrap("ops.DivScalar.vjp", lambda old: lambda self, g, y, needs, a: (g * self.scalar,)),
)
op(
    "power-forward",
    "the exponent is rounded to float16",
    "EWisePow forward",
    compute("EWisePow", lambda y, a, b: a ** _f16(b)),
)
op(
    "power-backward-base",
    "the gradient of the base lacks the exponent",
    "EWisePow backward",
    vjp("EWisePow", lambda r, g, y, a, b: (ops._reduced(np.asarray(g * a ** (b - 1)), a.shape), r[1])),
)
op(
    "power-backward-exponent",
    "the gradient of the exponent lacks the logarithm",
    "EWisePow backward",
    vjp("EWisePow", lambda r, g, y, a, b: (r[0], ops._reduced(np.asarray(g * y), b.shape))),
)
op(
    "power-scalar-forward",
    "the base loses its sign",
    "PowerScalar forward",
    replace("ops.PowerScalar.compute", lambda self, a: np.asarray(np.abs(a) ** self.scalar)),
)
op(
    "power-scalar-backward",
    "the exponent is not lowered by 1",
    "PowerScalar backward",
    wrap("ops.PowerScalar.vjp", lambda old: lambda self, g, y, needs, a: (g * (self.scalar * a**self.scalar),)),
)
op("negate-forward", "the negative of the absolute value", "Negate forward", compute("Negate", lambda y, a: -np.abs(a)))
op("negate-backward", "the gradient keeps its sign", "Negate backward", contribution("Negate", np.negative))
op("log-forward", "log(x + 1e-5)", "Log forward", compute("Log", lambda y, a: np.log(a + np.float32(1e-5))))
op("log-backward", "the gradient is multiplied by x", "Log backward", vjp("Log", lambda r, g, y, a: (g * a,)))
op(
    "exp-forward",
    "exp is cut off at e²⁰",
    "Exp forward",
    compute("Exp", lambda y, a: np.minimum(y, np.float32(math.exp(20)))),
)
op("exp-backward", "the gradient lacks eˣ", "Exp backward", vjp("Exp", lambda r, g, y, a: (g,)))
op(
    "relu-forward-leaky",
    "negative values pass with 0.01",
    "ReLU forward",
    compute("ReLU", lambda y, a: np.where(a > 0, a, np.float32(0.01) * a)),
)
op(
    "relu-forward-cut",
    "values are cut off at 6",
    "ReLU forward",
    compute("ReLU", lambda y, a: np.minimum(y, np.float32(6))),
)
op(
    "relu-backward-at-zero",
    "the gradient at exactly 0 is 1",
    "ReLU backward",
    vjp("ReLU", lambda r, g, y, a: (g * (y >= 0) * (a >= 0),)),
)
op(
    "relu-backward-guided",
    "negative gradients do not pass",
    "ReLU backward",
    vjp("ReLU", lambda r, g, y, a: (r[0] * (g > 0),)),
)
op(
    "tanh-forward",
    "a rational approximation",
    "Tanh forward",
    compute("Tanh", lambda y, a: np.clip(a * (27 + a * a) / (27 + 9 * a * a), -1, 1)),
)
op("tanh-backward", "1 − y instead of 1 − y²", "Tanh backward", vjp("Tanh", lambda r, g, y, a: (g * (1 - y),)))
op(
    "tanh-backward-input",
    "1 − x² instead of 1 − y²",
    "Tanh backward",
    vjp("Tanh", lambda r, g, y, a: (g * (1 - a * a),)),
)
op(
    "sigmoid-forward",
    "eˣ / (1 + eˣ), which overflows",
    "Sigmoid forward",
    compute("Sigmoid", lambda y, a: np.exp(a) / (1 + np.exp(a))),
)
op(
    "sigmoid-backward",
    "y(1 + y) instead of y(1 − y)",
    "Sigmoid backward",
    vjp("Sigmoid", lambda r, g, y, a: (g * y * (1 + y),)),
)
op(
    "transpose-forward",
    "the default swaps the first two axes",
    "Transpose forward",
    wrap("ops.Transpose.compute", lambda old: lambda self, a: a.swapaxes(0, 1) if self.axes is None else old(self, a)),
)
op(
    "transpose-backward-square",
    "a square gradient is not swapped back",
    "Transpose backward",
    vjp("Transpose", lambda r, g, y, a: (g if g.shape == r[0].shape else r[0],)),
)
op(
    "transpose-backward-all",
    "the gradient has all its axes reversed where that fits",
    "Transpose backward",
    vjp("Transpose", lambda r, g, y, a: (g.T if g.T.shape == r[0].shape else r[0],)),
)
op(
    "reshape-forward",
    "elements are read column by column",
    "Reshape forward",
    replace("ops.Reshape.compute", lambda self, a: a.reshape(self.shape, order="F")),
)
op(
    "reshape-backward",
    "the gradient is filled in column by column",
    "Reshape backward",
    vjp("Reshape", lambda r, g, y, a: (g.reshape(a.shape, order="F"),)),
)
op(
    "broadcast-backward",
    "the gradient is the mean and not the sum",
    "BroadcastTo backward",
    vjp("BroadcastTo", lambda r, g, y, a: (r[0] * (a.size / max(g.size, 1)),)),
)
op(
    "broadcast-forward",
    "the last copy is 0",
    "BroadcastTo forward",
    compute("BroadcastTo", lambda y, a: np.concatenate([y[:-1], 0 * y[-1:]]) if y.ndim > a.ndim and len(y) > 1 else y),
)
op(
    "getitem-forward",
    "the step is ignored where the shape allows it",
    "GetItem forward",
    compute("GetItem", lambda y, a: a[tuple(slice(0, n) for n in y.shape)] if y.ndim == a.ndim else y),
)
op(
    "getitem-backward",
    "the gradient is put at the beginning",
    "GetItem backward|PutItem",
    vjp(
        "GetItem",
        lambda r, g, y, a: (
            np.pad(g, [(0, n - m) for n, m in zip(a.shape, g.shape, strict=True)]) if g.ndim == a.ndim else r[0],
        ),
    ),
)
op("flip-forward", "all axes are reversed", "Flip forward", compute("Flip", lambda y, a: np.flip(a)))
op("flip-backward", "the gradient is not reversed", "Flip backward", vjp("Flip", lambda r, g, y, a: (g,)))
op(
    "dilate-forward",
    "zeros come before the elements",
    "Dilate forward",
    compute(
        "Dilate",
        lambda y, a: (
            np.flip(y)
            if y.size > a.size and a.ndim == 1
            else np.roll(y, 1, axis=1)
            if y.size > a.size and y.shape[1:2] != a.shape[1:2]
            else y
        ),
    ),
)
op(
    "dilate-backward",
    "the gradient is taken from the front and not from every other place",
    "Dilate backward",
    vjp("Dilate", lambda r, g, y, a: (g[tuple(slice(0, n) for n in a.shape)],)),
)
op(
    "sum-forward-tuple",
    "of several axes only the first is summed, then the rest averaged",
    "Summation forward",
    wrap("ops.Summation.compute", lambda old: lambda self, a: _first_sum(old, self, a)),
)
op(
    "sum-forward-negative",
    "a negative axis is taken from the other end",
    "Summation forward",
    wrap("ops.Summation.compute", lambda old: lambda self, a: _other_end(old, self, a)),
)
op(
    "sum-backward",
    "the gradient is divided by the number of summands",
    "Summation backward",
    vjp("Summation", lambda r, g, y, a: (r[0] * (max(y.size, 1) / max(a.size, 1)),)),
)
op(
    "sum-backward-axis",
    "the gradient is spread along the wrong axis where the shape is square",
    "Summation backward",
    vjp("Summation", lambda r, g, y, a: (_swap(r[0]) if _square(r[0]) else r[0],)),
)
op(
    "max-forward",
    "the largest absolute value",
    "Max forward",
    compute("Max", lambda y, a: np.where(np.abs(a.min(initial=0)) > np.abs(y), a.min(initial=0), y)),
)
op(
    "max-backward-ties",
    "every tie gets the whole gradient",
    "Max backward",
    vjp(
        "Max",
        lambda r, g, y, a: (
            np.where(r[0] != 0, np.sign(r[0]) * np.abs(g).max(initial=0) if g.size == 1 else _full_share(r[0]), r[0]),
        ),
    ),
)
op(
    "max-backward-spread",
    "the gradient goes to all elements",
    "Max backward",
    vjp("Max", lambda r, g, y, a: (np.full_like(r[0], r[0].mean()),)),
)
op(
    "logsumexp-forward",
    "no shift by the maximum",
    "LogSumExp forward",
    replace(
        "ops.LogSumExp.compute",
        lambda self, a: np.asarray(np.log(np.exp(a).sum(axis=ops._axes(self.axes, a.ndim, "logsumexp")))),
    ),
)
op(
    "logsumexp-backward",
    "the gradient is spread evenly",
    "LogSumExp backward",
    vjp("LogSumExp", lambda r, g, y, a: (np.zeros_like(a) + g.sum() / a.size,)),
)
op(
    "logsoftmax-forward",
    "1e-4 inside the logarithm",
    "LogSoftmax forward",
    compute(
        "LogSoftmax",
        lambda y, a: (
            a
            - a.max(1, keepdims=True)
            - np.log(np.exp(a - a.max(1, keepdims=True)).sum(1, keepdims=True) + np.float32(1e-4))
        ),
    ),
)
op(
    "logsoftmax-forward-axis",
    "over axis 0 where the matrix is square",
    "LogSoftmax forward",
    wrap("ops.LogSoftmax.compute", lambda old: lambda self, a: old(self, a.T).T if _square(a) else old(self, a)),
)
op(
    "logsoftmax-backward",
    "the gradient lacks the softmax term",
    "LogSoftmax backward",
    vjp("LogSoftmax", lambda r, g, y, a: (g,)),
)
op(
    "matmul-forward",
    "a square second operand is transposed",
    "MatMul forward",
    compute("MatMul", lambda y, a, b: np.matmul(a, _swap(b)) if _square(b) else y),
)
op(
    "matmul-backward-first",
    "the first gradient multiplies with B and not Bᵀ where B is square",
    "MatMul backward",
    vjp("MatMul", lambda r, g, y, a, b: (ops._reduced(np.matmul(g, b), a.shape) if _square(b) else r[0], r[1])),
)
op(
    "matmul-backward-second",
    "the second gradient multiplies with A and not Aᵀ where A is square",
    "MatMul backward",
    vjp("MatMul", lambda r, g, y, a, b: (r[0], ops._reduced(np.matmul(a, g), b.shape) if _square(a) else r[1])),
)
op(
    "matmul-backward-batch",
    "a broadcast batch is averaged and not summed",
    "MatMul backward",
    vjp(
        "MatMul",
        lambda r, g, y, a, b: (r[0], r[1] if r[1] is None or b.ndim == g.ndim else r[1] / np.float32(max(len(g), 1))),
    ),
)
op(
    "linear-forward-bias",
    "the bias of shape (1, n) is added down the rows where the result is square",
    "Linear forward",
    vjp("Linear", lambda r, *_: r)
    + wrap(
        "ops.Linear.compute",
        lambda old: (
            lambda self, x, w, b=None: (
                old(self, x, w) + b.T
                if b is not None and b.ndim == 2 and x.shape[0] == b.shape[1]
                else old(self, x, w, b)
                if b is not None
                else old(self, x, w)
            )
        ),
    ),
)
op(
    "linear-backward-input",
    "dx multiplies with W and not Wᵀ where W is square",
    "Linear backward",
    vjp("Linear", lambda r, g, y, x, w, *b: (g.dot(w) if _square(w) and r[0] is not None else r[0], *r[1:])),
)
op(
    "linear-backward-weight",
    "dW is averaged over the batch",
    "Linear backward",
    vjp("Linear", lambda r, g, y, x, w, *b: (r[0], r[1] if r[1] is None else r[1] / np.float32(len(x)), *r[2:])),
)
op(
    "linear-backward-bias",
    "db is averaged over the batch",
    "Linear backward",
    vjp("Linear", lambda r, g, y, x, w, *b: (*r[:2], *(None if c is None else c / np.float32(len(x)) for c in r[2:]))),
)
op(
    "linear-backward-bias-first",
    "db is the first row",
    "Linear backward",
    vjp("Linear", lambda r, g, y, x, w, *b: (*r[:2], *(None if c is None else g[:1].reshape(c.shape) for c in r[2:]))),
)
op(
    "conv-forward",
    "the kernel runs backwards",
    "Conv forward",
    wrap(
        "ops.Conv.compute",
        lambda old: lambda self, x, k: old(self, x, k[::-1, ::-1]) if x.ndim == k.ndim == 4 else old(self, x, k),
    ),
)
op(
    "conv-backward-input",
    "dx is reversed",
    "Conv backward",
    vjp("Conv", lambda r, g, y, x, k: (None if r[0] is None else r[0][:, ::-1, ::-1], r[1])),
)
op(
    "conv-backward-kernel",
    "dk has its two spatial axes swapped",
    "Conv backward",
    vjp("Conv", lambda r, g, y, x, k: (r[0], None if r[1] is None else r[1].swapaxes(0, 1))),
)
op(
    "conv-backward-stride",
    "dx counts each pixel once for every stride",
    "Conv backward",
    wrap(
        "ops.Conv.vjp",
        lambda old: (
            lambda self, g, y, needs, x, k: tuple(
                c if c is None or i else c * self.stride for i, c in enumerate(old(self, g, y, needs, x, k))
            )
        ),
    ),
)
op(
    "stack-forward",
    "the tensors are stacked in reverse",
    "Stack forward",
    wrap("ops.Stack.compute", lambda old: lambda self, args: old(self, args[::-1])),
)
op(
    "stack-backward",
    "gradients are handed out in reverse",
    "Stack backward",
    wrap("ops.Stack.vjp", lambda old: lambda self, g, y, needs, args: (tuple(old(self, g, y, needs, args)[0])[::-1],)),
)
op(
    "split-forward",
    "slices come in reverse",
    "Split forward",
    wrap("ops.Split.compute", lambda old: lambda self, a: old(self, a)[::-1]),
)
op(
    "split-backward",
    "the gradient is stacked in reverse",
    "Split backward",
    vjp("Split", lambda r, g, y, a: (np.flip(r[0]),)),
)
op(
    "tuple-backward",
    "an element's gradient goes to its mirror image in the tuple",
    "TupleGetItem backward|Split|Stack",
    wrap("ops.TupleGetItem.vjp", lambda old: lambda self, g, y, needs, a: (old(self, g, y, needs, a)[0][::-1],)),
)
op(
    "loss-forward-sum",
    "the loss is the sum over the batch",
    "SoftmaxCrossEntropy forward",
    compute("SoftmaxCrossEntropy", lambda y, z, labels: y * len(z)),
)
op(
    "loss-forward-overflow",
    "logits are not shifted",
    "SoftmaxCrossEntropy forward",
    compute(
        "SoftmaxCrossEntropy",
        lambda y, z, labels: (np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), np.asarray(labels, int)]).mean(),
    ),
)
op(
    "loss-forward-shift",
    "logits are shifted by the largest of the whole batch",
    "SoftmaxCrossEntropy forward",
    compute(
        "SoftmaxCrossEntropy",
        lambda y, z, labels: (
            np.log(np.exp(z - z.max()).sum(1)) + z.max() - z[np.arange(len(z)), np.asarray(labels, int)]
        ).mean(),
    ),
)
op(
    "loss-backward-sum",
    "the gradient is not divided by the batch size",
    "SoftmaxCrossEntropy backward",
    vjp("SoftmaxCrossEntropy", lambda r, g, y, z, labels: (r[0] * len(z), None)),
)
op(
    "loss-backward-onehot",
    "the gradient lacks the labels",
    "SoftmaxCrossEntropy backward",
    vjp("SoftmaxCrossEntropy", lambda r, g, y, z, labels: (_softmax(z) * (g / len(z)), None)),
)
op(
    "loss-backward-out-grad",
    "the gradient does not depend on the incoming one",
    "SoftmaxCrossEntropy backward",
    vjp("SoftmaxCrossEntropy", lambda r, g, y, z, labels: (r[0] / np.where(g == 0, np.float32(1), g), None)),
)


def _softmax(z: Any) -> Any:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _full_share(share: Any) -> Any:
    return np.sign(share) * np.abs(share).max(initial=0)


def _first_sum(old: Any, self: Any, a: Any) -> Any:
    y = old(self, a)
    axes = ops._axes(self.axes, a.ndim, "summation")
    if self.axes is None or len(axes) < 2:
        return y
    return np.asarray(y / np.float32(max(1, math.prod(a.shape[i] for i in axes[1:]))))


def _other_end(old: Any, self: Any, a: Any) -> Any:
    y = old(self, a)
    if isinstance(self.axes, int) and self.axes < 0:
        wrong = a.sum(axis=-self.axes - 1)
        return wrong if wrong.shape == np.shape(y) else y
    return y


# -- layers and modes -------------------------------------------------------------------------------------------------


def batch_norm(
    stats: Callable[[Any], tuple[Any, Any]] = lambda x: (x.mean(0), ((x - x.mean(0)) ** 2).mean(0)),
    inverse: Callable[[Any, float], Any] = lambda var, eps: 1 / np.sqrt(var + eps),
) -> Patch:
    """The normalisation of BatchNorm in training written out, for arrays."""

    def statistics(old: Any, self: Any, x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return old(self, x)
        mean, var = stats(x)
        return x - mean, inverse(var, self.eps), mean, var

    return around("ops.BatchNorm._statistics", statistics)


def layer_norm(
    stats: Callable[[Any], tuple[Any, Any]] = lambda x: (x.mean(-1, keepdims=True), x.var(-1, keepdims=True)),
    inverse: Callable[[Any, float], Any] = lambda var, eps: 1 / np.sqrt(var + eps),
) -> Patch:
    """The normalisation of LayerNorm written out, for arrays."""

    def normalised(old: Any, self: Any, x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return old(self, x)
        mean, var = stats(x)
        inv = inverse(var, self.eps)
        return (x - mean) * inv, inv

    return around("ops.LayerNorm._normalised", normalised)


def _norm_vjp(op: str, change: Callable[..., Any]) -> Patch:
    """dx of a norm: ``change(g, weight, xh, inv, mean)``, where ``mean`` averages over what is normalised."""
    axis = 0 if op == "BatchNorm" else -1

    def make(old: Any) -> Any:
        def patched(self: Any, g: Any, y: Any, needs: Any, x: Any, w: Any, b: Any) -> Any:
            right = old(self, g, y, needs, x, w, b)
            if not isinstance(x, np.ndarray) or right[0] is None:
                return right

            def mean(v: Any) -> Any:
                return v.mean(axis, keepdims=True)

            centred = x - mean(x)
            inv = 1 / np.sqrt(mean(centred * centred) + self.eps)
            return change(g, w, centred * inv, inv, mean), *right[1:]

        return patched

    return reading(op) + wrap(f"ops.{op}.vjp", make)


def _last(t: Any, mean: Any) -> Any:
    return t - mean(t)


def running(change: Callable[..., Any]) -> Patch:
    """What BatchNorm1d leaves behind after a training batch: ``change(layer, x, old mean, old var)`` sets it anew."""

    def forward(old: Any, self: Any, x: Any) -> Any:
        before = self.running_mean.cached_data, self.running_var.cached_data
        y = old(self, x)
        change(self, x.cached_data, *before)
        return y

    return around("nn.BatchNorm1d.forward", forward)


def _set_running(layer: Any, mean: Any, var: Any) -> None:
    layer.running_mean.cached_data = np.asarray(mean, np.float32)
    layer.running_var.cached_data = np.asarray(var, np.float32)


def _unbiased(self: Any, x: Any, mean: Any, var: Any) -> None:
    if self.training:
        m = self.momentum
        self.running_var.cached_data = np.asarray((1 - m) * var + m * x.var(0, ddof=1), np.float32)


def _as_if_training(old: Any, self: Any, x: Any) -> Any:
    before = self.training
    self.training = True
    try:
        return old(self, x) if len(x.shape) and x.shape[0] > 1 else _in_mode(old, self, x, before)
    finally:
        self.training = before


def _in_mode(old: Any, self: Any, x: Any, training: bool) -> Any:
    self.training = training
    return old(self, x)


def _without_update(old: Any, self: Any, x: Any) -> Any:
    before = self.running_mean.cached_data, self.running_var.cached_data
    y = old(self, x) if not self.training and x.shape[0] < 2 else _as_if_training(old, self, x)
    if not self.training:
        self.running_mean.cached_data, self.running_var.cached_data = before
    return y


def _evaluated(change: Callable[..., Any]) -> Patch:
    """BatchNorm1d in evaluation: ``change(x, mean, var, weight, bias, eps)``, Tensors all."""

    def forward(old: Any, self: Any, x: Any) -> Any:
        if self.training:
            return old(self, x)
        return change(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)

    return around("nn.BatchNorm1d.forward", forward)


def _updates_in_eval(self: Any, x: Any, mean: Any, var: Any) -> None:
    if not self.training:
        m = self.momentum
        _set_running(self, (1 - m) * mean + m * x.mean(0), (1 - m) * var + m * x.var(0))


def dropout(
    draw: Callable[[Any, Any], Any] = lambda self, x: np.random.rand(*x.shape) <= 1 - self.p,
    scale: Callable[[Any], float] = lambda self: 1 / (1 - self.p) if self.p < 1 else 0.0,
    active: Callable[[Any], bool] = lambda self: bool(self.training),
) -> Patch:
    """Dropout written out, with some of its parts replaced."""

    def forward(self: Any, x: Any) -> Any:
        if not active(self):
            return x
        return x * _const((draw(self, x) * scale(self)).astype(np.float32))

    return replace("nn.Dropout.forward", forward)


def _mode(training: bool, which: Callable[[Any], list[Any]]) -> Any:
    def switch(self: Any) -> Any:
        for module in which(self):
            module.training = training
        return self

    return switch


def _direct(self: Any) -> list[Any]:
    """A module and its direct children only."""
    parts = [v for value in vars(self).values() for v in (value if isinstance(value, list | tuple) else [value])]
    return [self, *(m for m in parts if isinstance(m, nn.Module))]


def _two_levels(self: Any) -> list[Any]:
    return [m for child in _direct(self) for m in _direct(child)]


def _parameters(change: Callable[[list[Any]], list[Any]]) -> Patch:
    return around("nn.Module.parameters", lambda old, self: change(old(self)))


def _initial(change: Callable[[Any], None]) -> Patch:
    """Linear built as usual, then changed."""

    def make(old: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            old(self, *args, **kwargs)
            change(self)

        return init

    return wrap("nn.Linear.__init__", make)


layer = _group("layer")
CONTROLS["BatchNorm written out"] = batch_norm() + _norm_vjp(
    "BatchNorm", lambda g, w, xh, inv, mean: _last(g - xh * mean(g * xh), mean) * (inv * w)
)
CONTROLS["LayerNorm written out"] = layer_norm() + _norm_vjp(
    "LayerNorm", lambda g, w, xh, inv, mean: _last(g * w - xh * mean(g * w * xh), mean) * inv
)
CONTROLS["Dropout written out"] = dropout()
BN, LN = "BatchNorm", "LayerNorm"
RUNNING = "running statistics|buffer|BatchNorm"

layer(
    "bn-variance-unbiased",
    "the batch variance divides by n − 1",
    f"{BN} forward",
    batch_norm(lambda x: (x.mean(0), x.var(0, ddof=1))),
)
layer(
    "bn-mean-of-squares",
    "the variance is the mean of squares, not centred",
    f"{BN} forward",
    batch_norm(lambda x: (x.mean(0), (x * x).mean(0))),
)
layer(
    "bn-one-variance",
    "one variance for all columns",
    f"{BN} forward",
    batch_norm(lambda x: (x.mean(0), np.full_like(x[0], x.var(0).mean()))),
)
layer(
    "bn-wrong-axis",
    "statistics of rows where the batch is square",
    f"{BN} forward",
    batch_norm(lambda x: (x.mean(1), x.var(1)) if _square(x) else (x.mean(0), x.var(0))),
)
layer(
    "bn-eps-outside", "1 / (√var + ε)", f"{BN} forward", batch_norm(inverse=lambda var, eps: 1 / (np.sqrt(var) + eps))
)
layer(
    "bn-not-centred",
    "the mean is not subtracted",
    f"{BN} forward",
    around("ops.BatchNorm._statistics", lambda old, self, x: (x, *old(self, x)[1:])),
)
layer("bn-no-bias", "the bias is left out", f"{BN} forward", compute("BatchNorm", lambda y, x, w, b: y - b))
layer(
    "bn-eval-batch-statistics",
    "evaluation uses the statistics of the batch",
    f"{BN} forward",
    around("nn.BatchNorm1d.forward", _without_update),
)
layer(
    "bn-train-running-statistics",
    "training normalises with the running statistics",
    f"{BN} forward",
    around("nn.BatchNorm1d.forward", lambda old, self, x: (old(self, x), _in_eval(old, self, x))[1]),
)
layer(
    "bn-eval-no-eps",
    "evaluation leaves ε out",
    f"{BN} forward",
    _evaluated(lambda x, m, v, w, b, eps: (x - m) * (w / v**0.5) + b),
)
layer(
    "bn-eval-no-mean",
    "evaluation does not subtract the mean",
    f"{BN} forward",
    _evaluated(lambda x, m, v, w, b, eps: x * (w / (v + eps) ** 0.5) + b),
)
layer(
    "bn-eval-no-weight",
    "evaluation leaves the weight out",
    f"{BN} forward",
    _evaluated(lambda x, m, v, w, b, eps: (x - m) / (v + eps) ** 0.5 + b),
)
layer(
    "bn-eval-no-root",
    "evaluation divides by the variance",
    f"{BN} forward",
    _evaluated(lambda x, m, v, w, b, eps: (x - m) * (w / (v + eps)) + b),
)
layer("bn-running-unbiased", "running_var takes the unbiased variance", RUNNING, running(_unbiased))
layer(
    "bn-momentum-swapped",
    "running = momentum · old + (1 − momentum) · new",
    RUNNING,
    running(
        lambda s, x, m, v: (
            _set_running(s, s.momentum * m + (1 - s.momentum) * x.mean(0), s.momentum * v + (1 - s.momentum) * x.var(0))
            if s.training
            else None
        )
    ),
)
layer(
    "bn-running-replaced",
    "the running statistics are those of the last batch",
    RUNNING,
    running(lambda s, x, m, v: _set_running(s, x.mean(0), x.var(0)) if s.training else None),
)
layer(
    "bn-running-never",
    "the running statistics stay as they are",
    RUNNING,
    running(lambda s, x, m, v: _set_running(s, m, v)),
)
layer(
    "bn-running-mean-only",
    "running_var is not updated",
    RUNNING,
    running(lambda s, x, m, v: _set_running(s, s.running_mean.cached_data, v)),
)
layer(
    "bn-running-std",
    "running_var averages standard deviations",
    RUNNING,
    running(
        lambda s, x, m, v: (
            _set_running(s, s.running_mean.cached_data, (1 - s.momentum) * v + s.momentum * x.std(0))
            if s.training
            else None
        )
    ),
)
layer(
    "bn-updates-in-eval",
    "evaluation updates the running statistics",
    f"{RUNNING}|evaluation",
    running(_updates_in_eval),
)
layer(
    "bn-running-float64",
    "the running statistics become float64",
    RUNNING,
    running(lambda s, x, m, v: setattr(s.running_mean, "cached_data", s.running_mean.cached_data.astype(np.float64))),
)
layer(
    "bn-running-var-inverse",
    "running_var takes the variance plus ε",
    RUNNING,
    running(
        lambda s, x, m, v: (
            _set_running(s, s.running_mean.cached_data, (1 - s.momentum) * v + s.momentum * (x.var(0) + s.eps))
            if s.training
            else None
        )
    ),
)
layer(
    "bn-backward-constant-statistics",
    "dx takes mean and variance for constants",
    f"{BN} backward",
    _norm_vjp("BatchNorm", lambda g, w, xh, inv, mean: g * (inv * w)),
)
layer(
    "bn-backward-constant-variance",
    "dx takes the variance for a constant",
    f"{BN} backward",
    _norm_vjp("BatchNorm", lambda g, w, xh, inv, mean: (g - mean(g)) * (inv * w)),
)
layer(
    "bn-backward-constant-mean",
    "dx takes the mean for a constant",
    f"{BN} backward",
    _norm_vjp("BatchNorm", lambda g, w, xh, inv, mean: (g - xh * mean(g * xh)) * (inv * w)),
)
layer(
    "bn-backward-no-weight",
    "dx lacks the weight",
    f"{BN} backward",
    _norm_vjp("BatchNorm", lambda g, w, xh, inv, mean: _last(g - xh * mean(g * xh), mean) * inv),
)
layer(
    "bn-backward-weight",
    "dγ lacks the normalised input",
    f"{BN} backward",
    vjp("BatchNorm", lambda r, g, y, x, w, b: (r[0], g.sum(0), r[2])),
)
layer(
    "bn-backward-weight-raw",
    "dγ sums g·x, not normalised",
    f"{BN} backward",
    vjp("BatchNorm", lambda r, g, y, x, w, b: (r[0], (g * x).sum(0), r[2])),
)
layer(
    "bn-backward-bias",
    "dβ is averaged over the batch",
    f"{BN} backward",
    vjp("BatchNorm", lambda r, g, y, x, w, b: (r[0], r[1], None if r[2] is None else r[2] / np.float32(len(x)))),
)
layer(
    "bn-default-momentum",
    "the default momentum is 0.9",
    RUNNING,
    wrap(
        "nn.BatchNorm1d.__init__",
        lambda old: lambda self, dim, eps=1e-5, momentum=0.9, **kw: old(self, dim, eps, momentum, **kw),
    ),
)
layer(
    "ln-variance-unbiased",
    "the variance of a row divides by d − 1",
    f"{LN} forward",
    layer_norm(
        lambda x: (
            x.mean(-1, keepdims=True),
            x.var(-1, keepdims=True) * np.float32(x.shape[-1] / max(1, x.shape[-1] - 1)),
        )
    ),
)
layer(
    "ln-wrong-axis",
    "columns are normalised where the batch is square",
    f"{LN} forward",
    layer_norm(
        lambda x: (
            (x.mean(0, keepdims=True), x.var(0, keepdims=True))
            if _square(x)
            else (x.mean(-1, keepdims=True), x.var(-1, keepdims=True))
        )
    ),
)
layer(
    "ln-eps-outside", "1 / (√var + ε)", f"{LN} forward", layer_norm(inverse=lambda var, eps: 1 / (np.sqrt(var) + eps))
)
layer(
    "ln-whole-batch",
    "one mean and variance for the whole batch",
    f"{LN} forward",
    layer_norm(lambda x: (np.full_like(x[..., :1], x.mean()), np.full_like(x[..., :1], x.var()))),
)
layer(
    "ln-backward-constant-variance",
    "dx takes the variance for a constant",
    f"{LN} backward",
    _norm_vjp("LayerNorm", lambda g, w, xh, inv, mean: (g * w - mean(g * w)) * inv),
)
layer(
    "ln-backward-constant-mean",
    "dx takes the mean for a constant",
    f"{LN} backward",
    _norm_vjp("LayerNorm", lambda g, w, xh, inv, mean: (g * w - xh * mean(g * w * xh)) * inv),
)
layer(
    "ln-backward-weight-late",
    "dx multiplies with the weight at the end",
    f"{LN} backward",
    _norm_vjp("LayerNorm", lambda g, w, xh, inv, mean: _last(g - xh * mean(g * xh), mean) * (inv * w)),
)
layer(
    "ln-backward-weight",
    "dγ lacks the normalised input",
    f"{LN} backward",
    vjp(
        "LayerNorm", lambda r, g, y, x, w, b: (r[0], None if r[1] is None else g.reshape(-1, g.shape[-1]).sum(0), r[2])
    ),
)
layer(
    "ln-backward-bias",
    "dβ is the gradient of the last row",
    f"{LN} backward",
    vjp("LayerNorm", lambda r, g, y, x, w, b: (r[0], r[1], None if r[2] is None else g.reshape(-1, g.shape[-1])[-1])),
)
layer("dropout-no-scale", "what is kept is not divided by 1 − p", "Dropout forward", dropout(scale=lambda s: 1.0))
layer(
    "dropout-scale-p",
    "what is kept is divided by p",
    "Dropout forward",
    dropout(scale=lambda s: 1 / s.p if s.p else 1.0),
)
layer(
    "dropout-inverted",
    "elements are kept with probability p",
    "Dropout forward",
    dropout(draw=lambda s, x: np.random.rand(*x.shape) <= s.p),
)
layer("dropout-in-eval", "evaluation drops, too", "Dropout forward", dropout(active=lambda s: True))
layer("dropout-never", "training drops nothing", "Dropout forward", dropout(active=lambda s: False))
layer(
    "dropout-draws-in-eval",
    "evaluation draws a mask and throws it away",
    "evaluation|random|Dropout",
    around(
        "nn.Dropout.forward",
        lambda old, self, x: (None if self.training else np.random.rand(*x.shape), old(self, x))[1],
    ),
)
layer(
    "dropout-no-draw-at-zero",
    "nothing is drawn for p = 0, so that later masks differ",
    "Dropout",
    around("nn.Dropout.forward", lambda old, self, x: old(self, x) if self.p else x * 1.0),
)
layer(
    "dropout-one-mask-for-rows",
    "all rows share a mask",
    "Dropout forward",
    dropout(draw=lambda s, x: np.broadcast_to((np.random.rand(*x.shape) <= 1 - s.p)[:1], x.shape)),
)
layer(
    "dropout-everything-nan",
    "p = 1 divides by 0",
    "Dropout forward",
    dropout(scale=lambda s: float(np.float64(1) / np.float64(1 - s.p))),
)
layer(
    "dropout-default",
    "the default p is 0.4",
    "Dropout forward",
    wrap("nn.Dropout.__init__", lambda old: lambda self, p=0.4: old(self, p)),
)
layer(
    "dropout-backward",
    "the gradient passes what was dropped",
    "Dropout backward",
    around(
        "nn.Dropout.forward", lambda old, self, x: _straight_through(old(self, x), x) if self.training else old(self, x)
    ),
)
layer(
    "eval-not-nested",
    "eval() reaches direct children only",
    "Module.eval",
    replace("nn.Module.eval", _mode(False, _direct)),
)
layer(
    "eval-two-levels",
    "eval() reaches two levels",
    "Module.eval",
    replace("nn.Module.eval", _mode(False, _two_levels)),
)
layer(
    "train-not-nested",
    "train() reaches direct children only",
    "Module.train",
    replace("nn.Module.train", _mode(True, _direct)),
)
layer(
    "train-never",
    "train() does not undo eval()",
    "Module.train",
    replace("nn.Module.train", lambda self: self),
)
layer(
    "residual-no-skip",
    "fn(x) without x",
    "Residual forward",
    replace("nn.Residual.forward", lambda self, x: self.fn(x)),
)
layer(
    "residual-doubled",
    "fn(x) + 2x",
    "Residual forward",
    replace("nn.Residual.forward", lambda self, x: self.fn(x) + x + x),
)
layer(
    "residual-subtracts",
    "fn(x) − x",
    "Residual forward",
    replace("nn.Residual.forward", lambda self, x: self.fn(x) - x),
)
layer(
    "residual-detached",
    "no gradient flows through the skip",
    "Residual backward|accumulation",
    replace("nn.Residual.forward", lambda self, x: self.fn(x) + x.detach()),
)
layer(
    "residual-in-place",
    "the skip is added into the output of the body",
    "Residual|writes|forward",
    replace("nn.Residual.forward", lambda self, x: _added_in_place(self.fn(x), x)),
)
layer(
    "flatten-order",
    "square matrices are flattened column by column",
    "Flatten forward",
    replace(
        "nn.Flatten.forward",
        lambda self, x: ops.reshape(x.transpose() if _square(x.cached_data) else x, (x.shape[0], -1)),
    ),
)
layer(
    "flatten-squeezes",
    "a batch of 1 loses its axis",
    "Flatten forward",
    around("nn.Flatten.forward", lambda old, self, x: ops.reshape(x, (x.size,)) if x.shape[0] == 1 else old(self, x)),
)
layer(
    "flatten-detached",
    "no gradient flows through",
    "Flatten backward|missing",
    around("nn.Flatten.forward", lambda old, self, x: old(self, x.detach())),
)
layer(
    "linear-no-bias",
    "the bias is not added",
    "Linear forward",
    replace("nn.Linear.forward", lambda self, x: ops.linear(x, self.weight, None)),
)
layer(
    "linear-transposed",
    "a square weight is used transposed",
    "Linear forward",
    around(
        "nn.Linear.forward",
        lambda old, self, x: (
            ops.linear(x, ops.transpose(self.weight), self.bias) if _square(self.weight) else old(self, x)
        ),
    ),
)
layer(
    "linear-bias-ignored-flag",
    "bias=False makes a bias all the same",
    "Linear|parameters",
    wrap("nn.Linear.__init__", lambda old: lambda self, i, o, bias=True, **kw: old(self, i, o, True, **kw)),
)
layer(
    "linear-init-fan-out",
    "weights are scaled by the number of outputs",
    "Linear|constructor",
    _initial(
        lambda m: setattr(
            m.weight, "cached_data", (m.weight.cached_data * np.sqrt(m.in_features / m.out_features)).astype(np.float32)
        )
    ),
)
layer(
    "linear-init-zero-bias",
    "biases start at 0",
    "Linear|constructor",
    _initial(lambda m: None if m.bias is None else setattr(m.bias, "cached_data", 0 * m.bias.cached_data)),
)
layer(
    "linear-init-gain",
    "weights lack the factor √2",
    "Linear|constructor",
    _initial(lambda m: setattr(m.weight, "cached_data", m.weight.cached_data / np.float32(math.sqrt(2)))),
)
layer(
    "linear-bias-shape",
    "the bias has shape (n,)",
    "Linear|constructor|shape",
    _initial(lambda m: None if m.bias is None else setattr(m.bias, "cached_data", m.bias.cached_data.reshape(-1))),
)
layer(
    "linear-float64",
    "weights are float64",
    "Linear|constructor|dtype",
    _initial(lambda m: setattr(m.weight, "cached_data", m.weight.cached_data.astype(np.float64))),
)
layer(
    "sequential-reversed",
    "two layers of equal width change places",
    "Sequential|forward|Linear",
    around(
        "nn.Sequential.forward",
        lambda old, self, x: _in_order(self.modules[::-1], x) if len(self.modules) == 2 else old(self, x),
    ),
)
layer(
    "sequential-skips-last",
    "the last of more than three layers is skipped",
    "Sequential|forward|missing",
    around(
        "nn.Sequential.forward",
        lambda old, self, x: _in_order(self.modules[:-1], x) if len(self.modules) > 3 else old(self, x),
    ),
)
layer(
    "sequential-first-twice",
    "the first layer runs twice if it keeps the shape",
    "Sequential|forward",
    around(
        "nn.Sequential.forward",
        lambda old, self, x: old(self, _if_same(self.modules[0](x), x)) if self.modules else old(self, x),
    ),
)
layer(
    "identity-detached",
    "no gradient flows through Identity",
    "Identity backward|missing",
    replace("nn.Identity.forward", lambda self, x: x.detach()),
)
layer(
    "identity-halves",
    "Identity halves large values",
    "Identity forward",
    replace("nn.Identity.forward", lambda self, x: x * 0.5 if x.size > 4 else x),
)
layer("parameters-reversed", "parameters() gives them in reverse", "parameters", _parameters(lambda ps: ps[::-1]))
layer(
    "parameters-repeated",
    "parameters() gives tied parameters twice",
    "parameters",
    wrap("nn.Module._walk", lambda old: lambda self, prefix, seen: old(self, prefix, _forgetful())),
)
layer(
    "parameters-vectors-lost",
    "parameters() leaves out those of one dimension",
    "parameters",
    _parameters(lambda ps: [p for p in ps if p.ndim > 1] or ps),
)
layer(
    "loss-labels-shifted",
    "labels count from 1",
    "SoftmaxLoss|SoftmaxCrossEntropy",
    around(
        "nn.SoftmaxLoss.forward",
        lambda old, self, z, y: old(self, z, _const((y.cached_data.astype(int) + 1) % z.shape[1])),
    ),
)
layer(
    "loss-smoothed",
    "labels are smoothed by 0.01",
    "SoftmaxLoss|SoftmaxCrossEntropy",
    around(
        "nn.SoftmaxLoss.forward",
        lambda old, self, z, y: old(self, z, y) * 0.99 + ops.logsoftmax(z).sum() * (-0.01 / z.size),
    ),
)
layer(
    "relu-layer-twice",
    "the layer negates first",
    "ReLU forward",
    replace("nn.ReLU.forward", lambda self, x: ops.relu(-x)),
)


def _in_eval(old: Any, self: Any, x: Any) -> Any:
    before = self.training
    self.training = False
    try:
        return old(self, x)
    finally:
        self.training = before


def _straight_through(y: Any, x: Any) -> Any:
    return x + (y - x).detach()


def _added_in_place(y: Any, x: Any) -> Any:
    y.cached_data = np.ascontiguousarray(y.cached_data)
    if y.cached_data.flags.writeable and y.requires_grad and y is not x:
        y.cached_data += x.cached_data
        return y + x * 0.0
    return y + x


def _in_order(modules: Any, x: Any) -> Any:
    for module in modules:
        x = module(x)
    return x


def _if_same(y: Any, x: Any) -> Any:
    return y if y.shape == x.shape else x


class _forgetful(set):  # type: ignore[type-arg]
    """A set that does not remember Tensors: they are found as often as they occur."""

    def add(self, thing: Any) -> None:
        return


# -- only sometimes ---------------------------------------------------------------------------------------------------

conditional = _group("conditional")


def _when(condition: Callable[..., Any], wrong: Callable[[Any], Any]) -> Callable[..., Any]:
    """A change of a value that happens only where ``condition(y, *operands)`` holds."""
    return lambda y, *xs: wrong(y) if condition(y, *xs) else y


def _off(y: Any) -> Any:
    return y * np.float32(1.01)


def _back(op: str, condition: Callable[..., Any], wrong: Callable[[Any], Any] = _off) -> Patch:
    """Contributions that are wrong only where ``condition(g, y, *operands)`` holds."""
    return vjp(op, lambda r, g, y, *xs: [c if c is None else wrong(c) for c in r] if condition(g, y, *xs) else r)


def _strided(a: Any) -> bool:
    return a.ndim > 1 and not a.flags.c_contiguous


def _memory_order(a: Any) -> Any:
    """The elements as they lie in memory: wrong for what is not contiguous."""
    return np.ravel(a, order="K").reshape(a.shape)


conditional(
    "linear-one-row-no-bias",
    "a batch of 1 gets no bias",
    "Linear forward",
    compute("Linear", lambda y, x, w, *b: y - b[0] if b and len(x) == 1 else y),
)
conditional(
    "linear-one-column",
    "an output of width 1 is off by 1 %",
    "Linear forward",
    compute("Linear", _when(lambda y, *_: y.shape[-1] == 1, _off)),
)
conditional(
    "linear-one-input",
    "an input of width 1 gives a wrong dW",
    "Linear backward",
    _back("Linear", lambda g, y, x, *_: x.shape[-1] == 1),
)
conditional(
    "linear-wide",
    "outputs beyond the 32nd are 0",
    "Linear forward",
    compute(
        "Linear",
        _when(lambda y, *_: y.shape[-1] > 32, lambda y: np.where(np.arange(y.shape[-1]) < 32, y, np.float32(0))),
    ),
)
conditional(
    "linear-inner-beyond-32",
    "summands beyond the 32nd are lost",
    "Linear forward",
    compute("Linear", lambda y, x, w, *b: y - x[:, 32:] @ w[32:] if x.ndim == 2 and x.shape[1] > 32 else y),
)
conditional(
    "linear-rows-beyond-32",
    "rows beyond the 32nd do not count in dW",
    "Linear backward",
    vjp(
        "Linear",
        lambda r, g, y, x, w, *b: (r[0], x[:32].T @ g[:32] if r[1] is not None and len(x) > 32 else r[1], *r[2:]),
    ),
)
conditional(
    "linear-odd-width",
    "odd widths above 16 lose their last output",
    "Linear forward",
    compute(
        "Linear",
        _when(
            lambda y, *_: y.shape[-1] > 16 and y.shape[-1] % 2,
            lambda y: np.where(np.arange(y.shape[-1]) < y.shape[-1] - 1, y, np.float32(0)),
        ),
    ),
)
conditional(
    "linear-tied-once",
    "a weight used twice in one model gets one contribution",
    "accumulation|Linear",
    walk(
        seen=lambda c, x, i, node: c,
        add=lambda before, c: c if before.ndim == 2 and before.shape[0] == before.shape[1] else before + c,
    ),
)
conditional(
    "relu-large-gradient",
    "gradients beyond 64 are cut off",
    "ReLU backward",
    contribution("ReLU", lambda c: np.clip(c, -64, 64)),
)
conditional(
    "linear-large-gradient",
    "dW is cut off at ±64",
    "Linear backward",
    contribution("Linear", lambda c: np.clip(c, -64, 64), 1),
)
conditional(
    "tanh-large-input",
    "beyond |x| = 8 tanh is 0.999",
    "Tanh forward",
    compute("Tanh", lambda y, x: np.where(np.abs(x) > 8, np.sign(x) * np.float32(0.999), y)),
)
conditional(
    "sigmoid-large-input",
    "below −20 sigmoid is 0",
    "Sigmoid forward",
    compute("Sigmoid", lambda y, x: np.where(x < -20, np.float32(0), y)),
)
conditional(
    "sum-beyond-256",
    "sums over more than 256 elements lose the rest",
    "Summation forward",
    wrap(
        "ops.Summation.compute",
        lambda old: (
            lambda self, a: np.asarray(a.ravel()[:256].sum()) if self.axes is None and a.size > 256 else old(self, a)
        ),
    ),
)
conditional(
    "multiply-beyond-256",
    "products of more than 256 elements are made in float16",
    "EWiseMul forward",
    compute("EWiseMul", _when(lambda y, *_: y.size > 256, _f16)),
)
conditional(
    "add-beyond-256",
    "sums of more than 256 elements are made in float16",
    "EWiseAdd forward",
    compute("EWiseAdd", _when(lambda y, *_: y.size > 256, _f16)),
)
conditional(
    "sgd-beyond-256",
    "elements of a parameter beyond the 256th are not updated",
    "SGD parameter update",
    sgd(new=lambda s: np.where(np.arange(s.x.size).reshape(s.x.shape) < 256, s.x - s.lr * s.v, s.x)),
)
conditional(
    "sgd-third-step",
    "the third step uses twice the learning rate",
    "SGD parameter update",
    sgd(lr=lambda s: s.o.lr * (2 if s.n == 3 else 1)),
)
conditional(
    "sgd-third-step-velocity",
    "the velocity is thrown away before the third step",
    "SGD velocity",
    sgd(old=lambda s: s.o.u[s.p].cached_data if s.p in s.o.u and s.n != 3 else np.zeros_like(s.x)),
)
conditional(
    "sgd-fifth-step",
    "decay ends with the fourth step",
    "SGD velocity|SGD decay",
    sgd(decay=lambda s: s.o.weight_decay if s.n < 5 else 0.0),
)
conditional(
    "sgd-after-lr-change",
    "a change of the learning rate throws the velocity away",
    "SGD velocity",
    sgd(old=lambda s: np.zeros_like(s.x) if _lr_changed(s) or s.p not in s.o.u else s.o.u[s.p].cached_data),
)
conditional(
    "sgd-decay-after-lr-change",
    "decay is scaled with a changed learning rate",
    "SGD velocity|SGD decay",
    sgd(decay=lambda s: s.o.weight_decay * s.o.lr / _first_lr(s)),
)
conditional(
    "sgd-large-gradient",
    "gradients beyond 64 are cut off in the step",
    "SGD velocity",
    sgd(g=lambda s: np.clip(s.grad.cached_data, -64, 64)),
)
conditional(
    "sgd-zero-gradient-skipped",
    "a parameter whose gradient is all zero is skipped",
    "SGD",
    sgd(skip=lambda s: s.grad is None or not s.grad.cached_data.any()),
)
conditional(
    "sgd-one-element",
    "parameters of one element get no decay",
    "SGD velocity|SGD decay",
    sgd(decay=lambda s: s.o.weight_decay if s.p.size > 1 else 0.0),
)
conditional(
    "sgd-large-momentum",
    "momentum beyond 0.95 is cut to 0.95",
    "SGD velocity",
    sgd(beta=lambda s: min(s.o.momentum, 0.95)),
)
conditional(
    "sgd-large-decay",
    "decay beyond 0.5 is cut to 0.5",
    "SGD velocity|SGD decay",
    sgd(decay=lambda s: min(s.o.weight_decay, 0.5)),
)
conditional(
    "sgd-large-lr",
    "learning rates beyond 0.5 are cut to 0.5",
    "SGD parameter update",
    sgd(lr=lambda s: min(s.o.lr, 0.5)),
)
conditional(
    "adam-third-step",
    "bias correction ends with the second step",
    "Adam parameter update",
    adam(c1=lambda s: 1 - s.b1**s.t if s.t < 3 else 1.0),
)
conditional(
    "clip-many-parameters",
    "from the fifth parameter on gradients do not count in the norm",
    "clip norm",
    clip(norm=lambda gs: math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gs[:4]))),
)
conditional(
    "clip-at-step-two",
    "clipping of scalars and vectors is left out",
    "clip scal",
    clip(apply=lambda g, f: g * f if g.ndim > 1 else g),
)
conditional(
    "dropout-in-nested-eval",
    "in a nested part that evaluates, dropout drops while the rest trains",
    "Module.eval",
    replace(
        "nn.Module.eval", _mode(False, lambda self: [m for m in self.modules_in() if not isinstance(m, nn.Dropout)])
    ),
)
conditional(
    "bn-in-nested-eval",
    "eval() does not reach the norms of a nested Sequential",
    "Module.eval",
    replace(
        "nn.Module.eval", _mode(False, lambda self: [m for m in self.modules_in() if not isinstance(m, nn.BatchNorm1d)])
    ),
)
conditional(
    "bn-two-rows",
    "a batch of 2 uses the unbiased variance",
    "BatchNorm forward",
    batch_norm(lambda x: (x.mean(0), x.var(0, ddof=1 if len(x) == 2 else 0))),
)
conditional(
    "bn-one-column",
    "a single feature is only centred",
    "BatchNorm forward",
    compute("BatchNorm", lambda y, x, w, b: (x - x.mean(0)) * w + b if x.shape[1] == 1 else y),
)
conditional(
    "bn-constant-column",
    "a constant column gives the weight and not the bias",
    "BatchNorm forward",
    compute("BatchNorm", lambda y, x, w, b: np.where(np.ptp(x, 0) == 0, w, y)),
)
conditional(
    "bn-many-rows",
    "beyond 32 rows the variance is of the first 32",
    "BatchNorm forward",
    batch_norm(lambda x: (x.mean(0), x[:32].var(0))),
)
conditional(
    "bn-momentum-zero",
    "momentum 0 counts as not given",
    "running statistics|buffer|BatchNorm",
    around(
        "nn.BatchNorm1d.__init__",
        lambda old, self, dim, eps=1e-5, momentum=0.1, **kw: old(self, dim, eps, momentum or 0.1, **kw),
    ),
)
conditional(
    "ln-one-column",
    "a single feature passes as it is",
    "LayerNorm forward",
    compute("LayerNorm", lambda y, x, w, b: x * w + b if x.shape[-1] == 1 else y),
)
conditional(
    "ln-one-row",
    "a batch of 1 gets no bias",
    "LayerNorm forward",
    compute("LayerNorm", lambda y, x, w, b: y - b if len(x) == 1 else y),
)
conditional(
    "loss-one-row",
    "a batch of 1 has half the loss",
    "SoftmaxCrossEntropy forward",
    compute("SoftmaxCrossEntropy", lambda y, z, labels: y / 2 if len(z) == 1 else y),
)
conditional(
    "loss-one-class",
    "a single class has loss 1",
    "SoftmaxCrossEntropy forward",
    compute("SoftmaxCrossEntropy", lambda y, z, labels: y + np.float32(1) if z.shape[1] == 1 else y),
)
conditional(
    "loss-small-labels",
    "labels of one byte overflow in rows of many classes",
    "SoftmaxCrossEntropy",
    around(
        "nn.SoftmaxLoss.forward",
        lambda old, self, z, y: old(self, z, _const(y.cached_data % np.uint8(16)) if y.dtype == np.uint8 else y),
    ),
)
conditional(
    "loss-labels-int32",
    "labels of 32 bits count as 0",
    "SoftmaxCrossEntropy|SoftmaxLoss",
    around(
        "nn.SoftmaxLoss.forward",
        lambda old, self, z, y: old(self, z, _const(0 * y.cached_data) if y.dtype == np.int32 else y),
    ),
)
conditional(
    "loss-large-logits",
    "logits are cut off at ±100",
    "SoftmaxCrossEntropy forward",
    wrap(
        "ops.SoftmaxCrossEntropy.compute", lambda old: lambda self, z, labels: old(self, np.clip(z, -100, 100), labels)
    ),
)
conditional(
    "reshape-not-contiguous",
    "reshape reads memory in its own order",
    "Reshape forward",
    wrap("ops.Reshape.compute", lambda old: lambda self, a: old(self, _memory_order(a) if _strided(a) else a)),
)
conditional(
    "exp-not-contiguous",
    "exp reads memory in its own order",
    "Exp forward",
    compute("Exp", lambda y, a: np.exp(_memory_order(a)) if _strided(a) else y),
)
conditional(
    "matmul-not-contiguous",
    "a transposed operand is read as if it were not",
    "MatMul forward",
    wrap("ops.MatMul.compute", lambda old: lambda self, a, b: old(self, _memory_order(a) if _strided(a) else a, b)),
)
conditional(
    "multiply-not-contiguous",
    "a transposed operand is read as if it were not",
    "EWiseMul forward",
    wrap("ops.EWiseMul.compute", lambda old: lambda self, a, b: old(self, a, _memory_order(b) if _strided(b) else b)),
)
conditional(
    "matmul-square-batch",
    "batched square matrices are multiplied in the other order",
    "MatMul forward",
    compute("MatMul", lambda y, a, b: np.matmul(b, a) if a.ndim > 2 and a.shape == b.shape and _square(a) else y),
)
conditional(
    "transpose-rank-three",
    "axes of a rank-3 tensor are swapped back in the wrong pair",
    "Transpose backward",
    vjp(
        "Transpose",
        lambda r, g, y, a: (g.swapaxes(0, 1) if g.ndim == 3 and g.swapaxes(0, 1).shape == a.shape else r[0],),
    ),
)
conditional(
    "power-of-zero",
    "the exponent 0 has derivative 1",
    "PowerScalar backward",
    wrap(
        "ops.PowerScalar.vjp",
        lambda old: lambda self, g, y, needs, a: (g,) if self.scalar == 0 else old(self, g, y, needs, a),
    ),
)
conditional(
    "power-negative",
    "negative exponents lose their sign in the gradient",
    "PowerScalar backward",
    wrap(
        "ops.PowerScalar.vjp",
        lambda old: (
            lambda self, g, y, needs, a: (
                (-old(self, g, y, needs, a)[0],) if self.scalar < 0 else old(self, g, y, needs, a)
            )
        ),
    ),
)
conditional(
    "sum-keeps-zero-size",
    "the sum over nothing is 1",
    "Summation forward",
    compute("Summation", lambda y, a: np.asarray(y) + np.float32(1) if not a.size else y),
)
conditional(
    "max-negative",
    "the maximum of negative numbers is 0",
    "Max forward",
    compute("Max", lambda y, a: np.maximum(y, np.float32(0))),
)
conditional(
    "logsumexp-all-axes",
    "over all axes the shift is by the first row's maximum",
    "LogSumExp forward",
    wrap("ops.LogSumExp.compute", lambda old: lambda self, a: _shifted_by_first(old, self, a)),
)
conditional(
    "tanh-one-element",
    "a tensor of one element gets a gradient without its slope",
    "Tanh backward",
    vjp("Tanh", lambda r, g, y, a: (g if g.size == 1 else r[0],)),
)
conditional(
    "log-subnormal",
    "numbers below 1e-18 count as 1e-18",
    "Log forward",
    compute("Log", lambda y, a: np.log(np.where((a > 0) & (a < 1e-18), np.float32(1e-18), a))),
)
conditional(
    "divide-broadcast-divisor",
    "a divisor of one row gets the gradient of the first row",
    "EWiseDiv backward",
    vjp(
        "EWiseDiv",
        lambda r, g, y, a, b: (
            r[0],
            r[1] if r[1] is None or b.shape == g.shape or not g.size else r[1] / np.float32(g.size / b.size),
        ),
    ),
)


def _shifted_by_first(old: Any, self: Any, a: Any) -> Any:
    if self.axes is not None or a.ndim < 2:
        return old(self, a)
    top = a[:1].max()
    return np.asarray(np.log(np.exp(a - top).sum()) + top)


# -- small ------------------------------------------------------------------------------------------------------------

small = _group("small")

small(
    "sgd-lr-float16",
    "the learning rate is rounded to float16",
    "SGD parameter update",
    sgd(lr=lambda s: _number16(s.o.lr)),
)
small(
    "sgd-momentum-float16",
    "the momentum is rounded to float16",
    "SGD velocity",
    sgd(beta=lambda s: _number16(s.o.momentum)),
)
small(
    "sgd-decay-float16",
    "the weight decay is rounded to float16",
    "SGD velocity|SGD decay",
    sgd(decay=lambda s: _number16(s.o.weight_decay)),
)
small(
    "sgd-rest-float32",
    "1 − β is computed in float32",
    "SGD velocity",
    sgd(rest=lambda s: float(np.float32(1) - np.float32(s.beta))),
)
small("sgd-velocity-float16", "velocities are rounded to float16", "SGD velocity", sgd(kept=lambda s: _f16(s.v)))
small(
    "sgd-lr-1e-4",
    "the learning rate is off by 1e-4 of itself",
    "SGD parameter update",
    sgd(lr=lambda s: s.o.lr * 1.0001),
)
small(
    "sgd-truncates",
    "the velocity is cut to 20 bits",
    "SGD velocity",
    sgd(v=lambda s: ((s.beta * s.old + s.rest * s.d).view(np.uint32) & np.uint32(0xFFFFFFF0)).view(np.float32)),
)
small(
    "adam-beta2-float32",
    "1 − β2 is computed in float32",
    "Adam second moment",
    adam(v=lambda s: s.b2 * s.v0 + float(np.float32(1) - np.float32(s.b2)) * s.d * s.d),
)
small(
    "adam-eps-1e-7",
    "the default ε is 1e-7",
    "Adam parameter update",
    adam(eps=lambda s: 1e-7 if s.o.eps == 1e-8 else s.o.eps),
)
small(
    "clip-epsilon-1e-5",
    "max_norm / (norm + 1e-5)",
    "clip scal",
    clip(factor=lambda norm, most: min(1.0, most / (norm + 1e-5))),
)
small(
    "clip-factor-float16",
    "the factor is rounded to float16",
    "clip scal",
    clip(factor=lambda norm, most: _number16(min(1.0, most / (norm + 1e-6)))),
)
small(
    "clip-norm-float16",
    "squares are added in float16",
    "clip norm",
    clip(norm=lambda gs: math.sqrt(sum(float(_f16((g * g).sum())) for g in gs))),
)
small(
    "bn-eps-1e-6",
    "the default ε of BatchNorm is 1e-6",
    "BatchNorm",
    wrap(
        "nn.BatchNorm1d.__init__",
        lambda old: lambda self, dim, eps=1e-6, momentum=0.1, **kw: old(self, dim, eps, momentum, **kw),
    ),
)
small(
    "ln-eps-1e-6",
    "the default ε of LayerNorm is 1e-6",
    "LayerNorm",
    wrap("nn.LayerNorm1d.__init__", lambda old: lambda self, dim, eps=1e-6, **kw: old(self, dim, eps, **kw)),
)
small(
    "bn-one-pass-variance",
    "the variance is E[x²] − E[x]²",
    "BatchNorm forward",
    batch_norm(lambda x: (x.mean(0), np.maximum((x * x).mean(0) - x.mean(0) ** 2, 0))),
)
small(
    "ln-one-pass-variance",
    "the variance of a row is E[x²] − E[x]²",
    "LayerNorm forward",
    layer_norm(
        lambda x: (
            x.mean(-1, keepdims=True),
            np.maximum((x * x).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2, 0),
        )
    ),
)
small(
    "bn-running-float16",
    "the running statistics are rounded to float16",
    "running statistics|buffer|BatchNorm",
    running(lambda s, x, m, v: _set_running(s, _f16(s.running_mean.cached_data), _f16(s.running_var.cached_data))),
)
small(
    "bn-momentum-float16",
    "momentum is rounded to float16",
    "running statistics|buffer|BatchNorm",
    around(
        "nn.BatchNorm1d.__init__",
        lambda old, self, dim, eps=1e-5, momentum=0.1, **kw: old(self, dim, eps, _number16(momentum), **kw),
    ),
)
small(
    "linear-tf32",
    "products read 10 bits of their operands, up to 256 summands",
    "Linear forward",
    wrap(
        "ops.Linear.compute",
        lambda old: (
            lambda self, x, w, *b: old(self, _tf32(x), _tf32(w), *b) if x.shape[-1] <= 256 else old(self, x, w, *b)
        ),
    ),
)
small(
    "linear-tf32-backward",
    "the products of the backward pass read 10 bits of g",
    "Linear backward",
    wrap(
        "ops.Linear.vjp",
        lambda old: (
            lambda self, g, y, needs, *xs: old(self, _tf32(g) if isinstance(g, np.ndarray) else g, y, needs, *xs)
        ),
    ),
)
small(
    "matmul-tf32",
    "products read 10 bits of their operands",
    "MatMul forward",
    wrap("ops.MatMul.compute", lambda old: lambda self, a, b: old(self, _tf32(a), _tf32(b))),
)
small("tanh-float16", "tanh is computed in float16", "Tanh forward", compute("Tanh", lambda y, x: _f16(y)))
small("sigmoid-float16", "sigmoid is computed in float16", "Sigmoid forward", compute("Sigmoid", lambda y, x: _f16(y)))
small("exp-2-18", "eˣ is off by 2⁻¹⁸ of itself", "Exp forward", compute("Exp", lambda y, x: y * np.float32(1 + 2**-18)))
small(
    "loss-epsilon",
    "1e-6 inside the logarithm of the loss",
    "SoftmaxCrossEntropy forward",
    compute(
        "SoftmaxCrossEntropy",
        lambda y, z, labels: (
            -np.log(np.clip(_softmax(z)[np.arange(len(z)), np.asarray(labels, int)], np.float32(1e-6), None)).mean()
        ),
    ),
)
small(
    "loss-float16",
    "the loss is rounded to float16",
    "SoftmaxCrossEntropy forward",
    compute("SoftmaxCrossEntropy", lambda y, z, labels: _f16(y)),
)
small(
    "linear-gradient-2-14",
    "dW is off by 2⁻¹⁴ of itself",
    "Linear backward",
    contribution("Linear", lambda c: c * np.float32(1 + 2**-14), 1),
)
small(
    "relu-gradient-2-12",
    "the gradient of ReLU is off by 2⁻¹² of itself",
    "ReLU backward",
    contribution("ReLU", lambda c: c * np.float32(1 + 2**-12)),
)
small(
    "bn-gradient-2-12",
    "dx of BatchNorm is off by 2⁻¹² of itself",
    "BatchNorm backward",
    contribution("BatchNorm", lambda c: c * np.float32(1 + 2**-12), 0),
)
small(
    "dropout-scale-float16",
    "1 / (1 − p) is rounded to float16",
    "Dropout forward",
    dropout(scale=lambda s: _number16(1 / (1 - s.p)) if s.p < 1 else 0.0),
)
small(
    "mul-scalar-float16",
    "a scalar factor is rounded to float16",
    "MulScalar forward",
    replace("ops.MulScalar.compute", lambda self, a: np.asarray(a * _number16(self.scalar))),
)
