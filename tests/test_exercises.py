"""Every check accepts what is right, names what is wrong, and survives whatever a learner's code does."""

import contextlib
import itertools
import json
import time

import numpy as np
import pytest
import torch

import qlib
from course import check, exercises, hint, progress
from course.exercises import IncorrectAnswer, sandbox
from course.exercises.audit import accepted_mutations, accepted_pairs
from course.exercises.exercise import Value, all_exercises, find_exercise
from course.exercises.judge import CORRECT, INCORRECT, NOT_ATTEMPTED, judge, known
from course.exercises.mistakes import Mistake
from tests.right_answers import RIGHT_ANSWERS
from tests.small_capstone import in_small

ALL = list(map(in_small, all_exercises().values()))
CODE = [exercise for exercise in ALL if not isinstance(exercise.key, Value)]
UNSCORED = [exercise for exercise in CODE if exercise.trial is None]


def for_each(exercises):
    return pytest.mark.parametrize("exercise", exercises, ids=lambda exercise: exercise.id)


def name_of(answer):
    return getattr(answer, "__name__", repr(answer))


@pytest.fixture(autouse=True)
def progress_file(tmp_path, monkeypatch):
    """Each test keeps its progress in a file of its own, and is not strict unless it says so."""
    monkeypatch.setenv("QLIB_PROGRESS_FILE", str(tmp_path / "progress.json"))
    monkeypatch.delenv("QLIB_STRICT", raising=False)
    return tmp_path / "progress.json"


# ---------------------------------------------------------------- every exercise


@for_each(ALL)
def test_a_solution_runs_alone_and_is_correct(exercise):
    namespace = {"torch": torch}
    exec(exercise.solution(), namespace)
    assert judge(exercise, namespace[exercise.name]).outcome == CORRECT


@for_each(UNSCORED)  # where seconds do not matter, the solution's own source is not judged twice
def test_the_librarys_own_answer_is_correct(exercise):
    assert judge(exercise, exercise.answer).outcome == CORRECT


@for_each(ALL)
def test_right_answers_that_are_written_differently_are_accepted(exercise):
    answers = RIGHT_ANSWERS[exercise.id]
    assert len(answers) >= 2
    for answer in answers:
        verdict = judge(exercise, answer)
        assert verdict.outcome == CORRECT, f"{name_of(answer)}: {verdict.message}"


@for_each(ALL)
def test_every_known_mistake_is_rejected_and_named(exercise):
    for mistake in exercise.mistakes:
        verdict = judge(exercise, mistake.answer_to(exercise.key))
        assert verdict.outcome == INCORRECT, mistake.diagnosis
        assert mistake.diagnosis in verdict.message


@for_each(UNSCORED)
def test_no_two_mistakes_make_up_for_each_other(exercise):
    assert accepted_pairs(exercise) == []


@for_each(UNSCORED)
def test_a_mutation_of_the_key_is_rejected_unless_it_is_listed_as_equivalent(exercise):
    assert set(accepted_mutations(exercise)) == set(exercise.equivalent)


@pytest.mark.parametrize("exercise_id", ["02.2", "03.2", "13.2"])
def test_whoever_makes_two_mistakes_is_told_both(exercise_id):
    exercise = find_exercise(exercise_id)
    told_both = 0
    for pair in exercise.pairs:
        does = known(exercise, pair)
        # One may hide the other: then who makes the first alone does the same, and there is one to tell.
        first = next(other for other in [*exercise.mistakes, *exercise.pairs] if does.is_like(known(exercise, other)))
        assert f"That is what you get {first.diagnosis}." in judge(exercise, does.answer).message
        told_both += first is pair
    assert told_both > 0.7 * len(exercise.pairs)


def test_the_message_on_two_mistakes_names_the_one_and_the_other():
    def floors_and_forgets_the_zero_point(tensor, scale, zero_point, bits=8):
        return torch.floor(tensor / scale).clamp(*qlib.quant_range(bits)).to(torch.int8)

    assert judge(QUANTIZE, floors_and_forgets_the_zero_point).message.endswith(
        "That is what you get with floor in place of round; and, at the same time, without the zero point."
    )


def test_a_blank_stub_of_any_exercise_is_not_attempted():
    def stub(*args):
        """A docstring."""
        ...

    class Stub:
        def forward(self): ...

    for exercise in ALL:
        blank = ... if isinstance(exercise.key, Value) else Stub if isinstance(exercise.key, type) else stub
        assert judge(exercise, blank).outcome == NOT_ATTEMPTED, exercise.id


def test_every_exercise_has_three_hints_and_tells_apart_three_mistakes_and_all_others():
    for exercise in ALL:
        diagnoses = [mistake.diagnosis for mistake in exercise.mistakes]
        assert len(exercise.hints) >= 3, exercise.id
        assert len(set(diagnoses)) == len(diagnoses) >= 3, exercise.id


def test_every_key_is_a_public_part_of_its_package_and_not_a_second_copy():
    for exercise in CODE:
        assert exercise.key.__module__.startswith(("qlib.", "course.helper", "course.capstone")), exercise.id
        assert exercise.key.__name__ == exercise.name


# ---------------------------------------------------------------- what a learner's code may do

QUANTIZE = find_exercise("03.1")


def right(tensor, scale, zero_point, bits):
    qmin, qmax = qlib.quant_range(bits)
    return torch.round(tensor / scale + zero_point).clamp(qmin, qmax).to(torch.int8)


def raises(tensor, scale, zero_point, bits=8):
    return tensor + undefined_name  # noqa: F821


def loops_for_ever(tensor, scale, zero_point, bits=8):
    while True:
        pass


def swallows_and_loops(tensor, scale, zero_point, bits=8):
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def recurses(tensor, scale, zero_point, bits=8):
    return recurses(tensor, scale, zero_point, bits)


def leaves(tensor, scale, zero_point, bits=8):
    raise SystemExit


def mutates(tensor, scale, zero_point, bits=8):
    result = right(tensor, scale, zero_point, bits)
    tensor.zero_()
    return result


def returns_none(tensor, scale, zero_point, bits=8):
    right(tensor, scale, zero_point, bits)


def returns_a_list(tensor, scale, zero_point, bits=8):
    return right(tensor, scale, zero_point, bits).tolist()


def returns_an_array(tensor, scale, zero_point, bits=8):
    return right(tensor, scale, zero_point, bits).numpy()


def returns_float(tensor, scale, zero_point, bits=8):
    return right(tensor, scale, zero_point, bits).float()


def returns_another_shape(tensor, scale, zero_point, bits=8):
    return right(tensor, scale, zero_point, bits).flatten()


def takes_too_little(tensor, scale):
    return tensor


def is_off_by_one_at_the_end(tensor, scale, zero_point, bits=8):
    result = right(tensor, scale, zero_point, bits)
    result.view(-1)[-1:] += 1
    return result


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (raises, "raised NameError in your cell, line"),
        (raises, "`return tensor + undefined_name"),
        (recurses, "calls itself without end"),
        (leaves, "raised SystemExit"),
        (mutates, "changes the tensor it is given"),
        (returns_none, "it returned None. Is there a `return`"),
        (returns_a_list, "it returned a list of 3, expected a torch tensor"),
        (returns_an_array, "it returned a NumPy array, expected a torch tensor"),
        (returns_float, "a tensor of float32, expected int8"),
        (returns_another_shape, "a tensor of shape (9,), expected (3, 3)"),
        (takes_too_little, "takes (tensor, scale), but the lesson calls it with (tensor, scale, zero_point, bits)"),
        (is_off_by_one_at_the_end, "[2, 2]: value 245.5 -> 0.14, expected 0, got 1."),
        (5, "should be a function, but is a whole number"),
        (None, "should be a function, but is None"),
        (np.zeros(3), "should be a function, but is a NumPy array"),
    ],
    ids=lambda p: name_of(p)[:40],
)
def test_a_message_says_what_is_wrong_in_words_a_beginner_knows(answer, words):
    verdict = judge(QUANTIZE, answer)
    assert verdict.outcome == INCORRECT
    assert words in verdict.message


@pytest.mark.parametrize("answer", [loops_for_ever, swallows_and_loops], ids=name_of)
def test_code_that_never_ends_is_stopped(answer, monkeypatch):
    monkeypatch.setattr(sandbox, "TIME_LIMIT", 0.5)
    start = time.monotonic()
    verdict = judge(QUANTIZE, answer)
    assert "Is there a loop that never ends?" in verdict.message
    assert time.monotonic() - start < 5, "an endless loop is waited for once, not on every case"


def test_what_the_code_prints_and_warns_stays_off_the_page(capsys, recwarn):
    def chatty(tensor, scale, zero_point, bits=8):
        print("debugging")
        torch.tensor(torch.tensor(1.0))  # warns
        return right(tensor, scale, zero_point, bits)

    assert judge(QUANTIZE, chatty).outcome == CORRECT
    assert capsys.readouterr() == ("", "")
    assert not recwarn.list


def test_nothing_the_code_does_reaches_the_exercises_own_data():
    before = [case.args[0].clone() for case in QUANTIZE.cases]
    judge(QUANTIZE, mutates)
    assert all(torch.equal(old, case.args[0]) for old, case in zip(before, QUANTIZE.cases, strict=True))


def test_a_value_is_accepted_in_any_reasonable_form_and_no_other():
    exercise = exercises.exercise.Exercise("99.1", "answer", Value("[1, 2.5]"), [Mistake([2.5, 1], "swapped")], ["…"])
    for form in ([1, 2.5], (1.0, 2.5), torch.tensor([1, 2.5]), np.array([1, 2.5]), [torch.tensor(1), 2.5]):
        assert judge(exercise, form).outcome == CORRECT
    for form in ([1], [1, 2.4], 1, "1, 2.5", None, [1, None], float("nan")):
        assert judge(exercise, form).outcome == INCORRECT
    assert judge(exercise, (2.5, 1)).message.endswith("That is what you get swapped.")
    assert "[1], 2.4, is not right" in judge(exercise, [1, 2.4]).message
    assert "should hold 2 things, not 1" in judge(exercise, [1]).message


def test_a_function_that_only_returns_a_constant_is_an_attempt():
    def constant(tensor, scale, zero_point, bits=8):
        return 1

    assert judge(QUANTIZE, constant).outcome == INCORRECT


# ---------------------------------------------------------------- check, hint, progress


def test_a_right_answer_comes_back_and_a_wrong_one_gives_the_librarys_own():
    assert check("03.1", right_with_default) is right_with_default
    assert check("03.1", returns_none) is qlib.quantize


def right_with_default(tensor, scale, zero_point, bits=8):
    return right(tensor, scale, zero_point, bits)


def test_strict_raises_for_a_wrong_answer_and_names_the_exercise(monkeypatch):
    monkeypatch.setenv("QLIB_STRICT", "1")
    with pytest.raises(IncorrectAnswer, match=r"03\.1 quantize: incorrect\. .*returned None"):
        check("03.1", returns_none)
    assert check("03.1", right_with_default) is right_with_default

    def blank(tensor, scale, zero_point, bits=8): ...

    assert check("03.1", blank) is qlib.quantize


def test_an_unknown_exercise_names_those_there_are():
    with pytest.raises(ValueError, match=r"no exercise '3\.1'; there are .*03\.1"):
        check("3.1", right)


def test_a_card_says_the_same_as_html_and_as_text(capsys):
    from course.exercises.card import Card

    card = Card("✗", "03.1 quantize: incorrect", "expected `a < b`\nsecond line")
    assert repr(card) == "✗ 03.1 quantize: incorrect\nexpected `a < b`\nsecond line"
    assert "<code>a &lt; b</code><br>second line" in card._repr_html_()
    assert "background" not in card._repr_html_(), "a card takes the theme's own background"


def test_hints_come_one_a_call_and_start_over(capsys):
    exercises.given_hints.clear()
    count = len(QUANTIZE.hints)
    for _ in range(count + 1):
        hint("03.1")
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith("→")]
    expected = itertools.chain(range(1, count + 1), [1])
    assert titles == [f"→ 03.1 hint {n} of {count}" for n in expected]


def test_progress_remembers_the_best_attempt(progress_file):
    assert "○ 03.1 quantize" in repr(progress())
    check("03.1", returns_none)
    assert "✗ 03.1 quantize" in repr(progress())
    check("03.1", right_with_default)
    check("03.1", returns_none)
    assert "✓ 03.1 quantize" in repr(progress())
    assert repr(progress()).startswith("1 of ")
    assert json.loads(progress_file.read_text()) == {"03.1": CORRECT}


def test_progress_names_the_exercise_that_comes_next(progress_file):
    progress_file.write_text(json.dumps({e.id: CORRECT for e in ALL if e.id not in ("04.1", "05.2")}))
    assert repr(progress()).splitlines()[0] == f"{len(ALL) - 2} of {len(ALL)} exercises solved; next is 04.1 " + (
        find_exercise("04.1").name
    )
    progress_file.write_text(json.dumps({e.id: CORRECT for e in ALL}))
    assert repr(progress()).splitlines()[0] == f"{len(ALL)} of {len(ALL)} exercises solved: all of them"


def test_the_drawing_of_the_progress_has_a_field_for_each_exercise(progress_file):
    progress_file.write_text(json.dumps({"03.1": CORRECT, "03.2": INCORRECT}))
    drawn = progress()._repr_html_()
    assert drawn.count("height: 8px") == len(ALL)
    assert drawn.count("opacity: 1;") == 2


def test_a_spoilt_progress_file_stops_nobody(progress_file):
    progress_file.write_text("not json")
    check("03.1", right_with_default)
    assert "✓ 03.1 quantize" in repr(progress())
