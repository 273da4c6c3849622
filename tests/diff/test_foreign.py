"""`--needle DIR`: another package called needle is put to the same test."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from found import agreed

from oracle.cases import case as c
from oracle.cases.coverage import LABELS
from oracle.runs.result import Result
from oracle.runs.shard import run_shard

ROOT = Path(__file__).parents[2]


def other(folder, **changes):
    """A copy of needle, changed: module -> (text, replacement)."""
    shutil.copytree(ROOT / "needle", folder / "needle", ignore=shutil.ignore_patterns("__pycache__"))
    for module, (text, replacement) in changes.items():
        path = folder / "needle" / f"{module}.py"
        source = path.read_text("utf-8")
        assert text in source
        path.write_text(source.replace(text, replacement), "utf-8")
    return folder


def oracle(*args):
    return subprocess.run(
        [sys.executable, "-m", "oracle", *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )


def diff(folder, out):
    done = oracle("diff", "--needle", folder, "--cases", 100, "--seed", 1, "--out", out, "--no-digits")
    return done, json.loads((out / "summary.json").read_text()) if (out / "summary.json").exists() else None


def test_a_good_one_agrees(tmp_path):
    done, summary = diff(other(tmp_path / "good"), tmp_path / "out")
    agreed(done.returncode, tmp_path / "out", done.stdout + done.stderr)
    assert summary["not_offered"] == {}
    assert summary["left_out"] == 0
    assert summary["tensors"] > 5_000


def test_ours_by_its_folder_is_ours(tmp_path):
    """The same verdicts, bit for bit, as without ``--needle``: our own promises count, not those of the course."""
    done, summary = diff(".", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    plain = run_shard(1, 0)
    result = Result()
    result.add(plain)
    assert (summary["digest"], summary["tensors"]) == (result.digest, plain.tally.tensors)
    assert (summary["cases"], summary["coverage"]) == (dict(plain.cases), {n: plain.coverage[n] for n in LABELS})
    assert summary["not_offered"] == {}
    assert summary["by_design"] == []


def test_a_faulty_one_parts_and_replays(tmp_path):
    folder = other(tmp_path / "faulty", optim=("lr, beta, 1 - beta, decay", "lr, beta, 1.0, decay"))
    done, summary = diff(folder, tmp_path / "out")
    assert done.returncode == 1, done.stdout + done.stderr
    digest = summary["failures"][0]["case"]
    assert summary["failures"][0]["quantity"] == "velocity"
    line = re.search(r"^   again   nox -s (replay) -- (.*)$", done.stdout, re.M)
    again = oracle(line[1], *shlex.split(line[2]))
    assert again.returncode == 1, "the line that is shown, pasted"
    assert line[0].split(maxsplit=1)[1] in again.stdout
    assert oracle("replay", digest, "--from", tmp_path / "out").returncode == 0, "ours is not at fault"


def test_what_one_does_not_offer_is_replaced_and_listed(tmp_path):
    folder = other(
        tmp_path / "less",
        ops=("def tanh(a: Tensor) -> Tensor:", "def tanh(a: Tensor) -> Tensor:\n    raise NotImplementedError"),
        optim=("def clip_grad_norm", "def _clip_grad_norm"),
        autograd=("def retain_grad", "def _retain_grad"),
    )
    done, summary = diff(folder, tmp_path / "out")
    agreed(done.returncode, tmp_path / "out", done.stdout + done.stderr)
    assert {"op tanh", "layer Tanh", "optimizer clipping"} <= set(summary["not_offered"])
    assert summary["left_out"] == 0
    assert sum(summary["cases"].values()) > 300, "others are judged in their place"
    assert "not offered" in done.stdout
    assert "retain_grad" in done.stdout, "by design"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no package"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("", "not the needle of the course"),
    ],
    ids=["absent", "broken", "empty"],
)
def test_no_needle_there_is_a_usage_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "needle").mkdir()
        (tmp_path / "needle" / "__init__.py").write_text(content)
    done, _ = diff(tmp_path, tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


DECIDES = """
import json, sys
from pathlib import Path
from oracle.__main__ import main

folder, out = sys.argv[1:]
at = ["--needle", folder]
codes = [main(["diff", *at, "--cases", "100", "--seed", "1", "--no-digits", "--workers", "1", "--out", out])]
digest = json.loads((Path(out) / "summary.json").read_text())["failures"][0]["case"]
codes.append(main(["replay", digest, *at, "--from", out]))
codes.append(main(["replay", str(Path(out) / "memory.json"), *at]))
assert codes == [1, 1, 0], codes
assert not [name for name in sys.modules if name.partition(".")[0] == "needle"]
assert not hasattr(sys, "spoiled")
"""


def test_the_process_that_decides_imports_no_needle(tmp_path):
    folder = other(tmp_path / "faulty", optim=("lr, beta, 1 - beta, decay", "lr, beta, 1.0, decay"))
    with (folder / "needle" / "__init__.py").open("a") as file:
        file.write("\nimport sys\nsys.spoiled = True\n")
    out = tmp_path / "out"
    out.mkdir()
    case = c.TrainCase((c.Linear(2),), c.Data(2, 2), c.WeightedSum(), c.SGD(), seed=0, steps=30, memory=c.Memory())
    (out / "memory.json").write_bytes(c.encode(case))
    done = subprocess.run([sys.executable, "-c", DECIDES, folder, out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_memory_case_is_replayed_on_the_needle_that_is_asked_for(tmp_path):
    pytest.importorskip("memray", reason="memray does not exist on this system")
    folder = other(tmp_path / "leaking", nn=("class Identity(Module):", "KEPT = []\n\n\nclass Identity(Module):"))
    text = (folder / "needle" / "nn.py").read_text()
    assert text.count("    def __call__(self") == 1
    with (folder / "needle" / "nn.py").open("a") as file:
        file.write(
            "\n_call = Module.__call__\nModule.__call__ = lambda self, *a: KEPT.append(bytearray(999)) or _call(self, *a)\n"
        )
    case = c.TrainCase((c.Linear(2),), c.Data(2, 2), c.WeightedSum(), c.SGD(), seed=0, steps=30, memory=c.Memory())
    path = tmp_path / "memory.json"
    path.write_bytes(c.encode(case))
    assert oracle("replay", path).returncode == 0
    done = oracle("replay", path, "--needle", folder)
    assert done.returncode == 1, done.stdout + done.stderr
