"""The learner's state over all lessons: kept in a small file that git ignores, shown as a drawing and as text."""

import itertools
import json
import os
import pathlib

from course.exercises.card import COLOURS
from course.exercises.judge import CORRECT, INCORRECT, NOT_ATTEMPTED
from qlib.folders import locked, read_json

MARK = {CORRECT: "✓", INCORRECT: "✗"}

# ---------------------------------------------------------------- the file


def progress_file():
    """Where progress is kept: .progress.json beside the course folder, or where QLIB_PROGRESS_FILE says."""
    default = pathlib.Path(__file__).parent.parent.parent / ".progress.json"
    return pathlib.Path(os.path.realpath(os.environ.get("QLIB_PROGRESS_FILE") or default))  # a link stays one


def best_outcomes():
    """{exercise id: outcome of the best attempt}; empty where there is no file yet, or none that can be read."""
    try:
        return read_json(progress_file())
    except (OSError, ValueError):
        return {}


def note_attempt(exercise_id, outcome):
    """Note an attempt. What was once correct stays so, and a blank stub leaves no trace.

    Of two kernels that note something at once none loses an attempt, except on Windows, which has no such locks.
    """
    if outcome == NOT_ATTEMPTED:
        return
    path = progress_file()
    try:
        with locked(path.parent):
            outcomes = outcomes_to_keep(path)
            if outcomes.get(exercise_id) not in (CORRECT, outcome):
                unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
                text = json.dumps(outcomes | {exercise_id: outcome}, indent=1, sort_keys=True)
                unfinished.write_text(text, encoding="utf-8")
                os.replace(unfinished, path)
    except OSError:
        pass  # A read-only checkout is no reason to fail a right answer.


def outcomes_to_keep(path):
    """What the file holds; one that is cut off is put aside, under a name that ends in .broken, and counts as none."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError:
        ends = itertools.chain([".broken"], (f".{number}.broken" for number in itertools.count(2)))
        names = (path.with_name(path.name + end) for end in ends)
        os.replace(path, next(name for name in names if not name.exists()))
        return {}


# ---------------------------------------------------------------- what is shown of it


class Progress:
    """Draws, for {id: Exercise}, which are solved (✓), tried (✗) and still to do (○)."""

    def __init__(self, exercises):
        outcomes = best_outcomes()
        self.marks = {e.id: (MARK.get(outcomes.get(e.id), "○"), e.name) for e in exercises.values()}

    def lessons(self):
        """(lesson number, [(id, mark, name), …]) for each lesson that has exercises."""
        entries = ((exercise_id, *state) for exercise_id, state in self.marks.items())
        return [(number, list(group)) for number, group in itertools.groupby(entries, key=lambda e: e[0].split(".")[0])]

    def headline(self):
        """How many are solved, and the first that is not: "3 of 34 exercises solved; next is 03.1 quantize"."""
        to_do = [f"{exercise_id} {name}" for exercise_id, (mark, name) in self.marks.items() if mark != "✓"]
        solved = f"{len(self.marks) - len(to_do)} of {len(self.marks)} exercises solved"
        return f"{solved}; next is {to_do[0]}" if to_do else f"{solved}: all of them"

    def __repr__(self):
        lines = [self.headline()]
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
            + " ".join(cell.format(COLOURS[mark], mark, exercise_id, name) for exercise_id, mark, name in entries)
            + "</div>"
            for number, entries in self.lessons()
        )
        return f'<div class="qlib-card" style="line-height: 1.9;"><b>{self.headline()}</b>{self.bar()}{rows}</div>'

    def bar(self):
        """A strip with a field for each exercise, in the colour of its mark."""
        fields = "".join(
            f'<span style="display: inline-block; width: {100 / len(self.marks):.3f}%; height: 8px; '
            f'background-color: {COLOURS[mark]}; opacity: {0.3 if mark == "○" else 1};"></span>'
            for mark, _ in self.marks.values()
        )
        return f'<div style="max-width: 52em; line-height: 0; margin: 6px 0;">{fields}</div>'
