"""What has been learned, kept and put back: state_dict of optimizers and schedules, save and load."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

import needle as ndl
from needle import nn, schedules
from needle.optim import SGD, Adam, Optimizer

X = np.random.default_rng(1).standard_normal((24, 3)).astype("float32")
Y = (X.sum(1) > 0).astype("int64")


def run(kind="Adam", width=4):
    """A model, an optimizer and a schedule, of everything that keeps something from step to step."""
    np.random.seed(5)
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 2))
    make = {"SGD": lambda p: SGD(p, lr=0.2, momentum=0.9, weight_decay=1e-3), "Adam": lambda p: Adam(p, lr=0.02)}[kind]
    optimizer = make(model.parameters())
    schedule = schedules.Warmup(optimizer, 3, then=schedules.CosineLR(optimizer, 20))
    return model, optimizer, schedule


def train(model, optimizer, schedule, epochs):
    for _ in range(epochs):
        for x, y in ndl.data.DataLoader(ndl.data.NDArrayDataset(X, Y), batch_size=8, shuffle=True):
            optimizer.zero_grad()
            nn.SoftmaxLoss()(model(x), y).backward()
            optimizer.clip_grad_norm(1.0)
            optimizer.step()
            schedule.step()


def everything(model, optimizer, schedule):
    states = [*model.state_dict().items(), *optimizer.state_dict().items(), *schedule.state_dict().items()]
    return {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in states}


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_resumed_run_has_the_same_bits(tmp_path, kind):
    straight = run(kind)
    train(*straight, 5)
    at_once = everything(*straight), np.random.rand()

    stopped = run(kind)
    train(*stopped, 2)
    ndl.save(tmp_path / "run.npz", *stopped, epoch=2)
    resumed = run(kind)  # has drawn random numbers of its own
    assert ndl.load(tmp_path / "run.npz", *resumed) == {"epoch": 2}
    assert everything(*resumed) == everything(*stopped)
    train(*resumed, 3)
    assert (everything(*resumed), np.random.rand()) == at_once


@pytest.mark.parametrize("part", ["model", "optimizer", "schedule"])
def test_a_part_that_is_not_loaded_shows(tmp_path, part):
    """The test above can fail: without the state of any one part, the bits are others."""
    straight = run()
    train(*straight, 4)
    stopped = run()
    train(*stopped, 2)
    ndl.save(tmp_path / "run.npz", *stopped)
    resumed = run()
    other = dict(zip(("model", "optimizer", "schedule"), run(), strict=True))[part]
    parts = [
        other if name == part else own for name, own in zip(("model", "optimizer", "schedule"), resumed, strict=True)
    ]
    ndl.load(tmp_path / "run.npz", *parts)
    train(*resumed, 2)
    assert everything(*resumed) != everything(*straight)


def test_loading_a_model_alone_leaves_the_generator_alone(tmp_path):
    model, optimizer, schedule = run()
    ndl.save(tmp_path / "run.npz", model, optimizer, schedule)
    other = run()[0]
    other[0].weight.data = ndl.zeros(3, 4)
    before = np.random.get_state()[1].tobytes()
    ndl.load(tmp_path / "run.npz", other)
    assert np.random.get_state()[1].tobytes() == before
    assert all(
        np.array_equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_the_random_state_of_a_normal_number_that_waits_is_kept(tmp_path):
    p = nn.Linear(1, 1)
    np.random.seed(2)
    np.random.randn()  # makes two, and keeps one
    ndl.save(tmp_path / "a", p, SGD(p.parameters()))
    expected = np.random.randn()
    ndl.load(tmp_path / "a", p, SGD(p.parameters()))
    assert np.random.randn() == expected


def test_what_is_extra_comes_back(tmp_path):
    ndl.save(tmp_path / "a.npz", nn.Linear(1, 1), epoch=3, best=0.5, name="wide", losses=[0.5, 0.25])
    extra = ndl.load(tmp_path / "a.npz", nn.Linear(1, 1))
    assert (extra["epoch"], extra["best"], extra["name"], extra["losses"].tolist()) == (3, 0.5, "wide", [0.5, 0.25])
    assert (type(extra["epoch"]), type(extra["best"]), type(extra["name"])) == (int, float, str)
    with np.load(tmp_path / "a.npz") as file:
        assert not [name for name in file.files if name.startswith("random/")], (
            "no optimizer, no training to go on with"
        )
    with pytest.raises(TypeError, match=r"save: tags must be a number, a text or an array of them, got \{'a': 1\}"):
        ndl.save(tmp_path / "b.npz", nn.Linear(1, 1), tags={"a": 1})
    assert os.listdir(tmp_path) == ["a.npz"]


def test_numpy_reads_the_file_too(tmp_path):
    model, optimizer, _ = run()
    ndl.save(tmp_path / "a.npz", model, optimizer)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["model/0.weight"], model[0].weight.numpy())
        assert file["optimizer/lr"] == optimizer.lr


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    ndl.save(path, nn.Linear(2, 3))
    before = path.read_bytes()
    written = []

    def full(file, array, allow_pickle):
        written.append(array)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.npz'$"):
        ndl.save(path, nn.Linear(2, 3))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, sizes = tmp_path / "a.npz", []

    def synced(descriptor, real=os.fsync):
        assert not path.exists()
        sizes.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    ndl.save(path, nn.Linear(2, 3))
    assert sizes == [path.stat().st_size]


def test_each_array_has_room_for_more_than_two_gigabytes(tmp_path):
    """A zip entry must say so before it is written, when nobody knows yet how long it will be."""
    ndl.save(tmp_path / "a.npz", nn.Linear(2, 3))
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        assert {entry.extract_version for entry in file.infolist()} == {zipfile.ZIP64_VERSION}


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/a\.npz'$"):
        ndl.save(tmp_path / "nowhere/a.npz", nn.Linear(1, 1))
    with pytest.raises(FileNotFoundError, match=r"a\.npz"):
        ndl.load(tmp_path / "a.npz", nn.Linear(1, 1))


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    ndl.save(tmp_path / "link.npz", nn.Linear(1, 1))
    assert (tmp_path / "link.npz").is_symlink()
    ndl.load(tmp_path / "real.npz", nn.Linear(1, 1))


# -- what is refused


def changed(path, name, value):
    """The file with one array replaced, or left out if value is None."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    del entries[name + ".npy"]
    if value is not None:
        content = io.BytesIO()
        np.save(content, value, allow_pickle=True)
        entries[name + ".npy"] = content.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)


CHANGES = {
    "no format": ("needle", None, ValueError, "was not written by ndl.save"),
    "another format": ("needle", 2, ValueError, "has the format 2, but this needle reads the format 1"),
    "a missing parameter": ("model/0.weight", None, KeyError, r"missing \['0.weight'\]"),
    "a missing buffer": ("model/1.running_var", None, KeyError, r"missing \['1.running_var'\]"),
    "another shape": (
        "model/0.weight",
        np.zeros((4, 3), "f"),
        ValueError,
        r"0.weight has the shape \(3, 4\), but got \(4",
    ),
    "another dtype": (
        "model/0.weight",
        np.zeros((3, 4)),
        ValueError,
        "0.weight has the dtype float32, but got float64",
    ),
    "texts": ("model/0.bias", np.array([["a"] * 4]), ValueError, "0.bias must be an array of numbers"),
    "a pickled array": ("model/0.bias", np.array([[{}] * 4]), ValueError, "holds pickled objects"),
    "another class": (
        "optimizer/optimizer",
        "SGD",
        ValueError,
        "Adam.load_state_dict: this is the state of SGD, not of Adam",
    ),
    "another number": ("optimizer/params", 5, ValueError, "the state of 5 parameters, but the optimizer has 6"),
    "no count": ("optimizer/params", None, KeyError, r"missing \['params'\]"),
    "no lr": ("optimizer/lr", None, KeyError, r"missing \['lr'\]"),
    "a bad lr": ("optimizer/lr", np.nan, ValueError, "Adam: lr must be finite and not negative, got lr=nan"),
    "lr a text": ("optimizer/lr", "0.1", ValueError, "lr must be a number, but got '0.1'"),
    "lr an array": ("optimizer/lr", np.ones(2), ValueError, "lr must be a number, but got array"),
    "shape of m": (
        "optimizer/m.1",
        np.zeros(4, "f"),
        ValueError,
        r"m.1 must be as its parameter, float32 of shape \(1, 4\)",
    ),
    "dtype of v": ("optimizer/v.0", np.zeros((3, 4)), ValueError, r"v.0 must be as its .* but got float64 of shape"),
    "count 0": ("optimizer/t.2", 0, ValueError, "t.2 must be at least 1"),
    "count 1.5": ("optimizer/t.2", 1.5, ValueError, "t.2 must be an integer"),
    "schedule's class": ("schedule/schedule", "StepLR", ValueError, "this is the state of StepLR, not of Warmup"),
    "schedule's setting": ("schedule/steps", 4, ValueError, "steps must be that of the schedule, 3, but got 4"),
    "then's setting": (
        "schedule/then.steps",
        4,
        ValueError,
        "CosineLR.load_state_dict: steps must be .* 20, but got 4",
    ),
    "schedule's t": ("schedule/t", -1, ValueError, "t must be at least 0"),
    "schedule's base": ("schedule/base", -1.0, ValueError, "base must be finite and not negative"),
    "no generator": ("random/keys", None, ValueError, "as the state of NumPy's generator is none"),
    "a bad generator": ("random/keys", np.ones(3), ValueError, "as the state of NumPy's generator is none"),
    "a bad place in it": ("random/position", 625, ValueError, "as the state of NumPy's generator is none"),
    "two places in it": ("random/position", np.ones(2, int), ValueError, "as the state of NumPy's generator is none"),
    "a flag that is a text": ("random/has_gauss", "1", ValueError, "as the state of NumPy's generator is none"),
    "a number that is an array": ("random/gauss", np.ones(1), ValueError, "as the state of NumPy's generator is none"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_wrong_file_is_refused_and_nothing_is_loaded(tmp_path, what):
    name, value, kind, match = CHANGES[what]
    path = tmp_path / "a.npz"
    model, optimizer, schedule = run()
    train(model, optimizer, schedule, 1)
    ndl.save(path, model, optimizer, schedule)
    changed(path, name, value)
    fresh = run()
    train(*fresh, 2)
    before, generator = everything(*fresh), np.random.get_state()[1].tobytes()
    with pytest.raises(kind, match=match) as refusal:
        ndl.load(path, *fresh)
    assert str(path) in str(refusal.value)
    assert everything(*fresh) == before
    assert np.random.get_state()[1].tobytes() == generator


def test_every_damaged_byte_is_noticed_or_does_no_harm(tmp_path):
    path = tmp_path / "a.npz"
    model = nn.Linear(2, 2)
    ndl.save(path, model)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        other = nn.Linear(2, 2)
        expected = other.state_dict()
        try:
            ndl.load(path, other)
            expected = model.state_dict()
        except (ValueError, KeyError) as error:
            refused += "a.npz" in str(error)
        assert all(np.array_equal(a, b) for a, b in zip(other.state_dict().values(), expected.values(), strict=True))
    assert refused > len(whole) / 6
    for length in range(0, len(whole), 31):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.npz"):
            ndl.load(path, model)


FOREIGN = {
    "a pickle": (lambda p: p.write_bytes(pickle.dumps({"w": 1})), "looks like a pickle, and loading one runs"),
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "a text": (lambda p: p.write_text("weights"), "is no .npz file"),
    "npy": (lambda p: np.save(p, np.ones(2)), r"holds one array \(.npy\)"),
    "npz": (
        lambda p: np.savez(p, **nn.Linear(1, 1).state_dict()),
        r"was not written by ndl\.save; .*load_state_dict\(np\.load",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_is_refused_by_name(tmp_path, what):
    write, match = FOREIGN[what]
    path = tmp_path / ("a.npy" if what == "npy" else "a.npz")
    write(path)
    with pytest.raises(ValueError, match=match):
        ndl.load(path, nn.Linear(1, 1))


def test_what_is_no_model_is_refused_by_name(tmp_path):
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters())
    path = tmp_path / "a.npz"
    for call in ndl.save, ndl.load:
        with pytest.raises(
            TypeError, match=r"model must be a Module, but got .*Path; write ndl\.\w+\(path, model, opt"
        ):
            call(model, path)
        with pytest.raises(TypeError, match="model must be a Module, but got the class Linear"):
            call(path, nn.Linear)
        with pytest.raises(TypeError, match="model must be a Module, but got NoneType"):
            call(path, None, optimizer)
        with pytest.raises(TypeError, match="optimizer must be an Optimizer, but got Linear"):
            call(path, model, model)
        with pytest.raises(TypeError, match="schedule must be a Schedule, but got SGD"):
            call(path, model, optimizer, optimizer)
    ndl.save(path, model)
    with pytest.raises(KeyError, match="has no optimizer; it was saved without one"):
        ndl.load(path, model, optimizer)


# -- optimizers and schedules by themselves


def test_the_state_of_an_optimizer_is_copied_out_and_in():
    model, optimizer, schedule = run()
    train(model, optimizer, schedule, 1)
    state = optimizer.state_dict()
    kept = {name: np.array(value) for name, value in state.items()}
    train(model, optimizer, schedule, 1)
    for name, value in state.items():
        np.testing.assert_array_equal(value, kept[name])
    optimizer.load_state_dict(state)
    for value in state.values():
        if isinstance(value, np.ndarray) and value.ndim:
            value[...] = 7
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, kept[name])


def test_an_optimizer_that_has_not_stepped_yet_has_settings_only():
    p = nn.Parameter([1.0, 2.0])
    optimizer = Adam([p], lr=0.5)
    fresh = optimizer.state_dict()
    assert list(fresh) == ["optimizer", "params", "lr", "beta1", "beta2", "eps", "weight_decay"]
    p.grad = ndl.ones(2)
    optimizer.step()
    assert optimizer.state_dict()["t.0"] == 1
    optimizer.load_state_dict(fresh)
    assert not optimizer.t
    assert not optimizer.m
    p.grad = ndl.ones(2)
    optimizer.step()
    assert optimizer.state_dict()["t.0"] == 1


@pytest.mark.parametrize(
    ("given", "match"), [("a.npz", "got str"), (nn.Linear(1, 1), "got Linear"), (None, "got None")]
)
def test_what_is_no_state_is_refused_by_name(given, match):
    _, optimizer, schedule = run()
    with pytest.raises(TypeError, match=f"^Adam.load_state_dict takes what state_dict.. has returned, but {match}"):
        optimizer.load_state_dict(given)
    with pytest.raises(TypeError, match=f"^Warmup.load_state_dict takes what state_dict.. has returned, but {match}"):
        schedule.load_state_dict(given)


def test_an_optimizer_of_ones_own_has_to_say_what_it_keeps():
    class Plain(Optimizer):
        def step(self):
            pass

    optimizer = Plain([nn.Parameter([1.0])])
    with pytest.raises(NotImplementedError, match=r"Plain must define state_dict\(\)"):
        optimizer.state_dict()
    with pytest.raises(NotImplementedError, match=r"Plain must define load_state_dict\(\)"):
        optimizer.load_state_dict({})
    assert repr(optimizer) == "Plain(1 parameter of 1 number)"


def test_an_optimizer_shows_its_settings():
    model = nn.Linear(100, 20)
    assert (
        repr(SGD(model.parameters(), lr=0.1))
        == "SGD(2 parameters of 2,020 numbers, lr=0.1, momentum=0.0, weight_decay=0.0)"
    )
    assert repr(Adam([nn.Parameter(1.0)])) == (
        "Adam(1 parameter of 1 number, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.0)"
    )


def test_parameter_groups_are_refused_with_the_way_out():
    p = nn.Parameter([1.0])
    with pytest.raises(TypeError, match=r"^Adam: there are no parameter groups.*an optimizer for each group.*lr=0\.1"):
        Adam([{"params": [p], "lr": 0.1}])


def test_a_schedule_is_not_forgotten_in_silence(tmp_path):
    path = tmp_path / "m.npz"
    ndl.save(path, *run())
    model, optimizer, _ = run()
    with pytest.raises(
        KeyError, match=r"has a schedule, which would begin anew: write ndl.load\(path, model, optimizer, schedule\)"
    ):
        ndl.load(path, model, optimizer)
    ndl.load(path, model)


def test_a_file_of_save_is_known_where_a_state_is_wanted(tmp_path):
    path = tmp_path / "m.npz"
    model, *_ = run()
    ndl.save(path, model)
    with pytest.raises(KeyError, match=r"a file of ndl.save: ndl.load\(path, model\) reads it"):
        model.load_state_dict(np.load(path))
