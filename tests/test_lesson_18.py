"""Lesson 18: the map of the library, the capstone and its score, and the toolkits' figures that it shows."""

import ast
import copy
import dataclasses
import graphlib
import json
import pathlib
import re

import pytest
import torch
from matplotlib.patches import FancyBboxPatch

import course
import qlib
import qlib.methods
from course import capstone
from course.capstone import BUDGET, best_within, in_float32, load_best, load_results, saved_bytes, store_small
from course.exercises.exercise import asked_for, find_exercise
from course.exercises.judge import CORRECT, INCORRECT, judge
from course.figures import lesson_18 as figures
from course.figures.lesson_18 import (
    arrows_needed,
    first_sentence,
    floors,
    imported_rooms,
    in_words,
    rooms_of,
)
from course.models import DATA, load_code_model, load_code_tokens, perplexity
from qlib import QLinear, Scheme, load_quantized, quantize_model
from qlib.methods import awq_rescale
from tests.lessons import ROOT
from tests.small_capstone import small_task
from tests.test_plot import assert_draws

# ---------------------------------------------------------------- the map


def imports():
    return {name: set(room.imports) for name, room in rooms_of("qlib").items()}


def test_the_rooms_are_the_modules_and_packages_and_their_sentences_those_of_the_docstrings():
    for package in (qlib, course):
        folder = pathlib.Path(package.__file__).parent
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        packages = {path.parent.name for path in folder.glob("*/__init__.py")}
        assert rooms_of(package.__name__).keys() == modules | packages
    assert rooms_of("qlib")["methods"].sentence == qlib.methods.__doc__.partition(".")[0]
    assert first_sentence("One: 0.5 of it,\non two lines. Another.") == "One: 0.5 of it, on two lines"


def test_the_arrows_of_the_map_are_the_imports_of_the_package():
    assert {"affine", "packing", "scheme"} <= imports()["tensor"]
    assert imports()["scheme"] == imports()["affine"] == imports()["packing"] == set()
    assert {"linear", "model"} <= imports()["methods"]
    source = (
        "import qlib.affine\nfrom qlib import hf, report\ndef f():\n    from qlib.methods.awq import a\nimport qlibs.b"
    )
    assert set(imported_rooms(ast.parse(source), "qlib")) == {"affine", "hf", "report", "methods"}


def test_qlib_imports_nothing_of_the_course():
    for path in pathlib.Path(qlib.__file__).parent.rglob("*.py"):
        assert not set(imported_rooms(ast.parse(path.read_text(encoding="utf-8")), "course")), path


def test_each_room_stands_above_all_that_it_imports():
    floor = floors(imports())
    assert all(floor[room] > floor[other] for room, needed in imports().items() for other in needed)


def test_rooms_that_import_each_other_are_refused_by_name():
    with pytest.raises(graphlib.CycleError, match=r"'a', 'b', 'a'|'b', 'a', 'b'"):
        floors({"ground": set(), "a": {"b", "ground"}, "b": {"a"}})


def test_arrows_that_are_there_by_way_of_another_are_left_out():
    assert arrows_needed({"a": set(), "b": {"a"}, "c": {"a", "b"}}) == [("b", "a"), ("c", "b")]


def test_every_exercise_is_in_a_room_of_the_map():
    assert asked_for().keys() <= rooms_of("qlib").keys() | rooms_of("course").keys()


def test_runs_of_lessons_are_joined():
    assert in_words([3, 4, 5, 7, 8]) == "3-5, 7, 8"
    assert in_words([]) == ""


def test_the_map_says_each_room_with_its_lessons_and_its_words_stay_in_their_boxes(tmp_path):
    picture = figures.library_map(asked_for())
    assert "affine (3-5, 7, 8)" in picture.caption and "packing (2, 14-16)" in picture.caption
    assert all(room in picture.caption for package in ("qlib", "course") for room in rooms_of(package))
    assert_draws(picture, tmp_path / "picture.png")
    picture.figure.draw_without_rendering()
    (axis,) = picture.figure.axes
    boxes = [patch.get_window_extent() for patch in axis.patches if isinstance(patch, FancyBboxPatch)]
    words = [text.get_window_extent() for text in axis.texts if text.get_text()]
    assert len(words) == 2 * len(boxes)
    for place, box in enumerate(boxes):
        for text in words[2 * place : 2 * place + 2]:
            assert box.x0 < text.x0 and text.x1 < box.x1 and box.y0 < text.y0 and text.y1 < box.y1


# ---------------------------------------------------------------- what an answer is held against


def test_the_best_model_is_what_its_figures_say():
    stored = load_results()
    file = DATA / "capstone" / "model.safetensors"
    assert file.stat().st_size == stored["best"]["bytes"] <= BUDGET
    best = load_best()
    assert perplexity(best, load_code_tokens(count=4096)) == pytest.approx(stored["best"]["perplexity"], rel=1e-3)
    assert best.lm_head.weight is best.get_input_embeddings().weight
    assert {layer.scheme.bits for layer in best.modules() if isinstance(layer, QLinear)} == {2, 3}


def test_the_librarys_answer_beats_rounding_clearly_and_the_best_beats_both():
    task = capstone.code_task()
    bar, library, best = (point["perplexity"] for point in (task.rounding, task.stored["library"], task.best))
    assert task.stored["float"] < best < library < bar / 2
    assert 0.9 < task.share(library) < 1
    assert task.share(best) == pytest.approx(1) and task.share(bar) == pytest.approx(0)


def test_a_stored_point_of_rounding_is_measured_again():
    task = capstone.code_task()
    point = task.rounding
    model = copy.deepcopy(task.model)
    quantize_model(model, Scheme(2, False, group_size=point["group_size"]), ignore=(), progress=False)
    assert saved_bytes(model.half()) == point["bytes"]
    assert perplexity(model.float(), task.held_out) == pytest.approx(point["perplexity"], rel=1e-3)


def test_the_bar_is_the_best_point_within_the_budget():
    points = [{"bytes": 5, "perplexity": 9}, {"bytes": 7, "perplexity": 8}, {"bytes": 9, "perplexity": 1}]
    assert best_within(points, 7) == points[1]


def test_what_is_stored_small_comes_back_and_keeps_its_tie(tmp_path):
    model, _ = load_code_model()
    quantize_model(model, qlib.INT2, ignore=(), progress=False)
    before = model.get_input_embeddings().weight.detach().clone()
    qlib.save_quantized(store_small(model), tmp_path / "model")
    loaded = in_float32(qlib.load_quantized(tmp_path / "model"))
    embedding = loaded.get_input_embeddings().weight
    assert loaded.lm_head.weight is embedding and embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, before, rtol=1 / 16, atol=2**-10)
    assert all(tensor.dtype == torch.float32 for tensor in loaded.parameters())
    assert all(layer.scale.dtype == torch.float32 for layer in loaded.modules() if isinstance(layer, QLinear))


# ---------------------------------------------------------------- the score


def attempt(answer):
    return judge(dataclasses.replace(find_exercise("18.1"), trial=capstone.Trial(small_task)), answer)


def rounds_in_groups_of_32(model, tokens, budget):
    quantize_model(model, qlib.INT2, ignore=(), progress=False)
    return store_small(model)


def test_a_right_answer_is_told_its_score_and_drawn():
    verdict = attempt(rounds_in_groups_of_32)
    assert verdict.outcome == CORRECT
    assert re.search(r"bytes of 1,750,000, and a perplexity of 19\.", verdict.message)
    share = 100 * capstone.code_task().share(19.12)
    assert f"Your score: {share:.0f}% of the way" in verdict.message
    assert "yours: 19.1" in verdict.picture.caption


def words_for_less_than_the_best(margin):
    value = capstone.code_task().best["perplexity"] - margin
    result = capstone.Result(bytes=1_700_000, perplexity=value)
    return capstone.Trial(capstone.code_task).words(result)


def test_more_than_the_best_is_more_than_100_percent():
    words = words_for_less_than_the_best(0.1)
    assert "101%" in words and "You have beaten it." in words


def test_the_stored_best_as_it_lies_on_the_disk_is_no_answer():
    verdict = attempt(lambda model, tokens, budget: load_quantized(DATA / "capstone"))
    assert verdict.outcome == INCORRECT and "the model in data/capstone, to the last bit" in verdict.message


def test_the_digits_that_a_stored_perplexity_lacks_beat_nothing():
    assert "You have beaten it." not in words_for_less_than_the_best(5e-5)


def test_what_is_rejected_after_it_was_measured_is_drawn_too():
    rounds = next(m.answer for m in find_exercise("18.1").mistakes if m.answer.__name__ == "one_width_for_all")
    verdict = attempt(rounds)
    assert verdict.outcome == INCORRECT and "yours: 37.1" in verdict.picture.caption


def test_wide_layers_in_the_wrong_places_are_accepted_with_a_word_where_they_beat_rounding():
    def turned_round(model, tokens, budget):
        damage = load_results()["damage"]
        calm = sorted(damage, key=lambda name: damage[name] / model.get_submodule(name).weight.numel())[:3]
        low, high = (Scheme(bits=bits, symmetric=False, group_size=64) for bits in (2, 3))
        quantize_model(model, high, ignore=lambda name, _: name not in calm, progress=False)
        quantize_model(model, low, ignore=(), progress=False)
        return store_small(model)

    verdict = attempt(turned_round)
    assert verdict.outcome == CORRECT
    assert "the wide layers are those that mind least" in verdict.message


def test_layers_that_divide_their_input_are_judged_like_any():
    def divides(model, tokens, budget):
        awq_rescale(model, Scheme(2, False, group_size=128), tokens[:256].view(1, -1), ignore=("*.mlp.*",), divide=True)
        quantize_model(model, Scheme(bits=2, axis=None), ignore=(), progress=False)
        return model.half()

    verdict = attempt(divides)
    assert verdict.outcome == INCORRECT and "no better than the 29.70" in verdict.message
    assert capstone.ONE_WIDTH not in verdict.message


def test_an_error_in_the_answer_names_the_line():
    def broken(model, tokens, budget):
        return model.no_such_thing

    verdict = attempt(broken)
    assert verdict.outcome == INCORRECT
    assert "raised AttributeError in your cell, line" in verdict.message and verdict.picture is None


def test_an_answer_that_never_ends_is_stopped_when_its_time_is_up():
    def endless(model, tokens, budget):
        while True:
            pass

    exercise = dataclasses.replace(find_exercise("18.1"), trial=capstone.Trial(small_task, limit=0.5))
    assert "still running after 0.5 seconds" in judge(exercise, endless).message


def test_an_answer_cannot_harm_the_tasks_own_model():
    before = [tensor.clone() for tensor in small_task().model.state_dict().values()]
    attempt(rounds_in_groups_of_32)
    assert all(map(torch.equal, before, small_task().model.state_dict().values()))


def test_calibrating_on_held_out_text_is_noticed_however_it_is_cut():
    read = []
    model = capstone.watched_copy(small_task().model, read)
    model(load_code_tokens(count=600)[37:421].view(-1, 128))
    assert capstone.has_read(read, small_task().forbidden)


def test_the_calibration_text_itself_is_not_mistaken_for_the_held_out_text():
    every = [capstone.hashes(load_code_tokens("calibration", count=32768))]
    shared = torch.isin(every[0], capstone.hashes(small_task().forbidden)).sum().item()
    assert 0 < shared < capstone.SHARED / 2
    assert not capstone.has_read(every, small_task().forbidden)
    assert not capstone.has_read([], small_task().forbidden)


# ---------------------------------------------------------------- pictures and figures


def test_the_curve_says_the_bar_the_budget_and_every_mark(tmp_path):
    picture = figures.budget_curve(load_results(), BUDGET, {"bytes": 1_700_000, "perplexity": 12.345})
    assert "a budget of 1,750,000 bytes" in picture.caption
    assert "round-to-nearest, 2 bits, groups of 112: 29.70" in picture.caption
    assert "yours: 12.3" in picture.caption
    assert_draws(picture, tmp_path / "picture.png")
    assert "yours" not in figures.budget_curve(load_results(), BUDGET).caption


def test_the_toolkits_figures_are_whole():
    found = json.loads((DATA / "toolkits.json").read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"]) and found["pictures"] == 360
    by_name = {entry["toolkit"]: entry for entry in found["toolkits"]}
    assert {"qlib", "PyTorch", "torchao", "ONNX Runtime", "OpenVINO"} <= by_name.keys()
    assert not any("failed" in entry for entry in by_name.values())
    assert by_name["float32"]["right"] == by_name["qlib"]["right"] == 354
    wanted = (ROOT / "bench" / "requirements.txt").read_text(encoding="utf-8")
    for entry in by_name.values():
        for package, version in entry["versions"].items():
            assert package == "torch" or f"{package}=={version}" in wanted
