"""One mistake of another needle must not hide another: what of a training run stands alone beside its first divergence."""

import pytest

from oracle.rules.training import independent
from oracle.rules.verdict import Divergence


def found(step, quantity, name="0.weight", rule="G"):
    return Divergence(step, quantity, name, rule, "")


WRONG = found(0, "gradient")
UPDATE, EVALUATION = found(0, "velocity", rule="L"), found(0, "evaluation", "1")


@pytest.mark.parametrize(
    ("first", "others", "told"),
    [
        (WRONG, [UPDATE, EVALUATION], [UPDATE, EVALUATION]),
        (WRONG, [UPDATE, found(0, "parameter", rule="L")], [UPDATE]),  # of one part, the first
        (UPDATE, [found(1, "activation", "0")], [found(1, "activation", "0")]),  # both start anew with every step
        (WRONG, [found(0, "adjoint"), found(1, "gradient")], []),  # may come of the first
        (found(0, "activation", "1"), [EVALUATION], []),  # the same layer, in the other mode
        (found(0, "activation", "0"), [found(0, "buffer", "1.running_mean")], []),  # made of what is wrong
        (WRONG, [found(0, "buffer", "1.running_mean")], [found(0, "buffer", "1.running_mean")]),
        (found(0, "gradient", rule="shape"), [UPDATE, EVALUATION], []),  # whatever comes of a wrong shape
        (found(0, "clipped", rule="L"), [UPDATE], []),  # made of what was clipped
        (WRONG, [found(0, "parameter", rule="exact")], []),  # a promise about bits may hang on the gradient
    ],
)  # fmt: skip
def test_what_stands_alone(first, others, told):
    assert independent(first, [first, *others]) == told
