"""What another needle does not offer is found out by trying, and listed; and what it does otherwise by design.

Not offered is what has no name there, or raises NotImplementedError. An exception out of one of its own lines is another matter:
that is for the run to find.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from oracle.apart import Broken, Died, apart, begin
from oracle.cases import case as c
from oracle.cases import fitting, strategies
from oracle.cases.known import SETTINGS
from oracle.operations import OPERATIONS
from oracle.rules.judge import judge
from oracle.runs import hazards, loading
from oracle.runs.draws import draw_from
from oracle.systems.candidate import candidate
from oracle.systems.foreign import LOADER, Offer
from oracle.systems.ours.contract import Course, contract_of

TRY_SECONDS = 10.0  # for one operation, or a model of one layer
ENDLESS = 2  # tries that do not come back, after which no more is tried: it is offered, and for the run to find
TRIES = 3  # inputs that an operation is tried with, before it is given up


def offered() -> Offer:
    """What the needle under test offers; ours offers everything."""
    try:
        by_design = apart(_differs, patience=TRY_SECONDS, heard=bytearray())
    except (Died, Broken):
        by_design = []  # what ends the process is for the run to find
    if by_design is None:
        return Offer()
    offer = Offer(missing(), by_design, fitting.LEFT_OPEN)
    with contextlib.suppress(Died, Broken):
        if why := apart(loading.absent, patience=TRY_SECONDS, heard=bytearray()):
            offer.missing[LOADER] = why
    try:
        offer.left_open |= apart(_not_set, patience=TRY_SECONDS, heard=bytearray())
    except (Died, Broken):
        offer.left_open |= {fitting.PROGRAMS}
    if not by_design or any(row["matter"] == fitting.BROADCASTING for row in by_design):
        offer.left_open |= {fitting.BROADCASTING}
    if hazards.is_exponential():
        offer.left_open |= {fitting.PATHS}
    if not any(row["matter"] == fitting.HIGHER for row in by_design):
        offer.left_open |= {fitting.HIGHER, "backward second order"}
    return offer


def _not_set() -> frozenset[str]:
    """What programs cannot do: hyperparameters that no attribute holds, and all of them where a state cannot be found."""
    contract = contract_of(candidate())
    if not isinstance(contract, Course):
        return frozenset()
    found = {f"setting {kind}.{name}" for kind in SETTINGS for name in SETTINGS[kind] if not contract.held(kind, name)}
    found |= {fitting.UNBIASED} if contract.unbiased else set()
    found |= {fitting.SECOND} if contract.shared() else set()
    return frozenset(found | ({fitting.PROGRAMS} if contract.hidden() else set()))


def _differs() -> list[dict[str, str]] | None:
    """Rows of the contract, each with its place; None for ours."""
    contract = contract_of(candidate())
    if not isinstance(contract, Course):
        return None
    return [
        {"matter": d.matter, "ours": d.ours, "course": d.course, "done": d.done, "place": place}
        for d, place in contract.differs()
    ]


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


def _tried(cases: Sequence[tuple[str, Sequence[c.Case]]]) -> dict[str, str]:
    ndl = candidate()
    found: dict[str, str] = {}
    for name, several in cases:
        begin()
        reasons = [_absent(ndl, case) for case in several]
        if all(reasons):
            found[name] = reasons[0]
    return found


def _absent(ndl: Any, case: c.Case) -> str:
    """Why the case cannot be run: a name that does not exist, or that says so itself; empty if it can."""
    try:
        divergence = judge(case, ndl, peer_too=False).divergence
    except Exception:  # the run will count it
        return ""
    failure = divergence.failure if divergence is not None else None
    if failure is None or not failure.absent:
        return ""
    return f"{failure.kind} in {failure.phase}: {failure.message}"


def _to_try() -> list[tuple[str, list[c.Case]]]:
    cases: list[tuple[str, list[c.Case]]] = []

    def tried(name: str, *several: c.Case) -> None:
        cases.append((name, list(several)))

    for op in OPERATIONS:
        tried(f"op {op}", *draw_from(strategies.op_cases([op]), TRIES, 0))
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
    tried("optimizer SGD", train(linear))
    tried("optimizer Adam", train(linear, optimizer=c.Adam()))
    tried("optimizer clipping", train(linear, clip=c.Clip()))
    tried(fitting.CLIPPED_ADAM, train(linear, optimizer=c.Adam(), clip=c.Clip()))
    activation = next(iter(c.ACTIVATIONS.values()))()
    models: tuple[tuple[c.Layer, ...], ...] = ((linear, activation), (linear, c.LayerNorm()), (linear, c.ReLU()))
    second = [c.SecondOrderCase(model=model, data=data, loss=c.WeightedSum(), seed=0) for model in models]
    tried("backward second order", *second)
    return cases
