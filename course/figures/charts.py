"""Histograms and curves: how values are spread, and what quality costs in bits."""

from collections import Counter

import numpy as np
import seaborn
import torch

from course.figures.picture import Picture, new_figure, points_text, significant, told_apart
from qlib.affine import asymmetric_qparams, dequantize, full_range_qparams, quant_range, quantize, symmetric_qparams
from qlib.observers import percentile_range
from qlib.report import as_text, frontier, in_units, quantization_error, sqnr


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
    for label, points, colour, marker in told_apart(lines):
        xs, ys = zip(*sorted(points), strict=True)
        axis.plot(xs, ys, marker=marker, color=colour, label=label)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale="log" if logy else "linear")
    if all(isinstance(x, int) for points in lines.values() for x, _ in points):
        axis.xaxis.get_major_locator().set_params(integer=True)  # there is no exponent 112.5
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend()
    parts = [f"{label}: {points_text(sorted(points))}" for label, points in lines.items()]
    return Picture(figure, f"{title}: {ylabel} over {xlabel}. " + "; ".join(parts) + ".")


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
    parts = [f"{label}: {as_text(float(y), 3)} at {as_text(float(x), 2)}" for label, (x, y) in points.items()]
    return Picture(figure, f"{title}: {ylabel} over {xlabel}. " + "; ".join(parts) + ".")


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
    figure, axes = new_figure(max(8, 4.2 * len(panels)), 5, columns=len(panels), sharey=True, squeeze=False)
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
        f"{len(points)} ways from {as_text(min(costs), 2)} to {as_text(max(costs), 2)}, "
        f"{as_text(min(qualities), 2)} to {as_text(max(qualities), 2)}."
    )
    if len(best) > 16:
        panels = Counter(panel for panel, _, _ in points), Counter(panel for panel, _, _ in best)
        parts = ", ".join(f"{panels[1][panel]} of {count} {panel}" for panel, count in panels[0].items())
        return f"{ends} Not beaten by any that costs no more: {parts}."
    steps = (
        f"{label} at {as_text(cost, 2)}: {as_text(points[panel, label, cost][1], 2)}" for panel, label, cost in best
    )
    return f"{ends} Not beaten by any that costs no more: {'; '.join(steps)}."


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
            f"SQNR {as_text(sqnr(tensor, back), 1)} dB."
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
    figure, (top, bottom) = new_figure(8, 3.6, rows=2, sharex=True, height_ratios=[5, 1])
    blue, reals, used = seaborn.color_palette("colorblind")[0], np.array(grid.reals), np.array(grid.used)
    top.stairs(grid.counts, grid.edges, fill=True, color="#8a8f98")
    for chosen, colour, length in ((~used, "darkgrey", 0.5), (used, blue, 1)):
        bottom.vlines(reals[chosen], 0, length, color=colour, linewidth=0.9 if bits > 5 else 2)
        if bits <= 5:
            top.vlines(reals[chosen], 0, 1, color=colour, linewidth=0.8, transform=top.get_xaxis_transform())
    for code, real in zip(grid.codes, grid.reals):
        if bits <= 4 and grid.view[0] <= real <= grid.view[1]:
            bottom.text(real, -0.15, code, ha="center", va="top", fontsize=9)
    top.set(title=label, ylabel="count", yscale="log", xlim=grid.view)
    bottom.set(xlabel="real number", yticks=[], ylim=(-0.9 if bits <= 4 else 0, 1))
    bottom.spines["left"].set_visible(False)
    return Picture(figure, grid.text)


def mode_qparams(tensor, bits, mode):
    """Scale and zero point for a whole tensor in one of three modes: "symmetric", "asymmetric" or "full range"."""
    low, high = tensor.min(), tensor.max()
    if mode == "symmetric":
        return symmetric_qparams(torch.maximum(-low, high), bits)
    return {"asymmetric": asymmetric_qparams, "full range": full_range_qparams}[mode](low, high, bits)


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
