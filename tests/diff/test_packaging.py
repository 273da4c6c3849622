"""A wheel of oracle works by itself, beside anybody's own package needle; a wheel of needle needs NumPy alone."""

import ast
import os
import re
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from oracle import commands
from oracle.__main__ import cuda_build, main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Both wheels, and the names of what is in them."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, ROOT / "needle"):
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
            cwd=project, check=True, capture_output=True,
        )  # fmt: skip
    (oracle,) = folder.glob("needle_oracle-*.whl")
    (needle,) = folder.glob("needle-*.whl")
    return {"oracle": oracle, "needle": needle}


def names(wheel):
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """An environment with the wheel of oracle and somebody's own needle, installed in place; returns what runs a command there.

    What oracle depends on comes from this environment: ``nox -s wheel`` has pip install that, too.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (packages,) = (folder / "venv").glob("**/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", folder / "venv" / "bin" / "python", "install", "--no-deps", "--no-index",
         "--quiet", wheels["oracle"]], check=True,
    )  # fmt: skip
    own = folder / "own"
    (own / "needle").mkdir(parents=True)
    (own / "needle" / "__init__.py").write_text("mine = True\n")
    (packages / "own.pth").write_text(str(own))
    (packages / "x.pth").write_text(
        "\n".join(site.getsitepackages())
    )  # a path in a .pth file brings no .pth of its own
    (folder / "empty").mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "GITHUB_ACTIONS")}

    def run(*words):
        return subprocess.run(
            [folder / "venv" / "bin" / words[0], *map(str, words[1:])],
            cwd=folder / "empty", env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    run.own, run.packages = own, packages
    return run


def test_the_wheel_of_oracle_holds_no_package_needle(wheels):
    found = names(wheels["oracle"])
    assert {name.split("/")[0] for name in found if ".dist-info/" not in name} == {"oracle"}
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "oracle").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert files <= found
    assert {f"oracle/_carried/needle/{p.name}" for p in (ROOT / "needle").glob("*.py")} <= found


def test_the_wheel_of_needle_holds_needle_and_needs_numpy(wheels):
    found = names(wheels["needle"])
    assert {n for n in found if ".dist-info/" not in n} == {
        f"needle/{p.name}" for p in (ROOT / "needle").glob("*.py")
    } | {"needle/py.typed"}
    with zipfile.ZipFile(wheels["needle"]) as file:
        (metadata,) = (n for n in found if n.endswith("METADATA"))
        needs = [line for line in file.read(metadata).decode().splitlines() if line.startswith("Requires-Dist")]
    assert needs == ["Requires-Dist: numpy>=2.0"]


FOUND_UNDER = {"markupsafe": "jinja2", "dask": "distributed"}  # the latter two bring them
# What a wheel does not need: what pytest brings when it loads the plugin, and what only a clone runs.
NOT_NEEDED = {"plugin.py": {"pytest"}, "trust/": {"pytest", "scipy"}, "check/shares.py": {"pytest"}}


def undeclared(root, declared):
    """What oracle imports from elsewhere that its metadata does not name."""
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        excused = {one for start, ones in NOT_NEEDED.items() if name.startswith(start) for one in ones}
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"oracle", "needle"}
            found += [
                f"{name} imports {top}" for top in sorted(tops - excused) if FOUND_UNDER.get(top, top) not in declared
            ]
    return found


def test_what_oracle_imports_is_what_its_wheel_asks_for(wheels, tmp_path):
    with zipfile.ZipFile(wheels["oracle"]) as file:
        (metadata,) = (n for n in file.namelist() if n.endswith("METADATA"))
        needs = re.findall(r"^Requires-Dist: ([\w-]+)", file.read(metadata).decode(), re.MULTILINE)
    assert undeclared(ROOT / "oracle", needs) == []
    (tmp_path / "new.py").write_text("def f():\n    import polars.io\n    import torch")
    assert undeclared(tmp_path, needs) == ["new.py imports polars"]


def test_somebodys_needle_stays_theirs_and_ours_is_carried(installed):
    own = installed("python", "-c", "import needle; print(needle.mine, needle.__file__)")
    assert own.stdout.split() == ["True", str(installed.own / "needle" / "__init__.py")]
    done = installed("oracle", "diff", "--cases", 100, "--seed", 0, "--workers", 1, "--no-digits")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 divergences in 100 cases; again: oracle diff --seed 0 --cases 100 --no-digits" in done.stdout
    assert (installed.packages.parents[2].parent / "empty" / "reports/latest/summary.json").exists()


def test_theirs_is_what_is_asked_for(installed):
    done = installed("oracle", "diff", "--needle", installed.own, "--cases", 100, "--workers", 1)
    assert done.returncode in (2, 5), done.stdout + done.stderr
    assert "needle" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_what_needs_a_clone_says_so(installed):
    done = installed("oracle", "faults")
    assert done.returncode == 2
    assert "in a clone of their repository" in done.stderr


def test_the_version_is_told(installed):
    done = installed("oracle", "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("oracle 0.1.0 (torch 2.13.")


def test_what_is_not_installed_is_a_line(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["diff"]) == 2
    assert capsys.readouterr().err.startswith("oracle needs numpy, torch, hypothesis, msgspec, rich: pip install numpy")


def test_a_build_for_cuda_is_told(monkeypatch, tmp_path):
    assert cuda_build() is None  # here it is a CPU build
    (tmp_path / "version.py").write_text("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip = None\n")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    )
    assert cuda_build() == "13.0"


def test_outside_a_clone_a_case_is_kept_where_one_is(monkeypatch):
    monkeypatch.setattr(commands, "in_a_clone", lambda: False)
    assert commands.keep(Path("reports/latest/f93132ed.json")) == "cp reports/latest/f93132ed.json ."
