"""What lesson 15 draws: values in packed bytes, and the parts of packed files."""

import numpy as np
from matplotlib.patches import Rectangle

from course.figures.picture import lengths_of, row_labels, rows_of_words
from course.figures.shared import COLOURS, Bits, bit_rows, draw_boxes
from qlib.packing import pack
from qlib.plot import Picture, new_figure

__all__ = ["Bits", "bit_rows", "file_parts", "packed_bytes"]


def packed_bytes(values, bits):
    """A row of values packed low bits first, drawn as one long number: value 0 and byte 0 are at the right end.

    Args:
        values: integers from 0 to 2**bits - 1, a list; up to 32 bits of them can be read on a page.
        bits: width of a value, 1 to 8.

    Returns:
        a Picture. Bits that fill up the last byte are grey.
    """
    octets = pack(values, bits).tolist()
    used, width = len(values) * bits, 8 * len(octets)
    number = int.from_bytes(bytes(octets), "little")
    owners = tuple(place // bits if place < used else None for place in range(width))
    figure, axis = new_figure(min(8, 0.33 * (width + 1)), 1.5)
    draw_boxes(axis, 0, Bits(number, owners, width))
    for index, value in enumerate(values):
        right = width - index * bits
        colour = COLOURS[index % len(COLOURS)]
        axis.plot([right - bits + 0.12, right - 0.12], [-0.13, -0.13], color=colour, linewidth=3)
        axis.text(right - bits / 2, -0.25, str(value), ha="center", va="bottom", fontsize=10)
    for index, octet in enumerate(octets):
        left = width - 8 * (index + 1)
        axis.add_patch(Rectangle((left, 0), 8, 0.72, fill=False, edgecolor="black", linewidth=2.5))
        axis.text(left + 4, 0.92, f"byte {index} = {octet}", ha="center", va="top", fontsize=9)
    axis.set(xlim=(-0.2, width + 0.2), ylim=(1.3, -0.75))
    axis.axis("off")
    cut = [index for index in range(len(values)) if index * bits // 8 != (index * bits + bits - 1) // 8]
    crossing = f" Values {', '.join(map(str, cut))} lie across a border." if cut else " No value lies across a border."
    spare = f" {width - used} bits of the last byte are left over, zeros." if width > used else ""
    written, _, below = (row[::-1] for row in rows_of_words(axis))
    return Picture(
        figure,
        f"{len(values)} values of {bits} bits in {len(octets)} byte{'s' * (len(octets) > 1)}, read from the right: "
        f"values {', '.join(written)}; bytes {', '.join(words.split()[-1] for words in below)}.{crossing}{spare}",
    )


def file_parts(files, minima):
    """Files as bars, each made of its parts, and a mark at the smallest that the weights alone could take.

    Args:
        files: {label: {part: bytes}}, the same parts in each, eight at most.
        minima: {label: bytes}, one for each file.

    Returns:
        a Picture.
    """
    figure, axis = new_figure(8, 1.1 + 0.42 * len(files))
    for row, (label, parts) in enumerate(files.items()):
        left = 0
        for colour, (part, nbytes) in zip(COLOURS[: len(parts)], parts.items(), strict=True):
            axis.barh(
                row, nbytes, left=left, color=(*colour, 0.75), height=0.6, label=None if row else part.replace("_", " ")
            )
            left += nbytes
        axis.plot([minima[label]] * 2, [row - 0.42, row + 0.42], color="black", linewidth=2)
        axis.annotate(f"{left:,} bytes", (left, row), (6, 0), textcoords="offset points", va="center")
    axis.plot([], [], color="black", linewidth=2, label="weights x bits / 8")
    axis.set(yticks=range(len(files)), yticklabels=list(files), ylim=(len(files) - 0.5, -0.5), xticks=[])
    axis.spines["bottom"].set_visible(False)
    axis.margins(x=0.2)
    figure.legend(loc="outside lower center", ncols=len(next(iter(files.values()))) + 1, frameon=False)
    first, *rest = (part.replace("_", " ") for part in next(iter(files.values())))
    words = [
        f"{label}: {bars.sum():,}, of which {first} {bars[0]:,}, at least {mark.get_xdata()[0]:,}"
        for label, bars, mark in zip(row_labels(axis), np.reshape(lengths_of(axis), (len(files), -1)), axis.lines)
    ]
    return Picture(figure, f"Bytes of each file; what is not {first} is {', '.join(rest)}. {'; '.join(words)}.")
