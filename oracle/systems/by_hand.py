"""The limit: each workload as a NumPy loop written by hand, for one model and one batch size.

Forward, derived backward, and SGD in place; no autograd, no graph, no checks; every buffer is allocated once.
It is what needle is measured against, so it uses what is known to be fast in NumPy, layer by layer:

- all parameters, gradients and velocities live in one flat buffer each; the update is 7 passes over it;
- `a.dot(b, out)` in place of `@`; column sums and means as a product with a row of ones or of 1/n;
- scalars as 0-d arrays; `out` given by position (except for `np.maximum`, where that warns);
- maximum against an array of zeros, which is vectorised (against a scalar it is not, and 3 times slower);
- the ReLU mask as an integer: the sign bit of 0 − h, spread over the word, is all ones where h > 0;
- the maximum of each row of logits over the transposed copy, along contiguous memory.

What it does not use is algebra across layers (a bias that a norm cancels, a dropout scale moved into the norm
before it): that would be another program, not the same one by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle, islice

import numpy as np
import numpy.typing as npt

from oracle.systems.workloads import Array, Batch, Labels, Start, Workload

BLOCK = 1 << 17
"""Elements per pass of the update: three blocks of float32 and a scratch one stay in a 2 MiB cache."""

Bits = npt.NDArray[np.int32]

ZERO = np.array(0, np.float32)
SIGN = np.array(31, np.int32)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


class Flat:
    """Parameters, gradients and velocities, a flat buffer each, with a view per parameter; dampened SGD."""

    def __init__(self, start: Mapping[str, Array], workload: Workload) -> None:
        size = sum(p.size for p in start.values())
        self.p, self.g, self.u = (np.zeros(size, np.float32) for _ in range(3))
        self.params: Start = {}
        self.grads: Start = {}
        at = 0
        for name, value in start.items():
            here = slice(at, at + value.size)
            self.params[name] = self.p[here].reshape(value.shape)
            self.grads[name] = self.g[here].reshape(value.shape)
            self.params[name][...] = value
            at += value.size
        scratch = np.empty(min(size, BLOCK), np.float32)
        self.blocks = [
            (self.p[i : i + BLOCK], self.g[i : i + BLOCK], self.u[i : i + BLOCK], scratch[: size - i])
            for i in range(0, size, BLOCK)
        ]
        self.lr = scalar(workload.lr)
        self.beta, self.one_minus_beta = scalar(workload.momentum), scalar(1 - workload.momentum)
        self.decay = scalar(workload.weight_decay)

    def update(self) -> None:
        """θ ← θ − α u with u ← β u + (1 − β)(g + λ θ)."""
        for p, g, u, t in self.blocks:
            np.multiply(p, self.decay, t)
            np.add(t, g, t)
            np.multiply(t, self.one_minus_beta, t)
            np.multiply(u, self.beta, u)
            np.add(u, t, u)
            np.multiply(u, self.lr, t)
            np.subtract(p, t, p)


class SoftmaxLoss:
    """(n, k) logits, (n,) labels -> mean of logsumexp − z_y, and its gradient (n, k)."""

    def __init__(self, n: int, k: int) -> None:
        self.transposed = np.empty((k, n), np.float32)
        self.top, self.sums, self.picked = (np.empty(n, np.float32) for _ in range(3))
        self.top_column, self.sums_column = self.top[:, None], self.sums[:, None]
        self.rows, self.index = np.arange(n) * k, np.empty(n, np.int64)
        self.ones, self.mean, self.share = (
            np.ones(k, np.float32),
            np.full(n, 1 / n, np.float32),
            scalar(1 / n),
        )

    def __call__(self, z: Array, y: Labels) -> np.float32:
        """The loss; z becomes its gradient."""
        flat = z.reshape(-1)
        np.copyto(self.transposed, z.T)
        np.maximum.reduce(self.transposed, 0, out=self.top)
        np.subtract(z, self.top_column, z)
        np.add(self.rows, y, self.index)
        picked = flat[self.index]
        np.exp(z, z)
        z.dot(self.ones, self.sums)
        np.log(self.sums, self.picked)
        np.subtract(self.picked, picked, self.picked)
        np.divide(self.share, self.sums, self.sums)
        np.multiply(z, self.sums_column, z)
        flat[self.index] -= self.share
        loss: np.float32 = self.mean.dot(self.picked)
        return loss


class Mlp:
    """Linear and ReLU in turn, with SoftmaxLoss."""

    def __init__(self, workload: Workload, start: Mapping[str, Array]) -> None:
        n, widths = workload.batch, workload.widths
        self.flat = flat = Flat(start, workload)
        self.loss = SoftmaxLoss(n, widths[-1])
        self.ones = np.ones(n, np.float32)
        self.layers = []
        # One spare buffer per width: for the mask going back, and for the zeros of the ReLU going forward.
        masks = {d: np.empty((n, d), np.float32) for d in set(widths[1:])}
        zeros = {d: np.zeros((n, d), np.float32) for d in set(widths[1:])}
        adjoints = {d: np.empty((n, d), np.float32) for d in set(widths[1:])}
        above = {d: np.empty((n, d), np.float32) for d in set(widths[1:])}
        names = list(start)
        for i, d in enumerate(widths[1:]):
            weight, bias = names[2 * i : 2 * i + 2]
            relu = i < len(widths) - 2 or workload.last_relu
            spare = adjoints if i % 2 else above  # a layer reads its own adjoint while it writes the one below
            h = np.empty((n, d), np.float32)
            g = spare[d] if relu else h  # logits are no longer needed once the loss has its gradient
            w = flat.params[weight]
            self.layers.append(
                (w, w.T, flat.params[bias], flat.grads[weight], flat.grads[bias].reshape(-1), h, h.T,
                 relu, zeros[d], masks[d], masks[d].view(np.int32), g, g.view(np.int32))
            )  # fmt: skip

    def step(self, x: Array, y: Labels) -> np.float32:
        a = x
        for w, _, b, _, _, h, _, relu, zeros, _, _, _, _ in self.layers:
            a.dot(w, h)
            np.add(h, b, h)
            if relu:
                np.maximum(h, zeros, out=h)
            a = h
        g = self.layers[-1][-2]
        if g is not a:
            np.copyto(g, a)
        loss = self.loss(g, y)
        ones = self.ones
        for i in range(len(self.layers) - 1, -1, -1):
            _, wt, _, dw, db, h, _, relu, _, mask, mask_bits, g, g_bits = self.layers[i]
            if relu:
                np.subtract(ZERO, h, mask)
                np.right_shift(mask_bits, SIGN, mask_bits)
                np.bitwise_and(g_bits, mask_bits, g_bits)
            ones.dot(g, db)
            if i:
                below = self.layers[i - 1]
                below[6].dot(g, dw)
                g.dot(wt, below[-2])
            else:
                x.T.dot(g, dw)
        self.flat.update()
        return loss


class Linear:
    """(n, k) -> (n, m)"""

    def __init__(self, flat: Flat, name: str) -> None:
        self.w, self.b = flat.params[f"{name}.weight"], flat.params[f"{name}.bias"]
        self.wt = self.w.T
        self.dw, self.db = flat.grads[f"{name}.weight"], flat.grads[f"{name}.bias"].reshape(-1)

    def forward(self, x: Array, out: Array) -> None:
        x.dot(self.w, out)
        np.add(out, self.b, out)

    def backward(self, x: Array, g: Array, ones: Array) -> None:
        x.T.dot(g, self.dw)
        ones.dot(g, self.db)


class BatchNorm:
    """(n, d) -> (n, d), each column normalised; the running statistics follow."""

    eps, keep, take = scalar(1e-5), scalar(0.9), scalar(0.1)

    def __init__(self, flat: Flat, name: str, n: int, d: int) -> None:
        self.weight, self.bias = flat.params[f"{name}.weight"], flat.params[f"{name}.bias"]
        self.dweight, self.dbias = flat.grads[f"{name}.weight"], flat.grads[f"{name}.bias"]
        self.mean_row, self.ones, self.share = (
            np.full(n, 1 / n, np.float32),
            np.ones(n, np.float32),
            scalar(1 / n),
        )
        self.centred, self.t = np.empty((n, d), np.float32), np.empty((n, d), np.float32)
        self.stats, self.stats_t = np.empty((2, d), np.float32), np.empty((2, d), np.float32)
        self.mean, self.var = self.stats
        self.running = np.stack([np.zeros(d, np.float32), np.ones(d, np.float32)])
        self.inv, self.scale, self.s, self.m = (np.empty(d, np.float32) for _ in range(4))

    def forward(self, h: Array, out: Array) -> None:
        """(n, d) -> (n, d); h may be out."""
        centred, t, inv = self.centred, self.t, self.inv
        self.mean_row.dot(h, self.mean)
        np.subtract(h, self.mean, centred)
        np.multiply(centred, centred, t)
        self.mean_row.dot(t, self.var)
        np.multiply(self.stats, self.take, self.stats_t)
        np.multiply(self.running, self.keep, self.running)
        np.add(self.running, self.stats_t, self.running)
        np.add(self.var, self.eps, inv)
        np.sqrt(inv, inv)
        np.reciprocal(inv, inv)
        np.multiply(inv, self.weight, self.scale)
        np.multiply(centred, self.scale, out)
        np.add(out, self.bias, out)

    def backward(self, g: Array, out: Array) -> None:
        """(n, d) -> (n, d): γ·inv·(g − mean g − x̂·mean(g·x̂)) with x̂ = centred·inv; g may be out."""
        centred, t, s, m = self.centred, self.t, self.s, self.m
        self.ones.dot(g, self.dbias)
        np.multiply(g, centred, t)
        self.ones.dot(t, s)
        np.multiply(s, self.inv, self.dweight)
        np.multiply(self.dweight, self.inv, s)
        np.multiply(s, self.share, s)
        np.multiply(centred, s, centred)
        np.multiply(self.dbias, self.share, m)
        np.subtract(g, m, out)
        np.subtract(out, centred, out)
        np.multiply(out, self.scale, out)


class LayerNorm:
    """(n, d) -> (n, d), each row normalised."""

    eps = scalar(1e-5)

    def __init__(self, flat: Flat, name: str, n: int, d: int) -> None:
        self.weight, self.bias = flat.params[f"{name}.weight"], flat.params[f"{name}.bias"]
        self.dweight, self.dbias = flat.grads[f"{name}.weight"], flat.grads[f"{name}.bias"]
        self.mean_column, self.ones = np.full(d, 1 / d, np.float32), np.ones(n, np.float32)
        self.normed, self.t = np.empty((n, d), np.float32), np.empty((n, d), np.float32)
        self.s, self.inv = np.empty(n, np.float32), np.empty(n, np.float32)
        self.s_column, self.inv_column = self.s[:, None], self.inv[:, None]

    def forward(self, h: Array, out: Array) -> None:
        """(n, d) -> (n, d); h may be out."""
        normed, t, s, inv = self.normed, self.t, self.s, self.inv
        h.dot(self.mean_column, s)
        np.subtract(h, self.s_column, normed)
        np.multiply(normed, normed, t)
        t.dot(self.mean_column, inv)
        np.add(inv, self.eps, inv)
        np.sqrt(inv, inv)
        np.reciprocal(inv, inv)
        np.multiply(normed, self.inv_column, normed)
        np.multiply(normed, self.weight, out)
        np.add(out, self.bias, out)

    def backward(self, g: Array, out: Array) -> None:
        """(n, d) -> (n, d): inv·(gγ − mean(gγ) − x̂·mean(gγ·x̂)); g may be out."""
        normed, t, s = self.normed, self.t, self.s
        self.ones.dot(g, self.dbias)
        np.multiply(g, normed, t)
        self.ones.dot(t, self.dweight)
        np.multiply(t, self.weight, t)
        t.dot(self.mean_column, s)
        np.multiply(normed, self.s_column, normed)
        np.multiply(g, self.weight, out)
        out.dot(self.mean_column, s)
        np.subtract(out, self.s_column, out)
        np.subtract(out, normed, out)
        np.multiply(out, self.inv_column, out)


class Dropout:
    """(n, d) -> (n, d): one np.random.rand(n, d) a step, as needle's contract has it."""

    def __init__(self, p: float, n: int, d: int) -> None:
        self.keep, self.scale, self.shape = 1 - p, scalar(1 / (1 - p)), (n, d)
        self.kept, self.mask = np.empty((n, d), np.bool_), np.empty((n, d), np.float32)

    def forward(self, h: Array) -> None:
        np.less_equal(np.random.rand(*self.shape), self.keep, self.kept)
        np.copyto(self.mask, self.kept)
        np.multiply(self.mask, self.scale, self.mask)
        np.multiply(h, self.mask, h)

    def backward(self, g: Array) -> None:
        np.multiply(g, self.mask, g)


class Relu:
    """(n, d) -> (n, d)"""

    def __init__(self, n: int, d: int) -> None:
        self.zeros, self.mask = np.zeros((n, d), np.float32), np.empty((n, d), np.float32)
        self.bits = self.mask.view(np.int32)

    def forward(self, h: Array) -> None:
        np.maximum(h, self.zeros, out=h)

    def backward(self, h: Array, g: Array, g_bits: Bits) -> None:
        np.subtract(ZERO, h, self.mask)
        np.right_shift(self.bits, SIGN, self.bits)
        np.bitwise_and(g_bits, self.bits, g_bits)


class ResNet:
    """The course's MLPResNet, with SoftmaxLoss."""

    def __init__(self, workload: Workload, start: Mapping[str, Array]) -> None:
        n, (_, d, classes), half = workload.batch, workload.widths, workload.widths[1] // 2
        norm = BatchNorm if workload.norm == "batch" else LayerNorm
        self.flat = flat = Flat(start, workload)
        self.ones = np.ones(n, np.float32)
        self.first, self.last = Linear(flat, "first"), Linear(flat, "last")
        self.wide, self.narrow = Relu(n, d), Relu(n, half)
        self.loss = SoftmaxLoss(n, classes)
        self.a = np.empty((n, d), np.float32)
        self.z = np.empty((n, classes), np.float32)
        self.g, self.g2 = np.empty((n, d), np.float32), np.empty((n, d), np.float32)
        self.gh = np.empty((n, half), np.float32)
        self.g_bits, self.gh_bits = self.g.view(np.int32), self.gh.view(np.int32)
        self.blocks = [
            (Linear(flat, f"block{i}.linear1"), norm(flat, f"block{i}.norm1", n, half),
             Dropout(workload.dropout, n, half) if workload.dropout else None,
             np.empty((n, half), np.float32),
             Linear(flat, f"block{i}.linear2"), norm(flat, f"block{i}.norm2", n, d),
             np.empty((n, d), np.float32))
            for i in range(workload.blocks)
        ]  # fmt: skip

    def step(self, x: Array, y: Labels) -> np.float32:
        self.first.forward(x, self.a)
        self.wide.forward(self.a)
        a = self.a
        for linear1, norm1, dropout, h, linear2, norm2, out in self.blocks:
            linear1.forward(a, h)
            norm1.forward(h, h)
            self.narrow.forward(h)
            if dropout:
                dropout.forward(h)
            linear2.forward(h, out)
            norm2.forward(out, out)
            np.add(out, a, out)
            self.wide.forward(out)
            a = out
        self.last.forward(a, self.z)

        loss = self.loss(self.z, y)
        ones, g, g2, gh = self.ones, self.g, self.g2, self.gh
        self.last.backward(a, self.z, ones)
        self.z.dot(self.last.wt, g)
        for i in range(len(self.blocks) - 1, -1, -1):
            linear1, norm1, dropout, h, linear2, norm2, out = self.blocks[i]
            below = self.blocks[i - 1][-1] if i else self.a
            self.wide.backward(out, g, self.g_bits)
            norm2.backward(g, g2)
            linear2.backward(h, g2, ones)
            g2.dot(linear2.wt, gh)
            if dropout:
                dropout.backward(gh)
            self.narrow.backward(h, gh, self.gh_bits)
            norm1.backward(gh, gh)
            linear1.backward(below, gh, ones)
            gh.dot(linear1.wt, g2)
            np.add(g, g2, g)
        self.wide.backward(self.a, g, self.g_bits)
        self.first.backward(x, g, ones)
        self.flat.update()
        return loss


class LimitTrainer:
    """The trainer of a hand-written model."""

    def __init__(self, workload: Workload, start: Mapping[str, Array]) -> None:
        self.net = (Mlp if workload.model == "mlp" else ResNet)(workload, start)
        self.stream: Iterator[Batch] = cycle(workload.batches())

    def run(self, steps: int) -> float:
        step = self.net.step
        for x, y in islice(self.stream, steps):
            loss = step(x, y)
        return float(loss)

    def parameters(self) -> Start:
        return self.net.flat.params


class LimitSgd:
    """The trainer of the optimizer alone."""

    def __init__(self, workload: Workload, start: Mapping[str, Array]) -> None:
        self.flat = Flat(start, workload)
        for name, g in workload.gradients().items():
            self.flat.grads[name][...] = g

    def run(self, steps: int) -> float:
        for _ in range(steps):
            self.flat.update()
        return float(self.flat.p[0])

    def parameters(self) -> Start:
        return self.flat.params


def build(workload: Workload) -> LimitTrainer | LimitSgd:
    kind = LimitSgd if workload.model == "sgd" else LimitTrainer
    return kind(workload, workload.start())
