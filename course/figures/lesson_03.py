"""What lesson 3 draws: the linear map as a staircase, and as lines from numbers to marks, to play with."""

from typing import ClassVar

import matplotlib
import seaborn
import torch
from matplotlib.patches import Rectangle

from course.figures.shared import BLUE, GREY, LOOK, ORANGE, Explorer, choice, reach, slider, svg, ticks_svg
from qlib.affine import dequantize, quant_range, quantize
from qlib.plot import ERRORS, Picture, new_figure, significant
from qlib.report import as_text, quantization_error

__all__ = ["map_explorer", "staircase"]


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


# ---------------------------------------------------------------- scale, zero point, rounding and ends, to play with


class LinearMap:
    """Numbers on their way to 8-bit integers and back: what is drawn of it, and what is said.

    How they are rounded and what becomes of those beyond the last integer may be chosen, to see what the right way is
    good for; the first of ROUNDINGS and of BEYOND are what qlib.quantize does.

    Args:
        tensor: (rows, columns), real numbers.
        scale, zero_point: numbers, as for qlib.quantize.
        rounding: a key of ROUNDINGS.
        beyond: a key of BEYOND.
    """

    ROUNDINGS: ClassVar = {"to the nearest": torch.round, "down": torch.floor, "towards zero": torch.trunc}
    BEYOND: ClassVar = {
        "clamped to the end": lambda whole, qmin, qmax: whole.clamp(qmin, qmax),
        "wrapped around": lambda whole, qmin, qmax: (whole - qmin).remainder(qmax - qmin + 1) + qmin,
    }

    def __init__(self, tensor, scale, zero_point, rounding="to the nearest", beyond="clamped to the end"):
        qmin, qmax = quant_range(8)
        self.tensor, self.scale, self.zero_point = tensor, scale, zero_point
        whole = self.ROUNDINGS[rounding](tensor / scale + zero_point)
        self.beyond = (whole < qmin) | (whole > qmax)
        self.values = self.BEYOND[beyond](whole, qmin, qmax).to(torch.int8)
        self.back = dequantize(self.values, scale, zero_point)
        self.error = self.back - tensor
        # What stays the same as scale and zero point change, so that the marks move and the numbers do not.
        low, high = min(tensor.min().item(), 0.0), max(tensor.max().item(), 0.0)
        margin = (high - low) / 4 or 1.0
        self.view = (low - margin, high + margin)
        self.reach = reach(scale, zero_point, 8)
        self.marks = [scale * (mark - zero_point) for mark in [*range(qmin, qmax, 16), qmax]]
        worst = divmod(self.error.abs().argmax().item(), tensor.shape[1])
        count = self.beyond.sum().item()
        self.text = (
            f"Scale {significant(scale)}, zero point {zero_point}, rounded {rounding}: the integers {qmin} to {qmax} "
            f"stand for {significant(self.reach[0])} to {significant(self.reach[1])}. Outside of that: "
            f"{count or 'none'} of {tensor.numel()} numbers{f', {beyond}' if count else ''}. "
            f"Mean squared error {as_text(quantization_error(tensor, self.back), 3)}. Largest error: "
            f"{significant(tensor[worst].item())} became {self.values[worst]} and came back as "
            f"{significant(self.back[worst].item())}."
        )

    @property
    def labels(self):
        """[(real, integer)] to write under the marks: the zero point, and the ends where they are in sight."""
        width, labels = self.view[1] - self.view[0], [(0.0, self.zero_point)]
        for end in zip(self.reach, quant_range(8), strict=True):
            if self.view[0] <= end[0] <= self.view[1] and abs(end[0]) > 0.06 * width:
                labels.append(end)
        return labels

    @property
    def cells(self):
        """[(number, integer, what comes back, error)], row by row."""
        steps = (self.tensor, self.values, self.back, self.error)
        return list(zip(*(step.flatten().tolist() for step in steps), strict=True))

    def strength(self, error):
        """How opaque the colour of an error is: the words on it can be read on the largest."""
        return 0.55 * min(abs(error) / (1.5 * self.scale), 1)


def map_picture(tensor, scale, zero_point, **how):
    """The numbers of a small matrix, the marks under them, a line from each number to the mark that it comes back as.

    Below, the same in figures, in cells as the matrix has them: red where what comes back is too high, blue where it
    is too low. Numbers beyond the last integer are orange. Every 16th mark is drawn.

    Args:
        tensor, scale, zero_point, how: as for LinearMap.

    Returns:
        a Picture.
    """
    mapped = LinearMap(tensor, scale, zero_point, **how)
    rows, columns = tensor.shape
    figure, (top, bottom) = new_figure(8, 2.1 + 0.5 * rows, rows=2, height_ratios=[1.7, 0.5 * rows])
    blue, orange = seaborn.color_palette("colorblind")[:2]
    first, last = mapped.reach
    top.add_patch(Rectangle((first, 0), last - first, 0.2, facecolor=(*blue, 0.35)))
    top.vlines(mapped.marks, 0, 0.2, color=blue, linewidth=1)
    for (number, _, back, _), beyond in zip(mapped.cells, mapped.beyond.flatten().tolist(), strict=True):
        colour = orange if beyond else "black"
        top.plot([number, back], [1, 0.2], color=colour, linewidth=1)
        top.plot([number], [1], "o", color=colour, markersize=5)
    for real, integer in mapped.labels:
        top.text(real, -0.06, integer, ha="center", va="top")
    top.set(xlim=mapped.view, ylim=(-0.25, 1.1), yticks=[])
    top.xaxis.tick_top()
    top.spines[["left", "bottom"]].set_visible(False)
    for place, (number, value, back, error) in enumerate(mapped.cells):
        row, column = divmod(place, columns)
        face = (*matplotlib.colormaps[ERRORS](0.95 if error > 0 else 0.05)[:3], mapped.strength(error))
        bottom.add_patch(Rectangle((column, row), 1, 1, facecolor=face, edgecolor="grey"))
        words = f"{significant(number)} → {value} → {significant(back)}\nerror {significant(error, 3)}"
        bottom.text(column + 0.5, row + 0.5, words, ha="center", va="center", fontsize=9)
    bottom.set(xlim=(0, columns), ylim=(rows, 0))
    bottom.axis("off")
    return Picture(figure, mapped.text)


def map_svg(mapped, width=580, height=120):
    """Numbers above, the marks of a scale and zero point below, and from each number a line to where it comes back."""
    left, right = mapped.view
    first, last = mapped.reach

    def across(real):
        return min(max((real - left) / (right - left), 0), 1) * width

    parts = ticks_svg(mapped.view, across, 13)
    begin, end = across(first), across(last)
    parts.append(f'<rect x="{begin:.1f}" y="80" width="{end - begin:.1f}" height="16" fill="{BLUE}" opacity="0.35"/>')
    marks = "".join(f"M{across(real):.1f} 80v16" for real in mapped.marks)
    parts.append(f'<path d="{marks}" stroke="{BLUE}"/>')
    for (number, _, back, _), beyond in zip(mapped.cells, mapped.beyond.flatten().tolist(), strict=True):
        colour = ORANGE if beyond else "currentColor"
        parts.append(f'<circle cx="{across(number):.1f}" cy="26" r="4" fill="{colour}"/>')
        parts.append(f'<path d="M{across(number):.1f} 26L{across(back):.1f} 80" stroke="{colour}"/>')
    for real, integer in mapped.labels:
        parts.append(f'<text x="{across(real):.1f}" y="112" text-anchor="middle">{integer}</text>')
    return svg(parts, width, height)


def cells_html(mapped):
    """A small matrix in figures: each number, its integer, what comes back, the error; red too high, blue too low."""
    drawn = ""
    for number, value, back, error in mapped.cells:
        colour = f"rgba({'178, 24, 43' if error > 0 else '33, 102, 172'}, {mapped.strength(error):.2f})"
        drawn += (
            f'<div style="background: {colour}; border: 1px solid {GREY}; padding: 2px 6px; line-height: 1.35">'
            f"{significant(number)} → <b>{value}</b> → {significant(back)}<br/>error {significant(error, 3)}</div>"
        )
    columns = f"repeat({mapped.tensor.shape[1]}, 1fr)"
    return f'<div style="display: grid; grid-template-columns: {columns}; max-width: 52em">{drawn}</div>'


def map_explorer(tensor, scale, zero_point, scales=(1, 8, 0.1)):
    """Controls for the linear map of lesson 3, and for two mistakes: another rounding, and no clamp.

    Args:
        tensor: a small matrix.
        scale, zero_point: to begin with.
        scales: the smallest and the largest scale of the slider, and its step.

    Returns:
        an Explorer.
    """
    import ipywidgets

    lowest, highest, step = scales
    controls = {
        "scale": ipywidgets.FloatSlider(
            scale, min=lowest, max=highest, step=step, readout_format=".1f", description="scale", **LOOK
        ),
        "zero_point": slider("zero point", range(-128, 128), zero_point),
        "rounding": choice("rounding", list(LinearMap.ROUNDINGS), "to the nearest"),
        "beyond": choice("beyond the ends", list(LinearMap.BEYOND), "clamped to the end"),
    }

    def live(**values):
        mapped = LinearMap(tensor, **values)
        return mapped.text, map_svg(mapped) + cells_html(mapped)

    return Explorer(controls, live, lambda **values: map_picture(tensor, **values))
