"""Fast paths, each tested against the plain formula that it stands in for; choose.py chooses among those of a layer."""

# 32-bit words in a unit, for the widths whose packed weights are read in whole words: see numba_kernels.py.
WORDS = {4: 1, 3: 3, 2: 1}
