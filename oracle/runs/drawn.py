"""A case as a diagram: what a template needs to draw it, containers nested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oracle.apart import plain
from oracle.cases import case as c
from oracle.cases.layers import Layer

MOST = 60  # layers that are drawn
DEEPEST = 6  # containers within each other
ACTIONS = 20  # of a program
VALUES = 6  # of an operand


@dataclass
class Box:
    """A layer, or what stands before or behind the model."""

    name: str
    about: str = ""
    at: str = ""  # path, or what it is
    guilty: bool = False  # the divergence is in it
    bodies: list[tuple[str, list[Box]]] = field(default_factory=list)


@dataclass
class Drawing:
    """A case from top to bottom."""

    above: list[Box]
    model: list[Box]
    below: list[Box]
    left_out: int = 0  # layers without a box


def drawing(case: c.Case, at: str = "") -> Drawing:
    """The case; ``at`` is the name of the tensor in which it diverges."""
    if isinstance(case, c.OpCase):
        return _of_op(case)
    whole = case.training if isinstance(case, c.ProgramCase) else case
    draw = _Model(c.input_widths(whole), _place(case, at))
    model = draw.boxes(case.model, "", 0)
    rows = f"{case.data.rows} x {case.data.features}"
    below = [Box(*_told(case.loss), at="loss")]
    if isinstance(case, c.TrainCase):
        steps = f"{case.steps} step{'s' * (case.steps > 1)}"
        below += [Box(*_told(part), at="then") for part in (case.clip, case.gap) if part is not None]
        below.append(Box(*_told(case.optimizer), at=steps))
    elif isinstance(case, c.ProgramCase):
        below.append(Box(*_told(case.optimizer), at=f"layers in a {case.held}"))
        below += [Box(*_told(action), at=f"action {i}") for i, action in enumerate(case.actions[:ACTIONS])]
        if len(case.actions) > ACTIONS:
            below.append(Box(f"… and {len(case.actions) - ACTIONS} more actions"))
    else:
        below.append(Box("second order", "the gradients' inner product with drawn tensors, differentiated"))
    return Drawing([Box(*_told(case.data, but=("rows", "features")), at=rows)], model, below, draw.left_out)


def _place(case: c.TrainCase | c.SecondOrderCase | c.ProgramCase, name: str) -> str:
    """The path of the layer that a tensor belongs to, the innermost one; "" if there is none."""
    name = name.partition("#")[0]
    paths = [path for path, _ in c.walk(case.model) if name == path or name.startswith(f"{path}.")]
    return max(paths, key=len, default="")


def _of_op(case: c.OpCase) -> Drawing:
    operands = []
    for i, operand in enumerate(case.operands):
        values = ", ".join(str(v) for v in operand.values[:VALUES]) + " …" * (len(operand.values) > VALUES)
        layout = "" if operand.layout == "C" else f" {operand.layout}"
        constant = ", no gradient" * (i in case.constants)
        operands.append(Box(f"{_shape(operand.shape)}{layout}", values, f"operand {i}{constant}"))
    attributes = ", ".join(f"{k}={v}" for k, v in case.attributes.items())
    times = {1: "once", 2: "twice", 3: "three times"}[case.order]
    return Drawing(
        operands,
        [Box(case.op, plain(attributes, 300), "operation", guilty=True)],
        [Box(_shape(case.result_shape), f"differentiated {times}", "result")],
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if shape else "a number"


def _told(part: Any, but: Sequence[str] = ()) -> tuple[str, str]:
    """Class and fields that are not at their defaults."""
    fields = part.__struct_fields__
    defaults: Mapping[str, Any] = dict(zip(reversed(fields), reversed(part.__struct_defaults__), strict=False))
    shown = [
        (n, getattr(part, n)) for n in fields if n not in but and (n not in defaults or getattr(part, n) != defaults[n])
    ]
    return type(part).__name__, plain(", ".join(f"{n}={v}" for n, v in shown), 300)


class _Model:
    def __init__(self, widths: Mapping[str, int], guilty: str) -> None:
        self.widths, self.guilty = widths, guilty
        self.left, self.left_out = MOST, 0

    def boxes(self, layers: Sequence[Layer], prefix: str, depth: int) -> list[Box]:
        """The boxes of a body."""
        made = []
        for i, layer in enumerate(layers):
            path = f"{prefix}{i}"
            if self.left <= 0 or depth >= DEEPEST:
                self.left_out += 1 + sum(len(list(c.walk(body))) for _, body in layer.nested())
                continue
            self.left -= 1
            name, about = _told(layer, but=(*layer.bodies.values(), "steps"))
            if isinstance(layer, c.Ops):
                about = plain(" → ".join(step.op for step in layer.steps), 300)
            bodies = [
                (prefix_.rstrip("."), self.boxes(body, f"{path}.{prefix_}", depth + 1))
                for prefix_, body in layer.nested()
            ]
            width = self.widths.get(path)
            at = path if width is None else f"{path}, {width} wide"
            made.append(Box(name, about, at, path == self.guilty, bodies))
        return made
