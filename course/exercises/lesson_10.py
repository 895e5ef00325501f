"""Exercises of lesson 10: an 8-bit layer, its forward function first."""

import copy

import torch

from course.exercises.exercise import Case, Exercise, Property
from course.exercises.judge import short
from course.exercises.mistakes import Mistake, edit
from course.helper import W8A16LinearLayer, w8_a16_forward

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


# Pieces of the key.
CAST, PRODUCT = "weight.to(input.dtype)", "torch.nn.functional.linear(input, weight.to(input.dtype))"


def how_made(args, index):
    weight, input, scales, *bias = args
    total = (input.double() @ weight.double().T)[index].item()
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
        Mistake(edit("sums * scales", "sums"), "without the scales"),
        Mistake(edit("sums *", "sums /"), "with a division by the scales; they turn steps into numbers, so multiply"),
        Mistake(edit("* scales", "* scales * scales"), "with the scales applied twice"),
        Mistake(edit("* scales", "* scales.max()"), "with one scale for all outputs; each has its own"),
        Mistake(edit("output + bias", "output"), "without the bias"),
        Mistake(edit("output + bias", "output - bias"), "with the bias subtracted"),
        Mistake(
            edit("sums * scales", "(sums if bias is None else sums + bias) * scales", "output + bias", "output"),
            "with the bias added to the bare sums, perhaps by F.linear, so that it is scaled as well",
        ),
        Mistake(edit("bias is not None", "True"), "with a bias added even where it is None; ask `is not None` first"),
        Mistake(edit("bias is not None", "bias"), "with `if bias:`, which a tensor cannot answer; ask `is not None`"),
        Mistake(edit("return output.to(input.dtype)", "return output"), "with no cast at the end: 16-bit sums times float32 scales are float32; the output has the input's dtype"),
        Mistake(edit("return output.to(input.dtype)", "return output.half()"), "with an output of float16 whatever the input; it has the input's dtype"),
        Mistake(edit(CAST, "weight"), "with no cast of the weight; int8 and floats do not meet in a matrix product"),
        Mistake(edit(CAST, "weight.float()"), "with the weight cast to float32 always; cast it to `input.dtype`"),
        Mistake(edit(CAST, "weight.half()"), "with the weight cast to float16 always; cast it to `input.dtype`"),
        Mistake(edit("input, " + CAST, "input.half(), weight.half()"), "with the input cast to 16 bits, whatever it was; compute in the dtype that it has"),
        Mistake(edit("input, " + CAST, "input.to(torch.int8).float(), weight.float()"), "with the input cast to int8, which cuts off its decimals; cast the weight, and leave the input as it is"),
        Mistake(edit("input, " + CAST, "input.to(torch.int8), weight"), "with the input cast to int8 and the product done in it; cast the weight to the input's dtype instead"),
        Mistake(edit("* scales", "* scales.to(input.dtype)"), "with the scales cast to the input's dtype; in float16 a small one becomes 0"),
        Mistake(edit("* scales", "* scales.unsqueeze(1)"), "with the scales laid along the batch; they belong to the outputs, the last dimension"),
        Mistake(edit(CAST, "(weight * scales).to(input.dtype)", "sums * scales", "sums"), "with the scales on the columns of the weight, inside the sums; each belongs to a row, and so to an output"),
        Mistake(edit("(input, ", "((input * scales).to(input.dtype), ", "sums * scales", "sums"), "with the scales on the input; each belongs to an output"),
        Mistake(edit(CAST, "weight * scales[:, None], bias", "sums * scales", "sums", "output + bias", "output"), "with the scaled weight left in float32; cast it to the input's dtype"),
        Mistake(
            edit(CAST, CAST + " * scales[:, None].to(input.dtype), bias", "sums * scales", "sums", "output + bias", "output"),
            "with a bias and a product of two dtypes in F.linear; cast the bias, or add it afterwards",
        ),
        Mistake(edit(PRODUCT, "input @ " + CAST), "without the transpose; a row of the weight belongs to an output"),
        Mistake(edit(PRODUCT, CAST + " @ input.T"), "with the weight on the left; the batch comes first, input @ weight.T"),
        Mistake(edit("return output", "return output.round()"), "with the output rounded; activations stay real here"),
        Mistake(edit("return", "weight.data = weight.float()\n    return"), "with an operation in place on what was given"),
    ],
    hints=[
        "Let the integers meet the input in a matrix product as they are, and put the scales and the bias on what comes out. Of the weight's dtype and the input's, one has to give way.",
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
COARSE = torch.tensor([[0.1669921875, -0.1, 0.06, 0.013], [1.3, -0.7, 0.45, -1.02]]).bfloat16()
# Near the smallest numbers of float16: the scales cannot be written in it.
FAINT = torch.tensor([[6e-7, 2.4e-7, 1.2e-7], [3e-6, 1.9e-6, 1e-6]]).half()
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
    wanted = {"int8_weights": ((3, 4), torch.int8), "scales": ((3,), torch.float32), "bias": ((3,), torch.bfloat16)}
    parameters = dict(layer.named_parameters())
    for name, (shape, dtype) in wanted.items():
        if name in parameters:
            return f"{name} is a Parameter; it should be a buffer, so that no optimizer is handed it."
        if name not in kept:
            return f"{name} is not among the layer's buffers; `self.register_buffer` puts it there."
        if tuple(kept[name].shape) != shape or kept[name].dtype != dtype:
            found = f"{short(kept[name].dtype)} of shape {tuple(kept[name].shape)}"
            return f"in a new layer of 4 inputs, 3 outputs and dtype=torch.bfloat16, {name} is {found}, " + (f"expected {short(dtype)} of shape {shape}.")
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
            return f"after quantizing the weight of an nn.Linear, {name} requires a gradient: it keeps the float weight alive, and the layer cannot be deep-copied. `.detach()` the weight first."
    copy.deepcopy(layer)
    return None


# Pieces of the key, and what is put in their place.
INT8_WEIGHTS, SCALES, BIAS = (f'self.register_buffer("{part}", ' for part in ("int8_weights", "scales", "bias"))
CHOSEN, QUANTIZED = "affine.choose_qparams(weights, INT8)", "affine.quantize(weights, row_scales, zero_point)"
ABSMAX = "weights.float().abs().amax(1, keepdim=True)"
IN_16_BITS = "torch.round(weights / row_scales.to(weights.dtype))"
CLAMPED = IN_16_BITS + ".clamp(-128, 127).to(torch.int8)"
# int16 in between: what a cast of 128.0 to int8 gives differs between machines.
WRAPPED = IN_16_BITS + ".nan_to_num(0, 0, 0).to(torch.int16).to(torch.int8)"
KEPT, KEPT_IN_16_BITS, WIDENED = ".squeeze(1)", ".squeeze(1).to(weights.dtype)", ".squeeze(1).to(weights.dtype).float()"
FORWARD = "w8_a16_forward(self.int8_weights, input, self.scales, self.bias)"


def linear(weight):
    """Code that takes a float of a weight for the whole of `forward`."""
    return f"torch.nn.functional.linear(input, {weight}.to(input.dtype), self.bias)"


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
        Case("a forward pass with a bias", (EXACT, torch.tensor([1.0, -4.0]), torch.tensor([[1.0, 2.0, -0.5], [0.5, 0.25, 2.0]])), use=outputs),
        Case("a forward pass with weights that are rounded", (ROWS, None, torch.tensor([1.0, 2.0, -0.5, 4.0])), use=outputs),
        Case("a forward pass without a bias", (EXACT, None, torch.tensor([1.0, 2.0, -0.5])), use=outputs),
        Case("a forward pass in bfloat16", (EXACT.bfloat16(), torch.tensor([1.0, -4.0]).bfloat16(), torch.tensor([[1.0, 2.0, -0.5]]).bfloat16()), use=outputs),
    ],
    properties=[
        Property(keeps_its_parts_in_buffers),
        Property(comes_back_from_a_state_dict),
        Property(keeps_no_float_weight),
        Property(forward_leaves_the_layer_alone),
        Property(lets_go_of_the_weights_gradient),
    ],
    mistakes=[
        # the integers
        Mistake(edit(QUANTIZED, "(weights.float() / row_scales).to(torch.int8)"), "with no round before the cast, which cuts off the decimals"),
        Mistake(edit(QUANTIZED, "torch.floor(weights.float() / row_scales).to(torch.int8)"), "with floor in place of round"),
        Mistake(edit(QUANTIZED, "torch.round(weights.float() * row_scales).to(torch.int8)"), "with a multiplication by the scale; divide, to count the steps"),
        Mistake(edit(QUANTIZED, "weights"), "with the float weight kept in the place of the integers"),
        Mistake(edit("zero_point)", "zero_point).float()"), "with whole numbers that are still floats; cast them to int8"),
        Mistake(edit("zero_point)", "zero_point).to(torch.uint8)"), "with uint8, which has no negative numbers"),
        Mistake(edit("row_scales, zero_point)", "row_scales.squeeze(1), zero_point)"), "with a division by scales that lie along the columns; `[:, None]` stands them beside the rows"),
        # the scales
        Mistake(edit(CHOSEN, f"({ABSMAX} / 127, 0)"), "with a scale of 0, or next to 0, for a row of zeros; it is 1 there"),
        Mistake(edit(CHOSEN, f"(({ABSMAX} / 127).clamp(min=1e-8), 0)"), "with no scale below 1e-8; a row of zeros has the scale 1, and a row of small numbers its own"),
        Mistake(
            edit(CHOSEN, f"(({ABSMAX} / 127).clamp(min=torch.finfo(torch.float32).eps), 0)"), "with no scale below torch's eps; a row of zeros has the scale 1, and a row of small numbers its own"
        ),
        Mistake(edit("(weights, INT8)", "(weights.float() * 127 / 128, INT8)"), "with the largest magnitude over 128; the largest integer is 127"),
        Mistake(
            edit("(weights, INT8)", "(weights.float() * 127 / 128, INT8)", QUANTIZED, WRAPPED.replace("weights.dtype", "torch.float32")),
            "with the largest magnitude over 128: then it becomes 128 itself and wraps to -128",
        ),
        Mistake(edit("(weights, INT8)", "(weights.float() * 127 / 255, INT8)"), "with the largest magnitude over 255; it reaches from 0 to one end only, over 127"),
        Mistake(edit("(weights, INT8)", "(weights.clamp(min=0), INT8)"), "with the largest value of a row; it is the largest magnitude that counts, `.abs()` first"),
        Mistake(edit(CHOSEN, "(weights.float().abs().max(1) / 127, 0)"), "with `.max(1)` as it is, which gives values and indices; take its `.values`"),
        Mistake(edit("INT8", "Scheme(axis=None)", KEPT, ""), "with a single scale, of shape (), for the whole weight; each row has its own"),
        Mistake(edit("INT8", "Scheme(axis=None)", KEPT, ".expand(len(weights))"), "with one scale for the whole weight; each row has its own"),
        Mistake(edit("INT8", "Scheme(axis=1)", KEPT, ".squeeze(0)"), "with a scale for each column; each row has one, so reduce over dimension 1"),
        Mistake(edit(KEPT, ""), "with scales of shape (outputs, 1); `.squeeze(1)` makes the row that meets the outputs"),
        Mistake(edit("INT8", "Scheme(symmetric=False)"), "with asymmetric integers; the layer has no zero point to take off again"),
        # 16 bits
        Mistake(edit(KEPT, KEPT_IN_16_BITS), "with the scales kept in the weight's own dtype; they stay float32"),
        Mistake(edit(QUANTIZED, WRAPPED, KEPT, KEPT_IN_16_BITS), "with scales and division in the weight's own 16 bits; make the weight float32 first"),
        Mistake(edit(QUANTIZED, WRAPPED, KEPT, WIDENED), "with all of it calculated in the weight's own 16 bits; make the weight float32 first, not the result"),
        Mistake(edit(QUANTIZED, WRAPPED), "with a division in the weight's own 16 bits, whose steps near 127 are half an integer or the scale of which is 0; make the weight float32 first"),
        Mistake(edit(QUANTIZED, CLAMPED, KEPT, KEPT_IN_16_BITS), "with scales and division in the weight's own 16 bits, where a clamp saves the signs and no more"),
        Mistake(edit(QUANTIZED, CLAMPED, KEPT, WIDENED), "with all of it calculated in the weight's own 16 bits, where a clamp saves the signs and no more"),
        Mistake(edit(QUANTIZED, CLAMPED), "with a division in the weight's own 16 bits, where a clamp saves the signs and no more"),
        Mistake(edit("(weights, row_scales", "(weights, row_scales.to(weights.dtype)", KEPT, KEPT_IN_16_BITS), "with the scales cast to the weight's own dtype before the division; they stay float32"),
        Mistake(
            edit("(weights, row_scales", "(weights, row_scales.to(weights.dtype)", KEPT, WIDENED), "with scales that were rounded to the weight's own dtype on the way; they stay float32 throughout"
        ),
        # what `quantize` keeps
        Mistake(
            edit("self.int8_weights = affine", "values = affine", "self.scales = row_scales.squeeze(1)", "return values"),
            "with integers and scales returned; `quantize` keeps them in self.int8_weights and self.scales",
        ),
        Mistake(edit("self.scales = row", "scales = row"), "with the scales in a variable of `quantize`; keep self.scales"),
        Mistake(edit(QUANTIZED, "affine.quantize(weights.div_(row_scales), 1, 0)"), "with an operation in place on the weight"),
        Mistake(edit(".detach()", ""), "without `.detach()`"),
        Mistake(edit("weights = weights", "if self.int8_weights.any():\n            return\n        weights = weights"), "with a layer that can be quantized only once"),
        Mistake(edit("self.scales = row", "self.weight = weights\n        self.scales = row"), "with the float weight kept beside the integers; they are all that should be left of it"),
        Mistake(edit("self.scales = row", "self.weight = weights\n        self.scales = row", FORWARD, linear("self.weight")), "with the float weight kept, and `forward` computed from that"),
        Mistake(
            edit("self.scales = row", "self.copy = self.int8_weights * row_scales\n        self.scales = row", FORWARD, linear("self.copy")),
            "with a float copy kept beside the integers; `forward` works with the integers",
        ),
        # `forward`
        Mistake(edit(", self.bias", ""), "without the bias in `forward`"),
        Mistake(edit("input, self.scales", "input, torch.ones_like(self.scales)"), "without the scales in `forward`"),
        Mistake(edit(FORWARD, f"({linear('self.int8_weights')} * self.scales).to(input.dtype)"), "with the bias scaled as well"),
        Mistake(
            edit(FORWARD, "torch.nn.functional.linear(input, self.int8_weights * self.scales[:, None], self.bias)"),
            "with a weight of float32 in `forward` whatever the input; leave it to w8_a16_forward",
        ),
        Mistake(edit("self.int8_weights, input", "input, self.int8_weights"), "with the weight and the input swapped in the call of w8_a16_forward"),
        Mistake(edit("input, self.scales", "input.float(), self.scales"), "with an output of float32 whatever the input; it has the input's dtype"),
        Mistake(edit("return w8", "self.scales = self.scales.to(input.dtype)\n        return w8"), "with self.scales assigned to in `forward`; cast into a variable of its own"),
        # the buffers
        Mistake(edit(INT8_WEIGHTS, "self.int8_weights = torch.nn.Parameter("), "with the integers as an nn.Parameter; make them a buffer with `register_buffer`"),
        Mistake(
            edit(INT8_WEIGHTS, "self.int8_weights = torch.nn.Parameter(requires_grad=False, data=", "self.int8_weights = affine", "self.int8_weights.data = affine"),
            "with the integers as an nn.Parameter of requires_grad=False; `register_buffer` is made for them",
        ),
        Mistake(edit(SCALES, "self.scales = torch.nn.Parameter(", "self.scales = row", "self.scales.data = row"), "with the scales as an nn.Parameter; they belong to the integers, as a buffer"),
        Mistake(edit(BIAS, "self.bias = torch.nn.Parameter(", " if bias else None)", ") if bias else None"), "with the bias as an nn.Parameter; here it is a buffer as well"),
        Mistake(edit(INT8_WEIGHTS, "self.int8_weights = (", SCALES, "self.scales = (", BIAS, "self.bias = ("), "with plain attributes; a tensor is saved and moved only if it is registered"),
        Mistake(edit(SCALES, "self.scales = ("), "with scales that are a plain attribute, neither saved nor moved"),
        Mistake(edit(BIAS, "self.bias = ("), "with a bias that is a plain attribute, neither saved nor moved"),
        Mistake(
            edit("dtype=torch.int8)", "dtype=torch.int8), False", "float32))", "float32), False)", "bias else None", "bias else None, False"),
            "with persistent=False, which keeps a buffer out of the state_dict",
        ),
        Mistake(edit("super().__init__()", "pass"), "without `super().__init__()`, which makes a Module ready to hold buffers"),
        Mistake(
            edit("torch.nn.Module", "torch.nn.Linear", "__init__()", "__init__(in_features, out_features, bias)"),
            "with nn.Linear to build on, which has a float weight and a bias already; build on nn.Module",
        ),
        Mistake(edit("zeros(out_features, in_features", "zeros(in_features, out_features"), "with int8_weights of shape (inputs, outputs); a row belongs to an output"),
        Mistake(edit(", dtype=torch.int8", ""), "with int8_weights made without dtype=torch.int8"),
        Mistake(edit("dtype=torch.float32))", "dtype=dtype))"), "with scales of the layer's dtype; they are float32, whatever the bias is"),
        Mistake(edit("ones(out", "ones(in"), "with scales made for the inputs; there is one for each output"),
        Mistake(edit("ones(out_features", "ones((out_features, 1)"), "with new scales of shape (outputs, 1); they are a row"),
        Mistake(edit("out_features, dtype=dtype", "out_features"), "with `dtype` ignored; the bias is of that dtype"),
        Mistake(edit("zeros(out_features, dtype", "zeros(1, out_features, dtype"), "with a bias of shape (1, outputs), as in the video course; here it is (outputs,)"),
        Mistake(edit(" if bias else None", ""), "with a bias even where bias=False"),
        Mistake(edit(BIAS, "if bias: " + BIAS, " if bias else None", ""), "with no `bias` at all where bias=False, when `forward` looks for one; make it None"),
        Mistake(edit("torch.float32):", "torch.float16):"), "with another default for `dtype`; it is torch.float32"),
    ],
    parts=("int8_weights", "scales"),
    equivalent={"torch.ones(out_features, dtype=torch.float32) -> torch.ones(out_features)": "float32 is torch's own default"},
    hints=[
        "Three buffers that `__init__` makes, `quantize` fills and `forward` hands to w8_a16_forward. The quantizer itself is that of lesson 7 with a scale for each row.",
        "scale of a row = its largest magnitude / 127, in float32, 1 for a row of zeros; integers = round(row / scale), as int8.",
        '`self.register_buffer("int8_weights", torch.zeros(…, dtype=torch.int8))` and so on, None for a bias that is '
        "not wanted; in `quantize`, `.detach()` the weight, then `choose_qparams(…, Scheme(bits=8))` and `quantize`, "
        "and `.squeeze(1)` on the scales before you keep them.",
    ],
)

EXERCISES = [W8_A16_FORWARD, W8A16_LINEAR_LAYER]
