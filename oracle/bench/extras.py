"""What is measured beside the workloads: import time, overhead per op, heap, scaling, second order, Adam."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

import needle as ndl
from needle import nn
from oracle.bench import heap
from oracle.bench.measure import Timing, build, check_parameters, interleave
from oracle.bench.ours import model as needle_model
from oracle.bench.peers import TorchTrainer
from oracle.systems.workloads import WORKLOADS, Array, Workload

DEPTHS = (10, 30, 100, 300, 1_000, 3_000, 10_000)
WIDTHS = (1, 4, 16, 64, 256, 1024)
ADAM = ("W1", "W3b", "W5")
ADAM_STEPS = 3  # after which all must have the same parameters
LINEAR = 1.1
"""Cost is linear in depth if its log-log slope from 100 ops on is at most this.

Quadratic would be 2; that a deep chain leaves the caches costs a few hundredths.
"""
IMPORT_TARGET = 1.3
HEAP_TARGET = int(1.15 * 2**20)

OPS = 16
"""How many ops `op_overhead` measures, for whoever shows progress."""

Tick = Callable[[], None]


def child(*arguments: str, **variables: str) -> str:
    """What a fresh Python with our import path, and these environment variables, prints."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **variables}
    run = subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if run.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{run.stderr}")
    return run.stdout


def import_time(rounds: int, tick: Tick) -> Timing:
    """CPU seconds of the import statement alone, in fresh processes, in turn.

    With bytecode, as for whoever imports a package twice: in a folder of its own, filled by a first round
    that does not count, so that it does not matter whether this environment lets Python write any.
    """
    timing = Timing()
    with tempfile.TemporaryDirectory() as folder:
        bytecode = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        for i in range(rounds + 1):
            for package in ("numpy", "needle"):
                show = (
                    "import time; w, c = time.perf_counter(), time.process_time(); "
                    f"import {package}; print(time.process_time() - c, time.perf_counter() - w)"
                )
                cpu, wall = map(float, child("-c", show, **bytecode).split())
                if i:
                    timing.cpu.setdefault(package, []).append(cpu)
                    timing.wall.setdefault(package, []).append(wall)
            tick()
    return timing


def op_overhead(rounds: int, burst: float, tick: Tick) -> dict[str, Timing]:
    """Forward with a graph, on tensors of one element; and backward through a chain, per op."""
    a, b = np.full((1, 1), 0.5, np.float32), np.full((1, 1), 0.25, np.float32)
    x, y = ndl.Tensor(a), ndl.Tensor(b)
    s, t = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    ops: dict[str, tuple[Callable[[], object], Callable[[], object], Callable[[], object]]] = {
        "x + y": (lambda: x + y, lambda: s + t, lambda: a + b),
        "x * y": (lambda: x * y, lambda: s * t, lambda: a * b),
        "x / y": (lambda: x / y, lambda: s / t, lambda: a / b),
        "x + 2.0": (lambda: x + 2.0, lambda: s + 2.0, lambda: a + np.float32(2)),
        "x * 2.0": (lambda: x * 2.0, lambda: s * 2.0, lambda: a * np.float32(2)),
        "x ** 2": (lambda: x**2, lambda: s**2, lambda: a**2),
        "x @ y": (lambda: x @ y, lambda: s @ t, lambda: a @ b),
        "relu": (lambda: ndl.relu(x), lambda: torch.relu(s), lambda: np.maximum(a, 0)),
        "exp": (lambda: ndl.exp(x), lambda: torch.exp(s), lambda: np.exp(a)),
        "log": (lambda: ndl.log(x), lambda: torch.log(s), lambda: np.log(a)),
        "tanh": (lambda: ndl.tanh(x), lambda: torch.tanh(s), lambda: np.tanh(a)),
        "sum": (lambda: x.sum(), lambda: s.sum(), lambda: a.sum()),
        "reshape": (lambda: x.reshape((1,)), lambda: s.reshape((1,)), lambda: a.reshape((1,))),
        "transpose": (lambda: x.transpose(), lambda: s.transpose(0, 1), lambda: a.swapaxes(0, 1)),
        "broadcast": (
            lambda: x.broadcast_to((1, 1)),
            lambda: s.expand((1, 1)),
            lambda: np.broadcast_to(a, (1, 1)),
        ),
        "logsumexp": (
            lambda: ndl.logsumexp(x, (1,)),
            lambda: torch.logsumexp(s, (1,)),
            lambda: np.log(np.exp(a - a.max(1, keepdims=True)).sum(1)),
        ),
    }
    found = {}
    for name, (ours, theirs, plain) in ops.items():
        contestants = {"needle": _loop(ours), "torch": _loop(theirs), "numpy": _loop(plain)}
        found[name] = interleave(contestants, rounds, burst)
        tick()
    return found


def _loop(f: Callable[[], object]) -> Callable[[int], None]:
    def run(n: int) -> None:
        for _ in range(n):
            f()

    return run


def peak_heap(names: list[str], tick: Tick) -> dict[str, heap.Heap]:
    """Of one W3b step. The limit is left out: it allocates its buffers once, before the first step."""
    found = {}
    for name in names:
        if name != "limit":
            found[name] = cast(heap.Heap, json.loads(child("-m", "oracle.bench.heap", "W3b", name)))
            tick()
    return found


def _needle_chain(x: Array, depth: int) -> Callable[[int], None]:
    leaf = ndl.Tensor(x)
    shift = ndl.Tensor(np.full_like(x, 1e-3), requires_grad=False)

    def run(n: int) -> None:
        for _ in range(n):
            y = leaf
            for _ in range((depth - 1) // 2):
                y = ndl.relu(y + shift)
            y.sum().backward()

    return run


def _torch_chain(x: Array, depth: int) -> Callable[[int], None]:
    leaf = torch.tensor(x, requires_grad=True)
    shift = torch.full_like(leaf, 1e-3, requires_grad=False)

    def run(n: int) -> None:
        for _ in range(n):
            y = leaf
            leaf.grad = None
            for _ in range((depth - 1) // 2):
                y = torch.relu(y + shift)
            y.sum().backward()

    return run


def depth_scaling(rounds: int, burst: float, tick: Tick) -> dict[int, Timing]:
    """Forward and backward of a chain y = relu(y + c) of so many ops; the arrays are small."""
    x = np.random.default_rng(0).random((4, 4), dtype=np.float32)
    found = {}
    for depth in DEPTHS:
        contestants = {"needle": _needle_chain(x, depth), "torch": _torch_chain(x, depth)}
        found[depth] = interleave(contestants, rounds, burst)
        tick()
    return found


def width_scaling(rounds: int, burst: float, tick: Tick) -> dict[int, Timing]:
    """A training step of MLP w-w-w, batch 32."""
    found = {}
    for width in WIDTHS:
        workload = Workload(f"width {width}", f"MLP {width}-{width}-{width}", "mlp", (width,) * 3, 32)
        trainers = build(workload, ("limit", "needle", "torch"))
        found[width] = interleave({name: t.run for name, t in trainers.items()}, rounds, burst)
        tick()
    return found


@dataclass(frozen=True)
class Linearity:
    """Of cost against depth, from 100 ops on: the log-log slope; cost per op, deepest chain over 100 ops."""

    slope: float
    growth: float

    @staticmethod
    def of(depths: Mapping[int, Timing], name: str) -> Linearity:
        costs = {d: t.cost(name).median for d, t in depths.items() if d >= 100}
        xs, ys = [math.log(d) for d in costs], [math.log(c) for c in costs.values()]
        slope = statistics.linear_regression(xs, ys).slope
        low, high = min(costs), max(costs)
        return Linearity(slope, (costs[high] / high) / (costs[low] / low))


SECOND = WORKLOADS["W2"]


def _squared(grad: Any) -> Any:
    return (grad * grad).sum()


def second_order(rounds: int, burst: float, tick: Tick) -> Timing:
    """MLP 784-100-10: gradients; gradients with a graph; gradients of the squared norm of the gradients."""
    x, y = SECOND.batches()[0]
    net = needle_model(SECOND)
    params, loss_fn = net.parameters(), nn.SoftmaxLoss()
    ours_x, ours_y = ndl.Tensor(x, requires_grad=False), ndl.Tensor(y, requires_grad=False)

    def ours(mode: str) -> None:
        loss = loss_fn(net(ours_x), ours_y)
        loss.backward(create_graph=mode != "first")
        if mode == "second":
            norm: Any = 0.0
            for p in params:
                norm = _squared(p.grad) + norm
            norm.backward()
        for p in params:
            p.grad = None

    trainer = TorchTrainer(SECOND)
    peer_x, peer_y = torch.from_numpy(x), torch.from_numpy(y)

    def peer(mode: str) -> None:
        loss = trainer.loss_fn(trainer.net(peer_x), peer_y)
        grads = torch.autograd.grad(loss, trainer.params, create_graph=mode != "first")
        if mode == "second":
            torch.autograd.grad(torch.stack([(g * g).sum() for g in grads]).sum(), trainer.params)

    contestants = {
        f"{name} {mode}": _loop(lambda side=side, mode=mode: side(mode))  # type: ignore[misc]
        for name, side in (("needle", ours), ("torch", peer))
        for mode in ("first", "graph", "second")
    }
    return interleave(contestants, rounds, burst, tick)


def adam_alone(rounds: int, burst: float, tick: Tick) -> dict[str, Timing]:
    """Steps of Adam on the parameters of a workload, with the same drawn gradients every time.

    measure.Disagreement if needle and torch do not arrive at the same parameters.
    """
    found = {}
    lr, decay = 1e-3, 1e-4
    for key in ADAM:
        start, gradients = WORKLOADS[key].start(), WORKLOADS[key].gradients()
        ours = {name: nn.Parameter(value) for name, value in start.items()}
        for name, p in ours.items():
            p.grad = ndl.Tensor(gradients[name], requires_grad=False)
        steps: dict[str, Callable[[], object]] = {"needle": ndl.optim.Adam(ours.values(), lr, weight_decay=decay).step}
        for _ in range(ADAM_STEPS):
            steps["needle"]()
        reached = {name: p.numpy().copy() for name, p in ours.items()}
        for peer, fused in (("torch", False), ("torch fused", True)):
            theirs = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
            for name, q in theirs.items():
                q.grad = torch.tensor(gradients[name])
            steps[peer] = torch.optim.Adam(theirs.values(), lr, weight_decay=decay, fused=fused).step
            for _ in range(ADAM_STEPS):
                steps[peer]()
            arrays = {name: q.detach().numpy() for name, q in theirs.items()}
            check_parameters(
                arrays, reached, start, ADAM_STEPS, f"Adam on the parameters of {key}: {peer} and needle part"
            )
        found[key] = interleave({name: _loop(step) for name, step in steps.items()}, rounds, burst)
        tick()
    return found
