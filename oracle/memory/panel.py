"""The fixed models of the memory session: name -> case. Their peaks have a baseline."""

from __future__ import annotations

import msgspec

from oracle.cases import case as c
from oracle.memory.probe import STEPS

_SGD = c.SGD(lr=0.01, momentum=0.9, weight_decay=1e-4)
_IMAGES = c.Data(rows=100, features=784)


def _mlp(optimizer: c.Optimizer = _SGD, clip: c.Clip | None = None) -> c.TrainCase:
    model = (c.Linear(100), c.ReLU(), c.Linear(10))
    return c.TrainCase(model, _IMAGES, c.SoftmaxLoss(), optimizer, seed=0, clip=clip)


def _resnet(norm: c.Layer, data: c.Data | c.Digits = _IMAGES, wide: int = 100, blocks: int = 3) -> c.TrainCase:
    """The MLPResNet of the course."""
    body = (c.Linear(wide // 2), norm, c.ReLU(), c.Dropout(0.1), c.Linear(wide), norm)
    model = (c.Linear(wide), c.ReLU(), *(c.Residual(body), c.ReLU()) * blocks, c.Linear(10))
    return c.TrainCase(model, data, c.SoftmaxLoss(), _SGD, seed=0)


def _deep() -> c.TrainCase:
    model = (c.Linear(16), c.ReLU()) * 100
    return c.TrainCase(model, c.Data(rows=16, features=16), c.SoftmaxLoss(), c.SGD(lr=1e-4, momentum=0.9), seed=0)


def _tied() -> c.TrainCase:
    model = (c.Linear(64), c.Tanh(), c.Linear(64), c.Tanh(), c.Linear(64, tie=1), c.Tanh(), c.Linear(10))
    return c.TrainCase(model, c.Data(rows=32, features=64), c.SoftmaxLoss(), _SGD, seed=0)


def _twice_differentiated() -> c.TrainCase:
    model = (c.Linear(32), c.Tanh(), c.LayerNorm(), c.Linear(10))
    return c.TrainCase(model, c.Data(rows=32, features=16), c.SoftmaxLoss(), _SGD, seed=0)


_OFF = c.Memory(evaluate=False)
_CASES: dict[str, tuple[c.TrainCase, c.Memory]] = {
    "MLP": (_mlp(), _OFF),
    "MLPResNet BatchNorm": (_resnet(c.BatchNorm()), _OFF),
    "MLPResNet LayerNorm": (_resnet(c.LayerNorm()), _OFF),
    "deep chain": (_deep(), _OFF),
    "tied weights": (_tied(), _OFF),
    "clipping": (_mlp(clip=c.Clip(0.25)), _OFF),
    "Adam": (_mlp(c.Adam(lr=1e-3)), _OFF),
    "create_graph": (_twice_differentiated(), c.Memory(evaluate=False, create_graph=True)),
    "eval in between": (_resnet(c.BatchNorm()), c.Memory()),
    "digits": (_resnet(c.BatchNorm(), c.Digits(64), 64, 2), c.Memory()),
}

PANEL = {
    name: msgspec.structs.replace(case, steps=STEPS, keep_init=True, memory=memory)
    for name, (case, memory) in _CASES.items()
}


def traced(case: c.TrainCase, allocators: str) -> c.TrainCase:
    """The case with other allocators traced."""
    memory = msgspec.structs.replace(case.memory or c.Memory(), allocators=allocators)
    return msgspec.structs.replace(case, memory=memory)
