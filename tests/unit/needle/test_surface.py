"""What is there for completeness: the one device, and names that no training step needs."""

import inspect

import numpy as np
import pytest

import needle as ndl
from needle import autograd, init, nn, ops
from needle.data import RandomCrop, RandomFlipHorizontal, Transform

WITH_DEVICE = {
    "Tensor": (ndl.Tensor, ([1.0],)),
    **{name: (getattr(init, name), (2, 3)) for name in ("ones", "zeros", "constant", "rand", "randn", "randb")},
    "one_hot": (init.one_hot, (3, ndl.Tensor([2, 0]))),
    "ones_like": (init.ones_like, (ndl.Tensor([1.0]),)),
    "zeros_like": (init.zeros_like, (ndl.Tensor([1.0]),)),
    "Linear": (nn.Linear, (2, 3)),
    "BatchNorm1d": (nn.BatchNorm1d, (2,)),
    "LayerNorm1d": (nn.LayerNorm1d, (2,)),
    "Conv": (nn.Conv, (2, 3, 2)),
}


def numbers(made):
    return [p.numpy() for p in made.parameters()] if isinstance(made, nn.Module) else [made.numpy()]


@pytest.mark.parametrize("name", WITH_DEVICE)
def test_the_device_is_taken_and_changes_nothing(name):
    make, args = WITH_DEVICE[name]
    found = []
    for keywords in ({}, {"device": ndl.cpu()}, {"device": None}):
        np.random.seed(3)
        found.append(numbers(make(*args, **keywords)))
    for others in found[1:]:
        for mine, other in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(mine, other, strict=True)


def takes_a_device(thing):
    error = inspect.isclass(thing) and issubclass(thing, Exception)
    return callable(thing) and not error and "device" in inspect.signature(thing).parameters


def test_nothing_else_takes_a_device():
    public = [(name, thing) for place in (ndl, init, ops, nn) for name, thing in vars(place).items() if name[0] != "_"]
    own = [(name, thing) for name, thing in public if getattr(thing, "__module__", "").startswith("needle")]
    takes = {name for name, thing in own if takes_a_device(thing)}
    assert takes - {"Parameter"} == set(WITH_DEVICE)


def test_the_one_device():
    device = ndl.cpu()
    assert isinstance(device, autograd.CPUDevice)
    assert repr(device) == "needle.cpu()"
    assert device == autograd.CPUDevice()
    assert device != "cpu"
    assert hash(device) == hash(autograd.CPUDevice())
    assert device.enabled()


def test_plus_is_the_tensor_and_detach_of_a_tuple_leaves_the_graph():
    x = ndl.Tensor([1.0, -2.0])
    assert (+x).numpy().tolist() == [1, -2]
    (+x).sum().backward()
    assert x.grad.numpy().tolist() == [1, 1]
    both = ops.make_tuple(x, x * 2)
    apart = both.detach()
    assert isinstance(apart, ndl.TensorTuple)
    assert apart.is_leaf()
    assert not apart.requires_grad
    assert [t.numpy().tolist() for t in apart] == [[1, -2], [2, -4]]


def test_parameters_and_constants_say_what_they_are():
    assert repr(nn.Parameter([1.0])).startswith("needle.Parameter(") or "Parameter" in repr(nn.Parameter([1.0]))
    assert issubclass(ndl.Tensor, autograd.Value)
    for wants in (False, True):
        made = ndl.Tensor.make_const(np.ones(2), requires_grad=wants)
        assert made.requires_grad is wants
        assert made.is_leaf()


def test_a_transform_must_say_what_it_does():
    assert issubclass(RandomCrop, Transform)
    assert issubclass(RandomFlipHorizontal, Transform)
    with pytest.raises(NotImplementedError, match="Transform must define __call__"):
        Transform()(np.zeros((2, 2, 1)))


def test_buffers_are_the_statistics_of_the_norms():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3))
    assert [b.shape for b in model.buffers()] == [(3,)] * 4
    assert all(mine is other for mine, (_, other) in zip(model.buffers(), model.named_buffers(), strict=True))
