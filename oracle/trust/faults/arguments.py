"""What is right for usual arguments: powers of 0 and of negative numbers, indices, axes from the end, shapes to work out."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from needle import ops
from oracle.trust.faults.chapter import Chapter
from oracle.trust.patches import around, compute, vjp, wrap

fault = Chapter("op")

# -- powers

fault(
    "power-scalar-negative-base",
    "a power of a negative number is that of its absolute value",
    "PowerScalar forward",
    compute("PowerScalar", lambda y, a: np.where(a < 0, np.abs(y), y)),
)
fault(
    "power-scalar-logarithm",
    "a power of a negative number is e^(n ln x), which is none",
    "PowerScalar forward",
    compute("PowerScalar", lambda y, a: np.where(a < 0, np.nan, y).astype(y.dtype)),
)
fault(
    "power-scalar-fraction",
    "a fractional power of a negative number is 0",
    "PowerScalar forward",
    compute("PowerScalar", lambda y, a: np.where(np.isnan(y) & ~np.isnan(a), 0, y).astype(y.dtype)),
)
fault(
    "power-scalar-at-zero",
    "0 to a negative power is 0",
    "PowerScalar forward",
    compute("PowerScalar", lambda y, a: np.where(np.isinf(y) & (a == 0), 0, y).astype(y.dtype)),
)
fault(
    "power-scalar-backward-at-zero",
    "the gradient at 0 is 0 for every exponent",
    "PowerScalar backward",
    vjp("PowerScalar", lambda r, g, y, a: (np.where(a == 0, 0, r[0]),)),
)
fault(
    "power-scalar-backward-zeroth",
    "the gradient of x ** 0 at 0 is 0 · ∞",
    "PowerScalar backward",
    wrap(
        "ops.PowerScalar.vjp",
        lambda old: (
            lambda self, g, y, needs, a: (
                (g * (self.scalar * a ** (self.scalar - 1.0)),)
                if isinstance(a, np.ndarray)
                else old(self, g, y, needs, a)
            )
        ),
    ),
)
fault(
    "power-negative-base",
    "a power of a negative number is that of its absolute value",
    "EWisePow forward",
    compute("EWisePow", lambda y, a, b: np.where(a < 0, np.abs(y), y)),
)
fault(
    "power-backward-negative-base",
    "the gradient of a negative base loses its sign",
    "EWisePow backward",
    vjp("EWisePow", lambda r, g, y, a, b: (None if r[0] is None else _if_any(r[0], np.abs(r[0]), a < 0), r[1])),
)
fault(
    "power-backward-zeroth",
    "the gradient of 0 to the power of 0 is 0 · ∞",
    "EWisePow backward",
    vjp("EWisePow", lambda r, g, y, a, b: (None if r[0] is None else _plain_power(r[0], g, a, b), r[1])),
)
fault(
    "power-backward-logarithm-of-zero",
    "the gradient of the exponent at base 0 is 0 · ln 0",
    "EWisePow backward",
    vjp("EWisePow", lambda r, g, y, a, b: (r[0], ops._reduced(np.asarray(g * y * np.log(a)), b.shape))),
)

# -- indices

fault(
    "index-repeats",
    "of what is added to one place, only the last arrives",
    "GetItem backward|PutItem",
    wrap("ops.PutItem.compute", lambda old: lambda self, a: _assigned(self, a)),
)
fault(
    "index-repeats-of-tuples",
    "of what is added to one place that a tuple names twice, only the last arrives",
    "GetItem backward|PutItem",
    wrap("ops._index_of", lambda old: lambda part: part if isinstance(part, tuple) else old(part)),
)
fault(
    "index-repeats-forward",
    "an array of places is sorted",
    "GetItem forward|PutItem backward",
    wrap("ops.GetItem.compute", lambda old: lambda self, a: _with(old, self, _sorted)(a)),
)
fault(
    "index-negative-places",
    "negative places in an array count from the beginning",
    "GetItem forward|PutItem backward",
    wrap("ops.GetItem.compute", lambda old: lambda self, a: _with(old, self, _positive)(a)),
)
fault(
    "index-mask",
    "a mask is taken for an array of the places 0 and 1",
    "GetItem forward|PutItem backward",
    wrap("ops.GetItem.compute", lambda old: lambda self, a: _with(old, self, _as_places)(a)),
)
fault(
    "index-mask-backward",
    "a mask is taken for an array of the places 0 and 1 on the way back",
    "GetItem backward|PutItem",
    wrap("ops.PutItem.compute", lambda old: lambda self, a: _with(old, self, _inverted)(a)),
)
fault(
    "index-number",
    "a number takes its neighbour",
    "GetItem forward|PutItem backward",
    wrap("ops.GetItem.compute", lambda old: lambda self, a: _with(old, self, _neighbour)(a)),
)
fault(
    "index-ellipsis",
    "what follows an ellipsis is taken from the first axes where that fits",
    "GetItem forward|PutItem backward",
    wrap("ops.GetItem.compute", lambda old: lambda self, a: _fitting(old, self, a, ...)),
)
fault(
    "index-new-axis",
    "a new axis is forgotten",
    "GetItem forward|PutItem backward",
    wrap("ops.GetItem.compute", lambda old: lambda self, a: _with(old, self, _forgotten)(a)),
)
fault(
    "index-new-axis-backward",
    "with a new axis in the index, the gradient is put at the beginning",
    "GetItem backward|PutItem",
    wrap(
        "ops.PutItem.compute",
        lambda old: lambda self, a: old(self, np.flip(a)) if None in _slices(self.index) else old(self, a),
    ),
)

# -- axes from the end, and shapes

fault(
    "stack-negative-axis",
    "a negative axis is counted without the new one, where that gives the same shape",
    "Stack forward|Split backward",
    wrap("ops.Stack.compute", lambda old: lambda self, args: _elsewhere(old, self, args, len(np.shape(args[0])))),
)
fault(
    "split-negative-axis",
    "a negative axis is taken from the other end, where that gives as many parts",
    "Split forward|Stack backward",
    wrap("ops.Split.compute", lambda old: lambda self, a: _other_end(old, self, a)),
)
fault(
    "concatenate-negative-axis",
    "a negative axis is taken from the other end",
    "Concatenate forward",
    wrap(
        "ops.Concatenate.compute",
        lambda old: lambda self, *args: old(ops.Concatenate(-1 - self.axis) if self.axis < 0 else self, *args),
    ),
)
fault(
    "dilate-negative-axis",
    "a negative axis is ignored",
    "Dilate forward",
    wrap(
        "ops.Dilate.compute",
        lambda old: lambda self, a: old(ops.Dilate([i for i in _tuple(self.axes) if i >= 0], self.dilation), a),
    ),
)
fault(
    "flip-negative-axis",
    "a negative axis is taken from the other end",
    "Flip forward|Flip backward",
    wrap(
        "ops.Flip.compute",
        lambda old: lambda self, a: old(self if self.axes is None else ops.Flip(_mirrored(self.axes)), a),
    ),
)
fault(
    "reshape-worked-out",
    "with a size to work out, elements are read column by column",
    "Reshape forward",
    wrap(
        "ops.Reshape.compute",
        lambda old: lambda self, a: a.reshape(self.shape, order="F") if -1 in self.shape else old(self, a),
    ),
)
fault(
    "reshape-worked-out-first",
    "the size to work out becomes the first one",
    "Reshape forward",
    wrap(
        "ops.Reshape.compute",
        lambda old: lambda self, a: old(ops.Reshape(sorted(self.shape)) if -1 in self.shape and a.size else self, a),
    ),
)
fault(
    "broadcast-new-axis",
    "the gradient of a row that became a square is summed over the wrong axis",
    "backward",
    around("ops._reduced", lambda old, g, shape: _summed_along_the_row(old, g, shape)),
    words="see how gradients are reduced",
)
fault(
    "broadcast-new-axis-last",
    "the gradient of what got a new axis is summed over the last one where that fits",
    "BroadcastTo backward",
    vjp(
        "BroadcastTo",
        lambda r, g, y, a: (np.asarray(g.sum(-1)) if g.ndim == a.ndim + 1 and g.shape[:-1] == a.shape else r[0],),
    ),
)
fault(
    "transpose-rank-4",
    "with four axes, a pair given from the end loses its place",
    "Transpose|Conv",
    wrap(
        "ops.Transpose.compute",
        lambda old: (
            lambda self, a: (
                a.swapaxes(1, 2)
                if a.ndim == 4 and self.axes and a.swapaxes(1, 2).shape == old(self, a).shape
                else old(self, a)
            )
        ),
    ),
)


def _if_any(right: Any, wrong: Any, where: Any) -> Any:
    return right if right is None or not where.any() else wrong.astype(right.dtype)


def _plain_power(right: Any, g: Any, a: Any, b: Any) -> Any:
    return ops._reduced(np.asarray(g * b * a ** (b - 1)), right.shape)


def _assigned(self: Any, a: Any) -> Any:
    out = np.zeros(self.shape, a.dtype)
    out[self.index] += a
    return out


def _tuple(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, tuple | list) else (x,)


def _slices(index: Any) -> list[Any]:
    """The parts of an index that are no arrays."""
    return [part for part in _tuple(index) if not isinstance(part, np.ndarray)]


def _with(old: Any, self: Any, change: Any) -> Any:
    """The method with every part of the index changed, where an index is left that can be."""

    def method(a: Any) -> Any:
        changed = copy.copy(self)
        size = a.shape if isinstance(self, ops.GetItem) else self.shape
        changed.index = tuple(p for part in _tuple(self.index) for p in change(part, size))
        try:
            return old(changed, a)
        except (IndexError, ValueError):
            return old(self, a)

    return method


def _sorted(part: Any, shape: Any) -> Any:
    return [np.sort(part) if isinstance(part, np.ndarray) and part.dtype != bool else part]


def _positive(part: Any, shape: Any) -> Any:
    return [np.abs(part) if isinstance(part, np.ndarray) and part.dtype != bool else part]


def _as_places(part: Any, shape: Any) -> Any:
    return [part.astype(int) if isinstance(part, np.ndarray) and part.dtype == bool else part]


def _inverted(part: Any, shape: Any) -> Any:
    return [part[::-1] if isinstance(part, np.ndarray) and part.dtype == bool else part]


def _neighbour(part: Any, shape: Any) -> Any:
    return [part - 1 if isinstance(part, int | np.integer) and part > 0 else part]


def _forgotten(part: Any, shape: Any) -> Any:
    return [] if part is None else [part]


def _fitting(old: Any, self: Any, a: Any, part: Any) -> Any:
    right = old(self, a)
    if not any(p is part for p in _slices(self.index)):
        return right
    wrong = a[tuple(p for p in _tuple(self.index) if p is not part)]
    return wrong if np.shape(wrong) == np.shape(right) else right


def _elsewhere(old: Any, self: Any, args: Any, rank: int) -> Any:
    right = old(self, args)
    if self.axis >= 0 or not rank:
        return right
    wrong = np.stack(args, (self.axis % rank), dtype=right.dtype)
    return wrong if wrong.shape == right.shape else right


def _other_end(old: Any, self: Any, a: Any) -> Any:
    wrong = np.moveaxis(a, -1 - self.axis, 0) if self.axis < 0 else None
    right = old(self, a)
    fits = wrong is not None and len(wrong) == len(right) and all(map(_same_shape, wrong, right))
    return tuple(wrong) if fits else right  # type: ignore[arg-type]


def _same_shape(a: Any, b: Any) -> bool:
    return bool(np.shape(a) == np.shape(b))


def _mirrored(axes: Any) -> tuple[int, ...]:
    return tuple(dict.fromkeys(-1 - axis if axis < 0 else axis for axis in _tuple(axes)))


def _summed_along_the_row(old: Any, g: Any, shape: Any) -> Any:
    if isinstance(g, np.ndarray) and len(shape) == 1 and g.shape == (shape[0], shape[0]):
        return np.asarray(g.sum(1))
    return old(g, shape)
