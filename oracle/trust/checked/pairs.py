"""Correct implementations of torch functions that go another way: one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import special  # type: ignore[import-untyped]
from torch import Tensor

from oracle import check
from oracle.check.drawing import KINDS, named, resolved
from oracle.frameworks import judging, libraries
from oracle.frameworks.pairs import AGREES
from oracle.frameworks.table import PAIRS as ROWS

Function = Callable[..., Any]
f32 = np.float32


@dataclass(frozen=True)
class Pair:
    """A torch function and a candidate for it; ``inputs`` as `check.op` takes them."""

    name: str
    way: str  # in words: how the candidate computes
    candidate: Function
    torch_fn: Function
    inputs: tuple[Any, ...] = ((4, 7),)
    kinds: tuple[str, ...] = field(default=KINDS)


PAIRS: list[Pair] = []


def leaf(a: Any) -> Tensor:
    """A leaf of torch's graph."""
    return torch.from_numpy(np.array(a)).requires_grad_()


def pair(name: str, way: str, candidate: Function, torch_fn: Function, *inputs: Any, **more: Any) -> None:
    """A row."""
    PAIRS.append(Pair(name, way, candidate, torch_fn, inputs or ((4, 7),), **more))


def decomposed(name: str, written_out: Function, torch_fn: Function, *inputs: Any, **more: Any) -> None:
    """A row whose candidate is torch's float32 in other operations, with the gradients that autograd derives from these."""
    pair(name, "torch, written out", check.backward(written_out, leaf), torch_fn, *inputs, **more)


# -- elementwise, in NumPy and SciPy -----------------------------------------------------------------------------------

_positive: Function = lambda f: lambda x: f(abs(x) + 1e-3)  # noqa: E731
_inside: Function = lambda f, tanh: lambda x: f(tanh(x) * 0.9)  # noqa: E731

for name in [
    "abs",
    "neg",
    "exp",
    "exp2",
    "expm1",
    "sin",
    "cos",
    "tan",
    "sinh",
    "cosh",
    "tanh",
    "arctan",
    "arcsinh",
    "square",
    "sign",
    "floor",
    "ceil",
    "trunc",
    "rint",
    "deg2rad",
    "rad2deg",
    "isfinite",
    "signbit",
    "logical_not",
]:
    theirs = {"arctan": "atan", "arcsinh": "asinh", "rint": "round"}.get(name, name)
    pair(theirs, "NumPy", getattr(np, {"neg": "negative"}.get(name, name)), getattr(torch, theirs))
for name in ["sqrt", "log", "log2", "log10", "log1p", "reciprocal"]:
    pair(name, "NumPy", _positive(getattr(np, name)), _positive(getattr(torch, name)))
for name, theirs in (("arcsin", "asin"), ("arccos", "acos"), ("arctanh", "atanh")):
    pair(theirs, "NumPy", _inside(getattr(np, name), np.tanh), _inside(getattr(torch, theirs), torch.tanh))
pair("acosh", "NumPy", lambda x: np.arccosh(abs(x) + f32(1.5)), lambda x: torch.acosh(x.abs() + 1.5))
pair("rsqrt", "NumPy", _positive(lambda x: 1 / np.sqrt(x)), _positive(torch.rsqrt))
pair("frac", "NumPy", lambda x: x - np.trunc(x), torch.frac)
for name in ["erf", "erfc", "expit", "i0", "i0e", "i1", "i1e", "entr", "ndtr", "log_ndtr", "erfcx", "j0", "j1"]:
    theirs_fn = {"j0": torch.special.bessel_j0, "j1": torch.special.bessel_j1}.get(name) or getattr(torch.special, name)
    tame = 1e-2 if name in ("i0", "i1", "erfcx", "j0", "j1") else 1.0
    few = ("normal", "zeros", "ties", "tiny") if name in ("i0", "i1", "erfcx", "i0e", "i1e") else KINDS
    pair(f"special.{name}", "SciPy", lambda x, name=name, s=tame: getattr(special, name)(x * f32(s)),
         lambda x, f=theirs_fn, s=tame: f(x * s), kinds=few)  # fmt: skip
pair("lgamma", "SciPy", _positive(special.gammaln), _positive(torch.lgamma))
pair("digamma", "SciPy", _positive(special.digamma), _positive(torch.digamma))
pair("erfinv", "SciPy", _inside(special.erfinv, np.tanh), _inside(torch.erfinv, torch.tanh))
pair(
    "ndtri",
    "SciPy",
    lambda x: special.ndtri(special.expit(np.tanh(x))),
    lambda x: torch.special.ndtri(torch.sigmoid(torch.tanh(x))),
)
pair(
    "logit",
    "SciPy",
    lambda x: special.logit(special.expit(np.tanh(x))),
    lambda x: torch.logit(torch.sigmoid(torch.tanh(x))),
)
pair(
    "sinc",
    "NumPy in float64",
    lambda x: np.sinc(x.astype(float)).astype(f32),
    torch.sinc,
    kinds=("normal", "zeros", "ties", "tiny"),
)

# -- activations, written out ------------------------------------------------------------------------------------------

zero: Function = lambda x: torch.zeros_like(x)  # noqa: E731
softplus: Function = lambda x: torch.logaddexp(x, zero(x))  # noqa: E731
sigmoid: Function = lambda x: torch.exp(-softplus(-x))  # noqa: E731
plus: Function = lambda x: torch.where(x > 0, x, zero(x))  # noqa: E731
minus: Function = lambda x: torch.where(x > 0, zero(x), x)  # noqa: E731
for name, out, fused in (
    ("sigmoid", sigmoid, torch.sigmoid),
    ("relu", plus, F.relu),
    ("silu", lambda x: x * sigmoid(x), F.silu),
    ("softsign", lambda x: x / (1 + x.abs()), F.softsign),
    ("logsigmoid", lambda x: -softplus(-x), F.logsigmoid),
    ("mish", lambda x: x * torch.tanh(softplus(x)), F.mish),
    ("gelu", lambda x: x * (torch.erfc(-x / 2**0.5) / 2), F.gelu),
    ("gelu, tanh", lambda x: x * sigmoid(2 * (2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)), lambda x: F.gelu(x, approximate="tanh")),
    ("elu", lambda x: plus(x) + torch.expm1(minus(x)), F.elu),
    ("selu", lambda x: 1.0507009873554805 * (plus(x) + 1.6732632423543772 * torch.expm1(minus(x))), F.selu),
    ("celu", lambda x: plus(x) + 2 * torch.expm1(minus(x) / 2), lambda x: F.celu(x, 2.0)),
    ("leaky_relu", lambda x: plus(x) + 0.01 * minus(x), F.leaky_relu),
    ("tanhshrink", lambda x: x - torch.tanh(x), F.tanhshrink),
    ("hardsigmoid", lambda x: torch.where((x > -3) & (x < 3), x / 6 + 0.5, (x >= 3).to(x.dtype)), F.hardsigmoid),
    ("hardtanh", lambda x: torch.where((x > -1) & (x < 1), x, x.sign().detach()), F.hardtanh),
    ("softshrink", lambda x: torch.where(x.abs() > 0.5, x - 0.5 * x.sign().detach(), zero(x)), F.softshrink),
    ("hardshrink", lambda x: torch.where(x.abs() > 0.5, x, zero(x)), F.hardshrink),
    ("threshold", lambda x: torch.where(x > 0.1, x, torch.full_like(x, 20.0)), lambda x: F.threshold(x, 0.1, 20.0)),
    ("glu", lambda x: x[:, :3] * sigmoid(x[:, 3:]), lambda x: F.glu(x, 1)),
):  # fmt: skip
    decomposed(name, out, fused, (5, 6))

# -- two operands ------------------------------------------------------------------------------------------------------

for name, ours in (
    ("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("maximum", np.maximum), ("minimum", np.minimum),
    ("copysign", np.copysign), ("hypot", np.hypot), ("atan2", np.arctan2), ("logaddexp", np.logaddexp),
    ("logaddexp2", np.logaddexp2), ("fmax", np.fmax), ("fmin", np.fmin), ("xlogy", lambda a, b: special.xlogy(a, abs(b) + 1)),
):  # fmt: skip
    theirs_fn = getattr(torch, name) if name != "xlogy" else (lambda a, b: torch.xlogy(a, b.abs() + 1))
    pair(name, "NumPy" if name != "xlogy" else "SciPy", ours, theirs_fn, (5, 6), (6,))
pair("div", "NumPy", lambda a, b: a / (abs(b) + 1), lambda a, b: a / (b.abs() + 1), (5, 6), (6,))
pair(
    "pow",
    "NumPy",
    lambda a, b: (abs(a) + f32(0.1)) ** np.tanh(b),
    lambda a, b: (a.abs() + 0.1) ** torch.tanh(b),
    (5, 6),
    (6,),
)
pair(
    "pow by a number",
    "NumPy in float64",
    lambda a: ((abs(a) + f32(0.1)).astype(float) ** 1.7).astype(f32),
    lambda a: (a.abs() + 0.1) ** 1.7,
)
decomposed(
    "addcmul",
    lambda a, b, c: (b * 0.5) * c + a,
    lambda a, b, c: torch.addcmul(a, b, c, value=0.5),
    (4, 5),
    (4, 5),
    (4, 5),
)
decomposed(
    "addcdiv",
    lambda a, b, c: a + b * (1 / (c.abs() + 1)),
    lambda a, b, c: torch.addcdiv(a, b, c.abs() + 1),
    (4, 5),
    (4, 5),
    (4, 5),
)
decomposed("lerp", lambda a, b: 0.7 * a + 0.3 * b, lambda a, b: torch.lerp(a, b, 0.3), (4, 5), (4, 5))
decomposed("cross", lambda a, b: torch.stack([a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1], a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
           a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]], 1), lambda a, b: torch.linalg.cross(a, b), (5, 3), (5, 3))  # fmt: skip

# -- sums in other orders ----------------------------------------------------------------------------------------------


def one_by_one(x: Any, axis: int = -1) -> Any:
    """A sum from left to right."""
    return np.take(np.add.accumulate(x, axis=axis), -1, axis=axis)


ORDERS: dict[str, Function] = {
    "NumPy": lambda x: x.sum(-1),
    "one after the other": one_by_one,
    "from the end": lambda x: one_by_one(x[..., ::-1]),
    "float64": lambda x: x.astype(float).sum(-1).astype(f32),
}
for size in (9, 300, 5000):
    for order, total in ORDERS.items():
        n, shape = f32(size), (3, size)
        mean: Function = lambda x, total=total, n=n: (total(x) / n)[..., None]  # noqa: E731
        var: Function = lambda x, total=total, n=n, mean=mean: total((x - mean(x)) ** 2) / (n - f32(1))  # noqa: E731
        lse: Function = lambda x, total=total: x.max(-1) + np.log(total(np.exp(x - x.max(-1, keepdims=True))))  # noqa: E731
        for name, ours, fused in (
            ("sum", total, lambda x: x.sum(-1)),
            ("mean", lambda x, mean=mean: mean(x)[..., 0], lambda x: x.mean(-1)),
            ("var", var, lambda x: x.var(-1)),
            ("std", lambda x, var=var: np.sqrt(var(x)), lambda x: x.std(-1)),
            ("norm", lambda x, total=total: np.sqrt(total(x * x)), lambda x: torch.linalg.vector_norm(x, dim=-1)),
            ("norm, 1", lambda x, total=total: total(abs(x)), lambda x: torch.linalg.vector_norm(x, 1, dim=-1)),
            ("logsumexp", lse, lambda x: torch.logsumexp(x, -1)),
            ("softmax", lambda x, lse=lse: np.exp(x - lse(x)[..., None]), lambda x: F.softmax(x, -1)),
            ("log_softmax", lambda x, lse=lse: x - lse(x)[..., None], lambda x: F.log_softmax(x, -1)),
            ("layer_norm", lambda x, mean=mean, var=var, n=n: (x - mean(x)) / np.sqrt(var(x)[..., None] * ((n - f32(1)) / n) + f32(1e-5)),
             lambda x: F.layer_norm(x, x.shape[-1:])),
            ("rms_norm", lambda x, total=total, n=n: x / np.sqrt((total(x * x) / n)[..., None] + f32(1e-5)),
             lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-5)),
            ("matmul", lambda x, total=total: total(x[:, None, :] * x[None, :, :]), lambda x: x @ x.T),
        ):  # fmt: skip
            scaled = KINDS if name not in ("norm",) else ("normal", "offset", "big", "zeros", "ties")
            pair(f"{name} of {size}", order, ours, fused, shape, kinds=scaled)
pair("cumsum", "NumPy", lambda x: np.cumsum(x, -1), lambda x: x.cumsum(-1), (3, 50))
pair("cumprod", "NumPy", lambda x: np.cumprod(np.tanh(x), -1), lambda x: torch.tanh(x).cumprod(-1), (3, 9))
pair(
    "prod",
    "NumPy, from the end",
    lambda x: np.multiply.accumulate(np.tanh(x)[..., ::-1], -1)[..., -1],
    lambda x: torch.tanh(x).prod(-1),
    (3, 9),
)
pair("logcumsumexp", "NumPy", lambda x: np.logaddexp.accumulate(x, -1), lambda x: x.logcumsumexp(-1), (3, 9))
pair("median", "NumPy", lambda x: np.median(x, -1), lambda x: x.median(-1).values, (3, 9))
pair("amax", "NumPy", lambda x: x.max(-1), lambda x: x.amax(-1))
pair("amin", "NumPy", lambda x: x.min(-1), lambda x: x.amin(-1))
pair("sort", "NumPy", lambda x: np.sort(x, -1), lambda x: x.sort(-1).values)
pair("trace", "NumPy", lambda x: np.trace(x), torch.trace, (6, 6))
pair(
    "quantile",
    "NumPy",
    lambda x: np.quantile(x.astype(float), 0.3, -1).astype(f32),
    lambda x: x.quantile(0.3, -1),
    (3, 9),
)
decomposed("std_mean", lambda x: ((x - x.mean(-1, keepdim=True)).square().sum(-1) / 6).sqrt() + x.sum(-1) / 7,
           lambda x: sum(torch.std_mean(x, -1)), kinds=("normal", "offset", "big"))  # fmt: skip

# -- products and convolutions -----------------------------------------------------------------------------------------


def shifted(x: Any, w: Any, total: str) -> Any:
    """A convolution as a sum over the places of the kernel."""
    where = np.ndindex(*w.shape[2:])
    sizes = [a - b + 1 for a, b in zip(x.shape[2:], w.shape[2:], strict=True)]
    cut: Function = lambda at: (..., *(slice(i, i + s) for i, s in zip(at, sizes, strict=True)))  # noqa: E731
    return sum(np.einsum(total, x[cut(at)], w[(..., *at)]) for at in where)


def unfolded(x: Tensor, w: Tensor) -> Tensor:
    """A convolution as a product with unfolded patches."""
    n, (o, _, h, v) = x.shape[0], w.shape
    y = w.reshape(o, -1) @ F.unfold(x, (h, v))
    return y.reshape(n, o, x.shape[2] - h + 1, x.shape[3] - v + 1)


decomposed("matmul", lambda a, b: (a[:, :, None] * b[None]).sum(1), torch.matmul, (4, 6), (6, 3))
decomposed("bmm", lambda a, b: torch.stack([x @ y for x, y in zip(a, b, strict=True)]), torch.bmm, (2, 4, 6), (2, 6, 3))
decomposed(
    "addmm",
    lambda c, a, b: c * 0.5 + 2 * (a @ b),
    lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2),
    (4, 3),
    (4, 6),
    (6, 3),
)
decomposed("linear", lambda x, w, b: (x[:, None] * w).sum(-1) + b, F.linear, (4, 6), (3, 6), (3,))
decomposed(
    "bilinear",
    lambda a, b, w: torch.stack([((a @ v) * b).sum(-1) for v in w], -1),
    F.bilinear,
    (4, 3),
    (4, 5),
    (2, 3, 5),
)
decomposed(
    "einsum",
    lambda a, b: (a[:, :, :, None] * b[:, None]).sum((0, 2)),
    lambda a, b: torch.einsum("bij,bjk->ik", a, b),
    (2, 3, 4),
    (2, 4, 5),
)
decomposed("outer", lambda a, b: a[:, None] * b, torch.outer, (4,), (5,))
decomposed("dot", lambda a, b: (a * b).sum(), torch.dot, (40,), (40,))
decomposed("mv", lambda a, b: (a * b).sum(-1), torch.mv, (4, 30), (30,))
decomposed("kron", lambda a, b: (a[:, None, :, None] * b[None, :, None]).reshape(6, 8), torch.kron, (2, 4), (3, 2))
pair(
    "conv1d",
    "NumPy, a product for each place",
    lambda x, w: shifted(x, w, "bit,oi->bot"),
    F.conv1d,
    (2, 3, 9),
    (4, 3, 3),
)
pair(
    "conv2d",
    "NumPy, a product for each place",
    lambda x, w: shifted(x, w, "bijk,oi->bojk"),
    F.conv2d,
    (2, 3, 6, 6),
    (4, 3, 3, 2),
)
pair(
    "conv3d",
    "NumPy, a product for each place",
    lambda x, w: shifted(x, w, "bijkl,oi->bojkl"),
    F.conv3d,
    (1, 2, 4, 4, 4),
    (3, 2, 2, 2, 2),
)
decomposed("conv2d", unfolded, F.conv2d, (2, 3, 6, 6), (4, 3, 3, 2))
decomposed(
    "conv2d, strided",
    lambda x, w: unfolded(F.pad(x, (1, 1, 1, 1)), w)[..., ::2, ::2],
    lambda x, w: F.conv2d(x, w, stride=2, padding=1),
    (2, 3, 6, 6),
    (4, 3, 3, 3),
)
decomposed(
    "conv2d, grouped",
    lambda x, w: torch.cat([unfolded(x[:, :2], w[:2]), unfolded(x[:, 2:], w[2:])], 1),
    lambda x, w: F.conv2d(x, w, groups=2),
    (2, 4, 5, 5),
    (4, 2, 3, 3),
)
decomposed(
    "conv_transpose2d",
    lambda x, w: unfolded(F.pad(x, (1, 1, 1, 1)), w.flip(2, 3).transpose(0, 1)),
    F.conv_transpose2d,
    (2, 3, 4, 4),
    (3, 2, 2, 2),
)
decomposed(
    "cdist", lambda a, b: (a[:, None] - b).square().sum(-1).sqrt(), torch.cdist, (4, 6), (5, 6), kinds=("normal", "big")
)
decomposed(
    "cosine_similarity",
    lambda a, b: (a * b).sum(1) / (a.square().sum(1).sqrt() * b.square().sum(1).sqrt()),
    F.cosine_similarity,
    (4, 6),
    (4, 6),
    kinds=("normal", "offset", "big"),
)
decomposed(
    "pairwise_distance",
    lambda a, b: (a - b + 1e-6).square().sum(-1).sqrt(),
    F.pairwise_distance,
    (4, 6),
    (4, 6),
    kinds=("normal", "big"),
)

# -- norms, pools, losses ----------------------------------------------------------------------------------------------


def normal(x: Tensor, axes: Any, eps: float = 1e-5) -> Tensor:
    """Normalised along axes, in elementary operations."""
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)


def own_softmax(x: Tensor) -> Tensor:
    """A softmax by way of the log-sum-exp."""
    top = x.max(-1, keepdim=True).values.detach()
    return torch.exp(x - top - torch.log(torch.exp(x - top).sum(-1, keepdim=True)))


LABELS = np.array([2, 0, 1, 1])
nll: Function = lambda x, y: -torch.log_softmax(x, 1)[torch.arange(4), torch.as_tensor(y)]  # noqa: E731
decomposed(
    "layer_norm", lambda x, w, b: normal(x, -1) * w + b, lambda x, w, b: F.layer_norm(x, (8,), w, b), (4, 8), (8,), (8,)
)
decomposed(
    "group_norm", lambda x: normal(x.reshape(3, 2, -1), -1).reshape(x.shape), lambda x: F.group_norm(x, 2), (3, 4, 5)
)
decomposed("instance_norm", lambda x: normal(x, -1), F.instance_norm, (3, 4, 6))
decomposed(
    "batch_norm",
    lambda x, w, b: normal(x, 0) * w + b,
    lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
    (6, 4),
    (4,),
    (4,),
)
pair(
    "batch_norm, evaluation",
    "NumPy",
    lambda x, m, v: (x - m) / np.sqrt(abs(v) + f32(1e-5)),
    lambda x, m, v: F.batch_norm(x, m, v.abs()),
    (6, 4),
    (4,),
    (4,),
    kinds=("normal", "offset", "big"),
)
decomposed(
    "rms_norm",
    lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt(),
    lambda x: F.rms_norm(x, (8,), eps=1e-5),
    (4, 8),
)
decomposed(
    "normalize", lambda x: x / x.square().sum(1, keepdim=True).sqrt(), F.normalize, kinds=("normal", "offset", "big")
)
decomposed("softmax", own_softmax, lambda x: F.softmax(x, -1))
decomposed("softmin", lambda x: own_softmax(-x), lambda x: F.softmin(x, -1))
decomposed("log_softmax", lambda x: x - x.logsumexp(-1, keepdim=True), lambda x: F.log_softmax(x, -1))
decomposed(
    "logsumexp",
    lambda x: torch.log(torch.exp(x - x.max(-1, keepdim=True).values.detach()).sum(-1)) + x.max(-1).values.detach(),
    lambda x: torch.logsumexp(x, -1),
)
decomposed("avg_pool1d", lambda x: (x[..., ::2] + x[..., 1::2]) / 2, lambda x: F.avg_pool1d(x, 2), (2, 3, 8))
decomposed("avg_pool2d", lambda x: x.reshape(2, 3, 3, 2, 2, 2).mean((3, 5)), lambda x: F.avg_pool2d(x, 2), (2, 3, 6, 4))
decomposed(
    "max_pool2d",
    lambda x: x.reshape(2, 3, 3, 2, 2, 2).amax((3, 5)),
    lambda x: F.max_pool2d(x, 2),
    (2, 3, 6, 4),
    kinds=("normal", "big"),
)
decomposed(
    "adaptive_avg_pool2d", lambda x: x.mean((2, 3), keepdim=True), lambda x: F.adaptive_avg_pool2d(x, 1), (2, 3, 6, 4)
)
decomposed(
    "interpolate, nearest", lambda x: x.repeat_interleave(2, -1), lambda x: F.interpolate(x, scale_factor=2), (2, 3, 5)
)
decomposed(
    "pad, reflect",
    lambda x: torch.cat([x[..., 1:3].flip(-1), x, x[..., -2:-1]], -1),
    lambda x: F.pad(x, (2, 1), "reflect"),
    (2, 3, 5),
)
decomposed(
    "pixel_shuffle",
    lambda x: x.reshape(1, 1, 2, 2, 3, 3).permute(0, 1, 4, 2, 5, 3).reshape(1, 1, 6, 6),
    lambda x: F.pixel_shuffle(x, 2),
    (1, 4, 3, 3),
)
decomposed(
    "embedding",
    lambda w: F.one_hot(torch.tensor([1, 4, 1, 0, 1]), 5).to(w.dtype) @ w,
    lambda w: F.embedding(torch.tensor([1, 4, 1, 0, 1]), w),
    (5, 3),
)
decomposed(
    "index_add",
    lambda x: F.one_hot(torch.tensor([1, 0, 1, 1]), 3).T.to(x.dtype) @ x,
    lambda x: torch.zeros(3, 7).index_add(0, torch.tensor([1, 0, 1, 1]), x),
)
decomposed(
    "scatter_add",
    lambda x: torch.stack([x[0] + x[3], x[1], x[2]]),
    lambda x: torch.zeros(3, 7).scatter_add(0, torch.tensor([0, 1, 2, 0])[:, None].expand(4, 7), x),
)
decomposed(
    "gather",
    lambda x: torch.stack([r[[3, 1, 1]] for r in x]),
    lambda x: x.gather(1, torch.tensor([3, 1, 1]).expand(4, 3)),
)
decomposed("roll", lambda x: torch.cat([x[:, -2:], x[:, :-2]], 1), lambda x: x.roll(2, 1))
decomposed("flip", lambda x: x[[3, 2, 1, 0]], lambda x: x.flip(0))
decomposed("tril", lambda x: x * torch.ones(4, 7).tril(), torch.tril)
decomposed("diff", lambda x: x[:, 1:] - x[:, :-1], torch.diff)
decomposed(
    "repeat_interleave", lambda x: x[:, :, None].expand(4, 7, 3).reshape(4, 21), lambda x: x.repeat_interleave(3, 1)
)
decomposed("unfold", lambda x: torch.stack([x[:, i : i + 3] for i in range(5)], 1), lambda x: x.unfold(1, 3, 1))
decomposed("mse_loss", lambda a, b: ((a - b) * (a - b)).sum() / 28, F.mse_loss, (4, 7), (4, 7))
decomposed("l1_loss", lambda a, b: (a - b).abs().sum() / 28, F.l1_loss, (4, 7), (4, 7))
decomposed(
    "smooth_l1_loss",
    lambda a, b: torch.where((a - b).abs() < 1, 0.5 * (a - b) ** 2, (a - b).abs() - 0.5).sum() / 28,
    F.smooth_l1_loss,
    (4, 7),
    (4, 7),
)
decomposed(
    "huber_loss",
    lambda a, b: torch.where((a - b).abs() < 1, 0.5 * (a - b) ** 2, (a - b).abs() - 0.5).mean(),
    F.huber_loss,
    (4, 7),
    (4, 7),
)
decomposed(
    "cross_entropy",
    lambda x, y: nll(x, y).sum() / 4,
    lambda x, y: F.cross_entropy(x, torch.as_tensor(y)),
    (4, 3),
    LABELS,
)
decomposed(
    "cross_entropy, sum",
    lambda x, y: nll(x, y).sum(),
    lambda x, y: F.cross_entropy(x, torch.as_tensor(y), reduction="sum"),
    (4, 3),
    LABELS,
)
decomposed(
    "cross_entropy, smoothed",
    lambda x, y: (0.9 * nll(x, y) - 0.1 * torch.log_softmax(x, 1).mean(1)).mean(),
    lambda x, y: F.cross_entropy(x, torch.as_tensor(y), label_smoothing=0.1),
    (4, 3),
    LABELS,
)
decomposed(
    "nll_loss",
    lambda x, y: -x[torch.arange(4), torch.as_tensor(y)].sum() / 4,
    lambda x, y: F.nll_loss(x, torch.as_tensor(y)),
    (4, 3),
    LABELS,
)
decomposed(
    "binary_cross_entropy_with_logits",
    lambda x, y: (softplus(x) - x * torch.sigmoid(y)).mean(),
    lambda x, y: F.binary_cross_entropy_with_logits(x, torch.sigmoid(y)),
    (4, 3),
    (4, 3),
)
# not on large numbers: torch's own log(1 + exp(−x)) is inf there, and the right value is not
decomposed(
    "soft_margin_loss",
    lambda x: softplus(-x).mean(),
    lambda x: F.soft_margin_loss(x, torch.ones(4, 3)),
    (4, 3),
    kinds=("normal", "offset", "zeros", "ties", "tiny"),
)
decomposed(
    "kl_div",
    lambda x, y: ((torch.log_softmax(y, 1) - x) * torch.softmax(y, 1)).sum() / 4,
    lambda x, y: F.kl_div(x, torch.log_softmax(y, 1), reduction="batchmean", log_target=True),
    (4, 3),
    (4, 3),
)
decomposed(
    "poisson_nll_loss",
    lambda x, y: (torch.exp(x) - y * x).mean(),
    F.poisson_nll_loss,
    (4, 3),
    (4, 3),
    kinds=("normal", "zeros", "ties", "tiny"),
)
decomposed(
    "gaussian_nll_loss",
    lambda x, y, v: 0.5 * (torch.log(v.abs() + 1) + (x - y) ** 2 / (v.abs() + 1)).mean(),
    lambda x, y, v: F.gaussian_nll_loss(x, y, v.abs() + 1),
    (4, 3),
    (4, 3),
    (4, 3),
)
decomposed(
    "triplet_margin_loss",
    lambda a, p, n: plus((a - p + 1e-6).norm(dim=1) - (a - n + 1e-6).norm(dim=1) + 1).sum() / 4,
    F.triplet_margin_loss,
    (4, 6),
    (4, 6),
    (4, 6),
    kinds=("normal", "big"),
)

# -- attention, recurrent layers, spectra, factorisations ----------------------------------------------------------------


def own_attention(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """One head after the other."""
    heads = [
        own_softmax((a / q.shape[-1] ** 0.5) @ b.T) @ c
        for a, b, c in zip(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), strict=True)
    ]
    return torch.stack(heads).unflatten(0, q.shape[:2])


def own_causal(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """Each position by itself, on what lies before it."""
    rows = [
        [own_softmax(a[i] @ b[: i + 1].T / 2.0) @ c[: i + 1] for i in range(len(a))]
        for a, b, c in zip(q, k, v, strict=True)
    ]
    return torch.stack([torch.stack(r) for r in rows])


def own_gru(x: Tensor, h: Tensor, w: Tensor, u: Tensor) -> Any:
    a, b = x @ w.T, h @ u.T
    r, z = sigmoid(a[:, :4] + b[:, :4]), sigmoid(a[:, 4:8] + b[:, 4:8])
    return z * h + (1 - z) * torch.tanh(a[:, 8:] + r * b[:, 8:])


def own_lstm(x: Tensor, h: Tensor, c: Tensor, w: Tensor, u: Tensor) -> Any:
    i, f, g, o = (x @ w.T + h @ u.T).split(4, 1)
    cell = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
    return sigmoid(o) * torch.tanh(cell)


decomposed(
    "scaled_dot_product_attention",
    own_attention,
    F.scaled_dot_product_attention,
    (2, 2, 5, 4),
    (2, 2, 6, 4),
    (2, 2, 6, 4),
)
decomposed(
    "scaled_dot_product_attention, causal",
    own_causal,
    lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    (2, 4, 4),
    (2, 4, 4),
    (2, 4, 4),
)
decomposed("gru_cell", own_gru, torch.gru_cell, (3, 5), (3, 4), (12, 5), (12, 4))
decomposed(
    "lstm_cell",
    own_lstm,
    lambda x, h, c, w, u: torch.lstm_cell(x, (h, c), w, u)[0],
    (3, 5),
    (3, 4),
    (3, 4),
    (16, 5),
    (16, 4),
)
decomposed(
    "rnn_tanh_cell",
    lambda x, h, w, u: torch.tanh(torch.cat([x, h], 1) @ torch.cat([w, u], 1).T),
    torch.rnn_tanh_cell,
    (3, 5),
    (3, 4),
    (4, 5),
    (4, 4),
)
pair("fft", "NumPy", lambda x: np.fft.fft(x).astype(np.complex64), torch.fft.fft, (3, 12))
pair("rfft", "NumPy", lambda x: np.fft.rfft(x).astype(np.complex64), torch.fft.rfft, (3, 12))
pair("irfft", "NumPy", lambda x: np.fft.irfft(x).astype(f32), lambda x: torch.fft.irfft(x), (3, 7))
pair("fft2", "NumPy", lambda x: np.fft.fft2(x).astype(np.complex64), torch.fft.fft2, (5, 6))
well: Function = lambda x: x @ np.swapaxes(x, -1, -2) + np.eye(5, dtype=f32) * (abs(x).max() + 1) ** 2  # noqa: E731
well_torch: Function = lambda x: x @ x.mT + torch.eye(5) * (x.abs().max() + 1) ** 2  # noqa: E731
for name, solver in (("inv", np.linalg.inv), ("det", np.linalg.det), ("cholesky", np.linalg.cholesky), ("eigvalsh", np.linalg.eigvalsh),
                   ("svdvals", lambda a: np.linalg.svd(a, compute_uv=False)), ("pinv", np.linalg.pinv), ("matrix_norm", np.linalg.norm)):  # fmt: skip
    pair(
        f"linalg.{name}",
        "NumPy",
        lambda x, f=solver: f(well(x)),
        lambda x, name=name: getattr(torch.linalg, name)(well_torch(x)),
        (5, 5),
        kinds=("normal", "zeros", "ties", "tiny"),
    )
pair(
    "linalg.solve",
    "NumPy",
    lambda x, b: np.linalg.solve(well(x), b),
    lambda x, b: torch.linalg.solve(well_torch(x), b),
    (5, 5),
    (5, 2),
    kinds=("normal", "zeros", "ties", "tiny"),
)

# -- another library ---------------------------------------------------------------------------------------------------


def of_library(name: str) -> list[Pair]:
    """The rows of `oracle.frameworks` in which a library agrees with torch, if it is installed: correct float32 by somebody else."""
    if libraries.missing(name):
        return []
    made = []
    for row in ROWS:
        if row.library == name and row.claim == AGREES and row.kinds and not row.steps:
            shapes = [v for _, v in row.inputs if isinstance(v, tuple)]
            sizes = {n: 4 - i % 2 for i, n in enumerate(named(shapes))}
            inputs = tuple(resolved(v, sizes, (2,)) if isinstance(v, tuple) else v for _, v in row.inputs)
            library = libraries.LIBRARIES[name]
            candidate = judging.ours(row)
            made.append(
                Pair(row.torch, f"{library.title}: {row.ours}", candidate, judging.theirs(row), inputs, row.kinds)
            )
    return made
