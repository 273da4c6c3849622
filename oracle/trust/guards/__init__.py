"""Which fault does each label of the coverage table stand for?

A *guard* of a label is a fault of needle that is there exactly where needle itself sees what the label is about: an op on a
reversed operand, a layer without a bias, an update whose β is above 0.9. No case without the label notices it, so a run that no
longer reaches the label no longer finds the fault. `seen` is what needle sees of its user, `of_ops`, `of_training` and `of_programs` say
in these terms where the guards of a kind of case are wrong, and `table` plants them; what has no guard stands in ``unguarded.toml``.
"""
