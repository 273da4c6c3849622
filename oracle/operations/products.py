"""Products of matrices. A BLAS may skip a factor of 0, so that 0 · inf is 0 and not nan: beside what is special nothing is 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from oracle.operations.drawn import Draw, Drawn
from oracle.operations.elementwise import add
from oracle.operations.operation import meaning, operation, unusual
from oracle.operations.tape import LEAD, Array, Shape, Tape, Var, expand, product, reduced, require, swapped

SPECIAL = ("nan", "inf", "-inf", 3e38)
BATCHES = (((), ()), ((), ()), ((2,), (2,)), ((3,), ()), ((), (2,)), ((2, 1), (3,)), ((1,), (4,)), ((2, 3), (2, 3)))


def multiplied(d: Draw) -> Drawn:
    """(…, n, k) @ (…, k, m), batch dimensions broadcast; now and then all square."""
    n, k, m = d.size(), d.size(), d.size()
    if d.maybe():
        n = m = k
    batch = d.of(BATCHES)
    return [(*batch[0], n, k), (*batch[1], k, m)], {}


@operation(
    needle=lambda n, a, b: a @ b if len(a.shape) % 2 == 0 else n.matmul(a, b),
    torch=lambda t, a, b: t.matmul(a, b),
    drawn=multiplied,
    node="MatMul",
    special=SPECIAL,
    factors=True,
)
def matmul(t: Tape, a: Var, b: Var) -> Var:
    """(…, n, k) @ (…, k, m), batch dimensions broadcast."""
    require(min(len(a.shape), len(b.shape)) > 1, f"matmul: matrices are needed, but got {a.shape} and {b.shape}")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    x, y = expand(a.value, batch + a.shape[-2:]), expand(b.value, batch + b.shape[-2:])

    def vjp(g: Array) -> Sequence[Array | None]:
        da = reduced(t, product(t, g, swapped(y)), a.shape) if a.needs else None
        db = reduced(t, product(t, swapped(x), g), b.shape) if b.needs else None
        return da, db

    return t.emit(product(t, x, y), (a, b), vjp)


def affine(d: Draw) -> Drawn:
    """Rows, now and then of several batches, a weight, and a bias or none."""
    n, k, m = d.whole(1, 5), d.whole(1, 5), d.whole(1, 5)
    bias = ((1, m) if d.maybe() else (m,),) if d.maybe() else ()
    lead: tuple[int, ...] = d.of(((2, n), (n, 3), (2, 1, n))) if d.maybe() and d.maybe() else (n,)
    return [(*lead, k), (k, m), *bias], {}


@operation(
    needle=lambda n, x, w, *b: n.ops.linear(x, w, *b),
    torch=lambda t, x, w, *b: t.nn.functional.linear(x, w.t(), *(v.reshape(-1) for v in b)),
    drawn=affine,
    node="Linear",
    special=SPECIAL,
    factors=True,
)
def linear(t: Tape, x: Var, w: Var, b: Var | None = None) -> Var:
    """x @ w + b: (…, n, k), (k, m), (m,) or (1, m) -> (…, n, m)."""
    require(len(x.shape) > 1, f"linear: rows are needed, but x has the shape {x.shape}")
    require(len(w.shape) == 2, f"linear: a weight has two axes, but got the shape {w.shape}")
    if b is not None:
        m = w.shape[1]
        require(b.shape in ((m,), (1, m)), f"linear: a bias of shape {b.shape} beside a weight of shape {w.shape}")
    y = matmul(t, x, w)
    if b is None:
        return y
    # the bias may be one of the terms of the sum, as where a column of ones stands beside x
    return add(t, y, t.emit(t.term(b.value, x.shape[-1]), (b,), lambda g: (g,)))


def convolved(d: Draw) -> Drawn:
    """Images and a kernel that fits, square or oblong; now and then a stride or a padding that is larger than it."""
    far = d.maybe() and d.maybe()
    stride, padding = (d.whole(3, 6), d.whole(3, 5)) if far else (d.whole(1, 3), d.whole(0, 2))
    k = d.whole(1, 4)
    k2 = d.whole(1, 5) if d.maybe() else k
    n, channels, out = d.whole(1, 3), d.whole(1, 3), d.whole(1, 4)
    h, w = (max(d.whole(1, 8), side - 2 * padding, 1) for side in (k, k2))
    return [(n, h, w, channels), (k, k2, channels, out)], {"stride": stride, "padding": padding}


def torch_conv(t: Any, x: Any, w: Any, stride: int, padding: int) -> Any:
    """Channels last become channels first, and back."""
    kernel = w.permute(3, 2, 0, 1).contiguous()  # torch's own backward wants a contiguous kernel
    out = t.nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel, stride=stride, padding=padding)
    return out.permute(0, 2, 3, 1)


class _Patches:
    """Where the windows of images lie: (N, H, W, C) and a kernel (k, k2, C, O)."""

    def __init__(self, image: Shape, kernel: Shape, stride: int, padding: int) -> None:
        n, h, w, c = image
        k, k2, c2, o = kernel
        require(c == c2, f"conv: {c} input channels, but the kernel has {c2}")
        require(min(*image, *kernel) > 0, f"conv: no size may be 0, but the shapes are {image} and {kernel}")
        oh, ow = (h + 2 * padding - k) // stride + 1, (w + 2 * padding - k2) // stride + 1
        if oh < 1 or ow < 1:
            raise ValueError(f"conv: a kernel of {k}x{k2} does not fit into {h}x{w} with padding {padding}")
        self.image, self.kernel, self.padding = image, kernel, padding
        self.made = (n, oh, ow, o)
        self.rows = np.arange(oh)[:, None, None, None] * stride + np.arange(k)[None, None, :, None]
        self.cols = np.arange(ow)[None, :, None, None] * stride + np.arange(k2)[None, None, None, :]

    def of(self, x: Array) -> Array:
        """The windows of images, a row each."""
        p, (k, k2, c, _) = self.padding, self.kernel
        padded = np.pad(x, ((0, 0), (0, 0), (0, 0), (p, p), (p, p), (0, 0)))
        return padded[:, :, :, self.rows, self.cols, :].reshape((*x.shape[:LEAD], -1, k * k2 * c))

    def flat(self, kernel: Array) -> Array:
        """A kernel as the matrix that these rows are multiplied with."""
        return kernel.reshape((*kernel.shape[:LEAD], -1, self.kernel[3]))

    def rows_of(self, y: Array) -> Array:
        """What a convolution makes, a row for each window."""
        return y.reshape((*y.shape[:LEAD], -1, self.made[3]))

    def convolved(self, t: Tape, x: Array, kernel: Array) -> Array:
        y = product(t, self.of(x), self.flat(kernel))
        return y.reshape((*y.shape[:LEAD], *self.made))

    def collected(self, t: Tape, g: Array, kernel: Array) -> Array:
        """What each pixel gets from the windows that it is in."""
        (n, h, w, c), (k, k2, _, _), p = self.image, self.kernel, self.padding
        rows = product(t, self.rows_of(g), swapped(self.flat(kernel)))
        rows = rows.reshape((*rows.shape[:LEAD], *self.made[:3], k, k2, c))
        where: Any = (slice(None), self.rows, self.cols)
        padded = t.scattered(rows, (n, h + 2 * p, w + 2 * p, c), where)
        return padded[:, :, :, p : p + h, p : p + w]

    def gathered(self, t: Tape, x: Array, g: Array) -> Array:
        """What each place of the kernel gets from all windows."""
        dk = product(t, swapped(self.of(x)), self.rows_of(g))
        return dk.reshape((*dk.shape[:LEAD], *self.kernel))


@operation(
    needle=lambda n, x, w, stride, padding: n.conv(x, w, **unusual(stride=(stride, 1), padding=(padding, 0))),
    torch=torch_conv,
    drawn=convolved,
    node="Conv",
    covers=("ConvInput", "ConvKernel"),
    attributes=lambda op, *xs: {"stride": op.stride, "padding": op.padding},
    special=SPECIAL,
    factors=True,
    # torch's float32 leaves out the zeros of the padding, and its float64 multiplies the kernel with them
    special_in=lambda attributes: (0,) if attributes["padding"] else (0, 1),
    ordinary=True,
)
def conv(t: Tape, x: Var, w: Var, *, stride: int = 1, padding: int = 0) -> Var:
    """Cross-correlation: (N, H, W, C) and (k, k2, C, O) -> (N, H', W', O), as a product of patches and kernel."""
    at = _Patches(x.shape, w.shape, stride, padding)

    def vjp(g: Array) -> Sequence[Array]:
        return at.collected(t, g, w.value), at.gathered(t, x.value, g)

    return t.emit(at.convolved(t, x.value, w.value), (x, w), vjp)


@meaning("ConvInput")
def _of_images(t: Tape, op: Any, g: Var, w: Var) -> Var:
    """What `conv` passes back to its images: linear in both, so that its own gradients are those of `conv`."""
    at = _Patches(tuple(op.shape), w.shape, op.stride, op.padding)

    def vjp(a: Array) -> Sequence[Array]:
        return at.convolved(t, a, w.value), at.gathered(t, a, g.value)

    return t.emit(at.collected(t, g.value, w.value), (g, w), vjp)


@meaning("ConvKernel")
def _of_kernel(t: Tape, op: Any, x: Var, g: Var) -> Var:
    """What `conv` passes back to its kernel, likewise."""
    at = _Patches(x.shape, tuple(op.shape), op.stride, op.padding)

    def vjp(a: Array) -> Sequence[Array]:
        return at.collected(t, g.value, a), at.convolved(t, x.value, a)

    return t.emit(at.gathered(t, x.value, g.value), (x, g), vjp)
