"""Matrix product, linear map and convolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from needle import ops
from oracle.trust.faults.chapter import Chapter, square, swap
from oracle.trust.patches import compute, replace, vjp, wrap

fault = Chapter("op")

fault(
    "matmul-forward",
    "a square second operand is transposed",
    "MatMul forward",
    compute("MatMul", lambda y, a, b: np.matmul(a, swap(b)) if square(b) else y),
)
fault(
    "matmul-backward-first",
    "the first gradient multiplies with B and not Bᵀ where B is square",
    "MatMul backward",
    vjp("MatMul", lambda r, g, y, a, b: (ops._reduced(np.matmul(g, b), a.shape) if square(b) else r[0], r[1])),
)
fault(
    "matmul-backward-second",
    "the second gradient multiplies with A and not Aᵀ where A is square",
    "MatMul backward",
    vjp("MatMul", lambda r, g, y, a, b: (r[0], ops._reduced(np.matmul(a, g), b.shape) if square(a) else r[1])),
)
fault(
    "matmul-backward-batch",
    "a broadcast batch is averaged and not summed",
    "MatMul backward",
    vjp(
        "MatMul",
        lambda r, g, y, a, b: (r[0], r[1] if r[1] is None or b.ndim == g.ndim else r[1] / np.float32(max(len(g), 1))),
    ),
)
fault(
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
fault(
    "linear-backward-input",
    "dx multiplies with W and not Wᵀ where W is square",
    "Linear backward",
    vjp("Linear", lambda r, g, y, x, w, *b: (g.dot(w) if square(w) and r[0] is not None else r[0], *r[1:])),
)
fault(
    "linear-backward-weight",
    "dW is averaged over the batch",
    "Linear backward",
    vjp("Linear", lambda r, g, y, x, w, *b: (r[0], r[1] if r[1] is None else r[1] / np.float32(len(x)), *r[2:])),
)
fault(
    "linear-backward-bias",
    "db is averaged over the batch",
    "Linear backward",
    vjp("Linear", lambda r, g, y, x, w, *b: (*r[:2], *(None if c is None else c / np.float32(len(x)) for c in r[2:]))),
)
fault(
    "linear-backward-bias-first",
    "db is the first row",
    "Linear backward",
    vjp("Linear", lambda r, g, y, x, w, *b: (*r[:2], *(None if c is None else g[:1].reshape(c.shape) for c in r[2:]))),
)
fault(
    "conv-forward",
    "the kernel runs backwards",
    "Conv forward",
    wrap(
        "ops.Conv.compute",
        lambda old: lambda self, x, k: old(self, x, k[::-1, ::-1]) if x.ndim == k.ndim == 4 else old(self, x, k),
    ),
)
fault(
    "conv-backward-input",
    "dx is reversed",
    "Conv backward",
    vjp("Conv", lambda r, g, y, x, k: (None if r[0] is None else r[0][:, ::-1, ::-1], r[1])),
)
fault(
    "conv-backward-kernel",
    "dk has its two spatial axes swapped",
    "Conv backward",
    vjp("Conv", lambda r, g, y, x, k: (r[0], None if r[1] is None else r[1].swapaxes(0, 1))),
)
fault(
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


def _with_zeros(self: Any, x: Any, g: Any) -> Any:
    """The gradient of the kernel with g spread out by zeros, whatever they meet."""
    s, windows = self.stride, ops._windows(x, self.shape[:2], self.padding)
    spread = np.zeros((*windows.shape[:3], g.shape[3]), g.dtype)
    spread[:, ::s, ::s] = g
    return np.tensordot(windows, spread, axes=((1, 2, 0), (1, 2, 0))).transpose(1, 2, 0, 3)


def _amid_zeros(self: Any, g: Any, kernel: Any) -> Any:
    """The gradient of the images from g amid zeros, whatever they meet."""
    s, (kh, kw) = self.stride, kernel.shape[:2]
    shape, inside = ops._padded(self.shape, self.padding)
    wide = np.zeros((g.shape[0], shape[1] + kh - 1, shape[2] + kw - 1, g.shape[3]), g.dtype)
    wide[:, kh - 1 : shape[1], kw - 1 : shape[2]][:, ::s, ::s] = g
    return ops.Conv().compute(wide, kernel[::-1, ::-1].swapaxes(2, 3))[inside]


fault(
    "conv-left-out-by-zero",
    "pixels that a stride leaves out, and places of the kernel that met no pixel, are multiplied by 0, and inf among them makes gradients nan",
    "Conv backward|ConvKernel forward|ConvInput forward",
    replace("ops.ConvKernel.compute", _with_zeros) + replace("ops.ConvInput.compute", _amid_zeros),
)


def _cleaned(y: Any, *xs: Any) -> Any:
    return np.nan_to_num(y, nan=0.0, posinf=0.0, neginf=0.0)


fault(
    "products-cleaned",
    "what is no number is taken for 0",
    "MatMul forward|Linear forward|Conv forward",
    compute("MatMul", _cleaned) + compute("Linear", _cleaned) + compute("Conv", _cleaned),
)
