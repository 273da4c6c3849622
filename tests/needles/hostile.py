"""Needles that do by accident what no harness expects: a line for each, `NEEDLES`; and what a run makes of them.

A line is Python that runs inside ``Tanh.compute`` (or where the name says) before the right result is computed; with ``return``,
in place of it. ``python tests/needles/hostile.py`` runs them all and prints a table: verdict, exit code, seconds. It ends with
1 if one has another exit code than is written here, or takes longer than `LONGEST`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

CASE_SECONDS = 4.0  # in place of 30, for those that do not come back
LONGEST = 60.0  # seconds for a run
ARGS = ("--cases", "100", "--seed", "0", "--workers", "1", "--no-digits")

RIGHT = {
    "nothing is wrong": "pass",
    "thread that never ends": "import threading, time; threading.Thread(target=time.sleep, args=(999,)).start()",
    "daemon thread in a loop": "import threading, time\ndef loop():\n while True: time.sleep(0.01)\nthreading.Thread(target=loop, daemon=True).start()",
    "thread that raises": "import threading; threading.Thread(target=lambda: 1 / 0).start()",
    "fork, the copy goes on": "import os; c = self.__class__\nif not hasattr(c, 'forked'): c.forked = os.fork()",
    "fork, the copy sleeps": "import os, time; c = self.__class__\nif not hasattr(c, 'forked'):\n  c.forked = os.fork()\n  if not c.forked: time.sleep(999)",
    "fork, the copy raises": "import os; c = self.__class__\nif not hasattr(c, 'forked'):\n  c.forked = os.fork()\n  if not c.forked: raise RuntimeError('the copy')",
    "child process left behind": "import subprocess; subprocess.Popen(['sleep', '999'])",
    "exit handler that ends with 3": "import atexit, os; atexit.register(os._exit, 3)",
    "prints a line": "print('here', flush=True)",
    "prints a megabyte": "print('x' * 1_000_000)",
    "prints what no encoding has": "print('\\ud800 \\x00 \\x1b[31m')",
    "writes to descriptor 2": "import os; os.write(2, b'\\xff' * 1000)",
    "closes sys.stdout": "import sys; sys.stdout.close()",
    "no sys.stdout": "import sys; sys.stdout = sys.stderr = None",
    "closes descriptor 1": "import os\ntry: os.close(1)\nexcept OSError: pass",
    "SIGINT to itself": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "recursion limit": "import sys; sys.setrecursionlimit(50_000)",
    "print options": "import numpy; numpy.set_printoptions(precision=2)",
    "Python's random state": "import random; random.seed(0)",
    "environment": "import os; os.environ['OMP_NUM_THREADS'] = '3'",
    "logging": "import logging; logging.basicConfig(level=0); logging.warning('tanh')",
    "excepthook that raises": "import sys; sys.excepthook = lambda *a: 1 / 0",
    "collects garbage": "import gc; gc.collect(0)",
    "keeps a megabyte": "self.__class__.kept = [*getattr(self, 'kept', [])[-50:], bytearray(1_000_000)]",
    "read-only result": "y = right(self, *args); y.flags.writeable = False; return y",
    "a module that warns when imported": "import importlib, sys; sys.modules.pop('this', None); import colorsys",
    "SIGPIPE to itself": "import os, signal; os.kill(os.getpid(), signal.SIGPIPE)",
}
WRONG = {
    "wrong numbers": "return 1.25 * right(self, *args)",
    "sys.exit(0)": "import sys; sys.exit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "StopIteration": "raise StopIteration(1)",
    "a BaseException of its own": "raise type('Odd', (BaseException,), {})",
    "os._exit(0)": "import os; os._exit(0)",
    "os._exit(1)": "import os; os._exit(1)",
    "abort": "import os; os.abort()",
    "segmentation fault": "import ctypes; ctypes.string_at(0)",
    "SIGKILL to itself": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM to itself": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "SIGFPE to itself": "import os, signal; os.kill(os.getpid(), signal.SIGFPE)",
    "SIGTERM to its group": "import os, signal; os.kill(0, signal.SIGTERM)",
    "stops itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "alarm": "import signal, time; signal.alarm(1); time.sleep(999)",
    "endless loop": "while True: pass",
    "sleeps": "import time; time.sleep(999)",
    "endless, whatever is raised": "import time\nwhile True:\n try: time.sleep(0.01)\n except BaseException: pass",
    "endless, inside C": "import itertools; sum(itertools.repeat(0))",
    "endless, in a callback of gc": "import gc, time; gc.callbacks.append(lambda *a: time.sleep(999)); gc.collect()",
    "endless, printing": "while True: print('here')",
    "deadlock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "waits for a process": "import subprocess; subprocess.run(['sleep', '999'])",
    "asks the user": "input('go on? ')",
    "recursion without end": "f = lambda: f(); f()",
    "recursion without end or limit": "import sys; sys.setrecursionlimit(10**9); f = lambda x: f([x]) + repr(x).__len__(); f(0)",
    "a message with a surrogate": "raise ValueError('\\ud800')",
    "a message of 10 MB": "raise ValueError('x' * 10_000_000)",
    "a message with escapes": "raise ValueError('\\x1b[2J\\x00\\r\\n[bold]')",
    "__str__ raises": "raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})",
    "__str__ exits": "import sys; raise type('E', (Exception,), {'__str__': lambda self: sys.exit(0)})",
    "__str__ never returns": "import time; raise type('E', (Exception,), {'__str__': lambda self: time.sleep(999)})",
    "cannot be pickled": "import threading; e = ValueError(threading.Lock()); e.lock = threading.Lock(); raise e",
    "cannot be unpickled": "raise type('E', (Exception,), {'__reduce__': lambda self: (eval, ('1/0',))})",
    "an exception group": "raise ExceptionGroup('two', [ValueError(1), TypeError(2)])",
    "an exception caused by itself": "e = ValueError(1); e.__cause__ = e; raise e",
    "memory that nobody has": "import numpy; numpy.ones(1 << 50)",
    "memory without end": "import numpy\nkept = []\nwhile True: kept.append(numpy.ones(1 << 21))",
    "memory without end, whatever is raised": "kept = []\nwhile True:\n try: kept.append(bytearray(1 << 24))\n except BaseException: pass",
    "memory without end, in small pieces": "kept = []\nwhile True: kept.append([0] * 999)",
    "memory without end, in another process": "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(1 << 31)'], check=True)",
    "UnicodeDecodeError": "b'\\xff'.decode()",
    "np.seterr": "import numpy; numpy.seterr(all='raise')",
    "warnings filters": "import warnings; warnings.simplefilter('ignore')",
    "warnings are errors": "import warnings; warnings.simplefilter('error')",
    "NumPy's random state": "import numpy; numpy.random.seed(0)",
    "working directory": "import os; os.chdir('/')",
    "working directory that is gone": "import os, tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
    "torch's default dtype": "import torch; torch.set_default_dtype(torch.float64)",
    "torch's threads": "import torch; torch.set_num_threads(3)",
    "torch without gradients": "import torch; torch.set_grad_enabled(False)",
    "torch's algorithms": "import torch; torch.use_deterministic_algorithms(True)",
    "no garbage collector": "import gc; gc.disable()",
    "threshold of the collector": "import gc; gc.set_threshold(1)",
    "ignores SIGTERM": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "handles SIGALRM": "import signal; signal.signal(signal.SIGALRM, lambda *a: None)",
    "tracing": "import sys; sys.settrace(lambda *a: None)",
    "closes all files": "import os; os.closerange(3, 256)",
    "returns None": "return None",
    "returns a float": "return 1.0",
    "returns float64": "return right(self, *args).astype('float64')",
    "returns objects": "return right(self, *args).astype(object)",
    "returns another shape": "return right(self, *args)[None]",
    "returns text": "return 'tanh'",
    "returns a function": "return right",
    "returns what cannot be looked at": "import numpy; A = type('A', (numpy.ndarray,), {'__array_finalize__': lambda self, x: 1 / 0}); return right(self, *args).view(A)",
    "returns more than memory holds": "import numpy; return numpy.broadcast_to(numpy.float32(0), (1 << 45,))",
    "returns nan": "return right(self, *args) * float('nan')",
    "changes its operand": "args[0][...] = 0",
    "the hundredth call crashes": "import os; c = self.__class__; c.n = getattr(c, 'n', 0) + 1\nif c.n == 100: os.abort()",
    "backward: raises": "raise ValueError('backward')",
    "backward: crashes": "import os; os.abort()",
    "backward: endless": "while True: pass",
    "backward: no garbage collector": "import gc; gc.disable()",
    "step: raises": "raise ValueError('step')",
    "step: crashes": "import os; os.abort()",
    "step: endless": "while True: pass",
    "build: raises": "raise ValueError('build')",
    "build: crashes": "import os; os.abort()",
    "build: endless": "while True: pass",
    "shape: raises": "raise ValueError('shape')",
}
# at the end of needle/__init__.py, imported by a process of its own
IMPORTED = {
    "import: exits": ("import sys; sys.exit(0)", 2),
    "import: os._exit(0)": ("import os; os._exit(0)", 2),
    "import: crashes": ("import os; os.abort()", 2),
    "import: endless": ("while True: pass", 2),
    "import: raises": ("raise ValueError('\\ud800')", 2),
    "import: KeyboardInterrupt": ("raise KeyboardInterrupt", 2),
    "import: no syntax": ("def", 2),
    "import: state changed": (
        "import gc, os, signal, sys, warnings, numpy; numpy.seterr(all='raise'); warnings.simplefilter('error'); gc.disable(); "
        "os.chdir('/'); signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.setrecursionlimit(300)",
        0,
    ),
    "import: segmentation fault": ("import ctypes; ctypes.string_at(0)", 2),
    "import: memory without end": ("kept = []\nwhile True: kept.append(bytearray(1 << 24))", 2),
    "import: asks the user": ("input('go on? ')", 2),
    "import: prints": ("print('\\ud800 \\x00' * 1_000_000, flush=True)", 0),
    "import: closes sys.stdout": ("import sys; sys.stdout.close(); sys.stderr = None", 0),
    "import: exit handler that ends with 3": ("import atexit, os; atexit.register(os._exit, 3)", 0),
    "import: fork, the copy goes on": ("import os; os.fork()", 0),
    "import: fork, the copy sleeps": ("import os, time; os.fork() or time.sleep(999)", 0),
    "import: child process left behind": ("import subprocess; subprocess.Popen(['sleep', '999'])", 0),
    "import: excepthook, tracing": ("import sys; sys.excepthook = lambda *a: 1 / 0; sys.settrace(lambda *a: None)", 0),
    "import: another print": ("import builtins; builtins.print = lambda *a, **k: 1 / 0", 0),
    "import: thread that never ends": (
        "import threading, time; threading.Thread(target=time.sleep, args=(999,)).start()",
        0,
    ),
}
CI = (
    "nothing is wrong", "thread that never ends", "fork, the copy goes on", "prints a megabyte", "segmentation fault",
    "KeyboardInterrupt", "endless, whatever is raised", "__str__ never returns", "cannot be unpickled", "working directory",
    "torch's default dtype", "returns what cannot be looked at",
)  # fmt: skip
PLACES = {"backward": ("ops.Tanh", "vjp"), "step": ("optim.SGD", "step"), "build": ("nn.Linear", "__init__"),
          "shape": ("Tensor", "shape")}  # fmt: skip


@dataclass
class Outcome:
    """What a run makes of a needle."""

    name: str
    expected: int
    code: int
    seconds: float
    verdict: str  # the headline of the worst failure, or the last line
    text: str
    cases: int = 0
    judged: bool = True  # the summary holds all cases that the run had

    @property
    def good(self) -> bool:
        """As it should be."""
        return self.code == self.expected and self.seconds < LONGEST and "Traceback" not in self.text


def names() -> list[str]:
    """Of all needles."""
    return [*RIGHT, *WRONG, *IMPORTED]


def run(name: str, folder: Path) -> Outcome:
    """`diff` on a needle."""
    return _imported(name, folder) if name in IMPORTED else _planted(name, folder)


def _planted(name: str, folder: Path) -> Outcome:
    """In a fork of this process, where everything is imported already."""
    from oracle import apart, exits
    from oracle.__main__ import main
    from oracle.runs import offered, shrinking

    screen = folder / "screen.txt"

    def work() -> int:
        number = os.open(screen, os.O_WRONLY | os.O_CREAT)
        os.dup2(number, 1)
        os.dup2(number, 2)
        apart.MEMORY = 1 << 30
        apart.CASE_SECONDS, shrinking.ENDLESS_SECONDS, offered.TRY_SECONDS = (
            CASE_SECONDS,
            CASE_SECONDS / 4,
            CASE_SECONDS,
        )
        plant(name)
        return main(["diff", *ARGS, "--out", str(folder / "out")])

    started = time.monotonic()
    code = exits.supervised(work)
    return _outcome(name, code, time.monotonic() - started, screen.read_text("utf-8", "replace"), folder / "out")


def plant(name: str) -> None:
    """Change the needle that is imported here."""
    import needle

    code = (RIGHT | WRONG)[name]
    where, colon, _ = name.partition(": ")
    path, method = PLACES[where] if colon and where in PLACES else ("ops.Tanh", "compute")
    owner = needle
    for part in path.split("."):
        owner = getattr(owner, part)
    # the file of needle that it would be written in
    file = str(Path(needle.__file__).parent / "ops.py")
    space: dict[str, object] = {}
    text = "def hostile(right, self, *args):\n" + textwrap.indent(code, "    ") + "\n    return ...\n"
    exec(compile(text, file, "exec"), space)
    hostile = space["hostile"]
    right = getattr(owner, method)
    if isinstance(right, property):
        right = right.fget

    def wrapped(self, *args, **kwargs):
        made = hostile(right, self, *args)
        return right(self, *args, **kwargs) if made is ... else made

    setattr(owner, method, property(wrapped) if isinstance(getattr(owner, method), property) else wrapped)


def _imported(name: str, folder: Path) -> Outcome:
    """A needle of its own in a process of its own."""
    import shutil

    shutil.copytree(ROOT / "needle", folder / "other" / "needle", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "other" / "needle" / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(f"\n{IMPORTED[name][0]}\n")
    program = "import sys; from oracle import apart, exits; from oracle.__main__ import main; apart.MEMORY = 1 << 30; exits.IMPORT_SECONDS = 4; sys.exit(exits.supervised(main))"
    line = [
        sys.executable,
        "-c",
        program,
        "diff",
        "--needle",
        str(folder / "other"),
        *ARGS,
        "--out",
        str(folder / "out"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return _outcome(name, done.returncode, time.monotonic() - started, done.stdout + done.stderr, folder / "out")


def _outcome(name: str, code: int, seconds: float, text: str, out: Path) -> Outcome:
    expected = IMPORTED[name][1] if name in IMPORTED else int(name in WRONG)
    lines = [line for line in text.splitlines() if line.strip()]
    heads = [line for line in lines if (line.startswith("needle ") and " step " in line) or "changes the state" in line]
    outcome = Outcome(name, expected, code, seconds, (heads or lines or [""])[-1], text)
    path = out / "summary.json"
    if path.exists():
        outcome.cases = sum(json.loads(path.read_text("utf-8"))["cases"].values())
    return outcome


def main(given: Sequence[str]) -> int:
    """Run those with the given words in their names, or all; print the table."""
    import oracle.runs.diff
    import oracle.runs.runner

    oracle.runs.runner.warm_up()
    chosen = [name for name in names() if not given or any(word in name for word in given)]
    outcomes = []
    print("| needle | verdict | exit code | seconds | cases |\n|---|---|--:|--:|--:|")
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(name, Path(folder))
        outcomes.append(outcome)
        mark = "" if outcome.good else f" **expected {outcome.expected}**"
        verdict = outcome.verdict.replace("|", "\\|")[:90]
        print(f"| {name} | {verdict} | {outcome.code}{mark} | {outcome.seconds:.1f} | {outcome.cases} |", flush=True)
    bad = [outcome.name for outcome in outcomes if not outcome.good]
    print(f"\n{len(outcomes)} needles, {len(bad)} not as expected: {', '.join(bad) or '-'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
