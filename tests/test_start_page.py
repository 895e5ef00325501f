"""The start page: its map is that of the lessons, its commands exist, and its cell shows any learner's progress."""

import json
import re

import nbformat
import pytest

from course.exercises.exercise import all_exercises
from tests.lessons import LESSONS, ROOT, code_cells, committed, exercises_of, prose_of
from tests.test_notebooks import TITLES, make_test

START = "00_start_here.ipynb"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def start():
    return committed(START)


def minutes_of(lesson):
    return int(re.search(r"\*\*Time:\*\* about (\d+) minutes", prose_of(committed(lesson)))[1])


def rows_of(text):
    """{lesson's number: the cells of its row} of a table in Markdown."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {int(row[0]): row[1:] for row in rows if row[0].isdigit()}


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lessons_row_has_its_title_minutes_and_exercises(lesson, start):
    number = int(lesson[:2])
    link, minutes, exercises, _ = rows_of(prose_of(start))[number]
    assert link == f"[{TITLES[number - 1]}]({lesson})"
    assert (minutes, exercises) == (str(minutes_of(lesson)), str(len(exercises_of(lesson))))


def test_the_map_has_a_row_for_each_of_the_eighteen_lessons(start):
    assert list(rows_of(prose_of(start))) == list(range(1, len(TITLES) + 1))


def test_the_map_adds_up(start):
    hours = round(sum(map(minutes_of, LESSONS)) / 60)
    exercises = sum(len(exercises_of(lesson)) for lesson in LESSONS)
    assert f"In all about {hours} hours and {exercises} exercises." in prose_of(start)


def test_the_readme_says_the_same_of_each_lesson(start):
    what = {number: row[-1] for number, row in rows_of(prose_of(start)).items()}
    assert {number: row[-1] for number, row in rows_of(README).items()} == what


def test_the_commands_it_names_exist(start):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {"lab", "test", "progress", "html"} <= set(re.findall(r"`make ([a-z-]+)", prose_of(start))) <= set(targets)


def test_its_progress_is_stored_for_one_who_begins(start):
    (cell,) = code_cells(start)
    assert cell.source.endswith("progress()")
    assert cell.outputs[0].data["text/plain"].startswith(f"0 of {len(all_exercises())} exercises solved; next is 01.1 ")


def test_it_passes_for_a_learner_who_is_halfway(tmp_path, start):
    solved = dict.fromkeys(list(all_exercises())[::2], "correct")
    (tmp_path / "progress.json").write_text(json.dumps(solved))
    result = make_test(nbformat.from_dict(start), tmp_path)
    assert result.returncode == 0, result.stdout
