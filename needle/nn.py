"""Modules: layers with parameters, containers, and the softmax loss."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from needle import autograd, chain, init, ops
from needle.autograd import Parameter, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Self

    from numpy.typing import DTypeLike, NDArray

    from needle.chain import Ops

    Array = NDArray[Any]

__all__ = [
    "BatchNorm1d",
    "Conv",
    "Dropout",
    "Flatten",
    "Identity",
    "LayerNorm1d",
    "Linear",
    "MSELoss",
    "Module",
    "ModuleList",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "SoftmaxLoss",
    "Softplus",
    "Tanh",
]


# Another one whenever an attribute of a module is set or deleted, except for the mode: what a _Plan relies on.
_change = object()


class Module:
    """Base of layers and models. A subclass sets its parts as attributes and defines ``forward``.

    Parameters and modules are found in attributes and in dicts, lists and tuples in them, in the order in
    which they were set. A plain Tensor with requires_grad=False is a *buffer*: kept in ``state_dict()``, not
    learned.

    >>> model = Sequential(Linear(2, 3), ReLU(), Linear(3, 1, bias=False))
    >>> [name for name, _ in model.named_parameters()]
    ['0.weight', '0.bias', '2.weight']
    >>> model
    Sequential(
      (0): Linear(2, 3)
      (1): ReLU()
      (2): Linear(3, 1, bias=False)
    )
    """

    training: bool = True

    def __init__(self) -> None:
        self.training = True

    def __setattr__(self, name: str, value: Any) -> None:
        global _change
        if name != "training":
            _change = object()
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        global _change
        _change = object()
        object.__delattr__(self, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(self, ...)")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call ``forward``."""
        return self.forward(*args, **kwargs)

    # -- the tree

    def _members(self) -> Iterator[tuple[str, Any]]:
        yield from vars(self).items()

    def _walk(self, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
        """Every tensor and module below, this one included, by dotted name, each once."""
        stack: list[tuple[str, Any]] = [(prefix, self)]
        while stack:
            name, thing = stack.pop()
            if isinstance(thing, Module):
                parts = thing._members()
            elif isinstance(thing, dict):
                parts = ((str(key), value) for key, value in thing.items())
            elif isinstance(thing, list | tuple):
                parts = ((str(i), value) for i, value in enumerate(thing))
            elif isinstance(thing, Tensor):
                parts = iter(())
            else:
                continue
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            if isinstance(thing, Module | Tensor):
                yield name, thing
            stack += reversed([(f"{name}.{key}" if name else key, value) for key, value in parts])

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (dotted name, parameter), each parameter once, in the order in which they were set."""
        return ((name, thing) for name, thing in self._walk("", set()) if isinstance(thing, Parameter))

    def parameters(self) -> list[Parameter]:
        """Return the parameters of this module and all modules in it, each once."""
        return [p for _, p in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (dotted name, tensor) of what is kept but not learned, such as running statistics."""
        for name, thing in self._walk("", set()):
            if isinstance(thing, Tensor) and not isinstance(thing, Parameter) and not thing.requires_grad:
                yield name, thing

    def buffers(self) -> list[Tensor]:
        """Return what is kept but not learned, such as running statistics."""
        return [b for _, b in self.named_buffers()]

    def modules_in(self) -> list[Module]:
        """Return this module and every module in it, each once."""
        return [thing for _, thing in self._walk("", set()) if isinstance(thing, Module)]

    def _children(self) -> list[Module]:
        return self.modules_in()[1:]

    # -- modes and state

    def train(self, mode: bool = True) -> Self:
        """Switch this module and all in it to training, or to evaluation if ``mode`` is False; return it.

        TypeError if ``mode`` is no bool.
        """
        if not isinstance(mode, bool | np.bool):
            raise TypeError(f"{type(self).__name__}.train: mode must be True or False, got mode={mode!r}")
        for module in self.modules_in():
            module.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Switch this module and all in it to evaluation; return it."""
        for module in self.modules_in():
            module.training = False
        return self

    def zero_grad(self) -> None:
        """Set ``.grad`` of every parameter to None, as ``reset_grad`` of an optimizer does."""
        for p in self.parameters():
            p.grad = None

    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            if name in state:
                raise ValueError(
                    f"state_dict: two tensors of {type(self).__name__} have the name {name!r}: "
                    "rename an attribute or a key of a dict, so that none has a dot or looks like a number beside one"
                )
            state[name] = tensor
        return state

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all parameters and buffers by dotted name."""
        return {name: np.array(tensor.cached_data) for name, tensor in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all parameters and buffers to the values of ``state``, in their own dtype.

        KeyError if names are missing or unknown, ValueError if a shape differs, TypeError for what is no dict or no
        array of numbers; then nothing has been loaded.
        """
        self._loading(state)()

    def _loading(self, state: Mapping[str, Any], exact: bool = False) -> Callable[[], None]:
        """Check a state; what this returns puts it in place, and cannot fail. ``exact`` refuses other dtypes."""
        if isinstance(state, Module):
            raise TypeError(
                f"load_state_dict takes a dict of arrays by name, but got a {type(state).__name__}: "
                "pass its .state_dict()"
            )
        if not hasattr(state, "keys"):
            raise TypeError(
                f"load_state_dict takes a dict of arrays by name, but got {type(state).__name__}: "
                "ndl.load(path, model) reads what ndl.save has written, np.load(path) another file of arrays by name"
            )
        own = self._state()
        missing, unknown = [k for k in own if k not in state], [k for k in state if k not in own]
        if "needle" in unknown and any(name.startswith("model/") for name in unknown):
            raise KeyError("load_state_dict: this is a file of ndl.save: ndl.load(path, model) reads it")
        if missing or unknown:
            raise KeyError(
                f"load_state_dict: missing {missing}, unknown {unknown}; the names must be those of the model"
            )
        values = {}
        for name, tensor in own.items():
            given = getattr(state[name], "cached_data", state[name])
            try:
                found = np.asarray(given)
            except ValueError:  # lists of several lengths
                found = np.array(None)
            if found.dtype.kind not in "fiub":
                raise TypeError(f"load_state_dict: {name} must be an array of numbers, but got dtype {found.dtype}")
            if found.shape != tensor.shape:
                raise ValueError(f"load_state_dict: {name} has the shape {tensor.shape}, but got {found.shape}")
            if exact and found.dtype != tensor.dtype:
                raise ValueError(f"load_state_dict: {name} has the dtype {tensor.dtype}, but got {found.dtype}")
            values[name] = found.astype(tensor.dtype)

        def put() -> None:
            for name, value in values.items():
                own[name].cached_data = value
                own[name]._changed = [autograd._a_change()]

        return put

    # -- how it looks

    def _settings(self) -> str:
        return ""

    def __repr__(self) -> str:
        head = f"{type(self).__name__}({self._settings()}"
        lines = []
        for name, part in self._members():
            parts = (
                part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list | tuple) else ()
            )
            if isinstance(part, Module):
                lines.append((name, part))
            lines += [(f"{name}.{key}", value) for key, value in parts if isinstance(value, Module)]
        if not lines:
            return head + ")"
        return head + "".join(f"\n  ({name}): " + repr(part).replace("\n", "\n  ") for name, part in lines) + "\n)"


def _apply(ops_of: Callable[[Array], Ops], x: Tensor) -> Tensor:
    """What a layer does to a Tensor."""
    for op, operands in ops_of(x.cached_data if isinstance(x, Tensor) else x):  # an op refuses what is none
        x = op(x, *operands)
    return x


class Identity(Module):
    """Identity: any shape -> the same tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def _ops(self, x: Array) -> Ops:
        return ()


class Linear(Module):
    """Linear: (..., in_features) -> (..., out_features), x W + b.

    ``weight`` (in_features, out_features) and ``bias`` (1, out_features), Kaiming-uniform; ``bias=False``
    leaves the bias out (None).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        in_features = self.in_features = autograd._integer(in_features, "Linear: in_features", 1)
        out_features = self.out_features = autograd._integer(out_features, "Linear: out_features", 1)
        self.weight = Parameter(init.kaiming_uniform(in_features, out_features, dtype=dtype))
        self.bias = None
        if bias:
            # A column made into a row: a copy, because a parameter owns its memory.
            column = init.kaiming_uniform(out_features, 1, dtype=dtype).cached_data
            self.bias = Parameter(column.reshape(1, out_features))

    def _settings(self) -> str:
        return f"{self.in_features}, {self.out_features}" + ("" if self.bias is not None else ", bias=False")

    def forward(self, x: Tensor) -> Tensor:
        """Return x W + b."""
        return ops.linear(x, self.weight, self.bias)

    def _ops(self, x: Array) -> Ops:
        return ((ops._linear, (self.weight,) if self.bias is None else (self.weight, self.bias)),)


class Flatten(Module):
    """Flatten: (batch, ...) -> (batch, the product of the rest)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x as a matrix."""
        return _apply(self._ops, x)

    def _ops(self, x: Array) -> Ops:
        shape = x.shape
        if not shape:
            raise ValueError("Flatten needs a batch dimension, but the shape is ()")
        return ((ops.Reshape((shape[0], math.prod(shape[1:]))), ()),)


class ReLU(Module):
    """ReLU: any shape -> same shape, max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, 0)."""
        return ops.relu(x)

    def _ops(self, x: Array) -> Ops:
        return ((ops._relu, ()),)


class Tanh(Module):
    """Tanh: any shape -> same shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Return tanh(x)."""
        return ops.tanh(x)

    def _ops(self, x: Array) -> Ops:
        return ((ops._tanh, ()),)


class Sigmoid(Module):
    """Sigmoid: any shape -> same shape, 1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        """Return 1 / (1 + exp(-x))."""
        return ops.sigmoid(x)

    def _ops(self, x: Array) -> Ops:
        return ((ops._sigmoid, ()),)


class Softplus(Module):
    """Softplus: any shape -> same shape, ln(1 + exp(x))."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ln(1 + exp(x))."""
        return ops.softplus(x)

    def _ops(self, x: Array) -> Ops:
        return ((ops._softplus, ()),)


class Softmax(Module):
    """Softmax: any shape -> same shape, e^x / (sum of e^x) along ``axis``: probabilities, which add up to 1.

    For training use SoftmaxLoss on the logits, which needs no Softmax before it and is right for large ones.

    >>> Softmax()(Tensor([[0.0, 0.0], [1000.0, 0.0]], requires_grad=False))
    needle.Tensor([[0.5, 0.5],
                   [1. , 0. ]])
    """

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = ops._index(axis, "Softmax: axis")

    def _settings(self) -> str:
        return "" if self.axis == -1 else f"axis={self.axis}"

    def forward(self, x: Tensor) -> Tensor:
        """Return e^x / (sum of e^x)."""
        return _apply(self._ops, x)

    def _ops(self, x: Array) -> Ops:
        return ((ops.Softmax(self.axis), ()),)


class Conv(Module):
    """Conv: images (n, in_channels, h, w) -> (n, out_channels, h', w'), convolved with a square kernel.

    h' = (h + 2 padding - kernel_size) // stride + 1, and w' likewise. ``padding`` is (kernel_size - 1) // 2 if nothing
    else is given, as in the course: with an odd kernel and stride 1 the size stays. ``weight`` (kernel_size, kernel_size,
    in_channels, out_channels), Kaiming-uniform for in_channels kernel_size² inputs; ``bias`` (out_channels,), uniform
    in ±1 / √(in_channels kernel_size²), or None with ``bias=False``. Both are drawn by one ``np.random.rand`` each.

    The images of ``needle.data`` are (h, w, channels): ``x.transpose((2, 3)).transpose((1, 2))`` makes (n, c, h, w).

    ValueError for images of another shape, or smaller than the kernel.

    >>> Conv(3, 8, 3, stride=2)(init.ones(5, 3, 28, 28)).shape
    (5, 8, 14, 14)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: DTypeLike = "float32",
        *,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = autograd._integer(in_channels, "Conv: in_channels", 1)
        self.out_channels = autograd._integer(out_channels, "Conv: out_channels", 1)
        self.kernel_size = k = autograd._integer(_square(kernel_size, "kernel_size"), "Conv: kernel_size", 1)
        self.stride = autograd._integer(_square(stride, "stride"), "Conv: stride", 1)
        self.padding = (k - 1) // 2 if padding is None else autograd._integer(padding, "Conv: padding", 0)
        inputs = self.in_channels * k * k
        bound = math.sqrt(2) * math.sqrt(3 / inputs)
        shape = (k, k, self.in_channels, self.out_channels)
        self.weight = Parameter(init.rand(*shape, low=-bound, high=bound, dtype=dtype))
        self.bias = None
        if bias:
            bound = 1 / math.sqrt(inputs)
            self.bias = Parameter(init.rand(self.out_channels, low=-bound, high=bound, dtype=dtype))

    def _settings(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, {self.kernel_size}"
        text += f", stride={self.stride}" if self.stride != 1 else ""
        text += f", padding={self.padding}" if self.padding != (self.kernel_size - 1) // 2 else ""
        return text + ("" if self.bias is not None else ", bias=False")

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x with the weight, and the bias added to each channel."""
        return _apply(self._ops, x)

    def _ops(self, x: Array) -> Ops:
        k = self.kernel_size
        if x.ndim != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) + 2 * self.padding < k:
            least = max(k - 2 * self.padding, 1)
            raise ValueError(
                f"Conv({self._settings()}) needs images (n, {self.in_channels}, h, w) with h and w at least {least}, "
                f"but got {x.shape}"
            )
        swap, other = ops.Transpose((1, 2)), ops.Transpose((2, 3))
        bias = () if self.bias is None else ((ops._ewise_add, (self.bias,)),)
        convolve = ops.Conv(self.stride, self.padding)
        return (swap, ()), (other, ()), (convolve, (self.weight,)), *bias, (other, ()), (swap, ())


def _square(size: Any, name: str) -> Any:
    """A size, also as a pair of two equal ones."""
    if isinstance(size, tuple | list) and len(size) == 2:
        if size[0] != size[1]:
            raise ValueError(f"Conv: {name} must be the same for both directions, got {name}={size!r}")
        return size[0]
    return size


class Sequential(Module):
    """Sequential: each module's output is the next one's input; ``modules`` holds them.

    If all of them are layers of this file, their ops are computed as a chain (chain.py), with no Tensor in between.
    """

    _plan: _Plan | None = None

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        for module in modules:
            _refuse_other_than_modules("Sequential", module)
        self.modules = modules

    def __len__(self) -> int:
        return len(self.modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules)

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | slice) -> Module:
        if isinstance(index, slice):
            return Sequential(*self.modules[index])
        return self.modules[_place(index, len(self), "Sequential")]

    def __setitem__(self, index: int, module: Module) -> None:
        _refuse_other_than_modules("Sequential", module)
        place = _place(index, len(self), "Sequential")
        self.modules = (*self.modules[:place], module, *self.modules[place + 1 :])

    def _members(self) -> Iterator[tuple[str, Any]]:
        return _by_place(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_plan"}

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last module."""
        plan = self._plan
        if plan is None or not plan.holds(self):
            plan = vars(self)["_plan"] = _Plan(self)
        if plan.code is not None and isinstance(x, Tensor):
            try:
                return chain.run(plan.code, x)
            except (TypeError, ValueError) as error:
                _name(error, self, *[*_by_step(self, "")][chain.number_of(error)])
                raise
        for i, module in enumerate(self.modules):
            try:
                x = module(x)
            except (TypeError, ValueError) as error:
                _name(error, self, str(i), module)
                raise
        return x


def _name(error: Exception, owner: Sequential, path: str, module: Module) -> None:
    """Say in the message of an error in which layer of ``owner`` it came up; within another Sequential, in which of both."""
    if len(error.args) != 1 or not isinstance(error.args[0], str):
        return
    shown = repr(module)
    inner, rest, shown, message = vars(error).get(
        "_layer", (0, "", type(module).__name__ if "\n" in shown else shown, error.args[0])
    )
    if inner and isinstance(module, Module):  # where in the module the Sequential is that has named it already
        path += "".join(f".{name}" for name, part in module._walk("", set()) if id(part) == inner and name)
    path += f".{rest}" if rest else ""
    vars(error)["_layer"] = id(owner), path, shown, message  # numbers and texts: an error must not hold a model
    error.args = (f"layer {path}, {shown}: {message}",)


def _by_step(owner: Any, prefix: str) -> Iterator[tuple[str, Module]]:
    """The modules of a chain by name, in the order of its steps: a Residual, and then what is in it."""
    residual = _functions(type(owner))[0] is _RESIDUAL
    for name, module in (("fn", owner.fn),) if residual else ((str(i), m) for i, m in enumerate(owner.modules)):
        forward = _functions(type(module))[0]
        if forward is not _SEQUENTIAL:
            yield prefix + name, module
        if forward in (_SEQUENTIAL, _RESIDUAL):
            yield from _by_step(module, f"{prefix}{name}.")


class ModuleList(Module):
    """ModuleList: a list of modules for a ``forward`` of one's own; what is in it is found by its place.

    A plain list does as well; this one refuses what is no module.

    >>> layers = ModuleList([Linear(2, 3)])
    >>> layers.append(ReLU())
    >>> layers
    ModuleList(
      (0): Linear(2, 3)
      (1): ReLU()
    )
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        try:
            given = list(modules)
        except TypeError:
            what = f"the class {modules.__name__}" if isinstance(modules, type) else f"a {type(modules).__name__}"
            raise TypeError(f"ModuleList takes a list of modules, but got {what}: write ModuleList([...])") from None
        for module in given:
            _refuse_other_than_modules("ModuleList", module)
        self.modules = given

    def append(self, module: Module) -> None:
        """Put a module at the end."""
        _refuse_other_than_modules("ModuleList", module)
        self.modules = [*self.modules, module]

    def __len__(self) -> int:
        return len(self.modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules)

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> ModuleList: ...
    def __getitem__(self, index: int | slice) -> Module:
        if isinstance(index, slice):
            return ModuleList(self.modules[index])
        return self.modules[_place(index, len(self), "ModuleList")]

    def __setitem__(self, index: int, module: Module) -> None:
        _refuse_other_than_modules("ModuleList", module)
        place = _place(index, len(self), "ModuleList")
        self.modules = [*self.modules[:place], module, *self.modules[place + 1 :]]

    def _members(self) -> Iterator[tuple[str, Any]]:
        return _by_place(self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a list does not say what to do with a tensor."""
        raise TypeError("a ModuleList cannot be called: call the modules in it, or use a Sequential")


def _by_place(module: Module) -> Iterator[tuple[str, Any]]:
    """The members of a module, those in ``modules`` by their place."""
    for name, value in vars(module).items():
        if name == "modules":
            yield from ((str(i), part) for i, part in enumerate(value))
        else:
            yield name, value


def _place(index: Any, n: int, name: str) -> int:
    """The place of an index of a list of n, from the front; IndexError beyond it."""
    try:
        place = operator.index(index)
    except TypeError:
        raise TypeError(f"{name}: a place must be an integer or a slice, but got {index!r}") from None
    if not -n <= place < n:
        raise IndexError(f"{name}: there is no module {place} among {n}")
    return place % n


def _refuse_other_than_modules(name: str, module: Any) -> None:
    needed = f"{name} takes {'a module' if name == 'Residual' else 'modules'}"
    if isinstance(module, type):
        raise TypeError(f"{needed}, but got the class {module.__name__}: write {module.__name__}(...)")
    if isinstance(module, list | tuple):
        raise TypeError(f"{needed}, but got a {type(module).__name__}: write nn.Sequential(*modules)")
    if not callable(module) or isinstance(module, Tensor):
        raise TypeError(f"{needed}, but got {type(module).__name__}")


class SoftmaxLoss(Module):
    """SoftmaxLoss: logits (batch, classes), integer labels (batch,) -> (), mean of logsumexp(z) - z_label.

    ValueError or TypeError if a label is not an integer in 0..classes-1.
    """

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of the batch."""
        return ops.softmax_cross_entropy(logits, y)


class MSELoss(Module):
    """MSELoss: prediction and target, both of one shape -> (), the mean of (prediction - target)².

    ValueError if the shapes differ, or there is nothing to take the mean of: (n, 1) beside (n,) would be n² differences.

    >>> MSELoss()(Tensor([1.0, 2.0]), Tensor([1.0, 4.0])).item()
    2.0
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared difference."""
        shapes = getattr(prediction, "shape", None), getattr(target, "shape", None)
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"MSELoss needs a prediction and a target of one shape, but got {shapes[0]} and {shapes[1]}: "
                "give one of them the shape of the other with reshape"
            )
        difference = prediction - target
        return (difference * difference).mean()


class BatchNorm1d(Module):
    """BatchNorm1d: (batch, dim) -> (batch, dim), every column normalised over the batch.

    In training with the mean and the biased variance of the batch, which also go into ``running_mean`` and
    ``running_var``: running = (1 - momentum) * old + momentum * new. In evaluation with the running
    statistics. ``weight`` and ``bias`` (dim,) start at 1 and 0. Ioffe and Szegedy, 2015. ValueError for a
    training batch of 1.
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: Any = None,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        _check_norm("BatchNorm1d", dim, eps)
        _check_share("BatchNorm1d: momentum", momentum)
        self.dim = dim
        self.eps = eps
        self.momentum = momentum
        self.weight = Parameter(init.ones(dim, dtype=dtype))
        self.bias = Parameter(init.zeros(dim, dtype=dtype))
        self.running_mean = init.zeros(dim, dtype=dtype)
        self.running_var = init.ones(dim, dtype=dtype)

    def _settings(self) -> str:
        return f"{self.dim}, eps={self.eps}, momentum={self.momentum}"

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised, scaled and shifted."""
        return _apply(self._ops, x)

    def _ops(self, x: Array) -> Ops:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"BatchNorm1d({self.dim}) needs shape (batch, {self.dim}), but got {x.shape}")
        if not self.training:
            scale = self.weight / (self.running_var + self.eps) ** 0.5
            add, multiply = ops._ewise_add, ops._ewise_mul
            return (add, (-self.running_mean,)), (multiply, (scale,)), (add, (self.bias,))
        if x.shape[0] < 2:
            raise ValueError(
                f"BatchNorm1d needs at least 2 rows in training to have a variance, but got shape {x.shape}: "
                "use a larger batch, drop the short last one, or call eval()"
            )
        return self._trained(self._follow)

    def _trained(self, follow: Callable[[Array, Array], None] | None = None) -> Ops:
        """What it does in training to a matrix of two rows or more."""
        return ((ops.BatchNorm(self.eps, follow), (self.weight, self.bias)),)

    def _follow(self, mean: Array, var: Array) -> None:
        changed = [autograd._a_change()]
        keep, take = ops._scalars(self.running_mean.cached_data.dtype, 1 - self.momentum, self.momentum)
        for running, new in ((self.running_mean, mean), (self.running_var, var)):
            moved = running.cached_data * keep
            moved += new * take
            running.cached_data = moved
            running._changed = changed


class LayerNorm1d(Module):
    """LayerNorm1d: (..., dim) -> (..., dim), every row normalised by its mean and biased variance.

    ``weight`` and ``bias`` (dim,) start at 1 and 0. Ba, Kiros and Hinton, 2016.
    """

    def __init__(self, dim: int, eps: float = 1e-5, device: Any = None, dtype: DTypeLike = "float32") -> None:
        super().__init__()
        _check_norm("LayerNorm1d", dim, eps)
        self.dim = dim
        self.eps = eps
        self.weight = Parameter(init.ones(dim, dtype=dtype))
        self.bias = Parameter(init.zeros(dim, dtype=dtype))

    def _settings(self) -> str:
        return f"{self.dim}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised, scaled and shifted."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def _ops(self, x: Array) -> Ops:
        return ((ops.LayerNorm(self.eps), (self.weight, self.bias)),)


def _check_norm(name: str, dim: int, eps: float) -> None:
    autograd._integer(dim, f"{name}: dim", 1)
    if not isinstance(eps, _real) or not 0 < eps < math.inf:
        raise ValueError(f"{name}: eps must be a positive finite number, got eps={eps!r}")


_real = int, float, np.integer, np.floating


def _check_share(what: str, value: float) -> None:
    if not isinstance(value, _real) or not 0 <= value <= 1:
        raise ValueError(f"{what} must be in [0, 1], got {what.split()[-1]}={value!r}")


class Dropout(Module):
    """Dropout: any shape -> same shape; in training each element is 0 with probability p, else divided by 1 -
    p.

    Training draws one ``np.random.rand(*x.shape) <= 1 - p`` per call, whatever p is; evaluation draws
    nothing.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        _check_share("Dropout: p", p)
        self.p = p

    def _settings(self) -> str:
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """Return x with some elements dropped, or x itself in evaluation."""
        return _apply(self._ops, x)

    def _ops(self, x: Array) -> Ops:
        if not self.training:
            return ()
        keep = 1 - self.p
        mask = np.random.rand(*x.shape) <= keep
        if not keep:
            mask = np.zeros(x.shape, bool)  # rand may draw exactly 0, and 0 <= 0
        dtype = x.dtype if x.dtype.kind == "f" else ops._DEFAULT
        scale = np.asarray(mask, dtype)
        if keep:
            scale /= ops._scalars(dtype, keep)[0]
        return ((ops._ewise_mul, (Tensor.make_const(scale),)),)


class Residual(Module):
    """Residual: any shape -> same shape, fn(x) + x."""

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        _refuse_other_than_modules("Residual", fn)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Return fn(x) + x."""
        return ops.add(self.fn(x), x)


# -- layers as ops

# The layers that are known as ops: by their ``forward``, so that one which was overridden or replaced is called.
_AS_OPS = {
    layer.forward
    for layer in (
        Identity,
        Linear,
        Flatten,
        ReLU,
        Tanh,
        Sigmoid,
        Softplus,
        Softmax,
        Conv,
        BatchNorm1d,
        LayerNorm1d,
        Dropout,
    )
}
# Those whose ops are the same for any data, of a BatchNorm1d in training, by the attributes that these are made of.
_FIXED: dict[Any, tuple[str, ...]] = {
    Linear.forward: ("weight", "bias"),
    LayerNorm1d.forward: ("weight", "bias", "eps"),
    BatchNorm1d.forward: ("weight", "bias", "eps", "dim"),
    **dict.fromkeys((Identity.forward, ReLU.forward, Tanh.forward, Sigmoid.forward, Softplus.forward), ()),
}
_SEQUENTIAL, _RESIDUAL, _BATCH_NORM = Sequential.forward, Residual.forward, BatchNorm1d.forward
_CALL = Module.__call__
_functions = operator.attrgetter("forward", "__call__")


def _stands_in(module: Any, *names: str) -> bool:
    """Say whether attributes are what stands in ``vars(module)``, and not computed at each look."""
    cls: Any = type(module)
    plain = cls.__getattribute__ is object.__getattribute__
    return plain and all(name in vars(module) and not hasattr(cls, name) for name in names)


class _Plan:
    """What a Sequential has found out about its modules: the code of a chain, or None if one of them must be called.

    Holds until an attribute of a module is set, past ``__setattr__`` too, or a method of one of their classes; the code is
    that of the modes which the modules are in.
    """

    def __init__(self, owner: Sequential) -> None:
        self.classes: dict[Any, tuple[Any, ...]] = {}
        # What the steps were made with: where it stands, and what was found there.
        self.weights: list[tuple[dict[str, Any], Any, Any]] = []  # and biases
        self.others: list[tuple[dict[str, Any], str, Any]] = []
        self.modules = owner.modules
        self.norms: list[BatchNorm1d] = []  # of which it is known what they do in training
        self.steps = self._steps(owner)
        self.codes: dict[tuple[bool, ...], chain.Plan | None] = {}
        self.settings = self.others[1:]  # the owner holds the plan: to hold on to it in turn would be a circle
        self._write()
        self.change = _change

    def holds(self, owner: Sequential) -> bool:
        """Say whether everything is as it was."""
        if self.change is not _change or owner.modules is not self.modules:
            return False
        for cls, (forward, call) in self.classes.items():
            if cls.forward is not forward or cls.__call__ is not call:
                return False
        try:
            for own, weight, bias in self.weights:
                if own["weight"] is not weight or own["bias"] is not bias:
                    return False
            for own, name, part in self.others:
                if own[name] is not part:
                    if name != "training":
                        return False
                    self._write()  # the modes are the last of them
                    break
        except KeyError:
            return False
        return True

    def _write(self) -> None:
        """Find the code for the modes that the modules are in now, or write it."""
        self.others = [*self.settings, *((vars(norm), "training", vars(norm)["training"]) for norm in self.norms)]
        modes = tuple(bool(norm.training) for norm in self.norms)
        if modes not in self.codes:
            known = {id(norm): norm._trained() for norm in self.norms if norm.training}
            last = [*self.codes.items()][-1:]  # whoever trains and evaluates in turn has both
            self.codes = {**dict(last), modes: chain.planned(self.steps, known)}
        self.code = self.codes[modes]

    def _steps(self, owner: Any) -> list[chain.Step] | None:
        steps: list[chain.Step] = []
        part = "fn" if _functions(type(owner))[0] is _RESIDUAL else "modules"
        if not _stands_in(owner, part):
            return None
        self.others.append((owner.__dict__, part, owner.__dict__[part]))
        modules = (owner.fn,) if part == "fn" else owner.modules
        if type(modules) is not tuple:  # a list may change unnoticed
            return None
        for module in modules:
            if not issubclass(type(module), Module):
                return None
            forward, call = self.classes[type(module)] = _functions(type(module))
            if "forward" in vars(module) or call is not _CALL:
                return None
            if forward in _AS_OPS:
                own, names = module.__dict__, _FIXED.get(forward)
                fixed = names == () or (names is not None and _stands_in(module, *names))
                if fixed and names:
                    self.weights.append((own, own["weight"], own["bias"]))
                    self.others += [(own, name, own[name]) for name in names[2:]]
                if forward is _BATCH_NORM:
                    if fixed and "training" in own and getattr(module.weight, "shape", None) == (module.dim,):
                        self.norms.append(module)
                    fixed = False
                steps.append(module._ops(None) if fixed else module._ops)
                continue
            if forward not in (_SEQUENTIAL, _RESIDUAL):
                return None
            inner = self._steps(module)
            if inner is None:
                return None
            steps += inner if forward is _SEQUENTIAL else [inner]
        return steps
