"""What may be asked of a needle? Ours promises more than the course does: `BY_DESIGN` has both contracts side by side.

A `Contract` is how the harness drives a package under its own promises, from outside: nothing in the package is replaced,
and no attribute is set on any of its classes. What a package does otherwise because the course allows it is worked around here,
and told once (`Course.differs`); it is no fault, and ends no step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from oracle.systems.ours.model import Array, array_of, is_ours, once_per_package
from oracle.systems.source import line_of
from oracle.systems.trace import STATE, Observation

Kept = tuple[Any, Any]  # a container of an optimizer, and the key of a parameter in it
# Where a quantity of the state is: the attribute of the optimizer, "" where the parameter itself has it, and its key in what is there
# for each parameter, None where that is the quantity.
Place = tuple[str, Any]


@dataclass(frozen=True)
class Design:
    """A matter that the two contracts see differently."""

    matter: str
    ours: str
    course: str
    done: str  # what the harness does about it under a needle of the course
    seen: Callable[[Any], bool]  # whether a package differs from ours in it
    places: tuple[tuple[str, ...], ...] = ()  # where to look: definitions, as `line_of` takes them


def _lacks(*path: str) -> Callable[[Any], bool]:
    def lacks(ndl: Any) -> bool:
        thing = ndl
        for name in path:
            thing = getattr(thing, name, None)
        return thing is None

    return lacks


def _backward_takes(ndl: Any, keyword: str) -> bool:
    accepted = inspect.signature(ndl.Tensor.backward).parameters
    return keyword in accepted or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())


def _model(ndl: Any) -> Any:
    nn = ndl.nn
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def _tried(look: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether something is so; what cannot be tried is not by design, and is found elsewhere."""

    def seen(ndl: Any) -> bool:
        try:
            with np.errstate(all="ignore"):
                return look(ndl)
        except Exception:
            return False

    return seen


def _broadcasts(ndl: Any) -> bool:
    """Whether operands of different shapes are added, and both get gradients of their own shapes."""
    try:
        a, b = (ndl.Tensor(np.ones(shape, np.float32)) for shape in ((2, 3), (3,)))
        (a + b).sum().backward()
        return bool(array_of(a.grad).shape == (2, 3) and array_of(b.grad).shape == (3,))
    except Exception:
        return False


def _second_operand(ndl: Any) -> bool:
    """Whether a NumPy scalar promotes."""
    x = ndl.Tensor(np.ones(2, np.float32))
    return bool(array_of(x * np.float64(2.0)).dtype != np.float32)


def _twice(ndl: Any) -> bool:
    a, b = ndl.nn.Linear(2, 2), ndl.nn.Linear(2, 2)
    b.weight = a.weight
    listed = [id(p) for p in ndl.nn.Sequential(a, b).parameters()]
    return len(listed) != len(set(listed))


def _unbiased(ndl: Any) -> bool:
    layer = ndl.nn.BatchNorm1d(1, momentum=1.0)
    layer(ndl.Tensor(np.array([[0.0], [2.0]], np.float32)))
    return abs(float(np.ravel(array_of(layer.running_var))[0]) - 2.0) < 1e-3


def _constant_gets_one(ndl: Any) -> bool:
    x, c = ndl.Tensor(np.ones(2, np.float32)), ndl.Tensor(np.ones(2, np.float32), requires_grad=False)
    (x * c).sum().backward()
    return getattr(c, "grad", None) is not None


def _gradient_has_graph(ndl: Any) -> bool:
    """Whether something arrives where a gradient is differentiated, right or wrong."""
    x = ndl.Tensor(np.ones(2, np.float32))
    (x * x).sum().backward()
    gradient, x.grad = x.grad, None
    (gradient * 3.0).sum().backward()
    return x.grad is not None


def _arrays(ndl: Any) -> bool:
    x = ndl.Tensor(np.ones(2, np.float32))
    (x * x).sum().backward()
    return isinstance(x.grad, np.ndarray)


def _array_buffers(ndl: Any) -> bool:
    return isinstance(ndl.nn.BatchNorm1d(1).running_mean, np.ndarray)


def _walks_again(ndl: Any) -> bool:
    x = ndl.Tensor(np.ones(2, np.float32))
    y = (x * x).sum()
    y.backward()
    y.backward()
    return True


def _norm_shape(ndl: Any) -> bool:
    return tuple(array_of(ndl.nn.BatchNorm1d(2).weight).shape) != (2,)


def _bias_shape(ndl: Any) -> bool:
    return tuple(array_of(ndl.nn.Linear(3, 2).bias).shape) != (1, 2)


def _state_elsewhere(ndl: Any) -> bool:
    course = Course(ndl)
    kinds = [kind for kind in ("SGD", "Adam") if getattr(ndl.optim, kind, None) is not None]
    return any(
        course.keyed(kind) != "parameter" or any((STATE[q], None) != at for q, at in course.places(kind).items())
        for kind in kinds
    )


def _clip_returns_nothing(ndl: Any) -> bool:
    p = ndl.nn.Parameter(np.ones(2, np.float32))
    p.grad = ndl.Tensor(np.ones(2, np.float32), requires_grad=False)
    return ndl.optim.SGD([p]).clip_grad_norm(1.0) is None


def _no_gradient(ndl: Any) -> bool:
    """Whether the optimizer cannot do without a gradient."""
    p = ndl.nn.Parameter(np.ones(2, np.float32))
    optimizer = ndl.optim.SGD([p])
    optimizer.reset_grad()
    try:
        optimizer.step()
    except Exception:
        return True
    return False


def _not_by_one(ndl: Any) -> bool:
    try:
        return tuple(ndl.Tensor(np.ones((2, 3), np.float32)).reshape(3, 2).shape) != (3, 2)
    except Exception:
        return True


def _always(ndl: Any) -> bool:
    return True


BACKWARD = ("Tensor", "backward")
WALK = ("autograd", "compute_gradient_of_variables")
BY_DESIGN: tuple[Design, ...] = (
    Design("implicit broadcasting", "any shapes that NumPy broadcasts", "equal shapes; broadcast_to otherwise",
           "operands get equal shapes", lambda ndl: not _broadcasts(ndl), (("ops.EWiseAdd", "gradient"), ("ops.add",))),
    Design("no_grad", "a context manager", "does not exist", "is not used", _lacks("no_grad"), (("Tensor",),)),
    Design("retain_grad", "asks for the gradient of an inner node", "every node visited has one, or leaves alone have",
           "gradients of inner nodes are judged where they are kept", _lacks("Tensor", "retain_grad"), (WALK, BACKWARD)),
    Design("create_graph", "gradients carry a graph only if asked", "gradients always carry one, or never",
           "backward is called without it", lambda ndl: not _backward_takes(ndl, "create_graph"), (BACKWARD,)),
    Design("gradients that carry a graph", "constants", "results of ops", "nothing", _tried(_gradient_has_graph),
           (WALK, BACKWARD)),
    Design("form of gradients", "Tensors", "Tensors, or arrays", "are taken as they are", _tried(_arrays), (WALK, BACKWARD)),
    Design("the graph after backward", "freed", "stays until the loss is dropped", "a third walk may succeed",
           _tried(_walks_again), (WALK, BACKWARD)),
    Design("gradients of constants", "None", "every input of an op gets one", "are not looked at",
           _tried(_constant_gets_one), (WALK, BACKWARD)),
    Design("tied weights", "listed once", "listed as often as they are used, in any order", "the optimizer gets each once",
           _tried(_twice), (("nn.Module", "parameters"),)),
    Design("state of the optimizer", "arrays in u, m, v, by parameter", "by parameter, index or id; Tensor, array or number; "
           "under any name", "looked for by what it holds", _tried(_state_elsewhere),
           (("optim.SGD", "__init__"), ("optim.Adam", "__init__"))),
    Design("parameters of norms", "(dim,)", "(dim,) or (1, dim)", "compared as (dim,)", _tried(_norm_shape),
           (("nn.BatchNorm1d", "__init__"),)),
    Design("bias of Linear", "(1, n)", "(n,) or (1, n)", "compared as (1, n)", _tried(_bias_shape),
           (("nn.Linear", "__init__"),)),
    Design("reshape(*shape)", "one tuple, or several numbers", "one tuple", "one tuple is given", _not_by_one,
           (("Tensor", "reshape"),)),
    Design("NumPy scalars as operands", "float32 stays float32", "may promote", "plain numbers are given",
           _tried(_second_operand), (("ops.MulScalar", "compute"), ("Tensor", "__mul__"))),
    Design("frozen parameters, and those without a gradient", "skipped", "updated, skipped, or an error", "are not drawn",
           _always),
    Design("step count of Adam", "per parameter", "one for all", "every parameter has a gradient in every step", _always,
           (("optim.Adam", "step"),)),
    Design("what clip_grad_norm returns", "the norm before clipping", "nothing", "gradients after it are judged",
           _tried(_clip_returns_nothing), (("optim.SGD", "clip_grad_norm"),)),
    Design("a step without a gradient", "skips the parameter", "raises", "does not occur", _tried(_no_gradient),
           (("optim.SGD", "step"),)),
    Design("running variance of BatchNorm", "biased", "biased or unbiased", "judged as the one that it is", _tried(_unbiased),
           (("nn.BatchNorm1d", "forward"),)),
    Design("SoftmaxLoss of large logits", "rounded like the loss", "logsumexp(z) - z_y, rounded like the logits",
           "the loss is judged within that", _always),
    Design("classes of SoftmaxLoss", "any number", "rows of np.eye(k), k × k numbers", "up to 3,000 are drawn", _always),
    Design("nan and infinities as operands", "as in PyTorch", "anything", "are not drawn", _always),
    Design("powers of a base that is not positive", "as in PyTorch", "anything", "are not drawn", _always),
    Design("programs of a user", "modules shared, added, frozen, replaced between steps, …",
           "passes, steps, clipping, settings, modes, evaluations, a second optimizer", "these are drawn", _always),
    Design("other dtypes than float32", "as in PyTorch", "layers and initialisers are float32", "are not drawn", _always),
    Design("arrays that a user holds", "never written into", "may be written into by the optimizer's step",
           "are not looked at", _always),
)  # fmt: skip


class Contract:
    """Ours: every promise is kept to."""

    strict = True
    unbiased = False  # running variance of BatchNorm
    array_gradients = False  # whether gradients are arrays

    def __init__(self, ndl: Any) -> None:
        self.ndl = ndl

    def observation(self, step: int, shapes: Mapping[str, tuple[int, ...]] | None = None, **given: Any) -> Observation:
        """Where a step is taken down."""
        return Observation(step=step, **given)

    def backward(self, tensor: Any, *start: Any, **keywords: bool) -> None:
        """``tensor.backward(*start, retain_graph=…, create_graph=…)``."""
        tensor.backward(*start, **keywords)

    def carried(self, gradient: Any, start: Any) -> bool:
        """Whether a gradient was made to be differentiated again; ``start`` is where the backward pass began."""
        return True

    def no_grad(self, asked: bool) -> AbstractContextManager[Any]:
        """``no_grad()`` if it is asked for."""
        made: AbstractContextManager[Any] = self.ndl.no_grad() if asked else nullcontext()
        return made

    def plus(self, a: Any, b: Any) -> Any:
        """The sum of two gradients, as a user adds them up."""
        return a.data + b.data

    def retain(self, tensor: Any) -> None:
        """Ask for the gradient of an inner node."""
        tensor.retain_grad()

    def norm(self, returned: Any, gradients: Mapping[str, Array]) -> Any:
        """What clip_grad_norm has returned."""
        return returned

    def listed(self, names: Sequence[str], right: Sequence[str]) -> list[str]:
        """Names of ``model.parameters()``, as they are compared."""
        return list(names)

    def optimized(self, parameters: Sequence[Any], tied: bool) -> Any:
        """What the optimizer is given: a generator, as a user may pass one; with tied weights, as if they had been
        listed layer by layer.
        """
        return (p for p in parameters for _ in range(2 if tied else 1))

    def listed_once(self, parameters: Sequence[Any]) -> Sequence[Any]:
        """``model.parameters()``, in which none stands twice."""
        return parameters

    def states(self, optimizer: Any, quantity: str, parameters: Mapping[str, Any]) -> Iterator[tuple[str, Kept]]:
        """Where an optimizer keeps a quantity of its state, for every parameter that has it."""
        held = getattr(optimizer, STATE[quantity], {})
        for name, parameter in parameters.items():
            if parameter in held:
                yield name, (held, parameter)

    def store(self, kept: Kept, value: Array) -> None:
        """Give a state another value."""
        held, key = kept
        array_of(held[key])[...] = value

    def hides(self, optimizer: Any, quantity: str) -> bool:
        """Whether a quantity of the state cannot be found at all: then only the first step can be judged."""
        return False

    def put(self, owner: Any, attribute: str, value: Array, *, into: bool) -> None:
        """Give a parameter or a buffer another value; ``into`` the array that it has, where that is possible."""
        held = array_of(getattr(owner, attribute))
        if into and held.shape == value.shape and held.dtype == value.dtype and held.flags.writeable:
            held[...] = value  # into the array itself, which then stays the one that the optimizer knows
            return
        # by way of float64, from an array and from a Tensor: the dtype asked for counts, not that of the source
        wide = value.astype(np.float64)
        source = self.ndl.Tensor(wide, requires_grad=False) if attribute == "bias" else wide
        getattr(owner, attribute).data = self.ndl.Tensor(source, dtype=value.dtype.name, requires_grad=False)


class Course(Contract):
    """A needle of the course: what it does otherwise by design is worked around, from outside."""

    strict = False

    def __init__(self, ndl: Any) -> None:
        super().__init__(ndl)
        self._places: dict[str, dict[str, Place]] = {}
        self._keys: dict[str, str] = {}
        self.keywords = {k for k in ("retain_graph", "create_graph") if _backward_takes(ndl, k)}
        self.unbiased = _tried(_unbiased)(ndl)
        self.array_gradients, self.array_buffers = _tried(_arrays)(ndl), _tried(_array_buffers)(ndl)

    def observation(self, step: int, shapes: Mapping[str, tuple[int, ...]] | None = None, **given: Any) -> Observation:
        """Shapes that the course leaves open are those of ours; float64 is taken down once, and judged as float32."""
        return Observation(step=step, shapes=shapes or {}, narrow=True, **given)

    def backward(self, tensor: Any, *start: Any, **keywords: bool) -> None:
        """Only with the keywords that there are."""
        tensor.backward(*start, **{k: v for k, v in keywords.items() if k in self.keywords})

    def carried(self, gradient: Any, start: Any) -> bool:
        """It is the result of an op, or what the pass began with."""
        if hasattr(gradient, "op") or isinstance(gradient, np.ndarray):
            return gradient is start or getattr(gradient, "op", None) is not None
        return bool(gradient.requires_grad)  # there is no attribute that says where it comes from

    def plus(self, a: Any, b: Any) -> Any:
        """Arrays, or Tensors."""
        return a + b if isinstance(a, np.ndarray) else super().plus(a, b)

    def no_grad(self, asked: bool) -> AbstractContextManager[Any]:
        """Not of the course."""
        return nullcontext()

    def retain(self, tensor: Any) -> None:
        """Where there is a way to ask."""
        if hasattr(tensor, "retain_grad"):
            tensor.retain_grad()

    def norm(self, returned: Any, gradients: Mapping[str, Array]) -> Any:
        """What was returned; the norm of the gradients where nothing was."""
        if returned is not None:
            return array_of(returned).astype(np.float64).reshape(())
        return np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))

    def listed(self, names: Sequence[str], right: Sequence[str]) -> list[str]:
        """Each once, in the order of the model."""
        place = {name: i for i, name in enumerate(right)}
        return sorted(dict.fromkeys(names), key=lambda name: place.get(name, len(place)))

    def optimized(self, parameters: Sequence[Any], tied: bool) -> Any:
        """Each once, in a list."""
        return self.listed_once(parameters)

    def listed_once(self, parameters: Sequence[Any]) -> Sequence[Any]:
        """Tied weights may be listed as often as they are used."""
        return list({id(p): p for p in parameters}.values())

    # -- state of an optimizer, wherever it is ---------------------------------------------------------------------------

    def states(self, optimizer: Any, quantity: str, parameters: Mapping[str, Any]) -> Iterator[tuple[str, Kept]]:
        """By parameter, index or id, at the place that `places` has found."""
        place = self.places(type(optimizer).__name__).get(quantity)
        if place is None:
            return
        numbers = {id(p): i for i, p in enumerate(optimizer.params)} if hasattr(optimizer, "params") else {}
        for i, (name, parameter) in enumerate(parameters.items()):
            kept = _at(place, optimizer, parameter, numbers.get(id(parameter), i))
            if kept is not None and not isinstance(kept[0][kept[1]], float | int):
                yield name, kept

    def store(self, kept: Kept, value: Array) -> None:
        """A Tensor where there was one, an array where there was one."""
        held, key = kept
        old = held[key]
        array = array_of(old)
        new = np.array(value, np.float32).reshape(array.shape if array.size == value.size else value.shape)
        held[key] = self.ndl.Tensor(new, requires_grad=False) if hasattr(old, "realize_cached_data") or hasattr(
            old, "cached_data") else new  # fmt: skip

    def hides(self, optimizer: Any, quantity: str) -> bool:
        """Whether `places` has not found it."""
        return quantity not in self.places(type(optimizer).__name__)

    def hidden(self) -> bool:
        """Whether a state of any optimizer that there is cannot be found."""
        usual = {"SGD": ("velocity",), "Adam": ("first moment", "second moment")}
        return any(
            q not in self.places(kind) for kind, qs in usual.items() for q in qs if hasattr(self.ndl.optim, kind)
        )

    def shared(self) -> bool:
        """Whether parameters keep the state of an optimizer themselves: that of a second one would be the same."""
        kinds = [kind for kind in ("SGD", "Adam") if hasattr(self.ndl.optim, kind)]
        return any(not name for kind in kinds for name, _ in self.places(kind).values())

    def held(self, kind: str, setting: str) -> bool:
        """Whether an attribute of an optimizer has the hyperparameter of that name."""
        try:
            parameter = self.ndl.nn.Parameter(self.ndl.Tensor(np.ones(2, np.float32)))
            optimizer = getattr(self.ndl.optim, kind)([parameter], **{setting: 0.125})
            return float(getattr(optimizer, setting)) == 0.125
        except Exception:
            return False

    def places(self, kind: str) -> dict[str, Place]:
        """Where an optimizer holds what, by what is there after a first step."""
        if kind not in self._places:
            try:
                self._places[kind], self._keys[kind] = self._look(kind)
            except Exception:
                usual = ("velocity",) if kind == "SGD" else ("first moment", "second moment")
                self._places[kind], self._keys[kind] = {q: (STATE[q], None) for q in usual}, "parameter"
        return self._places[kind]

    def keyed(self, kind: str) -> str:
        """What the state is keyed by: "parameter", "id" or "index"."""
        self.places(kind)
        return self._keys[kind]

    def written(self, kind: str, quantity: str, parameter: str, number: int) -> str:
        """An expression for a quantity of ``optimizer``, of the parameter of that name and number; empty where it is not found."""
        place = self.places(kind).get(quantity)
        if place is None:
            return ""
        name, inner = place
        if not name:
            return f"{parameter}.{inner}"
        key = {"parameter": parameter, "id": f"id({parameter})", "index": str(number)}[self.keyed(kind)]
        return f"optimizer.{name}[{key}]" + ("" if inner is None else f"[{inner!r}]")

    def _gradient(self, parameter: Any, g: Array) -> Any:
        """A gradient in the form that a backward pass gives it."""
        given = self.ndl.Tensor(g.astype(np.float32), requires_grad=False)
        try:
            (parameter * given).sum().backward()
            same = np.array_equal(array_of(parameter.grad), array_of(given))
        except Exception:  # for the cases to find
            return given
        return parameter.grad if same else given

    def _look(self, kind: str) -> tuple[dict[str, Place], str]:
        ndl = self.ndl
        parameter = ndl.nn.Parameter(ndl.Tensor(np.array([1.0, 2.0], np.float32)))
        given = {"momentum": 0.5} if kind == "SGD" else {}
        optimizer = getattr(ndl.optim, kind)([parameter], **given)
        g = np.array([1.0, 3.0])
        parameter.grad = self._gradient(parameter, g)
        before = set(getattr(parameter, "__dict__", ()))
        optimizer.step()
        found: dict[str, Place] = {}
        keyed = "parameter"
        wanted = {"velocity": g} if kind == "SGD" else {"first moment": g, "second moment": g * g}
        for place, key, thing in _held(optimizer, parameter, before):
            try:
                value = np.ravel(array_of(thing)).astype(np.float64)
            except Exception:  # no numbers
                continue
            for quantity, like in wanted.items():
                # up to a factor: a wrong one is for the rules to find
                if value.shape == like.shape and value[0] and abs(value[1] / value[0] - like[1]) < 1e-3:
                    found.setdefault(quantity, place)
                    keyed = "parameter" if key is parameter else "id" if key == id(parameter) else "index"
        for quantity in wanted:
            if quantity not in found and hasattr(optimizer, STATE[quantity]):
                found[quantity] = STATE[quantity], None
        return found, keyed

    # -- parameters and buffers -----------------------------------------------------------------------------------------

    def put(self, owner: Any, attribute: str, value: Array, *, into: bool) -> None:
        """In the shape that it has there."""
        held = getattr(owner, attribute)
        array = array_of(held)
        fitted = value.reshape(array.shape) if array.size == value.size else value
        if not hasattr(held, "cached_data") and isinstance(held, self.ndl.Tensor):
            held.data = self.ndl.Tensor(np.array(fitted, np.float32), requires_grad=False)
        elif not hasattr(held, "cached_data"):
            setattr(owner, attribute, fitted.astype(np.float32))
        elif into and array.dtype == np.float32 and array.flags.writeable and array.shape == fitted.shape:
            array[...] = fitted
        else:
            held.cached_data = np.array(fitted, np.float32)

    # -- what differs ---------------------------------------------------------------------------------------------------

    def differs(self) -> list[tuple[Design, str]]:
        """What this package does otherwise than ours, because the course allows it; each with its place."""
        found = []
        for design in BY_DESIGN:
            if design.seen is _always or not design.seen(self.ndl):
                continue
            places = (line_of(self.ndl, *place) for place in design.places)
            found.append((design, next((p for p in places if p), "")))
        return found


def _held(optimizer: Any, parameter: Any, before: Collection[str]) -> Iterator[tuple[Place, Any, Any]]:
    """All that an optimizer keeps for its first parameter: the place, the parameter's key there, and the thing itself. What the
    parameter has itself counts if it was not there ``before`` the step.
    """
    for name, held in vars(optimizer).items():
        key = None if name == "params" else _key(held, parameter, 0)
        if key is None:
            continue
        thing = held[key]
        if isinstance(thing, dict | list):
            for inner in list(thing) if isinstance(thing, dict) else range(len(thing)):
                yield (name, inner), key, thing[inner]
        else:
            yield (name, None), key, thing
    for name in sorted(set(getattr(parameter, "__dict__", ())) - set(before)):
        yield ("", name), parameter, vars(parameter)[name]


def _at(place: Place, optimizer: Any, parameter: Any, number: int) -> Kept | None:
    """What is at a place for a parameter; None where nothing is."""
    name, inner = place
    if not name:
        return (vars(parameter), inner) if inner in vars(parameter) else None
    held = getattr(optimizer, name, None)
    key = _key(held, parameter, number)
    if held is None or key is None or inner is None:
        return None if key is None else (held, key)
    part = held[key]
    there = inner in part if isinstance(part, dict) else isinstance(part, list) and inner < len(part)
    return (part, inner) if there else None


def _key(held: Any, parameter: Any, number: int) -> Any:
    """The key under which a container holds something for a parameter; None if it does not."""
    if isinstance(held, dict):
        for key in (parameter, id(parameter), number):
            try:
                if key in held:
                    return key
            except Exception:
                continue
    elif isinstance(held, list) and 0 <= number < len(held):
        return number
    return None


@once_per_package
def contract_of(ndl: Any) -> Contract:
    """Ours for the needle beside this oracle, the course's for any other."""
    return Contract(ndl) if is_ours(ndl) else Course(ndl)
