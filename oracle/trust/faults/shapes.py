"""Operations that move elements: transpose, reshape, broadcast, index, flip, dilate."""

from __future__ import annotations

import numpy as np

from oracle.trust.faults.chapter import Chapter
from oracle.trust.patches import compute, replace, vjp, wrap

fault = Chapter("op")

fault(
    "transpose-forward",
    "the default swaps the first two axes",
    "Transpose forward",
    wrap("ops.Transpose.compute", lambda old: lambda self, a: a.swapaxes(0, 1) if self.axes is None else old(self, a)),
)
fault(
    "transpose-backward-square",
    "a square gradient is not swapped back",
    "Transpose backward",
    vjp("Transpose", lambda r, g, y, a: (g if g.shape == r[0].shape else r[0],)),
)
fault(
    "transpose-backward-all",
    "the gradient has all its axes reversed where that fits",
    "Transpose backward",
    vjp("Transpose", lambda r, g, y, a: (g.T if g.T.shape == r[0].shape else r[0],)),
)
fault(
    "reshape-forward",
    "elements are read column by column",
    "Reshape forward",
    replace("ops.Reshape.compute", lambda self, a: a.reshape(self.shape, order="F")),
)
fault(
    "reshape-backward",
    "the gradient is filled in column by column",
    "Reshape backward",
    vjp("Reshape", lambda r, g, y, a: (g.reshape(a.shape, order="F"),)),
)
fault(
    "broadcast-backward",
    "the gradient is the mean and not the sum",
    "BroadcastTo backward",
    vjp("BroadcastTo", lambda r, g, y, a: (r[0] * (a.size / max(g.size, 1)),)),
)
fault(
    "broadcast-forward",
    "the last copy is 0",
    "BroadcastTo forward",
    compute("BroadcastTo", lambda y, a: np.concatenate([y[:-1], 0 * y[-1:]]) if y.ndim > a.ndim and len(y) > 1 else y),
)
fault(
    "getitem-forward",
    "the step is ignored where the shape allows it",
    "GetItem forward",
    compute("GetItem", lambda y, a: a[tuple(slice(0, n) for n in y.shape)] if y.ndim == a.ndim else y),
)
fault(
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
fault("flip-forward", "all axes are reversed", "Flip forward", compute("Flip", lambda y, a: np.flip(a)))
fault("flip-backward", "the gradient is not reversed", "Flip backward", vjp("Flip", lambda r, g, y, a: (g,)))
fault(
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
fault(
    "dilate-backward",
    "the gradient is taken from the front and not from every other place",
    "Dilate backward",
    vjp("Dilate", lambda r, g, y, a: (g[tuple(slice(0, n) for n in a.shape)],)),
)
