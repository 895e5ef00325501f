"""`python -m course.exercises` prints the learner's progress."""

from course import progress

print(progress())
