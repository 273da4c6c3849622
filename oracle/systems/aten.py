"""What torch's operations below autograd do with numbers: which only move them, draw them, or add many of them up.

All names are exact: a prefix once exempted ``tanh``, ``gelu`` and ``index_add`` as if they moved elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations whose result has no bit that was not in an operand; a trailing _ and a leading _foreach_ do not count.
EXACT = _names("""
view _unsafe_view reshape _reshape_alias permute transpose t expand slice select unsqueeze squeeze clone detach alias
as_strided unbind split split_with_sizes unsafe_split unsafe_chunk chunk cat stack index index_select gather take
take_along_dim embedding zeros zeros_like ones ones_like empty empty_like empty_strided full full_like scalar_tensor new_zeros
new_ones new_empty new_empty_strided new_full arange linspace eye copy lift lift_fresh lift_fresh_copy _to_copy to where
masked_fill masked_select masked_scatter eq lt gt ge le ne equal argmax argmin is_nonzero item _local_scalar_dense scatter
flip roll threshold threshold_backward neg relu abs sign sgn max min amax amin aminmax maximum minimum fmax fmin
clamp clamp_min clamp_max hardtanh hardtanh_backward max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d
triu tril diagonal diag diag_embed diagonal_copy diagonal_scatter repeat fill zero set resize sort topk kthvalue median
nanmedian mode floor ceil round trunc isnan isinf isfinite logical_and logical_or logical_not logical_xor bitwise_and
bitwise_or bitwise_not bitwise_xor nonzero constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d
replication_pad2d replication_pad3d im2col unfold pixel_shuffle pixel_unshuffle upsample_nearest1d upsample_nearest2d
upsample_nearest3d copysign heaviside nan_to_num real imag conj _conj _conj_physical resolve_conj resolve_neg _neg_view
view_as_real view_as_complex complex select_backward slice_backward slice_scatter select_scatter as_strided_scatter
index_fill tril_indices triu_indices any all searchsorted bucketize unique _unique2 bincount histc channel_shuffle rot90
sym_size sym_stride is_same_size _has_compatible_shallow_copy_type frexp ldexp cummax cummin isin
""")  # fmt: skip

# What draws random numbers: as the float32 program draws them, the same in all replicas.
DRAWS = _names("""
bernoulli rand rand_like randn randn_like randint randint_like randperm uniform normal exponential log_normal cauchy geometric
random native_dropout multinomial rrelu_with_noise
""")  # fmt: skip

# Fused operations with long sums or saved results inside: taken apart, by torch's own decompositions unless OWN has one.
APART = _names("""
native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward native_batch_norm
_native_batch_norm_legit _native_batch_norm_legit_no_training native_batch_norm_backward _softmax _log_softmax
_softmax_backward_data _log_softmax_backward_data logsumexp linalg_vector_norm norm var std var_mean std_mean
nll_loss_forward nll_loss2d_forward mse_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits
_weight_norm_interface soft_margin_loss gelu gelu_backward
""")  # fmt: skip

# What ends the process, by a division by zero or worse, where a tensor is empty (torch 2.13; of 270 functions no other does).
DIES_OF_NOTHING = _names("_weight_norm_interface _weight_norm_interface_backward _pdist_forward _pdist_backward")

# What an operation writes to without saying so in its schema.
_SILENTLY = {"native_batch_norm": ("running_mean", "running_var")}

_PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "vdot": 0, "addmm": 1, "baddbmm": 1, "addmv": 1, "addbmm": 1}
_SUMS = _names("sum mean nansum trace avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d")
MEANS = _names("mean avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d")
SCATTERS = frozenset(
    ["index_add", "scatter_add", "index_put", "index_reduce", "scatter_reduce"]
)  # untouched elements stay what they are


@dataclass(frozen=True)
class Operation:
    """What the schema of an operation says, read once."""

    full: str  # native_layer_norm, add_, _foreach_mul
    name: str  # native_layer_norm, add, mul
    arguments: tuple[str, ...]
    positional: tuple[str, ...]
    written: tuple[bool, ...]
    moves: bool  # a view, or one that only moves elements
    draws: bool
    writes: bool

    def rounds_nothing(self, args: Sequence[Any]) -> bool:
        """Whether this call only moves elements: some do so by what they are asked for."""
        if self.name in ("index_reduce", "scatter_reduce"):
            return "amax" in args or "amin" in args
        if self.name == "index_put":
            return not (len(args) > 3 and args[3])
        return self.moves


@cache
def operation(func: Any) -> Operation:
    """The operation behind an overload."""
    schema = func._schema
    full = schema.name.split("::")[1]
    name = full.rstrip("_").removeprefix("_foreach_")
    written = tuple(
        (a.alias_info is not None and a.alias_info.is_write) or a.name in _SILENTLY.get(name, ())
        for a in schema.arguments
    )
    return Operation(
        full,
        name,
        tuple(a.name for a in schema.arguments),
        tuple(a.name for a in schema.arguments if not a.kwarg_only),
        written,
        moves(func, name),
        name in DRAWS,
        any(written),
    )


def moves(func: Any, name: str) -> bool:
    """Whether an operation rounds nothing: by its exact name, or because it is a view; only aten has others."""
    return bool(func.is_view) or name in EXACT or func.namespace != "aten"


def terms(name: str, args: Sequence[Any], outs: Sequence[Any]) -> list[float] | None:
    """How many terms each output of a sum of products has; None for what is no such operation."""
    if name in _SUMS:
        return [args[0].numel() / max(1, outs[0].numel())]
    if name in _PRODUCTS:
        return [args[_PRODUCTS[name]].shape[-1]]
    if name.startswith("upsample_") and "nearest" not in name:
        return [32]  # the weights are polynomials of positions, and round too
    if name == "cumsum":
        return [args[0].shape[args[1]] if args[0].dim() else 1]
    if name == "convolution":
        weight, transposed = args[1], args[6]
        return [weight.numel() / max(1, weight.shape[1 if transposed else 0])]
    if name == "convolution_backward":
        grad, weight = args[0], args[2]
        k = grad.numel() / max(1, grad.shape[1])
        return [weight.numel() / max(1, weight.shape[1]), k, k]
    if name in ("index_add", "scatter_add"):
        return [_most(args[2])]
    if name == "embedding_dense_backward":
        return [_most(args[1])]
    if name == "index_put":
        return [float(args[2].numel() / max(1, args[0][0].numel() if args[0].dim() > 1 else 1))]
    return None


def _most(index: Tensor) -> int:
    """How often the most frequent index occurs."""
    return int(torch.bincount(index.reshape(-1)).max()) if index.numel() else 1


def absolute(value: Any) -> Any:
    """|value| of what has terms: a sum of products of these is Σ|terms|."""
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        return value.abs()
    return value


def magnitudes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Σ|terms| of a sum of products: the same operation on absolute values, and on those of its factors."""
    if operation(func).name.startswith("upsample_bicubic"):  # some weights are negative
        out = func(*args, **kwargs)
        return (absolute(args[0]).amax((-2, -1), True).expand_as(out),)
    factors = {k: abs(v) if k in ("alpha", "beta") else absolute(v) for k, v in kwargs.items()}
    out = func(*(absolute(a) for a in args), **factors)
    return tuple(out) if isinstance(out, list | tuple) else (out,)


def _variance(kind: str) -> Callable[..., Any]:
    """By two passes, in operations of aten: torch's own decomposition goes through prims, where no noise falls."""

    def apart(
        x: Tensor,
        dim: Any = None,
        unbiased: bool | None = None,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> Any:
        if correction is None:
            correction = 0 if unbiased is False else 1
        if isinstance(dim, bool):  # var(x, unbiased), without a dim
            dim, correction = None, int(dim)
        dims = list(range(x.dim())) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
        count = math.prod(x.shape[i] for i in dims)
        mean = x.mean(dims, keepdim=True)
        centred = x - mean
        out = (centred * centred).sum(dims, keepdim=keepdim) / max(0, count - correction)
        if "std" in kind:
            out = out.sqrt()
        return (out, mean if keepdim else mean.squeeze(dims)) if "mean" in kind else out

    return apart


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    e = torch.exp(x - _top(x, dim))
    return e / e.sum(dim, keepdim=True)


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    shifted = x - _top(x, dim)
    return shifted - torch.exp(shifted).sum(dim, keepdim=True).log()


def _logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    dims = [dim] if isinstance(dim, int) else list(dim)
    top = x.amax(dims, keepdim=True) if x.numel() else x.sum(dims, keepdim=True)
    top = torch.where(top.abs() == math.inf, 0.0, top)  # a row of −∞ has the sum 0
    return torch.exp(x - top).sum(dims, keepdim=keepdim).log() + (top if keepdim else top.squeeze(dims))


def _top(x: Tensor, dim: int) -> Tensor:
    return x.amax(dim, keepdim=True) if x.numel() else x.sum(dim, keepdim=True)


def _softmax_backward(grad: Tensor, out: Tensor, dim: int, dtype: Any) -> Tensor:
    product = grad * out
    return product - out * product.sum(dim, keepdim=True)


def _log_softmax_backward(grad: Tensor, out: Tensor, dim: int, dtype: Any) -> Tensor:
    return grad - torch.exp(out) * grad.sum(dim, keepdim=True)


# The quickest of them are written out too: torch's go through layers of checks that cost more than the numbers.
OWN: dict[str, Callable[..., Any]] = {
    **{k: _variance(k) for k in ("var", "std", "var_mean", "std_mean")},
    "logsumexp": _logsumexp,
    "_softmax": _softmax,
    "_log_softmax": _log_softmax,
    "_softmax_backward_data": _softmax_backward,
    "_log_softmax_backward_data": _log_softmax_backward,
}


def apart(func: Any, full: str) -> Callable[..., Any] | None:
    """How a fused operation is taken apart; None for those that are not."""
    if full not in APART:
        return None
    return OWN.get(full) or _decompositions().get(func)


@cache
def _decompositions() -> Any:
    from torch._decomp import decomposition_table  # torch may be here without it, see `oracle.systems.eager`

    return decomposition_table
