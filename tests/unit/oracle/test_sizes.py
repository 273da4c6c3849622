"""Every size at which needle does something else has a name, and cases on both sides of it."""

import ast
from pathlib import Path

import pytest

from oracle.cases import case as c
from oracle.cases import coverage, features
from oracle.runs.draws import draw

NEEDLE = Path(__file__).parents[3] / "needle"
FILES = ("autograd.py", "chain.py", "nn.py", "ops.py", "optim.py")
LEAST = 32  # smaller numbers are shapes and powers


def numbers(node):
    return [
        n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and type(n.value) is int and n.value >= LEAST
    ]


def named(tree):
    """The numbers behind names in capitals."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets = [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            if all(name.strip("_").isupper() for name in targets):
                yield from numbers(node.value)


def compared(tree):
    """The numbers that something is compared with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield from numbers(node)


def test_every_switch_of_needle_has_a_name_and_a_label_on_each_side():
    trees = {name: ast.parse((NEEDLE / name).read_text("utf-8")) for name in FILES}
    for name, tree in trees.items():
        assert not list(compared(tree)), f"needle/{name} compares with a bare number: give it a name in capitals"
    found = {number for tree in trees.values() for number in named(tree)}
    assert {1024, 128, 20_480} <= found
    missing = found - features.SWITCHES.keys()
    assert not missing, (
        f"needle does something else at {missing}: name two labels in features.SWITCHES, and draw both sides"
    )
    assert not features.SWITCHES.keys() - found, "these are no switches any more"
    assert {label for sides in features.SWITCHES.values() for label in sides} <= set(coverage.LABELS)


def test_a_bare_number_and_a_new_name_would_be_seen():
    tree = ast.parse("_LIMIT = 4096\n_A, _B = 100, 7\nsmall = 500\ndef f(x):\n    return x if x.size <= 777 else 2 * x")
    assert sorted(named(tree)) == [100, 4096]
    assert list(compared(tree)) == [777]


def test_both_sides_of_every_switch_are_drawn_by_a_short_run():
    cases = [case for i in range(48) for kind in ("long", "large") for case in draw(kind, 4, i, i)]
    reached = {label for case in cases for label in coverage.covered(case)}
    assert {label for sides in features.SWITCHES.values() for label in sides} <= reached


def of_op(op, shape, **attributes):
    return c.OpCase(op, (c.Operand(shape, (0.5, -1.0), cycled=True),), attributes)


@pytest.mark.parametrize(
    ("switch", "case"),
    [
        (features.LONG_AXIS, lambda n: of_op("exp", (n,))),
        (features.FEW_CLASSES, lambda n: of_op("softmax_loss", (2, n), labels=(1, 1))),
        (features.FEW_LABELS, lambda n: of_op("softmax_loss", (n, 3), labels=(0,) * n)),
        (features.ZEROS_AT_HAND, lambda n: of_op("relu", (n,))),
        *[(n, lambda n: train(n)) for n in features.PARAMETERS],
    ],
)
def test_what_is_as_large_as_a_switch_is_on_its_first_side_and_one_more_on_the_other(switch, case):
    sides = features.SWITCHES[switch]
    assert sides[0] in coverage.covered(case(switch))
    assert sides[1] not in coverage.covered(case(switch))
    assert sides[1] in coverage.covered(case(switch + 1))
    assert sides[0] not in coverage.covered(case(switch + 1))


def train(parameter):
    """A training run whose largest parameter, a weight of 1 x n, has that many elements."""
    return c.TrainCase((c.Linear(parameter),), c.Data(rows=1, features=1), c.WeightedSum(), c.SGD(), seed=1, steps=1)


def test_an_axis_of_whole_blocks_has_no_rest():
    whole, rest = features.SWITCHES[features.BLOCK]
    assert whole in coverage.covered(of_op("exp", (features.LONG_AXIS + features.BLOCK,)))
    assert rest in coverage.covered(of_op("exp", (features.LONG_AXIS + features.BLOCK + 1,)))
    assert not {whole, rest} & coverage.covered(of_op("exp", (features.LONG_AXIS,)))


def test_long_cases_are_files_like_any_other():
    cases = [case for i in range(6) for kind in ("long", "large") for case in draw(kind, 4, i, i)]
    assert all(c.decode(c.encode(case)) == case for case in cases)
    assert max(len(c.encode(case)) for case in cases) < 200_000
    assert any(o.cycled for case in cases if isinstance(case, c.OpCase) for o in case.operands)
