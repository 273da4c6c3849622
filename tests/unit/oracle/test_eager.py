"""torch's compiler stays out, and is there as soon as somebody wants it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

PROGRAM = """
import inspect, sys
from oracle.runs import runner
from oracle.cases import strategies
from oracle.runs.draws import draw, draw_from
from oracle.runs.result import Result

runner.warm_up()
cases = draw("train", 8, 5) + draw("op", 40, 5) + draw("second", 8, 5)
cases += draw_from(strategies.op_cases(["absolute"], 3), 4, 5)  # its second derivative is zero, which torch knows
result = Result()
for case in cases:
    result.judge(case, validate=True)
assert sum(result.cases.values()) == len(cases) and not result.failed and not result.harness_errors
inspect.getmodule(sys._getframe())
assert "sympy" not in sys.modules

import torch
import torch._dynamo.config

assert torch._dynamo.__file__
assert float(torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(()))) == 2
from torch.fx.experimental.symbolic_shapes import ShapeEnv, sym_eq

assert sym_eq(torch.Size([2]), torch.Size([2]))
assert "sympy" in sys.modules
runner.warm_up()
"""


def test_what_compiles_is_imported_for_those_who_want_it_alone():
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
