"""How far can we trust it? Planted faults it must find, correct variants it must let pass, and mutants that count both;
and all that under other kernels of BLAS and other vector code than this machine would choose.
"""
