"""What is timed: the workloads W1 to W6, their targets, start weights and batches; no library but NumPy."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Batch = tuple[Array, Labels]
Start = dict[str, Array]

BATCHES = 4
"""How many different batches a trainer cycles through."""


@dataclass(frozen=True)
class Workload:
    """One model and how it is trained; `target_limit` and `target_torch` are ratios, needle over the other.

    An "mlp" is Linear and ReLU in turn, ending in a Linear (in a ReLU if `last_relu`). A "resnet" is the
    course's MLPResNet: Linear(widths[0], d), ReLU, blocks × ReLU(Residual(Linear(d, d/2), norm, ReLU,
    Dropout, Linear(d/2, d), norm)), Linear(d, widths[-1]). "sgd" has parameters and gradients but no
    model: the optimizer alone, widths[0] parameters of widths[1] elements.
    """

    key: str
    title: str
    model: Literal["mlp", "resnet", "sgd"]
    widths: tuple[int, ...]
    batch: int = 0
    last_relu: bool = False
    blocks: int = 0
    norm: Literal["batch", "layer"] = "batch"
    dropout: float = 0.0
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    target_limit: float | None = None
    target_torch: float | None = None

    def for_check(self) -> Workload:
        """The same without randomness, and with a weight decay so strong that its absence would show."""
        return replace(self, dropout=0.0, weight_decay=0.1)

    def start(self) -> Start:
        """Parameters in the order of construction and in needle's layout: weight (in, out), bias (1, out)."""
        rng = np.random.default_rng(zlib.crc32(self.key.encode()))
        if self.model == "sgd":
            count, size = self.widths
            return {f"p{i}": rng.standard_normal(size, dtype=np.float32) for i in range(count)}
        start: Start = {}

        def linear(name: str, fan_in: int, fan_out: int) -> None:
            for part, shape, bound in (
                ("weight", (fan_in, fan_out), np.sqrt(6 / fan_in)),
                ("bias", (1, fan_out), np.sqrt(1 / fan_out)),
            ):
                start[f"{name}.{part}"] = rng.uniform(-bound, bound, shape).astype(np.float32)

        def norm(name: str, dim: int) -> None:
            start[f"{name}.weight"] = rng.uniform(0.5, 1.5, dim).astype(np.float32)
            start[f"{name}.bias"] = rng.uniform(-0.1, 0.1, dim).astype(np.float32)

        if self.model == "mlp":
            for i, (fan_in, fan_out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
                linear(f"linear{i}", fan_in, fan_out)
            return start
        inputs, d, classes = self.widths
        linear("first", inputs, d)
        for i in range(self.blocks):
            linear(f"block{i}.linear1", d, d // 2)
            norm(f"block{i}.norm1", d // 2)
            linear(f"block{i}.linear2", d // 2, d)
            norm(f"block{i}.norm2", d)
        linear("last", d, classes)
        return start

    def batches(self) -> list[Batch]:
        """Inputs (batch, widths[0]) in [0, 1] as images are, labels (batch,) below widths[-1]."""
        rng = np.random.default_rng(zlib.crc32(self.key.encode()) + 1)
        return [
            (
                rng.random((self.batch, self.widths[0]), dtype=np.float32),
                rng.integers(0, self.widths[-1], self.batch),
            )
            for _ in range(BATCHES)
        ]

    def gradients(self) -> Start:
        """What the optimizer is fed where there is no model, by parameter."""
        rng = np.random.default_rng(zlib.crc32(self.key.encode()) + 2)
        return {name: rng.standard_normal(p.shape, dtype=np.float32) for name, p in self.start().items()}


WORKLOADS = {
    w.key: w
    for w in (
        Workload("W1", "MLP 8-16-4", "mlp", (8, 16, 4), 8,
                 target_limit=1.95, target_torch=0.15),
        Workload("W2", "MLP 784-100-10", "mlp", (784, 100, 10), 100,
                 target_limit=1.08, target_torch=0.5),
        Workload("W3b", "MLPResNet, BatchNorm", "resnet", (784, 100, 10), 100,
                 blocks=3, norm="batch", dropout=0.1, target_limit=1.17, target_torch=0.45),
        Workload("W3l", "MLPResNet, LayerNorm", "resnet", (784, 100, 10), 100,
                 blocks=3, norm="layer", dropout=0.1, target_limit=1.17, target_torch=0.45),
        Workload("W4", "MLP 1024-1024-1024-10", "mlp", (1024, 1024, 1024, 10), 256,
                 target_limit=1.01, target_torch=0.8),
        # 200 layers without normalisation: a small step, or training is too chaotic to compare.
        Workload("W5", "200 × (Linear 16 + ReLU)", "mlp", (16,) * 201, 16, last_relu=True,
                 lr=1e-4, target_limit=1.35, target_torch=0.2),
        Workload("W6", "SGD alone, 100 × 100,000", "sgd", (100, 100_000),
                 target_limit=1.05, target_torch=1.0),
    )
}  # fmt: skip
