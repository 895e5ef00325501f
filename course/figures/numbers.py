"""Pictures of numbers: their bits and bytes, and the marks of a ruler that they are rounded to."""

import math
from typing import ClassVar

import matplotlib
import numpy as np
import seaborn
import torch
from matplotlib.patches import Rectangle

from course.figures.picture import BLANK, ERRORS, VALUES, Picture, new_figure, significant
from qlib.affine import dequantize, quant_range, quantize
from qlib.packing import bit_string, field_widths
from qlib.report import as_text, quantization_error


def staircase(scale, zero_point, bits):
    """The map from reals to integers as the staircase it is, and under it the error, a saw of half a step either way.

    Args:
        scale, zero_point: numbers, as for qlib.quantize.
        bits: width of the integers; at 2 to 4 the steps can be counted.

    Returns:
        a Picture over the range of the integers and a quarter of it beyond either end.
    """
    qmin, qmax = quant_range(bits)
    low, high = scale * (qmin - zero_point), scale * (qmax - zero_point)
    margin = (high - low) / 4
    reals = torch.linspace(low - margin, high + margin, 2001)
    integers = quantize(reals, scale, zero_point, bits)
    error = dequantize(integers, scale, zero_point) - reals
    inside = error[(reals >= low - scale / 2) & (reals <= high + scale / 2)]
    figure, (top, bottom) = new_figure(8, 4.6, rows=2, sharex=True, height_ratios=[2, 1])
    blue, orange = seaborn.color_palette("colorblind")[:2]
    top.plot(reals, integers, color=blue)
    top.plot([0], [zero_point], "o", color=orange)
    top.annotate("0.0 is the integer z", (0, zero_point), (8, -12), textcoords="offset points", color=orange)
    top.set(title=f"{bits} bits, scale {scale:g}, zero point {zero_point}", ylabel="integer q")
    bottom.plot(reals, error, color="firebrick")
    bottom.axhspan(-scale / 2, scale / 2, color="grey", alpha=0.2)
    bottom.set(xlabel="real number r", ylabel="error")
    for axis in (top, bottom):
        axis.axvspan(low - margin, low - scale / 2, color="firebrick", alpha=0.08)
        axis.axvspan(high + scale / 2, high + margin, color="firebrick", alpha=0.08)
    caption = (
        f"Reals from {significant(low - margin)} to {significant(high + margin)} on the {qmax - qmin + 1} integers "
        f"from {qmin} to {qmax}: each stair is one scale, {significant(scale)}, wide. "
        f"Between {significant(low - scale / 2)} and {significant(high + scale / 2)} "
        f"no error exceeds {significant(inside.abs().max().item(), 2)}, half a step; at the ends of the picture, where "
        f"values are clipped (shaded), it has grown to {significant(error.abs().max().item(), 2)}."
    )
    return Picture(figure, caption)


def rulers(tensor, choices, title=""):
    """The numbers of a tensor on the real line and, under them, rulers: the reals that a map's integers stand for.

    On a ruler, the marks that the numbers can use are blue, those that lie beyond them grey, and a stretch of the
    numbers' range that no mark reaches is red. A tick stands for every mark, or for every few if they are dense.

    Args:
        tensor: real numbers, any shape.
        choices: {label: (scale, zero_point, bits)}, one ruler each. A zero point that is no integer of the range
            shows as a 0.0 without a mark.
        title: words over the picture.

    Returns:
        a Picture.
    """
    numbers = tensor.detach().double().flatten()
    choices = {label: (float(scale), float(zero_point), bits) for label, (scale, zero_point, bits) in choices.items()}
    low, high = numbers.min().item(), numbers.max().item()
    ends = [0.0, low, high, *(end for choice in choices.values() for end in reach(*choice))]
    width = max(ends) - min(ends)
    figure, axis = new_figure(8, 0.9 + 0.75 * (len(choices) + 1))
    axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axis.plot(numbers, torch.zeros_like(numbers), "|" if len(numbers) > 64 else "o", color="black", markersize=6)
    for number, side in ((low, "right"), (high, "left")):
        axis.text(number, -0.17, significant(number), ha=side, va="bottom", fontsize=9)
    for row, (label, choice) in enumerate(choices.items(), start=1):
        draw_ruler(axis, row, numbers, choice, width)
        axis.text(min(ends), row - 0.2, label, va="bottom", fontsize=10, bbox=BLANK)
    axis.set(title=title, xlabel="real number", ylim=(len(choices) + 0.6, -0.6), yticks=[])
    axis.spines["left"].set_visible(False)
    parts = [f"{label}: {ruler_text(numbers, *choice)}" for label, choice in choices.items()]
    span = f"{len(numbers)} number{'s' * (len(numbers) != 1)} from {significant(low)} to {significant(high)}"
    return Picture(figure, f"{span}. " + " ".join(parts))


def reach(scale, zero_point, bits):
    """The smallest and the largest real number that an integer stands for; a negative scale turns the ends round."""
    qmin, qmax = quant_range(bits)
    return sorted((scale * (qmin - zero_point), scale * (qmax - zero_point)))


def draw_ruler(axis, row, numbers, choice, width):
    """One ruler of `rulers`, at height `row` of an axis that is `width` wide in the unit of the numbers."""
    scale, zero_point, bits = choice
    half = abs(scale) / 2
    qmin, qmax = quant_range(bits)
    first, last = reach(*choice)
    low, high = numbers.min().item(), numbers.max().item()
    every = 1
    while every * 2 * half < width / 160 and every < qmax - qmin:
        every *= 2
    zero = [zero_point] if is_mark(zero_point, bits) else []
    marks = torch.tensor([*range(qmin, qmax, every), *zero, qmax], dtype=torch.float64)
    reals = scale * (marks - zero_point)
    used = (reals >= low - half) & (reals <= high + half)
    axis.plot([first, last], [row, row], color="grey", linewidth=0.8)
    for chosen, colour in ((~used, "darkgrey"), (used, seaborn.color_palette("colorblind")[0])):
        axis.plot(reals[chosen], torch.full_like(reals[chosen], row), "|", color=colour, markersize=10)
    for start, end in ((low, min(first, high)), (max(last, low), high)):
        if end - start > half:
            axis.plot([start, end], [row, row], color="firebrick", linewidth=4, alpha=0.6, solid_capstyle="butt")
    labelled = []
    for mark in [*zero, qmin, qmax, *(range(qmin, qmax) if bits <= 4 else [])]:
        real = scale * (mark - zero_point)
        if all(abs(real - other) > 0.045 * width for other in labelled):
            labelled.append(real)
            style = {"fontweight": "bold", "bbox": BLANK} if mark == zero_point else {}
            axis.text(real, row + 0.2, f"{mark:.0f}", ha="center", va="top", fontsize=9, **style)


def is_mark(zero_point, bits):
    """Whether a zero point is an integer that `bits` bits can hold."""
    qmin, qmax = quant_range(bits)
    return zero_point == round(zero_point) and qmin <= zero_point <= qmax


def ruler_text(numbers, scale, zero_point, bits):
    """A ruler of `rulers` in words: how far it reaches, its step, where 0.0 lies, what it misses and what it wastes."""
    (qmin, qmax), (first, last), half = quant_range(bits), reach(scale, zero_point, bits), abs(scale) / 2
    reals = scale * (torch.arange(qmin, qmax + 1).double() - zero_point)
    spare = ((reals < numbers.min() - half) | (reals > numbers.max() + half)).sum().item()
    clipped = ((numbers < first - half) | (numbers > last + half)).sum().item()
    zero = f"0.0 is the integer {zero_point:.0f}" if is_mark(zero_point, bits) else "0.0 has no integer of its own"
    return (
        f"{len(reals)} marks from {significant(first)} to {significant(last)}, {significant(2 * half)} apart; {zero}; "
        f"{clipped} of {len(numbers)} numbers clipped, {spare} mark{'s' * (spare != 1)} unused."
    )


def byte_boxes(tensors):
    """Small matrices side by side, each number drawn as the bytes that it takes, a box a byte.

    Args:
        tensors: {label: matrix of any dtype}.

    Returns:
        a Picture.
    """
    widths = [matrix.shape[1] * (matrix.element_size() + 0.5) for matrix in tensors.values()]
    rows = max(matrix.shape[0] for matrix in tensors.values())
    figure, axes = new_figure(8, 0.8 + 0.5 * rows, columns=len(tensors), width_ratios=widths)
    parts = []
    for axis, (label, matrix), width in zip(np.atleast_1d(axes), tensors.items(), widths, strict=True):
        size, numbers = matrix.element_size(), matrix.flatten().tolist()
        for index, colour in enumerate(seaborn.color_palette(VALUES, len(numbers))):
            row, column = divmod(index, matrix.shape[1])
            left = column * (size + 0.5)
            for byte in range(size):
                axis.add_patch(Rectangle((left + byte, row), 1, 0.8, facecolor=(*colour, 0.35), edgecolor="black"))
            label_box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
            number = significant(numbers[index])
            axis.text(left + size / 2, row + 0.4, number, ha="center", va="center", bbox=label_box)
        axis.set(xlim=(-0.1, width), ylim=(rows, -0.1), aspect="equal", title=f"{label}: {matrix.nbytes} bytes")
        axis.axis("off")
        parts.append(f"{label}: {len(numbers)} numbers of {size} byte{'s' * (size > 1)} each, {matrix.nbytes} in all")
    return Picture(figure, "Each box is a byte. " + "; ".join(parts) + ".")


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


def running_total(terms, title):
    """Terms that are added up, as bars that each begin where the one before ends, and their sum under them.

    Args:
        terms: {label: number}.
        title: words over the picture.

    Returns:
        a Picture.
    """
    blue, orange = seaborn.color_palette("colorblind")[:2]
    figure, axis = new_figure(8, 0.9 + 0.45 * (len(terms) + 1))
    total = 0
    for row, (label, term) in enumerate([*terms.items(), ("sum", sum(terms.values()))]):
        start = 0 if label == "sum" else total
        colour = "#4d4d4d" if label == "sum" else blue if term >= 0 else orange
        axis.barh(row, term, left=start, color=colour, height=0.6)
        if label != "sum":
            axis.plot([start + term] * 2, [row - 0.3, row + 1], color="grey", linewidth=0.8)
        axis.annotate(f"{term:+,}", (max(start, start + term), row), (5, 0), textcoords="offset points", va="center")
        total = start + term
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(title=title, yticks=range(len(terms) + 1), yticklabels=[*terms, "sum"], ylim=(len(terms) + 0.5, -0.5))
    axis.use_sticky_edges = False
    axis.margins(x=0.15)
    parts = ", ".join(f"{label}: {term:+,}" for label, term in terms.items())
    return Picture(figure, f"{title}. {parts}; in all {sum(terms.values()):,}.")


class LinearMap:
    """Numbers on their way to 8-bit integers and back: what is drawn of it, and what is said.

    How they are rounded and what becomes of those beyond the last integer may be chosen, to see what the right way is
    good for; the first of ROUNDINGS and of BEYOND are what qlib.quantize does.

    Args:
        tensor: (rows, columns), real numbers.
        scale, zero_point: numbers, as for qlib.quantize.
        rounding: a key of ROUNDINGS.
        beyond: a key of BEYOND.
    """

    ROUNDINGS: ClassVar = {"to the nearest": torch.round, "down": torch.floor, "towards zero": torch.trunc}
    BEYOND: ClassVar = {
        "clamped to the end": lambda whole, qmin, qmax: whole.clamp(qmin, qmax),
        "wrapped around": lambda whole, qmin, qmax: (whole - qmin).remainder(qmax - qmin + 1) + qmin,
    }

    def __init__(self, tensor, scale, zero_point, rounding="to the nearest", beyond="clamped to the end"):
        qmin, qmax = quant_range(8)
        self.tensor, self.scale, self.zero_point = tensor, scale, zero_point
        whole = self.ROUNDINGS[rounding](tensor / scale + zero_point)
        self.beyond = (whole < qmin) | (whole > qmax)
        self.values = self.BEYOND[beyond](whole, qmin, qmax).to(torch.int8)
        self.back = dequantize(self.values, scale, zero_point)
        self.error = self.back - tensor
        # What stays the same as scale and zero point change, so that the marks move and the numbers do not.
        low, high = min(tensor.min().item(), 0.0), max(tensor.max().item(), 0.0)
        margin = (high - low) / 4 or 1.0
        self.view = (low - margin, high + margin)
        self.reach = reach(scale, zero_point, 8)
        self.marks = [scale * (mark - zero_point) for mark in [*range(qmin, qmax, 16), qmax]]
        worst = divmod(self.error.abs().argmax().item(), tensor.shape[1])
        count = self.beyond.sum().item()
        self.text = (
            f"Scale {significant(scale)}, zero point {zero_point}, rounded {rounding}: the integers {qmin} to {qmax} "
            f"stand for {significant(self.reach[0])} to {significant(self.reach[1])}. Outside of that: "
            f"{count or 'none'} of {tensor.numel()} numbers{f', {beyond}' if count else ''}. "
            f"Mean squared error {as_text(quantization_error(tensor, self.back), 3)}. Largest error: "
            f"{significant(tensor[worst].item())} became {self.values[worst]} and came back as "
            f"{significant(self.back[worst].item())}."
        )

    @property
    def labels(self):
        """[(real, integer)] to write under the marks: the zero point, and the ends where they are in sight."""
        width, labels = self.view[1] - self.view[0], [(0.0, self.zero_point)]
        for end in zip(self.reach, quant_range(8), strict=True):
            if self.view[0] <= end[0] <= self.view[1] and abs(end[0]) > 0.06 * width:
                labels.append(end)
        return labels

    @property
    def cells(self):
        """[(number, integer, what comes back, error)], row by row."""
        steps = (self.tensor, self.values, self.back, self.error)
        return list(zip(*(step.flatten().tolist() for step in steps), strict=True))

    def strength(self, error):
        """How opaque the colour of an error is: the words on it can be read on the largest."""
        return 0.55 * min(abs(error) / (1.5 * self.scale), 1)


def there_and_back(tensor, scale, zero_point, **how):
    """The numbers of a small matrix, the marks under them, a line from each number to the mark that it comes back as.

    Below, the same in figures, in cells as the matrix has them: red where what comes back is too high, blue where it
    is too low. Numbers beyond the last integer are orange. Every 16th mark is drawn.

    Args:
        tensor, scale, zero_point, how: as for LinearMap.

    Returns:
        a Picture.
    """
    mapped = LinearMap(tensor, scale, zero_point, **how)
    rows, columns = tensor.shape
    figure, (top, bottom) = new_figure(8, 2.1 + 0.5 * rows, rows=2, height_ratios=[1.7, 0.5 * rows])
    blue, orange = seaborn.color_palette("colorblind")[:2]
    first, last = mapped.reach
    top.add_patch(Rectangle((first, 0), last - first, 0.2, facecolor=(*blue, 0.35)))
    top.vlines(mapped.marks, 0, 0.2, color=blue, linewidth=1)
    for (number, _, back, _), beyond in zip(mapped.cells, mapped.beyond.flatten().tolist(), strict=True):
        colour = orange if beyond else "black"
        top.plot([number, back], [1, 0.2], color=colour, linewidth=1)
        top.plot([number], [1], "o", color=colour, markersize=5)
    for real, integer in mapped.labels:
        top.text(real, -0.06, integer, ha="center", va="top")
    top.set(xlim=mapped.view, ylim=(-0.25, 1.1), yticks=[])
    top.xaxis.tick_top()
    top.spines[["left", "bottom"]].set_visible(False)
    for place, (number, value, back, error) in enumerate(mapped.cells):
        row, column = divmod(place, columns)
        face = (*matplotlib.colormaps[ERRORS](0.95 if error > 0 else 0.05)[:3], mapped.strength(error))
        bottom.add_patch(Rectangle((column, row), 1, 1, facecolor=face, edgecolor="grey"))
        words = f"{significant(number)} → {value} → {significant(back)}\nerror {significant(error, 3)}"
        bottom.text(column + 0.5, row + 0.5, words, ha="center", va="center", fontsize=9)
    bottom.set(xlim=(0, columns), ylim=(rows, 0))
    bottom.axis("off")
    return Picture(figure, mapped.text)
