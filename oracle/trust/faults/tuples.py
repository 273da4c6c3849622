"""Stack, split and the elements of a tuple."""

from __future__ import annotations

import numpy as np

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
