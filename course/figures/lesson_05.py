"""What lesson 5 draws: rulers, and the grid of each mode over a histogram, to play with."""

import numpy as np
import seaborn
import torch

from course.figures.shared import BLUE, GREY, Explorer, bar_tops, choice, rulers, slider, svg, ticks_svg
from qlib.affine import asymmetric_qparams, dequantize, full_range_qparams, quant_range, quantize, symmetric_qparams
from qlib.plot import Picture, new_figure, significant
from qlib.report import as_text, quantization_error, sqnr

__all__ = ["grid_explorer", "grid_over_histogram", "rulers"]


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


def grid_svg(grid, width=580, height=190):
    """The picture of `grid_over_histogram` as SVG."""
    left, right = grid.view
    ground, below = height - 50, height - 20

    def across(real):
        return (real - left) / (right - left) * width

    tops = zip(bar_tops(grid.counts, ground), grid.edges[1:], strict=True)
    outline = f"M{across(grid.edges[0]):.1f} {ground}" + "".join(f"V{top:.1f}H{across(edge):.1f}" for top, edge in tops)
    parts = [f'<path d="{outline}V{ground}Z" fill="{GREY}"/>']
    for used, colour, end in ((False, GREY, below - 12), (True, BLUE, below)):
        start = 0 if len(grid.codes) <= 32 else ground + 4
        reals = [real for real, is_used in zip(grid.reals, grid.used) if is_used is used and left <= real <= right]
        path = "".join(f"M{across(real):.1f} {start}V{end}" for real in reals)
        parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="1.2"/>')
    return svg(parts + ticks_svg(grid.view, across, height - 4), width, height)


def grid_explorer(tensors, bits=4, mode="symmetric"):
    """Controls for bits and mode that move a grid over a histogram.

    Args:
        tensors: {label: tensor}, to choose from, the first one to begin with; each is mapped with one scale.
        bits: 2 to 8, to begin with.
        mode: "symmetric", "asymmetric" or "full range", to begin with.

    Returns:
        an Explorer.
    """
    tensors = {label: tensor.detach() for label, tensor in tensors.items()}
    controls = {
        "numbers": choice("numbers", list(tensors), next(iter(tensors))),
        "mode": choice("mode", ["symmetric", "asymmetric", "full range"], mode),
        "bits": slider("bits", range(2, 9), bits),
    }

    def mapped(numbers, mode, bits):
        """What Grid and grid_over_histogram are called with."""
        tensor = tensors[numbers]
        return tensor, *mode_qparams(tensor, bits, mode), bits, f"{numbers}, {mode}"

    def live(**values):
        grid = Grid(*mapped(**values))
        return grid.text, grid_svg(grid)

    return Explorer(controls, live, lambda **values: grid_over_histogram(*mapped(**values)))
