"""Guards of what models and training runs reach: wrong for one layer, one setting, one kind of data, one way to go back.

What is in a training run and in no program of a user is that somebody looks at the layers (`seen.ModelCall.hooked`); a run of
second order never makes a step, and differentiates its gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from needle import nn, optim
from oracle.cases.features import FLOATS, LABEL_DTYPES, PARAMETERS, SWITCHES
from oracle.trust.guards.guard import Guards
from oracle.trust.guards.seen import Layer, Loss, ModelCall, Update, Walk, kind_of

guard = Guards()
Array = Any

# -- layers


def _own(module: Any) -> bool:
    """Whether a user has written its class."""
    return type(module).__module__.partition(".")[0] != "needle"


def _bare(module: Any) -> bool:
    return _own(module) and not module.modules_in()[1:]


def _frozen(m: Any) -> bool:
    return bool(m.parameters()) and not any(p.requires_grad for p in m.parameters())


def _of(kind: type, when: Callable[[Any], bool] = lambda m: True) -> Callable[[Layer], bool]:
    return lambda f: type(f.module) is kind and when(f.module)


LAYERS: dict[str, Callable[[Layer], bool]] = {
    name: _of(getattr(nn, called))
    for name, called in {
        "Linear": "Linear", "Conv": "Conv", "ReLU": "ReLU", "Tanh": "Tanh", "Sigmoid": "Sigmoid", "Softplus": "Softplus",
        "Softmax": "Softmax", "Identity": "Identity", "Flatten": "Flatten", "BatchNorm": "BatchNorm1d", "LayerNorm": "LayerNorm1d",
        "Dropout": "Dropout", "Residual": "Residual",
    }.items()
}  # fmt: skip
LAYERS |= {
    "Linear, tied": lambda f: type(f.module) is nn.Linear and is_tied(f),
    "Linear, frozen": lambda f: f.hooked and _of(nn.Linear, _frozen)(f),
    "Linear, no bias": _of(nn.Linear, lambda m: m.bias is None),
    "Conv, strided": _of(nn.Conv, lambda m: m.stride > 1),
    "Conv, padded": _of(nn.Conv, lambda m: m.padding > 0),
    "Conv, channels": _of(nn.Conv, lambda m: m.in_channels > 1),
    "Conv, no bias": _of(nn.Conv, lambda m: m.bias is None),
    "BatchNorm, frozen": lambda f: f.hooked and _of(nn.BatchNorm1d, _frozen)(f),
    "LayerNorm, frozen": lambda f: f.hooked and _of(nn.LayerNorm1d, _frozen)(f),
    "Sequential": lambda f: type(f.module) is nn.Sequential and type(f.parent) is nn.Sequential and f.module.training,
    "Eval": lambda f: f.hooked and type(f.module) is nn.Sequential and f.parent.training and not f.module.training,
    "Branch": lambda f: _two_parts(f.module),
    "Unused": lambda f: _bare(f.module) and bool(f.module.parameters()),
    "Ops": lambda f: _bare(f.module) and not f.module.parameters() and not getattr(f.module, "parts", True),
}


def _two_parts(m: Any) -> bool:
    return _own(m) and len(m.modules_in()) > 2 and (len(getattr(m, "parts", ())) == 2 or hasattr(m, "join"))


def is_tied(f: Layer) -> bool:
    """Whether another Linear of the model has the weight."""
    return sum(type(m) is nn.Linear and m.weight is f.module.weight for m in f.root.modules_in()) > 1


for _name, _when in LAYERS.items():
    guard(f"layer {_name}", "layer", _when)


def _twice(when: Callable[[Layer], bool]) -> Callable[[Walk], bool]:
    return lambda w: w.order > 0 and w.model is not None and w.model.hooked and any(when(m) for m in w.model.modules())


for _name, _when in LAYERS.items():
    guard(f"second {_name}", "walk", _twice(_when))

# -- losses

MEAN_SQUARE = ("DivScalar", "Summation", "PowerScalar")


def _weighted(w: Walk) -> bool:
    return w.g is None and w.root_ops[:2] == ("Summation", "EWiseMul") and w.beside == "constant"


def first(when: Callable[[Walk], bool]) -> Callable[[Walk], bool]:
    """Of the gradient of a loss over a model."""
    return lambda w: w.order == 0 and w.model is not None and when(w)


_LOSSES: dict[str, Callable[[Walk], bool]] = {
    "SoftmaxLoss": lambda w: w.root_ops[:1] == ("SoftmaxCrossEntropy",),
    "MeanSquare": lambda w: w.root_ops == MEAN_SQUARE,
    "MSELoss": lambda w: (
        w.root_ops == ("DivScalar", "Summation", "EWiseMul") or w.root_ops[:2] == ("Cast", "DivScalar")
    ),
    "WeightedSum": _weighted,
    "Cotangent": lambda w: w.g is not None,
}
for _name, _loss in _LOSSES.items():
    guard(f"loss {_name}", "walk", first(_loss))
    guard(f"second {_name}", "walk", first(lambda w, loss=_loss: w.create and w.model.hooked and loss(w)))  # type: ignore[misc]
for _dtype in LABEL_DTYPES:
    if _dtype == "list":
        guard("loss SoftmaxLoss, list", "loss", lambda f: f.world.hooked and isinstance(f.target, list))
    else:

        def _labelled(f: Loss, dtype: str = _dtype) -> bool:
            return (
                f.world.hooked and isinstance(f.module, nn.SoftmaxLoss) and str(getattr(f.target, "dtype", "")) == dtype
            )

        guard(f"loss SoftmaxLoss, {_dtype}", "loss", _labelled)

# -- optimizers


def update(kind: str, when: Callable[[Update], bool]) -> Callable[[Update], bool]:
    """In a training run, of an optimizer of this kind, or of any."""
    return lambda f: f.hooked and kind in ("", type(f.optimizer).__name__) and when(f)


def within(name: str, low: float, high: float, kind: str = "") -> Callable[[Update], bool]:
    """A setting above the lower limit and up to the other, as it was given to the constructor."""
    return update(kind, lambda f: name in f.given and low < f.given[name] <= high)


def default(name: str, kind: str = "") -> Callable[[Update], bool]:
    """A setting that was not given."""
    return update(kind, lambda f: name not in f.given)


INF = float("inf")
guard("optimizer SGD", "step", update("SGD", lambda f: True))
guard("optimizer Adam", "step", update("Adam", lambda f: True))
guard("optimizer clipping", "clip", update("", lambda f: True))


def _gap(f: Update) -> bool:
    held = f.optimizer.u if isinstance(f.optimizer, optim.SGD) else f.optimizer.m
    return any(p.grad is None and p in held for p in f.optimizer.params)


guard("optimizer SGD, gap", "step", update("SGD", _gap))
guard("optimizer Adam, gap", "step", update("Adam", _gap))
guard("lr default", "step", default("lr"))
guard("lr to 0.001", "step", within("lr", -1, 0.001))
guard("lr to 0.1", "step", within("lr", 0.001, 0.1))
guard("lr above 0.1", "step", within("lr", 0.1, INF))
guard("lr changed", "step", update("", lambda f: f.optimizer.lr != f.given.get("lr", 0.01)))
guard("momentum default", "step", default("momentum", "SGD"))
guard("momentum 0", "step", within("momentum", -1, 0, "SGD"))
guard("momentum to 0.9", "step", within("momentum", 0, 0.9, "SGD"))
guard("momentum above 0.9", "step", within("momentum", 0.9, 1, "SGD"))
guard("momentum with decay", "step", update("SGD", lambda f: f.optimizer.momentum > 0 and f.optimizer.weight_decay > 0))
guard("decay default", "step", default("weight_decay", "SGD"))
guard("decay 0", "step", within("weight_decay", -1, 0, "SGD"))
guard("decay to 0.01", "step", within("weight_decay", 0, 0.01, "SGD"))
guard("decay above 0.01", "step", within("weight_decay", 0.01, INF, "SGD"))
guard(
    "decay without momentum",
    "step",
    update("SGD", lambda f: f.optimizer.momentum == 0 and f.optimizer.weight_decay > 0),
)
guard("adam beta1 default", "step", default("beta1", "Adam"))
guard("adam beta1 0", "step", within("beta1", -1, 0, "Adam"))
guard("adam beta1 given", "step", within("beta1", 0, 1, "Adam"))
guard("adam beta2 default", "step", default("beta2", "Adam"))
guard("adam beta2 to 0.9", "step", within("beta2", -1, 0.9, "Adam"))
guard("adam beta2 above 0.9", "step", within("beta2", 0.9, 1, "Adam"))
guard("adam eps default", "step", default("eps", "Adam"))
guard("adam eps to 1e-8", "step", within("eps", 0, 1e-8, "Adam"))
guard("adam eps above 1e-8", "step", within("eps", 1e-8, INF, "Adam"))
guard("adam decay default", "step", default("weight_decay", "Adam"))
guard("adam decay 0", "step", within("weight_decay", -1, 0, "Adam"))
guard("adam decay given", "step", within("weight_decay", 0, INF, "Adam"))
guard("clip none", "step", update("", lambda f: all(kind_of(e) != "clip" for e in f.world.since("reset"))))
guard("clip default", "clip", update("", lambda f: not f.args))
guard("clip below 0.25", "clip", update("", lambda f: bool(f.args) and f.args[0] <= 0.25))
guard("clip above 0.25", "clip", update("", lambda f: bool(f.args) and f.args[0] > 0.25))

# -- models, as a training run has them


def training(when: Callable[[ModelCall, Walk], bool]) -> Callable[[Walk], bool]:
    """Of a backward pass that no graph is asked of, over a model whose layers are looked at."""
    return lambda w: w.order == 0 and not w.create and w.model is not None and w.model.hooked and when(w.model, w)


def some(kind: type, when: Callable[[Any, Walk], bool]) -> Callable[[Walk], bool]:
    """Where a layer is such."""
    return training(lambda m, w: any(type(f.module) is kind and when(f.module, w) for f in m.modules()))


def norms(when: Callable[[Any, Walk], bool]) -> Callable[[Walk], bool]:
    """Where a norm is such."""
    return training(lambda m, w: any(isinstance(f.module, _NORMS) and when(f.module, w) for f in m.modules()))


_NORMS = (nn.BatchNorm1d, nn.LayerNorm1d)


def _layer(name: str, low: float, high: float) -> Callable[[Any, Walk], bool]:
    return lambda n, w: low < w.world.given[n].get(name, -2) <= high


def _lacks(name: str) -> Callable[[Any, Walk], bool]:
    return lambda n, w: name not in w.world.given[n]


guard("norm eps default", "walk", norms(_lacks("eps")))
guard("norm eps given", "walk", norms(_layer("eps", 0, 1)))
guard("norm momentum default", "walk", some(nn.BatchNorm1d, _lacks("momentum")))
guard("norm momentum 0", "walk", some(nn.BatchNorm1d, _layer("momentum", -1, 0)))
guard("norm momentum between", "walk", some(nn.BatchNorm1d, _layer("momentum", 0, 0.999)))
guard("norm momentum 1", "walk", some(nn.BatchNorm1d, _layer("momentum", 0.999, 1)))


def _begins(m: ModelCall, *kinds: type) -> bool:
    return bool(m.layers) and isinstance(m.layers[0][0](), kinds)


guard("norm first", "walk", training(lambda m, w: _begins(m, *_NORMS)))
for _norm in _NORMS:
    _name = {"BatchNorm1d": "BatchNorm", "LayerNorm1d": "LayerNorm"}[_norm.__name__]
    _far = lambda m, w, kind=_norm: _begins(m, kind) and m.x.size >= 8 and abs(np.median(m.x)) > 60  # noqa: E731
    guard(f"norm {_name} first, offset 100", "walk", training(_far))
    guard(f"norm {_name} on 1 feature", "walk", some(_norm, lambda n, w: n.dim == 1))
guard("dropout default", "walk", some(nn.Dropout, _lacks("p")))
guard("dropout 0", "walk", some(nn.Dropout, lambda n, w: n.p == 0))
guard("dropout between", "walk", some(nn.Dropout, lambda n, w: 0 < w.world.given[n].get("p", 0) <= 0.999))
guard("dropout 1", "walk", some(nn.Dropout, lambda n, w: n.p == 1))
guard("mode nested eval", "walk", some(nn.Sequential, lambda n, w: not n.training))
guard("mode BatchNorm in nested eval", "walk", some(nn.BatchNorm1d, lambda n, w: not n.training))
guard("mode Dropout in nested eval", "walk", some(nn.Dropout, lambda n, w: not n.training))
guard("mode eval between steps", "walk", training(lambda m, w: w.world.steps > 0))
guard("mode BatchNorm trains again", "walk", some(nn.BatchNorm1d, lambda n, w: w.world.steps > 0 and n.training))
guard("mode Dropout trains again", "walk", some(nn.Dropout, lambda n, w: w.world.steps > 0 and n.training))
guard("steps above 6", "walk", training(lambda m, w: w.world.steps > 5))


def _walks(f: Update) -> list[Walk]:
    """The backward passes of this step over a model whose layers are looked at."""
    return [e for e in f.world.since("step") if isinstance(e, Walk) and e.model is not None and e.model.hooked]


guard("backward once", "step", update("", lambda f: len(_walks(f)) == 1))


def _second_time(m: ModelCall, w: Walk) -> bool:
    """The first one's gradients are overwritten."""
    last = w.world.past[-1]
    return isinstance(last, Walk) and last.retain and last.model is m


guard("backward twice", "walk", training(_second_time))
guard("backward accumulate", "step", update("", lambda f: len({id(w.model) for w in _walks(f)}) > 1))
guard("backward to the input", "walk", training(lambda m, w: m.x_asks))
guard("backward fan-out", "walk", some(nn.Residual, lambda n, w: True))


def _residual_first(n: Any, w: Walk) -> bool:
    inner: tuple[Any, ...] = getattr(n.fn, "modules", ())
    return bool(inner) and type(inner[0]) is nn.Residual


guard("backward Residual first in a Residual", "walk", some(nn.Residual, _residual_first))
guard("backward second order", "walk", lambda w: w.order > 0 and w.model is not None and w.model.hooked)

# -- how a run starts


def _start(when: Callable[[Any], bool], *kinds: type) -> Callable[[Walk], bool]:
    return training(
        lambda m, w: w.world.steps == 0 and any(isinstance(f.module, kinds) and when(f.module) for f in m.modules())
    )


def _as_built(n: Any) -> bool:
    return bool(n.dim > 1 and (n.weight.numpy() == 1).all() and (n.bias.numpy() == 0).all())


def _size(n: Any) -> float:
    """Of the weights beside 1 / √inputs; no number where they are few."""
    a = n.weight.numpy().astype(np.float64)
    return float(np.sqrt((a**2).mean() * len(a))) if a.size >= 16 else float("nan")


guard("start norms as built", "walk", _start(_as_built, *_NORMS))
guard("start norms drawn", "walk", _start(lambda n: bool((n.weight.numpy() != 1).all()), *_NORMS))
guard("start weights 0", "walk", _start(lambda n: not n.weight.numpy().any(), nn.Linear))
guard("start small weights", "walk", _start(lambda n: 0.03 < _size(n) < 0.25, nn.Linear))
guard("start large weights", "walk", _start(lambda n: _size(n) > 2.5, nn.Linear))
guard("start saturated", "walk", training(lambda m, w: abs(m.scaled) >= 100))

# -- batches and parameters

guard("batch 1 row", "walk", training(lambda m, w: len(m.x) == 1))
guard("batch 1 feature", "walk", training(lambda m, w: m.x.shape[1] == 1))
guard("batch 1 class", "walk", training(lambda m, w: m.classes == 1))
guard("batch rows = features", "walk", training(lambda m, w: m.x.shape[0] == m.x.shape[1]))
guard("batch above 32 rows", "walk", training(lambda m, w: len(m.x) > 32))
guard("batch above 32 features", "walk", training(lambda m, w: m.x.shape[1] > 32))
guard("batch above 64 rows", "walk", training(lambda m, w: len(m.x) > 64))
guard("batch above 1,024 rows", "walk", training(lambda m, w: len(m.x) > 1024))
guard("batch above 64 features", "walk", training(lambda m, w: m.x.shape[1] > 64))
guard(
    "batch labels above 63",
    "loss",
    lambda f: f.world.hooked and isinstance(f.module, nn.SoftmaxLoss) and f.out.shape[1] > 64,
)


def _largest(m: ModelCall) -> int:
    return max((p.size for p in m.root().parameters()), default=0)


for _limit in PARAMETERS:
    guard(SWITCHES[_limit][0], "walk", training(lambda m, w, limit=_limit: _largest(m) <= limit))  # type: ignore[misc]
    guard(SWITCHES[_limit][1], "walk", training(lambda m, w, limit=_limit: _largest(m) > limit))  # type: ignore[misc]
for _model in FLOATS:
    for _data in FLOATS:
        if (_model, _data) != ("float32", "float32"):

            def _mixed(m: ModelCall, w: Walk, model: str = _model, data: str = _data) -> bool:
                return m.x_dtype == data and all(str(p.dtype) == model for p in m.root().parameters())

            guard(f"model {_model} on {_data} data", "walk", training(_mixed))

# -- data: what can be told from the numbers of a batch


def data(when: Callable[[Array], Any]) -> Callable[[Walk], bool]:
    """Of a batch such as this."""
    return training(lambda m, w: bool(when(m.x.astype(np.float64))))


def _spread(x: Array) -> float:
    """The standard deviation of most; no number where there are few."""
    if x.shape[1] < 8 or x.size < 24:
        return float("nan")
    low, high = np.quantile(x, (0.25, 0.75))
    return float(high - low) / 1.35


def _middle(x: Array) -> float:
    return float(np.median(x)) if x.shape[1] >= 4 and x.size >= 12 else float("nan")


def _whole(x: Array) -> Array:
    return x == np.round(x)


def _distinct(x: Array) -> int:
    return len(np.unique(x))


def _rows_alike(x: Array) -> bool:
    return bool(len(x) > 2 and (x == x[0]).all() and _distinct(x[0]) > 2)


def _column_alike(x: Array) -> bool:
    others = x.shape[1] > 1 and len(x) >= 4 and not _whole(x[:, 1:]).any() and _distinct(x[:, 1]) == len(x)
    return bool(others and (x[:, 0] == x[0, 0]).all())


def _shifted_by_1(x: Array) -> bool:
    close, spread = np.abs(x - 1), _spread(x)
    narrow = x.shape[1] >= 3 and _distinct(x) > 2 and np.quantile(close, 0.9) < 0.05
    return bool(
        narrow
        or (
            x.size >= 200
            and x.shape[1] >= 16
            and len(x) > 2
            and not _rows_alike(x)
            and spread < 1.5
            and 0.6 < np.median(x) < 1.4
        )
    )


guard("data scale below 1", "walk", data(lambda x: 0.002 < _spread(x) < 0.05))
guard("data scale above 1", "walk", data(lambda x: _spread(x) > 10))
guard("data offset to 1", "walk", data(_shifted_by_1))
guard("data offset to 100", "walk", data(lambda x: 60 < _middle(x) < 140))
guard("data offset above 100", "walk", data(lambda x: _middle(x) < -800))
guard("data repeated rows", "walk", data(_rows_alike))
guard("data constant column", "walk", data(_column_alike))
guard("data whole numbers", "walk", data(lambda x: _whole(x).all() and _distinct(x) > 4))


def _again(m: ModelCall, w: Walk) -> bool:
    steps = [k for k, e in enumerate(w.world.past) if kind_of(e) == "step"]
    earlier = [e for e in w.world.past[: steps[-1]] if isinstance(e, ModelCall)] if steps else []
    odd = _distinct(m.x) > max(6, m.x.size // 4) and not _whole(m.x).all()
    return bool(odd and any(e.hooked and e.training and np.array_equal(e.x, m.x) for e in earlier))


guard("data same batch", "walk", training(_again))


def _atom(*values: float) -> Callable[[Walk], bool]:
    """A round number among numbers that are not round, and far from it where it is large."""

    def there(x: Array, v: float) -> bool:
        return bool((x == np.float32(v)).any()) and (abs(v) < 1 or abs(np.median(x) - v) > 0.5 * abs(v))

    return training(lambda m, w: _odd(m.x) and any(there(m.x, v) for v in values))


def _odd(x: Array) -> bool:
    return bool((~_whole(x)).mean() > 0.5 and x.size > 1 and str(x.dtype) == "float32")


guard("data atom 0", "walk", _atom(0.0))
guard("data atom below 1", "walk", _atom(1e-3))
guard("data atom 1", "walk", _atom(1.0, -1.0))
guard("data atom to 100", "walk", _atom(100.0, -100.0))
guard("data atom above 100", "walk", _atom(1e4))
