"""Every op of needle has its block, and every block is held by more than itself: by differences and by torch."""

import dataclasses
import functools
import inspect
import math
import pickle
import random

import msgspec
import numpy as np
import pytest
import torch

import needle
from oracle.blame import judged, script
from oracle.cases import case as c
from oracle.cases import coverage
from oracle.cases.strategies import op_cases, train_cases
from oracle.operations import MEANINGS, OPERATIONS, indexing, operation
from oracle.operations.tape import Tape, Var
from oracle.rules.judge import judge
from oracle.rules.single_op import op_truth
from oracle.rules.verdict import Divergence
from oracle.runs.draws import draw_from, independent

NAMES = sorted(OPERATIONS)


def classes_of(module):
    found = inspect.getmembers(module, inspect.isclass)
    return {name for name, kind in found if issubclass(kind, needle.autograd.Op) and kind.__module__ == "needle.ops"}


def test_every_op_of_needle_has_a_block():
    covered = {name for op in OPERATIONS.values() for name in op.covers}
    missing = classes_of(needle.ops) - covered
    assert not missing, f"add a block to oracle/operations for {', '.join(sorted(missing))}"
    gone = covered - classes_of(needle.ops)
    assert not gone, f"oracle/operations covers {', '.join(sorted(gone))}, which needle does not have"


def test_every_node_of_needle_has_a_meaning():
    missing = classes_of(needle.ops) - set(MEANINGS)
    assert not missing, f"no block in oracle/operations says what a node of {', '.join(sorted(missing))} means"
    assert set(MEANINGS) <= classes_of(needle.ops)


def test_every_public_op_of_needle_is_called_by_a_block(monkeypatch):
    """A function of needle that no block calls is one that nobody judges."""
    public = {n for n, f in vars(needle.ops).items() if inspect.isfunction(f) and f.__module__ == "needle.ops"}
    public = {n for n in public if not n.startswith("_")}
    called = set()

    def spied(name, right):
        def function(*args, **kwargs):
            called.add(name)
            return right(*args, **kwargs)

        return function

    for name in public:
        right = getattr(needle.ops, name)
        for module in (needle, needle.ops):
            if getattr(module, name, None) is right:
                monkeypatch.setattr(module, name, spied(name, right))
    for name in NAMES:
        for case in draw_from(op_cases([name]), 15, 0):
            tensors = [needle.Tensor(np.array(o.array)) for o in case.operands]
            with np.errstate(all="ignore"):
                OPERATIONS[name].needle(needle, *tensors, **case.attributes)
    assert public - called == set()


def test_two_blocks_of_one_name_are_an_error():
    def tanh(t, x):
        raise NotImplementedError

    with pytest.raises(ValueError, match="two blocks are called tanh"):
        operation.operation(needle=None, torch=None, drawn=None)(tanh)
    with pytest.raises(ValueError, match="two blocks say what a Tanh means"):
        operation.meaning("Tanh")(tanh)
    assert OPERATIONS["tanh"].definition is not tanh


def test_a_layer_is_a_part_of_cases_by_its_block_alone():
    """It is drawn, described, encoded, pickled, judged, in the coverage and in a script, and no other place knows of it."""
    assert {"Tanh", "Sigmoid"} <= set(c.ACTIVATIONS) == {op.layer for op in OPERATIONS.values() if op.layer}
    drawn = {type(layer).__name__ for case in draw_from(train_cases(), 60, 0) for _, layer in c.walk(case.model)}
    for name, kind in c.LAYERS.items():
        assert name in drawn or kind.chance == 1  # those are rare
        assert f"layer {name}" in coverage.LABELS
        case = c.TrainCase(
            model=(c.Linear(2), kind.example(2), c.Linear(1)), data=c.Data(rows=2, features=2), loss=c.MeanSquare(),
            optimizer=c.SGD(), seed=0,
        )  # fmt: skip
        assert c.decode(c.encode(case)) == case == pickle.loads(pickle.dumps(case))
        assert f"{name}(" in c.describe(case)
        assert f"layer {name}" in coverage.covered(case)
        verdict = judged(case, needle)
        assert verdict.divergence is None, verdict.divergence
        assert not script.fails(script.script(case, Divergence(0, "activation", "1", "G", ""), needle))


def test_every_layer_of_needle_can_be_in_a_case():
    classes = {n for n, k in inspect.getmembers(needle.nn, inspect.isclass) if issubclass(k, needle.nn.Module)}
    known = {kind.called or name for name, kind in c.LAYERS.items()} | {
        "SoftmaxLoss",
        "MSELoss",
        "Module",
        "ModuleList",
    }
    assert classes <= known, f"no case has a {classes - known}"


# -- a wrong definition would fool rules G and OP alike ---------------------------------------------------------------


@functools.cache
def ordinary(name, count=30):
    """Cases of finite numbers that no rounding decides about."""
    found = []
    for case in draw_from(op_cases([name]), 3 * count, 1):
        numbers = [v for o in case.operands for v in o.values]
        far = 150 if OPERATIONS[name].values == "far" else 50
        if numbers and all(isinstance(v, float) and abs(v) < far for v in numbers):
            found.append(case)
    return found[:count]


@pytest.mark.parametrize("name", NAMES)
def test_every_definition_is_torch_in_float64(name):
    cases = ordinary(name)
    assert len(cases) >= 8
    for case in cases:
        value, grads = op_truth(case, None)
        operands = [
            torch.tensor(o.array.astype(np.float64), requires_grad=i not in case.constants)
            for i, o in enumerate(case.operands)
        ]
        out = OPERATIONS[name].torch(torch, *operands, **case.attributes)
        out.backward(torch.from_numpy(case.cotangent_array).to(out.dtype))
        # torch rounds what passes through a cast, and the eps of a norm is a float32 number nowhere
        limit = 1e-6 if name == "cast" else 1e-9
        near(value[0, 0], out.detach().numpy(), limit, case)
        for i, x in enumerate(operands):
            if x.grad is not None:
                near(grads[f"operand {i}"][0, 0], x.grad.numpy(), limit, case)


def near(ours, theirs, limit, case):
    assert ours.shape == theirs.shape, c.describe(case)
    finite = np.isfinite(theirs)
    assert np.array_equal(finite, np.isfinite(ours)), c.describe(case)
    size = max(1.0, np.abs(theirs[finite]).max(initial=0))
    assert np.abs(ours[finite] - theirs[finite]).max(initial=0) <= limit * size, c.describe(case)


def wrong(name, of_value, of_gradient):
    """A block whose definition is off by factors."""
    right = OPERATIONS[name].definition

    def definition(t, *xs, **attributes):
        out = right(t, *xs, **attributes)
        scaled = Var(out.value * of_value, out.needs)
        out.uses += 1
        t.records.append((scaled, (out,), lambda g: (g * of_gradient,)))
        return scaled

    return dataclasses.replace(OPERATIONS[name], definition=definition)


@pytest.mark.parametrize("factors", [(1 + 1e-3, 1.0), (1.0, 1 + 1e-3)], ids=["value", "gradient"])
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_definition_is_found_by_rule_p(name, factors, monkeypatch):
    """torch in float32 does not agree with it, whatever needle does: the oracle says that the oracle is wrong."""
    cases = ordinary(name)  # of the right one: what an op takes is read off its definition, once in a process
    monkeypatch.setitem(OPERATIONS, name, wrong(name, *factors))
    found = (e for case in cases if not case.constants for e in judged(case, needle).oracle_errors)
    assert next(found, "nothing found").startswith("rule P: torch's ")


@pytest.mark.parametrize("name", NAMES)
def test_every_definition_gives_the_shapes_that_needle_gives(name):
    for case in draw_from(op_cases([name]), 20, 2):
        xs = [Var(o.array.astype(np.float64)[None, None]) for o in case.operands]
        given = dict(case.attributes)
        if "labels" in given:
            given["labels"] = np.asarray(given["labels"])[None]
        with np.errstate(all="ignore"):
            ours = OPERATIONS[name].needle(
                needle, *(needle.Tensor(np.array(o.array)) for o in case.operands), **case.attributes
            )
            assert OPERATIONS[name].definition(Tape(None), *xs, **given).shape == ours.shape


# -- the domain of a definition ---------------------------------------------------------------------------------------


def other_shape(shape, rng):
    """One size changed, one axis more, or one less."""
    shape, how = list(shape), rng.randrange(4)
    if how == 0:
        shape.insert(rng.randrange(len(shape) + 1), rng.choice([1, 2, 3]))
    elif how == 1 and shape:
        shape.pop(rng.randrange(len(shape)))
    elif shape:
        shape[rng.randrange(len(shape))] = rng.choice([0, 1, 1, 2, 3, 5])
    return tuple(shape)


def with_other_shape(case, rng):
    k = rng.randrange(len(case.operands))
    shape = other_shape(case.operands[k].shape, rng)
    operand = c.Operand(shape, tuple(0.5 + i % 7 for i in range(math.prod(shape))))
    return msgspec.structs.replace(case, operands=(*case.operands[:k], operand, *case.operands[k + 1 :]))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_definition_admits_needle_and_torch_take_too(name):
    """A large size, a file that somebody has edited: what is refused by needle or by torch is refused as a case."""
    rng, admitted = random.Random(name), 0
    cases = [case for case in independent(op_cases([name]), 4, seed=1) if case.order == 1]
    for case in cases * 25:
        try:
            other = with_other_shape(case, rng)
        except c.CaseError:
            continue
        found = judge(other, needle).divergence
        assert found is None, f"{c.describe(other)}: {found.message}"
        admitted += 1
        if admitted == 5:
            break
    assert admitted


@pytest.mark.parametrize(
    ("op", "shapes", "attributes"),
    [
        ("linear", [(2, 3), (3, 8), (1,)], {}),
        ("linear", [(3,), (3, 8)], {}),
        ("matmul", [(3,), (3, 3)], {}),
        ("logsoftmax", [(2, 3, 4)], {}),
        ("softmax_loss", [(2, 3)], {"labels": (0, 1, 2)}),
        ("softmax_loss", [(2, 3)], {"labels": (0, 3)}),
        ("layer_norm", [(2, 3), (3,), ()], {"eps": 1e-5}),
        ("batch_norm", [(4, 3), (1,), (3,)], {"eps": 1e-5}),
        ("batch_norm", [(1, 3), (3,), (3,)], {"eps": 1e-5}),
        ("dilate", [(2, 3)], {"axes": (0, -2), "dilation": 1}),
        ("picked", [(2, 3, 4)], {"axes": 0, "largest": True}),
        ("conv", [(0, 3, 3, 1), (1, 1, 1, 1)], {"stride": 1, "padding": 0}),
        ("getitem", [(1, 0)], {"index": ({"mask": ()},)}),
    ],
)
def test_outside_its_domain_a_definition_refuses(op, shapes, attributes):
    operands = tuple(c.Operand(shape, (0.5,) * math.prod(shape)) for shape in shapes)
    with pytest.raises(c.CaseError, match=rf"^{op} does not apply to operands of shape"):
        c.OpCase(op, operands, attributes)


def test_a_number_beside_float16_is_a_float16():
    operand = (c.Operand((2,), (0.5, 2.0)),)
    with pytest.raises(c.CaseError, match=r"c=0.1 is no float16: beside a Tensor a number is of its dtype"):
        c.OpCase("rpow", operand, {"c": 0.1}, dtypes=("float16",))
    assert c.held(0.1, ["float16", "int32"]) == float(np.float16(0.1))
    assert c.held(0.1, ["float16", "float32"]) == c.held(0.1, []) == 0.1
    assert c.held(1e6, ["float16"]) == 0


@pytest.mark.parametrize(
    ("kind", "places"),
    [(np.ndarray, (1, 1, 1)), (list, (1, -1, 1)), (tuple, (2, 2, -2))],
    ids=["array", "list", "tuple"],
)
def test_an_index_is_spelled_as_users_do_and_each_spelling_is_judged(kind, places, monkeypatch):
    """A needle that took only arrays and lists for what may name a place twice was right in every case."""
    (part, nothing), kept = indexing.spelled([{"array": places}, None]), needle.ops._index_of
    assert type(part) is kind
    assert nothing is None
    case = c.OpCase("getitem", (c.Operand((3,), (1.0, 2.0, 3.0)),), {"index": ({"array": places},)})
    assert judge(case, needle).divergence is None
    monkeypatch.setattr(needle.ops, "_index_of", lambda part: part if isinstance(part, kind) else kept(part))
    found = judge(case, needle).divergence
    assert (found is None) == (kind is np.ndarray)  # of which there is no other way to be found


def test_sums_at_one_place_round_as_other_sums_do():
    """Seven numbers that cancel: needle and torch add them up in one order, and the truth in another."""
    values = (-19.644, -33.544, -8.498, 14.011, -1.861, 46.38, 2.874)
    index = ({"array": (0,) * 7},)
    case = c.OpCase("put_item", (c.Operand((7,), values),), {"shape": (8,), "index": index})
    verdict = judge(case, needle)
    assert verdict.divergence is None
    right = needle.ops.PutItem.compute
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(needle.ops.PutItem, "compute", lambda self, a: right(self, a) * np.float32(1 + 2**-12))
        assert judge(case, needle).divergence.quantity == "activation"
