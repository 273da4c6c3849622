"""How everything is run: `nox -s diff`, `nox -s tests`, `nox -s lint`, `nox -s replay -- CASE`.

All sessions share one environment, .nox/env, which the first of them installs;
what follows `--` goes to the command.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if sys.version_info < (3, 11):  # before importing anything that such a Python may not have
    sys.exit(
        f"needle needs Python 3.11 or newer, but nox runs on {sys.version.split()[0]}. The way out:\n"
        "  python3.11 -m venv --clear .venv && .venv/bin/pip install nox && .venv/bin/nox -s diff"
    )

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.10.16"  # the first with `requires`
nox.options.sessions = ["lint", "tests"]
logging.getLogger("nox").setLevel(logging.WARNING)  # the commands' own output is what matters

ROOT = Path(__file__).resolve().parent
ENV = Path(".nox/env")  # sessions run in the folder of this file
PYTHON = ENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
WITH_LIBRARIES = (
    ROOT / ".nox/frameworks" / PYTHON.relative_to(ENV)
)  # JAX and others, which `nox -s frameworks` installs
# One thread per process: the harness runs a process per core, and sums then have one order.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

PYTHONS = ("3.11", "3.12", "3.13", "3.14")  # on which needle alone is tested
ASK_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"
TORCH = "torch==2.13.0"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
NO_TORCH = f"""
No CPU build of {TORCH} was found for Python {sys.version.split()[0]}; above is what pip says.
With a connection, this fixes it:
  PIP_EXTRA_INDEX_URL={CPU_WHEELS} {sys.executable} -m nox -s env
Without one, put the wheel for this Python and machine into a folder DIR and run:
  PIP_FIND_LINKS=DIR {sys.executable} -m nox -s env
"""


@nox.session(reuse_venv=True, default=False, venv_backend="virtualenv")
def env(session: nox.Session) -> None:
    """Install the project and its tools into .nox/env, unless they are there already."""
    files = [ROOT / "pyproject.toml", ROOT / "noxfile.py"]
    wanted = hashlib.sha256(f"{ROOT} {sys.version}".encode() + b"".join(f.read_bytes() for f in files)).hexdigest()
    stamp = ENV / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    print(
        "Installing PyTorch (CPU) and the tools into .nox/env: once, and it takes a minute or two.",
        flush=True,
    )
    install_torch(session)
    groups = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "test", "lint")
    session.install("--editable", ".", *groups)
    stamp.write_text(wanted)


def install_torch(session: nox.Session) -> None:
    """A CPU build of torch, or a quick failure: on Linux, PyPI's own is a CUDA build of several gigabytes."""
    requirement = TORCH + "+cpu" if sys.platform == "linux" else TORCH
    where = ["--extra-index-url", CPU_WHEELS]
    if "find-links" in str(session.run("python", "-m", "pip", "config", "list", silent=True)):
        where = []  # whoever has pip look into a local folder may well be offline
    try:
        session.install(requirement, "--retries", "1", *where)
    except CommandFailed:
        sys.exit(NO_TORCH)


def harness(session: nox.Session, command: str, python: Path = PYTHON) -> None:
    """Run `python -m oracle COMMAND` so that its output comes last and its exit code is nox's own."""
    logging.disable()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: 130, with the summary so far
    try:
        session.run(
            python, "-m", "oracle", command, *session.posargs,
            env=ONE_THREAD, interrupt_timeout=20, terminate_timeout=5,  # Ctrl-C: time for the summary so far
            stderr=None,  # nox would send it where the output goes, into what --json writes
        )  # fmt: skip
    except CommandFailed as failure:
        sys.exit(failure.return_code)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        logging.disable(logging.NOTSET)


@nox.session(python=False, requires=["env"])
def diff(session: nox.Session) -> None:
    """Fuzz needle against PyTorch: exit 0 they agree, 1 they part; `-- --help` lists codes and flags."""
    harness(session, "diff")


@nox.session(python=False, requires=["env"])
def replay(session: nox.Session) -> None:
    """Replay a failing case step by step: `nox -s replay -- f93132ed`."""
    harness(session, "replay")


@nox.session(python=False, requires=["env"])
def faults(session: nox.Session) -> None:
    """Plant deliberate faults in needle, one at a time; `-- --accept` writes the kill table, reports/faults.md."""
    harness(session, "faults")


@nox.session(python=False, requires=["env"])
def calibrate(session: nox.Session) -> None:
    """Count false alarms on correct variants of needle; `-- --accept` writes reports/calibration.md."""
    with_jax = "--check" in session.posargs and (WITH_LIBRARIES.parents[1] / "installed").exists()
    harness(session, "calibrate", WITH_LIBRARIES if with_jax else PYTHON)


# What `frameworks` holds to torch; the page in reports/ is of these versions.
FRAMEWORKS = (
    "jax==0.10.2",
    "flax==0.12.8",
    "optax==0.2.8",
    "mygrad==2.5.0",
    "autograd==1.9.1",
    "tinygrad==0.14.0",
    "mpmath>=1.3",
)


@nox.session(python=False, requires=["env"])
def frameworks(session: nox.Session) -> None:
    """JAX, flax, optax, MyGrad, autograd and tinygrad against PyTorch, pair by pair; `-- --accept` writes reports/frameworks.*."""
    where, inside = WITH_LIBRARIES.parents[1], WITH_LIBRARIES
    wanted = "\n".join((str(ROOT), sys.version, *FRAMEWORKS))
    stamp = where / "installed"
    if not stamp.exists() or stamp.read_text("utf-8") != wanted:
        print("Installing the libraries into .nox/frameworks, on top of .nox/env: once.", flush=True)
        session.run(PYTHON, "-m", "venv", "--clear", "--without-pip", where, silent=True)
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        there, shared = (str(session.run(p, "-c", ask, silent=True)).strip() for p in (inside, PYTHON))
        Path(there, "shared.pth").write_text(f"{shared}\n", "utf-8")  # torch and the tools are not installed twice
        for requirement in FRAMEWORKS:  # one by one: the rows of what cannot be installed say so, and the rest runs
            try:
                session.run(PYTHON, "-m", "pip", "--python", inside, "install", "--quiet", requirement)
            except CommandFailed:
                session.warn(f"{requirement} cannot be installed here: its rows are not run")
        stamp.write_text(wanted, "utf-8")
    harness(session, "frameworks", inside)


@nox.session(python=False, requires=["env"])
def mutants(session: nox.Session) -> None:
    """How many changes of needle's source diff notices; `-- --accept` writes reports/mutants.md."""
    harness(session, "mutants")


@nox.session(python=False, requires=["env"])
def bench(session: nox.Session) -> None:
    """Time needle against NumPy by hand and torch; `-- --against REV` against itself, `--peers all` against JAX and others."""
    if "all" in session.posargs:
        session.run(PYTHON, "-m", "pip", "install", "--quiet", "mygrad", "autograd", "jax")
    harness(session, "bench")


@nox.session(python=False, requires=["env"])
def memory(session: nox.Session) -> None:
    """Prove that nothing accumulates: memray on fixed and generated models; `-- --accept` rewrites the baseline."""
    harness(session, "memory")


@nox.session(python=False, requires=["env"])
def campaign(session: nox.Session) -> None:
    """Fuzz seed after seed, on this machine or, with `-- --scheduler ADDRESS`, on the workers of Dask; a ledger goes on."""
    harness(session, "campaign")


@nox.session(python=False, requires=["env"])
def kernels(session: nox.Session) -> None:
    """Run what compares numbers under other kernels of BLAS and other vector code; `-- --short` is CI's form."""
    harness(session, "kernels")


@nox.session(python=False)
def needle(session: nox.Session) -> None:
    """Run needle's own tests with NumPy and pytest alone, on every Python of 3.11 to 3.14 that is here, side by side."""
    pythons = {version: interpreter(version) for version in PYTHONS}
    for version, python in pythons.items():
        if python is None:
            session.warn(f"Python {version} is not here: needle's tests are not run on it")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {v: pool.submit(alone, v, python, session.posargs) for v, python in pythons.items() if python}
        failed = []
        for version, run in runs.items():
            code, output = run.result()
            print(f"\nneedle with NumPy alone, Python {version}:\n{output.rstrip()}", flush=True)
            failed += [version] if code else []
    if failed or not runs:
        session.error(
            f"needle's tests fail on Python {', '.join(failed)}" if runs else "there is no Python to run them on"
        )


def interpreter(version: str) -> str | None:
    """A Python of this version: on the PATH, or one that pyenv has installed."""
    installed = sorted(
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python")
    )
    for python in (sys.executable, shutil.which(f"python{version}"), *map(str, installed)):
        if python:
            asked = subprocess.run([python, "-c", ASK_VERSION], capture_output=True, text=True)
            if asked.stdout.strip() == version:  # a shim of pyenv may stand for a version that is not switched on
                return python
    return None


def alone(version: str, python: str, args: list[str]) -> tuple[int, str]:
    """Run needle's own tests in an environment of this Python with nothing but NumPy and pytest: exit code, output."""
    where = ROOT / ".nox" / f"needle-{version}"
    inside = str(where / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    test = [
        inside,
        "-m",
        "pytest",
        "tests/unit/needle",
        "--confcutdir=tests/unit/needle",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    install = [sys.executable, "-m", "pip", "--python", inside, "install", "--quiet", "numpy>=2.0", "pytest>=9"]
    steps = [[*test, *args]]
    if not (where / "installed").exists():
        steps = [[python, "-m", "venv", "--clear", "--without-pip", str(where)], install, *steps]
    output = ""
    for step in steps:
        env = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(step, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        output += run.stdout
        if run.returncode:
            return run.returncode, output
        if step is install:
            (where / "installed").touch()
    return 0, output


@nox.session(python=False, requires=["env"])
def tests(session: nox.Session) -> None:
    """Run pytest, in a process per core; `-- -k NAME` selects, and stays in one process."""
    spread = [] if session.posargs else ["--numprocesses", "auto", "--maxprocesses", "4", "--dist", "worksteal"]
    session.run(PYTHON, "-m", "pytest", *spread, *session.posargs, env=ONE_THREAD, interrupt_timeout=20)


@nox.session(python=False, requires=["env"])
def hostile(session: nox.Session) -> None:
    """A run against each needle that does by accident what no harness expects: verdict, exit code, seconds."""
    session.run(PYTHON, "tests/needles/hostile.py", *session.posargs, env=ONE_THREAD, interrupt_timeout=20)


@nox.session(python=False, requires=["env"])
def needles(session: nox.Session) -> None:
    """The correct needles of tests/needles and the mistakes planted in them: what a run says of each, 400 cases."""
    session.run(PYTHON, "tests/needles/run.py", *session.posargs, env=ONE_THREAD, interrupt_timeout=20)


@nox.session(default=False, venv_backend="virtualenv", requires=["env"])
def wheel(session: nox.Session) -> None:
    """Install the wheel of oracle and all that it needs into an empty environment, and judge a needle there."""
    folder = Path(session.create_tmp()).resolve()
    session.run(str(PYTHON), "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), external=True, silent=True)
    (built,) = folder.glob("needle_oracle-*.whl")
    install_torch(session)
    session.install(str(built))
    session.run("python", "-m", "pip", "check")
    session.chdir(folder)  # nothing of the clone is found from here
    session.run("oracle", "--version")
    needle = ROOT / "tests/needles/plain"
    asked = ["--cases", "60", "--seed", "0", "--junitxml", "oracle.xml"]
    session.run("oracle", "diff", "--needle", str(needle), *asked, env=ONE_THREAD)
    if "<testsuites" not in (folder / "oracle.xml").read_text("utf-8"):
        session.error("oracle.xml is no report of JUnit's")
    session.run(
        "oracle", "diff", "--cases", "60", "--seed", "0", "--no-digits", env=ONE_THREAD
    )  # the one that it carries
    session.run("oracle", "faults", success_codes=[2])  # what needs a clone says so


@nox.session(python=False, requires=["env"])
def lint(session: nox.Session) -> None:
    """Run ruff (check and format) and mypy."""
    for command in ("ruff check .", "ruff format --check .", "mypy"):
        session.run(PYTHON, "-m", *command.split())
