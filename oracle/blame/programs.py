"""Who is to blame for what a program shows? The phase of the optimizer, the action, or what writes into something held."""

from __future__ import annotations

import msgspec

from oracle.blame.words import clip_words, optimizer_words, told
from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import programs
from oracle.rules.verdict import Divergence, Evidence, Explanation, Suspect

HELD = "what the user holds is not written to: "
_LINES: dict[type[a.Action], tuple[str, ...]] = {
    a.Pass: ("Tensor", "backward"),
    a.Freeze: ("Tensor", "backward"),
    a.Load: ("nn.Module", "load_state_dict"),
    a.Copy: ("autograd.Value", "__getstate__"),
    a.NoGrad: ("no_grad", "__exit__"),
    a.Evaluate: ("nn.Module", "eval"),
    a.ReplaceData: ("Tensor", "data"),
    a.Loader: ("data.DataLoader", "__iter__"),
    a.PutLayer: ("nn.Sequential", "__setitem__"),
    a.SwapLayers: ("nn.Sequential", "__setitem__"),
    a.Advance: ("schedules.Schedule", "step"),
}


def of_program(case: c.ProgramCase, f: Divergence, evidence: Evidence) -> Suspect:
    """The suspect of a divergence that is no exception."""
    action = case.actions[f.step]
    kind = programs.kind_at(case, f.step)
    place = f"action {f.step}, {action.text}"
    if f.quantity in ("velocity", "first moment", "second moment", "parameter"):
        words, fit = "", tuple[Explanation, ...]()
        if evidence.update is not None and evidence.optimizer is not None:
            fit = optimizer_words(_with(case, optimizer=evidence.optimizer), f.quantity, evidence.update)
        if f.rule == "dtype":  # what is not updated keeps the dtype that it had, too
            fit = tuple(e for e in fit if e.words.endswith("stays what it was"))
            words = f"its dtype is {f.ours} and not {f.truth}"
        words = told(fit) or words
        phase = "parameter update" if f.quantity == "parameter" else f"{f.quantity} update"
        known = "all gradients agree" if f.quantity != "parameter" else "all gradients and the optimizer's state agree"
        step = (f"optim.{kind}", "step")
        return Suspect(f"{kind} {phase}", f"{place}, {f.name}", known, words, step, explanations=fit)
    if f.quantity in ("clip norm", "clipped"):
        fit = tuple[Explanation, ...]()
        if evidence.clipping is not None and isinstance(action, a.ClipNorm):
            most = action.max_norm(list(evidence.clipping.raw.values()))
            fit = clip_words(_with(case, clip=c.Clip(most)), f.quantity, evidence.clipping)
        what = "clip norm" if f.quantity == "clip norm" else "clip scaling"
        return Suspect(what, place, "", told(fit), (f"optim.{kind}", "clip_grad_norm"), explanations=fit)
    if f.quantity == "state":
        return _state(case, f, action, kind, evidence)
    if f.quantity == "promise" and f.name.startswith(HELD):
        held = f.name.removeprefix(HELD)
        if held.startswith("p.grad of ") and evidence.regraded:
            return Suspect(f"{kind}.step writes into gradients", place, definition=(f"optim.{kind}", "step"))
        if held in ("labels", "target") and isinstance(
            case.loss, c.SoftmaxLoss | c.MSELoss
        ):  # nobody else is given them
            loss = type(case.loss).__name__
            about = f"it writes into the {held} that the user has handed in, {place}"
            return Suspect(
                f"{loss} forward or backward", about, definition=(f"nn.{loss}", "forward"), key=f"{loss} writes"
            )
        return Suspect(f"something writes into a {held.split(' of ')[0]} that a user may hold (alias)", place)
    if f.quantity == "promise" and f.name.startswith("eval()"):
        return Suspect("Module.eval", place, definition=("nn.Module", "eval"))
    if f.quantity in ("promise", "twin"):
        words = a.Load(action.optimizer).words if evidence.without_file and isinstance(action, a.Load) else action.words
        what = f"{words}: {f.name.split(': ')[0]}"
        return Suspect(what, place, definition=_LINES.get(type(action), ()))
    if f.quantity in ("gradient", "adjoint"):
        what = "gradients of a program" if f.rule != "unexpected" else "gradient that should not exist (requires_grad)"
        return Suspect(what, f"{place}, {f.name}", "the loss agrees", definition=("Tensor", "backward"))
    mode = "evaluation mode" if f.quantity == "evaluation" else "the modes that are set"
    what = "running statistics" if f.quantity == "buffer" else f"forward in {mode}"
    return Suspect(f"{what} (program)", f"{place}, {f.name}", definition=("nn.Sequential", "forward"))


def _with(case: c.ProgramCase, **fields: object) -> c.TrainCase:
    return msgspec.structs.replace(case.training, **fields)


def _state(case: c.ProgramCase, f: Divergence, action: a.Action, kind: str, evidence: Evidence) -> Suspect:
    """What an action has changed and must not, or the other way round."""
    owner, _, rest = f.name.rpartition(": ")
    entry = rest.split(" ")[0] if owner or not rest else f.name.split(" ")[0]
    place = f"action {f.step}, {action.text}, {f.name}"
    if evidence.built and owner:
        first = type(case.optimizer).__name__
        return Suspect(
            f"{first} constructor: {entry}", place, "it is so from the start", definition=(f"optim.{first}", "__init__")
        )
    if evidence.built:
        return Suspect(
            f"a model as it is built: {entry}", place, "it is so from the start", definition=("nn.Module", "__init__")
        )
    if isinstance(action, a.Load) and evidence.without_file:
        words = a.Load(action.optimizer).words
        return Suspect(f"{words}: {entry}", place, "it is so without a file, too", definition=_LINES[a.Load])
    if isinstance(action, a.Step):
        line = (f"optim.{kind}", "step")
        if entry == "gradient":
            return Suspect(f"{kind}.step writes into gradients", place, definition=line)
        if entry == "parameter" or owner:
            return Suspect(f"{kind} skip", place, f.message, definition=line)
    if isinstance(action, a.ClipNorm):
        what = "clip scaling" if entry == "gradient" else f"clip: {entry}"
        return Suspect(what, place, definition=(f"optim.{kind}", "clip_grad_norm"))
    if isinstance(action, a.Evaluate) and entry == "mode":
        return Suspect("Module.train", place, definition=("nn.Module", "train"))
    if isinstance(action, a.Mode):
        method = "train" if action.training or action.by_train else "eval"
        return Suspect(f"Module.{method}", place, definition=("nn.Module", method))
    return Suspect(f"{action.words}: {entry}", place, definition=_LINES.get(type(action), ()))
