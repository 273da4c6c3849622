"""How fast is needle? Ratios within one run, to a NumPy loop written by hand and to torch: `python -m oracle bench`.

Every library trains the same model from the same weights on the same batches; `measure` first checks that
they agree, then times them in interleaved bursts of process CPU time. What is reported are ratios: to a
hand-written NumPy loop (`limit`) and to torch.

Importing this package imports none of the libraries: `cli.main` sets the number of threads before they load.
"""

from oracle.bench.cli import main

__all__ = ["main"]
