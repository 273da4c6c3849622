"""The training loop of a case, as a user of needle writes it: what the memory gates run."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracle.cases import case as c
from oracle.cases.inputs import Batches, evaluated_after, step_seed
from oracle.systems.ours import build
from oracle.systems.ours.contract import contract_of
from oracle.systems.ours.model import array_of, grad_of, loss_with
from oracle.systems.trace import STATE


class Program:
    """Model, optimizer and loop. Between ``release()`` and the next ``step(t)`` nothing but the model's state may live.

    ``losses`` is made beforehand: a loop that is watched must not itself append to anything.
    """

    def __init__(self, case: c.TrainCase, ndl: Any, batches: Batches, losses: Any) -> None:
        self.case, self.ndl, self.batches, self.losses = case, ndl, batches, losses
        self.options = case.memory or c.Memory()
        self.contract = contract_of(ndl)
        np.random.seed(case.seed_for("build"))
        built = build(case, ndl)
        self.model, self.paths, self.eval_modules = built.module, built.modules, built.eval_modules
        spec = case.optimizer
        given = {n: getattr(spec, n) for n in spec.__struct_fields__ if getattr(spec, n) is not None}
        kind = ndl.optim.SGD if isinstance(spec, c.SGD) else ndl.optim.Adam
        self.optimizer = kind(self.contract.listed_once(self.model.parameters()), **given)
        self.loss_of = ndl.nn.SoftmaxLoss()
        self.loss: Any = None
        self.model.train()
        for module in self.eval_modules:
            module.eval()

    def step(self, t: int) -> None:
        """One training step, and an evaluation where the case has one."""
        case, ndl, optimizer = self.case, self.ndl, self.optimizer
        lr = case.lr_at(t)
        if lr is not None and lr != optimizer.lr:
            optimizer.lr = lr
        np.random.seed(step_seed(case, t))
        if case.backward == "accumulate":
            self._accumulate(t)
        else:
            out = self.model(ndl.Tensor(self.batches.x[t, 0], requires_grad=case.input_grad))
            self.loss, cotangent = self._loss(out, t, 0)
            optimizer.reset_grad()
            if self.options.create_graph:
                self._differentiate_twice(cotangent)
            else:
                if case.backward == "twice":
                    self.contract.backward(self.loss, *cotangent, retain_graph=True)
                self.loss.backward(*cotangent)
        if case.clip is not None:
            optimizer.clip_grad_norm(*(() if case.clip.max_norm is None else (case.clip.max_norm,)))
        optimizer.step()
        self.losses[t] = self.loss.numpy().flat[0]
        if self.options.evaluate and evaluated_after(t, case.steps):
            self.evaluate(t)

    def evaluate(self, t: int) -> None:
        """A forward pass in evaluation mode; the graph that it makes is simply dropped."""
        self.model.eval()
        self.losses[t] = self.model(self.ndl.Tensor(self.batches.x[t, 0], requires_grad=False)).numpy().flat[0]
        self.model.train()
        for module in self.eval_modules:
            module.eval()

    def release(self) -> None:
        """Drop what a step may keep: the loss and the gradients."""
        self.loss = None
        self.optimizer.reset_grad()

    def wide(self) -> list[str]:
        """What is float64 that was float32 to begin with: parameters, buffers, the state of the optimizer."""
        named = {
            f"{path}.{name}": value
            for path, module in self.paths.items()
            for name, value in vars(module).items()
            if isinstance(value, self.ndl.Tensor)
        }
        held = {name: array_of(value) for name, value in named.items()}
        for quantity in STATE:
            for name, (kept, key) in self.contract.states(self.optimizer, quantity, named):
                held[f"the {quantity} of {name}"] = array_of(kept[key])
        found = [name for name, array in held.items() if array.dtype == np.float64]
        return found[:3] + [f"{len(found) - 3} more"] * (len(found) > 3)

    def _loss(self, out: Any, t: int, m: int) -> tuple[Any, tuple[Any, ...]]:
        """The loss and the arguments of its ``backward``."""
        ndl, loss = self.ndl, self.case.loss
        if isinstance(loss, c.SoftmaxLoss):
            assert self.batches.labels is not None
            return self.loss_of(out, ndl.Tensor(self.batches.labels[t, m], requires_grad=False)), ()
        assert self.batches.drawn is not None
        drawn = ndl.Tensor(self.batches.drawn[t, m], requires_grad=False)
        found, start = loss_with(ndl, self.case, out, drawn)
        return found, () if start is None else (start,)

    def _parameters(self) -> list[Any]:
        return list(self.contract.listed_once(self.model.parameters()))

    def _accumulate(self, t: int) -> None:
        """Two micro-batches; their gradients are added up by hand."""
        collected: list[Any] = []
        for m in range(2):
            out = self.model(self.ndl.Tensor(self.batches.x[t, m], requires_grad=self.case.input_grad))
            self.loss, cotangent = self._loss(out, t, m)
            self.optimizer.reset_grad()
            self.loss.backward(*cotangent)
            if m == 0:
                collected = [grad_of(p) for p in self._parameters()]
        for p, before in zip(self._parameters(), collected, strict=True):
            if before is not None:
                p.grad = self.contract.plus(before, p.grad)

    def _differentiate_twice(self, cotangent: tuple[Any, ...]) -> None:
        """Gradients with their graph, and then the gradient of their squared norm."""
        self.contract.backward(self.loss, *cotangent, create_graph=True)
        norm = None
        for p in self._parameters():
            if grad_of(p) is not None:
                square = (p.grad * p.grad).sum()
                norm = square if norm is None else norm + square
        self.optimizer.reset_grad()
        if norm is not None:
            norm.backward()
