"""How does a run go? Shards of cases on a pool of processes, merged in a fixed order; a summary and an exit code.

`diff` fuzzes, `replay` shows one case step by step, `memory` holds models to zero growth. What is found depends on the
seed and on the number of cases, never on the number of workers. `campaign` does so seed after seed, on many machines too.
"""
