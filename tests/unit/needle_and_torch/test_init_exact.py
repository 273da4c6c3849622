"""Every initialiser in every dtype, from the state of the generator; the scales are torch's; files of MNIST to the last byte."""

import gzip
import math
import struct

import numpy as np
import pytest
import torch

import needle as ndl
from needle import init
from needle.data import DataLoader, NDArrayDataset, parse_mnist

SHAPE = (5, 7)
DRAWN = {
    "rand": (lambda kw: init.rand(*SHAPE, low=-2, high=3, **kw), lambda: np.random.rand(*SHAPE) * 5 - 2),
    "rand by default": (lambda kw: init.rand(*SHAPE, **kw), lambda: np.random.rand(*SHAPE)),
    "randn": (lambda kw: init.randn(*SHAPE, mean=3, std=2, **kw), lambda: np.random.randn(*SHAPE) * 2 + 3),
    "randn by default": (lambda kw: init.randn(*SHAPE, **kw), lambda: np.random.randn(*SHAPE)),
    "randb": (lambda kw: init.randb(*SHAPE, p=0.25, **kw), lambda: np.random.rand(*SHAPE) <= 0.25),
    "randb by default": (lambda kw: init.randb(*SHAPE, **kw), lambda: np.random.rand(*SHAPE) <= 0.5),
    "constant": (lambda kw: init.constant(*SHAPE, c=3, **kw), lambda: np.full(SHAPE, 3.0)),
    "constant by default": (lambda kw: init.constant(*SHAPE, **kw), lambda: np.full(SHAPE, 1.0)),
    "one_hot": (lambda kw: init.one_hot(7, ndl.Tensor([[0, 6], [3, 3]]), **kw), lambda: np.eye(7)[[[0, 6], [3, 3]]]),
    "ones": (lambda kw: init.ones(*SHAPE, **kw), lambda: np.ones(SHAPE)),
    "zeros": (lambda kw: init.zeros(*SHAPE, **kw), lambda: np.zeros(SHAPE)),
    "kaiming_uniform": (
        lambda kw: init.kaiming_uniform(*SHAPE, nonlinearity="relu", **kw),
        lambda: (np.random.rand(*SHAPE) * 2 - 1) * torch.nn.init.calculate_gain("relu") * math.sqrt(3 / 5),
    ),
    "kaiming_normal": (
        lambda kw: init.kaiming_normal(*SHAPE, nonlinearity="relu", **kw),
        lambda: np.random.randn(*SHAPE) * torch.nn.init.calculate_gain("relu") / math.sqrt(5),
    ),
    "xavier_uniform": (
        lambda kw: init.xavier_uniform(*SHAPE, gain=5 / 3, **kw),
        lambda: (np.random.rand(*SHAPE) * 2 - 1) * torch.nn.init.calculate_gain("tanh") * math.sqrt(6 / 12),
    ),
    "xavier_normal": (
        lambda kw: init.xavier_normal(*SHAPE, gain=5 / 3, **kw),
        lambda: np.random.randn(*SHAPE) * torch.nn.init.calculate_gain("tanh") * math.sqrt(2 / 12),
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", DRAWN)
def test_from_the_same_state_come_the_same_numbers_in_every_dtype(name, dtype):
    make, draw = DRAWN[name]
    np.random.seed(11)
    made = make({"dtype": dtype, "requires_grad": True})
    after = np.random.rand()
    np.random.seed(11)
    expected = draw()
    assert np.random.rand() == after, "as many numbers are drawn"
    assert made.dtype == dtype
    assert made.requires_grad
    # drawn and scaled in float64, some formulas in another order, then rounded once
    last = np.spacing(np.abs(expected).astype(dtype)).astype(np.float64)
    assert (np.abs(made.numpy().astype(np.float64) - expected) <= 0.5 * last + 2.0**-50).all()


def test_the_scales_are_those_of_torch():
    """torch's weights lie the other way round: (out, in)."""
    for ours, theirs in [
        (init.kaiming_uniform, lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="relu")),
        (init.xavier_uniform, torch.nn.init.xavier_uniform_),
    ]:
        np.random.seed(0)
        torch.manual_seed(0)
        mine = np.abs(ours(60, 400).numpy()).max()
        other = float(theirs(torch.empty(400, 60)).abs().max())
        assert mine == pytest.approx(other, rel=1e-3), "the largest of 24,000 is within a thousandth of the bound"
    for ours, theirs in [
        (init.kaiming_normal, lambda w: torch.nn.init.kaiming_normal_(w, nonlinearity="relu")),
        (init.xavier_normal, torch.nn.init.xavier_normal_),
    ]:
        np.random.seed(0)
        torch.manual_seed(0)
        mine, other = ours(60, 400).numpy().std(), float(theirs(torch.empty(400, 60)).std())
        assert mine == pytest.approx(other, rel=0.03), (
            "a standard deviation from 24,000 numbers errs by half a per cent"
        )


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_batches_are_those_of_torch(batch_size):
    x, y = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32), np.arange(10)
    theirs = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=batch_size
    )
    ours = DataLoader(NDArrayDataset(x, y), batch_size=batch_size)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy(), strict=True)


def test_mnist_files_to_the_last_byte(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (5, 2, 3), dtype=np.uint8)
    labels = np.array([9, 0, 255, 3, 3], np.uint8)
    for name, head, body in [
        ("x", struct.pack(">4i", 2051, 5, 2, 3), pixels),
        ("y", struct.pack(">2i", 2049, 5), labels),
    ]:
        with gzip.open(tmp_path / name, "wb") as file:
            file.write(head + body.tobytes())
    images, found = parse_mnist(str(tmp_path / "x"), str(tmp_path / "y"))
    np.testing.assert_array_equal(images, pixels.reshape(5, 6).astype(np.float32) / np.float32(255), strict=True)
    np.testing.assert_array_equal(found, labels, strict=True)
    assert found.flags.writeable
