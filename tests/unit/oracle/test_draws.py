"""Cases are drawn past Hypothesis' engine, and are those that Hypothesis makes of the same choices."""

import random
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.control import BuildContext
from hypothesis.internal.conjecture.data import ConjectureData

from oracle.cases import case as c
from oracle.cases import corners, large, strategies
from oracle.cases.draw_dtypes import whole_cases
from oracle.cases.draw_programs import program_cases
from oracle.runs.draws import OP_NAMES, Choices, draw_from, independent


class Noted(Choices):
    """Choices that are taken down."""

    def __init__(self, rng):
        super().__init__(rng)
        self.made = []

    def draw_integer(self, *args, **kwargs):
        self.made.append(super().draw_integer(*args, **kwargs))
        return self.made[-1]

    def draw_boolean(self, *args, **kwargs):
        self.made.append(super().draw_boolean(*args, **kwargs))
        return self.made[-1]

    def draw_float(self, *args, **kwargs):
        self.made.append(super().draw_float(*args, **kwargs))
        return self.made[-1]


SOURCES = {
    "train": strategies.train_cases(),
    "second": strategies.second_order_cases(),
    "program": program_cases(),
    "whole": whole_cases(),
    "large": large.large_train_cases(),
    "operations": st.one_of(*(strategies.op_cases([name]) for name in OP_NAMES)),
    "long": st.one_of(*(large.long_op_cases(name) for name in OP_NAMES)),
    "dtypes": st.sampled_from(["add", "linear", "matmul"]).flatmap(strategies.dtype_cases),
    "corners": st.one_of(*(corners.corner_cases(*place) for place in dict.fromkeys(corners.CORNERS))),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_hypothesis_makes_the_same_case_of_the_same_choices(kind):
    source = SOURCES[kind]
    for seed in range(40 if kind == "operations" else 12):
        choices = Noted(random.Random(seed))
        with BuildContext(choices, wrapped_test=test_hypothesis_makes_the_same_case_of_the_same_choices):
            drawn = choices.draw(source)
        theirs = ConjectureData.for_choices(choices.made)
        with BuildContext(theirs, wrapped_test=test_hypothesis_makes_the_same_case_of_the_same_choices):
            assert theirs.draw(source) == drawn
        assert theirs.misaligned_at is None
        assert len(theirs.choices) == len(choices.made)


def test_a_choice_that_is_another_one_makes_another_case():
    """So the test above can fail."""
    choices = Noted(random.Random(0))
    with BuildContext(choices, wrapped_test=draw_from):
        drawn = choices.draw(SOURCES["train"])
    at = next(i for i, made in enumerate(choices.made) if made and isinstance(made, int))
    theirs = ConjectureData.for_choices([*choices.made[:at], 0, *choices.made[at + 1 :]], random=random.Random(0))
    with BuildContext(theirs, wrapped_test=draw_from):
        assert theirs.draw(SOURCES["train"]) != drawn


def test_what_a_filter_lets_not_through_is_drawn_anew():
    seldom = st.integers(0, 100).filter(lambda n: n % 10 == 0)
    found = independent(seldom, 200, 3)
    assert len(found) == 200
    assert set(found) == set(range(0, 101, 10))


def test_choices_are_alike_and_floats_have_their_ends():
    found = independent(st.tuples(st.sampled_from("abcd"), st.booleans(), st.floats(0.25, 4, width=32)), 4000, 5)
    letters, sides = (Counter(example[i] for example in found) for i in (0, 1))
    assert all(abs(count - 1000) < 150 for count in letters.values())
    assert abs(sides[True] - 2000) < 200
    assert {0.25, 4.0} <= {number for _, _, number in found}
    assert found[:50] == independent(
        st.tuples(st.sampled_from("abcd"), st.booleans(), st.floats(0.25, 4, width=32)), 50, 5
    )


def test_cases_of_a_seed_have_nothing_to_do_with_each_other():
    cases = independent(SOURCES["train"], 120, 7)
    assert len({case.digest for case in cases}) == 120
    assert len({(case.data.rows, str(case.model)) for case in cases}) > 114


def test_a_large_model_has_few_steps():
    cases = independent(SOURCES["train"], 400, 9)
    for case in cases:
        numbers = c.checked(case.model, case.data.rows, case.data.features).numbers
        assert case.steps <= 2 or case.steps * numbers <= 12_000
    assert {13, 6, 4, 3, 2, 1} <= {case.steps for case in cases}
