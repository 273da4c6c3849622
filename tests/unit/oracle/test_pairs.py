"""Every op and layer of needle has its row, and every row its definition."""

import inspect

import pytest

import needle
from oracle import definitions, pairs
from oracle.cases import case as c


def ops_of(module):
    found = inspect.getmembers(module, inspect.isclass)
    return {name for name, kind in found if issubclass(kind, needle.autograd.Op) and kind.__module__ == "needle.ops"}


def test_every_op_of_needle_has_a_row():
    covered = {name for row in pairs.OPS.values() for name in row.covers}
    missing = ops_of(needle.ops) - covered
    assert not missing, f"add a row to oracle.pairs.OPS for {', '.join(sorted(missing))}"
    gone = covered - ops_of(needle.ops)
    assert not gone, f"oracle.pairs.OPS covers {', '.join(sorted(gone))}, which needle does not have"


def test_every_row_has_a_definition():
    assert set(pairs.OPS) == set(definitions.OPS)


def test_every_layer_of_a_case_has_a_row():
    assert set(pairs.LAYERS) == set(c.Layer.__args__)


def test_every_layer_of_needle_can_be_in_a_case():
    layers = {n for n, k in inspect.getmembers(needle.nn, inspect.isclass) if issubclass(k, needle.nn.Module)}
    by_name = {"BatchNorm": "BatchNorm1d", "LayerNorm": "LayerNorm1d"}
    known = {by_name.get(k.__name__, k.__name__) for k in pairs.LAYERS} | {"SoftmaxLoss", "Module"}
    assert layers <= known, f"no case has a {layers - known}"


@pytest.mark.parametrize("name", sorted(pairs.OPS))
def test_needle_has_what_the_row_calls(name):
    assert callable(pairs.OPS[name].needle)
    for covered in pairs.OPS[name].covers:
        assert hasattr(needle.ops, covered)
