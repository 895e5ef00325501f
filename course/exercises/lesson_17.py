"""Exercises of lesson 17: beyond linear quantization."""

import torch

from course.exercises.exercise import Case, Exercise, Mistake
from qlib.affine import dequantize, quant_range, quantize, symmetric_qparams
from qlib.linear import integer_part, mixed_matmul
from qlib.methods.gptq import gptq_step
from qlib.methods.qat import straight_through
from qlib.methods.smoothquant import smoothing_scale
from qlib.scheme import Scheme
from qlib.tensor import quantize_tensor

# ---------------------------------------------------------------- 17.1 mixed_matmul


def spread(rows, columns, step=37, outliers=()):
    """Numbers between -2 and 2, out of order; `outliers` are (row, column, value)."""
    numbers = ((torch.arange(rows * columns) * step + 11) % 101 / 101 * 4 - 2).reshape(rows, columns)
    for row, column, value in outliers:
        numbers[row, column] = value
    return numbers


def weight_of(rows, columns, step=29):
    return quantize_tensor(spread(rows, columns, step) / 4, Scheme(bits=8))


X = torch.tensor([[1.5, -0.3, 20.0, 0.7], [0.4, 1.1, 2.5, -0.9]])
W = quantize_tensor(torch.tensor([[0.5, -0.2, 0.3, 0.1], [-0.4, 0.6, 0.05, 0.25]]), Scheme(bits=8))
NEAR = [(0, 3, 5.4), (1, 3, -5.3), (2, 3, 5.2), (1, 7, 3.0)]  # large in all, but not one of them reaches 6
THREE = spread(3, 8, outliers=[(1, 1, 9.0), (0, 5, -7.0), (2, 6, 8.0), *NEAR])
MANY = spread(5, 12, outliers=[(3, 4, -31.0), (0, 9, 8.0), (2, 9, 14.0)])


def split(x, qtensor, outlier):
    """The right answer for columns that were found in another way."""
    kept = integer_part(x.masked_fill(outlier, 0.0), qtensor)
    return kept + x[:, outlier] @ qtensor.dequantize()[:, outlier].T


def outliers_of(x, threshold):
    return (x.abs() >= threshold).any(0)


def sets_nothing_apart(x, qtensor, threshold=6.0):
    return integer_part(x, qtensor)


def multiplies_all_in_float(x, qtensor, threshold=6.0):
    return x @ qtensor.dequantize().T


def multiplies_all_in_float_for_one_outlier(x, qtensor, threshold=6.0):
    return x @ qtensor.dequantize().T if outliers_of(x, threshold).any() else integer_part(x, qtensor)


def multiplies_outliers_as_integers(x, qtensor, threshold=6.0):
    outlier = outliers_of(x, threshold)
    return drops_the_outliers(x, qtensor, threshold) + integer_part(x.masked_fill(~outlier, 0.0), qtensor)


def drops_the_outliers(x, qtensor, threshold=6.0):
    return integer_part(x.masked_fill(outliers_of(x, threshold), 0.0), qtensor)


def counts_them_twice(x, qtensor, threshold=6.0):
    outlier = outliers_of(x, threshold)
    return integer_part(x, qtensor) + x[:, outlier] @ qtensor.dequantize()[:, outlier].T


def gives_the_float_part_alone(x, qtensor, threshold=6.0):
    outlier = outliers_of(x, threshold)
    return x[:, outlier] @ qtensor.dequantize()[:, outlier].T


def swaps_the_parts(x, qtensor, threshold=6.0):
    return split(x, qtensor, ~outliers_of(x, threshold))


def sets_tokens_apart(x, qtensor, threshold=6.0):
    outlier = (x.abs() >= threshold).any(1, keepdim=True)
    return torch.where(outlier, x @ qtensor.dequantize().T, integer_part(x, qtensor))


def sets_single_values_apart(x, qtensor, threshold=6.0):
    large = torch.where(x.abs() >= threshold, x, 0.0)
    return integer_part(x - large, qtensor) + large @ qtensor.dequantize().T


def forgets_the_sign(x, qtensor, threshold=6.0):
    return split(x, qtensor, (x >= threshold).any(0))


def wants_more_than_the_threshold(x, qtensor, threshold=6.0):
    return split(x, qtensor, (x.abs() > threshold).any(0))


def wants_all_tokens(x, qtensor, threshold=6.0):
    return split(x, qtensor, (x.abs() >= threshold).all(0))


def looks_at_the_mean(x, qtensor, threshold=6.0):
    return split(x, qtensor, x.abs().mean(0) >= threshold)


def looks_at_the_norm(x, qtensor, threshold=6.0):
    return split(x, qtensor, x.norm(dim=0) >= threshold)


def takes_the_largest_column(x, qtensor, threshold=6.0):
    magnitudes = x.abs().amax(0)
    return split(x, qtensor, outliers_of(x, threshold) & (magnitudes == magnitudes.max()))


def ignores_the_threshold(x, qtensor, threshold=6.0):
    return split(x, qtensor, outliers_of(x, 6.0))


def keeps_the_scales(x, qtensor, threshold=6.0):
    outlier = outliers_of(x, threshold)
    scale, zero = symmetric_qparams(x.abs().amax(-1, keepdim=True), 8)
    values = quantize(x, scale, zero, 8).masked_fill(outlier, 0)
    out = (values.double() @ qtensor.values.double().T).float() * scale * qtensor.scale.reshape(1, -1)
    return out + x[:, outlier] @ qtensor.dequantize()[:, outlier].T


def clips_the_outliers(x, qtensor, threshold=6.0):
    return integer_part(x.clamp(-threshold, threshold), qtensor)


def forgets_the_weights_scale(x, qtensor, threshold=6.0):
    outlier = outliers_of(x, threshold)
    return drops_the_outliers(x, qtensor, threshold) + x[:, outlier] @ qtensor.values[:, outlier].float().T


def overwrites_the_input(x, qtensor, threshold=6.0):
    outlier = outliers_of(x, threshold)
    out = mixed_matmul(x, qtensor, threshold)
    x[:, outlier] = 0
    return out


def how_multiplied(args, index):
    x, _, threshold = args
    columns = outliers_of(x, threshold).nonzero().flatten().tolist()
    return f"the columns in float are {columns}" if len(columns) < x.shape[1] else "all columns are in float"


MIXED_MATMUL = Exercise(
    id="17.1",
    name="mixed_matmul",
    key=mixed_matmul,
    cases=[
        Case("two tokens, an outlier of 20 in column 2, threshold 6", (X, W, 6.0)),
        Case("three outliers, one of them below zero, and threshold 6", (THREE, weight_of(4, 8), 6.0)),
        Case("twelve columns, and threshold 6", (MANY, weight_of(3, 12), 6.0)),
        Case("threshold 20", (MANY, weight_of(3, 12), 20.0)),
        Case("a value of exactly 8, and threshold 8", (MANY[:2], weight_of(4, 12), 8.0)),
        Case("no outlier at all", (spread(3, 8), weight_of(2, 8), 6.0)),
        Case("threshold 0, where every column is one", (spread(3, 8), weight_of(2, 8), 0.0)),
    ],
    mistakes=[
        Mistake(sets_nothing_apart, "with all columns multiplied as integers"),
        Mistake(multiplies_all_in_float, "with all columns multiplied in float; only those with an outlier are"),
        Mistake(
            multiplies_all_in_float_for_one_outlier,
            "with all columns multiplied in float as soon as one has an outlier; only that one is",
        ),
        Mistake(
            multiplies_outliers_as_integers, "with the outlier columns rounded as well; they are multiplied in float"
        ),
        Mistake(drops_the_outliers, "with the outlier columns left out; they are multiplied in float, and added"),
        Mistake(
            counts_them_twice,
            "with the outlier columns counted twice: put zeros in their place before the integer part",
        ),
        Mistake(gives_the_float_part_alone, "with the float part alone; the integer part has to be added"),
        Mistake(swaps_the_parts, "with the two kinds of column swapped: the outliers belong in float"),
        Mistake(
            sets_tokens_apart,
            "with whole tokens set apart, rows of x; an outlier lies in a column, the same one in many tokens",
        ),
        Mistake(sets_single_values_apart, "with single values set apart; the whole column goes to the float part"),
        Mistake(forgets_the_sign, "without the magnitude: -7 is an outlier as well"),
        Mistake(
            wants_more_than_the_threshold, "with more than the threshold asked for; a value that reaches it is one"
        ),
        Mistake(wants_all_tokens, "with all tokens of a column asked for; one that reaches the threshold is enough"),
        Mistake(looks_at_the_mean, "with the mean magnitude of a column; one token is enough"),
        Mistake(
            looks_at_the_norm, "with the values of a column taken together; one of them has to reach the threshold"
        ),
        Mistake(takes_the_largest_column, "with the largest column alone; all that reach the threshold are outliers"),
        Mistake(ignores_the_threshold, "with 6.0, whatever `threshold` says"),
        Mistake(
            keeps_the_scales,
            "with the scales of the whole input: an outlier that was taken out must not set the scale any more",
        ),
        Mistake(clips_the_outliers, "with the outliers clipped to the threshold"),
        Mistake(
            forgets_the_weights_scale, "with the weight's integers in the float part; it needs `qtensor.dequantize()`"
        ),
        Mistake(overwrites_the_input, "with zeros written into the input itself"),
    ],
    hints=[
        "A matrix product is a sum over columns of x. Any of them can be left out of one product and put into another.",
        "outlier = the columns in which any token's magnitude reaches the threshold, (inputs,) of bool. Result = "
        "integer_part(x with zeros in those columns) + x[those columns] times the weight's same columns.",
        "`outlier = (x.abs() >= threshold).any(0)`; `x.masked_fill(outlier, 0.0)` puts the zeros in; "
        "`x[:, outlier]` and `qtensor.dequantize()[:, outlier]` are the columns; the second one is transposed.",
    ],
    explain=how_multiplied,
)


# ---------------------------------------------------------------- 17.2 smoothing_scale

ACTIVE = torch.tensor([[16.0, -1.0, 0.3], [-4.0, 0.25, -0.9]])
READER = torch.tensor([[1.0, -4.0, 0.5], [-4.0, 2.0, 0.1]])
SECOND = torch.tensor([[0.2, 0.3, -2.5]])
SILENT = torch.tensor([[9.0, 0.0, -3.0], [-2.0, 0.0, 1.0]])
UNREAD = torch.tensor([[-0.5, 0.0, 2.0], [0.3, 0.0, -1.0]])


def x_max(x):
    return x.abs().amax(0)


def w_max(weights):
    return torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)


def live(scale, weights, x):
    """A scale with ones where nothing is to be moved, as in the right answer."""
    return torch.where((x_max(x) > 0) & (w_max(weights) > 0), scale, 1.0)


def swaps_alpha(weights, x, alpha=0.5):
    return smoothing_scale(weights, x, 1 - alpha)


def ignores_alpha(weights, x, alpha=0.5):
    return smoothing_scale(weights, x, 0.5)


def turns_it_over(weights, x, alpha=0.5):
    return 1 / smoothing_scale(weights, x, alpha)


def multiplies(weights, x, alpha=0.5):
    return live(x_max(x) ** alpha * w_max(weights) ** (1 - alpha), weights, x)


def swaps_x_and_w(weights, x, alpha=0.5):
    return live(w_max(weights) ** alpha / x_max(x) ** (1 - alpha), weights, x)


def forgets_the_second_power(weights, x, alpha=0.5):
    return live(x_max(x) ** alpha / w_max(weights), weights, x)


def one_power_for_all(weights, x, alpha=0.5):
    return live((x_max(x) / w_max(weights)) ** alpha, weights, x)


def forgets_both_powers(weights, x, alpha=0.5):
    return live(x_max(x) / w_max(weights), weights, x)


def forgets_the_activations(weights, x, alpha=0.5):
    return live(1 / w_max(weights) ** (1 - alpha), weights, x)


def forgets_the_weights(weights, x, alpha=0.5):
    return live(x_max(x) ** alpha, weights, x)


def forgets_the_magnitudes(weights, x, alpha=0.5):
    w = torch.stack([weight.amax(0) for weight in weights]).amax(0)
    return live(x.amax(0) ** alpha / w ** (1 - alpha), weights, x)


def forgets_the_magnitude_of_x(weights, x, alpha=0.5):
    return live(x.amax(0) ** alpha / w_max(weights) ** (1 - alpha), weights, x)


def forgets_the_magnitude_of_w(weights, x, alpha=0.5):
    return live(x_max(x) ** alpha / torch.cat(weights).amax(0) ** (1 - alpha), weights, x)


def takes_the_mean_of_x(weights, x, alpha=0.5):
    return live(x.abs().mean(0) ** alpha / w_max(weights) ** (1 - alpha), weights, x)


def takes_the_mean_of_w(weights, x, alpha=0.5):
    w = torch.cat(weights).abs().mean(0)
    return live(x_max(x) ** alpha / w ** (1 - alpha), weights, x)


def looks_at_the_first_weight(weights, x, alpha=0.5):
    return live(x_max(x) ** alpha / x_max(weights[0]) ** (1 - alpha), weights, x)


def looks_at_the_last_weight(weights, x, alpha=0.5):
    return live(x_max(x) ** alpha / x_max(weights[-1]) ** (1 - alpha), weights, x)


def adds_the_weights_up(weights, x, alpha=0.5):
    w = torch.stack([weight.abs().amax(0) for weight in weights]).sum(0)
    return live(x_max(x) ** alpha / w ** (1 - alpha), weights, x)


def looks_along_the_rows(weights, x, alpha=0.5):
    w = torch.stack([weight.abs().amax() for weight in weights]).amax()
    return live(x_max(x) ** alpha / w ** (1 - alpha), weights, x)


def one_maximum_for_x(weights, x, alpha=0.5):
    return live(x.abs().amax() ** alpha / w_max(weights) ** (1 - alpha), weights, x)


def a_scale_for_each_token(weights, x, alpha=0.5):
    return x.abs().amax(1) ** alpha / w_max(weights).amax() ** (1 - alpha)


def leaves_dead_channels(weights, x, alpha=0.5):
    return x_max(x) ** alpha / w_max(weights) ** (1 - alpha)


def clamps_dead_channels(weights, x, alpha=0.5):
    return x_max(x).clamp(min=1e-5) ** alpha / w_max(weights).clamp(min=1e-5) ** (1 - alpha)


def clamps_the_scale(weights, x, alpha=0.5):
    return (x_max(x) ** alpha / w_max(weights).clamp(min=1e-5) ** (1 - alpha)).clamp(min=1e-5)


def leaves_unread_channels(weights, x, alpha=0.5):
    return torch.where(x_max(x) > 0, leaves_dead_channels(weights, x, alpha), 1.0)


def how_scaled(args, index):
    weights, x, *_ = args
    return f"max|X| {x_max(x)[index].item():.4g}, max|W| {w_max(weights)[index].item():.4g}"


SMOOTHING_SCALE = Exercise(
    id="17.2",
    name="smoothing_scale",
    key=smoothing_scale,
    cases=[
        Case("one weight and alpha 0.5", ([READER], ACTIVE, 0.5)),
        Case("one weight and alpha 0.75", ([READER], ACTIVE, 0.75)),
        Case("two weights that read the same input, alpha 0.25", ([READER, SECOND], ACTIVE, 0.25)),
        Case("alpha 0", ([SECOND, READER], ACTIVE, 0.0)),
        Case("a channel that is always 0", ([READER], SILENT, 0.5)),
        Case("a channel that no weight reads", ([UNREAD], ACTIVE, 0.5)),
    ],
    mistakes=[
        Mistake(swaps_alpha, "with alpha and 1 - alpha swapped"),
        Mistake(ignores_alpha, "with 0.5, whatever `alpha` says"),
        Mistake(turns_it_over, "with the fraction upside down; x is divided by the scale, so max|X| is on top"),
        Mistake(multiplies, "with a product; what moves is a fraction, max|X| over max|W|"),
        Mistake(swaps_x_and_w, "with the weights on top and the activations below"),
        Mistake(forgets_the_second_power, "with the whole max|W| below; it has a power too, 1 - alpha"),
        Mistake(one_power_for_all, "with alpha as the power of both; that of max|W| is 1 - alpha"),
        Mistake(forgets_both_powers, "with no powers, whatever `alpha` says"),
        Mistake(forgets_the_activations, "without the activations"),
        Mistake(forgets_the_weights, "without the weights"),
        Mistake(forgets_the_magnitudes, "without magnitudes: the largest value, where the largest magnitude is meant"),
        Mistake(forgets_the_magnitude_of_x, "without the magnitude of the activations: -0.9 reaches further than 0.3"),
        Mistake(forgets_the_magnitude_of_w, "without the magnitude of the weights: -4 reaches further than 1"),
        Mistake(takes_the_mean_of_x, "with the mean magnitude of the activations; the largest one sets the scale"),
        Mistake(takes_the_mean_of_w, "with the mean magnitude of the weights; the largest one sets the scale"),
        Mistake(looks_at_the_first_weight, "with the first weight only; all that read the input share its scale"),
        Mistake(looks_at_the_last_weight, "with the last weight only; all that read the input share its scale"),
        Mistake(adds_the_weights_up, "with the sum of the weights' maxima; take the largest of them"),
        Mistake(looks_along_the_rows, "with one maximum for the whole weight; each column has its own, `amax(0)`"),
        Mistake(one_maximum_for_x, "with one maximum for all activations; each channel has its own, `amax(0)`"),
        Mistake(a_scale_for_each_token, "with a scale for each token; it is the channels that have one"),
        Mistake(
            leaves_dead_channels,
            "with 0 or infinity for a channel that is always 0 or that no weight reads; its scale is 1",
        ),
        Mistake(clamps_dead_channels, "with a tiny number in the place of 0; the scale of such a channel is 1"),
        Mistake(clamps_the_scale, "with a tiny number in the place of a scale of 0; that of such a channel is 1"),
        Mistake(leaves_unread_channels, "with infinity for a channel that no weight reads; its scale is 1 as well"),
    ],
    hints=[
        "For each channel: how far do the activations reach, over all tokens, and how far do the weights reach, over "
        "all rows of all the weights that read them?",
        "s = max|X|^alpha / max|W|^(1 - alpha), channel by channel; 1 where either maximum is 0.",
        "`x.abs().amax(0)` is max|X|. For max|W| stack `weight.abs().amax(0)` of all the weights and take `.amax(0)` "
        "again. `torch.where((x_max > 0) & (w_max > 0), scale, 1.0)` sees to dead channels.",
    ],
    explain=how_scaled,
)


# ---------------------------------------------------------------- 17.3 gptq_step

WORKED = (torch.tensor([[0.4, 2.2, 3.0]]), torch.tensor([1.0, -1.0, 0.0]), torch.ones(1), torch.zeros(1).char(), 3)
ROWS = torch.tensor([[0.83, -0.41, 0.12, 0.95], [-1.27, 0.66, 0.35, -0.21], [0.31, 1.4, -0.77, 0.05]])
FACTOR = torch.tensor([2.5, 0.8, -1.2, 0.3])
SCALES, ZEROS = torch.tensor([0.3, 0.5, 0.21]), torch.tensor([-1, 1, 0], dtype=torch.int8)


def step(weight, factor_row, scale, zero_point, bits, error=None, values=None, share=None, rest=None):
    """A right answer whose parts the mistakes below replace one at a time."""
    values = quantize(weight[:, 0], scale, zero_point, bits) if values is None else values
    error = (weight[:, 0] - dequantize(values, scale, zero_point)) / factor_row[0] if error is None else error
    rest = weight[:, 1:] - (error if share is None else share).outer(factor_row[1:]) if rest is None else rest
    return values, error, rest


def raw_error(weight, scale, zero_point, bits):
    return weight[:, 0] - dequantize(quantize(weight[:, 0], scale, zero_point, bits), scale, zero_point)


def spreads_nothing(weight, factor_row, scale, zero_point, bits):
    return step(weight, factor_row, scale, zero_point, bits, rest=weight[:, 1:].clone())


def adds_the_share(weight, factor_row, scale, zero_point, bits):
    values, error, rest = step(weight, factor_row, scale, zero_point, bits)
    return values, error, 2 * weight[:, 1:] - rest


def turns_the_error_round(weight, factor_row, scale, zero_point, bits):
    error = -raw_error(weight, scale, zero_point, bits) / factor_row[0]
    return step(weight, factor_row, scale, zero_point, bits, error=error)


def turns_the_error_round_and_adds(weight, factor_row, scale, zero_point, bits):
    values, error, rest = step(weight, factor_row, scale, zero_point, bits)
    return values, -error, rest


def never_divides(weight, factor_row, scale, zero_point, bits):
    return step(weight, factor_row, scale, zero_point, bits, error=raw_error(weight, scale, zero_point, bits))


def divides_twice(weight, factor_row, scale, zero_point, bits):
    error = raw_error(weight, scale, zero_point, bits) / factor_row[0] ** 2
    return step(weight, factor_row, scale, zero_point, bits, error=error)


def multiplies_by_the_diagonal(weight, factor_row, scale, zero_point, bits):
    error = raw_error(weight, scale, zero_point, bits) * factor_row[0]
    return step(weight, factor_row, scale, zero_point, bits, error=error)


def gives_the_raw_error(weight, factor_row, scale, zero_point, bits):
    values, _, rest = step(weight, factor_row, scale, zero_point, bits)
    return values, raw_error(weight, scale, zero_point, bits), rest


def spreads_the_raw_error(weight, factor_row, scale, zero_point, bits):
    return step(weight, factor_row, scale, zero_point, bits, share=raw_error(weight, scale, zero_point, bits))


def compares_with_the_integers(weight, factor_row, scale, zero_point, bits):
    values = quantize(weight[:, 0], scale, zero_point, bits)
    return step(weight, factor_row, scale, zero_point, bits, error=(weight[:, 0] - values) / factor_row[0])


def forgets_the_zero_point_on_the_way_back(weight, factor_row, scale, zero_point, bits):
    back = quantize(weight[:, 0], scale, zero_point, bits) * scale
    return step(weight, factor_row, scale, zero_point, bits, error=(weight[:, 0] - back) / factor_row[0])


def forgets_the_zero_point(weight, factor_row, scale, zero_point, bits):
    return step(weight, factor_row, scale, torch.zeros_like(zero_point), bits)


def forgets_the_clamp(weight, factor_row, scale, zero_point, bits):
    values = torch.round(weight[:, 0] / scale + zero_point).to(torch.int8)
    return step(weight, factor_row, scale, zero_point, bits, values=values)


def floors(weight, factor_row, scale, zero_point, bits):
    values = torch.floor(weight[:, 0] / scale + zero_point).clamp(*quant_range(bits)).to(torch.int8)
    return step(weight, factor_row, scale, zero_point, bits, values=values)


def cuts_the_fraction_off(weight, factor_row, scale, zero_point, bits):
    values = (weight[:, 0] / scale + zero_point).clamp(*quant_range(bits)).to(torch.int8)
    return step(weight, factor_row, scale, zero_point, bits, values=values)


def takes_the_error_before_the_clamp(weight, factor_row, scale, zero_point, bits):
    error = raw_error(weight, scale, zero_point, 8) / factor_row[0]
    return step(weight, factor_row, scale, zero_point, bits, error=error)


def gives_real_numbers(weight, factor_row, scale, zero_point, bits):
    values, error, rest = step(weight, factor_row, scale, zero_point, bits)
    return dequantize(values, scale, zero_point), error, rest


def keeps_the_first_column(weight, factor_row, scale, zero_point, bits):
    values, error, _ = step(weight, factor_row, scale, zero_point, bits)
    return values, error, weight - error.outer(factor_row)


def drops_the_last_column(weight, factor_row, scale, zero_point, bits):
    return step(
        weight, factor_row, scale, zero_point, bits, rest=keeps_first(weight, factor_row, scale, zero_point, bits)
    )


def keeps_first(weight, factor_row, scale, zero_point, bits):
    _, error, _ = step(weight, factor_row, scale, zero_point, bits)
    return (weight - error.outer(factor_row))[:, :-1]


def shifts_the_factors(weight, factor_row, scale, zero_point, bits):
    _, error, _ = step(weight, factor_row, scale, zero_point, bits)
    return step(weight, factor_row, scale, zero_point, bits, rest=weight[:, 1:] - error.outer(factor_row[:-1]))


def moves_the_next_column_alone(weight, factor_row, scale, zero_point, bits):
    _, error, rest = step(weight, factor_row, scale, zero_point, bits)
    return step(
        weight, factor_row, scale, zero_point, bits, rest=torch.cat([rest[:, :1], weight[:, 2:]], 1)[:, : rest.shape[1]]
    )


def multiplies_element_by_element(weight, factor_row, scale, zero_point, bits):
    _, error, _ = step(weight, factor_row, scale, zero_point, bits)
    return step(weight, factor_row, scale, zero_point, bits, rest=weight[:, 1:] - error * factor_row[1:])


def spreads_it_evenly(weight, factor_row, scale, zero_point, bits):
    rest = weight[:, 1:] - raw_error(weight, scale, zero_point, bits)[:, None] / max(weight.shape[1] - 1, 1)
    return step(weight, factor_row, scale, zero_point, bits, rest=rest)


def mixes_the_rows(weight, factor_row, scale, zero_point, bits):
    _, error, _ = step(weight, factor_row, scale, zero_point, bits)
    return step(weight, factor_row, scale, zero_point, bits, rest=weight[:, 1:] - error.sum() * factor_row[1:])


def changes_the_weight(weight, factor_row, scale, zero_point, bits):
    values, error, rest = step(weight, factor_row, scale, zero_point, bits)
    weight[:, 1:] = rest
    return values, error, rest


GPTQ_STEP = Exercise(
    id="17.3",
    name="gptq_step",
    key=gptq_step,
    cases=[
        Case("weights [0.4, 2.2, 3.0], scale 1 and factors [1, -1, 0]", WORKED),
        Case("three rows at 4 bits, each with a scale and a zero point", (ROWS, FACTOR, SCALES, ZEROS, 4)),
        Case("the same at 2 bits, where one weight is clipped", (ROWS, FACTOR, SCALES, ZEROS, 2)),
        Case("the last column, with none after it", (ROWS[:, :1], FACTOR[:1], SCALES, ZEROS, 3)),
    ],
    mistakes=[
        Mistake(spreads_nothing, "with the columns to come left as they were: that is plain rounding"),
        Mistake(adds_the_share, "with the share added; it is taken off"),
        Mistake(turns_the_error_round, "with the error turned round; it is the weight minus what came back"),
        Mistake(turns_the_error_round_and_adds, "with the sign of `error` turned; the weight minus what came back"),
        Mistake(never_divides, "with no division by the diagonal, `factor_row[0]`"),
        Mistake(divides_twice, "with the diagonal divided by twice"),
        Mistake(multiplies_by_the_diagonal, "with a product with the diagonal; divide by `factor_row[0]`"),
        Mistake(gives_the_raw_error, "with `error` given back before it was divided by the diagonal"),
        Mistake(spreads_the_raw_error, "with the undivided error taken off the columns to come"),
        Mistake(
            compares_with_the_integers,
            "with the weight compared to the integer; compare it to the real number that the integer stands for",
        ),
        Mistake(forgets_the_zero_point_on_the_way_back, "without the zero point on the way back to a real number"),
        Mistake(forgets_the_zero_point, "without the zero point"),
        Mistake(forgets_the_clamp, "with no clamp to the range of `bits`"),
        Mistake(floors, "with floor in place of round"),
        Mistake(cuts_the_fraction_off, "with the fraction cut off in place of rounded"),
        Mistake(
            takes_the_error_before_the_clamp,
            "with the error taken before the clamp; what a clipped weight loses is an error too",
        ),
        Mistake(gives_real_numbers, "with real numbers for `values`; they are the integers"),
        Mistake(keeps_the_first_column, "with the first column still in `rest`; it holds those after it"),
        Mistake(drops_the_last_column, "with the last column left out of `rest`; it is the first that goes"),
        Mistake(
            shifts_the_factors, "with each column's factor taken from its neighbour: they begin at `factor_row[1]`"
        ),
        Mistake(moves_the_next_column_alone, "with one column moved; all that are to come take their share"),
        Mistake(
            multiplies_element_by_element,
            "with `error` and `factor_row[1:]` multiplied one by one; each error meets each factor, an outer product",
        ),
        Mistake(
            spreads_it_evenly,
            "with the error shared out evenly; `factor_row` says how much of it each column can make up for",
        ),
        Mistake(mixes_the_rows, "with one error for all rows; each row makes up for its own"),
        Mistake(changes_the_weight, "with the columns changed in the weight itself; give back new ones"),
    ],
    any_integer=("values",),
    parts=("values", "error", "rest"),
    hints=[
        "Round the first column as always. What is lost is the weight minus the real number that came back. Each column "
        "after it moves a little, so that the sum over all columns stays near.",
        "values = quantize(column 0); error = (column 0 - dequantize(values)) / factor_row[0]; "
        "rest[r, j] = weight[r, j] - error[r] * factor_row[j], for the columns j from 1 on.",
        "`quantize(weight[:, 0], scale, zero_point, bits)` and `dequantize(values, scale, zero_point)`; "
        "`error.outer(factor_row[1:])` is a matrix (rows, columns - 1) to take off `weight[:, 1:]`.",
    ],
)


# ---------------------------------------------------------------- 17.4 straight_through

GRADIENT = torch.tensor([[0.5, -1.0, 2.0, 0.25, -0.75]])
CLIPPED = torch.tensor([[-1.7, -0.9, 0.2, 0.5, 1.4]])
FAR_OUT = torch.tensor([[-1.7, -0.9, 0.2, 39.0, 1.58]])  # 39 / 0.15 - 3 is 1 for an int8; 1.58 / 0.15 - 3 is 7.53
PER_ROW = (
    torch.tensor([[0.3, -0.2, 0.9, 0.1], [1.5, 0.4, -0.6, 0.7]]),
    torch.tensor([[-0.35, 0.05, 0.62, 0.93], [4.2, -1.1, 0.3, 2.6]]),
    torch.tensor([[0.3], [1.0]]),
    torch.tensor([[-1], [-2]], dtype=torch.int8),
)


def inside(weight, scale, zero_point, bits):
    qmin, qmax = quant_range(bits)
    integers = torch.round(weight / scale + zero_point)
    return (integers >= qmin) & (integers <= qmax)


def lets_all_through(gradient, weight, scale, zero_point, bits):
    return gradient.clone()


def stops_all(gradient, weight, scale, zero_point, bits):
    return torch.zeros_like(gradient)


def turns_the_mask_round(gradient, weight, scale, zero_point, bits):
    return gradient * ~inside(weight, scale, zero_point, bits)


def gives_the_mask(gradient, weight, scale, zero_point, bits):
    return inside(weight, scale, zero_point, bits).to(gradient.dtype)


def leaves_out_the_ends(gradient, weight, scale, zero_point, bits):
    qmin, qmax = quant_range(bits)
    integers = torch.round(weight / scale + zero_point)
    return gradient * ((integers > qmin) & (integers < qmax))


def does_not_round(gradient, weight, scale, zero_point, bits):
    qmin, qmax = quant_range(bits)
    real = weight / scale + zero_point
    return gradient * ((real >= qmin) & (real <= qmax))


def floors_the_number(gradient, weight, scale, zero_point, bits):
    qmin, qmax = quant_range(bits)
    integers = torch.floor(weight / scale + zero_point)
    return gradient * ((integers >= qmin) & (integers <= qmax))


def cuts_the_number_off(gradient, weight, scale, zero_point, bits):
    qmin, qmax = quant_range(bits)
    integers = (weight / scale + zero_point).to(torch.int32)
    return gradient * ((integers >= qmin) & (integers <= qmax))


def casts_to_int8(gradient, weight, scale, zero_point, bits):
    qmin, qmax = quant_range(bits)
    integers = torch.round(weight / scale + zero_point).to(torch.int32).to(torch.int8)
    return gradient * ((integers >= qmin) & (integers <= qmax))


def multiplies_on_the_way(gradient, weight, scale, zero_point, bits):
    return gradient * inside(weight, 1 / scale, zero_point, bits)


def counts_from_zero(gradient, weight, scale, zero_point, bits):
    integers = torch.round(weight / scale + zero_point)
    return gradient * ((integers >= 0) & (integers < 2**bits))


def compares_the_weight(gradient, weight, scale, zero_point, bits):
    qmin, qmax = quant_range(bits)
    return gradient * ((weight >= qmin) & (weight <= qmax))


def ignores_the_zero_point(gradient, weight, scale, zero_point, bits):
    return gradient * inside(weight, scale, 0, bits)


def subtracts_the_zero_point(gradient, weight, scale, zero_point, bits):
    return gradient * inside(weight, scale, -zero_point, bits)


def takes_8_bits(gradient, weight, scale, zero_point, bits):
    return gradient * inside(weight, scale, zero_point, 8)


def looks_at_the_upper_end(gradient, weight, scale, zero_point, bits):
    return gradient * (torch.round(weight / scale + zero_point) <= quant_range(bits)[1])


def has_a_range_of_its_own(gradient, weight, scale, zero_point, bits):
    qmax = quant_range(bits)[1]
    integers = torch.round(weight / scale + zero_point)
    return gradient * ((integers >= -qmax) & (integers <= qmax))


def compares_with_what_came_back(gradient, weight, scale, zero_point, bits):
    back = dequantize(quantize(weight, scale, zero_point, bits), scale, zero_point)
    return gradient * (back == weight)


def multiplies_by_the_scale(gradient, weight, scale, zero_point, bits):
    return gradient * inside(weight, scale, zero_point, bits) * scale


def divides_by_the_scale(gradient, weight, scale, zero_point, bits):
    return gradient * inside(weight, scale, zero_point, bits) / scale


def rounds_the_gradient(gradient, weight, scale, zero_point, bits):
    return dequantize(quantize(gradient, scale, zero_point, bits), scale, zero_point)


def looks_at_the_gradient(gradient, weight, scale, zero_point, bits):
    return gradient * inside(gradient, scale, zero_point, bits)


def spoils_the_gradient(gradient, weight, scale, zero_point, bits):
    return gradient.mul_(inside(weight, scale, zero_point, bits))


def where_it_lies(args, index):
    _, weight, scale, zero_point, bits = args
    integers = torch.round(weight / scale + zero_point)
    qmin, qmax = quant_range(bits)
    return f"weight {weight[index].item():.4g} -> {integers[index].item():.0f}, the range is {qmin} to {qmax}"


STRAIGHT_THROUGH = Exercise(
    id="17.4",
    name="straight_through",
    key=straight_through,
    cases=[
        Case(
            "five weights, scale 0.5, zero point 0 and 2 bits",
            (GRADIENT, CLIPPED, torch.tensor(0.5), torch.tensor(0), 2),
        ),
        Case("a scale and a zero point for each row, 2 bits", (*PER_ROW, 2)),
        Case("the same, 3 bits", (*PER_ROW, 3)),
        Case("a small scale and 4 bits", (GRADIENT, FAR_OUT, torch.tensor(0.15), torch.tensor(-3), 4)),
    ],
    mistakes=[
        Mistake(
            lets_all_through,
            "with the clipped weights let through too; their gradient is 0 (what `quantize` gives is inside always)",
        ),
        Mistake(
            stops_all,
            "with the true derivative of rounding, 0 everywhere: then nothing is ever learnt; let it through instead",
        ),
        Mistake(turns_the_mask_round, "with the mask turned round: what is inside goes through"),
        Mistake(gives_the_mask, "with the mask itself, without the gradient"),
        Mistake(leaves_out_the_ends, "with the ends of the range counted as clipped; they belong to it"),
        Mistake(
            does_not_round,
            "with the unrounded number compared: one that rounds to an end of the range is not clipped",
        ),
        Mistake(floors_the_number, "with floor in place of round"),
        Mistake(cuts_the_number_off, "with the fraction cut off in place of rounded"),
        Mistake(casts_to_int8, "with integers that int8 cannot hold: one far outside turns up inside the range again"),
        Mistake(multiplies_on_the_way, "with a product with the scale on the way to integers; divide by it"),
        Mistake(counts_from_zero, "with a range that begins at 0; that of `quant_range(bits)` begins below it"),
        Mistake(compares_the_weight, "with the weight itself compared; it is the integers that have a range"),
        Mistake(ignores_the_zero_point, "without the zero point"),
        Mistake(subtracts_the_zero_point, "with the zero point subtracted; on the way to integers it is added"),
        Mistake(takes_8_bits, "with the range of 8 bits, whatever `bits` says"),
        Mistake(looks_at_the_upper_end, "with the upper end only; weights are clipped at the lower one as well"),
        Mistake(has_a_range_of_its_own, "with the range from -qmax; the lower end is one further, quant_range(bits)"),
        Mistake(compares_with_what_came_back, "with every rounded weight stopped; only those that were clipped are"),
        Mistake(multiplies_by_the_scale, "with a product with the scale: it was divided by and multiplied with again"),
        Mistake(divides_by_the_scale, "with a division by the scale: it was divided by and multiplied with again"),
        Mistake(rounds_the_gradient, "with the gradient quantized; it stays as it is, or is 0"),
        Mistake(looks_at_the_gradient, "with the gradient looked at for what is clipped; look at the weight"),
        Mistake(spoils_the_gradient, "with an operation in place on the gradient that was given"),
    ],
    hints=[
        "Forget that there was any rounding: then the gradient stays what it is. But a clipped weight sits at the end of "
        "the range, and moving it a little changes nothing.",
        "integer = round(weight / scale + zero_point); gradient where qmin <= integer <= qmax, 0 elsewhere.",
        "`qmin, qmax = quant_range(bits)`, then a mask with `&` between its two comparisons, and `gradient * mask`.",
    ],
    explain=where_it_lies,
)


EXERCISES = [MIXED_MATMUL, SMOOTHING_SCALE, GPTQ_STEP, STRAIGHT_THROUGH]
