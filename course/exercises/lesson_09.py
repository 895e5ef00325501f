"""Exercises of lesson 9: quantizing weights and activations for inference."""

import torch

from course.exercises.exercise import Case, Exercise, Property
from course.exercises.judge import kind
from course.exercises.mistakes import Mistake, edit
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


# Pieces of the key.
INT32 = "x.to(torch.int32), w.to(torch.int32)"
OFF_W, OFF_X, CONSTANT = (" - x_zero_point * w_sums", " - w_zero_point * x_sums", " + inputs * x_zero_point * w_zero_point")


def positive_integers(rows, columns, step):
    """Integers from 0 to 127. Products of one sign pile up, and no accumulator that is too short hides it."""
    return integers(rows, columns, step).abs().clamp(max=127)


def as_int32(answer, *args):
    """The sums as int32: PyTorch's own sums are int64, and to ask for one or the other would teach nothing."""
    result = answer(*args)
    whole = isinstance(result, torch.Tensor) and not result.is_floating_point() and result.dtype != torch.bool
    return result.to(torch.int32) if whole else result


def sums_of(label, *args):
    return Case(label, args, use=as_int32)


def how_summed(args, index):
    row, output = args[0][index[:-1]].long(), args[2][index[-1]].long()
    return f"products {row @ output}, sum of the inputs {row.sum()}, of the weights {output.sum()}"


INTEGER_LINEAR = Exercise(
    id="09.1",
    name="integer_linear",
    key=integer_linear,
    cases=[
        sums_of("the course's layer, zero points -128 and -5", X, -128, W, -5),
        sums_of("three rows, zero points -128 and -5", integers(3, 3, 37), -128, W, -5),
        sums_of("300 inputs and zero points of 0", positive_integers(2, 300, 7), 0, positive_integers(4, 300, 11), 0),
        sums_of("7 inputs, 2 outputs, zero points 9 and 3", integers(4, 7, 29), 9, integers(2, 7, 53), 3),
        sums_of("a batch of three dimensions", integers(6, 4, 29).reshape(2, 3, 4), -17, integers(5, 4, 53), 40),
        sums_of("5,001 inputs", positive_integers(2, 5001, 7), 0, positive_integers(4, 5001, 11), 0),
    ],
    mistakes=[
        Mistake(edit(OFF_W + OFF_X + CONSTANT, ""), "with the products alone; both zero points have to be taken off"),
        Mistake(edit(CONSTANT, ""), "without the last term, K times both zero points: K is how many inputs there are"),
        Mistake(edit(OFF_X + CONSTANT, ""), "without the weight's zero point"),
        Mistake(edit(OFF_W, "", CONSTANT, ""), "without the input's zero point"),
        Mistake(edit(OFF_W, ""), "without the term that takes the sum of the weights"),
        Mistake(edit(OFF_X, ""), "without the term that takes the sum of the inputs"),
        Mistake(edit("- x_zero_point", "+ x_zero_point"), "with the sum of the weights added; its sign is minus"),
        Mistake(edit("- w_zero_point", "+ w_zero_point"), "with the sum of the inputs added; its sign is minus"),
        Mistake(edit("- x", "+ x", "- w", "+ w"), "with every correction added; only the last one has a plus"),
        Mistake(edit("+ inputs", "- inputs"), "with the last term subtracted; minus times minus is plus"),
        Mistake(edit("inputs * ", ""), "with the product of the zero points once; the sum has one for each input"),
        Mistake(edit("x.shape[-1]", "w.shape[0]"), "with K taken for the number of outputs; it counts the inputs in a sum"),
        Mistake(edit("x.shape[-1]", "x.shape[0]"), "with K taken for the number of rows, `len(x)`; it counts the inputs"),
        Mistake(edit("x.shape[-1]", "x.numel()"), "with K taken for all the numbers in x; a sum has one row of them"),
        Mistake(edit("x.shape[-1]", "x.shape[1]"), "with `x.shape[1]` for K; in a larger batch the inputs lie along -1"),
        Mistake(edit(OFF_W + OFF_X, " - w_zero_point * w_sums - x_zero_point * x_sums"), "with the zero points swapped; the input's goes with the sum of the weights, the weight's with the inputs'"),
        Mistake(edit("* w_sums", "* w_sums // inputs", "* x_sums", "* x_sums // inputs", "+ inputs *", "+"), "with means in place of sums in the corrections"),
        Mistake(edit("x @ w.T", "x.to(torch.int8) @ w.T.to(torch.int8)"), "with the matrix product done in int8, where every sum wraps around"),
        Mistake(edit(INT32, INT32.replace("int32", "int16")), "with an accumulator of 16 bits; three hundred products need more"),
        Mistake(
            edit(INT32, "(x - x_zero_point).int(), (w - w_zero_point).int()\n    x_zero_point = w_zero_point = 0"), "with the zero points subtracted in int8, where 127 - (-128) does not fit and wraps"
        ),
        Mistake(edit(INT32, "x.sub_(x_zero_point).int(), w.sub_(w_zero_point).int()\n    x_zero_point = w_zero_point = 0"), "with an operation in place on the input, which is int8 and wraps around"),
        Mistake(edit("x @ w.T" + OFF_W, "(x - x_zero_point) @ (w - w_zero_point).T" + OFF_W), "with the zero points taken off twice: before the product, and by the corrections after it"),
        Mistake(edit("w.T", "w"), "without the transpose; a row of the weight belongs to an output"),
        Mistake(edit("x @ w.T", "x * w"), "with an elementwise product; `@` multiplies and adds up"),
        Mistake(edit("x @ w.T", "w @ x.T"), "with the weight on the left; a row of x makes a row of the result"),
        Mistake(edit("w.sum(-1", "w.sum(0"), "with the weights summed over the outputs; sum each row, over its inputs"),
        Mistake(edit("w.sum(-1", "w.sum(-1, keepdim=True"), "with the sums of the weights in a column; there is one for each output, and outputs lie along a row"),
        Mistake(edit("x.sum(-1, keepdim=True", "x.sum(0"), "with the inputs summed over the batch; sum each row, and keep its dimension so that it broadcasts"),
        Mistake(edit("x.sum(-1", "x.sum(1"), "with the inputs summed over dimension 1; in a larger batch they lie along -1"),
        Mistake(edit("keepdim=True, ", ""), "with the sums of the inputs laid along the outputs; `keepdim=True` makes them a column, one for each row"),
        Mistake(edit("x.sum(-1, keepdim=True, ", "x.sum("), "with one sum over all the inputs; each row has its own"),
        Mistake(edit("w.sum(-1, ", "w.sum("), "with one sum over all the weights; each output has its own"),
        Mistake(edit("x.sum(-1, keepdim=True, ", "x.sum(", "w.sum(-1, ", "w.sum("), "with one sum over the whole tensor; each row has a sum of its own"),
        Mistake(edit(INT32, "x.float(), w.float()"), "with the product done in float32; the point is to stay in integers"),
        Mistake(edit("x @ w.T", "(x.float() @ w.float().T).to(torch.int32)"), "with float32 on the way, whose 24 binary digits do not hold every sum; stay in integers"),
    ],
    equivalent={
        "x.sum(-1, keepdim=True, dtype=torch.int32) -> x.sum(-1, keepdim=True)": "a sum of int32 is int64: wide enough",
        "w.sum(-1, dtype=torch.int32) -> w.sum(-1)": "a sum of int32 is int64: wide enough",
        "x_sums = x.sum(-1, keepdim=True, dtype=torch.int32) -> x_sums = x.sum(-1, keepdim=True, dtype=torch.int64)": "the sums of the inputs may be int64 as well",
        "w_sums = w.sum(-1, dtype=torch.int32) -> w_sums = w.sum(-1, dtype=torch.int64)": "the sums of the weights may be int64 as well",
        "w.sum(-1, dtype=torch.int32) -> w.sum(1, dtype=torch.int32)": "the last dimension of a weight is dimension 1",
    },
    hints=[
        "Multiply out (x - a)(w - b) for one pair, then sum each of the four terms over the inputs.",
        "Σxw - a Σw - b Σx + K a b, with a and b the zero points of x and w, and K the number of inputs.",
        "Make x and w int32 first. `x @ w.T` is Σxw; the sums run over the last dimension, and the sum over x keeps it (`keepdim=True`), so that it is a column beside the outputs.",
    ],
    explain=how_summed,
)


# ---------------------------------------------------------------- 09.2 requantize

SUMS = torch.tensor([[-15555, 20145, 48960], [0, 9000, -700], [100000, -100000, 31000]], dtype=torch.int32)
ROW_SCALES = torch.tensor([0.016275, 0.008, 0.0021])


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
        Case("the sums of the course's layer, scales 3/255, 0.016275 and 0.05, zero point -60", (SUMS[:1], 3 / 255, 0.016275, 0.05, -60)),
        Case("three rows and a scale for each output", (SUMS, 3 / 255, ROW_SCALES, 0.05, -60)),
        Case("bits=4", (SUMS, 3 / 255, ROW_SCALES, 0.61, 2), {"bits": 4}),
        Case("a large zero point", (SUMS, 0.02, 0.003, 0.9, 101)),
        Case("small sums and coarse scales", (torch.tensor([[-41, 3], [24, 9]], dtype=torch.int32), 0.5, 0.5, 0.2, 7)),
    ],
    mistakes=[
        Mistake(edit("torch.round", "torch.floor"), "with floor in place of round"),
        Mistake(edit("torch.round", ""), "with no round before the cast, which cuts off the decimals"),
        Mistake(edit("torch.round(", "(0.5 + "), "with a half added and the decimals cut off, which is wrong below 0"),
        Mistake(edit("clamp(qmin, qmax)", "to(torch.int64)"), "with no clamp before the cast: what lies outside the range wraps around"),
        Mistake(edit("clamp(qmin, qmax).to(torch.int8)", "to(torch.int64).to(torch.int8).clamp(qmin, qmax)"), "with the clamp after the cast, when the values have wrapped around already"),
        Mistake(
            edit(" + y_zero_point", "", "clamp(qmin, qmax)", "clamp(qmin, qmax).add(y_zero_point).to(torch.int64)"), "with the clamp before the zero point is added; clamp what you cast, at the end"
        ),
        Mistake(edit("(bits)", "(8)"), "with a clamp to -128 and 127 whatever the bits; the range is quant_range(bits)"),
        Mistake(edit("clamp(qmin", "clamp(-qmax"), "with a clamp to -qmax and qmax; the range starts at qmin, one lower"),
        Mistake(edit("clamp(qmin, qmax).to(torch.int8)", "clamp(0, 2**bits - 1).to(torch.uint8)"), "with an unsigned range; ours is signed, quant_range(bits)"),
        Mistake(edit("qmax)", "qmax + 1).to(torch.int16)"), "with an upper end of 2^(bits - 1); it is one less, qmax"),
        Mistake(edit(" + y_zero_point", ""), "without the zero point of the result"),
        Mistake(edit("+ y_zero", "- y_zero"), "with the zero point subtracted; this is the way in, where it is added"),
        Mistake(edit("accumulator * multiplier + y_zero_point", "(accumulator + y_zero_point) * multiplier"), "with the zero point added before the scaling; it counts integers of the result"),
        Mistake(edit(" / y_scale", ""), "without the scale of the result: the sums are real numbers then, not steps"),
        Mistake(edit("/ y_scale", "* y_scale"), "with a multiplication by the result's scale; divide by it, to count how many of its steps fit"),
        Mistake(edit("accumulator *", "accumulator /"), "with the multiplier upside down"),
        Mistake(edit("= x_scale * ", "= "), "without the scale of the input"),
        Mistake(edit(" * w_scale", ""), "without the scale of the weight"),
        Mistake(edit("* w_scale", "* torch.as_tensor(w_scale).reshape(-1, 1)"), "with the weight's scales along the rows; they belong to the outputs, the columns"),
        Mistake(edit("* w_scale", "* torch.as_tensor(w_scale).max()"), "with the largest of the weight's scales for all outputs; each output has its own"),
        Mistake(edit("accumulator *", "accumulator.to(torch.int8) *"), "with a cast to int8 before the scaling, when the sums do not fit into it yet"),
        Mistake(edit("accumulator * multiplier", "accumulator.mul_(multiplier)"), "with an operation in place on the sums: they are int32 and cannot hold the product with a float"),
        Mistake(
            edit(" / y_scale", "", "torch.round(", "(", " + y_zero_point).clamp(qmin, qmax).to(torch.int8)", ")"), "with the real numbers that the sums stand for; they still have to be quantized"
        ),
        Mistake(edit(".to(torch.int8)", ""), "without the cast to int8 at the end"),
        Mistake(edit(".to(torch.int8)", ".to(torch.int32)"), "with a cast to int32 at the end; the result is int8"),
    ],
    hints=[
        "Which real number does a sum stand for? And which integer stands for that number on the result's ruler?",
        "real = sum * x_scale * w_scale, then q = round(real / y_scale + y_zero_point), clamped and made int8.",
        "Put the three scales into one multiplier. It is a number, or a row of one for each output: it broadcasts. Then `torch.round`, `.clamp(*quant_range(bits))`, `.to(torch.int8)`.",
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


def does_what_both_do(answer):
    """On a picture, the folded layer gives what the two layers give one after the other, its stride included."""
    for geometry in ({"stride": 2, "padding": 1}, {"padding": 1, "dilation": 2}):
        conv, bn = layers(2, 3, bias=True, **geometry)
        picture = numbers(1, 2, 7, 7)
        both = bn(conv(picture))
        folded = answer(conv, bn)(picture)
        words = " and ".join(f"{name} {size}" for name, size in geometry.items())
        if folded.shape != both.shape:
            return f"for a conv of {words}, the folded layer turns a picture of 7 x 7 into {size_of(folded)}, the two layers into {size_of(both)}."
        worst = (folded - both).abs().max().item()
        if worst > 1e-4:
            return f"for a conv of {words}, the folded layer is {worst:.4g} away from the two layers on a picture."
    return None


def size_of(picture):
    return " x ".join(str(size) for size in picture.shape[2:])


# Pieces of the key, and a layer that takes the place of its copy.
CONV_BIAS, SHIFT, COPY = ("0 if conv.bias is None else conv.bias", "(bias - bn.running_mean) * factor", "copy.deepcopy(conv)")
NEW_CONV = "torch.nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size"


def how_folded(args, index):
    bn, channel = args[1], index[0]
    factor = bn.weight[channel] / torch.sqrt(bn.running_var[channel] + bn.eps)
    return f"gamma / sqrt(var + eps) of channel {channel} is {factor.item():.4g}"


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
        Mistake(edit(" + bn.eps", ""), "without eps under the root"),
        Mistake(edit("torch.sqrt(bn.running_var + bn.eps)", "(torch.sqrt(bn.running_var) + bn.eps)"), "with eps added to the root; it belongs under it, beside the variance"),
        Mistake(edit("torch.sqrt", ""), "with the variance where its root should be"),
        Mistake(edit("weight /", "weight *"), "with a multiplication by the deviation; a batch norm divides by it"),
        Mistake(edit("bn.weight /", "1 /"), "without gamma, the batch norm's weight"),
        Mistake(edit(" - bn.running_mean", ""), "without the running mean"),
        Mistake(edit("- bn.running", "+ bn.running"), "with the running mean added; a batch norm subtracts it"),
        Mistake(edit("bn.bias + ", ""), "without beta, the batch norm's bias"),
        Mistake(edit("bn.bias + (bias", "(bn.bias + bias"), "with beta scaled as well; it is added at the very end"),
        Mistake(edit("bn.bias", "bn.running_mean", "- bn.running_mean", "- bn.bias"), "with beta and the running mean in each other's place"),
        Mistake(edit(CONV_BIAS, "0"), "without the convolution's own bias"),
        Mistake(edit(CONV_BIAS, "conv.bias"), "with no thought of a conv without a bias: its `conv.bias` is None"),
        Mistake(edit("conv.bias is None", "not conv.bias"), "with `if conv.bias`; a tensor has no answer, so ask `is None`"),
        Mistake(edit(SHIFT, "bias - bn.running_mean * factor"), "with the convolution's bias left unscaled; it goes through the batch norm like all else"),
        Mistake(edit(SHIFT, "bias * factor - bn.running_mean"), "with the running mean left unscaled; it is subtracted before the division"),
        Mistake(edit(SHIFT, "bias - bn.running_mean"), "with bias and running mean both left unscaled; f multiplies both"),
        Mistake(edit(" * factor.reshape(-1, 1, 1, 1)", ""), "with the weight left as it was"),
        Mistake(edit("reshape(-1, 1,", "reshape(1, -1,"), "with the weight scaled along its input channels; dimension 0 holds the outputs, and the batch norm's"),
        Mistake(edit(".reshape(-1, 1, 1, 1)", ""), "with no reshape of the factor: it broadcasts along the last dimension, the kernel's width"),
        Mistake(edit("weight = torch.nn.Parameter", "weight = "), "with a plain tensor for the weight; wrap it in torch.nn.Parameter"),
        Mistake(edit("fused.bias = torch.nn.Parameter", "fused.bias = "), "with a plain tensor for the bias; wrap it in torch.nn.Parameter"),
        Mistake(edit("fused.bias = torch.nn.Parameter", "fused.bias.data = "), "with the `.data` of a bias that may be None; assign a torch.nn.Parameter"),
        Mistake(edit("fused.bias =", "if conv.bias is not None:\n        fused.bias ="), "with a bias only where the conv had one; the batch norm's shift always needs one"),
        Mistake(edit(COPY, "conv"), "with the conv or the batch norm itself changed; make a copy"),
        Mistake(edit(COPY, NEW_CONV + ")"), "with a new Conv2d that has not the stride and the padding of the old one"),
        Mistake(edit(COPY, NEW_CONV + ", padding=conv.padding)"), "with a new Conv2d that has not the stride of the old one"),
        Mistake(edit(COPY, NEW_CONV + ", conv.stride)"), "with a new Conv2d that has not the padding of the old one"),
        Mistake(edit(COPY, NEW_CONV + ", conv.stride, conv.padding)"), "with a new Conv2d that has not the dilation of the old one"),
    ],
    parts=("weight", "bias"),
    hints=[
        "A batch norm in evaluation mode multiplies each channel by a factor and adds a shift. Let the convolution's own weight and bias do both.",
        "factor = gamma / sqrt(var + eps), one for each output. The weight is multiplied by it; the bias becomes beta + (bias - mean) * factor.",
        "`copy.deepcopy(conv)` keeps stride and padding. The factor has to be (outputs, 1, 1, 1) to meet the weight; "
        "a conv made with bias=False has `conv.bias is None`. Wrap what you assign in `torch.nn.Parameter`.",
    ],
    explain=how_folded,
)


# ---------------------------------------------------------------- 09.4 MovingAverage

BATCHES = [torch.tensor([[0.1, 2.0], [-1.0, 0.4]]), torch.tensor([[-0.5, 3.0], [0.2, 0.6]]), torch.tensor([[-2.0, 0.9], [0.3, 12.0]]), torch.tensor([[-1.5, 2.4], [0.7, 1.9]])]
IN_THREE_SHAPES = [BATCHES[0].double().flatten(), BATCHES[1].double(), BATCHES[2].double().reshape(1, 2, 1, 2)]


# Pieces of the key: both ends of a batch, and the new average of one end.
ENDS, SHARES = "low, high = tensor.amin(), tensor.amax()", "(1 - self.momentum) * self.{0} + self.momentum * {0}"


def watched(answer, batches, **options):
    """What the exercise compares: the range after an observer has seen the batches one after the other."""
    observer = answer(**options)
    for batch in batches:
        observer.observe(batch)
    return observer.range()


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
        Case("batches that come out of a ReLU, from 0 upwards", ([b.relu() for b in BATCHES],), use=watched),
        Case("batches of float64 in three shapes", (IN_THREE_SHAPES,), use=watched),
    ],
    mistakes=[
        Mistake(edit("= momentum", "= 1 - momentum"), "with the shares swapped: the newest batch has the share `momentum`, the past the rest"),
        Mistake(edit("= None", "= 0"), "with an average that starts at 0; the first batch is the average as it is"),
        Mistake(
            edit("self.low = self.high = None", "self.low, self.high = torch.inf, -torch.inf"), "with an average that starts at infinity, and stays there; the first batch is the average as it is"
        ),
        Mistake(edit("self.low is None", "not self.low"), "with `if not self.low` for the first batch: a low end of 0.0 is false as well; ask whether it is None"),
        Mistake(edit(ENDS, "if self.low is not None:\n            return\n        " + ENDS), "with the first batch alone"),
        Mistake(edit("self.low is None", "True"), "with the latest batch alone"),
        Mistake(edit("* self.high", "* self.low"), "with the old low end in the average of the high end"),
        Mistake(edit("self.low, self.high = low, high", "return"), "with a first batch that is not kept in `self`"),
        Mistake(edit("self.low, self.high = low, high", "pass"), "with the first batch averaged with None"),
        Mistake(
            edit(SHARES.format("low"), "torch.minimum(self.low, low)", SHARES.format("high"), "torch.maximum(self.high, high)"),
            "with the smallest and the largest number ever seen; that is the other observer",
        ),
        Mistake(
            edit("= momentum", "= 1", "self.low, self.high = low, high", "self.low, self.high = low, high\n        else:\n            self.momentum = 1 / (1 / self.momentum + 1)"),
            "with every batch weighted alike; here the past fades",
        ),
        Mistake(edit("= momentum", "= 0.1"), "with 0.1 whatever the momentum"),
        Mistake(edit("= momentum", "= 1 - (1 - momentum) ** 2"), "with the average updated twice for each batch"),
        Mistake(edit(ENDS, "low = high = tensor.mean()"), "with the mean of each batch; average its smallest and its largest number"),
        Mistake(edit("tensor.amin()", "-tensor.abs().amax()", ", tensor.amax()", ", tensor.abs().amax()"), "with the largest magnitude on both sides; each end has an average of its own"),
        Mistake(edit("amin()", "amin(-1)", "amax()", "amax(-1)"), "with the ends of each row; a batch has one pair of ends"),
        Mistake(edit("amin()", "amin().item()", "amax()", "amax().item()"), "with `.item()`; the ends stay tensors"),
        Mistake(edit("amin()", "amin().float()", "amax()", "amax().float()"), "with ends of float32 whatever the batches are; they have the batches' dtype"),
        Mistake(
            edit("high = low, high\n", "high = low, high\n            return\n", "(1 - self.momentum) * self.low", "self.low", "(1 - self.momentum) * self.high", "self.high"),
            "with the newest share added and nothing taken from the old",
        ),
        Mistake(
            edit("        self.low = (1", "        low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)\n        self.low = (1"),
            "with a range that can only grow; an average moves both ways",
        ),
        Mistake(edit("momentum * high", "momentum * low"), "with the low end of the batch in the average of the high end"),
        Mistake(edit("return self.low, self.high", "return self.high, self.low"), "with the ends swapped; return (low, high)"),
        Mistake(edit("return self.low, self.high", "return [self.low, self.high]"), "with a list; return (low, high)"),
    ],
    parts=("low", "high"),
    hints=[
        "Two numbers are enough to remember: the averaged low end and the averaged high end. Until the first batch there are none.",
        "new = (1 - momentum) * old + momentum * latest, for the smallest and for the largest number of the batch.",
        "`self.low = self.high = None` in `__init__`; in `observe`, `tensor.amin()` and `tensor.amax()`; where `self.low is None`, take them as they are.",
    ],
)

EXERCISES = [INTEGER_LINEAR, REQUANTIZE, FUSE_CONV_BN, MOVING_AVERAGE]
