"""BatchNorm and LayerNorm: statistics, gradients, what is left behind for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from oracle.trust.faults.chapter import Chapter, square
from oracle.trust.patches import Patch, around, compute, reading, vjp, wrap

fault = Chapter("layer")


def batch_norm(
    stats: Callable[[Any], tuple[Any, Any]] = lambda x: (x.mean(0), ((x - x.mean(0)) ** 2).mean(0)),
    inverse: Callable[[Any, float], Any] = lambda var, eps: 1 / np.sqrt(var + eps),
) -> Patch:
    """The normalisation of BatchNorm in training written out, for arrays."""

    def statistics(old: Any, self: Any, x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return old(self, x)
        mean, var = stats(x)
        return x - mean, inverse(var, self.eps), mean, var

    return around("ops.BatchNorm._statistics", statistics)


def layer_norm(
    stats: Callable[[Any], tuple[Any, Any]] = lambda x: (x.mean(-1, keepdims=True), x.var(-1, keepdims=True)),
    inverse: Callable[[Any, float], Any] = lambda var, eps: 1 / np.sqrt(var + eps),
) -> Patch:
    """The normalisation of LayerNorm written out, for arrays."""

    def normalised(old: Any, self: Any, x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return old(self, x)
        mean, var = stats(x)
        inv = inverse(var, self.eps)
        return (x - mean) * inv, inv

    return around("ops.LayerNorm._normalised", normalised)


def _norm_vjp(op: str, change: Callable[..., Any]) -> Patch:
    """dx of a norm: ``change(g, weight, xh, inv, mean)``, where ``mean`` averages over what is normalised."""
    axis = 0 if op == "BatchNorm" else -1

    def make(old: Any) -> Any:
        def patched(self: Any, g: Any, y: Any, needs: Any, x: Any, w: Any, b: Any) -> Any:
            right = old(self, g, y, needs, x, w, b)
            if not isinstance(x, np.ndarray) or right[0] is None:
                return right

            def mean(v: Any) -> Any:
                return v.mean(axis, keepdims=True)

            # in the widest of their dtypes, and in float32 at least, as needle does it
            wide = np.result_type(g, x, w, b, np.float32)
            x, g, w = (v.astype(wide, copy=False) for v in (x, g, w))
            centred = x - mean(x)
            inv = 1 / np.sqrt(mean(centred * centred) + self.eps)
            return change(g, w, centred * inv, inv, mean), *right[1:]

        return patched

    return reading(op) + wrap(f"ops.{op}.vjp", make)


def _last(t: Any, mean: Any) -> Any:
    return t - mean(t)


def running(change: Callable[..., Any]) -> Patch:
    """What BatchNorm1d leaves behind after a training batch: ``change(layer, x, old mean, old var)`` sets it anew."""

    def forward(old: Any, self: Any, x: Any) -> Any:
        before = self.running_mean.cached_data, self.running_var.cached_data
        y = old(self, x)
        change(self, x.cached_data, *before)
        return y

    return around("nn.BatchNorm1d.forward", forward)


def set_running(layer: Any, mean: Any, var: Any) -> None:
    layer.running_mean.cached_data = np.asarray(mean, np.float32)
    layer.running_var.cached_data = np.asarray(var, np.float32)


def _unbiased(self: Any, x: Any, mean: Any, var: Any) -> None:
    if self.training:
        m = self.momentum
        self.running_var.cached_data = np.asarray((1 - m) * var + m * x.var(0, ddof=1), np.float32)


def _as_if_training(old: Any, self: Any, x: Any) -> Any:
    before = self.training
    self.training = True
    try:
        return old(self, x) if len(x.shape) and x.shape[0] > 1 else _in_mode(old, self, x, before)
    finally:
        self.training = before


def _in_mode(old: Any, self: Any, x: Any, training: bool) -> Any:
    self.training = training
    return old(self, x)


def _without_update(old: Any, self: Any, x: Any) -> Any:
    before = self.running_mean.cached_data, self.running_var.cached_data
    y = old(self, x) if not self.training and x.shape[0] < 2 else _as_if_training(old, self, x)
    if not self.training:
        self.running_mean.cached_data, self.running_var.cached_data = before
    return y


def _evaluated(change: Callable[..., Any]) -> Patch:
    """BatchNorm1d in evaluation: ``change(x, mean, var, weight, bias, eps)``, Tensors all."""

    def forward(old: Any, self: Any, x: Any) -> Any:
        if self.training:
            return old(self, x)
        return change(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)

    return around("nn.BatchNorm1d.forward", forward)


def _updates_in_eval(self: Any, x: Any, mean: Any, var: Any) -> None:
    if not self.training:
        m = self.momentum
        set_running(self, (1 - m) * mean + m * x.mean(0), (1 - m) * var + m * x.var(0))


fault.controls["BatchNorm written out"] = batch_norm() + _norm_vjp(
    "BatchNorm", lambda g, w, xh, inv, mean: _last(g - xh * mean(g * xh), mean) * (inv * w)
)

fault.controls["LayerNorm written out"] = layer_norm() + _norm_vjp(
    "LayerNorm", lambda g, w, xh, inv, mean: _last(g * w - xh * mean(g * w * xh), mean) * inv
)

BN, LN = "BatchNorm", "LayerNorm"

RUNNING = "running statistics|buffer|BatchNorm"

fault(
    "bn-variance-unbiased",
    "the batch variance divides by n − 1",
    f"{BN} forward",
    batch_norm(lambda x: (x.mean(0), x.var(0, ddof=1))),
)
fault(
    "bn-mean-of-squares",
    "the variance is the mean of squares, not centred",
    f"{BN} forward",
    batch_norm(lambda x: (x.mean(0), (x * x).mean(0))),
)
fault(
    "bn-one-variance",
    "one variance for all columns",
    f"{BN} forward",
    batch_norm(lambda x: (x.mean(0), np.full_like(x[0], x.var(0).mean()))),
)
fault(
    "bn-wrong-axis",
    "statistics of rows where the batch is square",
    f"{BN} forward",
    batch_norm(lambda x: (x.mean(1), x.var(1)) if square(x) else (x.mean(0), x.var(0))),
)
fault(
    "bn-eps-outside", "1 / (√var + ε)", f"{BN} forward", batch_norm(inverse=lambda var, eps: 1 / (np.sqrt(var) + eps))
)
fault(
    "bn-not-centred",
    "the mean is not subtracted",
    f"{BN} forward",
    around("ops.BatchNorm._statistics", lambda old, self, x: (x, *old(self, x)[1:])),
)
fault("bn-no-bias", "the bias is left out", f"{BN} forward", compute("BatchNorm", lambda y, x, w, b: y - b))
fault(
    "bn-eval-batch-statistics",
    "evaluation uses the statistics of the batch",
    f"{BN} forward",
    around("nn.BatchNorm1d.forward", _without_update),
)
fault(
    "bn-train-running-statistics",
    "training normalises with the running statistics",
    f"{BN} forward",
    around("nn.BatchNorm1d.forward", lambda old, self, x: (old(self, x), _in_eval(old, self, x))[1]),
)
fault(
    "bn-eval-no-eps",
    "evaluation leaves ε out",
    f"{BN} forward",
    _evaluated(lambda x, m, v, w, b, eps: (x - m) * (w / v**0.5) + b),
)
fault(
    "bn-eval-no-mean",
    "evaluation does not subtract the mean",
    f"{BN} forward",
    _evaluated(lambda x, m, v, w, b, eps: x * (w / (v + eps) ** 0.5) + b),
)
fault(
    "bn-eval-no-weight",
    "evaluation leaves the weight out",
    f"{BN} forward",
    _evaluated(lambda x, m, v, w, b, eps: (x - m) / (v + eps) ** 0.5 + b),
)
fault(
    "bn-eval-no-root",
    "evaluation divides by the variance",
    f"{BN} forward",
    _evaluated(lambda x, m, v, w, b, eps: (x - m) * (w / (v + eps)) + b),
)
fault("bn-running-unbiased", "running_var takes the unbiased variance", RUNNING, running(_unbiased))
fault(
    "bn-momentum-swapped",
    "running = momentum · old + (1 − momentum) · new",
    RUNNING,
    running(
        lambda s, x, m, v: (
            set_running(s, s.momentum * m + (1 - s.momentum) * x.mean(0), s.momentum * v + (1 - s.momentum) * x.var(0))
            if s.training
            else None
        )
    ),
)
fault(
    "bn-running-replaced",
    "the running statistics are those of the last batch",
    RUNNING,
    running(lambda s, x, m, v: set_running(s, x.mean(0), x.var(0)) if s.training else None),
)
fault(
    "bn-running-never",
    "the running statistics stay as they are",
    RUNNING,
    running(lambda s, x, m, v: set_running(s, m, v)),
)
fault(
    "bn-running-mean-only",
    "running_var is not updated",
    RUNNING,
    running(lambda s, x, m, v: set_running(s, s.running_mean.cached_data, v)),
)
fault(
    "bn-running-std",
    "running_var averages standard deviations",
    RUNNING,
    running(
        lambda s, x, m, v: (
            set_running(s, s.running_mean.cached_data, (1 - s.momentum) * v + s.momentum * x.std(0))
            if s.training
            else None
        )
    ),
)
fault(
    "bn-updates-in-eval",
    "evaluation updates the running statistics",
    f"{RUNNING}|evaluation",
    running(_updates_in_eval),
)
fault(
    "bn-running-float64",
    "the running statistics become float64",
    RUNNING,
    running(lambda s, x, m, v: setattr(s.running_mean, "cached_data", s.running_mean.cached_data.astype(np.float64))),
)
fault(
    "bn-running-var-inverse",
    "running_var takes the variance plus ε",
    RUNNING,
    running(
        lambda s, x, m, v: (
            set_running(s, s.running_mean.cached_data, (1 - s.momentum) * v + s.momentum * (x.var(0) + s.eps))
            if s.training
            else None
        )
    ),
)
fault(
    "bn-backward-constant-statistics",
    "dx takes mean and variance for constants",
    f"{BN} backward",
    _norm_vjp("BatchNorm", lambda g, w, xh, inv, mean: g * (inv * w)),
)
fault(
    "bn-backward-constant-variance",
    "dx takes the variance for a constant",
    f"{BN} backward",
    _norm_vjp("BatchNorm", lambda g, w, xh, inv, mean: (g - mean(g)) * (inv * w)),
)
fault(
    "bn-backward-constant-mean",
    "dx takes the mean for a constant",
    f"{BN} backward",
    _norm_vjp("BatchNorm", lambda g, w, xh, inv, mean: (g - xh * mean(g * xh)) * (inv * w)),
)
fault(
    "bn-backward-no-weight",
    "dx lacks the weight",
    f"{BN} backward",
    _norm_vjp("BatchNorm", lambda g, w, xh, inv, mean: _last(g - xh * mean(g * xh), mean) * inv),
)
fault(
    "bn-backward-weight",
    "dγ lacks the normalised input",
    f"{BN} backward",
    vjp("BatchNorm", lambda r, g, y, x, w, b: (r[0], g.sum(0), r[2])),
)
fault(
    "bn-backward-weight-raw",
    "dγ sums g·x, not normalised",
    f"{BN} backward",
    vjp("BatchNorm", lambda r, g, y, x, w, b: (r[0], (g * x).sum(0), r[2])),
)
fault(
    "bn-backward-bias",
    "dβ is averaged over the batch",
    f"{BN} backward",
    vjp("BatchNorm", lambda r, g, y, x, w, b: (r[0], r[1], None if r[2] is None else r[2] / np.float32(len(x)))),
)
fault(
    "bn-default-momentum",
    "the default momentum is 0.9",
    RUNNING,
    wrap(
        "nn.BatchNorm1d.__init__",
        lambda old: lambda self, dim, eps=1e-5, momentum=0.9, **kw: old(self, dim, eps, momentum, **kw),
    ),
)
fault(
    "ln-variance-unbiased",
    "the variance of a row divides by d − 1",
    f"{LN} forward",
    layer_norm(
        lambda x: (
            x.mean(-1, keepdims=True),
            x.var(-1, keepdims=True) * np.float32(x.shape[-1] / max(1, x.shape[-1] - 1)),
        )
    ),
)
fault(
    "ln-wrong-axis",
    "columns are normalised where the batch is square",
    f"{LN} forward",
    layer_norm(
        lambda x: (
            (x.mean(0, keepdims=True), x.var(0, keepdims=True))
            if square(x)
            else (x.mean(-1, keepdims=True), x.var(-1, keepdims=True))
        )
    ),
)
fault(
    "ln-eps-outside", "1 / (√var + ε)", f"{LN} forward", layer_norm(inverse=lambda var, eps: 1 / (np.sqrt(var) + eps))
)
fault(
    "ln-whole-batch",
    "one mean and variance for the whole batch",
    f"{LN} forward",
    layer_norm(lambda x: (np.full_like(x[..., :1], x.mean()), np.full_like(x[..., :1], x.var()))),
)
fault(
    "ln-backward-constant-variance",
    "dx takes the variance for a constant",
    f"{LN} backward",
    _norm_vjp("LayerNorm", lambda g, w, xh, inv, mean: (g * w - mean(g * w)) * inv),
)
fault(
    "ln-backward-constant-mean",
    "dx takes the mean for a constant",
    f"{LN} backward",
    _norm_vjp("LayerNorm", lambda g, w, xh, inv, mean: (g * w - xh * mean(g * w * xh)) * inv),
)
fault(
    "ln-backward-weight-late",
    "dx multiplies with the weight at the end",
    f"{LN} backward",
    _norm_vjp("LayerNorm", lambda g, w, xh, inv, mean: _last(g - xh * mean(g * xh), mean) * (inv * w)),
)
fault(
    "ln-backward-weight",
    "dγ lacks the normalised input",
    f"{LN} backward",
    vjp(
        "LayerNorm", lambda r, g, y, x, w, b: (r[0], None if r[1] is None else g.reshape(-1, g.shape[-1]).sum(0), r[2])
    ),
)
fault(
    "ln-backward-bias",
    "dβ is the gradient of the last row",
    f"{LN} backward",
    vjp("LayerNorm", lambda r, g, y, x, w, b: (r[0], r[1], None if r[2] is None else g.reshape(-1, g.shape[-1])[-1])),
)


def _in_eval(old: Any, self: Any, x: Any) -> Any:
    before = self.training
    self.training = False
    try:
        return old(self, x)
    finally:
        self.training = before
