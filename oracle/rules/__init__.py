"""Is it right? A rule compares what was observed with what must be, and gives the divergences that it finds.

`judge` runs a case in both systems and applies the rules to it: form before values, needle against the truth (G), the
update against its definition (L) and against torch's (T), every node of the tape by itself (OP), what must be the same
bits, and torch against the truth (P). Who is to blame is another question, asked later: `oracle.blame`.
"""
