"""What lesson 10 says holds: a forward pass on integers, a home for them, float32 scales, the encoder's real layer."""

import copy
import inspect

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch.nn.functional import linear

import course.helper as helper
from course.exercises.exercise import find_exercise
from course.exercises.judge import CORRECT, INCORRECT, judge
from course.figures import lesson_10 as figures
from course.helper import W8A16LinearLayer, w8_a16_forward
from course.models import load_encoder, load_sentences
from qlib import INT8, QLinear, Scheme, choose_qparams, quantize
from qlib.report import sqnr, state_dict_bytes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(weight, bias=None):
    layer = W8A16LinearLayer(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.quantize(weight)
    if bias is not None:
        layer.bias = bias
    return layer


# ---------------------------------------------------------------- the forward pass


@hypothesis.given(st.integers(1, 9), st.integers(0, 9), st.sampled_from([(), (3,), (2, 4), (0,)]), st.booleans())
def test_the_forward_pass_is_that_of_the_dequantized_weight(outputs, inputs, batch, with_bias):
    weight, x = noise(outputs, inputs), noise(*batch, inputs, seed=1)
    bias = noise(outputs, seed=2) if with_bias else None
    layer = layer_of(weight, bias)
    expected = linear(x, layer.int8_weights * layer.scales.unsqueeze(1), bias)
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_output_has_the_inputs_dtype_and_its_accuracy(dtype):
    layer, x = layer_of(noise(16, 32), noise(16, seed=2)), noise(5, 32, seed=1)
    got = layer(x.to(dtype))
    assert got.dtype == dtype
    assert sqnr(layer(x), got) > {torch.float32: 100, torch.bfloat16: 40, torch.float16: 60}[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_int8_is_exact_in_every_floating_dtype(dtype):
    every = torch.arange(-128, 128).to(torch.int8)
    assert torch.equal(every.to(dtype).to(torch.int8), every)


def test_pytorch_multiplies_no_int8_with_floats_and_trains_no_integers():
    q = torch.ones(2, 2, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="same dtype, but got: float != signed char"):
        linear(torch.ones(2), q)
    with pytest.raises(RuntimeError, match="Only Tensors of floating point"):
        torch.nn.Parameter(q)
    with pytest.raises(RuntimeError, match="only Tensors of floating point dtype can require gradients"):
        torch.nn.Parameter(q, requires_grad=False).requires_grad_(True)


def test_a_bare_sum_overflows_float16_where_the_scaled_weight_does_not():
    weight, scale, loud = torch.tensor([[127]], dtype=torch.int8), torch.tensor([0.01]), torch.tensor([600.0])
    assert w8_a16_forward(weight, loud.half(), scale).isinf().all()
    assert w8_a16_forward(weight, loud, scale).item() == pytest.approx(762)
    assert w8_a16_forward(weight, loud.bfloat16(), scale).item() == pytest.approx(762, rel=0.005)
    one = torch.nn.Linear(1, 1, bias=False)
    one.weight = torch.nn.Parameter(torch.tensor([[1.27]]))
    assert QLinear.from_linear(one, INT8).half()(loud.half()).item() == pytest.approx(762, rel=0.001)


# ---------------------------------------------------------------- the layer


def test_the_courses_cells_run_under_the_courses_names():
    module = helper.W8A16LinearLayer(16, 32)
    assert (module.int8_weights.shape, module.scales.shape) == ((32, 16), (32,))
    assert module(noise(1, 6, 16)).shape == (1, 6, 32)
    module = helper.W8A16LinearLayer(4, 8)
    weights = noise(8, 4)
    module.quantize(weights)
    dequantized = module.int8_weights * module.scales.unsqueeze(1)
    assert (weights - dequantized).abs().max() <= module.scales.max() / 2 * 1.0001
    assert helper.W8A16LinearLayer(4, 8, bias=False, dtype=torch.float16).bias is None
    assert helper.W8A16LinearLayer(4, 8, dtype=torch.float16).bias.dtype == torch.float16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_holds_what_qlinear_holds_at_8_bits_a_row(dtype):
    dense = torch.nn.Linear(20, 6).to(dtype)
    dense.weight.data[2] = 0
    layer, other = layer_of(dense.weight), QLinear.from_linear(dense, INT8)
    assert torch.equal(layer.int8_weights, other.qtensor.values)
    assert torch.equal(layer.scales, other.scale.flatten())
    assert layer.scales.dtype == torch.float32 and layer.scales[2] == 1


def test_it_is_made_of_buffers_that_lead_back_to_no_parameter():
    layer = layer_of(torch.nn.Linear(8, 3).weight, torch.zeros(3))
    assert {name: part.dtype for name, part in layer.named_buffers()} == {
        "int8_weights": torch.int8,
        "scales": torch.float32,
        "bias": torch.float32,
    }
    assert not list(layer.parameters()) and not any(part.requires_grad for part in layer.buffers())
    other = copy.deepcopy(layer)
    other.half()
    assert (layer.scales.dtype, other.scales.dtype) == (torch.float32, torch.float16)
    assert other.int8_weights.dtype == torch.int8


def test_a_parameter_under_the_name_of_a_buffer_makes_a_parameter_of_it():
    layer = W8A16LinearLayer(4, 3)
    layer.bias = torch.nn.Parameter(torch.zeros(3))
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_a_state_dict_brings_it_back():
    layer, fresh = layer_of(noise(3, 8), noise(3)), W8A16LinearLayer(8, 3)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(noise(2, 8)), layer(noise(2, 8)))


def test_halving_it_loses_a_scale_that_qlinear_keeps():
    small = torch.nn.Linear(2, 2, bias=False)
    small.weight = torch.nn.Parameter(torch.tensor([[1e-6, -5e-7], [2e-6, 1e-6]]))
    probe = torch.tensor([400.0, 0.0])
    assert layer_of(small.weight).half()(probe.half()).tolist() == [0, 0]
    kept = QLinear.from_linear(small, INT8).half()(probe.half()).float()
    assert torch.allclose(kept, small(probe).detach(), rtol=0.05)


# ---------------------------------------------------------------- the encoder's real layer


@pytest.fixture(scope="module")
def dense():
    model, tokenizer = load_encoder()
    layer = model.encoder.layer[0].intermediate.dense.requires_grad_(False)
    batch = tokenizer(load_sentences()[:32], padding=True, return_tensors="pt")
    seen = []
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.inference_mode():
        model(**batch)
    hook.remove()
    return layer, seen[0][batch["attention_mask"].bool()].clone()


def test_its_bytes_and_its_error_are_those_of_the_lesson(dense):
    dense, x = dense
    layer = layer_of(dense.weight, dense.bias.clone())
    assert (state_dict_bytes(dense.state_dict()), state_dict_bytes(layer.state_dict())) == (2365440, 602112)
    back = layer.int8_weights * layer.scales.unsqueeze(1)
    assert sqnr(dense.weight, back) == pytest.approx(42.4, abs=0.05)
    assert sqnr(dense(x), layer(x)) == pytest.approx(45.4, abs=0.05)
    assert sqnr(dense(x), layer(x.bfloat16())) == pytest.approx(44.6, abs=0.1)
    moved = x.roll(1, dims=1)
    assert sqnr(linear(x, dense.weight), linear(x, back)) == pytest.approx(44.8, abs=0.05)
    assert sqnr(linear(moved, dense.weight), linear(moved, back)) == pytest.approx(42.3, abs=0.05)
    largest = dense.weight.abs().amax(1)
    assert largest.argmax() == 856 and 7 < largest.max() / largest.median() < 7.5


def test_dividing_in_bfloat16_flips_the_sign_of_the_largest_weight_of_124_rows(dense):
    weight = dense[0].weight.bfloat16()
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    quotient = torch.round(weight / scale.bfloat16())
    wraps = quotient == 128
    assert wraps.any(1).sum() == 124 and quotient.max() == 128
    flipped = quotient.to(torch.int16).to(torch.int8)[wraps] * scale.expand_as(weight)[wraps]
    assert (flipped < 0).all() and (weight[wraps] > 0).all()
    assert torch.equal(weight[wraps], weight.abs().amax(1, keepdim=True).expand_as(weight)[wraps])
    right = quantize(weight, *choose_qparams(weight, INT8))
    assert (quotient != right).double().mean().item() == pytest.approx(0.087, abs=0.001)
    half, wrong = scale.bfloat16().float(), quotient.to(torch.int16).to(torch.int8)
    assert sqnr(weight, wrong * half) == pytest.approx(20.9, abs=0.1)
    assert sqnr(weight, quotient.clamp(-127, 127) * half) == pytest.approx(41.8, abs=0.1)
    assert sqnr(weight, layer_of(weight).int8_weights * scale) == pytest.approx(42.4, abs=0.1)


def test_groups_and_zero_points_save_6_db_at_2_bits(dense):
    dense, x = dense
    decibels = [
        sqnr(dense(x), linear(x, QLinear.from_linear(dense, scheme).qtensor.dequantize(), dense.bias))
        for scheme in (Scheme(2), Scheme(2, group_size=64, symmetric=False))
    ]
    assert decibels == pytest.approx([4.0, 10.1], abs=0.1)


# ---------------------------------------------------------------- what the check says


def test_a_solution_imports_what_it_uses_and_nothing_that_only_shares_a_name():
    assert find_exercise("10.1").solution().startswith("import torch\n\n\ndef w8_a16_forward")
    assert "w8_a16_forward(" in inspect.getsource(W8A16LinearLayer)
    assert "from course.helper import w8_a16_forward" in find_exercise("10.2").solution()


def test_the_check_names_the_recipe_of_the_notes():
    class Recipe(W8A16LinearLayer):
        def quantize(self, weights):
            scales = weights.float().abs().amax(1).clamp(min=1e-30) / 127
            scales = torch.where(weights.abs().amax(1) == 0, 1, scales).to(weights.dtype)
            q = torch.round(weights / scales.unsqueeze(1)).nan_to_num(0, 0, 0)
            self.int8_weights, self.scales = q.to(torch.int16).to(torch.int8), scales

    verdict = judge(find_exercise("10.2"), Recipe)
    assert verdict.outcome == INCORRECT
    assert "With a weight of bfloat16: int8_weights [0, 0]: expected 127, got -128." in verdict.message
    assert "with scales and division in the weight's own 16 bits" in verdict.message


def test_the_check_names_the_first_property_that_a_mistake_breaks():
    class Unsaved(W8A16LinearLayer):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            for name, part in list(self.named_buffers()):
                self.register_buffer(name, part, persistent=False)

    assert "with persistent=False" in judge(find_exercise("10.2"), Unsaved).message


def test_a_bias_of_the_forms_that_the_lesson_gives_is_accepted():
    class InItsOwnWords(W8A16LinearLayer):
        def forward(self, x):
            y = x @ self.int8_weights.to(x.dtype).T * self.scales
            return (y + self.bias if self.bias is not None else y).to(x.dtype)

    assert judge(find_exercise("10.2"), InItsOwnWords).outcome == CORRECT


# ---------------------------------------------------------------- pictures


def test_the_steps_are_drawn_and_told():
    q = torch.tensor([[127, -64], [-50, 2]], dtype=torch.int8)
    x, scales, bias = torch.tensor([1.5, -0.5]), torch.tensor([0.02, 0.5]), torch.tensor([1.0, -0.5])
    picture = figures.w8a16_steps(q, x, scales, bias)
    assert picture.caption == (
        "A layer of 2 inputs and 2 outputs on the input [1.5, -0.5]. Of the sums, "
        "output 0: 222.5 times 0.02 plus 1 is 5.45; output 1: -76 times 0.5 plus -0.5 is -38.5."
    )
    drawn = [text.get_text() for text in picture.figure.axes[0].texts]
    for number in ("1.5", "127", "-64", "222.5", "0.02", "5.45", "-38.5"):
        assert number in drawn
