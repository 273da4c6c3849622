"""Hypothesis strategies for programs: a small model, and rounds of actions that each end with a pass and a step.

What an action does shows in the pass and the step that follow, so it is drawn before them, or between them where it needs
gradients. Each kind is drawn as often as its ``weight`` says.
"""

from __future__ import annotations

from hypothesis import strategies as st
from msgspec.structs import replace

from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import programs
from oracle.cases.blocks import Draw
from oracle.cases.drawing import BOOLEANS, HypothesisDraw, choice, integers, one_in

_SIZES = st.sampled_from([3, 2, 1, 4, 5])
_ROWS = st.sampled_from([2, 3, 4, 1, 6])
_SEEDS = st.integers(0, 2**16)
_KINDS = choice(
    (4, "linear"), (3, "activation"), (3, "batch norm"), (2, "layer norm"), (2, "dropout"), (1, "identity"),
    (1, "flatten"), (2, "residual"), (1, "function"), (1, "sequential"), (2, "relu"), (1, "branch"),
)  # fmt: skip
_ACTIVATIONS = st.sampled_from(list(c.ACTIVATIONS.values()))
_JOINS = st.sampled_from(["add", "multiply", "subtract"])
_DROPPED = st.sampled_from([0.5, 0.25, None])
_MOMENTA = st.sampled_from([None, 0.5])
_LOSSES = choice((2, c.SoftmaxLoss()), (1, c.WeightedSum()), (1, c.MeanSquare()), (1, c.Cotangent()))
_LRS = st.sampled_from([0.1, 0.3, 0.01, None])
_BETAS = st.sampled_from([0.9, 0.5, None, 0.0])
_DECAYS = st.sampled_from([None, 0.1, 0.5])
_HELD = choice((4, "sequential"), (1, "list"), (1, "dict"), (1, "ModuleList"))
_BETWEEN = st.lists(st.sampled_from(a.BETWEEN), max_size=2)
_BEFORE_STEP = choice((2, 0), (3, 1), (1, 2))
_STEPPED = choice((2, 1), (2, 2), (1, 0))
_SOME = st.sampled_from(a.BEFORE_STEP)


def _layers(
    draw: Draw, rows: int, width: int, most: int, depth: int, linears: list[tuple[int, int]]
) -> tuple[tuple[c.Layer, ...], int]:
    """``linears`` are the shapes of all before, in the order of the model."""
    layers: list[c.Layer] = []
    for _ in range(draw(integers(1, most))):
        kind = draw(_KINDS)
        if kind == "linear":
            out = draw(_SIZES) if depth == 0 else width
            same = [i for i, shape in enumerate(linears) if shape == (width, out)]
            tie = same[0] if same and draw(BOOLEANS) else None
            layers.append(c.Linear(out, bias=draw(BOOLEANS) or draw(BOOLEANS), tie=tie))
            linears.append((width, out))
            width = out
        elif kind == "activation":
            layers.append(draw(_ACTIVATIONS)())
        elif kind == "relu":
            layers.append(c.ReLU())
        elif kind == "batch norm" and rows > 1:
            layers.append(c.BatchNorm(momentum=draw(_MOMENTA)))
        elif kind == "layer norm":
            layers.append(c.LayerNorm())
        elif kind == "dropout":
            layers.append(c.Dropout(draw(_DROPPED)))
        elif kind in ("identity", "flatten"):
            layers.append(c.Identity() if kind == "identity" else c.Flatten())
        elif kind == "function":
            layers.append(c.Residual((draw(_ACTIVATIONS)(),)))
        elif kind in ("residual", "sequential") and depth == 0:
            body, _ = _layers(draw, rows, width, 2, 1, linears)
            layers.append(c.Residual(body) if kind == "residual" else c.Sequential(body))
        elif kind == "branch" and depth == 0:
            left, right = (_layers(draw, rows, width, 2, 1, linears)[0] for _ in range(2))
            layers.append(c.Branch(left, right, draw(_JOINS)))
    return tuple(layers), width


@st.composite
def program_cases(draw: Draw) -> c.ProgramCase:
    """Programs of two to four rounds."""
    rows, features = draw(_ROWS), draw(_SIZES)
    layers, width = _layers(draw, rows, features, 4, 0, [])
    if not c.trains(layers):
        layers = (*layers, c.Linear(width))
    optimizer: c.Optimizer
    if draw(one_in(4)):
        optimizer = c.Adam(lr=draw(_LRS), weight_decay=draw(_DECAYS))
    else:
        optimizer = c.SGD(lr=draw(_LRS), momentum=draw(_BETAS), weight_decay=draw(_DECAYS))
    case = c.ProgramCase(
        model=layers,
        data=c.Data(rows=rows, features=features),
        loss=draw(_LOSSES),
        optimizer=optimizer,
        seed=draw(_SEEDS),
        actions=(a.Pass(),),
        held=draw(_HELD),
        functions=draw(BOOLEANS),
        weight_scale=1.0,
        keep_init=draw(BOOLEANS),
    )
    tuned = tuple(sorted({name for given in programs.settings_of(case).values() for name in given}))
    plan = a.Plan(
        len(programs.names_of(case)), len(programs.switched(case)), [type(optimizer).__name__], tuned=tuned, rows=rows
    )
    choose = HypothesisDraw(draw)
    actions: list[a.Action] = []
    for round_ in range(draw(integers(2, 4))):
        if round_ or draw(one_in(3)):
            actions += [kind.drawn(choose, plan) for kind in draw(_BETWEEN)]
        actions.append(a.Pass.drawn(choose, plan))
        actions += [draw(_SOME).drawn(choose, plan) for _ in range(draw(_BEFORE_STEP))]
        actions.append(a.Step.drawn(choose, plan))
        actions += [a.Advance.drawn(choose, plan) for _ in range(draw(_STEPPED) if plan.scheduled else 0)]
    case = replace(case, actions=tuple(actions))
    if draw(one_in(3)):
        try:
            return replace(case, again=draw(integers(0, len(layers) - 1)))
        except c.CaseError:
            pass  # a layer that cannot be applied twice
    return case
