"""What shows only where a call raises in the middle, where a state is put back, or where something lies otherwise in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from needle import autograd
from oracle.trust.faults.chapter import Chapter, const
from oracle.trust.patches import Patch, around, wrap

fault = Chapter("program")


# -- parameters that are computed ----------------------------------------------------------------------------------------


def _constant(old: Any, self: Any, *args: Any) -> Any:
    """A layer that takes what is no Parameter for a constant."""
    own = {name: getattr(self, name) for name in ("weight", "bias")}
    for name, value in own.items():
        if value is not None and not value.is_leaf():
            setattr(self, name, value.detach())
    try:
        return old(self, *args)
    finally:
        for name, value in own.items():
            setattr(self, name, value)


COMPUTED = "pass, a parameter computed|Linear|gradient that should|gradients of a program"
fault(
    "program-computed-weight-constant",
    "a Linear gives no gradient to what is no Parameter",
    COMPUTED,
    around("nn.Linear.forward", _constant),
)
fault(
    "program-computed-in-batch-norm-constant",
    "a BatchNorm1d gives no gradient to what is no Parameter",
    COMPUTED.replace("Linear", "BatchNorm"),
    around("nn.BatchNorm1d.forward", _constant),
)
fault(
    "program-computed-in-layer-norm-constant",
    "a LayerNorm1d gives no gradient to what is no Parameter",
    COMPUTED.replace("Linear", "LayerNorm"),
    around("nn.LayerNorm1d.forward", _constant),
)

# -- how things lie in memory --------------------------------------------------------------------------------------------


def _is_transposed(a: Any) -> bool:
    return a.ndim == 2 and min(a.shape) > 1 and bool(a.flags.f_contiguous)


def _is_strided(a: Any) -> bool:
    return a.ndim > 1 and a.shape[-1] > 1 and bool(a.strides[-1] == 2 * a.itemsize) and not a.flags.f_contiguous


def _in_memory(a: Any) -> Any:
    """The numbers of a transposed matrix in the order of its memory."""
    return a.T.reshape(a.shape)


def _misread(layer: str, which: Any, read: Any) -> Patch:
    """A layer that reads an input of the user's wrongly if it lies so in memory."""

    def forward(old: Any, self: Any, x: Any) -> Any:
        wrong = not x.requires_grad and which(x.cached_data)
        return old(self, const(np.array(read(x.cached_data))) if wrong else x)

    return around(f"nn.{layer}.forward", forward)


fault(
    "program-input-transposed-as-in-memory",
    "a Linear reads a transposed batch as it lies in memory",
    "Linear forward",
    _misread("Linear", _is_transposed, _in_memory),
)
fault(
    "program-input-strided-as-in-memory",
    "a Linear reads a batch of every second column as it lies in memory",
    "Linear forward",
    _misread("Linear", _is_strided, lambda a: np.lib.stride_tricks.as_strided(a, a.shape, (a.strides[0], a.itemsize))),
)


def _gradients(which: Any, change: Any) -> Patch:
    def changed(old: Any, self: Any) -> Any:
        params, gradients = old(self)
        return params, [change(g) if which(g) else g for g in gradients]

    return around("optim.Optimizer._gradients", changed)


UPDATED = "SGD|Adam|clip"
fault(
    "program-gradient-transposed-as-in-memory",
    "a transposed gradient is read as it lies in memory",
    UPDATED,
    _gradients(_is_transposed, _in_memory),
)
fault(
    "program-gradient-repeated-shared-out",
    "a gradient that is one number, broadcast, is shared out among the elements",
    UPDATED,
    _gradients(lambda g: g.size > 1 and g.strides[-1] == 0, lambda g: g / np.float32(g.size)),
)
fault(
    "program-data-transposed-as-in-memory",
    "transposed data is taken as it lies in memory",
    "data transposed|Tensor.data",
    wrap(
        "autograd.Tensor.data",
        lambda old: property(
            old.fget,
            lambda self, v: old.fset(
                self, const(np.array(_in_memory(v.cached_data))) if _is_transposed(v.cached_data) else v
            ),
        ),
    ),
)

# -- mishaps -------------------------------------------------------------------------------------------------------------


def _leaves(root: Any) -> list[Any]:
    found, stack, seen = [], [root], set()
    while stack:
        value = stack.pop()
        if id(value) not in seen:
            seen.add(id(value))
            found += [value] if value.is_leaf() and value.requires_grad else []
            stack += value.inputs
    return found


def _resets(old: Any, root: Any, *args: Any, **keywords: Any) -> None:
    leaves = _leaves(root)
    try:
        old(root, *args, **keywords)
    except BaseException:
        for leaf in leaves:
            leaf.grad = None
        raise


def _stops_recording(old: Any, *args: Any, **keywords: Any) -> None:
    try:
        old(*args, **keywords)
    except BaseException:
        autograd._recording.set(False)
        raise


def _swallows(old: Any, *args: Any, **keywords: Any) -> None:
    try:
        old(*args, **keywords)
    except (ValueError, TypeError, RuntimeError):
        raise
    except BaseException:
        return


fault(
    "program-interrupted-walk-resets",
    "a backward pass that is interrupted leaves no gradients from before",
    "mishap, walk",
    around("autograd._walk_arrays", _resets),
)
fault(
    "program-interrupted-walk-under-no-grad",
    "after a backward pass that is interrupted nothing is recorded",
    "mishap, walk",
    around("autograd._walk_arrays", _stops_recording),
)
fault(
    "program-interrupted-tensor-walk-under-no-grad",
    "after a backward pass with create_graph that is interrupted nothing is recorded",
    "mishap, walk",
    around(
        "autograd.Tensor.backward",
        lambda old, self, *args, **keywords: (
            _stops_recording(old, self, *args, **keywords)
            if keywords.get("create_graph")
            else old(self, *args, **keywords)
        ),
    ),
)
fault(
    "program-interruption-swallowed",
    "a backward pass ends quietly where an op of the user's is interrupted",
    "mishap, walk",
    around("autograd._walk_arrays", _swallows),
)
fault(
    "program-cotangent-of-another-shape",
    "an out_grad of another shape is taken for ones",
    "mishap, cotangent",
    around(
        "autograd.Tensor._checked_out_grad",
        lambda old, self, g: old(self, g if g is None or np.shape(g) == self.shape else None),
    ),
)
fault(
    "program-backward-of-a-constant",
    "backward of what needs no gradient does nothing",
    "mishap, constant",
    around(
        "autograd.Tensor.backward",
        lambda old, self, *args, **keywords: old(self, *args, **keywords) if self.requires_grad else None,
    ),
)


def _fits(p: Any) -> bool:
    return p.grad is None or p.grad.shape == p.shape


def _without_misfits(step: Any, self: Any) -> bool:
    """A step without the gradients of another shape; whether there are any."""
    bad = [(p, p.grad) for p in self.params if not _fits(p)]
    for p, _ in bad:
        p.grad = None
    step(self)
    for p, grad in bad:
        p.grad = grad
    return bool(bad)


def _others_first(step: Any, self: Any) -> None:
    """Whatever is before a gradient of another shape is updated before that is refused."""
    if _without_misfits(step, self):
        raise ValueError("p.grad must have the shape of its parameter")


for _kind in ("SGD", "Adam"):
    fault(
        f"program-misfit-refused-late-{_kind.lower()}",
        f"{_kind} updates the other parameters before it refuses a gradient of another shape",
        "mishap, gradient",
        around(f"optim.{_kind}.step", _others_first),
    )
fault(
    "program-misfit-left-out",
    "a gradient of another shape is left out in silence",
    "mishap, gradient",
    around("optim.SGD.step", _without_misfits),
)


def _half_loaded(old: Any, self: Any, state: Any) -> None:
    try:
        old(self, state)
    except (KeyError, ValueError):
        for name, tensor in self._state().items():
            if name in state and np.shape(state[name]) == tensor.shape:
                tensor.cached_data = np.array(state[name], tensor.dtype)
        raise


def _whatever_fits(old: Any, self: Any, state: Any) -> None:
    own = {name: tensor.cached_data for name, tensor in self._state().items()}
    fit = {name: value for name, value in state.items() if name in own and np.shape(value) == own[name].shape}
    old(self, own | fit)


fault(
    "program-load-refused-late",
    "load_state_dict loads what fits before it refuses the rest",
    "mishap, name|mishap, shape",
    around("nn.Module.load_state_dict", _half_loaded),
)
fault(
    "program-load-not-strict",
    "load_state_dict loads what fits, and leaves the rest as it is",
    "mishap, name|mishap, shape",
    around("nn.Module.load_state_dict", _whatever_fits),
)


def _settings_first(old: Any, self: Any, state: Any) -> None:
    for name in self._hyper:
        if name in state and np.ndim(state[name]) == 0:
            setattr(self, name, float(state[name]))
    old(self, state)


fault(
    "program-state-refused-late",
    "an optimizer takes the settings of a state that it then refuses",
    "mishap, state",
    around("optim.Optimizer.load_state_dict", _settings_first),
)

# -- a state that is put back --------------------------------------------------------------------------------------------


def _only_at_first(old: Any, self: Any, state: Any) -> None:
    """What has been stepped goes on with the states that it has."""
    kept = {of: dict(getattr(self, of)) for of in (*self._states, *self._counts)}
    old(self, state)
    for of, known in kept.items():
        getattr(self, of).update(known)


def _counts_on(old: Any, self: Any, state: Any) -> None:
    kept = {of: dict(getattr(self, of)) for of in self._counts}
    old(self, state)
    for of, known in kept.items():
        getattr(self, of).update(known)


def _statistics_go_on(old: Any, self: Any, state: Any) -> None:
    moved = {name for name, b in self.named_buffers() if name.endswith("mean") and b.cached_data.any()}
    before = {name: b.cached_data for name, b in self.named_buffers()}
    old(self, state)
    for name, b in self.named_buffers():
        if name in moved:
            b.cached_data = before[name]


PUT_BACK = "state put back"
fault(
    "program-put-back-states-stay",
    "an optimizer that has made a step keeps its states when another is loaded",
    PUT_BACK,
    around("optim.Optimizer.load_state_dict", _only_at_first),
)
fault(
    "program-put-back-adam-counts-on",
    "Adam counts on when a state is loaded",
    PUT_BACK,
    around("optim.Optimizer.load_state_dict", _counts_on),
)
fault(
    "program-put-back-statistics-stay",
    "running means that have moved stay when a state is loaded",
    PUT_BACK,
    around("nn.Module.load_state_dict", _statistics_go_on),
)

# -- a pass without a graph, and what a graph was made with ----------------------------------------------------------------


def _only_with_a_graph(old: Any, self: Any, mean: Any, var: Any) -> None:
    if autograd._is_recording():
        old(self, mean, var)


def _in_place(old: Any, self: Any, mean: Any, var: Any) -> None:
    arrays = [(b, b.cached_data) for b in (self.running_mean, self.running_var)]
    old(self, mean, var)
    for b, a in arrays:
        a[...] = b.cached_data
        b.cached_data = a


def _modes_of_any(old: Any, self: Any) -> None:
    """One code for all modes in which some norm trains."""
    norms, self.norms = self.norms, [norm for norm in self.norms if norm.training] or self.norms
    try:
        known = getattr(self, "_first_code", None)
        old(self)
        if known is not None and len(self.norms) < len(norms):
            self.code = known
        elif len(self.norms) == len(norms) and norms and norms[0].training:
            self._first_code = self.code
    finally:
        self.norms = norms


def _unseen(old: Any, *args: Any) -> None:
    """What replaces data does not say so."""
    before = autograd._a_change
    autograd._a_change = lambda: 0
    try:
        old(*args)
    finally:
        autograd._a_change = before


def _unseen_data(old: Any) -> Any:
    return property(old.fget, lambda t, value: _unseen(old.fset, t, value))


fault(
    "program-statistics-with-a-graph-alone",
    "under no_grad a BatchNorm1d that trains leaves its running statistics alone",
    "no_grad, forward pass",
    around("nn.BatchNorm1d._follow", _only_with_a_graph),
)
fault(
    "program-statistics-in-place",
    "a BatchNorm1d writes into the arrays of its running statistics",
    "something writes into a buffer",
    around("nn.BatchNorm1d._follow", _in_place),
)
fault(
    "program-plan-of-other-modes",
    "a Sequential in which one norm has begun to evaluate goes on as before",
    "chain|BatchNorm",
    around("nn._Plan._write", _modes_of_any),
)
fault(
    "program-changed-data-unnoticed",
    "backward goes on after `.data = …` has replaced a weight",
    "mishap, changed",
    wrap("autograd.Tensor.data", _unseen_data),
)
fault(
    "program-loaded-data-unnoticed",
    "backward goes on after load_state_dict has replaced a weight",
    "mishap, changed",
    around("nn.Module.load_state_dict", _unseen),
)


def _views_written(old: Any, t: Any) -> Any:
    """A parameter that is a part of something is written into like any other."""
    return t.cached_data if t.cached_data.base is not None and t.cached_data.flags.carray else old(t)


fault(
    "program-part-written",
    "a step writes into data that is a part of what the user holds",
    "something writes into|SGD step|SGD parameter update",
    around("optim._writable", _views_written),
)
