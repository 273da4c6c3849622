"""docs/check.md does what it says: its code runs, its first test fails as shown, and its picture is the command's."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

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
    names = (
        "test_gru_cell",
        "test_two_outputs",
        "test_module",
        "test_folded",
        "test_own_backward",
        "test_gradients_of_weights",
        "test_model",
        "test_gradients",
        "test_loop",
        "test_adam",
    )
    assert set(names) == {name for name in there if name.startswith("test_")} - {"test_layer_norm"}
    tests = [there[name] for name in names]
    for test in tests:
        test()
    right = there["gru_cell"]

    def gru_cell(x, h, w_ih, w_hh):
        y, vjp = right(x, h, w_ih, w_hh)
        return y, lambda d: (*vjp(d)[:3], vjp(d)[3] * np.float32(1.01))

    there["gru_cell"] = gru_cell
    with pytest.raises(check.Difference, match=r"^gradient of w_hh \(input 3\) differs"):
        tests[0]()


def test_what_the_page_says_in_words():
    module = torch.nn.Linear(3, 2)  # weights that both know
    w, b = (p.detach().numpy() for p in module.parameters())
    given = check.op(lambda x: (x @ w.T + b, lambda g: g @ w), module, (5, 3))
    assert isinstance(given, float)
    assert str(given).splitlines()[1].startswith("output")
    with pytest.raises(check.Difference, match=r"^output differs"):
        check.op(lambda x: x @ w.T, module, (5, 3))
    seen, g = [], np.array([3, 1], np.float32)
    check.op(lambda x: (x * 2, lambda g: seen.append(g) or g * 2), lambda x: x * 2, g, cotangents=[g])
    assert np.array_equal(seen[0], g)
    several = {  # a tuple for a tuple, a dict for a dict
        tuple: (lambda x: (x * 2, x.astype(int), x), lambda x: (x * 2, x.int(), x * 1)),
        dict: (lambda x: {"a": x * 2, "n": x.astype(int), "b": x}, lambda x: {"a": x * 2, "n": x.int(), "b": x * 1}),
    }
    for kind, (out, torch_fn) in several.items():

        def vjp(g, kind=kind):
            seen.append(g)
            a, b = g.values() if kind is dict else g
            return a * 2 + b

        check.op(lambda x, out=out, vjp=vjp: (out(x), vjp), torch_fn, ("n",), kinds=["normal"], draws=3)
        assert isinstance(seen[-1], kind)
        assert len(seen[-1]) == 2


def test_the_picture_is_what_the_command_draws():
    drawn, kept = picture.example(), SHOWN[1].rstrip("\n")
    assert [row.split("|")[0] for row in drawn.splitlines()] == [row.split("|")[0] for row in kept.splitlines()]
    assert all(any(mark in row for mark in "><y") and ":" in row for row in drawn.splitlines()[1:])
