"""Exercises of lesson 3: quantize and dequantize a tensor."""

import torch

from course.exercises.exercise import Case, Exercise, Mistake, Property
from qlib.affine import dequantize, quant_range, quantize

MATRIX = torch.tensor([[191.6, -13.5, 728.6], [92.14, 295.5, -184.0], [0.0, 684.6, 245.5]])
INTEGERS = torch.tensor([[-15, -74, 127], [-44, 14, -123], [-70, 126, 0]], dtype=torch.int8)
SPREAD = torch.linspace(-2.9, 3.1, 64).reshape(4, 16)


# ---------------------------------------------------------------- 03.1 quantize


def floors(tensor, scale, zero_point, bits=8):
    qmin, qmax = quant_range(bits)
    return torch.floor(tensor / scale + zero_point).clamp(qmin, qmax).to(torch.int8)


def truncates(tensor, scale, zero_point, bits=8):
    qmin, qmax = quant_range(bits)
    return (tensor / scale + zero_point).clamp(qmin, qmax).to(torch.int8)


def never_clamps(tensor, scale, zero_point, bits=8):
    return torch.round(tensor / scale + zero_point).to(torch.int64).to(torch.int8)


def clamps_after_the_cast(tensor, scale, zero_point, bits=8):
    qmin, qmax = quant_range(bits)
    return torch.round(tensor / scale + zero_point).to(torch.int64).to(torch.int8).clamp(qmin, qmax)


def clamps_to_8_bits(tensor, scale, zero_point, bits=8):
    return torch.round(tensor / scale + zero_point).clamp(-128, 127).to(torch.int8)


def clamps_to_a_symmetric_range(tensor, scale, zero_point, bits=8):
    _, qmax = quant_range(bits)
    return torch.round(tensor / scale + zero_point).clamp(-qmax, qmax).to(torch.int8)


def clamps_before_the_shift(tensor, scale, zero_point, bits=8):
    qmin, qmax = quant_range(bits)
    return (torch.round(tensor / scale).clamp(qmin, qmax) + zero_point).to(torch.int64).to(torch.int8)


def drops_the_zero_point(tensor, scale, zero_point, bits=8):
    qmin, qmax = quant_range(bits)
    return torch.round(tensor / scale).clamp(qmin, qmax).to(torch.int8)


def subtracts_the_zero_point(tensor, scale, zero_point, bits=8):
    qmin, qmax = quant_range(bits)
    return torch.round(tensor / scale - zero_point).clamp(qmin, qmax).to(torch.int8)


def multiplies_by_the_scale(tensor, scale, zero_point, bits=8):
    qmin, qmax = quant_range(bits)
    return torch.round(tensor * scale + zero_point).clamp(qmin, qmax).to(torch.int8)


def adds_before_it_divides(tensor, scale, zero_point, bits=8):
    qmin, qmax = quant_range(bits)
    return torch.round((tensor + zero_point) / scale).clamp(qmin, qmax).to(torch.int8)


def stays_in_float(tensor, scale, zero_point, bits=8):
    qmin, qmax = quant_range(bits)
    return torch.round(tensor / scale + zero_point).clamp(qmin, qmax)


def unsigned(tensor, scale, zero_point, bits=8):
    return torch.round(tensor / scale + zero_point).clamp(0, 2**bits - 1).to(torch.uint8)


def works_in_place(tensor, scale, zero_point, bits=8):
    qmin, qmax = quant_range(bits)
    return tensor.div_(scale).add_(zero_point).round_().clamp_(qmin, qmax).to(torch.int8)


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
            return (
                f"at {bits} bits, scale 0.05 and zero point -2, the value {reals[worst]:.4f} is inside the range "
                f"but comes back as {back[worst]:.4f}, more than half a step (0.025) away."
            )
    return None


QUANTIZE = Exercise(
    id="03.1",
    name="quantize",
    key=quantize,
    cases=[
        Case("the 3x3 matrix, scale 3.5 and zero point -70", (MATRIX, 3.5, -70)),
        Case("numbers from -2.9 to 3.1, scale 0.3, zero point 1 and bits=4", (SPREAD, 0.3, 1), {"bits": 4}),
        Case("numbers from -2.9 to 3.1, scale 0.7, zero point 0 and bits=2", (SPREAD, 0.7, 0), {"bits": 2}),
        Case("numbers far outside the range", (torch.tensor([-1e6, -1000.0, 1000.0, 1e6]), 0.5, 3)),
        Case("a tensor of three dimensions", (SPREAD.reshape(2, 4, 8), 0.013, -5)),
        Case("an empty tensor", (torch.empty(0, 3), 1.0, 0)),
    ],
    properties=[Property(stays_within_half_a_step)],
    mistakes=[
        Mistake(floors, "with floor in place of round"),
        Mistake(truncates, "with no round before the cast, which cuts off the decimals"),
        Mistake(never_clamps, "with no clamp before the cast: values outside the range wrap around"),
        Mistake(clamps_after_the_cast, "with the clamp after the cast, when the values have wrapped around already"),
        Mistake(clamps_to_8_bits, "with a clamp to -128 and 127 whatever the bits; the range is quant_range(bits)"),
        Mistake(clamps_to_a_symmetric_range, "with a clamp to -qmax and qmax; the range starts at qmin, one lower"),
        Mistake(
            clamps_before_the_shift, "with the clamp before the zero point is added; clamp what you cast, at the end"
        ),
        Mistake(drops_the_zero_point, "without the zero point"),
        Mistake(subtracts_the_zero_point, "with the zero point subtracted; solve r = s (q - z) for q once more"),
        Mistake(multiplies_by_the_scale, "with a multiplication by the scale; dividing counts how many steps fit in r"),
        Mistake(adds_before_it_divides, "with the zero point added before the division; it counts integers, not reals"),
        Mistake(stays_in_float, "without the cast to int8 at the end"),
        Mistake(unsigned, "with an unsigned range; ours is signed, quant_range(bits)"),
        Mistake(works_in_place, "with operations in place, those whose name ends in an underscore"),
    ],
    hints=[
        "Which integer stands for a real number r? Divide by the scale to count steps, then shift by the zero point.",
        "q = round(r / s + z), held between the two ends that `quant_range(bits)` gives, then made int8.",
        "`torch.round`, `.clamp(qmin, qmax)` and `.to(torch.int8)`, in that order: int8 holds only what was clamped.",
    ],
    explain=how_quantized,
)


# ---------------------------------------------------------------- 03.2 dequantize


def adds_back(values, scale, zero_point):
    return scale * values.float() + zero_point


def forgets_the_zero_point(values, scale, zero_point):
    return scale * values.float()


def adds_the_zero_point(values, scale, zero_point):
    return scale * (values.float() + zero_point)


def subtracts_after_scaling(values, scale, zero_point):
    return scale * values.float() - zero_point


def subtracts_in_int8(values, scale, zero_point):
    return scale * (values - torch.tensor(zero_point, dtype=torch.int8)).float()


def divides_by_the_scale(values, scale, zero_point):
    return (values.float() - zero_point) / scale


def stays_integer(values, scale, zero_point):
    return (scale * (values.float() - zero_point)).to(torch.int32)


def in_half_precision(values, scale, zero_point):
    return (scale * (values.float() - zero_point)).half()


def changes_the_values(values, scale, zero_point):
    back = scale * (values.float() - zero_point)
    values.sub_(zero_point)
    return back


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
        Case(
            "two-bit values, scale 2.0 and zero point 0", (torch.tensor([[-2, -1], [0, 1]], dtype=torch.int8), 2.0, 0)
        ),
        Case("an empty tensor", (torch.empty(0, 3, dtype=torch.int8), 1.0, 0)),
    ],
    mistakes=[
        Mistake(adds_back, "with s * q + z, a formula that is right only where z is 0; it is s * (q - z)"),
        Mistake(forgets_the_zero_point, "without the zero point"),
        Mistake(
            adds_the_zero_point, "with the zero point added; it was added on the way in, so take it off on the way out"
        ),
        Mistake(
            subtracts_after_scaling,
            "with the zero point taken off after the scaling; it counts integers, so first q - z",
        ),
        Mistake(
            subtracts_in_int8, "with the subtraction done in int8, where 127 - (-70) does not fit and wraps around"
        ),
        Mistake(divides_by_the_scale, "with a division by the scale; here you multiply"),
        Mistake(stays_integer, "with a cast back to integers; real numbers come out"),
        Mistake(in_half_precision, "with a result in half precision; return float32"),
        Mistake(changes_the_values, "with an operation in place on the values"),
    ],
    hints=[
        "Undo the two steps of quantize in the opposite order: first the shift, then the division.",
        "r = s (q - z). The values are int8, and q - z may not fit into int8: make them float32 first.",
        "`values.float()` gives float32; subtract the zero point from that, and multiply by the scale.",
    ],
    explain=how_dequantized,
)

EXERCISES = [QUANTIZE, DEQUANTIZE]
