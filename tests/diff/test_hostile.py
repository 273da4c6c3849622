"""Whatever a wrong needle does by accident, and whoever ends what: the verdict, the exit code and the results hold.

A dozen of the hostile needles in tests/needles/hostile.py; ``nox -s hostile`` runs all of them.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import needle
from oracle import exits
from oracle.__main__ import main
from oracle.apart import Broken, Died, apart, begin, tell
from oracle.cases import case as c
from oracle.exits import ExitCode
from oracle.runs import runner
from oracle.runs.draws import shard_cases
from oracle.runs.judgement import verdict_on
from oracle.runs.result import Result
from oracle.runs.shard import judge_apart
from oracle.runs.workers import Pool
from oracle.systems import surroundings

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests" / "needles" / "hostile.py"
SPEC = importlib.util.spec_from_file_location("hostile", FILE)
hostile = importlib.util.module_from_spec(SPEC)
sys.modules["hostile"] = hostile
SPEC.loader.exec_module(hostile)

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the system does neither end a process with its parent nor limit it"
)
OP = c.OpCase(op="tanh", operands=(c.Operand((2,), (0.5, -1.0)),))
PLAIN = c.OpCase(op="exp", operands=(c.Operand((2,), (0.5, -1.0)),))
TRAIN = c.TrainCase(
    model=(c.Linear(2), c.Tanh()), data=c.Data(rows=2, features=2), loss=c.WeightedSum(), optimizer=c.SGD(), seed=0
)

# ORACLE_TRIES=20 pytest tests/diff/test_hostile.py -k "signal or outlives_its or killed": 20 tries of each
TRIES = pytest.mark.parametrize("attempt", range(int(os.environ.get("ORACLE_TRIES", "1"))))


@pytest.fixture(scope="module", autouse=True)
def warm():
    runner.warm_up()


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr("oracle.runs.shard.shard_cases", lambda *args: [PLAIN, OP, TRAIN])


def test_there_are_at_least_60():
    assert len(hostile.names()) >= 60
    assert set(hostile.CI) <= set(hostile.names())
    assert len(hostile.CI) == 12


@pytest.mark.parametrize("name", hostile.CI)
def test_a_hostile_needle(name, few, tmp_path):
    outcome = hostile.run(name, tmp_path)
    assert outcome.code == outcome.expected, outcome.text
    assert "Traceback" not in outcome.text
    assert outcome.seconds < hostile.LONGEST
    assert outcome.cases == (2 if "does not come back" in outcome.text else 3), "the others are judged"


def test_what_needle_prints_lies_beside_the_case(few, monkeypatch, tmp_path):
    def tanh(self, a):
        print("printed by needle" * 10_000)
        return 1.25 * a

    monkeypatch.setattr(needle.ops.Tanh, "compute", tanh)
    run = runner.run(runner.Plan(seed=0, cases=3, workers=1, digits=False, folder=tmp_path))
    (printed,) = tmp_path.glob("*.txt")
    assert printed.stem == run.failures[0].case.digest
    text = printed.read_text()
    assert text.startswith("printed by needle")
    assert text.endswith("... (cut here)\n")
    assert len(text) < 70_000


def test_a_crash_is_placed_and_made_smaller(monkeypatch, tmp_path):
    def tanh(self, a):
        if a.size >= 2:
            os.abort()
        return numpy_tanh(a)

    import numpy

    numpy_tanh = numpy.tanh
    monkeypatch.setattr(needle.ops.Tanh, "compute", tanh)
    big = c.OpCase(op="tanh", operands=(c.Operand((3, 4), (0.5,) * 12),), cotangent=(1.0,) * 12)
    monkeypatch.setattr("oracle.runs.shard.shard_cases", lambda *args: [PLAIN, big, PLAIN])
    run = runner.run(runner.Plan(seed=0, cases=3, workers=1, digits=False, folder=tmp_path))
    assert sum(run.result.cases.values()) == 3, "the others are judged"
    (failed,) = run.failures
    assert failed.divergence.failure.message.startswith("crashed: aborted in needle/")
    assert len(failed.case.operands[0].values) < 12
    assert (tmp_path / f"{failed.case.digest}.json").exists()


def test_a_crash_that_no_case_makes_alone_is_a_finding(monkeypatch):
    right, calls = needle.ops.Tanh.compute, []

    def tanh(self, a):
        calls.append(1)
        if len(calls) > 3:
            os.abort()
        return right(self, a)

    monkeypatch.setattr(needle.ops.Tanh, "compute", tanh)
    result = judge_apart([OP] * 6)
    assert result.harness_errors == []
    (failed,) = result.failed
    assert "not by this case alone" in failed.divergence.failure.message


@TRIES
@pytest.mark.parametrize("who", ["worker", "child"])
def test_the_digest_is_the_same_if_one_is_killed(who, attempt, monkeypatch, tmp_path):
    """SIGKILL from outside, in the middle of the first shard."""
    shard = shard_cases(3, 0)[:12]
    monkeypatch.setattr("oracle.runs.shard.shard_cases", lambda *args: shard)

    def run():
        return runner.run(runner.Plan(seed=3, cases=200, workers=2, digits=False, folder=tmp_path))

    right = run().result
    mark = tmp_path / "killed"
    judge = Result.judge

    def once(self, case, **options):
        if case == shard[5] and not mark.exists():
            mark.touch()
            os.kill(os.getpid() if who == "child" else os.getppid(), signal.SIGKILL)
            time.sleep(10)
        return judge(self, case, **options)

    monkeypatch.setattr(Result, "judge", once)
    again = run()
    assert mark.exists()
    assert (again.exit_code, again.result.digest) == (0, right.digest)
    assert again.result.cases == right.cases
    assert bool(again.notes) == (who == "worker")


def test_the_number_of_workers_changes_nothing_in_a_run_that_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(needle.ops.Tanh, "compute", lambda self, a: 1.001 * a)
    found = []
    for workers in (1, 2, 3):
        run = runner.run(runner.Plan(seed=5, cases=800, workers=workers, folder=tmp_path))
        found.append((run.result.digest, run.shards, [f.case.digest for f in run.failures], run.digits))
    assert found[0] == found[1] == found[2]
    assert found[0][1] == 2, "the run ends with its first wave"
    assert found[0][3] is None, "and nothing is said of real data"


def test_time_begins_anew_with_each_piece_of_work():
    def work(pieces, begins):
        for _ in range(pieces):
            begin() if begins else tell("0 forward")
            time.sleep(0.4)
        return "done"

    assert apart(work, 4, True, patience=1.0) == "done"
    with pytest.raises(Died, match="does not come back within 1 s") as caught:
        apart(work, 4, False, patience=1.0)
    assert caught.value.endless
    assert caught.value.doing == "0 forward"
    assert caught.value.frames[0][2] == "work"


@linux
def test_a_child_has_its_share_of_the_memory(monkeypatch):
    monkeypatch.setattr("oracle.apart.MEMORY", 1 << 28)
    assert apart(lambda: len(bytearray(1 << 26))) == 1 << 26
    with pytest.raises(Broken, match=r"MemoryError: out of memory \(a case is given 0\.3 GB\)"):
        apart(lambda: len(bytearray(1 << 29)))
    asks = "import mmap; mmap.mmap(-1, {}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)"
    starts = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {!r}]).returncode)"

    def descend():
        """What a process of a process gets of all that the child may have: its share is on top of what this process has."""
        import resource  # no other system has it

        limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
        assert limit != resource.RLIM_INFINITY
        program = starts.format(asks.format(limit))
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    held = bytearray(1 << 29)  # as a suite holds at its end
    assert "Cannot allocate memory" in apart(descend).stderr
    assert len(held) == 1 << 29


@linux
def test_a_needle_that_wants_all_memory_is_at_fault(monkeypatch):
    def tanh(self, a):
        kept = []
        while True:
            kept.append(bytearray(1 << 24))

    monkeypatch.setattr(needle.ops.Tanh, "compute", tanh)
    monkeypatch.setattr("oracle.apart.MEMORY", 1 << 28)
    result = judge_apart([PLAIN, OP, TRAIN])
    assert result.harness_errors == []
    assert sum(result.cases.values()) == 3
    (failed,) = result.failed
    assert failed.count == 2
    assert failed.divergence.failure.kind == "MemoryError"
    assert "(a case is given 0.3 GB)" in failed.divergence.failure.message


def test_where_the_harness_fails_behind_others_the_case_gets_a_process_of_its_own(monkeypatch):
    """A needle that has taken all memory, or broken what they share, is at fault for itself, and not for the cases behind."""
    right, judged = verdict_on, []

    def breaks(case, **settings):
        judged.append(case)
        if (case == OP and len(judged) > 1) or case == TRAIN:
            raise MemoryError("no memory for the harness")
        return right(case, **settings)

    monkeypatch.setattr("oracle.runs.result.verdict_on", breaks)
    result = judge_apart([PLAIN, OP, PLAIN, TRAIN, PLAIN])
    assert len(result.digests) == 5
    assert sum(result.cases.values()) == 4
    (error,) = result.harness_errors
    assert error.startswith(TRAIN.digest)  # by itself, too


def test_threads_that_are_left_behind_do_not_pile_up(monkeypatch):
    """Thousands of them, each awake now and then, and a case of the harness's own takes longer than it is given."""
    right = needle.ops.Tanh.compute

    def leaves_threads(self, a):
        for _ in range(5):
            threading.Thread(target=time.sleep, args=(999,), daemon=True).start()
        assert threading.active_count() < 100, "they piled up"
        return right(self, a)

    monkeypatch.setattr(needle.ops.Tanh, "compute", leaves_threads)
    cases = [OP, PLAIN, TRAIN] * 10
    crowded = judge_apart(cases)
    monkeypatch.undo()
    assert (crowded.digests, crowded.failed, crowded.harness_errors) == (judge_apart(cases).digests, [], [])


def test_nothing_that_a_child_starts_outlives_it():
    def work():
        process = subprocess.Popen(["sleep", "999"])
        return process.pid

    pid = apart(work)
    deadline = time.monotonic() + 10
    while gone(pid) is False and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pid)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_pool_hands_on_what_is_raised_and_gives_up_in_the_end():
    pool = Pool(2)
    try:
        assert [task.result() for task in [pool.submit(divmod, n, 3) for n in range(6)]][5] == (1, 2)
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()
        with pytest.raises(Died, match="exit status 9"):
            pool.submit(os._exit, 9).result()
        assert pool.lost == 3
        slow = pool.submit(time.sleep, 99)
        pool.drop([slow])
        assert pool.submit(divmod, 7, 3).result() == (2, 1)
    finally:
        pool.close()


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch):
    """Each case takes half a second."""
    judge = Result.judge

    def slowly(self, case, **options):
        time.sleep(0.5)
        return judge(self, case, **options)

    monkeypatch.setattr("oracle.runs.shard.shard_cases", lambda *args: [PLAIN, OP, TRAIN] * 20)
    monkeypatch.setattr(Result, "judge", slowly)


def started(folder, capfd):
    """A diff in a child of its own; its pid, once workers are at work."""
    pid = os.fork()
    if pid == 0:
        code = 99
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, and then so would this
        try:
            code = exits.supervised(
                lambda: main(["diff", "--cases", "400", "--workers", "2", "--no-digits", "--out", str(folder)])
            )
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    while len(below(pid)) < 5 and time.monotonic() < deadline:  # the command, two workers, a child of each
        time.sleep(0.05)
    family = below(pid)
    assert len(family) >= 5
    return pid, family


def below(pid):
    """All processes that descend from one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    found, size = {pid}, 0
    while len(found) > size:
        size = len(found)
        found |= {p for p, parent in parents.items() if parent in found}
    return found - {pid}


def left(family):
    """Which of them are still there, when all had time to go."""
    deadline = time.monotonic() + 10
    while not all(map(gone, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [pid for pid in family if not gone(pid)]


@linux
@TRIES
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_one_signal_shows_what_is_known_and_a_second_one_ends_at_once(number, attempt, slow, tmp_path, capfd):
    pid, family = started(tmp_path, capfd)
    os.kill(pid, number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ExitCode.INTERRUPTED
    assert left(family) == []
    shown = capfd.readouterr()
    assert "interrupted after" in shown.out
    assert "Traceback" not in shown.out + shown.err


@linux
def test_a_second_ctrl_c_ends_at_once(slow, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(runner.report, "dump", lambda *args: time.sleep(99))  # the summary takes its time
    pid, family = started(tmp_path, capfd)
    os.kill(pid, signal.SIGINT)
    time.sleep(1.2)
    at = time.monotonic()
    os.kill(pid, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ExitCode.INTERRUPTED
    assert time.monotonic() - at < 3
    assert left(family) == []
    assert "Traceback" not in "".join(capfd.readouterr())


@linux
@TRIES
def test_no_worker_outlives_its_parent(attempt, slow, tmp_path, capfd):
    pid, family = started(tmp_path, capfd)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert left(family) == []


# -- the state of the process -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*surroundings.AROUND_A_CALL, *surroundings.OF_TORCH, *surroundings.AROUND_A_CASE])
def test_every_entry_of_the_list_is_looked_at_and_put_back(name, monkeypatch, tmp_path):
    import gc
    import warnings

    import numpy
    import torch

    change = {
        "np.seterr": lambda: numpy.seterr(all="raise"),
        "warnings.filters": lambda: warnings.simplefilter("ignore"),
        "gc.isenabled": gc.disable,
        "sys.gettrace": lambda: sys.settrace(lambda *a: None),
        "sys.getprofile": lambda: sys.setprofile(lambda *a: None),
        "torch.get_default_dtype": lambda: torch.set_default_dtype(torch.float64),
        "torch.is_grad_enabled": lambda: torch.set_grad_enabled(False),
        "torch.get_num_threads": lambda: torch.set_num_threads(3),
        "torch.are_deterministic_algorithms_enabled": lambda: torch.use_deterministic_algorithms(True),
        "gc.get_threshold": lambda: gc.set_threshold(1, 1, 1),
        "os.getcwd": lambda: os.chdir("/"),
        "signal handlers": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    }[name]
    right = needle.ops.Tanh.compute
    monkeypatch.chdir(tmp_path)

    def tanh(self, a):
        change()
        return right(self, a)

    monkeypatch.setattr(needle.ops.Tanh, "compute", tanh)
    before = surroundings.around_an_import()
    verdict = verdict_on(OP)
    assert verdict.divergence.name == "ChangedState"
    assert verdict.divergence.failure.message.startswith(f"{name} (")
    assert verdict.oracle_errors == []
    assert before.restore() == [], "it is as it was"
