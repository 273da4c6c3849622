"""Hypothesis strategies for training runs in other dtypes: the model, the data, or both.

They are the usual runs, made tame where float16 would overflow. A model in float16 has no Adam: what is lost of the squares that it
keeps is within no bound of rule L.
"""

from __future__ import annotations

from hypothesis import strategies as st
from msgspec.structs import replace

from oracle.cases import case as c
from oracle.cases.blocks import Draw
from oracle.cases.drawing import choice, one_in
from oracle.cases.strategies import sgd, train_cases

_DTYPES = choice(
    (5, c.Dtypes("float64", "float64")), (4, c.Dtypes("float16", "float16")), (2, c.Dtypes("float32", "float64")),
    (2, c.Dtypes("float64", "float32")), (2, c.Dtypes("float16", "float32")), (2, c.Dtypes("float32", "float16")),
    (1, c.Dtypes("float16", "float64")), (1, c.Dtypes("float64", "float16")),
)  # fmt: skip
_LABELS = st.sampled_from(["int64", "int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64", "float32", "list"])
_LRS = st.sampled_from([0.1, 0.3, 0.01, None])


@st.composite
def whole_cases(draw: Draw) -> c.TrainCase:
    """Training runs in other dtypes."""
    case: c.TrainCase = draw(train_cases())
    assert isinstance(case.data, c.Data)
    dtypes = draw(_DTYPES)
    model = tuple(layer for layer in case.model if not _casts(layer))
    if not c.trains(model):
        model = (*model, c.Linear(3))
    if isinstance(case.loss, c.SoftmaxLoss):
        case = replace(case, loss=c.SoftmaxLoss(draw(_LABELS)))
    changes = {"model": model, "steps": min(case.steps, 3), "lr_changes": (), "gap": None, "dtypes": dtypes}
    if "float16" in (dtypes.model, dtypes.data):
        plain = replace(case.data, scale=1.0, offset=0.0, atoms=(), repeated_rows=False)
        optimizer = replace(sgd(draw), lr=draw(_LRS)) if dtypes.model == "float16" else case.optimizer
        if dtypes.model == "float16" and draw(one_in(3)):
            changes["clip"] = c.Clip(1e-3)  # by a factor that float16 has few digits for
        changes |= {"data": plain, "optimizer": optimizer, "weight_scale": min(case.weight_scale, 1.0)}
    return replace(case, **changes)


def _casts(layer: c.Layer) -> bool:
    """Whether it has a cast, or a block with one, somewhere inside."""
    return any(isinstance(x, c.Ops) and any(step.op == "cast" for step in x.steps) for _, x in c.walk((layer,)))
