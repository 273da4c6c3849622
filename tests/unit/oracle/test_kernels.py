"""Which kernels compute is read back, and a setting that did not come about is no agreement."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oracle.memory import blas
from oracle.trust import kernels

ROOT = Path(__file__).parents[3]
AVX2 = frozenset({"SSE3", "SSE42", "AVX", "AVX2", "FMA3"})
HERE = blas.Machine("Haswell", AVX2, ("X86_V3",))


def quick(*code):
    """Checks that are over at once: name -> what follows `python -m`; timeit runs what it is given."""
    return {f"check {i}": ["timeit", "-n1", "-r1", text] for i, text in enumerate(code)}


def end(code):
    return f"import os; os._exit({code})"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run checks under one setting, and return the run."""

    def start(checks, reads_back=None, workers=2):
        setting = kernels.Setting("own", None, {}, reads_back or blas.machine().kernel)
        made = kernels.Run([kernels.Row(setting, checks)], tmp_path)
        kernels.go(made, workers, lambda text: None, lambda text: None)
        return made

    return start


def test_the_cpu_decides_which_kernels_can_run():
    assert HERE.kernels == ["Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen"]
    assert blas.Machine("Nehalem", frozenset({"SSE3", "SSE42"})).kernels == ["Prescott", "Nehalem"]
    newer = AVX2 | {"AVX512F", "AVX512CD", "AVX512BW", "AVX512DQ", "AVX512VL"}
    assert blas.Machine("SkylakeX", newer).kernels[-1] == "SkylakeX"
    assert blas.Machine("Haswell", newer - {"AVX512VL"}).kernels[-1] == "Zen"
    assert blas.Machine(blas.UNKNOWN, AVX2).kernels == []
    assert blas.Machine("armv8", frozenset({"NEON"})).kernels == []


def test_a_child_gets_what_is_asked_and_nothing_that_was_preset(monkeypatch):
    for name in blas.CHOOSING:
        monkeypatch.setenv(name, "preset")
    assert not set(blas.CHOOSING) & set(blas.environment())
    found = blas.environment("Zen", {"ATEN_CPU_CAPABILITY": "default"})
    assert {k: v for k, v in found.items() if k in blas.CHOOSING} == {
        "OPENBLAS_CORETYPE": "Zen",
        "ATEN_CPU_CAPABILITY": "default",
    }
    assert found["PATH"] == os.environ["PATH"]
    setting = kernels.Setting("plain torch", None, {"ATEN_CPU_CAPABILITY": "default"})
    assert setting.prefix == (
        "env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE -u NPY_DISABLE_CPU_FEATURES -u NPY_ENABLE_CPU_FEATURES "
        "ATEN_CPU_CAPABILITY=default"
    )


def test_what_is_chosen_is_read_back(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    machine = blas.machine()
    if machine.kernel == blas.UNKNOWN:
        pytest.skip("NumPy is not built on OpenBLAS here")
    assert machine.kernel != "Nehalem" or "AVX" not in machine.features
    for setting in kernels.settings(machine):
        if setting.name != kernels.PLAIN_TORCH:  # takes seconds to import; a run looks at it
            assert kernels.look(setting) == setting.reads_back


def test_without_openblas_the_kernel_is_unknown(monkeypatch):
    class Silent:
        def __init__(self, path):
            pass

    monkeypatch.setattr(ctypes, "CDLL", Silent)
    assert blas.read_back.__wrapped__() == blas.UNKNOWN


def test_the_settings_of_each_form():
    assert [s.name for s in kernels.settings(HERE)] == [*HERE.kernels, "plain NumPy", "plain torch"]
    short = [s.name for s in kernels.settings(HERE, short=True)]
    assert short == ["Prescott", "Nehalem", "Sandybridge", "plain NumPy", "plain torch"]
    assert [s.name for s in kernels.settings(HERE, ["Zen"])] == ["Zen"]
    assert [s.name for s in kernels.settings(blas.Machine(blas.UNKNOWN))] == ["plain torch"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"names": ["Foo"]}, "--kernels must be of Prescott, Nehalem, Sandybridge, Haswell, Zen, SkylakeX, got 'Foo'"),
        ({"names": ["SkylakeX"]}, "SkylakeX cannot be run on this machine; these can: Prescott, Nehalem, Sandybridge"),
        ({"accept_memory": True, "short": True}, "--accept-memory goes without --short"),
    ],
)
def test_usage(given, text, capsys, monkeypatch):
    monkeypatch.setattr(blas, "machine", lambda: HERE)
    usual = {"short": False, "names": [], "cases": None, "workers": 1, "accept_memory": False}
    assert kernels.kernels(**usual | given) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("codes", "states", "code"),
    [
        ([0, 0], ["ok", "ok"], 0),
        ([0, 1], ["ok", "FAILS"], 1),
        ([1, 3], ["FAILS", "no verdict"], 3),
        ([3, 1, 2], ["no verdict", "FAILS", "no verdict"], 4),
        ([5], ["no verdict"], 4),  # pytest: no test was found
    ],
)
def test_the_exit_code_is_what_the_checks_say(run, codes, states, code):
    made = run(quick(*map(end, codes)))
    assert [o.state for _, _, o in made.outcomes] == states
    assert made.exit_code == code


def test_another_kernel_than_asked_is_no_verdict(run, capsys):
    made = run(quick(end(0)), reads_back="Bulldozer")
    assert made.exit_code == 4
    kernels.show(made, kernels.Console(width=200), 1.0)
    out = capsys.readouterr().out
    assert f"own: asked for Bulldozer, read back {blas.machine().kernel}" in out
    assert "1 of 1 checks: no verdict" in out


def test_a_failure_shows_its_end_and_how_to_see_it_alone(run, capsys):
    made = run(quick("print('what is wrong'); import os, sys; sys.stdout.flush(); os._exit(1)", end(0)))
    kernels.show(made, kernels.Console(width=200), 1.0)
    out = capsys.readouterr().out
    assert "own: check 0 ends with exit code 1" in out
    assert "what is wrong" in out
    assert "python -m timeit -n1" in out
    assert "FAILS" in out
    assert "1 of 2 checks: FAILS" in out


def test_the_children_run_in_the_environment_of_their_setting(run, monkeypatch):
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "4096")
    code = "import os; os._exit(len({'OPENBLAS_L2_SIZE', 'OPENBLAS_CORETYPE'} & set(os.environ)))"
    assert run(quick(code)).exit_code == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_table_of_what_is_known(tmp_path, how):
    sleeper = f"import time; open({str(tmp_path / 'started')!r}, 'w'); time.sleep(600)"
    program = """
from oracle.memory import blas
from oracle.trust import kernels
from tests_checks import CHECKS
kernels.settings = lambda *_: [kernels.Setting("own", None, {}, blas.machine().kernel)]
kernels.checks = lambda *_: CHECKS
raise SystemExit(kernels.kernels(short=True, names=[], cases=None, workers=1, accept_memory=False))
"""
    (tmp_path / "tests_checks.py").write_text(f"CHECKS = {quick(end(0), sleeper, end(0))!r}\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path, "NO_COLOR": "1"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "started").exists():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(how)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130, out
    row = next(line for line in out.splitlines() if line.startswith("own "))
    assert [word for word in row.split() if word in ("ok", "stopped", "-")] == ["ok", "stopped", "-"]
    assert "interrupted, 1 of 3 checks came to an end" in out


def test_each_form_runs_what_it_says(tmp_path):
    named = kernels.Setting("Zen", "Zen", reads_back="Haswell")
    full, short = kernels.checks(named, tmp_path, False, 7), kernels.checks(named, tmp_path, True, None)
    assert list(full)[:3] == ["cases", "tests", "calibration"]
    assert list(short)[:2] == ["cases and tests", "calibration"]
    assert full["calibration"][-2:] == ["--cases", "7"]
    assert short["calibration"][-4:] == ["--cases", "100", "--variants", "as it is"]
    files = [p.partition("::")[0] for p in (*kernels.NUMBERS, *kernels.MORE_NUMBERS, kernels.KEPT)]
    assert all((ROOT / p).exists() for p in files)
