"""What lesson 7 draws: scales that broadcast, and where they multiply in a product of matrices."""

import numpy as np
import seaborn
import torch
from matplotlib.patches import Rectangle

from course.figures.shared import PALE, channel_maxima, draw_cell, integers
from qlib.plot import Picture, new_figure, significant
from qlib.report import as_text

__all__ = ["broadcast", "channel_maxima", "integers", "scales_in_a_matmul"]


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
        for column in range(inputs):
            draw_cell(axis, column, 0, f"$x_{column}$", colours[column] if scaled else PALE)
        for row in range(outputs):
            for column in range(inputs):
                draw_cell(axis, column, row + 1.5, f"$q_{{{row}{column}}}$", colours[column if scaled else row])
            axis.annotate("", (inputs + 0.95, row + 2), (inputs + 0.1, row + 2), arrowprops={"arrowstyle": "->"})
            axis.text(inputs + 0.5, row + 1.9, "sum", ha="center", va="bottom", fontsize=9)
            draw_cell(axis, inputs + 1, row + 1.5, f"$y_{row}$", PALE if scaled else colours[row])
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
