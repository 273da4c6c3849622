"""Where does needle's user come in? A patch that looks on there, and may make something wrong.

``watching(at)`` calls ``at(moment, facts)`` at every moment (`oracle.trust.guards.guard.MOMENTS`); where that returns True, what needle makes there is
wrong. What has been seen is that of one case: the patch is made anew for each.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any

import needle
from needle import autograd, ops
from needle.autograd import Parameter, Tensor
from oracle.trust.guards.seen import (
    Assigned,
    At,
    Batch,
    Block,
    Made,
    Misfit,
    ModelCall,
    Put,
    Restored,
    Switch,
    World,
    by_user,
    kind_of,
    layouts,
    off,
    refused,
)
from oracle.trust.patches import Patch

# what a user calls by name, and what by an operator or a method
FUNCTIONS = tuple(
    name
    for name in needle.__all__
    if name in vars(ops) and callable(getattr(ops, name)) and not isinstance(getattr(ops, name), type)
)
METHODS = (
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__pow__", "__rpow__", "__matmul__",
    "__neg__", "__abs__", "__getitem__", "abs", "sqrt", "clip", "sum", "mean", "max", "min", "var", "transpose", "reshape",
    "broadcast_to", "flatten", "clone", "argmax", "argmin",
)  # fmt: skip


# a NumPy scalar on the left asks NumPy's function
_OPERATORS = {
    "add": "__add__", "subtract": "__sub__", "multiply": "__mul__", "divide": "__truediv__", "power": "__pow__", "matmul": "__matmul__",
}  # fmt: skip


class _Asks:
    """``requires_grad``, which tells who sets it."""

    def __init__(self, world: World, default: Any) -> None:
        self.world, self.default = world, default

    def __get__(self, value: Any, owner: Any = None) -> Any:
        return self.default if value is None else vars(value).get("requires_grad", self.default)

    def __set__(self, value: Any, asks: Any) -> None:
        if asks and isinstance(value, Parameter) and by_user() and self.world.order:
            self.world.unfrozen = True
        vars(value)["requires_grad"] = asks


def _data(world: World, old: property) -> property:
    """``p.data``, which tells who reads and who sets it."""

    def read(p: Any) -> Any:
        shown = old.fget(p)  # type: ignore[misc]
        if isinstance(p, Parameter) and by_user():
            world.shown.append((weakref.ref(p), weakref.ref(shown)))
        return shown

    def write(p: Any, value: Any) -> None:
        if isinstance(p, Parameter) and by_user() and world.order and isinstance(value, Tensor):
            a = value.cached_data
            others = [q for o in list(world.order) for q in o.params if q is not p]
            about = {
                "layouts": layouts(a), "strided": bool(a.size) and a.strides[-1:] == (2 * a.itemsize,), "fixed": not a.flags.writeable, "part": a.flags.carray and getattr(a.base, "dtype", None) == a.dtype,
                "shared": any(q.cached_data is a for q in others), "flat": a.shape != p.shape, "row": p.shape[:-1] == (1,),
                "rebound": vars(value).get("_seen_first") not in (None, id(a)), "free": p.cached_data.flags.writeable and not any(q.cached_data is p.cached_data for q in others),
            }  # fmt: skip
            world.sets.append((weakref.ref(p), weakref.ref(value), about))
            world.numbers.pop(id(p), None)
        old.fset(p, value)  # type: ignore[misc]

    return property(read, write, old.fdel, old.__doc__)


def watching(at: At) -> Patch:
    """Needle, with ``at(moment, facts)`` asked at every moment of one case whether it is wrong there."""
    world = World(at)
    changes: list[tuple[str, Callable[[Any], Any]]] = []
    doors: dict[Any, Any] = {}  # needle.exp is needle.ops.exp, or it could not be pickled

    def entry(name: str) -> Callable[[Any], Any]:
        def make(old: Any) -> Any:
            if old in doors:
                return doors[old]

            @functools.wraps(old)
            def patched(*args: Any, **keywords: Any) -> Any:
                made = old(*args, **keywords)
                return world.called(name, args, keywords, made) if by_user() else made

            doors[old] = patched
            return patched

        return make

    def by_numpy(old: Any) -> Any:
        def patched(self: Any, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Any:
            made = old(self, ufunc, method, *inputs, **keywords)
            name = _OPERATORS.get(ufunc.__name__, ufunc.__name__)
            if len(inputs) == 2 and not isinstance(inputs[0], Tensor):
                name, inputs = f"__r{name[2:]}", inputs[::-1]
            return world.called(name, inputs, keywords, made) if by_user() else made

        return patched

    for name in FUNCTIONS:
        changes += [(name, entry(name)), (f"ops.{name}", entry(name))]
    changes += [(f"Tensor.{name}", entry(name)) for name in METHODS]
    changes += [("Tensor.__array_ufunc__", by_numpy)]
    changes += [("Tensor.T", lambda old: property(entry("T")(old.fget)))]

    def augmenting(old: Any) -> Any:
        def patched(self: Any, other: Any) -> Any:
            world.augmented += not isinstance(other, Tensor)  # a mask is one
            return old(self, other)

        return patched

    def by_hand(name: str) -> Callable[[Any], Any]:
        def make(old: Any) -> Any:
            def patched(self: Any, *args: Any) -> Any:
                if isinstance(self, Parameter) and by_user():
                    world.by_hand.add(name)
                return old(self, *args)

            return patched

        return make

    def assigning(old: Any) -> Any:
        def patched(self: Any, index: Any, value: Any) -> None:
            if not world.wrong("refusal", Assigned(world)):
                old(self, index, value)

        return patched

    def wrapping(old: Any) -> Any:
        def patched(self: Any, *args: Any, **keywords: Any) -> None:
            old(self, *args, **keywords)
            if by_user():
                vars(self)["_seen_first"] = id(self.cached_data)

        return patched

    def call(old: Any) -> Any:
        def patched(self: Any, *args: Any, **keywords: Any) -> Any:
            world.enter(self, args)
            try:
                out = old(self, *args, **keywords)
            finally:
                world.stack.pop()
            return world.left(self, args, keywords, out)

        return patched

    def misfit(call: Callable[[], Any], what: Callable[[BaseException], str]) -> None:
        try:
            call()
        except BaseException as raised:
            if not world.wrong("refusal", Misfit(world, what(raised))):
                raise

    def backward(old: Any) -> Any:
        def patched(self: Any, *args: Any, **keywords: Any) -> None:
            if not by_user():
                old(self, *args, **keywords)
            elif self.requires_grad:
                names: dict[type, str] = {ValueError: "cotangent", RuntimeError: "freed"}
                misfit(
                    lambda: world.walk(old, self, args, keywords),
                    lambda e: "changed" if "has changed" in str(e) else names.get(type(e), "walk"),
                )
            else:
                misfit(lambda: old(self, *args, **keywords), lambda e: "constant")

        return patched

    def init(old: Any) -> Any:
        def patched(self: Any, *args: Any, **keywords: Any) -> None:
            old(self, *args, **keywords)
            world.given[self] = keywords
            world.built[self] = {name: getattr(self, name) for name in ("p", "momentum", "eps") if hasattr(self, name)}

        return patched

    def making(old: Any) -> Any:
        def patched(self: Any, *args: Any, **keywords: Any) -> None:
            old(self, *args, **keywords)
            world.made(self, keywords)

        return patched

    def scheduling(old: Any) -> Any:
        def patched(self: Any, *args: Any, **keywords: Any) -> None:
            old(self, *args, **keywords)
            world.given[self] = keywords
            if by_user():
                world.scheduled(self, "made")

        return patched

    def advancing(how: str) -> Callable[[Any], Any]:
        def make(old: Any) -> Any:
            def patched(self: Any, *args: Any) -> None:
                old(self, *args)
                if by_user():
                    world.scheduled(self, how)

            return patched

        return make

    def stepping(old: Any) -> Any:
        def patched(self: Any) -> None:
            misfit(lambda: world.step(old, self), lambda e: "" if refused(self) else "gradient")

        return patched

    def clipping(old: Any) -> Any:
        return lambda self, *args: world.clip(old, self, args)

    def resetting(old: Any) -> Any:
        def patched(self: Any) -> None:
            old(self)
            how = "zero_grad" if not by_user() else "reset_grad"
            world.past.append(("reset", self, how))

        return patched

    def resetting_all(old: Any) -> Any:
        def patched(self: Any) -> None:
            old(self)
            world.past.append(("reset", self, "model"))

        return patched

    def loading_batches(old: Any) -> Any:
        def patched(self: Any) -> Any:
            batches = old(self)
            if world.wrong("batch", Batch(world, self)):
                return (tuple(Tensor.make_const(off(part.cached_data)) for part in batch) for batch in batches)
            return batches

        return patched

    def putting(old: Any) -> Any:
        def patched(self: Any, index: Any, module: Any) -> None:
            before = self.modules
            fresh = all(m is not module for m in before) and module not in world.put_away
            world.put_away.add(before[index])
            old(self, index, module)
            if world.wrong("put", Put(world, fresh, type(self).__name__)):
                self.modules = before

        return patched

    def switching(training: bool) -> Callable[[Any], Any]:
        def make(old: Any) -> Any:
            def patched(self: Any, *args: Any) -> Any:
                made = old(self, *args)
                if by_user():
                    now = bool(args[0]) if args else training
                    event = Switch(world, self, now, bool(args))
                    if world.wrong("mode", event):
                        self.modules_in()[-1].training = not now
                    world.past.append(event)
                return made

            return patched

        return make

    def loading(old: Any) -> Any:
        def patched(self: Any, state: Any) -> None:
            user = by_user()
            names: dict[type, str] = {KeyError: "name", ValueError: "shape"}
            before = [p.cached_data.tobytes() for p in self.parameters()]
            misfit(lambda: old(self, state), lambda e: names.get(type(e), ""))
            anew = before != [p.cached_data.tobytes() for p in self.parameters()]
            mine = {id(p) for p in self.parameters()}
            if any(id(p) in mine for o in list(world.order) for p in o.params):  # it is at work
                alone = bool(world.past) and kind_of(world.past[-1]) != "step"
                if user and alone and anew and world.wrong("restored", Restored(world, optimizer=False)):
                    for p in self.parameters():
                        p.cached_data = off(p.cached_data)
            elif user:
                world.loaded |= {id(p): "state_dict" for p in self.parameters()}

        return patched

    def filed(old: Any) -> Any:
        def patched(path: Any, model: Any, optimizer: Any = None, *more: Any, **keywords: Any) -> Any:
            made = old(path, model, optimizer, *more, **keywords)
            world.loaded |= {id(p): "a file" for p in model.parameters()}
            if optimizer is not None:
                _restored(world, optimizer, "loaded")
            for schedule in (*more, *keywords.values()):
                world.scheduled(schedule, "a file")
            return made

        return patched

    def restoring(old: Any) -> Any:
        def patched(self: Any, state: Any) -> None:
            misfit(lambda: old(self, state), lambda e: "state")
            if not any(kind_of(e) == "step" and e[1] is self for e in world.past):
                _restored(world, self, "loaded")
                return
            if world.wrong("restored", Restored(world, optimizer=True)):
                self.lr = self.lr * 2 + 0.125
            world.states = {key: known for key, known in world.states.items() if key[0] != id(self)}
            world.look_at(self)

        return patched

    def copying(old: Any) -> Any:
        def patched(self: Any, state: Any) -> None:
            how = "deepcopy" if sys._getframe(1).f_globals.get("__name__") == "copy" else "pickle"
            old(self, state)
            if world.wrong("optimizer", Made(world, self, how)):
                self.lr = self.lr * 2 + 0.125

        return patched

    changes += [
        ("nn.Module.__call__", call), ("Tensor.backward", backward), ("Tensor.__init__", wrapping), ("nn.Dropout.__init__", init), ("nn.BatchNorm1d.__init__", init),
        ("nn.LayerNorm1d.__init__", init), ("optim.SGD.__init__", making), ("optim.Adam.__init__", making),
        ("optim.SGD.step", stepping), ("optim.Adam.step", stepping), ("optim.Optimizer.clip_grad_norm", clipping),
        ("optim.Optimizer.reset_grad", resetting), ("nn.Module.zero_grad", resetting_all),
        ("data.DataLoader.__iter__", loading_batches), ("nn.Sequential.__setitem__", putting), ("nn.ModuleList.__setitem__", putting), ("nn.Module.train", switching(True)), ("nn.Module.eval", switching(False)),
        ("nn.Module.load_state_dict", loading), ("load", filed), ("optim.Optimizer.load_state_dict", restoring),
        ("autograd.Parameter.__imul__", augmenting), ("optim.Optimizer.__setstate__", copying), ("autograd.Value.requires_grad", lambda old: _Asks(world, old)),
        ("Tensor.data", lambda old: _data(world, old)), *_no_grad(world),
        *[(f"autograd.Parameter.{name}", by_hand(name)) for name in ("__iadd__", "__isub__", "__itruediv__", "__ipow__", "__imatmul__")],
        *[(f"Tensor.{name}", by_hand(name)) for name in ("__gt__", "__ge__", "__lt__", "__le__", "__eq__", "__ne__")],
        ("Tensor.__setitem__", assigning),
        ("schedules.StepLR.__init__", scheduling), ("schedules.CosineLR.__init__", scheduling), ("schedules.Warmup.__init__", scheduling),
        ("schedules.Schedule.step", advancing("step")), ("schedules.Schedule.load_state_dict", advancing("state_dict")),
    ]  # fmt: skip
    return Patch(tuple(changes))


def _restored(world: World, optimizer: Any, how: str) -> None:
    if world.wrong("optimizer", Made(world, optimizer, how)):
        optimizer.lr = optimizer.lr * 2 + 0.125
    world.look_at(optimizer)


def _no_grad(world: World) -> list[tuple[str, Callable[[Any], Any]]]:
    def entering(old: Any) -> Any:
        def patched(self: Any) -> Any:
            if type(self) is autograd.no_grad:
                world.modes.append(autograd._is_recording())
            return old(self)

        return patched

    def leaving(old: Any) -> Any:
        def patched(self: Any, *exception: Any) -> None:
            old(self, *exception)
            if type(self) is not autograd.no_grad or not world.modes:
                return
            world.modes.pop()
            raised = exception[:1] != (None,)
            if world.modes:
                world.inner = "exception" if raised else "nested"
                return
            inside = world.inner == "exception"
            how = "exception" if inside and raised else "exception inside" if inside else world.inner
            last = world.past[-1] if world.past else None
            if not how and isinstance(last, ModelCall) and not last.recording and last.training and not last.hooked:
                how = "forward pass"
            if world.wrong("no_grad", Block("decorator" if world.decorated else how)):
                autograd._recording.set(False)
            world.inner = ""

        return patched

    def decorating(old: Any) -> Any:
        def patched(self: Any, function: Any) -> Any:
            made = old(self, function)

            def called(*args: Any, **keywords: Any) -> Any:
                world.decorated += 1
                try:
                    return made(*args, **keywords)
                finally:
                    world.decorated -= 1

            return called

        return patched

    return [
        ("autograd._GradMode.__enter__", entering),
        ("autograd._GradMode.__exit__", leaving),
        ("autograd._GradMode.__call__", decorating),
    ]
