"""Comparisons are of elements; identity is what `is`, a dict and a set ask for."""

import operator

import numpy as np
import pytest

import needle as ndl
from needle import nn

A = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, -0.0]])
ROW = np.array([1.0, 3.0, 0.0])
HOW = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "other",
    [ROW, 2, 2.0, True, np.float32(2), np.array(2), np.array([[2], [3]], np.uint8), [1, 2, 3], A.astype("float32")],
    ids=range(9),
)
def test_elements_are_compared_on_either_side(how, other):
    t = ndl.Tensor(A)
    for result, expected in [
        (how(t, other), how(A, other)),
        (how(other, t), how(np.asarray(other), A)),
        (how(t, ndl.Tensor(other)), how(A, np.asarray(other))),
    ]:
        assert type(result) is ndl.Tensor
        assert not result.requires_grad
        assert result.is_leaf()
        np.testing.assert_array_equal(result.numpy(), expected, strict=True)


def test_the_accuracy_of_a_classifier():
    logits, y = ndl.Tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]]), ndl.Tensor([0, 1, 1])
    assert np.mean(logits.numpy().argmax(1) == y) == pytest.approx(2 / 3)
    assert float((logits.numpy().argmax(1) == y).mean()) == pytest.approx(2 / 3)
    assert np.sum(logits.numpy().argmax(1) == y).item() == 2


def test_a_number_out_of_range_of_the_dtype_is_just_different():
    t = ndl.Tensor(np.array([255, 44], np.uint8))
    assert (t == 300).numpy().tolist() == [False, False]
    assert (t < 300).numpy().tolist() == [True, True]


def test_what_is_no_number_is_not_equal_and_has_no_order():
    t = ndl.Tensor([1.0, 2.0])
    assert (t == None) is False  # noqa: E711 - as people write it
    assert (t != "text") is True
    with pytest.raises(TypeError, match="not supported between"):
        t < "text"  # noqa: B015
    with pytest.raises(ValueError, match=r"less: shapes \(2,\) and \(3,\) do not broadcast"):
        t < np.ones(3)  # noqa: B015


def test_numbers_without_dimensions_are_compared_to_an_array():
    mask = ndl.Tensor(2.0) > 1
    assert type(mask.numpy()) is np.ndarray
    assert mask.item() is True


def test_an_array_of_another_library_compares_itself():
    class Theirs:
        def __array__(self, dtype=None, copy=None):
            return np.ones(2)

        def __eq__(self, other):
            return "theirs"

        __hash__ = __gt__ = __eq__

    t = ndl.Tensor([1.0, 2.0])
    assert (t == Theirs()) == "theirs"
    assert (t < Theirs()) == "theirs"


def test_a_mask_has_no_single_truth():
    t = ndl.Tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"the shape is \(2,\): use .numpy\(\).all\(\) or .numpy\(\).any\(\)"):
        bool(t == t)
    assert ndl.Tensor([2.0]) > 1
    assert t[t > 1].numpy().tolist() == [2]


def test_hashing_is_by_identity():
    tensors = [ndl.Tensor([1.0, 1.0]) for _ in range(50)]
    numbered = {t: i for i, t in enumerate(tensors)}
    assert [numbered[t] for t in tensors] == list(range(50))
    assert ndl.Tensor([1.0, 1.0]) not in numbered
    assert len({*tensors, *tensors}) == 50
    assert hash(nn.Parameter(tensors[0])) != hash(tensors[0])


@pytest.mark.parametrize("make", [ndl.optim.SGD, ndl.optim.Adam])
def test_optimizers_tell_equal_parameters_apart(make):
    for shape in ((1,), (2,)):
        params = [nn.Parameter(np.ones(shape)) for _ in range(3)]
        optimizer = make(params, lr=0.5)
        for left in (0, 1, 2, 0):
            optimizer.reset_grad()
            before = [p.numpy().copy() for p in params]
            params[left].grad = ndl.Tensor(np.ones(shape))
            optimizer.step()
            for i, p in enumerate(params):
                assert (p.numpy() != before[i]).all() == (i == left)
        state = optimizer.u if make is ndl.optim.SGD else optimizer.m
        assert [p in state for p in params] == [True] * 3


def test_a_state_that_was_replaced_by_an_equal_one_is_taken_over():
    p = nn.Parameter(np.ones(1))
    optimizer = ndl.optim.SGD([p], lr=0.5, momentum=0.5)
    p.grad = ndl.Tensor([1.0])
    optimizer.step()
    mine = ndl.Tensor(optimizer.u[p].numpy().copy())
    optimizer.u[p] = mine
    optimizer.step()
    assert mine.item() == 0.5
    assert optimizer.u[p].item() == 0.75


# -- what NumPy's functions call


@pytest.mark.parametrize("name", ["sum", "mean", "max"])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions_take_the_names_of_numpy(name, axis, keepdims):
    t = ndl.Tensor(A)
    expected = getattr(np, name)(A, axis=axis, keepdims=keepdims)
    for result in (getattr(t, name)(axis=axis, keepdims=keepdims), getattr(np, name)(t, axis=axis, keepdims=keepdims)):
        assert isinstance(result, ndl.Tensor)
        assert result.requires_grad
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-15)
        assert result.shape == np.shape(expected)
    np.testing.assert_allclose(getattr(t, name)(axis).numpy(), getattr(np, name)(A, axis), rtol=1e-15)


def test_what_a_reduction_does_not_take_is_refused():
    t = ndl.Tensor(A)
    with pytest.raises(TypeError, match="sum: give axes or axis, not both"):
        t.sum(0, axis=1)
    with pytest.raises(TypeError, match=r"mean of a Tensor takes axes .* but got dtype='float32'"):
        np.mean(t, dtype="float32")
    with pytest.raises(TypeError, match=r"max of a Tensor takes axes .* but got initial=0"):
        np.max(t, initial=0)
