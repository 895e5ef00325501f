"""The capstone with little text to calibrate on, so that an answer takes seconds."""

import dataclasses
import functools

from course.capstone import Trial, code_task


@functools.cache
def small_task():
    """The capstone itself, its calibration text cut down to one window."""
    return dataclasses.replace(code_task(), calibration=code_task().calibration[:256])


def in_small(exercise):
    """An exercise as it is, unless it is scored: then on the small task."""
    return dataclasses.replace(exercise, trial=Trial(small_task)) if exercise.trial else exercise
