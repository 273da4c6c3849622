"""What shows only in programs: settings that are cached, states that are shared, modes and copies that are half done."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import needle
from needle import autograd
from needle.autograd import Parameter, Tensor
from oracle.trust.faults.adam import adam
from oracle.trust.faults.chapter import Chapter, const, number16
from oracle.trust.faults.clipping import clip
from oracle.trust.faults.sgd import held, sgd
from oracle.trust.patches import Patch, around, of_chain, replace, wrap

fault = Chapter("program")

VELOCITY, UPDATE = "SGD velocity", "SGD parameter update"
LEFT_OUT = "stays what it was|is left out|not clipped"  # of a parameter that an optimizer does not see, each is true
# an update that starts from stale numbers is wrong in what it makes first
EITHER = f"{VELOCITY}|{UPDATE}|Adam first moment|Adam second moment|Adam parameter update"


# -- set and refuse -------------------------------------------------------------------------------------------------------


def _first(name: str) -> Callable[[Any], Any]:
    """The setting that was in force at the first step."""
    return lambda s: vars(s.o).setdefault("at_first", {}).setdefault(name, getattr(s.o, name))


fault(
    "program-momentum-cached",
    "the β of the first step is used for ever",
    VELOCITY,
    sgd(beta=_first("momentum")),
    words="β is stale",
)
fault(
    "program-decay-cached",
    "the λ of the first step is used for ever",
    VELOCITY,
    sgd(decay=_first("weight_decay")),
    words="λ is stale",
)
fault("program-rest-cached", "1 − β is that of the first step", VELOCITY,
      sgd(rest=lambda s: 1 - _first("momentum")(s)), words="1 − β is stale")  # fmt: skip
fault(
    "program-beta1-cached",
    "the β1 of the first step is used for ever",
    "Adam first moment",
    adam(b1=_first("beta1")),
    words="stale",
)
fault(
    "program-beta2-cached",
    "the β2 of the first step is used for ever",
    "Adam second moment",
    adam(b2=_first("beta2")),
    words="stale",
)
fault(
    "program-eps-cached",
    "the ε of the first step is used for ever",
    "Adam parameter update",
    adam(eps=_first("eps")),
    words="stale",
)
fault("program-lr-cached-adam", "the learning rate of the first step is used for ever", "Adam parameter update",
      adam(lr=_first("lr")), words="stale")  # fmt: skip
fault(
    "program-lr-zero-default",
    "an lr of 0 is taken for none at all",
    UPDATE,
    sgd(lr=lambda s: s.o.lr or 0.01),
    words="default",
)
fault(
    "program-lr-at-most-1",
    "an lr above 1 is taken as 1",
    UPDATE,
    sgd(lr=lambda s: min(s.o.lr, 1.0)),
    words="taken as 1",
)
fault(
    "program-decay-at-most-1",
    "a decay above 1 is taken as 1",
    VELOCITY,
    sgd(decay=lambda s: min(s.o.weight_decay, 1.0)),
    words="taken as 1",
)
fault("program-decay-never-ends", "a decay that is set to 0 stays what it was", VELOCITY,
      sgd(decay=lambda s: s.o.weight_decay or vars(s.o).get("decay", 0.0), kept=lambda s: (vars(s.o).update(decay=s.decay), s.v)[1]), words="stale")  # fmt: skip
fault(
    "program-eps-at-most-1",
    "an ε above 1 is taken as 1",
    "Adam parameter update",
    adam(eps=lambda s: min(s.o.eps, 1.0)),
    words="taken as 1",
)
fault("program-lr-change-ends-momentum", "a new lr starts the velocity anew", VELOCITY,
      sgd(old=lambda s: held(s.o.u, s.p) * (s.o.lr == vars(s.o).get("last", s.o.lr)), kept=lambda s: (vars(s.o).update(last=s.o.lr), s.v)[1]), words="taken as zero")  # fmt: skip


def _unchecked(*names: str) -> Patch:
    """What is assigned after the constructor is not looked at."""

    def changed(validate: Any, self: Any, *settings: float) -> None:
        sound = dict(zip(self._hyper, settings, strict=True))
        if all(hasattr(self, name) for name in self._hyper) and hasattr(self, "params") and self._settings:
            sound |= {name: 0.5 for name in names if name in sound}
        validate(self, *sound.values())

    return around("optim.SGD._validate", changed) + around("optim.Adam._validate", changed)


fault("program-lr-unchecked", "lr = −0.1 is taken when it is assigned", "refuse lr", _unchecked("lr"))
fault(
    "program-momentum-unchecked", "momentum = 1 is taken when it is assigned", "refuse momentum", _unchecked("momentum")
)
fault(
    "program-decay-unchecked",
    "a decay of −0.1 is taken when it is assigned",
    "refuse weight_decay",
    _unchecked("weight_decay"),
)
fault("program-beta-unchecked", "β1 = 1 is taken when it is assigned", "refuse beta1", _unchecked("beta1"))
fault("program-beta2-unchecked", "β2 = 1 is taken when it is assigned", "refuse beta2", _unchecked("beta2"))
fault("program-eps-unchecked", "ε = 0 is taken when it is assigned", "refuse eps", _unchecked("eps"))


def _too_late(step: Any, self: Any) -> None:
    """Step first, and refuse then."""
    sound = tuple(getattr(self, name) for name in self._hyper)
    try:
        self._check()
    except ValueError:
        for name, value in zip(self._hyper, self._settings, strict=True):
            setattr(self, name, value)
        step(self)
        for name, value in zip(self._hyper, sound, strict=True):
            setattr(self, name, value)
        raise
    step(self)


fault(
    "program-refused-too-late", "a setting is refused after the update", "refuse", around("optim.SGD.step", _too_late)
)


def _any_max_norm(old: Any, self: Any, max_norm: float = 0.25) -> Any:
    return old(self, max_norm if max_norm > 0 else 0.25)


fault("program-max-norm-unchecked", "max_norm = 0 is taken", "refuse max_norm",
      around("optim.Optimizer.clip_grad_norm", _any_max_norm))  # fmt: skip

# -- clip -----------------------------------------------------------------------------------------------------------------

SCALING = "clip scal"
fault("program-clip-scales-up", "a norm below max_norm is scaled up to it, if max_norm is above 1", SCALING,
      clip(factor=lambda norm, most: most / (norm + 1e-6) if most > 1 and math.isfinite(most) else min(1.0, most / (norm + 1e-6))), words="scaled up")  # fmt: skip
fault(
    "program-clip-at-most-1",
    "max_norm above 1 is taken as 1",
    SCALING,
    clip(factor=lambda norm, most: min(1.0, min(most, 1.0) / (norm + 1e-6))),
    words="taken as 1",
)
fault("program-clip-inf-nan", "max_norm = inf gives nan", SCALING,
      clip(factor=lambda norm, most: min(1.0, most / (norm + 1e-6)) if math.isfinite(most) else math.nan))  # fmt: skip
fault("program-clip-at-the-norm", "a norm that is max_norm is not clipped, and neither is one that is 0.1 % larger", SCALING,
      clip(factor=lambda norm, most: 1.0 if norm < 1.001 * most else most / (norm + 1e-6)), words="not clipped")  # fmt: skip
fault("program-clip-below-a-thousandth", "a factor below 0.001 is taken as 0.001", SCALING,
      clip(factor=lambda norm, most: max(1e-3, min(1.0, most / (norm + 1e-6)))))  # fmt: skip


# -- parameters, velocities, gradients ------------------------------------------------------------------------------------


def _in_place(data: bool = True, holders: bool = True) -> Patch:
    """Prepared runs that are trusted although somebody has replaced data or a state, or holds it."""

    def changed(old: Any, self: Any, params: Any) -> bool:
        if len(params) != len(self._params) or not all(a is b for a, b in zip(params, self._params, strict=True)):
            return False
        kept = all(getattr(self, name).get(p) is t for name, ts in self._kept for p, t in zip(params, ts, strict=True))
        views = zip(self._tensors, self._views, strict=True)
        same = all(t.cached_data is view for t, view in views)
        return kept and (same or not data) and (not holders or self._count_holders() == self._holders)

    return around("optim.Optimizer._in_place", changed)


fault(
    "program-data-replaced-ignored",
    "data that was replaced is stale in the flat copy",
    f"{EITHER}|data|set|kept|shared",
    _in_place(data=False),
    words="stays",
)


def _put_back(old: Any, self: Any, params: Any) -> Any:
    for name, tensors in self._kept:
        getattr(self, name).update(zip(self._params, tensors, strict=True))
    return old(self, params)


fault(
    "program-velocity-replaced-ignored",
    "a velocity that was replaced is ignored: the flat copy counts",
    f"{EITHER}|alias",
    around("optim.Optimizer._in_place", _put_back),
    words="taken as zero|velocity of",
)
fault(
    "program-held-data-written",
    "a step writes into what a user has come to hold since the first step",
    "alias|writes into gradients|p.data|a part",
    _in_place(holders=False),
)


def _taken(state_of: Any, p: Any, state: Any, what: str) -> Any:
    """A Tensor that the user holds too becomes the optimizer's own."""
    return state[p] if isinstance(state.get(p), Tensor) else state_of(p, state, what)


fault(
    "program-velocity-handed-in-taken",
    "a velocity that is handed in is written into",
    "alias|writes into gradients|SGD skip",
    around("optim._state_of", _taken),
)
fault("program-velocity-strided-flat", "a strided velocity is read as it lies in memory", EITHER,
      around("optim._state_of", lambda old, p, state, what: _flat(old(p, state, what), state.get(p))))  # fmt: skip
fault("program-velocity-array-ignored", "a velocity that is no Tensor counts as none", f"{VELOCITY}|Adam first moment|Adam second moment",
      sgd(old=lambda s: held(s.o.u, s.p) if isinstance(s.o.u.get(s.p), Tensor) else np.zeros_like(s.x)), words="taken as zero")  # fmt: skip
fault("program-velocity-float64-kept", "a velocity in float64 stays one", f"{VELOCITY}|dtype",
      sgd(kept=lambda s: s.v.astype(_dtype_of(s.o.u.get(s.p), s.v))), words="dtype is float64")  # fmt: skip


def _flat(tensor: Any, given: Any) -> Any:
    data = getattr(given, "cached_data", given)
    return tensor if data is None or data.flags.c_contiguous or data.base is None else const(_as_in_memory(data))


def _as_in_memory(a: Any) -> Any:
    base = a.base if isinstance(a.base, np.ndarray) and a.base.size >= a.size else a
    return np.ravel(base)[: a.size].reshape(a.shape).astype(a.dtype)


def _dtype_of(value: Any, other: Any) -> Any:
    return np.asarray(getattr(value, "cached_data", other)).dtype


def _gradients(change: Callable[[Any, Any], Any]) -> Patch:
    """The gradients that an optimizer finds, changed: ``change(p, array)``."""

    def changed(old: Any, self: Any) -> Any:
        params, gradients = old(self)
        return params, [change(p, g) for p, g in zip(params, gradients, strict=True)]

    return around("optim.Optimizer._gradients", changed)


def _read_only(p: Any, g: Any) -> Any:
    p.grad.cached_data[...] = p.grad.cached_data
    return g


def _once_each(old: Any, self: Any) -> Any:
    """Of gradients that share memory, only the first."""
    params, gradients = old(self)
    tensors = [id(p.grad) for p in params]
    keep = [i for i, t in enumerate(tensors) if t not in tensors[:i]]
    return [params[i] for i in keep], [gradients[i] for i in keep]


fault("program-gradient-read-only", "a gradient that cannot be written raises", "step|clip", _gradients(_read_only))
fault(
    "program-gradient-strided-flat",
    "a strided gradient is read as it lies in memory",
    f"{EITHER}|clip",
    _gradients(lambda p, g: g if g.flags.c_contiguous else _as_in_memory(g)),
)
fault("program-gradient-reversed-flat", "a gradient with negative strides is read forwards", f"{EITHER}|clip",
      _gradients(lambda p, g: g[..., ::-1] if g.ndim and g.strides[-1] < 0 else g))  # fmt: skip
fault("program-gradient-float64-half", "a gradient in float64 is cut to float16", f"{EITHER}|clip",
      _gradients(lambda p, g: g.astype(np.float16).astype(g.dtype) if p.grad.dtype == np.float64 else g), words="float16")  # fmt: skip
fault("program-gradient-integer-refused", "a gradient of integers raises", "step|clip|in _converted_gradient",
      around("optim._converted_gradient", lambda old, p, grad, name: old(p, grad, name) if grad.dtype.kind == "f" else _refused()))  # fmt: skip
fault(
    "program-gradient-shared-once",
    "of two parameters with one gradient only the first is updated",
    "SGD|Adam|clip",
    around("optim.Optimizer._gradients", _once_each),
    words=LEFT_OUT,
)


def _refused() -> Any:
    raise TypeError("a gradient must hold floating-point numbers")


def _aliased(step: Any, self: Any) -> None:
    """As a loop over p.cached_data -= …: a gradient that is the parameter's own data changes with it."""
    shared = [p for p in self.params if p.grad is not None and np.may_share_memory(p.grad.cached_data, p.cached_data)]
    step(self)
    for p in shared:
        p.grad = p.data


fault(
    "program-gradient-aliased",
    "a gradient that is the parameter's own data is written into",
    "writes into gradients",
    around("optim.SGD.step", _aliased),
)
fault("program-data-shape-kept", "data of shape (n,) makes a parameter (1, n) one of shape (n,)", "data vector|mishap, changed",  # nor is it told that it changed

      wrap("autograd.Tensor.data", lambda old: property(old.fget, lambda self, v: setattr(self, "cached_data", v.cached_data))))  # fmt: skip
fault("program-data-shared-memory-lost", "data is copied when it is assigned, and rounded to float16 if it is not contiguous", "data strided|Tensor.data",
      wrap("autograd.Tensor.data", lambda old: property(old.fget, lambda self, v: old.fset(self, v if v.cached_data.flags.c_contiguous else const(v.cached_data.astype(np.float16).astype(v.dtype))))))  # fmt: skip
fault(
    "program-augmented-in-place",
    "p *= … writes into the array, which a user may hold",
    "alias",
    around(
        "autograd.Parameter.__imul__",
        lambda old, self, other: (np.multiply(self.cached_data, other, out=self.cached_data), self)[1],
    ),
)
fault(
    "program-augmented-twice",
    "p *= … multiplies twice",
    "data augmented",
    around("autograd.Parameter.__imul__", lambda old, self, other: old(old(self, other), other)),
)

# -- freeze ---------------------------------------------------------------------------------------------------------------


def _never_again(old: Any, self: Any) -> Any:
    """A parameter that was frozen in a step is left out for ever."""
    known = vars(self).setdefault("once_frozen", set())
    known |= {id(p) for p in self.params if not p.requires_grad}
    params, gradients = old(self)
    keep = [i for i, p in enumerate(params) if id(p) not in known]
    return [params[i] for i in keep], [gradients[i] for i in keep]


def _only_unfrozen(old: Any, self: Any) -> Any:
    params, gradients = old(self)
    keep = [i for i, p in enumerate(params) if p.requires_grad]
    return [params[i] for i in keep], [gradients[i] for i in keep]


fault(
    "program-unfreeze-ignored",
    "a parameter that was frozen once is never updated again",
    "SGD|Adam|clip",
    around("optim.Optimizer._gradients", _never_again),
    words=LEFT_OUT,
)
fault(
    "program-frozen-not-stepped",
    "a gradient from before the parameter was frozen is not used",
    "SGD|Adam|clip",
    around("optim.Optimizer._gradients", _only_unfrozen),
    words=LEFT_OUT,
)


def _unfrozen_by_reset(reset: Any, self: Any) -> None:
    reset(self)
    for p in self.params:
        p.requires_grad = True


fault(
    "program-freeze-undone",
    "reset_grad turns gradients on again",
    "requires_grad|pass|reset",
    around("optim.Optimizer.reset_grad", _unfrozen_by_reset),
)
fault(
    "program-freeze-ends-state",
    "a step gives up the state of what is frozen",
    "SGD|Adam",
    around(
        "optim.SGD.step",
        lambda step, self: (step(self), [self.u.pop(p, None) for p in self.params if not p.requires_grad])[0],
    ),
)


def _unfrozen_reset(self: Any) -> None:
    for p in self.params:
        if p.requires_grad:
            p.grad = None


def _eval_clears(old: Any, self: Any) -> Any:
    for p in self.parameters():
        p.grad = None
    return old(self)


def _zeroed(self: Any) -> None:
    for p in self.params:
        if p.grad is not None:
            p.grad = const(np.zeros_like(p.grad.cached_data))


def _in_place_zero(self: Any) -> None:
    for p in self.params:
        if (
            p.grad is not None
            and p.grad.cached_data.flags.writeable
            and not np.may_share_memory(p.grad.cached_data, p.cached_data)
        ):
            p.grad.cached_data[...] = 0
        p.grad = None


fault("program-reset-keeps-frozen", "reset_grad leaves the gradients of frozen parameters", "gradient|pass|reset",
      replace("optim.Optimizer.reset_grad", _unfrozen_reset))  # fmt: skip
fault(
    "program-reset-zeros",
    "reset_grad leaves gradients of zeros",
    "gradient|reset",
    replace("optim.Optimizer.reset_grad", _zeroed),
)
fault(
    "program-reset-writes",
    "reset_grad writes zeros into the gradients before it lets go of them",
    "alias",
    replace("optim.Optimizer.reset_grad", _in_place_zero),
)

# -- optimizers -----------------------------------------------------------------------------------------------------------


def _shared_state(init: Any, self: Any, params: Any, *args: Any, **settings: Any) -> None:
    """The state is kept with the parameter, and so shared by all of its optimizers."""
    params = list(params)
    init(self, params, *args, **settings)
    self.u = vars(self.params[0]).setdefault("state_of_all", self.u)


def _resets_others(init: Any, self: Any, params: Any, *args: Any, **settings: Any) -> None:
    """A new optimizer begins with parameters that no other one has a state for."""
    params = list(params)
    init(self, params, *args, **settings)
    known = vars(self.params[0]).setdefault("optimizers", [])
    for other in known:
        other.u.clear()
    known.append(self)


def _first_params(old: Any, self: Any) -> Any:
    """The parameters are those of the first step."""
    self.params, all_of_them = vars(self).setdefault("at_first", list(self.params)), self.params
    try:
        return old(self)
    finally:
        self.params = all_of_them


fault(
    "program-second-optimizer-shares",
    "a second optimizer shares the velocities of the first",
    f"{VELOCITY}|SGD skip|second optimizer",
    around("optim.SGD.__init__", _shared_state),
)
fault(
    "program-second-optimizer-resets",
    "a second optimizer resets the state of the first",
    "second optimizer|SGD",
    around("optim.SGD.__init__", _resets_others),
)
fault(
    "program-late-parameter-ignored",
    "a parameter that is added late is not updated",
    "SGD|Adam|clip",
    around("optim.Optimizer._gradients", _first_params),
    words=LEFT_OUT,
)
fault("program-late-parameter-t", "a late parameter has made as many steps as all others", "Adam parameter update|Adam skip",
      adam(t=lambda s: max((s.o.t.get(p, 0) for p in s.o.params if p is not s.p), default=0) + 1 if s.p not in s.o.t else s.o.t[s.p] + 1), words="step counter")  # fmt: skip
fault("program-late-velocity-of-another", "a late parameter starts with another one's velocity", VELOCITY,
      sgd(old=lambda s: held(s.o.u, s.p) if s.p in s.o.u else next((held(s.o.u, q) for q in s.o.u if q.shape == s.p.shape), np.zeros_like(s.x))), words="velocity of")  # fmt: skip

# -- modes ----------------------------------------------------------------------------------------------------------------


def _own_mode(training: bool) -> Callable[[Any], Any]:
    def switched(self: Any) -> Any:
        self.training = training
        return self

    return switched


def _part_alone(training: bool) -> Callable[..., Any]:
    """A part without layers of its own kind switches itself alone, the whole model everything."""

    def changed(old: Any, self: Any) -> Any:
        return (
            old(self)
            if ("modules" in vars(self) and len(self.modules) > 1) or hasattr(self, "layers")
            else _own_mode(training)(self)
        )

    return changed


def _chained_mode(old: Any, self: Any, x: Any) -> Any:
    """A chain asks the whole for its mode, and not the layer."""
    for layer in self.modules_in()[1:]:
        layer.training = self.training
    return old(self, x)


fault(
    "program-eval-part-ignored",
    "the mode of a Sequential is that of its layers",
    "forward|Module|mode|running|pass|evaluation",
    around("nn.Sequential.forward", _chained_mode),
)
fault(
    "program-eval-part-alone",
    "eval() of a Residual does not reach the layers in it",
    "Module.eval",
    around("nn.Module.eval", _part_alone(False)),
)
fault(
    "program-train-part-alone",
    "train() of a Residual does not reach the layers in it",
    "Module.train",
    around("nn.Module.train", _part_alone(True)),
)


def _not_in_dicts(old: Any, self: Any, prefix: str, seen: Any) -> Any:
    for name, thing in old(self, prefix, seen):
        if "layers.layer" not in name:
            yield name, thing


fault(
    "program-dict-not-found",
    "modules in a dict are not found",
    "Module|build|model.parameters|second optimizer|state_dict|mode|mishap, name|state put back",
    around("nn.Module._walk", _not_in_dicts),
)
fault("program-eval-clears-gradients", "eval() lets go of all gradients", "Module.eval|evaluation in between",
      around("nn.Module.eval", _eval_clears))  # fmt: skip

# -- no_grad --------------------------------------------------------------------------------------------------------------


def _exit(always: bool) -> Callable[..., Any]:
    def exit_(self: Any, *exception: object) -> None:
        before = autograd._modes_before.get() or (True,)
        autograd._modes_before.set(before[:-1])
        if always:
            autograd._recording.set(True)
        elif not exception or exception[0] is None:
            autograd._recording.set(before[-1])

    return exit_


def _decorated(self: Any, function: Any) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        self.__enter__()
        return function(*args, **kwargs)

    return wrapped


fault(
    "program-no-grad-nested",
    "leaving an inner no_grad turns recording on",
    "no_grad nested|no_grad exception inside",
    replace("autograd._GradMode.__exit__", _exit(True)),
)
fault(
    "program-no-grad-exception",
    "no_grad is not left by an exception",
    "no_grad exception|no_grad exception inside",
    replace("autograd._GradMode.__exit__", _exit(False)),
)
fault(
    "program-no-grad-decorator",
    "a decorated function leaves recording off",
    "no_grad decorator|pass",
    replace("autograd._GradMode.__call__", _decorated),
)

# -- state dicts and copies -----------------------------------------------------------------------------------------------


def _shares(self: Any, state: Any) -> None:
    for name, tensor in self._state().items():
        tensor.cached_data = np.asarray(state[name])


def _loads(which: Callable[[Any], bool]) -> Patch:
    def load(old: Any, self: Any, state: Any) -> None:
        kept = {name: t.cached_data for name, t in self._state().items() if not which(t)}
        old(self, state)
        for name, data in kept.items():
            self._state()[name].cached_data = data

    return around("nn.Module.load_state_dict", load)


STATE_DICT = "state_dict"
fault(
    "program-load-shares",
    "load_state_dict takes the arrays themselves",
    STATE_DICT,
    replace("nn.Module.load_state_dict", _shares),
)
fault("program-state-dict-shares", "state_dict gives the arrays themselves", f"{STATE_DICT}|alias",
      replace("nn.Module.state_dict", lambda self: {name: t.cached_data for name, t in self._state().items()}))  # fmt: skip
fault(
    "program-load-no-buffers",
    "load_state_dict leaves buffers as they were",
    STATE_DICT,
    _loads(lambda t: isinstance(t, Parameter)),
)
fault("program-load-half", "state_dict rounds to float16", STATE_DICT,
      around("nn.Module.state_dict", lambda old, self: {n: a.astype(np.float16).astype(a.dtype) for n, a in old(self).items()}))  # fmt: skip


def _state(change: Callable[[str, Any], Any]) -> Patch:
    return around(
        "optim.Optimizer.state_dict",
        lambda old, self: {
            n: v for name, value in old(self).items() for n, v in [change(name, value)] if v is not None
        },
    )


fault(
    "program-optimizer-state-lost",
    "the state dict of an optimizer has no velocities",
    STATE_DICT,
    _state(lambda name, value: (name, None if name.startswith("u.") else value)),
)
fault(
    "program-optimizer-settings-rounded",
    "the state dict of an optimizer rounds its settings to float16",
    STATE_DICT,
    _state(lambda name, value: (name, number16(value) if isinstance(value, float) else value)),
)
fault(
    "program-optimizer-t-lost",
    "the state dict of Adam counts one step less",
    STATE_DICT,
    _state(lambda name, value: (name, max(1, value - 1) if name.startswith("t.") else value)),
)
fault("program-optimizer-load-keeps", "loading leaves a state that the state dict does not have", STATE_DICT,
      around("optim.Optimizer.state_dict", lambda old, self: {n: v for n, v in old(self).items() if not n.endswith(".0")}))  # fmt: skip

COPIES = "deepcopy|pickle"


def _all_of_it(self: Any, state: dict[str, Any]) -> None:
    for name, value in state.items():
        setattr(self, name, value)
    self.is_copy = True


def _trusted(old: Any, self: Any, params: Any) -> Any:
    same = len(params) == len(self._params) and all(a is b for a, b in zip(params, self._params, strict=True))
    return old(self, params) or (hasattr(self, "is_copy") and same)


def _with_runs(self: Any) -> Any:
    return dict(vars(self))


def _copied(change: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> Patch:
    return around("autograd.Value.__getstate__", lambda old, self: change(self, old(self)))


def _without(*names: str) -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
    return lambda self, state: {n: v for n, v in state.items() if n not in names}


def _buffers_zero(self: Any, state: dict[str, Any]) -> dict[str, Any]:
    plain = not isinstance(self, Parameter) and not self.requires_grad
    return {**state, "cached_data": np.zeros_like(self.cached_data)} if plain else state


def _shared_velocities(self: Any) -> Any:
    """The velocities as a deep copy passes them on: in a box that knows how to stay one."""
    state = {name: value for name, value in vars(self).items() if name not in self._of_runs}
    return {**state, **{of: _Box(self, of) for of in self._states}}


class _Box:
    """A dict by parameter that a deep copy gives the arrays of the original."""

    def __init__(self, optimizer: Any, of: str) -> None:
        self.params, self.values = list(optimizer.params), [getattr(optimizer, of).get(p) for p in optimizer.params]

    def __deepcopy__(self, memo: Any) -> _Box:
        import copy

        box = _Box.__new__(_Box)
        box.params, box.values = (
            copy.deepcopy(self.params, memo),
            [None if v is None else const(getattr(v, "cached_data", v)) for v in self.values],
        )
        return box


def _unboxed(self: Any, state: Any) -> None:
    vars(self).update(state)
    for of in self._states:
        box = state[of]
        setattr(self, of, {p: v for p, v in zip(box.params, box.values, strict=True) if v is not None})
    self._scratch = {}
    self._forget()


fault(
    "program-copy-shares-velocities",
    "a deep copy shares the velocities of the original",
    COPIES,
    replace("optim.Optimizer.__getstate__", _shared_velocities) + replace("optim.Optimizer.__setstate__", _unboxed),
)
fault("program-copy-takes-runs", "a copy of an optimizer keeps the prepared runs of the original", f"{COPIES}|{EITHER}|alias|step writes into gradients",
      replace("optim.Optimizer.__getstate__", _with_runs) + replace("optim.Optimizer.__setstate__", _all_of_it) + around("optim.Optimizer._in_place", _trusted), words="stays")  # fmt: skip
fault("program-copy-loses-buffers", "a copy has buffers and velocities of zeros", COPIES, _copied(_buffers_zero))
fault("program-copy-loses-gradients", "a copy has no gradients", COPIES, _copied(_without("grad")))
fault(
    "program-copy-unfreezes",
    "a copy asks for all gradients",
    COPIES,
    _copied(lambda self, state: {**state, "requires_grad": True} if isinstance(self, Parameter) else state),
)
fault("program-copy-float16", "a copy is rounded to float16", COPIES,
      _copied(lambda self, state: {**state, "cached_data": self.cached_data.astype(np.float16).astype(self.dtype)} if isinstance(self, Tensor) else state))  # fmt: skip


# -- passes ---------------------------------------------------------------------------------------------------------------


def _writes_seed(old: Any, self: Any, out_grad: Any = None, *args: Any, **keywords: Any) -> Any:
    made = old(self, out_grad, *args, **keywords)
    if out_grad is not None and out_grad.cached_data.flags.writeable:
        out_grad.cached_data[...] *= np.float32(0.5)
    return made


def _freed_anyway(old: Any, self: Any, out_grad: Any = None, *, retain_graph: bool = False, **keywords: Any) -> Any:
    return old(self, out_grad, retain_graph=False, **keywords)


def _never_freed(old: Any, self: Any, out_grad: Any = None, *, retain_graph: bool = False, **keywords: Any) -> Any:
    return old(self, out_grad, retain_graph=True, **keywords)


def _adds(old: Any, self: Any, *args: Any, **keywords: Any) -> Any:
    """As torch: what is there is added to."""
    found: list[Any] = []
    stack, seen = [self], set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.is_leaf() and node.grad is not None and node.requires_grad:
            found.append((node, node.grad))
        stack += [x for x in node.inputs if isinstance(x, Tensor)]
    made = old(self, *args, **keywords)
    for node, before in found:
        if node.grad is not before and before.dtype == node.grad.dtype:
            node.grad = const(node.grad.cached_data + before.cached_data)
    return made


fault(
    "program-out-grad-written",
    "backward writes into the out_grad that it is given",
    "alias|pass|out_grad",
    around("autograd.Tensor.backward", _writes_seed),
)
fault(
    "program-retain-graph-frees",
    "retain_graph frees the graph all the same",
    "backward|pass two backward",
    around("autograd.Tensor.backward", _freed_anyway),
)
fault(
    "program-graph-never-freed",
    "the graph is never freed",
    "pass two backward|graph",
    around("autograd.Tensor.backward", _never_freed),
)
fault(
    "program-backward-adds",
    "a second backward adds to the first",
    "pass two backward|gradients",
    around("autograd.Tensor.backward", _adds),
    words="twice",
)


def _input_written(old: Any, self: Any, x: Any) -> Any:
    out = old(self, x)
    if x.cached_data.flags.writeable:
        x.cached_data[..., :1] += np.float32(1)
    return out


fault(
    "program-input-written",
    "the forward pass of a Sequential writes into its input",
    "Sequential forward",
    around("nn.Sequential.forward", _input_written),
)


def _first_use_only(got: list[Any]) -> list[Any]:
    seen: set[int] = set()
    kept = []
    for tensor, contribution in got:
        if id(tensor) not in seen or not isinstance(tensor, Parameter):
            kept.append((tensor, contribution))
        seen.add(id(tensor))
    return kept


def _detached_function(old: Any, self: Any, x: Any) -> Any:
    from needle import nn

    return old(self, x) if isinstance(self.fn, nn.Module) else self.fn(x).detach() + x


fault(
    "program-module-twice-once",
    "a module that is used twice gets the gradient of one use",
    "chain",
    of_chain(_first_use_only),
)
fault(
    "program-residual-function-detached",
    "no gradient flows through the function of a Residual",
    "Residual forward",
    around("nn.Residual.forward", _detached_function),
)
fault("program-evaluation-draws", "eval() draws a random number", "evaluation in between|Module.eval",
      around("nn.Module.eval", lambda old, self: (np.random.rand(), old(self))[1]) + around("nn.Module.__call__", lambda old, self, *args, **k: (None if self.training else np.random.rand(), old(self, *args, **k))[1]))  # fmt: skip


# -- settings of layers, files, gradients with a graph, tied weights ------------------------------------------------------


def _at_first(path: str, setting: str) -> Patch:
    """In training, a layer goes on with the setting that it had at its first pass."""

    def change(old: Any, self: Any, *args: Any) -> Any:
        now = getattr(self, setting)
        first = vars(self).setdefault(f"first_{setting}", now)
        setattr(self, setting, first)
        try:
            return old(self, *args)
        finally:
            setattr(self, setting, now)

    return around(path, change)


fault(
    "program-dropout-p-cached",
    "Dropout goes on with the p of its first pass",
    "Dropout forward",
    _at_first("nn.Dropout._ops", "p"),
)
fault(
    "program-bn-momentum-cached",
    "BatchNorm goes on with the momentum of its first pass",
    "BatchNorm running statistics",
    _at_first("nn.BatchNorm1d._follow", "momentum"),
)
fault(
    "program-bn-eps-cached",
    "BatchNorm goes on with the ε of its first pass",
    "BatchNorm forward",
    _at_first("nn.BatchNorm1d._ops", "eps") + _at_first("nn.BatchNorm1d._trained", "eps"),
)
fault(
    "program-ln-eps-cached",
    "LayerNorm goes on with the ε of its first pass",
    "LayerNorm forward",
    _at_first("nn.LayerNorm1d.forward", "eps") + _at_first("nn.LayerNorm1d._ops", "eps"),
)
FILE = "a file into a fresh model"
fault(
    "program-file-half",
    "save rounds to float16",
    FILE,
    around("save", lambda old, path, model, *more, **extra: old(path, _Rounded(model), *more, **extra)),
)
fault(
    "program-file-no-buffers",
    "load leaves running statistics as they were",
    FILE,
    around("load", lambda old, path, model, *more: _without_buffers(old, path, model, *more)),
)
fault(
    "program-file-no-state",
    "load leaves the optimizer without its velocities",
    FILE,
    around("load", lambda old, path, model, *more: _forgetful(old, path, model, *more)),
)
fault(
    "program-file-no-random-state",
    "load leaves the global generator as it is",
    FILE,
    around("load", lambda old, *args: _other_numbers(old(*args))),
)
fault(
    "program-state-carries-graph",
    "the velocity of a gradient with a graph carries one too",
    "step",
    around("optim.SGD.step", lambda old, self: _with_graph(old, self)),
)
fault(
    "program-graph-gradient-skipped",
    "a parameter whose gradient carries a graph is not updated",
    VELOCITY,
    around("optim.SGD.step", lambda old, self: _skipping(old, self)),
    words="the velocity stays what it was",
)


fault(
    "program-load-unties",
    "load_state_dict gives every layer a weight of its own",
    "pass|forward in the modes|backward",
    around("nn.Module.load_state_dict", lambda old, self, state: _untied(old, self, state)),
)


class _Rounded(needle.nn.Module):
    """A model with the same state, rounded."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def state_dict(self) -> Any:
        return {n: a.astype(np.float16).astype(a.dtype) for n, a in self.model.state_dict().items()}


def _without_buffers(old: Any, path: Any, model: Any, *more: Any) -> Any:
    kept = {n: t.cached_data for n, t in model._state().items() if not isinstance(t, Parameter)}
    made = old(path, model, *more)
    for name, data in kept.items():
        model._state()[name].cached_data = data
    return made


def _forgetful(old: Any, path: Any, model: Any, *more: Any) -> Any:
    made = old(path, model, *more)
    for optimizer in more:
        getattr(optimizer, optimizer._states[0]).clear()
    return made


def _other_numbers(made: Any) -> Any:
    np.random.random_sample(1)
    return made


def _with_graph(old: Any, self: Any) -> None:
    old(self)
    for p in self.params:
        if p.grad is not None and p.grad.requires_grad and p in self.u:
            self.u[p] = self.u[p] + p.grad * 0.0


def _skipping(old: Any, self: Any) -> None:
    kept = {p: p.grad for p in self.params if p.grad is not None and p.grad.requires_grad}
    for p in kept:
        p.grad = None
    try:
        old(self)
    finally:  # also where the step is refused
        for p, grad in kept.items():
            p.grad = grad


def _untied(old: Any, self: Any, state: Any) -> None:
    old(self, state)
    seen: set[int] = set()
    for module in self._children():
        weight = getattr(module, "weight", None)
        if weight is not None and id(weight) in seen:
            module.weight = Parameter(weight.numpy().copy())
        seen.add(id(weight))
