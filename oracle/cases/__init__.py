"""What is run? A case: one experiment as data, JSON in and out, that replays for ever.

Hypothesis draws a case's structure and its special values (`strategies`), a seed in the case gives the rest (`inputs`). What a
run has reached is counted in one table, which also edits cases to reach the rarest (`coverage`); a failing case is made
smaller while it keeps failing in the same way (`shrink`).
"""
