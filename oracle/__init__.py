"""oracle: trains generated models in needle and in PyTorch, in step, and compares everything that can be observed.

>>> from oracle import decode, judge          # doctest: +SKIP
>>> judge(decode(text), needle).divergence    # doctest: +SKIP

The command line is ``python -m oracle``; ``python -m oracle --help`` lists what it does.
"""

from oracle.cases.case import Case, CaseError, OpCase, SecondOrderCase, TrainCase, decode, encode

__all__ = ["Case", "CaseError", "OpCase", "SecondOrderCase", "TrainCase", "decode", "encode"]
