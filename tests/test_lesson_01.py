"""What lesson 1 says: the calculator, the bytes of a state dict, the sentences, and the figures in its prose."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course.figures import lesson_01 as figures
from course.models import DATA, embed, load_encoder, load_sentences
from qlib import INT4, INT8, Scheme, quantize_tensor
from qlib.report import fit_text, in_units, nearest, quantized_bytes, state_dict_bytes, weight_bytes

BILLION = 10**9


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


# ---------------------------------------------------------------- the calculator


@given(st.integers(2, 8), st.booleans(), st.integers(1, 9), st.integers(1, 5), st.integers(1, 8))
def test_the_calculator_counts_what_a_qtensor_takes(bits, symmetric, rows, groups, eighths):
    group_size = 8 * eighths  # so that no row ends within a byte
    matrix = torch.ones(rows, groups * group_size)
    sharing = [
        ({"axis": None}, matrix.numel()),
        ({"axis": 0}, len(matrix[0])),
        ({"group_size": group_size}, group_size),
    ]
    for granularity, weights_a_scale in sharing:
        qtensor = quantize_tensor(matrix, Scheme(bits, symmetric, **granularity))
        assert weight_bytes(matrix.numel(), bits, weights_a_scale, symmetric) == qtensor.nbytes


def test_a_group_that_is_not_full_has_a_scale_and_a_last_byte_is_whole():
    qtensor = quantize_tensor(torch.linspace(-1, 1, 75).reshape(1, 75), Scheme(3, symmetric=False, group_size=32))
    assert weight_bytes(75, 3, 32) == qtensor.nbytes == 29 + 3 * 5


def test_floats_have_no_scales():
    for dtype in (torch.float32, torch.bfloat16):
        assert weight_bytes(35, torch.finfo(dtype).bits) == torch.zeros(7, 5, dtype=dtype).nbytes


def test_seventy_billion_weights_do_not_fit_a_t4_even_at_two_bits():
    assert in_units(weight_bytes(70 * BILLION, 32)) == "280 GB"
    assert -(-280 // 16) == 18
    assert fit_text(70 * BILLION, 4, 64, 16 * BILLION, "an NVIDIA T4") == (
        "70 billion weights of 4 bits in groups of 64 take 40.5 GB, 4.625 bits a weight. "
        "That is 24.5 GB more than the 16 GB of an NVIDIA T4: they do not fit."
    )
    assert weight_bytes(70 * BILLION, 2) > 16 * BILLION
    assert 6.5 < weight_bytes(70 * BILLION, 32) / weight_bytes(70 * BILLION, 4, 64) < 7


def test_what_just_fits_fits():
    memory = 2 * BILLION
    assert fit_text(memory, 8, None, memory, "a box").endswith("0 bytes less than the 2 GB of a box: they fit.")
    assert fit_text(memory + 1, 8, None, memory, "a box").endswith("they do not fit.")


def test_the_quiz_is_right():
    assert in_units(weight_bytes(7 * BILLION, 16)) == "14.0 GB"
    assert 8 * (weight_bytes(32, 2, 32) - weight_bytes(32, 2)) / 32 == 1.25


# ---------------------------------------------------------------- pictures


def test_byte_boxes_draws_a_box_for_each_byte():
    numbers = torch.tensor([[1.5, -2.0], [0.0, 3.0]])
    picture = figures.byte_boxes({"float32": numbers, "int8": numbers.to(torch.int8)})
    assert [len(axis.patches) for axis in picture.figure.axes] == [16, 4]
    assert "float32: 4 numbers of 4 bytes each, 16 in all; int8: 4 numbers of 1 byte each, 4 in all" in picture.caption


def test_memory_bars_says_what_fits():
    picture = figures.memory_bars({"32 bits": 4 * BILLION, "8 bits": BILLION}, 2 * BILLION, "a box")
    assert picture.caption.endswith("32 bits 4.0 GB, 8 bits 1.0 GB. What fits: 8 bits.")
    assert figures.memory_bars({"a": BILLION}, 10, "a box").caption.endswith("None of them fits.")


def test_size_and_quality_names_every_point():
    caption = figures.size_and_quality({"a": (8, 3), "b": (4, 2)}, "Title", "MB", "quality").caption
    assert caption == "Title: quality over MB. a: 3 at 8; b: 2 at 4."


# ---------------------------------------------------------------- the sentences


def test_the_sentences_are_clean_and_no_two_are_the_same():
    text = (DATA / "sentences.txt").read_bytes().decode("utf-8")
    sentences = load_sentences()
    assert text == "\n".join(sentences) + "\n"
    assert len(sentences) == len({sentence.lower() for sentence in sentences}) == 200
    assert all(sentence == sentence.strip() and re.fullmatch(r"[A-Z].{10,90}[.?!]", sentence) for sentence in sentences)


def test_the_sentences_are_pairs_and_not_trivial(encoder):
    closest = nearest(embed(*encoder, load_sentences()))
    found = (closest == torch.arange(200) ^ 1).sum().item()
    assert found == 157, "as the lesson prints"


def test_the_card_names_what_is_there():
    card = (DATA / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(.+?)/?` \|", card, re.M)
    assert "sentences.txt" in named
    assert all((DATA / name).exists() for name in named)


# ---------------------------------------------------------------- the encoder


def test_half_of_the_encoder_is_its_words(encoder):
    state = encoder[0].state_dict()
    count = sum(weight.numel() for weight in state.values())
    words = state["embeddings.word_embeddings.weight"]
    assert (count, tuple(words.shape)) == (22_713_216, (30_522, 384))
    assert state_dict_bytes(state) == 4 * count == 90_852_864
    assert 0.5 < words.numel() / count < 0.52


def test_the_sizes_that_the_prose_gives(encoder):
    state = encoder[0].state_dict()

    def smaller(scheme):
        small = {name: quantize_tensor(w, scheme) if w.ndim == 2 else w for name, w in state.items()}
        return state_dict_bytes(state) / quantized_bytes(small)

    assert 3.9 < smaller(INT8) < 4
    assert 6.5 < smaller(INT4) < 7.5, "about a seventh"
