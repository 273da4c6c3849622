"""Training: a loop of one's own, or an optimizer, against those of torch, over several steps, without synchronisation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from oracle.check.arrays import Array, array
from oracle.check.comparing import Agreement, same
from oracle.check.difference import Difference, line
from oracle.check.measuring import LIMIT
from oracle.systems.noise import Refused, Rounding, current

Batch = tuple[Any, Any]
Candidate = Callable[[dict[str, Array], Sequence[Batch]], Mapping[str, Any]]
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of `training` where none is given: of logits (n, classes), by the numbers of the classes, (n,). ValueError for targets
    that are no whole numbers: torch takes those for probabilities, and what was meant is hardly that.
    """
    if target.is_floating_point() or target.is_complex():
        raise ValueError(
            f"{_CROSS_ENTROPY}, and the targets are of {target.dtype}, {tuple(target.shape)} for an output of {tuple(output.shape)}, "
            "not numbers of classes: pass loss=torch.nn.functional.mse_loss, say, or loss=torch.nn.functional.cross_entropy "
            "if they are probabilities"
        )
    return nn.functional.cross_entropy(output, target)


_CROSS_ENTROPY = "the loss is torch.nn.functional.cross_entropy, by default"


def training(
    candidate: Candidate,
    module: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    loss: Loss | None = cross_entropy,
    *,
    limit: float = LIMIT,
    report: bool = False,
) -> Agreement:
    """Hold a training loop to a torch module and optimizer: `Difference` where rounding does not explain what differs.

    candidate: (parameters by name, batches) -> arrays by name: ``step 0 w`` for the parameter ``w`` after each step and, if it
    likes, ``step 0 loss`` and ``step 0 grad w``. optimizer: parameters -> torch optimizer, as in ``lambda p: Adam(p, 0.01)``.
    batches: (x, y) for each step, arrays or tensors; the loop gets them as they are. module: float32; it stays as it is.
    loss: (``module(x)``, y) -> a number; None for a module that gives the loss itself, as ``module(x, y)``.
    """
    __tracebackhide__ = True
    if not callable(candidate) or not callable(optimizer) or not isinstance(module, nn.Module):
        raise TypeError(
            "check.training takes a loop, a module of torch and a function that makes an optimizer of parameters, as in "
            f"`lambda p: Adam(p, 0.01)`, but got {', '.join(type(x).__name__ for x in (candidate, module, optimizer))}"
        )
    batches = list(batches)  # both go over them
    if not batches:
        raise ValueError("at least one batch (x, y) is needed, but got none")
    parameters = {n: p.detach().numpy().copy() for n, p in module.named_parameters()}
    mine = candidate(parameters, [tuple(map(_own, batch)) for batch in batches])  # it may write into them
    if not isinstance(mine, Mapping):
        raise TypeError(f'the loop returns arrays by name, {{"step 0 weight": array}}, but got {type(mine).__name__}')
    kinds = {_kind(name) for name in mine} or {"parameters"}  # nothing does not agree

    def program() -> dict[str, Any]:
        return {name: t for name, t in _steps(module, optimizer, batches, loss).items() if _kind(name) in kinds}

    try:
        return same(mine, program, limit=limit, report=report)
    except Difference as failure:
        first = "step 0 " if "step 0 loss" not in mine else "step 0 loss"  # a loss that agrees is the right one
        if loss is cross_entropy and failure.name.startswith(first):
            failure.args = (f"{failure}\n" + line("note", f"{_CROSS_ENTROPY}; `loss=` sets another"),)
        raise


def _kind(name: str) -> str:
    """What a name of `training` names: loss, gradients or parameters; a candidate may leave out a kind, not a tensor."""
    words = name.split(" ", 3)
    return words[2] if len(words) > 2 and words[2] in ("loss", "grad") else "parameters"


def _steps(module: nn.Module, optimizer: Optimizer, batches: Sequence[Batch], loss: Loss | None) -> dict[str, Any]:
    mode = current()
    model = copy.deepcopy(module)
    if mode is not None:
        model = model.double()
    stepper = optimizer(list(model.parameters()))
    if mode is not None and mode.seed is not None:
        round_hyperparameters(stepper, mode)
    results: dict[str, Any] = {}
    for i, batch in enumerate(batches):
        stepper.zero_grad()
        value = _loss(model, batch, loss)
        value.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        stepper.step()
        results[f"step {i} loss"] = value
        results |= {f"step {i} grad {n}": g for n, g in grads.items()}
        results |= {f"step {i} {n}": p.detach().clone() for n, p in model.named_parameters()}
    return results


def _loss(model: nn.Module, batch: Batch, loss: Loss | None) -> torch.Tensor:
    """Of one batch. What torch says of arguments that do not fit does not say who has called it with them."""
    __tracebackhide__ = True
    try:
        x, y = map(_tensor, batch)
        value = model(x, y) if loss is None else loss(model(x), y)
    except Refused:
        raise
    except Exception as error:
        called = (
            "module(x, y)"
            if loss is None
            else f"loss(module(x), y), with {getattr(loss, '__name__', 'a loss')} for loss"
        )
        error.add_note(
            f"check.training called {called}, for each batch (x, y); `loss=` sets another loss, and None is for a module that gives it "
            "itself, as module(x, y)"
        )
        raise
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        given = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise TypeError(
            f"the loss is a tensor of one number, but {'the module' if loss is None else '`loss`'} gave {given}"
        )
    return value


def _tensor(a: Any) -> torch.Tensor:
    return a if isinstance(a, torch.Tensor) else torch.from_numpy(np.array(a))


class Weights(nn.Module):
    """A module whose gradient is what it is given."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, g: torch.Tensor) -> torch.Tensor:
        return (self.w * g).sum()


# What the gradients of a weight may be like, and what shows in it that does not show in another: (words, their size in step i of n).
_GRADIENTS: tuple[tuple[str, Callable[[Array], Array]], ...] = (
    ("ordinary", lambda i: 0 * i + 1.0),
    ("growing, from 0.001 to 1000", lambda i: np.power(10.0, 6 * i - 3)),  # what is remembered long
    ("a hundred times larger in every eighth step", lambda i: np.where(np.arange(len(i)) % 8 == 3, 100.0, 1.0)),
    ("shrinking, from 1000 to 0.001", lambda i: np.power(10.0, 3 - 6 * i)),
    ("tiny", lambda i: 0 * i + 1e-6),  # an ε
    ("zero but for every sixth step", lambda i: np.where(np.arange(len(i)) % 6 == 2, 1.0, 0.0)),
)
_OF_EACH = 4  # weights: whether a fault of a size shows, or goes in the direction of noise, is a matter of the draw


def optimizer(
    candidate: Callable[[Array, Array], Iterable[Any]],
    torch_optimizer: Optimizer,
    *,
    steps: int = 80,
    seed: int = 0,
    limit: float = LIMIT,
    report: bool = False,
) -> Agreement:
    """Hold an optimizer by itself to torch's, on drawn gradients whose sizes change by orders of magnitude: `Difference` where
    rounding does not explain what differs.

    candidate: (weights, (steps, weights) gradients) -> the weights after each step, in a list or one after the other (yield).
    torch_optimizer: parameters -> torch optimizer, as in ``lambda p: Adam(p, 0.01)``.
    """
    __tracebackhide__ = True
    if not callable(candidate) or not callable(torch_optimizer):
        raise TypeError(
            "check.optimizer takes a function of (weights, gradients) and one that makes an optimizer of parameters, as in "
            f"`lambda p: Adam(p, 0.01)`, but got {type(candidate).__name__}, {type(torch_optimizer).__name__}"
        )
    if steps < 1:
        raise ValueError(f"at least one step is needed, but got steps={steps}")
    rng = np.random.default_rng(seed)
    along = np.linspace(0, 1, steps)
    sizes = np.stack([size(along) for _, size in _GRADIENTS for _ in range(_OF_EACH)], 1)
    grads = np.asarray(rng.standard_normal(sizes.shape) * sizes, np.float32)
    module = Weights(torch.from_numpy(np.asarray(rng.standard_normal(sizes.shape[1]), np.float32)))

    def loop(parameters: dict[str, Array], batches: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
        seen = [
            array(w, "what the optimizer gives")[0]
            for w in candidate(parameters["w"], np.stack([g for g, _ in batches]))
        ]
        if len(seen) != steps:
            raise Difference(
                f"the optimizer gave weights {len(seen)} times, for {steps} steps: they are asked for after each"
            )
        return {f"step {i} w": w for i, w in enumerate(seen)}

    try:
        return training(
            loop,
            module,
            torch_optimizer,
            [(g, np.float32(0)) for g in grads],
            lambda out, _: out,
            limit=limit,
            report=report,
        )
    except Difference as failure:
        if failure.index:
            words = f"{_GRADIENTS[failure.index[0] // _OF_EACH][0]}; seed={seed}, steps={steps}"
            failure.args = (f"{failure}\n" + line("gradients", words),)
        failure.inputs = (module.w.detach().numpy().copy(), grads)
        raise


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
