"""Generic mutations of a key, and that a check which compares too little is seen to let them through."""

import dataclasses

import torch

from course.exercises.audit import accepted_mutations
from course.exercises.exercise import Case, Exercise
from course.exercises.mutations import mutants_of


def mean_of_halves(x, floor=0.5):
    """Half of each number, not below the floor, on average over the last dimension."""
    if floor is None:
        raise ValueError(f"no floor of {1 + 1}")
    halves = (x / 2).clamp(min=floor)
    return halves.to(torch.float32).mean(dim=-1)


CASES = {
    "weak": [Case("halves of 4 and 4", (torch.tensor([[4.0, 4.0], [4.0, 4.0]]),))],
    "strong": [
        Case("halves of 4 and 8", (torch.tensor([[4.0, 8.0]]),)),
        Case("halves of 1 and 0", (torch.tensor([[4.0, 8.0], [1.0, 0.0], [0.2, -9.0]], dtype=torch.float64),)),
        Case("a floor of 3", (torch.tensor([[4.0, 8.0]]),), {"floor": 3.0}),
    ],
}
EXERCISE = Exercise("99.2", "mean_of_halves", mean_of_halves, [], [])


def left_by(cases):
    return set(accepted_mutations(dataclasses.replace(EXERCISE, cases=CASES[cases])))


def test_each_thing_that_can_go_wrong_is_tried_once():
    assert set(mutants_of(mean_of_halves)) == {
        "x, floor=0.5 -> x, floor=1.5",
        "x, floor=0.5 -> x, floor=-0.5",
        "without: if floor is None:",
        "floor is None -> floor is not None",
        "without: halves = (x / 2).clamp(min=floor)",
        "(x / 2).clamp(min=floor) -> x / 2",
        "(x / 2).clamp(min=floor) -> (x / 2).clamp()",
        "x / 2 -> x * 2",
        "x / 2 -> x / 3",
        "x / 2 -> x / 1",
        "halves.to(torch.float32).mean(dim=-1) -> halves.to(torch.float32)",
        "halves.to(torch.float32).mean(dim=-1) -> halves.to(torch.float32).mean()",
        "halves.to(torch.float32).mean -> halves.to(torch.float32).sum",
        "halves.to(torch.float32) -> halves",
        "torch.float32 -> torch.float64",
        "torch.float32 -> torch.float16",
        "halves.to(torch.float32).mean(dim=-1) -> halves.to(torch.float32).mean(dim=1)",
        "halves.to(torch.float32).mean(dim=-1) -> halves.to(torch.float32).mean(dim=-2)",
        "halves.to(torch.float32).mean(dim=-1) -> halves.to(torch.float32).mean(dim=-0)",
    }


def test_a_mutant_does_what_its_words_say():
    mutants, x = mutants_of(mean_of_halves), torch.tensor([[4.0, 8.0]])
    assert mean_of_halves(x).tolist() == [3]
    assert mutants["x / 2 -> x * 2"](x).tolist() == [12]
    assert mutants["x, floor=0.5 -> x, floor=1.5"](torch.tensor([[0.0, 8.0]])).tolist() == [2.75]
    assert mutants["halves.to(torch.float32).mean -> halves.to(torch.float32).sum"](x).tolist() == [6]
    assert mutants["halves.to(torch.float32).mean(dim=-1) -> halves.to(torch.float32)"](x).tolist() == [[2, 4]]


def test_what_a_weak_case_accepts_is_reported_and_what_a_strong_one_rejects_is_not():
    assert {
        "x, floor=0.5 -> x, floor=1.5",
        "(x / 2).clamp(min=floor) -> x / 2",
        "halves.to(torch.float32).mean(dim=-1) -> halves.to(torch.float32).mean(dim=-2)",
        "halves.to(torch.float32) -> halves",
    } <= left_by("weak")
    assert left_by("strong") == {
        "without: if floor is None:",
        "halves.to(torch.float32).mean(dim=-1) -> halves.to(torch.float32).mean(dim=1)",
    }


def test_words_that_would_be_the_same_are_told_apart_by_the_statement():
    assert {"x + 1 -> x - 1", "y = 2 * (x + 1) -> y = 2 * (x - 1)"} <= set(mutants_of(twice_the_sum))


def twice_the_sum(x):
    x = x + 1
    y = 2 * (x + 1)
    return y
