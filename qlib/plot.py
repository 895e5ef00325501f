"""Pictures for the lessons. Each carries its own description, computed from the data it draws."""

import base64
import io

import matplotlib
import numpy as np
import seaborn
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qlib.affine import dequantize, quant_range, quantize
from qlib.report import fit_text, in_units, rounded, weight_bytes

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
        fmt=number_format,
        square=True,
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
    ends = [0.0, numbers.min().item(), numbers.max().item(), *(e for choice in choices.values() for e in reach(*choice))]
    width = max(ends) - min(ends)
    figure, axis = new_figure(8, 0.9 + 0.75 * (len(choices) + 1))
    axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axis.plot(numbers, torch.zeros_like(numbers), "|" if len(numbers) > 64 else "o", color="black", markersize=6)
    for number, side in ((numbers.min().item(), "right"), (numbers.max().item(), "left")):
        axis.text(number, -0.17, significant(number), ha=side, va="bottom", fontsize=8)
    for row, (label, choice) in enumerate(choices.items(), start=1):
        draw_ruler(axis, row, numbers, choice, width)
        axis.text(min(ends), row - 0.2, label, va="bottom", fontsize=9, bbox=BLANK)
    axis.set(title=title, xlabel="real number", ylim=(len(choices) + 0.6, -0.6), yticks=[])
    axis.spines["left"].set_visible(False)
    parts = [f"{label}: {ruler_text(numbers, *choice)}" for label, choice in choices.items()]
    span = f"{len(numbers)} numbers from {significant(numbers.min().item())} to {significant(numbers.max().item())}"
    return Picture(figure, f"{span}. " + " ".join(parts))


def reach(scale, zero_point, bits):
    """The real numbers that the smallest and the largest integer stand for."""
    qmin, qmax = quant_range(bits)
    return scale * (qmin - zero_point), scale * (qmax - zero_point)


def draw_ruler(axis, row, numbers, choice, width):
    """One ruler of `rulers`, at height `row` of an axis that is `width` wide in the unit of the numbers."""
    scale, zero_point, bits = choice
    qmin, qmax = quant_range(bits)
    first, last = reach(*choice)
    low, high = numbers.min().item(), numbers.max().item()
    every = 1
    while every * scale < width / 160 and every < qmax - qmin:
        every *= 2
    zero = [zero_point] if is_mark(zero_point, bits) else []
    marks = torch.tensor([*range(qmin, qmax, every), *zero, qmax], dtype=torch.float64)
    reals = scale * (marks - zero_point)
    used = (reals >= low - scale / 2) & (reals <= high + scale / 2)
    axis.plot([first, last], [row, row], color="grey", linewidth=0.8)
    for chosen, colour in ((~used, "darkgrey"), (used, seaborn.color_palette("colorblind")[0])):
        axis.plot(reals[chosen], torch.full_like(reals[chosen], row), "|", color=colour, markersize=10)
    for start, end in ((low, min(first, high)), (max(last, low), high)):
        if end - start > scale / 2:
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
    (qmin, qmax), (first, last) = quant_range(bits), reach(scale, zero_point, bits)
    reals = scale * (torch.arange(qmin, qmax + 1).double() - zero_point)
    spare = ((reals < numbers.min() - scale / 2) | (reals > numbers.max() + scale / 2)).sum().item()
    clipped = ((numbers < first - scale / 2) | (numbers > last + scale / 2)).sum().item()
    zero = f"0.0 is the integer {zero_point:.0f}" if is_mark(zero_point, bits) else "0.0 has no integer of its own"
    return (
        f"{len(reals)} marks from {significant(first)} to {significant(last)}, {significant(scale)} apart; {zero}; "
        f"{clipped} of {len(numbers)} numbers clipped, {spare} marks unused."
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
            axis.text(left + size / 2, row + 0.4, significant(numbers[index]), ha="center", va="center")
        axis.set(xlim=(-0.1, width), ylim=(rows, -0.1), aspect="equal", title=f"{label}: {matrix.nbytes} bytes")
        axis.axis("off")
        parts.append(f"{label}: {len(numbers)} numbers of {size} byte{'s' * (size > 1)} each, {matrix.nbytes} in all")
    return Picture(figure, "Each box is a byte. " + "; ".join(parts) + ".")


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
    for place, (label, nbytes) in enumerate(sizes.items()):
        fits = nbytes <= memory
        axis.barh(place, nbytes / 1e9, color=blue if fits else orange, hatch="" if fits else "//", edgecolor="white")
        axis.annotate(in_units(nbytes), (nbytes / 1e9, place), (5, 0), textcoords="offset points", va="center")
    axis.axvline(memory / 1e9, color="black", linestyle="--")
    axis.annotate(f" {device}", (memory / 1e9, -0.55), va="bottom")
    axis.set(yticks=range(len(sizes)), yticklabels=list(sizes), xlabel="GB", ylim=(len(sizes) - 0.5, -1.1))
    axis.margins(x=0.12)
    fitting = [label for label, nbytes in sizes.items() if nbytes <= memory]
    parts = ", ".join(f"{label} {in_units(nbytes)}" for label, nbytes in sizes.items())
    verdict = f"What fits: {', '.join(fitting)}." if fitting else "None of them fits."
    return Picture(figure, f"Bytes of the weights against the {in_units(memory)} of {device}: {parts}. {verdict}")


def size_and_quality(points, title, xlabel, ylabel):
    """Points with their names beside them, such as a model's size and quality at several widths. Returns a Picture.

    Args:
        points: {label: (x, y)}.
        title, xlabel, ylabel: words over and beside the picture.
    """
    figure, axis = new_figure(8, 3.6)
    for (label, (x, y)), colour in zip(points.items(), seaborn.color_palette("colorblind") * 2, strict=False):
        axis.plot([x], [y], "o", color=colour, markersize=9)
        axis.annotate(label, (x, y), (0, -16), textcoords="offset points", ha="center")
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.margins(x=0.1, y=0.2)
    axis.grid(alpha=0.3)
    parts = [f"{label}: {rounded(float(y), 3)} at {rounded(float(x), 2)}" for label, (x, y) in points.items()]
    return Picture(figure, f"{title}: {ylabel} over {xlabel}. " + "; ".join(parts) + ".")


# Memory as the makers' data sheets give it, in units of 10^9 bytes.
DEVICES = {"a laptop with 8 GB": 8, "an NVIDIA T4": 16, "an NVIDIA RTX 4090": 24, "an NVIDIA A100": 80}


class FitCalculator:
    """The calculator that `fit_calculator` returns; `text` and `bars` are what it says and draws at the moment."""

    def __init__(self, billions, bits, group_size, device):
        import ipywidgets

        look = {"style": {"description_width": "11em"}, "layout": {"width": "32em"}}
        sizes = sorted({0.1, 0.5, 1, 3, 7, 8, 13, 34, 70, 180, 405, billions})
        self.billions = ipywidgets.SelectionSlider(options=sizes, value=billions, description="billions of weights", **look)
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
