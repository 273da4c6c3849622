"""What another needle does not offer is found out by trying, left out of the run, and listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oracle.apart import Died, apart, begin
from oracle.cases import case as c
from oracle.cases import strategies
from oracle.cases.actions import EXAMPLES, Pass, Refuse, Set, Step
from oracle.operations import OPERATIONS
from oracle.rules.judge import judge
from oracle.runs.draws import draw_from
from oracle.systems.candidate import candidate

TRY_SECONDS = 10.0  # for one operation, or a model of one layer
ENDLESS = 2  # tries that do not come back, after which no more is tried: it is offered, and for the run to find


def missing() -> dict[str, str]:
    """What cases may need and the needle under test does not offer: name as in the coverage -> what happened on trying it."""
    cases = apart(_to_try)
    found: dict[str, str] = {}
    endless = 0
    while cases and endless < ENDLESS:
        try:
            return found | apart(_tried, cases, patience=TRY_SECONDS, heard=bytearray())
        except Died as death:  # what ends the process is offered; what comes of it is for the run to find
            endless += death.endless
            before, cases = cases[: death.at], cases[death.at + 1 :]
            for one in before:  # what they came to is lost; none of them ended it
                try:
                    found |= apart(_tried, [one], patience=TRY_SECONDS, heard=bytearray())
                except Died:
                    continue
    return found


def _tried(cases: Sequence[tuple[str, c.Case]]) -> dict[str, str]:
    needle = candidate()
    found: dict[str, str] = {}
    for name, case in cases:
        begin()
        try:
            divergence = judge(case, needle).divergence
        except Exception:  # the run will count it
            continue
        failure = divergence.failure if divergence is not None else None
        if divergence is not None and name.startswith("program refuse") and divergence.quantity == "promise":
            found[name] = divergence.message  # the course does not ask that an lr of -1 is refused
        if failure is not None and failure.kind in (
            "AttributeError",
            "NotImplementedError",
            "TypeError",
            "ImportError",
        ):
            found[name] = f"{failure.kind} in {failure.phase}: {failure.message}"
    return found


def _to_try() -> list[tuple[str, c.Case]]:
    cases: list[tuple[str, c.Case]] = []

    def tried(name: str, case: c.Case) -> None:
        cases.append((name, case))

    for op in OPERATIONS:
        tried(f"op {op}", draw_from(strategies.op_cases([op]), 1, 0)[0])
    data, linear = c.Data(rows=2, features=2), c.Linear(2)

    def train(*model: c.Layer, **changes: Any) -> c.TrainCase:
        given: dict[str, Any] = {"data": data, "loss": c.WeightedSum(), "optimizer": c.SGD(), "seed": 0}
        return c.TrainCase(model=model, **(given | changes))

    for name, kind in c.LAYERS.items():
        if kind.offered:
            layer = kind((linear,)) if kind.bodies else kind.example(2)
            tried(f"layer {name}", train(layer) if isinstance(layer, c.Linear) or kind.bodies else train(linear, layer))
    tried("layer Linear, no bias", train(c.Linear(2, bias=False)))
    for loss in (c.SoftmaxLoss(), c.MeanSquare(), c.MSELoss(), c.Cotangent()):
        tried(f"loss {type(loss).__name__}", train(linear, loss=loss))
    tried("optimizer Adam", train(linear, optimizer=c.Adam()))
    tried("optimizer clipping", train(linear, clip=c.Clip()))
    for words, action in EXAMPLES.items():
        adam = isinstance(action, Set | Refuse) and action.setting in ("beta1", "beta2", "eps")
        optimizer: c.Optimizer = c.Adam() if adam else c.SGD(momentum=0.5)
        actions = (Pass(), Step(), Pass(), action, Step(), Pass(), Step())
        given: Any = {"data": data, "loss": c.WeightedSum(), "optimizer": optimizer, "seed": 0}
        tried(f"program {words}", c.ProgramCase(model=(linear,), actions=actions, **given))
    tried("backward second order", c.SecondOrderCase(model=(linear, c.Tanh()), data=data, loss=c.WeightedSum(), seed=0))
    return cases
