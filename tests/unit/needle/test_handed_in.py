"""What is handed in: nothing is kept by reference and read later, nothing does nothing without a word."""

from pathlib import Path

import numpy as np
import pytest

import needle as ndl
from needle import nn, ops

HOW = pytest.mark.parametrize("how", [{}, {"create_graph": True}], ids=["plain", "create"])


def leaf(*numbers):
    return ndl.Tensor(np.array(numbers, np.float64))


# --------------------------------------------------------------------------- written into after it was handed in


def scribble(thing):
    if isinstance(thing, list):
        thing[0] = 1
    else:
        thing[...] = 1


GIVEN = {
    "index": (lambda x, i: x[i], np.array([0, 0])),
    "index in a tuple": (lambda x, i: x[:, i], np.array([0, 0])),
    "index as a list": (lambda x, i: x[i], [0, 0]),
    "mask": (lambda x, i: x[i], np.array([True, False])),
    "index of put_item": (lambda x, i: ops.put_item(x, (5, 2), i) * np.arange(10.0).reshape(5, 2), np.array([0, 3])),
    "factor": (lambda x, a: x * a, np.array([2.0, 3.0])),
    "factor on the left": (lambda x, a: a * x, np.array([2.0, 3.0])),
    "divisor": (lambda x, a: x / a, np.array([2.0, 3.0])),
    "dividend": (lambda x, a: a / x, np.array([2.0, 3.0])),
    "exponent": (lambda x, a: x**a, np.array([2.0, 3.0])),
    "base": (lambda x, a: a**x, np.array([2.0, 3.0])),
    "matrix": (lambda x, a: x @ a, np.array([[2.0], [3.0]])),
    "matrix on the left": (lambda x, a: a @ x, np.array([[2.0, 3.0]])),
    "scalar": (lambda x, a: x * a, np.array(2.0)),
    "scalar of an op": (ops.power_scalar, np.array(3.0)),
    "axes of sum": (lambda x, a: x.sum(a) ** 2, [0]),
    "axes of max": (lambda x, a: x.max(a) ** 2, [0]),
    "axes of logsumexp": (lambda x, a: ops.logsumexp(x, a) ** 2, [0]),
    "axes of flip": (lambda x, a: ops.flip(x, a) * np.array([[1.0, 2.0], [3.0, 4.0]]), [0]),
    "axes of dilate": (lambda x, a: ops.dilate(x, a, 1).sum(0) * 2, [0]),
    "axes of transpose": (lambda x, a: ops.transpose(x, a) * np.array([[1.0, 2.0], [3.0, 4.0]]), [0, 1]),
    "shape": (lambda x, a: ops.reshape(x, a) ** 2, [4, 1]),
    "labels": (lambda x, a: ops.softmax_cross_entropy(x, a), np.array([0, 0])),
}


@HOW
@pytest.mark.parametrize("name", GIVEN)
def test_what_is_written_into_it_later_changes_no_gradient(name, how):
    op, given = GIVEN[name]
    gradients = []
    for late in (False, True):
        own = given.copy()
        x = leaf([1.0, 2.0], [3.0, 4.0])
        y = op(x, own).sum()
        if late:
            scribble(own)
        y.backward(**how)
        gradients.append(x.grad.numpy())
        x.grad = None
    np.testing.assert_array_equal(gradients[1], gradients[0], strict=True)


@HOW
@pytest.mark.parametrize("kind", [np.array, ndl.Tensor, lambda a: ndl.Tensor(a, requires_grad=False)], ids=range(3))
def test_out_grad_is_not_what_a_gradient_is_made_of(kind, how):
    x, y = leaf(1.0, 2.0), leaf(1.0, 2.0)
    out_grad = kind([3.0, 4.0])
    (x.reshape(2, 1).reshape(2) + y).backward(out_grad, **how)
    np.asarray(out_grad)[...] = 0
    assert x.grad.numpy().tolist() == y.grad.numpy().tolist() == [3, 4]
    x.grad = y.grad = None


def test_one_may_still_differentiate_with_respect_to_out_grad():
    x, out_grad = leaf(3.0), leaf(2.0)
    (x * x).backward(out_grad, create_graph=True)
    x.grad.backward()
    assert out_grad.grad.item() == 6
    assert x.grad.item() == 4


def test_a_view_that_cannot_be_written_may_still_change():
    x, base = leaf(1.0, 2.0), np.array([2.0])
    y = (x * np.broadcast_to(base, (2,))).sum()
    base[0] = 5
    y.backward()
    assert x.grad.numpy().tolist() == [2, 2]


def test_state_is_copied_both_ways():
    layer = nn.Linear(2, 1)
    state = layer.state_dict()
    state["weight"][...] = 7
    assert not (layer.weight.numpy() == 7).any()
    layer.load_state_dict(state)
    state["weight"][...] = 8
    assert (layer.weight.numpy() == 7).all()


# ------------------------------------------------------------------------------------------- what did nothing


def test_a_parameter_is_updated_in_a_loop():
    layer = nn.Linear(2, 1, dtype="float64")
    weight, bias = layer.weight, layer.bias
    before = weight.numpy().copy()
    held = weight.data
    layer(ndl.Tensor(np.ones((1, 2)))).sum().backward()
    with ndl.no_grad():
        for p in layer.parameters():
            p -= 0.5 * p.grad
    assert layer.weight is weight
    np.testing.assert_array_equal(weight.numpy(), before - 0.5)
    np.testing.assert_array_equal(held.numpy(), before)
    with ndl.no_grad():
        layer.weight -= 0.25
        layer.bias *= np.array([[2.0]])
    assert layer.weight is weight
    assert layer.bias is bias
    assert layer.parameters()[0] is weight
    np.testing.assert_array_equal(weight.numpy(), before - 0.75)


def test_every_operator_in_place():
    p = nn.Parameter(np.array([[2.0, 0.0], [0.0, 4.0]], np.float32))
    with ndl.no_grad():
        p += 1
        p -= np.ones((1, 2))
        p *= ndl.Tensor([[2.0, 1.0]], dtype="float64")
        p /= 2
        p **= 2
        p @= np.eye(2)
    assert type(p) is nn.Parameter
    assert p.dtype == np.float32
    assert p.is_leaf()
    assert p.requires_grad
    assert p.numpy().tolist() == [[4, 0], [0, 4]]
    with pytest.raises(ValueError, match=r"data must keep its shape \(2, 2\), but got \(3, 2, 2\)"), ndl.no_grad():
        p += np.ones((3, 2, 2))
    with pytest.raises(TypeError, match="unsupported operand"), ndl.no_grad():
        p += "1"


def test_integers_in_place_stay_integers_or_are_refused():
    p = nn.Parameter([4, 6])
    with ndl.no_grad():
        p += 1
        with pytest.raises(TypeError, match="data must keep its dtype int64, but got float32"):
            p /= 2
    assert p.dtype == np.int64
    assert p.tolist() == [5, 7]


def test_an_array_that_nobody_can_write_is_not_copied():
    x, numbers = ndl.Tensor([1.0, 2.0]), np.array([3.0, 4.0])
    numbers.flags.writeable = False
    assert (x * numbers).inputs[1].numpy() is numbers
    assert not np.shares_memory((x * numbers[:]).inputs[1].numpy(), numbers)  # a view: its base may be written


def test_in_place_while_a_graph_is_recorded_is_refused():
    p = nn.Parameter([1.0])
    with pytest.raises(
        RuntimeError, match=r"-= would change a Parameter while a graph is recorded: .* write p = p - …"
    ):
        p -= 1
    loss = p * p
    with ndl.no_grad():
        p += 1
    with pytest.raises(RuntimeError, match="has changed since"):
        loss.backward()


def test_other_tensors_are_rebound():
    total = kept = ndl.Tensor([1.0])
    total += ndl.Tensor([2.0])
    total *= 2
    assert total.item() == 6
    assert total.requires_grad
    assert kept.item() == 1
    total.backward()
    assert kept.grad.item() == 2


def test_names_that_collide_are_refused():
    model = nn.Module()
    model.layers = {"a": {"b": nn.Linear(1, 1)}, "a.b": nn.Linear(1, 1)}
    with pytest.raises(ValueError, match=r"two tensors of Module have the name 'layers.a.b.weight': rename"):
        model.state_dict()
    with pytest.raises(ValueError, match="two tensors"):
        model.load_state_dict({})
    model = nn.Module()
    model.layers = {1: nn.ReLU(), "1": nn.BatchNorm1d(1), 2: nn.Parameter([1.0]), "2": ndl.zeros(1)}
    with pytest.raises(ValueError, match=r"have the name 'layers.2'"):
        model.state_dict()
    tied = nn.Module()
    tied.a = tied.b = nn.Linear(1, 1)
    assert list(tied.state_dict()) == ["a.weight", "a.bias"]


@pytest.mark.parametrize(
    ("action", "kind", "match"),
    [
        (
            lambda: ndl.data.DataLoader([], batch_size=2.5),
            TypeError,
            "batch_size must be an integer, got batch_size=2.5",
        ),
        (
            lambda: ndl.data.DataLoader([], batch_size="2"),
            TypeError,
            "batch_size must be an integer, got batch_size='2'",
        ),
        (lambda: ndl.data.DataLoader([], batch_size=None), TypeError, "batch_size must be an integer"),
        (lambda: ndl.data.DataLoader([], batch_size=0), ValueError, "batch_size must be at least 1, got batch_size=0"),
        (lambda: ndl.data.RandomCrop(1.5), TypeError, "RandomCrop: padding must be an integer, got padding=1.5"),
        (lambda: ops.dilate(leaf(1), 0, 0.5), TypeError, "dilate: dilation must be an integer, got dilation=0.5"),
        (lambda: ops.conv(leaf(1), leaf(1), 1.5), TypeError, "conv: stride must be an integer, got stride=1.5"),
        (lambda: ops.conv(leaf(1), leaf(1), 1, 0.5), TypeError, "conv: padding must be an integer, got padding=0.5"),
        (lambda: nn.Linear("3", 4), TypeError, "Linear: in_features must be an integer, got in_features='3'"),
        (lambda: nn.Linear(3, 4.0), TypeError, "Linear: out_features must be an integer, got out_features=4.0"),
        (lambda: nn.BatchNorm1d(2.0), TypeError, "BatchNorm1d: dim must be an integer, got dim=2.0"),
        (lambda: nn.LayerNorm1d("2"), TypeError, "LayerNorm1d: dim must be an integer, got dim='2'"),
        (lambda: ndl.Tensor(["1.5", "2"], dtype="float32"), TypeError, "real numbers or bools, but got dtype <U3"),
        (lambda: ndl.Tensor(np.array(["1"], "S")), TypeError, "real numbers or bools, but got dtype"),
        (lambda: ndl.Tensor([None], dtype="float32"), TypeError, "but got dtype object"),
        (lambda: ndl.Tensor(np.array(["2020-01-01"], "datetime64[D]"), dtype="int64"), TypeError, "datetime64"),
        (lambda: ndl.Tensor([1], dtype="U3"), TypeError, "but got dtype <U3"),
        (lambda: ndl.ones(1, dtype="U3"), TypeError, "but got dtype <U3"),
        (lambda: ndl.zeros(1, dtype="complex64"), TypeError, "but got dtype complex64"),
        (lambda: ndl.init.constant(1, dtype="O"), TypeError, "but got dtype object"),
        (lambda: ndl.init.randn(1, dtype="U3"), TypeError, "but got dtype <U3"),
        (lambda: ndl.init.one_hot(2, ndl.Tensor([1]), dtype="U3"), TypeError, "but got dtype <U3"),
        (lambda: leaf(1).backward(np.array(["1"])), TypeError, "but got dtype <U1"),
        (lambda: nn.Linear(1, 1, bias=False).load_state_dict({"weight": [["1"]]}), TypeError, "but got dtype <U1"),
        (lambda: ops.add_scalar(leaf(1), np.array([1.0, 2.0])), TypeError, "a scalar operand must be a real number"),
    ],
    ids=range(25),
)
def test_what_does_not_fit_is_refused_by_name(action, kind, match):
    with pytest.raises(kind, match=match):
        action()


def test_a_batch_of_strings_is_refused():
    dataset = ndl.data.NDArrayDataset(np.array(["1", "2"]))
    with pytest.raises(TypeError, match="DataLoader: a batch holds real numbers or bools, but got dtype <U1"):
        list(ndl.data.DataLoader(dataset))


def test_whole_numbers_of_numpy_will_do():
    loader = ndl.data.DataLoader(ndl.data.NDArrayDataset(np.ones(4)), batch_size=np.int64(3))
    assert [len(x) for (x,) in loader] == [3, 1]
    assert nn.Linear(np.int64(2), 1).weight.shape == (2, 1)


# ----------------------------------------------------------------------------------------------- course code


@pytest.mark.parametrize("value", [[1.0, 2.0, 3.0], [[1.0, 2.0, 3.0]], 5.0, [4.0]])
def test_data_that_broadcasts_is_stored_in_the_shape_of_the_parameter(value):
    layer = nn.Linear(2, 3)
    new = ndl.Tensor(value, dtype="float32")
    layer.bias.data = new
    assert layer.bias.shape == (1, 3)
    np.testing.assert_array_equal(layer.bias.numpy(), np.broadcast_to(new.numpy(), (1, 3)))
    assert layer.bias.numpy().flags.writeable
    assert layer(ndl.Tensor(np.zeros((4, 2), np.float32))).shape == (4, 3)
    layer(ndl.Tensor(np.zeros((4, 2), np.float32))).sum().backward()
    assert layer.bias.grad.shape == (1, 3)
    optimizer = ndl.optim.SGD([layer.bias], lr=1.0)
    optimizer.step()
    np.testing.assert_array_equal(new.numpy(), np.array(value, np.float32))


@pytest.mark.parametrize("shape", [(2,), (3, 1), (3, 3), (1, 1, 3)])
def test_data_that_does_not_broadcast_is_refused(shape):
    layer = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"data must keep its shape \(1, 3\), but got .* which does not broadcast"):
        layer.bias.data = ndl.ones(*shape)


# ----------------------------------------------------------------------------------- messages that say what to write


@pytest.mark.parametrize(
    ("action", "match"),
    [
        (
            lambda: ndl.optim.SGD(nn.Linear(1, 1)),
            r"SGD: params must be Parameters, but got a Linear: pass its .parameters\(\)",
        ),
        (lambda: ndl.optim.Adam(nn.Linear(1, 1).parameters), r"got a function: call it, as in model.parameters\(\)"),
        (lambda: ndl.optim.SGD([np.ones(1)]), r"got ndarray: wrap an array in nn.Parameter\(...\)"),
        (lambda: nn.Sequential(nn.Linear(1, 1), nn.ReLU), r"got the class ReLU: write ReLU\(...\)"),
        (
            lambda: nn.Linear(1, 1).load_state_dict("m.npz"),
            r"got str: ndl.load\(path, model\) reads .* np.load\(path\)",
        ),
    ],
    ids=range(5),
)
def test_what_to_write_instead(action, match):
    with pytest.raises(TypeError, match=match):
        action()


@pytest.mark.parametrize("make", [ndl.optim.SGD, ndl.optim.Adam])
def test_a_learning_rate_of_0_changes_the_state_alone(make):
    p = nn.Parameter([1.0])
    optimizer = make([p], lr=0)
    p.grad = ndl.Tensor([2.0])
    optimizer.step()
    assert p.item() == 1
    assert (optimizer.u if make is ndl.optim.SGD else optimizer.m)[p].item() > 0
    optimizer.lr = 0.5
    optimizer.step()
    assert p.item() < 1


def test_a_state_may_come_from_a_file(tmp_path):
    layer, other = nn.Linear(2, 1), nn.Linear(2, 1)
    np.savez(tmp_path / "m.npz", **layer.state_dict())
    with np.load(tmp_path / "m.npz") as state:
        other.load_state_dict(state)
    np.testing.assert_array_equal(other.weight.numpy(), layer.weight.numpy())


def test_the_version_is_that_of_the_project():
    root = Path(__file__).parents[3]
    assert f'version = "{ndl.__version__}"' in (root / "pyproject.toml").read_text("utf-8")
