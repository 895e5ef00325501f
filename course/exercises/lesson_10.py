"""Exercises of lesson 10: an 8-bit layer, its forward function first."""

import copy

import torch

from course.exercises.exercise import Case, Exercise, Mistake, Property
from course.exercises.judge import short
from course.helper import W8A16LinearLayer, w8_a16_forward
from qlib.affine import asymmetric_qparams, channel_range

linear = torch.nn.functional.linear

# ---------------------------------------------------------------- 10.1 w8_a16_forward

# Halves and quarters: every sum and product is exact in float16 and bfloat16 too, in whatever order it is made.
WEIGHT = torch.tensor([[127, -64, 10], [-5, 127, 30]], dtype=torch.int8)
INPUT = torch.tensor([[1.0, 0.5, -2.0], [0.0, 2.0, 1.0]])
SCALES = torch.tensor([0.5, 0.25])
BIAS = torch.tensor([1.0, -3.0])
SQUARE_WEIGHT = torch.tensor([[4, -2, 8], [127, 0, -16], [32, 64, 2]], dtype=torch.int8)
SQUARE_INPUT = torch.tensor([[1.0, -2.0, 0.5], [2.0, 1.0, 0.0], [0.0, 0.5, 4.0]])
SQUARE_SCALES = torch.tensor([0.25, 2.0, 0.5])
SQUARE_BIAS = torch.tensor([1.0, -8.0, 4.0])
# 2**-26 is not zero in float32, and is in float16, whose smallest number is 2**-24. All the products are exact.
FAINT_WEIGHT = torch.tensor([[64, 64], [127, 0]], dtype=torch.int8)
FAINT_INPUT = torch.tensor([[128.0, 64.0]], dtype=torch.float16)
FAINT_SCALES = torch.tensor([2.0**-26, 2.0**-20])
# 1 + 2**-12 becomes 1 in float16 and in bfloat16; in float32 all is exact.
FINE_INPUT = torch.tensor([[1 + 2.0**-12, 0.5, -2.0]])


def sums_of(weight, input):
    return linear(input, weight.to(input.dtype))


def finish(scaled, input, bias):
    return (scaled if bias is None else scaled + bias).to(input.dtype)


def forgets_the_scales(weight, input, scales, bias=None):
    return finish(sums_of(weight, input), input, bias)


def divides_by_the_scales(weight, input, scales, bias=None):
    return finish(sums_of(weight, input) / scales, input, bias)


def forgets_the_bias(weight, input, scales, bias=None):
    return finish(sums_of(weight, input) * scales, input, None)


def scales_the_bias_too(weight, input, scales, bias=None):
    return finish(sums_of(weight, input), input, bias).mul(scales).to(input.dtype)


def subtracts_the_bias(weight, input, scales, bias=None):
    return finish(sums_of(weight, input) * scales, input, None if bias is None else -bias)


def always_adds_the_bias(weight, input, scales, bias=None):
    return (sums_of(weight, input) * scales + bias).to(input.dtype)


def asks_whether_the_bias_is_true(weight, input, scales, bias=None):
    output = sums_of(weight, input) * scales
    if bias:
        output = output + bias
    return output.to(input.dtype)


def never_casts_the_weight(weight, input, scales, bias=None):
    return finish(linear(input, weight) * scales, input, bias)


def casts_the_weight_to_float32(weight, input, scales, bias=None):
    return finish(linear(input, weight.float()) * scales, input, bias)


def casts_the_input_to_int8(weight, input, scales, bias=None):
    return finish(linear(input.to(torch.int8).float(), weight.float()) * scales, input, bias)


def works_in_int8(weight, input, scales, bias=None):
    return finish(linear(input.to(weight.dtype), weight) * scales, input, bias)


def stays_in_float32(weight, input, scales, bias=None):
    scaled = linear(input.float(), weight.float()) * scales
    return scaled if bias is None else scaled + bias


def works_in_float16(weight, input, scales, bias=None):
    return w8_a16_forward(weight, input.half(), scales, bias).to(input.dtype)


def casts_the_scales(weight, input, scales, bias=None):
    return finish(sums_of(weight, input) * scales.to(input.dtype), input, bias)


def lays_the_scales_along_the_batch(weight, input, scales, bias=None):
    return finish(sums_of(weight, input) * scales.unsqueeze(1), input, bias)


def scales_the_columns_of_the_weight(weight, input, scales, bias=None):
    return finish(linear(input, (weight * scales).to(input.dtype)), input, bias)


def scales_the_input(weight, input, scales, bias=None):
    return finish(linear((input * scales).to(input.dtype), weight.to(input.dtype)), input, bias)


def takes_one_scale_for_all(weight, input, scales, bias=None):
    return finish(sums_of(weight, input) * scales.max(), input, bias)


def never_transposes(weight, input, scales, bias=None):
    return finish(input @ weight.to(input.dtype) * scales, input, bias)


def rounds_the_output(weight, input, scales, bias=None):
    return torch.round(w8_a16_forward(weight, input, scales, bias))


def works_in_place(weight, input, scales, bias=None):
    output = w8_a16_forward(weight, input, scales, bias)
    scales.mul_(2)
    return output


def how_made(args, index):
    weight, input, scales, *bias = args
    total = linear(input.double(), weight.double())[index].item()
    scale = scales[index[-1]].item()
    plus = f" plus the bias {bias[0][index[-1]].item():g}" if bias and bias[0] is not None else ""
    return f"the sum is {total:g}, times the scale {scale:g}{plus}"


W8_A16_FORWARD = Exercise(
    id="10.1",
    name="w8_a16_forward",
    key=w8_a16_forward,
    cases=[
        Case("two inputs of three numbers, two outputs, no bias", (WEIGHT, INPUT, SCALES)),
        Case("the same and a bias", (WEIGHT, INPUT, SCALES, BIAS)),
        Case("a single input, a vector, and a bias", (WEIGHT, INPUT[0], SCALES, BIAS)),
        Case("3 inputs, 3 outputs and a batch of 3", (SQUARE_WEIGHT, SQUARE_INPUT, SQUARE_SCALES, SQUARE_BIAS)),
        Case("a batch of three dimensions", (WEIGHT, torch.stack([INPUT, 2 * INPUT, -INPUT]), SCALES, BIAS)),
        Case("an input of float32 that 16 bits cannot hold", (WEIGHT, FINE_INPUT, SCALES)),
        Case("an input of bfloat16", (WEIGHT, INPUT.bfloat16(), SCALES, BIAS)),
        Case("an input and a bias of float16", (SQUARE_WEIGHT, SQUARE_INPUT.half(), SQUARE_SCALES, SQUARE_BIAS.half())),
        Case("an input of float16 and a scale of 1.5e-8", (FAINT_WEIGHT, FAINT_INPUT, FAINT_SCALES)),
    ],
    mistakes=[
        Mistake(forgets_the_scales, "without the scales"),
        Mistake(divides_by_the_scales, "with a division by the scales; they turn steps into numbers, so multiply"),
        Mistake(forgets_the_bias, "without the bias"),
        Mistake(
            scales_the_bias_too,
            "with the bias added to the bare sums, perhaps by F.linear, so that it is scaled as well",
        ),
        Mistake(subtracts_the_bias, "with the bias subtracted"),
        Mistake(always_adds_the_bias, "with a bias added even where it is None; ask `if bias is not None` first"),
        Mistake(asks_whether_the_bias_is_true, "with `if bias:`, which a tensor cannot answer; ask `is not None`"),
        Mistake(never_casts_the_weight, "with no cast of the weight; int8 and floats do not meet in a matrix product"),
        Mistake(
            casts_the_weight_to_float32,
            "with the weight cast to float32 whatever the input's dtype; cast it to `input.dtype`",
        ),
        Mistake(
            casts_the_input_to_int8,
            "with the input cast to int8, which cuts off its decimals; cast the weight, and leave the input as it is",
        ),
        Mistake(
            works_in_int8,
            "with the input cast to int8 and the product done in it; cast the weight to the input's dtype instead",
        ),
        Mistake(
            stays_in_float32,
            "with no cast at the end: 16-bit sums times float32 scales are float32; the output has the input's dtype",
        ),
        Mistake(works_in_float16, "with the input cast to 16 bits, whatever it was; compute in the dtype that it has"),
        Mistake(casts_the_scales, "with the scales cast to the input's dtype; in float16 a small one becomes 0"),
        Mistake(
            lays_the_scales_along_the_batch,
            "with the scales laid along the batch; they belong to the outputs, the last dimension",
        ),
        Mistake(
            scales_the_columns_of_the_weight,
            "with the scales on the columns of the weight, inside the sums; each belongs to a row, and so to an output",
        ),
        Mistake(scales_the_input, "with the scales on the input; each belongs to an output"),
        Mistake(takes_one_scale_for_all, "with one scale for all outputs; each has its own"),
        Mistake(never_transposes, "without the transpose; a row of the weight belongs to an output"),
        Mistake(rounds_the_output, "with the output rounded; activations stay real numbers here"),
        Mistake(works_in_place, "with an operation in place on what was given"),
    ],
    hints=[
        "Let the integers meet the input in a matrix product as they are, and put the scales and the bias on what "
        "comes out. Of the weight's dtype and the input's, one has to give way.",
        "y = (x Qᵀ) * scales + bias, with Q cast to the input's dtype, and y as well.",
        "`torch.nn.functional.linear(input, …)` with the weight `.to(input.dtype)`, and no bias in it; then `* scales`, "
        "which lie along the last dimension; then the bias if it `is not None`; then `.to(input.dtype)`.",
    ],
    explain=how_made,
)


# ---------------------------------------------------------------- 10.2 W8A16LinearLayer

ROWS = torch.tensor([[0.9, -0.35, 0.2, 0.041], [-2.1, 1.0, 0.31, 1.7], [0.006, 0.0044, -0.0012, -0.0007]])
ONE_ZERO_ROW = torch.tensor([[0.5, -0.24, 0.1, 0.03], [0.0, 0.0, 0.0, 0.0]])
TALL = torch.tensor([[0.7, -0.3], [0.11, 0.52], [-1.4, 0.93], [0.05, -0.08], [3.1, 2.2]])
# In bfloat16 the largest of the first row, divided by its rounded scale, is 127.5, and rounds to 128.
COARSE = torch.tensor([[0.1669921875, -0.1, 0.06, 0.013], [-1.3, 0.7, 0.45, 1.02]]).bfloat16()
# Near the smallest numbers of float16: the scales cannot be written in it.
FAINT = torch.tensor([[6e-7, -2.4e-7, 1.2e-7], [3e-6, 1.9e-6, -1e-6]]).half()
# Largest magnitudes of 127/64 and 127/16: the scales are powers of two, and all else is exact in 16 bits.
EXACT = torch.tensor([[127, -32, 4], [-8, 127, 64]]) / torch.tensor([[64], [16]])


def layer_for(answer, weight, bias=None):
    """A new layer of the learner's class for a weight and a bias, quantized."""
    rows, columns = weight.shape
    layer = answer(columns, rows, bias=False) if bias is None else answer(columns, rows, dtype=bias.dtype)
    layer.quantize(weight)
    if bias is not None:
        layer.bias = bias
    return layer


def integers_and_scales(answer, weight):
    layer = layer_for(answer, weight)
    return layer.int8_weights, layer.scales


def outputs(answer, weight, bias, x):
    return layer_for(answer, weight, bias)(x)


def quantized_twice(answer, first, second):
    """What a layer keeps that takes over one weight and then another."""
    layer = layer_for(answer, first)
    layer.quantize(second)
    return layer.int8_weights, layer.scales


def keeps_its_parts_in_buffers(answer):
    """A new layer holds its three parts as buffers of the right shape and dtype, and no Parameter."""
    layer = answer(4, 3, dtype=torch.bfloat16)
    kept = dict(layer.named_buffers())
    wanted = {
        "int8_weights": ((3, 4), torch.int8),
        "scales": ((3,), torch.float32),
        "bias": ((3,), torch.bfloat16),
    }
    parameters = dict(layer.named_parameters())
    for name, (shape, dtype) in wanted.items():
        if name in parameters:
            return f"{name} is a Parameter; it should be a buffer, so that no optimizer is handed it."
        if name not in kept:
            return f"{name} is not among the layer's buffers; `self.register_buffer` puts it there."
        if tuple(kept[name].shape) != shape or kept[name].dtype != dtype:
            found = f"{short(kept[name].dtype)} of shape {tuple(kept[name].shape)}"
            return f"in a new layer of 4 inputs, 3 outputs and dtype=torch.bfloat16, {name} is {found}, " + (
                f"expected {short(dtype)} of shape {shape}."
            )
    if getattr(answer(4, 3, bias=False), "bias", 0) is not None:
        return "a layer made with bias=False should have None for its bias."
    default = answer(4, 3).bias
    if default is None or default.dtype != torch.float32:
        return "a layer made with no word on bias and dtype should have a float32 bias."
    return None


def keeps_no_float_weight(answer):
    """After `quantize` the integers are all that is left of the weight."""
    layer = layer_for(answer, torch.nn.Parameter(ROWS.clone()))
    tensors = {**vars(layer), **dict(layer.named_parameters()), **dict(layer.named_buffers())}
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel() >= ROWS.numel():
            return f"the layer keeps a whole float weight as {name}, so it is larger than before, not smaller."
    return None


def forward_leaves_the_layer_alone(answer):
    """A forward pass, in 16 bits too, changes none of the buffers."""
    layer = layer_for(answer, ROWS)  # with no bias, whose dtype might not be the input's
    before = {name: part.clone() for name, part in layer.state_dict().items()}
    for dtype in (torch.float16, torch.float32):
        layer(torch.tensor([[1.0, -2.0, 0.5, 4.0]], dtype=dtype))
        for name, part in layer.state_dict().items():
            if part.dtype != before[name].dtype or not torch.equal(part, before[name]):
                return f"`forward` changes {name}; the next input then meets another layer."
    return None


def comes_back_from_a_state_dict(answer):
    """What a quantized layer saves, a new layer can load."""
    saved = layer_for(answer, ROWS, torch.tensor([0.5, -1.0, 2.0]))
    missing = {"int8_weights", "scales", "bias"} - saved.state_dict().keys()
    if missing:
        return f"{sorted(missing)[0]} is missing from the layer's state_dict, so it would not be saved."
    loaded = answer(4, 3)
    loaded.load_state_dict(saved.state_dict())
    x = torch.tensor([[1.0, -2.0, 0.5, 4.0]])
    if not torch.equal(loaded(x), saved(x)):
        return "a new layer that loads the state_dict of a quantized one gives another output."
    return None


def lets_go_of_the_weights_gradient(answer):
    """A layer that took over a Parameter can be copied: none of its buffers leads back to that Parameter."""
    layer = layer_for(answer, torch.nn.Parameter(ROWS.clone()))
    for name in ("int8_weights", "scales"):
        if getattr(layer, name).requires_grad:
            return (
                f"after quantizing the weight of an nn.Linear, {name} requires a gradient: it keeps the float weight "
                "alive, and the layer cannot be deep-copied. `.detach()` the weight first."
            )
    copy.deepcopy(layer)
    return None


class Spoilt(W8A16LinearLayer):
    """The right layer with its quantizer in pieces, for the mistakes below to spoil one of them."""

    def absmax(self, weights):
        return weights.abs().amax(1, keepdim=True)

    def scale(self, weights):
        return (self.absmax(weights) / 127).masked_fill(self.absmax(weights) == 0, 1)

    def integers(self, weights, scale):
        return torch.round(weights / scale).clamp(-127, 127).to(torch.int8)

    def quantize(self, weights):
        weights = weights.detach().float()
        scale = self.scale(weights)
        self.int8_weights, self.scales = self.integers(weights, scale), scale.squeeze(1)


class TriesAParameter(W8A16LinearLayer):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias, dtype)
        del self.int8_weights
        self.int8_weights = torch.nn.Parameter(torch.zeros(out_features, in_features, dtype=torch.int8))


class HasAParameterWithoutGradient(Spoilt):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias, dtype)
        values = self.int8_weights
        del self.int8_weights
        self.int8_weights = torch.nn.Parameter(values, requires_grad=False)

    def quantize(self, weights):
        scale = self.scale(weights.detach().float())
        values = self.integers(weights.detach().float(), scale)
        self.int8_weights = torch.nn.Parameter(values, requires_grad=False)
        self.scales = scale.squeeze(1)


class HasScalesThatLearn(Spoilt):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias, dtype)
        del self.scales
        self.scales = torch.nn.Parameter(torch.ones(out_features))

    def quantize(self, weights):
        scale = self.scale(weights.detach().float())
        self.int8_weights = self.integers(weights.detach().float(), scale)
        self.scales = torch.nn.Parameter(scale.squeeze(1))


class HasABiasThatLearns(W8A16LinearLayer):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias, dtype)
        if bias:
            values = self.bias
            del self.bias
            self.bias = torch.nn.Parameter(values)


class HasPlainAttributes(W8A16LinearLayer):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias, dtype)
        parts = dict(self.named_buffers()) | {"bias": self.bias}
        for name, part in parts.items():
            delattr(self, name)
            setattr(self, name, part)


class HasBuffersThatAreNotSaved(W8A16LinearLayer):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias, dtype)
        for name, part in list(self.named_buffers()):
            self.register_buffer(name, part, persistent=False)


class ForgetsSuper(torch.nn.Module):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        self.register_buffer("int8_weights", torch.zeros(out_features, in_features, dtype=torch.int8))


class SwapsTheSizes(W8A16LinearLayer):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias, dtype)
        self.int8_weights = torch.zeros(in_features, out_features, dtype=torch.int8)


class StartsWithFloatWeights(W8A16LinearLayer):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias, dtype)
        self.int8_weights = torch.zeros(out_features, in_features)


class StartsWithHalfScales(W8A16LinearLayer):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias, dtype)
        self.scales = self.scales.to(dtype)


class StartsWithAScaleForEachInput(W8A16LinearLayer):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias, dtype)
        self.scales = torch.ones(in_features)


class IgnoresTheDtype(W8A16LinearLayer):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias)


class AlwaysHasABias(W8A16LinearLayer):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, True, dtype)


class ReturnsInsteadOfKeeping(Spoilt):
    def quantize(self, weights):
        scale = self.scale(weights.float())
        return self.integers(weights.float(), scale), scale.squeeze(1)


class KeepsTheFloatWeight(Spoilt):
    def quantize(self, weights):
        super().quantize(weights)
        self.int8_weights = weights.detach()


class NeverCastsToInt8(Spoilt):
    def integers(self, weights, scale):
        return torch.round(weights / scale)


class UsesUint8(Spoilt):
    def integers(self, weights, scale):
        return super().integers(weights, scale).to(torch.uint8)


class Truncates(Spoilt):
    def integers(self, weights, scale):
        return (weights / scale).to(torch.int8)


class Floors(Spoilt):
    def integers(self, weights, scale):
        return torch.floor(weights / scale + 1e-4).to(torch.int8)


class Multiplies(Spoilt):
    def integers(self, weights, scale):
        return super().integers(weights * scale, 1)


class DividesBy128(Spoilt):
    def scale(self, weights):
        return super().scale(weights) * 127 / 128

    def integers(self, weights, scale):
        return torch.round(weights / scale).to(torch.int16).to(torch.int8)


class DividesBy128AndClamps(DividesBy128):
    def integers(self, weights, scale):
        return torch.round(weights / scale).clamp(-128, 127).to(torch.int8)


class DividesBy255(Spoilt):
    def scale(self, weights):
        return super().scale(weights) * 127 / 255

    def integers(self, weights, scale):
        return torch.round(weights / scale).clamp(-128, 127).to(torch.int8)


class TakesTheLargestAndNotTheLargestMagnitude(Spoilt):
    def absmax(self, weights):
        return weights.amax(1, keepdim=True)

    def integers(self, weights, scale):
        return torch.round(weights / scale).clamp(-128, 127).to(torch.int8)


class TakesOneScaleForAll(Spoilt):
    def absmax(self, weights):
        return weights.abs().amax().expand(len(weights), 1)


class TakesAScaleForEachColumn(Spoilt):
    def absmax(self, weights):
        return weights.abs().amax(0)

    def quantize(self, weights):
        weights = weights.detach().float()
        self.scales = self.scale(weights)
        self.int8_weights = self.integers(weights, self.scales)


class MakesScalesOfOneColumn(Spoilt):
    def quantize(self, weights):
        super().quantize(weights)
        self.scales = self.scales.unsqueeze(1)


class DividesZeroByZero(Spoilt):
    def scale(self, weights):
        return self.absmax(weights) / 127


class Quantizes0To255(Spoilt):
    def quantize(self, weights):
        scale, zero_point = asymmetric_qparams(*channel_range(weights.detach().float(), 0))
        self.int8_weights = torch.round(weights.float() / scale + zero_point).clamp(-128, 127).to(torch.int8)
        self.scales = scale.squeeze(1)


class KeepsTheScalesInTheWeightsDtype(Spoilt):
    def quantize(self, weights):
        super().quantize(weights)
        self.scales = self.scales.to(weights.dtype)


class WorksInTheWeightsDtype(Spoilt):
    def quantize(self, weights):
        scale = self.scale(weights.detach())
        self.int8_weights, self.scales = self.wrapped(weights, scale), scale.squeeze(1)

    def wrapped(self, weights, scale):
        """Integers with no clamp. int16 in between: what a cast of 128.0 to int8 gives differs between machines."""
        return torch.round(weights / scale).nan_to_num(0, 0, 0).to(torch.int16).to(torch.int8)


class WidensTheScalesAfterwards(WorksInTheWeightsDtype):
    def quantize(self, weights):
        super().quantize(weights)
        self.scales = self.scales.float()


class DividesInTheWeightsDtype(WorksInTheWeightsDtype):
    def quantize(self, weights):
        scale = self.scale(weights.detach().float())
        self.int8_weights = self.wrapped(weights.detach(), scale.to(weights.dtype))
        self.scales = scale.squeeze(1)


class ChangesTheWeight(Spoilt):
    def quantize(self, weights):
        super().quantize(weights)
        weights.detach().div_(self.scales.unsqueeze(1))


class KeepsTheGradient(Spoilt):
    def quantize(self, weights):
        scale = self.scale(weights.float())
        self.int8_weights, self.scales = self.integers(weights.float(), scale), scale.squeeze(1)


class KeepsTheFirstWeight(Spoilt):
    def quantize(self, weights):
        if not self.int8_weights.any():
            super().quantize(weights)


class KeepsAFloatCopy(W8A16LinearLayer):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias, dtype)
        self.register_buffer("weight", torch.zeros(out_features, in_features))

    def quantize(self, weights):
        super().quantize(weights)
        self.weight = self.int8_weights * self.scales.unsqueeze(1)

    def forward(self, input):
        return linear(input, self.weight.to(input.dtype), self.bias)


class ComputesFromTheFloatWeight(KeepsAFloatCopy):
    def quantize(self, weights):
        super().quantize(weights)
        self.weight = weights.detach().float()


class CastsItsOwnScales(W8A16LinearLayer):
    def forward(self, input):
        self.scales = self.scales.to(input.dtype)
        return super().forward(input)


class IsHalfByDefault(W8A16LinearLayer):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float16):
        super().__init__(in_features, out_features, bias, dtype)


class ForgetsTheBias(W8A16LinearLayer):
    def forward(self, input):
        return w8_a16_forward(self.int8_weights, input, self.scales)


class ForgetsTheScales(W8A16LinearLayer):
    def forward(self, input):
        return w8_a16_forward(self.int8_weights, input, torch.ones_like(self.scales), self.bias)


class ScalesTheBiasToo(W8A16LinearLayer):
    def forward(self, input):
        return scales_the_bias_too(self.int8_weights, input, self.scales, self.bias)


class SwapsWeightAndInput(W8A16LinearLayer):
    def forward(self, input):
        return w8_a16_forward(input, self.int8_weights, self.scales, self.bias)


class ComputesInFloat32(W8A16LinearLayer):
    def forward(self, input):
        return stays_in_float32(self.int8_weights, input, self.scales, self.bias)


W8A16_LINEAR_LAYER = Exercise(
    id="10.2",
    name="W8A16LinearLayer",
    key=W8A16LinearLayer,
    cases=[
        Case("a weight of 3 rows and 4 columns", (ROWS,), use=integers_and_scales),
        Case("a weight of 5 rows and 2 columns", (TALL,), use=integers_and_scales),
        Case("a row of zeros", (ONE_ZERO_ROW,), use=integers_and_scales),
        Case("a weight of bfloat16", (COARSE,), use=integers_and_scales),
        Case("a weight of float16 with tiny numbers", (FAINT,), use=integers_and_scales),
        Case("one weight quantized and then another", (-ROWS, ROWS), use=quantized_twice),
        Case(
            "a forward pass with a bias",
            (EXACT, torch.tensor([1.0, -4.0]), torch.tensor([[1.0, 2.0, -0.5], [0.5, 0.25, 2.0]])),
            use=outputs,
        ),
        Case(
            "a forward pass with weights that are rounded",
            (ROWS, None, torch.tensor([1.0, 2.0, -0.5, 4.0])),
            use=outputs,
        ),
        Case("a forward pass without a bias", (EXACT, None, torch.tensor([1.0, 2.0, -0.5])), use=outputs),
        Case(
            "a forward pass in bfloat16",
            (EXACT.bfloat16(), torch.tensor([1.0, -4.0]).bfloat16(), torch.tensor([[1.0, 2.0, -0.5]]).bfloat16()),
            use=outputs,
        ),
    ],
    properties=[
        Property(keeps_its_parts_in_buffers),
        Property(comes_back_from_a_state_dict),
        Property(keeps_no_float_weight),
        Property(forward_leaves_the_layer_alone),
        Property(lets_go_of_the_weights_gradient),
    ],
    mistakes=[
        Mistake(TriesAParameter, "with the integers as an nn.Parameter; make them a buffer with `register_buffer`"),
        Mistake(
            HasAParameterWithoutGradient,
            "with the integers as an nn.Parameter of requires_grad=False; `register_buffer` is made for them",
        ),
        Mistake(HasScalesThatLearn, "with the scales as an nn.Parameter; they belong to the integers, as a buffer"),
        Mistake(HasABiasThatLearns, "with the bias as an nn.Parameter; here it is a buffer as well"),
        Mistake(HasPlainAttributes, "with plain attributes; a tensor is saved and moved only if it is registered"),
        Mistake(HasBuffersThatAreNotSaved, "with persistent=False, which keeps a buffer out of the state_dict"),
        Mistake(ForgetsSuper, "without `super().__init__()`, which makes a Module ready to hold buffers"),
        Mistake(SwapsTheSizes, "with int8_weights of shape (inputs, outputs); a row belongs to an output"),
        Mistake(StartsWithFloatWeights, "with int8_weights made without dtype=torch.int8"),
        Mistake(StartsWithHalfScales, "with scales of the layer's dtype; they are float32, whatever the bias is"),
        Mistake(StartsWithAScaleForEachInput, "with scales made for the inputs; there is one for each output"),
        Mistake(IgnoresTheDtype, "with `dtype` ignored; the bias is of that dtype"),
        Mistake(AlwaysHasABias, "with a bias even where bias=False"),
        Mistake(
            ReturnsInsteadOfKeeping,
            "with integers and scales returned; `quantize` keeps them in self.int8_weights and self.scales",
        ),
        Mistake(KeepsTheFloatWeight, "with the float weight kept in the place of the integers"),
        Mistake(NeverCastsToInt8, "with whole numbers that are still floats; cast them to int8"),
        Mistake(UsesUint8, "with uint8, which has no negative numbers"),
        Mistake(Truncates, "with no round before the cast, which cuts off the decimals"),
        Mistake(Floors, "with floor in place of round"),
        Mistake(Multiplies, "with a multiplication by the scale; divide, to count the steps"),
        Mistake(DividesBy128, "with the largest magnitude over 128: then it becomes 128 itself and wraps to -128"),
        Mistake(DividesBy128AndClamps, "with the largest magnitude over 128; the largest integer is 127"),
        Mistake(DividesBy255, "with the largest magnitude over 255; it reaches from 0 to one end only, over 127"),
        Mistake(
            TakesTheLargestAndNotTheLargestMagnitude,
            "with the largest value of a row; it is the largest magnitude that counts, `.abs()` first",
        ),
        Mistake(TakesOneScaleForAll, "with one scale for the whole weight; each row has its own"),
        Mistake(TakesAScaleForEachColumn, "with a scale for each column; each row has one, so reduce over dimension 1"),
        Mistake(
            MakesScalesOfOneColumn,
            "with scales of shape (outputs, 1); `.squeeze(1)` makes the row that meets the outputs",
        ),
        Mistake(DividesZeroByZero, "with a scale of 0, or next to 0, for a row of zeros; it is 1 there"),
        Mistake(Quantizes0To255, "with asymmetric integers; the layer has no zero point to take off again"),
        Mistake(
            KeepsTheScalesInTheWeightsDtype,
            "with the scales kept in the weight's own dtype; they stay float32",
        ),
        Mistake(
            WorksInTheWeightsDtype,
            "with scales and division in the weight's own 16 bits; make the weight float32 first",
        ),
        Mistake(
            WidensTheScalesAfterwards,
            "with all of it calculated in the weight's own 16 bits; make the weight float32 first, not the result",
        ),
        Mistake(
            DividesInTheWeightsDtype,
            "with a division in the weight's own 16 bits, whose steps near 127 are half an integer or the scale of "
            "which is 0; make the weight float32 first",
        ),
        Mistake(ChangesTheWeight, "with an operation in place on the weight"),
        Mistake(KeepsTheGradient, "without `.detach()`"),
        Mistake(KeepsTheFirstWeight, "with a layer that can be quantized only once"),
        Mistake(
            KeepsAFloatCopy,
            "with a float copy kept beside the integers; `forward` works with the integers",
        ),
        Mistake(ComputesFromTheFloatWeight, "with the float weight kept, and `forward` computed from that"),
        Mistake(CastsItsOwnScales, "with self.scales assigned to in `forward`; cast into a variable of its own"),
        Mistake(IsHalfByDefault, "with another default for `dtype`; it is torch.float32"),
        Mistake(ForgetsTheBias, "without the bias in `forward`"),
        Mistake(ForgetsTheScales, "without the scales in `forward`"),
        Mistake(ScalesTheBiasToo, "with the bias scaled as well"),
        Mistake(SwapsWeightAndInput, "with the weight and the input swapped in the call of w8_a16_forward"),
        Mistake(ComputesInFloat32, "with an output of float32 whatever the input; it has the input's dtype"),
    ],
    parts=("int8_weights", "scales"),
    hints=[
        "Three buffers that `__init__` makes, `quantize` fills and `forward` hands to w8_a16_forward. "
        "The quantizer itself is that of lesson 7 with a scale for each row.",
        "scale of a row = its largest magnitude / 127, in float32, 1 for a row of zeros; integers = round(row / scale), "
        "as int8.",
        '`self.register_buffer("int8_weights", torch.zeros(…, dtype=torch.int8))` and so on, None for a bias that is '
        "not wanted; in `quantize`, `.detach()` the weight, then `choose_qparams(…, Scheme(bits=8))` and `quantize`, "
        "and `.squeeze(1)` on the scales before you keep them.",
    ],
)

EXERCISES = [W8_A16_FORWARD, W8A16_LINEAR_LAYER]
