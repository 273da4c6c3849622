"""Datasets, loaders and initialisers: shapes, dtypes and the order of random numbers."""

import gzip
import struct
import tracemalloc

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


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_items_that_are_tensors_become_batches_of_constants():
    dataset = Items([(ndl.Tensor([1.0, 2.0]), ndl.Tensor(i)) for i in range(3)])
    (x, y), (last, _) = DataLoader(dataset, batch_size=2)
    assert (x.tolist(), y.tolist(), last.tolist()) == ([[1, 2], [1, 2]], [0, 1], [[1, 2]])
    for batch in (x, y, last):
        assert type(batch.cached_data) is np.ndarray
        assert not batch.requires_grad


def test_objects_are_no_numbers_even_where_each_is_one():
    for dataset in (NDArrayDataset(np.array([1, 2], object)), Items([(np.array([1, 2], object),)])):
        with pytest.raises(TypeError, match="DataLoader: a batch holds real numbers or bools, but got dtype object"):
            list(DataLoader(dataset))


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


@pytest.mark.parametrize("make", [init.rand, init.randn])
def test_random_numbers_that_are_not_converted_take_no_more_memory(make):
    peaks = []
    for dtype in ("float64", "float32"):  # they are drawn as float64
        tracemalloc.start()
        try:
            make(300, 1000, dtype=dtype)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    double, single = peaks
    assert double < single + 4096


NUMBERS = {
    "rand": (init.rand, "float32"),
    "randn": (init.randn, "float32"),
    "randb": (init.randb, "bool"),
    "constant": (init.constant, "float32"),
    "ones": (init.ones, "float32"),
    "zeros": (init.zeros, "float32"),
    "one_hot": (lambda *shape, **kw: init.one_hot(3, ndl.Tensor(np.zeros(shape[:1], int)), **kw), "float32"),
    "xavier_uniform": (init.xavier_uniform, "float32"),
    "xavier_normal": (init.xavier_normal, "float32"),
    "kaiming_uniform": (init.kaiming_uniform, "float32"),
    "kaiming_normal": (init.kaiming_normal, "float32"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_what_an_initialiser_does_unless_asked_otherwise(name):
    make, dtype = NUMBERS[name]
    plain = make(2, 3)
    assert (plain.shape, plain.dtype, plain.requires_grad) == ((2, 3), np.dtype(dtype), False)
    asked = make(2, 3, dtype="float64", requires_grad=True)
    assert (asked.shape, asked.dtype, asked.requires_grad) == ((2, 3), np.dtype("float64"), True)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_like_another(dtype):
    other = ndl.Tensor(np.array([[1, 2, 3]], dtype), dtype=dtype, requires_grad=dtype != "int8")
    for make, number in ((init.zeros_like, 0), (init.ones_like, 1)):
        made = make(other)
        assert (made.shape, made.dtype, made.requires_grad) == ((1, 3), np.dtype(dtype), False)
        assert (made.numpy() == number).all()
        if dtype != "int8":
            assert make(other, requires_grad=True).requires_grad


def test_defaults_and_edges_of_transforms(monkeypatch):
    image = np.arange(24.0).reshape(4, 3, 2)
    assert (RandomFlipHorizontal().p, RandomCrop().padding) == (0.5, 3)
    np.testing.assert_array_equal(RandomCrop(0)(image), image)
    monkeypatch.setattr(np.random, "rand", lambda: 0.0)  # which it may give, and 1 it never gives
    np.testing.assert_array_equal(RandomFlipHorizontal(0)(image), image)
    monkeypatch.setattr(np.random, "rand", lambda: 0.5)
    np.testing.assert_array_equal(RandomFlipHorizontal()(image), image)
    np.testing.assert_array_equal(init.randb(p=0.5).numpy(), np.True_)


def test_datasets_of_lists_of_one_column_and_of_numbers():
    dataset = NDArrayDataset([1, 2, 3], [[4.0], [5.0], [6.0]])
    assert len(dataset) == 3
    assert dataset.transforms is None
    assert dataset[1] == (2, [5.0])
    assert len(NDArrayDataset([1, 2], np.zeros((2, 5)))) == 2

    class Column(Dataset):
        def __init__(self, kind):
            self.kind = kind

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return {"a number": i + 0.5, "a list": [i, i + 1], "an array": np.full(2, i)}[self.kind]

    (numbers,), (last,) = DataLoader(Column("a number"), batch_size=2)
    assert (numbers.numpy().tolist(), last.numpy().tolist()) == ([0.5, 1.5], [2.5])
    ((left, right),) = DataLoader(Column("a list"), batch_size=3)
    assert (left.numpy().tolist(), right.numpy().tolist()) == ([0, 1, 2], [1, 2, 3])
    ((arrays,),) = DataLoader(Column("an array"), batch_size=3)
    assert arrays.numpy().tolist() == [[0, 0], [1, 1], [2, 2]]
    one = list(DataLoader(dataset))
    assert [x.shape for x, _ in one] == [(1,)] * 3


def test_mnist_in_slices_of_any_length(mnist):
    paths, images = mnist
    small = MNISTDataset(*paths, transforms=[lambda image: image[4:24, 4:24]])
    assert small[:3][0].shape == (3, 20, 20, 1)
    for transforms in (None, [RandomFlipHorizontal(1.0)]):
        dataset = MNISTDataset(*paths, transforms=transforms)
        for index in (slice(0, 0), slice(2, 3), [4, 0]):
            many, labels = dataset[index]
            expected = images[index].astype(np.float32) / np.float32(255)
            assert (many.dtype, many.shape, labels.dtype) == (np.float32, (*expected.shape, 1), np.uint8)
            np.testing.assert_array_equal(many[..., 0], expected[:, :, ::-1] if transforms else expected)


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
    np.testing.assert_array_equal(init.one_hot(3, [2, 0]).numpy(), hot.numpy())
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
