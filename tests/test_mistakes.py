"""Known mistakes are edits of the key: they fail where they do not fit, never hit words, and two combine."""

import pytest

from course.exercises.mistakes import Mistake, edit, edited, pairs_of, source_of


def increased(number, step=1):
    """Add the step, which is not the number plus 1.

    number + step is what comes out; the number itself stays.
    """
    total = number + step
    return total


class Counter:
    """Counts: count + 1 each time."""

    def __init__(self):
        self.count = 0

    def up(self):
        """count + 1"""
        self.count = self.count + 1
        return self.count


class Nothing:
    """Has words and no code."""


# ---------------------------------------------------------------- edits


def test_an_edit_changes_the_code_and_leaves_the_key_as_it_was():
    wrong = edited(increased, edit("number + step", "number - step"))
    assert (wrong(5, 2), increased(5, 2)) == (3, 7)
    assert wrong.__name__ == "increased"


def test_several_changes_are_made_one_after_the_other():
    wrong = edited(increased, edit("number + step", "number * step", "number * step", "number**step"))
    assert wrong(5, 2) == 25


def test_a_class_is_edited_like_a_function():
    counter = edited(Counter, edit("self.count + 1", "self.count + 2"))()
    assert (counter.up(), counter.up()) == (2, 4)


def test_an_edited_key_sees_the_names_of_the_keys_own_module():
    assert edited(increased, edit("number + step", "NUMBERS[step]"))(0, 1) == NUMBERS[1]


NUMBERS = (10, 20)


def test_an_edit_that_does_not_match_says_what_it_looked_for():
    with pytest.raises(ValueError, match=r"'number \* step' stands 0 times, not once, in:\ndef increased"):
        edited(increased, edit("number * step", "number"))


def test_an_edit_that_matches_twice_fails_as_well():
    with pytest.raises(ValueError, match=r"'total' stands 2 times, not once, in:\ndef increased"):
        edited(increased, edit("total", "result"))


def test_a_second_change_looks_at_what_the_first_has_left():
    with pytest.raises(ValueError, match="'number' stands 2 times"):
        edited(increased, edit(" + step", " + number", "= number", "= step", "number", "step"))


def test_an_old_text_without_a_new_one_is_refused():
    with pytest.raises(ValueError):
        edit("number + step", "number", "step")


@pytest.mark.parametrize(
    ("key", "words"), [(increased, "not the number plus 1"), (Counter, "Counts"), (Nothing, "no code")]
)
def test_edits_never_hit_docstrings(key, words):
    assert words in key.__doc__
    assert words not in source_of(key) and '"""' not in source_of(key)
    with pytest.raises(ValueError, match="stands 0 times"):
        edit(words, "").applied_to(source_of(key))


# ---------------------------------------------------------------- pairs

SUBTRACTED = Mistake(edit("+ step", "- step"), "with the step subtracted")
DOUBLED = Mistake(edit("total = number", "total = 2 * number"), "with the number doubled")
WITHOUT_STEP = Mistake(edit(" + step", ""), "without the step")
BY_HAND = Mistake(lambda number, step=1: number, "with nothing added")


def test_a_pair_makes_both_mistakes_and_names_both():
    (pair,) = pairs_of([SUBTRACTED, DOUBLED], increased)
    assert pair.answer_to(increased)(5, 2) == 8
    assert pair.diagnosis == "with the step subtracted; and, at the same time, with the number doubled"


@pytest.mark.parametrize(
    ("mistakes", "why"),
    [
        ([SUBTRACTED, WITHOUT_STEP], "each takes away what the other looks for"),
        ([SUBTRACTED, Mistake(edit("number + step", "step + number"), "turned round")], "one takes away the other's"),
        (
            [Mistake(edit("total =", "total = 1 +"), "one more"), Mistake(edit("total =", "total = 2 *"), "twice")],
            "what comes first stands last",
        ),
        ([SUBTRACTED, BY_HAND], "code does not combine"),
        (
            [Mistake(edit("= number", "= 1 if step else number"), "1"), Mistake(edit(" + step", " = step"), "step")],
            "together they are no code",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_that_get_into_each_others_way_make_no_pair(mistakes, why):
    assert pairs_of(mistakes, increased) == []


def test_a_mistake_that_no_longer_matches_is_not_passed_over_among_the_pairs():
    with pytest.raises(ValueError, match="'\\* step' stands 0 times"):
        pairs_of([DOUBLED, Mistake(edit("* step", ""), "without the product")], increased)
