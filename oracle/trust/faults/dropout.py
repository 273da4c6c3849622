"""Dropout: what is drawn, when, and how it is scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from oracle.trust.faults.chapter import Chapter, const
from oracle.trust.patches import Patch, around, replace, wrap

fault = Chapter("layer")


def dropout(
    draw: Callable[[Any, Any], Any] = lambda self, x: np.random.rand(*x.shape) <= 1 - self.p,
    scale: Callable[[Any], float] = lambda self: 1 / (1 - self.p) if self.p < 1 else 0.0,
    active: Callable[[Any], bool] = lambda self: bool(self.training),
) -> Patch:
    """Dropout written out, with some of its parts replaced."""

    def forward(self: Any, x: Any) -> Any:
        if not active(self):
            return x
        return x * const((draw(self, x) * scale(self)).astype(x.dtype if x.dtype.kind == "f" else np.float32))

    return replace("nn.Dropout.forward", forward)


fault.controls["Dropout written out"] = dropout()

fault("dropout-no-scale", "what is kept is not divided by 1 − p", "Dropout forward", dropout(scale=lambda s: 1.0))
fault(
    "dropout-scale-p",
    "what is kept is divided by p",
    "Dropout forward",
    dropout(scale=lambda s: 1 / s.p if s.p else 1.0),
)
fault(
    "dropout-inverted",
    "elements are kept with probability p",
    "Dropout forward",
    dropout(draw=lambda s, x: np.random.rand(*x.shape) <= s.p),
)
fault("dropout-in-eval", "evaluation drops, too", "Dropout forward", dropout(active=lambda s: True))
fault("dropout-never", "training drops nothing", "Dropout forward", dropout(active=lambda s: False))
fault(
    "dropout-draws-in-eval",
    "evaluation draws a mask and throws it away",
    "evaluation|random|Dropout",
    around(
        "nn.Dropout.forward",
        lambda old, self, x: (None if self.training else np.random.rand(*x.shape), old(self, x))[1],
    ),
)
fault(
    "dropout-no-draw-at-zero",
    "nothing is drawn for p = 0, so that later masks differ",
    "Dropout",
    around("nn.Dropout.forward", lambda old, self, x: old(self, x) if self.p else x * 1.0),
)
fault(
    "dropout-one-mask-for-rows",
    "all rows share a mask",
    "Dropout forward",
    dropout(draw=lambda s, x: np.broadcast_to((np.random.rand(*x.shape) <= 1 - s.p)[:1], x.shape)),
)
fault(
    "dropout-everything-nan",
    "p = 1 divides by 0",
    "Dropout forward",
    dropout(scale=lambda s: float(np.float64(1) / np.float64(1 - s.p))),
)
fault(
    "dropout-default",
    "the default p is 0.4",
    "Dropout forward",
    wrap("nn.Dropout.__init__", lambda old: lambda self, p=0.4: old(self, p)),
)
fault(
    "dropout-backward",
    "the gradient passes what was dropped",
    "Dropout backward",
    around(
        "nn.Dropout.forward", lambda old, self, x: _straight_through(old(self, x), x) if self.training else old(self, x)
    ),
)


def _straight_through(y: Any, x: Any) -> Any:
    return x + (y - x).detach()
