"""The same training loop in torch and in NumPy by hand, for their peaks. Run in child processes only."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from oracle.cases import case as c
from oracle.cases import inputs
from oracle.memory.probe import FIRST, WARM_UP, Job, Measured, clear_caches, mark, profiled, replay
from oracle.systems.workloads import Workload


class _Trainer(Protocol):
    def step(self, t: int) -> None: ...
    def release(self) -> None: ...


def measure_other(job: Job) -> Measured:
    """Peak and live end of the first steps of a case in torch ("torch") or in NumPy ("by hand"), as of needle's."""
    from memray import FileDestination, Tracker

    make = _torch(job.case) if job.task == "torch" else by_hand(job.case)
    if make is None:
        return Measured()

    def run(steps: int) -> None:
        trainer = make()
        for t in range(steps):
            mark()
            trainer.step(t)
            trainer.release()
            gc.collect()
            clear_caches()
        mark()

    with profiled():
        run(WARM_UP)
    gc.collect()
    gc.freeze()
    gc.disable()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.bin"
        with Tracker(destination=FileDestination(path, overwrite=True)), np.errstate(all="ignore"):
            run(FIRST)
        return replay(path)


def _torch(case: c.TrainCase) -> Callable[[], _Trainer]:
    """The case as a user of torch trains it."""
    import torch

    from oracle.systems.peer import DEFAULT_LR, Dropout, TorchModel, torch_loss, torch_optimizer

    batches, dropout = inputs.batches(case), torch.nn.functional.dropout
    options = case.memory or c.Memory()

    class Trainer:
        def __init__(self) -> None:
            self.model = TorchModel(case)
            for layer in self.model.modules.values():
                if isinstance(layer, Dropout):  # the peer's own takes its masks from needle
                    layer.forward = partial(dropout, p=layer.p)  # type: ignore[method-assign]
            self.parameters = list(self.model.module.parameters())
            self.optimizer = torch_optimizer(case, self.parameters)
            self.optimizer.param_groups[0]["lr"] = DEFAULT_LR if case.optimizer.lr is None else case.optimizer.lr

        def step(self, t: int) -> None:
            x = torch.from_numpy(batches.x[t, 0].copy())
            loss, _ = torch_loss(case, self.model.module(x), batches, t, 0)
            self.optimizer.zero_grad()
            if options.create_graph:
                grads = torch.autograd.grad(loss, self.parameters, create_graph=True)
                loss = torch.stack([(g * g).sum() for g in grads]).sum()
            loss.backward()
            if case.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters, case.clip.max_norm or 0.25)
            self.optimizer.step()

        def release(self) -> None:
            self.optimizer.zero_grad()

    return Trainer


def by_hand(case: c.TrainCase) -> Callable[[], _Trainer] | None:
    """The case in NumPy by hand, where the benchmark has such a loop or a short one does; else None."""
    options = case.memory or c.Memory()
    if options.create_graph:
        return None
    found = _workload(case)
    batches = inputs.batches(case)
    assert batches.labels is not None
    x, y = batches.x[:, 0], batches.labels[:, 0]
    if found is None:
        return lambda: _Mlp(case, x, y)
    workload = found
    from oracle.systems.by_hand import Mlp, ResNet

    start = workload.start()

    class Trainer:
        def __init__(self) -> None:
            self.net = (Mlp if workload.model == "mlp" else ResNet)(workload, start)

        def step(self, t: int) -> None:
            self.net.step(x[t], y[t])

        def release(self) -> None:
            pass

    return Trainer


def _workload(case: c.TrainCase) -> Workload | None:
    """The benchmark's workload that is this case, if there is one."""
    spec, model = case.optimizer, case.model
    if not isinstance(spec, c.SGD) or case.clip is not None:
        return None
    kinds = [type(layer) for layer in model]
    rate: dict[str, Any] = {"lr": spec.lr or 0.01, "momentum": spec.momentum or 0.0}
    rate["weight_decay"] = spec.weight_decay or 0.0
    linears = [layer for layer in model if isinstance(layer, c.Linear)]
    if any(layer.tie is not None or not layer.bias for layer in linears):
        return None
    rows, widths = case.data.rows, (case.data.features, *(layer.out for layer in linears))
    if set(kinds) == {c.Linear, c.ReLU}:
        return Workload("memory", "", "mlp", widths, rows, last_relu=kinds[-1] is c.ReLU, **rate)
    residuals = [layer for layer in model if isinstance(layer, c.Residual)]
    if residuals and set(kinds) == {c.Linear, c.ReLU, c.Residual}:
        norm: Any = "batch" if isinstance(residuals[0].body[1], c.BatchNorm) else "layer"
        return Workload("memory", "", "resnet", widths, rows, blocks=len(residuals), norm=norm, dropout=0.1, **rate)
    return None


class _Mlp:
    """Linear layers with ReLU or tanh between, as one writes them in NumPy: tied weights, clipping and Adam too."""

    def __init__(self, case: c.TrainCase, x: Any, y: Any) -> None:
        self.case, self.x, self.y = case, x, y
        self.linears = [layer for layer in case.model if isinstance(layer, c.Linear)]
        self.tanh = any(isinstance(layer, c.Tanh) for layer in case.model)
        widths = [case.data.features, *(layer.out for layer in self.linears)]
        self.weight = [i if layer.tie is None else layer.tie for i, layer in enumerate(self.linears)]
        shapes = {f"w{i}": (a, b) for i, (a, b) in enumerate(pairwise(widths)) if self.weight[i] == i}
        shapes |= {f"b{i}": (1, b) for i, b in enumerate(widths[1:])}
        rng = np.random.RandomState(0)
        self.p = {n: (rng.standard_normal(s) / np.sqrt(s[0])).astype(np.float32) for n, s in shapes.items()}
        count = 2 if isinstance(case.optimizer, c.Adam) else 1
        self.state = [{n: np.zeros_like(p) for n, p in self.p.items()} for _ in range(count)]

    def step(self, t: int) -> None:
        """One training step."""
        p, h, labels = self.p, [self.x[t].copy()], self.y[t]
        for i, w in enumerate(self.weight):
            z = h[-1] @ p[f"w{w}"]
            z += p[f"b{i}"]
            if i < len(self.weight) - 1:
                np.tanh(z, out=z) if self.tanh else np.maximum(z, np.float32(0), out=z)
            h.append(z)
        rows = np.arange(len(labels))
        g = h.pop()
        g -= g.max(axis=1, keepdims=True)
        np.exp(g, out=g)
        g /= g.sum(axis=1, keepdims=True)
        g[rows, labels] -= 1
        g /= np.float32(len(labels))
        grads: dict[str, Any] = {}
        for i in reversed(range(len(self.weight))):
            below, name = h.pop(), f"w{self.weight[i]}"
            dw = below.T @ g
            if name in grads:
                grads[name] += dw
            else:
                grads[name] = dw
            grads[f"b{i}"] = g.sum(axis=0, keepdims=True)
            if i:
                g = g @ p[name].T
                g *= (1 - below * below) if self.tanh else below > 0
        if self.case.clip is not None:
            norm = np.sqrt(sum(float(np.vdot(d, d)) for d in grads.values()))
            for d in grads.values():
                d *= np.float32(min(1.0, (self.case.clip.max_norm or 0.25) / (norm + 1e-6)))
        self._update(grads, t + 1)

    def _update(self, grads: dict[str, Any], t: int) -> None:
        spec = self.case.optimizer
        for name, d in grads.items():
            theta = self.p[name]
            if isinstance(spec, c.Adam):
                m, v = self.state[0][name], self.state[1][name]
                m *= 0.9
                m += 0.1 * d
                v *= 0.999
                d *= d
                v += 0.001 * d
                np.divide(v, 1 - 0.999**t, out=d)
                np.sqrt(d, out=d)
                d += 1e-8
                np.divide(m, d, out=d)
                d *= (spec.lr or 0.01) / (1 - 0.9**t)
                theta -= d
                continue
            u, beta = self.state[0][name], spec.momentum or 0.0
            d += (spec.weight_decay or 0.0) * theta
            d *= 1 - beta
            u *= beta
            u += d
            np.multiply(u, spec.lr or 0.01, out=d)
            theta -= d

    def release(self) -> None:
        """Nothing outlives a step."""
