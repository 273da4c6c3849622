"""How much of what can go wrong in needle's source does `nox -s diff` notice?

One place of needle's source is changed, in memory and never on disk, and the engine of ``nox -s diff`` alone judges the
changed package on the cases of a diff run, until one of them diverges (the mutant is killed) or the budget is used up.

- `operators`: what is changed, and how (`generic`, `numeric`), at a `site`; `damage`: what changed code calls;
- `mutant`: what becomes of a file;
- `claims`: which files and functions are left to the unit tests, and why;
- `trial`: a mutated package in a forked process, judged and reported through a pipe; `tested`: the same with needle's unit tests as the judge;
- `campaign`: all mutants of a run, their verdicts, and what is known to be equivalent;
- `report`: the tables.
"""
