"""A Scheme says how a tensor is quantized, and refuses what makes no sense."""

import dataclasses

import numpy as np
import pytest
import torch

from qlib import INT2, INT4, INT8, Scheme


def test_the_defaults_are_8_bits_symmetric_and_one_scale_a_row():
    assert Scheme() == Scheme(8, True, 0, None) == INT8


@pytest.mark.parametrize("bits", range(2, 9))
def test_2_to_8_bits_are_taken(bits):
    assert Scheme(bits=bits).bits == bits


@pytest.mark.parametrize("bits", [1, 0, -4, 9, 16, 8.0, "8", None, True, np.int64(8)], ids=repr)
def test_any_other_bits_are_refused_by_name(bits):
    with pytest.raises(ValueError, match=r"^bits must be a whole number from 2 to 8, not ") as raised:
        Scheme(bits=bits)
    assert str(raised.value).endswith(repr(bits))


@pytest.mark.parametrize("symmetric", [0, 1, None, "yes", torch.tensor(True)], ids=repr)
def test_a_mode_that_is_neither_true_nor_false_is_refused(symmetric):
    with pytest.raises(TypeError, match=r"^symmetric must be True or False, not "):
        Scheme(symmetric=symmetric)


@pytest.mark.parametrize("axis", [-1, 2, "0", 1.0, True, False, [0], np.int64(1), torch.tensor([0, 1])], ids=repr)
def test_an_axis_other_than_none_0_and_1_is_refused(axis):
    with pytest.raises(ValueError, match=r"^axis must be None .* not ") as raised:
        Scheme(axis=axis)
    assert str(raised.value).endswith(repr(axis))


@pytest.mark.parametrize("group_size", [0, -1, 1.5, 32.0, "32", True], ids=repr)
def test_a_group_size_below_1_or_not_whole_is_refused(group_size):
    with pytest.raises(ValueError, match=r"^group_size must be a whole number of at least 1, or None, not "):
        Scheme(group_size=group_size)


@pytest.mark.parametrize("axis", [None, 1])
def test_groups_run_along_rows_only(axis):
    with pytest.raises(ValueError, match="group_size needs axis=0, not axis="):
        Scheme(axis=axis, group_size=4)


def test_a_scheme_cannot_be_changed_and_can_be_a_key():
    with pytest.raises(dataclasses.FrozenInstanceError):
        INT8.bits = 4
    assert {Scheme(bits=4): "four"}[Scheme(bits=4)] == "four"


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (Scheme(axis=None), "8-bit symmetric, per tensor"),
        (Scheme(bits=3, symmetric=False), "3-bit asymmetric, per row"),
        (Scheme(axis=1), "8-bit symmetric, per column"),
        (Scheme(bits=4, group_size=64), "4-bit symmetric, per group of 64"),
    ],
)
def test_a_scheme_says_what_it_does(scheme, words):
    assert str(scheme) == words
    assert scheme.granularity == words.split(", ")[1]


def test_the_presets_have_the_bits_they_are_named_after():
    assert [preset.bits for preset in (INT8, INT4, INT2)] == [8, 4, 2]
    assert (INT4.group_size, INT2.group_size) == (64, 32)
    assert not INT4.symmetric and not INT2.symmetric
