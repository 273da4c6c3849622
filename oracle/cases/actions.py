"""What does a user do between, before and after training steps? One block per action.

A block says how the action stands in the case file (its fields), how it is drawn (``drawn``), what it is in needle (``needle``,
on a `Hands`) and what it must do to a state of plain arrays (``meaning``, on a `Known`): every entry of the state that the
meaning does not name keeps its bits. Entries in ``Known.judged`` are numbers, and judged by the rules G, L and T with torch
beside them: gradients and buffers of a `Pass`, the update of a `Step`, the gradients of a `ClipNorm`.

Every action is defined in every state, so that actions can be left out when a case is made smaller: where there is nothing
to do, it does nothing. ``examples`` are its forms, a label of the coverage each. Knows neither needle nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Union, get_args

import numpy as np
from msgspec.structs import replace

from oracle.cases.action import Action, Array, Hands, Plan, Write
from oracle.cases.bounds import Fraction, NonNegative, Number, Place, require
from oracle.cases.in_place import Augment
from oracle.cases.known import SETTINGS, STATES, Known
from oracle.cases.layer_actions import PutLayer, SwapLayers, within
from oracle.cases.loading import Loader
from oracle.cases.mishaps import Mishap, Rewind, refused
from oracle.cases.schedules import Advance, Attach, after_loading
from oracle.operations.drawn import Draw

__all__ = [
    "Action",
    "Advance",
    "Attach",
    "Augment",
    "Hands",
    "Loader",
    "Mishap",
    "Plan",
    "PutLayer",
    "Rewind",
    "SwapLayers",
    "refused",
    "within",
]

Special = Literal["nan", "inf", "-inf"]


# -- passes and steps -------------------------------------------------------------------------------------------------


class Pass(Action, frozen=True, tag="Pass"):
    """A forward and a backward pass on the next batch, in the mode in which every layer is.

        ``reset`` calls ``reset_grad`` of the first optimizer before; ``add`` adds the gradients from before by hand; "twice" goes
        back through the graph twice, by ``retain_graph``, and asks that a third time is refused; "with graph" makes gradients that carry one,
    by ``create_graph``; ``keep`` keeps loss and output; "transposed" and "strided" are how the input lies in memory. With ``computed`` the
    layer of the parameter with that number has ``p * 1`` in its place for this pass, which no user of a Parameter is: all numbers are the same.
    """

    backward: Literal["once", "twice", "with graph"] = "once"
    reset: bool = True
    add: bool = False
    to_input: bool = False
    keep: bool = False
    computed: Place | None = None
    layout: Literal["plain", "transposed", "strided"] = "plain"

    weight = 0

    @property
    def words(self) -> str:
        """What it is called."""
        if self.computed is not None:
            return "pass, a parameter computed"
        if self.layout != "plain":
            return f"pass, input {self.layout}"
        if self.add:
            return "pass, gradients added by hand"
        if self.keep:
            return "pass, loss and output kept"
        if self.to_input:
            return "pass, to the input"
        if self.backward == "with graph":
            return "pass, gradients with a graph"
        return "pass, two backward" if self.backward == "twice" else "pass" if self.reset else "pass without reset"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Pass:
        """Mostly plain."""
        kind = draw.of(_PASSES)
        return cls(
            backward=kind if kind in ("twice", "with graph") else "once",
            reset=kind not in ("add", "stale"),
            add=kind == "add",
            to_input=(draw.whole(1, 6) == 1),
            keep=kind == "keep",
            computed=plan.parameter(draw) if kind == "computed" else None,
            layout=kind if kind in ("transposed", "strided") else "plain",
        )

    @property
    def plain(self) -> Pass:
        """The same with parameters as they are, on a batch in memory as usual."""
        return replace(self, computed=None, layout="plain")

    def input(self, values: Array) -> Array:
        """The batch as it lies in memory."""
        return values if self.layout == "plain" else laid_out(self.layout, values)

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        if self.reset:
            yield "optimizers[0].reset_grad()"
        yield "before = {n: p.grad for n, p in parameters.items() if p.grad is not None and p.grad.dtype == p.dtype}"
        yield f"np.random.seed(SEEDS[{k.passes}])"
        yield f"x = ndl.Tensor(X[{k.passes}], requires_grad={self.to_input})"
        if self.layout != "plain":
            yield f"x.cached_data = laid_out({self.layout!r}, X[{k.passes}])"
        name = "" if self.computed is None else k.parameter(self.computed)
        path, _, attribute = name.rpartition(".")
        if name:
            yield f"layers[{path!r}].{attribute} = parameters[{name!r}] * 1.0"
        yield "out = model(x)"
        if name:
            yield f"layers[{path!r}].{attribute} = parameters[{name!r}]"
        yield f"loss, start = loss_of(out, {k.passes})"
        yield "if loss.requires_grad:"
        if self.backward == "twice":
            yield "    loss.backward(*start, retain_graph=True)"
        yield f"    loss.backward(*start{', create_graph=True' * (self.backward == 'with graph')})"
        yield "fresh = {n: p.grad for n, p in parameters.items() if p.grad is not None}"
        if self.add:
            yield "for n in before:"
            yield "    if parameters[n].requires_grad:"
            yield "        parameters[n].grad = before[n].data + parameters[n].grad.data"

    def needle(self, w: Hands) -> None:
        """``loss.backward()``."""
        if self.reset:
            w.optimizers[0].reset_grad()
        w.run(self)

    def meaning(self, k: Known) -> None:
        """Gradients, and running statistics, are judged by rule G."""
        if self.reset:
            for name in k.optimizers[0][1]:
                k.values.pop(f"gradient {name}", None)
        k.passes += 1
        k.judged |= {f"gradient {name}" for name in k.parameters if k.values[f"requires_grad {name}"]}
        for key in k.values:
            kind, _, name = key.partition(" ")
            if kind == "buffer" and k.values[f"mode {name.rpartition('.')[0]}"]:
                k.judged.add(key)


_PASSES: tuple[Any, ...] = (
    *["plain"] * 8,
    "twice",
    "twice",
    "with graph",
    "with graph",
    "add",
    "add",
    "stale",
    "keep",
    "keep",
    "computed",
    "computed",
    "transposed",
    "strided",
)
Pass.examples = (
    Pass(),
    Pass("twice"),
    Pass("with graph"),
    Pass(reset=False, add=True),
    Pass(reset=False),
    Pass(to_input=True),
    Pass(keep=True),
    Pass(computed=0),
    Pass(layout="transposed"),
    Pass(layout="strided"),
)


class Step(Action, frozen=True, tag="Step"):
    """``optimizer.step()``, with whatever gradients are there."""

    optimizer: Place = 0

    weight = 0

    @property
    def words(self) -> str:
        """What it is called."""
        return "step" if not self.optimizer else "step of the second optimizer"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Step:
        """Of any optimizer."""
        return cls(plan.optimizer(draw))

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        yield f"optimizers[{k.optimizer(self.optimizer)}].step()"

    def needle(self, w: Hands) -> None:
        """``optimizer.step()``; what it keeps are numbers, also of gradients that carry a graph."""
        optimizer = w.optimizer(self.optimizer)
        optimizer.step()
        if not w.strict:
            return
        kept = [getattr(optimizer, name) for name in STATES[type(optimizer).__name__].values()]
        # what the user has put there for a parameter that the step leaves out is as it was
        stepped = [p for p in optimizer.params if p.requires_grad and p.grad is not None]
        states = [held[p] for held in kept for p in stepped if p in held]
        w.promise("after a step no state carries a graph", all(s.is_leaf() for s in states if hasattr(s, "is_leaf")))
        w.promise("after a step parameters are leaves", all(p.is_leaf() for p in optimizer.params))

    def meaning(self, k: Known) -> None:
        """Parameters with a gradient, and their state, are judged by the rules L and T."""
        i = k.optimizer(self.optimizer)
        kind = k.optimizers[i][0]
        for name in k.graded(i):
            k.judged |= {f"parameter {name}", *(f"optimizer {i}: {q} {name}" for q in STATES[kind])}
            if kind == "Adam":
                k.values[f"optimizer {i}: t {name}"] = k.values.get(f"optimizer {i}: t {name}", 0) + 1


Step.examples = (Step(), Step(1))


class ClipNorm(Action, frozen=True, tag="ClipNorm"):
    """``optimizer.clip_grad_norm(max_norm)``; ``at`` says where max_norm lies beside the norm of the gradients."""

    at: Literal["default", "norm", "below", "far below", "above", "far above", "inf", "three"] = "below"
    optimizer: Place = 0

    needs_gradients = True
    weight = 4

    @property
    def words(self) -> str:
        """What it is called."""
        return f"clip, max_norm {self.at}"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> ClipNorm:
        """Anywhere."""
        return cls(draw.of((*_CLIPS, "norm")), plan.optimizer(draw))

    def max_norm(self, gradients: Iterable[Array]) -> float | None:
        """The argument."""
        norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients)) or 1.0
        return None if self.at == "default" else 3.0 if self.at == "three" else norm * _PLACES[self.at]

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        i = k.optimizer(self.optimizer)
        yield f"graded = [p.grad.cached_data for p in optimizers[{i}].params if p.grad is not None]"
        yield "size = float(np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in graded))) or 1.0"
        given = {"default": "", "three": "3.0"}.get(self.at, f"{_PLACES.get(self.at)} * size")
        yield f"norm = optimizers[{i}].clip_grad_norm({given})"

    def needle(self, w: Hands) -> None:
        """``optimizer.clip_grad_norm(…)``; what held the gradients is left alone."""
        optimizer = w.optimizer(self.optimizer)
        graded = [g for p in optimizer.params if (g := getattr(p, "grad", None)) is not None]
        for grad in graded:
            w.hold("gradient before clipping", grad)
        w.clip(optimizer, self.max_norm([np.asarray(g.numpy()) for g in graded]))

    def meaning(self, k: Known) -> None:
        """The gradients are judged by rule L, and by their bits where they are not clipped."""
        k.judged |= {f"gradient {name}" for name in k.graded(k.optimizer(self.optimizer))}


_PLACES = {"norm": 1.0, "below": 1 / 3, "far below": 1e-4, "above": 1.5, "far above": 1e3, "inf": math.inf}
_CLIPS: tuple[Any, ...] = ("below", "default", "norm", "far below", "above", "far above", "inf", "three")
ClipNorm.examples = tuple(ClipNorm(at) for at in _CLIPS)


class Reset(Action, frozen=True, tag="Reset"):
    """``optimizer.reset_grad()``, before a step: it has nothing to do then; or ``zero_grad()``, of the optimizer or of the model."""

    optimizer: Place = 0
    by: Literal["reset_grad", "zero_grad", "model"] = "reset_grad"

    weight = 3
    needs_gradients = True

    @property
    def words(self) -> str:
        """What it is called."""
        return {"reset_grad": "reset", "zero_grad": "reset by zero_grad", "model": "reset by the model"}[self.by]

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Reset:
        """Any way."""
        return cls(plan.optimizer(draw), draw.of(_RESETS))

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        whose = "model" if self.by == "model" else f"optimizers[{k.optimizer(self.optimizer)}]"
        yield f"{whose}.{'reset_grad' if self.by == 'reset_grad' else 'zero_grad'}()"

    def needle(self, w: Hands) -> None:
        """``optimizer.reset_grad()``."""
        if self.by == "model":
            w.model.zero_grad()
        elif self.by == "zero_grad":
            w.optimizer(self.optimizer).zero_grad()
        else:
            w.optimizer(self.optimizer).reset_grad()

    def meaning(self, k: Known) -> None:
        """No gradient is left."""
        own = k.parameters if self.by == "model" else k.optimizers[k.optimizer(self.optimizer)][1]
        for name in own:
            k.values.pop(f"gradient {name}", None)


_RESETS: tuple[Any, ...] = ("reset_grad", "zero_grad", "model")
Reset.examples = tuple(Reset(by=by) for by in _RESETS)


# -- hyperparameters --------------------------------------------------------------------------------------------------


def _sound(name: str, value: float) -> bool:
    """Whether a constructor takes the value of a hyperparameter."""
    if name in ("momentum", "beta1", "beta2"):
        return 0 <= value < 1
    return 0 < value < math.inf if name in ("eps", "max_norm") else 0 <= value < math.inf


Setting = Literal["lr", "momentum", "weight_decay", "beta1", "beta2", "eps"]


class Set(Action, frozen=True, tag="Set"):
    """``optimizer.lr = 0.3``, or another hyperparameter; one that the optimizer does not have is left alone."""

    setting: Setting
    value: Number
    optimizer: Place = 0

    weight = 6

    def __post_init__(self) -> None:
        require(
            _sound(self.setting, self.value), f"Set: {self.setting}={self.value} is refused, which is for Refuse to ask"
        )

    @property
    def words(self) -> str:
        """What it is called."""
        if self.value == 0 and self.setting in ("lr", "momentum", "weight_decay"):
            return f"set {self.setting} to 0"
        return f"set {self.setting}" + " above 1" * (self.value > 1)

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Set:
        """One that the optimizer has."""
        i = plan.optimizer(draw)
        name = draw.of(_NAMES[plan.optimizers[i]])
        return cls(name, draw.of(_VALUES[name]), i)

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        i = k.optimizer(self.optimizer)
        if f"optimizer {i}: {self.setting}" in k.values:
            yield f"optimizers[{i}].{self.setting} = {self.value}"

    def needle(self, w: Hands) -> None:
        """``optimizer.lr = …``."""
        optimizer = w.optimizer(self.optimizer)
        if hasattr(optimizer, self.setting):
            setattr(optimizer, self.setting, self.value)

    def meaning(self, k: Known) -> None:
        """From now on the new one is in force."""
        key = f"optimizer {k.optimizer(self.optimizer)}: {self.setting}"
        if key in k.values:
            k.values[key] = self.value


_NAMES = {kind: tuple(name for name in settings) for kind, settings in SETTINGS.items()}
_GIVEN: dict[str, tuple[float, ...]] = {
    "lr": (0.3, 0.05, 1e-3, 0.0, 2.0),
    "momentum": (0.9, 0.5, 0.0, 0.25),
    "weight_decay": (0.1, 0.5, 0.0, 1.5),
    "beta1": (0.5, 0.9, 0.0),
    "beta2": (0.9, 0.5, 0.999),
    "eps": (1e-3, 1e-8, 0.5, 2.0),
}
_VALUES = {name: tuple(value for value in values) for name, values in _GIVEN.items()}
Set.examples = (
    Set("lr", 0.3), Set("lr", 0.0), Set("lr", 2.0), Set("momentum", 0.5), Set("momentum", 0.0),
    Set("weight_decay", 0.5), Set("weight_decay", 0.0), Set("weight_decay", 1.5),
    Set("beta1", 0.5), Set("beta2", 0.9), Set("eps", 1e-3), Set("eps", 2.0),
)  # fmt: skip


class SetLayer(Action, frozen=True, tag="SetLayer"):
    """``layer.p = 0.9`` of a Dropout, ``momentum`` of a BatchNorm, ``eps`` of any norm: from the next pass on."""

    setting: Literal["p", "momentum", "eps"]
    value: Fraction
    layer: Place = 0

    weight = 4

    def __post_init__(self) -> None:
        require(self.value > 0 or self.setting != "eps", "SetLayer: eps must be positive")

    @property
    def words(self) -> str:
        """What it is called."""
        return f"set {self.setting} of a layer"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> SetLayer:
        """Of the first layers; one that a layer has, if there is any."""
        name = draw.of(plan.tuned or tuple(_LAYER_VALUES))
        return cls(name, draw.of(_LAYER_VALUES[name]), draw.whole(0, 2))

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        path = k.with_setting(self.setting, self.layer)
        if path:
            yield f"layers[{path!r}].{self.setting} = {self.value}"

    def needle(self, w: Hands) -> None:
        """``layer.p = …``."""
        module = w.with_setting(self.setting, self.layer)
        if module is not None:
            setattr(module, self.setting, self.value)

    def meaning(self, k: Known) -> None:
        """From now on the new one is in force."""
        path = k.with_setting(self.setting, self.layer)
        if path:
            k.values[f"setting {path} {self.setting}"] = self.value


_LAYER_VALUES: dict[Any, tuple[float, ...]] = {
    "p": (0.9, 0.25, 0.0, 0.5), "momentum": (0.5, 0.25, 0.0, 1.0), "eps": (0.5, 1e-3, 0.1),
}  # fmt: skip
SetLayer.examples = (SetLayer("p", 0.9), SetLayer("momentum", 0.25), SetLayer("eps", 0.5))


class Refuse(Action, frozen=True, tag="Refuse"):
    """``optimizer.lr = -1``: a ValueError on assignment or at the step, before anything is updated; then the old one again.

    ``max_norm`` is the argument of clip_grad_norm.
    """

    setting: Setting | Literal["max_norm"]
    value: Number | Special
    optimizer: Place = 0

    needs_gradients = True
    weight = 4

    def __post_init__(self) -> None:
        require(not _sound(self.setting, float(self.value)), f"Refuse: {self.setting}={self.value} must not be refused")

    @property
    def words(self) -> str:
        """What it is called."""
        return f"refuse {self.setting}"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Refuse:
        """One that the optimizer has."""
        i = plan.optimizer(draw)
        name = draw.of(_REFUSING[plan.optimizers[i]])
        return cls(name, draw.of(_REFUSED_VALUES[name]), i)

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        i = k.optimizer(self.optimizer)
        optimizer, value = f"optimizers[{i}]", f"float({str(self.value)!r})"
        if self.setting != "max_norm" and f"{f'optimizer {i}'}: {self.setting}" not in k.values:
            return
        yield "refused = False"
        if self.setting != "max_norm":
            yield f"sound = {optimizer}.{self.setting}"
        yield "try:"
        if self.setting == "max_norm":
            yield f"    {optimizer}.clip_grad_norm({value})"
        else:
            yield f"    {optimizer}.{self.setting} = {value}"
            yield f"    {optimizer}.step()"
        yield "except ValueError:"
        yield "    refused = True"
        if self.setting != "max_norm":
            yield f"{optimizer}.{self.setting} = sound"

    def needle(self, w: Hands) -> None:
        """``optimizer.lr = …``, ``optimizer.step()``."""
        optimizer, value = w.optimizer(self.optimizer), float(self.value)
        if self.setting != "max_norm" and not hasattr(optimizer, self.setting):
            return
        before = getattr(optimizer, self.setting, None)
        try:
            if self.setting == "max_norm":
                optimizer.clip_grad_norm(value)
            else:
                setattr(optimizer, self.setting, value)
                optimizer.step()
        except ValueError:
            w.promise(f"{self.setting}={self.value} is refused", True)
        else:
            w.promise(f"{self.setting}={self.value} is refused", False)
        if self.setting != "max_norm":
            setattr(optimizer, self.setting, before)


_REFUSED: dict[str, tuple[float | str, ...]] = {
    "lr": (-0.1, "nan", "inf"),
    "momentum": (1.0, -0.5, "nan"),
    "weight_decay": (-0.1, "inf", "nan"),
    "beta1": (1.0, -0.5, "nan"),
    "beta2": (1.0, -0.5, "nan"),
    "eps": (0.0, -1.0, "nan"),
    "max_norm": (0.0, -1.0, "nan"),
}
_REFUSED_VALUES = {name: tuple(value for value in values) for name, values in _REFUSED.items()}
_REFUSING = {kind: tuple(name for name in (*known, "max_norm")) for kind, known in SETTINGS.items()}
Refuse.examples = tuple(Refuse(name, values[0]) for name, values in _REFUSED.items())  # type: ignore[arg-type]


# -- parameters, velocities, gradients --------------------------------------------------------------------------------


def laid_out(form: str, values: Array) -> Array:
    """The numbers in an array as a user may hand it in."""
    if form == "strided" and values.size:
        wide = np.full((*values.shape[:-1], 2 * values.shape[-1]), 7.0, values.dtype)
        wide[..., ::2] = values
        return wide[..., ::2]
    if form == "reversed" and values.size:
        return np.ascontiguousarray(values[..., ::-1])[..., ::-1]
    if form == "transposed":
        return np.ascontiguousarray(values.T).T
    if form == "repeated" and values.size:
        return np.broadcast_to(values.flat[:1], values.shape)
    array = np.array(values, {"float64": "float64", "integer": "int64"}.get(form, values.dtype))
    if form == "read-only":
        array.setflags(write=False)
    return array


def _tensor(w: Hands, form: str, values: Array) -> Any:
    """The same as a Tensor, on that very memory."""
    tensor = w.ndl.Tensor(np.array(values), requires_grad=False)
    tensor.cached_data = laid_out(form, values)
    return tensor


def _no_matrix(form: str, shape: Sequence[int]) -> bool:
    """Whether this is left alone: what has one row or column lies in memory in one way alone."""
    return form == "transposed" and (len(shape) != 2 or min(shape) < 2)


def _partner(names: Sequence[str], shape: Callable[[str], Any], name: str) -> str:
    """Another parameter of the same shape; itself if there is none."""
    return next((n for n in names if n != name and shape(n) == shape(name)), name)


class Freeze(Action, frozen=True, tag="Freeze"):
    """``parameter.requires_grad = False``; a gradient that is there stays, as in torch."""

    parameter: Place = 0
    frozen: bool = True

    weight = 5

    @property
    def words(self) -> str:
        """What it is called."""
        return "freeze" if self.frozen else "unfreeze"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Freeze:
        """Any parameter; unfrozen nearly as often, which matters where it was frozen."""
        return cls(plan.parameter(draw), draw.whole(1, 3) != 1)

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        yield f"parameters[{k.parameter(self.parameter)!r}].requires_grad = {not self.frozen}"

    def needle(self, w: Hands) -> None:
        """``parameter.requires_grad = …``."""
        w.parameter(self.parameter)[1].requires_grad = not self.frozen

    def meaning(self, k: Known) -> None:
        """No gradient flows to it, or one does again."""
        k.values[f"requires_grad {k.parameter(self.parameter)}"] = not self.frozen


Freeze.examples = (Freeze(), Freeze(frozen=False))


class ReplaceData(Action, frozen=True, tag="ReplaceData"):
    """``parameter.data = …``: other numbers, in another memory or in the same.

    "kept": the user goes on holding what was handed in; "shared": the data of another parameter of that shape, "vector": of
    shape (n,) for a bias (1, n), "in place" writes into the array, "augmented" is ``p *= 0.5`` under ``no_grad``; "part" is a part of a Tensor
    that the user goes on holding; "transposed" leaves alone what is no matrix.
    """

    form: Literal[
        "plain", "kept", "strided", "transposed", "read-only", "shared", "vector", "in place", "augmented", "part"
    ] = "plain"
    parameter: Place = 0

    weight = 6

    @property
    def words(self) -> str:
        """What it is called."""
        return f"data {self.form}"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> ReplaceData:
        """Any form of any parameter."""
        return cls(draw.of(_DATA), plan.parameter(draw))

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        name = k.parameter(self.parameter)
        p, values = f"parameters[{name!r}]", k.numbers(name)
        if _no_matrix(self.form, values.shape):
            yield f"# nothing is done with {p}"
        elif self.form == "augmented":
            yield f"kept.append({p}.data)"
            yield f"with ndl.no_grad():\n    {p} *= 0.5"
        elif self.form == "shared":
            yield f"{p}.data = parameters[{_partner(k.parameters, k.shape, name)!r}].data"
        elif self.form == "in place":
            yield f"{p}.cached_data[...] = {write(values)}"
        elif self.form == "part":
            yield f"whole = ndl.Tensor(np.stack([{write(values)}] * 2), requires_grad=False)"
            yield "given = ndl.Tensor(whole, requires_grad=False)"
            yield f"given.cached_data = whole.numpy()[0]\n{p}.data = given"
            yield "kept.append(whole)"
        else:
            flat = self.form == "vector" and values.shape[:-1] == (1,)
            yield f"given = tensor({self.form!r}, {write(values.reshape(-1) if flat else values)})"
            yield f"{p}.data = given"
            yield "kept.append(given)" if self.form not in ("plain", "vector", "transposed") else "del given"

    def needle(self, w: Hands) -> None:
        """``p.data = …``."""
        name, p = w.parameter(self.parameter)
        values = w.numbers(p)
        if _no_matrix(self.form, p.shape) or (self.form == "in place" and w.write(p, values)):
            return
        if self.form == "augmented":
            w.hold("p.data", p.data)
            with w.ndl.no_grad():
                p *= 0.5
        elif self.form == "shared":
            p.data = w.parameters[_partner(list(w.parameters), lambda n: w.parameters[n].shape, name)].data
        elif self.form == "part":
            whole = w.ndl.Tensor(np.stack([values] * 2), requires_grad=False)
            w.hold("Tensor that the data is a part of", whole)
            given = w.ndl.Tensor(values, requires_grad=False)
            given.cached_data = whole.numpy()[0]
            p.data = given
        elif self.form == "vector":
            p.data = w.ndl.Tensor(values.reshape(-1) if p.shape[:-1] == (1,) else values, requires_grad=False)
        else:
            tensor = _tensor(w, self.form, values)
            p.data = tensor
            if self.form not in ("plain", "transposed"):
                w.hold("data handed in", tensor)

    def meaning(self, k: Known) -> None:
        """The parameter has these numbers."""
        name = k.parameter(self.parameter)
        values = k.numbers(name)
        if _no_matrix(self.form, values.shape):
            return
        if self.form == "augmented":
            values = k.values[f"parameter {name}"] * np.float32(0.5)
        elif self.form == "shared":
            values = k.values[f"parameter {_partner(k.parameters, k.shape, name)}"]
        k.values[f"parameter {name}"] = values


_DATA: tuple[Any, ...] = (
    "plain", "kept", "strided", "transposed", "read-only", "shared", "vector", "in place", "augmented", "part",
)  # fmt: skip
ReplaceData.examples = tuple(ReplaceData(form) for form in _DATA)


class ReplaceState(Action, frozen=True, tag="ReplaceState"):
    """``optimizer.u[parameter] = …``: another velocity (of Adam, a moment); "array" is no Tensor, "gradient" is ``p.grad``,
    and leaves what there is where that cannot be.
    """

    form: Literal["plain", "kept", "array", "float64", "strided", "read-only", "in place", "gradient"] = "plain"
    parameter: Place = 0
    optimizer: Place = 0
    second: bool = False  # Adam's second moment

    weight = 6

    @property
    def words(self) -> str:
        """What it is called."""
        return f"velocity {self.form}"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> ReplaceState:
        """Any form."""
        i = plan.optimizer(draw)
        second = plan.optimizers[i] == "Adam" and (draw.whole(1, 2) == 1)
        return cls(draw.of(_STATE), plan.parameter(draw), i, second)

    def _gradient(self, quantity: str, present: bool) -> bool:
        # a second moment is a square, and a gradient is not
        return self.form == "gradient" and quantity != "second moment" and present

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        i = k.optimizer(self.optimizer)
        kind, names = k.optimizers[i]
        name = names[self.parameter % len(names)]
        quantity, attribute = self._state(kind)
        state, values = f"optimizers[{i}].{attribute}", k.numbers(name, positive=quantity == "second moment")
        p, grad = f"parameters[{name!r}]", k.values.get(f"gradient {name}")
        if self.form == "in place" and f"optimizer {i}: {quantity} {name}" in k.values:
            yield f"getattr({state}[{p}], 'cached_data', {state}[{p}])[...] = {write(values)}"
        elif self._gradient(quantity, grad is not None and grad.dtype == np.float32):
            yield f"{state}[{p}] = {p}.grad"
        elif self.form == "array":
            yield f"{state}[{p}] = {write(values)}"
        elif self.form != "gradient":
            yield f"{state}[{p}] = tensor({self.form!r}, {write(values)})"
            if self.form in ("kept", "strided", "read-only", "float64"):
                yield f"kept.append({state}[{p}])"

    def needle(self, w: Hands) -> None:
        """``optimizer.u[p] = …``."""
        optimizer = w.optimizer(self.optimizer)
        _, p = w.listed(self.optimizer, self.parameter)
        quantity, attribute = self._state(type(optimizer).__name__)
        held = getattr(optimizer, attribute)
        values = w.numbers(p, positive=quantity == "second moment")
        same = p.grad is not None and p.grad.dtype == p.dtype
        if self.form == "in place" and p in held and hasattr(held[p], "cached_data"):
            values = values.astype(held[p].cached_data.dtype)
            if w.write(held[p], values):
                return
        elif self.form == "in place" and isinstance(held.get(p), np.ndarray):
            held[p][...] = values
            return
        if self._gradient(quantity, same):
            held[p] = p.grad
        elif self.form == "array":
            held[p] = np.array(values)
        elif self.form != "gradient":
            held[p] = _tensor(w, self.form, values)
            if self.form in ("kept", "strided", "read-only", "float64"):
                w.hold("velocity handed in", held[p])

    def meaning(self, k: Known) -> None:
        """The optimizer goes on from there."""
        i = k.optimizer(self.optimizer)
        kind, names = k.optimizers[i]
        name = names[self.parameter % len(names)]
        quantity, _ = self._state(kind)
        values: Array = laid_out(self.form, k.numbers(name, positive=quantity == "second moment"))
        grad = k.values.get(f"gradient {name}")
        if self.form == "in place" and (old := k.values.get(f"optimizer {i}: {quantity} {name}")) is not None:
            values = values.astype(old.dtype)
        elif self._gradient(quantity, grad is not None and grad.dtype == np.float32):
            values = grad  # type: ignore[assignment]
        elif self.form == "gradient":
            return
        k.values[f"optimizer {i}: {quantity} {name}"] = np.array(values)

    def _state(self, kind: str) -> tuple[str, str]:
        states = list(STATES[kind].items())
        return states[min(self.second, len(states) - 1)]


_STATE: tuple[Any, ...] = ("plain", "kept", "array", "float64", "strided", "read-only", "in place", "gradient")
ReplaceState.examples = tuple(ReplaceState(form) for form in _STATE)


_Gradient = Literal[
    "plain",
    "float64",
    "integer",
    "strided",
    "reversed",
    "transposed",
    "repeated",
    "read-only",
    "shared",
    "parameter",
    "in place",
    "none",
]


class ReplaceGradient(Action, frozen=True, tag="ReplaceGradient"):
    """``parameter.grad = …`` before the step; "shared": one Tensor for two parameters, "parameter": its own data, "none": None,
    so that the step leaves the parameter out once; "repeated": one number, broadcast; "transposed" leaves alone what is no matrix.
    """

    form: _Gradient = "plain"
    parameter: Place = 0

    needs_gradients = True
    weight = 10

    @property
    def words(self) -> str:
        """What it is called."""
        return f"gradient {self.form}"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> ReplaceGradient:
        """Any form."""
        return cls(draw.of(_GRADIENTS), plan.parameter(draw))

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        name = k.parameter(self.parameter)
        p, values = f"parameters[{name!r}]", _whole(self.form, k.numbers(name))
        if _no_matrix(self.form, values.shape):
            yield f"# nothing is done with {p}"
        elif self.form in ("none", "parameter"):
            yield f"{p}.grad = {'None' if self.form == 'none' else p + '.data'}"
        elif self.form == "in place" and f"gradient {name}" in k.values:
            yield f"{p}.grad.cached_data[...] = {write(values)}"
        else:
            yield f"{p}.grad = tensor({self.form!r}, {write(values)})"
            if self.form == "shared":
                yield f"parameters[{_partner(k.parameters, k.shape, name)!r}].grad = {p}.grad"
            if self.form != "plain":
                yield f"kept.append({p}.grad)"

    def needle(self, w: Hands) -> None:
        """``p.grad = …``."""
        name, p = w.parameter(self.parameter)
        values = w.numbers(p)
        if _no_matrix(self.form, p.shape):
            return
        if self.form == "none":
            p.grad = None
        elif self.form == "parameter":
            p.grad = p.data
        else:
            if self.form == "in place" and p.grad is not None:
                values = values.astype(p.grad.dtype)
                if w.write(p.grad, values):
                    return
            p.grad = _tensor(w, self.form, _whole(self.form, values))
            if self.form != "plain":
                w.hold("gradient handed in", p.grad)
            if self.form == "shared":
                w.parameters[_partner(list(w.parameters), lambda n: w.parameters[n].shape, name)].grad = p.grad

    def meaning(self, k: Known) -> None:
        """The step takes this one."""
        name = k.parameter(self.parameter)
        key = f"gradient {name}"
        values = laid_out(self.form, _whole(self.form, k.numbers(name)))
        if _no_matrix(self.form, values.shape):
            return
        if self.form == "none":
            k.values.pop(key, None)
            return
        if self.form == "parameter":
            values = k.values[f"parameter {name}"]
        elif self.form == "in place" and key in k.values:
            values = values.astype(k.values[key].dtype)
        k.values[key] = np.array(values)
        if self.form == "shared":
            k.values[f"gradient {_partner(k.parameters, k.shape, name)}"] = np.array(values)


def _whole(form: str, values: Array) -> Array:
    return np.round(4 * values) if form == "integer" else values


_GRADIENTS: tuple[Any, ...] = get_args(_Gradient)
ReplaceGradient.examples = tuple(ReplaceGradient(form) for form in _GRADIENTS)


# -- optimizers -------------------------------------------------------------------------------------------------------


class NewOptimizer(Action, frozen=True, tag="NewOptimizer"):
    """One more optimizer of the same parameters; actions may use either."""

    optimizer: Literal["SGD", "Adam"] = "SGD"
    settings: dict[str, NonNegative] = {}  # noqa: RUF012 - msgspec copies it

    weight = 3

    def __post_init__(self) -> None:
        for name, value in self.settings.items():
            require(
                name in SETTINGS[self.optimizer] and _sound(name, value),
                f"NewOptimizer: {self.optimizer} does not take {name:.50}={value}",
            )

    @property
    def words(self) -> str:
        """What it is called."""
        return f"second optimizer {self.optimizer}"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> NewOptimizer:
        """With momentum as a rule."""
        kind: Literal["SGD", "Adam"] = draw.of(_KINDS)
        plan.optimizers.append(kind)
        return cls(kind, {"lr": draw.of(_NEW_LRS), **({"momentum": 0.5} if kind == "SGD" else {})})

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        given = "".join(f", {name}={value}" for name, value in self.settings.items())
        yield f"optimizers.append(ndl.optim.{self.optimizer}(model.parameters(){given}))"

    def needle(self, w: Hands) -> None:
        """``optim.SGD(model.parameters(), …)``."""
        w.another(self.optimizer, dict(self.settings))

    def meaning(self, k: Known) -> None:
        """It has a state of its own."""
        i = len(k.optimizers)
        k.optimizers.append((self.optimizer, list(k.parameters)))
        k.values |= {f"optimizer {i}: {n}": v for n, v in {**SETTINGS[self.optimizer], **self.settings}.items()}


_KINDS = ("SGD", "SGD", "Adam")
_NEW_LRS = (0.1, 0.01)
NewOptimizer.examples = (NewOptimizer("SGD", {"lr": 0.1, "momentum": 0.5}), NewOptimizer("Adam", {"lr": 0.1}))


class AddParameter(Action, frozen=True, tag="AddParameter"):
    """``optimizer.params.append(parameter)``: until then the first optimizer does not have it."""

    parameter: Place = 0

    weight = 3

    @property
    def words(self) -> str:
        """What it is called."""
        return "parameter added late"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> AddParameter:
        """Any parameter."""
        return cls(plan.parameter(draw))

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        name = k.parameter(self.parameter)
        if name not in k.optimizers[0][1]:
            yield f"optimizers[0].params.append(parameters[{name!r}])"

    def needle(self, w: Hands) -> None:
        """``optimizer.params.append(p)``."""
        _, p = w.parameter(self.parameter)
        if all(q is not p for q in w.optimizers[0].params):
            w.optimizers[0].params.append(p)

    def meaning(self, k: Known) -> None:
        """It is stepped too, and its state begins with zeros."""
        name = k.parameter(self.parameter)
        if name not in k.optimizers[0][1]:
            k.optimizers[0][1].append(name)


AddParameter.examples = (AddParameter(),)


# -- modes ------------------------------------------------------------------------------------------------------------


class Mode(Action, frozen=True, tag="Mode"):
    """``model.eval()`` or ``model.train()``, or of a part of it; ``by_train`` writes ``part.train(False)``, or ``part.train(True)``."""

    part: Place | None = None
    training: bool = True
    by_train: bool = False

    weight = 5

    def __post_init__(self) -> None:
        require(not self.by_train or self.part is not None, "Mode: by_train is for parts")

    @property
    def words(self) -> str:
        """What it is called."""
        if self.by_train:
            return f"train({self.training})"
        return ("train" if self.training else "eval") + (" the model" if self.part is None else " a part")

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Mode:
        """A part, as a rule."""
        part = None if (draw.whole(1, 4) == 1) else draw.whole(0, plan.layers - 1)
        return cls(part, draw.whole(1, 3) == 1, part is not None and draw.whole(1, 3) == 1)

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        module = "model" if self.part is None else f"layers[{k.layer(self.part)!r}]"
        yield (
            f"{module}.train({self.training})"
            if self.by_train
            else f"{module}.{'train' if self.training else 'eval'}()"
        )

    def needle(self, w: Hands) -> None:
        """``module.eval()``."""
        module = w.model if self.part is None else w.modules[list(w.modules)[self.part % len(w.modules)]]
        if self.by_train:
            module.train(self.training)
        elif self.training:
            module.train()
        else:
            module.eval()

    def meaning(self, k: Known) -> None:
        """The module and all in it."""
        root = "" if self.part is None else k.layer(self.part)
        for path in k.layers:
            if not root or path == root or path.startswith(f"{root}."):
                k.values[f"mode {path}"] = self.training


Mode.examples = (Mode(0, False), Mode(0), Mode(None, False), Mode(), Mode(0, False, True), Mode(0, True, True))


class Evaluate(Action, frozen=True, tag="Evaluate"):
    """``model.eval()``, a forward pass, ``model.train()``: between a pass and a step, too."""

    constant: bool = False  # within no_grad

    weight = 3
    needs_gradients = True

    @property
    def words(self) -> str:
        """What it is called."""
        return "evaluation in between" + (", under no_grad" if self.constant else "")

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Evaluate:
        """Either."""
        return cls(draw.whole(1, 2) == 1)

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        yield "model.eval()"
        if self.constant:
            yield f"with ndl.no_grad():\n    out = model(ndl.Tensor(X[{k.passes}], requires_grad=False))"
        else:
            yield f"out = model(ndl.Tensor(X[{k.passes}], requires_grad=False))"
        yield "model.train()"

    def needle(self, w: Hands) -> None:
        """``model(x)``."""
        w.model.eval()
        w.evaluate(constant=self.constant)
        w.model.train()

    def meaning(self, k: Known) -> None:
        """Nothing changes, but that all of the model trains; the output is judged by rule G."""
        k.values |= {f"mode {path}": True for path in k.layers}


Evaluate.examples = (Evaluate(), Evaluate(True))


class NoGrad(Action, frozen=True, tag="NoGrad"):
    """``no_grad`` within ``no_grad``, and left by an exception: afterwards things are as they were outside.

    "forward pass": in the modes that the layers are in, as who refreshes the statistics of a BatchNorm does; it is one with a graph to the bit.
    """

    how: Literal["nested", "exception", "exception inside", "decorator", "forward pass"] = "nested"

    weight = 3

    @property
    def words(self) -> str:
        """What it is called."""
        return f"no_grad, {self.how}"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> NoGrad:
        """Any."""
        return cls(draw.of(_HOWS))

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        if self.how == "forward pass":
            yield "# a forward pass, and the buffers are put back"
        else:
            yield f"nested_no_grad({self.how!r})"

    def needle(self, w: Hands) -> None:
        """``with no_grad(): …``."""
        leaf = w.ndl.nn.Parameter(w.ndl.Tensor(np.ones(2, np.float32)))

        def records() -> bool:
            return bool((leaf * 2.0).requires_grad)

        inside = [False]
        if self.how == "decorator":
            inside = [w.ndl.no_grad()(records)()]
        elif self.how == "nested":
            with w.ndl.no_grad():
                with w.ndl.no_grad():
                    inside = [records()]
                inside.append(records())
        elif self.how == "forward pass":
            inside = [w.forward_both_ways()]
        else:
            try:
                with w.ndl.no_grad():
                    try:
                        with w.ndl.no_grad():
                            raise KeyError
                    except KeyError:
                        inside = [records()]
                    if self.how == "exception":
                        raise KeyError
            except KeyError:
                pass
        w.promise("inside no_grad nothing is recorded", not any(inside))
        w.promise("after no_grad everything is recorded", records())


_HOWS: tuple[Any, ...] = ("nested", "exception", "exception inside", "decorator", "forward pass")
NoGrad.examples = tuple(NoGrad(what) for what in _HOWS)


# -- copies, and what is kept -----------------------------------------------------------------------------------------


class Load(Action, frozen=True, tag="Load"):
    """``fresh.load_state_dict(model.state_dict())``, new optimizers with the same settings, and on with them.

    ``optimizer`` does the same with the state of the optimizers, and of their schedules, which are otherwise gone. The arrays of the
    state dicts are then filled with nan: they share no memory with either side. ``file`` takes ``ndl.save`` and ``ndl.load``.
    """

    optimizer: bool = False
    file: bool = False

    weight = 5

    @property
    def words(self) -> str:
        """What it is called."""
        how = "a file" if self.file else "state_dict"
        return f"{how} into a fresh model" + (" and optimizer" if self.optimizer else "")

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Load:
        """Either."""
        return cls(draw.maybe(), draw.maybe())

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        yield "named = {id(p): n for n, p in parameters.items()}"
        if k.schedules:
            yield "before, schedules = schedules, {}"
        if self.file:
            yield "import tempfile"
            yield "folder = tempfile.TemporaryDirectory()"
            yield "old_model, (model, layers, parameters) = model, build()"
            if not self.optimizer:
                yield 'ndl.save(os.path.join(folder.name, "saved.npz"), old_model)'
                yield 'ndl.load(os.path.join(folder.name, "saved.npz"), model)'
        else:
            yield "state = model.state_dict()"
            yield "model, layers, parameters = build()"
            yield "model.load_state_dict(state)"
            yield "for a in state.values():\n    a[...] = np.nan"
        yield "old, optimizers = optimizers, []"
        yield "for o in old:"
        yield "    settings = {n: getattr(o, n) for n in SETTINGS[type(o).__name__]}"
        yield "    optimizers.append(type(o)([parameters[named[id(p)]] for p in o.params], **settings))"
        if self.optimizer:
            for i, schedule in k.schedules.items():
                yield f"    if len(optimizers) == {i + 1}:\n        schedules[{i}] = {schedule.made('optimizers[-1]')}"
        of = "before.get(len(optimizers) - 1)", "schedules.get(len(optimizers) - 1)"
        saved, loaded = (f", {one}" if k.schedules else "" for one in of)
        if self.optimizer and self.file:
            yield f'    ndl.save(os.path.join(folder.name, "saved.npz"), old_model, o{saved})'
            yield f'    ndl.load(os.path.join(folder.name, "saved.npz"), model, optimizers[-1]{loaded})'
        elif self.optimizer:
            yield "    optimizers[-1].load_state_dict(o.state_dict())"
            if k.schedules:
                yield "for i, schedule in schedules.items():\n    schedule.load_state_dict(before[i].state_dict())"
        if self.file:
            yield "folder.cleanup()"

    def needle(self, w: Hands) -> None:
        """``load_state_dict``."""
        w.loaded(optimizer=self.optimizer, file=self.file)

    def meaning(self, k: Known) -> None:
        """Parameters, buffers and, with the optimizer, its state are the same bits; the rest is that of a new model."""
        k.forget("gradient ")
        if not self.optimizer:
            kept = [(i, q) for i, (kind, _) in enumerate(k.optimizers) for q in (*STATES[kind], "t")]
            k.forget(*(f"optimizer {i}: {q} " for i, q in kept))
        for key, value in k.values.items():  # in the dtype of the parameter
            if key.startswith("optimizer ") and isinstance(value, np.ndarray):
                k.values[key] = value.astype(np.float32)
        k.values |= {f"requires_grad {name}": True for name in k.parameters}
        k.values |= {f"mode {path}": True for path in k.layers}
        k.values |= k.built
        after_loading(k, kept=self.optimizer)


Load.examples = (Load(), Load(True), Load(file=True), Load(True, True))


class Copy(Action, frozen=True, tag="Copy"):
    """``copy.deepcopy((model, optimizers))``, or through a pickle, and on with the copy; the original does the same for a while,
    and both must show the same bits.
    """

    how: Literal["deepcopy", "pickle"] = "deepcopy"

    weight = 5

    @property
    def words(self) -> str:
        """What it is called."""
        return self.how

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Copy:
        """Either."""
        return cls(draw.of(_COPIES))

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        whole = f"(model, layers, parameters, optimizers{', schedules' if k.schedules else ''})"
        how = f"copy.deepcopy({whole})" if self.how == "deepcopy" else f"pickle.loads(pickle.dumps({whole}))"
        yield f"{whole[1:-1]} = {how}"

    def needle(self, w: Hands) -> None:
        """``deepcopy``."""
        w.copied(self.how)


_COPIES = ("deepcopy", "pickle")
Copy.examples = (Copy(), Copy("pickle"))


class Keep(Action, frozen=True, tag="Keep"):
    """A Tensor or an array that the user goes on holding: ``p.data``, ``p.numpy()``, a part of it, ``p.grad``, ``optimizer.u[p]``.

    "buffers" are the arrays of all running statistics.
    """

    what: Literal["data", "numpy", "part", "gradient", "velocity", "buffers"] = "data"
    parameter: Place = 0
    optimizer: Place = 0

    weight = 4
    needs_gradients = True

    @property
    def words(self) -> str:
        """What it is called."""
        return f"kept {self.what}"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> Keep:
        """Anything."""
        return cls(draw.of(_KEPT), plan.parameter(draw), plan.optimizer(draw))

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        i = k.optimizer(self.optimizer)
        kind, names = k.optimizers[i]
        name = names[self.parameter % len(names)]
        p, state = f"parameters[{name!r}]", f"optimizers[{i}].{next(iter(STATES[kind].values()))}"
        shown = {
            "data": f"{p}.data", "numpy": f"{p}.numpy()", "part": f"{p}.numpy()[..., :1]", "gradient": f"{p}.grad",
            "velocity": f"{state}.get({p})", "buffers": "[b.numpy() for b in model.buffers()]",
        }  # fmt: skip
        yield f"kept.append({shown[self.what]})"

    def needle(self, w: Hands) -> None:
        """Hold it."""
        name, p = w.listed(self.optimizer, self.parameter)
        optimizer = w.optimizer(self.optimizer)
        if self.what == "data":
            w.hold(f"p.data of {name}", p.data)
        elif self.what == "numpy":
            w.hold(f"p.numpy() of {name}", p.numpy())
        elif self.what == "part":
            w.hold(f"a part of p.numpy() of {name}", p.numpy()[..., :1])
        elif self.what == "gradient" and p.grad is not None:
            w.hold(f"p.grad of {name}", p.grad)
        elif self.what == "velocity":
            held = getattr(optimizer, next(iter(STATES[type(optimizer).__name__].values())))
            if p in held:
                w.hold(f"velocity of {name}", held[p])
        elif self.what == "buffers":
            for place, buffer in enumerate(w.model.buffers()):
                w.hold(f"buffer {place}", buffer.numpy())


_KEPT: tuple[Any, ...] = ("data", "numpy", "part", "gradient", "velocity", "buffers")
Keep.examples = tuple(Keep(what) for what in _KEPT)


ACTIONS: tuple[type[Action], ...] = (
    Pass, Step, ClipNorm, Reset, Set, SetLayer, Refuse, Freeze, ReplaceData, Augment, ReplaceState, ReplaceGradient,
    NewOptimizer, AddParameter, Attach, Advance, PutLayer, SwapLayers, Loader, Mode, Evaluate, NoGrad, Load, Copy, Keep,
    Mishap, Rewind,
)  # fmt: skip
AnyAction: Any = Union[ACTIONS]  # noqa: UP007 - of as many as there are
EXAMPLES: dict[str, Action] = {one.words: one for kind in ACTIONS for one in kind.examples}
BETWEEN = [kind for kind in ACTIONS for _ in range(kind.weight) if not kind.needs_gradients]
BEFORE_STEP = [kind for kind in ACTIONS for _ in range(kind.weight) if kind.needs_gradients]
