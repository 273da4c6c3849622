"""What needle runs: the README's loop over the public API, with no switch set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle, islice

import numpy as np

import needle as ndl
from needle import nn, optim
from oracle.systems.workloads import Start, Workload


def residual_block(dim: int, hidden: int, norm: type[nn.BatchNorm1d] | type[nn.LayerNorm1d], p: float) -> nn.Module:
    """ResidualBlock of the course's homework."""
    return nn.Sequential(
        nn.Residual(
            nn.Sequential(
                nn.Linear(dim, hidden),
                norm(hidden),
                nn.ReLU(),
                nn.Dropout(p),
                nn.Linear(hidden, dim),
                norm(dim),
            )
        ),
        nn.ReLU(),
    )


def model(workload: Workload) -> nn.Module:
    if workload.model == "mlp":
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(workload.widths, workload.widths[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(*layers) if workload.last_relu else nn.Sequential(*layers[:-1])
    inputs, d, classes = workload.widths
    norm = nn.BatchNorm1d if workload.norm == "batch" else nn.LayerNorm1d
    blocks = [residual_block(d, d // 2, norm, workload.dropout) for _ in range(workload.blocks)]
    return nn.Sequential(nn.Linear(inputs, d), nn.ReLU(), *blocks, nn.Linear(d, classes))


def load(params: Iterable[ndl.Tensor], start: Start) -> None:
    """Every parameter gets the shared start value; the order of construction is the order of `start`."""
    for p, (name, value) in zip(params, start.items(), strict=True):
        if p.shape != value.shape:
            raise ValueError(f"needle's parameter for {name} has shape {p.shape}, the start value {value.shape}")
        p.data = ndl.Tensor(value)


def sgd(params: Iterable[ndl.Tensor], workload: Workload) -> optim.SGD:
    return optim.SGD(list(params), lr=workload.lr, momentum=workload.momentum, weight_decay=workload.weight_decay)


class NeedleTrainer:
    def __init__(self, workload: Workload) -> None:
        self.start = workload.start()
        self.model = model(workload)
        load(self.model.parameters(), self.start)
        self.loss_fn = nn.SoftmaxLoss()
        self.opt = sgd(self.model.parameters(), workload)
        # What a DataLoader yields: constants.
        batches = [
            (ndl.Tensor(x, requires_grad=False), ndl.Tensor(y, requires_grad=False)) for x, y in workload.batches()
        ]
        self.stream: Iterator[tuple[ndl.Tensor, ndl.Tensor]] = cycle(batches)

    def run(self, steps: int) -> float:
        model, loss_fn, opt = self.model, self.loss_fn, self.opt
        for x, y in islice(self.stream, steps):
            loss = loss_fn(model(x), y)
            opt.reset_grad()
            loss.backward()
            opt.step()
        return float(loss.numpy())

    def parameters(self) -> Start:
        return dict(zip(self.start, (p.numpy() for p in self.model.parameters()), strict=True))


class NeedleSgd:
    def __init__(self, workload: Workload) -> None:
        self.start = workload.start()
        self.params = [nn.Parameter(value) for value in self.start.values()]
        self.opt = sgd(self.params, workload)
        for p, g in zip(self.params, workload.gradients().values(), strict=True):
            p.grad = ndl.Tensor(g, requires_grad=False)

    def run(self, steps: int) -> float:
        for _ in range(steps):
            self.opt.step()
        return float(np.ravel(self.params[0].numpy())[0])

    def parameters(self) -> Start:
        return dict(zip(self.start, (p.numpy() for p in self.params), strict=True))


def build(workload: Workload) -> NeedleTrainer | NeedleSgd:
    return NeedleSgd(workload) if workload.model == "sgd" else NeedleTrainer(workload)
