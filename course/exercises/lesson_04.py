"""Exercises of lesson 4: get the scale and zero point."""

import torch

from course.exercises.exercise import Case, Exercise, Property, Words
from course.exercises.judge import kind, short
from course.exercises.mistakes import Mistake, edit
from qlib.affine import asymmetric_qparams, quant_range
from qlib.scheme import Scheme
from qlib.tensor import QTensor, quantize_tensor

MATRIX = torch.tensor([[191.6, -13.5, 728.6], [92.14, 295.5, -184.0], [0.0, 684.6, 245.5]])
REALS = torch.linspace(-0.77, 0.65, 64).reshape(4, 16)
LOWS = torch.tensor([[-3.1, -0.02, 2.0], [-50.0, -7.0, 0.0]])
HIGHS = torch.tensor([[5.2, 0.07, 9.0], [11.0, -1.0, 0.4]])


def real(number):
    return torch.tensor(number)


def small_scales(why_no_limit):
    """The Mistakes of those who keep a scale above a small number, or add one to it, so that it is not 0."""
    mistakes = []
    for small in ("1e-5", "1e-6", "1e-7", "1e-8", "1e-10", "1e-12", "torch.finfo(torch.float32).eps"):
        limit, sum_of = (edit("nonzero_scale(", f"torch.tensor({small}).maximum("), edit("nonzero_scale(", f"({small} + "))
        mistakes.append(Mistake(limit, f"with a lower limit of {small} on the scale; {why_no_limit}"))
        mistakes.append(Mistake(sum_of, f"with {small} added to the scale; it bends the scale of every other block"))
    for small in ("1e-6", "1e-8"):
        instead = edit("nonzero_scale(", f"(lambda scale: torch.where(scale == 0, {small}, scale))(")
        mistakes.append(Mistake(instead, f"with {small} for the scale of a block of zeros; it is to be 1"))
    return mistakes


# Parts of the keys that several mistakes change.
WIDENED = "low.clamp(max=0), high.clamp(min=0)"
KEPT = "QTensor(values, scale, zero_point"
RESULT = KEPT + ", scheme)"


# ---------------------------------------------------------------- 04.1 asymmetric_qparams


def gives_a_block_of_zeros_a_scale(answer):
    """A block of zeros has scale 1 and any zero point in the range; the block beside it has the scale it had."""
    low, high = torch.tensor([0.0, -1.1]), torch.tensor([0.0, 2.3])
    for bits in (8, 3):
        scale, zero_point = answer(low, high, bits=bits)
        qmin, qmax = quant_range(bits)
        where = f"With {bits} bits and two blocks, the first one all zeros:"
        if scale[0] != 1:
            return f"{where} its scale should be 1, a step that can be divided by, but is {scale[0].item():.6g}."
        if not qmin <= zero_point[0] <= qmax:
            return f"{where} its zero point is {zero_point[0].item()}, outside of {qmin} to {qmax}."
        expected = asymmetric_qparams(low, high, bits)[0][1]
        if not torch.isclose(scale[1], expected, rtol=1e-5):
            return f"{where} the scale of the second should be {expected:.6g}, but is {scale[1].item():.6g}."
    return None


ASYMMETRIC_QPARAMS = Exercise(
    id="04.1",
    name="asymmetric_qparams",
    key=asymmetric_qparams,
    parts=("scale", "zero_point"),
    cases=[
        Case("the range of the 3x3 matrix, -184 to 728.6", (real(-184.0), real(728.6))),
        Case("a block whose numbers lie between 100 and 103", (real(100.0), real(103.0))),
        Case("a block whose numbers lie between -3 and -1", (real(-3.0), real(-1.0))),
        Case("six blocks in a tensor of shape (2, 3), and bits=8", (LOWS, HIGHS), {"bits": 8}),
        Case("six blocks in a tensor of shape (2, 3), and bits=4", (LOWS, HIGHS), {"bits": 4}),
        Case("the range of the 3x3 matrix, and bits=2", (real(-184.0), real(728.6)), {"bits": 2}),
        Case("a block of very small numbers, from 0 to 3e-7", (real(0.0), real(3e-7))),
        Case("a block of very small numbers, from -2e-7 to 3e-7", (real(-2e-7), real(3e-7))),
    ],
    properties=[Property(gives_a_block_of_zeros_a_scale)],
    mistakes=[
        Mistake(edit("(qmax - qmin)", "2**bits"), "with 2**bits steps; so many marks there are, and one step fewer"),
        Mistake(edit("(qmax - qmin)", "255"), "with 255 steps whatever the bits; there are qmax - qmin of them"),
        Mistake(edit("(qmax - qmin)", "qmax"), "with qmax steps; those lie above 0, and qmin has as many more"),
        Mistake(edit(WIDENED, "low, high"), "with a range that does not hold 0.0; widen it first, as in the section above"),
        Mistake(edit(WIDENED, "low, high", ".clamp(qmin, qmax)", ".to(torch.int64)"), "with the equations as the first try has them: the range does not hold 0.0, and the zero point no int8"),
        Mistake(edit("low.clamp(max=0)", "low"), "with a range widened at its upper end alone; low may be 0 at most"),
        Mistake(edit("high.clamp(min=0)", "high"), "with a range widened at its lower end alone; high is 0 at least"),
        Mistake(edit(WIDENED, "low.clamp(min=0), high.clamp(max=0)"), "with the clamps the wrong way round: low may be 0 at most, high 0 at least"),
        Mistake(edit(WIDENED, "-torch.maximum(-low, high), torch.maximum(-low, high)"), "with a range made as wide on the left as on the right, which is lesson 5"),
        Mistake(edit("low.clamp(max=0), high.", "low.min().clamp(max=0), high.max()."), "with one range for all blocks; each block has its own, and low and high hold its two ends already"),
        Mistake(edit(WIDENED, "min(low, 0.0), max(high, 0.0)"), "with Python's min and max, or an if; they take one number, not many"),
        Mistake(edit("low.clamp(max=0)", "torch.minimum(low, 0)"), "with a plain 0 in torch.minimum, which takes tensors alone; low.clamp(max=0) takes a number"),
        Mistake(edit(WIDENED, "low.clamp_(max=0), high.clamp_(min=0)"), "with an operation in place, one whose name ends in an underscore"),
        Mistake(edit("nonzero_scale", ""), "with no care for a block of zeros, where the range and the scale are 0"),
        Mistake(edit("return scale", "return torch.where((scale == 1).any(), 1.0, scale)"), "when one block of zeros gives the scale 1 to every block; decide for each block, with torch.where"),
        *small_scales("blocks of small numbers need less"),
        Mistake(edit("nonzero_scale", "", "/ scale", "/ (scale + 1e-8)"), "with a small number added where you divide by the scale; a scale of 1 for a block of zeros does it"),
        Mistake(edit("(high - low) / (qmax - qmin)", "(qmax - qmin) / (high - low)"), "with the division upside down; a scale is reals for one integer"),
        Mistake(edit("((high - low) / (qmax - qmin))", "(high - low) / (qmax - qmin)"), "with 1 in the place of a range of 0; it is the scale that becomes 1"),
        Mistake(edit(WIDENED, "torch.tensor(min(low.item(), 0.0)), torch.tensor(max(high.item(), 0.0))"), "with .item() on low and high; they may hold many numbers"),
        Mistake(edit("return scale", "return scale.double()"), "with a scale in float64; float32 is asked for"),
        Mistake(edit("(qmax - qmin))", "(qmax - qmin)).round()"), "with a rounded scale; only the zero point is an integer"),
        Mistake(edit("torch.round", ""), "with a cast to an integer and no round, which cuts off the decimals"),
        Mistake(edit("torch.round", "torch.floor"), "with floor in place of round"),
        Mistake(edit("torch.round", "torch.ceil"), "with ceil in place of round"),
        Mistake(edit("torch.round", "", ".to(torch.int8)", ""), "with no round: the zero point lies between two marks"),
        Mistake(edit(".to(torch.int8)", ""), "with the zero point left in float32; round it, then cast it to int8"),
        Mistake(edit("torch.int8", "torch.int64"), "with the zero point as int64; int8 is asked for"),
        Mistake(edit("torch.int8", "torch.int32"), "with the zero point as int32; int8 is asked for"),
        Mistake(edit("- low / scale", "+ low / scale"), "with a plus in place of the minus; solve low = s (qmin - z)"),
        Mistake(edit("qmin - low / scale", "low / scale - qmin"), "with the sign of the zero point turned round; it is the integer of 0.0, qmin - low / scale"),
        Mistake(edit("low / scale", "low * scale"), "with low * scale; low / scale is how many steps it is from 0.0"),
        Mistake(edit("(qmin - low", "(qmax - low"), "with qmax in place of qmin; low lies on the smallest integer"),
        Mistake(edit("(qmin - low", "(-low"), "without qmin; low lies on the smallest integer, and that is not 0 here"),
        Mistake(edit("quant_range(bits)", "0, 2**bits - 1", "int8", "uint8"), "with an unsigned range, 0 to 2**bits - 1; ours is signed, quant_range(bits)"),
        Mistake(edit("quant_range(bits)", "0, 2**bits - 1"), "with 0 in place of qmin, as in an unsigned range; ours is signed, quant_range(bits)"),
        Mistake(edit("quant_range(bits)", "quant_range(8)"), "with the range of 8 bits whatever the bits; quant_range(bits) gives the right one"),
        Mistake(edit("return scale, zero_point.to(torch.int8)", "return zero_point.to(torch.int8), scale"), "with the two results in the wrong order; the scale comes first"),
        Mistake(edit("return scale", "return scale.item()", ".to(torch.int8)", ".int().item()"), "with .item(), which makes plain numbers; stay with tensors"),
    ],
    equivalent={"torch.round(qmin - low / scale).clamp(qmin, qmax) -> torch.round(qmin - low / scale)": ("once the range holds 0.0, the zero point lies between qmin and qmax by itself")},
    hints=[
        "Three steps: make sure that 0 is between low and high, divide the range by the number of steps, find the integer of 0.0. All of it works on whole tensors at once.",
        "low = min(low, 0), high = max(high, 0); s = (high - low) / (qmax - qmin), or 1 where that is 0; z = round(qmin - low / s). `quant_range(bits)` gives both ends.",
        "`low.clamp(max=0)` is min(low, 0) on a tensor; `torch.where(s == 0, 1.0, s)` puts a 1 in the place of a 0. Round with `torch.round` and end with `.to(torch.int8)`.",
    ],
)


# ---------------------------------------------------------------- 04.2 quantize_tensor


def look_inside(answer, tensor, scheme):
    """What `answer` made of a tensor, part by part; a result that is no QTensor has no parts."""
    made = answer(tensor, scheme)
    if not isinstance(made, QTensor):
        numbers = f" and dtype {short(made.dtype)}" if isinstance(made, torch.Tensor) else ""
        return Words(kind(made) + numbers), *[""] * 5
    return Words("a QTensor"), str(made.scheme), made.scale, made.zero_point, made.values, made.dequantize()


def comes_back_within_half_a_step(answer):
    """Numbers that sit as far out as they can: the last one rounds to one past qmax and has to be clamped."""
    for bits in (8, 4, 2):
        end = 2 ** (bits - 1) - 0.5
        reals = torch.arange(-end, end + 0.25, 0.25)
        back = answer(reals, Scheme(bits=bits, symmetric=False, axis=None)).dequantize()
        worst = (back - reals).abs().argmax()
        if (back - reals).abs()[worst] > 0.5001:
            return f"With numbers from {-end} to {end} at {bits} bits, where the scale is 1, {reals[worst]:g} comes back as {back[worst]:g}, more than half a step away."
    return None


QUANTIZE_TENSOR = Exercise(
    id="04.2",
    name="quantize_tensor",
    key=quantize_tensor,
    parts=("the result", "its scheme", "its scale", "its zero_point", "its values", "what dequantize() gives"),
    cases=[
        Case("the 3x3 matrix at 8 bits", (MATRIX, Scheme(8, symmetric=False, axis=None)), use=look_inside),
        Case("the 3x3 matrix at 4 bits", (MATRIX, Scheme(4, symmetric=False, axis=None)), use=look_inside),
        Case("numbers from -0.77 to 0.65 at 3 bits", (REALS, Scheme(3, symmetric=False, axis=None)), use=look_inside),
        Case("a tensor of three dimensions at 2 bits", (REALS.reshape(2, 4, 8), Scheme(2, symmetric=False, axis=None)), use=look_inside),
    ],
    properties=[Property(comes_back_within_half_a_step)],
    mistakes=[
        Mistake(edit("zero_point, scheme)\n    return", "zero_point, Scheme(8, False, None))\n    return"), "with quantize at its default of 8 bits; pass on scheme.bits"),
        Mistake(edit("tensor = tensor", "scheme, tensor = Scheme(8, False, None), tensor"), "with 8 bits whatever the scheme says"),
        Mistake(edit("qparams(tensor, scheme)", "qparams(tensor, Scheme(8, False, None))"), "with a scale chosen for 8 bits; hand the whole scheme on when you choose it"),
        Mistake(edit("tensor = tensor", "scheme, tensor = Scheme(scheme.bits), tensor"), "with a new Scheme(bits); its defaults are symmetric and per row"),
        Mistake(edit("tensor = tensor", "scheme, tensor = Scheme(scheme.bits, True, None), tensor"), "in symmetric mode, which is lesson 5; do as the scheme says"),
        Mistake(edit(RESULT, "values, scale, zero_point"), "with the parts in a tuple; put them in a QTensor, so that none is lost"),
        Mistake(edit(RESULT, "values"), "with the integers alone; without scale and zero point nobody can read them"),
        Mistake(edit(RESULT, RESULT + ".dequantize()"), "when you dequantize at the end; the QTensor does that when it is asked to"),
        Mistake(edit("QTensor(values", "QTensor(tensor"), "with the real numbers in the QTensor; quantize them first"),
        Mistake(edit("encode(tensor, scale, zero_point, scheme)", "tensor / scale['scale'] + zero_point"), "with no round; what the QTensor cuts off may be nearly a whole step; use quantize"),
        Mistake(
            edit("encode(tensor, scale, zero_point, scheme)", "torch.round(tensor / scale['scale'] + zero_point)"), "with no clamp; what rounds to one past qmax wraps around to qmin; use quantize"
        ),
        Mistake(edit("scale, zero_point = choose", "zero_point, scale = choose"), "with scale and zero point swapped as you unpack them; the scale is first"),
        Mistake(edit(KEPT, "QTensor(values, zero_point, scale['scale']"), "with the two swapped in the QTensor; after the values comes the scale"),
        Mistake(edit(KEPT, "QTensor(scale['scale'], zero_point, values"), "with the values behind scale and zero point; in a QTensor they come first"),
        Mistake(edit(KEPT + ", scheme", KEPT), "without the scheme, the last of the four things that a QTensor holds"),
        Mistake(edit(KEPT + ", scheme", KEPT + ", scheme.bits"), "with the bits in place of the scheme; a QTensor holds the whole scheme"),
        Mistake(edit("qparams(tensor, scheme)", "qparams(tensor, scheme)[0], torch.tensor(0, dtype=torch.int8)"), "with 0 for the zero point; take the one that was chosen"),
        Mistake(edit("qparams(tensor, scheme)", "qparams(tensor, scheme.bits)"), "with the bits handed to choose_qparams; it takes the whole scheme"),
        Mistake(edit("qparams(tensor, scheme)", "qparams(tensor, Scheme(scheme.bits))"), "with the scale of a new Scheme(bits); its defaults are symmetric and per row"),
        Mistake(edit("encode(tensor, scale, zero_point", "encode(tensor, scale, 0 * zero_point"), "with integers that the zero point was not added to"),
        Mistake(edit("encode(tensor, scale, zero_point", "encode(tensor, zero_point, scale['scale']"), "with scale and zero point swapped as you quantize; the scale is first"),
        Mistake(edit(RESULT, "{}"), "with the parts in a dictionary; put them in a QTensor"),
        Mistake(edit(KEPT, "QTensor(decode(values, scale, zero_point, scheme), scale, zero_point"), "with values that are dequantized again; a QTensor holds the integers"),
        Mistake(edit("store_scale(scale,", "store_scale(scale.round(),"), "with a rounded scale; only the zero point has to be an integer"),
        Mistake(edit(KEPT, "QTensor(values, scale['scale'].item(), zero_point.item()"), "with .item(); a QTensor counts the bytes of tensors"),
        Mistake(edit(KEPT, "QTensor(values, scale, zero_point.long()"), "with the zero point as int64, of eight bytes; int8 is asked for, of one"),
        Mistake(edit(KEPT, "QTensor(values, scale, zero_point.float()"), "with the zero point as float32, of four bytes; int8 is asked for, of one"),
    ],
    equivalent=dict.fromkeys(
        ("without: check_quantizable(tensor, scheme, name)", "without: tensor = tensor.detach()", "without: scale = store_scale(scale, scheme, tensor)", "tensor.detach() -> tensor"),
        "one of the library's own lines, which the lesson does not ask for: NaN, gradients and scales of other formats",
    ),
    hints=[
        "You have every piece: one function chooses scale and zero point, one turns reals into integers, and one class holds it all together.",
        "scale and zero point from `choose_qparams`, values from `quantize`, which also wants to know `scheme.bits`; then a `QTensor` of the four things that travel together.",
        "The order in a QTensor is values, scale, zero point, scheme. Three lines will do, and none has an `if`.",
    ],
)

EXERCISES = [ASYMMETRIC_QPARAMS, QUANTIZE_TENSOR]
