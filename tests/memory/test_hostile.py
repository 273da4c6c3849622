"""A needle that ends its process fails, for the memory gates too, and is no failure of the harness."""

import os
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("memray", reason="memray does not exist on this system")

import needle
from oracle.apart import apart
from oracle.cases import case as c
from oracle.exits import ExitCode
from oracle.memory import child
from oracle.memory.gates import Row
from oracle.memory.outcome import Plan, Run
from oracle.memory.probe import Job

CASE = c.TrainCase(
    model=(c.Linear(4), c.Tanh()),
    data=c.Data(rows=4, features=4),
    loss=c.WeightedSum(),
    optimizer=c.SGD(),
    seed=0,
    steps=30,
    memory=c.Memory(),
)


def crash(program):
    os.abort()


def leave(program):
    os._exit(0)


def sleep(program):
    time.sleep(60)


def code(measured):
    row = Row("x", CASE, panel=False, runs={"malloc": measured})
    return Run(Plan(1, 0, 1), {}, "", rows=[row]).exit_code


def test_a_process_that_ends_is_needles_doing_and_the_next_job_is_done():
    with child.pool(1) as workers:
        crashed, left, fine = workers.map(
            [Job(CASE, plant=f"{__file__}:crash"), Job(CASE, plant=f"{__file__}:leave"), Job(CASE)]
        )
    assert crashed.error.startswith("needle crashed: aborted (at ")
    assert left.error == "needle ended with exit status 0"
    assert code(crashed) == code(left) == ExitCode.PART
    assert fine.error == ""
    assert code(fine) == ExitCode.AGREE


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_what_needle_raises_is_told_from_what_the_harness_raises(kind, monkeypatch):
    monkeypatch.setattr(needle.ops.Tanh, "compute", lambda self, a: (_ for _ in ()).throw(kind("\ud800")))
    found = apart(child.perform, Job(CASE), heard=bytearray())
    layer = "layer 1, Tanh(): " if kind is ValueError else ""  # which needle says of errors that are a user's
    assert found.error.startswith(f"needle raises {kind.__name__}: {layer}\\ud800 (at needle/")
    assert code(found) == ExitCode.PART
    monkeypatch.setattr("oracle.memory.probe.measure", lambda job: 1 / 0)
    found = apart(child.perform, Job(CASE), heard=bytearray())
    assert "ZeroDivisionError" in found.error
    assert code(found) == ExitCode.HARNESS


def test_a_pool_that_ends_at_once_leaves_no_nursery(monkeypatch):
    """As on Ctrl-C right after the start: the thread of a worker may be just about to start its nursery."""
    made, running = [], child.Worker._running

    def late(self):
        ending.wait()
        time.sleep(0.3)  # the main thread closes the pool meanwhile
        made.append(running(self))
        return made[-1]

    monkeypatch.setattr(child.Worker, "_running", late)
    ending = threading.Event()
    with child.pool(1) as workers:
        answer = workers.submit(Job(CASE))
        ending.set()
    assert answer.exception(timeout=30) or answer.result().error
    assert made
    assert all(process.returncode is not None for process in made)


def test_no_nursery_outlives_its_parent():
    def start():
        with child.pool(1) as workers:
            workers.submit(Job(CASE, plant=f"{__file__}:sleep"))
            (worker,) = workers._all
            while worker.process is None:
                time.sleep(0.05)
            time.sleep(3)  # it is at work, and reads nothing
            os.write(2, b"%d\n" % worker.process.pid)
            os._exit(9)

    heard = bytearray()
    with pytest.raises(Exception, match="exit status 9"):
        apart(start, heard=heard)
    pid = int(heard.split()[-1])
    for _ in range(100):
        path = Path(f"/proc/{pid}/stat")
        if not path.exists() or path.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"{pid} is still there")
