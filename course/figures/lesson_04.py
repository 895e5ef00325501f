"""What lesson 4 draws: rulers."""

from course.figures.shared import rulers

__all__ = ["rulers"]
