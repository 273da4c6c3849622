"""Where no verdict is given: numbers that are too large, and steps that rounding alone decides. NumPy alone.

Second-order cases, and operations that are differentiated again, end where a number is beyond 1e15, or one on the way to it beyond the
square of that (`second_order.judge`, `single_op.judge`); a run whose state is no longer finite ends by itself
(`oracle.systems.lockstep`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.systems.truth import DOMAIN, all_below

Array = npt.NDArray[Any]

COIN = 0.5  # rounding that moves a value by as much decides what comes of it
LOGIT_DOMAIN = 1e6


def out_of_domain(truth: Mapping[str, Mapping[str, Array]], logits: str | None, softmax: bool = True) -> Array:
    """Steps in which the truth is too large to be judged: |truth| >= 1e15, |logits| >= 1e6, or not finite; or in which
    rounding alone decides about a layer's output. ``logits`` names the last layer, and ``softmax`` says what follows it.
    """
    steps = _undetermined(truth, logits if softmax else None)
    if all(all_below(LOGIT_DOMAIN, v) for values in truth.values() for v in values.values()):  # nearly always
        return steps
    for quantity, values in truth.items():
        for name, value in values.items():
            # np.abs(nan) < limit is false: a replica that is not a number ends the domain too
            size = np.abs(value).max(axis=(0, *range(2, value.ndim)), initial=0)
            bad = ~(size < (LOGIT_DOMAIN if name == logits and quantity in ("activation", "evaluation") else DOMAIN))
            steps = steps | bad
    return steps


def large_data(x: Array) -> Array:
    """Steps, the first axis of x, whose data are too large: a norm in front squares them, and makes ordinary numbers of them in
    theory alone.
    """
    return np.array([not all_below(DOMAIN, step) for step in x])


def _undetermined(truth: Mapping[str, Mapping[str, Array]], logits: str | None) -> Array:
    """Steps in which a layer's output is nothing but amplified rounding: the noise moves it by 1/2 or more, and by an eighth
    of its largest element or more. For logits 1/2 is enough: probabilities then change by two thirds.

    A column that is constant, normalised and scaled up, is 0 in theory, and in float32 any number. What a softmax, a tanh
    or another norm makes of it is decided by the last bits, as if by a coin; no number of replicas throws all coins.
    """
    steps: Array = np.zeros(1, dtype=bool)
    for quantity in ("activation", "evaluation"):
        for name, value in truth.get(quantity, {}).items():
            if value.shape[0] == 1:
                continue
            high, low = value.max(axis=0), value.min(axis=0)
            if (high - low).max(initial=0) < COIN:  # nearly always
                continue
            exact, axes = value[0], tuple(range(1, value.ndim - 1))
            noise = np.maximum(high - exact, exact - low).max(axis=axes, initial=0)
            noise = np.where(np.isnan(noise), np.inf, noise)  # a step that is no number says nothing about the others
            if noise.max(initial=0) >= COIN:
                size = 0 if name == logits else np.abs(exact).max(axis=axes, initial=0)
                steps = steps | ((noise >= COIN) & (noise >= size / 8))
    return steps
