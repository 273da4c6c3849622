"""Optimizers: SGD with dampened momentum, and Adam.

A step writes into a parameter's array only if nobody else refers to that array; otherwise the parameter gets
a new one. So whoever kept ``p.data`` or ``p.numpy()`` keeps the old numbers, as in the course, and the usual
step allocates nothing. Gradients are only read.

Small parameters lie side by side in one array, of which their own arrays are views (`_Run`): a step then costs a
few operations on long arrays instead of many on short ones, a fifth of the time for 400 small parameters.
"""

from __future__ import annotations

import math
import sys
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from needle.autograd import Parameter, Tensor, _a_change, _integer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["SGD", "Adam", "Optimizer"]

_add, _multiply, _subtract = np.add, np.multiply, np.subtract
_references = sys.getrefcount
# Elements of a block: four of the larger ones fit into a usual second-level cache. In between, an array for
# intermediate results, one block, is held to an eighth of what the parameters take.
_BLOCKS = 40_960, 131_072
_SMALL = 20_480  # elements of a run of several at most; a parameter that is larger gains nothing from company


class Optimizer:
    """Base of all optimizers: holds the parameters; a subclass defines ``step()``.

    ``params``: an iterable of Parameters (a generator too), each used once however often it occurs. A Tensor
    made by the user with requires_grad=True will do as well. ValueError if there are none; TypeError for
    anything else.
    """

    params: list[Tensor]
    _of_runs: ClassVar = {"_params", "_kept", "_tensors", "_views", "_held", "_holders", "_clock", "_runs", "_scratch"}
    # Names: of the settings, of the dicts by parameter of what is kept from step to step, and of those of counts.
    _hyper: ClassVar[tuple[str, ...]] = ()
    _states: ClassVar[tuple[str, ...]] = ()
    _counts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: Iterable[Tensor]) -> None:
        name = type(self).__name__
        if isinstance(params, Tensor):
            raise TypeError(f"{name}: params must be an iterable of Parameters, but got one Tensor: use [tensor]")
        if hasattr(params, "parameters"):
            raise TypeError(
                f"{name}: params must be Parameters, but got a {type(params).__name__}: pass its .parameters()"
            )
        if callable(params):
            raise TypeError(f"{name}: params must be Parameters, but got a function: call it, as in model.parameters()")
        try:
            given: list[Any] = list(params)
        except TypeError:
            raise TypeError(
                f"{name}: params must be an iterable of Parameters, but got {type(params).__name__}: "
                "pass model.parameters()"
            ) from None
        for p in given:
            if isinstance(p, dict):
                raise TypeError(
                    f"{name}: there are no parameter groups, but got a dict in params: make an optimizer for each group, "
                    f"as in [{name}(body.parameters(), lr=0.01), {name}(head.parameters(), lr=0.1)], and step each"
                )
            if not isinstance(p, Tensor):
                raise TypeError(
                    f"{name}: params must be Parameters, but got {type(p).__name__}: wrap an array in nn.Parameter(...)"
                )
        unique = list(dict.fromkeys(given))
        if not unique:
            raise ValueError(f"{name}: the list of parameters is empty; pass model.parameters()")
        for p in unique:
            if not p.is_leaf() or not (p.requires_grad or isinstance(p, Parameter)):
                raise TypeError(
                    f"{name}: params must be Parameters, but got a Tensor that "
                    f"{'an op made' if p.op else 'needs no gradient'}: wrap it in nn.Parameter(...)"
                )
            if p.dtype.kind != "f":
                raise TypeError(f"{name}: a parameter must have a floating dtype, but got {p.dtype}")
        self.params = unique
        self._scratch: dict[np.dtype[Any], Array] = {}
        self._block = min(max(_padded(sum(p.size for p in unique) // 8), _BLOCKS[0]), _BLOCKS[1])
        self._settings: tuple[float, ...] = ()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Without the runs: in a copy, what were views of one piece of memory are arrays by themselves."""
        return {name: value for name, value in vars(self).items() if name not in self._of_runs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._scratch = {}
        self._forget()

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        raise NotImplementedError(f"{type(self).__name__} must define step(self)")

    def reset_grad(self) -> None:
        """Set ``.grad`` of every parameter to None."""
        for p in self.params:
            p.grad = None

    def zero_grad(self) -> None:
        """Do what reset_grad does, by the name that it has in torch."""
        self.reset_grad()

    # -- what it has learned, to be kept and put back

    def state_dict(self) -> dict[str, Any]:
        """Return settings and states under flat names, as numbers and copies of arrays.

        ``"optimizer"`` is the name of the class and ``"params"`` the number of parameters; the settings have their own
        names; ``"u.3"`` is the state u of the fourth parameter, in its shape and dtype. A parameter that has not been
        updated yet has no state.

        >>> p = Parameter([1.0])
        >>> SGD([p], lr=0.5, momentum=0.5).state_dict()
        {'optimizer': 'SGD', 'params': 1, 'lr': 0.5, 'momentum': 0.5, 'weight_decay': 0.0}
        """
        self._has_state("state_dict")
        state: dict[str, Any] = {"optimizer": type(self).__name__, "params": len(self.params)}
        state |= {name: _plain(getattr(self, name)) for name in self._hyper}
        for of in (*self._counts, *self._states):
            kept = getattr(self, of)
            for i, p in enumerate(self.params):
                if p in kept:
                    value = kept[p]
                    # in the dtype of the parameter, as the next step would take it
                    array = getattr(value, "cached_data", value)
                    state[f"{of}.{i}"] = value if of in self._counts else np.array(array, p.dtype)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict()`` of an optimizer of the same kind and parameters has given; copies the arrays.

        KeyError if names are missing or unknown; ValueError if it is the state of another class or number of parameters,
        if an array has another shape or dtype than its parameter, or a setting makes no sense; TypeError for what is
        no dict, number or array. After an error nothing has been loaded.
        """
        self._loading(state)()

    def _loading(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Check a state; what this returns puts it in place, and cannot fail."""
        self._has_state("load_state_dict")
        name, what = type(self).__name__, f"{type(self).__name__}.load_state_dict"
        if not hasattr(state, "keys"):
            raise TypeError(
                f"{what} takes what state_dict() has returned, but got {type(state).__name__}; ndl.load reads a file"
            )
        arrays = {f"{of}.{i}": (of, i) for of in (*self._counts, *self._states) for i in range(len(self.params))}
        needed = ("optimizer", "params", *self._hyper)
        if "optimizer" in state and str(state["optimizer"]) != name:
            raise ValueError(f"{what}: this is the state of {state['optimizer']}, not of {name}")
        if "params" in state and _setting(state["params"], f"{what}: params") != len(self.params):
            raise ValueError(
                f"{what}: this is the state of {state['params']} parameters, but the optimizer has {len(self.params)}"
            )
        missing = [key for key in needed if key not in state]
        unknown = [key for key in state if key not in needed and key not in arrays]
        if missing or unknown:
            raise KeyError(f"{what}: missing {missing}, unknown {unknown}; the names must be those of state_dict()")
        settings = {key: _setting(state[key], f"{what}: {key}") for key in self._hyper}
        self._validate(*settings.values())
        kept: dict[str, dict[Tensor, Any]] = {of: {} for of in (*self._counts, *self._states)}
        for key, (of, i) in arrays.items():
            if key in state and of in self._counts:
                kept[of][self.params[i]] = _integer(_setting(state[key], f"{what}: {key}"), f"{what}: {key}", 1)
            elif key in state:
                value = np.array(getattr(state[key], "cached_data", state[key]))
                p = self.params[i]
                if value.shape != p.shape or value.dtype != p.dtype:
                    raise ValueError(
                        f"{what}: {key} must be as its parameter, {p.dtype} of shape {p.shape}, "
                        f"but got {value.dtype} of shape {value.shape}"
                    )
                kept[of][p] = Tensor.make_const(value)

        def put() -> None:
            for key, value in settings.items():
                setattr(self, key, value)
            for of, values in kept.items():
                getattr(self, of).clear()
                getattr(self, of).update(values)
            self._forget()

        return put

    def _has_state(self, what: str) -> None:
        if not self._hyper:
            raise NotImplementedError(f"{type(self).__name__} must define {what}(): needle cannot know what it keeps")

    def _validate(self, *settings: float) -> None:
        """Refuse settings that make no sense, given in the order of ``_hyper``."""

    def __repr__(self) -> str:
        n, numbers = len(self.params), sum(p.size for p in self.params)
        parts = [f"{n} parameter{'s' * (n != 1)} of {numbers:,} number{'s' * (numbers != 1)}"]
        parts += [f"{name}={getattr(self, name)!r}" for name in self._hyper]
        return f"{type(self).__name__}({', '.join(parts)})"

    def clip_grad_norm(self, max_norm: float = 0.25) -> float:
        """Scale all gradients by min(1, max_norm / (norm + 1e-6)) and return the norm from before, a Python
        float.

        The norm is that of all gradients taken together as one vector, accumulated in float64. ``p.grad`` is
        replaced where the factor is below 1, and never written into.
        """
        if not max_norm > 0:
            raise ValueError(f"clip_grad_norm: max_norm must be a positive number, got max_norm={max_norm}")
        params, gradients = self._gradients()
        squares = 0.0
        for g in gradients:
            wide = g.astype(np.float64).reshape(-1)
            squares += float(wide.dot(wide))
        norm = math.sqrt(squares)
        factor = max_norm / (norm + 1e-6)
        if not factor >= 1:  # also if it is nan, which then shows in every gradient, as in torch
            for p, g in zip(params, gradients, strict=True):
                # in float16 a small factor would be one of few digits, or 0
                scaled = g * factor if g.dtype != np.float16 else (g.astype(np.float32) * factor).astype(g.dtype)
                p.grad = Tensor.make_const(np.asarray(scaled))
        return norm

    def _gradients(self) -> tuple[list[Tensor], list[Array]]:
        """The parameters that have a gradient, and their gradients in their dtype; all are checked first."""
        params, gradients = [], []
        for p in self.params:
            grad = p.grad
            if grad is None:
                continue
            data = p.cached_data
            g = grad.cached_data if type(grad) is Tensor else None
            if g is None or g.dtype is not data.dtype or g.shape != data.shape:
                g = _converted_gradient(p, grad, type(self).__name__)
            params.append(p)
            gradients.append(g)
        return params, gradients

    # -- numbers, and the memory that an update works in

    def _set_numbers(self, *numbers: float) -> None:
        self._numbers = numbers
        self._scalars: dict[np.dtype[Any], list[Array]] = {}

    def _scalars_in(self, dtype: np.dtype[Any]) -> list[Array]:
        """The numbers, each rounded once, as arrays without dimensions: as operands half the price of numbers."""
        if dtype not in self._scalars:
            self._scalars[dtype] = [np.array(number, dtype) for number in self._numbers]
        return self._scalars[dtype]

    def _in_place(self, params: list[Tensor]) -> bool:
        """Say whether the runs are for these parameters, every array is where the last step has left it, and nobody else
        has come to hold one, a part of one, or a state.
        """
        # First, because the names below hold some of them too.
        if self._count_holders() != self._holders or len(params) != len(self._params):
            return False
        for tensor, view in zip(self._tensors, self._views):  # noqa: B905 - strict takes as long as the loop
            if tensor.cached_data is not view:
                return False
        for p, before in zip(params, self._params):  # noqa: B905
            if p is not before:
                return False
        for name, tensors in self._kept:
            state_of = getattr(self, name).get
            for p, before in zip(params, tensors):  # noqa: B905
                if state_of(p) is not before:
                    return False
        return True

    def _count_holders(self) -> list[int]:
        return [*map(_references, self._held)]

    def _forget(self) -> None:
        """Give up the runs; their arrays are left to whoever holds them."""
        self._params: list[Tensor] = []
        self._kept: list[tuple[str, list[Tensor]]] = []
        self._tensors: list[Tensor] = []
        self._views: list[Array] = []
        self._held: list[Any] = []
        self._holders: list[int] = []
        self._clock: list[float] = [0]  # when all of them were last changed: Value._changed
        self._runs: list[tuple[slice, _Run]] = []

    def _alike(self, params: list[Tensor]) -> Sequence[Any]:
        """What all parameters of a run have in common."""
        return [p.dtype for p in params]

    def _lay_out(self, params: list[Tensor]) -> None:
        """Split the parameters into runs: neighbours that are small and alike share one, others stay by themselves."""
        self._forget()
        name = type(self).__name__
        # All of them first: one may be refused.
        kept = [(of, [_state_of(p, getattr(self, of), f"{name}: {of}[p]") for p in params]) for of in self._states]
        alike = self._alike(params)
        starts: list[int] = []
        size = 0
        for i, p in enumerate(params):
            if starts and alike[i] == alike[i - 1] and size + p.size <= _SMALL:
                size += p.size
            else:
                starts.append(i)
                size = p.size
        places = [slice(*ends) for ends in pairwise([*starts, len(params)])]
        for place in places:  # before a run takes a part of it
            size = sum(p.size for p in params[place])
            alone = place.stop - place.start == 1
            self._reserve(params[place.start].dtype, min(_padded(size), self._block) if alone else 2 * _padded(size))
        for place in places:
            scratch = self._scratch[params[place.start].dtype]
            run = _Run(params[place], [tensors[place] for _, tensors in kept], scratch, self._block)
            self._runs.append((place, run))
            self._tensors += run.tensors
            self._views += run.views
            self._held += [*run.views, *run.owners]
        for of, tensors in kept:
            getattr(self, of).update(zip(params, tensors, strict=True))
            self._held += tensors
        for p in params:
            p._changed = self._clock
        self._params, self._kept = params, kept
        self._holders = self._count_holders()

    def _reserve(self, dtype: np.dtype[Any], size: int) -> None:
        """Have at least ``size`` elements for intermediate results, kept for the next step."""
        if dtype not in self._scratch or len(self._scratch[dtype]) < size:
            self._scratch[dtype] = _empty(size, dtype)


def _padded(size: int) -> int:
    """At least as many elements, of any dtype a multiple of 64 bytes."""
    return size + -size % 64


def _empty(size: int, dtype: np.dtype[Any]) -> Array:
    """A flat array at a multiple of 64 bytes: what a processor writes at once then lies in one line of the cache.

    NumPy itself sees to 16. An update on arrays in the second-level cache takes a tenth less time.
    """
    memory = np.empty(size * dtype.itemsize + 64, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64
    return memory[start : start + size * dtype.itemsize].view(dtype)


def _converted_gradient(p: Tensor, grad: Any, name: str) -> Array:
    """The gradient of p as an array in the dtype of p; refuses what does not fit."""
    if not isinstance(grad, Tensor):
        raise TypeError(f"{name}: p.grad must be a Tensor or None, but got {type(grad).__name__}")
    g, data = grad.cached_data, p.cached_data
    if g.shape != data.shape:
        raise ValueError(f"{name}: p.grad must have the shape {data.shape} of its parameter, but got {g.shape}")
    if g.dtype.kind not in "fiu":
        raise TypeError(f"{name}: p.grad must hold numbers, but got dtype {g.dtype}")
    return g.astype(data.dtype, copy=False)


def _writable(t: Tensor) -> Array:
    """The array of t for writing into; made anew first if anybody else holds it or it cannot be written."""
    # 2 references: the tensor's, and the argument of this very call.
    if _references(t.cached_data) > 2 or t.cached_data.base is not None or not t.cached_data.flags.carray:
        t.cached_data = t.cached_data.copy()
    return t.cached_data


def _state_of(p: Tensor, state: dict[Tensor, Tensor], what: str) -> Tensor:
    """The state of p, zeros at first, for a run to take over; honours what the user has put there."""
    if p not in state:
        return Tensor.make_const(np.broadcast_to(np.zeros(()), p.shape))  # takes no memory: it will be copied
    data = np.asarray(state[p])
    if data.shape != p.cached_data.shape:
        raise ValueError(f"{what} must have the shape {p.shape} of its parameter, but got {data.shape}")
    return Tensor.make_const(data)  # and will be copied too, into the dtype of p: the user's own is left as it is


class _Run:
    """Neighbouring parameters that are updated together, in blocks that stay in the cache.

    If there are several, they lie side by side in one piece of memory, and their gradients are gathered in another; a
    parameter by itself stays where it is. Each of their states has a piece of memory of its own. The blocks are right
    for as long as each of ``tensors`` has the array that it has in ``views``.
    """

    def __init__(self, params: list[Tensor], states: list[list[Tensor]], scratch: Array, block: int) -> None:
        self.dtype = scratch.dtype
        self.tensors = [*params, *chain.from_iterable(states)]
        size = sum(p.size for p in params)
        alone = len(params) == 1
        theta = _writable(params[0]).reshape(-1) if alone else _empty(size, scratch.dtype)
        flats = [theta, *(_empty(size, scratch.dtype) for _ in states)]
        self.owners = [flat.base for flat in flats]
        self.views = [view for flat in flats for view in _views(flat, params)]
        if alone:
            self.views[0] = params[0].cached_data
        for tensor, view in zip(self.tensors, self.views, strict=True):
            if tensor.cached_data is not view:
                view[...] = tensor.cached_data
                tensor.cached_data = view
        self._alone = alone
        if alone:
            parts = [slice(start, min(start + block, size)) for start in range(0, size, block)]
            self._parts = [([flat[part] for flat in flats], part, scratch[: part.stop - part.start]) for part in parts]
        else:
            self._places = _views(scratch, params)
            self._whole = [(*flats, scratch[:size], scratch[_padded(size) :][:size])]

    def blocks(self, gradients: list[Array]) -> list[tuple[Array, ...]]:
        """Parts of θ, of each state, of these gradients, and of an array for what comes in between."""
        if self._alone:
            g = gradients[0].reshape(-1)
            return [(*kept, g[part], d) for kept, part, d in self._parts]
        for view, gradient in zip(self._places, gradients):  # noqa: B905 - strict takes as long as a gradient
            view[...] = gradient
        return self._whole


def _views(flat: Array, params: list[Tensor]) -> list[Array]:
    """A view into ``flat`` for each parameter, in its shape."""
    ends = [*accumulate(p.size for p in params)]
    return [flat[end - p.size : end].reshape(p.shape) for p, end in zip(params, ends, strict=True)]


def _setting(value: Any, what: str) -> Any:
    """A number out of a state: itself, or out of an array without dimensions."""
    if isinstance(value, np.ndarray | np.generic) and not value.ndim:
        value = value.item()
    if not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number, but got {value!r}")
    return value


def _plain(setting: Any) -> Any:
    """A setting as a number: an array without dimensions and a Tensor are numbers too, which their owner may change."""
    return setting if isinstance(setting, int | float) else float(setting)


def _within(low: float, value: Any, high: float, *, open_low: bool = False) -> bool:
    """Say whether value is a number in [low, high), or in (low, high)."""
    try:
        return bool(low < value < high if open_low else low <= value < high)
    except (TypeError, ValueError):
        return False


class SGD(Optimizer):
    """Stochastic gradient descent with dampened momentum and weight decay.

    With the gradient g = dL/dθ of the loss L with respect to a parameter θ, one step is

        g' = g + λ θ              (weight_decay = λ)
        u  ← β u + (1 - β) g'     (momentum = β, u = 0 before the first step)
        θ  ← θ - α u              (lr = α)

    Term by term:

    - **The learning rate α.** -g points to where the loss falls fastest. A step goes α times as far in that
      direction as the gradient is long: too small an α learns slowly, too large an α overshoots the valley.
    - **The velocity u** is what θ actually moves along: not the gradient of this batch alone, but a *moving
      average* of the gradients so far. Written out, u after step t is (1 - β)(g'_t + β g'_(t-1) + β² g'_(t-2)
      + …): the newest gradient weighs most, and one from k steps ago β^k times as much. In effect it averages
      the last 1 / (1 - β) gradients: about 10 for β = 0.9.
    - **The momentum β** is what share of the old velocity survives a step, like a ball that rolls on. Where
      gradients agree from step to step the ball goes on at their size; where they point to and fro (the walls
      of a narrow valley, the noise of small batches) they cancel. β = 0 is plain gradient descent: u is g'
      itself.
    - **The factor (1 - β)**, the dampening, makes u an average: the weights (1 - β) β^k add up to 1, so u is
      as long as a gradient, and changing β does not call for another α. It applies from the very first step
      on: u starts at 0, so the first velocity is (1 - β) g', small, and it grows to full size over some 1 /
      (1 - β) steps. (PyTorch leaves the factor out by default, and with ``dampening`` leaves it out in the
      first step.)
    - **The weight decay λ** pulls every parameter towards 0. It is nothing but the gradient of a penalty:
      adding (λ/2) ‖θ‖² to the loss, where ‖θ‖² is the sum of θ_i², adds its derivative to the gradient, and
      the derivative of (λ/2) θ_i² is λ θ_i. Large weights thus cost something, and keep only what the data
      pays for. As a part of the gradient it goes *inside* the momentum, and is averaged like everything else.

    ``u`` maps each parameter to its velocity, a Tensor of its shape and dtype, from the parameter's first
    step on. It may be read, written into and replaced between steps; so may ``lr``, ``momentum`` and
    ``weight_decay``. Parameters without a gradient are skipped, velocity and all; gradients are only read;
    dtypes never change.

    ValueError if lr is negative or not finite, momentum not in [0, 1), weight_decay negative or not finite,
    or there are no parameters; TypeError for what is not a Parameter. On an error nothing has been updated.

    >>> from needle import nn
    >>> w = nn.Parameter([1.0])
    >>> sgd = SGD([w], lr=0.5, momentum=0.75)
    >>> for _ in range(2):
    ...     (w * 8).backward()      # the gradient is 8
    ...     sgd.step()
    ...     print(sgd.u[w], w.data)
    [2.] [0.]
    [3.5] [-1.75]
    """

    _hyper = ("lr", "momentum", "weight_decay")
    _states = ("u",)

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.01, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params)
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.u: dict[Tensor, Tensor] = {}
        self._check()

    def _validate(self, lr: float, momentum: float, weight_decay: float) -> None:  # type: ignore[override]
        if not _within(0, lr, math.inf):
            raise ValueError(f"SGD: lr must be finite and not negative, got lr={lr!r}")
        if not _within(0, momentum, 1):
            why = "; with 1 the velocity would stay 0 for ever" if momentum == 1 else ""
            raise ValueError(f"SGD: momentum must be in [0, 1), got momentum={momentum!r}{why}")
        if not _within(0, weight_decay, math.inf):
            raise ValueError(f"SGD: weight_decay must be finite and at least 0, got weight_decay={weight_decay!r}")

    def _check(self) -> None:
        """Refuse settings that make no sense."""
        settings = self.lr, self.momentum, self.weight_decay
        if settings == self._settings:
            return
        self._validate(*settings)
        lr, beta, decay = self._settings = (float(self.lr), float(self.momentum), float(self.weight_decay))
        self._set_numbers(lr, beta, 1 - beta, decay)

    def step(self) -> None:
        """Do one update of every parameter that has a gradient."""
        self._check()
        params, gradients = self._gradients()
        if not self._in_place(params):
            self._lay_out(params)
        self._clock[0] = _a_change()
        for place, run in self._runs:
            lr, beta, rest, decay = self._scalars_in(run.dtype)
            for theta, u, g, d in run.blocks(gradients[place]):
                if decay:
                    _multiply(theta, decay, d)
                    _add(g, d, d)
                    _multiply(d, rest, d)
                else:
                    _multiply(g, rest, d)
                _multiply(u, beta, u)
                _add(u, d, u)
                _multiply(u, lr, d)
                _subtract(theta, d, theta)


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015): steps scaled by running averages of the gradient and of its square.

    With g' = g + λ θ, t the number of steps that the parameter has made, this one included:

        m ← β1 m + (1 - β1) g'          v ← β2 v + (1 - β2) g'²
        θ ← θ - α (m / (1 - β1^t)) / (√(v / (1 - β2^t)) + ε)

    The divisors 1 - β^t correct for m and v having started at 0. ``t``, ``m`` and ``v`` are dicts by
    parameter. Equals ``torch.optim.Adam``. Errors and the rest of the behaviour as in SGD.
    """

    _hyper = ("lr", "beta1", "beta2", "eps", "weight_decay")
    _states = ("m", "v")
    _counts = ("t",)

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params)
        self.lr = lr
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.weight_decay = weight_decay
        self.t: dict[Tensor, int] = {}
        self._steps: list[int] = []
        self.m: dict[Tensor, Tensor] = {}
        self.v: dict[Tensor, Tensor] = {}
        self._check()

    def _validate(  # type: ignore[override]
        self, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
    ) -> None:
        if not _within(0, lr, math.inf):
            raise ValueError(f"Adam: lr must be finite and not negative, got lr={lr!r}")
        if not _within(0, eps, math.inf, open_low=True):
            raise ValueError(f"Adam: eps must be a positive finite number, got eps={eps!r}")
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            if not _within(0, value, 1):
                raise ValueError(f"Adam: {name} must be in [0, 1), got {name}={value!r}")
        if not _within(0, weight_decay, math.inf):
            raise ValueError(f"Adam: weight_decay must be finite and at least 0, got weight_decay={weight_decay!r}")

    def _check(self) -> None:
        settings = self.lr, self.beta1, self.beta2, self.eps, self.weight_decay
        if settings == self._settings:
            return
        self._validate(*settings)
        _, beta1, beta2, eps, decay = self._settings = tuple(map(float, settings))
        # (1 - β2) g'² may be in range where g'² is not. With a power of 2 in between nothing is rounded otherwise.
        rest2 = 1 - beta2
        shrink = 2.0 ** (math.frexp(rest2)[1] // 2)
        of_decay = (shrink, rest2 / shrink**2) if decay else ()
        self._set_numbers(beta1, 1 - beta1, beta2, rest2, eps, decay, *of_decay)

    def _alike(self, params: list[Tensor]) -> Sequence[Any]:
        return [(p.dtype, self.t.get(p)) for p in params]

    def step(self) -> None:
        """Do one update of every parameter that has a gradient."""
        self._check()
        params, gradients = self._gradients()
        steps = [self.t.get(p, 0) + 1 for p in params]
        if steps != self._steps or not self._in_place(params):
            self._lay_out(params)
        self._clock[0] = _a_change()
        lr, b1, b2, *_ = self._settings
        for place, run in self._runs:
            t = steps[place.start]
            beta1, rest1, beta2, rest2, eps, decay, *of_decay = self._scalars_in(run.dtype)
            rate, root = (np.array(number, run.dtype) for number in (lr / (1 - b1**t), math.sqrt(1 - b2**t)))
            for theta, m, v, g, d in run.blocks(gradients[place]):
                decayed = g  # g' takes the place of what comes in between, and is computed twice
                if decay:
                    _multiply(theta, decay, d)
                    decayed = _add(g, d, d)
                _multiply(m, beta1, m)
                _multiply(decayed, rest1, d)
                _add(m, d, m)
                if decay:
                    _multiply(theta, decay, d)
                    _add(g, d, d)
                _multiply(v, beta2, v)
                if decay:
                    shrink, rest2_grown = of_decay
                    _multiply(d, shrink, d)
                    _multiply(d, d, d)
                    _multiply(d, rest2_grown, d)
                else:
                    _multiply(g, rest2, d)
                    _multiply(d, g, d)
                _add(v, d, v)
                np.sqrt(v, d)
                np.divide(d, root, d)
                _add(d, eps, d)
                np.divide(m, d, d)
                _multiply(d, rate, d)
                _subtract(theta, d, theta)
        self.t.update(zip(params, steps, strict=True))
        self._steps = [t + 1 for t in steps]
