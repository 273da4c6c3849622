"""docs/check.md does what it says: its code runs, its first test fails as shown, and its picture is the command's."""

import re
from pathlib import Path

import numpy as np
import pytest

from oracle import check
from oracle.check import picture

PAGE = (Path(__file__).parents[3] / "docs" / "check.md").read_text("utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.S)
SHOWN = re.findall(r"```text\n(.*?)```", PAGE, re.S)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the root of a variance that has become negative
def test_the_tutorial_starts_with_a_failing_test_and_ends_with_a_fixed_one():
    there = {}
    exec(CODE[0], there)
    with pytest.raises(check.Difference) as caught:
        there["test_layer_norm"]()
    shown = SHOWN[0].splitlines()
    said = str(caught.value).splitlines()
    assert said[0] == shown[0]
    assert [text.split()[0] for text in said if text.startswith("  ") and text[2] != " "] == [
        text.split()[0] for text in shown if text.startswith("  ") and text[2] != " "
    ]
    assert "inputs     offset; this shows it again:" in said[-3]
    exec(CODE[1], there)
    there["test_layer_norm"]()


def test_the_rest_of_the_code_runs_and_would_fail():
    there = {}
    for block in CODE:
        exec(block, there)
    tests = [there[name] for name in ("test_gru_cell", "test_model", "test_gradients", "test_loop", "test_adam")]
    for test in tests:
        test()
    right = there["gru_cell"]

    def gru_cell(x, h, w_ih, w_hh):
        y, vjp = right(x, h, w_ih, w_hh)
        return y, lambda d: (*vjp(d)[:3], vjp(d)[3] * np.float32(1.01))

    there["gru_cell"] = gru_cell
    with pytest.raises(check.Difference, match=r"^gradient of w_hh \(input 3\) differs"):
        tests[0]()


def test_the_picture_is_what_the_command_draws():
    drawn, kept = picture.example(), SHOWN[1].rstrip("\n")
    assert [row.split("|")[0] for row in drawn.splitlines()] == [row.split("|")[0] for row in kept.splitlines()]
    assert all(any(mark in row for mark in "><y") and ":" in row for row in drawn.splitlines()[1:])
