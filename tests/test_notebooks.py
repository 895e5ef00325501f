"""The lessons as documents: their form, their stored outputs, and what becomes of them when a learner fills them in."""

import ast
import itertools
import os
import re
import subprocess
import sys

import nbclient
import nbformat
import pytest

from course.exercises.exercise import Value
from tests.lessons import (
    LESSONS,
    OTHER_NOTEBOOKS,
    ROOT,
    anchor,
    code_cells,
    committed,
    exercise_in,
    exercises_of,
    fill_in,
    git,
    headings_of,
    is_blank_stub,
    links_in,
    prose_of,
    solved,
    stub_in,
)

TITLES = [
    "Introduction",
    "Overview",
    "Quantize and De-quantize a Tensor",
    "Get the Scale and Zero Point",
    "Symmetric vs Asymmetric Mode",
    "Finer Granularity for more Precision",
    "Per Channel Quantization",
    "Per Group Quantization",
    "Quantizing Weights & Activations for Inference",
    "Custom Build an 8-Bit Quantizer",
    "Replace PyTorch layers with Quantized Layers",
    "Quantize any Open Source PyTorch Model",
    "Load your Quantized Weights from Hugging Face Hub",
    "Weights Packing",
    "Packing 2-bit Weights",
    "Unpacking 2-Bit Weights",
    "Beyond Linear Quantization",
    "Conclusion",
]

each_lesson = pytest.mark.parametrize("lesson", LESSONS)


def outputs_of(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def test_there_are_lessons_and_their_numbers_have_no_gap():
    assert [int(name[:2]) for name in LESSONS] == list(range(1, len(LESSONS) + 1))


# ---------------------------------------------------------------- form


@each_lesson
def test_every_code_cell_was_run_in_order(lesson):
    cells = code_cells(committed(lesson))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each_lesson
def test_no_cell_failed_or_wrote_to_stderr(lesson):
    for output in outputs_of(committed(lesson)):
        assert output.output_type != "error"
        assert output.get("name") != "stderr"


@each_lesson
def test_at_most_one_output_is_not_compared(lesson):
    cells = code_cells(committed(lesson))
    marked = [c for c in cells if "NBVAL_" in c.source or any("nbval" in t for t in c.metadata.get("tags", []))]
    assert len(marked) <= 1
    assert not any("SKIP" in c.source or "nbval-skip" in c.metadata.get("tags", []) for c in marked)


@each_lesson
def test_every_picture_has_its_caption_as_text_and_under_it(lesson):
    for cell in code_cells(committed(lesson)):
        for picture, after in itertools.pairwise([*cell.outputs, None]):
            if picture.get("data", {}).get("image/png"):
                caption = picture.data["text/plain"]
                assert len(caption) > 20 and re.search(r"\d", caption) and not caption.startswith("<")
                assert after is not None and after.data["text/markdown"] == f"*{caption}*"


@each_lesson
def test_no_path_of_a_machine_is_in_it(lesson):
    notebook = committed(lesson)
    for cell in notebook.cells:
        shown = [str(value) for output in cell.get("outputs", []) for kind, value in text_of(output)]
        for text in [cell.source, *shown]:
            assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users|usr)/|[A-Z]:\\\\", text), text[:200]


@each_lesson
def test_cells_are_short(lesson):
    for cell in code_cells(committed(lesson)):
        assert len(cell.source.splitlines()) <= 25, cell.source


@each_lesson
def test_the_frame_of_a_lesson_is_whole(lesson):
    notebook = committed(lesson)
    number = int(lesson[:2])
    prose = prose_of(notebook)
    headings = headings_of(notebook)
    assert headings[0] == ("#", f"{number}. {TITLES[number - 1]}")
    assert sum(marks == "#" for marks, _ in headings) == 1
    levels = [len(marks) for marks, _ in headings]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), "no heading level is skipped"
    assert [name for marks, name in headings if marks == "##"][-3:] == ["Quiz", "Recap", "Next"]
    for part in ("**You will be able to**", "**Time:** about", "**Builds on:**", "**Predict", "**小结**"):
        assert part in prose, part


@each_lesson
def test_the_quiz_explains_every_answer(lesson):
    quiz = re.search(r"^## Quiz\n(.*)", prose_of(committed(lesson)).split("## Recap")[0], re.M | re.S).group(1)
    questions = re.split(r"^\*\*\d\.\*\*", quiz, flags=re.M)[1:]
    assert 2 <= len(questions) <= 3
    for question in questions:
        options = re.findall(r"<details><summary>(.+?)</summary>(.+?)</details>", question, re.S)
        assert len(options) >= 3
        assert sum(explanation.startswith("Right") for _, explanation in options) == 1
        assert all(explanation.startswith(("Right", "Not quite")) for _, explanation in options)
        assert all(len(explanation) > 25 for _, explanation in options)
        assert not any("`" in words for option in options for words in option), "in HTML it would stay a backtick"


@each_lesson
def test_the_recap_has_three_lines_in_each_language(lesson):
    recap = prose_of(committed(lesson)).split("## Recap")[1].split("## Next")[0]
    english, chinese = recap.split("**小结**")
    assert len(re.findall(r"^- ", english, re.M)) == len(re.findall(r"^- ", chinese, re.M)) == 3
    assert all(re.search("[一-鿿]", line) for line in chinese.strip().splitlines())


@pytest.mark.parametrize("name", [*OTHER_NOTEBOOKS, *LESSONS])
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(name):
    for link in links_in(committed(name)):
        target, _, section = link.partition("#")
        if "://" in link:
            continue
        assert (ROOT / "notebooks" / target).exists(), link
        if section:
            headings = headings_of(committed(target or name))
            assert section in [anchor(heading) for _, heading in headings], link


# ---------------------------------------------------------------- exercises in the lessons


@each_lesson
def test_every_exercise_of_the_lesson_is_in_it_once_in_order(lesson):
    found = [exercise_in(cell).id for cell in code_cells(committed(lesson)) if exercise_in(cell)]
    assert found == [exercise.id for exercise in exercises_of(lesson)]


@each_lesson
def test_every_stub_is_blank_and_ends_with_its_check(lesson):
    for cell in code_cells(committed(lesson)):
        exercise = exercise_in(cell)
        if exercise:
            assert is_blank_stub(stub_in(cell, exercise.name))
            assert cell.source.rstrip().splitlines()[-1] == f'{exercise.name} = check("{exercise.id}", {exercise.name})'
            assert cell.outputs[0].data["text/plain"].startswith(f"○ {exercise.id} {exercise.name}: not attempted")


@each_lesson
def test_a_hint_and_the_solution_are_one_keystroke_away(lesson):
    cells = code_cells(committed(lesson))
    for cell, after in itertools.pairwise(cells):
        exercise = exercise_in(cell)
        if exercise:
            assert after.source == f'# hint("{exercise.id}")\n# solution("{exercise.id}")'


@each_lesson
def test_no_solution_is_in_the_lesson_or_in_one_before_it(lesson):
    text = squeezed("\n".join(cell.source for cell in committed(lesson).cells))
    later = [e for name in LESSONS if name >= lesson for e in exercises_of(name)]
    for exercise in later:
        for line in telling_lines(exercise):
            assert squeezed(line) not in text, f"{exercise.id}: {line}"


def telling_lines(exercise):
    """The lines of a solution that give it away: what it returns and what it assigns, if long enough to be its own."""
    if isinstance(exercise.key, Value):
        return [exercise.key.expression] if len(exercise.key.expression) > 12 else []
    body = next(n for n in ast.parse(exercise.solution()).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)))
    statements = [s for s in ast.walk(body) if isinstance(s, (ast.Return, ast.Assign)) and s.value is not None]
    return [line for line in (ast.unparse(s.value) for s in statements) if len(line) > 20]


def squeezed(text):
    return re.sub(r"\s+", "", text).replace('"', "'")


# ---------------------------------------------------------------- solved lessons


def run(notebook, folder):
    """Execute a notebook from top to bottom, strictly, in a folder of its own."""
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=strict_environment(folder))
    return notebook


def strict_environment(folder):
    return os.environ | {"QLIB_STRICT": "1", "QLIB_PROGRESS_FILE": str(folder / "progress.json"), "HF_HUB_OFFLINE": "1"}


def text_of(output):
    """(kind, text) for everything in an output that is words: pictures and the random names of widgets are left out."""
    if output.output_type == "stream":
        return [(output.name, output.text)]
    return [(kind, text) for kind, text in output.get("data", {}).items() if kind.startswith("text/")]


def words_of(cell):
    """What a cell shows, as {kind: text}, its streams joined."""
    words = {}
    for kind, text in itertools.chain.from_iterable(map(text_of, cell.outputs)):
        words[kind] = words.get(kind, "") + text
    return words


@each_lesson
def test_solved_every_check_is_correct_and_nothing_else_changes(lesson, tmp_path):
    blank = committed(lesson)
    done = run(solved(blank), tmp_path)
    for before, after in zip(code_cells(blank), code_cells(done), strict=True):
        exercise = exercise_in(after)
        if exercise:
            assert words_of(after)["text/plain"].startswith(f"✓ {exercise.id} {exercise.name}: correct")
        else:
            assert words_of(after) == words_of(before), after.source


# ---------------------------------------------------------------- the learner's three cases


def make_test(notebook, folder, *options):
    """What `make test` says of a notebook that a learner has saved."""
    path = folder / "lesson.ipynb"
    nbformat.write(notebook, path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, "-c", os.devnull]
    command += ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", ROOT / "tests" / "sanitize.cfg"]
    command += [*options, path]
    return subprocess.run(
        command, cwd=folder, env=strict_environment(folder), capture_output=True, text=True, encoding="utf-8"
    )


def lesson_3_up_to(exercise_id):
    """Lesson 3 as far as the cell of an exercise and the next one that shows something, to save time."""
    notebook = committed(next(name for name in LESSONS if name.startswith("03")))
    at = next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code" and f'check("{exercise_id}"' in c.source)
    notebook.cells = notebook.cells[: at + 4]
    return notebook


def test_a_blank_lesson_passes(tmp_path):
    result = make_test(lesson_3_up_to("03.1"), tmp_path)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("run_before_saving", [True, False], ids=["run and saved", "saved without running"])
def test_a_lesson_with_a_right_answer_passes(tmp_path, run_before_saving):
    notebook = solved(lesson_3_up_to("03.1"))
    if run_before_saving:
        notebook = run(notebook, tmp_path)
        assert "✓ 03.1 quantize: correct" in str(outputs_of(notebook))
    result = make_test(notebook, tmp_path)
    assert result.returncode == 0, result.stdout


def test_a_lesson_with_a_wrong_answer_fails_and_names_the_exercise(tmp_path):
    notebook = lesson_3_up_to("03.1")
    cell = next(c for c in code_cells(notebook) if exercise_in(c))
    fill_in(
        cell,
        "quantize",
        "def quantize(tensor, scale, zero_point, bits=8):\n"
        "    qmin, qmax = quant_range(bits)\n"
        "    return torch.floor(tensor / scale + zero_point).clamp(qmin, qmax).to(torch.int8)",
    )
    result = make_test(notebook, tmp_path, "-x")
    assert result.returncode == 1
    assert "03.1 quantize: incorrect" in result.stdout
    assert "with floor in place of round" in result.stdout


# ---------------------------------------------------------------- the checkout


def test_no_output_file_or_cache_is_committed():
    tracked = git("ls-files")
    if tracked is None:
        pytest.skip("not a git checkout")
    assert not re.findall(r"^.*(?:__pycache__|\.ipynb_checkpoints|\.venv|scratch/|\.progress\.json).*$", tracked, re.M)
