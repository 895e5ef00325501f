"""What lesson 2 draws: numbers as the bits they are stored in, and digits with a net's answers."""

import math

import seaborn
from matplotlib.patches import Rectangle

from course.figures.shared import digit_pictures
from qlib.packing import bit_string, field_widths
from qlib.plot import Picture, new_figure, significant

__all__ = ["digit_pictures", "number_bits"]


def number_bits(numbers, title=""):
    """Numbers as the bits they are stored in, a box a bit: sign orange, exponent green, fraction or digits blue.

    Under a float stands what each field says: + or −, a power of two, and the factor before it. Under an integer
    stands what each bit counts where it is 1.

    Args:
        numbers: tensors of one number each, of any dtype.
        title: words over the picture.

    Returns:
        a Picture.
    """
    rows = [(number, bit_string(number), field_widths(number.dtype)) for number in numbers]
    names = [(str(number.dtype).removeprefix("torch."), significant(number.item(), 9)) for number in numbers]
    longest = max(len(bits) for _, bits, _ in rows)
    box = 0.205 if longest > 16 else 0.5  # inches
    figure, axis = new_figure(box * longest, 0.3 + 0.8 * len(rows))
    for row, (number, bits, widths) in enumerate(rows):
        axis.text(0, row + 0.02, "  ".join(names[row]), va="top", fontsize=10)
        draw_bits(axis, row + 0.27, bits, widths)
        for place, words in bits_say(number, bits, widths):
            axis.text(place, row + 0.7, words, ha="center", va="top", fontsize=9)
    axis.set(xlim=(-0.05, longest + 0.05), ylim=(len(rows), -0.05))
    axis.set_title(title)
    axis.axis("off")
    parts = []
    for name, (_, bits, widths) in zip(names, rows, strict=True):
        fields = [bits[sum(widths[:i]) : sum(widths[: i + 1])] for i in range(3)]
        parts.append(f"{' '.join(name)} is {' '.join(filter(None, fields))}")
    meaning = "sign, exponent and fraction" if numbers[0].is_floating_point() else "highest bit first"
    return Picture(figure, f"Bits as they are stored ({meaning}). " + "; ".join(parts) + ".")


def draw_bits(axis, row, bits, widths):
    """A row of boxes at height `row`, one a bit, in the colours of the three fields."""
    blue, _, green, orange = seaborn.color_palette("colorblind")[:4]
    colours = [orange] * widths[0] + [green] * widths[1] + [blue] * widths[2]
    for place, (bit, colour) in enumerate(zip(bits, colours, strict=True)):
        axis.add_patch(Rectangle((place, row), 1, 0.4, facecolor=(*colour, 0.4), edgecolor="white", linewidth=1.5))
        axis.text(place + 0.5, row + 0.21, bit, ha="center", va="center", fontsize=10, family="monospace")


def bits_say(number, bits, widths):
    """(place, words) for what stands under a number's bits: a float's factors, or what an integer's bits count."""
    sign, exponent, fraction = widths
    if not number.is_floating_point():
        if len(bits) > 8:
            return []  # no room
        weights = [2 ** (len(bits) - 1 - place) for place in range(len(bits))]
        weights[0] *= -1 if sign else 1
        return [(place + 0.5, f"{weight}".replace("-", "−")) for place, weight in enumerate(weights)]
    middle = [0.5, 1 + exponent / 2, 1 + exponent + fraction / 2]
    if not math.isfinite(number.item()):
        return [(middle[1], f"{number.item()}")]
    stored, bias = int(bits[1 : 1 + exponent], 2), 2 ** (exponent - 1) - 1
    # With a stored exponent of 0 the factor has no hidden 1, and the power is that of a stored 1.
    factor = int(bits[1 + exponent :], 2) / 2**fraction + (stored > 0)
    power = f"$2^{{{max(stored, 1)}-{bias}}}$"
    return list(zip(middle, ["−" if bits[0] == "1" else "+", power, f"{factor:.9g}"], strict=True))
