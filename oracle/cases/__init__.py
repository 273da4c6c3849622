"""What is run? A case: one experiment as data, JSON in and out, that replays for ever.

Hypothesis draws a case's structure and its special values (`strategies`, `blocks`), a seed in the case gives the rest
(`inputs`). One table names all that a run can reach (`features`); what it has reached is counted, and cases are edited to
reach the rarest (`coverage`, `edits`); a failing case is made smaller while it keeps failing in the same way (`shrink`).
"""
