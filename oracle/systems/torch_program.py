"""The passes of a program in torch: each from the state in which needle was before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from oracle.cases import case as c
from oracle.cases import inputs, programs
from oracle.cases.known import Known
from oracle.systems import peer
from oracle.systems.trace import Observation

Array = npt.NDArray[Any]


class TorchProgram:
    """A torch model of a program, in which a layer that is applied twice stands twice with the same numbers."""

    def __init__(self, case: c.ProgramCase, batches: inputs.Batches, dtype: torch.dtype = torch.float32) -> None:
        self.case, self.batches, self.dtype = case, batches, dtype
        self.model = peer.TorchModel(case.training)
        self.model.module.to(dtype)
        self.parameters, self.buffers = inputs.slots(case.training)

    def _take_over(self, k: Known, training: Mapping[str, bool]) -> None:
        with torch.no_grad():
            for kind, slots in (("parameter", self.parameters), ("buffer", self.buffers)):
                for slot in slots:
                    name = self.case.alias(slot.name)
                    tensor = self.model.tensor(slot)
                    tensor.copy_(peer.to_torch(slot, k.values[f"{kind} {name}"]))
                    tensor.grad = None
                    tensor.requires_grad_(kind == "parameter" and k.values[f"requires_grad {name}"])
        for path, module in self.model.modules.items():
            module.training = training[path]
            for name in ("p", "momentum", "eps"):
                key = f"setting {self.case.alias(f'{path}.')[:-1]} {name}"
                if key in k.values:
                    setattr(module, name, k.values[key])

    def run(self, k: Known, t: int, masks: Mapping[str, Array], *, to_input: bool, index: int) -> Observation:
        """A forward and a backward pass on batch t."""
        obs = Observation(step=index)
        training = programs.modes(self.case, k)
        self._take_over(k, training)
        for path, mask in masks.items():
            dropout = self.model.modules[path]
            assert isinstance(dropout, peer.Dropout)
            dropout.mask = torch.from_numpy(mask[0, 0]).to(self.dtype)
        before = {slot.name: peer.to_needle(slot, self.model.tensor(slot)) for slot in self.buffers}
        x = torch.from_numpy(self.batches.x[t, 0]).to(self.dtype).requires_grad_(to_input)
        out = self.model.module(x)
        loss, cotangent = peer.torch_loss(self.case.training, out, self.batches, t, 0)
        obs.hold("activation", programs.last(self.case), out.detach().numpy())
        if loss is not out:
            obs.hold("loss", "loss", loss.detach().numpy())
        if loss.requires_grad:
            loss.backward(cotangent)
        if x.grad is not None:
            obs.hold("adjoint", "input", x.grad.numpy())
        for slot in reversed(self.parameters):
            grad = self.model.tensor(slot).grad
            if grad is not None:
                name = self.case.alias(slot.name)
                known = obs.values.get("gradient", {}).get(name, 0.0)
                obs.hold("gradient", name, peer.to_needle(slot, grad) + known)
        for slot in self.buffers:
            after = peer.to_needle(slot, self.model.tensor(slot))
            module = self.model.modules[slot.name.rsplit(".", 1)[0]]
            if slot.name.endswith("running_var") and module.training:
                assert isinstance(module, nn.BatchNorm1d)
                after = peer.biased(module, before[slot.name], after, self.case.data.rows)
            obs.hold("buffer", slot.name, after)
        return obs

    def evaluate(self, k: Known, t: int, index: int) -> Observation:
        """A forward pass on batch t in evaluation mode."""
        obs = Observation(step=index)
        self._take_over(k, dict.fromkeys(self.model.modules, False))
        with torch.no_grad():
            out = self.model.module(torch.from_numpy(self.batches.x[t, 0]).to(self.dtype))
        obs.hold("evaluation", programs.last(self.case), np.array(out.numpy()))
        return obs
