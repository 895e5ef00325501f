"""What lesson 9 draws: a sum term by term, the ranges that observers find, and clipping, to play with."""

import functools
import itertools

import numpy as np
import seaborn

from course.figures.picture import lengths_of, row_labels
from course.figures.shared import (
    BLUE,
    GREY,
    ORANGE,
    Explorer,
    bar_tops,
    bars_html,
    choice,
    digit_pictures,
    slider,
    svg,
    ticks_svg,
)
from qlib.affine import asymmetric_qparams, dequantize, quantize
from qlib.observers import percentile_range
from qlib.plot import Picture, new_figure, significant

__all__ = ["clipping", "clipping_explorer", "digit_pictures", "observed_ranges", "running_total"]


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
    *drawn, (_, total) = zip(row_labels(axis), lengths_of(axis), strict=True)
    parts = ", ".join(f"{label}: {term:+,}" for label, term in drawn)
    return Picture(figure, f"{title}. {parts}; in all {total:,}.")


def observed_ranges(inputs, ranges):
    """What flows into each layer, as histograms, and the ends of the range that each observer would cover, as lines.

    Args:
        inputs: {layer: tensor of all that flowed in}.
        ranges: {observer: {layer: (low, high)}}.

    Returns:
        a Picture; a low end at 0 is not drawn.
    """
    figure, axes = new_figure(8, 1.7 * len(inputs) + 0.6, rows=len(inputs), squeeze=False)
    styles = list(zip(seaborn.color_palette("colorblind", len(ranges)), itertools.cycle(["-", "--", "-.", ":"])))
    parts = []
    for axis, (layer, values) in zip(axes.flat, inputs.items(), strict=True):
        values = values.detach().double().flatten().numpy()
        axis.hist(values, bins=100, color="#c3c6cb")
        said = []
        for (observer, found), (colour, line) in zip(ranges.items(), styles, strict=True):
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


# ---------------------------------------------------------------- clipping, to play with


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
    error, percent = min(zip(right.lines[2].get_ydata(), PERCENTS, strict=True))
    least = f"Of the percentiles drawn, {percent:g} has the least error, {significant(error, 3)}."
    return Picture(figure, f"{clip.text} {least}")


def clip_svg(clip, size=(580, 150)):
    """The histogram of `clipping` as SVG."""
    first, last = view = (min(clip.edges[0], 0), clip.edges[-1])
    ground = size[1] - 20

    def across(real):
        return (real - first) / ((last - first) or 1) * size[0]

    parts = []
    for top, start, end in zip(bar_tops(clip.counts, ground), clip.edges, clip.edges[1:]):
        if top == ground:
            continue
        colour = GREY if start >= clip.low and end <= clip.high else ORANGE
        width, height = across(end) - across(start), ground - top
        parts.append(
            f'<rect x="{across(start):.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'
        )
    parts.append(f'<path d="M{across(clip.high):.1f} 0V{ground}" stroke="currentColor" stroke-dasharray="4"/>')
    return svg(parts + ticks_svg(view, across, ground + 16), *size)


def clipping_explorer(inputs, percent=99, bits=4):
    """Controls for the percentile at which a layer's inputs are clipped, and the two errors that pull against it.

    Args:
        inputs: {layer: tensor of all that flowed in}; the last one is shown first.
        percent: one of PERCENTS, to begin with.
        bits: 2 to 8, to begin with.

    Returns:
        an Explorer.
    """
    controls = {
        "layer": choice("inputs of", list(inputs), list(inputs)[-1]),
        "percent": slider("percentile", PERCENTS, percent),
        "bits": slider("bits", range(2, 9), bits),
    }

    # Percentiles of what is sorted already are found in half the time.
    inputs = {layer: values.detach().double().flatten().sort().values for layer, values in inputs.items()}

    @functools.cache
    def clip_at(layer, percent, bits):
        return Clip(inputs[layer], percent, bits, f"inputs of {layer}")

    def live(layer, percent, bits):
        clip, whole = clip_at(layer, percent, bits), clip_at(layer, 100, bits)
        both, unclipped = clip.rounding + clip.clipping, whole.rounding + whole.clipping
        parts = [(clip.rounding, BLUE), (clip.clipping, ORANGE)]
        bars = [
            ("this range", parts, significant(both, 3)),
            ("whole range", [(unclipped, GREY)], significant(unclipped, 3)),
        ]
        key = f'<span style="color: {BLUE}">■</span> rounding <span style="color: {ORANGE}">■</span> clipping'
        text = f"{clip.text} With the whole range it would be {significant(unclipped, 3)}."
        return text, f"{clip_svg(clip)}<div>mean squared error: {key}</div>{bars_html(bars)}"

    def still(layer, percent, bits):
        return clipping(inputs[layer], percent, bits, f"inputs of {layer}")

    return Explorer(controls, live, still)
