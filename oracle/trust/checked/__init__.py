"""How far can the verdicts of `oracle.check` be trusted? Correct implementations it must let pass, faults it must find.

`pairs` has the correct ones: a torch function, and the same in NumPy, SciPy or torch's float32 by another algorithm. `power` plants
faults by kind and size in some of them, and counts who finds them: the measured tolerance, and the usual fixed ones on the
same cases. `table` makes reports/check.md of both.
"""
