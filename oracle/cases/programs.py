"""What follows from a program: its names, its state at the start, and the mode that each pass runs in. NumPy alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import inputs
from oracle.cases.known import SETTINGS, Known

Array = npt.NDArray[Any]


def start(case: c.ProgramCase) -> Known:
    """The state before the first action."""
    names, paths, run = names_of(case), switched(case), case.training
    added = late(case)
    kind = type(case.optimizer).__name__
    k = Known(case.seed, names, paths, late=added, places=replaceable(case), pairs=alike(case))
    k.optimizers = [(kind, [name for name in names if name not in added])]
    buffers = {slot.name for slot in inputs.slots(run)[1]}
    for name, value in inputs.initial_state(run).items():
        if case.alias(name) == name:
            k.values[f"{'buffer' if name in buffers else 'parameter'} {name}"] = value
    k.values |= {f"requires_grad {name}": True for name in names}
    k.values |= {f"mode {path}": True for path in paths}
    k.tuned = {path: tuple(given) for path, given in settings_of(case).items()}
    k.built = {f"setting {path} {n}": v for path, given in settings_of(case).items() for n, v in given.items()}
    k.values |= k.built
    for name, default in SETTINGS[kind].items():
        given = getattr(case.optimizer, name)
        k.values[f"optimizer 0: {name}"] = default if given is None else given
    return k


# settings of layers that a user may change between steps, with needle's defaults
TUNED: Mapping[type[c.Layer], Mapping[str, float]] = {
    c.Dropout: {"p": 0.5},
    c.BatchNorm: {"momentum": 0.1, "eps": 1e-5},
    c.LayerNorm: {"eps": 1e-5},
}


def settings_of(case: c.ProgramCase) -> dict[str, dict[str, float]]:
    """Path of a layer -> its settings, as it was built."""
    found = {}
    for path, layer in c.walk(case.model):
        if type(layer) in TUNED:
            given = {name: getattr(layer, name) for name in TUNED[type(layer)]}
            found[path] = {n: TUNED[type(layer)][n] if v is None else v for n, v in given.items()}
    return found


def training_now(case: c.ProgramCase, k: Known) -> c.TrainCase:
    """The training run with the settings of layers that are in force."""
    built = settings_of(case)
    now = {path: {n: k.values.get(f"setting {path} {n}", v) for n, v in given.items()} for path, given in built.items()}
    if now == built:
        return case.training

    def body(layers: Sequence[c.Layer], prefix: str) -> tuple[c.Layer, ...]:
        return tuple(one(layer, f"{prefix}{i}") for i, layer in enumerate(layers))

    def one(layer: c.Layer, path: str) -> c.Layer:
        changed = {field: body(getattr(layer, field), f"{path}.{name}") for name, field in layer.bodies.items()}
        given = now.get(case.alias(f"{path}.")[:-1], {})
        return replace(layer, **changed, **given)

    return replace(case.training, model=body(case.training.model, ""))


def batches(case: c.ProgramCase, before: int | None = None) -> inputs.Batches:
    """The batch of every pass, in the order in which loaders give the rows; ``before`` an action, that of the loaders before it."""
    found, t = inputs.batches(case.training), 0
    for action in case.actions[:before]:
        if isinstance(action, a.Loader):
            order = action.order(loader_seed(case, t), len(rows_left(case, found, t, action.more)[0]))
            for old, rows in zip(_columns(found), rows_left(case, found, t, action.more), strict=True):
                old[t:] = rows[order][: len(rows) - action.more].reshape(old[t:].shape)
        t += isinstance(action, a.Pass)
    return found


def rows_left(case: c.ProgramCase, found: inputs.Batches, t: int, more: int) -> list[Array]:
    """The data set of a loader before pass t: data and what is beside it, (rows, …); ``more`` rows stand at its end again."""
    rows = [column[t:, 0].reshape(-1, *column.shape[3:]) for column in _columns(found)]
    return [np.concatenate([column, column[:more]]) for column in rows]


def _columns(found: inputs.Batches) -> list[Array]:
    return [found.x, next(column for column in (found.labels, found.drawn) if column is not None)]


def loader_seed(case: c.ProgramCase, t: int) -> int:
    """Of NumPy's global generator, when the batches from pass t on are loaded."""
    return inputs.step_seed(case.training, t) + 1


def flowing(k: Known) -> list[str]:
    """The parameters that a backward pass reaches: all layers of a program are used."""
    return [name for name in k.parameters if k.values[f"requires_grad {name}"]]


def modes(case: c.ProgramCase, k: Known) -> Mapping[str, bool]:
    """Of every layer of the training run: whether it trains."""
    return {path: k.values.get(f"mode {case.alias(path + '.')[:-1]}", True) for path, _ in c.walk(case.training.model)}


def one_norm_of_two_evaluates(case: c.ProgramCase) -> bool:
    """Whether there is a pass in which one does, and another trains."""
    norms = {path for path, layer in c.walk(case.model) if isinstance(layer, c.BatchNorm)}
    training = set(norms)
    for action in case.actions:
        if isinstance(action, a.Evaluate):
            training = set(norms)
        elif isinstance(action, a.Mode):
            paths = switched(case)
            root = "" if action.part is None else paths[action.part % len(paths)]
            found = {path for path in norms if not root or a.within(root, path)}
            training = training | found if action.training else training - found
        elif isinstance(action, a.Pass) and training and training != norms:
            return True
    return False


def masks(case: c.ProgramCase, t: int, k: Known) -> dict[str, Array]:
    """Dropout masks of pass t, (1, 1, rows, width), as the global generator gives them to the layers that train."""
    run, found, training = training_now(case, k), {}, modes(case, k)
    rng = c.generator("masks", inputs.step_seed(run, t))
    for path, layer, width, _ in inputs.plain_layers(run):
        if layer.draws and training[path]:
            found[path] = layer.mask(rng, (run.data.rows, width))[None, None]
    return found


def switched(case: c.ProgramCase) -> list[str]:
    """Paths of the modules that can be switched between the modes; what a function stands for is no module."""
    functions = tuple(f"{i}." for i, layer in enumerate(case.model) if case.functions and function_of(layer))
    return [path for path, _ in c.walk(case.model) if not functions or not path.startswith(functions)]


def replaceable(case: c.ProgramCase) -> list[str]:
    """Paths of the layers that a fresh one can stand for: not what is applied twice, or shares a weight with another layer."""
    tied = {layer.tie for _, layer in c.walk(case.model) if isinstance(layer, c.Linear) and layer.tie is not None}
    shared, linears = set[str](), 0
    for path, layer in c.walk(case.model):
        if isinstance(layer, c.Linear):
            if layer.tie is not None or linears in tied:
                shared.add(path.partition(".")[0])
            linears += 1
    twice = None if case.again is None else case.again % len(case.model)
    return [str(i) for i in range(len(case.model)) if str(i) not in shared and i != twice]


def alike(case: c.ProgramCase) -> list[tuple[str, str]]:
    """Paths of layers with parameters that may change places: of the same kind, with the same settings and sizes."""
    own, widths = replaceable(case), c.input_widths(case.training)
    found = []
    for one, other in itertools.combinations(own, 2):
        layer = case.model[int(one)]
        same = layer == case.model[int(other)] and widths[one] == widths[other]
        found += [(one, other)] * (same and c.trains((layer,)))
    return found


def function_of(layer: c.Layer) -> str:
    """The op of a Residual around one activation, which may be given as a function; empty for other layers."""
    one = layer.body[0] if isinstance(layer, c.Residual) and len(layer.body) == 1 else None
    return str(getattr(one, "op", "")) if type(one).__name__ in c.ACTIVATIONS else ""


def last(case: c.ProgramCase) -> str:
    """The path of the last layer of the training run, whose output is the model's."""
    return str(len(case.training.model) - 1)


def late(case: c.ProgramCase) -> list[str]:
    """The parameters that the first optimizer does not have until they are added; one parameter it always has."""
    names = names_of(case)
    added = {names[action.parameter % len(names)] for action in case.actions if isinstance(action, a.AddParameter)}
    return [name for name in names if name in added][: len(names) - 1]


def names_of(case: c.ProgramCase) -> list[str]:
    """Names of the parameters, in the order of the model."""
    return [slot.name for slot in inputs.slots(case.training)[0] if case.alias(slot.name) == slot.name]


def kind_at(case: c.ProgramCase, index: int) -> str:
    """The kind of the optimizer that an action is about."""
    kinds = [type(case.optimizer).__name__]
    kinds += [action.optimizer for action in case.actions[:index] if isinstance(action, a.NewOptimizer)]
    place = getattr(case.actions[index], "optimizer", 0)
    return kinds[place % len(kinds)] if isinstance(place, int) else place
