"""A child for each task."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a child that its parent has gone")
def test_no_child_outlives_a_parent_that_is_killed():
    code = "import os, time; from oracle.runs.forked import forked\n"
    code += "def work(task, write): write(b'x'); print(os.getpid(), file=out, flush=True); time.sleep(60)\n"
    code += "out = os.fdopen(os.dup(1), 'w'); list(forked([1], work, 1))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < until:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return  # dead, and whoever has it now has not asked yet
        time.sleep(0.02)
    alive = Path(f"/proc/{child}").exists()
    if alive:
        os.kill(child, signal.SIGKILL)
    assert not alive
