"""course: everything that makes the lessons lessons. Four names are all that a lesson's exercises need.

from course import check, hint, solution, progress
"""

from course.exercises import check, hint, progress, solution

__all__ = ["check", "hint", "progress", "solution"]
