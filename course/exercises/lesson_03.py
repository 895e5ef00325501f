"""Exercises of lesson 3: quantize and dequantize a tensor."""

import torch

from course.exercises.exercise import Case, Exercise, Property
from course.exercises.mistakes import Mistake, edit
from qlib.affine import dequantize, quant_range, quantize

MATRIX = torch.tensor([[191.6, -13.5, 728.6], [92.14, 295.5, -184.0], [0.0, 684.6, 245.5]])
INTEGERS = torch.tensor([[-15, -74, 127], [-44, 14, -123], [-70, 126, 0]], dtype=torch.int8)
REALS = torch.linspace(-2.9, 3.1, 64).reshape(4, 16)


# ---------------------------------------------------------------- 03.1 quantize


def how_quantized(args, index):
    tensor, scale, zero_point, *_ = args
    value = tensor[index].item()
    return f"value {value:.6g} -> {value / scale + zero_point:.2f}"


def stays_within_half_a_step(answer):
    """What lies inside the range comes back at most half a step off."""
    for bits in (8, 4, 2):
        qmin, qmax = quant_range(bits)
        reals = torch.linspace((qmin + 2) * 0.05, (qmax + 2) * 0.05, 999)
        back = 0.05 * (answer(reals, 0.05, -2, bits=bits).float() + 2)
        worst = (back - reals).abs().argmax()
        if (back - reals).abs()[worst] > 0.025001:
            return f"at {bits} bits, scale 0.05 and zero point -2, the value {reals[worst]:.4f} is inside the range but comes back as {back[worst]:.4f}, more than half a step (0.025) away."
    return None


QUANTIZE = Exercise(
    id="03.1",
    name="quantize",
    key=quantize,
    cases=[
        Case("the 3x3 matrix, scale 3.5 and zero point -70", (MATRIX, 3.5, -70)),
        Case("numbers from -2.9 to 3.1, scale 0.3, zero point 1 and bits=4", (REALS, 0.3, 1), {"bits": 4}),
        Case("numbers from -2.9 to 3.1, scale 0.7, zero point 0 and bits=2", (REALS, 0.7, 0), {"bits": 2}),
        Case("numbers far outside the range", (torch.tensor([-1e6, -1000.0, 1000.0, 1e6]), 0.5, 3)),
        Case("a tensor of three dimensions", (REALS.reshape(2, 4, 8), 0.013, -5)),
        Case("an empty tensor", (torch.empty(0, 3), 1.0, 0)),
    ],
    properties=[Property(stays_within_half_a_step)],
    mistakes=[
        Mistake(edit("torch.round", "torch.floor"), "with floor in place of round"),
        Mistake(edit("torch.round", "torch.ceil"), "with ceil in place of round"),
        Mistake(edit("torch.round", ""), "with no round before the cast, which cuts off the decimals"),
        Mistake(edit("torch.round(", "(0.5 + "), "with + 0.5 and a cut: below 0 the cut goes up, one too high"),
        Mistake(edit("tensor.float()", "tensor.round()"), "with the round before the division; it comes after all else"),
        Mistake(edit(".clamp(qmin, qmax)", ".to(torch.int64)"), "with no clamp before the cast: values outside the range wrap around"),
        Mistake(edit(".clamp(qmin, qmax).to(torch.int8)", ".to(torch.int64).to(torch.int8).clamp(qmin, qmax)"), "with the clamp after the cast, when the values have wrapped around already"),
        Mistake(edit("clamp(qmin, qmax)", "clamp(max=qmax)"), "with no clamp at the lower end, where the cast wraps around"),
        Mistake(edit("clamp(qmin, qmax)", "clamp(min=qmin)"), "with no clamp at the upper end, where the cast wraps around"),
        Mistake(edit("quant_range(bits)", "-128, 127"), "with a clamp to -128 and 127 whatever the bits; the range is quant_range(bits)"),
        Mistake(edit("clamp(qmin,", "clamp(-qmax,"), "with a clamp to -qmax and qmax; it starts at qmin, one lower"),
        Mistake(edit(", qmax)", ", -qmin)"), "with a clamp to qmin and -qmin; the range ends at qmax, one lower"),
        Mistake(edit("qmin, qmax =", "qmax, qmin ="), "with the ends swapped: quant_range gives the smaller one first"),
        Mistake(
            edit("scale + zero_point)", "scale)", "clamp(qmin, qmax)", "clamp(qmin, qmax).add(zero_point).to(torch.int64)"),
            "with the clamp before the zero point is added; clamp what you cast, at the end",
        ),
        Mistake(edit("/ scale + zero_point", "/ scale"), "without the zero point"),
        Mistake(edit("scale + zero_point", "scale - zero_point"), "with the zero point subtracted; solve r = s (q - z) for q"),
        Mistake(edit("/ scale", "* scale"), "with a multiplication by the scale; dividing counts the steps in r"),
        Mistake(edit("tensor.float() / scale + zero_point", "(tensor.float() + zero_point) / scale"), "with the zero point added before the division; it counts integers, not reals"),
        Mistake(edit("tensor.float() / scale + zero_point", "(tensor.float() - zero_point) / scale"), "with the zero point taken off before the division; it counts integers, and is added after it"),
        Mistake(edit("quant_range(bits)", "-(2**bits), 2**bits - 1"), "with twice the range; quant_range(bits) gives its ends"),
        Mistake(edit(".to(torch.int8)", ""), "without the cast to int8 at the end"),
        Mistake(edit("torch.int8", "torch.int32"), "with a cast to int32; int8 is asked for, a quarter of it"),
        Mistake(edit("torch.int8", "torch.uint8"), "with a cast to uint8, which holds no negative number; int8 does"),
        Mistake(edit("clamp(qmin, qmax).to(torch.int8)", "clamp(0, 2**bits - 1).to(torch.uint8)"), "with an unsigned range; ours is signed, quant_range(bits)"),
        Mistake(edit("clamp(qmin, qmax)", "clamp(0, 2**bits - 1).to(torch.int64)"), "with a clamp to 0 and 2**bits - 1 before the cast to int8; the range is signed, quant_range(bits)"),
        Mistake(edit("tensor.float() / scale", "tensor.div_(scale)"), "with an operation in place, whose name ends in an underscore"),
    ],
    equivalent={
        "without: scale, zero_point = (expand_groups(qparam, tensor, group_size) for qparam in (scale, zero_point))": ("groups come in lesson 8; here scale and zero point are single numbers"),
        "tensor.float() -> tensor": "the tensors of the lesson are float32",
        "tensor.float -> tensor.double": "float64 rounds to the same integer, save next to a tie",
    },
    hints=[
        "Which integer stands for a real number r? Divide by the scale to count steps, then shift by the zero point.",
        "q = round(r / s + z), held between the two ends that `quant_range(bits)` gives, then made int8.",
        "`torch.round`, `.clamp(qmin, qmax)` and `.to(torch.int8)`, in that order: int8 holds only what was clamped.",
    ],
    explain=how_quantized,
)


# ---------------------------------------------------------------- 03.2 dequantize


def how_dequantized(args, index):
    values, scale, zero_point = args
    return f"the integer {values[index].item()}"


DEQUANTIZE = Exercise(
    id="03.2",
    name="dequantize",
    key=dequantize,
    cases=[
        Case("the integers of the 3x3 matrix, scale 3.5 and zero point -70", (INTEGERS, 3.5, -70)),
        Case("every int8, scale 0.1 and zero point 5", (torch.arange(-128, 128).to(torch.int8), 0.1, 5)),
        Case("two-bit values, scale 2.0 and zero point 0", (torch.tensor([[-2, -1], [0, 1]], dtype=torch.int8), 2.0, 0)),
        Case("an empty tensor", (torch.empty(0, 3, dtype=torch.int8), 1.0, 0)),
    ],
    mistakes=[
        Mistake(edit("scale * (values.float() -", "(scale * values.float() +"), "with s * q + z, a formula that is right only where z is 0; it is s * (q - z)"),
        Mistake(edit(" - zero_point", ""), "without the zero point"),
        Mistake(edit("- zero_point", "+ zero_point"), "with the zero point added; it was added on the way in, so take it off on the way out"),
        Mistake(edit("values.float() - zero_point", "zero_point - values.float()"), "with z - q in place of q - z"),
        Mistake(edit("scale * (values", "(scale * values"), "with the zero point taken off after the scaling; it counts integers, so first q - z"),
        Mistake(edit(".float()", ""), "with the subtraction done in int8, where 127 - (-70) wraps around"),
        Mistake(edit("values.float()", "values.to(torch.uint8)"), "with the values made uint8, where -1 becomes 255"),
        Mistake(edit("scale * (", "1 / scale * ("), "with a division by the scale; here you multiply"),
        Mistake(edit("return ", "return torch.Tensor.int(", "point)\n", "point))\n"), "with a cast back to integers; real numbers come out"),
        Mistake(edit("return ", "return torch.Tensor.char(", "point)\n", "point))\n"), "with a cast back to int8; real numbers come out"),
        Mistake(edit("return ", "return torch.round(", "point)\n", "point))\n"), "with a round at the end; reals come out"),
        Mistake(edit(".float()", ".half()"), "with a result in half precision; return float32"),
        Mistake(edit(".float()", ".double()"), "with a result in float64; return float32, half as large"),
        Mistake(edit(".float() -", ".sub_(zero_point).float() - 0 *"), "with an operation in place on the values, in int8, where 127 - (-70) wraps around as well"),
        Mistake(edit(".float() -", ".float() + 0 * values.zero_() -"), "with an operation in place on the values"),
    ],
    equivalent={
        "without: scale, zero_point = (expand_groups(qparam, values, group_size) for qparam in (scale, zero_point))": ("groups come in lesson 8; here scale and zero point are single numbers")
    },
    hints=[
        "Undo the two steps of quantize in the opposite order: first the shift, then the division.",
        "r = s (q - z). The values are int8, and q - z may not fit into int8: make them float32 first.",
        "`values.float()` gives float32; subtract the zero point from that, and multiply by the scale.",
    ],
    explain=how_dequantized,
)

EXERCISES = [QUANTIZE, DEQUANTIZE]
