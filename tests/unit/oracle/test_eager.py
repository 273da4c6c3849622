"""torch's compiler stays out, and is there as soon as somebody wants it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

USED = """
import inspect, sys
from oracle.runs import runner
from oracle.cases import strategies
from oracle.runs.draws import draw, draw_from
from oracle.runs.result import Result
from oracle.systems import higher

runner.warm_up()
cases = draw("train", 8, 5) + draw("op", 40, 5) + draw("second", 8, 5)
cases += draw_from(strategies.op_cases(["absolute"], 3), 4, 5)  # its second derivative is zero, which torch knows
result = Result()
for case in cases:
    result.judge(case, validate=True)
assert sum(result.cases.values()) == len(cases) and not result.failed and not result.harness_errors
for case in draw_from(strategies.op_cases(["softmax_loss"], 2), 2, 5):
    higher.peer(case)  # under vmap, torch would take its kernel apart
inspect.getmodule(sys._getframe())
assert "sympy" not in sys.modules
"""
WANTED = """
import torch
import torch._dynamo.config

assert torch._dynamo.__file__
assert float(torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(()))) == 2
from torch.fx.experimental.symbolic_shapes import ShapeEnv, sym_eq

assert sym_eq(torch.Size([2]), torch.Size([2]))
assert "sympy" in sys.modules
runner.warm_up()
"""
EARLY = f"""
from oracle.systems import eager

eager.before_torch()
{USED}
assert "torch._decomp.decompositions" not in sys.modules and "torch._prims" not in sys.modules
import torch

# what vmap has registered is what it would be
seen, labels = torch.tensor([[0.0, 2.0], [1.0, -1.0]]), torch.tensor([1, 0])
losses = torch.vmap(lambda x, y: torch.nn.functional.nll_loss(x[None], y[None]))(seen, labels)
assert losses.tolist() == [-2.0, -1.0]
assert "torch._decomp.decompositions" in sys.modules
{WANTED}
assert "__file__" in vars(sys.modules["torch._meta_registrations"])
assert torch._decomp.core_aten_decompositions()
assert torch.ops.aten.nll_loss_forward.default in torch._decomp.decomposition_table
"""


@pytest.mark.parametrize("program", [USED + WANTED, EARLY], ids=["torch was there", "before torch"])
def test_what_compiles_is_imported_for_those_who_want_it_alone(program):
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
