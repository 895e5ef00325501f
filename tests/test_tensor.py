"""A QTensor is packed integers, scales and zero points: right in size, in value, and in what it refuses."""

import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qlib.kernels.quantize
from qlib import FP8, MXFP4, NF4, NVFP4, QTensor, Scheme, choose_qparams, pack, quant_range, quantize, quantize_tensor
from qlib.affine import expand_groups
from tests.strategies import GRANULARITIES, at_each, schemes, tensors

EACH_GRANULARITY = pytest.mark.parametrize("options", GRANULARITIES.values(), ids=GRANULARITIES)
EACH_MODE = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
LARGEST_FLOAT = torch.finfo(torch.float32).max


def bytes_held(qtensor):
    """Bytes of the storages behind a QTensor's parts: the memory it keeps, whatever the parts show of it."""
    parts = [qtensor.packed, qtensor.scale] + ([] if qtensor.scheme.symmetric else [qtensor.zero_point])
    return sum(part.untyped_storage().nbytes() for part in parts)


# ---------------------------------------------------------------- values and sizes


@given(tensors(), schemes())
def test_dequantizing_some_rows_at_a_time_gives_the_same(tensor, scheme):
    qtensor = quantize_tensor(tensor, scheme)
    at_once = qtensor.dequantize()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qlib.kernels.quantize, "BLOCK_SIZE", 2 * max(1, tensor.shape[1:].numel()))
        assert torch.equal(qtensor.dequantize(), at_once)


@given(tensors(), schemes())
def test_the_values_are_those_of_quantize_and_lie_in_the_range(tensor, scheme):
    qtensor = quantize_tensor(tensor, scheme)
    scale, zero_point = (at_each(q, tensor, scheme).float() for q in choose_qparams(tensor, scheme))
    assert qtensor.values.dtype == torch.int8
    assert torch.equal(qtensor.values, quantize(tensor, scale, zero_point, scheme.bits))
    qmin, qmax = quant_range(scheme.bits)
    assert qmin <= qtensor.values.min() and qtensor.values.max() <= qmax


@given(tensors(min_side=0), schemes())
def test_shape_and_dtype_come_back_whatever_goes_in(tensor, scheme):
    qtensor = quantize_tensor(tensor, scheme)
    came_back = qtensor.dequantize()
    assert qtensor.shape == qtensor.values.shape == came_back.shape == tensor.shape
    assert came_back.dtype == torch.float32
    assert torch.isfinite(came_back).all() and torch.isfinite(qtensor.scale).all()


@given(tensors(min_side=0), schemes())
def test_the_packed_size_is_exactly_what_the_bits_need(tensor, scheme):
    qtensor = quantize_tensor(tensor, scheme)
    rows = tensor.shape[:-1].numel()
    assert qtensor.packed.dtype == torch.uint8
    assert qtensor.packed.numel() == -(-scheme.bits * tensor.shape[-1] // 8) * rows


@given(tensors(min_side=0), schemes())
def test_nbytes_is_the_memory_that_is_kept(tensor, scheme):
    qtensor = quantize_tensor(tensor, scheme)
    assert qtensor.nbytes == bytes_held(qtensor)


@pytest.mark.parametrize(
    ("scheme", "nbytes", "bits_per_weight"),
    [
        (Scheme(8, axis=None), 4 * 64 + 4, 8.125),
        (Scheme(4), 4 * 32 + 4 * 4, 4.5),
        (Scheme(4, group_size=32), 4 * 32 + 4 * 2 * 4, 5.0),
        (Scheme(2, symmetric=False, group_size=32), 4 * 16 + 4 * 2 * (4 + 1), 3.25),
        (Scheme(3, axis=1), 4 * 24 + 64 * 4, 11.0),
    ],
    ids=str,
)
def test_the_bytes_of_a_4_by_64_matrix(scheme, nbytes, bits_per_weight):
    qtensor = quantize_tensor(torch.linspace(-1, 1, 256).reshape(4, 64), scheme)
    assert (qtensor.nbytes, qtensor.bits_per_weight) == (nbytes, bits_per_weight)


def test_an_empty_tensor_has_bits_per_weight_without_a_division_by_zero():
    assert quantize_tensor(torch.empty(0, 4), Scheme()).bits_per_weight >= 0


def test_integers_are_counted_up_from_the_smallest_before_they_are_packed():
    qtensor = QTensor(torch.tensor([[-1, -2, 1, 0]], dtype=torch.int8), torch.ones(1, 1), torch.tensor(0), Scheme(2))
    assert qtensor.packed.tolist() == [[177]] == pack([[1, 0, 3, 2]], 2).tolist()
    assert qtensor.values.tolist() == [[-1, -2, 1, 0]]


def test_a_qtensor_says_what_it_is():
    assert repr(quantize_tensor(torch.ones(2, 3), Scheme(4))) == "QTensor((2, 3), 4-bit symmetric, per row, 12 bytes)"


@EACH_GRANULARITY
@EACH_MODE
def test_input_that_is_not_contiguous_gives_the_same_as_its_copy(options, symmetric):
    matrix = torch.linspace(-3, 5, 70).reshape(10, 7)
    scheme = Scheme(3, symmetric, **options)
    for view in (matrix.T, matrix[::2], matrix[:, 1:6]):
        seen, copied = quantize_tensor(view, scheme), quantize_tensor(view.contiguous(), scheme)
        assert torch.equal(seen.packed, copied.packed)
        assert torch.equal(seen.dequantize(), copied.dequantize())


@EACH_GRANULARITY
def test_bfloat16_float16_and_float64_give_what_their_values_in_float32_give(options):
    weight = torch.linspace(-1, 1, 35).reshape(5, 7) ** 3
    scheme = Scheme(4, False, **options)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn):
        low = weight.to(dtype)
        narrow, wide = quantize_tensor(low, scheme), quantize_tensor(low.float(), scheme)
        assert torch.equal(narrow.packed, wide.packed)
        assert torch.equal(narrow.scale, wide.scale) and narrow.scale.dtype == torch.float32


@EACH_MODE
def test_a_quantized_parameter_does_not_keep_the_weight_alive(symmetric):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
    qtensor = quantize_tensor(weight, Scheme(symmetric=symmetric))
    assert not qtensor.scale.requires_grad and not qtensor.dequantize().requires_grad
    gone = weakref.ref(weight)
    del weight
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------- what is refused


@EACH_GRANULARITY
@EACH_MODE
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_nan_and_infinity_are_refused_by_name_and_first_index(options, symmetric, bad, dtype):
    weight = torch.ones(3, 4, dtype=dtype)
    weight[1, 2] = bad
    weight[2, 0] = float("nan")
    with pytest.raises(ValueError, match=rf"layers\.3\.weight .*\[1, 2\] is {bad}"):
        quantize_tensor(weight, Scheme(4, symmetric, **options), name="layers.3.weight")


def test_a_bad_number_without_dimensions_is_refused_too():
    with pytest.raises(ValueError, match=r"tensor .*\[\] is nan"):
        quantize_tensor(torch.tensor(float("nan")), Scheme())


@given(
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.floats(1e37, LARGEST_FLOAT) | st.sampled_from([1e39, 1e300, LARGEST_FLOAT]),
    schemes(),
)
def test_huge_values_give_finite_numbers_or_one_clear_error(dtype, huge, scheme):
    tensor = torch.tensor([[-huge, huge, 0.0, huge / 3]], dtype=torch.float64).to(dtype)
    try:
        qtensor = quantize_tensor(tensor, scheme, name="w")
    except ValueError as error:
        assert str(error).startswith("w cannot be quantized: the value at [0, 0] is -")
        assert tensor.abs().max() > LARGEST_FLOAT / 2
    else:
        assert torch.isfinite(qtensor.scale).all()
        assert torch.isfinite(qtensor.dequantize()).all()
        error = (qtensor.dequantize().double() - tensor.double()).abs()
        assert (error <= 0.5001 * at_each(qtensor.scale, tensor, scheme)).all()


def test_a_range_too_wide_for_float32_is_refused():
    with pytest.raises(ValueError, match=r"\[0\] is -3\.0.*e\+38; values must be finite and no larger than 1\.7e\+38"):
        quantize_tensor(torch.tensor([-3e38, 3e38]), Scheme(symmetric=False, axis=None))


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2, 2, dtype=torch.int8), "a torch.int8 tensor"),
        (torch.ones(2, dtype=torch.bool), "a torch.bool tensor"),
        (torch.ones(2, dtype=torch.complex64), "a torch.complex64 tensor"),
        ([1.0, 2.0], "a list"),
        (None, "a NoneType"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_no_tensor_of_real_numbers_is_refused(tensor, kind):
    with pytest.raises(TypeError, match=f"w must be a tensor of floating-point numbers, not {kind}"):
        quantize_tensor(tensor, Scheme(), name="w")


def test_what_is_no_scheme_is_refused():
    with pytest.raises(TypeError, match=r"scheme must be a qlib\.Scheme.* not 8"):
        quantize_tensor(torch.ones(2, 2), 8)


# ---------------------------------------------------------------- from packed parts


def parts_of(qtensor):
    return {
        "packed": qtensor.packed,
        "scale": qtensor.scale,
        "zero_point": qtensor.zero_point,
        "scheme": qtensor.scheme,
        "shape": qtensor.shape,
    }


@given(tensors(min_side=0), schemes())
def test_packed_parts_make_the_same_qtensor_again(tensor, scheme):
    qtensor = quantize_tensor(tensor, scheme)
    again = QTensor.from_packed(**parts_of(qtensor) | {"shape": list(tensor.shape)})
    assert torch.equal(again.values, qtensor.values)
    assert torch.equal(again.dequantize(), qtensor.dequantize())
    assert again.shape == tensor.shape


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shape": (4, 13)}, "packed is torch.uint8 of shape (4, 5); (4, 13) at 4 bits needs torch.uint8 of (4, 7)"),
        ({"shape": (5, 10)}, "packed is torch.uint8 of shape (4, 5); (5, 10) at 4 bits needs torch.uint8 of (5, 5)"),
        ({"shape": (40,)}, "packed is torch.uint8 of shape (4, 5); (40,) at 4 bits needs torch.uint8 of (20,)"),
        ({"packed": torch.zeros(4, 5, dtype=torch.int32)}, "packed is torch.int32"),
        ({"scale": torch.ones(4)}, "scale is of shape (4,); (4, 10), 4-bit asymmetric, per group of 4, needs (4, 3)"),
        ({"scale": torch.ones(4, 3, dtype=torch.int64)}, "scale is torch.int64, not a floating-point tensor"),
        ({"zero_point": torch.zeros(4, 2)}, "zero_point is of shape (4, 2)"),
        ({"scheme": Scheme(2, False, 0, 4)}, "packed is torch.uint8 of shape (4, 5); (4, 10) at 2 bits needs"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_parts_that_do_not_fit_together_are_refused(wrong, message):
    qtensor = quantize_tensor(torch.linspace(-1, 1, 40).reshape(4, 10), Scheme(4, False, group_size=4))
    with pytest.raises(ValueError) as raised:
        QTensor.from_packed(**parts_of(qtensor) | wrong)
    assert message in str(raised.value)


# ---------------------------------------------------------------- large tensors, a few rows at a time


@given(tensors(min_dims=2, min_side=0), schemes(), st.sampled_from([1, 5, 20]))
def test_blocks_of_rows_give_to_the_bit_what_the_whole_gives(tensor, scheme, block_size):
    scale, zero_point = choose_qparams(tensor, scheme)
    columns = (expand_groups(qparam, tensor, scheme.group_size) for qparam in (scale, zero_point))
    codes = quantize(tensor, *columns, scheme.bits).to(torch.int16) - quant_range(scheme.bits)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qlib.kernels.quantize, "BLOCK_SIZE", block_size)
        qtensor = quantize_tensor(tensor, scheme)
    assert torch.equal(qtensor.packed, pack(codes, scheme.bits))
    assert torch.equal(qtensor.scale, scale) and torch.equal(qtensor.zero_point, zero_point)
    assert qtensor.nbytes == bytes_held(qtensor)


@pytest.mark.parametrize("bits", range(2, 9))
@EACH_MODE
def test_every_code_of_every_width_is_packed_in_floats_as_in_integers(bits, symmetric):
    scheme = Scheme(bits, symmetric, group_size=8)
    weight = torch.linspace(-3, 5, 6 * 64).sin().reshape(6, 64)
    qtensor = quantize_tensor(weight, scheme)
    codes = qtensor.values.to(torch.int16) - quant_range(bits)[0]
    assert torch.equal(qtensor.packed, pack(codes, bits))
    scale, zero_point = (expand_groups(q, weight, 8) for q in choose_qparams(weight, scheme))
    assert torch.equal(qtensor.values, quantize(weight, scale, zero_point, bits))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process has no peak that Python can read here")
def test_a_large_matrix_takes_little_memory_beside_it():
    code = (
        "import resource, torch; from qlib import Scheme, quantize_tensor\n"
        "torch.set_num_threads(1)\n"
        "unit = 1024 if sys.platform == 'darwin' else 1\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit\n"
        "scheme = Scheme(4, symmetric=False, group_size=64)\n"
        "quantize_tensor(torch.randn(600, 1024), scheme)\n"
        "weight = torch.ones(2048, 4096)\n"
        "before = peak(); quantize_tensor(weight, scheme); print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", "import sys\n" + code], capture_output=True, text=True, check=True)
    # Codes of 4 MB and scales of 0.6 MB; the matrix has 32 MB, and every copy of it as much or more.
    assert int(done.stdout) < 16 * 1024


TINY = [Scheme(8), Scheme(4, False, group_size=32), Scheme(8, axis=1), Scheme(3, axis=None), NF4, MXFP4, NVFP4, FP8]


@pytest.mark.parametrize("rows", [8, 1200])
@pytest.mark.parametrize("scheme", TINY, ids=str)
def test_tiny_weights_are_as_right_as_others_or_refused_and_never_lost(scheme, rows):
    weight = torch.randn(rows, 256, generator=torch.Generator().manual_seed(0))
    usual = (quantize_tensor(weight, scheme).dequantize() - weight).abs().max() / weight.abs().max()
    kept = 0
    for exponent in range(34, 46):
        tiny = weight * 10.0**-exponent
        try:
            error = (quantize_tensor(tiny, scheme).dequantize() - tiny).abs().max() / tiny.abs().max()
        except ValueError as refused:
            assert "no scale" in str(refused) or "does not fit" in str(refused) or "no FP8 scale" in str(refused)
        else:
            kept += 1
            assert error < 1.5 * usual
    assert kept >= 4  # down to 1e-37


@pytest.mark.parametrize("scheme", [s for s in TINY if s.axis is not None], ids=str)
def test_one_block_that_float32_has_no_scale_for_is_refused_and_spoils_no_others(scheme):
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    weight[3], weight[:, 3] = 2e-44, 2e-44
    with pytest.raises(ValueError, match=r"no scale|does not fit"):
        quantize_tensor(weight, scheme)
