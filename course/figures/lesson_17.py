"""What lesson 17 draws: outlier channels, smoothing to play with, code books, rotations, and methods compared."""

import functools
import math

import numpy as np
import seaborn
import torch

from course.figures.picture import heights_of
from course.figures.shared import (
    BLUE,
    GREY,
    ORANGE,
    Explorer,
    bars_html,
    choice,
    digit_pictures,
    slider,
    svg,
    without_exponent,
)
from qlib.affine import choose_qparams, dequantize, quant_range, quantize
from qlib.linear import integer_part
from qlib.methods.smoothquant import smoothing_scale
from qlib.plot import Picture, line_styles, new_figure, points_of, significant
from qlib.report import as_text, sqnr
from qlib.scheme import Scheme
from qlib.tensor import quantize_tensor

__all__ = [
    "added_perplexity",
    "code_books",
    "digit_pictures",
    "outlier_channels",
    "pair_books",
    "rotation_bars",
    "smoothing",
    "smoothing_explorer",
    "without_exponent",
]


def outlier_channels(layers, title):
    """How far each channel of some layers' inputs reaches, in units of the median channel; the largest is named.

    Args:
        layers: {label: (channels,) largest magnitudes, as `qlib.methods.channel_magnitudes` gives them}.
        title: words over the picture.

    Returns:
        a Picture, a panel for each layer, with one logarithmic axis.
    """
    figure, axes = new_figure(8.4, 3, columns=len(layers), sharey=True, squeeze=False)
    blue, orange = seaborn.color_palette("colorblind")[:2]
    parts = []
    for axis, (label, magnitudes) in zip(axes.flat, layers.items(), strict=True):
        ratios = magnitudes / magnitudes.median()
        top = int(ratios.argmax())
        axis.vlines(range(len(ratios)), 1, ratios, color=blue, linewidth=0.7)
        axis.plot([top], [ratios[top]], "o", color=orange)
        right = top > len(ratios) / 2
        axis.annotate(
            f"no. {top}: {as_text(ratios[top], 1)}",
            (top, ratios[top]),
            (-7 if right else 7, -4),
            textcoords="offset points",
            ha="right" if right else "left",
        )
        axis.set(title=label, xlabel="channel", yscale="log", ylim=(0.15, 300))
        number, _, times = axis.texts[0].get_text().partition(": ")
        parts.append(f"{label}: {len(ratios)} channels, the largest, {number}, is {times} times")
    axes[0, 0].yaxis.set_major_formatter("{x:g}")
    axes[0, 0].set_ylabel("largest magnitude,\nthe median channel's = 1")
    return Picture(figure, f"{title} {'; '.join(parts)} the median.")


def code_books(numbers, books, title):
    """How numbers are spread, with the normal density of their deviation, over the values of code books.

    Args:
        numbers: real numbers between -1 and 1, any shape: weights divided by the largest of their block.
        books: {label: the values, sorted}.
        title: words over the picture.

    Returns:
        a Picture. Of each code book it says how the numbers use it: the share of the rarest and of the commonest value,
        and the entropy, which is the book's bits where all values are used equally.
    """
    numbers = numbers.detach().double().flatten()
    heights = [2.2] + [1] * len(books)
    figure, axes = new_figure(8, 1.6 + 1.35 * len(books), rows=1 + len(books), sharex=True, height_ratios=heights)
    colours, deviation, parts = seaborn.color_palette("colorblind"), numbers.std().item(), []
    axes[0].hist(numbers.numpy(), bins=np.linspace(-1, 1, 82), density=True, color="#c3c6cb")
    xs = np.linspace(-1, 1, 400)
    axes[0].plot(xs, np.exp(-((xs / deviation) ** 2) / 2) / deviation / math.sqrt(2 * math.pi), color="black")
    axes[0].set(title=title, ylabel="density")
    for axis, colour, (label, book) in zip(axes[1:], colours[: len(books)], books.items(), strict=True):
        book = book.double()
        codes = torch.bucketize(numbers, (book[1:] + book[:-1]) / 2)
        shares = torch.bincount(codes, minlength=len(book)).double() / len(numbers)
        used = shares[shares > 0]
        entropy = -(used * used.log2()).sum().item()
        axis.bar(book, 100 * shares, width=0.03, color=colour)
        axis.plot(book, torch.zeros_like(book), "|", color="black", markersize=9, clip_on=False)
        axis.set_title(label, loc="left", fontsize=10)
        axis.set_ylabel("share, %")
        low, high = min(heights_of(axis)), max(heights_of(axis))
        error = (book[codes] - numbers).square().mean().item()
        parts.append(
            f"{label}: {len(book)} values, each used by {as_text(low, 1)}% to {as_text(high, 1)}% of the numbers, "
            f"entropy {as_text(entropy, 2)} bits, mean squared error {significant(error, 3)}"
        )
    axes[-1].set_xlabel("weight, the largest of its block = 1")
    return Picture(
        figure, f"{title}: {len(numbers)} numbers, standard deviation {as_text(deviation, 2)}. {'; '.join(parts)}."
    )


def rotation_bars(rows, bits, titles):
    """Rows of numbers as bars, each over the marks of its own symmetric grid, with the error of rounding to them.

    Args:
        rows: list of (columns,), such as a row and the same one rotated.
        bits: width of the integers.
        titles: a title for each.

    Returns:
        a Picture; its errors are sums of squares, which a rotation leaves as they are.
    """
    figure, axes = new_figure(8.4, 3, columns=len(rows), sharey=True)
    blue, orange = seaborn.color_palette("colorblind")[:2]
    qmin, qmax = quant_range(bits)
    parts = []
    for axis, row, title in zip(axes, rows, titles, strict=True):
        scale, zero = choose_qparams(row[None], Scheme(bits, axis=None))
        back = dequantize(quantize(row, scale, zero, bits), scale, zero)
        axis.bar(range(len(row)), row, color=blue, width=0.6)
        axis.plot(range(len(row)), back, "D", color=orange, markersize=5)
        for code in range(qmin, qmax + 1):
            axis.axhline(code * scale.item(), color="grey", linewidth=0.6, zorder=0)
        error, largest = (back - row).square().sum().item(), row.abs().max().item()
        axis.set(title=f"{title}\nsquared error {as_text(error, 2)}", xlabel="column")
        parts.append(
            f"{title}: largest {as_text(largest, 2)}, sum of squares {as_text(row.square().sum().item(), 2)}, step "
            f"{as_text(scale.item(), 2)}, squared error {as_text(error, 2)}"
        )
    axes[0].set_ylabel("value; ◆ after rounding")
    return Picture(figure, f"{len(rows[0])} numbers at {bits} bits. {'; '.join(parts)}.")


def pair_books(pairs, books, title, drawn=1500):
    """Pairs of numbers as points in the plane, and code books of points that they are rounded to, panels side by side.

    Args:
        pairs: (n, 2).
        books: {label: (size, 2)}; each pair becomes the nearest point.
        title: words over the picture.
        drawn: how many pairs are drawn; the errors are of all.

    Returns:
        a Picture.
    """
    figure, axes = new_figure(8.4, 8.4 / len(books) + 0.7, columns=len(books), sharex=True, sharey=True)
    blue, orange = seaborn.color_palette("colorblind")[:2]
    parts = []
    for axis, (label, book) in zip(axes, books.items(), strict=True):
        nearest = torch.cdist(pairs, book).argmin(-1)
        error = (book[nearest] - pairs).square().mean().item()
        used = len(nearest.unique())
        axis.plot(*pairs[:drawn].T, ".", color=blue, markersize=2, alpha=0.35)
        axis.plot(*book.T, "D", color=orange, markersize=5, markeredgecolor="black", markeredgewidth=0.5)
        axis.set(title=f"{label}\nmean squared error {as_text(error, 3)}", xlabel="first weight", aspect="equal")
        parts.append(f"{label}: {len(book)} points, {used} of them used, mean squared error {as_text(error, 3)}")
    axes[0].set_ylabel("second weight")
    return Picture(figure, f"{title}: {len(pairs)} pairs. {'; '.join(parts)}.")


def added_perplexity(lines, title):
    """The perplexity that quantizing adds to a float model's, over true bits a weight, on a logarithmic scale.

    Args:
        lines: {label: [(bits a weight, perplexity added), …]}.
        title: words over the picture.

    Returns:
        a Picture.
    """
    figure, axis = new_figure(8, 4.6)
    for (label, points), style in zip(lines.items(), line_styles(len(lines)), strict=True):
        axis.plot(*zip(*sorted(points), strict=True), label=label, markersize=7, **style)
    axis.set(title=title, xlabel="true bits a weight", ylabel="perplexity added", yscale="log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    parts = [
        f"{line.get_label()}: "
        + ", ".join(f"{significant(y, 2)} at {as_text(float(x), 2)}" for x, y in points_of(line))
        for line in axis.lines
    ]
    return Picture(figure, f"{title}: perplexity added over true bits a weight. {'; '.join(parts)}.")


# ---------------------------------------------------------------- smoothing, to play with

ALPHAS = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]


class Smoothing:
    """A linear layer smoothed with one alpha, then computed in integers: what is drawn of it, and what is said.

    Args:
        x: (tokens, columns), the layer's input on test data.
        weight: (rows, columns).
        calibration: (tokens, columns), the input by which the scale is chosen.
        alpha: from 0 to 1, or None for no smoothing.
        per_token: whether each token has a scale of its own.
        label: what the layer is.
    """

    def __init__(self, x, weight, calibration, alpha, per_token, label):
        scale = torch.ones(x.shape[1]) if alpha is None else smoothing_scale([weight], calibration, alpha)
        smooth_x, smooth_weight = x / scale, weight * scale
        self.x, self.weight = smooth_x.abs().amax(0), smooth_weight.abs().amax(0)
        out = integer_part(smooth_x, quantize_tensor(smooth_weight, Scheme()), per_token)
        self.sqnr = sqnr(x @ weight.T, out)
        how = "a scale for each token" if per_token else "one scale for all tokens"
        ratios = [significant((reach.max() / reach.median()).item(), 3) for reach in (self.x, self.weight)]
        smoothed = "not smoothed" if alpha is None else f"alpha {alpha:g}"
        self.text = (
            f"{label}, {smoothed}: the largest channel of the activations is {ratios[0]} times the median, that of the "
            f"weights {ratios[1]} times. W8A8 with {how}: SQNR {as_text(self.sqnr, 1)} dB."
        )


def smoothing(x, weight, calibration, alpha, per_token, label):
    """How far activations and weights reach in each channel before and after smoothing, and the error at every alpha.

    Args: as for Smoothing.

    Returns:
        a Picture.
    """
    plain, smooth = (Smoothing(x, weight, calibration, a, per_token, label) for a in (None, alpha))
    figure, axes = new_figure(8.4, 3.2, columns=3, width_ratios=[1, 1, 1.1])
    blue, orange = seaborn.color_palette("colorblind")[:2]
    for axis, title, found in ((axes[0], "as it came", plain), (axes[1], f"alpha {alpha:g}", smooth)):
        for reach, colour, name, size in ((found.x, blue, "activations", 9), (found.weight, orange, "weights", 5)):
            ratios = reach / reach.median()
            axis.plot(ratios, ".", color=colour, markersize=2.5, label=name)
            axis.plot(int(ratios.argmax()), ratios.max(), "o", color=colour, markersize=size)  # they may coincide
        axis.set(title=title, xlabel="channel", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
    top = max(axis.get_ylim()[1] for axis in axes[:2])
    for axis in axes[:2]:
        axis.set_ylim(0.03, top)
    axes[0].set_ylabel("reach, the median channel's = 1")
    axes[0].legend(fontsize=9, loc="lower left", markerscale=3)
    curve = [Smoothing(x, weight, calibration, a, per_token, label).sqnr for a in ALPHAS]
    axes[2].plot(ALPHAS, curve, "o-", color="black", markersize=4)
    axes[2].plot([alpha], [smooth.sqnr], "o", color="black", markersize=9)
    axes[2].axhline(plain.sqnr, color="black", linestyle=":")
    free = max((2, 5, 8), key=lambda place: abs(curve[place] - plain.sqnr))  # where the words are far from the curve
    at = (ALPHAS[free], plain.sqnr)
    axes[2].annotate("as it came", at, (0, 3), textcoords="offset points", ha="center", fontsize=9)
    axes[2].set(title="the layer's output", xlabel="alpha", ylabel="SQNR in dB")
    axes[2].grid(alpha=0.3)
    best, most = max(points_of(axes[2].lines[0]), key=lambda point: point[::-1])
    before = f"Not smoothed: {as_text(plain.sqnr, 1)} dB."
    return Picture(figure, f"{smooth.text} {before} Best of the alphas drawn: {best:g}, {as_text(most, 1)} dB.")


def reach_svg(smooth, width=580, height=150):
    """The reach of each channel as SVG, activations upward and weights downward from a line, on a logarithmic scale."""
    middle, parts = height / 2, []
    for reach, colour, sign in ((smooth.x, BLUE, -1), (smooth.weight, ORANGE, 1)):
        ratios = (reach / reach.median()).clamp(min=0.1, max=99).tolist()
        step = width / len(ratios)
        # One path for all bars: a layer has up to thousands of them, and the slider should not wait.
        path = "".join(
            f"M{(channel + 0.5) * step:.1f} {middle:.0f}V{middle + sign * (1 + math.log10(ratio)) * middle / 3:.1f}"
            for channel, ratio in enumerate(ratios)
        )
        parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="{max(0.8 * step, 0.5):.1f}"/>')
    return svg(parts, width, height)


def smoothing_explorer(layers, alpha=0.5):
    """Controls for SmoothQuant's alpha: bars for the reach of each channel, and the error that follows.

    Args:
        layers: {label: (x, weight, calibration)} as for Smoothing; the first is shown first.
        alpha: one of ALPHAS, to begin with.

    Returns:
        an Explorer.
    """
    scales = {"each token": True, "all tokens": False}
    controls = {
        "layer": choice("inputs of", list(layers), next(iter(layers))),
        "per_token": choice("a scale for", scales, True),
        "alpha": slider("alpha", ALPHAS, alpha),
    }

    @functools.cache
    def at(layer, per_token, alpha):
        return Smoothing(*layers[layer], alpha, per_token, layer)

    def live(layer, per_token, alpha):
        plain, smooth = at(layer, per_token, None), at(layer, per_token, alpha)
        gain = smooth.sqnr - plain.sqnr
        text = (
            f"{smooth.text} Not smoothed it is {as_text(plain.sqnr, 1)} dB: "
            f"{as_text(abs(gain), 1)} dB {'gained' if gain >= 0 else 'lost'}."
        )
        key = f'<span style="color: {BLUE}">■</span> activations <span style="color: {ORANGE}">■</span> weights'
        bars = [
            (label, [(max(found.sqnr, 0), colour)], f"{as_text(found.sqnr, 1)} dB")
            for label, found, colour in (("not smoothed", plain, GREY), (f"alpha {alpha:g}", smooth, BLUE))
        ]
        return text, f"<div>reach of each channel: {key}</div>{reach_svg(smooth)}{bars_html(bars)}"

    def still(layer, per_token, alpha):
        return smoothing(*layers[layer], alpha, per_token, layer)

    return Explorer(controls, live, still)
