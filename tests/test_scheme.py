"""A Scheme says how a tensor is quantized, and refuses what makes no sense."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlib import INT2, INT4, INT8, Scheme
from tests.strategies import examples


def test_the_defaults_are_8_bits_symmetric_and_one_scale_a_row():
    assert Scheme() == Scheme(8, True, 0, None) == INT8


def test_2_to_8_bits_are_taken():
    assert [Scheme(bits=bits).bits for bits in range(2, 9)] == list(range(2, 9))


def test_whole_numbers_of_numpy_are_taken_and_kept_as_ints():
    scheme = Scheme(bits=np.int64(4), axis=np.uint8(0), group_size=np.int32(32))
    assert repr(scheme) == repr(Scheme(bits=4, group_size=32)) and json.dumps(scheme.settings())


# What is not quite a whole number, though some of it compares equal to one.
ODD = st.floats() | st.sampled_from(["8", "", None, True, False]) | st.builds(np.float64, st.integers(0, 9))


@examples(1, 9, 8.0, "8", None, True, np.True_, torch.tensor(8))
@given(ODD | st.integers(max_value=1) | st.integers(min_value=9))
def test_any_other_bits_are_refused_by_name(bits):
    with pytest.raises(ValueError, match=r"^bits must be a whole number from 2 to 8, not ") as raised:
        Scheme(bits=bits)
    assert str(raised.value).endswith(repr(bits))


@examples(0, 1, None, torch.tensor(True))
@given(st.integers() | st.floats() | st.sampled_from(["yes", "True", ""]))
def test_a_mode_that_is_neither_true_nor_false_is_refused(symmetric):
    with pytest.raises(TypeError, match=r"^symmetric must be True or False, not "):
        Scheme(symmetric=symmetric)


@examples(-1, 2, "0", 1.0, True, False, [0], torch.tensor(0), torch.tensor([0, 1]))
@given(ODD.filter(lambda axis: axis is not None) | st.integers(max_value=-1) | st.integers(min_value=2))
def test_an_axis_other_than_none_0_and_1_is_refused(axis):
    with pytest.raises(ValueError, match=r"^axis must be None .* not ") as raised:
        Scheme(axis=axis)
    assert str(raised.value).endswith(repr(axis))


@examples(0, -1, 1.5, 32.0, "32", True)
@given(ODD.filter(lambda group_size: group_size is not None) | st.integers(max_value=0))
def test_a_group_size_below_1_or_not_whole_is_refused(group_size):
    with pytest.raises(ValueError, match=r"^group_size must be a whole number of at least 1, or None, not "):
        Scheme(group_size=group_size)


def test_groups_run_along_rows_only():
    for axis in (None, 1):
        with pytest.raises(ValueError, match="group_size needs axis=0, not axis="):
            Scheme(axis=axis, group_size=4)


def test_a_scheme_cannot_be_changed_and_can_be_a_key():
    with pytest.raises(dataclasses.FrozenInstanceError):
        INT8.bits = 4
    assert {Scheme(bits=4): "four"}[Scheme(bits=4)] == "four"


def test_a_scheme_says_what_it_does():
    for scheme, words in (
        (Scheme(axis=None), "8-bit symmetric, per tensor"),
        (Scheme(bits=3, symmetric=False), "3-bit asymmetric, per row"),
        (Scheme(axis=1), "8-bit symmetric, per column"),
        (Scheme(bits=4, group_size=64), "4-bit symmetric, per group of 64"),
    ):
        assert str(scheme) == words
        assert scheme.granularity == words.split(", ")[1]


def test_the_presets_have_the_bits_they_are_named_after():
    assert [preset.bits for preset in (INT8, INT4, INT2)] == [8, 4, 2]
    assert (INT4.group_size, INT2.group_size) == (64, 32)
    assert not INT4.symmetric and not INT2.symmetric
