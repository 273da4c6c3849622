"""Training: a loop of one's own against a torch module and a torch optimizer, over several steps, without synchronisation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from oracle.check.arrays import Array
from oracle.check.comparing import Agreement, same
from oracle.check.measuring import LIMIT
from oracle.systems.noise import Rounding, current

Candidate = Callable[[dict[str, Array], Sequence[tuple[Any, Any]]], Mapping[str, Any]]
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def training(
    candidate: Candidate,
    module: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[tuple[Any, Any]],
    loss: Loss = nn.functional.cross_entropy,
    *,
    limit: float = LIMIT,
    report: bool = False,
) -> Agreement:
    """Hold a training loop to a torch module and optimizer: `Difference` where rounding does not explain what differs.

    candidate: (parameters by name, batches) -> arrays by name: ``step 0 w`` for the parameter ``w`` after each step and, if it
    likes, ``step 0 loss`` and ``step 0 grad w``. optimizer: parameters -> torch optimizer, as in ``lambda p: Adam(p, 0.01)``.
    batches: (x, y) for each step. module: float32; it stays as it is.
    """
    __tracebackhide__ = True
    if not callable(candidate) or not callable(optimizer) or not isinstance(module, nn.Module):
        raise TypeError(
            "check.training takes a loop, a module of torch and a function that makes an optimizer of parameters, as in "
            f"`lambda p: Adam(p, 0.01)`, but got {', '.join(type(x).__name__ for x in (candidate, module, optimizer))}"
        )
    parameters = {n: p.detach().numpy().copy() for n, p in module.named_parameters()}
    mine = dict(candidate(parameters, [tuple(map(_own, batch)) for batch in batches]))  # it may write into them
    kinds = {_kind(name) for name in mine}

    def program() -> dict[str, Any]:
        return {name: t for name, t in _steps(module, optimizer, batches, loss).items() if _kind(name) in kinds}

    return same(mine, program, limit=limit, report=report)


def _kind(name: str) -> str:
    """What a name of `training` names: loss, gradients or parameters; a candidate may leave out a kind, not a tensor."""
    words = name.split(" ", 3)
    return words[2] if len(words) > 2 and words[2] in ("loss", "grad") else "parameters"


def _steps(module: nn.Module, optimizer: Optimizer, batches: Sequence[tuple[Any, Any]], loss: Loss) -> dict[str, Any]:
    mode = current()
    model = copy.deepcopy(module)
    if mode is not None:
        model = model.double()
    stepper = optimizer(list(model.parameters()))
    if mode is not None and mode.seed is not None:
        round_hyperparameters(stepper, mode)
    results: dict[str, Any] = {}
    for i, (x, y) in enumerate(batches):
        stepper.zero_grad()
        value = loss(model(_tensor(x)), _tensor(y))
        value.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        stepper.step()
        results[f"step {i} loss"] = value
        results |= {f"step {i} grad {n}": g for n, g in grads.items()}
        results |= {f"step {i} {n}": p.detach().clone() for n, p in model.named_parameters()}
    return results


def _tensor(a: Any) -> torch.Tensor:
    return a if isinstance(a, torch.Tensor) else torch.from_numpy(np.array(a))


def _own(a: Any) -> Any:
    """A copy of what can be written into."""
    return a.copy() if isinstance(a, np.ndarray) else a.clone() if isinstance(a, torch.Tensor) else a


# The noise of hyperparameters, in units of that of tensors. They are few numbers, each rounded a few times by u / 2, where a tensor's
# sums are rounded often; and 1 − 0.999ᵗ makes a thousand of it: with the whole noise, 16 times of which is allowed, a wrong β
# would hide in it. An eighth allows 2 u in each use of each of them.
_SCALARS = 1 / 8


class Rounded(float):
    """A hyperparameter: it is rounded to float32, and so is arithmetic with it, for a program that keeps 1 − 0.999ᵗ there is
    right too. Each use rounds it anew: 1 − β may come from float64 where βᵗ comes from float32, and what is exact where both
    have the same β (ρ∞ − ρ of RAdam) is not then.
    """

    mode: Rounding

    def __new__(cls, value: float, mode: Rounding) -> Rounded:
        made = super().__new__(cls, value)
        made.mode = mode
        return made


def _arithmetic(name: str) -> Callable[..., Any]:
    plain = getattr(float, name)

    def rounded(self: Rounded, *others: Any) -> Any:
        if any(not isinstance(o, int | float) for o in others):
            return NotImplemented
        value = plain(
            _moved(self, self.mode), *(_moved(o, self.mode) if isinstance(o, Rounded) else float(o) for o in others)
        )
        if not isinstance(value, float):
            return value
        return Rounded(_moved(value, self.mode), self.mode)

    return rounded


def _moved(value: float, mode: Rounding) -> float:
    return float(value) * (1 + float(mode.draw(())) / 2 * mode.unit * _SCALARS)


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "neg"):
    setattr(Rounded, f"__{_name}__", _arithmetic(f"__{_name}__"))


def round_hyperparameters(stepper: torch.optim.Optimizer, mode: Rounding) -> None:
    """Each float in the groups of an optimizer becomes one whose arithmetic rounds."""

    def one(value: Any) -> Any:
        return Rounded(_moved(value, mode), mode) if type(value) is float else value

    for group in stepper.param_groups:
        for key, value in group.items():
            if key != "params":
                group[key] = tuple(one(v) for v in value) if isinstance(value, tuple) else one(value)
