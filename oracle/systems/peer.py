"""Runs a Case in PyTorch, float32: a real torch model, a real torch optimizer. Never imports needle.

Observations come in needle's layout: Linear weights (in, out), biases (1, out), running variances biased.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from oracle.cases import case as c
from oracle.cases.built import build_layers
from oracle.cases.inputs import Batches, Slot, gap
from oracle.operations import OPERATIONS
from oracle.systems import eager
from oracle.systems.trace import Clock, Observation, State

Array = npt.NDArray[Any]

torch.set_num_threads(1)
eager.without_compiler()


class _Dictated(nn.Module):
    """What is told in each pass what to do. It has nothing that torch would have to know of, and looks for in all that is assigned."""

    __setattr__ = object.__setattr__  # type: ignore[assignment]


class ReLU(_Dictated):
    """relu whose branch can be dictated: where ours took the other side of a kink, both are right."""

    kink: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(…) -> (…)."""
        if self.kink is not None and not torch.equal(x > 0, self.kink):
            return x * self.kink
        return torch.relu(x)


class Dropout(_Dictated):
    """Dropout with a given mask; identity in evaluation mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(…) -> (…)."""
        if not self.training:
            return x
        assert self.mask is not None
        return x * (self.mask / (1 - self.p) if self.p < 1 else torch.zeros_like(x))


class Apply(nn.Module):
    """A function of the input and of some modules, as a module."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, e)."""
        return self.function(x, *self.parts)


class TorchSide:
    """Where layers are built in torch, see `oracle.cases.layers.Side`."""

    nn: Any = nn
    applied = Apply
    ReLU = ReLU
    Dropout = Dropout

    def op(self, name: str, *operands: Tensor, **attributes: Any) -> Any:
        """An operation as its block calls it."""
        return OPERATIONS[name].torch(torch, *operands, **attributes)

    def zeros(self, size: int) -> Tensor:
        """A Tensor of zeros."""
        return torch.zeros(size)

    def either(self, name: str, otherwise: Callable[[], nn.Module]) -> nn.Module:
        """The operation: torch has it in each version, under whichever name."""
        return otherwise()


SIDE = TorchSide()


class TorchModel:
    """The model of a case, with its parameters, buffers and layers by path."""

    def __init__(self, case: c.TrainCase | c.SecondOrderCase) -> None:
        self.case = case
        built = build_layers(case, SIDE, lambda layer, *about: layer.torch(SIDE, *about), nn.Sequential)
        self.module: nn.Sequential = built.module
        self.modules: dict[str, nn.Module] = built.modules
        self.module.train()
        for module in built.quiet:
            module.eval()
        # those that know two modes, but for the parts that stay in evaluation mode
        modal = (m for m in self.modules.values() if isinstance(m, nn.BatchNorm1d | Dropout))
        self._modal = [m for m in modal if m.training]

    def train(self, mode: bool = True) -> None:
        """Training mode, but for the parts that stay in evaluation mode; or evaluation mode."""
        for module in self._modal:
            module.training = mode

    def tensor(self, slot: Slot) -> Tensor:
        """The torch tensor behind a slot."""
        path, attribute = slot.name.rsplit(".", 1)
        return getattr(self.modules[path], attribute)  # type: ignore[no-any-return]


def to_torch(slot: Slot, value: Array) -> Tensor:
    """needle's layout to torch's."""
    return torch.from_numpy(c.LAYERS[slot.layer].to_torch(_last(slot), np.array(value, dtype=np.float32)))


def to_needle(slot: Slot, tensor: Tensor) -> Array:
    """torch's layout to needle's, as a copy."""
    return np.array(c.LAYERS[slot.layer].to_needle(_last(slot), tensor.detach().numpy()))


def _last(slot: Slot) -> str:
    return slot.name.rpartition(".")[2]


def biased(module: nn.BatchNorm1d, before: Array, after: Array, n: int) -> Array:
    """Contract: needle's running variance takes the biased batch variance, torch's the unbiased one, of n rows."""
    assert module.momentum is not None
    rest = (1 - module.momentum) * before.astype(np.float64)
    return np.asarray((rest + (after - rest) * ((n - 1) / n)).astype(after.dtype))


class TorchRun:
    """A training run in torch, one step at a time: ``load(state)``, ``step(t, kinks)``, ``state()``, ``evaluate(t)``."""

    def __init__(
        self,
        case: c.TrainCase,
        slots: tuple[list[Slot], list[Slot]],
        batches: Batches,
        masks: dict[str, Array],
        dtype: torch.dtype = torch.float32,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.case, self.batches, self.masks, self.dtype = case, batches, masks, dtype
        self.parameter_slots, self.buffer_slots = slots
        self.model = TorchModel(case)
        if dtype != torch.float32:
            self.model.module.to(dtype)
        self.parameters = {s.name: self.model.tensor(s) for s in self.parameter_slots}
        self.buffers = {s.name: self.model.tensor(s) for s in self.buffer_slots}
        names = {id(p): name for name, p in self.parameters.items()}
        self.listed = [names[id(p)] for p in self.model.module.parameters()]
        self.optimizer = torch_optimizer(case, list(self.model.module.parameters()))
        self._relus = [(path, m) for path, m in self.model.modules.items() if isinstance(m, ReLU)]
        self._droppers = [
            (path, m) for path, m in self.model.modules.items() if isinstance(m, Dropout) and path in masks
        ]
        self._record: list[tuple[str, Tensor, bool]] = []
        self._state: State | None = None  # as the last step has left it
        self._gap, self._late = gap(case)
        for path, module in self.model.modules.items():
            self._observe(path, module)

    def _observe(self, path: str, module: nn.Module) -> None:
        # around forward, as in needle: a hook of torch's takes twice as long
        # weak, or every case would leave its models behind in a circle
        forward, of, run = type(module).forward, weakref.ref(module), weakref.ref(self)

        def wrapped(given: Tensor) -> Tensor:
            out: Tensor = forward(of(), given)
            if out.requires_grad:
                out.retain_grad()
            run()._record.append((path, out, out is given))  # type: ignore[union-attr]
            return out

        module.forward = wrapped

    # -- state --------------------------------------------------------------------------------------------------------

    def load(self, state: State) -> None:
        """Take over the common state before a step."""
        if state is self._state:
            return  # its own
        with torch.no_grad():
            for slot in self.parameter_slots:
                self.parameters[slot.name].copy_(to_torch(slot, state.tensors[slot.name]))
            for slot in self.buffer_slots:
                self.buffers[slot.name].copy_(torch.from_numpy(state.tensors[slot.name]))

    def state(self) -> State:
        """The state after the last step, for both sides to go on from."""
        assert self._state is not None
        return self._state

    def _read(self, buffers: Mapping[str, Array]) -> State:
        tensors = {s.name: to_needle(s, self.parameters[s.name]) for s in self.parameter_slots}
        tensors |= buffers
        slots: dict[str, dict[str, Array]] = {}
        for slot in self.parameter_slots:
            held = self.optimizer.state.get(self.parameters[slot.name], {})
            for quantity, key in TORCH_STATE.items():
                value = held.get(key)
                if value is not None:
                    slots.setdefault(quantity, {})[slot.name] = to_needle(slot, value)
        return State(tensors, slots)

    # -- a training step ----------------------------------------------------------------------------------------------

    def step(self, t: int, kinks: Mapping[str, Array]) -> Observation:
        """One training step; ``kinks`` dictates the branch of every ReLU."""
        obs = self.gradients(t, kinks)
        self._update(t, obs)
        return obs

    def gradients(self, t: int, kinks: Mapping[str, Array]) -> Observation:
        """The first half of a step, forward and backward.

        What torch has made is kept as it is, without a copy, where nothing writes into it any more.
        """
        case, obs = self.case, Observation(step=t)
        before = {name: b.numpy().copy() for name, b in self.buffers.items()}
        obs.values["buffer"] = before
        self.clock.turn("torch")
        for p in self.parameters.values():
            p.grad = None  # what zero_grad does, which takes a while to come to it
        passes = []
        for m in range(self.batches.micro):
            mark = f"#{m}" if m else ""
            self._dictate(t, m, mark, kinks)
            record: list[tuple[str, Tensor, bool]] = []
            self._record = record
            self.clock.turn("torch")
            x = torch.from_numpy(self.batches.x[t, m]).to(self.dtype).requires_grad_(case.input_grad)
            out = self.model.module(x)
            loss, cotangent = torch_loss(case, out, self.batches, t, m)
            if loss.requires_grad:
                loss.backward(cotangent)
            self.clock.turn("observing")
            for path, made, same in record:
                obs.hold("activation", path + mark, made.detach().numpy())
                if same:
                    obs.aliases.add(path + mark)
            if loss is not out:
                obs.hold("loss", f"loss{mark}", loss.detach().numpy())
            passes.append((mark, x, record))
            self._bias_variances(obs.values["buffer"], obs)
        for mark, x, record in reversed(passes):
            for path, made, _ in reversed(record):
                if made.requires_grad and made.grad is not None:
                    # copied: the gradient of a bias may be a view of it, and clipping writes into gradients
                    obs.put("adjoint", path + mark, made.grad.numpy())
            if x.grad is not None:
                obs.put("adjoint", f"input{mark}", x.grad.numpy())
        self._gradients("gradient", obs)
        return obs

    def _update(self, t: int, obs: Observation) -> None:
        """The second half of a step: clipping and the optimizer."""
        case = self.case
        self.clock.turn("torch")
        if case.clip is not None:
            max_norm = 0.25 if case.clip.max_norm is None else case.clip.max_norm
            graded = [p for p in self.parameters.values() if p.grad is not None]
            obs.put("clip norm", "norm", nn.utils.clip_grad_norm_(graded, max_norm).numpy().astype(np.float64))
            self._gradients("clipped", obs)
        lr = case.lr_at(t)
        for group in self.optimizer.param_groups:
            group["lr"] = DEFAULT_LR if lr is None else lr
        if t == self._gap:
            self.parameters[self._late].grad = None
        seed_state(self.optimizer, self.parameters.values())
        self.optimizer.step()
        self.clock.turn("observing")
        self._state = state = self._read(obs.values["buffer"])
        obs.values.update(state.slots)
        obs.values["parameter"] = {s.name: state.tensors[s.name] for s in self.parameter_slots}

    def _dictate(self, t: int, m: int, mark: str, kinks: Mapping[str, Array]) -> None:
        for path, relu in self._relus:
            kink = kinks.get(path + mark)
            relu.kink = None if kink is None else torch.from_numpy(kink)
        for path, dropout in self._droppers:
            dropout.mask = torch.from_numpy(self.masks[path][t, m]).to(self.dtype)

    def _bias_variances(self, before: Mapping[str, Array], obs: Observation) -> None:
        n = self.case.data.rows
        buffers = {}
        for slot in self.buffer_slots:
            after = self.buffers[slot.name].numpy().copy()
            module = self.model.modules[slot.name.rsplit(".", 1)[0]]
            if slot.name.endswith("running_var") and module.training:
                assert isinstance(module, nn.BatchNorm1d)
                after = biased(module, before[slot.name], after, n)
                with torch.no_grad():
                    self.buffers[slot.name].copy_(torch.from_numpy(after))
            buffers[slot.name] = after
        obs.values["buffer"] = buffers

    def _gradients(self, quantity: str, obs: Observation) -> None:
        for slot in reversed(self.parameter_slots):
            grad = self.parameters[slot.name].grad
            if grad is not None:
                obs.hold(quantity, slot.name, to_needle(slot, grad))

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self, t: int, kinks: Mapping[str, Array]) -> Observation:
        """A forward pass in evaluation mode on the batch of step t."""
        obs = Observation(step=t)
        self.model.train(False)
        self._dictate(t, 0, "", kinks)
        record: list[tuple[str, Tensor, bool]] = []
        self._record = record
        self.clock.turn("torch")
        with torch.no_grad():
            self.model.module(torch.from_numpy(self.batches.x[t, 0]).to(self.dtype))
        self.clock.turn("observing")
        self.model.train()
        for path, made, _ in record:
            obs.hold("evaluation", path, made.numpy())
        return obs


# -- losses and optimizers --------------------------------------------------------------------------------------------

DEFAULT_LR = 0.01  # of needle's SGD and Adam alike
TORCH_STATE = {"velocity": "momentum_buffer", "first moment": "exp_avg", "second moment": "exp_avg_sq"}


def torch_loss(
    case: c.TrainCase | c.SecondOrderCase, out: Tensor, batches: Batches, t: int, m: int
) -> tuple[Tensor, Tensor | None]:
    """The loss, and the cotangent to start from where it is not a scalar."""
    if isinstance(case.loss, c.SoftmaxLoss):
        assert batches.labels is not None
        return nn.functional.cross_entropy(out, torch.from_numpy(batches.labels[t, m].astype(np.int64))), None
    assert batches.drawn is not None
    drawn = torch.from_numpy(batches.drawn[t, m]).to(out.dtype)
    if isinstance(case.loss, c.Cotangent):
        return out, drawn
    if isinstance(case.loss, c.WeightedSum):
        return (out * drawn).sum(), None
    if isinstance(case.loss, c.MSELoss):
        return nn.functional.mse_loss(out, drawn), None
    return ((out - drawn) ** 2).sum() / case.data.rows, None


def torch_optimizer(
    case: c.TrainCase, parameters: Sequence[Tensor] | Sequence[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The torch optimizer that needle's must equal, needle's defaults filled in; of parameters or of groups of them."""
    spec = case.optimizer
    lr = DEFAULT_LR if spec.lr is None else spec.lr
    decay = spec.weight_decay or 0.0
    if isinstance(spec, c.SGD):
        beta = spec.momentum or 0.0
        # torch applies dampening only where there is momentum; with beta = 0 the two rules are the same
        return torch.optim.SGD(parameters, lr=lr, momentum=beta, dampening=beta, weight_decay=decay, foreach=False)
    betas = (0.9 if spec.beta1 is None else spec.beta1, 0.999 if spec.beta2 is None else spec.beta2)
    eps = 1e-8 if spec.eps is None else spec.eps
    return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps, weight_decay=decay, foreach=False)


def seed_state(optimizer: torch.optim.Optimizer, parameters: Iterator[Tensor] | Any) -> None:
    """Contract: needle's velocity starts at zero and is dampened from the first step; torch's starts as the gradient."""
    if isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"]:
        for p in parameters:
            if p.grad is not None and "momentum_buffer" not in optimizer.state[p]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def run_op(case: c.OpCase, op: Callable[..., Tensor]) -> Observation:
    """One operation in float32: its value, and the gradient of its inner product with the cotangent."""
    obs = Observation(step=0)
    operands = [
        torch.from_numpy(np.array(o.array)).requires_grad_(i not in case.constants) for i, o in enumerate(case.operands)
    ]
    out = op(*operands, **case.attributes)
    obs.put("activation", case.op, out.detach().numpy())
    out.backward(torch.from_numpy(case.cotangent_array))
    for i, operand in enumerate(operands):
        if operand.grad is not None:
            obs.put("gradient", f"operand {i}", operand.grad.numpy())
    return obs
