"""Softmax with cross entropy."""

from __future__ import annotations

import numpy as np

from oracle.trust.faults.chapter import Chapter, softmax
from oracle.trust.patches import compute, vjp, wrap

fault = Chapter("op")

fault(
    "loss-forward-sum",
    "the loss is the sum over the batch",
    "SoftmaxCrossEntropy forward",
    compute("SoftmaxCrossEntropy", lambda y, z, labels: y * len(z)),
)
fault(
    "loss-forward-overflow",
    "logits are not shifted",
    "SoftmaxCrossEntropy forward",
    compute(
        "SoftmaxCrossEntropy",
        lambda y, z, labels: (np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), np.asarray(labels, int)]).mean(),
    ),
)
fault(
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
fault(
    "loss-backward-sum",
    "the gradient is not divided by the batch size",
    "SoftmaxCrossEntropy backward",
    vjp("SoftmaxCrossEntropy", lambda r, g, y, z, labels: (r[0] * len(z), None)),
)
fault(
    "loss-backward-onehot",
    "the gradient lacks the labels",
    "SoftmaxCrossEntropy backward",
    vjp("SoftmaxCrossEntropy", lambda r, g, y, z, labels: (softmax(z) * (g / len(z)), None)),
)
fault(
    "loss-backward-out-grad",
    "the gradient does not depend on the incoming one",
    "SoftmaxCrossEntropy backward",
    vjp("SoftmaxCrossEntropy", lambda r, g, y, z, labels: (r[0] / np.where(g == 0, np.float32(1), g), None)),
)
fault(
    "softmax-forward-overflow",
    "what goes into the softmax is not shifted",
    "Softmax forward",
    wrap("ops.Softmax.compute", lambda old: lambda self, x: np.exp(x) / np.exp(x).sum(self.axis, keepdims=True)),
)
fault(
    "softmax-forward-axis",
    "the softmax is over the last axis, whatever it is told",
    "Softmax forward",
    wrap("ops.Softmax.compute", lambda old: lambda self, x: old(type(self)(), x)),
)
fault(
    "softmax-backward-elementwise",
    "the gradient of the softmax is that of an elementwise function",
    "Softmax backward",
    vjp("Softmax", lambda r, g, y, x: (g * y * (1 - y),)),
)
fault(
    "softmax-backward-axis",
    "the gradient of the softmax adds up over the last axis, whatever the axis was",
    "Softmax backward",
    vjp("Softmax", lambda r, g, y, x: (y * (g - (g * y).sum(-1, keepdims=True)),)),
)
