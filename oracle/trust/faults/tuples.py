"""Stack, split and the elements of a tuple."""

from __future__ import annotations

from typing import Any

import numpy as np

from needle.autograd import Value
from oracle.trust.faults.chapter import Chapter
from oracle.trust.patches import vjp, wrap

fault = Chapter("op")

fault(
    "stack-forward",
    "the tensors are stacked in reverse",
    "Stack forward",
    wrap("ops.Stack.compute", lambda old: lambda self, args: old(self, args[::-1])),
)
fault(
    "stack-backward",
    "gradients are handed out in reverse",
    "Stack backward",
    wrap("ops.Stack.vjp", lambda old: lambda self, g, y, needs, args: (tuple(old(self, g, y, needs, args)[0])[::-1],)),
)
fault(
    "split-forward",
    "slices come in reverse",
    "Split forward",
    wrap("ops.Split.compute", lambda old: lambda self, a: old(self, a)[::-1]),
)
fault(
    "split-backward",
    "the gradient is stacked in reverse",
    "Split backward",
    vjp("Split", lambda r, g, y, a: (np.flip(r[0]),)),
)
fault(
    "tuple-backward",
    "an element's gradient goes to its mirror image in the tuple",
    "TupleGetItem backward|Split|Stack",
    wrap("ops.TupleGetItem.vjp", lambda old: lambda self, g, y, needs, a: (old(self, g, y, needs, a)[0][::-1],)),
)
fault(
    "tuple-backward-from-the-end",
    "an element that is counted from the end gets no gradient",
    "TupleGetItem backward|Split|Stack|missing",
    wrap(
        "ops.TupleGetItem.vjp",
        lambda old: lambda self, g, y, needs, a: ((None,) * len(a),) if self.index < 0 else old(self, g, y, needs, a),
    ),
)
fault(
    "concatenate-forward",
    "the tensors come in reverse where they are of one shape",
    "Concatenate forward",
    wrap(
        "ops.Concatenate.compute",
        lambda old: lambda self, *args: old(self, *(args[::-1] if len({a.shape for a in args}) == 1 else args)),
    ),
)
fault(
    "concatenate-backward",
    "every tensor gets the gradient of the first places",
    "Concatenate backward",
    wrap(
        "ops.Concatenate.vjp",
        lambda old: (
            lambda self, g, y, needs, *xs: (
                old(self, g, y, needs, *xs)
                if isinstance(g, Value)
                else tuple(
                    np.take(g, range(x.shape[self.axis]), self.axis) if n else None
                    for x, n in zip(xs, needs, strict=True)
                )
            )
        ),
    ),
)
fault(
    "concatenate-backward-equal",
    "all parts are taken to be as long as the last",
    "Concatenate backward",
    wrap("ops.Concatenate.vjp", lambda old: lambda self, g, y, needs, *xs: _as_the_last(old, self, g, y, needs, *xs)),
)


def _as_the_last(old: Any, self: Any, g: Any, y: Any, needs: Any, *xs: Any) -> Any:
    right = old(self, g, y, needs, *xs)
    n = xs[-1].shape[self.axis]
    if isinstance(g, Value) or not n:
        return right
    starts = [min(i * n, g.shape[self.axis] - x.shape[self.axis]) for i, x in enumerate(xs)]
    places = [range(start, start + x.shape[self.axis]) for start, x in zip(starts, xs, strict=True)]
    return tuple(None if r is None else np.take(g, p, self.axis) for r, p in zip(right, places, strict=True))
