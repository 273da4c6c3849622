"""One run of the benchmark: check, time, and write down what was found, also when it is interrupted."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial

import torch

from oracle import files
from oracle.bench import extras, measure, report
from oracle.bench import options as given
from oracle.bench.peers import DEFAULT, ON_REQUEST
from oracle.exits import ExitCode, saved
from oracle.pages import terminal
from oracle.pages.terminal import Tick
from oracle.systems.workloads import WORKLOADS

EXTRA_BURST, EXTRA_QUICK_BURST = 0.01, 0.002

Track = Callable[[str, int], Tick]


def run(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    console = terminal.console(report.WIDTH)
    workloads = given.WORKLOADS if options.workloads is None else options.workloads
    wanted = options.extras
    if wanted is None:
        wanted = tuple(given.EXTRAS) if options.workloads is None else ()
    rounds, burst = given.bursts(options)
    names = list(DEFAULT)
    for name, module in ON_REQUEST.items() if options.peers != "torch" else ():
        if options.peers == "jax" and name != "JAX":
            continue
        if importlib.util.find_spec(module):
            names.append(name)
        elif options.peers == "all":
            print(f"{name} is not installed and left out (pip install {module})", file=sys.stderr)

    results = report.Results(threads=options.threads, rounds=rounds, burst=burst, names=names)
    status = ExitCode.AGREE
    unwritable = files.tried(options.out)
    if unwritable:
        print(f"nothing will be written to {options.out}: {unwritable}; `--out` names another folder", file=sys.stderr)
    with terminal.progress(console) as show:
        track = partial(terminal.counted, show)
        try:
            for key in workloads:
                workload = WORKLOADS[key]
                tick = track(f"{key}  {workload.title}", rounds + 1)
                measure.check(workload.for_check(), measure.build(workload.for_check(), names))
                tick()
                trainers = measure.build(workload, names)
                timing = results.workloads[key] = measure.Timing()
                contestants = {name: trainer.run for name, trainer in trainers.items()}
                measure.interleave(contestants, rounds, burst, tick, timing)
                del trainers, contestants
            _extras(results.extras, wanted, names, rounds, options.quick, track)
        except measure.Disagreement as error:
            print(f"Not timed: the libraries do not agree.\n{error}", file=sys.stderr)
            return ExitCode.PART
        except KeyboardInterrupt:
            results.complete = False
            status = ExitCode.INTERRUPTED
    report.terminal(results, console)
    with saved(f"{options.out}, `--out` names another folder"):
        report.write(results, options.out)
        console.print(f"{options.out}/bench.json, bench.html, bench.svg", style="dim", markup=False)
    return status


def _extras(
    found: report.Extras, wanted: tuple[str, ...], names: list[str], rounds: int, quick: bool, track: Track
) -> None:
    burst = EXTRA_QUICK_BURST if quick else EXTRA_BURST
    if "import" in wanted:
        found.import_time = extras.import_time(rounds, track("import time", rounds + 1))
    if "ops" in wanted:
        found.ops = extras.op_overhead(rounds, burst, track("overhead per op", extras.OPS))
    if "heap" in wanted:
        found.heap = extras.peak_heap(names, track("peak heap", len(names) - 1))
    few = max(3, rounds // 3)  # a chain of 10,000 ops fills a burst by itself
    if "scaling" in wanted:
        found.depth = extras.depth_scaling(few, burst, track("cost against depth", len(extras.DEPTHS)))
        found.width = extras.width_scaling(few, burst, track("cost against width", len(extras.WIDTHS)))
    if "second" in wanted:
        found.second = extras.second_order(rounds, burst, track("second order", rounds))
    if "adam" in wanted:
        found.adam = extras.adam_alone(rounds, burst, track("Adam alone", len(extras.ADAM)))
