"""The other libraries, each trained the way its own documentation does it.

Each is imported by its own builder and nowhere else. Where a library has no optimizer (MyGrad, HIPS autograd,
JAX), the update is the same formula by hand in its own idiom. Dropout masks are each library's own draw.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle, islice
from typing import Any, Protocol

import numpy as np

from oracle.systems.workloads import Array, Batch, Start, Workload


class Trainer(Protocol):
    """A library with a model, its optimizer and its batches."""

    def run(self, steps: int) -> float:
        """Train so many steps, each on the next batch -> the last loss (no model: an element of θ)."""
        ...

    def parameters(self) -> Mapping[str, Array]:
        """By name, in needle's layout."""
        ...


# --- torch


def _torch_model(workload: Workload) -> Any:
    from torch import Tensor, nn

    class Residual(nn.Module):
        def __init__(self, fn: nn.Module) -> None:
            super().__init__()
            self.fn = fn

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fn(x) + x
            return out

    if workload.model == "mlp":
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(workload.widths, workload.widths[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(*(layers if workload.last_relu else layers[:-1]))
    inputs, d, classes = workload.widths
    norm = nn.BatchNorm1d if workload.norm == "batch" else nn.LayerNorm
    blocks = [
        nn.Sequential(
            Residual(
                nn.Sequential(
                    nn.Linear(d, d // 2), norm(d // 2), nn.ReLU(), nn.Dropout(workload.dropout),
                    nn.Linear(d // 2, d), norm(d),
                )
            ),
            nn.ReLU(),
        )
        for _ in range(workload.blocks)
    ]  # fmt: skip
    return nn.Sequential(nn.Linear(inputs, d), nn.ReLU(), *blocks, nn.Linear(d, classes))


def _to_torch(name: str, value: Array, like: Any) -> Any:
    """A weight (in, out) becomes torch's (out, in), a bias (1, out) torch's (out,)."""
    import torch

    return torch.from_numpy(value.T if value.ndim == 2 and name.endswith("weight") else value).reshape(like.shape)


class TorchTrainer:
    """torch eager; `fused` picks the fused implementation of the optimizer."""

    def __init__(self, workload: Workload, *, fused: bool = False) -> None:
        import torch

        self.torch = torch
        self.start = workload.start()
        self.net: Any = None
        if workload.model == "sgd":
            self.params: list[Any] = [
                torch.nn.Parameter(torch.from_numpy(value.copy())) for value in self.start.values()
            ]
            for p, g in zip(self.params, workload.gradients().values(), strict=True):
                p.grad = torch.from_numpy(g)
        else:
            self.net = _torch_model(workload)
            self.params = list(self.net.parameters())
            with torch.no_grad():
                for p, (name, value) in zip(self.params, self.start.items(), strict=True):
                    p.copy_(_to_torch(name, value, p))
        self.loss_fn = torch.nn.CrossEntropyLoss()
        self.opt = torch.optim.SGD(
            self.params,
            lr=workload.lr,
            momentum=workload.momentum,
            dampening=workload.momentum,
            weight_decay=workload.weight_decay,
            fused=True if fused else None,
        )
        for p in self.params:  # or else the first step would not be dampened
            self.opt.state[p]["momentum_buffer"] = torch.zeros_like(p)
        batches = workload.batches() if self.net else []
        self.stream: Iterator[Any] = cycle([(torch.from_numpy(x), torch.from_numpy(y)) for x, y in batches])

    def run(self, steps: int) -> float:
        net, loss_fn, opt = self.net, self.loss_fn, self.opt
        if net is None:
            for _ in range(steps):
                opt.step()
            return float(self.params[0].detach().view(-1)[0])
        for x, y in islice(self.stream, steps):
            loss = loss_fn(net(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
        return float(loss.detach())

    def parameters(self) -> Start:
        out = {}
        for (name, value), p in zip(self.start.items(), self.params, strict=True):
            array = p.detach().numpy()
            out[name] = (array.T if array.ndim == 2 else array).reshape(value.shape)
        return out


# --- libraries without layers: one model, written once over their common vocabulary


def _forward(workload: Workload, p: Mapping[str, Any], x: Any, ops: Mapping[str, Any], draw: Callable[..., Any]) -> Any:
    """(batch, in) -> logits (batch, classes), from the operations of a NumPy-like library."""
    maximum, sqrt = ops["relu"], ops["sqrt"]

    def linear(x: Any, name: str) -> Any:
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        axis = 0 if workload.norm == "batch" else 1
        centred = x - x.mean(axis=axis, keepdims=True)
        var = (centred * centred).mean(axis=axis, keepdims=True)
        return centred / sqrt(var + np.float32(1e-5)) * p[f"{name}.weight"] + p[f"{name}.bias"]

    if workload.model == "mlp":
        count = len(workload.widths) - 1
        for i in range(count):
            x = linear(x, f"linear{i}")
            if i < count - 1 or workload.last_relu:
                x = maximum(x)
        return x
    x = maximum(linear(x, "first"))
    for i in range(workload.blocks):
        h = maximum(norm(linear(x, f"block{i}.linear1"), f"block{i}.norm1"))
        if workload.dropout:
            h = h * draw(h.shape, i)
        x = maximum(norm(linear(h, f"block{i}.linear2"), f"block{i}.norm2") + x)
    return linear(x, "last")


def _draw(p: float) -> Callable[..., Array]:
    """A dropout mask from NumPy's global generator, scaled."""

    def draw(shape: tuple[int, ...], _: int) -> Array:
        return (np.random.rand(*shape) <= 1 - p).astype(np.float32) * np.float32(1 / (1 - p))

    return draw


def _update(p: Array, g: Array, u: Array, w: Workload) -> None:
    """The rule of needle's SGD, in place, as NumPy users write it."""
    u *= w.momentum
    u += (1 - w.momentum) * (g + w.weight_decay * p)
    p -= w.lr * u


class _ByHand:
    """Parameters and velocities as plain arrays; subclasses give the gradients."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.params: Start = workload.start()
        self.velocities = {name: np.zeros_like(p) for name, p in self.params.items()}
        self.stream: Iterator[Batch] = cycle(workload.batches() if workload.model != "sgd" else [])
        self.fixed = workload.gradients() if workload.model == "sgd" else None

    def gradients(self, x: Any, y: Any) -> tuple[Any, Mapping[str, Array]]:
        raise NotImplementedError

    def run(self, steps: int) -> float:
        workload, loss = self.workload, None
        for _ in range(steps):
            if self.fixed:
                grads: Mapping[str, Array] = self.fixed
            else:
                loss, grads = self.gradients(*next(self.stream))
            for name, p in self.params.items():
                _update(p, grads[name], self.velocities[name], workload)
        return float(self.params["p0"].flat[0] if loss is None else loss)

    def parameters(self) -> Start:
        return self.params


class MyGradTrainer(_ByHand):
    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.mg = importlib.import_module("mygrad")
        nnet = importlib.import_module("mygrad.nnet")
        self.loss_fn = nnet.losses.softmax_crossentropy
        self.ops = {"relu": nnet.activations.relu, "sqrt": self.mg.sqrt}
        self.draw = _draw(workload.dropout)
        self.tensors = {name: self.mg.tensor(p, copy=False) for name, p in self.params.items()}

    def gradients(self, x: Any, y: Any) -> tuple[Any, Mapping[str, Array]]:
        for t in self.tensors.values():
            t.null_grad()
        loss = self.loss_fn(_forward(self.workload, self.tensors, x, self.ops, self.draw), y)
        loss.backward()
        return loss.item(), {name: t.grad for name, t in self.tensors.items()}

    def run(self, steps: int) -> float:
        return super().run(steps)


class AutogradTrainer(_ByHand):
    """HIPS autograd."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        anp = importlib.import_module("autograd.numpy")
        draw = _draw(workload.dropout)
        rows = np.arange(workload.batch)
        ops = {"relu": lambda x: anp.maximum(x, np.float32(0)), "sqrt": anp.sqrt}

        def loss_fn(params: Mapping[str, Any], x: Any, y: Any) -> Any:
            z = _forward(workload, params, x, ops, draw)
            z = z - anp.max(z, axis=1, keepdims=True)
            return anp.mean(anp.log(anp.sum(anp.exp(z), axis=1)) - z[rows, y])

        self.value_and_grad = importlib.import_module("autograd").value_and_grad(loss_fn)

    def gradients(self, x: Any, y: Any) -> tuple[Any, Mapping[str, Array]]:
        loss, grads = self.value_and_grad(self.params, x, y)
        return loss, grads


class JaxTrainer:
    """JAX: the whole step, update included, compiled by jit, with the old buffers given away."""

    def __init__(self, workload: Workload) -> None:
        self.jax = jax = importlib.import_module("jax")
        jnp = importlib.import_module("jax.numpy")
        start = workload.start()
        self.names = list(start)  # jit returns a dict with its keys sorted
        self.state: Any = {name: jnp.asarray(p) for name, p in start.items()}
        self.velocity: Any = {name: jnp.zeros_like(p) for name, p in self.state.items()}
        self.key: Any = jax.random.key(0)
        keep = 1 - workload.dropout
        ops = {"relu": jax.nn.relu, "sqrt": jnp.sqrt}
        w = workload

        def loss_fn(params: Any, x: Any, y: Any, key: Any) -> Any:
            def draw(shape: tuple[int, ...], i: int) -> Any:
                return jax.random.bernoulli(jax.random.fold_in(key, i), keep, shape) * np.float32(1 / keep)

            z = jax.nn.log_softmax(_forward(w, params, x, ops, draw))
            return -jnp.take_along_axis(z, y[:, None], 1).mean()

        def update(params: Any, velocity: Any, grads: Any) -> tuple[Any, Any]:
            velocity = {
                n: w.momentum * u + (1 - w.momentum) * (grads[n] + w.weight_decay * params[n])
                for n, u in velocity.items()
            }
            return {n: p - w.lr * velocity[n] for n, p in params.items()}, velocity

        def step(params: Any, velocity: Any, key: Any, x: Any, y: Any) -> Any:
            key, now = jax.random.split(key)
            loss, grads = jax.value_and_grad(loss_fn)(params, x, y, now)
            return *update(params, velocity, grads), key, loss

        if workload.model == "sgd":
            self.fixed: Any = {n: jnp.asarray(g) for n, g in workload.gradients().items()}
            self.step = jax.jit(update, donate_argnums=(0, 1))
            self.stream: Iterator[Any] = iter(())
        else:
            self.fixed = None
            self.step = jax.jit(step, donate_argnums=(0, 1, 2))
            self.stream = cycle([(jnp.asarray(x), jnp.asarray(y)) for x, y in workload.batches()])

    def run(self, steps: int) -> float:
        if self.fixed is not None:
            for _ in range(steps):
                self.state, self.velocity = self.step(self.state, self.velocity, self.fixed)
            return float(self.state["p0"][0])
        for x, y in islice(self.stream, steps):
            self.state, self.velocity, self.key, loss = self.step(self.state, self.velocity, self.key, x, y)
        self.jax.block_until_ready(self.state)
        return float(loss)

    def parameters(self) -> Start:
        return {name: np.asarray(self.state[name]) for name in self.names}


def _limit(workload: Workload) -> Trainer:
    from oracle.systems import by_hand as limit

    return limit.build(workload)


def _needle(workload: Workload) -> Trainer:
    from oracle.bench import ours

    return ours.build(workload)


BUILDERS: dict[str, Callable[[Workload], Trainer]] = {
    "limit": _limit,
    "needle": _needle,
    "torch": TorchTrainer,
    "torch fused": lambda workload: TorchTrainer(workload, fused=True),
    "MyGrad": MyGradTrainer,
    "HIPS autograd": AutogradTrainer,
    "JAX": JaxTrainer,
}
"""Name -> builder; a name's module is imported only when its builder runs."""

DEFAULT = ("limit", "needle", "torch", "torch fused")
ON_REQUEST = {"MyGrad": "mygrad", "HIPS autograd": "autograd", "JAX": "jax"}
"""Name -> the module that must be installed."""
