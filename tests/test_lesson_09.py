"""What lesson 9 says holds: integers exact to the last one, layers, folding, the net of the digits, its pictures."""

import copy
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv2d, linear, relu, unfold

from course import helper
from course.exercises.exercise import find_exercise
from course.exercises.judge import INCORRECT, judge
from course.figures import lesson_09 as figures
from course.models import DATA, accuracy, digits_conv_net, load_digits, load_digits_conv
from qlib import Scheme, choose_qparams, dequantize, quant_range, quantize
from qlib.linear import integer_linear
from qlib.methods.static import (
    IntegerConv2d,
    IntegerLinear,
    fuse_batch_norms,
    fuse_conv_bn,
    integer_layer,
    integer_net,
    linear_w8a32,
    requantize,
    sequential,
)
from qlib.observers import MinMax, calibrate
from qlib.report import sqnr, state_dict_bytes

X = torch.tensor([1.0, 2.0, 3.0])
W = torch.tensor([[-2.0, -1.13, 0.42], [-1.51, 0.25, 1.62], [0.23, 1.35, 2.15]])
PER_TENSOR, PER_CHANNEL = Scheme(axis=None), Scheme(axis=0)
ASYMMETRIC = Scheme(symmetric=False, axis=None)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the course's layer


def test_the_courses_layer_gives_the_courses_figures():
    scale, zero_point = choose_qparams(W, PER_TENSOR)
    values = quantize(W, scale, zero_point)
    for layer in (linear_w8a32, helper.quantized_linear_W8A32_without_bias):
        got = layer(X, values, scale, zero_point)
        assert torch.allclose(got, torch.tensor([-2.9965, 3.8768, 9.3957]), atol=5e-5)
    assert torch.allclose(linear(X, W), torch.tensor([-3.0, 3.85, 9.38]), atol=5e-5)


def test_the_courses_formula_agrees_only_where_the_zero_point_is_0():
    scale, zero_point = choose_qparams(W, ASYMMETRIC)
    values = quantize(W, scale, zero_point)
    assert zero_point == -5
    right = helper.quantized_linear_W8A32_without_bias(X, values, scale, zero_point)
    wrong = linear(X, values * scale + zero_point)
    assert torch.allclose(right, torch.tensor([-2.9782, 3.8571, 9.3741]), atol=5e-5)
    assert torch.allclose(wrong, torch.tensor([-33.4665, -26.6312, -21.1141]), atol=5e-5)
    assert torch.allclose(wrong - right, (zero_point * (1 + scale) * X.sum()).expand(3), atol=1e-4)
    assert torch.equal(linear(X, values * scale + 0), linear_w8a32(X, values, scale, 0))


def test_a_bias_is_added():
    values = quantize(W, 0.02, 0)
    bias = torch.tensor([1.0, 2.0, 3.0])
    assert torch.allclose(linear_w8a32(X, values, 0.02, 0, bias), linear_w8a32(X, values, 0.02, 0) + bias)


# ---------------------------------------------------------------- integer arithmetic


@st.composite
def problems(draw):
    """Two int8 matrices of random shapes and any zero points that int8 can hold, the ends among them."""
    batch = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    inputs, outputs = draw(st.integers(0, 70)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    x, w = (
        torch.randint(-128, 128, shape, generator=generator).to(torch.int8)
        for shape in ([*batch, inputs], [outputs, inputs])
    )
    return x, draw(st.integers(-128, 127)), w, draw(st.integers(-128, 127))


def plain(x, x_zero_point, w, w_zero_point):
    return (x.long() - x_zero_point) @ (w.long() - w_zero_point).T


@given(problems())
def test_the_corrected_sums_equal_the_plain_ones_to_the_last_integer(problem):
    sums = integer_linear(*problem)
    assert sums.dtype == torch.int32
    assert torch.equal(sums.long(), plain(*problem))


@pytest.mark.parametrize("inputs", [1, 1000, 33025])
def test_the_accumulator_holds_as_many_inputs_as_the_docstring_says(inputs):
    x, w = torch.full((1, inputs), 127, dtype=torch.int8), torch.full((2, inputs), -128, dtype=torch.int8)
    assert torch.equal(integer_linear(x, -128, w, 127).long(), plain(x, -128, w, 127))
    assert integer_linear(x, -128, w, 127)[0, 0] == -inputs * 255 * 255


def test_one_input_more_than_that_and_the_accumulator_wraps_around():
    x, w = torch.full((1, 33026), 127, dtype=torch.int8), torch.full((1, 33026), 127, dtype=torch.int8)
    assert plain(x, -128, w, -128).item() > 2**31 - 1
    assert integer_linear(x, -128, w, -128).long().item() != plain(x, -128, w, -128).item()


def test_the_product_is_that_of_pytorchs_own_int8_kernel():
    x = torch.randint(-128, 128, (32, 64), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    w = torch.randint(-128, 128, (16, 64), generator=torch.Generator().manual_seed(2)).to(torch.int8)
    assert torch.equal(integer_linear(x, 0, w, 0), torch._int_mm(x, w.T))


def test_a_zero_point_for_each_row_and_each_output_broadcasts():
    x, w = quantize(noise(2, 4, 9), 0.02, 0), quantize(noise(5, 9, seed=1), 0.02, 0)
    a = torch.tensor([-7, 100], dtype=torch.int32).reshape(2, 1, 1)
    b = torch.tensor([3, -4, 5, 0, -128], dtype=torch.int32)
    naive = torch.einsum("nlk,ok->nlo", x.double() - a, torch.zeros(5, 9).double()).long()
    for n in range(2):
        for o in range(5):
            naive[n, :, o] = ((x[n].long() - a[n, 0, 0]) * (w[o].long() - b[o])).sum(-1)
    assert torch.equal(integer_linear(x, a, w, b).long(), naive)


def test_the_figures_of_the_first_output_and_of_two_wrong_corrections():
    x, w = torch.tensor([-43, 42, 127], dtype=torch.int8), torch.tensor([[-128, -74, 21]], dtype=torch.int8)
    assert (x.long() @ w[0].long()).item() == 5063
    assert integer_linear(x, -128, w, -5).item() == -15555
    assert -15555 - 3 * -128 * -5 == -17475
    assert -15555 - 2 * 3 * -128 * -5 == -19395


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        (0, "expected -15555, got -17475. That is what you get without the last term"),
        (-1, "expected -15555, got -19395. That is what you get with the last term subtracted"),
    ],
)
def test_the_check_names_a_wrong_zero_point_correction(sign, words):
    def wrong(x, x_zero_point, w, w_zero_point):
        x, w = x.int(), w.int()
        corrections = x_zero_point * w.sum(-1) + w_zero_point * x.sum(-1, keepdim=True)
        return x @ w.T - corrections + sign * x.shape[-1] * x_zero_point * w_zero_point

    verdict = judge(find_exercise("09.1"), wrong)
    assert verdict.outcome == INCORRECT
    assert words in verdict.message


# ---------------------------------------------------------------- requantize


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_requantizing_is_quantizing_what_the_sums_stand_for(bits):
    sums = torch.randint(-60000, 60000, (7, 5), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    w_scale = torch.tensor([0.01, 0.002, 0.03, 0.004, 0.0005])
    ours = requantize(sums, 0.02, w_scale, 0.7, -1, bits)
    detour = quantize(sums * (0.02 * w_scale), 0.7, -1, bits)
    assert ours.dtype == torch.int8
    assert (ours.int() - detour.int()).abs().max() <= 1, "on a tie the order of operations may tell"
    assert (ours != detour).double().mean() < 0.1
    qmin, qmax = quant_range(bits)
    assert ours.min() >= qmin and ours.max() <= qmax


def test_a_relu_is_a_clamp_at_the_zero_point():
    y = noise(1000) * 3
    for z in (-128, -40, 0, 90):
        assert torch.equal(quantize(relu(y), 0.05, z), quantize(y, 0.05, z).clamp(min=z))


def test_integer_linear_and_requantize_give_what_pytorchs_quantized_linear_gives():
    x, weight, bias = noise(40, 24), noise(6, 24, seed=1), noise(6, seed=2)
    s_y, z_y = 0.2, 10
    # A quarter of the range each, so that no CPU's kernel saturates in between.
    s_x, s_w, a = x.abs().max().item() / 31, weight.abs().max().item() / 31, 5
    q_x, q_w = quantize(x, s_x, a), quantize(weight, s_w, 0)
    sums = integer_linear(q_x, a, q_w, 0) + torch.round(bias / (s_x * s_w)).int()
    ours = requantize(sums, s_x, s_w, s_y, z_y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        qx = torch._make_per_tensor_quantized_tensor((q_x.int() + 128).to(torch.uint8), s_x, a + 128)
        qw = torch._make_per_tensor_quantized_tensor(q_w, s_w, 0)
        packed = torch.ops.quantized.linear_prepack(qw, bias)
        theirs = torch.ops.quantized.linear(qx, packed, s_y, z_y + 128).int_repr().int() - 128
    assert (ours.int() - theirs).abs().max() <= 1
    assert (ours.int() != theirs).double().mean() < 0.02


# ---------------------------------------------------------------- layers


def real_layer(layer, x, scheme, x_range=None):
    """What an integer layer should compute, in float64 from the dequantized input and weight."""
    low, high = x_range or (x.amin(), x.amax())
    x_scale, x_zero_point = choose_qparams(torch.stack([low, high]), ASYMMETRIC)
    back = dequantize(quantize(x, x_scale, x_zero_point), x_scale, x_zero_point).double()
    matrix = layer.weight.detach().flatten(1)
    scale, zero_point = choose_qparams(matrix, scheme)
    weight = dequantize(quantize(matrix, scale, zero_point), scale, zero_point).double().reshape(layer.weight.shape)
    bias = None if layer.bias is None else layer.bias.double()
    if isinstance(layer, torch.nn.Linear):
        return linear(back, weight, bias)
    return conv2d(back, weight, bias, layer.stride, layer.padding, layer.dilation)


LINEARS = [torch.nn.Linear(12, 5), torch.nn.Linear(12, 5, bias=False)]
CONVS = [
    torch.nn.Conv2d(2, 3, 3),
    torch.nn.Conv2d(2, 5, 3, padding=1, bias=False),
    torch.nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2)),
    torch.nn.Conv2d(2, 4, 3, dilation=2, padding=2),
    torch.nn.Conv2d(2, 4, 1),
]


@given(st.sampled_from([*LINEARS, *CONVS]), st.builds(Scheme, symmetric=st.booleans(), axis=st.sampled_from([None, 0])))
def test_an_integer_layer_computes_what_its_integers_stand_for(layer, scheme):
    x = noise(1, 12) if isinstance(layer, torch.nn.Linear) else noise(1, 2, 7, 6)
    layer = copy.deepcopy(layer).requires_grad_(False)
    for x_range in (None, (torch.tensor(-0.5), torch.tensor(1.0))):
        got = integer_layer(layer, scheme, x_range)(x)
        expected = real_layer(layer, x, scheme, x_range)
        assert got.shape == expected.shape and got.dtype == torch.float32
        assert torch.allclose(got.double(), expected, atol=1e-5)


def test_dynamic_gives_each_picture_its_own_range_so_its_neighbours_do_not_matter():
    layer = IntegerConv2d(torch.nn.Conv2d(1, 3, 3, padding=1).requires_grad_(False))
    small, large = noise(1, 1, 6, 6), 50 * noise(1, 1, 6, 6, seed=1)
    together = layer(torch.cat([small, large]))
    assert torch.equal(together, torch.cat([layer(small), layer(large)]))


def test_pytorchs_dynamic_quantization_leaves_convolutions_alone_and_takes_one_range_a_batch():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(8, 3)).eval()
    x = torch.cat([noise(1, 1, 2, 2), 50 * noise(1, 1, 2, 2, seed=1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = torch.ao.quantization.quantize_dynamic(net, {torch.nn.Conv2d, torch.nn.Linear})
        assert [type(layer).__name__ for layer in dynamic] == ["Conv2d", "Flatten", "Linear"]
        assert type(dynamic[0]) is torch.nn.Conv2d and "quantized" in type(dynamic[2]).__module__
        assert not torch.allclose(dynamic(x)[:1], dynamic(x[:1]), atol=1e-3)


def test_a_scale_inside_the_sum_is_refused():
    for scheme in (Scheme(axis=1), Scheme(group_size=4)):
        with pytest.raises(ValueError, match="an integer sum needs one scale for all the inputs of a row"):
            IntegerLinear(noise(4, 8), scheme=scheme)


def test_what_cannot_be_unfolded_or_replaced_is_refused():
    for conv in (
        torch.nn.Conv2d(2, 2, 3, groups=2),
        torch.nn.Conv2d(2, 2, 3, padding="same"),
        torch.nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    ):
        with pytest.raises(ValueError, match="only a convolution with one group"):
            IntegerConv2d(conv)
    with pytest.raises(TypeError, match="no integer layer for a ReLU"):
        integer_layer(torch.nn.ReLU())


def test_what_a_layer_keeps_is_int8_and_its_description_says_how_it_finds_its_range():
    layer = IntegerLinear(noise(4, 8), noise(4), x_range=(torch.tensor(0.0), torch.tensor(1.0)))
    kept = {name: tensor.dtype for name, tensor in layer.state_dict().items()}
    assert kept["values"] == torch.int8 and kept["x_zero_point"] == torch.int8
    assert state_dict_bytes(layer.state_dict()) == 32 + 4 * 4 + 1 + 4 * 4 + 4 + 1
    assert not list(layer.parameters())
    assert str(layer) == "IntegerLinear(8 -> 4, static)"
    assert str(IntegerLinear(noise(4, 8))) == "IntegerLinear(8 -> 4, dynamic)"


# ---------------------------------------------------------------- folding


@given(st.booleans(), st.sampled_from([{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"dilation": 2}]))
def test_folding_changes_nothing_and_agrees_with_pytorchs_own(bias, options):
    conv = torch.nn.Conv2d(4, 6, 3, bias=bias, **options).eval().requires_grad_(False)
    bn = torch.nn.BatchNorm2d(6, eps=1e-3).eval().requires_grad_(False)
    for tensor, seed in ((bn.weight, 1), (bn.bias, 2), (bn.running_mean, 3)):
        tensor.copy_(noise(6, seed=seed))
    bn.running_var.copy_(noise(6, seed=4).square() + 0.01)
    before = copy.deepcopy([conv.state_dict(), bn.state_dict()])
    x = noise(3, 4, 9, 9)
    fused = fuse_conv_bn(conv, bn)
    theirs = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, bn)
    assert torch.allclose(fused(x), bn(conv(x)), atol=1e-5, rtol=1e-5)
    assert torch.allclose(fused.weight, theirs.weight, rtol=1e-5) and torch.allclose(fused.bias, theirs.bias, atol=1e-6)
    for old, layer in zip(before, (conv, bn), strict=True):
        assert all(torch.equal(old[name], tensor) for name, tensor in layer.state_dict().items())


def test_a_net_is_folded_wherever_a_batch_norm_follows_a_convolution_and_nowhere_else():
    net = sequential(
        {
            "bn0": torch.nn.BatchNorm2d(1),
            "conv1": torch.nn.Conv2d(1, 2, 3),
            "relu1": torch.nn.ReLU(),
            "bn1": torch.nn.BatchNorm2d(2),
            "conv2": torch.nn.Conv2d(2, 2, 3),
            "bn2": torch.nn.BatchNorm2d(2),
        }
    ).eval()
    fused = fuse_batch_norms(net)
    assert [name for name, _ in fused.named_children()] == ["bn0", "conv1", "relu1", "bn1", "conv2"]
    assert torch.allclose(fused(noise(1, 1, 8, 8)), net(noise(1, 1, 8, 8)), atol=1e-5)


def test_a_net_in_training_mode_is_not_folded():
    with pytest.raises(ValueError, match=r"call net\.eval\(\) first"):
        fuse_batch_norms(digits_conv_net().train())


# ---------------------------------------------------------------- the net of the digits


@pytest.fixture(scope="module")
def digits():
    (training, _), (pictures, labels) = load_digits()
    net = load_digits_conv()
    fused = fuse_batch_norms(net)
    double = copy.deepcopy(fused).double()
    with calibrate(double, MinMax) as observers:
        for batch in training[:320].double().split(32):
            double(batch)
    return {"net": net, "fused": fused, "observers": observers, "pictures": pictures, "labels": labels}


def test_the_net_is_what_its_card_says(digits):
    net, card = digits["net"], (DATA / "digits_conv" / "README.md").read_text()
    assert sum(parameter.numel() for parameter in net.parameters()) == 3842
    assert round(accuracy(net, digits["pictures"], digits["labels"]) * 360) == 354
    size = (DATA / "digits_conv" / "net.safetensors").stat().st_size
    assert "354 of 360" in card and "3,842 parameters" in card and f"{size:,} bytes" in card
    assert not net.training and not any(parameter.requires_grad for parameter in net.parameters())
    best, second = net(digits["pictures"]).topk(2).values.T
    assert (best - second).min() > 0.047, "no answer is close to a tie"


def nets(digits):
    for observers in (None, digits["observers"]):
        for scheme in (PER_TENSOR, PER_CHANNEL):
            yield integer_net(digits["fused"], scheme, observers)


def test_int8_changes_no_answer_and_takes_a_quarter_of_the_bytes(digits):
    scores = digits["net"](digits["pictures"])
    for quantized in nets(digits):
        new = quantized(digits["pictures"])
        assert torch.equal(new.argmax(-1), scores.argmax(-1))
        assert sqnr(scores, new) > 44
        assert 0.25 < state_dict_bytes(quantized.state_dict()) / state_dict_bytes(digits["net"].state_dict()) < 0.27


def test_three_bits_begin_to_hurt_and_two_break_it(digits):
    def right(bits):
        quantized = integer_net(digits["fused"], Scheme(bits, axis=None), digits["observers"], bits)
        return round(accuracy(quantized, digits["pictures"], digits["labels"]) * 360)

    assert right(6) == 354 and 340 <= right(3) < 350 and right(2) < 60


def test_integers_handed_from_layer_to_layer_are_those_of_the_detour(digits):
    static = integer_net(digits["fused"], PER_CHANNEL, digits["observers"])
    first, second = static.conv1.matrix, static.conv2.matrix
    planes = digits["pictures"].unsqueeze(1)
    patches = unfold(planes, 3, padding=1).transpose(1, 2)
    q = quantize(patches, first.x_scale, first.x_zero_point)
    sums = integer_linear(q, first.x_zero_point.item(), first.values, 0)
    sums += torch.round(first.bias / (first.x_scale * first.scale)).int()
    z = second.x_zero_point.item()
    handed_over = requantize(sums, first.x_scale, first.scale, second.x_scale, z).clamp(min=z)
    detour = quantize(relu(static.conv1(planes)).flatten(2).transpose(1, 2), second.x_scale, z)
    apart = (handed_over.int() - detour.int()).abs()
    assert apart.max() <= 1 and (apart != 0).double().mean() < 0.001


def test_a_layer_that_was_not_calibrated_is_named(digits):
    some = {name: observer for name, observer in digits["observers"].items() if name != "conv2"}
    with pytest.raises(ValueError, match="layer 'conv2' was not calibrated"):
        integer_net(digits["fused"], PER_CHANNEL, some)


def test_an_integer_net_leaves_the_float_one_alone(digits):
    before = copy.deepcopy(digits["fused"].state_dict())
    for quantized in nets(digits):
        quantized(digits["pictures"][:4])
    assert all(torch.equal(before[name], tensor) for name, tensor in digits["fused"].state_dict().items())


# ---------------------------------------------------------------- pictures


def test_the_bars_add_up_and_are_told():
    picture = figures.running_total({"a": 5000, "b": -23168, "c": 630}, "Terms")
    assert picture.caption == "Terms. a: +5,000, b: -23,168, c: +630; in all -17,538."
    bars = picture.figure.axes[0].patches
    assert [bar.get_x() for bar in bars] == [0, 5000, -18168, 0]
    assert [bar.get_width() for bar in bars] == [5000, -23168, 630, -17538]


def test_the_observed_ranges_are_drawn_where_the_caption_says():
    inputs = {"first": torch.linspace(0, 4, 100), "second": torch.linspace(-1, 2, 50)}
    picture = figures.observed_ranges(inputs, {"min-max": {"first": (0.0, 4.0), "second": (-1.0, 2.0)}})
    assert "first: 100 numbers from 0 to 4; min-max 0 to 4" in picture.caption
    assert "second: 50 numbers from -1 to 2; min-max -1 to 2" in picture.caption
    ends = [sorted(line.get_xdata()[0] for line in axis.lines) for axis in picture.figure.axes]
    assert ends == [[4.0], [-1.0, 2.0]]


def test_rounding_and_clipping_are_the_whole_error():
    values = torch.cat([torch.linspace(0, 1, 990), torch.linspace(2, 5, 10)])
    for percent, bits in ((99, 4), (90, 3), (100, 8)):
        clip = figures.Clip(values, percent, bits, "numbers")
        high = torch.quantile(values.double(), percent / 100)
        scale, zero_point = choose_qparams(torch.stack([torch.zeros(()).double(), high]), Scheme(bits, False, None))
        back = dequantize(quantize(values.clamp(max=high), scale, zero_point, bits), scale, zero_point)
        assert clip.rounding + clip.clipping == pytest.approx((back - values).square().mean().item(), rel=1e-3)
        assert f"{(values > high).sum()} numbers are clipped" in clip.text
    assert clip.clipping == 0


def test_the_clipping_picture_names_the_best_percentile():
    values = torch.cat([torch.linspace(0, 1, 990), torch.linspace(2, 5, 10)])
    picture = figures.clipping(values, 99, 3, "numbers")
    errors = {}
    for percent in figures.PERCENTS:
        clip = figures.Clip(values, percent, 3, "numbers")
        errors[percent] = clip.rounding + clip.clipping
    assert f"Of the percentiles drawn, {min(errors, key=errors.get):g} has the least error" in picture.caption
