"""A bug, or rounding? Any implementation against any PyTorch program, with a tolerance that is measured on that program.

The program runs in float64 several times with rounding noise of float32's size (`oracle.systems.noise`): what the noise moves is what
a correct implementation may differ by, element by element. `op` draws inputs and compares values and gradients, `same`
compares named arrays with a program, `training` and `optimizer` steps, `module` a layer of needle with one of torch; `tap` names
what happens inside a program. docs/check.md is the way in.
"""

from oracle.check.comparing import Agreement, Row, same, tap
from oracle.check.difference import Difference
from oracle.check.drawing import KINDS
from oracle.check.measuring import LIMIT, Measured, tolerance
from oracle.check.modules import backward, by_torch, module, needle
from oracle.check.ops import op
from oracle.check.steps import optimizer, training
from oracle.systems.noise import Refused

__all__ = [
    "KINDS",
    "LIMIT",
    "Agreement",
    "Difference",
    "Measured",
    "Refused",
    "Row",
    "backward",
    "by_torch",
    "module",
    "needle",
    "op",
    "optimizer",
    "same",
    "tap",
    "tolerance",
    "training",
]
