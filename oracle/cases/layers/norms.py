"""Normalisation over the batch, and over the features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from oracle.cases.bounds import Fraction, Positive, require
from oracle.cases.layers.layer import Array, Check, Layer, Pass, Shape, Side, Site, Variant, given
from oracle.operations import norms
from oracle.operations.drawn import Draw, one_in
from oracle.operations.tape import Tape, Var

EPS = (None, None, 1e-5, 1e-3, 1e-2)
MOMENTA = (None, None, 0.1, 0.5, 0.0, 1.0)


class _Norm(Layer, frozen=True):
    """What both have in common: a weight and a bias, as wide as the input."""

    def parameters(self, width: int) -> dict[str, Shape]:
        return {"weight": (width,), "bias": (width,)}

    def start(self, name: str, drawn: Array, scale: float, keep: bool) -> Array:
        unit = 1.0 if name in ("weight", "running_var") else 0.0
        if keep:
            return np.full(drawn.shape, unit)
        return 0.1 + drawn**2 if name == "running_var" else unit + 0.5 * drawn

    def built(self, rng: np.random.RandomState, width: int) -> Iterator[tuple[str, Array]]:
        yield "weight", np.ones(width)
        yield "bias", np.zeros(width)
        if self.buffers(width):
            yield "running_mean", np.zeros(width)
            yield "running_var", np.ones(width)


class BatchNorm(_Norm, frozen=True):
    """``nn.BatchNorm1d``; None leaves the keyword out, so that the default is tested; ``frozen`` as for `Linear`."""

    eps: Positive | None = None
    momentum: Fraction | None = None
    frozen: bool = False

    chance: ClassVar[int] = 4
    called: ClassVar[str] = "BatchNorm1d"
    variants: ClassVar[Mapping[str, Variant]] = {
        "frozen": Variant(lambda layer: layer.frozen, lambda width, linears: (BatchNorm(frozen=True),))
    }

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        return n.nn.BatchNorm1d(width, **given(eps=self.eps, momentum=self.momentum))

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        names = [f"{path}.{n}" for n in ("weight", "bias", "running_mean", "running_var")]
        weight, bias, mean, var = (p.tensors[name] for name in names)
        eps = 1e-5 if self.eps is None else self.eps
        if not training:
            return norms.batch_norm_eval(p.tape, x, weight, bias, mean, var, eps=eps)
        out, batch_mean, batch_var = norms.batch_norm_and_statistics(p.tape, x, weight, bias, eps=eps)
        # a second micro-batch starts from the statistics that the first one left behind
        for name, old, fresh in zip(names[2:], (mean, var), (batch_mean, batch_var), strict=True):
            p.tensors[name] = self._moved(p.tape, old, fresh)
        return out

    def _moved(self, t: Tape, old: Var, fresh: Array) -> Var:
        m = 0.1 if self.momentum is None else self.momentum
        kept, taken = t.noisy(t.noisy(old.value) * (1 - m)), t.noisy(t.noisy(fresh) * m)
        return Var(t.coarse(kept, old) + t.coarse(taken, old), needs=False, rounding=old.rounding)

    def fits(self, check: Check, width: int, path: str, training: bool) -> int:
        where = f"model[{path}]"
        require(
            check.rows > 1 or not training, f"{where}: BatchNorm needs at least 2 rows in training, got {check.rows}"
        )
        return width

    def buffers(self, width: int) -> dict[str, Shape]:
        return {"running_mean": (width,), "running_var": (width,)}

    def trains(self, linears: Sequence[Layer]) -> bool:
        return not self.frozen

    def written_out(self, t: Any, module: Any) -> Callable[[Any], Any] | None:
        def forward(x: Any) -> Any:
            if module.training:
                return _normalised(t, module, x, 0)
            return (x - module.running_mean) * (
                1 / t.sqrt(module.running_var + module.eps)
            ) * module.weight + module.bias

        return forward

    @classmethod
    def possible(cls, at: Site) -> bool:
        return at.rows > 1 or not at.training

    @classmethod
    def drawn(cls, d: Draw, at: Site) -> tuple[Layer, int]:
        return cls(d.of(EPS), d.of(MOMENTA), one_in(d, 10)), at.width


class LayerNorm(_Norm, frozen=True):
    """``nn.LayerNorm1d``; None leaves the keyword out; ``frozen`` as for `Linear`."""

    eps: Positive | None = None
    frozen: bool = False

    chance: ClassVar[int] = 3
    called: ClassVar[str] = "LayerNorm1d"
    variants: ClassVar[Mapping[str, Variant]] = {
        "frozen": Variant(lambda layer: layer.frozen, lambda width, linears: (LayerNorm(frozen=True),))
    }

    def needle(self, n: Side, width: int, body: Callable[[str], Any]) -> Any:
        return n.nn.LayerNorm1d(width, **given(eps=self.eps))

    def torch(self, t: Side, width: int, body: Callable[[str], Any]) -> Any:
        return t.nn.LayerNorm(width, **given(eps=self.eps))

    def meaning(self, p: Pass, x: Var, path: str, training: bool) -> Var:
        eps = 1e-5 if self.eps is None else self.eps
        return norms.layer_norm(p.tape, x, p.tensors[f"{path}.weight"], p.tensors[f"{path}.bias"], eps=eps)

    def trains(self, linears: Sequence[Layer]) -> bool:
        return not self.frozen

    def written_out(self, t: Any, module: Any) -> Callable[[Any], Any] | None:
        return lambda x: _normalised(t, module, x, 1)

    @classmethod
    def drawn(cls, d: Draw, at: Site) -> tuple[Layer, int]:
        return cls(d.of(EPS), one_in(d, 10)), at.width


def _normalised(t: Any, module: Any, x: Any, axis: int) -> Any:
    """Normalisation along an axis, in torch's elementary operations."""
    n = x.shape[axis]
    if n == 1:
        # as in first order: the mean of a single number is that number, in every order; only x·inv − mean·inv rounds
        scaled = x * (1 / t.sqrt(0 * x + module.eps))
        return (scaled - scaled.view_as(scaled)) * module.weight + module.bias
    centred = x - x.sum(axis, keepdim=True) / n
    var = (centred * centred).sum(axis, keepdim=True) / n
    return centred * (1 / t.sqrt(var + module.eps)) * module.weight + module.bias
