"""Does anything accumulate while needle trains? Four gates, each with a bar of exactly zero.

program.py   the training loop of a case, as a user writes it
probe.py     one run of it, watched by memray in a process of its own: what lives at every step
child.py     the processes
blame.py     who holds what survived, in words
panel.py     the fixed models
yardstick.py the same step in torch and in NumPy by hand
gates.py     from what was seen to verdicts
blas.py      the kernels that OpenBLAS computes with, a part of the key of what was seen before
baseline.py  what was seen before
outcome.py   what a run was asked for, and found
report.py    Markdown, JSON and one HTML page
course.py    what is said of another needle, of which only growth is a failure

`oracle.runs.memory` is the command.
"""
