"""The learner's state over all lessons, as a small drawing and as text."""

import itertools

from qlib.exercises.card import COLOURS
from qlib.exercises.judge import CORRECT, INCORRECT
from qlib.exercises.record import read_record

MARK = {CORRECT: "✓", INCORRECT: "✗"}


class Progress:
    """Draws, for {id: Exercise}, which are solved (✓), tried (✗) and still to do (○)."""

    def __init__(self, exercises):
        record = read_record()
        self.marks = {e.id: (MARK.get(record.get(e.id), "○"), e.name) for e in exercises.values()}

    def lessons(self):
        """(lesson number, [(id, mark, name), …]) for each lesson that has exercises."""
        entries = ((exercise_id, *state) for exercise_id, state in self.marks.items())
        return [(number, list(group)) for number, group in itertools.groupby(entries, key=lambda e: e[0].split(".")[0])]

    def __repr__(self):
        solved = sum(mark == "✓" for mark, _ in self.marks.values())
        lines = [f"{solved} of {len(self.marks)} exercises solved"]
        for number, entries in self.lessons():
            lines.append(
                f"lesson {number}   "
                + "   ".join(f"{mark} {exercise_id} {name}" for exercise_id, mark, name in entries)
            )
        return "\n".join(lines)

    def _repr_html_(self):
        cell = '<span style="margin-right: 1.5em; white-space: nowrap;"><b style="color: {}">{}</b> {} {}</span>'
        rows = "".join(
            f'<div><span style="display: inline-block; width: 6em;">Lesson {number}</span>'
            + "".join(cell.format(COLOURS[mark], mark, exercise_id, name) for exercise_id, mark, name in entries)
            + "</div>"
            for number, entries in self.lessons()
        )
        return f'<div class="qlib-card" style="line-height: 1.9;"><b>{repr(self).splitlines()[0]}</b>{rows}</div>'
