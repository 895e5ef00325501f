"""Exercises of lesson 4: get the scale and zero point."""

import dataclasses

import torch

from course.exercises.exercise import Case, Exercise, Mistake, Property, Words
from course.exercises.judge import kind, short
from qlib.affine import asymmetric_qparams, choose_qparams, quant_range, quantize
from qlib.scheme import Scheme
from qlib.tensor import QTensor, quantize_tensor

MATRIX = torch.tensor([[191.6, -13.5, 728.6], [92.14, 295.5, -184.0], [0.0, 684.6, 245.5]])
SPREAD = torch.linspace(-0.77, 0.65, 64).reshape(4, 16)
LOWS = torch.tensor([[-3.1, -0.02, 2.0], [-50.0, -7.0, 0.0]])
HIGHS = torch.tensor([[5.2, 0.07, 9.0], [11.0, -1.0, 0.4]])


def real(number):
    return torch.tensor(number)


# ---------------------------------------------------------------- 04.1 asymmetric_qparams


def solves(low, high, bits=8, steps=None, first=None, widen=True, safe=True, rounding=torch.round):
    """The right answer, for the mistakes below to spoil in one place each."""
    qmin, qmax = quant_range(bits)
    if widen:
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / (steps or qmax - qmin)
    if safe:
        scale = torch.where(scale == 0, 1.0, scale)
    zero_point = rounding((qmin if first is None else first) - low / scale)
    return scale, zero_point.clamp(qmin, qmax).to(torch.int8)


def counts_marks_for_steps(low, high, bits=8):
    return solves(low, high, bits, steps=2**bits)


def never_widens(low, high, bits=8):
    return solves(low, high, bits, widen=False)


def divides_by_zero(low, high, bits=8):
    return solves(low, high, bits, safe=False)


def adds_an_epsilon(low, high, bits=8):
    scale, _ = solves(low, high, bits, safe=False)
    _, zero_point = solves(low, high, bits)
    return scale + 1e-8, zero_point


def gives_all_blocks_the_scale_of_a_block_of_zeros(low, high, bits=8):
    scale, zero_point = solves(low, high, bits)
    return torch.ones_like(scale) if (low == high).any() else scale, zero_point


def has_a_smallest_scale(low, high, bits=8):
    scale, zero_point = solves(low, high, bits, safe=False)
    return scale.clamp(min=1e-8), zero_point


def cuts_the_zero_point(low, high, bits=8):
    return solves(low, high, bits, rounding=torch.trunc)


def floors_the_zero_point(low, high, bits=8):
    return solves(low, high, bits, rounding=torch.floor)


def rounds_the_zero_point_up(low, high, bits=8):
    return solves(low, high, bits, rounding=torch.ceil)


def leaves_the_zero_point_between_marks(low, high, bits=8):
    qmin, _ = quant_range(bits)
    scale, _ = solves(low, high, bits)
    return scale, qmin - low.clamp(max=0) / scale


def leaves_the_zero_point_float(low, high, bits=8):
    scale, zero_point = solves(low, high, bits)
    return scale, zero_point.float()


def forgets_the_sign_of_low(low, high, bits=8):
    scale, _ = solves(low, high, bits)
    qmin, qmax = quant_range(bits)
    return scale, torch.round(qmin + low.clamp(max=0) / scale).clamp(qmin, qmax).to(torch.int8)


def starts_at_qmax(low, high, bits=8):
    return solves(low, high, bits, first=quant_range(bits)[1])


def forgets_qmin(low, high, bits=8):
    return solves(low, high, bits, first=0)


def counts_from_zero(low, high, bits=8):
    qmin, _ = quant_range(bits)
    scale, zero_point = solves(low, high, bits)
    return scale, (zero_point.to(torch.int16) - qmin).to(torch.uint8)


def always_8_bits(low, high, bits=8):
    return solves(low, high)


def swaps_the_results(low, high, bits=8):
    return solves(low, high, bits)[::-1]


def swaps_the_clamps(low, high, bits=8):
    return solves(low.clamp(min=0), high.clamp(max=0), bits, widen=False)


def mirrors_the_range(low, high, bits=8):
    absmax = torch.maximum(-low, high)
    return solves(-absmax, absmax, bits)


def returns_plain_numbers(low, high, bits=8):
    scale, zero_point = solves(low, high, bits)
    return scale.item(), zero_point.item()


def compares_with_python(low, high, bits=8):
    low, high = torch.as_tensor(min(low, 0.0)), torch.as_tensor(max(high, 0.0))
    return solves(low, high, bits)


def widens_in_place(low, high, bits=8):
    return solves(low.clamp_(max=0), high.clamp_(min=0), bits)


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
    any_integer=("zero_point",),
    cases=[
        Case("the range of the 3x3 matrix, -184 to 728.6", (real(-184.0), real(728.6))),
        Case("a block whose numbers lie between 100 and 103", (real(100.0), real(103.0))),
        Case("a block whose numbers lie between -3 and -1", (real(-3.0), real(-1.0))),
        Case("six blocks in a tensor of shape (2, 3), and bits=8", (LOWS, HIGHS), {"bits": 8}),
        Case("six blocks in a tensor of shape (2, 3), and bits=4", (LOWS, HIGHS), {"bits": 4}),
        Case("the range of the 3x3 matrix, and bits=2", (real(-184.0), real(728.6)), {"bits": 2}),
        Case("a block of very small numbers, from -2e-7 to 3e-7", (real(-2e-7), real(3e-7))),
    ],
    properties=[Property(gives_a_block_of_zeros_a_scale)],
    mistakes=[
        Mistake(counts_marks_for_steps, "with 2**bits steps; that is the number of marks, and there is one step fewer"),
        Mistake(never_widens, "with a range that does not hold 0.0; widen it first, as in the section above"),
        Mistake(divides_by_zero, "with no care for a block of zeros, where the range, and so the scale, is 0"),
        Mistake(
            gives_all_blocks_the_scale_of_a_block_of_zeros,
            "when one block of zeros gives the scale 1 to every block; decide for each block, with torch.where",
        ),
        Mistake(adds_an_epsilon, "with a small number added to the scale; it bends the scale of every other block"),
        Mistake(has_a_smallest_scale, "with a lower limit on the scale; blocks of small numbers need less"),
        Mistake(cuts_the_zero_point, "with a cast to an integer and no round before it, which cuts off the decimals"),
        Mistake(floors_the_zero_point, "with floor in place of round"),
        Mistake(rounds_the_zero_point_up, "with ceil in place of round"),
        Mistake(leaves_the_zero_point_between_marks, "with no round: the zero point then lies between two marks"),
        Mistake(leaves_the_zero_point_float, "with the zero point left in float32; round it, then cast it to int8"),
        Mistake(forgets_the_sign_of_low, "with a plus in place of the minus; solve low = s (qmin - z) for z once more"),
        Mistake(starts_at_qmax, "with qmax in place of qmin; low lies on the smallest integer"),
        Mistake(forgets_qmin, "without qmin; low lies on the smallest integer, and that is not 0 here"),
        Mistake(counts_from_zero, "with an unsigned range, 0 to 2**bits - 1; ours is signed, quant_range(bits)"),
        Mistake(always_8_bits, "with the range of 8 bits whatever the bits; quant_range(bits) gives the right one"),
        Mistake(swaps_the_results, "with the two results in the wrong order; the scale comes first"),
        Mistake(swaps_the_clamps, "with the clamps the wrong way round: low may be 0 at most, high 0 at least"),
        Mistake(mirrors_the_range, "with a range made as wide on the left as on the right, which is lesson 5"),
        Mistake(returns_plain_numbers, "with .item(), which makes plain numbers; stay with tensors"),
        Mistake(compares_with_python, "with Python's min and max, or an if; they take one number, not many"),
        Mistake(widens_in_place, "with an operation in place, one whose name ends in an underscore"),
    ],
    hints=[
        "Three steps: make sure that 0 is between low and high, divide the range by the number of steps, find the "
        "integer of 0.0. All of it works on whole tensors at once.",
        "low = min(low, 0), high = max(high, 0); s = (high - low) / (qmax - qmin), or 1 where that is 0; "
        "z = round(qmin - low / s). `quant_range(bits)` gives both ends.",
        "`low.clamp(max=0)` is min(low, 0) on a tensor; `torch.where(s == 0, 1.0, s)` puts a 1 in the place of a 0. "
        "Round with `torch.round` and end with `.to(torch.int8)`.",
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


def forgets_the_bits_when_it_clamps(tensor, scheme):
    scale, zero_point = choose_qparams(tensor, scheme)
    return QTensor(quantize(tensor, scale, zero_point), scale, zero_point, scheme)


def uses_8_bits(tensor, scheme):
    return quantize_tensor(tensor, dataclasses.replace(scheme, bits=8))


def chooses_for_8_bits(tensor, scheme):
    scale, zero_point = choose_qparams(tensor, dataclasses.replace(scheme, bits=8))
    return QTensor(quantize(tensor, scale, zero_point, scheme.bits), scale, zero_point, scheme)


def makes_a_scheme_of_its_own(tensor, scheme):
    return quantize_tensor(tensor, Scheme(scheme.bits))


def is_symmetric(tensor, scheme):
    return quantize_tensor(tensor, dataclasses.replace(scheme, symmetric=True))


def returns_a_tuple(tensor, scheme):
    scale, zero_point = choose_qparams(tensor, scheme)
    return quantize(tensor, scale, zero_point, scheme.bits), scale, zero_point


def returns_the_integers(tensor, scheme):
    scale, zero_point = choose_qparams(tensor, scheme)
    return quantize(tensor, scale, zero_point, scheme.bits)


def returns_real_numbers(tensor, scheme):
    return quantize_tensor(tensor, scheme).dequantize()


def keeps_the_real_numbers(tensor, scheme):
    scale, zero_point = choose_qparams(tensor, scheme)
    return QTensor(tensor, scale, zero_point, scheme)


def never_rounds(tensor, scheme):
    scale, zero_point = choose_qparams(tensor, scheme)
    return QTensor(tensor / scale + zero_point, scale, zero_point, scheme)


def swaps_scale_and_zero_point(tensor, scheme):
    zero_point, scale = choose_qparams(tensor, scheme)
    return QTensor(quantize(tensor, scale, zero_point, scheme.bits), scale, zero_point, scheme)


def stores_them_swapped(tensor, scheme):
    scale, zero_point = choose_qparams(tensor, scheme)
    return QTensor(quantize(tensor, scale, zero_point, scheme.bits), zero_point, scale, scheme)


def stores_the_values_last(tensor, scheme):
    scale, zero_point = choose_qparams(tensor, scheme)
    return QTensor(scale, zero_point, quantize(tensor, scale, zero_point, scheme.bits), scheme)


def forgets_the_zero_point(tensor, scheme):
    scale, _ = choose_qparams(tensor, scheme)
    zero_point = torch.tensor(0, dtype=torch.int8)
    return QTensor(quantize(tensor, scale, zero_point, scheme.bits), scale, zero_point, scheme)


def rounds_the_scale(tensor, scheme):
    scale, zero_point = choose_qparams(tensor, scheme)
    scale = scale.round()
    return QTensor(quantize(tensor, scale, zero_point, scheme.bits), scale, zero_point, scheme)


def stores_plain_numbers(tensor, scheme):
    scale, zero_point = choose_qparams(tensor, scheme)
    return QTensor(quantize(tensor, scale, zero_point, scheme.bits), scale.item(), zero_point.item(), scheme)


def comes_back_within_half_a_step(answer):
    """Numbers that sit as far out as they can: the last one rounds to one past qmax and has to be clamped."""
    for bits in (8, 4, 2):
        end = 2 ** (bits - 1) - 0.5
        reals = torch.arange(-end, end + 0.25, 0.25)
        back = answer(reals, Scheme(bits=bits, symmetric=False, axis=None)).dequantize()
        worst = (back - reals).abs().argmax()
        if (back - reals).abs()[worst] > 0.5001:
            return (
                f"With numbers from {-end} to {end} at {bits} bits, where the scale is 1, {reals[worst]:g} comes back "
                f"as {back[worst]:g}, more than half a step away."
            )
    return None


QUANTIZE_TENSOR = Exercise(
    id="04.2",
    name="quantize_tensor",
    key=quantize_tensor,
    parts=("the result", "its scheme", "its scale", "its zero_point", "its values", "what dequantize() gives"),
    any_integer=("its zero_point",),
    cases=[
        Case("the 3x3 matrix at 8 bits", (MATRIX, Scheme(8, symmetric=False, axis=None)), use=look_inside),
        Case("the 3x3 matrix at 4 bits", (MATRIX, Scheme(4, symmetric=False, axis=None)), use=look_inside),
        Case("numbers from -0.77 to 0.65 at 3 bits", (SPREAD, Scheme(3, symmetric=False, axis=None)), use=look_inside),
        Case(
            "a tensor of three dimensions at 2 bits",
            (SPREAD.reshape(2, 4, 8), Scheme(2, symmetric=False, axis=None)),
            use=look_inside,
        ),
    ],
    properties=[Property(comes_back_within_half_a_step)],
    mistakes=[
        Mistake(forgets_the_bits_when_it_clamps, "with quantize at its default of 8 bits; pass on scheme.bits"),
        Mistake(uses_8_bits, "with 8 bits whatever the scheme says"),
        Mistake(chooses_for_8_bits, "with a scale chosen for 8 bits; hand the whole scheme on when you choose it"),
        Mistake(makes_a_scheme_of_its_own, "with a new Scheme(bits); its defaults are symmetric and per row"),
        Mistake(is_symmetric, "in symmetric mode, which is lesson 5; do as the scheme says"),
        Mistake(returns_a_tuple, "with the parts in a tuple; put them in a QTensor, so that none is lost"),
        Mistake(returns_the_integers, "with the integers alone; without scale and zero point nobody can read them"),
        Mistake(returns_real_numbers, "when you dequantize at the end; the QTensor does that when it is asked to"),
        Mistake(keeps_the_real_numbers, "with the real numbers in the QTensor; they have to be quantized first"),
        Mistake(never_rounds, "with no round; what the QTensor cuts off may be nearly a whole step; use quantize"),
        Mistake(swaps_scale_and_zero_point, "with scale and zero point swapped as you unpack them; the scale is first"),
        Mistake(stores_them_swapped, "with the two swapped in the QTensor; after the values comes the scale"),
        Mistake(stores_the_values_last, "with the values behind scale and zero point; in a QTensor they come first"),
        Mistake(forgets_the_zero_point, "with 0 for the zero point; take the one that was chosen"),
        Mistake(rounds_the_scale, "with a rounded scale; only the zero point has to be an integer"),
        Mistake(stores_plain_numbers, "with .item(); a QTensor counts the bytes of tensors"),
    ],
    hints=[
        "You have every piece: one function chooses scale and zero point, one turns reals into integers, and one class "
        "holds it all together.",
        "scale and zero point from `choose_qparams`, values from `quantize`, which also wants to know `scheme.bits`; "
        "then a `QTensor` of the four things that travel together.",
        "The order in a QTensor is values, scale, zero point, scheme. Three lines will do, and none has an `if`.",
    ],
)

EXERCISES = [ASYMMETRIC_QPARAMS, QUANTIZE_TENSOR]
