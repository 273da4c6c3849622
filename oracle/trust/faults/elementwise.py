"""Operations on elements, from add to sigmoid: value and gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from needle import ops
from needle.autograd import Value
from oracle.trust.faults.chapter import Chapter, f16, number16, square, swap
from oracle.trust.patches import compute, contribution, replace, vjp, wrap

fault = Chapter("op")

fault(
    "add-forward",
    "the second operand is rounded to float16",
    "EWiseAdd forward",
    compute("EWiseAdd", lambda y, a, b: a + f16(b)),
)
fault(
    "add-backward-sign",
    "the gradient of the second operand has the wrong sign",
    "EWiseAdd backward",
    contribution("EWiseAdd", np.negative, 1),
)
fault(
    "add-backward-lost",
    "the second operand gets no gradient where it broadcasts",
    "EWiseAdd backward",
    vjp("EWiseAdd", lambda r, g, y, a, b: (r[0], r[1] if a.shape == b.shape else np.zeros_like(b))),
)
fault(
    "add-scalar-forward",
    "the scalar is cut to a whole number",
    "AddScalar forward",
    replace("ops.AddScalar.compute", lambda self, a: a + int(self.scalar)),
)
fault(
    "add-scalar-backward",
    "the gradient is multiplied by the scalar",
    "AddScalar backward",
    wrap("ops.AddScalar.vjp", lambda old: lambda self, g, y, needs, a: (g * self.scalar,)),
)
fault(
    "multiply-forward",
    "a small operand is taken as its absolute value",
    "EWiseMul forward",
    compute("EWiseMul", lambda y, a, b: np.where(np.abs(b) < 0.1, np.abs(y), y)),
)
fault(
    "multiply-backward-swapped",
    "each operand gets the other's gradient where shapes are equal",
    "EWiseMul backward",
    vjp("EWiseMul", lambda r, g, y, a, b: r[::-1] if a.shape == b.shape and None not in r else r),
)
fault(
    "multiply-backward-plain",
    "the second gradient lacks the first operand",
    "EWiseMul backward",
    vjp("EWiseMul", lambda r, g, y, a, b: (r[0], ops._reduced(np.asarray(g), b.shape))),
)
fault(
    "mul-scalar-forward",
    "negative scalars lose their sign",
    "MulScalar forward",
    replace("ops.MulScalar.compute", lambda self, a: np.asarray(a * abs(self.scalar))),
)
fault(
    "mul-scalar-backward",
    "the gradient lacks the scalar",
    "MulScalar backward",
    vjp("MulScalar", lambda r, g, y, a: (g,)),
)
fault(
    "divide-forward",
    "the divisor is kept away from 0 by 1e-4",
    "EWiseDiv forward",
    compute("EWiseDiv", lambda y, a, b: a / (b + np.float32(1e-4))),
)
fault(
    "divide-backward-sign",
    "the gradient of the divisor has the wrong sign",
    "EWiseDiv backward",
    contribution("EWiseDiv", np.negative, 1),
)
fault(
    "divide-backward-power",
    "the gradient of the divisor lacks a division",
    "EWiseDiv backward",
    vjp("EWiseDiv", lambda r, g, y, a, b: (r[0], ops._reduced(np.asarray(-g * y), b.shape))),
)
fault(
    "divide-scalar-forward",
    "division by a scalar multiplies with its float16 inverse",
    "DivScalar forward",
    replace("ops.DivScalar.compute", lambda self, a: np.asarray(a * number16(1 / self.scalar))),
)
fault(
    "divide-scalar-backward",
    "the gradient is multiplied by the divisor",
    "DivScalar backward",
    wrap("ops.DivScalar.vjp", lambda old: lambda self, g, y, needs, a: (g * self.scalar,)),
)
fault(
    "power-forward",
    "the exponent is rounded to float16",
    "EWisePow forward",
    compute("EWisePow", lambda y, a, b: a ** f16(b)),
)
fault(
    "power-backward-base",
    "the gradient of the base lacks the exponent",
    "EWisePow backward",
    vjp("EWisePow", lambda r, g, y, a, b: (ops._reduced(np.asarray(g * a ** (b - 1)), a.shape), r[1])),
)
fault(
    "power-backward-exponent",
    "the gradient of the exponent lacks the logarithm",
    "EWisePow backward",
    vjp("EWisePow", lambda r, g, y, a, b: (r[0], ops._reduced(np.asarray(g * y), b.shape))),
)
fault(
    "power-scalar-forward",
    "the base loses its sign",
    "PowerScalar forward",
    replace("ops.PowerScalar.compute", lambda self, a: np.asarray(np.abs(a) ** self.scalar)),
)
fault(
    "power-scalar-backward",
    "the exponent is not lowered by 1",
    "PowerScalar backward",
    wrap("ops.PowerScalar.vjp", lambda old: lambda self, g, y, needs, a: (g * (self.scalar * a**self.scalar),)),
)
fault(
    "negate-forward", "the negative of the absolute value", "Negate forward", compute("Negate", lambda y, a: -np.abs(a))
)
fault("negate-backward", "the gradient keeps its sign", "Negate backward", contribution("Negate", np.negative))
fault("log-forward", "log(x + 1e-5)", "Log forward", compute("Log", lambda y, a: np.log(a + np.float32(1e-5))))
fault("log-backward", "the gradient is multiplied by x", "Log backward", vjp("Log", lambda r, g, y, a: (g * a,)))
fault(
    "exp-forward",
    "exp is cut off at e²⁰",
    "Exp forward",
    compute("Exp", lambda y, a: np.minimum(y, np.float32(math.exp(20)))),
)
fault("exp-backward", "the gradient lacks eˣ", "Exp backward", vjp("Exp", lambda r, g, y, a: (g,)))
fault(
    "relu-forward-leaky",
    "negative values pass with 0.01",
    "ReLU forward",
    compute("ReLU", lambda y, a: np.where(a > 0, a, np.float32(0.01) * a)),
)
fault(
    "relu-forward-cut",
    "values are cut off at 6",
    "ReLU forward",
    compute("ReLU", lambda y, a: np.minimum(y, np.float32(6))),
)
fault(
    "relu-backward-at-zero",
    "the gradient at exactly 0 is 1",
    "ReLU backward",
    vjp("ReLU", lambda r, g, y, a: (g * (y >= 0) * (a >= 0),)),
)
fault(
    "relu-backward-guided",
    "negative gradients do not pass",
    "ReLU backward",
    vjp("ReLU", lambda r, g, y, a: (r[0] * (g > 0),)),
)
fault(
    "tanh-forward",
    "a rational approximation",
    "Tanh forward",
    compute("Tanh", lambda y, a: np.clip(a * (27 + a * a) / (27 + 9 * a * a), -1, 1)),
)
fault("tanh-backward", "1 − y instead of 1 − y²", "Tanh backward", vjp("Tanh", lambda r, g, y, a: (g * (1 - y),)))
fault(
    "tanh-backward-input",
    "1 − x² instead of 1 − y²",
    "Tanh backward",
    vjp("Tanh", lambda r, g, y, a: (g * (1 - a * a),)),
)
fault(
    "sigmoid-forward",
    "eˣ / (1 + eˣ), which overflows",
    "Sigmoid forward",
    compute("Sigmoid", lambda y, a: np.exp(a) / (1 + np.exp(a))),
)
fault(
    "sigmoid-backward",
    "y(1 + y) instead of y(1 − y)",
    "Sigmoid backward",
    vjp("Sigmoid", lambda r, g, y, a: (g * y * (1 + y),)),
)
fault(
    "softplus-forward",
    "ln(1 + eˣ) as it stands, which overflows",
    "Softplus forward",
    compute("Softplus", lambda y, a: np.log(1 + np.exp(a))),
)
fault(
    "softplus-backward",
    "the slope at −x",
    "Softplus backward",
    vjp("Softplus", lambda r, g, y, a: (g * ops.Sigmoid().on(-a),)),
)
fault(
    "abs-forward",
    "negative numbers above -1 keep their sign",
    "Abs forward",
    compute("Abs", lambda y, a: np.where(y < 1, a, y)),
)
fault(
    "abs-backward-at-zero",
    "the gradient at exactly 0 is 1",
    "Abs backward",
    vjp("Abs", lambda r, g, y, a: (np.where(a == 0, g, r[0]),)),
)
fault("sqrt-forward", "√(x + 1e-6)", "Sqrt forward", compute("Sqrt", lambda y, a: np.sqrt(a + np.float32(1e-6))))
fault("sqrt-backward", "1 / y instead of 1 / 2y", "Sqrt backward", vjp("Sqrt", lambda r, g, y, a: (g / y,)))
fault(
    "clip-forward",
    "of two limits the lower one is forgotten",
    "Clip forward",
    wrap(
        "ops.Clip.compute",
        lambda old: lambda self, a: old(self, a) if None in (self.low, self.high) else np.minimum(a, self.high),
    ),
)
fault(
    "clip-backward-at-limit",
    "the gradient does not pass where x is a limit",
    "Clip backward",
    wrap(
        "ops.Clip.vjp",
        lambda old: (
            lambda self, g, y, needs, a: (
                old(self, g, y, needs, a)
                if isinstance(g, Value)
                else (old(self, g, y, needs, a)[0] * ((a != self.low) & (a != self.high)),)
            )
        ),
    ),
)
fault("clip-backward", "the gradient passes everywhere", "Clip backward", vjp("Clip", lambda r, g, y, a: (g,)))
fault(
    "maximum-forward-nan",
    "a number is larger, and smaller, than nan",
    "Maximum forward|Minimum forward",
    replace("ops.Maximum._better", np.fmax) + replace("ops.Minimum._better", np.fmin),
)
fault(
    "maximum-backward-ties",
    "equal ones both get the whole gradient",
    "Maximum backward|Minimum backward",
    vjp("Maximum", lambda r, g, y, a, b: [_whole_share(c, g, x.shape, a == b) for c, x in zip(r, (a, b), strict=True)]),
)
fault(
    "minimum-forward",
    "the one that is closer to 0",
    "Minimum forward",
    replace("ops.Minimum._better", staticmethod(lambda a, b: np.where(np.abs(a) < np.abs(b), a, b))),
)
fault(
    "minimum-backward",
    "the gradient goes to the larger one",
    "Minimum backward",
    replace("ops.Minimum._loses", np.less),
)
fault(
    "where-forward",
    "the condition is transposed where it is square",
    "Where forward",
    wrap(
        "ops.Where.compute",
        lambda old: lambda self, a, b: old(ops.Where(swap(self.condition)) if square(self.condition) else self, a, b),
    ),
)
fault(
    "where-backward",
    "b gets the gradient of a, too",
    "Where backward",
    vjp("Where", lambda r, g, y, a, b: (r[0], ops._reduced(g, b.shape))),
)


def _whole_share(c: Any, g: Any, shape: tuple[int, ...], equal: Any) -> Any:
    return None if c is None else c + ops._reduced(np.asarray(np.where(equal, g / 2, 0).astype(g.dtype)), shape)
