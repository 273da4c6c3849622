"""A training run in needle: how it is built, the state that it takes over, its loss and its backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.cases import case as c
from oracle.cases.inputs import Batches, Slot, gap
from oracle.systems.ours.contract import contract_of
from oracle.systems.ours.model import array_of, build, loss_with
from oracle.systems.ours.phase import Failed, Phase
from oracle.systems.ours.watch import Watch
from oracle.systems.trace import Clock, Failure, Observation, State
from oracle.systems.window import Window

Array = npt.NDArray[Any]
Held = tuple[str, Any, Array]  # what a user may hold: its name, the Tensor, and a copy of what was in it


class NeedleRun:
    """A model with its optimizer, for ``step(run, t)`` and ``evaluate(run, t)``, after ``run.load(state)``."""

    def __init__(
        self,
        case: c.TrainCase,
        ndl: Any,
        slots: tuple[list[Slot], list[Slot]],
        batches: Batches,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.case, self.ndl, self.batches = case, ndl, batches
        self.contract = contract_of(ndl)
        self.parameter_slots, self.buffer_slots = slots
        self.kept: list[Held] = []
        self.handed: list[Held] = []  # what a user hands in to a step, beside what it must stay
        self.failed: Failure | None = None
        self._shapes = {slot.name: slot.shape for slot in (*slots[0], *slots[1])}
        self._before: dict[str, Array] = {}  # buffers as the state had them
        self.relus = {path for path, layer in c.walk(case.model) if layer.kinked}
        self._loads = case.seed_for("loads") % 2  # whether a state is written into arrays, or replaces them: in turn
        self.taped = False  # for localisation: data and buffers too ask for gradients, so that all ops are on the tape
        try:
            with self.phase("build"):
                self._build()
        except Failed as failed:
            self.failed = failed.failure

    def _build(self) -> None:
        np.random.seed(self.case.seed_for("build"))
        model = build(self.case, self.ndl)
        self.model = model.module
        self.modules = model.modules
        self.eval_modules = model.eval_modules
        self.tensors: dict[str, tuple[Any, str]] = {}  # name -> (owner, attribute)
        for slot in (*self.parameter_slots, *self.buffer_slots):
            path, attribute = slot.name.rsplit(".", 1)
            self.tensors[slot.name] = (model.modules[path], attribute)
        self.parameters = {s.name: self.tensor(s.name) for s in self.parameter_slots}
        self.gap, self.late = gap(self.case)
        names = {id(p): name for name, p in self.parameters.items()}
        listed = [names.get(id(p), f"unknown {p.shape}") for p in self.model.parameters()]
        # compared as text: order is part of the contract, it is the order of the optimizer
        self.listed = np.array(self.contract.listed(listed, list(self.parameters)), dtype=object)
        self.optimizer = self._optimizer()
        self.watch = Watch(model.modules, self.clock)
        self.initial = {name: np.array(self.array(name)) for name in self.tensors}
        self.softmax_loss: Any = self.ndl.nn.SoftmaxLoss() if isinstance(self.case.loss, c.SoftmaxLoss) else None
        self.train()

    def _optimizer(self) -> Any:
        spec = self.case.optimizer
        given = {n: getattr(spec, n) for n in spec.__struct_fields__ if getattr(spec, n) is not None}
        kind = self.ndl.optim.SGD if isinstance(spec, c.SGD) else self.ndl.optim.Adam
        tied = [layer for _, layer in c.walk(self.case.model) if isinstance(layer, c.Linear) and layer.tie is not None]
        return kind(self.contract.optimized(self.model.parameters(), bool(tied)), **given)

    def observation(self, t: int) -> Observation:
        """Where step t is taken down."""
        return self.contract.observation(t, self._shapes, failure=self.failed)

    def phase(self, name: str) -> Phase:
        """Needle at work: what it raises there is a failure of this phase."""
        return Phase(name, self.clock, self.ndl)

    def window(self, t: int) -> Window:
        """Gates A and B: a close look only once in a case, in its last step and in its last evaluation."""
        return Window(self.ndl, closely=t == self.case.steps - 1)

    def tensor(self, name: str) -> Any:
        """A parameter or a buffer, as it is now."""
        owner, attribute = self.tensors[name]
        return getattr(owner, attribute)

    def array(self, name: str) -> Array:
        """What it holds."""
        return array_of(self.tensor(name))

    def biased(self, name: str) -> Array:
        """A buffer; the running variance of a needle that takes the unbiased one, as the biased one would be."""
        array = self.array(name)
        owner, attribute = self.tensors[name]
        rows = self.case.data.rows
        if not (self.contract.unbiased and attribute == "running_var" and owner.training and name in self._before):
            return array
        rest = (1 - owner.momentum) ** self.batches.micro * self._before[name].astype(np.float64).reshape(array.shape)
        made: Array = (rest + (array - rest) * ((rows - 1) / rows)).astype(array.dtype)
        return made

    def train(self) -> None:
        """Training mode, but for the layers that the case keeps in evaluation mode."""
        self.model.train()
        for module in self.eval_modules:
            module.eval()

    # -- state --------------------------------------------------------------------------------------------------------

    def load(self, state: State) -> None:
        """Take over the common state before a step. A needle that cannot take it over, because it has changed a shape or
        a dtype, has failed: the run ends with the steps so far.
        """
        if self.failed is not None:
            return
        try:
            with self.phase("taking over the state"):
                self._load(state)
        except Failed as failed:
            self.failed = failed.failure

    def _load(self, state: State) -> None:
        self._loads += 1
        self._before = {slot.name: state.tensors[slot.name] for slot in self.buffer_slots}
        for name, value in state.tensors.items():
            self.put(name, value)
        for quantity, values in state.slots.items():
            for name, kept in self.contract.states(self.optimizer, quantity, self.parameters):
                if name in values:
                    self.contract.store(kept, values[name])

    def put(self, name: str, value: Array) -> None:
        """Give a parameter or a buffer another value."""
        owner, attribute = self.tensors[name]
        self.contract.put(owner, attribute, value, into=bool(self._loads % 2))

    def hand(self, name: str, m: int, thing: Any, given: Array) -> Any:
        """Something that is handed in to micro-batch m: it must stay what it is."""
        self.handed.append((f"{name}{f'#{m}' if m else ''}", thing, given))
        return thing

    # -- what is differentiated ---------------------------------------------------------------------------------------

    def loss(self, out: Any, t: int, m: int) -> tuple[Any, Any]:
        """The loss of micro-batch m of step t, and the cotangent that its backward pass starts from, or None."""
        ndl, loss = self.ndl, self.case.loss
        if isinstance(loss, c.SoftmaxLoss):
            assert self.batches.labels is not None
            given = self.batches.labels[t, m]
            # a Tensor asks for a gradient unless told otherwise; labels have none in any case
            default = (self.case.seed_for("labels") + t) % 2
            labels = given.tolist() if loss.labels == "list" else ndl.Tensor(given, requires_grad=bool(default))
            return self.softmax_loss(out, self.hand("labels", m, labels, given)), None
        assert self.batches.drawn is not None
        target = "cotangent" if isinstance(loss, c.Cotangent) else "target"
        given = self.batches.drawn[t, m]
        drawn = self.hand(target, m, ndl.Tensor(given, requires_grad=self.taped), given)
        return loss_with(ndl, self.case, out, drawn)

    def backward(self, loss: Any, cotangent: Any, obs: Observation) -> None:
        """The backward pass, or as many as the case has."""
        given = () if cotangent is None else (cotangent,)
        if self.case.backward == "twice":
            self.contract.backward(loss, *given, retain_graph=True)  # the second one overwrites
        loss.backward(*given)
        if self.case.backward == "twice" and self.contract.strict:
            try:
                loss.backward(*given)
            except RuntimeError:
                return
            obs.hold("kept", "the freed graph, through which a third backward went", False)
