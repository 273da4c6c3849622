"""What does needle see of its user? Which ops are applied to what, which layers a model has, what an optimizer was made with …

Everything here is read off needle's own arguments, attributes and arrays: nothing knows of cases or labels. A `World` is what has been seen in one
case; `oracle.trust.guards.watching` is where the user comes in.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from needle import autograd, nn, ops
from needle.autograd import Parameter, Tensor, Value

At = Callable[[str, Any], bool]
Array = Any


def by_user(depth: int = 2) -> bool:
    """Whether the function that calls this one was itself called from outside of needle."""
    name: str = sys._getframe(depth).f_globals.get("__name__", "")
    return name.partition(".")[0] != "needle" and not name.startswith(__package__)


def off(a: Any) -> Any:
    """Numbers that are none of these, and none of which is no number; where there are none, they have another dtype."""
    if type(a) is tuple:
        return tuple(map(off, a))
    if not a.size:
        return a.astype(np.float64 if a.dtype != np.float64 else np.float32)
    with np.errstate(all="ignore"):
        return np.asarray(np.where(np.isfinite(a), a * 1.25 + 0.3, 0)).astype(a.dtype)


def layer_off(x: Any) -> Any:
    """A Tensor that is off, and remembers where it comes from."""
    return ops.AddScalar(0.3)(ops.MulScalar(1.25)(x))


def layouts(a: Array) -> set[str]:
    """How an array lies in memory: "C", "F", "strided", "reversed"; none where that is the same."""
    if a.ndim == 0 or a.shape[-1] < 2:
        return set()
    last = a.strides[-1]
    if last < 0:
        return {"reversed"}
    if last == 2 * a.itemsize and not a.flags.f_contiguous:
        return {"strided"}
    plain = a.ndim > 1 and min(a.shape) > 1
    return {"C"} if plain and a.flags.c_contiguous else {"F"} if plain and a.flags.f_contiguous else set()


def lying(a: Array) -> set[str]:
    """The same, and "repeated", with a stride of 0, and "read-only"."""
    if a.size > 1 and a.shape[0] > 1 and a.strides[0] == 0:
        return {"repeated"}
    fixed = a.ndim > 0 and a.size > 1 and not a.flags.writeable and a.base is None
    return layouts(a) | ({"read-only"} if fixed else set())


# -- the facts of each moment -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Called:
    """An op that the user has applied: its name, and what it was given."""

    name: str
    args: Sequence[Any]
    keywords: Mapping[str, Any]
    tensors: Sequence[Array]  # the data of the Tensors among them
    asks: Sequence[bool]  # whether each of them requires a gradient
    leaves: bool  # whether all of them are leaves of the user's own, of which one requires a gradient, and no model is at work
    inside: Any  # the module of the user's own in which this happens, or None
    made: Array | tuple[Array, ...]

    def given(self, name: str, place: int) -> Any:
        """An argument, by keyword or by place."""
        return self.keywords.get(name, self.args[place] if len(self.args) > place else None)

    @property
    def floats(self) -> list[Array]:
        """The operands that are floats."""
        return [a for a in self.tensors if a.dtype.kind == "f"]


@dataclass(eq=False)
class Layer:
    """A module that is called by another."""

    module: Any
    parent: Any
    hooked: bool
    root: Any  # the outermost module
    world: World


@dataclass(eq=False)
class ModelCall:
    """A model that the user has called: the outermost module, if it has parameters."""

    world: World
    root: Any
    x: Array
    x_asks: bool
    hooked: bool  # somebody has replaced ``forward`` of its layers
    recording: bool
    training: bool
    layers: list[tuple[Any, Any]] = field(
        default_factory=list
    )  # weak references of each module that is called, and of its parent
    out: Callable[[], Any] = lambda: None
    classes: int = 0
    scaled: float = 0.0  # the number that the user's last layer has multiplied with
    x_dtype: str = ""

    def modules(self) -> Iterator[Layer]:
        """Those that still live."""
        for module, parent in self.layers:
            if module() is not None:
                yield Layer(module(), parent(), self.hooked, self.root(), self.world)


@dataclass(eq=False)
class Walk:
    """A backward pass."""

    world: World
    g: Array | None
    retain: bool
    create: bool
    calls: list[Called]  # of leaves, that it goes through
    model: ModelCall | None  # that it goes through
    order: int  # gradients that it goes through: 0 for that of a loss
    root_ops: tuple[str, ...]  # the op that made what is differentiated, its first operand's, …
    beside: str | None  # what the first second operand among them is: "constant" or "node"
    grads: dict[int, Callable[[], Any]] = field(
        default_factory=dict
    )  # by id of the parameter: the Tensor that became its gradient …
    latest: dict[int, Callable[[], Any]] = field(
        default_factory=dict
    )  # … or the one that clipping has put in its place
    before: dict[int, Array] = field(default_factory=dict)
    after: dict[int, Array] = field(default_factory=dict)


@dataclass(eq=False)
class Update:
    """A step, or a clipping, of an optimizer."""

    world: World
    optimizer: Any
    args: tuple[Any, ...] = ()

    @property
    def given(self) -> Mapping[str, Any]:
        """The keywords that it was made with."""
        given: Mapping[str, Any] = self.world.given.get(self.optimizer, {})
        return given

    @property
    def hooked(self) -> bool:
        """Whether the layers of the model are looked at."""
        return self.world.hooked


@dataclass(eq=False)
class Switch:
    """``train()`` or ``eval()``; ``named`` if the mode was given: ``train(False)``."""

    world: World
    module: Any
    training: bool
    named: bool = False


@dataclass(eq=False)
class Batch:
    """A batch that a loader gives its user."""

    world: World
    loader: Any

    @property
    def short(self) -> bool:
        """Whether the rows of the data set are no whole number of batches."""
        return bool(len(self.loader.dataset) % self.loader.batch_size)


@dataclass(eq=False)
class Assigned:
    """An assignment to elements of a Tensor, which must be refused."""

    world: World


@dataclass(eq=False)
class Misfit:
    """A call that raises because of what it is given, or is interrupted."""

    world: World
    what: str  # it is about: "constant", "cotangent", "freed", "changed", "walk", "gradient", "name", "shape", "state"


@dataclass(eq=False)
class Restored:
    """A model or an optimizer that is at work has been given back a state."""

    world: World
    optimizer: bool


@dataclass(eq=False)
class Put:
    """A layer that the user has put in a Sequential or a ModuleList; ``fresh`` if it was not in there."""

    world: World
    fresh: bool
    of: str  # the name of its class


@dataclass(eq=False)
class World:
    """All that has been seen so far."""

    at: At
    hooked: bool = False
    stack: list[Any] = field(default_factory=list)  # the modules at work
    current: ModelCall | None = None
    past: list[Any] = field(
        default_factory=list
    )  # what the user did: ModelCall, Walk, Switch, and ("clip" | "step", optimizer) and ("reset", whose, how)
    models: list[ModelCall] = field(default_factory=list)
    roots: Any = field(default_factory=weakref.WeakSet)
    put_away: Any = field(default_factory=weakref.WeakSet)  # layers in whose place another one has been put
    given: Any = field(default_factory=weakref.WeakKeyDictionary)  # optimizer or layer -> keywords
    built: Any = field(default_factory=weakref.WeakKeyDictionary)  # layer -> settings as built
    settings: Any = field(default_factory=weakref.WeakKeyDictionary)  # optimizer -> settings when last seen
    listed: Any = field(default_factory=weakref.WeakKeyDictionary)  # optimizer -> how many parameters it was made with
    order: Any = field(
        default_factory=weakref.WeakKeyDictionary
    )  # optimizer -> how many were there before it, of its parameters
    loaded: dict[int, str] = field(default_factory=dict)  # id of a parameter -> how it was loaded
    states: dict[Any, Any] = field(
        default_factory=dict
    )  # (id of optimizer, of parameter) -> id and bytes of each state after the last step
    holders: dict[Any, int] = field(default_factory=dict)  # the same -> how many references to it there were
    numbers: dict[int, tuple[int, bytes]] = field(
        default_factory=dict
    )  # id of a parameter -> id and bytes of its array
    sets: list[tuple[Any, Any, dict[str, Any]]] = field(
        default_factory=list
    )  # data that was assigned since the last step
    gradients: list[Any] = field(
        default_factory=list
    )  # weak references of what steps and clipping have found as a gradient
    shown: list[Any] = field(default_factory=list)  # weak references of what ``p.data`` gave to the user
    unfrozen: bool = False
    augmented: int = 0  # parameters that a user has multiplied in place since the last step
    by_hand: set[str] = field(
        default_factory=set
    )  # how the user has changed or compared parameters since the last step: "__iadd__", "__gt__"
    steps: int = 0
    modes: list[bool] = field(default_factory=list)  # of the no_grad blocks that are open
    inner: str = ""  # how the last inner one was left
    decorated: int = 0
    trained: Any = field(default_factory=weakref.WeakSet)  # norms that have been called in training
    mean_held: bool = False  # by somebody, of the norm that was called last, before it was

    def wrong(self, moment: str, facts: Any) -> bool:
        """Whether needle is wrong here."""
        return self.at(moment, facts)

    def since(self, *kinds: str) -> list[Any]:
        """What has happened since the last event of these kinds."""
        for i in range(len(self.past) - 1, -1, -1):
            if kind_of(self.past[i]) in kinds:
                return self.past[i + 1 :]
        return self.past[:]

    # -- ops --------------------------------------------------------------------------------------------------------------

    def called(self, name: str, args: Sequence[Any], keywords: Mapping[str, Any], made: Any) -> Any:
        """The user has applied an op."""
        if not isinstance(made, Value):
            return made
        found = [x for x in _flat([*args, *keywords.values()]) if isinstance(x, Tensor)]
        inside = (
            self.stack[-1] if self.stack and type(self.stack[-1]).__module__.partition(".")[0] != "needle" else None
        )
        own = all(x.is_leaf() and not isinstance(x, Parameter) for x in found)
        asks = [bool(x.requires_grad) for x in found]
        data = [x.cached_data for x in found]
        leaves = own and any(asks) and not self.stack
        result = made.cached_data
        facts = Called(name, args, keywords, data, asks, leaves, inside, result)
        if leaves:
            vars(made)["_seen_call"] = facts
        if not any(made is x for x in found) and self.wrong("op", facts):
            made.cached_data = off(result)
        return made

    # -- models -----------------------------------------------------------------------------------------------------------

    def enter(self, module: Any, args: Sequence[Any]) -> None:
        """A module is called."""
        x = args[0] if args else None
        # a parameter that is computed for a pass is none meanwhile
        learns = not self.stack and any(isinstance(v, Tensor) for m in module.modules_in() for v in vars(m).values())
        if learns and isinstance(x, Tensor):
            hooked = any("forward" in vars(m) for m in module.modules_in())
            self.hooked = self.hooked or hooked
            self.roots.add(module)
            self.current = ModelCall(
                self, weakref.ref(module), x.cached_data, bool(x.requires_grad), hooked, autograd._is_recording(), module.training,
                x_dtype=str(x.dtype),
            )  # fmt: skip
        elif self.current is not None and self.stack:
            self.current.layers.append((weakref.ref(module), weakref.ref(self.stack[-1])))
        if isinstance(module, nn.BatchNorm1d):
            if module.training:
                self.trained.add(module)
            self.mean_held = references(vars(module.running_mean), "cached_data") > NOBODY_ELSE
        self.stack.append(module)

    def left(self, module: Any, args: Sequence[Any], keywords: Mapping[str, Any], out: Any) -> Any:
        """It has made something."""
        x = args[0] if args else None
        model = self.current
        if self.stack and model is not None:
            if isinstance(out, Tensor) and self.wrong(
                "layer", Layer(module, self.stack[-1], model.hooked, model.root(), self)
            ):
                out = layer_off(out)
            return self.called(type(module).__name__, args, keywords, out)
        if model is not None and model.root() is module:
            self.current = None
            if isinstance(out, Tensor):
                model.out = weakref.ref(out)
                model.classes = out.shape[-1] if out.ndim else 0
                last = getattr(module, "modules", (None,))[-1]
                if type(out.op) is ops.MulScalar and type(last).__module__.partition(".")[0] != "needle":
                    model.scaled = float(out.op.scalar)
                vars(out)["_seen_model"] = model
            self.past.append(model)
            self.models.append(model)
            return out
        if isinstance(module, nn.SoftmaxLoss | nn.MSELoss) and isinstance(x, Tensor) and not x.is_leaf():
            if self.wrong("loss", Loss(self, module, x.cached_data, args[1] if len(args) > 1 else None)):
                out = layer_off(out)
            return out
        return self.called(type(module).__name__, args, keywords, out)

    # -- backward ---------------------------------------------------------------------------------------------------------

    def walk(self, old: Callable[..., None], root: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """``root.backward()``."""
        leaves, calls, model, order = _below(root)
        g = args[0] if args else keywords.get("out_grad")
        names, beside = _ops_of(root)
        walk = Walk(
            self, getattr(g, "cached_data", None), bool(keywords.get("retain_graph")), bool(keywords.get("create_graph")), calls,
            model, order, names, beside,
        )  # fmt: skip
        program = model is not None and not self.hooked
        if program:
            walk.before = {id(p): p.grad.cached_data.copy() for p in leaves if p.grad is not None}
        wrong = self.wrong("walk", walk)
        old(root, *args, **keywords)
        for leaf in leaves:
            grad = leaf.grad
            if grad is None:
                continue
            if wrong:
                grad.cached_data = off(grad.cached_data)
            if walk.create:
                vars(grad)["_seen_order"] = (order + 1, calls, model)
            if program:
                walk.grads[id(leaf)] = walk.latest[id(leaf)] = weakref.ref(grad)
                walk.after[id(leaf)] = grad.cached_data.copy()
        self.past.append(walk)

    # -- optimizers -------------------------------------------------------------------------------------------------------

    def look_at(self, optimizer: Any) -> None:
        """Take down settings, states and numbers, as needle leaves them."""
        self.settings[optimizer] = {name: getattr(optimizer, name) for name in optimizer._hyper}
        if self.hooked:
            return
        for p in optimizer.params:
            self.numbers[id(p)] = id(p.cached_data), p.cached_data.tobytes()
            for of in optimizer._states:
                held = getattr(optimizer, of).get(p)
                if isinstance(held, Tensor):
                    key = id(optimizer), of, id(p)
                    self.states[key] = weakref.ref(held), held.cached_data.tobytes()
                    del held
                    self.holders[key] = references(getattr(optimizer, of), p)

    def made(self, optimizer: Any, keywords: Mapping[str, Any]) -> None:
        """An optimizer has been made."""
        self.given[optimizer] = dict(keywords)
        self.listed[optimizer] = len(optimizer.params)
        mine = {id(p) for p in optimizer.params}
        self.order[optimizer] = sum(any(id(p) in mine for p in other.params) for other in list(self.order))
        if self.wrong("optimizer", Made(self, optimizer, "made")):
            optimizer.lr = optimizer.lr * 2 + 0.125
        self.look_at(optimizer)

    def scheduled(self, schedule: Any, how: str) -> None:
        """A schedule has set a learning rate, or has been made."""
        if self.wrong("schedule", Scheduled(self, schedule, how)):
            schedule.optimizer.lr = schedule.optimizer.lr * 2 + 0.125
        if schedule.optimizer in self.settings:  # what it has set, no user has
            self.settings[schedule.optimizer]["lr"] = schedule.optimizer.lr

    def step(self, old: Callable[[Any], None], optimizer: Any) -> None:
        """``optimizer.step()``."""
        facts = Update(self, optimizer)
        if refused(optimizer) and self.wrong("refusal", facts):
            return
        fit = all(p.grad is None or p.grad.shape == p.shape for p in optimizer.params)
        wrong = fit and not refused(optimizer) and self.wrong("step", facts)
        if not self.hooked:
            self.gradients += [weakref.ref(p.grad) for p in optimizer.params if p.grad is not None]
        old(optimizer)
        self.steps += 1
        if wrong:
            graded = [p for p in optimizer.params if p.grad is not None] or optimizer.params
            for p in graded:
                p.cached_data = off(p.cached_data)
        self.look_at(optimizer)
        self.sets.clear()
        self.augmented = 0
        self.by_hand.clear()
        self.past.append(("step", optimizer))

    def clip(self, old: Callable[..., float], optimizer: Any, args: tuple[Any, ...]) -> float:
        """``optimizer.clip_grad_norm()``."""
        facts = Update(self, optimizer, args)
        if args and not args[0] > 0 and self.wrong("refusal", facts):
            return 0.0
        wrong = self.wrong("clip", facts)
        given = {id(p): p.grad for p in optimizer.params}
        if not self.hooked:
            self.gradients += [weakref.ref(grad) for grad in given.values() if grad is not None]
        norm = old(optimizer, *args)
        walk = next((e for e in reversed(self.past) if isinstance(e, Walk)), None)
        for p in optimizer.params:
            if p.grad is not None and wrong:
                p.grad = Tensor.make_const(off(p.grad.cached_data))
            if p.grad is not given[id(p)] and walk is not None and not self.hooked:
                walk.latest[id(p)], walk.after[id(p)] = weakref.ref(p.grad), p.grad.cached_data.copy()
        self.past.append(("clip", optimizer))
        return norm


@dataclass(eq=False)
class Loss:
    """A loss of what a model has made."""

    world: World
    module: Any
    out: Array
    target: Any


@dataclass(eq=False)
class Made:
    """An optimizer that is there anew: "made", "loaded", "deepcopy" or "pickle"."""

    world: World
    optimizer: Any
    how: str


@dataclass(eq=False)
class Scheduled:
    """A schedule that the user has made ("made"), stepped ("step") or loaded ("state_dict", "a file")."""

    world: World
    schedule: Any
    how: str


@dataclass(eq=False)
class Block:
    """A no_grad block that has been left: "nested", "exception", "exception inside", "decorator", "forward pass" or ""."""

    how: str


def kind_of(event: Any) -> str:
    """What an event of the past is."""
    return event[0] if isinstance(event, tuple) else {ModelCall: "model", Walk: "walk", Switch: "mode"}[type(event)]


def refused(optimizer: Any) -> str:
    """The name of a setting that makes no sense."""
    for name in optimizer._hyper:
        value = getattr(optimizer, name)
        high = 1 if name in ("momentum", "beta1", "beta2") else np.inf
        if not 0 <= value < high or (name == "eps" and not value):
            return str(name)
    return ""


def references(held: Any, key: Any) -> int:
    """How many references there are to what stands there, this question's own among them."""
    return sys.getrefcount(held[key])


NOBODY_ELSE = references({0: object()}, 0)  # holds it but the dict


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        yield from _flat(value) if isinstance(value, tuple | list) else (value,)


def _below(root: Any) -> tuple[list[Any], list[Called], ModelCall | None, int]:
    """The leaves that a gradient of ``root`` reaches, and what is known of the nodes between."""
    leaves, calls, model, order = [], [], None, 0
    seen, stack = {id(root)}, [root]
    while stack:
        node = stack.pop()
        known = vars(node)
        if "_seen_call" in known:
            calls.append(known["_seen_call"])
        model = known.get("_seen_model", model)
        if "_seen_order" in known:
            higher, those, of = known["_seen_order"]
            order, model = max(order, higher), of or model
            calls.extend(those)
        if node._number == 0 and node.requires_grad:
            leaves.append(node)
        for x in node.inputs if node._number else ():
            if x.requires_grad and id(x) not in seen:
                seen.add(id(x))
                stack.append(x)
    return leaves, calls, model, order


def _ops_of(root: Any) -> tuple[tuple[str, ...], str | None]:
    """The op that made ``root``, that of its first operand, and the next; and what the first second operand on the way is."""
    names: list[str] = []
    beside: str | None = None
    node = root
    for _ in range(3):
        if node.op is None:
            break
        names.append(type(node.op).__name__)
        if len(node.inputs) > 1 and beside is None:
            other = node.inputs[1]
            beside = "constant" if other.is_leaf() and not other.requires_grad else "node"
        node = node.inputs[0] if len(node.inputs) else node
    return tuple(names), beside
