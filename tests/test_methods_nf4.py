"""NF4: the code book is the published one, values are those of bitsandbytes, and the bytes are those of the paper."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from qlib import Scheme, quantize_model, quantize_tensor, unpack
from qlib.methods import NF4, QLORA, NF4Linear, nf4_code_book, nf4_model, nf4_quantize
from qlib.report import sqnr
from tests.strategies import tensors

PLAIN = NF4(double=False)
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


def normal(rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05


def nearest(weight, scheme):
    """The definition: each weight divided by its block's absmax, and the published value that is nearest."""
    back = torch.empty(weight.shape, dtype=torch.float64)
    book = torch.tensor(PUBLISHED, dtype=torch.float64)
    for row, out in zip(weight.double(), back, strict=True):
        for block, place in zip(row.split(scheme.block_size), out.split(scheme.block_size), strict=True):
            absmax = block.abs().max() or torch.tensor(1.0)
            place.copy_(book[(block[:, None] / absmax - book).abs().argmin(-1)] * absmax)
    return back


def test_the_code_book_is_the_published_one():
    book = nf4_code_book()
    torch.testing.assert_close(book, torch.tensor(PUBLISHED), rtol=0, atol=2e-7)
    assert book[0] == -1 and book[7] == 0 and book[15] == 1


def test_codes_are_those_of_bitsandbytes():
    first_high = unpack(nf4_quantize(saw(), PLAIN).parts["packed"], 4, 128).reshape(-1, 2)
    assert "".join(f"{code:x}" for code in first_high.flatten().tolist()) == BY_BITSANDBYTES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 192), (1, 64), (3, 70), (5, 1)])
def test_each_weight_becomes_the_nearest_value_of_its_block(shape, dtype):
    weight = normal(*shape).to(dtype)
    torch.testing.assert_close(
        nf4_quantize(weight, PLAIN).dequantize().double(), nearest(weight, PLAIN), rtol=1e-6, atol=0
    )


def test_four_bits_an_absmax_and_its_double_quantization_cost_what_the_paper_says():
    weight = normal(256, 1024)
    assert nf4_quantize(weight, PLAIN).bits_per_weight == 4.5
    assert nf4_quantize(weight).bits_per_weight == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=2e-4)


def test_double_quantization_costs_almost_no_accuracy_and_nf4_beats_even_steps_on_normal_weights():
    weight = normal(256, 256)
    plain, double = (sqnr(weight, nf4_quantize(weight, scheme).dequantize()) for scheme in (PLAIN, QLORA))
    even = sqnr(weight, quantize_tensor(weight, Scheme(4, group_size=64)).dequantize())
    assert plain - 0.05 < double < plain
    assert plain > even + 1


@given(weight=tensors(min_dims=2, max_dims=2), double=st.booleans(), block_size=st.integers(1, 9))
def test_any_matrix_comes_back_finite_in_its_shape_with_its_zeros(weight, double, block_size):
    quantized = nf4_quantize(weight, NF4(block_size, double))
    back = quantized.dequantize()
    assert back.shape == weight.shape and back.dtype == torch.float32 and back.isfinite().all()
    assert (back[weight == 0] == 0).all()
    assert quantized.nbytes == sum(part.numel() * part.element_size() for part in quantized.parts.values())
    if not double:
        assert ((back - weight.float()).abs() <= quantized.absmax.max() * 0.152 + 1e-37).all()  # half the widest gap


def test_a_block_of_zeros_and_a_constant_block_come_back_exactly():
    weight = torch.cat([torch.zeros(2, 64), torch.full((2, 64), -0.3)], 1)
    assert torch.equal(nf4_quantize(weight, PLAIN).dequantize(), weight)
    assert (nf4_quantize(weight).dequantize()[:, :64] == 0).all()


def test_a_small_block_beside_large_ones_never_changes_its_signs():
    weight = torch.cat([torch.full((1, 64), 1e-4), torch.full((1, 64), 5.0), torch.full((1, 64), 0.3)])
    assert (nf4_quantize(weight).absmax >= 0).all()
    assert (nf4_quantize(weight).dequantize() >= 0).all()


def test_what_cannot_be_quantized_is_named():
    with pytest.raises(ValueError, match=r"up cannot be quantized: the value at \[0, 1\] is nan"):
        nf4_quantize(torch.tensor([[0.0, float("nan")]]), name="up")
    with pytest.raises(ValueError, match="group_size must be a whole number"):
        NF4(block_size=0)
    with pytest.raises(TypeError, match="double True or False"):
        NF4(double=1)


@pytest.mark.parametrize("scheme", [PLAIN, QLORA], ids=str)
def test_a_layer_computes_with_the_dequantized_weight_in_its_inputs_dtype(scheme):
    linear = torch.nn.Linear(70, 5)
    layer = NF4Linear.from_linear(linear, scheme)
    x = normal(3, 70)
    expected = torch.nn.functional.linear(x, nf4_quantize(linear.weight, scheme).dequantize(), linear.bias)
    assert torch.equal(layer(x), expected)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert not list(layer.parameters())
    assert "NF4, per block of 64" in repr(layer)


@pytest.mark.parametrize("scheme", [PLAIN, QLORA, NF4(5)], ids=str)
def test_an_empty_layer_on_the_meta_device_takes_the_state_of_a_full_one(scheme):
    layer = NF4Linear.from_linear(torch.nn.Linear(70, 5), scheme)
    empty = NF4Linear(70, 5, scheme, device="meta")
    state = layer.state_dict()
    assert {k: (v.shape, v.dtype) for k, v in empty.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in state.items()
    }
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty(normal(2, 70)), layer(normal(2, 70)))


def test_the_absmaxes_stay_float32_in_half_precision():
    layer = NF4Linear.from_linear(torch.nn.Linear(64, 5), QLORA)
    before = layer.weight
    assert torch.equal(layer.to(torch.float16).weight, before)
    assert layer.bias.dtype == torch.float16


def test_a_model_is_quantized_and_reported_like_any_other():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes)).eval()
    ids = torch.tensor([[1, 5, 9]])
    before = model(ids).logits
    report = nf4_model(model, PLAIN)
    assert sum(isinstance(module, NF4Linear) for module in model.modules()) == len(report.quantized) == 7
    assert all(layer.bits_per_weight == 4.5 for layer in report.quantized)
    assert "NF4, per block of 64" in repr(report)
    assert torch.nn.functional.cosine_similarity(before.flatten(), model(ids).logits.flatten(), dim=0) > 0.95
    assert quantize_model(model, Scheme(8), progress=False).quantized == []
