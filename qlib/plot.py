"""Pictures of a quantized tensor: heatmaps, histograms, and curves of the error against bits.

qtensor = quantize_tensor(weight, Scheme(bits=4, group_size=64))
heatmaps(weight, qtensor.values, qtensor.dequantize()).save("weight.png")

Each picture carries its own description, computed from the data it draws. Importing qlib does not import this module,
and so loads no matplotlib.
"""

import base64
import io

import matplotlib
import numpy as np
import seaborn
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qlib.report import as_text

VALUES, ERRORS = "viridis", "RdBu_r"  # perceptual for values; diverging, centred on 0, for errors
LARGEST_GRID = 48  # a matrix with more rows or columns than this is shown as tiles


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

    def bundles(self):
        """What a notebook keeps of it: the image and, under it, the caption, which is the text of both."""
        png = io.BytesIO()
        self.figure.savefig(png, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        image = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": self.caption}
        return [image, {"text/markdown": f"*{self.caption}*", "text/plain": self.caption}]

    def _ipython_display_(self):
        from IPython.display import display

        for bundle in self.bundles():
            display(bundle, raw=True)

    def __repr__(self):
        return self.caption


def new_figure(width, height, columns=1, rows=1, **options):
    """A figure in one style and its axes. It belongs to no window, so that nothing draws it a second time."""
    with matplotlib.rc_context(
        {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


def line_styles(count):
    """A colour and a marker for each of `count` lines, as Axes.plot takes them: no two lines look alike.

    Raises:
        ValueError: more lines than there are styles.
    """
    markers = "osD^vPX*osd^vPX*"
    if count > len(markers):
        raise ValueError(f"{count} lines in one picture: only {len(markers)} can be told from each other")
    colours = seaborn.color_palette("colorblind") * 2
    return [{"color": colours[place], "marker": markers[place]} for place in range(count)]


def significant(number, digits=4):
    """A number with `digits` significant digits: as text for captions, where magnitudes differ widely."""
    return f"{number:.{digits}g}" if number else "0"


def points_of(line):
    """[(x, y), …] of a line that is drawn."""
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


# ---------------------------------------------------------------- heatmaps


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
    # Of a large matrix the panels show an element a tile, so that the whole is described and not the panels.
    caption = (
        f"{shape_text(original)} from {significant(low)} to {significant(high)}; "
        f"integers from {quantized.min():.0f} to {quantized.max():.0f}; "
        f"mean squared error {significant(error.square().mean().item())}. "
        f"Largest error, boxed, at {list(worst)}: {significant(original[worst].item())} "
        f"came back as {significant(dequantized[worst].item())}.{shown}"
    )
    return Picture(figure, caption)


def shape_text(matrix):
    """ "A 384 x 1536 matrix" for a matrix, "A vector of 4" for one row."""
    rows, columns = matrix.shape
    return f"A {rows} x {columns} matrix" if rows > 1 else f"A vector of {columns}"


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


# ---------------------------------------------------------------- histograms and curves


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
    for values, colour in zip(data.values(), seaborn.color_palette("colorblind", len(data)), strict=True):
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
    """Lines through points, such as the error over the bits. `lines` is {label: [(x, y), …]}. Returns a Picture."""
    figure, axis = new_figure(8, 3.6)
    for (label, points), style in zip(lines.items(), line_styles(len(lines)), strict=True):
        axis.plot(*zip(*sorted(points), strict=True), label=label, **style)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale="log" if logy else "linear")
    if all(isinstance(x, int) for points in lines.values() for x, _ in points):
        axis.xaxis.get_major_locator().set_params(integer=True)  # there is no exponent 112.5
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend()
    parts = [f"{label}: {points_text(points_of(line))}" for label, line in zip(lines, axis.lines, strict=True)]
    return Picture(figure, f"{title}: {ylabel} over {xlabel}. " + "; ".join(parts) + ".")


def points_text(points):
    """The points of a line in words: all of them if they are few, else the ends, the lowest and the highest."""

    def at(x, y):
        return f"{as_text(float(y), 3)} at {as_text(float(x), 2)}"

    if len(points) <= 8:
        return ", ".join(at(*point) for point in points)
    lowest, highest = (pick(points, key=lambda point: point[1]) for pick in (min, max))
    return f"from {at(*points[0])} to {at(*points[-1])}, lowest {at(*lowest)}, highest {at(*highest)}"
