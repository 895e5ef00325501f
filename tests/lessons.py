"""What the tests of the notebooks share: reading a lesson as it was committed, and solving its exercises."""

import ast
import functools
import pathlib
import re
import subprocess

import nbformat
import pytest

from course.exercises.exercise import all_exercises

ROOT = pathlib.Path(__file__).parent.parent
# What a lesson is: numbered from 01. The start page (00) and the glossary are notebooks, but no lessons.
LESSONS = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb") if path.name[:2] != "00")
OTHER_NOTEBOOKS = ["00_start_here.ipynb", "glossary.ipynb"]


@functools.cache
def git(*arguments):
    """What git prints, or None where there is no git, no checkout, or no such thing in it."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def committed(lesson):
    """The lesson as it was committed, for the file on disk is the learner's. A new lesson is taken from disk."""
    if git("rev-parse", "HEAD") is None:
        pytest.skip("not a git checkout: what holds of an unsolved lesson cannot be told from the learner's answers")
    text = git("show", f"HEAD:notebooks/{lesson}") or (ROOT / "notebooks" / lesson).read_text(encoding="utf-8")
    return nbformat.reads(text, as_version=4)


def prose_of(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def headings_of(notebook):
    """[(marks, name), …], such as ("##", "Recap"); fenced code is passed over."""
    return re.findall(r"^(#+) (.+)$", re.sub(r"^```.*?^```", "", prose_of(notebook), flags=re.M | re.S), re.M)


def anchor(heading):
    """What follows the # in a link to a heading, in JupyterLab and in the pages that nbconvert writes."""
    return re.sub(r"[`*]", "", heading).replace(" ", "-")


def links_in(notebook):
    """Where the links of a notebook's prose lead, pictures included; code and formulas are passed over."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$", "", prose_of(notebook), flags=re.M | re.S)
    return re.findall(r"\]\(((?:[^()\s]|\([^()\s]*\))+)\)", prose) + re.findall(r'(?:href|src)="([^"]+)"', prose)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def exercises_of(lesson):
    """The exercises of a lesson's number, in order."""
    return [exercise for exercise in all_exercises().values() if exercise.id.startswith(lesson[:2] + ".")]


def exercise_in(cell):
    """The exercise that a cell checks, or None."""
    found = [e for e in all_exercises().values() if f'check("{e.id}"' in cell.source]
    return found[0] if found else None


def stub_in(cell, name):
    """The first statement that defines `name` in an exercise's cell: a function, a class or an assignment."""
    for statement in ast.parse(cell.source).body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) and statement.name == name:
            return statement
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return statement
    raise AssertionError(f"no {name} is defined in the cell {cell.source!r}")


def is_blank_stub(statement):
    """Whether a stub's body is a docstring and `...`, or its value is `...`."""
    if isinstance(statement, ast.Assign):
        return isinstance(statement.value, ast.Constant) and statement.value.value is ...
    if isinstance(statement, ast.ClassDef):
        return all(is_blank_stub(method) for method in statement.body if isinstance(method, ast.FunctionDef))
    body = statement.body[1:] if ast.get_docstring(statement) is not None else statement.body
    return [ast.unparse(line) for line in body] == ["..."]


def fill_in(cell, name, answer):
    """Put `answer`, a piece of source, in the place of the stub, as a learner would."""
    stub = stub_in(cell, name)
    lines = cell.source.splitlines()
    cell.source = "\n".join([*lines[: stub.lineno - 1], answer.rstrip(), *lines[stub.end_lineno :]])


def solved(notebook):
    """A copy of a lesson with every stub replaced by what `solution` shows."""
    notebook = nbformat.from_dict(notebook)
    for cell in code_cells(notebook):
        exercise = exercise_in(cell)
        if exercise:
            fill_in(cell, exercise.name, exercise.solution())
    return notebook
