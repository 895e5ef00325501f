"""Exercises: `check` judges an answer, `hint` helps, `solution` shows qlib's source, `progress` how far one is.

quantize = check("03.1", quantize)
"""

import os

from course.exercises.card import show_card, show_picture
from course.exercises.exercise import all_exercises, find_exercise
from course.exercises.judge import CORRECT, INCORRECT, NOT_ATTEMPTED, judge
from course.exercises.progress import Progress, note_attempt

__all__ = ["IncorrectAnswer", "check", "hint", "progress", "solution"]

MARKS = {CORRECT: "✓", INCORRECT: "✗", NOT_ATTEMPTED: "○"}
given_hints = {}  # exercise id -> how many of its hints this session has shown


class IncorrectAnswer(AssertionError):
    """Raised by `check` under QLIB_STRICT=1, so that a wrong answer fails `make test` by name."""


def check(exercise_id, answer):
    """Judge an answer, say the verdict, and hand back something that the rest of the lesson can go on with.

    Args:
        exercise_id: such as "03.1".
        answer: the learner's function, class or value.

    Returns:
        `answer` if it is correct, else qlib's own.

    Raises:
        ValueError: there is no such exercise.
        IncorrectAnswer: the answer is wrong and QLIB_STRICT is 1.
    """
    exercise = find_exercise(exercise_id)
    verdict = judge(exercise, answer)
    note_attempt(exercise_id, verdict.outcome)
    title = f"{exercise_id} {exercise.name}: {verdict.outcome}"
    if verdict.outcome == INCORRECT and os.environ.get("QLIB_STRICT") == "1":
        raise IncorrectAnswer(f"{title}. {verdict.message}")
    show_card(MARKS[verdict.outcome], title, verdict.message or CLOSING[verdict.outcome].format(id=exercise_id))
    if verdict.picture is not None:
        show_picture(verdict.picture)
    return answer if verdict.outcome == CORRECT else exercise.answer


CLOSING = {
    CORRECT: "The rest of the lesson runs on your answer.",
    NOT_ATTEMPTED: 'Put your code in place of the `...` and run the cell again. `hint("{id}")` gives a nudge. '
    "Until then the lesson goes on with the library's own answer.",
}


def hint(exercise_id):
    """Show the next hint of an exercise: the idea, then the formula, then nearly the code."""
    hints = find_exercise(exercise_id).hints
    shown = given_hints.get(exercise_id, 0) % len(hints)
    given_hints[exercise_id] = shown + 1
    more = (
        f'Call `hint("{exercise_id}")` again for the next.'
        if shown + 1 < len(hints)
        else f'`solution("{exercise_id}")` shows the answer.'
    )
    show_card("→", f"{exercise_id} hint {shown + 1} of {len(hints)}", f"{hints[shown]}\n{more}")


def solution(exercise_id):
    """Show the answer of an exercise: qlib's own source, with the imports it needs."""
    from IPython.display import Markdown, display

    display(Markdown(f"```python\n{find_exercise(exercise_id).solution()}```"))


def progress():
    """The state of every exercise, lesson by lesson, as a picture in a notebook and as text elsewhere."""
    return Progress(all_exercises())
