"""What both sides of a case start from: data, labels, cotangents, dropout masks, parameters. NumPy alone.

Everything follows from the case and its seed. Dropout masks and freshly built weights follow needle's documented
contract with NumPy's global generator, drawn here from an independent generator with the same seed.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.cases import case as c
from oracle.cases.layers import Slot as Slot

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Batches:
    """Per step and micro-batch: x (steps, micro, rows, features) float32; labels (…, rows); drawn (…, rows, classes)."""

    x: Array
    labels: Array | None
    drawn: Array | None

    @property
    def micro(self) -> int:
        """Backward passes per step: 2 where gradients are accumulated, else 1."""
        return int(self.x.shape[1])


def gap(case: c.TrainCase | c.SecondOrderCase) -> tuple[int, str]:
    """The step in which the optimizer finds no gradient of a parameter, and the name of the parameter; (-1, "") if it
    always finds all.
    """
    if not isinstance(case, c.TrainCase) or case.gap is None:
        return -1, ""
    names = [slot.name for slot in slots(case)[0] if slot.used and not slot.frozen]
    return case.gap.step, names[case.gap.parameter % len(names)]


def micro_batches(case: c.TrainCase | c.SecondOrderCase) -> int:
    """Backward passes per step."""
    return 2 if isinstance(case, c.TrainCase) and case.backward == "accumulate" else 1


def batches(case: c.TrainCase | c.SecondOrderCase) -> Batches:
    """The data of every step."""
    steps, micro = getattr(case, "steps", 1), micro_batches(case)
    if isinstance(case.data, c.Digits):
        images, classes = digits(train=True)
        count = steps * micro * case.data.rows
        rng = case.rng("shuffle")
        usable = len(images) - len(images) % case.data.rows
        order = np.concatenate([rng.permutation(len(images))[:usable] for _ in range(math.ceil(count / usable))])[
            :count
        ]
        lead = (steps, micro, case.data.rows)
        return Batches(images[order].reshape((*lead, 64)), classes[order].reshape(lead), None)
    data = case.data
    dtype = case.dtypes.data if isinstance(case, c.TrainCase) and case.dtypes is not None else "float32"
    shape = (1 if data.same_batch else steps, micro, data.rows, data.features)
    x = case.rng("data").standard_normal(shape) * data.scale
    if data.rounded:
        x = np.round(x)
    x = x + data.offset
    if data.repeated_rows:
        x[:, :, 1:] = x[:, :, :1]
    if data.constant_column:
        x[..., 0] = x[:, :, :1, 0]
    flat = x.reshape(shape[0], -1)
    for atom in data.atoms:
        flat[:, atom.at % flat.shape[1]] = atom.value
    x = np.broadcast_to(x, (steps, *shape[1:]))
    width = c.output_width(case.model, data.rows, data.features)
    lead = (steps, micro, data.rows)
    labels = drawn = None
    if isinstance(case.loss, c.SoftmaxLoss):
        labels = case.rng("labels").randint(0, width, lead)
        labels = labels if case.loss.labels == "list" else labels.astype(case.loss.labels)
    else:
        drawn = case.rng("cotangent").standard_normal((*lead, width)).astype(dtype)
    return Batches(np.ascontiguousarray(x, dtype=dtype), labels, drawn)


class NoDigits(RuntimeError):
    """The images of the UCI digits are not here."""


@functools.cache
def digits(*, train: bool) -> tuple[Array, Array]:
    """The UCI digits as scikit-learn ships them: 1,437 images to train on, 360 held out."""
    images, labels = _digits()
    order = np.random.RandomState(0).permutation(len(labels))
    part = order[:1437] if train else order[1437:]
    return (images[part] / 16).astype(np.float32), labels[part].astype(np.int64)


def _digits() -> tuple[Array, Array]:
    """Read from scikit-learn's file, which takes 0.1 s: to import it takes 1.5 s."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise NoDigits("scikit-learn, which holds the UCI digits, is not installed")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",")
    except (OSError, ValueError) as error:
        raise NoDigits(f"scikit-learn, which holds the UCI digits, has none that can be read: {error}") from None
    return table[:, :-1], table[:, -1]


# -- parameters and buffers -------------------------------------------------------------------------------------------


@c.remembered
def plain_layers(case: c.TrainCase | c.SecondOrderCase) -> Sequence[tuple[str, c.Layer, int, bool]]:
    """Plain layers in execution order, each with its path, input width and mode."""
    widths = c.input_widths(case)

    def visit(layers: Sequence[c.Layer], prefix: str, training: bool) -> Iterator[Any]:
        for i, layer in enumerate(layers):
            path = f"{prefix}{i}"
            inner = layer.nested()
            if not inner:
                yield path, layer, widths[path], training
            for name, body in inner:
                yield from visit(body, f"{path}.{name}", training and not layer.quiet)

    return list(visit(case.model, "", True))


@c.remembered
def slots(case: c.TrainCase | c.SecondOrderCase) -> tuple[list[Slot], list[Slot]]:
    """Parameters (without the second names of tied ones) and buffers, in the order of the model."""
    parameters: list[Slot] = []
    buffers: list[Slot] = []
    for path, layer, width, _ in plain_layers(case):
        kind, frozen = type(layer).__name__, getattr(layer, "frozen", False)
        for name, shape in layer.parameters(width).items():
            parameters.append(Slot(f"{path}.{name}", shape, kind, frozen, layer.used))
        buffers.extend(Slot(f"{path}.{name}", shape, kind) for name, shape in layer.buffers(width).items())
    return parameters, buffers


def initial_state(case: c.TrainCase | c.SecondOrderCase) -> dict[str, Array]:
    """Value of every parameter and buffer before the first step, float32 unless the case has dtypes."""
    dtype = case.dtypes.model if isinstance(case, c.TrainCase) and case.dtypes is not None else "float32"
    rng = case.rng("weights")
    state: dict[str, Array] = {}
    layers = dict(c.walk(case.model))
    parameters, buffers = slots(case)
    for slot in (*parameters, *buffers):
        path, name = slot.name.rsplit(".", 1)
        value = layers[path].start(name, rng.standard_normal(slot.shape), case.weight_scale, case.keep_init)
        state[slot.name] = value.astype(dtype)
    return state


def built_state(case: c.TrainCase | c.SecondOrderCase, seed: int) -> dict[str, Array]:
    """What needle's constructors must give after ``np.random.seed(seed)``: the documented draws, in float64."""
    rng = c.generator("build", seed)
    built = ((path, layer.built(rng, width)) for path, layer, width, _ in plain_layers(case))
    return {f"{path}.{name}": value for path, values in built for name, value in values}


def masks(case: c.TrainCase | c.SecondOrderCase, steps: int) -> dict[str, Array]:
    """Dropout masks by path: bool of shape (steps, micro, rows, width), as ``np.random.seed(step seed)`` gives them."""
    found: dict[str, Array] = {}
    droppers = [(path, layer, width) for path, layer, width, on in plain_layers(case) if on and layer.draws]
    if not droppers:
        return found
    micro, rows = micro_batches(case), case.data.rows
    for path, _, width in droppers:
        found[path] = np.empty((steps, micro, rows, width), dtype=bool)
    for t in range(steps):
        rng = c.generator("masks", step_seed(case, t))
        for m in range(micro):
            for path, layer, width in droppers:
                found[path][t, m] = layer.mask(rng, (rows, width))
    return found


def step_seed(case: c.TrainCase | c.SecondOrderCase, step: int) -> int:
    """Seed of NumPy's global generator at the start of a step."""
    return case.seed_for(f"step {step}")


def evaluated_after(step: int, steps: int) -> bool:
    """Whether the model is also run in evaluation mode after a step: the first, every third, the last."""
    return step == 0 or step % 3 == 0 or step == steps - 1
