"""The command line: ``python -m oracle COMMAND``, see `parser`. Heavy imports come after the arguments.

Exit codes are those of `oracle.exits.ExitCode`, for every command.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import re
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from oracle import commands
from oracle.apart import FORKS
from oracle.exits import ExitCode, importing, supervised
from oracle.trust.mutants.claims import ALL_FILES as MUTATED

CODES = (
    "Exit code: 0 they agree, 1 they part, 2 usage, 3 the oracle contradicts itself, 4 the harness itself failed, "
    "5 nothing could be judged, 130 interrupted; if several hold: 4, 3, 1, 130, 5."
)
NEEDED = ("numpy", "torch", "hypothesis", "msgspec", "rich")
IN_A_CLONE = (
    "mutants",
    "faults",
    "calibrate",
    "bench",
    "kernels",
    "frameworks",
)  # they read and write what only a clone has
PROFILES = {"dev": 4000, "ci": 500, "nightly": 100_000}  # cases


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """An argparse type: a positive number."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not value > 0:
            raise argparse.ArgumentTypeError(f"a positive {'whole ' * (kind is int)}number is needed, got {text!r}")
        return value

    return parse


def seed(text: str) -> int:
    """An argparse type: a seed."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"a whole number from 0 on is needed, got {text!r}")
    return int(text)


def version() -> str:
    """oracle and what its verdicts depend on; nothing is imported for it."""

    def of(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    return (
        f"oracle {of('needle-oracle')} (torch {of('torch')}, NumPy {of('numpy')}, Python {platform.python_version()})"
    )


def cuda_build() -> str | None:
    """The version of CUDA that torch was built for, or None; read from its files, because importing it takes a second."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec is not None and spec.origin else None
    if file is None or not file.is_file():
        return None
    found = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)['\"]", file.read_text("utf-8", "replace"), re.MULTILINE)
    return found[1] if found else None


def parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    main = argparse.ArgumentParser(
        prog=commands.called(), description="Differential testing of needle against PyTorch."
    )
    main.add_argument("--version", action="version", version=version())
    subcommands = main.add_subparsers(dest="command", required=True)

    diff = subcommands.add_parser(
        "diff",
        help="fuzz needle against PyTorch",
        description="Fuzz needle against PyTorch on generated training runs, single operations and real data. " + CODES,
    )
    diff.add_argument(
        "--profile", choices=PROFILES, default="dev", help="how many cases: dev 4000, ci 500, nightly 100000"
    )
    length = diff.add_mutually_exclusive_group()
    length.add_argument(
        "--cases", type=positive(int), help="how many cases, rounded up to shards of 100 (default: by profile)"
    )
    length.add_argument("--minutes", type=positive(float), help="go on for this long instead of a number of cases")
    diff.add_argument("--seed", type=seed, help="seed of the run (default: drawn, and shown; 0 for the ci profile)")
    diff.add_argument(
        "--workers", type=positive(int), help="processes (default: one per core); verdicts do not depend on it"
    )
    diff.add_argument(
        "--needle", type=Path, metavar="DIR", help="test the package needle in this folder instead of ours"
    )
    diff.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="NAME",
        help="with --needle: an operation, layer or optimizer whose absence is a finding (Dropout, logsoftmax, …); repeatable",
    )
    diff.add_argument(
        "--keep-going",
        action=argparse.BooleanOptionalAction,
        help="do not stop after the first wave with a failure (the default with --needle)",
    )
    diff.add_argument("--verbose", action="store_true", help="show what the cases reached, and how near to which limit")
    diff.add_argument("--no-digits", action="store_true", help="leave out the run on the UCI digits")
    diff.add_argument("--out", type=Path, default=commands.LATEST, help="folder for failing cases and summary.json")
    diff.add_argument("--junitxml", type=Path, metavar="FILE", help="also write the run as JUnit's XML")
    diff.add_argument(
        "--json", metavar="FILE", help="also write the summary there; - is standard output, without anything else"
    )
    diff.add_argument(
        "--github",
        action=argparse.BooleanOptionalAction,
        help="annotations at the suspects' lines and the summary of the step (on by itself where GITHUB_ACTIONS is true)",
    )

    replay = subcommands.add_parser(
        "replay",
        help="replay a case step by step",
        description="Replay a case step by step. " + CODES,
    )
    replay.add_argument("case", help="a digest such as f93132ed (or its beginning), or the path of a case file")
    replay.add_argument("--needle", type=Path, metavar="DIR", help="replay on the package needle in this folder")
    replay.add_argument("--from", dest="folder", type=Path, default=commands.LATEST, help="where digests are looked up")

    mutants = subcommands.add_parser(
        "mutants",
        help="how many changes of needle's source are noticed",
        description="Change needle's source in memory, one place at a time, and see whether the engine of diff notices. "
        "Needle's unit tests judge what diff does not claim, and the excuses. "
        "Exit code: 0 enough mutants are killed, 1 not, an excuse is shown to be wrong, a probe raises a false alarm, or "
        "one that the accepted run killed is alive, 2 usage, 4 the harness itself failed, 130 interrupted.",
    )
    mutants.add_argument(
        "--file",
        nargs="+",
        action="extend",
        choices=MUTATED,
        metavar="FILE",
        help=f"only these of {', '.join(MUTATED)}",
    )
    mutants.add_argument("--operators", nargs="+", action="extend", metavar="NAME", help="only these operators")
    mutants.add_argument("--budget", type=positive(int), default=1000, help="cases at most, those of a diff run (1000)")
    mutants.add_argument("--workers", type=positive(int), help="processes (default: one per core)")
    mutants.add_argument("--seed", type=seed, default=0, help="seed of the cases (default 0)")
    mutants.add_argument("--all", action="store_true", help="every mutant, not the fifth that the seed chooses")
    mutants.add_argument("--only-survivors", action="store_true", help="only what nobody killed in the accepted run")
    mutants.add_argument(
        "--by-tests", action="store_true", help="the unit tests alone judge; of diff, what the accepted run found stays"
    )
    mutants.add_argument(
        "--unjudged", action="store_true", help="only what the accepted run does not have, as after an edit of needle"
    )
    mutants.add_argument("--key", nargs="+", action="extend", help="only the mutants with these keys")
    mutants.add_argument(
        "--excuses", action="store_true", help="only what is excused, and whether the unit tests bear the reasons out"
    )
    mutants.add_argument(
        "--resume", action="store_true", help="keep what the last run has killed, if nothing has changed since"
    )
    mutants.add_argument("--accept", action="store_true", help="write reports/mutants.md and its baseline")
    mutants.add_argument(
        "--from-latest", action="store_true", help="accept the last run, with the excuses written since; runs nothing"
    )
    faults = subcommands.add_parser(
        "faults",
        help="plant deliberate faults in needle, one at a time: the kill table",
        description="Plant deliberate faults in needle, one at a time, and count the cases of `diff` until one shows it. "
        "Exit code: 0 as good as the committed table, 1 a fault survives that was killed, or what is no fault is killed "
        "too, 2 usage, 4 the harness itself failed, 130 interrupted.",
    )
    faults.add_argument("--faults", default="", help="names, patterns or groups, with commas between (default: all)")
    faults.add_argument("--seeds", type=positive(int), default=3, help="how many seeds (default: 3)")
    faults.add_argument(
        "--budget", type=positive(int), default=PROFILES["dev"], help="cases before a fault has survived"
    )
    faults.add_argument("--workers", type=positive(int), help="processes (default: one per core)")
    faults.add_argument(
        "--accept", action="store_true", help="write reports/faults.md and reports/baselines/faults.json"
    )
    faults.add_argument(
        "--resume", action="store_true", help="keep what the last run has judged, if nothing has changed since"
    )
    faults.add_argument(
        "--guards",
        action="store_true",
        help="the guards of the coverage labels instead: reports/guards.md; --faults then selects labels by words in them",
    )

    calibrate = subcommands.add_parser(
        "calibrate",
        help="let the rules judge correct variants of needle",
        description="Let the rules judge correct variants of needle: every divergence is a false alarm. "
        "Exit code: 0 none, 1 some, 2 usage, 4 the harness itself failed, 130 interrupted.",
    )
    calibrate.add_argument("--cases", type=positive(int), default=2000, help="for each variant (default: 2000)")
    calibrate.add_argument("--variants", default="", help="names, with commas between (default: all)")
    calibrate.add_argument("--seed", type=seed, default=20_240_229, help="seed of the cases, held out from all tuning")
    calibrate.add_argument("--workers", type=positive(int), help="processes (default: one per core)")
    calibrate.add_argument("--accept", action="store_true", help="write reports/calibration.md and its baseline")
    calibrate.add_argument(
        "--check", action="store_true", help="oracle.check instead: correct pairs, planted faults, reports/check.md"
    )

    frameworks = subcommands.add_parser(
        "frameworks",
        help="hold other libraries to PyTorch, pair by pair",
        description="Hold pairs of functions of JAX, flax, optax, MyGrad, autograd and tinygrad to PyTorch by oracle.check. "
        "Exit code: 0 all is as the table says, 1 something is not, 2 usage, 4 a difference that its own program does not show, "
        "5 none of the libraries is installed, 130 interrupted, with a report of what is known.",
    )
    frameworks.add_argument(
        "--library", action="append", default=[], metavar="NAME", help="jax, flax, …: only this one; repeatable"
    )
    frameworks.add_argument(
        "--row", action="append", default=[], metavar="WORDS", help="only rows with these words; repeatable"
    )
    frameworks.add_argument("--seed", type=seed, default=20_240_229, help="seed of the inputs (20240229)")
    frameworks.add_argument("--accept", action="store_true", help="write reports/frameworks.md and .html")

    subcommands.add_parser("bench", help="time needle against hand-written NumPy and torch", add_help=False)

    memory = subcommands.add_parser(
        "memory",
        help="prove that nothing accumulates while needle trains",
        description="Train fixed and generated models under memray and hold them to zero growth, and the fixed ones to "
        "reports/baselines/memory.json. Another needle is held to growth alone, and who holds what grows is named. "
        "Exit code: 0 memory is flat, 1 it is not, 2 usage, "
        "4 something could not be measured, 5 nothing could (memray does not exist here), 130 interrupted.",
    )
    memory.add_argument("--needle", type=Path, metavar="DIR", help="the package needle in this folder instead of ours")
    memory.add_argument("--cases", type=positive(int), help="how many generated models (30; of another needle 8)")
    memory.add_argument("--seed", type=seed, help="seed of the generated models (default: drawn, and shown)")
    memory.add_argument("--panel-only", action="store_true", help="the fixed models alone")
    memory.add_argument("--model", metavar="NAME", help="one fixed model alone, such as 'MLPResNet BatchNorm'")
    memory.add_argument("--workers", type=positive(int), help="processes (default: one per core)")
    memory.add_argument("--accept", action="store_true", help="make what is measured the baseline of this key")
    memory.add_argument("--out", type=Path, default=commands.LATEST, help="folder for the report")

    campaign = subcommands.add_parser(
        "campaign",
        help="fuzz seed after seed, on this machine or on many",
        description="Fuzz seed after seed on workers of Dask, and keep a ledger that the next campaign continues. "
        + CODES,
    )
    campaign.add_argument(
        "--needle", type=Path, metavar="DIR", help="test the package needle in this folder instead of ours"
    )
    campaign.add_argument(
        "--minutes", type=positive(float), default=60.0, help="after which no round of shards begins (60)"
    )
    campaign.add_argument(
        "--scheduler", metavar="ADDRESS", help="of Dask, such as tcp://10.0.0.1:8786 (default: one here)"
    )
    campaign.add_argument("--workers", type=positive(int), help="processes without --scheduler (default: one per core)")
    campaign.add_argument("--ledger", type=Path, metavar="FILE", help="seeds done (default: campaign.json in --out)")
    campaign.add_argument("--seed", type=seed, help="the first seed (default: the first behind those of the ledger)")
    campaign.add_argument("--seeds", type=positive(int), help="no more than so many seeds")
    campaign.add_argument(
        "--cases", type=positive(int), default=PROFILES["dev"], help="of each seed, in shards of 100 (4000)"
    )
    campaign.add_argument("--out", type=Path, default=commands.LATEST, help="folder for failing cases and the ledger")

    kernels = subcommands.add_parser(
        "kernels",
        help="the same verdict under other kernels of BLAS and other vector code",
        description="Run kept cases, a calibration, the memory panel and the tests that compare numbers under every kernel of "
        "OpenBLAS that this CPU can run, and without the vector code of NumPy and of torch, each in a process of its own. "
        "Exit code: 0 all hold, 1 a check fails, 2 usage, 3 the oracle contradicts itself, 4 a check or a setting did not "
        "come about, 130 interrupted.",
    )
    kernels.add_argument("--short", action="store_true", help="what CI runs: fewer cases, one model, no kernel twice")
    kernels.add_argument("--kernels", nargs="+", action="extend", default=[], metavar="NAME", help="only these kernels")
    kernels.add_argument("--cases", type=positive(int), help="of the calibration, for each variant (200; short: 100)")
    kernels.add_argument("--workers", type=positive(int), help="checks at a time (default: one per core)")
    kernels.add_argument(
        "--accept-memory", action="store_true", help="only make what is measured the memory baseline of each kernel"
    )
    return main


def parsed(given: Sequence[str]) -> argparse.Namespace:
    """The arguments; of a flag that does not exist, the usage of its own command is shown."""
    main = parser()
    arguments, unknown = main.parse_known_args(given)
    if unknown:
        (commands,) = (a for a in main._actions if isinstance(a, argparse._SubParsersAction))
        commands.choices[arguments.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing and given[:1] != ["--version"]:
        print(f"oracle needs {', '.join(missing)}: pip install {' '.join(missing)} (docs/ci.md)", file=sys.stderr)
        return ExitCode.USAGE
    if given and given[0] in IN_A_CLONE and not commands.in_a_clone():
        print(f"{given[0]}: it measures our needle and oracle itself, in a clone of their repository", file=sys.stderr)
        return ExitCode.USAGE
    if given[:1] == ["bench"]:  # sets the number of threads, which must come before NumPy
        from oracle import bench

        return bench.main(given[1:])
    commands.started_here()
    arguments = parsed(given)
    if arguments.command == "campaign" and importlib.util.find_spec("distributed") is None:
        print("campaign needs Dask: pip install 'needle-oracle[campaign]' (docs/ci.md)", file=sys.stderr)
        return ExitCode.USAGE
    if arguments.command == "campaign" and not FORKS:
        print("campaign: this system cannot fork, which every worker does", file=sys.stderr)
        return ExitCode.USAGE
    from oracle.systems import candidate, eager
    from oracle.systems.foreign import ForeignError

    if arguments.command in ("diff", "replay") and arguments.needle is None:  # another one may want torch, too
        eager.before_torch()
    try:
        if arguments.command in (
            "diff",
            "replay",
            "memory",
            "frameworks",
            "campaign",
        ):  # this process decides and writes: it runs no needle
            candidate.choose(getattr(arguments, "needle", None))
        else:  # these plant something in it
            with importing():
                candidate.candidate()
    except ForeignError as error:
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return ExitCode.USAGE
    cuda = cuda_build()
    if cuda:
        print(
            f"torch is a build for CUDA {cuda}: the verdicts are those of its CPU code, but it takes gigabytes; the CPU build: "
            "pip install torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu",
            file=sys.stderr,
        )
    if arguments.command == "replay":
        from oracle.runs.replay import replay

        return replay(arguments.case, commands.Asked(arguments.needle, arguments.folder))
    if arguments.command == "faults" and arguments.guards:
        from oracle.trust.guards.table import guards

        names = [n.strip() for n in arguments.faults.split(",") if n.strip()]
        return guards(workers=arguments.workers, accept=arguments.accept, labels=names)
    if arguments.command == "faults":
        from oracle.trust.kill_table import faults

        return faults(
            names=[n.strip() for n in arguments.faults.split(",") if n.strip()],
            seeds=arguments.seeds,
            budget=arguments.budget,
            workers=arguments.workers,
            accept=arguments.accept,
            resume=arguments.resume,
        )
    if arguments.command == "calibrate" and arguments.check:
        from oracle.trust.checked import table

        names = [n.strip() for n in arguments.variants.split(",") if n.strip()]
        return table.calibrate(seed=arguments.seed, accept=arguments.accept, names=names)
    if arguments.command == "calibrate":
        from oracle.trust.calibrate import calibrate

        return calibrate(
            cases=arguments.cases,
            variants=[n.strip() for n in arguments.variants.split(",") if n.strip()],
            seed=arguments.seed,
            workers=arguments.workers,
            accept=arguments.accept,
        )
    if arguments.command == "frameworks":
        from oracle.frameworks.run import frameworks

        return frameworks(
            seed=arguments.seed, accept=arguments.accept, libraries=arguments.library, names=arguments.row
        )
    if arguments.command == "mutants":
        from oracle.trust.mutants import cli

        return cli.main(arguments)
    if arguments.command == "memory":
        from oracle.runs.memory import memory

        return memory(
            cases=arguments.cases,
            seed=arguments.seed,
            workers=arguments.workers,
            panel_only=arguments.panel_only,
            model=arguments.model,
            accept=arguments.accept,
            folder=arguments.out,
            needle=arguments.needle,
        )
    if arguments.command == "campaign":
        from oracle.runs.campaign import campaign

        return campaign(
            minutes=arguments.minutes,
            scheduler=arguments.scheduler,
            workers=arguments.workers,
            ledger=arguments.ledger,
            seed=arguments.seed,
            seeds=arguments.seeds,
            cases=arguments.cases,
            folder=arguments.out,
            needle=arguments.needle,
        )
    if arguments.command == "kernels":
        from oracle.trust.kernels import kernels

        return kernels(
            short=arguments.short,
            names=arguments.kernels,
            cases=arguments.cases,
            workers=arguments.workers,
            accept_memory=arguments.accept_memory,
        )
    if arguments.require and arguments.needle is None:
        print("diff: --require NAME asks another needle for it: name its folder with --needle DIR", file=sys.stderr)
        return ExitCode.USAGE
    from oracle.runs import formats
    from oracle.runs.diff import diff

    cases = arguments.cases or PROFILES[arguments.profile]
    fixed = 0 if arguments.profile == "ci" else None
    return diff(
        seed=fixed if arguments.seed is None else arguments.seed,
        cases=cases,
        minutes=arguments.minutes,
        workers=arguments.workers,
        keep_going=arguments.keep_going,
        digits=not arguments.no_digits,
        folder=arguments.out,
        needle=arguments.needle,
        require=tuple(arguments.require),
        verbose=arguments.verbose,
        formats=formats.Asked(
            arguments.junitxml,
            arguments.json,
            formats.under_github() if arguments.github is None else arguments.github,
        ),
    )


def console() -> None:
    """The command ``oracle``."""
    sys.exit(supervised(main))


if __name__ == "__main__":
    sys.exit(supervised(main))
