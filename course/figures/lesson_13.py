"""What lesson 13 draws: a checkpoint byte by byte, and the memory that it takes to load one."""

import json
import pathlib

import seaborn
from matplotlib.patches import Rectangle

from course.figures.picture import lengths_of, row_labels
from qlib.plot import Picture, new_figure
from qlib.report import in_units

__all__ = ["peak_bars", "safetensors_bytes"]


WIDE = 16  # bytes in a row of `safetensors_bytes`


def safetensors_bytes(path):
    """A small safetensors file, a box a byte: the header's length, the header, and each tensor in a colour of its own.

    In the header's boxes stand its characters, in the others the bytes as hexadecimal numbers. The number before a row
    is the place of its first byte in the file.

    Args:
        path: a file of a few hundred bytes.

    Returns:
        a Picture.
    """
    data = pathlib.Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {name: entry for name, entry in json.loads(data[8:start]).items() if name != "__metadata__"}
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]))
    orange, *colours = [seaborn.color_palette("colorblind")[index] for index in (3, 0, 2, 4, 1, 5, 8, 9)]
    parts = [("length of the header", 0, 8, orange), ("header, JSON", 8, start, (0.5, 0.5, 0.5))]
    for (name, entry), colour in zip(tensors.items(), colours * len(tensors), strict=False):
        first, last = entry["data_offsets"]
        parts.append((f"{name}, {entry['dtype']} {entry['shape']}", start + first, start + last, colour))
    rows = -(-len(data) // WIDE)
    figure, axis = new_figure(6.4, 0.6 + 0.29 * rows + 0.22 * -(-len(parts) // 2))
    for label, first, last, colour in parts:
        for place in range(first, last):
            row, column = divmod(place, WIDE)
            axis.add_patch(Rectangle((column, row), 1, 1, facecolor=(*colour, 0.35), edgecolor="white"))
            text = chr(data[place]) if 8 <= place < start else f"{data[place]:02x}"
            axis.text(column + 0.5, row + 0.55, text, ha="center", va="center", fontsize=9, family="monospace")
        axis.plot([], [], "s", color=(*colour, 0.35), markersize=9, label=f"{label}: {last - first} bytes")
    for row in range(rows):
        axis.text(-0.2, row + 0.55, str(row * WIDE), ha="right", va="center", fontsize=9, color="dimgrey")
    axis.set(xlim=(-1, WIDE), ylim=(rows, 0), title=f"a file of {len(data)} bytes, byte by byte")
    axis.axis("off")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False, fontsize=9, handletextpad=0.2)
    words = "; ".join(f"{name}, {last - first} at {first}" for name, first, last, _ in parts)
    return Picture(figure, f"A file of {len(data)} bytes, in order: {words}.")


def peak_bars(peaks, files, title):
    """Bars of the memory that ways to load a model came to hold, against the sizes of the files they read.

    What was measured differs from one machine and one day to the next, so the caption keeps to what does not: the order
    of the ways, and how the extremes compare.

    Args:
        peaks: {way: bytes}, from the worst to the best.
        files: {label: bytes}, two at most, drawn as lines.
        title: words over the picture.

    Returns:
        a Picture.
    """
    palette = seaborn.color_palette("colorblind")
    figure, axis = new_figure(8, 1.2 + 0.5 * len(peaks))
    for place, nbytes in enumerate(peaks.values()):
        axis.barh(place, nbytes / 1e6, color=palette[0], height=0.6)
        axis.annotate(in_units(nbytes), (nbytes / 1e6, place), (5, 0), textcoords="offset points", va="center")
    looks = [(palette[3], "--"), (palette[2], ":")][: len(files)]
    for (label, nbytes), (colour, style) in zip(files.items(), looks, strict=True):
        axis.axvline(nbytes / 1e6, color=colour, linestyle=style, label=f"{label}, {in_units(nbytes)}")
    axis.set(yticks=range(len(peaks)), yticklabels=list(peaks), ylim=(len(peaks) - 0.5, -0.6), xlabel="MB", title=title)
    axis.margins(x=0.15)
    axis.legend(frameon=False, loc="lower right", fontsize=9)
    held, ways = lengths_of(axis), row_labels(axis)
    order = "From" if held == sorted(held, reverse=True) else "NOT from"
    verdict = "less" if min(held) < max(held) / 4 else "NOT less"
    sizes = " and ".join(" of ".join(line.get_label().rsplit(", ", 1)) for line in axis.lines)
    return Picture(
        figure,
        f"{title}; {len(ways)} ways, measured anew at every run, with {sizes}. {order} the most to "
        f"the least: {'; '.join(ways)}. The least is {verdict} than a quarter of the most.",
    )
