"""Pictures of matrices: values, integers and errors as heatmaps, and which elements share a scale."""

import io
import math

import matplotlib
import matplotlib.image
import numpy as np
import seaborn
import torch
from matplotlib.patches import Rectangle

from course.figures.picture import ERRORS, VALUES, Picture, new_figure, shape_text, significant
from qlib.affine import block_range, expand_groups, quant_range, split_groups
from qlib.report import as_text, bits_per_weight, sqnr
from qlib.tensor import fake_quantize

LARGEST_GRID = 48  # a matrix with more rows or columns than this is shown as tiles


def heatmaps(original, quantized, dequantized):
    """Four panels, two by two: the matrix, its integers, what comes back of them, and the error.

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
    rows, columns = cells.shape
    height = min(2.6, 0.05 + 0.45 * rows if annotated(cells) else max(1, 3.4 * rows / columns))
    figure, axes = new_figure(8.4, 2 * (0.55 + height), columns=2, rows=2)
    figure.get_layout_engine().set(wspace=0.06)
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=True):
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


def annotated(cells):
    """Whether there are few enough of them for a number in each."""
    return max(cells.shape) <= 8


def draw_heatmap(axis, title, cells, box, panel, colours, low, high, number_format):
    """One panel: the elements of `panel` at the flat indices `cells`, a box around the cell at `box`, a colour bar."""
    small = annotated(cells)
    seaborn.heatmap(
        panel.flatten()[cells].numpy(),
        ax=axis,
        cmap=colours,
        vmin=low,
        vmax=high,
        annot=small,
        annot_kws={"fontsize": min(10, 54 / cells.shape[1])},
        fmt=number_format,
        square=not small and max(cells.shape) <= 4 * min(cells.shape),  # a vector's would make a thread of it
        linewidths=1 if small else 0,
        cbar_ax=axis.inset_axes([1.03, 0, 0.05, 1]),
        xticklabels=small,
        yticklabels=small,
    )
    axis.tick_params(length=0, rotation=0)
    axis.set_title(title)
    axis.add_patch(Rectangle((box[1], box[0]), 1, 1, fill=False, linewidth=2, edgecolor="red", clip_on=False))


def sharing(shape, schemes):
    """A small matrix once for each scheme, its weights in the colour and with the number of the scale that they share.

    Args:
        shape: (rows, columns), small enough to read a number in each cell.
        schemes: Schemes, one panel each.

    Returns:
        a Picture.
    """
    down, across = -(-len(schemes) // 2), min(2, len(schemes))
    figure, axes = new_figure(3.4 * across, down * (0.4 + 3 * shape[0] / shape[1]), across, down, squeeze=False)
    for axis in axes.flat[len(schemes) :]:
        axis.axis("off")
    parts = []
    for axis, scheme in zip(axes.flat, schemes, strict=False):
        block = block_numbers(shape, scheme)
        sizes = block.unique(return_counts=True)[1]
        colours = seaborn.color_palette("colorblind", len(sizes))
        draw_numbers(axis, block, cmap=colours, alpha=0.55, annot_kws={"color": "black"})
        scales = f"{len(sizes)} scale{'s' * (len(sizes) > 1)}"
        axis.set_title(f"{scheme.granularity}: {scales}")
        weights = " or ".join(str(size) for size in sizes.unique().tolist()[::-1])
        parts.append(f"{scheme.granularity}, {scales} for {weights} weights{' each' * (len(sizes) > 1)}")
    return Picture(figure, f"Which weights of a {shape[0]} x {shape[1]} matrix share a scale: {'; '.join(parts)}.")


def draw_numbers(axis, values, **colours):
    """A small matrix of whole numbers, each written in its cell; `colours` as seaborn.heatmap takes them."""
    frame = {"square": True, "linewidths": 1, "cbar": False, "xticklabels": False, "yticklabels": False}
    seaborn.heatmap(values, ax=axis, annot=True, fmt="d", **frame, **colours)


def block_numbers(shape, scheme):
    """int64 tensor of `shape`: for each weight, the number of its block, counted from 0 in reading order."""
    scales = block_range(torch.empty(shape, device="meta"), scheme)[0].shape
    number = torch.arange(scales.numel()).reshape(scales)
    return expand_groups(number, torch.empty(shape), scheme.group_size).broadcast_to(shape)


def channel_maxima(tensor, title):
    """The largest magnitude in each row and in each column of a matrix, as points on a log scale. Returns a Picture."""
    magnitude = tensor.detach().double().abs()
    figure, axes = new_figure(7.6, 3, columns=2, sharey=True)
    blue, orange = seaborn.color_palette("colorblind")[:2]
    parts = []
    for axis, what, maxima in zip(axes, ("row", "column"), (magnitude.amax(1), magnitude.amax(0)), strict=True):
        place, count, median = maxima.argmax().item(), len(maxima), maxima.median().item()
        axis.plot(maxima, ".", color=blue, markersize=3)
        axis.plot([place], [maxima[place]], "o", color=orange)
        axis.annotate(f"{what} {place}", (place, maxima[place]), (0, 6), textcoords="offset points", ha="center")
        axis.margins(y=0.15)  # room for these words
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
    figure, axes = new_figure(8.4, 0.7 + 0.4 * rows, columns=3)
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
        f"{'; '.join(as_text(row, 2) for row in given.broadcast_to(tensor.shape))}."
    )
    return Picture(figure, caption)


def scales_in_a_matmul(outputs=3, inputs=4):
    """y = W x as a drawing, W with a scale a row and with a scale a column, each scale's colour where it multiplies.

    Args:
        outputs, inputs: rows and columns of W, at most 6 each.

    Returns:
        a Picture.
    """
    figure, axes = new_figure(8.4, 0.9 + 0.5 * (outputs + 1.5), columns=2)
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
            axis.text(inputs + 0.5, row + 1.9, "sum", ha="center", va="bottom", fontsize=9)
            draw_cell(axis, inputs + 1, row + 1.5, f"$y_{row}$", grey if scaled else colours[row])
        if scaled:
            axis.text(inputs + 0.15, 0.5, "each times its scale,\nbefore the sums", va="center")
        else:
            words = "each times\nits scale,\nafter the sum"
            axis.text(inputs + 2.1, outputs / 2 + 1.5, words, va="center")
        axis.set(xlim=(-0.1, inputs + 3.8), ylim=(outputs + 1.6, -0.1), aspect="equal")
        axis.set_title(title)
        axis.axis("off")
    caption = (
        f"y = W x, where W has {outputs} rows and {inputs} columns of integers q. With a scale per row there are "
        f"{outputs} scales, and each multiplies one output after its sum. With a scale per column there are {inputs}, "
        f"and each multiplies one input before the {outputs} sums that it goes into."
    )
    return Picture(figure, caption)


def w8a16_steps(weight, x, scales, bias):
    """What a layer with int8 weights does to one input, number by number: sum, times a row's scale, plus the bias.

    Args:
        weight: (outputs, inputs) integers, at most about 6 of each.
        x: (inputs,).
        scales, bias: (outputs,).

    Returns:
        a Picture.
    """
    rows, columns = weight.shape
    weight, x, scales, bias = (tensor.detach().double() for tensor in (weight, x, scales, bias))
    sums = weight @ x
    outputs = sums * scales + bias
    steps = {
        "weights × input,\nsummed": ("=", sums),
        "scale": ("×", scales),
        "bias": ("+", bias),
        "output": ("=", outputs),
    }
    figure, axis = new_figure(8.4, 0.6 + 0.62 * (rows + 1.6))
    grey, colours = (0.75, 0.75, 0.75), seaborn.color_palette("colorblind", rows)
    for column in range(columns):
        draw_cell(axis, column, 0, significant(x[column].item()), grey)
    axis.text(-0.15, 0.475, "input", ha="right", va="center")
    axis.text(-0.15, rows / 2 + 1.6, "int8\nweights", ha="right", va="center")
    for row in range(rows):
        for column in range(columns):
            draw_cell(axis, column, row + 1.6, significant(weight[row, column].item()), colours[row])
    for place, (name, (sign, numbers)) in enumerate(steps.items()):
        left = columns + 0.5 + 1.6 * place
        axis.text(left + 0.475, 1.45, name, ha="center", va="bottom")
        for row in range(rows):
            axis.text(left - 0.33, row + 2.07, sign, ha="center", va="center")
            colour = grey if name == "bias" else colours[row]
            draw_cell(axis, left, row + 1.6, significant(numbers[row].item()), colour)
    axis.set(xlim=(-1.3, columns + 6.4), ylim=(rows + 1.7, -0.1), aspect="equal")
    axis.axis("off")
    told = "; ".join(
        f"output {row}: {significant(sums[row].item())} times {significant(scales[row].item())} "
        f"plus {significant(bias[row].item())} is {significant(outputs[row].item())}"
        for row in range(rows)
    )
    layer = f"A layer of {columns} inputs and {rows} outputs"
    return Picture(figure, f"{layer} on the input {as_text(x)}. Of the sums, {told}.")


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
        draw_numbers(axis, values, cmap=VALUES, vmin=qmin, vmax=qmax)
        axis.set_title(title)
        used = values.unique().tolist()
        parts.append(f"{title}: {len(used)} different ones from {used[0]} to {used[-1]}")
    size = " x ".join(map(str, values.shape))
    return Picture(figure, f"The integers of {size} weights, of {qmin} to {qmax} that there are. {'; '.join(parts)}.")


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
