"""Pictures for the lessons. Each carries its own description, computed from the data it draws."""

import base64
import io
import math
from collections import Counter
from typing import ClassVar

import matplotlib
import matplotlib.image
import numpy as np
import seaborn
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from qlib.affine import (
    asymmetric_qparams,
    block_range,
    dequantize,
    expand_groups,
    fake_quantize,
    full_range_qparams,
    quant_range,
    quantize,
    split_groups,
    symmetric_qparams,
)
from qlib.observers import percentile_range
from qlib.packing import bit_string, field_widths
from qlib.report import bits_per_weight, fit_text, frontier, in_units, quantization_error, rounded, sqnr, weight_bytes
from qlib.scheme import Scheme

VALUES, ERRORS = "viridis", "RdBu_r"  # perceptual for values; diverging, centred on 0, for errors
LARGEST_GRID = 48  # a matrix with more rows or columns than this is shown as tiles
BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # behind words that a line would strike through


class Picture:
    """A figure and its caption, which stands under the picture and is its text for a screen reader.

    The caption is computed from the data, so a test that compares text compares what is drawn.
    """

    def __init__(self, figure, caption):
        self.figure = figure
        self.caption = caption

    def save(self, path):
        """Write the picture to a PNG or SVG file."""
        self.figure.savefig(path, dpi=144, bbox_inches="tight")

    def _ipython_display_(self):
        from IPython.display import display

        png = io.BytesIO()
        self.figure.savefig(png, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        display({"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": self.caption}, raw=True)
        display({"text/markdown": f"*{self.caption}*", "text/plain": self.caption}, raw=True)

    def __repr__(self):
        return self.caption


def new_figure(width, height, columns=1, rows=1, **options):
    """A figure in the course's style and its axes. It belongs to no window, so that nothing draws it a second time."""
    with matplotlib.rc_context(
        {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


def heatmaps(original, quantized, dequantized):
    """Four panels side by side: the matrix, its integers, what comes back of them, and the error.

    A small matrix is annotated. A large one is cut into tiles, and each tile shows its element of the largest
    magnitude, the same one in every panel, so that no outlier is lost. The element with the largest error of all
    is kept in place of its tile's, and boxed.

    Args:
        original, quantized, dequantized: (rows, columns) tensors of one shape; a vector is drawn as one row.

    Returns:
        a Picture.

    Raises:
        ValueError: the shapes differ, or are not a matrix's.
    """
    original, quantized, dequantized = (
        torch.atleast_2d(t.detach().cpu()).double() for t in (original, quantized, dequantized)
    )
    if original.ndim != 2 or not original.shape == quantized.shape == dequantized.shape or not original.numel():
        shapes = ", ".join(str(tuple(t.shape)) for t in (original, quantized, dequantized))
        raise ValueError(f"heatmaps draws three matrices of one shape, not {shapes}")
    error = dequantized - original
    worst = divmod(error.abs().argmax().item(), error.shape[1])
    tile = [-(-size // LARGEST_GRID) for size in error.shape]
    cells = tile_representatives(original, tile)
    box = (worst[0] // tile[0], worst[1] // tile[1])
    cells[box] = worst[0] * error.shape[1] + worst[1]

    low, high, limit = original.min().item(), original.max().item(), error.abs().max().item() or 1.0
    panels = {
        "Original": (original, VALUES, low, high, ".4g"),
        "Quantized": (quantized, VALUES, quantized.min().item(), quantized.max().item(), ".0f"),
        "Dequantized": (dequantized, VALUES, low, high, ".4g"),
        "Error": (error, ERRORS, -limit, limit, ".2g"),
    }
    height = max(1.6, min(3.6, 0.6 + 2.6 * cells.shape[0] / cells.shape[1]))
    figure, axes = new_figure(13, height, columns=4)
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        draw_heatmap(axis, title, cells, box, *panel)
    shown = "" if tile == [1, 1] else f" Each cell shows the largest element of a tile of {tile[0]} x {tile[1]}."
    caption = (
        f"{shape_text(original)} from {significant(low)} to {significant(high)}; "
        f"integers from {quantized.min():.0f} to {quantized.max():.0f}; "
        f"mean squared error {significant(error.square().mean().item())}. "
        f"Largest error, boxed, at {list(worst)}: {significant(original[worst].item())} "
        f"came back as {significant(dequantized[worst].item())}.{shown}"
    )
    return Picture(figure, caption)


def tile_representatives(original, tile):
    """For each tile of a matrix, the flat index of its element of the largest magnitude; (tiles down, tiles across)."""
    index = torch.arange(original.numel()).reshape(original.shape)
    fill = (0, -original.shape[1] % tile[1], 0, -original.shape[0] % tile[0])
    magnitude, index = (
        torch.nn.functional.pad(t, fill, value=-1).unfold(0, tile[0], tile[0]).unfold(1, tile[1], tile[1]).flatten(2)
        for t in (original.abs(), index)
    )
    return index.gather(-1, magnitude.argmax(-1, keepdim=True)).squeeze(-1)


def draw_heatmap(axis, title, cells, box, panel, colours, low, high, number_format):
    """One panel: the elements of `panel` at the flat indices `cells`, a box around the cell at `box`, a colour bar."""
    annotated = max(cells.shape) <= 8
    seaborn.heatmap(
        panel.flatten()[cells].numpy(),
        ax=axis,
        cmap=colours,
        vmin=low,
        vmax=high,
        annot=annotated,
        annot_kws={"fontsize": min(10, 42 / cells.shape[1])},
        fmt=number_format,
        square=max(cells.shape) <= 4 * min(cells.shape),  # square cells would make a thread of a vector
        linewidths=1 if annotated else 0,
        cbar_ax=axis.inset_axes([1.03, 0, 0.05, 1]),
        xticklabels=annotated,
        yticklabels=annotated,
    )
    axis.tick_params(length=0)
    axis.set_title(title)
    axis.add_patch(Rectangle((box[1], box[0]), 1, 1, fill=False, linewidth=2, edgecolor="red", clip_on=False))


def significant(number, digits=4):
    """A number with `digits` significant digits: as text for captions, where magnitudes differ widely."""
    return f"{number:.{digits}g}" if number else "0"


def shape_text(tensor):
    """ "A 384 x 1536 matrix" for a matrix, "A vector of 4" for one row."""
    return (
        f"A {tensor.shape[0]} x {tensor.shape[1]} matrix" if tensor.shape[0] > 1 else f"A vector of {tensor.shape[1]}"
    )


def histogram(groups, title, xlabel, bins=80):
    """Histograms of one or more tensors over the same bins, counts on a log scale so that outliers are seen.

    Args:
        groups: {label: tensor}.
        title, xlabel: words over and under the picture.
        bins: number of bins over the common range.

    Returns:
        a Picture.
    """
    data = {label: tensor.detach().double().flatten().numpy() for label, tensor in groups.items()}
    low, high = min(d.min() for d in data.values()), max(d.max() for d in data.values())
    figure, axis = new_figure(8, 3.2)
    for (_, values), colour in zip(data.items(), seaborn.color_palette("colorblind"), strict=False):
        axis.hist(values, bins=np.linspace(low, high, bins + 1), alpha=0.6, color=colour)
    axis.set(title=title, xlabel=xlabel, ylabel="count", yscale="log")
    if len(data) > 1:
        axis.legend(list(data))
    parts = [
        f"{label}: {d.size} values from {significant(d.min())} to {significant(d.max())}, "
        f"standard deviation {significant(d.std())}"
        for label, d in data.items()
    ]
    return Picture(figure, f"{title}. " + "; ".join(parts) + ".")


def curve(lines, title, xlabel, ylabel, logy=False):
    """Lines through points, such as quality over size. `lines` is {label: [(x, y), …]}. Returns a Picture."""
    figure, axis = new_figure(8, 3.6)
    for (label, points), colour, marker in zip(
        lines.items(), seaborn.color_palette("colorblind") * 2, "osD^vP*Xosd^vP*X", strict=False
    ):
        xs, ys = zip(*sorted(points), strict=True)
        axis.plot(xs, ys, marker=marker, color=colour, label=label)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale="log" if logy else "linear")
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend()
    parts = [f"{label}: {points_text(sorted(points))}" for label, points in lines.items()]
    return Picture(figure, f"{title}: {ylabel} over {xlabel}. " + "; ".join(parts) + ".")


def points_text(points):
    """The points of a line in words: all of them if they are few, else the ends, the lowest and the highest."""

    def at(x, y):
        return f"{rounded(float(y), 3)} at {rounded(float(x), 2)}"

    if len(points) <= 8:
        return ", ".join(at(*point) for point in points)
    lowest, highest = (pick(points, key=lambda point: point[1]) for pick in (min, max))
    return f"from {at(*points[0])} to {at(*points[-1])}, lowest {at(*lowest)}, highest {at(*highest)}"


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
        axis.text(number, -0.17, significant(number), ha=side, va="bottom", fontsize=8)
    for row, (label, choice) in enumerate(choices.items(), start=1):
        draw_ruler(axis, row, numbers, choice, width)
        axis.text(min(ends), row - 0.2, label, va="bottom", fontsize=9, bbox=BLANK)
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
            axis.text(real, row + 0.2, f"{mark:.0f}", ha="center", va="top", fontsize=8, **style)


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


def sharing(shape, schemes):
    """A small matrix once for each scheme, its weights in the colour and with the number of the scale that they share.

    Args:
        shape: (rows, columns), small enough to read a number in each cell.
        schemes: Schemes, one panel each.

    Returns:
        a Picture.
    """
    figure, axes = new_figure(3 * len(schemes), 0.6 + 2.4 * shape[0] / shape[1], columns=len(schemes), squeeze=False)
    parts = []
    for axis, scheme in zip(axes.flat, schemes, strict=True):
        block = block_numbers(shape, scheme)
        sizes = block.unique(return_counts=True)[1]
        seaborn.heatmap(
            block,
            ax=axis,
            cmap=seaborn.color_palette("colorblind", len(sizes)),
            alpha=0.55,
            annot=True,
            annot_kws={"color": "black"},
            fmt="d",
            cbar=False,
            square=True,
            linewidths=1,
            xticklabels=False,
            yticklabels=False,
        )
        scales = f"{len(sizes)} scale{'s' * (len(sizes) > 1)}"
        axis.set_title(f"{scheme.granularity}: {scales}")
        weights = " or ".join(str(size) for size in sizes.unique().tolist()[::-1])
        parts.append(f"{scheme.granularity}, {scales} for {weights} weights{' each' * (len(sizes) > 1)}")
    return Picture(figure, f"Which weights of a {shape[0]} x {shape[1]} matrix share a scale: {'; '.join(parts)}.")


def block_numbers(shape, scheme):
    """int64 tensor of `shape`: for each weight, the number of its block, counted from 0 in reading order."""
    scales = block_range(torch.empty(shape, device="meta"), scheme)[0].shape
    number = torch.arange(scales.numel()).reshape(scales)
    return expand_groups(number, torch.empty(shape), scheme.group_size).broadcast_to(shape)


def channel_maxima(tensor, title):
    """The largest magnitude in each row and in each column of a matrix, as points on a log scale. Returns a Picture."""
    magnitude = tensor.detach().double().abs()
    figure, axes = new_figure(9, 3, columns=2, sharey=True)
    blue, orange = seaborn.color_palette("colorblind")[:2]
    parts = []
    for axis, what, maxima in zip(axes, ("row", "column"), (magnitude.amax(1), magnitude.amax(0)), strict=True):
        place, count, median = maxima.argmax().item(), len(maxima), maxima.median().item()
        axis.plot(maxima, ".", color=blue, markersize=3)
        axis.plot([place], [maxima[place]], "o", color=orange)
        left = place > count / 2
        style = {"ha": "right" if left else "left", "va": "center", "textcoords": "offset points"}
        axis.annotate(f"{what} {place}", (place, maxima[place]), (-8 if left else 8, 0), bbox=BLANK, **style)
        axis.set(title=f"in each of {count} {what}s", xlabel=what, yscale="log")
        parts.append(
            f"in the {count} {what}s the median is {significant(median, 3)}, "
            f"the largest {significant(maxima[place].item())} in {what} {place}"
        )
    axes[0].set_ylabel("largest magnitude")
    figure.suptitle(title, fontsize=11)
    return Picture(figure, f"{title}. Of the largest magnitudes, {'; '.join(parts)}.")


def broadcast(tensor, scale):
    """A small matrix, the scales it is divided by, stretched to its shape, and the quotient, which counts steps.

    A scale that is there has a black edge; the copies that broadcasting makes of it are grey.

    Args:
        tensor: (rows, columns), small enough to read a number in each cell.
        scale: of a shape that broadcasts: (), (columns,), (rows, 1) or (1, columns).

    Returns:
        a Picture.
    """
    rows, columns = tensor.shape
    given = torch.atleast_2d(scale)
    number = torch.arange(given.numel()).reshape(given.shape).broadcast_to(tensor.shape)
    quotient = tensor / scale
    panels = {
        f"matrix {tuple(tensor.shape)}": (tensor, "÷"),
        f"scale {tuple(scale.shape)}, stretched": (given.broadcast_to(tensor.shape), "="),
        "quotient, in steps": (quotient, ""),
    }
    colours = seaborn.color_palette("colorblind", given.numel())
    figure, axes = new_figure(10, 0.7 + 0.45 * rows, columns=3)
    for axis, (title, (panel, sign)) in zip(axes, panels.items(), strict=True):
        for row, column in np.ndindex(rows, columns):
            copy = sign == "=" and not (row < given.shape[0] and column < given.shape[1])
            edge = "black" if sign == "=" and not copy else "white"
            colour = (*colours[number[row, column]], 0.15 if copy else 0.45)
            axis.add_patch(Rectangle((column, row), 0.97, 0.94, facecolor=colour, edgecolor=edge, linewidth=1.5))
            words = significant(panel[row, column].item())
            axis.text(column + 0.5, row + 0.47, words, ha="center", va="center", color="grey" if copy else "black")
        axis.text(columns + 0.2, rows / 2, sign, ha="center", va="center", fontsize=16)
        axis.set(xlim=(-0.05, columns + 0.4), ylim=(rows + 0.05, -0.05), title=title)
        axis.axis("off")
    scales = f"{given.numel()} scales" if given.numel() > 1 else "a scale"
    caption = (
        f"A {rows} x {columns} matrix divided by {scales} of shape {tuple(scale.shape)}: "
        f"the quotient goes from {significant(quotient.min().item())} to {significant(quotient.max().item())} steps. "
        f"Row by row the stretched scales are "
        f"{'; '.join(rounded(row, 2) for row in given.broadcast_to(tensor.shape))}."
    )
    return Picture(figure, caption)


def scales_in_a_matmul(outputs=3, inputs=4):
    """y = W x as a drawing, W with a scale a row and with a scale a column, each scale's colour where it multiplies.

    Args:
        outputs, inputs: rows and columns of W, at most 6 each.

    Returns:
        a Picture.
    """
    figure, axes = new_figure(9, 0.9 + 0.5 * (outputs + 1.5), columns=2)
    panels = {0: "axis 0: a scale per row multiplies a sum", 1: "axis 1: a scale per column multiplies an input"}
    for scaled, (axis, title) in enumerate(zip(axes, panels.values(), strict=True)):
        colours = seaborn.color_palette("colorblind", (outputs, inputs)[scaled])
        grey = (0.75, 0.75, 0.75)
        for column in range(inputs):
            draw_cell(axis, column, 0, f"$x_{column}$", colours[column] if scaled else grey)
        for row in range(outputs):
            for column in range(inputs):
                draw_cell(axis, column, row + 1.5, f"$q_{{{row}{column}}}$", colours[column if scaled else row])
            axis.annotate("", (inputs + 0.95, row + 2), (inputs + 0.1, row + 2), arrowprops={"arrowstyle": "->"})
            axis.text(inputs + 0.5, row + 1.9, "sum", ha="center", va="bottom", fontsize=8)
            draw_cell(axis, inputs + 1, row + 1.5, f"$y_{row}$", grey if scaled else colours[row])
        if scaled:
            axis.text(inputs + 0.15, 0.5, "each times its scale,\nbefore the sums", va="center", fontsize=9)
        else:
            words = "each times\nits scale,\nafter the sum"
            axis.text(inputs + 2.1, outputs / 2 + 1.5, words, va="center", fontsize=9)
        axis.set(xlim=(-0.1, inputs + 3.8), ylim=(outputs + 1.6, -0.1), aspect="equal")
        axis.set_title(title)
        axis.axis("off")
    caption = (
        f"y = W x, where W has {outputs} rows and {inputs} columns of integers q. With a scale per row there are "
        f"{outputs} scales, and each multiplies one output after its sum. With a scale per column there are {inputs}, "
        f"and each multiplies one input before the {outputs} sums that it goes into."
    )
    return Picture(figure, caption)


def draw_cell(axis, left, top, words, colour):
    """A square with words in it."""
    axis.add_patch(Rectangle((left, top), 0.95, 0.95, facecolor=(*colour, 0.45), edgecolor="white"))
    axis.text(left + 0.475, top + 0.475, words, ha="center", va="center")


def integers(panels, bits):
    """Small matrices of integers side by side, in colours that span the whole range of `bits` bits. Returns a Picture.

    Args:
        panels: {title: (rows, columns) integers}, at most about 8 of each.
        bits: width of the integers.
    """
    qmin, qmax = quant_range(bits)
    figure, axes = new_figure(3.3 * len(panels), 3.3, columns=len(panels), squeeze=False)
    parts = []
    for axis, (title, values) in zip(axes.flat, panels.items(), strict=True):
        seaborn.heatmap(
            values,
            ax=axis,
            cmap=VALUES,
            vmin=qmin,
            vmax=qmax,
            annot=True,
            fmt="d",
            cbar=False,
            square=True,
            linewidths=1,
            xticklabels=False,
            yticklabels=False,
        )
        axis.set_title(title)
        used = values.unique().tolist()
        parts.append(f"{title}: {len(used)} different ones from {used[0]} to {used[-1]}")
    size = " x ".join(map(str, values.shape))
    return Picture(figure, f"The integers of {size} weights, of {qmin} to {qmax} that there are. {'; '.join(parts)}.")


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
    box = 0.215 if longest > 16 else 0.5  # inches
    margin = 1.5 / box  # for the names, to the left of the boxes
    figure, axis = new_figure(box * (longest + margin), 0.3 + 0.62 * len(rows))
    for row, (number, bits, widths) in enumerate(rows):
        axis.text(-margin, row + 0.33, "\n".join(names[row]), va="center", fontsize=9)
        draw_bits(axis, row, bits, widths)
        for place, words in bits_say(number, bits, widths):
            axis.text(place, row + 0.68, words, ha="center", va="top", fontsize=8)
    axis.set(xlim=(-margin, longest + 0.05), ylim=(len(rows), -0.05))
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
        axis.add_patch(Rectangle((place, row), 1, 0.64, facecolor=(*colour, 0.4), edgecolor="white", linewidth=1.5))
        axis.text(place + 0.5, row + 0.33, bit, ha="center", va="center", fontsize=9, family="monospace")


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


def digit_pictures(pictures, labels, answers):
    """Small pictures of digits, eight in a row, with a net's answers over them; a wrong answer is orange and says so.

    Args:
        pictures: (n, height, width), 0 for paper and 1 for ink.
        labels, answers: (n,), what each picture shows and what the net reads.

    Returns:
        a Picture.
    """
    count, columns = len(pictures), min(8, len(pictures))
    rows = -(-count // columns)
    figure, axes = new_figure(8, 1.3 * rows, columns=columns, rows=rows, squeeze=False)
    orange = seaborn.color_palette("colorblind")[3]
    wrong = []
    for place, axis in enumerate(axes.flat):
        axis.axis("off")
        if place < count:
            label, answer = int(labels[place]), int(answers[place])
            axis.imshow(np.asarray(pictures[place]), cmap="gray_r", vmin=0, vmax=1)
            if answer == label:
                axis.set_title(f"{answer}")
            else:
                axis.set_title(f"{answer}, is {label}", color=orange)
                wrong.append(f"picture {place}, which is {label}, as {answer}")
    caption = (
        f"{count} picture{'s' * (count > 1)} of {pictures.shape[1]} x {pictures.shape[2]} pixels, "
        f"{count - len(wrong)} read right."
    )
    return Picture(figure, caption + (f" Read wrong: {'; '.join(wrong)}." if wrong else ""))


def memory_bars(sizes, memory, device):
    """Bars of bytes against the memory of a device, drawn as a line; what does not fit is orange and hatched.

    Args:
        sizes: {label: bytes}.
        memory: bytes.
        device: its name.

    Returns:
        a Picture.
    """
    blue, orange = seaborn.color_palette("colorblind")[:2]
    figure, axis = new_figure(8, 0.9 + 0.4 * len(sizes))
    for place, nbytes in enumerate(sizes.values()):
        fits = nbytes <= memory
        axis.barh(place, nbytes / 1e9, color=blue if fits else orange, hatch="" if fits else "//", edgecolor="white")
        end = (nbytes / 1e9, place)
        words_box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.annotate(in_units(nbytes), end, (6, 0), textcoords="offset points", va="center", bbox=words_box)
    axis.axvline(memory / 1e9, color="black", linestyle="--")
    axis.annotate(f" {device}", (memory / 1e9, -0.55), va="bottom")
    axis.set(yticks=range(len(sizes)), yticklabels=list(sizes), xlabel="GB", ylim=(len(sizes) - 0.5, -1.1))
    axis.margins(x=0.12)
    fitting = [label for label, nbytes in sizes.items() if nbytes <= memory]
    parts = ", ".join(f"{label} {in_units(nbytes)}" for label, nbytes in sizes.items())
    verdict = f"What fits: {', '.join(fitting)}." if fitting else "None of them fits."
    return Picture(figure, f"Bytes of the weights against the {in_units(memory)} of {device}: {parts}. {verdict}")


def size_and_quality(points, title, xlabel, ylabel):
    """Named points over a logarithmic size, so that each halving is the same step to the left. Returns a Picture.

    Args:
        points: {label: (size, quality)}, such as those of one model at several widths.
        title, xlabel, ylabel: words over and beside the picture.
    """
    figure, axis = new_figure(8, 3.6)
    for (label, (x, y)), colour in zip(points.items(), seaborn.color_palette("colorblind") * 2, strict=False):
        axis.plot([x], [y], "o", color=colour, markersize=9)
        axis.annotate(label, (x, y), (0, -17), textcoords="offset points", ha="center")
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.margins(x=0.12, y=0.15)
    axis.grid(alpha=0.3)
    parts = [f"{label}: {rounded(float(y), 3)} at {rounded(float(x), 2)}" for label, (x, y) in points.items()]
    return Picture(figure, f"{title}: {ylabel} over {xlabel}. " + "; ".join(parts) + ".")


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
        colour = colours[row * count + group] if inside else (0.75, 0.75, 0.75)
        draw_cell(right, place, row * count + group, significant(groups[row, group, place].item()), colour)
    largest = groups.abs().amax(-1)
    for index, number in enumerate(largest.flatten().tolist()):
        right.text(group_size + 0.2, index + 0.475, f"largest {significant(number)}", va="center", fontsize=9)
    left.set(xlim=(0, columns), title=f"{rows} x {columns}")
    right.set(xlim=(0, group_size + 2), title=f"{rows * count} groups of {group_size}")
    for axis in (left, right):
        axis.set(ylim=(rows * count, 0), aspect="equal")
        axis.axis("off")
    ragged = f" The last group of a row holds {group_size - filler}, filled up with {filler} zeros." if filler else ""
    maxima = "; ".join(f"row {row}: {', '.join(map(significant, line))}" for row, line in enumerate(largest.tolist()))
    return Picture(
        figure,
        f"A {rows} x {columns} matrix in groups of {group_size}: {count} groups a row, {rows * count} in all.{ragged} "
        f"The largest magnitude of each group, {maxima}.",
    )


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
        f"{scheme}: {rounded(bits_per_weight(matrix.shape, scheme), 3)} bits a weight, "
        f"SQNR of the whole matrix {rounded(sqnr(matrix, back), 1)} dB. "
        f"In rows {rows.start} to {rows.stop - 1} and columns {columns.start} to {columns.stop - 1}, "
        f"{rounded(100 * zeros, 1)}% of the weights come back as 0; the largest error is "
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
        image = axis.imshow(panel[rows, columns], colours, vmin=-limit, vmax=limit, extent=extent, aspect="auto")
        axis.hlines([rows.start + edge for edge in down], columns.start, columns.stop, line, linewidth=1)
        axis.vlines([columns.start + edge for edge in across], rows.start, rows.stop, line, linewidth=1)
        axis.set(title=title, ylabel="row", yticks=range(rows.start, rows.stop, 4))
        figure.colorbar(image, ax=axis, extend="both")
    axes[-1].set_xlabel("column")
    colours_end = f" Colours end at {significant(limit, 2)} either way."
    return Picture(figure, blocks_text(matrix, back, scheme, rows, columns) + colours_end)


class GroupExplorer:
    """The sliders that `explore_groups` returns; `text` and `images` are what they say and draw at the moment."""

    GRANULARITIES: ClassVar = {
        "the whole matrix": {"axis": None},
        "each row": {"axis": 0},
        **{f"groups of {size}": {"group_size": size} for size in (256, 128, 64, 32, 16, 8)},
    }

    def __init__(self, matrix, rows, columns, granularity, bits):
        import ipywidgets

        self.matrix, self.part = matrix, (rows, columns)
        look = {"style": {"description_width": "8em"}, "layout": {"width": "32em"}}
        self.granularity = ipywidgets.SelectionSlider(
            options=list(self.GRANULARITIES), value=granularity, description="a scale for", **look
        )
        self.bits = ipywidgets.SelectionSlider(options=[2, 3, 4, 5, 6, 8], value=bits, description="bits", **look)
        self.zero_point = ipywidgets.Checkbox(
            value=True, description="with a zero point (asymmetric)", indent=True, **look
        )
        self.controls = [self.granularity, self.bits, self.zero_point]
        for control in self.controls:
            control.observe(self.update, names="value")
        self.images = {title: ipywidgets.Image(format="png") for title in ("What comes back", "Error")}
        self.words = ipywidgets.HTML()
        drawn = [part for title, image in self.images.items() for part in (ipywidgets.HTML(title), image)]
        self.widget = ipywidgets.VBox([*self.controls, self.words, *drawn])
        self.update()

    @property
    def scheme(self):
        """The Scheme that the controls stand for."""
        return Scheme(self.bits.value, not self.zero_point.value, **self.GRANULARITIES[self.granularity.value])

    def update(self, change=None):
        """Follow the controls."""
        back = fake_quantize(self.matrix, self.scheme)
        edges = block_edges(self.matrix.shape, self.scheme, *self.part)
        limit = usual_magnitude(self.matrix[self.part])
        self.text = blocks_text(self.matrix, back, self.scheme, *self.part)
        # Images of ipywidgets have no alternative text: the words over them say what they show.
        self.words.value = f'<div role="status" style="max-width: 48em; line-height: 1.4">{self.text}</div>'
        error = back - self.matrix
        for title, panel, colours, line in (("What comes back", back, VALUES, 255), ("Error", error, ERRORS, 0)):
            self.images[title].value = block_png(panel[self.part] / limit, colours, *edges, line)

    def _ipython_display_(self):
        from IPython.display import display

        # In a saved notebook the widget is gone with its kernel: the words stay.
        display(self.widget._repr_mimebundle_() | {"text/plain": self.text}, raw=True)

    def __repr__(self):
        return self.text


def block_png(panel, colours, down, across, line, cell=12):
    """A matrix of values from -1 to 1 as the bytes of a PNG: `cell` pixels an element, lines of a grey `line` at edges.

    Pixels and not a drawn figure: they take a tenth of the time, and follow a slider at once.
    """
    pixels = matplotlib.colormaps[colours]((panel.numpy() + 1) / 2, bytes=True).repeat(cell, 0).repeat(cell, 1)
    for edge in down:
        pixels[edge * cell - 1 : edge * cell + 1, :, :3] = line
    for edge in across:
        pixels[:, edge * cell - 1 : edge * cell + 1, :3] = line
    png = io.BytesIO()
    matplotlib.image.imsave(png, pixels, format="png")
    return png.getvalue()


def explore_groups(matrix, rows, columns, granularity="groups of 32", bits=4):
    """Sliders for what shares a scale and for the bits, over a part of a matrix. Needs a running notebook to move.

    Args:
        matrix: (rows, columns); all of it is quantized.
        rows, columns: slices, the part to draw, such as 16 x 64.
        granularity: a key of GroupExplorer.GRANULARITIES, to begin with.
        bits: 2, 3, 4, 5, 6 or 8.

    Returns:
        a GroupExplorer.
    """
    return GroupExplorer(matrix, rows, columns, granularity, bits)


def price_curves(panels, title, xlabel, ylabel):
    """Quality over cost, panels side by side, and behind them the staircase of what is not beaten.

    A point is beaten by one, of any panel, that costs no more and is better. Those that are not beaten are ringed.

    Args:
        panels: {panel: {label: [(cost, quality), …]}}; a label has the same colour in each panel.
        title, xlabel, ylabel: words over and beside the picture.

    Returns:
        a Picture.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    colours = dict(zip(labels, seaborn.color_palette("colorblind", len(labels)), strict=True))
    markers = dict(zip(labels, "osD^vPX*dh", strict=False))
    points = {
        (panel, label, cost): (cost, quality)
        for panel, lines in panels.items()
        for label, line in lines.items()
        for cost, quality in line
    }
    best = frontier(points)
    stairs = [points[name] for name in best]
    figure, axes = new_figure(max(8, 4.8 * len(panels)), 5, columns=len(panels), sharey=True, squeeze=False)
    for axis, (panel, lines) in zip(axes.flat, panels.items(), strict=True):
        axis.step(*zip(*stairs, strict=True), where="post", color="grey", linewidth=6, alpha=0.25)
        for label, line in lines.items():
            xs, ys = zip(*sorted(line), strict=True)
            axis.plot(xs, ys, marker=markers[label], color=colours[label], label=label, linewidth=1.2, markersize=5)
        for ringed in (points[name] for name in best if name[0] == panel):
            axis.plot(*ringed, "o", color="black", fillstyle="none", markersize=10)
        axis.set(title=panel, xlabel=xlabel)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel(ylabel)
    axes[0, -1].legend(fontsize=9)
    figure.suptitle(title, fontsize=11)
    return Picture(figure, f"{title}: {ylabel} over {xlabel}. {price_text(points, best)}")


def price_text(points, best):
    """The points of `price_curves` in words: how many, from where to where, and which are not beaten."""
    costs, qualities = zip(*points.values(), strict=True)
    ends = (
        f"{len(points)} ways from {rounded(min(costs), 2)} to {rounded(max(costs), 2)}, "
        f"{rounded(min(qualities), 2)} to {rounded(max(qualities), 2)}."
    )
    if len(best) > 16:
        panels = Counter(panel for panel, _, _ in points), Counter(panel for panel, _, _ in best)
        parts = ", ".join(f"{panels[1][panel]} of {count} {panel}" for panel, count in panels[0].items())
        return f"{ends} Not beaten by any that costs no more: {parts}."
    steps = (
        f"{label} at {rounded(cost, 2)}: {rounded(points[panel, label, cost][1], 2)}" for panel, label, cost in best
    )
    return f"{ends} Not beaten by any that costs no more: {'; '.join(steps)}."


# Memory as the makers' data sheets give it, in units of 10^9 bytes.
DEVICES = {"a laptop with 8 GB": 8, "an NVIDIA T4": 16, "an NVIDIA RTX 4090": 24, "an NVIDIA A100": 80}


class FitCalculator:
    """The calculator that `fit_calculator` returns; `text` and `bars` are what it says and draws at the moment."""

    def __init__(self, billions, bits, group_size, device):
        import ipywidgets

        look = {"style": {"description_width": "11em"}, "layout": {"width": "32em"}}
        sizes = sorted({0.1, 0.5, 1, 3, 7, 8, 13, 34, 70, 180, 405, billions})
        self.billions = ipywidgets.SelectionSlider(
            options=sizes, value=billions, description="billions of weights", **look
        )
        self.bits = ipywidgets.SelectionSlider(
            options=[2, 3, 4, 8, 16, 32], value=bits, description="bits a weight", **look
        )
        self.group_size = ipywidgets.Dropdown(
            options={"one scale for very many": None, "32": 32, "64": 64, "128": 128},
            value=group_size,
            description="weights in a group",
            **look,
        )
        self.device = ipywidgets.Dropdown(options=list(DEVICES), value=device, description="memory of", **look)
        self.bars = ipywidgets.HTML()
        self.controls = [self.billions, self.bits, self.group_size, self.device]
        for control in self.controls:
            control.observe(self.update, names="value")
        self.widget = ipywidgets.VBox([*self.controls, self.bars])
        self.update()

    def update(self, change=None):
        """Follow the controls."""
        count, memory = round(self.billions.value * 1e9), DEVICES[self.device.value] * 10**9
        self.group_size.disabled = self.bits.value >= 16  # a float carries its own scale
        group_size = None if self.group_size.disabled else self.group_size.value
        nbytes = weight_bytes(count, self.bits.value, group_size)
        self.text = fit_text(count, self.bits.value, group_size, memory, self.device.value)
        # Bars in HTML and not a drawn figure: they follow a slider at once, and take the theme's colours.
        longest = max(nbytes, memory)
        colour = "#0173b2" if nbytes <= memory else "#de8f05"
        rows = [("weights", nbytes, colour), ("memory", memory, "#8a8f98")]
        bars = "".join(
            f'<div style="display: flex; align-items: center; margin: 3px 0"><span style="width: 5em">{label}</span>'
            f'<span style="width: {25 * size / longest:.2f}em; height: 1.2em; background: {fill}"></span>'
            f'<span style="margin-left: 0.5em">{in_units(size)}</span></div>'
            for label, size, fill in rows
        )
        self.bars.value = f'<div aria-hidden="true">{bars}</div><div role="status">{self.text}</div>'

    def _ipython_display_(self):
        from IPython.display import display

        # In a saved notebook the widget is gone with its kernel: the words stay.
        display(self.widget._repr_mimebundle_() | {"text/plain": self.text}, raw=True)

    def __repr__(self):
        return self.text


def fit_calculator(billions=70, bits=4, group_size=64, device="an NVIDIA T4"):
    """Sliders that tell whether a model's weights fit into a device's memory. Needs a running notebook to move.

    Args:
        billions: of weights, to begin with.
        bits: 2, 3, 4, 8, 16 or 32; floats at 16 and 32.
        group_size: 32, 64, 128, or None for one scale for so many weights that it does not matter.
        device: a key of DEVICES.

    Returns:
        a FitCalculator.
    """
    return FitCalculator(billions, bits, group_size, device)


class Grid:
    """The grid that a scale and a zero point lay over a tensor's numbers: what is drawn of it, and what is said.

    Args:
        tensor: real numbers, any shape.
        scale, zero_point: numbers or tensors of shape (), as for qlib.quantize.
        bits: width of the integers, 2 to 8.
        label: what the numbers are and how they are mapped.
    """

    def __init__(self, tensor, scale, zero_point, bits, label):
        qmin, qmax = quant_range(bits)
        values = quantize(tensor, scale, zero_point, bits)
        scale, zero_point = float(scale), float(zero_point)
        low, high = tensor.min().item(), tensor.max().item()
        # What stays the same as bits and mode change, so that the marks move and the numbers do not. From 3 bits on
        # all marks of either mode are in sight.
        limit = 1.04 * (max(-low, high) or 1.0)
        self.view = (-4 / 3 * limit, limit)
        self.counts, self.edges = np.histogram(tensor.flatten().numpy(), bins=120)
        self.codes = list(range(qmin, qmax + 1))
        self.reals = [scale * (code - zero_point) for code in self.codes]
        self.used = (torch.bincount(values.flatten().long() - qmin, minlength=len(self.codes)) > 0).tolist()
        back = dequantize(values, scale, zero_point)
        clipped = ((back - tensor).abs() > 0.5001 * abs(scale)).sum().item()
        hidden = [f"{code}" for code, real in zip(self.codes, self.reals) if not self.view[0] <= real <= self.view[1]]
        self.text = (
            f"{label}: {tensor.numel()} numbers from {significant(low)} to {significant(high)} at {bits} bits. "
            f"Scale {significant(scale)}, zero point {zero_point:.0f}; "
            f"{sum(self.used)} of {len(self.codes)} codes used; "
            f"mean squared error {significant(quantization_error(tensor, back))}, "
            f"SQNR {rounded(sqnr(tensor, back), 1)} dB."
            + (f" Clipped: {clipped}." if clipped else "")
            + (f" Outside of the picture: the mark of {', '.join(hidden)}." if hidden else "")
        )


def grid_over_histogram(tensor, scale, zero_point, bits, label):
    """A tensor's histogram and, over and under it, the marks of a grid: blue those in use, short and grey the others.

    Args:
        tensor, scale, zero_point, bits, label: as for Grid.

    Returns:
        a Picture.
    """
    grid = Grid(tensor.detach(), scale, zero_point, bits, label)
    figure, (top, bottom) = new_figure(8, 3.4, rows=2, sharex=True, height_ratios=[5, 1])
    blue, reals, used = seaborn.color_palette("colorblind")[0], np.array(grid.reals), np.array(grid.used)
    top.stairs(grid.counts, grid.edges, fill=True, color="#8a8f98")
    for chosen, colour, length in ((~used, "darkgrey", 0.5), (used, blue, 1)):
        bottom.vlines(reals[chosen], 0, length, color=colour, linewidth=0.9 if bits > 5 else 2)
        if bits <= 5:
            top.vlines(reals[chosen], 0, 1, color=colour, linewidth=0.8, transform=top.get_xaxis_transform())
    for code, real in zip(grid.codes, grid.reals):
        if bits <= 4 and grid.view[0] <= real <= grid.view[1]:
            bottom.text(real, -0.15, code, ha="center", va="top", fontsize=8)
    top.set(title=label, ylabel="count", yscale="log", xlim=grid.view)
    bottom.set(xlabel="real number", yticks=[], ylim=(-0.9 if bits <= 4 else 0, 1))
    bottom.spines["left"].set_visible(False)
    return Picture(figure, grid.text)


def grid_svg(grid, width=720, height=190):
    """The picture of `grid_over_histogram` as SVG, which follows a slider at once and takes the theme's colours."""
    left, right = grid.view
    ground, below = height - 50, height - 20

    def across(real):
        return f"{(real - left) / (right - left) * width:.1f}"

    outline = f"M{across(grid.edges[0])} {ground}"
    for count, edge in zip(grid.counts, grid.edges[1:]):
        top = ground - (4 + (ground - 8) * math.log(count) / math.log(grid.counts.max() + 1) if count else 0)
        outline += f"V{top:.1f}H{across(edge)}"
    parts = [f'<path d="{outline}V{ground}Z" fill="#8a8f98"/>']
    for used, colour, end in ((False, "#8a8f98", below - 12), (True, "#0173b2", below)):
        start = 0 if len(grid.codes) <= 32 else ground + 4
        reals = [real for real, is_used in zip(grid.reals, grid.used) if is_used is used and left <= real <= right]
        path = "".join(f"M{across(real)} {start}V{end}" for real in reals)
        parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="1.2"/>')
    for tick in MaxNLocator(7).tick_values(left, right):
        if left < tick < right:
            parts.append(f'<text x="{across(tick)}" y="{height - 4}" text-anchor="middle">{significant(tick)}</text>')
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" style="max-width: 100%; height: auto" '
        f'font-size="12" fill="currentColor" aria-hidden="true">{"".join(parts)}</svg>'
    )


def mode_qparams(tensor, bits, mode):
    """Scale and zero point for a whole tensor in one of three modes: "symmetric", "asymmetric" or "full range"."""
    low, high = tensor.min(), tensor.max()
    if mode == "symmetric":
        return symmetric_qparams(torch.maximum(-low, high), bits)
    return {"asymmetric": asymmetric_qparams, "full range": full_range_qparams}[mode](low, high, bits)


class GridExplorer:
    """The explorer that `grid_explorer` returns; `text` is what it says at the moment."""

    def __init__(self, tensors, bits, mode):
        import ipywidgets

        look = {"style": {"description_width": "6em"}, "layout": {"width": "32em"}}
        self.tensors = {label: tensor.detach() for label, tensor in tensors.items()}
        self.numbers = ipywidgets.Dropdown(options=list(tensors), description="numbers", **look)
        modes = ["symmetric", "asymmetric", "full range"]
        self.mode = ipywidgets.Dropdown(options=modes, value=mode, description="mode", **look)
        self.bits = ipywidgets.IntSlider(value=bits, min=2, max=8, description="bits", **look)
        self.picture = ipywidgets.HTML()
        self.controls = [self.numbers, self.mode, self.bits]
        for control in self.controls:
            control.observe(self.update, names="value")
        self.widget = ipywidgets.VBox([*self.controls, self.picture])
        self.update()

    def update(self, change=None):
        """Follow the controls."""
        tensor, bits, mode = self.tensors[self.numbers.value], self.bits.value, self.mode.value
        grid = Grid(tensor, *mode_qparams(tensor, bits, mode), bits, f"{self.numbers.value}, {mode}")
        self.text = grid.text
        self.picture.value = f'{grid_svg(grid)}<div role="status" style="max-width: 52em">{self.text}</div>'

    def _ipython_display_(self):
        from IPython.display import display

        # In a saved notebook the widget is gone with its kernel: the words stay.
        display(self.widget._repr_mimebundle_() | {"text/plain": self.text}, raw=True)

    def __repr__(self):
        return self.text


def grid_explorer(tensors, bits=4, mode="symmetric"):
    """Controls for bits and mode that move a grid over a histogram. Needs a running notebook to move.

    Args:
        tensors: {label: tensor}, to choose from; each is mapped with one scale.
        bits: 2 to 8, to begin with.
        mode: "symmetric", "asymmetric" or "full range", to begin with.

    Returns:
        a GridExplorer.
    """
    return GridExplorer(tensors, bits, mode)


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


def observed_ranges(inputs, ranges):
    """What flows into each layer, as histograms, and the ends of the range that each observer would cover, as lines.

    Args:
        inputs: {layer: tensor of all that flowed in}.
        ranges: {observer: {layer: (low, high)}}.

    Returns:
        a Picture; a low end at 0 is not drawn.
    """
    figure, axes = new_figure(8, 1.7 * len(inputs) + 0.6, rows=len(inputs), squeeze=False)
    styles = list(zip(seaborn.color_palette("colorblind"), ["-", "--", "-.", ":"] * 3))
    parts = []
    for axis, (layer, values) in zip(axes.flat, inputs.items(), strict=True):
        values = values.detach().double().flatten().numpy()
        axis.hist(values, bins=100, color="#c3c6cb")
        said = []
        for (observer, found), (colour, line) in zip(ranges.items(), styles):
            low, high = (float(end) for end in found[layer])
            for end in {high} | ({low} - {0.0}):
                axis.axvline(end, color=colour, linestyle=line, linewidth=2, label=observer if end == high else None)
            said.append(f"{observer} {significant(low, 3)} to {significant(high, 3)}")
        axis.set(yscale="log", ylabel="count")
        axis.set_title(f"inputs of {layer}", loc="left")
        parts.append(
            f"{layer}: {values.size} numbers from {significant(values.min(), 3)} to "
            f"{significant(values.max(), 3)}; {', '.join(said)}"
        )
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(ranges), frameon=False
    )
    return Picture(figure, "Inputs of each layer, and the range each observer covers. " + ". ".join(parts) + ".")


class Clip:
    """A range that leaves out the numbers beyond a percentile: what is drawn of it, and what is said.

    Args:
        values: real numbers, any shape.
        percent: where the upper end lies, from 50 to 100; the lower end lies at 100 - percent.
        bits: width of the integers that cover the range.
        label: what the numbers are.
    """

    def __init__(self, values, percent, bits, label):
        values = values.detach().double().flatten()
        low, high = percentile_range(values, percent)
        scale, zero_point = asymmetric_qparams(low, high, bits)
        squares = (dequantize(quantize(values, scale, zero_point, bits), scale, zero_point) - values).square()
        outside = (values < low.clamp(max=0)) | (values > high.clamp(min=0))
        self.low, self.high = min(low.item(), 0.0), max(high.item(), 0.0)
        self.counts, self.edges = np.histogram(values.numpy(), bins=100)
        self.rounding = squares[~outside].sum().item() / len(values)
        self.clipping = squares[outside].sum().item() / len(values)
        self.text = (
            f"{label}: {len(values)} numbers from {significant(values.min().item(), 3)} to "
            f"{significant(values.max().item(), 3)} at {bits} bits. Percentile {percent:g}: the range is "
            f"{significant(self.low, 3)} to {significant(self.high, 3)}, a step {significant(scale.item(), 3)}; "
            f"{outside.sum().item()} numbers are clipped. Mean squared error "
            f"{significant(self.rounding + self.clipping, 3)}: rounding {significant(self.rounding, 3)}, "
            f"clipping {significant(self.clipping, 3)}."
        )


# Dense where it matters: near 100 a hundredth of a percent moves the end as far as ten percent do further down.
PERCENTS = [80, 85, 90, 93, 95, 96, 97, 98, 98.5, 99, 99.3, 99.5, 99.7, 99.8, 99.9, 99.95, 99.99, 100]


def clipping(values, percent, bits, label):
    """A histogram with what a percentile clips in orange, and beside it the two kinds of error at every percentile.

    Args:
        values, percent, bits, label: as for Clip.

    Returns:
        a Picture.
    """
    clip = Clip(values, percent, bits, label)
    figure, (left, right) = new_figure(8, 3.2, columns=2)
    inside = (clip.edges[1:] <= clip.high) & (clip.edges[:-1] >= clip.low)
    orange, colours = seaborn.color_palette("colorblind")[1], seaborn.color_palette("colorblind")
    left.bar(
        clip.edges[:-1],
        clip.counts,
        np.diff(clip.edges),
        align="edge",
        color=["#8a8f98" if kept else orange for kept in inside],
    )
    left.axvline(clip.high, color="black", linestyle="--")
    left.set(title=label, xlabel="real number", ylabel="count", yscale="log")
    clips = [Clip(values, p, bits, label) for p in PERCENTS]
    ends = [c.high for c in clips]
    for name, style, colour in (("rounding", "--", colours[0]), ("clipping", "-.", colours[1])):
        right.plot(ends, [getattr(c, name) for c in clips], style, color=colour, label=name)
    right.plot(ends, [c.rounding + c.clipping for c in clips], color="black", label="both")
    right.plot([clip.high], [clip.rounding + clip.clipping], "o", color="black")
    right.axvline(clip.high, color="black", linestyle="--", linewidth=0.8)
    right.set(title=f"error at {bits} bits", xlabel="upper end of the range", ylabel="mean squared error")
    right.set_ylim(0, 4 * min(c.rounding + c.clipping for c in clips))
    right.legend(frameon=False)
    best = min(zip(PERCENTS, clips), key=lambda pair: pair[1].rounding + pair[1].clipping)
    return Picture(
        figure,
        f"{clip.text} Of the percentiles drawn, {best[0]:g} has the least error, "
        f"{significant(best[1].rounding + best[1].clipping, 3)}.",
    )


def clip_svg(clip, width=720, height=150):
    """The histogram of `clipping` as SVG, which follows a slider at once and takes the theme's colours."""
    first, last = min(clip.edges[0], 0), clip.edges[-1]
    ground = height - 20

    def across(real):
        return (real - first) / (last - first) * width

    parts = []
    for count, start, end in zip(clip.counts, clip.edges, clip.edges[1:]):
        if count:
            tall = 4 + (ground - 8) * math.log(count) / math.log(clip.counts.max() + 1)
            colour = "#8a8f98" if start >= clip.low and end <= clip.high else "#de8f05"
            parts.append(
                f'<rect x="{across(start):.1f}" y="{ground - tall:.1f}" width="{across(end) - across(start):.1f}" '
                f'height="{tall:.1f}" fill="{colour}"/>'
            )
    parts.append(f'<path d="M{across(clip.high):.1f} 0V{ground}" stroke="currentColor" stroke-dasharray="4"/>')
    for tick in MaxNLocator(7).tick_values(first, last):
        if first <= tick <= last:
            parts.append(
                f'<text x="{across(tick):.1f}" y="{ground + 16}" text-anchor="middle">{significant(tick)}</text>'
            )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" style="max-width: 100%; height: auto" '
        f'font-size="12" fill="currentColor" aria-hidden="true">{"".join(parts)}</svg>'
    )


class ClippingExplorer:
    """The explorer that `clipping_explorer` returns; `text` is what it says at the moment."""

    def __init__(self, inputs, percent, bits):
        import ipywidgets

        look = {"style": {"description_width": "6em"}, "layout": {"width": "32em"}}
        self.inputs = inputs
        self.layer = ipywidgets.Dropdown(options=list(inputs), value=list(inputs)[-1], description="inputs of", **look)
        self.percent = ipywidgets.SelectionSlider(options=PERCENTS, value=percent, description="percentile", **look)
        self.bits = ipywidgets.IntSlider(value=bits, min=2, max=8, description="bits", **look)
        self.picture = ipywidgets.HTML()
        self.controls = [self.layer, self.percent, self.bits]
        for control in self.controls:
            control.observe(self.update, names="value")
        self.widget = ipywidgets.VBox([*self.controls, self.picture])
        self.update()

    def update(self, change=None):
        """Follow the controls."""
        layer = self.layer.value
        clip = Clip(self.inputs[layer], self.percent.value, self.bits.value, f"Inputs of {layer}")
        self.text = clip.text
        self.picture.value = f'{clip_svg(clip)}<div role="status" style="max-width: 52em">{self.text}</div>'

    def _ipython_display_(self):
        from IPython.display import display

        # In a saved notebook the widget is gone with its kernel: the words stay.
        display(self.widget._repr_mimebundle_() | {"text/plain": self.text}, raw=True)

    def __repr__(self):
        return self.text


def clipping_explorer(inputs, percent=99, bits=4):
    """Controls for the percentile at which a layer's inputs are clipped. Needs a running notebook to move.

    Args:
        inputs: {layer: tensor of all that flowed in}; the last one is shown first.
        percent: one of PERCENTS, to begin with.
        bits: 2 to 8, to begin with.

    Returns:
        a ClippingExplorer.
    """
    return ClippingExplorer(inputs, percent, bits)
