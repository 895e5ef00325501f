"""Where the lessons' pictures live, and how their captions are read back from what is drawn."""

import importlib
import re
import subprocess
import sys

import pytest

from course.figures.picture import heights_of, lengths_of, row_labels, rows_of_words, words_of
from qlib import plot
from qlib.plot import new_figure
from tests.lessons import LESSONS, ROOT, code_cells, committed

# ---------------------------------------------------------------- homes


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lessons_figures_are_those_that_it_draws(lesson):
    module = f"course.figures.lesson_{lesson[:2]}"
    code = "\n".join(cell.source for cell in code_cells(committed(lesson)))
    [direct] = re.findall(rf"^from {module} import (.+)$", code, re.M) or [""]
    drawn = {*re.findall(r"\bfigures\.(\w+)", code), *filter(None, direct.split(", "))} - {f"lesson_{lesson[:2]}"}
    assert drawn == set(importlib.import_module(module).__all__)
    assert all(hasattr(plot, name) for name in re.findall(r"\bplot\.(\w+)", code))


def test_qlib_is_there_without_its_pictures_and_they_without_the_course():
    program = "import sys, qlib; print('qlib.plot' in sys.modules); import qlib.plot; print('course' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# ---------------------------------------------------------------- what is read back from the axes


def test_words_are_read_in_rows_from_the_top_and_from_left_to_right():
    _, axis = new_figure(4, 2)
    for x, y, words in [(2, 1, "d"), (0, 0.02, "a"), (-1, 1.03, "c"), (1, 0, "b")]:
        axis.text(x, y, words)
    assert rows_of_words(axis) == [["a", "b"], ["c", "d"]]


def test_labels_of_two_lines_are_read_as_one():
    _, axis = new_figure(4, 2)
    axis.set(yticks=[0, 1], yticklabels=["one\nway", "another"])
    assert row_labels(axis) == ["one way", "another"]


def test_bars_are_read_in_the_order_in_which_they_were_drawn():
    _, (lying, upright) = new_figure(4, 2, columns=2)
    lying.barh([1, 0], [30, -20])
    upright.bar([1, 0], [3, 2])
    upright.annotate("three", (1, 3))
    assert (lengths_of(lying), heights_of(upright), words_of(upright)) == ([30, -20], [3, 2], ["three"])
