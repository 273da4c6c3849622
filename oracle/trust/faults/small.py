"""What is nearly right: roundings to float16, a slightly wrong ε, a gradient off by 2⁻¹²."""

from __future__ import annotations

import math

import numpy as np

from oracle.trust.faults.adam import adam
from oracle.trust.faults.chapter import Chapter, f16, number16, softmax, tf32
from oracle.trust.faults.clipping import clip
from oracle.trust.faults.dropout import dropout
from oracle.trust.faults.norms import batch_norm, layer_norm, running, set_running
from oracle.trust.faults.sgd import sgd
from oracle.trust.patches import around, compute, contribution, replace, wrap

fault = Chapter("small")

fault(
    "sgd-lr-float16",
    "the learning rate is rounded to float16",
    "SGD parameter update",
    sgd(lr=lambda s: number16(s.o.lr)),
    words="float16",
)
fault(
    "sgd-momentum-float16",
    "the momentum is rounded to float16",
    "SGD velocity",
    sgd(beta=lambda s: number16(s.o.momentum)),
    words="float16",
)
fault(
    "sgd-decay-float16",
    "the weight decay is rounded to float16",
    "SGD velocity|SGD decay",
    sgd(decay=lambda s: number16(s.o.weight_decay)),
    words="float16",
)
fault(
    "sgd-rest-float32",
    "1 − β is computed in float32",
    "SGD velocity",
    sgd(rest=lambda s: float(np.float32(1) - np.float32(s.beta))),
    words="float32",
)
fault(
    "sgd-velocity-float16",
    "velocities are rounded to float16",
    "SGD velocity",
    sgd(kept=lambda s: f16(s.v)),
    words="float16",
)
fault(
    "sgd-lr-1e-4",
    "the learning rate is off by 1e-4 of itself",
    "SGD parameter update",
    sgd(lr=lambda s: s.o.lr * 1.0001),
    words="as if the learning rate were",
)
fault(
    "sgd-truncates",
    "the velocity is cut to 20 bits",
    "SGD velocity",
    sgd(v=lambda s: ((s.beta * s.old + s.rest * s.d).view(np.uint32) & np.uint32(0xFFFFFFF0)).view(np.float32)),
)
fault(
    "adam-beta2-float32",
    "1 − β2 is computed in float32",
    "Adam second moment",
    adam(v=lambda s: s.b2 * s.v0 + float(np.float32(1) - np.float32(s.b2)) * s.d * s.d),
    words="float32",
)
fault(
    "adam-eps-1e-7",
    "the default ε is 1e-7",
    "Adam parameter update",
    adam(eps=lambda s: 1e-7 if s.o.eps == 1e-8 else s.o.eps),
)
fault(
    "clip-epsilon-1e-5",
    "max_norm / (norm + 1e-5)",
    "clip scal",
    clip(factor=lambda norm, most: min(1.0, most / (norm + 1e-5))),
)
fault(
    "clip-factor-float16",
    "the factor is rounded to float16",
    "clip scal",
    clip(factor=lambda norm, most: number16(min(1.0, most / (norm + 1e-6)))),
    words="float16",
)
fault(
    "clip-norm-float16",
    "squares are added in float16",
    "clip norm",
    clip(norm=lambda gs: math.sqrt(sum(float(f16((g * g).sum())) for g in gs))),
)
fault(
    "bn-eps-1e-6",
    "the default ε of BatchNorm is 1e-6",
    "BatchNorm",
    wrap(
        "nn.BatchNorm1d.__init__",
        lambda old: lambda self, dim, eps=1e-6, momentum=0.1, **kw: old(self, dim, eps, momentum, **kw),
    ),
)
fault(
    "ln-eps-1e-6",
    "the default ε of LayerNorm is 1e-6",
    "LayerNorm",
    wrap("nn.LayerNorm1d.__init__", lambda old: lambda self, dim, eps=1e-6, **kw: old(self, dim, eps, **kw)),
)
fault(
    "bn-one-pass-variance",
    "the variance is E[x²] − E[x]²",
    "BatchNorm forward",
    batch_norm(lambda x: (x.mean(0), np.maximum((x * x).mean(0) - x.mean(0) ** 2, 0))),
)
fault(
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
fault(
    "bn-running-float16",
    "the running statistics are rounded to float16",
    "running statistics|buffer|BatchNorm",
    running(lambda s, x, m, v: set_running(s, f16(s.running_mean.cached_data), f16(s.running_var.cached_data))),
)
fault(
    "bn-momentum-float16",
    "momentum is rounded to float16",
    "running statistics|buffer|BatchNorm",
    around(
        "nn.BatchNorm1d.__init__",
        lambda old, self, dim, eps=1e-5, momentum=0.1, **kw: old(self, dim, eps, number16(momentum), **kw),
    ),
)
fault(
    "linear-tf32",
    "products read 10 bits of their operands, up to 256 summands",
    "Linear forward",
    wrap(
        "ops.Linear.compute",
        lambda old: (
            lambda self, x, w, *b: old(self, tf32(x), tf32(w), *b) if x.shape[-1] <= 256 else old(self, x, w, *b)
        ),
    ),
)
fault(
    "linear-tf32-backward",
    "the products of the backward pass read 10 bits of g",
    "Linear backward",
    wrap(
        "ops.Linear.vjp",
        lambda old: (
            lambda self, g, y, needs, *xs: old(self, tf32(g) if isinstance(g, np.ndarray) else g, y, needs, *xs)
        ),
    ),
)
fault(
    "matmul-tf32",
    "products read 10 bits of their operands",
    "MatMul forward",
    wrap("ops.MatMul.compute", lambda old: lambda self, a, b: old(self, tf32(a), tf32(b))),
)
fault("tanh-float16", "tanh is computed in float16", "Tanh forward", compute("Tanh", lambda y, x: f16(y)))
fault("sigmoid-float16", "sigmoid is computed in float16", "Sigmoid forward", compute("Sigmoid", lambda y, x: f16(y)))
fault("exp-2-18", "eˣ is off by 2⁻¹⁸ of itself", "Exp forward", compute("Exp", lambda y, x: y * np.float32(1 + 2**-18)))
fault(
    "loss-epsilon",
    "1e-6 inside the logarithm of the loss",
    "SoftmaxCrossEntropy forward",
    compute(
        "SoftmaxCrossEntropy",
        lambda y, z, labels: (
            -np.log(np.clip(softmax(z)[np.arange(len(z)), np.asarray(labels, int)], np.float32(1e-6), None)).mean()
        ),
    ),
)
fault(
    "loss-float16",
    "the loss is rounded to float16",
    "SoftmaxCrossEntropy forward",
    compute("SoftmaxCrossEntropy", lambda y, z, labels: f16(y)),
)
fault(
    "linear-gradient-2-14",
    "dW is off by 2⁻¹⁴ of itself",
    "Linear backward",
    contribution("Linear", lambda c: c * np.float32(1 + 2**-14), 1),
)
fault(
    "relu-gradient-2-12",
    "the gradient of ReLU is off by 2⁻¹² of itself",
    "ReLU backward",
    contribution("ReLU", lambda c: c * np.float32(1 + 2**-12)),
)
fault(
    "bn-gradient-2-12",
    "dx of BatchNorm is off by 2⁻¹² of itself",
    "BatchNorm backward",
    contribution("BatchNorm", lambda c: c * np.float32(1 + 2**-12), 0),
)
fault(
    "dropout-scale-float16",
    "1 / (1 − p) is rounded to float16",
    "Dropout forward",
    dropout(scale=lambda s: number16(1 / (1 - s.p)) if s.p < 1 else 0.0),
)
fault(
    "mul-scalar-float16",
    "a scalar factor is rounded to float16",
    "MulScalar forward",
    replace("ops.MulScalar.compute", lambda self, a: np.asarray(a * number16(self.scalar))),
)
