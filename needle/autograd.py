"""Reverse-mode automatic differentiation: Tensor, Op, no_grad and the backward walk.

How it works. Every operation on Tensors computes its result at once and, if a gradient can flow through it,
notes its ``op`` and its ``inputs`` in the result. These notes form the graph. ``backward()`` visits the graph
from the newest node to the oldest (an input is always older than its result), and asks each op for its
*vector-Jacobian product*: given g, the gradient of the loss with respect to the op's result, what each input
contributes to. Contributions to the same tensor add up; what arrives at a leaf is its ``.grad``.

One rule, two modes. ``Op.vjp`` is written once, with operations that mean the same on ndarrays and on
Tensors. The plain walk calls it with ndarrays (fast, no graph); ``create_graph=True`` calls it with Tensors,
so that the gradient is itself differentiable.
"""

from __future__ import annotations

import gc
import itertools
import math
import operator
from contextvars import ContextVar
from functools import reduce, wraps
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from numpy.typing import DTypeLike, NDArray

    from needle.chain import Chain

    Array = NDArray[Any]
    Axes: TypeAlias = int | Sequence[int] | None
    _Function = TypeVar("_Function", bound=Callable[..., Any])

__all__ = [
    "CPUDevice",
    "Op",
    "Parameter",
    "Tensor",
    "TensorOp",
    "TensorTuple",
    "TensorTupleOp",
    "Value",
    "all_devices",
    "compute_gradient_of_variables",
    "cpu",
    "find_topo_sort",
    "no_grad",
    "sum_node_list",
]

_ndarray = np.ndarray
# Creation numbers: an input's is always smaller than its result's. From where Python makes a new int for each, so that
# what is kept of them (when data was last changed) takes the same memory in every step.
_next_number = itertools.count(1_000).__next__
_by_number = operator.attrgetter("_number")
_data = operator.attrgetter("cached_data")
_needs = operator.attrgetter("requires_grad")
_new = object.__new__
# For isinstance: ``a | b`` would be made anew at every call, for the price of three.
_numpy = np.ndarray, np.generic
_numbers = int, float
_integers = int, np.integer
_last_change: float = 0  # the creation number at which data that a graph may refer to has last been replaced
_tuples = tuple, list
_recording: ContextVar[bool] = ContextVar("needle.recording", default=True)
_modes_before: ContextVar[tuple[bool, ...]] = ContextVar("needle.modes_before", default=())
_is_recording = _recording.get


class _GradMode:
    """Switch graph recording on or off for a while; nests, and restores the mode on errors too.

    For this thread, or this task of asyncio, alone. Nothing is kept in ``self``, which several of them may share.
    """

    _mode: ClassVar[bool]

    def __enter__(self) -> Self:
        _modes_before.set((*_modes_before.get(), _is_recording()))
        _recording.set(self._mode)
        return self

    def __exit__(self, *exception: object) -> None:
        # A generator that is closed elsewhere than where it was begun finds nothing to restore.
        *before, mode = _modes_before.get() or (True,)
        _modes_before.set(tuple(before))
        _recording.set(mode)

    def __call__(self, function: _Function) -> _Function:
        """Decorate a function; of a generator or a coroutine each part that runs, and not what runs in between."""
        import inspect  # here, because importing needle should cost nothing

        wrapped: Any
        if inspect.isgeneratorfunction(function):

            @wraps(function)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                generator = function(*args, **kwargs)
                resume, given = generator.send, None
                try:
                    while True:
                        try:
                            with self:
                                made = resume(given)
                        except StopIteration as stop:
                            return stop.value
                        try:
                            resume, given = generator.send, (yield made)
                        except Exception as error:
                            resume, given = generator.throw, error
                finally:
                    with self:
                        generator.close()

        elif inspect.isasyncgenfunction(function):

            @wraps(function)
            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                generator = function(*args, **kwargs)
                resume, given = generator.asend, None
                try:
                    while True:
                        try:
                            with self:
                                made = await resume(given)
                        except StopAsyncIteration:
                            return
                        try:
                            resume, given = generator.asend, (yield made)
                        except Exception as error:
                            resume, given = generator.athrow, error
                finally:
                    with self:
                        await generator.aclose()

        elif inspect.iscoroutinefunction(function):

            @wraps(function)
            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

        else:

            @wraps(function)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return function(*args, **kwargs)

        return cast("_Function", wrapped)


class no_grad(_GradMode):
    """Inside, results are constants and keep no graph: a context manager and a decorator, also of generators and
    coroutines. Other threads, and other tasks of asyncio, go on recording.

    >>> x = Tensor([1.0, 2.0])
    >>> with no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """

    _mode = False


class _with_grad(_GradMode):
    _mode = True


# -------------------------------------------------------------------------------------------------------- ops


class Op:
    """An operation. A subclass says how to compute it and how gradients pass back through it.

    ``compute(*arrays)`` maps ndarrays to an ndarray (a tuple of them for a TensorTupleOp). The gradient is
    given in one of two ways:

    - ``vjp(g, y, needs, *xs)``, needle's own: g is the gradient of the result y, xs are the inputs; the
      answer is a tuple with one contribution per input, in the input's shape, or None where ``needs[i]`` is
      false. Called with ndarrays by the plain backward and with Tensors when the gradient must be
      differentiable. A contribution is g itself, a view, or an array that the rule has just made and that
      nobody else holds.
    - ``gradient(out_grad, node)``, the course's: Tensors in, a Tensor or a tuple of Tensors out;
      ``node.inputs`` are the inputs and ``node`` the result. Works in every mode too.

    ``reads_inputs`` and ``reads_result`` say whether the vjp looks at the numbers in its xs and y, or at no more than
    their shapes. Data that no vjp looks at is not kept until the backward pass by a chain of layers (chain.py), and may
    change until then: see ``looks_at``.
    """

    reads_inputs: bool = True
    reads_result: bool = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "vjp" in own or "gradient" in own or "gradient_as_tuple" in own:
            # Another rule than that of the base may look at more.
            cls.reads_inputs = own.get("reads_inputs", True)
            cls.reads_result = own.get("reads_result", True)
            if "looks_at" not in own:
                for base in cls.__mro__[1:]:
                    if "vjp" in vars(base):  # whose looks_at is of that rule
                        cls.looks_at = Op.looks_at  # type: ignore[method-assign]
                        break
                    if "looks_at" in vars(base):
                        break
            if "vjp" not in own:
                cls.vjp = _course.vjp  # type: ignore[method-assign]

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if k != "saved" and k[0] != "_")
        return f"{type(self).__name__}({settings})"

    def compute(self, *args: Any) -> Any:
        """Compute the result: ndarrays to an ndarray."""
        raise NotImplementedError(f"{type(self).__name__} must define compute(self, *arrays)")

    def vjp(self, g: Any, y: Any, needs: Sequence[bool], *xs: Any) -> tuple[Any, ...]:
        """Return one contribution per input; see the class."""
        raise NotImplementedError(
            f"{type(self).__name__} has no gradient: "
            "define vjp(self, g, y, needs, *xs) or gradient(self, out_grad, node)"
        )

    def looks_at(self, needs: Sequence[bool], tensors: bool) -> tuple[Sequence[bool], bool]:
        """Say of which inputs, and whether of the result, the rule reads the numbers; what it reads must be what it was.

        ``needs`` says which inputs need a gradient, ``tensors`` whether the rule is called with Tensors.
        """
        return [self.reads_inputs] * len(needs), self.reads_result

    def on(self, *xs: Any) -> Any:
        """Apply the op to ndarrays (gives an ndarray) or to Tensors (gives a node): what a vjp is written
        with.
        """
        return self(*xs) if isinstance(xs[0], Value) else self.compute(*xs)

    def __call__(self, *args: Any) -> Any:
        """Apply the op to Tensors."""
        raise NotImplementedError("derive from TensorOp or TensorTupleOp")

    def gradient(self, out_grad: Any, node: Any) -> Any:
        """Return the contribution of each input, as Tensors: a single one, or a tuple for several inputs."""
        contributions = self.vjp(out_grad, node, [True] * len(node.inputs), *node.inputs)
        contributions = tuple(_whole(c, x) for c, x in zip(contributions, node.inputs, strict=True))
        return contributions[0] if len(contributions) == 1 else contributions

    def gradient_as_tuple(self, out_grad: Any, node: Any) -> tuple[Any, ...]:
        """Return ``gradient(out_grad, node)`` as a tuple, whatever the op returns."""
        answer = self.gradient(out_grad, node)
        return tuple(answer) if isinstance(answer, tuple | list) else (answer,)


class TensorOp(Op):
    """An Op whose result is a Tensor."""

    def __call__(self, *args: Any) -> Tensor:
        """Apply the op to Tensors."""
        return Tensor.make_from_op(self, args)


class TensorTupleOp(Op):
    """An Op whose result is a TensorTuple."""

    def __call__(self, *args: Any) -> TensorTuple:
        """Apply the op to Tensors."""
        return TensorTuple.make_from_op(self, args)


class _Freed(Op):
    """Stands where the op of a node was, once backward has freed the graph. Holds nothing."""


_FREED = _Freed()


# ----------------------------------------------------------------------------------------------------- values


_OF_THE_GRAPH = {"op", "inputs", "grad", "_number", "_chain", "_changed"}


class _WhereFolded:
    """What ``op`` and ``inputs`` are on a Value that has none of its own: those of a leaf, unless it is a chain."""

    def __init__(self, name: str, of_a_leaf: Any) -> None:
        self.name, self.of_a_leaf = name, of_a_leaf

    def __get__(self, node: Value | None, owner: object = None) -> Any:
        if node is None or node._chain is None:
            return self.of_a_leaf
        node._chain.unfold(cast("Tensor", node))
        return vars(node)[self.name]


class Value:
    """A node of the graph: data, and how it came about."""

    op: Op | None = cast("Op | None", _WhereFolded("op", None))
    inputs: Sequence[Any] = cast("Sequence[Any]", _WhereFolded("inputs", ()))
    cached_data: Any
    requires_grad: bool = False
    grad: Any = None
    _number: float = 0  # 0 for a leaf; an input's is smaller than its result's
    _keeps_grad: bool = False
    # When the data was last replaced: a creation number. In a list, which all parameters of an optimizer share.
    _changed: list[float] = [0]  # noqa: RUF012 - never written into
    _chain: Chain | None = None  # of a result of several ops: see chain.py
    _data_type: ClassVar[type | None] = _ndarray  # what is the data as compute gives it; None: it is always converted

    def realize_cached_data(self) -> Any:
        """Return the data (always there already: needle computes eagerly)."""
        return self.cached_data

    def is_leaf(self) -> bool:
        """Say whether this was made by the user and not by an op."""
        return not self._number

    @classmethod
    def make_const(cls, data: Any, requires_grad: bool = False) -> Self:
        """Wrap data, without copying it, as a value that no op made."""
        value = _new(cls)
        value.cached_data = data
        value.requires_grad = requires_grad
        return value

    @classmethod
    def make_from_op(cls, op: Op, inputs: Sequence[Any]) -> Self:
        """Compute op(*inputs); keep the graph only if some input requires a gradient."""
        n = len(inputs)
        try:  # up to three are spelled out: to unpack an iterator into a call takes longer than the call
            if n == 2:
                a, b = inputs
                data = op.compute(a.cached_data, b.cached_data)
            elif n == 1:
                data = op.compute(inputs[0].cached_data)
            elif n == 3:
                a, b, c = inputs
                data = op.compute(a.cached_data, b.cached_data, c.cached_data)
            else:
                data = op.compute(*map(_data, inputs))
        except AttributeError:
            _refuse_other_than_tensors(op, inputs)
            raise
        value = _new(cls)
        # NumPy gives a scalar, not an array, where all operands have no dimensions.
        value.cached_data = data if type(data) is cls._data_type else cls._as_data(data)
        if _is_recording():
            for x in inputs:
                if x.requires_grad:
                    value.requires_grad = True
                    value.op = op
                    value.inputs = inputs
                    value._number = _next_number()
                    break
        return value

    @classmethod
    def _as_data(cls, data: Any) -> Any:
        return np.asarray(data)

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle and a deep copy keep: the numbers, and those of the gradient. The copy is a leaf: no graph."""
        state = {name: value for name, value in vars(self).items() if name not in _OF_THE_GRAPH}
        if self.grad is not None:
            state["grad"] = self.grad.detach()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        data = self.cached_data
        self.cached_data = tuple(map(_native, data)) if type(data) is tuple else _native(data)

    def __copy__(self) -> Self:
        if self._chain is not None:
            self._chain.unfold(cast("Tensor", self))  # its records serve one node alone
        value = _new(type(self))
        vars(value).update(vars(self))
        return value

    def retain_grad(self) -> None:
        """Keep ``.grad`` of this tensor in ``backward()`` although it is not a leaf."""
        if not self.requires_grad:
            raise RuntimeError("retain_grad: this tensor has requires_grad=False, so no gradient will ever reach it")
        self._keeps_grad = True


def _native(data: Any) -> Any:
    """The numbers in the dtype that NumPy itself has of this name: it is asked for by identity. What comes out of a pickle has
    another object, and what comes from another machine may have its bytes in another order.
    """
    own = _OWN[data.dtype.num]
    return data if data.dtype is own else data.astype(own)


def _real(dtype: DTypeLike, who: str = "Tensor") -> np.dtype[Any]:
    """NumPy's own object for a dtype of real numbers or bools; refuses every other."""
    asked = np.dtype(dtype)
    if asked.num not in _OWN:
        raise TypeError(f"{who} holds real numbers or bools, but got dtype {asked}")
    return _OWN[asked.num]


_OWN = {own.num: own for own in map(np.dtype, "?" + np.typecodes["AllInteger"] + np.typecodes["Float"])}


def _a_change() -> float:
    """Number a change of data: later than every node so far."""
    global _last_change
    _last_change = _next_number()
    return _last_change


def _refuse_other_than_tensors(op: Op, inputs: Sequence[Any]) -> None:
    for x in inputs:
        if not isinstance(x, Value):
            raise TypeError(
                f"{type(op).__name__} takes needle Tensors, but got {type(x).__name__}: wrap it in needle.Tensor(...)"
            ) from None


# Outside the class, where the course's method hides the name `tuple`.
_Arrays: TypeAlias = "tuple[Any, ...]"
_Tensors: TypeAlias = "tuple[Tensor, ...]"


class TensorTuple(Value):
    """Several Tensors as one value, the result of a TensorTupleOp."""

    cached_data: _Arrays
    _data_type = None

    @classmethod
    def _as_data(cls, data: Any) -> _Arrays:
        return tuple(np.asarray(a) for a in data)

    def __len__(self) -> int:
        return len(self.cached_data)

    def __getitem__(self, index: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for a tuple of {len(self)} tensors")
        return _ops.tuple_get_item(self, index)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def tuple(self) -> _Tensors:
        """Return the elements as a Python tuple."""
        return tuple(self)

    def __add__(self, other: TensorTuple) -> TensorTuple:
        if not isinstance(other, TensorTuple) or len(self) != len(other):
            return NotImplemented
        return _ops.make_tuple(*(a + b for a, b in zip(self, other, strict=True)))

    def __repr__(self) -> str:
        return f"needle.TensorTuple{self.tuple()!r}"

    def detach(self) -> TensorTuple:
        """Return the same data without the graph."""
        return TensorTuple.make_const(self.cached_data)


class Tensor(Value):
    """Tensor: array-like of any shape -> an array that remembers how it came about.

    ``array``: an ndarray, (nested) list or number, which is copied, or a Tensor, whose array is shared if the
    dtype is the same and copied otherwise. ``dtype=None`` keeps the dtype of the source. ``requires_grad`` is
    True unless said otherwise, also when the source is a Tensor. ``device`` is accepted for the course's
    sake.

    ``cached_data`` is the ndarray itself. ``grad`` is None until a ``backward()`` reaches this tensor.

    A gradient is that at the numbers with which the forward pass was computed. If ``t.data = …``, a step of an
    optimizer or ``load_state_dict`` replaces numbers that a gradient rule reads in between, ``backward()`` refuses.
    What is written into the array itself, ``t.numpy()[0] = …`` or ``t.cached_data = …``, nobody notices, here as in
    PyTorch: do not write there between a forward pass and its ``backward()``.

    >>> x = Tensor([3.0])
    >>> y = x * x + 1
    >>> y.backward()
    >>> x.grad
    needle.Tensor([6.])
    """

    cached_data: Array
    if TYPE_CHECKING:
        grad: Tensor | None

    # NumPy then leaves `ndarray * Tensor`, np.exp(Tensor) and np.sum(Tensor) to needle, instead of making an array of
    # objects or of bare numbers.
    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _dispatch.ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        return _dispatch.function(function, args, kwargs)

    def __init__(
        self,
        array: Any,
        *,
        device: CPUDevice | None = None,
        dtype: DTypeLike | None = None,
        requires_grad: bool = True,
        **kwargs: Any,
    ) -> None:
        if isinstance(array, Tensor):
            source = array.cached_data
            data = source if dtype is None or source.dtype == dtype else source.astype(dtype)
        else:
            data = np.array(array)
            if dtype is not None and data.dtype.kind in "fiub":  # and not a string, which may spell a number
                data = data.astype(dtype, copy=False)
        if data.dtype.kind not in "fiub":
            raise TypeError(f"Tensor holds real numbers or bools, but got dtype {data.dtype}: convert the data first")
        self.cached_data = _native(data)
        self.requires_grad = requires_grad

    # -- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.cached_data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype."""
        return self.cached_data.dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.cached_data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.cached_data.size

    @property
    def device(self) -> CPUDevice:
        """The device: always the CPU."""
        return cpu()

    @property
    def data(self) -> Tensor:
        """The same memory as a constant Tensor without graph. Assign a Tensor of equal shape and dtype to rebind; one
        that broadcasts to the shape is stored in it, as a copy.
        """
        return Tensor.make_const(self.cached_data)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"data must be set to a Tensor, but got {type(value).__name__}: wrap it in needle.Tensor(...)"
            )
        old, new = self.cached_data, value.cached_data
        if new.dtype != old.dtype:
            raise TypeError(
                f"data must keep its dtype {old.dtype}, but got {new.dtype}: "
                f"use needle.Tensor(value, dtype={str(old.dtype)!r})"
            )
        if new.shape != old.shape:
            try:
                new = np.broadcast_to(new, old.shape).copy()
            except ValueError:
                raise ValueError(
                    f"data must keep its shape {old.shape}, but got {new.shape}, which does not broadcast to it"
                ) from None
        self.cached_data = new
        self._changed = [_a_change()]

    def detach(self) -> Tensor:
        """Return the same memory as a constant Tensor without graph."""
        return Tensor.make_const(self.cached_data)

    def numpy(self) -> Array:
        """Return the ndarray itself, not a copy."""
        return self.cached_data

    def item(self) -> Any:
        """Return the only element as a Python number."""
        if self.cached_data.size != 1:
            raise ValueError(f"item() needs exactly one element, but the shape is {self.shape}")
        return self.cached_data.item()

    def tolist(self) -> Any:
        """Return the elements as a nested list of Python numbers, or as one where there are no dimensions."""
        return self.cached_data.tolist()

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self.cached_data, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        if not self.cached_data.ndim:
            raise TypeError("len() of a Tensor without dimensions")
        return len(self.cached_data)

    def __bool__(self) -> bool:
        if self.cached_data.size != 1:
            raise ValueError(
                f"bool() needs exactly one element, but the shape is {self.shape}: use .numpy().all() or .numpy().any()"
            )
        return bool(self.cached_data)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"an index must be an integer, but this Tensor has dtype {self.dtype}: use int(t)")
        return operator.index(self.item())

    def __repr__(self) -> str:
        data = self.cached_data
        # As NumPy does, where it leaves out elements.
        shape = f", shape={data.shape}" if data.size > np.get_printoptions()["threshold"] else ""
        dtype = "" if self.dtype == np.float64 else f", dtype={self.dtype}"
        graph = ", requires_grad=True" if self.requires_grad else ""
        numbers = np.array2string(data, prefix="needle.Tensor(", separator=", ")
        return f"needle.Tensor({numbers}{shape}{dtype}{graph})"

    def __str__(self) -> str:
        return str(self.cached_data)

    def __format__(self, spec: str) -> str:
        if not spec:
            return str(self)
        if self.cached_data.size != 1:
            raise TypeError(
                f"the format {spec!r} needs exactly one element, but the shape is {self.shape}: format .tolist() or "
                "single elements"
            )
        return format(self.item(), spec)

    # -- gradients

    def backward(
        self, out_grad: Tensor | None = None, *, retain_graph: bool = False, create_graph: bool = False
    ) -> None:
        """Compute the gradient of ``sum(self * out_grad)`` and store it in ``.grad``, overwriting what was
        there.

        ``out_grad`` has the shape of this tensor; None means ones. By default the gradients are constants, in
        the leaf's dtype, on every leaf that requires one (and where ``retain_grad()`` was called), and the
        graph is freed on the way. ``retain_graph=True`` keeps the graph for a second backward.
        ``create_graph=True`` keeps it and makes the gradients differentiable; such a gradient refers to the tensors
        that it was computed from, so set ``.grad = None`` of the leaves (``reset_grad()``), and of what
        ``retain_grad()`` was called on, when it is no longer needed.

        RuntimeError if there is no graph or an earlier backward freed it; ValueError if out_grad has another
        shape.

        >>> x = Tensor([2.0])
        >>> (x ** 3).backward(create_graph=True)
        >>> x.grad.backward()
        >>> x.grad
        needle.Tensor([12.])
        """
        if create_graph:
            with _with_grad():
                g = self._checked_out_grad(out_grad)
                _walk_tensors(self, g if out_grad is None else _apart(g))
        elif out_grad is None and self.requires_grad and not self.cached_data.ndim:  # the usual case
            _walk_arrays(self, np.array(1, self.cached_data.dtype), free=not retain_graph)
        else:
            _walk_arrays(self, self._checked_out_grad(out_grad).cached_data, free=not retain_graph)

    def _checked_out_grad(self, out_grad: Any) -> Tensor:
        if not self.requires_grad:
            raise RuntimeError(
                "backward: this tensor is a constant without a graph (requires_grad=False). Compute it from "
                "tensors with requires_grad=True, outside no_grad(); if it is a gradient, get it with "
                "backward(create_graph=True)"
            )
        data = self.cached_data
        if out_grad is None:
            return Tensor.make_const(np.array(1, data.dtype) if not data.ndim else np.ones(data.shape, data.dtype))
        if not isinstance(out_grad, Tensor):
            if not isinstance(out_grad, np.ndarray | np.generic | int | float):
                raise TypeError(f"backward: out_grad must be a Tensor, but got {type(out_grad).__name__}")
            out_grad = Tensor(out_grad, requires_grad=False)
        if out_grad.shape != data.shape:
            raise ValueError(
                f"backward: out_grad must have the shape {data.shape} of its tensor, but got {out_grad.shape}"
            )
        return cast("Tensor", _in_dtype_of(out_grad, data))

    # -- operators: a Tensor, an ndarray or a number on either side

    def __add__(self, other: Any) -> Tensor:
        other = _operand(other)
        if isinstance(other, Tensor):
            return _ops.add(self, other)
        return other if other is NotImplemented else _ops.add_scalar(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        other = _operand(other)
        if other is NotImplemented:
            return NotImplemented
        if isinstance(other, Tensor) or self.dtype.kind != "f":
            other = self._subtrahend(other)
        # -0.0 because x - 0 is x, also for x = -0; an int has no such zero.
        return self + (-other if isinstance(other, _signed) or other else -0.0)

    def __rsub__(self, other: Any) -> Tensor:
        if self.dtype.kind == "f":
            return (-self).__add__(other)
        other = self._beside(other)
        return other if other is NotImplemented else other - self

    def _subtrahend(self, other: Tensor | float) -> Any:
        """Turn a right operand into a Tensor whose negative, in its own dtype, is that in the dtype of the result."""
        if not isinstance(other, Tensor):
            return self._beside(other)
        mine, its = self.dtype, other.dtype
        if mine.kind == "f" and its.kind != "f":  # whole numbers have no -0
            other = _ops.cast(other, mine)
        elif its.kind in "ub" and mine is not its:
            other = _ops.cast(other, np.result_type(mine, its))
        elif its.kind == "b":
            raise TypeError("bools cannot be subtracted: compare them with !=, or convert them with .astype('int64')")
        return other

    def __mul__(self, other: Any) -> Tensor:
        other = _operand(other)
        if isinstance(other, Tensor):
            return _ops.multiply(self, other)
        return other if other is NotImplemented else _ops.mul_scalar(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        other = _operand(other)
        if isinstance(other, Tensor):
            return _ops.divide(self, other)
        return other if other is NotImplemented else _ops.divide_scalar(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        other = self._beside(other)
        return other if other is NotImplemented else _ops.divide(other, self)

    def __pow__(self, other: Any) -> Tensor:
        other = _operand(other)
        if isinstance(other, Tensor):
            return _ops.power(self, other)
        return other if other is NotImplemented else _ops.power_scalar(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        other = self._beside(other)
        return other if other is NotImplemented else _ops.power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        other = _operand(other)
        return _ops.matmul(self, other) if isinstance(other, Tensor) else NotImplemented

    def __rmatmul__(self, other: Any) -> Tensor:
        other = _operand(other)
        return _ops.matmul(other, self) if isinstance(other, Tensor) else NotImplemented

    def __neg__(self) -> Tensor:
        return _ops.negate(self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return _ops.absolute(self)

    def _beside(self, other: Any) -> Any:
        """Turn a left operand into a Tensor that does not change the dtype of the result."""
        other = _operand(other)
        if isinstance(other, Tensor) or other is NotImplemented:
            return other
        dtype = self.dtype
        if dtype.kind != "f":
            dtype = _ops._DEFAULT if isinstance(other, float) else np.result_type(dtype, other)
        return Tensor.make_const(np.asarray(other, dtype))

    # -- comparisons, of elements: a constant Tensor of bools. Where identity is meant, say `is`; a dict and a set do.

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return self._compared(np.equal, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return self._compared(np.not_equal, other)

    def __lt__(self, other: Any) -> Tensor:
        return self._compared(np.less, other)

    def __le__(self, other: Any) -> Tensor:
        return self._compared(np.less_equal, other)

    def __gt__(self, other: Any) -> Tensor:
        return self._compared(np.greater, other)

    def __ge__(self, other: Any) -> Tensor:
        return self._compared(np.greater_equal, other)

    __hash__ = Value.__hash__

    def _compared(self, how: np.ufunc, other: Any) -> Tensor:
        other = _operand(np.asarray(other) if isinstance(other, _tuples) else other)
        if other is NotImplemented:
            return cast("Tensor", other)
        other = other.cached_data if isinstance(other, Tensor) else other
        try:
            return Tensor.make_const(np.asarray(how(self.cached_data, other)))
        except ValueError:
            raise _ops._no_broadcast(how.__name__, self, other) from None

    # -- methods. `axis`, `keepdims`, `dtype` and `out` are for those who write np.sum(t), and for NumPy, which passes them.

    def sum(self, axes: Axes = None, *, axis: Axes = None, keepdims: bool = False, **of_numpy: None) -> Tensor:
        """Sum over the axes (None = all); the axes are dropped, or kept with size 1."""
        return self._reduced("sum", _ops.summation, axes, axis, keepdims, of_numpy)

    def _reduced(
        self,
        name: str,
        reduce: Callable[[Tensor, Axes], Tensor],
        axes: Axes,
        axis: Axes,
        keepdims: bool,
        of_numpy: dict[str, None],
    ) -> Tensor:
        if axes is not None and axis is not None:
            raise TypeError(f"{name}: give axes or axis, not both")
        for key, value in of_numpy.items():
            if key not in ("dtype", "out") or value is not None:
                raise TypeError(f"{name} of a Tensor takes axes (or axis) and keepdims, but got {key}={value!r}")
        axes = axis if axes is None else axes
        result = reduce(self, axes)
        return _ops.reshape(result, _ops._kept(self.shape, _ops._axes(axes, self.ndim, name))) if keepdims else result

    def mean(self, axes: Axes = None, *, axis: Axes = None, keepdims: bool = False, **of_numpy: None) -> Tensor:
        """Mean over the axes (None = all); the axes are dropped, or kept with size 1."""
        return self._reduced("mean", Tensor._mean, axes, axis, keepdims, of_numpy)

    def _mean(self, axes: Axes) -> Tensor:
        if not self.size:
            raise ValueError(f"mean needs at least one element, but the shape is {self.shape}")
        if self.dtype is _ops._HALF:  # whose sum may well be out of range where the mean is not
            return _ops.cast(_ops.cast(self, _ops._DEFAULT)._mean(axes), _ops._HALF)
        total = _ops.summation(self, axes)
        return total / (self.size // total.size)

    def max(self, axes: Axes = None, *, axis: Axes = None, keepdims: bool = False, **of_numpy: None) -> Tensor:
        """Largest element over the axes (None = all); the axes are dropped, or kept with size 1."""
        return self._reduced("max", _ops.amax, axes, axis, keepdims, of_numpy)

    def min(self, axes: Axes = None, *, axis: Axes = None, keepdims: bool = False, **of_numpy: None) -> Tensor:
        """Smallest element over the axes (None = all); the axes are dropped, or kept with size 1."""
        return self._reduced("min", _ops.amin, axes, axis, keepdims, of_numpy)

    def var(
        self,
        axes: Axes = None,
        *,
        axis: Axes = None,
        correction: float = 0,
        keepdims: bool = False,
        **of_numpy: Any,
    ) -> Tensor:
        """Variance over the axes (None = all); the axes are dropped, or kept with size 1.

        The sum of the squared deviations is divided by n - correction: by n, as in NumPy, unless told otherwise.
        (torch divides by n - 1.) ``ddof`` is NumPy's other name of the correction.
        """
        correction = of_numpy.pop("ddof", correction)
        return self._reduced("var", lambda x, over: _ops.var(x, over, correction), axes, axis, keepdims, of_numpy)

    def argmax(self, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
        """Where along the axis (None = in the flattened tensor) the largest element is: a constant Tensor of int64."""
        return _ops.argmax(self, axis, keepdims)

    def argmin(self, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
        """Where along the axis (None = in the flattened tensor) the smallest element is: a constant Tensor of int64."""
        return _ops.argmin(self, axis, keepdims)

    def abs(self) -> Tensor:
        """Absolute value, with gradient 0 at 0."""
        return _ops.absolute(self)

    def sqrt(self) -> Tensor:
        """Square root."""
        return _ops.sqrt(self)

    def clip(self, low: float | None = None, high: float | None = None) -> Tensor:
        """The elements, but at least low and at most high (None = no limit)."""
        return _ops.clip(self, low, high)

    def broadcast_to(self, shape: Sequence[int]) -> Tensor:
        """Repeat along new axes and axes of size 1 until the shape is reached."""
        return _ops.broadcast_to(self, shape)

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape: t.reshape((2, 3)) or t.reshape(2, 3); -1 is worked out."""
        return _ops.reshape(self, shape[0] if len(shape) == 1 else shape)

    def flatten(self, start: int = 0, end: int = -1) -> Tensor:
        """The axes from start to end, both included, as one; all of them unless told otherwise."""
        shape = self.shape or (1,)
        first, last = (_ops._axes(axis, len(shape), "flatten")[0] for axis in (start, end))
        if first > last:
            raise ValueError(f"flatten: axis start={start} comes after end={end} in the shape {self.shape}")
        return _ops.reshape(self, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))

    def clone(self) -> Tensor:
        """The same numbers in an array of their own; the gradient passes. ``detach().clone()`` is a constant."""
        return _ops.cast(self, self.dtype)

    def transpose(self, axes: Sequence[int] | None = None) -> Tensor:
        """Swap a pair of axes; None = the last two."""
        return _ops.transpose(self, axes)

    @property
    def T(self) -> Tensor:
        """The transposed matrix: (n, m) -> (m, n)."""
        if self.ndim > 2:
            raise ValueError(f"T needs at most 2 dimensions, but the shape is {self.shape}: use transpose((i, j))")
        return _ops.transpose(self) if self.ndim == 2 else self

    def matmul(self, other: Tensor) -> Tensor:
        """Matrix product: (..., n, k) @ (..., k, m) -> (..., n, m)."""
        return self @ other

    dot = matmul  # of matrices, as ndarray.dot: half the price of ``@`` there, and a rule may be called with either

    def astype(self, dtype: DTypeLike) -> Tensor:
        """Convert to another dtype; the gradient is converted back."""
        return _ops.cast(self, dtype)

    def __getitem__(self, index: Any) -> Tensor:
        return _ops.get_item(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "elements of a Tensor cannot be assigned, because gradients are those of the numbers that it was made with: "
            "write t = needle.where(mask, value, t) for a new Tensor, or, outside of any graph, change an array "
            "a = t.numpy().copy() and set t.data = needle.Tensor(a)"
        )

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))


class Parameter(Tensor):
    """A Tensor that a module learns; used as ``nn.Parameter``.

    ``p -= lr * p.grad`` gives the Parameter new numbers, in its own shape and dtype, under ``no_grad()``, and is refused
    while a graph is recorded. (Another Tensor has no such operators: for it, ``t -= x`` is ``t = t - x``.)

    >>> p = Parameter([1.0, 2.0])
    >>> with no_grad():
    ...     p -= 0.5
    >>> p
    nn.Parameter([0.5, 1.5], requires_grad=True)
    """

    def _update(self, symbol: str, result: Callable[[Any], Tensor], other: Any) -> Self:
        if _is_recording():
            raise RuntimeError(
                f"{symbol} would change a Parameter while a graph is recorded: do it under needle.no_grad(), "
                f"or write p = p {symbol[:-1]} … for a new Tensor"
            )
        new = result(other)
        if new is NotImplemented:
            return cast("Self", new)
        self.data = new if self.dtype.kind != "f" else new.astype(self.dtype)
        return self

    def __iadd__(self, other: Any) -> Self:
        return self._update("+=", self.__add__, other)

    def __isub__(self, other: Any) -> Self:
        return self._update("-=", self.__sub__, other)

    def __imul__(self, other: Any) -> Self:
        return self._update("*=", self.__mul__, other)

    def __itruediv__(self, other: Any) -> Self:
        return self._update("/=", self.__truediv__, other)

    def __ipow__(self, other: Any) -> Self:
        return self._update("**=", self.__pow__, other)

    def __imatmul__(self, other: Any) -> Self:
        return self._update("@=", self.__matmul__, other)

    def __repr__(self) -> str:
        return "nn.Parameter" + super().__repr__().removeprefix("needle.Tensor")


_signed = Tensor, float


def _integer(value: Any, what: str, least: int) -> int:
    """A whole number that is large enough; refuses everything else, naming ``what`` it is."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, got {what.split()[-1]}={value!r}") from None
    if whole < least:
        raise ValueError(f"{what} must be at least {least}, got {what.split()[-1]}={value!r}")
    return whole


def _operand(other: Any) -> Any:
    """Return a Tensor, a Python number, or NotImplemented.

    NumPy scalars become Python numbers: NumPy lets those adopt the dtype of the array, so that float32 stays
    float32.
    """
    if isinstance(other, Tensor):
        return other
    if isinstance(other, _numpy):
        if other.dtype.kind not in "fiub":
            return NotImplemented
        if not other.ndim:
            return other.item()
        # A copy, because a gradient rule may read it when its owner has long put something else there.
        nobody_writes = not other.flags.writeable and other.base is None
        return Tensor.make_const(_native(other if nobody_writes else other.copy()))
    return other if isinstance(other, _numbers) else NotImplemented


# --------------------------------------------------------------------------------------------------- backward


def _graph(root: Value, *, unfold: bool = True) -> list[Value]:
    """Return the nodes below root through which a gradient flows, oldest first, without the leaves."""
    seen = {root}
    nodes = [root] if root._number else []
    for node in nodes:  # which grows meanwhile
        chain = node._chain
        if chain is not None and unfold and node._number < _last_change:
            _refuse_changes([node], tensors=True)  # now, because unfolding computes what the chain has let go of
        if chain is not None and not unfold:
            inputs: Sequence[Value] = chain.sources
        elif node.op is _FREED:
            raise RuntimeError(
                "backward: the graph was already freed by an earlier backward; "
                "call that one with retain_graph=True, or compute the tensor again"
            )
        else:
            inputs = node.inputs
        for x in inputs:
            if x._number and x.requires_grad and x not in seen:
                seen.add(x)
                nodes.append(x)
    if len(nodes) > 2:
        nodes.sort(key=_by_number)
    else:  # often a model and its loss
        nodes.reverse()
    return nodes


def _refuse_changes(nodes: list[Value], tensors: bool) -> None:
    """Refuse to compute gradients at other numbers than the forward pass was computed with."""
    reads: list[tuple[Value, Op, Any]] = []
    for node in nodes:
        if node._number > _last_change:
            break
        if node._chain is not None:
            reads += [(node, *read) for read in node._chain.looks_at(tensors)]
            continue
        op, inputs = cast("Op", node.op), node.inputs
        of_inputs, of_result = op.looks_at([*map(_needs, inputs)], tensors)
        reads += [(node, op, x) for x, read in zip((*inputs, node), (*of_inputs, of_result), strict=True) if read]
    for node, op, x in reads:
        if x._changed[0] > node._number:
            what = f"{type(x).__name__} of shape {x.cached_data.shape}" if isinstance(x, Tensor) else "TensorTuple"
            raise RuntimeError(
                f"backward: the data of a {what} has changed since {type(op).__name__} computed with it, by a step of an "
                "optimizer, `.data = …` or load_state_dict, and the gradient would be right for neither: call backward() "
                "before the change, or compute the loss again after it"
            )


def _walk_arrays(root: Value, g: Any, free: bool) -> None:
    """Plain backward: ndarrays only. Frees each node's graph while walking, so that activations die early.

    ``shared`` holds the tensors whose adjoint is an array that others may hold; only what this walk alone holds is
    added to in place. Every ``.grad`` is set at the end, so that an error on the way leaves all of them as they were.
    """
    nodes = _graph(root, unfold=not free)
    if nodes and nodes[0]._number < _last_change:
        _refuse_changes(nodes, tensors=False)
    adjoints: dict[Value, Any] = {root: g}
    shared: set[Value] = {root}
    kept: list[tuple[Value, Any]] = []
    op: Any
    contributions: Any
    while nodes:
        node = nodes.pop()
        chain = node._chain
        op, inputs = (node.op, node.inputs) if chain is None else (None, ())
        if free:
            node.op, node.inputs, node._chain = _FREED, (), None
            if node.grad is not None:
                node.grad = None
        g = adjoints.pop(node, None)
        if g is None:
            continue
        shared.discard(node)  # or it would keep the node, and with it its data, until the end
        if type(g) is tuple:
            # As views, so that a rule which passes an element on is not taken to have made it.
            g = tuple((np.zeros_like(a) if c is None else c)[...] for c, a in zip(g, node.cached_data, strict=True))
        if node._keeps_grad:
            kept.append((node, g))
        if chain is not None:
            chain.backward(g, adjoints, shared)
            continue
        contributions = _contributions(op, inputs, [*map(_needs, inputs)], node, g)
        if not isinstance(contributions, _tuples) or len(contributions) != len(inputs):
            raise _not_one_each(op, inputs, contributions)
        for x, c in zip(inputs, contributions):  # noqa: B905 - strict costs as much as an operation on a small array
            if c is None or not x.requires_grad:
                continue
            data = x.cached_data
            # The usual case: the first contribution, an array of its own. The rest would do it too, but slower.
            if x not in adjoints and type(c) is _ndarray and c.base is None and c is not g and c.dtype is data.dtype:
                adjoints[x] = c
            else:
                _accumulate(adjoints, shared, x, c, g)
    for leaf in shared:
        adjoints[leaf] = adjoints[leaf].copy()
    for leaf, g in adjoints.items():
        leaf.grad = grad = _new(Tensor)
        grad.cached_data = g if g.flags.carray else g.copy()
    for node, g in kept:
        node.grad = (
            TensorTuple.make_const(tuple(a.copy() for a in g)) if type(g) is tuple else Tensor.make_const(g.copy())
        )


def _accumulate(adjoints: dict[Value, Any], shared: set[Value], x: Value, c: Any, g: Any) -> None:
    """Add a contribution to the adjoint of x: in place only where nobody else can hold the array."""
    data, before = x.cached_data, adjoints.get(x)
    if type(c) is not _ndarray or c.dtype is not data.dtype:
        if type(data) is tuple:
            adjoints[x] = c if before is None else _sum_of_tuples(before, c)
            return
        c = _in_dtype_of(np.asarray(c), data)
    fresh = c.base is None and c is not g
    if before is None:
        adjoints[x] = c
        if not fresh:
            shared.add(x)
    elif x not in shared and before.dtype is c.dtype:
        before += c
    elif fresh and before.dtype is c.dtype:
        c += before
        adjoints[x] = c
        shared.discard(x)
    else:
        adjoints[x] = np.asarray(before + c)
        shared.discard(x)


def _contributions(op: Op, inputs: Sequence[Any], needs: list[bool], node: Value, g: Any) -> Any:
    """Apply an op's gradient rule to arrays."""
    n, y = len(inputs), node.cached_data
    if n == 2:
        a, b = inputs
        return op.vjp(g, y, needs, a.cached_data, b.cached_data)
    if n == 1:
        return op.vjp(g, y, needs, inputs[0].cached_data)
    if n == 3:
        a, b, c = inputs
        return op.vjp(g, y, needs, a.cached_data, b.cached_data, c.cached_data)
    return op.vjp(g, y, needs, *map(_data, inputs))


def _not_one_each(op: Any, inputs: Sequence[Any], answer: Any) -> Exception:
    """The error of a gradient rule that does not answer with one gradient per input."""
    name = type(op).__name__
    if not isinstance(answer, _tuples):
        return TypeError(f"{name}.vjp must return a tuple with one gradient per input, but got {type(answer).__name__}")
    return ValueError(f"{name}.vjp must return one gradient per input: {len(inputs)}, but got {len(answer)}")


def _in_dtype_of(c: Any, data: Array) -> Any:
    """Convert a gradient to the dtype of its tensor; integer tensors take gradients as they come."""
    return c.astype(data.dtype) if data.dtype.kind == "f" and c.dtype != data.dtype else c


def _sum_of_tuples(a: Any, b: Any) -> tuple[Any, ...]:
    """Add two adjoints of a TensorTuple element by element, where None stands for zero."""
    return tuple(p if q is None else q if p is None else p + q for p, q in zip(a, b, strict=True))


def _whole(c: Any, x: Value) -> Any:
    """Return the adjoint of a TensorTuple as one: None becomes zeros."""
    if not isinstance(c, tuple):
        return c
    zeros = (Tensor.make_const(np.zeros_like(a)) for a in x.cached_data)
    return _ops.make_tuple(*(z if a is None else a for a, z in zip(c, zeros, strict=True)))


def _walk_tensors(root: Value, g: Any, everywhere: bool = False) -> None:
    """Differentiable backward: the same rules on Tensors. Keeps the graph and sets ``.grad`` of every leaf, and of
    inner nodes on request or ``everywhere``.
    """
    nodes = _graph(root)
    if nodes and nodes[0]._number < _last_change:
        _refuse_changes(nodes, tensors=True)
    adjoints: dict[Value, Any] = {root: g}
    while nodes:
        node = nodes.pop()
        g = adjoints.get(node)
        if g is None:
            continue
        g = adjoints[node] = _whole(g, node)
        op, inputs = cast("Op", node.op), node.inputs
        contributions = op.vjp(g, node, [*map(_needs, inputs)], *inputs)
        if not isinstance(contributions, _tuples) or len(contributions) != len(inputs):
            raise _not_one_each(op, inputs, contributions)
        for x, c in zip(inputs, contributions, strict=True):
            if c is None or not x.requires_grad:
                continue
            before = adjoints.get(x)
            if isinstance(x, TensorTuple):
                adjoints[x] = tuple(c) if before is None else _sum_of_tuples(before, tuple(c))
            else:
                c = _in_dtype_of(c, x.cached_data)
                adjoints[x] = c if before is None else sum_node_list([before, c])
    for node, g in adjoints.items():
        if everywhere or node._keeps_grad:
            node.grad = g
        elif node.op is None:
            node.grad = _alias(g)


def _apart(out_grad: Tensor) -> Tensor:
    """The same numbers in an array of their own, because gradients that are kept may be, or be computed from, it."""
    return out_grad * 1 if out_grad.requires_grad else Tensor.make_const(out_grad.cached_data.copy())


def _alias(value: Value) -> Any:
    """Another Value with the same data and the same place in the graph: a leaf's gradient is its own."""
    alias = object.__new__(type(value))
    alias.__dict__.update(value.__dict__)
    alias.__dict__.pop("grad", None)
    return alias


def sum_node_list(node_list: Sequence[Tensor]) -> Tensor:
    """Add up Tensors, without a needless zero at the start."""
    return reduce(operator.add, node_list)


def __getattr__(name: str) -> int:
    # Counted on demand, so that making a Tensor does not pay for it; type() because isinstance asks the objects.
    if name == "TENSOR_COUNTER":
        return sum(issubclass(type(thing), Value) for thing in gc.get_objects())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# At the end, because both need the names above; and the course looks for its names here.
from needle import course as _course  # noqa: E402
from needle import dispatch as _dispatch  # noqa: E402
from needle import ops as _ops  # noqa: E402
from needle.course import CPUDevice, all_devices, compute_gradient_of_variables, cpu, find_topo_sort  # noqa: E402
