"""A learner's hour with lesson 3: a wrong answer, a hint, the right one, a new start, and how far one is."""

import re

from course.exercises.card import COLOURS
from course.exercises.exercise import find_exercise
from tests.lessons import LESSONS, code_cells, exercise_in, fill_in

LESSON = next(name for name in LESSONS if name.startswith("03"))
WRONG = """
def quantize(tensor, scale, zero_point, bits=8):
    qmin, qmax = quant_range(bits)
    return torch.floor(tensor / scale + zero_point).clamp(qmin, qmax).to(torch.int8)
""".strip()


def filled_in(notebook, answer):
    """The source of the cell of exercise 03.1 with an answer in the place of the stub."""
    cell = next(cell for cell in code_cells(notebook) if exercise_in(cell) is find_exercise("03.1"))
    fill_in(cell, "quantize", answer)
    return cell.source


def test_a_learners_hour_with_03_quantize(open_lesson, lab):
    notebook = lab.stored(LESSON)
    lesson = open_lesson(LESSON)
    page = lesson.page
    exercise = page.locator(".jp-CodeCell").filter(has_text='check("03.1"')
    after = page.locator(".jp-CodeCell").filter(has_text='hint("03.1")')

    def type_and_run(cell, source):
        cell.locator(".cm-content").click()
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.insert_text(source)
        page.keyboard.press("Shift+Enter")

    def card(cell, mark, title):
        shown = cell.locator(".qlib-card").filter(has_text=f"{mark} {title}")
        shown.wait_for()
        colour = shown.locator("span").first.evaluate("mark => getComputedStyle(mark).color")
        assert colour == "rgb({}, {}, {})".format(*bytes.fromhex(COLOURS[mark][1:]))
        return re.sub(r"\s+", " ", shown.inner_text())

    page.locator(".jp-CodeCell .cm-content").first.click()  # the imports
    page.keyboard.press("Shift+Enter")
    type_and_run(exercise, filled_in(notebook, WRONG))
    said = card(exercise, "✗", "03.1 quantize: incorrect")
    assert "with floor in place of round" in said

    type_and_run(after, 'hint("03.1")')
    assert find_exercise("03.1").hints[0] in card(after, "→", "03.1 hint 1 of 3")

    type_and_run(exercise, filled_in(notebook, find_exercise("03.1").solution()))
    assert "runs on your answer" in card(exercise, "✓", "03.1 quantize: correct")

    # Another day: a cell of one's own at the end, Restart, Run All.
    lesson.call("appendCell", "from course import progress\n\nprogress()")
    lesson.run_all("runmenu:restart-and-run-all")
    assert not [o for cell in lesson.cells() for o in cell.get("outputs", ()) if o["output_type"] == "error"]
    card(exercise, "✓", "03.1 quantize: correct")
    shown = page.locator(".jp-CodeCell").last.locator(".qlib-card").inner_text()
    assert re.search(r"^1 of \d+ exercises solved", shown)
    assert "✓ 03.1 quantize" in shown
    assert "○ 03.2 dequantize" in shown
