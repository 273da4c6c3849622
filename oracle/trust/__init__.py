"""How far can we trust it? Planted faults it must find, correct variants it must let pass, and mutants that count both."""
