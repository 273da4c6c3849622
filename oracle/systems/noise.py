"""Rounding noise in any torch program: float64 that carries, at every operation below autograd, noise of float32's size.

What the noise moves is what a correct program may differ by (rule G). The program is an ordinary float32 one; a mode below
autograd sees all that it does, forward, backward and in the optimizer, and widens what it meets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from oracle.operations.dtypes import DTYPES
from oracle.operations.tape import ANY_ORDER, TINY, U
from oracle.systems import aten

# Unit roundoff and largest number of each dtype. A float64 tensor is a float32 one that was widened, unless marked.
UNITS = {torch.float32: U, torch.float16: DTYPES["float16"].rounding.unit, torch.bfloat16: 2.0**-8, torch.complex64: U}
WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
LEAST_HALF = DTYPES["float16"].least  # between two small numbers of float16, which keeps them
_NOISY = (torch.float64, torch.complex128)
_ONE = torch.ones((), dtype=torch.float64)  # to which torch adds in half the time that it takes with a number
_POOL_SIZE = 1 << 20


class Refused(RuntimeError):
    """The program does something that noise cannot follow; the message says what, and the way out."""


def mapped(f: Callable[[Any], Any], value: Any) -> Any:
    """f of each tensor in an argument or a result; lists and tuples of them, as foreach operations have, too."""
    if isinstance(value, Tensor):
        return f(value)
    if type(value) in (list, tuple):
        return type(value)([mapped(f, v) for v in value])
    return value


def tensors_of(*values: Any) -> Iterator[Tensor]:
    """The tensors in arguments."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) in (list, tuple):
            yield from tensors_of(*value)


def has_numbers(value: Any) -> TypeGuard[Tensor]:
    """Whether something is a tensor with numbers that a mode may look at and move. Tensors on the device "meta" have none, nor have
    the zeros without memory that torch makes where nothing flows, in gradients of higher orders: to read them ends the process.
    """
    if not isinstance(value, Tensor) or value.dtype not in _NOISY or not value.numel():
        return False
    return not value.is_meta and not value._is_zerotensor()


def widened(value: Any) -> Any:
    """A tensor of low precision in float64; anything else as it is."""
    if isinstance(value, Tensor) and value.dtype in WIDE:
        return _marked(value.to(WIDE[value.dtype]), UNITS.get(value.dtype, U))
    return value


def _narrowed(value: Any) -> Any:
    return value.to(torch.float32) if isinstance(value, Tensor) and value.dtype is torch.float64 else value


def _marked(value: Any, unit: float) -> Any:
    """A tensor that knows its unit roundoff, if it is another than float32's."""
    if unit > U and isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        value._unit = unit  # type: ignore[attr-defined]
    return value


@lru_cache(maxsize=1)
def _pool() -> npt.NDArray[np.float64]:
    """Uniform numbers in ±2, drawn once: the same seed gives the same noise. (NumPy cuts a piece out in a quarter of torch's time.)"""
    return _uniform((_POOL_SIZE,), 20240229).numpy()


def _uniform(shape: Any, seed: int) -> Tensor:
    """Uniform numbers in ±2, float64. They do not come from a generator of their own: for its sake torch imports its compiler."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        return torch.rand(shape, dtype=torch.float64) * 4 - 2
    finally:
        torch.default_generator.set_state(before)


class _Mode(TorchDispatchMode):
    """A mode below autograd."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would wrap every call into something that costs more than the call


class Rounding(_Mode):
    """The program runs in float64; every operation perturbs its operands by uniform noise in ±2u, and its result by ±u.

    ``seed=None``: no noise, the exact replica. ``unit`` is the unit roundoff u of the program. When the mode ends, tensors
    from outside that the program has written to, and gradients of leaves, are what they were: running statistics and
    parameters of a model stay as they are, and every replica starts from the same state.
    """

    def __init__(self, seed: int | None, unit: float = U) -> None:
        super().__init__()
        self.seed, self.unit = seed, unit
        _pool()  # drawn now, and not under a mode, which would round it
        self._cursor = 0 if seed is None else (seed * 7919 + 104729) % _POOL_SIZE
        self._before = Before()
        self._out = 1.0  # the unit of what is computed now, in units of ``unit``

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._before.restore()

    # -- noise -----------------------------------------------------------------------------------------------------

    def draw(self, shape: Any) -> Tensor:
        """Uniform noise in ±2, float64."""
        count = math.prod(shape)
        if count > _POOL_SIZE:
            block = _uniform(shape, self._cursor)
            self._cursor = (self._cursor + 7919) % _POOL_SIZE
            return block
        if self._cursor + count > _POOL_SIZE:  # an odd offset: two laps over the pool must not line up
            self._cursor = (self._cursor * 31 + 17) % (_POOL_SIZE - count + 1)
        start, self._cursor = self._cursor, self._cursor + count
        return torch.from_numpy(_pool()[start : self._cursor].reshape(shape))

    def rounded(self, value: Tensor, weight: float) -> Tensor:
        """``value`` with noise of ``weight`` · ±2u relative: t·(1 + e), not t + t·e, so that −∞ stays −∞."""
        return value * torch.add(_ONE, self.draw(value.shape), alpha=self.unit * weight)

    def underflown(self, exact: Tensor, value: Tensor) -> Tensor:
        """What is below the smallest normal number is kept or lost."""
        size = exact.abs()
        if size.min().item() >= TINY:  # nearly always
            return value
        small = size < TINY
        if bool(small.any()):
            value = torch.where(small & (self.draw(value.shape) < 0), 0.0, value)
        return value

    def counts(self, value: Tensor) -> bool:
        """A whole number without axes is exact: the number of a step, a size."""
        return value.dim() == 0 and value.dtype is torch.float64 and float(value.detach()).is_integer()

    def perturbed(self, value: Any, weight: float = 1.0) -> Any:
        """A tensor with noise; what is no number of the program as it is."""
        if not has_numbers(value) or self.counts(value):
            return value
        if value.is_complex():
            size = value.abs() * (self.unit * weight)
            return torch.complex(value.real + size * self.draw(value.shape), value.imag + size * self.draw(value.shape))
        value = self.underflown(value, self.rounded(value, weight))
        if weight * self.unit == UNITS[torch.float16] / 2:  # float16 has few small numbers
            value = value + self.draw(value.shape) * (LEAST_HALF / 4)
        return value

    def _operand(self, value: Any) -> Any:
        return self.perturbed(value)

    def _result(self, value: Any) -> Any:
        return self.perturbed(value, 0.5 * self._out)

    def any_order(self, name: str, func: Any, args: Any, kwargs: Any, outs: tuple[Any, ...]) -> tuple[Any, ...]:
        """A sum of k terms with the rounding of every order and blocking, see `ANY_ORDER`; a mean with that of rows that
        round alike, which up to 256 terms is more.
        """
        counts = aten.terms(name, args, outs)
        if counts is None or max(counts) <= 1:
            return outs
        sizes = aten.magnitudes(func, args, kwargs)
        return tuple(
            o if o is None or k <= 1 else self.roughened(o, m, self.weight(name, k))
            for o, m, k in zip(outs, sizes, counts, strict=False)
        )

    def weight(self, name: str, k: float) -> float:
        """How much noise a sum of k terms gets, in units of u Σ|terms|."""
        return max(ANY_ORDER * k, 0.5 * math.sqrt(k) if name in aten.MEANS else 0.0)

    def roughened(self, value: Tensor, size: Tensor, weight: float) -> Tensor:
        """``value`` with noise of ``weight`` · ±2u · ``size``."""
        noise = size * self.draw(value.shape) * (self.unit * weight)
        finite = not noise.numel() or _size(noise) < math.inf  # nearly always
        return value + (noise if finite else torch.where(torch.isfinite(noise), noise, 0.0))

    def in_norm(self, value: Any) -> Any:
        """Factorisations are backward stable in norm, not element by element; × √n/2."""
        if not has_numbers(value) or value.dim() < 2:
            return value
        size = value.abs().amax((-2, -1), True) * max(1.0, math.sqrt(max(value.shape[-2:])) / 2)
        return value + self.draw(value.shape) * size * self.unit

    def positions(self, op: aten.Operation, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Resizing computes positions in float32 too: a scale that is a little off."""
        given = dict(zip(op.arguments, args, strict=False)) | kwargs
        x = given.get("input", given.get("self", given.get("grad_output")))
        size = given.get("input_size") or x.shape
        for i, name in enumerate(n for n in op.arguments if n.startswith("scales")):
            scale = given.get(name) or given["output_size"][i] / size[2 + i]
            given[name] = scale * (1 + float(self.draw(())) * self.unit)
        return tuple(given[n] for n in op.positional), {k: v for k, v in given.items() if k not in op.positional}

    # -- one operation ---------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        op = aten.operation(func)
        tensors = list(tensors_of(*args, *kwargs.values()))
        for tensor in tensors:
            self._before.leaf(tensor)
            if tensor.layout is not torch.strided or tensor.is_quantized:
                raise Refused(f"{op.full} of a tensor with layout {tensor.layout} is not followed: make it dense first")
        if op.writes:
            self._before.written(op, args, kwargs)
        if op.draws:
            self._before.drawn(args, kwargs)
            return self._drawn(func, op, args, kwargs)
        unit = self.unit_of(tensors, kwargs.get("dtype"))
        if func.is_view:
            return mapped(lambda t: _marked(t, unit), func(*args, **kwargs))
        if kwargs.get("dtype") in WIDE:
            if op.name == "_to_copy" and torch._C._current_graph_task_id() != -1:
                return func(*args, **kwargs)  # the engine hands a gradient to a float32 leaf
            kwargs["dtype"] = WIDE[kwargs["dtype"]]
        out = self._computed(func, op, args, kwargs, unit)
        return mapped(lambda t: _marked(t, unit), out)

    def unit_of(self, tensors: list[Tensor], dtype: torch.dtype | None) -> float:
        """The unit roundoff of a result: it travels with tensors. A backward pass takes that of the least precise one, because
        gradients have the dtype of what they belong to; elsewhere torch promotes to the most precise one.
        """
        if dtype is not None:
            return max(UNITS.get(dtype, self.unit), self.unit)
        units = [
            getattr(t, "_unit", UNITS.get(t.dtype, self.unit))
            for t in tensors
            if t.dim() and (t.is_floating_point() or t.is_complex())
        ]
        which = max if torch._C._current_graph_task_id() != -1 else min
        return max(which(units, default=self.unit), self.unit)

    def _drawn(self, func: Any, op: aten.Operation, args: Any, kwargs: Any) -> Any:
        """Random numbers as the float32 program draws them, then widened. What is computed with them is computed here."""
        if op.name == "native_dropout":
            x, p, train = args
            _, mask = func(_narrowed(x), p, train)
            kept = 0.0 if p == 1 else 1 / (1 - p)
            return (widened(x) * mask * kept if train or train is None else widened(x)), mask
        if self.unit >= U and kwargs.get("dtype") is torch.float64:  # the dtype of something that was widened
            kwargs["dtype"] = torch.float32
        narrow = [mapped(_narrowed, a) for a in args]
        out = func(*narrow, **kwargs)
        for given, drawn, writes in zip(args, narrow, op.written, strict=False):
            if writes and given is not drawn:
                given.copy_(drawn)
        if op.name == "rrelu_with_noise":
            x, noise = mapped(widened, args[0]), mapped(widened, args[1])
            return torch.where(x < 0, x * noise, x) if args[4] else mapped(widened, out)
        if op.writes:
            return args[0] if op.written[0] else out
        return mapped(widened, out)

    def _computed(self, func: Any, op: aten.Operation, args: Any, kwargs: Any, unit: float) -> Any:
        if op.name == "_to_copy" and unit > self.unit and self.seed is not None:
            self._out = unit / self.unit
            return self._result(func(*mapped(widened, args), **kwargs))
        targets: dict[str, Any] = {}
        if op.writes:
            given = dict(zip(op.arguments, args, strict=False)) | kwargs
            targets = {n: given[n] for n, w in zip(op.arguments, op.written, strict=True) if w and n in given}
        wide = {n: mapped(widened, v) for n, v in targets.items()}
        args = tuple(wide[n] if n in wide else mapped(widened, a) for n, a in zip(op.arguments, args, strict=False))
        kwargs = {n: wide[n] if n in wide else mapped(widened, v) for n, v in kwargs.items()}
        self._out = unit / self.unit
        bare = any(t.is_meta for t in tensors_of(*args, *kwargs.values()))
        if self.seed is None or op.rounds_nothing(args) or bare:
            out = func(*args, **kwargs)
        else:
            out = self._noisy(func, op, args, kwargs)
        if not targets:
            return mapped(widened, out)
        return self._written_back(targets, wide, out)

    def _written_back(self, targets: dict[str, Any], wide: dict[str, Any], out: Any) -> Any:
        """What was written to a widened copy is put where it belongs, rounded to what that holds."""
        belongs: dict[int, Any] = {}
        for name, target in targets.items():
            for t, w in zip(tensors_of(target), tensors_of(wide[name]), strict=True):
                if t is not w:
                    t.copy_(w) if t.shape == w.shape else t.resize_(w.shape).copy_(w)
                    belongs[id(w)] = t
        return mapped(lambda o: belongs.get(id(o), o), out)

    def _noisy(self, func: Any, op: aten.Operation, args: Any, kwargs: Any) -> Any:
        parts = aten.apart(func, op.full)
        if parts is not None:
            with self._again():
                return parts(*args, **kwargs)
        if op.name.startswith("upsample_"):
            args, kwargs = self.positions(op, args, kwargs)
        if op.writes:
            return self._in_place(func, op, args, kwargs)
        if op.name.startswith(("linalg_", "_linalg_", "cholesky", "lu_", "triangular_")):
            args, kwargs = mapped(self.in_norm, args), mapped(self.in_norm, kwargs)
        args, kwargs = mapped(self._operand, args), mapped(self._operand, kwargs)
        out = func(*args, **kwargs)
        several = isinstance(out, list | tuple)
        outs = self.any_order(op.name, func, args, kwargs, tuple(out) if several else (out,))
        outs = tuple(mapped(self._result, o) for o in outs)
        return type(out)(outs) if type(out) in (list, tuple) else outs if several else outs[0]

    def _in_place(self, func: Any, op: aten.Operation, args: Any, kwargs: Any) -> Any:
        """The same where results are written into operands. A scatter leaves what it does not touch as it is."""
        is_written = dict(zip(op.arguments, op.written, strict=True))
        names = list(zip(op.arguments, args, strict=False))
        targets = [t for v in (*[a for n, a in names if is_written[n]], *[v for k, v in kwargs.items() if is_written[k]])
                   for t in tensors_of(v) if t.dtype in _NOISY]  # fmt: skip
        args = tuple(a if is_written[n] else mapped(self._operand, a) for n, a in names)
        kwargs = {k: v if is_written[k] else mapped(self._operand, v) for k, v in kwargs.items()}
        scatters = op.name in aten.SCATTERS
        if not scatters:
            for t in targets:
                t.copy_(self._operand(t))
        size = None
        if len(targets) == 1 and isinstance(args[0], Tensor):
            counts = aten.terms(op.name, args, (targets[0],))
            if counts is not None and counts[0] > 1:
                size = targets[0].abs() if args[0] is targets[0] else targets[0]
                factors = {k: size if v is targets[0] else aten.absolute(v) for k, v in kwargs.items()}
                size = size.clone()
                func(*(size if a is targets[0] else aten.absolute(a) for a in args),
                     **{k: size if v is targets[0] else abs(v) if k in ("alpha", "beta") else v for k, v in factors.items()})  # fmt: skip
        out = func(*args, **kwargs)
        if size is not None and counts is not None:
            targets[0].copy_(self.roughened(targets[0], size.abs(), self.weight(op.name, counts[0])))
        if not scatters:
            for t in targets:
                t.copy_(self._result(t))
        return out

    @contextmanager
    def _again(self) -> Iterator[None]:
        """The mode is on for what a fused operation is made of; nothing ends with it."""
        with _Nested(self):
            yield


class Operands(_Mode):
    """Noise for what is written out in float64 here, in steps, with nothing in place: at the operands of every operation, and of
    sums in any order. A third of the price of `Rounding`, which follows any program.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.noise = Rounding(seed)
        self.largest = 0.0  # of what has been an operand so far; inf also for what is no number

    def _perturbed(self, value: Any) -> Any:
        if not has_numbers(value):
            return value
        self.largest = max(self.largest, _size(value))
        return value.addcmul(value, self.noise.draw(value.shape), value=U)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = aten.operation(func)
        if func.is_view or op.writes or op.rounds_nothing(args):
            return func(*args, **kwargs)
        out = func(*(mapped(self._perturbed, a) for a in args), **kwargs)
        counts = aten.terms(op.name, args, (out,)) if isinstance(out, Tensor) else None
        if counts is None or counts[0] <= 1:
            return out
        (size,) = aten.magnitudes(func, args, kwargs)
        return self.noise.roughened(out, size, self.noise.weight(op.name, counts[0]))


def _size(value: Tensor) -> float:
    """The largest of the numbers, without its sign; inf where something is no number."""
    low, high = value.aminmax()
    size = max(-low.item(), high.item())
    return size if size == size else math.inf


class Largest(_Mode):
    """The largest number that a float64 program meets in all that it does: a program in float32 has none beyond its range."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            for value in tensors_of(*args, out):
                if has_numbers(value):
                    self.size = max(self.size, _size(value))
        return out


class _Nested(_Mode):
    """A mode within itself."""

    def __init__(self, outer: Rounding) -> None:
        super().__init__()
        self.outer = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.outer.__torch_dispatch__(func, types, args, kwargs)


class Before:
    """What the tensors that a program writes to were before, the gradients of leaves that it meets, and generators that it draws from."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[Tensor, Tensor]] = {}
        self._leaves: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._generators: dict[int, tuple[torch.Generator, Tensor]] = {}

    def leaf(self, tensor: Tensor) -> None:
        """A tensor is met; if it is a leaf, its gradient is kept."""
        if tensor.requires_grad and tensor.is_leaf and id(tensor) not in self._leaves:
            self._leaves[id(tensor)] = (tensor, tensor.grad)

    def drawn(self, args: Any, kwargs: Any) -> None:
        """An operation is about to draw, be it from a generator of the program's own."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Generator) and id(value) not in self._generators:
                self._generators[id(value)] = (value, value.get_state())

    def written(self, op: aten.Operation, args: Any, kwargs: Any) -> None:
        """An operation is about to write."""
        given = dict(zip(op.arguments, args, strict=False)) | kwargs
        for name, writes in zip(op.arguments, op.written, strict=True):
            for tensor in tensors_of(given.get(name)) if writes else ():
                if id(tensor) not in self._values:
                    self._values[id(tensor)] = (tensor, tensor.clone())

    def restore(self) -> None:
        """All as it was, the first write last."""
        with torch.no_grad():
            for tensor, value in reversed(self._values.values()):
                if tensor.shape == value.shape and not tensor.is_inference():
                    tensor.copy_(value)
        for tensor, grad in self._leaves.values():
            tensor.grad = grad
        for generator, state in self._generators.values():
            generator.set_state(state)
        self._values, self._leaves, self._generators = {}, {}, {}


class Plain(_Mode):
    """The program as it is; like `Rounding`, it leaves behind what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self._before = Before()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tensors_of(*args, *kwargs.values()):
            self._before.leaf(tensor)
        op = aten.operation(func)
        if op.writes:
            self._before.written(op, args, kwargs)
        if op.draws:
            self._before.drawn(args, kwargs)
        return func(*args, **kwargs)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._before.restore()


class Nothing(_Mode):
    """For programs that meet empty tensors: an exception, where torch would end the process."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = aten.operation(func).name
        if name in aten.DIES_OF_NOTHING and not all(t.numel() for t in tensors_of(*args)):
            raise RuntimeError(f"torch's {name} of an empty tensor would end the process")
        return func(*args, **(kwargs or {}))


class Widening(TorchFunctionMode):
    """Tensors from outside are float64 while the program runs with noise: torch looks at dtypes before an operation comes to
    `Rounding`, and wants them equal. A tensor is widened where the program first meets it, and is what it was afterwards.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not Tensor.data.__set__:  # type: ignore[attr-defined]
            for tensor in tensors_of(*args, *kwargs.values()):
                self._widen(tensor)
        if func in _WITH_OWN_EPS:
            args, kwargs = (), _with_eps(args, kwargs)
        return func(*args, **kwargs)

    def _widen(self, tensor: Tensor) -> None:
        with torch._C.DisableTorchFunction():
            if tensor.dtype not in WIDE or tensor._is_view() or tensor.is_inference() or not tensor.is_leaf:
                return
            if tensor.is_nested or tensor.layout is not torch.strided:
                return
            unit = UNITS.get(tensor.dtype, U)
            self._before.setdefault(id(tensor), (tensor, tensor.data))
            tensor.data = tensor.data.to(WIDE[tensor.dtype])
            _marked(tensor, unit)
            if tensor.grad is not None:
                tensor.grad = tensor.grad.to(tensor.dtype)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for tensor, value in self._before.values():
            tensor.grad = None  # `Before` puts back what it was
            tensor.data = value
            if hasattr(tensor, "_unit"):
                del tensor._unit
        self._before = {}


# What takes the eps of its input's dtype where none is given.
_WITH_OWN_EPS = (torch.rms_norm, torch.nn.functional.rms_norm)


def _with_eps(args: Any, kwargs: Any) -> dict[str, Any]:
    given: dict[str, Any] = dict(zip(("input", "normalized_shape", "weight", "eps"), args, strict=False)) | kwargs
    if given.get("eps") is None and current() is not None and current().unit >= U:  # type: ignore[union-attr]
        given["eps"] = 2 * getattr(given["input"], "_unit", U)
    return given


@contextmanager
def limits_of_float32() -> Iterator[None]:
    """``torch.finfo`` of float64 is that of float32: a program that asks for the eps of a tensor means its own."""
    real = torch.finfo
    own = {torch.float64: torch.float32, torch.complex128: torch.complex64}

    def finfo(dtype: torch.dtype | None = None) -> Any:
        return real() if dtype is None else real(own.get(dtype, dtype))

    torch.finfo = finfo  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.finfo = real  # type: ignore[misc]


class Refusing(TorchFunctionMode):
    """Refuses what noise would judge wrongly in silence: autocast looks at dtypes that are not the program's any more."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise Refused(
                "the program runs under torch.autocast, whose casts noise cannot follow: write the casts down, as in "
                "x.to(torch.bfloat16), or leave autocast out"
            )
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and (out.is_nested or out.layout is torch.jagged):
            raise Refused(
                "the program uses nested tensors, which noise cannot follow: pad them, or compare each by itself"
            )
        return out


@contextmanager
def ordinary_kernels() -> Iterator[None]:
    """Attention and transformer layers by way of operations that can be seen, instead of one fused kernel."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def current() -> Rounding | None:
    """The noise that is on, if any: for what a program has to do otherwise in float64."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    mode = _get_current_dispatch_mode()
    return mode if isinstance(mode, Rounding) else None
