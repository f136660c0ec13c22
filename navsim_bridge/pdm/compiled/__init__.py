"""The score's hot loops compiled: by numba for the CPU, the tracker by Triton for CUDA. ``choice`` says what is used.

The tensor code is the reference: same formulas, same order of operations, so the same comparisons come out. It runs
wherever a compiler is missing.
"""
