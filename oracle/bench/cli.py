"""The command line of the benchmark. It sets the number of threads, so it imports nothing that reads it."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from oracle.apart import threads
from oracle.bench.options import EXTRAS, WORKLOADS

ONE_THREAD_XLA = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def chosen(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A comma-separated choice, as an argparse type; `all` and `none` are words."""

    def parse(text: str) -> tuple[str, ...]:
        if text == "all":
            return tuple(known)
        if text == "none":
            return ()
        by_lower = {name.lower(): name for name in known}
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name.lower() not in by_lower:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)} (or all, or none)")
        return tuple(dict.fromkeys(by_lower[name.lower()] for name in names))

    return parse


def positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="bench",
        description="How fast needle is: ratios to a hand-written NumPy loop and to torch. "
        "Exit code: 0 measured, 1 the libraries do not agree or needle is slower than that of --against, 2 usage, "
        "4 the harness itself failed, 130 interrupted.",
        epilog="\n".join(f"  {name:8} {what}" for name, what in EXTRAS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--workloads",
        type=chosen(WORKLOADS),
        default=None,
        metavar="W1,W3b",
        help="which of " + ", ".join(WORKLOADS) + "; default: all",
    )
    p.add_argument(
        "--extras",
        type=chosen(tuple(EXTRAS)),
        default=None,
        metavar="import,heap",
        help="which of " + ", ".join(EXTRAS) + " (below); default: all, or none where --workloads is given",
    )
    p.add_argument(
        "--peers",
        choices=("torch", "jax", "all"),
        default="jax",
        help="beside the loop by hand, where they are installed: torch alone, JAX too (the default), or MyGrad and HIPS "
        "autograd as well",
    )
    p.add_argument(
        "--against",
        metavar="REV",
        help="the workloads alone, and needle as it is here against needle as it is at this revision of git: the ratio of "
        "their times, in pairs of processes that take turns burst by burst",
    )
    p.add_argument("--threads", type=positive, default=1, metavar="N", help="of BLAS, torch and JAX; default: 1")
    p.add_argument("--rounds", type=positive, default=None, metavar="N", help="default: 15, or 5 with --quick")
    p.add_argument("--quick", action="store_true", help="short bursts and few rounds: a first look, not a verdict")
    p.add_argument("--out", type=Path, default=Path("reports/latest"), metavar="DIR", help="default: reports/latest")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    if options.against is not None:
        if options.extras or options.peers != parser().get_default("peers"):
            parser().error("--against times the workloads of two needles, without --extras and --peers")
        from oracle.bench import against

        return against.run(options)
    wanted = threads(options.threads)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        if "numpy" not in sys.modules and "torch" not in sys.modules:
            os.environ.update(wanted)
        else:  # they have read the environment already
            return again(arguments, wanted)
    if options.threads == 1:  # JAX has its own switch, and reads it when it first computes
        os.environ.setdefault("XLA_FLAGS", ONE_THREAD_XLA)
    from oracle.bench.session import run

    return run(options)


def again(arguments: Sequence[str], env: dict[str, str]) -> int:
    """The same command in a fresh process with this environment."""
    command = [sys.executable, "-m", "oracle.bench", *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **env}
    process = subprocess.Popen(command, env=env)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # that process shows what it has measured so far
            if os.name == "posix":
                process.send_signal(signal.SIGINT)
