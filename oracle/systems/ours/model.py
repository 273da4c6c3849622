"""The model of a case in a needle, as a user would write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from oracle.cases import case as c
from oracle.cases.built import build_layers
from oracle.commands import CARRIED, ROOT
from oracle.operations import OPERATIONS

Array = npt.NDArray[Any]

_T = TypeVar("_T")

# A seed of NumPy's global generator, and what that gives next unless somebody has drawn from it: for what must not.
SEED = 7
NEXT = np.random.RandomState(SEED).bytes(8)

BESIDE = (CARRIED if CARRIED.is_dir() else ROOT) / "needle"


def once_per_package(find: Callable[[Any], _T]) -> Callable[[Any], _T]:
    """What is found out about a package, once. By identity: a package under test may be anything with the right names, and need
    not be hashable.
    """
    known: dict[int, tuple[Any, _T]] = {}  # the package too, so that no other one gets its id

    @wraps(find)
    def found(ndl: Any) -> _T:
        if id(ndl) not in known:
            known[id(ndl)] = ndl, find(ndl)
        return known[id(ndl)][1]

    return found


@once_per_package
def is_ours(ndl: Any) -> bool:
    """Whether it is the needle beside this oracle: whose tape rule OP can read, and which offers more than the course asks."""
    return Path(str(getattr(ndl, "__file__", ""))).resolve().parent == BESIDE


def is_foreign(folder: Path | None) -> bool:
    """Whether the needle in a folder is another one than ours, to be judged under the course's contract."""
    return folder is not None and (folder / "needle").resolve() != BESIDE


def array_of(value: Any) -> Array:
    """The ndarray of a Tensor, or of a plain array; a needle may compute it only now."""
    if not hasattr(value, "cached_data"):
        return np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    data = value.cached_data
    return np.asarray(value.realize_cached_data() if data is None else data)


def grad_of(tensor: Any) -> Any:
    """Its gradient; in the course there is no attribute before the first backward pass."""
    return getattr(tensor, "grad", None)


@dataclass
class NeedleModel:
    """A model built from a Case."""

    module: Any
    modules: dict[str, Any]  # by path
    eval_modules: list[Any]


# needle's layers with parameters of their own
_TYPED = {kind.called or name for name, kind in c.LAYERS.items() if kind.used and kind.example(1).parameters(1)}


class _InDtype:
    """``needle.nn``, its layers with parameters built in a dtype."""

    def __init__(self, nn: Any, dtype: str) -> None:
        self._nn, self._dtype = nn, dtype

    def __getattr__(self, name: str) -> Any:
        thing = getattr(self._nn, name)
        return partial(thing, dtype=self._dtype) if name in _TYPED else thing


class NeedleSide:
    """Where layers are built in a needle, see `oracle.cases.layers.Side`."""

    def __init__(self, ndl: Any, dtype: str = "float32") -> None:
        self.ndl, self.dtype = ndl, dtype
        self.nn = ndl.nn if dtype == "float32" else _InDtype(ndl.nn, dtype)

    def applied(self, function: Callable[..., Any], *parts: Any) -> Any:
        """A module of the user's own, as course code writes it."""

        class Applied(self.ndl.nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.parts = list(parts)

            def forward(self, x: Any) -> Any:
                return function(x, *self.parts)

        return Applied()

    def op(self, name: str, *operands: Any, **attributes: Any) -> Any:
        """An operation as its block calls it."""
        return OPERATIONS[name].needle(self.ndl, *operands, **attributes)

    def zeros(self, size: int) -> Any:
        """A Tensor of zeros."""
        return self.ndl.init.zeros(size, **({} if self.dtype == "float32" else {"dtype": self.dtype}))

    def either(self, name: str, otherwise: Callable[[], Any]) -> Any:
        """A layer that not every needle has."""
        kind = getattr(self.nn, name, None)
        return otherwise() if kind is None else kind()


def loss_with(ndl: Any, case: c.TrainCase | c.ProgramCase, out: Any, drawn: Any) -> tuple[Any, Any]:
    """The loss of an output beside a Tensor of its shape, and the cotangent that its backward pass starts from, or None."""
    if isinstance(case.loss, c.Cotangent):
        return out, drawn
    if isinstance(case.loss, c.WeightedSum):
        return (out * drawn).sum(), None
    if isinstance(case.loss, c.MSELoss):
        return ndl.nn.MSELoss()(out, drawn), None
    return ((out - drawn) ** 2).sum() / case.data.rows, None


def build(case: c.TrainCase | c.SecondOrderCase, ndl: Any) -> NeedleModel:
    """The model of a case as a user would write it."""
    typed = isinstance(case, c.TrainCase) and case.dtypes is not None
    side = NeedleSide(ndl, case.dtypes.model if typed else "float32")  # type: ignore[union-attr]
    made = build_layers(case, side, lambda layer, *about: layer.needle(side, *about), ndl.nn.Sequential)
    return NeedleModel(made.module, made.modules, made.quiet)
