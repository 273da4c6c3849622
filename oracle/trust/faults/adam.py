"""Adam: bias correction, ε, the step counter, the two moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from oracle.trust.faults.chapter import Chapter
from oracle.trust.faults.sgd import held, step_written_out
from oracle.trust.patches import Patch, replace, wrap

fault = Chapter("optimizer")


def adam(**formulas: Callable[[Any], Any]) -> Patch:
    """Adam.step written out plainly, with some of its formulas replaced."""
    rules = {
        "skip": lambda s: s.grad is None,
        "m0": lambda s: held(s.o.m, s.p),
        "v0": lambda s: held(s.o.v, s.p),
        "t": lambda s: s.o.t.get(s.p, 0) + 1,
        "lr": lambda s: s.o.lr,
        "b1": lambda s: s.o.beta1,
        "b2": lambda s: s.o.beta2,
        "eps": lambda s: s.o.eps,
        "decay": lambda s: s.o.weight_decay,
        "d": lambda s: s.grad.cached_data.astype(s.x.dtype, copy=False) + s.decay * s.x,
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
    return replace("optim.Adam.step", step_written_out(rules, formulas, ("m", "v", "t")))


fault.controls["Adam.step written out"] = adam()

fault(
    "adam-no-correction",
    "no bias correction",
    "Adam parameter update",
    adam(c1=lambda s: 1.0, c2=lambda s: 1.0),
    words="no bias correction",
)
fault(
    "adam-first-correction-only",
    "only the first moment is corrected",
    "Adam parameter update",
    adam(c2=lambda s: 1.0),
    words="only the first moment",
)
fault(
    "adam-second-correction-only",
    "only the second moment is corrected",
    "Adam parameter update",
    adam(c1=lambda s: 1.0),
    words="only the second moment",
)
fault(
    "adam-eps-in-root",
    "ε inside the square root",
    "Adam parameter update",
    adam(root=lambda s: np.sqrt(s.v / s.c2 + s.eps)),
    words="inside the square root",
)
fault(
    "adam-eps-before-correction",
    "ε is added before the correction of v",
    "Adam parameter update",
    adam(root=lambda s: (np.sqrt(s.v) + s.eps) / math.sqrt(s.c2)),
    words="before the correction",
)
fault("adam-t-shared", "one step counter for all parameters, which each of them advances", "Adam parameter update",
      adam(t=lambda s: vars(s.o).__setitem__("ticks", vars(s.o).get("ticks", 0) + 1) or s.o.ticks), words="step counter")  # fmt: skip
fault(
    "adam-t-from-zero",
    "the step counter starts at 0 in the correction",
    "Adam parameter update",
    adam(c1=lambda s: 1 - s.b1 ** max(s.t - 1, 1), c2=lambda s: 1 - s.b2 ** max(s.t - 1, 1)),
    words="step counter",
)
fault(
    "adam-t-of-all",
    "a parameter that missed a step counts it all the same",
    "Adam parameter update",
    adam(t=lambda s: s.n),
    words="step counter",
)
fault(
    "adam-run-mixed",
    "small parameters side by side: one that has made fewer steps is corrected like its neighbour",
    "Adam parameter update",
    replace("optim.Adam._alike", lambda self, params: [p.dtype for p in params]),
    words="step counter",
)
fault("adam-t-stuck", "the step counter stays at 1", "Adam parameter update", adam(t=lambda s: 1), words="step counter")
fault(
    "adam-decay-decoupled",
    "decay shrinks the parameter, as in AdamW",
    "Adam first moment|Adam decay",
    adam(
        d=lambda s: s.grad.cached_data.astype(s.x.dtype, copy=False),
        new=lambda s: (1 - s.lr * s.decay) * s.x - s.lr * (s.m / s.c1) / s.root,
    ),
    words="AdamW",
)
fault(
    "adam-betas-swapped",
    "β1 and β2 change places",
    "Adam first moment",
    adam(b1=lambda s: s.o.beta2, b2=lambda s: s.o.beta1),
    words="change places",
)
fault(
    "adam-no-root",
    "the update divides by v and not by its root",
    "Adam parameter update",
    adam(root=lambda s: s.v / s.c2 + s.eps),
    words="not its root",
)
fault(
    "adam-v-of-raw-gradient",
    "decay does not reach the second moment",
    "Adam second moment",
    adam(v=lambda s: s.b2 * s.v0 + (1 - s.b2) * s.grad.cached_data.astype(s.x.dtype, copy=False) ** 2),
    words="missing from g²",
)
fault(
    "adam-absolute",
    "v averages |g| and not g²",
    "Adam second moment",
    adam(v=lambda s: s.b2 * s.v0 + (1 - s.b2) * np.abs(s.d)),
    words="|g|",
)
fault(
    "adam-amsgrad",
    "v never falls",
    "Adam second moment",
    adam(v=lambda s: np.maximum(s.v0, s.b2 * s.v0 + (1 - s.b2) * s.d * s.d)),
    words="AMSGrad",
)
fault(
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
