"""Lesson 2: the small nets are what their script makes and their card says, and bits are read as other readers do."""

import ast
import importlib.util
import math
import re
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import datasets

from course.exercises.exercise import find_exercise
from course.exercises.judge import CORRECT, INCORRECT, judge
from course.figures import lesson_02 as figures
from course.models import DATA, accuracy, load_digits, load_small_net, small_net
from qlib import pack, unpack
from qlib.packing import bit_string, field_widths, float_fields, from_twos_complement
from tests.lessons import ROOT, code_cells, committed
from tests.strategies import examples

STUDENTS = [f"student-{taught_by}-{count}" for count in (144, 1437) for taught_by in ("labels", "teacher")]


@pytest.fixture(scope="module")
def train_digits():
    """The training script, as a module."""
    spec = importlib.util.spec_from_file_location("train_digits", ROOT / "scripts" / "train_digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def right(net):
    _, (pictures, labels) = load_digits()
    return round(accuracy(net, pictures, labels) * len(labels))


# ---------------------------------------------------------------- the digits and the nets


def test_every_fifth_digit_is_held_out_and_the_others_are_trained_on():
    (train, train_labels), (held_out, held_out_labels) = load_digits()
    digits = datasets.load_digits()
    assert (train.shape, held_out.shape) == ((1437, 8, 8), (360, 8, 8))
    assert train.dtype == held_out.dtype == torch.float32
    assert train_labels.dtype == held_out_labels.dtype == torch.int64
    assert torch.equal(held_out.double() * 16, torch.from_numpy(digits.images[::5]))
    assert held_out_labels.tolist() == digits.target[::5].tolist()
    rest = [i for i in range(1797) if i % 5]
    assert torch.equal(train.double() * 16, torch.from_numpy(digits.images[rest]))
    assert train_labels.tolist() == digits.target[rest].tolist()


def test_a_small_net_has_the_layers_it_is_asked_for():
    net = small_net(64, 16, 10)
    assert [type(layer).__name__ for layer in net] == ["Flatten", "Linear", "ReLU", "Linear"]
    assert net(torch.zeros(5, 8, 8)).shape == (5, 10)


@pytest.mark.parametrize(("name", "numbers"), [("teacher", 6570)] + [(name, 1210) for name in STUDENTS])
def test_a_stored_net_loads_ready_to_measure_and_to_change(name, numbers):
    net = load_small_net(name)
    assert sum(p.numel() for p in net.parameters()) == numbers
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    next(net.parameters()).zero_()
    assert next(load_small_net(name).parameters()).abs().sum() > 0, "each load has weights of its own"


def test_the_students_of_a_file_are_ten_different_ones():
    first = [load_small_net("student-labels-144", seed)[1].weight for seed in range(10)]
    assert all(not torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])


def test_a_net_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"pupil\.safetensors"):
        load_small_net("pupil")
    with pytest.raises(IndexError):
        load_small_net("teacher", 1)


def test_the_checkpoints_are_small():
    assert sum(file.stat().st_size for file in (DATA / "digits").iterdir()) < 300_000


# ---------------------------------------------------------------- the card


def test_the_cards_figures_are_those_of_the_stored_nets():
    card = (DATA / "digits" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(teacher|student-\w+-\d+)` \| ([\d.]+) \| (\d+) \| (\d+) \|$", card, re.M)
    assert [row[0] for row in rows] == ["teacher", *STUDENTS]
    for name, mean, worst, best in rows:
        found = [right(load_small_net(name, seed)) for seed in range(1 if name == "teacher" else 10)]
        assert (float(mean), int(worst), int(best)) == (sum(found) / len(found), min(found), max(found)), name


def test_distillation_helps_every_seed_on_few_pictures_and_costs_a_little_on_all():
    found = {name: [right(load_small_net(name, seed)) for seed in range(10)] for name in STUDENTS}
    gains = [b - a for a, b in zip(found["student-labels-144"], found["student-teacher-144"], strict=True)]
    assert min(gains) > 0 and sum(gains) / 10 == pytest.approx(11.3)
    losses = [a - b for a, b in zip(found["student-labels-1437"], found["student-teacher-1437"], strict=True)]
    assert sum(losses) / 10 == pytest.approx(3.3)


# ---------------------------------------------------------------- the script
# Training in float64 hardly depends on the machine; hardly is these tolerances.


def agreement(first, second):
    """The share of held-out pictures that two nets read as the same digit."""
    _, (pictures, _) = load_digits()
    return (first(pictures).argmax(-1) == second(pictures).argmax(-1)).double().mean().item()


def test_the_script_makes_the_stored_teacher(train_digits):
    trained, stored = train_digits.train_teacher(), load_small_net("teacher")
    assert abs(right(trained) - right(stored)) <= 3
    assert agreement(trained, stored) >= 0.98


@pytest.mark.parametrize(("every", "count", "seeds"), [(10, 144, range(4)), (1, 1437, range(1))])
@pytest.mark.parametrize("taught_by", ["labels", "teacher"])
def test_the_script_makes_the_stored_students(train_digits, monkeypatch, taught_by, every, count, seeds):
    monkeypatch.setattr(train_digits, "SEEDS", seeds)
    students = train_digits.train_students(load_small_net("teacher"), every, taught_by)
    for seed, trained in zip(seeds, students, strict=True):
        stored = load_small_net(f"student-{taught_by}-{count}", seed)
        assert abs(right(trained) - right(stored)) <= 4
        assert agreement(trained, stored) >= 0.97


def test_what_the_script_saves_is_what_load_small_net_loads(train_digits, tmp_path, monkeypatch, capsys):
    nets = [small_net(64, 5, 10), small_net(64, 5, 10)]
    (tmp_path / "digits").mkdir()
    monkeypatch.setattr(train_digits, "DATA", tmp_path)
    monkeypatch.setattr("course.models.digits.DATA", tmp_path)
    train_digits.save_nets("two", nets)
    first = (tmp_path / "digits" / "two.safetensors").read_bytes()
    train_digits.save_nets("two", nets)
    assert (tmp_path / "digits" / "two.safetensors").read_bytes() == first
    for seed, net in enumerate(nets):
        for a, b in zip(net.parameters(), load_small_net("two", seed).parameters(), strict=True):
            assert torch.equal(a, b)
    assert capsys.readouterr().out.startswith("two: [")


def test_distillation_has_nothing_to_correct_in_a_student_that_answers_like_the_teacher(train_digits):
    teacher_scores = torch.tensor([[1.0, -2.0, 5.0], [0.0, 0.5, -0.5]], dtype=torch.float64)
    same = (teacher_scores + 3).requires_grad_()  # softmax does not see what is added to all the scores
    train_digits.distillation_loss(same, teacher_scores).backward()
    assert same.grad.abs().max() < 1e-12
    other = (teacher_scores * 0.5).requires_grad_()
    train_digits.distillation_loss(other, teacher_scores).backward()
    assert other.grad.abs().max() > 1e-3


# ---------------------------------------------------------------- the lesson's figures


def test_no_count_in_the_lesson_hangs_on_a_cpus_last_digit_and_pruning_goes_as_it_says():
    """The nets' sums differ by about 1e-5 between CPUs. No picture's first two scores may be that close."""
    margins = []

    def recording_accuracy(net, pictures, labels):
        if not any(p.requires_grad for p in net.parameters()):  # those trained in the lesson are not compared
            first, second = net(pictures).topk(2).values.unbind(-1)
            margins.append((first - second).min().item())
        return accuracy(net, pictures, labels)

    namespace = {}
    for number, cell in enumerate(code_cells(committed("02_overview.ipynb"))):
        if 'check("' in cell.source:
            break
        exec(compile(cell.source, f"cell {number}", "exec"), namespace)
        if number == 0:
            namespace["accuracy"] = recording_accuracy
    assert len(margins) > 100
    assert min(margins) > 1e-4
    right_at = dict(namespace["pruned_right"])
    assert min(right_at[share] for share in right_at if share <= 0.35) == 349, "a third goes almost unnoticed"
    assert right_at[0.9] == 57, "little better than guessing, 36"


def test_what_the_lesson_says_of_formats_is_so():
    fp32, bf16, fp16 = (torch.finfo(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    assert bf16.eps / fp32.eps == 2**16 and bf16.smallest_normal == fp32.smallest_normal
    assert fp16.max == 65504 and torch.finfo(torch.float8_e4m3fn).max == 448
    assert torch.tensor(70000.0).bfloat16().item() - 70000 < bf16.eps * 2**16 == 512
    assert torch.tensor(70000.0).half().isinf()
    # The gaps: the next code up is the next number.
    for dtype, codes in ((torch.float32, torch.int32), (torch.bfloat16, torch.int16), (torch.float16, torch.int16)):
        for number, power in ((1.0, 1), (900.0, 512)):
            number = torch.tensor(number).to(dtype)
            after = (number.view(codes) + 1).view(dtype)
            assert after.double() - number.double() == torch.finfo(dtype).eps * power


def test_the_lessons_distillation_loss_is_the_scripts(train_digits):
    lesson = "\n".join(cell.source for cell in code_cells(committed("02_overview.ipynb")))
    function = next(n for n in ast.parse(lesson).body if getattr(n, "name", "") == "distillation_loss")
    namespace = {"torch": torch, "cross_entropy": torch.nn.functional.cross_entropy}
    exec(ast.unparse(function), namespace)
    scores, teacher_scores = torch.linspace(-3, 3, 40).reshape(4, 10), torch.linspace(5, -4, 40).reshape(4, 10) ** 2
    ours, theirs = (
        namespace["distillation_loss"](scores, teacher_scores),
        train_digits.distillation_loss(scores, teacher_scores),
    )
    torch.testing.assert_close(ours, theirs)


# ---------------------------------------------------------------- two's complement


def test_the_byte_of_the_lesson_is_minus_127():
    assert from_twos_complement(torch.tensor([0b1000_0001], dtype=torch.uint8)).tolist() == [-127]


@given(st.integers(2, 8), st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]))
def test_every_code_of_every_width_is_what_python_reads(bits, dtype):
    codes = torch.arange(2**bits).to(dtype)
    signed = from_twos_complement(codes, bits)
    # Python: the code's bits as the top bits of a byte, the rest zeros, is the number times a power of two.
    expected = [int.from_bytes([code << (8 - bits)], signed=True) >> (8 - bits) for code in range(2**bits)]
    assert signed.dtype == torch.int8
    assert signed.tolist() == expected


def test_8_bit_codes_are_what_numpy_and_torch_read():
    codes = torch.arange(256).to(torch.uint8).reshape(4, 64)
    assert torch.equal(from_twos_complement(codes), codes.view(torch.int8))
    assert np.array_equal(from_twos_complement(codes).numpy(), codes.numpy().view(np.int8))


def test_signed_values_survive_packing():
    for bits in range(2, 9):
        values = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).to(torch.int8).repeat(3, 1)
        count = values.shape[-1]
        assert torch.equal(from_twos_complement(unpack(pack(values, bits), bits, count), bits), values)


def test_no_codes_are_no_numbers_and_codes_are_left_alone():
    assert from_twos_complement(torch.empty(0, 3, dtype=torch.uint8), 4).shape == (0, 3)
    codes = torch.tensor([9, 15], dtype=torch.int16)
    from_twos_complement(codes, 4)
    assert codes.tolist() == [9, 15]


# ---------------------------------------------------------------- the fields of a float

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.1, 3.14159, math.inf, -math.inf, 2.0**-126, 2.0**-127, 2.0**-149, -(2.0**-149)]
LARGEST = torch.finfo(torch.float32).max


def fields_of_struct(pattern):
    """Sign, exponent and fraction of a 32-bit pattern, by slicing its text."""
    text = f"{pattern:032b}"
    return int(text[0], 2), int(text[1:9], 2), int(text[9:], 2)


def test_special_floats_have_the_fields_that_struct_finds():
    for number in (*SPECIAL, LARGEST, -LARGEST, math.nan):
        (pattern,) = struct.unpack("<I", struct.pack("<f", number))
        fields = float_fields(torch.tensor([number]))
        assert all(field.dtype == torch.int32 for field in fields)
        assert tuple(field.item() for field in fields) == fields_of_struct(pattern), number


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_every_pattern_has_the_fields_that_its_text_shows(patterns):
    array = np.array(patterns, dtype=np.uint32)
    fields = float_fields(torch.from_numpy(array.view(np.float32).copy()))
    assert list(zip(*(field.tolist() for field in fields), strict=True)) == [fields_of_struct(p) for p in patterns]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_the_formula_gives_the_number_back(numbers):
    numbers = torch.tensor(numbers, dtype=torch.float32)
    sign, exponent, fraction = (field.double() for field in float_fields(numbers))
    hidden, power = (exponent > 0).double(), exponent.clamp(min=1) - 127
    assert torch.equal((-1) ** sign * 2**power * (hidden + fraction / 2**23), numbers.double())


def test_fields_have_the_shape_of_the_tensor_and_leave_it_alone():
    numbers = torch.tensor([[-6.5, 0.15625]])
    sign, exponent, fraction = float_fields(numbers)
    assert (sign.tolist(), exponent.tolist(), fraction.tolist()) == ([[1, 0]], [[129, 124]], [[5242880, 2097152]])
    assert numbers.tolist() == [[-6.5, 0.15625]]
    assert [field.shape for field in float_fields(torch.empty(0, 3))] == [(0, 3)] * 3


# ---------------------------------------------------------------- bits as text


FIELDS = {
    torch.float64: (1, 11, 52),
    torch.float32: (1, 8, 23),
    torch.bfloat16: (1, 8, 7),
    torch.float16: (1, 5, 10),
    torch.float8_e4m3fn: (1, 4, 3),
    torch.float8_e5m2: (1, 5, 2),
    torch.int8: (1, 0, 7),
    torch.uint8: (0, 0, 8),
    torch.int32: (1, 0, 31),
}


def test_each_dtype_has_the_fields_of_its_standard():
    assert {dtype: field_widths(dtype) for dtype in FIELDS} == FIELDS


@examples(0.0, -0.0, 1.0, -6.5, 0.1, 65504.0, math.inf, 2.0**-24)
@given(st.floats(width=16, allow_nan=False))
def test_a_bit_string_is_what_struct_packs(number):
    for dtype, code in ((torch.float64, ">d"), (torch.float32, ">f"), (torch.float16, ">e")):
        packed = struct.pack(code, number)
        assert bit_string(torch.tensor(number, dtype=dtype)) == "".join(f"{octet:08b}" for octet in packed)


def test_bit_strings_of_the_short_formats():
    assert bit_string(torch.tensor(1.0).bfloat16()) == "0" + "01111111" + "0000000"
    assert bit_string(torch.tensor(448.0).to(torch.float8_e4m3fn)) == "0" + "1111" + "110"
    assert bit_string(torch.tensor(-3.0).to(torch.float8_e5m2)) == "1" + "10000" + "10"
    assert [bit_string(torch.tensor(n, dtype=torch.int8)) for n in (-127, -1, 5)] == [
        "10000001",
        "11111111",
        "00000101",
    ]
    assert bit_string(torch.tensor(177, dtype=torch.uint8)) == "10110001"


# ---------------------------------------------------------------- pictures


def words_in(picture):
    picture.figure.canvas.draw()
    return [text.get_text() for text in picture.figure.axes[0].texts]


def test_the_picture_of_bits_says_what_each_field_says():
    picture = figures.number_bits([torch.tensor(-6.5)], "A number")
    assert picture.caption == (
        "Bits as they are stored (sign, exponent and fraction). float32 -6.5 is 1 10000001 10100000000000000000000."
    )
    words = words_in(picture)
    assert words[0] == "float32  -6.5"
    assert "".join(words[1:33]) == bit_string(torch.tensor(-6.5))
    assert words[33:] == ["−", "$2^{129-127}$", "1.625"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (torch.tensor(0.0), ["+", "$2^{1-127}$", "0"]),
        (torch.tensor(2.0**-127), ["+", "$2^{1-127}$", "0.5"]),
        (torch.tensor(-torch.inf), ["-inf"]),
        (torch.tensor(torch.nan), ["nan"]),
        (torch.tensor(448.0).to(torch.float8_e4m3fn), ["+", "$2^{15-7}$", "1.75"]),
        (torch.tensor(5, dtype=torch.uint8), ["128", "64", "32", "16", "8", "4", "2", "1"]),
        (torch.tensor(5, dtype=torch.int8), ["−128", "64", "32", "16", "8", "4", "2", "1"]),
        (torch.tensor(5, dtype=torch.int32), []),
    ],
    ids=str,
)
def test_the_words_under_the_bits_hold_at_the_edges_too(number, words):
    assert words_in(figures.number_bits([number]))[1 + len(bit_string(number)) :] == words


def test_the_picture_of_digits_counts_and_names_wrong_answers():
    pictures = torch.rand(10, 8, 8)
    labels = torch.arange(10)
    answers = labels.clone()
    answers[3] = 8
    assert figures.digit_pictures(pictures, labels, answers).caption == (
        "10 pictures of 8 x 8 pixels, 9 read right. Read wrong: picture 3, which is 3, as 8."
    )
    assert (
        figures.digit_pictures(pictures[:1], labels[:1], labels[:1]).caption
        == "1 picture of 8 x 8 pixels, 1 read right."
    )


# ---------------------------------------------------------------- exercise 02.1


def test_a_limit_that_is_wrong_in_its_last_digit_is_wrong():
    exercise = find_exercise("02.1")
    assert judge(exercise, exercise.answer).outcome == CORRECT
    for row in range(3):
        for end in range(2):
            limits = [list(pair) for pair in exercise.answer]
            limits[row][end] += 1
            assert judge(exercise, limits).outcome == INCORRECT
