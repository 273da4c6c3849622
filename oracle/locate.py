"""From a Divergence to the Suspect: which part of needle to look at. NumPy alone.

Two witnesses are heard. Quantities arise in a fixed order, so the first *tensor* that differs is nearest to the cause: a
layer whose output is wrong while its input is right is to blame for its forward; an adjoint that is wrong points at the
layer that consumes it; an optimizer's state at the phase that makes it. Rule OP judges every *node* of the tape by
itself: the first bad one is the guilty operator, whatever its neighbours do. Where rule OP finds nothing, the tape is
consistent, and the layer or the phase is to blame. For an optimizer, the usual mistakes are tried on the numbers.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle import case as c
from oracle.compare import Divergence, Suspect, expected_update
from oracle.op_rule import Finding, Findings
from oracle.operations.tape import TINY, U
from oracle.trace import UNSEEN

Array = npt.NDArray[Any]

FORWARD = ("activation", "loss", "evaluation")
BACKWARD = ("adjoint", "gradient", "gradient with graph", "second", "operator")


@dataclass(frozen=True)
class Step:
    """One parameter's update in numbers, float64: what needle started from, what it made."""

    name: str
    index: int  # number of the step
    rates: tuple[float, ...]  # learning rate of every step so far, this one last
    p: Array
    g: Array
    raw: Array | None  # the gradient before clipping
    old: Mapping[str, Array]
    new: Mapping[str, Array]  # "parameter" and the optimizer's state, as needle has them now
    others: Mapping[str, tuple[Array, Mapping[str, Array]]] = field(default_factory=dict)  # gradients and states


@dataclass(frozen=True)
class Clipping:
    """Clipping in numbers: gradients before and after by name, and the norm that was returned."""

    raw: Mapping[str, Array]
    clipped: Mapping[str, Array]
    norm: float
    name: str


@dataclass
class Evidence:
    """What is known beside the divergence itself."""

    ndl: Any = None
    findings: Findings | None = None
    modes: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)  # layer -> its mode, the mode it should be in
    step: Step | None = None
    clipping: Clipping | None = None
    twin: Divergence | None = None  # of a second-order case: the divergence of the training step within it


def suspect(case: c.Case, divergence: Divergence) -> str:
    """One line: the operator, layer or optimizer phase to blame, and what is known to be right."""
    found = divergence.suspect
    return (investigate(case, divergence, Evidence()) if found is None else found).text


def culprit(case: c.Case, divergence: Divergence) -> str:
    """The suspect without paths and places: what makes two failures the same one."""
    found = divergence.suspect
    found = investigate(case, divergence, Evidence()) if found is None else found
    return found.key or found.what


def named(case: c.Case, divergence: Divergence, evidence: Evidence) -> Divergence:
    """The divergence with its suspect."""
    return dataclasses.replace(divergence, suspect=investigate(case, divergence, evidence))


def investigate(case: c.Case, divergence: Divergence, evidence: Evidence) -> Suspect:
    """The suspect, from everything that is known."""
    if divergence.failure is not None:
        return _exception(divergence)
    if evidence.twin is not None and evidence.twin.suspect is not None:
        return evidence.twin.suspect
    by_tensor = _by_tensor(case, divergence, evidence)
    if divergence.rule == "unexpected" and divergence.quantity in (*FORWARD, *BACKWARD):
        what = f"{divergence.quantity} that should not exist (requires_grad)"
        return Suspect(
            what, divergence.message, line=line_of(evidence.ndl, "Tensor", "backward"), tensor=by_tensor.what
        )
    switched = _mode(divergence, evidence)
    if switched is not None:
        return dataclasses.replace(switched, tensor=by_tensor.what)
    finding = _finding(divergence, evidence.findings)
    if finding is not None:
        assert evidence.findings is not None
        return _by_operator(case, divergence, finding, evidence, by_tensor)
    if evidence.findings is not None and evidence.findings.nodes and divergence.quantity in (*FORWARD, *BACKWARD):
        agrees = "every node of the tape is right by itself (rule OP)"
        return dataclasses.replace(by_tensor, known="; ".join(k for k in (by_tensor.known, agrees) if k))
    return by_tensor


# -- exceptions -------------------------------------------------------------------------------------------------------


def _exception(divergence: Divergence) -> Suspect:
    f = divergence.failure
    assert f is not None
    function = f.where.rpartition(" in ")[2]
    line = f.where.partition(" in ")[0]
    if f.operator:
        what = f"{f.operator} {f.phase}"
        return Suspect(what, f"{f.kind} in {function}", line=line, key=f"{f.kind} in {what}")
    what = f"{f.phase}, in {function}" if f.where else f.phase
    return Suspect(what, f.kind, line=line, key=f"{f.kind} in {f.phase}, at {function}")


# -- rule OP ----------------------------------------------------------------------------------------------------------


def _finding(divergence: Divergence, findings: Findings | None) -> Finding | None:
    """The bad node that explains the divergence, if there is one."""
    if findings is None or not findings.bad:
        return None
    forward = [f for f in findings.bad if f.direction == "forward"]
    backward = [f for f in findings.bad if f.direction != "forward"]
    if divergence.quantity in FORWARD:
        # the node must be at or before the output that differs: one behind it is another matter
        last = findings.outputs.get(divergence.name.split("#")[0])
        known = [f for f in forward if last is None or f.node <= last]
        return known[0] if known else None
    if divergence.quantity not in BACKWARD:
        return None
    if divergence.quantity == "adjoint":
        first = findings.outputs.get(divergence.name.split("#")[0], -1)
        backward = [f for f in backward if f.node > first or (f.direction == "seed" and f.node == first)]
    return (forward + backward)[0] if forward or backward else None


def _by_operator(
    case: c.Case, divergence: Divergence, finding: Finding, evidence: Evidence, by_tensor: Suspect
) -> Suspect:
    assert evidence.findings is not None
    words = finding.words
    if finding.direction == "accumulation":
        what, key = "accumulation of gradients", "accumulation"
        line = line_of(evidence.ndl, "Tensor", "backward")
    elif finding.direction == "seed":
        what = key = "seed of backward (out_grad)"
        line = line_of(evidence.ndl, "Tensor", "backward")
    else:
        what = key = f"{finding.kind} {finding.direction}"
        line = line_of(evidence.ndl, f"ops.{finding.kind}", *_METHODS[finding.direction])
    if finding.fault == "dtype" and finding.direction == "backward":
        what, key = f"dtype of gradients, {what}", "dtype of gradients"
    elif finding.fault != "value":
        what = f"{what}, {finding.fault}"
    if finding.broadcast:
        words = "so is another op on these operands: see how gradients are reduced to the shape of what was broadcast"
        key = "reduction to the shape of a broadcast operand"
    where = f"node {finding.node} of the tape" + (f", in layer {finding.label}" if finding.label else "")
    other = by_tensor.what if by_tensor.what != what and divergence.quantity != "operator" else ""
    return Suspect(what, f"{finding.message}, {where}", "", words, line, finding.name, other, key)


_METHODS = {"forward": ("compute",), "backward": ("vjp", "gradient")}


def line_of(ndl: Any, path: str, *methods: str) -> str:
    """Where a class of needle defines a method: ``needle/ops.py:351``; empty where that cannot be known."""
    thing = ndl
    for name in path.split("."):
        thing = getattr(thing, name, None)
    if thing is None:
        return ""
    for owner in inspect.getmro(thing) if inspect.isclass(thing) else (thing,):
        try:
            # from the class's own text: a method that was replaced at run time is still defined there
            lines, start = inspect.getsourcelines(owner)
            file = inspect.getsourcefile(owner) or ""
        except (OSError, TypeError, IndexError):
            continue
        name = "/".join(file.replace("\\", "/").split("/")[-2:])
        for method in methods:
            for i, text in enumerate(lines):
                if re.match(rf"\s+def {method}\b", text):
                    return f"{name}:{start + i}"
        if not methods:
            return f"{name}:{start}"
    return ""


# -- modes ------------------------------------------------------------------------------------------------------------


def _mode(divergence: Divergence, evidence: Evidence) -> Suspect | None:
    """A layer that train() or eval() did not switch."""
    if divergence.quantity not in (*FORWARD, "untouched", "buffer"):
        return None
    for path, (found, right) in evidence.modes.items():
        if found != right:
            method = "train" if right else "eval"
            line = line_of(evidence.ndl, "nn.Module", method)
            return Suspect(f"Module.{method}", f"it leaves layer {path} in the other mode", line=line)
    return None


# -- the first bad tensor ---------------------------------------------------------------------------------------------


def _by_tensor(case: c.Case, divergence: Divergence, evidence: Evidence) -> Suspect:
    quantity, name = divergence.quantity, divergence.name.split("#")[0]
    if isinstance(case, c.OpCase):
        if quantity == "kept":
            return Suspect(f"{case.op} writes into its operand")
        if quantity == "activation":
            return Suspect(f"{case.op} forward")
        graph = " with create_graph" if quantity == "gradient with graph" else ""
        return Suspect(f"{case.op} backward{graph}", f"the gradient of {name}")
    ndl = evidence.ndl
    layers = dict(c.walk(case.model))
    owner = name.rpartition(".")[0]
    if quantity in ("activation", "evaluation"):
        quiet = quantity == "evaluation" or _in_eval(layers, name)
        mode = "in evaluation mode" if quiet else "in training mode"
        return _layer(layers, name, ndl, "forward", f"forward {mode}", "every output before it agrees")
    if quantity == "loss":
        line = line_of(ndl, "nn.SoftmaxLoss", "forward") if isinstance(case.loss, c.SoftmaxLoss) else ""
        return Suspect(f"{type(case.loss).__name__} forward", known="all layer outputs agree", line=line)
    if quantity == "adjoint":
        path = _consumer(layers, name)
        known = "all outputs and the adjoints behind it agree"
        if path is None:
            return Suspect(f"{type(case.loss).__name__} backward", known=known)
        what = "backward in evaluation mode" if _in_eval(layers, path) else "backward"
        return _layer(layers, path, ndl, "forward", what, known)
    if quantity == "gradient":
        return _layer(layers, owner, ndl, "forward", "backward", "all adjoints agree", place=f"gradient {name}")
    if quantity == "second":
        known = "first-order gradients agree"
        return _layer(layers, owner, ndl, "forward", "second backward", known, place=f"gradient {name}")
    if quantity == "operator":
        # without the findings: the name begins with the class and the direction
        return Suspect(re.split(r"[,(]", divergence.name)[0].strip())
    if quantity == "buffer":
        return _layer(layers, owner, ndl, "forward", "running statistics", "its outputs agree", place=name)
    if quantity == "initial":
        return _layer(layers, owner, ndl, "__init__", "constructor", place=name)
    return _phase(case, divergence, evidence)


def _phase(case: c.TrainCase | c.SecondOrderCase, divergence: Divergence, evidence: Evidence) -> Suspect:
    """A phase of the optimizer, or a promise about memory and modes."""
    quantity, name, ndl = divergence.quantity, divergence.name, evidence.ndl
    kind = "SGD" if isinstance(case, c.SecondOrderCase) else type(case.optimizer).__name__
    stepped = line_of(ndl, f"optim.{kind}", "step")
    clipper = line_of(ndl, f"optim.{kind}", "clip_grad_norm")
    words = ""
    if isinstance(case, c.TrainCase):
        if divergence.rule == "dtype":
            words = f"its dtype is {divergence.ours} and not {divergence.truth}"
        elif evidence.step is not None:
            words = optimizer_words(case, quantity, evidence.step)
        elif evidence.clipping is not None:
            words = clip_words(case, quantity, evidence.clipping)
    if quantity == "parameters":
        return Suspect("Module.parameters", line=line_of(ndl, "nn.Module", "parameters"))
    if quantity == "clip norm":
        return Suspect("clip norm", "clip_grad_norm", "all gradients agree", words, clipper)
    if quantity == "clipped":
        return Suspect("clip scaling", f"clip_grad_norm, {name}", "gradients and their norm agree", words, clipper)
    if quantity == "gradient after step":
        return Suspect(f"{kind}.step writes into gradients", name, "", words, stepped)
    if quantity in ("velocity", "first moment", "second moment"):
        phase = "velocity update" if quantity == "velocity" else f"{quantity} update"
        if divergence.rule == "unexpected":
            return Suspect(f"{kind} skip, {phase}", divergence.message, line=stepped, key=f"{kind} skip")
        return Suspect(f"{kind} {phase}", name, "all gradients agree", words, stepped)
    if quantity == "parameter":
        if divergence.rule == "exact":
            return Suspect(f"{kind} skip", f"parameter {name} has no gradient", "", words, stepped)
        known = "all gradients and the optimizer's state agree"
        return Suspect(f"{kind} parameter update", name, known, words, stepped)
    if name.endswith(UNSEEN):
        what = "a chain of layers gives something else than the layers one by one (chain)"
        return Suspect(what, name, line=line_of(ndl, "chain", "run"))
    if quantity == "kept":
        held = re.sub(r" of step \d+$", "", name).split(" ")[0]
        return Suspect(f"something writes into a {held} that a user may hold (alias)", name)
    if quantity in ("graph", "live tensors", "cycles"):
        return Suspect(f"something that a step leaves in memory (leak): {quantity}", divergence.message)
    if quantity == "untouched" and name == "random state":
        droppers = [path for path, layer in c.walk(case.model) if isinstance(layer, c.Dropout)]
        if droppers:  # the one layer that draws: what it must not do is the same mistake as what it then gives
            layers = dict(c.walk(case.model))
            place = f"it changes the random state; layer {droppers[0]}"
            return _layer(layers, droppers[0], ndl, "forward", "forward in evaluation mode", place=place)
    if quantity == "untouched":
        held = "the random state" if name == "random state" else "buffers"
        return Suspect(f"evaluation mode changes {held}", name)
    if quantity in ("graph", "live tensors"):
        return Suspect("something keeps Tensors of a step alive; `nox -s memory` names the holder", name)
    if quantity == "cycles":
        return Suspect("Tensors of a step refer to each other in a circle", name)
    return Suspect(quantity, name)


def _layer(
    layers: Mapping[str, c.Layer], path: str, ndl: Any, method: str, what: str, known: str = "", place: str = ""
) -> Suspect:
    layer = layers.get(path)
    if layer is None:
        return Suspect(f"{path or 'the model'} {what}", place, known)
    kind = type(layer).__name__
    key = f"{kind} {what}"  # a block of operations remains the same one while it shrinks
    if isinstance(layer, c.Ops):
        kind = f"Ops ({' '.join(s.op for s in layer.steps)})"
    line = line_of(ndl, f"nn.{_CLASSES.get(kind, kind)}", method)
    return Suspect(f"{kind} {what}", place or f"layer {path}", known, line=line, key=key)


_CLASSES = {"BatchNorm": "BatchNorm1d", "LayerNorm": "LayerNorm1d", "Eval": "Sequential"}


def _in_eval(layers: Mapping[str, c.Layer], path: str) -> bool:
    while path:
        if isinstance(layers.get(path), c.Eval):
            return True
        path = path.rpartition(".")[0]
    return False


def _consumer(layers: Mapping[str, c.Layer], name: str) -> str | None:
    """The layer that takes the output ``name`` as its input: a bad adjoint is its consumer's fault. None: the loss.

    A Sequential only hands its input to the first of its layers.
    """
    path = _next(layers, name)
    while path is not None and isinstance(layers[path], c.Sequential | c.Eval) and f"{path}.0" in layers:
        path = f"{path}.0"
    return path


def _next(layers: Mapping[str, c.Layer], name: str) -> str | None:
    if name == "input":
        return "0" if layers else None
    prefix, _, last = name.rpartition(".")
    following = f"{prefix}.{int(last) + 1}" if prefix else str(int(last) + 1)
    if following in layers:
        return following
    container = prefix
    while container and container not in layers:  # "2.left" is not a layer, "2" is
        container = container.rpartition(".")[0]
    if not container:
        return None
    if isinstance(layers[container], c.Residual | c.Branch):
        return container
    return _next(layers, container)


# -- optimizers: which mistake explains the numbers? ------------------------------------------------------------------


def optimizer_words(case: c.TrainCase, quantity: str, step: Step) -> str:
    """The first of the usual mistakes that gives needle's numbers, in words; empty if none does."""
    guesses: Callable[[Any, Step], Iterator[tuple[str, str, Array]]]
    guesses = {c.SGD: _sgd, c.Adam: _adam}[type(case.optimizer)]  # type: ignore[assignment]
    if quantity == "gradient after step":
        guesses = _written
    ours = step.new.get(quantity)
    if ours is None or ours.shape != step.p.shape:
        return ""
    lr = np.asarray(step.rates[-1])
    bounds = expected_update(case, lr, step.p, step.g, step.old, np.asarray(float(step.index + 1)), 12).values
    with np.errstate(all="ignore"):
        for what, words, value in guesses(case.optimizer, step):
            if what != quantity:
                continue
            slack = bounds[quantity][1] if quantity in bounds else 0.0
            if bool((np.abs(ours - value) <= 3 * slack + 6 * U * np.abs(value) + TINY).all()):
                return words
    return ""


def _half(x: Any) -> Any:
    return np.asarray(x).astype(np.float16).astype(np.float64)


def _written(spec: Any, s: Step) -> Iterator[tuple[str, str, Array]]:
    decay = spec.weight_decay or 0.0
    rest = 1 - (getattr(spec, "momentum", None) or 0.0)
    d = s.g + decay * s.p
    for words, value in (
        ("the decay is added to the gradient in place", d),
        ("the gradient is scaled with 1 − β in place", rest * s.g),
        ("the decay is added and 1 − β multiplied in place", rest * d),
        ("the gradient is zeroed", 0 * s.g),
        ("the gradient holds the new velocity", s.new.get("velocity", s.g)),
    ):
        yield "gradient after step", words, value


def _sgd(spec: c.SGD, s: Step) -> Iterator[tuple[str, str, Array]]:
    """(quantity, words, value) of wrong steps of SGD. The velocity's come first."""
    beta, decay, lr = spec.momentum or 0.0, spec.weight_decay or 0.0, s.rates[-1]
    g, p, old, rest = s.g, s.p, s.old["velocity"], 1 - beta
    d = g + decay * p
    new, u = s.new["parameter"], s.new.get("velocity")
    u = beta * old + rest * d if u is None else u
    truth = beta * old + rest * d
    undecayed = "the decay is missing: g′ = g"
    if decay and new.shape == p.shape:
        for words, moved in (
            ("the decay is outside the momentum: θ − α(u + λθ)", p - lr * (u + decay * p)),
            ("the decay is outside the momentum, without the learning rate: θ − αu − λθ", p - lr * u - decay * p),
        ):
            if bool((np.abs(new - moved) <= 16 * U * (np.abs(p) + np.abs(lr * u)) + TINY).all()):
                undecayed = words
    velocities = [
        ("as if undampened: u = βu + g′", beta * old + d),
        (undecayed, beta * old + rest * g),
        ("the decay has the wrong sign: g′ = g − λθ", beta * old + rest * (g - decay * p)),
        ("the decay counts twice: g′ = g + 2λθ", beta * old + rest * (g + 2 * decay * p)),
        ("the decay is not dampened: u = βu + (1 − β)g + λθ", beta * old + rest * g + decay * p),
        ("the old velocity is taken as zero: u = (1 − β)g′", rest * d),
        ("dampened twice: u = βu + (1 − β)²g′", beta * old + rest * rest * d),
        ("the old velocity is not multiplied with β: u = u + (1 − β)g′", old + rest * d),
        ("the old velocity decays with β²", beta * beta * old + (1 - beta * beta) * d),
        ("the old velocity decays with β²", beta * beta * old + rest * d),
        ("β and 1 − β change places: u = (1 − β)u + βg′", rest * old + beta * d),
        ("without momentum: u = g′", d),
        ("the velocity stays what it was", old),
        ("the gradient enters with the wrong sign", beta * old - rest * d),
        ("the learning rate is in the velocity: u = βu + α(1 − β)g′", beta * old + lr * rest * d),
        ("the learning rate is in the velocity, undampened: u = βu + αg′", beta * old + lr * d),
        ("1 − β is computed in float32", beta * old + float(np.float32(1) - np.float32(beta)) * d),
        ("β is rounded to float16", float(_half(beta)) * old + (1 - float(_half(beta))) * d),
        ("λ is rounded to float16", beta * old + rest * (g + float(_half(decay)) * p)),
        ("the velocity is rounded to float16", _half(truth)),
        ("the gradient is rounded to float16", beta * old + rest * (_half(g) + decay * p)),
    ]
    if s.raw is not None:
        velocities.append(("the gradient before clipping is used", beta * old + rest * (s.raw + decay * p)))
    for name, (grad, state) in s.others.items():
        if name != s.name and grad.shape == g.shape:
            velocities.append((f"the gradient of {name} is used", beta * old + rest * (grad + decay * p)))
            if "velocity" in state:
                velocities.append((f"the velocity of {name} is used", beta * state["velocity"] + rest * d))
    for words, value in velocities:
        yield "velocity", words, value
    updates = [
        ("the decay is outside the momentum: θ − α(u + λθ)", p - lr * (u + decay * p)),
        ("the decay is outside the momentum, without the learning rate: θ − αu − λθ", p - lr * u - decay * p),
        ("the decay counts twice: θ − α(u + λθ)", p - lr * (truth + decay * p)),
    ]
    updates += [
        (f"the learning rate is stale: {rate:g}, not {lr:g}", p - rate * u)
        for rate in dict.fromkeys((*reversed(s.rates), 0.01)) if rate != lr
    ]  # fmt: skip
    updates += [
        ("the parameter stays what it was", p),
        ("the old velocity is used: θ − αu₀", p - lr * old),
        ("Nesterov's look-ahead: θ − α(βu + (1 − β)g′)", p - lr * (beta * u + rest * d)),
        ("Nesterov's look-ahead: θ − α(βu + g′)", p - lr * (beta * u + d)),
        ("as if undampened: θ − α(βu + g′)", p - lr * (beta * old + d)),
        ("the gradient is used, not the velocity: θ − αg′", p - lr * d),
        ("the gradient is used, without decay: θ − αg", p - lr * g),
        ("the step goes uphill: θ + αu", p + lr * u),
        ("the step is made twice", p - 2 * lr * u),
        ("1 − β is multiplied in once more", p - lr * rest * u),
        ("the velocity is divided by 1 − β", p - lr * u / rest),
        ("the velocity is corrected for its start, as Adam's is", p - lr * u / (1 - beta ** (s.index + 1))),
        ("α is rounded to float16", p - float(_half(lr)) * u),
        ("the parameter is rounded to float16", _half(p - lr * u)),
        ("the update is rounded to float16", p - _half(lr * u)),
    ]
    for words, value in updates:
        yield "parameter", words, value


def _adam(spec: c.Adam, s: Step) -> Iterator[tuple[str, str, Array]]:
    """(quantity, words, value) of wrong steps of Adam."""
    lr, t = s.rates[-1], s.index + 1
    decay = spec.weight_decay or 0.0
    b1 = 0.9 if spec.beta1 is None else spec.beta1
    b2 = 0.999 if spec.beta2 is None else spec.beta2
    eps = 1e-8 if spec.eps is None else spec.eps
    g, p, m0, v0 = s.g, s.p, s.old["first moment"], s.old["second moment"]
    d = g + decay * p
    m = s.new.get("first moment", b1 * m0 + (1 - b1) * d)
    v = s.new.get("second moment", b2 * v0 + (1 - b2) * d * d)
    for words, value in (
        ("the decay is missing, or decoupled as in AdamW", b1 * m0 + (1 - b1) * g),
        ("the decay has the wrong sign", b1 * m0 + (1 - b1) * (g - decay * p)),
        ("as if undampened: m = β₁m + g′", b1 * m0 + d),
        ("the old moment is taken as zero", (1 - b1) * d),
        ("β₁ and β₂ change places", b2 * m0 + (1 - b2) * d),
        ("1 − β₁ is computed in float32", b1 * m0 + float(np.float32(1) - np.float32(b1)) * d),
        ("the moment stays what it was", m0),
    ):
        yield "first moment", words, value
    for words, value in (
        ("the decay is missing from g²", b2 * v0 + (1 - b2) * g * g),
        ("|g| is averaged, not g²", b2 * v0 + (1 - b2) * np.abs(d)),
        ("it never falls, as in AMSGrad", np.maximum(v0, b2 * v0 + (1 - b2) * d * d)),
        ("as if undampened: v = β₂v + g′²", b2 * v0 + d * d),
        ("the old moment is taken as zero", (1 - b2) * d * d),
        ("β₁ is used for β₂", b1 * v0 + (1 - b1) * d * d),
        ("1 − β₂ is computed in float32", b2 * v0 + float(np.float32(1) - np.float32(b2)) * d * d),
        ("the moment stays what it was", v0),
    ):
        yield "second moment", words, value
    c1, c2 = 1 - b1**t, 1 - b2**t
    roots = np.sqrt(v / c2)
    updates = [
        ("no bias correction", p - lr * m / (np.sqrt(v) + eps)),
        ("only the first moment is corrected", p - lr * m / c1 / (np.sqrt(v) + eps)),
        ("only the second moment is corrected", p - lr * m / (roots + eps)),
        ("ε is inside the square root", p - lr * m / c1 / np.sqrt(v / c2 + eps)),
        ("ε is added before the correction of v", p - lr * m / c1 / ((np.sqrt(v) + eps) / np.sqrt(c2))),
        ("v is divided by, not its root", p - lr * m / c1 / (v / c2 + eps)),
        ("the decay is outside, as in AdamW", p - lr * (m / c1 / (roots + eps) + decay * p)),
        ("the decay is outside, as in AdamW", (1 - lr * decay) * p - lr * m / c1 / (roots + eps)),
        ("the parameter stays what it was", p),
        ("the step goes uphill", p + lr * m / c1 / (roots + eps)),
        ("the gradient is used, not the first moment", p - lr * d / (roots + eps)),
        ("α is rounded to float16", p - float(_half(lr)) * m / c1 / (roots + eps)),
        ("the parameter is rounded to float16", _half(p - lr * m / c1 / (roots + eps))),
    ]
    for k in dict.fromkeys((1, t - 1, t + 1, *range(1, 2 * t + 6))):
        if k >= 1 and k != t:
            a, b = 1 - b1**k, 1 - b2**k
            words = f"the step counter is {k}, not {t}"
            updates.append((words, p - lr * m / a / (np.sqrt(v / b) + eps)))
    updates += [
        (f"the learning rate is stale: {rate:g}, not {lr:g}", p - rate * m / c1 / (roots + eps))
        for rate in dict.fromkeys((*reversed(s.rates), 0.01, 0.001)) if rate != lr
    ]  # fmt: skip
    for words, value in updates:
        yield "parameter", words, value


def clip_words(case: c.TrainCase, quantity: str, clipping: Clipping) -> str:
    """The first of the usual mistakes of clipping that gives needle's numbers, in words; empty if none does."""
    assert case.clip is not None
    most = 0.25 if case.clip.max_norm is None else case.clip.max_norm
    raw = clipping.raw
    squares = {n: float((g * g).sum()) for n, g in raw.items()}
    norm = float(np.sqrt(sum(squares.values())))
    if quantity == "clip norm":
        guesses: list[tuple[str, float]] = [
            ("the sum of squares, without the root", norm * norm),
            ("the sum of absolute values", sum(float(np.abs(g).sum()) for g in raw.values())),
            ("the largest absolute value", max((float(np.abs(g).max(initial=0)) for g in raw.values()), default=0.0)),
            ("the sum of the norms", sum(float(np.sqrt(s)) for s in squares.values())),
            ("the norm after clipping", min(1.0, most / (norm + 1e-6)) * norm),
            ("1e-6 is a part of it", norm + 1e-6),
            ("every parameter counts twice", float(np.sqrt(2)) * norm),
            *((f"{n} counts twice", float(np.sqrt(norm * norm + s))) for n, s in squares.items()),
            ("the mean square", norm / np.sqrt(max(1, sum(g.size for g in raw.values())))),
            *((f"{n} is left out", float(np.sqrt(norm * norm - s))) for n, s in squares.items() if len(raw) > 1),
            *((f"the norm of {n} alone", float(np.sqrt(s))) for n, s in squares.items() if len(raw) > 1),
        ]
        return next((w for w, x in guesses if abs(clipping.norm - x) <= 1e-5 * abs(x) and _apart(x, norm)), "")
    factor = min(1.0, most / (norm + 1e-6))
    scaled: list[tuple[str, Callable[[Array], Array]]] = [
        ("not clipped", lambda g: g),
        ("clipped by its own norm, not by that of all gradients", lambda g: g * min(1.0, most / (_norm(g) + 1e-6))),
        ("scaled up to max_norm", lambda g: g * (most / (norm + 1e-6))),
        ("the factor is max_norm / norm, without 1e-6", lambda g: g * min(1.0, most / norm) if norm else g),
        ("scaled twice", lambda g: g * factor * factor),
        ("scaled with 1 / norm", lambda g: g / (norm + 1e-6)),
        ("scaled with max_norm / norm²", lambda g: g * min(1.0, most / (norm * norm + 1e-6))),
        ("max_norm is taken as 0.25", lambda g: g * min(1.0, 0.25 / (norm + 1e-6))),
        ("max_norm is taken as 1", lambda g: g * min(1.0, 1 / (norm + 1e-6))),
        ("each element is cut to ±max_norm", lambda g: np.clip(g, -most, most)),
        ("the factor is rounded to float16", lambda g: g * float(_half(factor))),
        ("the gradient is rounded to float16", lambda g: _half(g * factor)),
    ]

    def explains(rule: Callable[[Array], Array]) -> bool:
        """For every parameter: what fits one alone may be chance."""
        for name, g in raw.items():
            ours, value = clipping.clipped.get(name), rule(g)
            if ours is None or ours.shape != g.shape:
                return False
            if not bool((np.abs(ours - value) <= 8 * U * np.abs(value) + TINY).all()):
                return False
        return True

    return next((words for words, rule in scaled if explains(rule)), "")


def _norm(g: Array) -> float:
    return float(np.sqrt((g * g).sum()))


def _apart(x: float, y: float) -> bool:
    return abs(x - y) > 1e-7 * abs(y)
