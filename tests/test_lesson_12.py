"""What lesson 12 says holds: the three models at each width, the scan, what is left out, and the lesson's pictures."""

import copy
import functools

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import transformers
from torch.nn import Linear, ModuleDict

import course.helper as helper
from course.figures import lesson_12 as figures
from course.models import (
    Boxes,
    average_precision,
    detect,
    embed,
    load_code_model,
    load_code_tokens,
    load_detector,
    load_encoder,
    load_pictures,
    load_sentences,
    perplexity,
)
from qlib import INT2, INT4, INT8, QLinear, Scheme, quantize_model
from qlib.model import layers_to_leave, layers_to_quantize, sensitivity
from qlib.report import cosine, nearest
from tests.test_plot import assert_draws

SYMMETRIC_2 = Scheme(bits=2, group_size=32)
COARSE = Scheme(bits=2, symmetric=False)


@pytest.fixture(scope="module")
def writer():
    return load_code_model()[0], load_code_tokens(count=2048)


def quantized(model, scheme, ignore=()):
    small = copy.deepcopy(model)
    return small, quantize_model(small, scheme, ignore=ignore, progress=False)


# ---------------------------------------------------------------- the scan


def two_layers():
    torch.manual_seed(0)
    return ModuleDict({"a": Linear(8, 8), "b": Linear(8, 8)})


def kinds(model):
    return {name: type(model.get_submodule(name)).__name__ for name in ("a", "b")}


def test_exactly_one_layer_is_quantized_each_time_and_none_afterwards():
    model = two_layers()
    layers = dict(model.named_children())
    seen = sensitivity(model, ["b", "a"], INT8, kinds)
    assert seen == {"b": {"a": "Linear", "b": "QLinear"}, "a": {"a": "QLinear", "b": "Linear"}}
    assert list(seen) == ["b", "a"]
    assert all(model[name] is layer for name, layer in layers.items())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_scan_that_is_interrupted_leaves_the_model_whole(error):
    model = two_layers()
    layers = dict(model.named_children())

    def measure(small):
        if isinstance(small["b"], QLinear):
            raise error

    with pytest.raises(error):
        sensitivity(model, ["a", "b"], INT8, measure)
    assert all(model[name] is layer for name, layer in layers.items())


def test_a_layer_in_two_places_is_tried_in_both():
    shared = Linear(4, 4)
    model = ModuleDict({"a": shared, "b": shared})
    assert sensitivity(model, ["a"], INT8, kinds) == {"a": {"a": "QLinear", "b": "QLinear"}}
    assert model["a"] is model["b"] is shared


def test_gpt2s_layers_can_be_scanned_too():
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=8)
    model = transformers.GPT2LMHeadModel(config).eval()
    names = layers_to_quantize(model, ())
    tokens = torch.arange(16) % 32
    values = sensitivity(model, names, Scheme(bits=2), lambda small: perplexity(small, tokens, window=8))
    base = perplexity(model, tokens, window=8)
    assert list(values) == names and len(names) == 4 and all(value != base for value in values.values())


# ---------------------------------------------------------------- what to leave out

layers = st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(st.integers(-3, 9), st.integers(1, 9)), max_size=8)


@hypothesis.given(layers, st.integers(0, 40))
def test_what_is_left_out_fits_is_worth_it_and_nothing_that_fits_is_missing(of_layers, budget):
    damage, price = ({name: pair[part] for name, pair in of_layers.items()} for part in (0, 1))
    taken = layers_to_leave(damage, price, budget)
    left = budget - sum(price[name] for name in taken)
    assert left >= 0 and all(damage[name] > 0 for name in taken)
    assert all(price[name] > left for name in damage if damage[name] > 0 and name not in taken)
    densities = [damage[name] / price[name] for name in taken]
    assert densities == sorted(densities, reverse=True)


# ---------------------------------------------------------------- the code model


def test_8_bits_are_free_4_bits_want_finer_scales_and_2_bits_a_zero_point_and_groups(writer):
    model, tokens = writer
    base = perplexity(model, tokens)

    @functools.cache
    def ratio(*arguments, **options):
        return perplexity(quantized(model, Scheme(*arguments, **options))[0], tokens) / base

    assert ratio(8, axis=None) == pytest.approx(1, abs=0.01)
    per_tensor, per_row, grouped = ratio(4, axis=None), ratio(4), ratio(4, group_size=32)
    assert per_tensor > 1.15 > 1.1 > per_row > grouped > 1
    assert ratio(3, axis=None) > 3 * ratio(3) and ratio(3) < 1.5
    knows_nothing = 1024 / base
    assert ratio(2, axis=None) > ratio(2) > knows_nothing > ratio(2, group_size=32) > 10
    assert 1.5 < ratio(2, symmetric=False, group_size=32) < 2.5
    assert ratio(3) < ratio(2, symmetric=False, group_size=32)


def test_the_footprints_are_those_of_the_table(writer):
    reports = {scheme: quantized(writer[0], scheme)[1] for scheme in (INT8, INT4, INT2, SYMMETRIC_2)}
    assert {report.bytes_before for report in reports.values()} == {4 * 4_197_632 + 2 * 16 * 4}  # and the frequencies
    shares = [round(100 * report.bytes_after / report.bytes_before) for report in reports.values()]
    assert shares == [30, 20, 16, 15]
    embedding = reports[INT2].skipped[0]
    assert embedding.nbytes / reports[INT2].bytes_after == pytest.approx(0.39, abs=0.005)


SPARED = {
    "at 8 bits": (INT8, "1 v, 2 v, 3 v, 4 v, 5 v, 1 o, 1 k, 2 o, 4 k, 3 k, 2 k"),
    "at 4 bits": (INT4, "1 v, 2 v, 3 v, 4 v, 5 v, 1 o, 0 down, 1 k, 2 o, 4 k, 3 k, 2 k, 3 o, 4 o, 0 o, 0 v, 5 k"),
}


def test_sparing_layers_pays_and_sparing_more_at_4_bits_pays_more(writer):
    model, tokens = writer
    names = {figures.short_name(name): name for name in layers_to_quantize(model, ())}
    coarse, coarse_report = quantized(model, COARSE)
    found = {"none": perplexity(coarse, tokens)}
    for label, (scheme, spared) in SPARED.items():
        small, _ = quantized(model, COARSE, ignore=[names[short] for short in spared.split(", ")])
        report = quantize_model(small, scheme, progress=False)
        assert report.bytes_after < 1.1 * coarse_report.bytes_after
        found[label] = perplexity(small, tokens)
    finer = perplexity(quantized(model, Scheme(bits=2, symmetric=False, group_size=64))[0], tokens)
    three = perplexity(quantized(model, Scheme(bits=3, symmetric=False))[0], tokens)
    assert found["none"] > 2 * found["at 8 bits"] > 2 * finer > 2 * found["at 4 bits"] > 2 * three


# ---------------------------------------------------------------- the encoder and the detector


def test_the_encoder_keeps_its_neighbours_longer_than_its_vectors():
    encoder, tokenizer = load_encoder()
    sentences = load_sentences()[:64]
    reference = embed(encoder, tokenizer, sentences)
    found = {}
    for scheme in (INT8, INT4, INT2, SYMMETRIC_2):
        vectors = embed(quantized(encoder, scheme)[0], tokenizer, sentences)
        found[scheme] = cosine(reference, vectors), (nearest(vectors) == nearest(reference)).sum().item()
    assert [same for _, same in found.values()] == [64, 64, 54, 18]
    assert [round(similarity, 2) for similarity, _ in found.values()] == [1, 0.97, 0.57, 0.18]


def test_the_detector_sees_down_to_4_bits_and_its_convolutions_stay():
    detector = load_detector()
    pictures, truth = load_pictures()
    assert sum(len(one.labels) for one in truth) == 159
    found = {}
    for scheme in (INT8, INT4, INT2, SYMMETRIC_2):
        small, report = quantized(detector, scheme)
        found[scheme] = average_precision(detect(small, pictures), truth)
    assert [round(value, 2) for value in found.values()] == [0.99, 0.99, 0.72, 0.02]
    kinds_left = {layer.why for layer in report.skipped}
    assert kinds_left == {"not a linear layer: Conv2d", "not a linear layer: Embedding"}
    convolutions = sum(layer.nbytes for layer in report.skipped if "Conv2d" in layer.why)
    assert convolutions / report.bytes_before == pytest.approx(0.22, abs=0.01)


def test_more_than_half_of_the_courses_detector_are_convolutions():
    resnet_50 = transformers.ResNetConfig(out_features=["stage4"])
    with torch.device("meta"):
        model = transformers.DetrForObjectDetection(transformers.DetrConfig(backbone_config=resnet_50, num_labels=91))
    of_kind = {kind: [m for m in model.modules() if isinstance(m, kind)] for kind in (torch.nn.Conv2d, torch.nn.Module)}
    convolutions, everything = (
        sum(p.numel() for m in modules for p in m.parameters(recurse=False)) for modules in of_kind.values()
    )
    assert 41e6 < everything < 42e6 and 0.5 < convolutions / everything < 0.6


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (9.254, "9.25"),
        (17.03, "17.0"),
        (136.2, "136"),
        (1171.4, "1,170"),
        (898_765, "899,000"),
        (1, "1.00"),
        (-0.5, "-0.50"),
    ],
)
def test_readable_numbers_have_three_digits_and_no_exponent(number, text):
    assert figures.without_exponent(number) == text


def test_perplexity_curves_say_every_point_and_the_float_model(tmp_path):
    lines = {"4 bits": [(4.5, 9.6), (4.0, 11.6)], "2 bits, asymmetric": [(2.0, 2600.0), (3.25, 18.0)]}
    picture = figures.perplexity_curves(lines, 9.25, "Bits")
    assert picture.caption == (
        "Bits: perplexity over bits a weight; float32 has 9.25. 4 bits: 11.6 at 4, 9.60 at 4.5; "
        "2 bits, asymmetric: 2,600 at 2, 18.0 at 3.25."
    )
    assert_draws(picture, tmp_path / "picture.png")


def test_damage_bars_name_the_worst_layers(tmp_path):
    damage = {f"model.layers.{block}.mlp.{kind}_proj": block + 0.1 for block in (0, 1) for kind in ("up", "down")}
    damage["model.layers.0.mlp.up_proj"], damage["lm_head"] = -0.25, 3.0
    picture = figures.damage_bars(damage, "Alone", "rise", named=2)
    assert picture.caption.startswith("Alone: 5 layers, from -0.25 to 3. Most: lm_head 3, model.layers.1.mlp.")
    assert_draws(picture, tmp_path / "picture.png")


def test_short_names_are_block_and_kind():
    assert figures.short_name("model.layers.11.mlp.down_proj") == "11 down"
    assert figures.short_name("lm_head") == "lm_head"


def one_box(box, label):
    return Boxes(torch.tensor([box], dtype=torch.float32), torch.tensor([label]), torch.ones(1))


def test_boxes_on_pictures_count_what_is_drawn_and_what_is_right(tmp_path):
    pictures = torch.zeros(2, 3, 16, 24, dtype=torch.uint8)
    truth = [one_box((2, 2, 10, 10), 0), one_box((4, 4, 12, 12), 1)]
    nothing = Boxes(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0))
    answers = {"before": truth, "after": [one_box((2, 2, 10, 10), 1), nothing]}
    picture = figures.boxes_on_pictures(pictures, answers, {0: "circle", 1: "star"}, truth)
    assert picture.caption == (
        "2 pictures of 24 x 16 pixels with 2 things on them. before: 2 boxes, 2 right; after: 1 box, 0 right. "
        "Wrong boxes are dashed."
    )
    assert_draws(picture, tmp_path / "picture.png")
    assert "right" not in figures.boxes_on_pictures(pictures, answers, {0: "circle", 1: "star"}).caption


def test_a_second_box_on_one_thing_is_wrong():
    box = (2, 2, 10, 10)
    twice = Boxes(torch.tensor([box, box], dtype=torch.float32), torch.tensor([0, 0]), torch.tensor([0.9, 0.8]))
    picture = figures.boxes_on_pictures(torch.zeros(1, 3, 16, 16).byte(), {"a": [twice]}, {0: "x"}, [one_box(box, 0)])
    assert "a: 2 boxes, 1 right" in picture.caption


def test_completions_mark_where_a_text_leaves_the_first_and_keep_code_as_it_is():
    texts = {"float32": "if a < b:\n    one()", "8 bits": "if a < b:\n    one()", "2 bits": "if a < b:\n    two()"}
    shown = figures.Completions(texts, "if a")
    assert "--- 8 bits (the same)\n" in repr(shown)
    assert "--- 2 bits (the same for 10 characters)\nif a < b:\n    two()" in repr(shown)
    page = shown._repr_html_()
    assert page.count("<b>if a</b>") == 3 and " &lt; b:\n    <span" in page and "two()</span>" in page


def test_the_courses_plot_results_draws_what_a_processor_found(monkeypatch):
    from PIL import Image

    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    model = load_detector()
    results = {"scores": torch.tensor([0.9]), "labels": torch.tensor([2]), "boxes": torch.tensor([[1.0, 2, 9, 10]])}
    helper.plot_results(model, Image.new("RGB", (20, 12), (1, 2, 3)), results)
    assert shown[0].caption == "1 picture of 20 x 12 pixels. found: 1 box."
