"""Training on real data, every step compared: the MLPResNet of the course on the UCI digits."""

from __future__ import annotations

from dataclasses import dataclass

from oracle.apart import Died, apart
from oracle.blame import named
from oracle.cases import case as c
from oracle.cases import inputs
from oracle.rules.training import judge_digits
from oracle.rules.verdict import Verdict
from oracle.runs.judgement import died, of_needle
from oracle.runs.result import Result
from oracle.systems.candidate import candidate

DIGITS_SECONDS = 600.0  # the run on real data takes 10 s


def digits_case(seed: int = 0, epochs: int = 6) -> c.TrainCase:
    """The MLPResNet of the course on the UCI digits: two residual blocks with BatchNorm and dropout."""
    rows = 64
    block = (c.Linear(32), c.BatchNorm(), c.ReLU(), c.Dropout(0.1), c.Linear(64), c.BatchNorm())
    model = (c.Linear(64), c.ReLU(), c.Residual(block), c.ReLU(), c.Residual(block), c.ReLU(), c.Linear(10))
    return c.TrainCase(
        model=model,
        data=c.Digits(rows),
        loss=c.SoftmaxLoss(),
        optimizer=c.SGD(lr=0.2, momentum=0.9, weight_decay=1e-3),
        seed=seed,
        steps=epochs * (1437 // rows),
        keep_init=True,
    )


@dataclass
class Digits:
    """What came of the run on real data."""

    result: Result
    steps: int
    tensors: int
    accuracy: float  # of needle, on 360 images that it was not trained on


def run_digits(seed: int) -> Digits:
    """Train on the digits, every step compared, and test what needle has learned."""
    case = digits_case(seed)
    inputs.digits(train=True)
    result = Result()
    heard = bytearray()
    try:
        verdict, accuracy = apart(_judge_digits, case, patience=DIGITS_SECONDS, heard=heard)
    except Died as death:
        if not of_needle(death):
            raise
        verdict, accuracy = Verdict(case, died(case, death)), float("nan")
    result.count(verdict)
    result.cases.clear()  # reported on its own, not among the generated cases
    result.coverage.clear()
    result.seconds.clear()
    return Digits(result, verdict.steps, verdict.tally.tensors, accuracy)


def _judge_digits(case: c.TrainCase) -> tuple[Verdict, float]:
    needle = candidate()
    verdict, accuracy = judge_digits(case, needle)
    return named(verdict, needle), accuracy
