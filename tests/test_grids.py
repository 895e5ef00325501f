"""The grids beside the integers and the formats of scales, held against the libraries that made them known."""

import dataclasses
import itertools

import pytest
import torch
from compressed_tensors.compressors.mx_utils import compress_mx_scale
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as dequantize_gguf
from hypothesis import given
from hypothesis import strategies as st

from qlib import FP8, INT4, MXFP4, NF4, NVFP4, QLinear, Scheme, choose_qparams, fake_quantize, quantize_tensor, unpack
from qlib.grids import e2m1_levels, e4m3_levels, nf4_levels
from qlib.report import bits_per_weight, sqnr
from qlib.tensor import stored_bytes
from tests.strategies import tensors

PLAIN_NF4 = Scheme(4, group_size=64, grid="nf4")
# bitsandbytes 0.50.2, functional.get_4bit_type("nf4").
PUBLISHED = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
# What bitsandbytes' functional.quantize_4bit makes of `saw()`; it packs the first of two codes into the high bits.
BY_BITSANDBYTES = (
    "0feeddcba9876543221100ffeedccba9765433211100feeddcba9876543221100ffeeddcba9765433211100feeedcba9876543221100ff"
    "eeddcba9865443211100feeedcba9876543221100ffeeddcba9875543211100feeedcba9876543221110ffeeddcba9876543221100feeed"
    "cbb9876543321110ffeeddcba9876543221"
)


def saw():
    return torch.tensor([(i * 7919 % 2003 - 1001) / 1000 for i in range(256)]).reshape(2, 128)


def normal(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def wild(rows, columns, seed=0):
    """Normal numbers in groups of 16 of very different size: every exponent that a scale may need."""
    sizes = torch.exp2(
        torch.randint(-12, 6, (rows, columns // 16), generator=torch.Generator().manual_seed(seed)).float()
    )
    return normal(rows, columns, seed) * sizes.repeat_interleave(16, 1)


# ---------------------------------------------------------------- every scheme that makes sense

GRIDS = [{"grid": "integer"}, {"grid": "nf4", "bits": 4}, {"grid": "e2m1", "bits": 4}, {"grid": "e4m3", "bits": 8}]


def all_schemes():
    """A Scheme for each pair of grid and format of scales that is not refused, per row and per group."""
    found = []
    for grid, scales, group_size in itertools.product(
        GRIDS, ["float32", "float16", "bfloat16", "e8m0", "e4m3", "double"], [None, 3]
    ):
        try:
            found.append(Scheme(group_size=group_size, scales=scales, **grid))
        except ValueError:
            assert (grid["grid"], scales) == ("nf4", "e8m0")
    return found


@given(tensors(min_dims=2, max_dims=2), st.sampled_from(all_schemes()))
def test_any_matrix_comes_back_finite_in_its_shape_with_its_zeros_in_the_bytes_it_counts(weight, scheme):
    try:
        quantized = quantize_tensor(weight, scheme)
    except ValueError as error:
        assert scheme.scales == "float16" and "does not fit into torch.float16" in str(error)
        return
    back = quantized.dequantize()
    assert back.shape == weight.shape and back.dtype == torch.float32 and back.isfinite().all()
    assert (back[weight == 0] == 0).all()
    assert quantized.nbytes == sum(part.numel() * part.element_size() for part in quantized.parts.values())
    assert torch.equal(back, fake_quantize(weight, scheme))
    again = type(quantized).from_parts(quantized.parts, scheme, weight.shape)
    assert torch.equal(again.dequantize(), back)


@given(tensors(min_dims=2, max_dims=2), st.sampled_from(all_schemes()))
def test_large_tensors_are_quantized_in_blocks_to_the_same_bits(weight, scheme):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qlib.kernels.quantize.BLOCK_SIZE", 5)
        try:
            quantized = quantize_tensor(weight, scheme)
        except ValueError:
            return
    whole = quantize_tensor.__wrapped__(weight, scheme)
    for part, values in whole.parts.items():
        # Their mean and their largest are added up in another order.
        torch.testing.assert_close(quantized.parts[part].float(), values.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"grid": "nf3"}, "grid must be one of integer, nf4, e2m1, e4m3, not 'nf3'"),
        ({"grid": "nf4"}, "the grid 'nf4' has 4 bits, not 8"),
        ({"grid": "e4m3", "bits": 4}, "the grid 'e4m3' has 8 bits, not 4"),
        ({"grid": "e2m1", "bits": 4, "symmetric": False}, "it needs symmetric=True"),
        ({"scales": "float8"}, "scales must be one of float32, float16, bfloat16, e8m0, e4m3, double, not 'float8'"),
        ({"scales": "e8m0", "symmetric": False}, "too coarse for a range with two ends"),
        ({"scales": "e4m3", "axis": None}, "axis=None has but one"),
        ({"scales": "e8m0", "grid": "nf4", "bits": 4}, "which a power of two misses"),
    ],
)
def test_a_pair_that_makes_no_sense_is_refused_in_words(arguments, words):
    with pytest.raises(ValueError, match=words):
        Scheme(**arguments)


def test_a_scale_that_float16_cannot_hold_is_refused_and_kept_by_the_others():
    for weight in (torch.full((2, 8), 1e-7), torch.full((2, 8), 1e30)):
        with pytest.raises(ValueError, match=r"does not fit into torch\.float16; keep scales in float32"):
            quantize_tensor(weight, Scheme(8, scales="float16"))
        for scales in ("float32", "bfloat16", "e8m0"):
            assert sqnr(weight, quantize_tensor(weight, Scheme(8, scales=scales)).dequantize()) > 40


@pytest.mark.parametrize("scheme", [NF4, NVFP4, MXFP4, Scheme(8, scales="double")], ids=str)
def test_a_tensor_of_more_dimensions_is_done_row_by_row_as_a_matrix_is(scheme):
    matrix = normal(6, 70)
    back = fake_quantize(matrix.reshape(2, 3, 70), scheme) if scheme.group_size else fake_quantize(matrix, scheme)
    assert torch.equal(back.reshape(6, 70), fake_quantize(matrix, scheme))
    quantized = quantize_tensor(matrix.reshape(2, 3, 70), scheme)
    assert quantized.dequantize().shape == (2, 3, 70) and quantized.dequantize().isfinite().all()


# ---------------------------------------------------------------- NF4


def nearest(weight, group_size):
    """The definition: each weight divided by its group's absmax, and the published value that is nearest."""
    back = torch.empty(weight.shape, dtype=torch.float64)
    book = torch.tensor(PUBLISHED, dtype=torch.float64)
    for row, out in zip(weight.double(), back, strict=True):
        for group, place in zip(row.split(group_size), out.split(group_size), strict=True):
            absmax = group.abs().max() or torch.tensor(1.0)
            place.copy_(book[(group[:, None] / absmax - book).abs().argmin(-1)] * absmax)
    return back


def test_the_levels_of_nf4_are_the_published_ones():
    levels = nf4_levels()
    torch.testing.assert_close(levels, torch.tensor(PUBLISHED), rtol=0, atol=2e-7)
    assert levels[0] == -1 and levels[7] == 0 and levels[15] == 1


def test_codes_are_those_of_bitsandbytes():
    codes = unpack(quantize_tensor(saw(), PLAIN_NF4).packed, 4, 128)
    assert "".join(f"{code:x}" for code in codes.flatten().tolist()) == BY_BITSANDBYTES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 192), (1, 64), (3, 70), (5, 1)])
def test_each_weight_becomes_the_nearest_level_of_its_group(shape, dtype):
    weight = normal(*shape).to(dtype)
    found = quantize_tensor(weight, PLAIN_NF4).dequantize().double()
    torch.testing.assert_close(found, nearest(weight, 64), rtol=1e-6, atol=0)


def test_double_quantization_costs_what_the_paper_says_and_almost_no_accuracy():
    weight = normal(256, 1024)
    plain, double = (quantize_tensor(weight, scheme) for scheme in (PLAIN_NF4, NF4))
    assert plain.bits_per_weight == 4.5
    assert double.bits_per_weight == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=2e-4)
    assert abs(sqnr(weight, plain.dequantize()) - sqnr(weight, double.dequantize())) < 0.05
    even = quantize_tensor(weight, Scheme(4, group_size=64))
    assert sqnr(weight, plain.dequantize()) > sqnr(weight, even.dequantize()) + 1


def test_a_small_block_beside_large_ones_never_changes_its_signs():
    weight = torch.cat([torch.full((1, 64), 1e-4), torch.full((1, 64), 5.0), torch.full((1, 64), 0.3)])
    quantized = quantize_tensor(weight, NF4)
    assert (quantized.scale >= 0).all() and (quantized.dequantize() >= 0).all()


def test_a_block_of_zeros_has_no_say_in_what_the_others_share():
    weight = normal(8, 64)
    with_zeros = torch.cat([weight, torch.zeros(8, 64)])
    for scheme in (NVFP4, NF4, Scheme(4, False, group_size=16, scales="double")):
        back = quantize_tensor(with_zeros, scheme).dequantize()
        assert (back[8:] == 0).all()
        assert sqnr(weight, back[:8]) > sqnr(weight, quantize_tensor(weight, scheme).dequantize()) - 0.2


# ---------------------------------------------------------------- FP4 and FP8, as compressed-tensors has them


def test_the_levels_of_fp4_and_fp8_are_read_from_their_bits():
    for code, level in enumerate(e2m1_levels().tolist()):
        sign, exponent, fraction = code >> 3, (code >> 1) & 3, code & 1
        value = 2 ** (exponent - 1) * (1 + fraction / 2) if exponent else fraction / 2
        assert level == (-value if sign else value)
    for code, level in enumerate(e4m3_levels().tolist()):
        sign, exponent, fraction = code >> 7, (code >> 3) & 15, code & 7
        value = 2.0 ** (exponent - 7) * (1 + fraction / 8) if exponent else 2.0**-6 * fraction / 8
        assert level == (-value if sign else value) or (code & 127 == 127 and level != level)


def fp4_args(group_size, strategy, scale_dtype):
    return QuantizationArgs(
        num_bits=4, type="float", symmetric=True, strategy=strategy, group_size=group_size, scale_dtype=scale_dtype
    )


def group_ends(weight, group_size):
    groups = weight.unflatten(1, (-1, group_size))
    return groups.amin(-1), groups.amax(-1)


@pytest.mark.parametrize("make", [normal, wild])
@pytest.mark.parametrize("seed", range(3))
def test_nvfp4_is_that_of_compressed_tensors_to_the_bit(make, seed):
    weight, args = make(24, 96, seed), fp4_args(16, "tensor_group", torch.float8_e4m3fn)
    global_scale = generate_gparam(weight.amin(), weight.amax())
    scale, zero = calculate_qparams(*group_ends(weight, 16), args, global_scale)
    values = quantize(weight, scale, zero, args, global_scale=global_scale)
    mine = quantize_tensor(weight, NVFP4)
    assert torch.equal(mine.parts["global_scale"], global_scale[0])
    assert torch.equal(mine.parts["scale"].view(torch.uint8), scale.to(torch.float8_e4m3fn).view(torch.uint8))
    assert torch.equal(mine.packed, pack_fp4_to_uint8(values))
    assert torch.equal(mine.dequantize(), dequantize(values, scale, zero, args, global_scale=global_scale))


@pytest.mark.parametrize("make", [normal, wild])
@pytest.mark.parametrize("seed", range(3))
def test_mxfp4_is_that_of_compressed_tensors_to_the_bit(make, seed):
    weight, args = make(24, 96, seed), fp4_args(32, "group", torch.uint8)
    scale, zero = calculate_qparams(*group_ends(weight, 32), args)
    values = quantize(weight, scale, zero, args)
    mine = quantize_tensor(weight, MXFP4)
    assert torch.equal(mine.parts["scale"], compress_mx_scale(scale, torch.uint8))
    assert torch.equal(mine.packed, pack_fp4_to_uint8(values))
    assert torch.equal(mine.dequantize(), dequantize(values, scale, zero, args))


@pytest.mark.parametrize("seed", range(3))
def test_fp8_is_that_of_compressed_tensors_to_the_bit(seed):
    weight, args = wild(24, 96, seed), QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="channel")
    scale, zero = calculate_qparams(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), args)
    values = quantize(weight, scale, zero, args, dtype=torch.float8_e4m3fn)
    mine = quantize_tensor(weight, FP8)
    assert torch.equal(mine.scale, scale)
    assert torch.equal(mine.values, values.view(torch.uint8))
    assert torch.equal(mine.dequantize(), dequantize(values, scale, zero, args, dtype=torch.float32))


def test_ties_go_to_the_even_code_and_what_is_too_large_to_the_end():
    between = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -5.0]])
    expected = torch.tensor([[0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 0.0, -4.0]])
    assert torch.equal(quantize_tensor(between, Scheme(4, grid="e2m1")).dequantize(), expected)
    clipped = quantize_tensor(torch.tensor([[6.9, 1.0]]), dataclasses.replace(MXFP4, group_size=2))  # 6.9 < 7: scale 1
    assert clipped.dequantize().tolist() == [[6.0, 1.0]]


# ---------------------------------------------------------------- scales


@given(
    st.sampled_from(
        [Scheme(bits, scales="e8m0") for bits in (2, 3, 4, 8)] + [MXFP4, Scheme(8, grid="e4m3", scales="e8m0")]
    ),
    st.floats(2.0**-60, 2.0**60),
)
def test_a_power_of_two_clips_next_to_nothing_and_wastes_no_bit(scheme, largest):
    weight = torch.tensor([[largest, -largest / 3]])
    scale = quantize_tensor(weight, scheme).scale.item()
    assert scale == 2.0 ** round(torch.tensor(scale).log2().item())
    steps = weight[0, 0].item() / scale  # from zero to the largest weight
    beyond = {"e2m1": 7.0, "e4m3": 464.0}.get(scheme.grid, scheme.largest + 0.5)
    assert steps <= beyond and 2 * steps >= min(beyond, scheme.largest) * 0.99


def test_a_power_of_two_that_was_stored_is_stored_as_it_is():
    for scheme in (Scheme(4, scales="e8m0"), MXFP4, Scheme(8, grid="e4m3", scales="e8m0")):
        kept = quantize_tensor(wild(8, 96), scheme)
        again = type(kept)(kept.values, kept.scale, kept.zero_point, scheme)
        assert torch.equal(again.parts["scale"], kept.parts["scale"])


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        (GGMLQuantizationType.Q8_0, Scheme(8, group_size=32, scales="float16")),
        (GGMLQuantizationType.Q4_0, Scheme(4, group_size=32, scales="float16")),
    ],
    ids=str,
)
def test_a_float16_scale_and_its_codes_are_a_block_of_ggml(kind, scheme):
    """Of 32 weights: the scale in two bytes, then the codes; at 4 bits code i and code i + 16 in one byte."""
    mine = quantize_tensor(normal(6, 128), scheme)
    assert mine.bits_per_weight == scheme.bits + 0.5
    codes = mine.values.reshape(6, -1, 32)
    if scheme.bits == 4:
        codes = (codes + 8).to(torch.uint8)
        codes = codes[..., :16] | codes[..., 16:] << 4
    blocks = torch.cat([mine.parts["scale"].unsqueeze(-1).view(torch.uint8), codes.view(torch.uint8)], -1).flatten(1)
    assert torch.equal(torch.from_numpy(dequantize_gguf(blocks.numpy(), kind)), mine.dequantize())


def test_float16_scales_cost_sixteen_bits_and_next_to_no_accuracy():
    weight = normal(64, 256)
    wide, narrow = quantize_tensor(weight, INT4), quantize_tensor(weight, dataclasses.replace(INT4, scales="float16"))
    assert wide.bits_per_weight - narrow.bits_per_weight == 16 / 64
    assert sqnr(weight, wide.dequantize()) - sqnr(weight, narrow.dequantize()) < 0.01


def test_choose_qparams_gives_the_scale_before_its_format_rounds_it():
    weight = normal(4, 64)
    for scheme, largest in ((NF4, 1), (NVFP4, 6), (FP8, 448), (Scheme(4, scales="e8m0"), 7)):
        scale, zero_point = choose_qparams(weight, scheme)
        groups = weight.unflatten(1, (-1, scheme.group_size or 64))
        torch.testing.assert_close(scale, groups.abs().amax(-1) / largest, rtol=1e-7, atol=0)
        assert zero_point == 0


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize(
    "scheme", [PLAIN_NF4, NF4, MXFP4, NVFP4, FP8, dataclasses.replace(INT4, scales="float16")], ids=str
)
def test_a_layer_computes_with_the_dequantized_weight_and_keeps_its_scales_in_half_precision(scheme):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(70, 5), normal(3, 70)
    layer = QLinear.from_linear(linear, scheme)
    expected = torch.nn.functional.linear(x, quantize_tensor(linear.weight, scheme).dequantize(), linear.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert str(scheme) in repr(layer)
    before = layer.weight
    assert torch.equal(layer.to(torch.float16).qtensor.dequantize(), before) and layer.bias.dtype == torch.float16
    assert torch.equal(layer.weight, before.half())


@pytest.mark.parametrize("scheme", [NF4, NVFP4, MXFP4, FP8], ids=str)
def test_an_empty_layer_on_the_meta_device_takes_the_state_of_a_full_one(scheme):
    layer, empty = QLinear.from_linear(torch.nn.Linear(70, 5), scheme), QLinear(70, 5, scheme, device="meta")
    kinds = [{k: (v.shape, v.dtype) for k, v in each.state_dict().items()} for each in (layer, empty)]
    assert kinds[0].pop("weight") == kinds[0].pop("example") == ((0,), torch.float32)
    assert kinds[0] == kinds[1]
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(normal(2, 70)), layer(normal(2, 70)))


# ---------------------------------------------------------------- bytes told beforehand


@given(
    st.sampled_from(all_schemes() + [INT4, Scheme(3, axis=1), Scheme(2, axis=None)]),
    st.integers(1, 9),
    st.integers(1, 40),
)
def test_bytes_are_told_beforehand_as_they_are_kept(scheme, rows, columns):
    quantized = quantize_tensor(normal(rows, columns) + 1, scheme)
    assert stored_bytes((rows, columns), scheme) == quantized.nbytes
    assert bits_per_weight((rows, columns), scheme) == quantized.bits_per_weight
