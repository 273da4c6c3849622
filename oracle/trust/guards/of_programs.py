"""Guards of what users do around training: wrong after one kind of action.

In a program nobody looks at the layers. What a user did shows in what needle finds where it left something else: settings, gradients, states
and data that are not what they were, in another layout, or held by somebody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from needle import Tensor, nn, optim
from oracle.cases.actions import EXAMPLES, Refuse, Set
from oracle.trust.guards.guard import Guards
from oracle.trust.guards.of_training import is_tied
from oracle.trust.guards.seen import (
    NOBODY_ELSE,
    Assigned,
    Batch,
    Block,
    Layer,
    Made,
    Misfit,
    ModelCall,
    Restored,
    Scheduled,
    Switch,
    Update,
    Walk,
    kind_of,
    layouts,
    references,
    refused,
)

guard = Guards()
Array = Any


def program(when: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Of an update in a program."""
    return lambda f: not f.world.hooked and when(f)


def _passes(f: Update) -> list[Any]:
    """The last model call in training that was walked, what came before it, and the walks."""
    walks = [e for e in f.world.past if isinstance(e, Walk) and e.model is not None and e.order == 0]
    if not walks:
        return []
    model = walks[-1].model
    at = next(i for i, e in enumerate(f.world.past) if e is model)
    return [model, f.world.past[at - 1] if at else None, [w for w in walks if w.model is model]]


def passed(
    *, reset: bool | None = None, x: bool | None = False, kept: bool | None = False, walks: tuple[str, ...] = ("once",), added: bool | None = False
) -> Callable[[Update], bool]:  # fmt: skip
    """A step after such a pass; None is either way."""

    def asked(f: Update) -> bool:
        found = _passes(f)
        if not found:
            return False
        model, before, of = found
        kinds = tuple("graph" if w.create else "retain" if w.retain else "once" for w in of)
        was_reset = isinstance(before, tuple) and before[0] == "reset"
        ours = [p for p in f.optimizer.params if id(p) in of[-1].grads]
        untouched = bool(ours) and all(p.grad is not None and p.grad is of[-1].grads[id(p)]() for p in ours)
        summed = [p for p in ours if p.grad is not None and id(p) in of[-1].before and _is_sum(p, of[-1])]
        return (
            (reset is None or reset == was_reset)
            and (x is None or x == model.x_asks)
            and (kept is None or kept == (model.out() is not None))
            and kinds == walks
            and (added is None or (bool(summed) and not was_reset if added else untouched))
            and (was_reset or added is not False or _had_one(ours, of[-1]))
        )

    return program(asked)


def _input_lies(w: Walk, layout: str) -> bool:
    return w.order == 0 and not w.world.hooked and bool(w.world.order) and layouts(w.model.x) == {layout}  # type: ignore[union-attr]


def _had_one(parameters: list[Any], walk: Walk) -> bool:
    """Whether there was a gradient before, to which one could have been added."""
    return any(id(p) in walk.before and walk.before[id(p)].dtype == p.dtype for p in parameters)


def _is_sum(p: Any, walk: Walk) -> bool:
    before, after = walk.before[id(p)], walk.after[id(p)]
    return bool(before.any() and before.shape == p.grad.shape and np.array_equal(before + after, p.grad.cached_data))


guard("program pass", "step", passed(reset=True))
guard("program pass, two backward", "step", passed(reset=True, walks=("retain", "once")))
guard("program pass, gradients with a graph", "step", passed(reset=True, kept=None, walks=("graph",)))
guard("program pass, gradients added by hand", "step", passed(x=None, kept=None, added=True))
guard("program pass without reset", "step", passed(reset=False))
guard("program pass, to the input", "step", passed(reset=True, x=True))
guard("program pass, loss and output kept", "step", passed(reset=True, x=None, kept=True))
guard(
    "program pass, a parameter computed",
    "layer",
    lambda f: not f.hooked and any(isinstance(v, Tensor) and not v.is_leaf() for v in vars(f.module).values()),
)
guard("program pass, input transposed", "walk", lambda w: w.model is not None and _input_lies(w, "F"))
guard("program pass, input strided", "walk", lambda w: w.model is not None and _input_lies(w, "strided"))
guard("program step", "step", program(lambda f: f.world.order.get(f.optimizer) == 0))


def _after_a_walk(f: Update) -> bool:
    """Whether the model has not been called since the last backward pass."""
    return next((e for e in reversed(f.world.past) if kind_of(e) in ("model", "walk")), None) is _last_walk(f)


guard(
    "program step of the second optimizer",
    "step",
    program(lambda f: f.world.order.get(f.optimizer, 0) > 0 and _after_a_walk(f)),
)

# -- clipping


def _norm(f: Update) -> float:
    gradients = [p.grad.cached_data.astype(np.float64) for p in f.optimizer.params if p.grad is not None]
    return float(np.sqrt(sum(float((g**2).sum()) for g in gradients)))


def _at(ratio: float) -> Callable[[Update], bool]:
    def asked(f: Update) -> bool:
        if not f.args or not np.isfinite(f.args[0]) or f.args[0] == 3.0:
            return False
        norm = _norm(f)
        return bool(np.isfinite(norm) and norm > 0 and abs(f.args[0] / norm / ratio - 1) < 1e-4)

    return program(asked)


for _name, _ratio in {"norm": 1.0, "below": 1 / 3, "far below": 1e-4, "above": 1.5, "far above": 1e3}.items():
    guard(f"program clip, max_norm {_name}", "clip", _at(_ratio))
guard("program clip, max_norm default", "clip", program(lambda f: not f.args))
guard("program clip, max_norm inf", "clip", program(lambda f: bool(f.args) and f.args[0] == np.inf))
guard("program clip, max_norm three", "clip", program(lambda f: bool(f.args) and f.args[0] == 3.0))


def _reset_alone(how: str) -> Callable[[Update], bool]:
    return program(lambda f: bool(f.world.past) and kind_of(f.world.past[-1]) == "reset" and f.world.past[-1][2] == how)


guard("program reset", "step", _reset_alone("reset_grad"))
guard("program reset by zero_grad", "step", _reset_alone("zero_grad"))
guard("program reset by the model", "step", _reset_alone("model"))

# -- settings


def _set(name: str, low: float, high: float) -> Callable[[Update], bool]:
    """A setting that is another one than needle has last seen, above the lower limit and up to the other."""

    def asked(f: Update) -> bool:
        last = f.world.settings.get(f.optimizer, {})
        now = getattr(f.optimizer, name, None)
        return now is not None and name in last and now != last[name] and low < now <= high

    return program(asked)


def _refused(name: str) -> Callable[[Update], bool]:
    return lambda f: isinstance(f, Update) and not f.args and refused(f.optimizer) == name


_BOUNDS = {" to 0": (-1.0, 0.0), " above 1": (1.0, float("inf")), "": (0.0, 1.0)}
for _words, _action in EXAMPLES.items():
    if isinstance(_action, Set):
        _form = _words.removeprefix(f"set {_action.setting}")
        guard(f"program {_words}", "step", _set(_action.setting, *_BOUNDS[_form]))
    elif isinstance(_action, Refuse) and _action.setting != "max_norm":
        guard(f"program {_words}", "refusal", _refused(_action.setting))
guard("program refuse max_norm", "refusal", lambda f: isinstance(f, Update) and bool(f.args))


def _tuned(name: str) -> Callable[[Layer], bool]:
    def asked(f: Layer) -> bool:
        built = f.world.built.get(f.module, {})
        return not f.hooked and name in built and getattr(f.module, name) != built[name]

    return asked


for _name in ("p", "momentum", "eps"):
    guard(f"program set {_name} of a layer", "layer", _tuned(_name))

# -- parameters


def walked(when: Callable[[ModelCall, Walk], bool]) -> Callable[[Walk], bool]:
    """Of a backward pass in a program, over a model of which all parameters are an optimizer's."""
    return lambda w: (
        w.order == 0 and not w.world.hooked and w.model is not None and bool(w.world.order) and when(w.model, w)
    )


guard("program freeze", "walk", walked(lambda m, w: not all(p.requires_grad for p in m.root().parameters())))
guard("program unfreeze", "walk", walked(lambda m, w: w.world.unfrozen))


def _assigned(when: Callable[[Any, bool], bool]) -> Callable[[Update], bool]:
    """Since the last step, data like this has been assigned, and is held by somebody or by nobody."""
    return program(
        lambda f: any(p() is not None and when(about, value() is not None) for p, value, about in f.world.sets)
    )


_plain = {"C"}


def _fresh_data(a: Any, kept: bool) -> bool:
    return (
        not kept
        and a["rebound"]
        and a["layouts"] <= _plain
        and not (a["flat"] or a["shared"] or a["strided"] or a["fixed"] or a["part"])
    )


guard("program data plain", "step", _assigned(_fresh_data))
guard("program data vector", "step", _assigned(lambda a, kept: a["flat"]))
guard("program data strided", "step", _assigned(lambda a, kept: a["strided"] and a["layouts"] != {"F"}))
guard("program data read-only", "step", _assigned(lambda a, kept: a["fixed"]))
guard("program data transposed", "step", _assigned(lambda a, kept: a["layouts"] == {"F"}))
guard("program data shared", "step", _assigned(lambda a, kept: a["shared"]))
guard("program data part", "step", _assigned(lambda a, kept: a["part"] and not (a["shared"] or a["strided"])))


def _held_data(a: Any, kept: bool) -> bool:
    return kept and a["free"] and not (a["strided"] or a["fixed"] or a["shared"])


guard("program data kept", "step", _assigned(_held_data))


def _written(f: Update) -> bool:
    """Whether the array of a parameter is what it was, and has other numbers."""
    known = f.world.numbers
    arrays = [(p.cached_data, known[id(p)]) for p in f.optimizer.params if id(p) in known]
    return any(id(a) == was and a.tobytes() != numbers for a, (was, numbers) in arrays)


guard("program data in place", "step", program(_written))
guard("program data augmented", "step", program(lambda f: f.world.augmented > 0))


def _by_hand(name: str) -> Callable[[Update], bool]:
    return program(lambda f: name in f.world.by_hand)


for _form, _method in {"+=": "iadd", "-=": "isub", "/=": "itruediv", "**=": "ipow", "@=": "imatmul"}.items():
    guard(f"program data {_form}", "step", _by_hand(f"__{_method}__"))
for _form, _method in {"> and <": "lt", ">= and <=": "le", "== and !=": "ne"}.items():
    guard(f"program data masked by {_form}", "step", _by_hand(f"__{_method}__"))
guard("program data [...] =", "refusal", lambda f: isinstance(f, Assigned))

# -- states


def _replaced(f: Update) -> Iterator[tuple[Any, Any]]:
    """A dict of states, and a parameter with a state in it that is not what the last step has left."""
    o = f.optimizer
    for of in o._states:
        held = getattr(o, of)
        for p in o.params:
            known = f.world.states.get((id(o), of, id(p)))
            new = known is None and o in f.world.given  # what a copy has is not known
            if p in held and (new or (known is not None and held[p] is not known[0]())):
                yield held, p


def _state(when: Callable[[Any, Any], bool]) -> Callable[[Update], bool]:
    return program(lambda f: any(when(p, of[p]) for of, p in _replaced(f)))


def _mine(*others: bool) -> Callable[[Update], bool]:
    """A Tensor in memory of its own that has never been a gradient, where there was another before."""

    def ordinary(f: Update, of: Any, p: Any) -> bool:
        value = of[p]
        if not isinstance(value, Tensor) or _was_gradient(f, value):
            return False
        a, known = value.cached_data, [key for key in f.world.states if key[0] == id(f.optimizer) and key[2] == id(p)]
        if of is getattr(f.optimizer, "v", None):  # never a gradient, whatever the user asks for
            return False
        return bool(known) and a.flags.writeable and a.dtype == p.dtype and not _stepped(a)

    return program(
        lambda f: any(ordinary(f, of, p) and (references(of, p) > NOBODY_ELSE) in others for of, p in _replaced(f))
    )


def _stepped(a: Array) -> bool:
    return bool(a.size and a.ndim and abs(a.strides[-1]) == 2 * a.itemsize)


guard("program velocity array", "step", _state(lambda p, v: isinstance(v, np.ndarray)))
guard("program velocity float64", "step", _state(lambda p, v: isinstance(v, Tensor) and v.dtype == np.float64))
guard("program velocity strided", "step", _state(lambda p, v: isinstance(v, Tensor) and _stepped(v.cached_data)))
guard(
    "program velocity read-only",
    "step",
    program(
        lambda f: any(
            isinstance(of[p], Tensor) and not of[p].cached_data.flags.writeable and not _was_gradient(f, of[p])
            for of, p in _replaced(f)
        )
    ),
)
guard("program velocity gradient", "step", program(lambda f: any(_was_gradient(f, of[p]) for of, p in _replaced(f))))
guard("program velocity plain", "step", _mine(False))
guard("program velocity kept", "step", _mine(True))


def _was_gradient(f: Update, value: Any) -> bool:
    return any(value is gradient() for gradient in f.world.gradients)


def _left(f: Update) -> Iterator[tuple[Any, Any, Any]]:
    """A dict of states, a parameter with one that the last step has left there, and by what it is known."""
    o = f.optimizer
    for of in o._states:
        held = getattr(o, of)
        for p in o.params:
            key = id(o), of, id(p)
            if p in held and key in f.world.states and held[p] is f.world.states[key][0]():
                yield held, p, key


def _state_written(f: Update) -> bool:
    return any(of[p].cached_data.tobytes() != f.world.states[key][1] for of, p, key in _left(f))


guard("program velocity in place", "step", program(_state_written))
guard(
    "program kept velocity",
    "step",
    program(lambda f: any(references(of, p) > f.world.holders[key] for of, p, key in _left(f))),
)

# -- gradients


def _last_walk(f: Update) -> Walk | None:
    """The last backward pass, if no gradient has been reset since."""
    events = f.world.since("reset", "step")
    return next((e for e in reversed(events) if isinstance(e, Walk) and e.grads), None)


def _given(f: Update) -> list[Any]:
    """Parameters with a gradient that is none of needle's own."""
    walk = _last_walk(f)
    if walk is None:
        return []
    return [
        p
        for p in f.optimizer.params
        if p.grad is not None and id(p) in walk.latest and p.grad is not walk.latest[id(p)]()
    ]


def _gradient(when: Callable[[Any, Any], bool]) -> Callable[[Update], bool]:
    return program(lambda f: any(when(p, p.grad) for p in _given(f)))


def _plain_gradient(f: Update) -> bool:
    """In memory of its own, held by nobody, and not a sum that the user has made."""
    found = _passes(f)
    added = not found or not (isinstance(found[1], tuple) and found[1][0] == "reset")
    return not added and any(_ordinary(p, p.grad) and references(vars(p), "grad") <= NOBODY_ELSE for p in _given(f))


def _ordinary(p: Any, g: Any) -> bool:
    a = g.cached_data
    return bool(
        a.dtype == p.dtype and layouts(a) <= _plain and not _stepped(a) and a.flags.writeable and a is not p.cached_data
    )


guard("program gradient plain", "step", program(_plain_gradient))
guard("program gradient float64", "step", _gradient(lambda p, g: g.dtype == np.float64))
guard("program gradient integer", "step", _gradient(lambda p, g: g.dtype.kind == "i"))
guard(
    "program gradient strided",
    "step",
    _gradient(lambda p, g: _stepped(g.cached_data) and layouts(g.cached_data) != {"F"}),
)
guard("program gradient reversed", "step", _gradient(lambda p, g: layouts(g.cached_data) == {"reversed"}))
guard(
    "program gradient transposed",
    "step",
    _gradient(lambda p, g: layouts(g.cached_data) == {"F"} and g.cached_data is not p.cached_data),
)
guard("program gradient repeated", "step", _gradient(lambda p, g: g.size > 1 and g.cached_data.strides[-1] == 0))
guard(
    "program gradient read-only",
    "step",
    _gradient(lambda p, g: not g.cached_data.flags.writeable and g.cached_data.strides[-1:] != (0,)),
)
guard("program gradient parameter", "step", _gradient(lambda p, g: g.cached_data is p.cached_data))


def _same_for_two(f: Update) -> bool:
    given = [id(p.grad) for p in _given(f)]
    return len(set(given)) < len(given)


def _taken(f: Update) -> bool:
    walk = _last_walk(f)
    return walk is not None and any(p.grad is None and id(p) in walk.latest for p in f.optimizer.params)


def _own_gradients(f: Update) -> list[tuple[Any, Array]]:
    """Parameters that have the gradient that needle has left there, and its numbers then."""
    walk = _last_walk(f)
    if walk is None:
        return []
    graded = [p for p in f.optimizer.params if p.grad is not None and id(p) in walk.latest]
    return [(p, walk.after[id(p)]) for p in graded if p.grad is walk.latest[id(p)]()]


def _gradient_written(f: Update) -> bool:
    return any(p.grad.cached_data.tobytes() != after.tobytes() for p, after in _own_gradients(f))


def _gradient_held(f: Update) -> bool:
    walk = _last_walk(f)
    clipped = any(kind_of(e) == "clip" for e in f.world.since("reset", "step"))
    graph = walk is not None and walk.create
    return not clipped and not graph and any(references(vars(p), "grad") > NOBODY_ELSE for p, _ in _own_gradients(f))


guard("program gradient shared", "step", program(_same_for_two))
guard("program gradient none", "step", program(_taken))
guard("program gradient in place", "step", program(_gradient_written))
guard("program kept gradient", "step", program(_gradient_held))


def _data_held(f: Update) -> bool:
    """Whether somebody holds what ``p.data`` gave, and it is still the parameter's."""
    alive = [(p(), shown()) for p, shown in f.world.shown if p() is not None and shown() is not None]
    return any(t.cached_data is p.cached_data and p.grad is not t and not _was_gradient(f, t) for p, t in alive)


guard("program kept data", "step", program(_data_held))

# -- mishaps

for _form in ("walk", "cotangent", "constant", "changed", "gradient", "name", "shape", "state"):
    guard(f"program mishap, {_form}", "refusal", lambda f, what=_form: isinstance(f, Misfit) and f.what == what)  # type: ignore[misc]
guard("program state put back", "restored", lambda f: isinstance(f, Restored) and not f.optimizer)
guard("program state put back, of optimizers too", "restored", lambda f: isinstance(f, Restored) and f.optimizer)

# -- optimizers

guard("program second optimizer SGD", "optimizer", lambda f: _another(f) and isinstance(f.optimizer, optim.SGD))
guard("program second optimizer Adam", "optimizer", lambda f: _another(f) and isinstance(f.optimizer, optim.Adam))


def _another(f: Made) -> bool:
    return f.how == "made" and f.world.order[f.optimizer] > 0


guard(
    "program parameter added late",
    "step",
    program(lambda f: len(f.optimizer.params) > f.world.listed.get(f.optimizer, 1 << 30)),
)


def _loaded(f: Made, how: str, *, optimizer: bool) -> bool:
    if {f.world.loaded.get(id(p)) for p in f.optimizer.params} != {how}:
        return False
    given = f.world.given.get(f.optimizer, {})
    return f.how == "loaded" if optimizer else f.how == "made" and len(given) == len(f.optimizer._hyper)


for _how in ("state_dict", "a file"):
    _model_alone = lambda f, how=_how: _loaded(f, how, optimizer=False)  # noqa: E731
    _both = lambda f, how=_how: _loaded(f, how, optimizer=True)  # noqa: E731
    guard(f"program {_how} into a fresh model", "optimizer", _model_alone)
    guard(f"program {_how} into a fresh model and optimizer", "optimizer", _both)


def _tied_and_loaded(w: Walk) -> bool:
    layers = [] if w.order or w.model is None or w.model.hooked else w.model.modules()
    return any(type(f.module) is nn.Linear and is_tied(f) and id(f.module.weight) in f.world.loaded for f in layers)


guard("program a model of tied weights is loaded", "walk", _tied_and_loaded)
for _how in ("deepcopy", "pickle"):
    guard(f"program {_how}", "optimizer", lambda f, how=_how: f.how == how)  # type: ignore[misc]

# -- schedules


def _stepped_one(kind: str, then: str, *, given: bool | None = None) -> Callable[[Scheduled], bool]:
    """The step of a schedule of that kind, with what comes after it, and with its setting given or left out."""

    def asked(f: Scheduled) -> bool:
        after = type(getattr(f.schedule, "then", None)).__name__.replace("NoneType", "")
        keywords = f.world.given.get(f.schedule, {})
        return (
            f.how == "step"
            and type(f.schedule).__name__ == kind
            and after == then
            and (given is None or (f.schedule in f.world.given and given == bool(keywords)))
        )

    return asked


guard("program schedule StepLR", "schedule", _stepped_one("StepLR", "", given=True))
guard("program schedule StepLR, gamma by default", "schedule", _stepped_one("StepLR", "", given=False))
guard("program schedule CosineLR", "schedule", _stepped_one("CosineLR", "", given=True))
guard("program schedule CosineLR, lowest by default", "schedule", _stepped_one("CosineLR", "", given=False))
guard("program schedule Warmup", "schedule", _stepped_one("Warmup", ""))
guard("program schedule Warmup, then StepLR", "schedule", _stepped_one("Warmup", "StepLR"))
guard("program schedule Warmup, then CosineLR", "schedule", _stepped_one("Warmup", "CosineLR"))
guard("program schedule.step()", "schedule", lambda f: f.how == "step")
guard("program a schedule is loaded from its state_dict", "schedule", lambda f: f.how == "state_dict")
guard("program a schedule is loaded from a file", "schedule", lambda f: f.how == "a file")

# -- batches


def _batch(*, shuffle: bool, short: bool) -> Callable[[Batch], bool]:
    return lambda f: f.loader.shuffle == shuffle and f.short == short and not f.loader.drop_last


guard("program batches of a loader, in order", "batch", _batch(shuffle=False, short=False))
guard("program batches of a loader, shuffled", "batch", _batch(shuffle=True, short=False))
guard("program batches of a loader, short", "batch", _batch(shuffle=True, short=True))
guard("program batches of a loader, dropped", "batch", lambda f: f.loader.drop_last)

# -- modes


def _is_root(f: Switch) -> bool:
    return f.module in f.world.roots


def _is_part(f: Switch) -> bool:
    if any("forward" in vars(m) for m in f.module.modules_in()) or _is_root(f):
        return False
    return any(f.module is m for root in f.world.roots for m in root.modules_in())


def _evaluated(f: Switch) -> ModelCall | None:
    """The model call between the ``eval()`` before and this ``train()``."""
    last = f.world.past[-2:]
    fits = (
        f.training and _is_root(f) and len(last) == 2 and isinstance(last[0], Switch) and isinstance(last[1], ModelCall)
    )
    return last[1] if fits and not f.world.hooked and not last[0].training and last[0].module is f.module else None


def _evaluation(recording: bool) -> Callable[[Switch], bool]:
    def asked(f: Switch) -> bool:
        model = _evaluated(f)
        return model is not None and model.recording == recording

    return asked


def _part(training: bool, *, named: bool) -> Callable[[Switch], bool]:
    return lambda f: f.training == training and f.named == named and not f.world.hooked and (named or _is_part(f))


guard("program eval a part", "mode", _part(False, named=False))
guard("program train a part", "mode", _part(True, named=False))
guard("program train(False)", "mode", _part(False, named=True))
guard("program train(True)", "mode", _part(True, named=True))
guard("program eval the model", "walk", walked(lambda m, w: not m.training and not m.x_asks))
guard(
    "program train the model",
    "mode",
    lambda f: f.training and not f.named and not f.world.hooked and _is_root(f) and _evaluated(f) is None,
)
guard("program evaluation in between", "mode", _evaluation(True))
guard("program evaluation in between, under no_grad", "mode", _evaluation(False))


def _left_by(how: str) -> Callable[[Block], bool]:
    return lambda f: f.how == how


for _how in ("nested", "exception", "exception inside", "decorator", "forward pass"):
    guard(f"program no_grad, {_how}", "no_grad", _left_by(_how))


def _one_of_two(f: Layer) -> bool:
    """Whether a norm that has trained evaluates while another of the same Sequential trains."""
    norms = [m for m in f.root.modules_in() if isinstance(m, nn.BatchNorm1d)] if type(f.root) is nn.Sequential else []
    evaluates = f.module in norms and not f.module.training and f.module in f.world.trained
    return evaluates and any(m.training for m in norms) and not f.hooked


def _buffer_held(f: Layer) -> bool:
    """Whether somebody holds the running mean of a norm that trains."""
    norm = isinstance(f.module, nn.BatchNorm1d) and f.module.training and not f.hooked
    return norm and f.world.mean_held


guard("program one norm of two evaluates", "layer", _one_of_two)
guard("program kept buffers", "layer", _buffer_held)

# -- how a model is built

guard("program layers in a sequential", "walk", walked(lambda m, w: type(m.root()) is nn.Sequential))
guard("program layers in a list", "walk", walked(lambda m, w: isinstance(getattr(m.root(), "layers", None), list)))
guard(
    "program layers in a ModuleList",
    "walk",
    walked(lambda m, w: type(getattr(m.root(), "layers", None)) is nn.ModuleList),
)
guard("program layer replaced", "put", lambda f: f.fresh)
guard("program layers swapped", "put", lambda f: not f.fresh)
for _name in ("Sequential", "ModuleList"):
    guard(f"program a layer is put in a {_name}", "put", lambda f, of=_name: f.fresh and f.of == of)  # type: ignore[misc]
guard("program layers in a dict", "walk", walked(lambda m, w: isinstance(getattr(m.root(), "layers", None), dict)))


def _called_twice(m: ModelCall, w: Walk) -> bool:
    called = [id(f.module) for f in m.modules()]
    return len(set(called)) < len(called)


guard("program same module twice", "walk", walked(_called_twice))
guard(
    "program Residual of a function",
    "layer",
    lambda f: type(f.module) is nn.Residual and not isinstance(f.module.fn, nn.Module),
)
