"""Another needle's DataLoader: what is wrong with its batches is said, and nothing of one that is right or not offered."""

import numpy as np
import pytest
import torch

import needle
from needle import Tensor
from oracle.blame.entry import RAISES, WRONG
from oracle.runs import loading
from oracle.systems.foreign import LOADER, Offer


class Course:
    """A loader as course code writes it: an iterator of itself, whose order is drawn where an epoch begins."""

    def __init__(self, dataset, batch_size=1, shuffle=False):
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle

    def order(self):
        return np.random.permutation(len(self.dataset)) if self.shuffle else np.arange(len(self.dataset))

    def parts(self, order):
        return np.array_split(order, range(self.batch_size, len(order), self.batch_size))

    def __iter__(self):
        self.rest = iter(self.parts(self.order()))
        return self

    def __next__(self):
        return self.batch(next(self.rest))

    def batch(self, part):
        return tuple(Tensor(a) for a in self.dataset[part])


class OneByOne(Course):
    def batch(self, part):
        return [Tensor(np.stack(column)) for column in zip(*(self.dataset[int(i)] for i in part), strict=True)]


def of_torch(n, size):
    x, y = torch.arange(2.0 * n).reshape(n, 2), torch.arange(n)
    data = torch.utils.data.TensorDataset(x, y)
    return [[(a.numpy(), b.numpy()) for a, b in torch.utils.data.DataLoader(data, size)] for _ in range(2)]


@pytest.mark.parametrize(("rows", "size", "shuffle"), loading.TRIED)
def test_what_torch_hands_out_without_shuffling_is_right(rows, size, shuffle):
    epochs = of_torch(rows, size)
    assert loading.wrong(epochs, rows, size, False) == ""
    assert loading.wrong(epochs, rows, size, True) == ("does not shuffle")
    assert loading.sizes(rows, size) == [len(y) for _, y in epochs[0]]


@pytest.mark.parametrize("kind", [needle.data.DataLoader, Course, OneByOne])
def test_a_right_loader_has_no_entry(kind, monkeypatch):
    monkeypatch.setattr(needle.data, "DataLoader", kind)
    assert loading.absent() == ""
    assert loading.look(needle) == []


class LastLost(Course):
    def parts(self, order):
        return super().parts(order)[: len(order) // self.batch_size]


class FullOnly(Course):
    def parts(self, order):
        return [np.resize(part, self.batch_size) for part in super().parts(order)]


class Once(Course):
    def __init__(self, *given, **keywords):
        super().__init__(*given, **keywords)
        self.rest = iter(self.parts(self.order()))

    def __iter__(self):
        return self


class Endless(Course):
    def __next__(self):
        return self.batch(np.arange(self.batch_size))


class Backwards(Course):
    def parts(self, order):
        return super().parts(order if self.shuffle else order[::-1])


class Replaced(Course):
    def order(self):
        return np.random.randint(0, len(self.dataset), len(self.dataset)) if self.shuffle else super().order()


class InOrder(Course):
    def order(self):
        return np.arange(len(self.dataset))


class DrawnOnce(Course):
    def order(self):
        return np.random.RandomState(0).permutation(len(self.dataset)) if self.shuffle else super().order()


class Apart(Course):
    def batch(self, part):
        x, y = super().batch(part)
        return x, Tensor(np.sort(y.numpy()))


class Column(Course):
    def batch(self, part):
        x, y = super().batch(part)
        return x, y.reshape((len(part), 1))


class Raises(Course):
    def batch(self, part):
        return needle.reshape(super().batch(part)[0], (-5, 3))


PLANTED = [
    (LastLost, "batch_size=3) on 7 rows: the last batch is lost"),
    (FullOnly, "batch_size=3) on 7 rows: gives batches of [3, 3, 3] rows, not [3, 3, 1]"),
    (Once, "batch_size=3) on 7 rows: in the second epoch gives no batch at all"),
    (Endless, "batch_size=3) on 7 rows: gives batches of [3, 3, 3, 3, 3, 3, 3, 3] rows, not [3, 3, 1]"),
    (Backwards, "batch_size=3) on 7 rows: gives rows in another order than that of the data set"),
    (Replaced, "batch_size=6, shuffle=True) on 20 rows: gives some rows more than once and others never"),
    (InOrder, "batch_size=6, shuffle=True) on 20 rows: does not shuffle"),
    (DrawnOnce, "batch_size=6, shuffle=True) on 20 rows: gives the same order in each epoch"),
    (Apart, "batch_size=6, shuffle=True) on 20 rows: gives rows with the labels of others"),
    (
        Column,
        "batch_size=3) on 7 rows: gives batches of shapes (3, 2) and (3, 1) for rows of shape (2,) with a label each",
    ),
]


@pytest.mark.parametrize(("kind", "words"), PLANTED)
def test_what_is_wrong_is_said_once_with_a_program_that_shows_it(kind, words, monkeypatch):
    monkeypatch.setattr(needle.data, "DataLoader", kind)
    (entry,) = loading.look(needle)
    assert entry.sentence == f"DataLoader(data, {words}"
    assert (entry.severity, entry.exact.startswith("batches of [")) == (WRONG, True)
    assert "ndl.data.DataLoader(rows, batch_size=" in entry.program
    assert entry.place.startswith("oracle/test_loading.py:")
    if kind is LastLost:
        assert entry.theirs == "[[0, 1, 2], [3, 4, 5]], then [[0, 1, 2], [3, 4, 5]]"


def test_what_is_wrong_with_shuffling_alone_is_told_beside_what_is_wrong_without(monkeypatch):
    class Both(LastLost, InOrder):
        pass

    monkeypatch.setattr(needle.data, "DataLoader", Both)
    assert [e.sentence.partition(": ")[2] for e in loading.look(needle)] == ["the last batch is lost"]
    monkeypatch.setattr(Both, "parts", lambda self, order: Course.parts(self, order)[self.shuffle - 1 :])
    entries = loading.look(needle)
    assert len(entries) == 2, [e.sentence for e in entries]


def test_an_exception_out_of_a_line_of_the_needle_is_a_finding_with_that_line(monkeypatch):
    monkeypatch.setattr(needle.data, "DataLoader", Raises)
    assert loading.absent() == ""
    entries = loading.look(needle)
    assert {(e.severity, e.sentence.partition("rows: ")[2]) for e in entries} == {(RAISES, "raises ValueError")}
    assert entries[0].place.startswith("needle/ops.py:")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (lambda *_, **__: (_ for _ in ()).throw(NotImplementedError("homework 2")), "NotImplementedError: homework 2"),
        (lambda x, y: None, "TypeError: "),  # another signature than the course's
        (None, "AttributeError: "),
    ],
)
def test_what_is_not_offered_is_no_finding(kind, why, monkeypatch):
    if kind is None:
        monkeypatch.delattr(needle.data, "DataLoader")
    else:
        monkeypatch.setattr(needle.data, "DataLoader", kind)
    assert loading.absent().startswith(why)
    assert loading.look(needle) == []


def test_it_can_be_required():
    assert Offer(required=("DataLoader",)).absent == []
    assert Offer({LOADER: "there is none"}, required=("DataLoader",)).absent == ["DataLoader"]
