"""Every gate catches what it is for, names the holder, and passes on clean code."""

from pathlib import Path

import msgspec
import pytest

pytest.importorskip("memray", reason="memray does not exist on this system: the memory gates C and D were not tested")

from oracle.cases import case as c
from oracle.memory import baseline, report
from oracle.memory.child import pool
from oracle.memory.gates import Row, against, failures, judge, moved
from oracle.memory.panel import traced
from oracle.memory.probe import FIRST, STEPS, Job, Measured, Site
from oracle.runs import memory as session

LEAKS = Path(__file__).with_name("leaks.py")
CASE = c.TrainCase(
    model=(c.Linear(8), c.BatchNorm(), c.ReLU(), c.Dropout(0.1), c.Linear(3)),
    data=c.Data(rows=8, features=8),
    loss=c.SoftmaxLoss(),
    optimizer=c.SGD(lr=0.01, momentum=0.9),
    seed=0,
    steps=STEPS,
    keep_init=True,
    memory=c.Memory(),
)
# What an op holds is seen line by line only where arrays are too large for NumPy's own cache, from 1024 bytes on.
WIDE = c.TrainCase(
    model=(c.Linear(64), c.ReLU(), c.Linear(10)),
    data=c.Data(rows=64, features=32),
    loss=c.SoftmaxLoss(),
    optimizer=c.SGD(lr=0.01, momentum=0.9),
    seed=0,
    steps=STEPS,
    memory=c.Memory(),
)


@pytest.fixture(scope="module")
def workers():
    with pool(2) as made:
        yield made


@pytest.fixture(scope="module")
def clean(workers):
    return dict(zip(("malloc", "python", "wide"), workers.map([*both(CASE), Job(WIDE)]), strict=True))


def both(case, plant=""):
    return [Job(traced(case, mode), plant=plant) for mode in ("malloc", "python")]


# gates that must fail, holder that must be named, and the least growth in bytes and blocks (None: it does not grow)
PLANTED = {
    "velocity_keeps_its_graph": ("AC", "SGD.u[0.weight] → Tensor.op (EWiseAdd)"),
    "parameter_replaced_by_a_graph": ("AC", "Linear 0.weight → Tensor.op (MulScalar)"),
    "statistic_keeps_its_graph": ("AC", "BatchNorm1d 1.running_mean → Tensor.op (EWiseAdd)"),
    "list_of_losses": ("AC", "the training loop.history[119] → Tensor.op"),
    "list_of_tiny_tensors": ("AC", "the training loop.history[119] → Tensor"),
    "reference_cycles": ("B", "cycle Tensor.describe → function <lambda>.cell_contents → Tensor"),
    "dict_entry_per_step": ("C", "the training loop.by_step: dict grown from 20 to 120 entries"),
    "float64_promotion": ("D", "not among the largest before: return np.maximum(a, "),  # before, the plan had it
    "gradients_kept": ("D", "the training loop.previous["),
    "closure_over_the_loss": (
        "AC",
        "the training loop.reports[119] → function <lambda> (closure over loss) → Tensor.op",
    ),
    "module_hooks": ("C", "Linear 0.hooks: list grown from 20 to 120 entries"),
    "cache_by_shape": ("C", "module needle.ops.shapes_seen: dict grown from 20 to 120 entries"),
    "graph_kept_in_eval": ("AC", "the training loop.outputs[40] → Tensor.op (Linear)"),
    "one_int_in_100_steps": ("C", "the training loop.numbers: list grown from 7 to 8 entries"),
}


def test_memory_check_every_planted_leak_is_in_the_table():
    text = LEAKS.read_text("utf-8")
    assert all(f"def {name}(program)" in text for name in PLANTED)
    assert text.count("(program):\n") == len(PLANTED)


@pytest.mark.parametrize("mode", ["malloc", "python"])
def test_memory_check_clean_code_passes_all_gates(clean, mode):
    measured = clean[mode]
    assert measured.error == ""
    assert measured.growth == (0, 0)
    assert max(measured.collected[1:]) == 0
    assert measured.with_graph == 0
    assert set(measured.tensors[FIRST:]) == {0}
    assert failures(measured) == {}


def test_memory_check_peak_end_and_allocations_repeat_exactly(workers, clean):
    again = workers.submit(Job(CASE)).result()
    first = clean["malloc"]
    assert (again.peak, again.end, again.allocations) == (first.peak, first.end, first.allocations)
    assert against(again, known(first)) == []


def known(m):
    return baseline.Known(CASE.digest, m.peak, m.end, m.allocations, m.at_peak)


@pytest.mark.parametrize("name", PLANTED)
def test_memory_check_a_planted_leak_is_caught_and_blamed(workers, clean, name):
    gates, holder = PLANTED[name]
    plant = f"{LEAKS}:{name}"
    case, before = (WIDE, clean["wide"]) if name == "float64_promotion" else (CASE, clean["malloc"])
    malloc, python, explained = workers.map([*both(case, plant), Job(case, "explain", plant)])
    row = Row("planted", case, panel=True, known=known(before), exact=True, holders=explained.holders)
    row.runs = {"malloc": malloc, "python": python}
    assert not row.errors
    judge(row)
    assert set(gates) <= set(row.failures), row.failures
    if gates in ("B", "D"):
        assert set(row.failures) <= {gates, "D"}, row.failures
    assert holder in report.block(row), report.block(row)


def test_a_line_that_was_edited_and_holds_what_it_held_has_not_moved():
    def site(where, line, size):
        return Site(where, line, size, 1)

    before = [site("needle/chain.py:336 backward", "y = f(a)", 5_000), site("needle/nn.py:7 forward", "z = g(a)", 900)]
    old = baseline.Known(CASE.digest, 10_000, 0, 0, before)
    edited = [site("needle/chain.py:370 backward", "y = f(a, b)", 5_000), before[1]]
    assert moved(Measured(at_peak=edited), old) == []
    for more, where in (
        (site("needle/chain.py:371 backward", "w = h(a)", 5_000), "chain.py:371"),  # a second one is new
        (site("needle/chain.py:370 forward", "y = f(a, b)", 5_000), "chain.py:370 forward"),  # another function's
        (site("needle/nn.py:9 forward", "z = g(a)", 1_100), "nn.py:9"),  # 200 B more
    ):
        (told,) = moved(Measured(at_peak=[*edited[: 2 - (more.line == "z = g(a)")], more]), old)
        assert where in told
    grown = [site("needle/chain.py:370 backward", "y = f(a, b)", 6_000)]
    assert ["not among the largest before" in text for text in moved(Measured(at_peak=grown), old)] == [True]


def test_memory_check_one_int_is_found_to_the_byte(workers):
    measured = workers.submit(both(CASE, f"{LEAKS}:one_int_in_100_steps")[1]).result()
    assert measured.growth == (32, 1)  # what the interpreter asks for, for an int of two digits


def test_memory_check_a_failing_model_shrinks_and_replays(workers, tmp_path):
    """The fault is in needle itself, as it would be in life: here ReLU notes every call."""
    plant = tmp_path / "relu.py"
    plant.write_text(
        "import needle as ndl\n"
        "SEEN = []\n"
        "def leak(program):\n"
        "    for m in program.paths.values():\n"
        "        if type(m) is ndl.nn.ReLU:\n"
        "            m.forward = lambda x: SEEN.append([]) or ndl.relu(x)\n"
    )
    model = (c.Linear(8), c.ReLU(), c.LayerNorm(), c.Linear(3))
    case = msgspec.structs.replace(CASE, model=model)

    def do(job):
        job.plant = f"{plant}:leak"
        return workers.submit(job).result()

    smallest = session.shrunk(case, {"C"}, do, budget=60)
    kinds = [type(layer).__name__ for _, layer in c.walk(smallest.model)]
    assert "ReLU" in kinds
    assert len(kinds) <= 3, c.describe(smallest)
    assert smallest.steps < STEPS
    row = Row(smallest.digest, smallest, panel=False, failures={"C": "grows"})
    report.write_case(row, tmp_path)
    assert c.read(tmp_path / f"{smallest.digest}.json") == smallest


def test_memory_check_other_errors_are_reported_not_swallowed(workers, tmp_path):
    (tmp_path / "broken.py").write_text("def leak(program):\n    raise ValueError('no such thing')\n")
    measured = workers.submit(Job(CASE, plant=f"{tmp_path / 'broken.py'}:leak")).result()
    assert "no such thing" in measured.error
    row = Row("x", CASE, panel=True, runs={"malloc": measured})
    judge(row)
    assert row.errors
    assert not row.failures


def test_memory_check_a_process_that_dies_is_reported(workers, tmp_path):
    (tmp_path / "dies.py").write_text("import os\ndef leak(program):\n    os._exit(9)\n")
    assert "ended with exit status" in workers.submit(Job(CASE, plant=f"{tmp_path / 'dies.py'}:leak")).result().error
