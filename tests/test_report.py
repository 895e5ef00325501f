"""Sizes are true bytes, errors are what their formulas say, and numbers are shown the same on every computer."""

import itertools
import math

import numpy as np
import pytest
import torch

from qlib import Scheme, quantize_tensor, save_tensors
from qlib.report import (
    as_text,
    cosine,
    file_bytes,
    in_units,
    nearest,
    quantization_error,
    quantized_bytes,
    sqnr,
    state_dict_bytes,
    top1_agreement,
)

WEIGHT = torch.linspace(-1, 1, 60).reshape(6, 10)


# ---------------------------------------------------------------- bytes


def test_a_state_dict_takes_the_bytes_of_its_tensors():
    state = {"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16), "c": torch.zeros(7, dtype=torch.int8)}
    assert state_dict_bytes(state) == 3 * 4 * 4 + 5 * 2 + 7
    assert state_dict_bytes(state | {"d": torch.empty(0, 3), "e": torch.empty(0)}) == state_dict_bytes(state)
    assert state_dict_bytes({}) == 0


def test_tied_weights_count_once_and_equal_ones_twice():
    embedding, head = torch.nn.Embedding(100, 8), torch.nn.Linear(8, 100, bias=False)
    model = torch.nn.ModuleDict({"embedding": embedding, "head": head})
    assert state_dict_bytes(model.state_dict()) == 2 * 100 * 8 * 4
    head.weight = embedding.weight
    assert len(model.state_dict()) == 2
    assert state_dict_bytes(model.state_dict()) == 100 * 8 * 4


def test_views_count_with_the_storage_they_look_at_and_only_once():
    whole = torch.zeros(10, 10)
    assert state_dict_bytes({"whole": whole, "turned": whole.T, "row": whole[3]}) == 400
    assert state_dict_bytes({"row": whole[3]}) == 400, "a row keeps the whole matrix in memory"
    assert state_dict_bytes({"row": whole[3].clone()}) == 40
    assert state_dict_bytes({"first": whole[:2], "others": whole[5:], "turned": whole.reshape(4, 25).T}) == 400


def test_quantized_bytes_counts_what_is_quantized_and_what_is_not():
    qtensor = quantize_tensor(WEIGHT, Scheme(4, symmetric=False))
    assert quantized_bytes({"w": qtensor, "bias": torch.zeros(6)}) == 6 * 5 + 6 * 4 + 6 + 24


def test_a_quantized_tensor_under_two_names_counts_once():
    qtensor = quantize_tensor(WEIGHT, Scheme(4))
    assert quantized_bytes({"embedding": qtensor, "head": qtensor}) == qtensor.nbytes


def test_names_that_look_alike_hide_nothing():
    qtensor = quantize_tensor(WEIGHT, Scheme(4))
    assert quantized_bytes({"w": qtensor, "w.packed": torch.zeros(1000)}) == qtensor.nbytes + 4000


def test_quantized_bytes_are_the_bytes_of_the_file_less_its_header(tmp_path):
    tensors = {"w": quantize_tensor(WEIGHT, Scheme(3, False, group_size=4)), "bias": torch.zeros(6)}
    save_tensors(tensors, tmp_path / "model.safetensors")
    header = 8 + int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert file_bytes(tmp_path / "model.safetensors") - header == quantized_bytes(tensors)


def test_file_bytes_adds_up_a_folder_and_the_folders_in_it(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "inner" / "b").write_bytes(b"123")
    assert file_bytes(tmp_path / "a") == 5
    assert file_bytes(tmp_path) == file_bytes(str(tmp_path)) == 8


def test_a_file_that_is_not_there_has_no_size(tmp_path):
    with pytest.raises(FileNotFoundError):
        file_bytes(tmp_path / "missing")


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [
        (0, "0 bytes"),
        (36, "36 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (1536, "1.5 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (90_868_376, "90.9 MB"),
        (16_000_000_000, "16.0 GB"),
        (280_000_000_000, "280 GB"),
        (1.4e12, "1.4 TB"),
        (5.4e15, "5400 TB"),
    ],
)
def test_bytes_in_words(nbytes, words):
    assert in_units(nbytes) == words


# ---------------------------------------------------------------- errors


def test_quantization_error_is_the_mean_squared_error():
    assert quantization_error(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0, 2.0])) == 1.0
    assert quantization_error(torch.ones(3, dtype=torch.bfloat16), torch.ones(3)) == 0.0


def test_sqnr_of_known_ratios():
    signal = torch.tensor([3.0, 4.0])
    assert sqnr(signal, signal + torch.tensor([0.3, 0.4])) == pytest.approx(20.0, abs=1e-4)
    assert sqnr(signal, torch.zeros(2)) == pytest.approx(0.0)
    assert sqnr(signal, -signal) == pytest.approx(10 * math.log10(1 / 4))


def test_sqnr_of_no_error_is_infinite_and_of_no_signal_minus_infinite():
    assert sqnr(WEIGHT, WEIGHT) == math.inf
    assert sqnr(torch.zeros(3), torch.zeros(3)) == math.inf
    assert sqnr(torch.zeros(3), torch.ones(3)) == -math.inf


def test_each_bit_is_worth_about_6_decibels():
    spread = torch.linspace(-1, 1, 4001)
    at = [
        sqnr(spread, quantize_tensor(spread, Scheme(bits, symmetric=False, axis=None)).dequantize())
        for bits in range(2, 9)
    ]
    steps = [finer - coarser for coarser, finer in itertools.pairwise(at)]
    assert steps == pytest.approx([20 * math.log10(2)] * 6, abs=2)


def test_cosine_of_known_angles():
    along = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert cosine(along, 5 * along) == pytest.approx(1.0)
    assert cosine(along, along.flip(1)) == pytest.approx(0.0)
    assert cosine(along, along * torch.tensor([[1.0], [-1.0]])) == pytest.approx(0.0), "the mean of 1 and -1"
    assert cosine(along[:1], torch.tensor([[1.0, 1.0]])) == pytest.approx(math.sqrt(0.5))


def test_the_nearest_row_is_another_one_whatever_its_length():
    rows = torch.tensor([[1.0, 0.0], [100.0, 10.0], [0.0, 1.0], [-0.1, 9.0]])
    assert nearest(rows).tolist() == [1, 0, 3, 2]


def test_top1_agreement_is_the_share_of_rows_with_the_same_neighbour():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-0.1, 1.0]])
    assert top1_agreement(rows, 3 * rows) == 1.0
    moved = rows.clone()
    moved[1] = torch.tensor([0.05, 1.0])  # now next to rows 2 and 3, and nearest to 2, which comes nearest to it
    assert nearest(moved).tolist() == [1, 2, 1, 2]
    assert top1_agreement(rows, moved) == 0.5


# ---------------------------------------------------------------- showing numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.14159265, "3.1416"),
        (2.50000001, "2.5"),
        (2.0, "2"),
        (100.0, "100"),
        (-0.0, "0"),
        (-0.00001, "0"),
        (0.00004, "0"),
        (-1.5, "-1.5"),
        (1e20, "100000000000000000000"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (7, "7"),
        (1200, "1200"),
        (True, "True"),
        (None, "None"),
        ("text", "text"),
        ([], "[]"),
        ([1, 2.00001, True], "[1, 2, True]"),
        ((0.5, -0.0), "[0.5, 0]"),
        ([[1, 2.5], [-10, 0.125]], "[    1    2.5]\n[  -10  0.125]"),
        ([[[1, 2]], [[3, 4]]], "[1  2]\n\n[3  4]"),
        ([[]], "[]"),
        (torch.tensor(0.1), "0.1"),
        (torch.tensor([True, False]), "[True, False]"),
        (torch.tensor([[1, -2]], dtype=torch.int8), "[ 1  -2]"),
        (torch.tensor([0.1, 0.2], dtype=torch.bfloat16), "[0.1001, 0.2002]"),
        (torch.empty(0, 4), "[]"),
        (np.float32(0.1), "0.1"),
        (np.float64(-0.0), "0"),
        (np.array([0.1, 1 / 3], dtype=np.float32), "[0.1, 0.3333]"),
        ([np.float32(1 / 3), torch.tensor(2 / 3)], "[0.3333, 0.6667]"),
    ],
    ids=repr,
)
def test_numbers_are_shown_rounded(value, text):
    assert as_text(value) == text


@pytest.mark.parametrize(("digits", "text"), [(0, "1235"), (1, "1234.6"), (2, "1234.57"), (6, "1234.5678")])
def test_as_many_digits_as_asked_for(digits, text):
    assert as_text(1234.5678, digits) == text


def test_round_numbers_keep_their_zeros_when_no_decimals_are_asked_for():
    assert as_text(1200.0, 0) == "1200"
    assert as_text(-0.4, 0) == "0"
