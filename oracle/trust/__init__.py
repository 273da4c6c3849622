"""How far can we trust it?

By planting faults and changing needle's source, by letting the rules judge correct variants, and by doing so under other
kernels of BLAS and other vector code than this machine would choose.
"""
