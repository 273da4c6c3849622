"""What a benchmark can be asked for. It imports nothing that reads the number of threads."""

from __future__ import annotations

import argparse

WORKLOADS = ("W1", "W2", "W3b", "W3l", "W4", "W5", "W6")
EXTRAS = {
    "import": "time of `import needle` against `import numpy`",
    "ops": "overhead per operation, on tensors of one element",
    "heap": "peak heap of one W3b step, and what is left to the cycle collector",
    "scaling": "cost per step against depth and width",
    "second": "cost of create_graph and of second-order gradients",
    "adam": "a step of Adam alone, on the parameters of three workloads",
}
BURST, QUICK_BURST = 0.04, 0.01  # seconds
ROUNDS, QUICK_ROUNDS = 15, 5


def bursts(options: argparse.Namespace) -> tuple[int, float]:
    """How many rounds, and how many seconds a burst."""
    return options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS), QUICK_BURST if options.quick else BURST
