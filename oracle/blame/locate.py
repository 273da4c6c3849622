"""From a Divergence to the Suspect: which part of needle to look at. NumPy alone.

Two witnesses are heard. Quantities arise in a fixed order, so the first *tensor* that differs is nearest to the cause: a
layer whose output is wrong while its input is right is to blame for its forward; an adjoint that is wrong points at the
layer that consumes it; an optimizer's state at the phase that makes it. Rule OP judges every *node* of the tape by
itself: the first bad one is the guilty operator, whatever its neighbours do. Where rule OP finds nothing, the tape is
consistent, and the layer or the phase is to blame. For an optimizer, the usual mistakes are tried on the numbers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from oracle.blame.programs import HELD, of_program
from oracle.blame.words import clip_words, optimizer_words, told
from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.commands import session
from oracle.rules.arrival import SHARED
from oracle.rules.calls import Calls
from oracle.rules.tape import Finding, Findings
from oracle.rules.verdict import BACKWARD, FORWARD, HIGHER, Divergence, Evidence, Explanation, Suspect
from oracle.systems.trace import CHANGED, HANDED_IN, UNSEEN


def suspect(case: c.Case, divergence: Divergence) -> str:
    """One line: the operator, layer or optimizer phase to blame, and what is known to be right."""
    found = divergence.suspect
    return (investigate(case, divergence, Evidence()) if found is None else found).text


def culprit(case: c.Case, divergence: Divergence) -> str:
    """The suspect without paths and places: what makes two failures the same one."""
    found = divergence.suspect
    found = investigate(case, divergence, Evidence()) if found is None else found
    return found.key or found.what


def investigate(case: c.Case, divergence: Divergence, evidence: Evidence) -> Suspect:
    """The suspect, from everything that is known."""
    if divergence.failure is not None:
        return _before_it_raised(case, divergence, evidence) or _exception(divergence)
    if isinstance(case, c.ProgramCase):
        return (
            _of_a_layer(case, divergence, evidence)
            or _inside(case, divergence, evidence)
            or of_program(case, divergence, evidence)
        )
    if evidence.within is not None and evidence.within.divergence is not None:
        return investigate(evidence.within.case, evidence.within.divergence, evidence.within.evidence)
    return _of_run(case, divergence, evidence)


def _of_run(case: c.TrainCase | c.SecondOrderCase | c.OpCase, divergence: Divergence, evidence: Evidence) -> Suspect:
    """Of what is no program: an op that was at work, a node of the tape, a layer, or a phase."""
    by_tensor = _by_tensor(case, divergence, evidence)
    called = _by_call(divergence, evidence, by_tensor)
    if called is not None:
        return called
    finding = _finding(divergence, evidence.findings)
    written = _by_writer(case, divergence, finding, evidence)
    if written is not None:
        return dataclasses.replace(written, tensor=by_tensor.what if by_tensor.what != written.what else "")
    if divergence.rule == "unexpected" and divergence.quantity in (*FORWARD, *BACKWARD) and finding is None:
        what = f"{divergence.quantity} that should not exist (requires_grad)"
        return Suspect(what, divergence.message, definition=("Tensor", "backward"), tensor=by_tensor.what)
    switched = _mode(divergence, evidence)
    if switched is not None:
        return dataclasses.replace(switched, tensor=by_tensor.what)
    if finding is not None:
        assert evidence.findings is not None
        return _by_operator(case, divergence, finding, evidence, by_tensor)
    found = evidence.findings
    looked = found is not None and found.nodes > found.unknown and not (divergence.quantity in FORWARD and found.bad)
    if looked and divergence.quantity in (*FORWARD, *BACKWARD):
        assert evidence.findings is not None
        unknown = f", but for {evidence.findings.unknown} that it does not know" if evidence.findings.unknown else ""
        agrees = f"every node of the tape is right by itself (rule OP){unknown}"
        told = _by_graph(case, divergence, evidence) or by_tensor
        return dataclasses.replace(told, known="; ".join(k for k in (told.known, agrees) if k))
    return by_tensor


# -- exceptions -------------------------------------------------------------------------------------------------------


def _exception(divergence: Divergence) -> Suspect:
    f = divergence.failure
    assert f is not None
    function = f.where.rpartition(" in ")[2]
    line = f.where.partition(" in ")[0]
    if f.kind == CHANGED:
        what = f"state of the process, changed in {f.phase}"
        return Suspect(what, f.message, key=f"{what}: {f.message.partition('(')[0]}")
    if f.operator:
        what = f"{f.operator} {f.phase}"
        return Suspect(what, f"{f.kind} in {function}", line=line, key=f"{f.kind} in {what}")
    what = f"{f.phase}, in {function}" if f.where else f.phase
    return Suspect(what, f.kind, line=line, key=f"{f.kind} in {f.phase}, at {function}")


def _before_it_raised(case: c.Case, divergence: Divergence, evidence: Evidence) -> Suspect | None:
    """An op that was wrong before the exception, or who is known to bring it about."""
    f = divergence.failure
    assert f is not None
    raised = f"{f.kind} in {f.phase}"
    if evidence.calls is not None and evidence.calls.bad is not None:
        return dataclasses.replace(
            _of_call(evidence.calls.bad), known=f"then: {raised}", tensor=_exception(divergence).what
        )
    if evidence.misbuilt:
        return _misbuilt(case, evidence.misbuilt, f"{evidence.misbuilt}, then {raised}", built=f.phase == "build")
    if evidence.alone:
        return dataclasses.replace(_CHAIN, place=raised, line=f.where.partition(" in ")[0])
    if evidence.detached and "requires_grad" in f.message:
        return _detached(case, evidence.detached, raised)
    return None


_CHAIN = Suspect(
    "a chain of layers gives something else than the layers one by one (chain)", definition=("chain", "run")
)


def _misbuilt(case: c.Case, name: str, place: str, *, built: bool) -> Suspect:
    """Who has given a parameter or a buffer a shape or a dtype that it cannot go on with."""
    run = case.training if isinstance(case, c.ProgramCase) else case
    assert isinstance(run, c.TrainCase)
    owner, layers = name.rpartition(".")[0], dict(c.walk(run.model))
    if built:
        return _layer(layers, owner, "__init__", "constructor", place=place)
    if name.endswith((".running_mean", ".running_var")):
        return _layer(layers, owner, "forward", "running statistics", place=place)
    kind = type(run.optimizer).__name__
    return Suspect(f"{kind} parameter update", place, definition=(f"optim.{kind}", "step"))


def _detached(case: c.Case, path: str, place: str) -> Suspect:
    """A layer through which nothing flows."""
    model = case.training.model if isinstance(case, c.ProgramCase) else getattr(case, "model", ())
    found = _layer(dict(c.walk(model)), path, "forward", "forward")
    what = f"{found.what}: a constant where a gradient should flow (missing)"
    return dataclasses.replace(found, what=what, place=f"layer {path}, {place}", key=found.key or what)


# -- calls of ops -----------------------------------------------------------------------------------------------------


def _by_call(divergence: Divergence, evidence: Evidence, by_tensor: Suspect) -> Suspect | None:
    """The first call of an op that was wrong, where it explains the divergence."""
    bad = evidence.calls.bad if evidence.calls is not None else None
    if bad is None:
        return None
    node = _finding(divergence, evidence.findings)
    if node is not None and not bad.method and _same(node, bad):
        return None  # the tape says the same, and where in the model that is
    if divergence.quantity == "kept":
        return _of_call(bad) if bad.fault == "written" else None
    if divergence.quantity not in (*FORWARD, *BACKWARD):
        return None
    if divergence.quantity in FORWARD:
        # what comes after the output that differs is another matter
        behind = (
            evidence.findings is not None and _finding(divergence, evidence.findings) is None and evidence.findings.bad
        )
        if bad.direction != "forward" or behind:
            return None
    return dataclasses.replace(
        _of_call(bad), tensor=by_tensor.what if by_tensor.what != f"{bad.kind} {bad.direction}" else ""
    )


def _same(node: Finding, bad: Finding) -> bool:
    return (node.kind, node.direction, node.fault) == (bad.kind, bad.direction, bad.fault)


def _of_call(bad: Finding) -> Suspect:
    what = key = f"{bad.kind} {bad.direction}"
    if bad.fault == "dtype" and bad.direction == "backward":
        what, key = f"dtype of gradients, {what}", "dtype of gradients"
    elif bad.fault == "written":
        what = key = bad.message
    elif bad.fault != "value":
        what = f"{what}, {bad.fault}"
    definition = (f"ops.{bad.kind}", *_METHODS[bad.direction])
    if bad.method:  # of the class from which it has it
        what = f"{what}, in {bad.method}"
    return Suspect(what, bad.message, bad.about, "", definition, bad.name, "", key)


def _by_writer(
    case: c.TrainCase | c.SecondOrderCase | c.OpCase,
    divergence: Divergence,
    finding: Finding | None,
    evidence: Evidence,
) -> Suspect | None:
    """A layer that was seen to write into its input: what reads that later looks wrong, and was right when it was called."""
    if not evidence.wrote or isinstance(case, c.OpCase) or divergence.quantity not in (*FORWARD, *BACKWARD):
        return None
    right = evidence.calls.right if evidence.calls is not None else {}
    if finding is not None and not right.get(f"{finding.kind} {finding.direction}"):
        return None
    quiet = divergence.quantity == "evaluation"
    return _wrote(case, evidence.wrote, f"layer {evidence.wrote}: it writes into its input (alias)", quiet=quiet)


def _wrote(case: c.TrainCase | c.SecondOrderCase, path: str, place: str, *, quiet: bool) -> Suspect:
    """The layer that writes into its input; ``quiet`` where the whole model evaluates."""
    layers = dict(c.walk(case.model))
    mode = "evaluation" if quiet or _in_eval(layers, path) else "training"
    return _layer(layers, path, "forward", f"forward in {mode} mode", place=place)


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


def _explaining_all(finding: Finding, findings: Findings) -> tuple[Explanation, ...]:
    """What a wrong sum looks like, and all others that are wrong: one of them alone is easily explained by chance. Where arrays are
    shared, a sum of several may look like anything.
    """
    sums = [f for f in findings.bad if (f.direction, f.fault) == ("accumulation", "value")]

    def explains(e: Explanation) -> bool:
        asked = [f for f in sums if f.uses == 1] if e.key == SHARED else sums
        return all(any(o.key == e.key for o in f.fits) for f in asked)

    return tuple(e for e in finding.fits if explains(e))


def _by_operator(
    case: c.Case, divergence: Divergence, finding: Finding, evidence: Evidence, by_tensor: Suspect
) -> Suspect:
    assert evidence.findings is not None
    words, fit, known = finding.words, _explaining_all(finding, evidence.findings), ""
    words = words or told(fit)
    definition: tuple[str, ...] = ("Tensor", "backward")
    calls = evidence.calls
    called = calls.right[f"{finding.kind} {finding.direction}"] if calls is not None and calls.bad is None else 0
    if called and finding.fault == "value" and finding.direction == "forward":
        what = key = f"something writes into what {finding.kind} was given, or gave (alias)"
        known = f"{finding.kind} was right when it was called"
    elif called and finding.direction == "backward":
        what = key = "backward walk, accumulation of gradients"
        known = f"the rule of {finding.kind} was right when it was called"
    elif finding.direction == "accumulation":
        what, key = "accumulation of gradients", "accumulation"
    elif finding.direction == "seed":
        what = key = "seed of backward (out_grad)"
    else:
        what = key = f"{finding.kind} {finding.direction}"
        definition = (f"ops.{finding.kind}", *_METHODS[finding.direction])
    if finding.fault == "dtype" and finding.direction == "backward":
        what, key = f"dtype of gradients, {what}", "dtype of gradients"
    elif finding.fault != "value":
        what = f"{what}, {finding.fault}"
    if finding.method and finding.method.partition(".")[0] != finding.kind:
        what = f"{what}, in {finding.method}"
    if finding.broadcast:
        words = "so is another op on these operands: see how gradients are reduced to the shape of what was broadcast"
        key = "reduction to the shape of a broadcast operand"
    key = finding.method or key
    where = f"node {finding.node} of the tape" + (f", in layer {finding.label}" if finding.label else "")
    other = by_tensor.what if by_tensor.what != what and divergence.quantity != "operator" else ""
    return Suspect(
        what, f"{finding.message}, {where}", known, words, definition, finding.name, other, key, finding.line, fit
    )


_METHODS = {"forward": ("compute",), "backward": ("vjp", "gradient"), "second backward": ("vjp", "gradient")}


IN_THE_GRAPH = "forward, in the graph that it builds for backward"
FAR = 50.0  # times what rule G allows: beyond what rounding in the ops of a tape can add up to


def _by_graph(
    case: c.TrainCase | c.SecondOrderCase | c.OpCase, divergence: Divergence, evidence: Evidence
) -> Suspect | None:
    """Where every op is right in both directions, nobody's backward pass is wrong, but the graph that the forward pass has made."""
    if evidence.lost:
        known = f"{evidence.lost} is not what was assigned to it"
        return Suspect("Tensor.data: what is assigned is not kept", known, definition=("Tensor", "data"))
    if evidence.detached and divergence.rule in ("missing", "unexpected"):
        return _detached(case, evidence.detached, divergence.name)
    # an error that the bounds of every op together would admit is nobody's graph
    near = divergence.error is not None and divergence.error < FAR * (divergence.allowed or 0.0)
    if divergence.quantity in ("adjoint", "gradient") and not isinstance(case, c.OpCase):
        layers, name = dict(c.walk(case.model)), divergence.name.split("#")[0]
        path = _consumer(layers, name) if divergence.quantity == "adjoint" else name.rpartition(".")[0]
        # what a layer has drawn is in a product that rounds once
        all_right = evidence.findings is not None and not evidence.findings.unknown
        if all_right and path is not None and path in layers and (not near or layers[path].draws):
            return _layer(layers, path, "forward", IN_THE_GRAPH)
    return None


# -- modes ------------------------------------------------------------------------------------------------------------


def _mode(divergence: Divergence, evidence: Evidence) -> Suspect | None:
    """A layer that train() or eval() did not switch."""
    if divergence.quantity not in (*FORWARD, "untouched", "buffer"):
        return None
    for path, (found, right) in evidence.modes.items():
        if found != right:
            method = "train" if right else "eval"
            line = ("nn.Module", method)
            return Suspect(f"Module.{method}", f"it leaves layer {path} in the other mode", definition=line)
    return None


# -- the first bad tensor ---------------------------------------------------------------------------------------------


def _by_tensor(case: c.TrainCase | c.SecondOrderCase | c.OpCase, divergence: Divergence, evidence: Evidence) -> Suspect:
    quantity, name = divergence.quantity, divergence.name.split("#")[0]
    if isinstance(case, c.OpCase):
        if quantity == "kept":
            held = "its operand" if name.startswith("operand") else "the out_grad that backward is given"
            return Suspect(
                f"{case.op} writes into {held}", definition=() if name.startswith("operand") else ("Tensor", "backward")
            )
        if quantity == "activation":
            return Suspect(f"{case.op} forward")
        if quantity in HIGHER:
            return Suspect(
                f"{case.op} {quantity.partition(' ')[0]} backward", f"by the {name}", "first gradients agree"
            )
        graph = " with create_graph" if quantity == "gradient with graph" else ""
        return Suspect(f"{case.op} backward{graph}", f"the gradient of {name}")
    layers = dict(c.walk(case.model))
    owner = name.rpartition(".")[0]
    if quantity in ("activation", "evaluation"):
        quiet = quantity == "evaluation" or name in evidence.quiet or _in_eval(layers, name)
        mode = "in evaluation mode" if quiet else "in training mode"
        return _layer(layers, name, "forward", f"forward {mode}", "every output before it agrees")
    if quantity == "loss":
        line = (f"nn.{type(case.loss).__name__}", "forward") if isinstance(case.loss, c.SoftmaxLoss | c.MSELoss) else ()
        return Suspect(f"{type(case.loss).__name__} forward", known="all layer outputs agree", definition=line)
    if quantity == "adjoint":
        path = _consumer(layers, name)
        known = "all outputs and the adjoints behind it agree"
        if path is None:
            return Suspect(f"{type(case.loss).__name__} backward", known=known)
        quiet = path in evidence.quiet or _in_eval(layers, path)
        what = "backward in evaluation mode" if quiet else "backward"
        return _layer(layers, path, "forward", what, known)
    if quantity == "gradient":
        return _layer(layers, owner, "forward", "backward", "all adjoints agree", place=f"gradient {name}")
    if quantity == "second":
        known = "first-order gradients agree"
        return _layer(layers, owner, "forward", "second backward", known, place=f"gradient {name}")
    if quantity == "handed in" or name == HANDED_IN:
        return _writer(case, divergence, evidence) or _handed_in(case, layers, divergence.name, evidence.calls)
    if quantity == "operator":
        # without the findings: the name begins with the class and the direction
        return Suspect(re.split(r"[,(]", divergence.name)[0].strip())
    if quantity == "buffer":
        return _layer(layers, owner, "forward", "running statistics", "its outputs agree", place=name)
    if quantity == "initial":
        return _layer(layers, owner, "__init__", "constructor", place=name)
    return _phase(case, divergence, evidence)


def _phase(case: c.TrainCase | c.SecondOrderCase, divergence: Divergence, evidence: Evidence) -> Suspect:
    """A phase of the optimizer, or a promise about memory and modes."""
    quantity = divergence.quantity
    words, fit = "", tuple[Explanation, ...]()
    if isinstance(case, c.TrainCase):
        if divergence.rule == "dtype":
            words = f"its dtype is {divergence.ours} and not {divergence.truth}"
        elif evidence.update is not None:
            fit = optimizer_words(case, quantity, evidence.update)
        elif evidence.clipping is not None:
            fit = clip_words(case, quantity, evidence.clipping)
        words = words or told(fit)
    found = _of_phase(case, divergence, evidence, words)
    return dataclasses.replace(found, explanations=fit) if words and found.words == words else found


def _of_phase(case: c.TrainCase | c.SecondOrderCase, divergence: Divergence, evidence: Evidence, words: str) -> Suspect:
    quantity, name = divergence.quantity, divergence.name
    kind = "SGD" if isinstance(case, c.SecondOrderCase) else type(case.optimizer).__name__
    stepped = (f"optim.{kind}", "step")
    clipper = (f"optim.{kind}", "clip_grad_norm")
    if quantity == "parameters":
        return Suspect("Module.parameters", definition=("nn.Module", "parameters"))
    if evidence.repeated and quantity in (
        "clip norm",
        "clipped",
        "velocity",
        "first moment",
        "second moment",
        "parameter",
        "graph",
        "live tensors",
        "cycles",
    ):
        return Suspect(
            "Optimizer: it has a parameter twice (repeated)", name, definition=("optim.Optimizer", "__init__")
        )
    written = evidence.reset == "writes into" and quantity in ("clip norm", "clipped")
    if evidence.reset and (written or quantity == "gradient after step" or name.endswith(UNSEEN)):
        known = f"reset_grad {evidence.reset} gradients" + " (alias)" * (evidence.reset == "writes into")
        return Suspect(known, name, definition=("optim.Optimizer", "reset_grad"))
    if quantity == "clip norm":
        return Suspect("clip norm", "clip_grad_norm", "all gradients agree", words, clipper)
    if quantity == "clipped":
        return Suspect("clip scaling", f"clip_grad_norm, {name}", "gradients and their norm agree", words, clipper)
    if quantity == "gradient after step":
        return Suspect(f"{kind}.step writes into gradients", name, "", words, stepped)
    if quantity in ("velocity", "first moment", "second moment"):
        phase = "velocity update" if quantity == "velocity" else f"{quantity} update"
        if divergence.rule == "unexpected":
            return Suspect(f"{kind} skip, {phase}", divergence.message, definition=stepped, key=f"{kind} skip")
        return Suspect(f"{kind} {phase}", name, "all gradients agree", words, stepped)
    if quantity == "parameter":
        if divergence.rule == "exact":
            return Suspect(f"{kind} skip", f"parameter {name} has no gradient", "", words, stepped)
        known = "all gradients and the optimizer's state agree"
        return Suspect(f"{kind} parameter update", name, known, words, stepped)
    if name.endswith(UNSEEN):
        return dataclasses.replace(_CHAIN, place=name)
    if quantity == "kept" and name.startswith("the freed graph"):
        return Suspect("Tensor.backward: it does not free the graph", name, definition=("Tensor", "backward"))
    if quantity == "kept":
        held = re.sub(r" of step \d+$", "", name).split(" ")[0]
        return Suspect(f"something writes into a {held} that a user may hold (alias)", name)
    if quantity in ("graph", "live tensors", "cycles"):
        return Suspect(f"something that a step leaves in memory (leak): {quantity}", divergence.message)
    if quantity == "untouched" and name == "random state":
        droppers = [path for path, layer in c.walk(case.model) if layer.draws]
        if droppers:  # the one layer that draws: what it must not do is the same mistake as what it then gives
            layers = dict(c.walk(case.model))
            place = f"it changes the random state; layer {droppers[0]}"
            return _layer(layers, droppers[0], "forward", "forward in evaluation mode", place=place)
    if quantity == "untouched" and name == "random state" and evidence.eval_draws:
        return Suspect("Module.eval changes the random state", definition=("nn.Module", "eval"))
    if quantity == "untouched":
        held = "the random state" if name == "random state" else "buffers"
        return Suspect(f"evaluation mode changes {held}", name)
    if quantity in ("graph", "live tensors"):
        return Suspect(f"something keeps Tensors of a step alive; `{session('memory')}` names the holder", name)
    if quantity == "cycles":
        return Suspect("Tensors of a step refer to each other in a circle", name)
    return Suspect(quantity, name)


def _handed_in(
    case: c.TrainCase | c.SecondOrderCase, layers: Mapping[str, c.Layer], name: str, calls: Calls | None
) -> Suspect:
    """Who has written into it: the part that reads it, in the pass in which it has changed."""
    held, _, when = name.partition(" after the ")
    held = held.partition("#")[0]
    place = f"it writes into the {held} that the user has handed in"
    if name == HANDED_IN:
        place = "it writes into the input that the user has handed in"
        return _layer(layers, "0", "forward", "forward in evaluation mode", place=place)
    if held == "input" and "forward" in when:
        mode = "evaluation" if _in_eval(layers, "0") else "training"
        return _layer(layers, "0", "forward", f"forward in {mode} mode", place=place)
    if held in ("labels", "target"):
        return Suspect(f"{type(case.loss).__name__} {'forward' if 'forward' in when else 'backward'}", place)
    if held == "cotangent" and calls is not None and calls.bad is not None and calls.bad.fault == "written":
        return dataclasses.replace(_of_call(calls.bad), known=place)
    if held == "cotangent" and calls is not None and calls.right:
        what = "Tensor.backward writes into the out_grad that it is given (alias)"
        return Suspect(what, place, "no op was seen to do so", definition=("Tensor", "backward"))
    if held == "cotangent":
        return _layer(layers, f"{len(case.model) - 1}", "forward", "backward", place=place)
    return Suspect(f"something writes into the {held} that the user has handed in (alias)", name)


def _writer(case: c.TrainCase | c.SecondOrderCase, divergence: Divergence, evidence: Evidence) -> Suspect | None:
    """Who was seen to write into what the user has handed in: an op, a layer, or the model around them."""
    if evidence.calls is None or not ("forward" in divergence.name or divergence.name == HANDED_IN):
        return None
    place = f"it writes into what the user has handed in: {divergence.name}"
    if evidence.calls.bad is not None and evidence.calls.bad.fault == "written":
        return dataclasses.replace(_of_call(evidence.calls.bad), known=place)
    if re.fullmatch(r"0(\.(0|left|right))*", evidence.wrote):  # its input is the model's
        return _wrote(case, evidence.wrote, place, quiet=divergence.name == HANDED_IN)
    if divergence.name.startswith("input"):
        what = "Sequential forward writes into its input (alias)"
        return Suspect(what, place, "none of its layers does", definition=("nn.Sequential", "forward"))
    return None


def _layer(
    layers: Mapping[str, c.Layer], path: str, method: str, what: str, known: str = "", place: str = ""
) -> Suspect:
    layer = layers.get(path)
    if layer is None:
        return Suspect(f"{path or 'the model'} {what}", place, known)
    kind = type(layer).__name__
    key = f"{kind} {what}"  # a block of operations remains the same one while it shrinks
    if isinstance(layer, c.Ops):
        kind = f"Ops ({' '.join(s.op for s in layer.steps)})"
    line = (f"nn.{layer.called or kind}", method)
    return Suspect(f"{kind} {what}", place or f"layer {path}", known, definition=line, key=key)


def _of_a_layer(case: c.ProgramCase, divergence: Divergence, evidence: Evidence) -> Suspect | None:
    """What a program shows of a layer as a training run does: one mistake is one entry."""
    layers = dict(c.walk(case.model))
    place = f"action {divergence.step}, {case.actions[divergence.step].text}, {divergence.name}"
    owner = divergence.name.rpartition(".")[0]
    if divergence.quantity == "buffer" and owner in layers and evidence.inner is None:
        return _layer(layers, owner, "forward", "running statistics", place=place)
    droppers = [path for path, layer in layers.items() if layer.draws]
    if divergence.quantity == "promise" and "random state" in divergence.name and droppers:
        return _layer(layers, droppers[0], "forward", "forward in evaluation mode", place=place)
    return None


def _inside(case: c.ProgramCase, divergence: Divergence, evidence: Evidence) -> Suspect | None:
    """What is seen of a pass with its layers watched."""
    place = f"action {divergence.step}, {case.actions[divergence.step].text}"
    if evidence.detached and divergence.quantity == "promise" and "requires a gradient" in divergence.name:
        return _detached(case, evidence.detached, place)
    if evidence.inner is not None:
        found = _of_run(case.training, evidence.inner, evidence)
        return dataclasses.replace(found, place=f"{place}, {found.place}")
    if evidence.calls is not None and evidence.calls.bad is not None and evidence.calls.bad.fault == "written":
        return dataclasses.replace(_of_call(evidence.calls.bad), place=place)
    if evidence.wrote and divergence.name == f"{HELD}input":
        quiet = isinstance(case.actions[divergence.step], a.Evaluate) or evidence.wrote in evidence.quiet
        return _wrote(case.training, evidence.wrote, f"it writes into its input, {place}", quiet=quiet)
    return dataclasses.replace(_CHAIN, place=f"{place}, {divergence.name}") if evidence.alone else None


def _in_eval(layers: Mapping[str, c.Layer], path: str) -> bool:
    while path:
        if path in layers and layers[path].quiet:
            return True
        path = path.rpartition(".")[0]
    return False


def _consumer(layers: Mapping[str, c.Layer], name: str) -> str | None:
    """The layer that takes the output ``name`` as its input: a bad adjoint is its consumer's fault. None: the loss.

    A Sequential only hands its input to the first of its layers.
    """
    path = _next(layers, name)
    while path is not None and layers[path].hands_on and f"{path}.0" in layers:
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
    return _next(layers, container) if layers[container].hands_on else container
