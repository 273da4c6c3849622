"""How is needle driven? Through the public course API alone, as a user calls it; layers are observed by wrapping their
``forward``. Never imports torch.

The package under test is handed in (``ndl``), so that any other needle can be driven the same way. A `NeedleRun` is a
model with its optimizer (`run`); a `step` and an evaluation are functions on it, and what they show is an Observation.
"""

from oracle.systems.ours.calls import calls
from oracle.systems.ours.evaluation import evaluate
from oracle.systems.ours.evidence import again, eval_draws, misbuilt, misshapen, modes, outputs, reset_does
from oracle.systems.ours.model import BESIDE, build, is_foreign, is_ours
from oracle.systems.ours.operation import run_op
from oracle.systems.ours.phase import at_work, lines_of
from oracle.systems.ours.run import NeedleRun
from oracle.systems.ours.second_order import run_second
from oracle.systems.ours.step import step
from oracle.systems.ours.unwatched import again_unwatched
from oracle.systems.ours.watch import Closely

__all__ = [
    "BESIDE", "Closely", "NeedleRun", "again", "again_unwatched", "at_work", "build", "calls", "eval_draws", "evaluate", "is_foreign",
    "is_ours", "lines_of", "misbuilt", "misshapen", "modes", "outputs", "reset_does", "run_op", "run_second", "step",
]  # fmt: skip
