"""What shows only where a user takes a model apart: layers that are put in, held in a list of modules, switched or reset in another way."""

from __future__ import annotations

from typing import Any

from needle import nn
from oracle.trust.faults.chapter import Chapter
from oracle.trust.patches import around, replace

fault = Chapter("program")

PUT, SWAPPED = "layer replaced", "layers swapped"


def _behind(old: Any, self: Any, index: int, module: Any) -> None:
    old(self, index, module)
    if index + 1 < len(self):
        old(self, index + 1, module)


def _copied(old: Any, self: Any, index: Any) -> Any:
    made = old(self, index)
    if isinstance(index, slice):
        import copy

        return copy.deepcopy(made)
    return made


def _without_the_last(old: Any, self: Any) -> Any:
    last = str(len(self) - 1)
    return ((name, thing) for name, thing in old(self) if name != last)


fault(
    "program-plan-for-ever",
    "a Sequential goes on with the layers that it had at its first pass",
    f"forward|running|gradients of a program|evaluation|{PUT}|{SWAPPED}|chain|backward",
    around("nn._Plan.holds", lambda old, self, owner: True),
)
fault(
    "program-sequential-put-twice",
    "a layer that is put in a Sequential takes the next place too",
    f"{PUT}|{SWAPPED}|forward|state_dict|running|gradients of a program|deepcopy|pickle|mode|pass",
    around("nn.Sequential.__setitem__", _behind),
)
fault(
    "program-sequential-slice-copies",
    "a slice of a Sequential has copies of its layers",
    PUT,
    around("nn.Sequential.__getitem__", _copied),
)
fault(
    "program-sequential-put-ignored",
    "what is put in a Sequential is not there",
    f"{PUT}|forward|gradients of a program",
    replace("nn.Sequential.__setitem__", lambda self, index, module: None),
)
fault(
    "program-modulelist-put-ignored",
    "what is put in a ModuleList is not there",
    f"{PUT}|forward|gradients of a program",
    replace("nn.ModuleList.__setitem__", lambda self, index, module: None),
)
fault(
    "program-modulelist-last-not-found",
    "the last layer of a ModuleList is not found",
    "Module|build|model.parameters|second optimizer|state_dict|mode|a file|deepcopy|pickle|reset by the model",
    around("nn.ModuleList._members", _without_the_last),
)
fault(
    "program-modulelist-backwards",
    "a ModuleList gives its layers from the last to the first",
    f"forward|{PUT}|build|Linear|Norm|pass|evaluation",
    around("nn.ModuleList.__iter__", lambda old, self: iter([*old(self)][::-1])),
)
fault(
    "program-train-false-trains",
    "train(False) switches to training all the same",
    "Module.train",
    around("nn.Module.train", lambda old, self, mode=True: old(self)),
)
fault(
    "program-zero-grad-first-alone",
    "zero_grad of an optimizer resets the first gradient alone",
    "reset by zero_grad",
    replace("optim.Optimizer.zero_grad", lambda self: _reset(self.params[:1])),
)
fault(
    "program-module-zero-grad-own",
    "zero_grad of a module leaves the parameters of its last layer alone",
    "reset by the model",
    replace("nn.Module.zero_grad", lambda self: _reset(_all_but_the_last(self))),
)


def _reset(parameters: Any) -> None:
    for p in parameters:
        p.grad = None


def _all_but_the_last(module: nn.Module) -> list[Any]:
    last = [part for part in module.modules_in() if part.parameters()][-1]
    own = {id(p) for p in last.parameters()}
    return [p for p in module.parameters() if id(p) not in own]
