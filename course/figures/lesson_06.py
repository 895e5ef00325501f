"""What lesson 6 draws: who shares a scale, the integers of an upset matrix, and where its outliers are."""

from collections import Counter

import seaborn

from course.figures.picture import words_of
from course.figures.shared import block_numbers, channel_maxima, draw_numbers, integers
from qlib.plot import Picture, new_figure

__all__ = ["channel_maxima", "integers", "sharing"]


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
        colours = seaborn.color_palette("colorblind", block.max().item() + 1)
        draw_numbers(axis, block, cmap=colours, alpha=0.55, annot_kws={"color": "black"})
        sizes = Counter(words_of(axis))  # how often each scale's number is written
        scales = f"{len(sizes)} scale{'s' * (len(sizes) > 1)}"
        axis.set_title(f"{scheme.granularity}: {scales}")
        weights = " or ".join(map(str, sorted(set(sizes.values()), reverse=True)))
        parts.append(f"{scheme.granularity}, {scales} for {weights} weights{' each' * (len(sizes) > 1)}")
    return Picture(figure, f"Which weights of a {shape[0]} x {shape[1]} matrix share a scale: {'; '.join(parts)}.")
