"""What lesson 8 draws: groups, the blocks that share a scale, and what quality costs."""

import base64
import io
import math

import matplotlib
import matplotlib.image
import numpy as np
import seaborn

from course.figures.picture import words_of
from course.figures.shared import PALE, Explorer, block_numbers, draw_cell, price_curves, slider, tick
from qlib.affine import split_groups
from qlib.plot import ERRORS, VALUES, Picture, new_figure, significant
from qlib.report import as_text, bits_per_weight, sqnr
from qlib.scheme import Scheme
from qlib.tensor import fake_quantize

__all__ = ["blocks", "group_boxes", "group_explorer", "price_curves"]


def group_boxes(matrix, group_size):
    """A small matrix with the groups of its rows in colours, and beside it the groups one under the other.

    What fills up a shorter last group is grey. Behind each group stands its largest magnitude, of which a symmetric
    scale is made.

    Args:
        matrix: (rows, columns), of ten groups at most.
        group_size: columns in a group.

    Returns:
        a Picture.
    """
    rows, columns = matrix.shape
    groups = split_groups(matrix.detach().double(), group_size)
    count = groups.shape[1]
    filler = count * group_size - columns
    colours = seaborn.color_palette("colorblind", rows * count)
    widths = {"width_ratios": [columns, group_size + 2]}
    figure, (left, right) = new_figure(8.5, 0.4 + 0.45 * rows * count, columns=2, **widths)
    down = rows * (count - 1) / 2  # the matrix stands at half the height of its groups
    for row, column in np.ndindex(rows, columns):
        number = significant(matrix[row, column].item())
        draw_cell(left, column, row + down, number, colours[row * count + column // group_size])
    for row, group, place in np.ndindex(groups.shape):
        inside = group * group_size + place < columns
        colour = colours[row * count + group] if inside else PALE
        draw_cell(right, place, row * count + group, significant(groups[row, group, place].item()), colour)
    for index, number in enumerate(groups.abs().amax(-1).flatten().tolist()):
        right.text(group_size + 0.2, index + 0.475, f"largest {significant(number)}", va="center", fontsize=9)
    left.set(xlim=(0, columns), title=f"{rows} x {columns}")
    right.set(xlim=(0, group_size + 2), title=f"{rows * count} groups of {group_size}")
    for axis in (left, right):
        axis.set(ylim=(rows * count, 0), aspect="equal")
        axis.axis("off")
    ragged = f" The last group of a row holds {group_size - filler}, filled up with {filler} zeros." if filler else ""
    largest = [words.removeprefix("largest ") for words in words_of(right) if words.startswith("largest ")]
    maxima = "; ".join(f"row {row}: {', '.join(largest[row * count : (row + 1) * count])}" for row in range(rows))
    return Picture(
        figure,
        f"A {rows} x {columns} matrix in groups of {group_size}: {count} groups a row, {rows * count} in all.{ragged} "
        f"The largest magnitude of each group, {maxima}.",
    )


# ---------------------------------------------------------------- blocks that share a scale, to play with


def block_edges(shape, scheme, rows, columns):
    """Where a block that shares a scale ends inside a part of a matrix: (horizontal, vertical) lines, counted in cells.

    Args:
        shape: of the matrix.
        scheme: a Scheme.
        rows, columns: slices, the part; the numbers that come back are counted from its corner.
    """
    number = block_numbers(shape, scheme)[rows, columns]
    down, across = ((number.diff(dim=dim) != 0).any(1 - dim).nonzero().flatten() + 1 for dim in (0, 1))
    return down.tolist(), across.tolist()


def blocks_text(matrix, back, scheme, rows, columns):
    """A matrix after quantization in words: what it costs, what is left of it, and what the part that is shown lost."""
    error = (back - matrix)[rows, columns]
    worst = divmod(error.abs().argmax().item(), error.shape[1])
    zeros = (back[rows, columns] == 0).double().mean().item()
    return (
        f"{scheme}: {as_text(bits_per_weight(matrix.shape, scheme), 3)} bits a weight, "
        f"SQNR of the whole matrix {as_text(sqnr(matrix, back), 1)} dB. "
        f"In rows {rows.start} to {rows.stop - 1} and columns {columns.start} to {columns.stop - 1}, "
        f"{as_text(100 * zeros, 1)}% of the weights come back as 0; the largest error is "
        f"{significant(error.abs().max().item(), 2)}, at {[rows.start + worst[0], columns.start + worst[1]]}."
    )


def usual_magnitude(matrix):
    """The magnitude that 98 of 100 elements do not exceed: colours that end there are not dulled by an outlier."""
    return matrix.abs().flatten().kthvalue(math.ceil(0.98 * matrix.numel())).values.item()


def blocks(matrix, scheme, rows, columns):
    """A part of a matrix as it comes back from quantization, and its error, lines around the blocks that share a scale.

    Args:
        matrix: (rows, columns); all of it is quantized.
        scheme: a Scheme.
        rows, columns: slices, the part to draw.

    Returns:
        a Picture.
    """
    back = fake_quantize(matrix, scheme)
    limit = usual_magnitude(matrix[rows, columns])
    down, across = block_edges(matrix.shape, scheme, rows, columns)
    figure, axes = new_figure(9, 4.8, rows=2, sharex=True)
    panels = (("What comes back", back, VALUES, "white"), ("Error", back - matrix, ERRORS, "black"))
    for axis, (title, panel, colours, line) in zip(axes, panels, strict=True):
        extent = (columns.start, columns.stop, rows.stop, rows.start)
        part = panel[rows, columns].numpy()
        image = axis.imshow(part, colours, vmin=-limit, vmax=limit, extent=extent, aspect="auto")
        axis.hlines([rows.start + edge for edge in down], columns.start, columns.stop, line, linewidth=1)
        axis.vlines([columns.start + edge for edge in across], rows.start, rows.stop, line, linewidth=1)
        axis.set(title=title, ylabel="row", yticks=range(rows.start, rows.stop, 4))
        figure.colorbar(image, ax=axis, extend="both")
    axes[-1].set_xlabel("column")
    colours_end = f" Colours end at {significant(limit, 2)} either way."
    return Picture(figure, blocks_text(matrix, back, scheme, rows, columns) + colours_end)


def block_png(panel, colours, down, across, line, cell=12):
    """A matrix of values from -1 to 1 as the bytes of a PNG: `cell` pixels an element, lines of a grey `line` at edges.

    Pixels and not a drawn figure: they take a tenth of the time, and follow a slider at once.
    """
    pixels = matplotlib.colormaps[colours]((panel.numpy() + 1) / 2, bytes=True).repeat(cell, 0).repeat(cell, 1)
    for edge in down:
        pixels[edge * cell, :, :3] = line
    for edge in across:
        pixels[:, edge * cell, :3] = line
    png = io.BytesIO()
    matplotlib.image.imsave(png, pixels, format="png")
    return png.getvalue()


GRANULARITIES = {
    "the matrix": {"axis": None},
    "each row": {"axis": 0},
    **{f"each {size}": {"group_size": size} for size in (256, 128, 64, 32, 16, 8)},
}


def group_explorer(matrix, rows, columns, granularity="each 32", bits=4):
    """Controls for what shares a scale, for the bits and the mode, over a part of a matrix.

    Args:
        matrix: (rows, columns); all of it is quantized.
        rows, columns: slices, the part to draw, such as 16 x 64.
        granularity: a key of GRANULARITIES, to begin with.
        bits: 2, 3, 4, 5, 6 or 8, to begin with.

    Returns:
        an Explorer.
    """
    part = rows, columns
    limit = usual_magnitude(matrix[part])
    controls = {
        "granularity": slider("a scale for", list(GRANULARITIES), granularity),
        "bits": slider("bits", [2, 3, 4, 5, 6, 8], bits),
        "zero_point": tick("zero point (asymmetric)", True),
    }

    def scheme_of(granularity, bits, zero_point):
        return Scheme(bits, not zero_point, **GRANULARITIES[granularity])

    def live(**values):
        scheme = scheme_of(**values)
        back = fake_quantize(matrix, scheme)
        edges = block_edges(matrix.shape, scheme, *part)
        drawn = ""
        panels = (("What comes back", back, VALUES, 255), ("Error", back - matrix, ERRORS, 128))
        for title, panel, colours, line in panels:
            png = base64.b64encode(block_png(panel[part] / limit, colours, *edges, line)).decode()
            drawn += f'<div>{title}</div><img style="max-width: 100%" alt="" src="data:image/png;base64,{png}"/>'
        return blocks_text(matrix, back, scheme, *part), drawn

    return Explorer(controls, live, lambda **values: blocks(matrix, scheme_of(**values), *part))
