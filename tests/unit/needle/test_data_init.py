"""Datasets, loaders and initialisers: shapes, dtypes and the order of random numbers."""

import gzip
import struct

import numpy as np
import pytest
from rounding import Rounded, U, within

import needle as ndl
from needle import init
from needle.data import DataLoader, Dataset, MNISTDataset, NDArrayDataset, RandomCrop, RandomFlipHorizontal

X, Y = np.arange(20, dtype="float32").reshape(10, 2), np.arange(10, dtype="uint8")


def test_loader_in_order():
    loader = DataLoader(NDArrayDataset(X, Y), batch_size=4)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert [x.shape for x, _ in batches] == [(4, 2), (4, 2), (2, 2)]
    for x, y in batches:
        assert isinstance(x, ndl.Tensor)
        assert not x.requires_grad
        assert not y.requires_grad
        assert x.dtype == np.float32
        assert y.dtype == np.uint8
    np.testing.assert_array_equal(np.concatenate([y.numpy() for _, y in batches]), Y)
    np.testing.assert_array_equal(np.concatenate([x.numpy() for x, _ in batches]), X)
    assert len(list(loader)) == 3


def test_loader_shuffles_with_one_permutation_per_iteration():
    loader = DataLoader(NDArrayDataset(X, Y), batch_size=3, shuffle=True)
    np.random.seed(1)
    first, second = iter(loader), iter(loader)  # drawn here
    np.random.rand()
    np.random.seed(1)
    for batches in (first, second):
        order = np.random.permutation(10)
        np.testing.assert_array_equal(np.concatenate([y.numpy() for _, y in batches]), Y[order])


def test_loader_does_not_share_memory_with_the_dataset():
    dataset = NDArrayDataset(X.copy(), Y)
    (x, _), *_ = DataLoader(dataset, batch_size=10)
    x.cached_data[...] = -1
    np.testing.assert_array_equal(dataset.arrays[0], X)


class Squares(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return self.apply_transforms(np.full((2, 2, 1), float(index))), index * index


def test_loader_with_a_dataset_of_ones_own():
    (x, y), (_, last) = DataLoader(Squares([lambda image: image + 1]), batch_size=3)
    assert x.shape == (3, 2, 2, 1)
    np.testing.assert_array_equal(x.numpy()[:, 0, 0, 0], [1, 2, 3])
    np.testing.assert_array_equal(y.numpy(), [0, 1, 4])
    np.testing.assert_array_equal(last.numpy(), [9, 16])


def test_refusals():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got batch_size=0"):
        DataLoader(NDArrayDataset(X), batch_size=0)
    with pytest.raises(ValueError, match=r"equal length, but got lengths \[10, 3\]"):
        NDArrayDataset(X, Y[:3])
    with pytest.raises(ValueError, match="at least one array"):
        NDArrayDataset()
    with pytest.raises(ValueError, match="p=2"):
        RandomFlipHorizontal(2)
    with pytest.raises(ValueError, match="padding=-1"):
        RandomCrop(-1)
    with pytest.raises(NotImplementedError, match="Dataset must define __getitem__"):
        Dataset()[0]


def test_flip_and_crop():
    image = np.arange(24.0).reshape(4, 3, 2)
    np.random.seed(2)
    draws = [np.random.rand() for _ in range(20)]
    np.random.seed(2)
    flip = RandomFlipHorizontal(0.5)
    for draw in draws:
        np.testing.assert_array_equal(flip(image), image[:, ::-1] if draw < 0.5 else image)
    np.random.seed(2)
    shifts = [np.random.randint(-2, 3, size=2) for _ in range(20)]
    np.random.seed(2)
    for down, right in shifts:
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        expected = padded[2 + down : 6 + down, 2 + right : 5 + right]
        assert expected.shape == image.shape
        np.testing.assert_array_equal(RandomCrop(2)(image), expected)


@pytest.fixture
def mnist(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    paths = str(tmp_path / "images.gz"), str(tmp_path / "labels.gz")
    with gzip.open(paths[0], "wb") as file:
        file.write(struct.pack(">4i", 2051, 7, 28, 28) + images.tobytes())
    with gzip.open(paths[1], "wb") as file:
        file.write(struct.pack(">2i", 2049, 7) + bytes(range(7)))
    return paths, images


def test_mnist(mnist):
    paths, images = mnist
    dataset = MNISTDataset(*paths)
    image, label = dataset[3]
    assert len(dataset) == 7
    assert image.shape == (28, 28, 1)
    assert image.dtype == np.float32
    assert label == 3
    within(image[..., 0], Rounded(images[3]) / 255)
    many, labels = dataset[2:5]
    assert many.shape == (3, 28, 28, 1)
    assert labels.tolist() == [2, 3, 4]
    flipped = MNISTDataset(*paths, transforms=[RandomFlipHorizontal(1.0)])
    np.testing.assert_array_equal(flipped[3][0], image[:, ::-1])
    np.testing.assert_array_equal(flipped[2:5][0], many[:, :, ::-1])
    ((x, y),) = DataLoader(dataset, 7)
    assert x.shape == (7, 28, 28, 1)
    assert x.dtype == np.float32
    assert y.dtype == np.uint8
    with pytest.raises(ValueError, match="no IDX file of images: it starts with 2049 instead of 2051"):
        MNISTDataset(paths[1], paths[0])


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: init.rand(3, 4, low=-1, high=2), lambda: np.random.rand(3, 4) * 3 - 1),
        (lambda: init.randn(3, 4, mean=1, std=2), lambda: np.random.randn(3, 4) * 2 + 1),
        (lambda: init.xavier_uniform(3, 4, gain=2), lambda: (np.random.rand(3, 4) * 2 - 1) * 2 * np.sqrt(6 / 7)),
        (lambda: init.xavier_normal(3, 4), lambda: np.random.randn(3, 4) * np.sqrt(2 / 7)),
        (lambda: init.kaiming_uniform(3, 4), lambda: (np.random.rand(3, 4) * 2 - 1) * np.sqrt(2)),
        (lambda: init.kaiming_normal(3, 4), lambda: np.random.randn(3, 4) * np.sqrt(2 / 3)),
    ],
    ids=["rand", "randn", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"],
)
def test_random_initialisers(make, draw):
    np.random.seed(4)
    t = make()
    after = np.random.rand()
    np.random.seed(4)
    expected = draw()
    assert np.random.rand() == after
    assert t.shape == (3, 4)
    assert t.dtype == np.float32
    assert not t.requires_grad
    within(t, Rounded(expected, U * np.abs(expected)))  # drawn and scaled in float64, converted last


def test_constant_initialisers():
    assert init.constant(2, 3, c=7).numpy().tolist() == [[7.0] * 3] * 2
    assert ndl.ones(2, dtype="float64", requires_grad=True).requires_grad
    assert ndl.zeros(2).dtype == np.float32
    assert init.rand().shape == ()
    like = ndl.Tensor(np.ones((2, 3)))
    assert ndl.zeros_like(like).dtype == np.float64
    assert ndl.ones_like(like).shape == (2, 3)
    np.random.seed(4)
    mask = init.randb(5, p=0.3)
    np.random.seed(4)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask.numpy(), np.random.rand(5) <= 0.3)
    hot = init.one_hot(3, ndl.Tensor([2, 0]))
    assert hot.numpy().tolist() == [[0, 0, 1], [1, 0, 0]]
    assert hot.dtype == np.float32
    with pytest.raises(ValueError, match=r"numbers in 0\.\.2, but got 0\.\.3"):
        init.one_hot(3, ndl.Tensor([0, 3]))
    with pytest.raises(ValueError, match=r"but got -1\.\.0"):
        init.one_hot(3, ndl.Tensor([0, -1]))
    with pytest.raises(TypeError, match="needs integers"):
        init.one_hot(3, ndl.Tensor([0.5]))
    with pytest.raises(ValueError, match=r"at least 1, but got \(0, 2\)"):
        init.kaiming_uniform(0, 2)
    with pytest.raises(ValueError, match="nonlinearity='relu'"):
        init.kaiming_uniform(1, 2, "tanh")
