"""`python -m qlib.exercises` prints the learner's progress."""

from qlib.exercises import progress

print(progress())
