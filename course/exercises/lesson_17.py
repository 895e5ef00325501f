"""Exercises of lesson 17: beyond linear quantization."""

import torch

from course.exercises.exercise import Case, Exercise
from course.exercises.mistakes import Mistake, edit
from qlib.affine import quant_range, quantize, symmetric_qparams
from qlib.linear import mixed_matmul
from qlib.methods import gptq_step, smoothing_scale, straight_through
from qlib.scheme import Scheme
from qlib.tensor import quantize_tensor

# ---------------------------------------------------------------- 17.1 mixed_matmul


def out_of_order(rows, columns, step=37, outliers=()):
    """Numbers between -2 and 2, out of order; `outliers` are (row, column, value)."""
    numbers = ((torch.arange(rows * columns) * step + 11) % 101 / 101 * 4 - 2).reshape(rows, columns)
    for row, column, value in outliers:
        numbers[row, column] = value
    return numbers


def weight_of(rows, columns):
    return quantize_tensor(out_of_order(rows, columns, 29) / 4, Scheme(bits=8))


X = torch.tensor([[1.5, -0.3, 20.0, 0.7], [0.4, 1.1, 2.5, -0.9]])
W = quantize_tensor(torch.tensor([[0.5, -0.2, 0.3, 0.1], [-0.4, 0.6, 0.05, 0.25]]), Scheme(bits=8))
NEAR = [(0, 3, 5.4), (1, 3, -5.3), (2, 3, 5.2), (1, 7, 3.0)]  # large in all, but not one of them reaches 6
THREE = out_of_order(3, 8, outliers=[(1, 1, 9.0), (0, 5, -7.0), (2, 6, 8.0), *NEAR])
MANY = out_of_order(5, 12, outliers=[(3, 4, -31.0), (0, 9, 8.0), (2, 9, 14.0)])


def keeps_the_scales(x, qtensor, threshold):
    outlier = (x.abs() >= threshold).any(0)
    scale, zero_point = symmetric_qparams(x.abs().amax(-1, keepdim=True), 8)
    values = quantize(x, scale, zero_point).masked_fill(outlier, 0)
    out = (values.double() @ qtensor.values.double().T).float() * scale * qtensor.scale.reshape(1, -1)
    return out + x[:, outlier] @ qtensor.dequantize()[:, outlier].T


def how_multiplied(args, index):
    x, _, threshold = args
    columns = (x.abs() >= threshold).any(0).nonzero().flatten().tolist()
    return f"the columns in float are {columns}" if len(columns) < x.shape[1] else "all columns are in float"


OUTLIERS, KEPT = "(x.abs() >= threshold).any(0)", "x.masked_fill(outlier, 0.0)"
IN_FLOAT = "x[:, outlier] @ qtensor.dequantize()[:, outlier].T"

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
        Case("no outlier at all", (out_of_order(3, 8), weight_of(2, 8), 6.0)),
        Case("threshold 0, where every column is one", (out_of_order(3, 8), weight_of(2, 8), 0.0)),
    ],
    mistakes=[
        Mistake(edit(KEPT, "x", f" + {IN_FLOAT}", ""), "with all columns multiplied as integers"),
        Mistake(edit(f"out + {IN_FLOAT}", "x @ qtensor.dequantize().T"), "with all columns multiplied in float; only those with an outlier are"),
        Mistake(edit(".any(0)", ".any().expand(x.shape[1])"), "with all columns multiplied in float as soon as one has an outlier; only that one is"),
        Mistake(edit(IN_FLOAT, "integer_part(x.masked_fill(~outlier, 0.0), qtensor)"), "with the outlier columns rounded as well; they are multiplied in float"),
        Mistake(edit(f" + {IN_FLOAT}", ""), "with the outlier columns left out; they are multiplied in float, and added"),
        Mistake(edit(KEPT, "x"), "with the outlier columns counted twice: put zeros in their place before the integer part"),
        Mistake(edit(KEPT, "x[:, ~outlier]"), "with the outlier columns cut out of x alone; the weight has them still, so put zeros in their place"),
        Mistake(edit("out + ", ""), "with the float part alone; the integer part has to be added"),
        Mistake(edit(">= threshold).any(0)", "< threshold).all(0)"), "with the two kinds of column swapped: the outliers belong in float"),
        Mistake(
            edit(".any(0)", ".any(1, keepdim=True)", KEPT, "x", f"out + {IN_FLOAT}", "out.where(~outlier, x @ qtensor.dequantize().T)"),
            "with whole tokens set apart, rows of x; an outlier lies in a column, the same one in many tokens",
        ),
        Mistake(edit(".any(0)", ".any(1)"), "with `any(1)`, which asks of each token; `any(0)` asks of each column"),
        Mistake(edit(".any(0)", "", IN_FLOAT, "x.masked_fill(~outlier, 0.0) @ qtensor.dequantize().T"), "with single values set apart; the whole column goes to the float part"),
        Mistake(edit("x.abs()", "x"), "without the magnitude: -7 is an outlier as well"),
        Mistake(edit(">=", ">"), "with more than the threshold asked for; a value that reaches it is one"),
        Mistake(edit(".any(0)", ".all(0)"), "with all tokens of a column asked for; one that reaches the threshold is enough"),
        Mistake(edit(OUTLIERS, "x.abs().mean(0) >= threshold"), "with the mean magnitude of a column; one token is enough"),
        Mistake(edit(OUTLIERS, "x.norm(dim=0) >= threshold"), "with the values of a column taken together; one of them has to reach the threshold"),
        Mistake(edit(OUTLIERS, f"{OUTLIERS} & (x.abs().amax(0) == x.abs().max())"), "with the largest column alone; all that reach the threshold are outliers"),
        Mistake(edit(">= threshold", ">= 6.0"), "with 6.0, whatever `threshold` says"),
        Mistake(keeps_the_scales, "with the scales of the whole input: an outlier that was taken out must not set the scale any more"),
        Mistake(edit(KEPT, "x.clamp(-threshold, threshold)", f" + {IN_FLOAT}", ""), "with the outliers clipped to the threshold"),
        Mistake(edit("qtensor.dequantize()[", "qtensor.values.float()["), "with the weight's integers in the float part; it needs `qtensor.dequantize()`"),
        Mistake(edit("outlier].T", "outlier]"), "without the transposition; the weight is (outputs, inputs)"),
        Mistake(edit(".masked_fill(", ".masked_fill_("), "with zeros written into the input itself, so that no outlier is left to multiply in float"),
        Mistake(edit("    out =", "    large = x[:, outlier]\n    out =", ".masked_fill(", ".masked_fill_(", "+ x[:, outlier]", "+ large"), "with zeros written into the input itself"),
    ],
    equivalent=dict.fromkeys([f"x, qtensor, threshold=6.0, per_token=True -> x, qtensor, threshold={other}, per_token=True" for other in (5.0, 7.0)], "the lesson always says which threshold"),
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


def how_scaled(args, index):
    weights, x, *_ = args
    reach, size = x.abs().amax(0)[index].item(), torch.cat(weights).abs().amax(0)[index].item()
    return f"max|X| {reach:.4g}, max|W| {size:.4g}"


REACH, SIZE = "x.float().abs().amax(0)", "torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0)"
SCALE, WHERE = "x_max**alpha / w_max ** (1 - alpha)", "torch.where((x_max > 0) & (w_max > 0), scale, 1.0)"

SMOOTHING_SCALE = Exercise(
    id="17.2",
    name="smoothing_scale",
    key=smoothing_scale,
    cases=[
        Case("one weight and alpha 0.5", ([READER], ACTIVE, 0.5)),
        Case("one weight and no alpha, which is 0.5", ([READER], ACTIVE)),
        Case("one weight and alpha 0.75", ([READER], ACTIVE, 0.75)),
        Case("two weights that read the same input, alpha 0.25", ([READER, SECOND], ACTIVE, 0.25)),
        Case("alpha 0", ([SECOND, READER], ACTIVE, 0.0)),
        Case("a channel that is always 0", ([READER], SILENT, 0.5)),
        Case("a channel that no weight reads", ([UNREAD], ACTIVE, 0.5)),
    ],
    mistakes=[
        Mistake(edit(SCALE, "x_max ** (1 - alpha) / w_max**alpha"), "with alpha and 1 - alpha swapped"),
        Mistake(edit("    x_max =", "    alpha = 0.5\n    x_max ="), "with 0.5, whatever `alpha` says"),
        Mistake(edit(SCALE, "w_max ** (1 - alpha) / x_max**alpha"), "with the fraction upside down; x is divided by the scale, so max|X| is on top"),
        Mistake(edit("alpha / w", "alpha * w"), "with a product; what moves is a fraction, max|X| over max|W|"),
        Mistake(edit(SCALE, "w_max**alpha / x_max ** (1 - alpha)"), "with the weights on top and the activations below"),
        Mistake(edit(" ** (1 - alpha)", ""), "with the whole max|W| below; it has a power too, 1 - alpha"),
        Mistake(edit("(1 - alpha)", "alpha"), "with alpha as the power of both; that of max|W| is 1 - alpha"),
        Mistake(edit(SCALE, "x_max / w_max"), "with no powers, whatever `alpha` says"),
        Mistake(edit("= x_max**alpha", "= 1"), "without the activations"),
        Mistake(edit(" / w_max ** (1 - alpha)", ""), "without the weights"),
        Mistake(edit("x.float().abs()", "x.float()", "weight.float().abs()", "weight.float()"), "without magnitudes: the largest value, where the largest magnitude is meant"),
        Mistake(edit("x.float().abs()", "x.float()"), "without the magnitude of the activations: -0.9 reaches further than 0.3"),
        Mistake(edit("weight.float().abs()", "weight.float()"), "without the magnitude of the weights: -4 reaches further than 1"),
        Mistake(edit(REACH, "x.float().abs().mean(0)"), "with the mean magnitude of the activations; the largest one sets the scale"),
        Mistake(edit(SIZE, "torch.cat(weights).abs().mean(0)"), "with the mean magnitude of the weights; the largest one sets the scale"),
        Mistake(edit("in weights", "in weights[:1]"), "with the first weight only; all that read the input share its scale"),
        Mistake(edit("in weights", "in weights[-1:]"), "with the last weight only; all that read the input share its scale"),
        Mistake(edit("weights]).amax(0)", "weights]).sum(0)"), "with the sum of the weights' maxima; take the largest of them"),
        Mistake(edit("amax(0) for", "amax() for"), "with one maximum for the whole weight; each column has its own, `amax(0)`"),
        Mistake(edit(REACH, "x.float().abs().amax()"), "with one maximum for all activations; each channel has its own, `amax(0)`"),
        Mistake(edit(REACH, "x.float().abs().amax(1)"), "with a scale for each token; it is the channels that have one"),
        Mistake(edit("amax(0) for", "amax(1) for"), "with a maximum for each row of a weight; it is the columns, one for each channel, that have one"),
        Mistake(edit(WHERE, "scale"), "with 0 or infinity for a channel that is always 0 or that no weight reads; its scale is 1"),
        Mistake(edit(REACH, f"{REACH}.clamp(min=1e-5)", SIZE, f"{SIZE}.clamp(min=1e-5)"), "with a tiny number in the place of 0; the scale of such a channel is 1"),
        Mistake(edit(SIZE, f"{SIZE}.clamp(min=1e-5)", WHERE, "scale.clamp(min=1e-5)"), "with a tiny number in the place of a scale of 0; that of such a channel is 1"),
        Mistake(edit(" & (w_max > 0)", ""), "with infinity for a channel that no weight reads; its scale is 1 as well"),
        Mistake(edit("(x_max > 0) & ", ""), "with 0 for a channel whose activations are always 0; its scale is 1 as well"),
    ],
    equivalent=dict.fromkeys(["x.float() -> x", "weight.float() -> weight"], "what comes in is float32"),
    hints=[
        "For each channel: how far do the activations reach, over all tokens, and how far do the weights reach, over all rows of all the weights that read them?",
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


ROUNDED = "quantize(weight[:, 0], scale, zero_point, bits)"
BACK, SHARES = "dequantize(values, scale, zero_point)", "error.outer(factor_row[1:])"

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
        Mistake(edit(f" - {SHARES}", ""), "with the columns to come left as they were: that is plain rounding"),
        Mistake(edit("- error.outer", "+ error.outer"), "with the share added; it is taken off"),
        Mistake(edit(f"weight[:, 0] - {BACK}", f"{BACK} - weight[:, 0]"), "with the error turned round; it is the weight minus what came back"),
        Mistake(edit("values, error,", "values, -error,"), "with the sign of `error` turned; the weight minus what came back"),
        Mistake(edit(" / factor_row[0]", ""), "with no division by the diagonal, `factor_row[0]`"),
        Mistake(edit("/ factor_row[0]", "/ factor_row[0] ** 2"), "with the diagonal divided by twice"),
        Mistake(edit("factor_row[1:]", "factor_row[1:] / factor_row[0]"), "with what `rest` loses divided by the diagonal once more; `error` has been already"),
        Mistake(edit("/ factor", "* factor"), "with a product with the diagonal; divide by `factor_row[0]`"),
        Mistake(edit("values, error,", "values, error * factor_row[0],"), "with `error` given back before it was divided by the diagonal"),
        Mistake(edit("factor_row[1:]", "factor_row[1:] * factor_row[0]"), "with the undivided error taken off the columns to come"),
        Mistake(edit(BACK, "values"), "with the weight compared to the integer; compare it to the real number that the integer stands for"),
        Mistake(edit(BACK, "values * scale"), "without the zero point on the way back to a real number"),
        Mistake(edit("    values =", "    zero_point = 0\n    values ="), "without the zero point"),
        Mistake(edit("bits)\n", "8)\n"), "with no clamp to the range of `bits`"),
        Mistake(edit(ROUNDED, "torch.floor(weight[:, 0] / scale + zero_point).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)"), "with floor in place of round"),
        Mistake(edit(ROUNDED, "torch.trunc(weight[:, 0] / scale + zero_point).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)"), "with the fraction cut off in place of rounded"),
        Mistake(edit("dequantize(values,", "dequantize(quantize(weight[:, 0], scale, zero_point, 8),"), "with the error taken before the clamp; what a clipped weight loses is an error too"),
        Mistake(edit("return values", f"return {BACK}"), "with real numbers for `values`; they are the integers"),
        Mistake(edit(f"weight[:, 1:] - {SHARES}", "weight - error.outer(factor_row)"), "with the first column still in `rest`; it holds those after it"),
        Mistake(edit(f"weight[:, 1:] - {SHARES}", "(weight - error.outer(factor_row))[:, :-1]"), "with the last column left out of `rest`; it is the first that goes"),
        Mistake(edit("factor_row[1:]", "factor_row[:-1]"), "with each column's factor taken from its neighbour: they begin at `factor_row[1]`"),
        Mistake(edit("factor_row[1:]", "factor_row[1:] * (torch.arange(len(factor_row) - 1) == 0)"), "with one column moved; all that are to come take their share"),
        Mistake(edit(SHARES, "error * factor_row[1:]"), "with `error` and `factor_row[1:]` multiplied one by one; each error meets each factor, an outer product"),
        Mistake(edit(SHARES, "factor_row[1:].outer(error)"), "with the outer product turned round; each row of the weight has an error, each column a factor"),
        Mistake(edit(SHARES, "(error * factor_row[0])[:, None] / (weight.shape[1] - 1)"), "with the error shared out evenly; `factor_row` says how much of it each column can make up for"),
        Mistake(edit(SHARES, "error.sum() * factor_row[1:]"), "with one error for all rows; each row makes up for its own"),
        Mistake(
            edit("    return", f"    weight[:, 1:] -= {SHARES}\n    return", f"weight[:, 1:] - {SHARES}\n", "weight[:, 1:]\n"), "with the columns changed in the weight itself; give back new ones"
        ),
    ],
    any_integer=("values",),
    parts=("values", "error", "rest"),
    hints=[
        "Round the first column as always. What is lost is the weight minus the real number that came back. Each column after it moves a little, so that the sum over all columns stays near.",
        "values = quantize(column 0); error = (column 0 - dequantize(values)) / factor_row[0]; rest[r, j] = weight[r, j] - error[r] * factor_row[j], for the columns j from 1 on.",
        "`quantize(weight[:, 0], scale, zero_point, bits)` and `dequantize(values, scale, zero_point)`; `error.outer(factor_row[1:])` is a matrix (rows, columns - 1) to take off `weight[:, 1:]`.",
    ],
)


# ---------------------------------------------------------------- 17.4 straight_through

GRADIENT = torch.tensor([[0.5, -1.0, 2.0, 0.25, -0.75]])
CLIPPED = torch.tensor([[-1.7, -0.9, 0.2, 0.5, 1.4]])
# 1.5748 / 0.15 - 3 is 7.4987, in half precision 7.5; 39 / 0.15 - 3 is 1 for an int8; 1.58 / 0.15 - 3 is 7.53.
FAR_OUT = torch.tensor([[-1.7, -0.9, 1.5748, 39.0, 1.58]])
PER_ROW = (
    torch.tensor([[0.3, -0.2, 0.9, 0.1], [1.5, 0.4, -0.6, 0.7]]),
    torch.tensor([[-0.35, 0.05, 0.62, 0.93], [4.2, -1.1, 0.3, 2.6]]),
    torch.tensor([[0.3], [1.0]]),
    torch.tensor([[-1], [-2]], dtype=torch.int8),
)


def where_it_lies(args, index):
    _, weight, scale, zero_point, bits = args
    integers = torch.round(weight / scale + zero_point)
    qmin, qmax = quant_range(bits)
    return f"weight {weight[index].item():.4g} -> {integers[index].item():.0f}, the range is {qmin} to {qmax}"


INSIDE = "(integers >= qmin) & (integers <= qmax)"

STRAIGHT_THROUGH = Exercise(
    id="17.4",
    name="straight_through",
    key=straight_through,
    cases=[
        Case("five weights, scale 0.5, zero point 0 and 2 bits", (GRADIENT, CLIPPED, torch.tensor(0.5), torch.tensor(0), 2)),
        Case("a scale and a zero point for each row, 2 bits", (*PER_ROW, 2)),
        Case("the same, 3 bits", (*PER_ROW, 3)),
        Case("a small scale and 4 bits", (GRADIENT, FAR_OUT, torch.tensor(0.15), torch.tensor(-3), 4)),
    ],
    mistakes=[
        Mistake(edit(f"gradient * ({INSIDE})", "gradient.clone()"), "with the clipped weights let through too; their gradient is 0 (what `quantize` gives is inside always)"),
        Mistake(edit(f"gradient * ({INSIDE})", "torch.zeros_like(gradient)"), "with the true derivative of rounding, 0 everywhere: then nothing is ever learnt; let it through instead"),
        Mistake(edit("gradient * (", "gradient * ~("), "with the mask turned round: what is inside goes through"),
        Mistake(edit(f"gradient * ({INSIDE})", f"({INSIDE}).float()"), "with the mask itself, without the gradient"),
        Mistake(edit(">=", ">", "<=", "<"), "with the ends of the range counted as clipped; they belong to it"),
        Mistake(edit("<=", "<"), "with the upper end of the range counted as clipped; it belongs to it"),
        Mistake(edit("torch.round", ""), "with the unrounded number compared: one that rounds to an end of the range is not clipped"),
        Mistake(edit("torch.round", "torch.floor"), "with floor in place of round"),
        Mistake(edit("torch.round", "torch.trunc"), "with the fraction cut off in place of rounded"),
        Mistake(edit("+ zero_point)", "+ zero_point).to(torch.int32).to(torch.int8)"), "with integers that int8 cannot hold: one far outside turns up inside the range again"),
        Mistake(edit("/ scale", "* scale"), "with a product with the scale on the way to integers; divide by it"),
        Mistake(edit("quant_range(bits)", "0, 2**bits - 1"), "with a range that begins at 0; that of `quant_range(bits)` begins below it"),
        Mistake(edit(INSIDE, "(weight >= qmin) & (weight <= qmax)"), "with the weight itself compared; it is the integers that have a range"),
        Mistake(edit(" + zero_point", ""), "without the zero point"),
        Mistake(edit("+ zero_point", "- zero_point"), "with the zero point subtracted; on the way to integers it is added"),
        Mistake(edit("range(bits)", "range(8)"), "with the range of 8 bits, whatever `bits` says"),
        Mistake(edit("(integers >= qmin) & ", ""), "with the upper end only; weights are clipped at the lower one as well"),
        Mistake(edit(" & (integers <= qmax)", ""), "with the lower end only; weights are clipped at the upper one as well"),
        Mistake(edit(">= qmin", ">= -qmax"), "with the range from -qmax; the lower end is one further, quant_range(bits)"),
        Mistake(edit(INSIDE, "scale * (integers.clamp(qmin, qmax) - zero_point) == weight"), "with every rounded weight stopped; only those that were clipped are"),
        Mistake(edit("qmax))", "qmax)) * scale"), "with a product with the scale: it was divided by and multiplied with again"),
        Mistake(edit("qmax))", "qmax)) / scale"), "with a division by the scale: it was divided by and multiplied with again"),
        Mistake(edit(f"gradient * ({INSIDE})", "scale * (torch.round(gradient / scale + zero_point).clamp(qmin, qmax) - zero_point)"), "with the gradient quantized; it stays as it is, or is 0"),
        Mistake(edit(f"gradient * ({INSIDE})", "gradient.clamp(qmin, qmax)"), "with the gradient held inside the range; it stays as it is, or is 0"),
        Mistake(edit("weight.float() /", "gradient /"), "with the gradient looked at for what is clipped; look at the weight"),
        Mistake(edit("gradient * (", "gradient.mul_("), "with an operation in place on the gradient that was given"),
    ],
    equivalent={"weight.float() -> weight": "the weight is float32", "weight.float -> weight.double": "more digits change no integer"},
    hints=[
        "Forget that there was any rounding: then the gradient stays what it is. But a clipped weight sits at the end of the range, and moving it a little changes nothing.",
        "integer = round(weight / scale + zero_point); gradient where qmin <= integer <= qmax, 0 elsewhere.",
        "`qmin, qmax = quant_range(bits)`, then a mask with `&` between its two comparisons, and `gradient * mask`.",
    ],
    explain=where_it_lies,
)

EXERCISES = [MIXED_MATMUL, SMOOTHING_SCALE, GPTQ_STEP, STRAIGHT_THROUGH]
