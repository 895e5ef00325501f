"""Exercises of lesson 9: quantizing weights and activations for inference."""

import copy

import torch

from course.exercises.exercise import Case, Exercise, Mistake, Property
from course.exercises.judge import kind
from qlib.affine import quant_range
from qlib.linear import integer_linear
from qlib.methods.static import fuse_conv_bn, requantize
from qlib.observers import MovingAverage


def int8(numbers):
    return torch.as_tensor(numbers).to(torch.int8)


def integers(rows, columns, step):
    """Integers from -128 to 127 that look like noise: literals would fill a page."""
    return int8((torch.arange(rows * columns) * step + 31) % 256 - 128).reshape(rows, columns)


# ---------------------------------------------------------------- 09.1 integer_linear

# The course's layer: its input is on marks 85 apart, its weight is asymmetric here.
X = int8([[-43, 42, 127]])
W = int8([[-128, -74, 21], [-98, 10, 95], [9, 78, 127]])
# Products of one sign pile up: 300 of them are far beyond int16.
LONG_X, LONG_W = integers(2, 300, 7).abs().clamp(max=127), integers(4, 300, 11).abs().clamp(max=127)


def sums(x, w):
    """The raw products and the two sums of a right answer, for the mistakes below to spoil in one place each."""
    x, w = x.to(torch.int32), w.to(torch.int32)
    return x @ w.T, x.sum(-1, keepdim=True).to(torch.int32), w.sum(-1).to(torch.int32)


def forgets_the_zero_points(x, x_zero_point, w, w_zero_point):
    return sums(x, w)[0]


def forgets_the_constant(x, x_zero_point, w, w_zero_point):
    products, x_sums, w_sums = sums(x, w)
    return products - x_zero_point * w_sums - w_zero_point * x_sums


def subtracts_the_constant(x, x_zero_point, w, w_zero_point):
    return forgets_the_constant(x, x_zero_point, w, w_zero_point) - x.shape[-1] * x_zero_point * w_zero_point


def forgets_to_count_the_inputs(x, x_zero_point, w, w_zero_point):
    return forgets_the_constant(x, x_zero_point, w, w_zero_point) + x_zero_point * w_zero_point


def counts_the_outputs(x, x_zero_point, w, w_zero_point):
    return forgets_the_constant(x, x_zero_point, w, w_zero_point) + w.shape[0] * x_zero_point * w_zero_point


def counts_the_rows(x, x_zero_point, w, w_zero_point):
    return forgets_the_constant(x, x_zero_point, w, w_zero_point) + x.shape[0] * x_zero_point * w_zero_point


def adds_the_sum_of_the_weights(x, x_zero_point, w, w_zero_point):
    return integer_linear(x, x_zero_point, w, w_zero_point) + 2 * x_zero_point * sums(x, w)[2]


def adds_the_sum_of_the_inputs(x, x_zero_point, w, w_zero_point):
    return integer_linear(x, x_zero_point, w, w_zero_point) + 2 * w_zero_point * sums(x, w)[1]


def adds_all_corrections(x, x_zero_point, w, w_zero_point):
    products, x_sums, w_sums = sums(x, w)
    return products + x_zero_point * w_sums + w_zero_point * x_sums + x.shape[-1] * x_zero_point * w_zero_point


def swaps_the_zero_points(x, x_zero_point, w, w_zero_point):
    return integer_linear(x, w_zero_point, w, x_zero_point)


def forgets_the_weights_zero_point(x, x_zero_point, w, w_zero_point):
    return integer_linear(x, x_zero_point, w, 0)


def forgets_the_inputs_zero_point(x, x_zero_point, w, w_zero_point):
    return integer_linear(x, 0, w, w_zero_point)


def corrects_by_the_mean(x, x_zero_point, w, w_zero_point):
    products, x_sums, w_sums = sums(x, w)
    count = x.shape[-1]
    return products - x_zero_point * w_sums // count - w_zero_point * x_sums // count + x_zero_point * w_zero_point


def multiplies_in_int8(x, x_zero_point, w, w_zero_point):
    _, x_sums, w_sums = sums(x, w)
    products = (x @ w.T).to(torch.int32)
    return products - x_zero_point * w_sums - w_zero_point * x_sums + x.shape[-1] * x_zero_point * w_zero_point


def accumulates_in_int16(x, x_zero_point, w, w_zero_point):
    return integer_linear(x, x_zero_point, w, w_zero_point).to(torch.int16).to(torch.int32)


def subtracts_in_int8(x, x_zero_point, w, w_zero_point):
    return (x - int8(x_zero_point)).to(torch.int32) @ (w - int8(w_zero_point)).to(torch.int32).T


def never_transposes(x, x_zero_point, w, w_zero_point):
    _, x_sums, w_sums = sums(x, w)
    products = x.to(torch.int32) @ w.to(torch.int32)
    return products - x_zero_point * w_sums - w_zero_point * x_sums + x.shape[-1] * x_zero_point * w_zero_point


def sums_the_weights_over_the_outputs(x, x_zero_point, w, w_zero_point):
    products, x_sums, _ = sums(x, w)
    w_sums = w.to(torch.int32).sum(0)
    return products - x_zero_point * w_sums - w_zero_point * x_sums + x.shape[-1] * x_zero_point * w_zero_point


def sums_the_inputs_over_the_batch(x, x_zero_point, w, w_zero_point):
    products, _, w_sums = sums(x, w)
    x_sums = x.to(torch.int32).sum(0)
    return products - x_zero_point * w_sums - w_zero_point * x_sums + x.shape[-1] * x_zero_point * w_zero_point


def leaves_the_sum_of_the_inputs_a_row(x, x_zero_point, w, w_zero_point):
    products, x_sums, w_sums = sums(x, w)
    constant = x.shape[-1] * x_zero_point * w_zero_point
    return products - x_zero_point * w_sums - w_zero_point * x_sums.squeeze(-1) + constant


def sums_everything(x, x_zero_point, w, w_zero_point):
    x_sums, w_sums = x.to(torch.int32).sum(), w.to(torch.int32).sum()
    corrections = x.shape[-1] * x_zero_point * w_zero_point - x_zero_point * w_sums - w_zero_point * x_sums
    return sums(x, w)[0] + corrections


def stays_in_float(x, x_zero_point, w, w_zero_point):
    return (x.float() - x_zero_point) @ (w.float() - w_zero_point).T


def works_in_place(x, x_zero_point, w, w_zero_point):
    result = integer_linear(x, x_zero_point, w, w_zero_point)
    x.sub_(x_zero_point)
    return result


def as_int32(answer, *args):
    """The sums as int32: PyTorch's own sums are int64, and to ask for one or the other would teach nothing."""
    result = answer(*args)
    whole = isinstance(result, torch.Tensor) and not result.is_floating_point() and result.dtype != torch.bool
    return result.to(torch.int32) if whole else result


def how_summed(args, index):
    x, x_zero_point, w, w_zero_point = args
    products, x_sums, w_sums = sums(x, w)
    return (
        f"products {products[index].item()}, sum of the inputs {x_sums[(*index[:-1], 0)].item()}, "
        f"of the weights {w_sums[index[-1]].item()}"
    )


INTEGER_LINEAR = Exercise(
    id="09.1",
    name="integer_linear",
    key=integer_linear,
    cases=[
        Case("the course's layer, zero points -128 and -5", (X, -128, W, -5), use=as_int32),
        Case("three rows, zero points -128 and -5", (integers(3, 3, 37), -128, W, -5), use=as_int32),
        Case("300 inputs and zero points of 0", (LONG_X, 0, LONG_W, 0), use=as_int32),
        Case("7 inputs, 2 outputs, zero points 9 and 3", (integers(4, 7, 29), 9, integers(2, 7, 53), 3), use=as_int32),
        Case(
            "a batch of three dimensions",
            (integers(6, 4, 29).reshape(2, 3, 4), -17, integers(5, 4, 53), 40),
            use=as_int32,
        ),
    ],
    mistakes=[
        Mistake(forgets_the_zero_points, "with the products alone; both zero points have to be taken off"),
        Mistake(
            forgets_the_constant, "without the last term, K times both zero points: K is how many inputs there are"
        ),
        Mistake(subtracts_the_constant, "with the last term subtracted; minus times minus is plus"),
        Mistake(
            forgets_to_count_the_inputs, "with the product of the zero points once; the sum has one for each input"
        ),
        Mistake(counts_the_outputs, "with K taken for the number of outputs; it is the number of inputs in a sum"),
        Mistake(counts_the_rows, "with K taken for the number of rows, `len(x)`; it is the number of inputs in a sum"),
        Mistake(adds_the_sum_of_the_weights, "with the sum of the weights added; its sign is minus"),
        Mistake(adds_the_sum_of_the_inputs, "with the sum of the inputs added; its sign is minus"),
        Mistake(adds_all_corrections, "with every correction added; only the last one has a plus"),
        Mistake(
            swaps_the_zero_points,
            "with the zero points swapped; the input's goes with the sum of the weights, the weight's with that of the "
            "inputs",
        ),
        Mistake(forgets_the_weights_zero_point, "without the weight's zero point"),
        Mistake(forgets_the_inputs_zero_point, "without the input's zero point"),
        Mistake(corrects_by_the_mean, "with means in place of sums in the corrections"),
        Mistake(multiplies_in_int8, "with the matrix product done in int8, where every sum wraps around"),
        Mistake(accumulates_in_int16, "with an accumulator of 16 bits; three hundred products need more"),
        Mistake(
            subtracts_in_int8, "with the zero points subtracted in int8, where 127 - (-128) does not fit and wraps"
        ),
        Mistake(never_transposes, "without the transpose; a row of the weight belongs to an output"),
        Mistake(
            sums_the_weights_over_the_outputs,
            "with the weights summed over the outputs; sum each row, over its inputs",
        ),
        Mistake(
            sums_the_inputs_over_the_batch,
            "with the inputs summed over the batch; sum each row, and keep its dimension so that it broadcasts",
        ),
        Mistake(
            leaves_the_sum_of_the_inputs_a_row,
            "with the sums of the inputs laid along the outputs; `keepdim=True` makes them a column, one for each row",
        ),
        Mistake(sums_everything, "with one sum over the whole tensor; each row has a sum of its own"),
        Mistake(stays_in_float, "with the product done in float32; the point is to stay in integers"),
        Mistake(works_in_place, "with an operation in place on the input"),
    ],
    hints=[
        "Multiply out (x - a)(w - b) for one pair, then sum each of the four terms over the inputs.",
        "Σxw - a Σw - b Σx + K a b, with a and b the zero points of x and w, and K the number of inputs.",
        "Make x and w int32 first. `x @ w.T` is Σxw; the sums run over the last dimension, and the sum over x keeps "
        "it (`keepdim=True`), so that it is a column beside the outputs.",
    ],
    explain=how_summed,
)


# ---------------------------------------------------------------- 09.2 requantize

SUMS = torch.tensor([[-15555, 20145, 48960], [0, 9000, -700], [100000, -100000, 31000]], dtype=torch.int32)
ROW_SCALES = torch.tensor([0.016275, 0.008, 0.0021])


def solves(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8, rounding=torch.round):
    qmin, qmax = quant_range(bits)
    return rounding(accumulator * (x_scale * w_scale / y_scale) + y_zero_point).clamp(qmin, qmax).to(torch.int8)


def floors(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits, torch.floor)


def truncates(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits, torch.trunc)


def never_clamps(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    q = torch.round(accumulator * (x_scale * w_scale / y_scale) + y_zero_point)
    return q.to(torch.int64).to(torch.int8)


def clamps_before_it_adds(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    q = torch.round(accumulator * (x_scale * w_scale / y_scale)).clamp(*quant_range(bits)) + y_zero_point
    return q.to(torch.int64).to(torch.int8)


def clamps_to_8_bits(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator, x_scale, w_scale, y_scale, y_zero_point)


def forgets_the_zero_point(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator, x_scale, w_scale, y_scale, 0, bits)


def subtracts_the_zero_point(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator, x_scale, w_scale, y_scale, -y_zero_point, bits)


def adds_before_it_scales(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator + y_zero_point, x_scale, w_scale, y_scale, 0, bits)


def forgets_the_new_scale(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator, x_scale, w_scale, 1.0, y_zero_point, bits)


def multiplies_by_the_new_scale(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator, x_scale, w_scale, 1 / y_scale, y_zero_point, bits)


def turns_the_multiplier_over(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator, 1 / x_scale, 1 / w_scale, 1 / y_scale, y_zero_point, bits)


def forgets_the_inputs_scale(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator, 1.0, w_scale, y_scale, y_zero_point, bits)


def forgets_the_weights_scale(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator, x_scale, 1.0, y_scale, y_zero_point, bits)


def scales_the_rows(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    w_scale = w_scale.reshape(-1, 1) if isinstance(w_scale, torch.Tensor) else w_scale
    return solves(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits)


def casts_first(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator.to(torch.int8), x_scale, w_scale, y_scale, y_zero_point, bits)


def stays_real(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return accumulator * (x_scale * w_scale)


def stays_in_int32(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    return solves(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits).to(torch.int32)


def how_requantized(args, index):
    accumulator, x_scale, w_scale, y_scale, y_zero_point, *_ = args
    w_scale = w_scale[index[-1]].item() if isinstance(w_scale, torch.Tensor) else w_scale
    real = accumulator[index].item() * x_scale * w_scale
    return f"{accumulator[index].item()} stands for {real:.4g} -> {real / y_scale + y_zero_point:.2f}"


REQUANTIZE = Exercise(
    id="09.2",
    name="requantize",
    key=requantize,
    cases=[
        Case(
            "the sums of the course's layer, scales 3/255, 0.016275 and 0.05, zero point -60",
            (SUMS[:1], 3 / 255, 0.016275, 0.05, -60),
        ),
        Case("three rows and a scale for each output", (SUMS, 3 / 255, ROW_SCALES, 0.05, -60)),
        Case("bits=4", (SUMS, 3 / 255, ROW_SCALES, 0.61, 2), {"bits": 4}),
        Case("a large zero point", (SUMS, 0.02, 0.003, 0.9, 101)),
        Case("small sums and coarse scales", (torch.tensor([[-41, 3], [24, 9]], dtype=torch.int32), 0.5, 0.5, 0.2, 7)),
    ],
    mistakes=[
        Mistake(floors, "with floor in place of round"),
        Mistake(truncates, "with no round before the cast, which cuts off the decimals"),
        Mistake(never_clamps, "with no clamp before the cast: what lies outside the range wraps around"),
        Mistake(
            clamps_before_it_adds, "with the clamp before the zero point is added; clamp what you cast, at the end"
        ),
        Mistake(clamps_to_8_bits, "with a clamp to -128 and 127 whatever the bits; the range is quant_range(bits)"),
        Mistake(forgets_the_zero_point, "without the zero point of the result"),
        Mistake(subtracts_the_zero_point, "with the zero point subtracted; this is the way in, where it is added"),
        Mistake(
            adds_before_it_scales, "with the zero point added before the scaling; it counts integers of the result"
        ),
        Mistake(forgets_the_new_scale, "without the scale of the result: the sums are real numbers then, not steps"),
        Mistake(
            multiplies_by_the_new_scale,
            "with a multiplication by the result's scale; divide by it, to count how many of its steps fit",
        ),
        Mistake(turns_the_multiplier_over, "with the multiplier upside down"),
        Mistake(forgets_the_inputs_scale, "without the scale of the input"),
        Mistake(forgets_the_weights_scale, "without the scale of the weight"),
        Mistake(scales_the_rows, "with the weight's scales along the rows; they belong to the outputs, the columns"),
        Mistake(casts_first, "with a cast to int8 before the scaling, when the sums do not fit into it yet"),
        Mistake(stays_real, "with the real numbers that the sums stand for; they still have to be quantized"),
        Mistake(stays_in_int32, "without the cast to int8 at the end"),
    ],
    hints=[
        "Which real number does a sum stand for? And which integer stands for that number on the result's ruler?",
        "real = sum * x_scale * w_scale, then q = round(real / y_scale + y_zero_point), clamped and made int8.",
        "Put the three scales into one multiplier. It is a number, or a row of one for each output: it broadcasts. "
        "Then `torch.round`, `.clamp(*quant_range(bits))`, `.to(torch.int8)`.",
    ],
    explain=how_requantized,
)


# ---------------------------------------------------------------- 09.3 fuse_conv_bn


def numbers(*shape, low=-1.0, high=1.0):
    """Floats between two ends, out of order."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) * 17 % count / count * (high - low) + low).reshape(shape)


def layers(channels, outputs, bias, stride=1, padding=0, dilation=1):
    """A convolution and a batch norm with literal weights. One variance is as small as eps, so that eps is seen."""
    conv = torch.nn.Conv2d(channels, outputs, 3, stride, padding, dilation, bias=bias).eval().requires_grad_(False)
    conv.weight.copy_(numbers(outputs, channels, 3, 3))
    if bias:
        conv.bias.copy_(numbers(outputs, low=0.3, high=0.9))
    bn = torch.nn.BatchNorm2d(outputs, eps=0.01).eval().requires_grad_(False)
    bn.weight.copy_(numbers(outputs, low=0.5, high=2.0))
    bn.bias.copy_(numbers(outputs, low=-0.65, high=0.85))
    bn.running_mean.copy_(numbers(outputs, low=-0.4, high=1.3))
    bn.running_var.copy_(numbers(outputs, low=0.02, high=3.0))
    return conv, bn


def weight_and_bias(answer, conv, bn):
    """What the exercise compares: the weight and the bias of the layer that comes back."""
    fused = answer(conv, bn)
    if not isinstance(fused, torch.nn.Conv2d):
        raise TypeError(f"fuse_conv_bn should return a Conv2d, but returned {kind(fused)}")
    if fused.bias is None:
        raise ValueError("the layer that comes back has no bias; the batch norm's shift needs one")
    return fused.weight.detach(), fused.bias.detach()


def folds(conv, bn, factor=None, weight=None, bias=None):
    """The right answer, for the mistakes below to spoil in one place each."""
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps) if factor is None else factor
    old = 0 if conv.bias is None else conv.bias
    fused = copy.deepcopy(conv)
    fused.weight = torch.nn.Parameter(conv.weight * factor.reshape(-1, 1, 1, 1) if weight is None else weight)
    fused.bias = torch.nn.Parameter(bn.bias + (old - bn.running_mean) * factor if bias is None else bias)
    return fused


def factor_of(bn):
    return bn.weight / torch.sqrt(bn.running_var + bn.eps)


def bias_of(conv):
    return 0 if conv.bias is None else conv.bias


def forgets_eps(conv, bn):
    return folds(conv, bn, bn.weight / torch.sqrt(bn.running_var))


def adds_eps_to_the_root(conv, bn):
    return folds(conv, bn, bn.weight / (torch.sqrt(bn.running_var) + bn.eps))


def divides_by_the_variance(conv, bn):
    return folds(conv, bn, bn.weight / (bn.running_var + bn.eps))


def multiplies_by_the_deviation(conv, bn):
    return folds(conv, bn, bn.weight * torch.sqrt(bn.running_var + bn.eps))


def forgets_gamma(conv, bn):
    return folds(conv, bn, 1 / torch.sqrt(bn.running_var + bn.eps))


def forgets_the_mean(conv, bn):
    return folds(conv, bn, bias=bn.bias + bias_of(conv) * factor_of(bn))


def adds_the_mean(conv, bn):
    return folds(conv, bn, bias=bn.bias + (bias_of(conv) + bn.running_mean) * factor_of(bn))


def forgets_beta(conv, bn):
    return folds(conv, bn, bias=(bias_of(conv) - bn.running_mean) * factor_of(bn))


def forgets_the_convs_bias(conv, bn):
    return folds(conv, bn, bias=bn.bias - bn.running_mean * factor_of(bn))


def leaves_the_convs_bias_unscaled(conv, bn):
    return folds(conv, bn, bias=bn.bias + bias_of(conv) - bn.running_mean * factor_of(bn))


def leaves_the_mean_unscaled(conv, bn):
    return folds(conv, bn, bias=bn.bias + bias_of(conv) * factor_of(bn) - bn.running_mean)


def scales_beta_too(conv, bn):
    return folds(conv, bn, bias=(bn.bias + bias_of(conv) - bn.running_mean) * factor_of(bn))


def leaves_the_weight(conv, bn):
    return folds(conv, bn, weight=conv.weight.clone())


def scales_the_input_channels(conv, bn):
    return folds(conv, bn, weight=conv.weight * factor_of(bn).reshape(1, -1, 1, 1))


def scales_the_last_dimension(conv, bn):
    return folds(conv, bn, weight=conv.weight * factor_of(bn))


def works_in_place_on_conv(conv, bn):
    fused = folds(conv, bn)
    conv.weight.copy_(fused.weight)
    return fused


def loses_the_geometry(conv, bn):
    fused = torch.nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size)
    fused.weight, fused.bias = folds(conv, bn).weight, folds(conv, bn).bias
    return fused


def loses_the_dilation(conv, bn):
    fused = folds(conv, bn)
    fused.dilation = (1, 1)
    return fused


def does_what_both_do(answer):
    """On a picture, the folded layer gives what the two layers give one after the other, its stride included."""
    for geometry in ({"stride": 2, "padding": 1}, {"padding": 1, "dilation": 2}):
        conv, bn = layers(2, 3, bias=True, **geometry)
        picture = numbers(1, 2, 7, 7)
        both = bn(conv(picture))
        folded = answer(conv, bn)(picture)
        words = " and ".join(f"{name} {size}" for name, size in geometry.items())
        if folded.shape != both.shape:
            return (
                f"for a conv of {words}, the folded layer turns a picture of 7 x 7 into {size_of(folded)}, "
                f"the two layers into {size_of(both)}."
            )
        worst = (folded - both).abs().max().item()
        if worst > 1e-4:
            return f"for a conv of {words}, the folded layer is {worst:.4g} away from the two layers on a picture."
    return None


def size_of(picture):
    return " x ".join(str(size) for size in picture.shape[2:])


def how_folded(args, index):
    _, bn = args
    scale = factor_of(bn)[index[0]].item()
    return f"gamma / sqrt(var + eps) of channel {index[0]} is {scale:.4g}"


FUSE_CONV_BN = Exercise(
    id="09.3",
    name="fuse_conv_bn",
    key=fuse_conv_bn,
    cases=[
        Case("a conv of 3 channels to 3, with a bias", layers(3, 3, bias=True), use=weight_and_bias),
        Case("a conv of 2 channels to 5, without a bias", layers(2, 5, bias=False), use=weight_and_bias),
    ],
    properties=[Property(does_what_both_do)],
    mistakes=[
        Mistake(forgets_eps, "without eps under the root"),
        Mistake(adds_eps_to_the_root, "with eps added to the root; it belongs under it, beside the variance"),
        Mistake(divides_by_the_variance, "with the variance where its root should be"),
        Mistake(multiplies_by_the_deviation, "with a multiplication by the deviation; a batch norm divides by it"),
        Mistake(forgets_gamma, "without gamma, the batch norm's weight"),
        Mistake(forgets_the_mean, "without the running mean"),
        Mistake(adds_the_mean, "with the running mean added; a batch norm subtracts it"),
        Mistake(forgets_beta, "without beta, the batch norm's bias"),
        Mistake(forgets_the_convs_bias, "without the convolution's own bias"),
        Mistake(
            leaves_the_convs_bias_unscaled,
            "with the convolution's bias left unscaled; it goes through the batch norm like all else",
        ),
        Mistake(leaves_the_mean_unscaled, "with the running mean left unscaled; it is subtracted before the division"),
        Mistake(scales_beta_too, "with beta scaled as well; it is added at the very end"),
        Mistake(leaves_the_weight, "with the weight left as it was"),
        Mistake(
            scales_the_input_channels,
            "with the weight scaled along its input channels; dimension 0 holds the outputs, and the batch norm's",
        ),
        Mistake(
            scales_the_last_dimension,
            "with no reshape of the factor: it broadcasts along the last dimension, the kernel's width",
        ),
        Mistake(works_in_place_on_conv, "with the conv or the batch norm itself changed; make a copy"),
        Mistake(loses_the_geometry, "with a new Conv2d that has not the stride and the padding of the old one"),
        Mistake(loses_the_dilation, "with a new Conv2d that has not the dilation of the old one"),
    ],
    parts=("weight", "bias"),
    hints=[
        "A batch norm in evaluation mode multiplies each channel by a factor and adds a shift. Let the convolution's "
        "own weight and bias do both.",
        "factor = gamma / sqrt(var + eps), one for each output. The weight is multiplied by it; the bias becomes "
        "beta + (bias - mean) * factor.",
        "`copy.deepcopy(conv)` keeps stride and padding. The factor has to be (outputs, 1, 1, 1) to meet the weight; "
        "a conv made with bias=False has `conv.bias is None`. Wrap what you assign in `torch.nn.Parameter`.",
    ],
    explain=how_folded,
)


# ---------------------------------------------------------------- 09.4 MovingAverage

BATCHES = [
    torch.tensor([[0.1, 2.0], [-1.0, 0.4]]),
    torch.tensor([[-0.5, 3.0], [0.2, 0.6]]),
    torch.tensor([[-2.0, 0.9], [0.3, 12.0]]),
    torch.tensor([[-1.5, 2.4], [0.7, 1.9]]),
]


def watched(answer, batches, **options):
    """What the exercise compares: the range after an observer has seen the batches one after the other."""
    observer = answer(**options)
    for batch in batches:
        observer.observe(batch)
    return observer.range()


class SwapsTheShares(MovingAverage):
    def __init__(self, momentum=0.1):
        super().__init__(1 - momentum)


class StartsAtZero(MovingAverage):
    def __init__(self, momentum=0.1):
        super().__init__(momentum)
        self.low = self.high = torch.tensor(0.0)


class TakesZeroForNothing(MovingAverage):
    def observe(self, tensor):
        if not self.low:
            self.low = self.high = None
        super().observe(tensor)


class KeepsTheFirst(MovingAverage):
    def observe(self, tensor):
        if self.low is None:
            super().observe(tensor)


class KeepsTheLatest(MovingAverage):
    def observe(self, tensor):
        self.low, self.high = tensor.amin(), tensor.amax()


class NeverForgets(MovingAverage):
    def observe(self, tensor):
        first = self.low is None
        self.low = tensor.amin() if first else torch.minimum(self.low, tensor.amin())
        self.high = tensor.amax() if first else torch.maximum(self.high, tensor.amax())


class AveragesAllAlike(MovingAverage):
    def __init__(self, momentum=0.1):
        super().__init__(momentum)
        self.count = 0

    def observe(self, tensor):
        self.count += 1
        self.momentum = 1 / self.count
        super().observe(tensor)


class IgnoresTheMomentum(MovingAverage):
    def __init__(self, momentum=0.1):
        super().__init__(0.1)


class AveragesTheMean(MovingAverage):
    def observe(self, tensor):
        super().observe(tensor.mean())


class WatchesMagnitudes(MovingAverage):
    def observe(self, tensor):
        largest = tensor.abs().amax()
        super().observe(torch.stack([-largest, largest]))


class AddsWithoutTakingAway(MovingAverage):
    def observe(self, tensor):
        if self.low is None:
            self.low, self.high = tensor.amin(), tensor.amax()
        else:
            self.low = self.low + self.momentum * tensor.amin()
            self.high = self.high + self.momentum * tensor.amax()


class UpdatesOnlyOutwards(MovingAverage):
    def observe(self, tensor):
        before = self.range()
        super().observe(tensor)
        if before[0] is not None:
            self.low, self.high = torch.minimum(self.low, before[0]), torch.maximum(self.high, before[1])


class SwapsTheEnds(MovingAverage):
    def range(self):
        return self.high, self.low


class AveragesTwice(MovingAverage):
    def observe(self, tensor):
        super().observe(tensor)
        super().observe(tensor)


MOVING_AVERAGE = Exercise(
    id="09.4",
    name="MovingAverage",
    key=MovingAverage,
    cases=[
        Case("a single batch from -1 to 2", (BATCHES[:1],), use=watched),
        Case("two batches, from -1 to 2 and from -0.5 to 3", (BATCHES[:2],), use=watched),
        Case("two batches and momentum 0.25", (BATCHES[:2],), {"momentum": 0.25}, use=watched),
        Case("four batches and momentum 0.25", (BATCHES,), {"momentum": 0.25}, use=watched),
        Case("batches that are all above 0", ([b.abs() + 1 for b in BATCHES],), use=watched),
        Case(
            "batches that come out of a ReLU, with 0 for the smallest number",
            ([b.relu() for b in BATCHES],),
            use=watched,
        ),
    ],
    mistakes=[
        Mistake(
            SwapsTheShares, "with the shares swapped: the newest batch has the share `momentum`, the past the rest"
        ),
        Mistake(StartsAtZero, "with an average that starts at 0; the first batch is the average as it is"),
        Mistake(
            TakesZeroForNothing,
            "with `if not self.low` for the first batch: a low end of 0.0 is false as well; ask whether it is None",
        ),
        Mistake(KeepsTheFirst, "with the first batch alone"),
        Mistake(KeepsTheLatest, "with the latest batch alone"),
        Mistake(NeverForgets, "with the smallest and the largest number ever seen; that is the other observer"),
        Mistake(AveragesAllAlike, "with every batch weighted alike; here the past fades"),
        Mistake(IgnoresTheMomentum, "with 0.1 whatever the momentum"),
        Mistake(AveragesTheMean, "with the mean of each batch; average its smallest and its largest number"),
        Mistake(WatchesMagnitudes, "with the largest magnitude on both sides; each end has an average of its own"),
        Mistake(AddsWithoutTakingAway, "with the newest share added and nothing taken from the old"),
        Mistake(UpdatesOnlyOutwards, "with a range that can only grow; an average moves both ways"),
        Mistake(SwapsTheEnds, "with the ends swapped; return (low, high)"),
        Mistake(AveragesTwice, "with the average updated twice for each batch"),
    ],
    parts=("low", "high"),
    hints=[
        "Two numbers are enough to remember: the averaged low end and the averaged high end. Until the first batch "
        "there are none.",
        "new = (1 - momentum) * old + momentum * latest, for the smallest and for the largest number of the batch.",
        "`self.low = self.high = None` in `__init__`; in `observe`, `tensor.amin()` and `tensor.amax()`; where "
        "`self.low is None`, take them as they are.",
    ],
)

EXERCISES = [INTEGER_LINEAR, REQUANTIZE, FUSE_CONV_BN, MOVING_AVERAGE]
