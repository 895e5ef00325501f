"""What lesson 16 draws: weights on their way out of packed bytes, and what that costs: bytes moved, and time."""

import seaborn

from course.figures.picture import row_labels, rows_of_words, words_of
from course.figures.shared import BLANK, COLOURS, PALE, Bits, Completions, bit_rows, draw_boxes, draw_cell
from qlib.affine import expand_groups, quant_range
from qlib.packing import unpack
from qlib.plot import Picture, new_figure, significant
from qlib.report import in_units

__all__ = ["Bits", "Completions", "bit_rows", "speed_bars", "traffic_bars", "unpack_grid", "unpacked_row"]


def unpack_grid(packed, bits):
    """All values of some bytes at once: each byte shifted by every offset, a column for each, and the bits kept.

    Args:
        packed: a few bytes, a list of ints.
        bits: width of a value, 1, 2 or 4.

    Returns:
        a Picture.
    """
    shifts, mask = range(0, 8, bits), 2**bits - 1
    figure, axis = new_figure(8, 0.7 + 0.55 * len(packed))
    gap = 2.2
    for row, octet in enumerate(packed):
        owners = tuple(row * len(shifts) + place // bits for place in range(8))
        byte = Bits(octet, owners)
        draw_boxes(axis, row * 1.5, byte)
        axis.text(-0.4, row * 1.5 + 0.37, str(octet), ha="right", va="center", fontsize=10)
        for column, shift in enumerate(shifts):
            kept = Bits((byte >> shift).number & mask, (byte >> shift).owners[:bits], bits)
            left = 8 + gap + column * (bits + gap + 1.2)
            draw_boxes(axis, row * 1.5, kept, left)
            axis.text(left + bits + 0.3, row * 1.5 + 0.37, f"= {kept.number}", va="center", fontsize=10)
            if not row:
                axis.text(left + bits / 2, -0.25, f">> {shift} & {mask}", ha="center", va="bottom", fontsize=9)
    right = 8 + gap + len(shifts) * (bits + gap + 1.2)
    axis.set(xlim=(-2.2, right), ylim=(1.5 * len(packed) - 0.5, -1.1), aspect="equal")
    axis.axis("off")
    _, *rows = rows_of_words(axis)  # over the rows stands what is done to the bytes
    kept = [[words.removeprefix("= ") for words in row if words.startswith("= ")] for row in rows]
    words = "; ".join(f"{octet}: {', '.join(values)}" for octet, values in zip(packed, kept, strict=True))
    values = [value for row in kept for value in row]
    return Picture(
        figure,
        f"Each byte shifted by {', '.join(map(str, shifts))} and masked with {mask}. {words}. "
        f"Row by row, these are the {len(values)} values {', '.join(values)}.",
    )


def unpacked_row(packed, scale, zero_point, bits, group_size, x):
    """One output of a layer on packed weights: bytes, codes, integers, real weights, products, and their sum.

    Args:
        packed: uint8, (octets,), whose values begin and end with a byte: a width of 1, 2, 4 or 8 bits.
        scale, zero_point: (groups,).
        bits: width of a weight.
        group_size: weights that share a scale.
        x: (inputs,), at most about ten.

    Returns:
        a Picture.
    """
    inputs, qmin = len(x), quant_range(bits)[0]
    codes = unpack(packed, bits, inputs)
    values = codes.to(int) + qmin
    scales, zero_points = (expand_groups(part[None], values[None], group_size)[0] for part in (scale, zero_point))
    weights = scales * (values - zero_points)
    products = weights * x
    shift = f"- {-qmin}" if qmin < 0 else ""
    rows = {
        "codes": codes,
        f"integers: code {shift}": values,
        "weights: s (q - z)": weights,
        "input": x,
        "weight × input": products,
    }
    figure, axis = new_figure(9, 4.1)

    def box(left, top, words, colour, width=1):
        draw_cell(axis, left + 0.03, top, words, colour, width - 0.06, 0.8, fontsize=9)

    for index, octet in enumerate(packed.tolist()):
        box(index * 8 / bits, 0, f"byte {octet}", PALE, 8 / bits)
    for row, (label, numbers) in enumerate(rows.items(), 1):
        axis.text(-0.25, row * 1.15 + 0.4, label, ha="right", va="center")
        for column, number in enumerate(numbers.tolist()):
            colour = PALE if label == "input" else COLOURS[column // group_size]
            box(column, row * 1.15, significant(number), colour)
    axis.text(-0.25, 0.4, "packed", ha="right", va="center")
    for group, (s, z) in enumerate(zip(scale.tolist(), zero_point.tolist(), strict=True)):
        middle = (group * group_size + min((group + 1) * group_size, inputs)) / 2
        axis.text(middle, 6.95, f"s = {significant(s)}, z = {z}", ha="center", va="top", color=COLOURS[group])
    axis.text(inputs + 0.2, 5 * 1.15 + 0.4, f"sum = {significant(products.sum().item())}", va="center")
    axis.set(xlim=(-3.2, inputs + 2.2), ylim=(7.6, -0.15), aspect="equal")
    axis.axis("off")
    _, *drawn, _ = rows_of_words(axis)  # between the bytes and the groups' scales
    total = drawn[-1].pop().removeprefix("sum = ")
    told = "; ".join(f"{label.replace(':', ',')}: {', '.join(numbers)}" for label, *numbers in drawn)
    return Picture(
        figure,
        f"One output of {inputs} inputs in {len(scale)} groups, from {packed.nbytes} bytes: {told}. Sum: {total}.",
    )


def traffic_bars(ways, title):
    """Bars of the bytes that ways to calculate one thing read and write, on a logarithmic scale.

    Args:
        ways: {label: {"read": bytes, "written": bytes}}.
        title: words over the picture.

    Returns:
        a Picture.
    """
    blue, orange = seaborn.color_palette("colorblind")[:2]
    figure, axis = new_figure(8, 1 + 0.62 * len(ways))
    for row, moved in enumerate(ways.values()):
        for offset, (kind, colour) in zip((-0.19, 0.19), (("read", blue), ("written", orange)), strict=True):
            nbytes = moved[kind]
            axis.barh(row + offset, nbytes, height=0.36, color=colour, label=None if row else kind)
            axis.annotate(in_units(nbytes), (nbytes, row + offset), (4, 0), textcoords="offset points", va="center")
    axis.set(xscale="log", yticks=range(len(ways)), yticklabels=list(ways), ylim=(len(ways) - 0.4, -0.6))
    axis.set(title=title, xlabel="bytes, each step to the right ten times as many")
    axis.margins(x=0.12)
    axis.legend(frameon=False, loc="lower right")
    sizes = words_of(axis)
    drawn = zip(row_labels(axis), sizes[::2], sizes[1::2], strict=True)
    return Picture(figure, f"{title}. {'; '.join(f'{way}: {read} read, {put} written' for way, read, put in drawn)}.")


def speed_bars(seconds, title):
    """Bars of how many times as fast as the first way each way is, measured on the machine that draws them.

    What was measured differs from one run to the next. It is written on the bars; the caption, which is compared with
    the stored one, says only what was compared.

    Args:
        seconds: {way: seconds}; the first is what the others are measured against.
        title: words over the picture.

    Returns:
        a Picture.
    """
    blue, grey = seaborn.color_palette("colorblind")[0], (0.6, 0.6, 0.6)
    first = next(iter(seconds.values()))
    figure, axis = new_figure(8, 1.1 + 0.45 * len(seconds))
    for row, taken in enumerate(seconds.values()):
        ratio = first / taken
        axis.barh(row, ratio, height=0.6, color=blue if row else grey)
        milliseconds = 1000 * taken
        words = f"{significant(ratio, 2)}×, {milliseconds:.{0 if milliseconds > 10 else 2}f} ms"
        axis.annotate(words, (ratio, row), (5, 0), textcoords="offset points", va="center", bbox=BLANK)
    axis.axvline(1, color="black", linestyle=":", linewidth=1, zorder=0)
    axis.set(yticks=range(len(seconds)), yticklabels=list(seconds), ylim=(len(seconds) - 0.5, -0.6), title=title)
    axis.set_xlabel("times as fast as the first, here and now")
    axis.margins(x=0.25)
    ways = row_labels(axis)
    how = "timed in turn and anew at every run, so not compared"
    return Picture(figure, f"{title}: {len(ways)} ways, {how}: {'; '.join(ways)}.")
