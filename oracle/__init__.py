"""oracle: trains generated models in needle and in PyTorch, in step, and compares everything that can be observed.

>>> from oracle import decode                 # doctest: +SKIP
>>> from oracle.rules.judge import judge      # doctest: +SKIP
>>> judge(decode(text), needle).divergence    # doctest: +SKIP

The command line is ``python -m oracle``; ``python -m oracle --help`` lists what it does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oracle.cases.case import Case, CaseError, OpCase, SecondOrderCase, TrainCase, decode, encode

__all__ = ["Case", "CaseError", "OpCase", "SecondOrderCase", "TrainCase", "decode", "encode"]


def __getattr__(name: str) -> Any:
    """What a case is, when it is asked for: pytest loads `oracle.plugin`, and with it this module, in every run."""
    if name in __all__:
        from oracle.cases import case

        return getattr(case, name)
    raise AttributeError(f"module 'oracle' has no attribute {name!r}")
