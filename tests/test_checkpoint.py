"""What is saved comes back to the bit; a save is whole or not at all; a bad file gives one error that names it."""

import json
import os
import pickle

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlib import QTensor, Scheme, load_tensors, quantize_tensor, save_tensors
from qlib.report import file_bytes, quantized_bytes
from tests.strategies import schemes, tensors

WEIGHT = torch.linspace(-1, 2, 60).reshape(6, 10)
SQUARE = torch.linspace(-1, 2, 36).reshape(6, 6)
QTENSOR = quantize_tensor(WEIGHT, Scheme(4, symmetric=False, group_size=4))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path):
    save_tensors({"w": QTENSOR, "bias": torch.arange(6.0)}, path)
    return path


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, QTensor):
        assert (found.scheme, found.shape) == (expected.scheme, expected.shape)
        assert_same(found.zero_point, expected.zero_point)
        for part in ("packed", "scale"):
            assert_same(getattr(found, part), getattr(expected, part))
        assert torch.equal(found.dequantize(), expected.dequantize())
    else:
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.contiguous().view(-1).view(torch.uint8).tolist() == bytes_of(expected)


def bytes_of(tensor):
    return tensor.detach().contiguous().view(-1).view(torch.uint8).tolist()


def assert_round_trip(tensors, path):
    save_tensors(tensors, path)
    found = load_tensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_same(found[name], tensor)
    return found


# ---------------------------------------------------------------- there and back


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(tensors(min_side=0), schemes()), max_size=3))
def test_qtensors_of_every_scheme_and_shape_come_back_to_the_bit(path, drawn):
    assert_round_trip({f"layer.{i}": quantize_tensor(tensor, scheme) for i, (tensor, scheme) in enumerate(drawn)}, path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([[1.0, -0.0], [float("nan"), float("inf")]]),
        torch.tensor([1.1, 2.2, 3.3], dtype=torch.bfloat16),
        torch.tensor([1.1, 6e-8], dtype=torch.float16),
        torch.tensor([1.1], dtype=torch.float64),
        torch.tensor([-128, 127], dtype=torch.int8),
        torch.tensor([0, 255], dtype=torch.uint8),
        torch.tensor([2**62, -1]),
        torch.tensor([True, False]),
        torch.tensor(1.5),
        torch.empty(0),
        torch.empty(3, 0, 2),
        WEIGHT.T,
        WEIGHT[:, 2:5],
        WEIGHT[::2],
        WEIGHT[:1].expand(4, 10),
        torch.nn.Parameter(torch.ones(2, 3)),
    ],
    ids=lambda t: f"{t.dtype}-{tuple(t.shape)}-{t.stride()}".replace("torch.", ""),
)
def test_plain_tensors_of_any_kind_come_back_to_the_bit(path, tensor):
    save_tensors({"t": tensor}, path)
    assert_same(load_tensors(path)["t"], tensor.detach())


def test_nothing_at_all_comes_back_as_nothing(path):
    assert_round_trip({}, path)


def test_the_folder_is_made_and_a_path_may_be_text(tmp_path):
    save_tensors({"w": WEIGHT}, str(tmp_path / "a" / "b" / "w.safetensors"))
    assert torch.equal(load_tensors(str(tmp_path / "a" / "b" / "w.safetensors"))["w"], WEIGHT)


def test_the_file_is_a_safetensors_file_that_others_can_read(saved):
    parts = safetensors.torch.load_file(saved)
    assert parts.keys() == {"w.packed", "w.scale", "w.zero_point", "bias"}
    assert torch.equal(parts["w.packed"], QTENSOR.packed)


# ---------------------------------------------------------------- ties and views


def test_tied_tensors_come_back_tied_and_are_stored_once(path):
    big = torch.linspace(-1, 1, 10_000)
    found = assert_round_trip({"embedding": big, "head": big, "other": big.clone()}, path)
    assert found["embedding"].data_ptr() == found["head"].data_ptr() != found["other"].data_ptr()
    assert 80_000 < file_bytes(path) < 81_000


def test_a_tied_parameter_and_its_data_are_one_tensor(path):
    model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(50, 8), "head": torch.nn.Linear(8, 50, bias=False)})
    model["head"].weight = model["embedding"].weight
    found = assert_round_trip(model.state_dict(), path)
    assert found["head.weight"].data_ptr() == found["embedding.weight"].data_ptr()


def test_a_quantized_tensor_with_two_names_comes_back_tied_and_is_stored_once(path):
    found = assert_round_trip({"embedding": QTENSOR, "head": QTENSOR}, path)
    assert found["embedding"].packed.data_ptr() == found["head"].packed.data_ptr()
    assert quantized_bytes(found) == QTENSOR.nbytes


@pytest.mark.parametrize(
    "view",
    [SQUARE.T, SQUARE.view(-1), SQUARE[:2], SQUARE[1:3], SQUARE.view(torch.int32), SQUARE[0, 0]],
    ids=["turned", "flat", "first rows", "rows", "as integers", "a number"],
)
def test_another_view_of_the_same_memory_is_stored_on_its_own(path, view):
    assert_round_trip({"whole": SQUARE, "view": view, "again": view}, path)
    assert_round_trip({"view": view, "whole": SQUARE}, path)


def test_empty_tensors_of_different_kinds_are_not_taken_for_one(path):
    assert_round_trip({"a": torch.empty(0, 4), "b": torch.empty(0, 4, dtype=torch.int8), "c": torch.empty(0, 4)}, path)


@pytest.mark.parametrize("names", [("w", "w.packed"), ("w.scale", "w"), ("w", "w.zero_point")], ids=str)
def test_names_that_would_collide_in_the_file_are_refused_and_nothing_is_written(path, names):
    tensors = {name: QTENSOR if name == "w" else WEIGHT for name in names}
    collision = max(names, key=len)
    with pytest.raises(ValueError, match=f"two tensors would be stored as '{collision}'"):
        save_tensors(tensors, path)
    assert not path.exists()


def test_a_plain_tensor_named_like_a_part_that_is_not_stored_comes_back(path):
    assert_round_trip({"w": quantize_tensor(WEIGHT, Scheme()), "w.zero_point": WEIGHT, "w.packed.packed": WEIGHT}, path)


def test_a_qtensor_may_be_named_like_a_part_of_another(path):
    assert_round_trip({"w": QTENSOR, "w.w": quantize_tensor(WEIGHT, Scheme(2))}, path)


# ---------------------------------------------------------------- whole or not at all


def write_half_and(error):
    def save_file(tensors, filename, metadata=None):
        with open(filename, "wb") as file:
            file.write(b"half a file")
        raise error

    return save_file


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_an_interrupted_save_leaves_the_old_file_whole_and_nothing_else(saved, monkeypatch, error):
    before = saved.read_bytes()
    monkeypatch.setattr(safetensors.torch, "save_file", write_half_and(error))
    with pytest.raises(type(error)):
        save_tensors({"w": torch.zeros(1000)}, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_an_interrupted_first_save_leaves_nothing(path, monkeypatch):
    monkeypatch.setattr(safetensors.torch, "save_file", write_half_and(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_tensors({"w": WEIGHT}, path)
    assert list(path.parent.iterdir()) == []


def test_a_rename_that_fails_leaves_the_old_file_whole_and_nothing_else(saved, monkeypatch):
    def refuse(source, target):
        raise PermissionError(target)

    before = saved.read_bytes()
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        save_tensors({"w": WEIGHT}, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_save_over_a_file_that_is_loaded_leaves_what_was_loaded_alone(saved):
    loaded = load_tensors(saved)
    save_tensors({"w": torch.zeros(100_000)}, saved)
    assert_same(loaded["w"], QTENSOR)
    assert loaded["bias"].tolist() == [0, 1, 2, 3, 4, 5]


def test_what_was_loaded_can_be_changed_and_saved_over_its_own_file(saved):
    loaded = load_tensors(saved)
    loaded["bias"] += 1
    assert_round_trip(loaded, saved)


# ---------------------------------------------------------------- bad files


def spoil(path, without=(), parts=(), header=(), drop_header=()):
    """Write a file of save_tensors anew with some of its parts or of its header left out or replaced."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    stored = {name: tensor for name, tensor in (stored | dict(parts)).items() if name not in without}
    metadata = {name: text for name, text in (metadata | dict(header)).items() if name not in drop_header}
    safetensors.torch.save_file(stored, path, metadata=metadata)


def error_of(path):
    with pytest.raises(ValueError) as raised:
        load_tensors(path)
    assert path.name in str(raised.value), "the message names the file"
    return str(raised.value)


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_tensors(path)
    with pytest.raises(FileNotFoundError):
        load_tensors(path.parent)


def test_a_file_cut_off_anywhere_is_refused_by_name(saved):
    whole = saved.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        assert "is not a whole safetensors file" in error_of(saved)


def test_a_file_with_more_at_its_end_is_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    assert "is not a whole safetensors file" in error_of(saved)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_a_pickle_is_refused_unopened(path):
    path.write_bytes(pickle.dumps(Bomb()))
    assert "is not a whole safetensors file" in error_of(path)
    torch.save({"w": WEIGHT}, path)
    assert "is not a whole safetensors file" in error_of(path)


def test_a_safetensors_file_of_others_is_refused(path):
    safetensors.torch.save_file({"w": WEIGHT}, path)
    assert "was not written by qlib" in error_of(path)
    safetensors.torch.save_file({"w": WEIGHT}, path, metadata={"format": "pt"})
    assert "was not written by qlib" in error_of(path)


@pytest.mark.parametrize("part", ["w.packed", "w.scale", "w.zero_point"])
def test_a_missing_part_is_named(saved, part):
    spoil(saved, without=[part])
    assert f"lacks '{part}'" in error_of(saved)


def test_a_missing_partner_of_a_tie_is_named(path):
    save_tensors({"embedding": WEIGHT, "head": WEIGHT}, path)
    spoil(path, without=["embedding"])
    assert "lacks 'embedding'" in error_of(path)


@pytest.mark.parametrize("entry", ["shapes", "ties"])
def test_a_missing_entry_of_the_header_is_named(saved, entry):
    spoil(saved, drop_header=[entry])
    assert f"lacks '{entry}'" in error_of(saved)


def test_a_missing_shape_is_named(saved):
    spoil(saved, header={"shapes": json.dumps({})})
    assert "lacks 'w'" in error_of(saved)


@pytest.mark.parametrize(
    "shape",
    [[6, 12], [6, 8], [5, 10], [10, 6], [60], [2, 3, 10], [], [6, -10], [10**30, 10], [6.5, 10], "6x10", None, [[6]]],
    ids=str,
)
def test_a_shape_that_does_not_match_the_packed_bytes_is_refused_by_name(saved, shape):
    spoil(saved, header={"shapes": json.dumps({"w": shape})})
    assert ": w: " in error_of(saved)


@pytest.mark.parametrize(
    "parts",
    [
        {"w.packed": torch.zeros(6, 4, dtype=torch.uint8)},
        {"w.packed": torch.zeros(6, 5, dtype=torch.int8)},
        {"w.scale": torch.ones(6, 2)},
        {"w.scale": torch.ones(6, 3, dtype=torch.int32)},
        {"w.zero_point": torch.zeros(3, dtype=torch.int8)},
    ],
    ids=str,
)
def test_parts_of_another_shape_or_dtype_are_refused_by_name(saved, parts):
    spoil(saved, parts=parts)
    message = error_of(saved)
    assert ": w: " in message and next(iter(parts)).removeprefix("w.") in message


@pytest.mark.parametrize(
    "scheme",
    [
        {"bits": 2, "symmetric": False, "axis": 0, "group_size": 4},
        {"bits": 16, "symmetric": False, "axis": 0, "group_size": 4},
        {"bits": 4, "symmetric": False, "axis": 0, "group_size": 64},
        {"bits": 4, "method": "magic"},
        "int4",
        None,
    ],
    ids=str,
)
def test_a_scheme_that_does_not_fit_or_makes_no_sense_is_refused_by_name(saved, scheme):
    spoil(saved, header={"schemes": json.dumps({"w": scheme})})
    assert ": w: " in error_of(saved)


@pytest.mark.parametrize("text", ["not json", "", "[]", "3", '"w"'], ids=repr)
@pytest.mark.parametrize("entry", ["schemes", "ties"])
def test_a_header_of_nonsense_is_refused(saved, entry, text):
    spoil(saved, header={entry: text})
    assert "header" in error_of(saved)


def test_a_byte_changed_anywhere_in_the_header_gives_tensors_or_a_value_error(saved):
    whole = saved.read_bytes()
    refused = 0
    for place in range(8 + int.from_bytes(whole[:8], "little")):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            load_tensors(saved)
        except ValueError as error:
            assert saved.name in str(error)
            refused += 1
    assert refused > 100
