"""Fast paths, each tested against the plain formula that it stands in for; choose.py chooses among those of a layer."""
