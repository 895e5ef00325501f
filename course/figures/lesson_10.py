"""What lesson 10 draws: a layer of int8 weights number by number, and what quality costs."""

import seaborn

from course.figures.picture import rows_of_words
from course.figures.shared import PALE, draw_cell, price_curves
from qlib.plot import Picture, new_figure, significant
from qlib.report import as_text

__all__ = ["price_curves", "w8a16_steps"]


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
    colours = seaborn.color_palette("colorblind", rows)
    for column in range(columns):
        draw_cell(axis, column, 0, significant(x[column].item()), PALE)
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
            colour = PALE if name == "bias" else colours[row]
            draw_cell(axis, left, row + 1.6, significant(numbers[row].item()), colour)
    axis.set(xlim=(-1.3, columns + 6.4), ylim=(rows + 1.7, -0.1), aspect="equal")
    axis.axis("off")
    drawn = [row[-7::2] for row in rows_of_words(axis) if "=" in row]  # the numbers between the signs
    told = "; ".join(
        f"output {row}: {total} times {scale} plus {offset} is {output}"
        for row, (total, scale, offset, output) in enumerate(drawn)
    )
    layer = f"A layer of {columns} inputs and {rows} outputs"
    return Picture(figure, f"{layer} on the input {as_text(x)}. Of the sums, {told}.")
