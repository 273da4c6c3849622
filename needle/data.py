"""Datasets, transforms of images, and the DataLoader."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.autograd import Tensor, _integer, _native, _real

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = [
    "DataLoader",
    "Dataset",
    "MNISTDataset",
    "NDArrayDataset",
    "RandomCrop",
    "RandomFlipHorizontal",
    "Transform",
    "drawn_digits",
    "parse_mnist",
]


class Transform:
    """Base of transforms of one image: (H, W, C) -> (H, W, C)."""

    def __call__(self, x: Array) -> Array:
        """Return the transformed image."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, x)")


class RandomFlipHorizontal(Transform):
    """Mirror an image left to right with probability p: (H, W, C) -> (H, W, C). Draws one
    ``np.random.rand()``.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not isinstance(p, int | float | np.floating) or not 0 <= p <= 1:
            raise ValueError(f"RandomFlipHorizontal: p must be in [0, 1], got p={p!r}")
        self.p = p

    def __call__(self, img: Array) -> Array:
        """Return the image, mirrored or not."""
        return np.flip(img, axis=1) if np.random.rand() < self.p else img


class RandomCrop(Transform):
    """Shift an image by up to ``padding`` pixels each way, filling with zeros: (H, W, C) -> (H, W, C).

    Draws one ``np.random.randint(-padding, padding + 1, size=2)``: the shift down the rows and along the
    columns.
    """

    def __init__(self, padding: int = 3) -> None:
        self.padding = _integer(padding, "RandomCrop: padding", 0)

    def __call__(self, img: Array) -> Array:
        """Return the shifted image."""
        pad = self.padding
        down, right = np.random.randint(-pad, pad + 1, size=2)
        height, width = img.shape[:2]
        padded = np.pad(img, ((pad, pad), (pad, pad)) + ((0, 0),) * (img.ndim - 2))
        return padded[pad + down : pad + down + height, pad + right : pad + right + width]


class Dataset:
    """Base of datasets: ``len(dataset)`` items, ``dataset[i]`` a tuple of arrays or numbers."""

    def __init__(self, transforms: Sequence[Callable[[Array], Array]] | None = None) -> None:
        self.transforms = transforms

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__(self, index)")

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__(self)")

    def apply_transforms(self, x: Array) -> Array:
        """Return x after all transforms, in order."""
        for transform in self.transforms or ():
            x = transform(x)
        return x


class NDArrayDataset(Dataset):
    """Arrays of equal length n: item i is the tuple of their rows i; an array of indices gives several rows
    at once.

    The arrays are not copied, and what is written into them later is what the dataset then gives.
    """

    def __init__(self, *arrays: Any) -> None:
        super().__init__()
        if not arrays:
            raise ValueError("NDArrayDataset needs at least one array")
        self.arrays = tuple(np.asarray(a) for a in arrays)
        lengths = [len(a) for a in self.arrays]
        if len(set(lengths)) != 1:
            raise ValueError(f"NDArrayDataset needs arrays of equal length, but got lengths {lengths}")

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        return tuple(a[index] for a in self.arrays)


class MNISTDataset(Dataset):
    """Images and labels from two gzipped IDX files: item i is an image (28, 28, 1), float32 in [0, 1], and a
    uint8 label.

    ``transforms`` are applied to each image. A slice or an array of indices gives (n, 28, 28, 1) and (n,).
    """

    def __init__(
        self,
        image_filename: str,
        label_filename: str,
        transforms: Sequence[Callable[[Array], Array]] | None = None,
    ) -> None:
        super().__init__(transforms)
        self.images, self.labels = parse_mnist(image_filename, label_filename)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[Array, Any]:
        images, labels = self.images[index].reshape(-1, 28, 28, 1), self.labels[index]
        if np.ndim(labels):
            if self.transforms and len(images):
                images = np.stack([self.apply_transforms(image) for image in images])
            return images, labels
        return self.apply_transforms(images[0]), labels


# The digits of a 5 × 7 dot-matrix display, a row of dots for each number of five bits.
_DOTS = (
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
)


def drawn_digits(n: int, noise: float = 0.25, seed: int = 0) -> tuple[Array, Array]:
    """Make digits to try a model on, where there are no data: -> images (n, 9, 7), float32, and labels (n,), uint8.

    Nobody has written them: each is one of ten 5 × 7 glyphs, at a place and of a brightness that are drawn, with normal
    noise of standard deviation ``noise`` added to each pixel. They have a generator of their own, with this ``seed``, and
    leave NumPy's global one alone; another seed gives other images, to test on.

    >>> images, labels = drawn_digits(2, noise=0)
    >>> for row in images[0]:
    ...     print("".join("-#"[int(dot > 0)] for dot in row))
    -------
    --#####
    --#----
    --####-
    ------#
    ------#
    --#---#
    ---###-
    -------
    """
    n = _integer(n, "drawn_digits: n", 0)
    if not isinstance(noise, int | float | np.floating) or not 0 <= noise < math.inf:
        raise ValueError(f"drawn_digits: noise must be finite and not negative, got noise={noise!r}")
    rng = np.random.RandomState(seed)
    labels = rng.randint(0, 10, n).astype(np.uint8)
    dots = np.array([[[row >> (4 - i) & 1 for i in range(5)] for row in glyph] for glyph in _DOTS], np.float32)
    images = np.zeros((n, 9, 7), np.float32)
    for image, label, down, right in zip(images, labels, rng.randint(0, 3, n), rng.randint(0, 3, n), strict=True):
        image[down : down + 7, right : right + 5] = dots[label]
    images *= rng.uniform(0.7, 1.3, (n, 1, 1)).astype(np.float32)
    images += (noise * rng.standard_normal(images.shape)).astype(np.float32)
    return images, labels


def parse_mnist(image_filename: str, label_filename: str) -> tuple[Array, Array]:
    """Read the IDX files of MNIST: -> images (n, 784), float32 in [0, 1], and labels (n,), uint8.

    ValueError if a file has another format or the two do not belong together.
    """
    images, (n, rows, columns) = _read_idx(image_filename, "images", 2051, 3)
    labels, (m,) = _read_idx(label_filename, "labels", 2049, 1)
    if n != m:
        raise ValueError(f"there are {n} images in {image_filename} but {m} labels in {label_filename}")
    return images.reshape(n, rows * columns).astype(np.float32) / np.float32(255), labels.copy()


def _read_idx(filename: str, what: str, magic: int, ndim: int) -> tuple[Array, tuple[int, ...]]:
    """Read an IDX file: a magic number and the sizes as big-endian integers, then the bytes."""
    import gzip  # here, because few programs read such files and importing needle should cost nothing

    with gzip.open(filename) as file:
        content = file.read()
    start = int.from_bytes(content[:4], "big")
    if start != magic:
        raise ValueError(f"{filename} is no IDX file of {what}: it starts with {start} instead of {magic}")
    head = 4 + 4 * ndim
    sizes = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, head, 4))
    if len(content) - head != math.prod(sizes):
        raise ValueError(f"{filename} should hold {sizes} bytes of {what}, but holds {len(content) - head}")
    return np.frombuffer(content, np.uint8, offset=head), sizes


class DataLoader:
    """Batches of a dataset as tuples of Tensors (requires_grad=False); the last batch may be short.

    ``shuffle=True`` draws one ``np.random.permutation`` each time an iteration starts. ``drop_last=True`` leaves out a
    last batch that is short, such as one of a single row, of which BatchNorm1d has no variance. ``len(loader)`` is how many
    batches an iteration gives, for whoever shows progress.

    >>> dataset = NDArrayDataset(np.ones((3, 2)), np.array([0, 1, 0]))
    >>> for x, y in DataLoader(dataset, batch_size=2):
    ...     print(x.shape, y)
    (2, 2) [0 1]
    (1, 2) [0]
    >>> DataLoader(dataset, batch_size=2, drop_last=True)
    DataLoader(NDArrayDataset, 3 items in 1 batch of 2, drop_last=True)
    """

    def __init__(
        self, dataset: Dataset, batch_size: int | None = 1, shuffle: bool = False, drop_last: bool = False
    ) -> None:
        if isinstance(dataset, type) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            what = f"the class {dataset.__name__}" if isinstance(dataset, type) else type(dataset).__name__
            raise TypeError(f"DataLoader takes a dataset with a length and items, but got {what}")
        self.dataset = dataset
        self.batch_size = _integer(batch_size, "DataLoader: batch_size", 1)
        self.shuffle = shuffle
        self.drop_last = drop_last

    def __len__(self) -> int:
        n = len(self.dataset)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __repr__(self) -> str:
        flags = "".join(f", {name}=True" for name in ("shuffle", "drop_last") if getattr(self, name))
        batches = f"{len(self)} batch{'es' * (len(self) != 1)} of {self.batch_size}"
        return f"DataLoader({type(self.dataset).__name__}, {len(self.dataset)} items in {batches}{flags})"

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        n = len(self.dataset)
        # Drawn here and not at the first batch, so that random numbers are used in the order of the program.
        order = np.random.permutation(n) if self.shuffle else np.arange(n)
        return (self._batch(order[i : i + self.batch_size]) for i in range(0, n, self.batch_size)[: len(self)])

    def _batch(self, indices: Array) -> tuple[Tensor, ...]:
        if type(self.dataset) is NDArrayDataset:
            columns: Any = self.dataset[indices]
        else:
            items = [self.dataset[int(i)] for i in indices]
            items = [item if isinstance(item, tuple | list) else (item,) for item in items]
            columns = [np.stack([np.asarray(part) for part in column]) for column in zip(*items, strict=True)]
        columns = [np.asarray(column) for column in columns]
        for column in columns:
            _real(column.dtype, "DataLoader: a batch")
        return tuple(Tensor.make_const(_native(column)) for column in columns)
