"""What lesson 12 draws: perplexity over bits, what harms it, texts side by side, and boxes around shapes."""

import numpy as np
import seaborn
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from course.figures.picture import heights_of
from course.figures.shared import Completions, without_exponent
from qlib.plot import Picture, line_styles, new_figure, points_of, significant

__all__ = ["Completions", "boxes_on_pictures", "damage_bars", "perplexity_curves", "short_name", "without_exponent"]


def perplexity_curves(lines, reference, title):
    """Perplexity over true bits a weight, on a logarithmic scale, with the float model's as a dashed line.

    Args:
        lines: {label: [(bits a weight, perplexity), …]}.
        reference: the perplexity of the model as it was.
        title: words over the picture.

    Returns:
        a Picture.
    """
    figure, axis = new_figure(8, 4.2)
    for (label, points), style in zip(lines.items(), line_styles(len(lines)), strict=True):
        dashes = "--" if "asymmetric" in label else "-"
        axis.plot(*zip(*sorted(points), strict=True), dashes, label=label, markersize=6, **style)
    axis.axhline(reference, color="black", linestyle=":", linewidth=1.2)
    axis.set(title=title, xlabel="bits a weight, scales and zero points counted", ylabel="perplexity", yscale="log")
    middle = sum(axis.get_xlim()) / 2
    axis.annotate("float32", (middle, reference), (0, 3), textcoords="offset points", fontsize=9)
    axis.set_ylim(bottom=reference * 0.75)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    *drawn, ground = axis.lines
    parts = [
        f"{line.get_label()}: " + ", ".join(f"{without_exponent(y)} at {significant(x, 3)}" for x, y in points_of(line))
        for line in drawn
    ]
    before = f"float32 has {without_exponent(ground.get_ydata()[0])}"
    return Picture(figure, f"{title}: perplexity over bits a weight; {before}. {'; '.join(parts)}.")


def damage_bars(damage, title, ylabel, named=4):
    """A bar for each layer of a model that was tried alone, in the order of the blocks, coloured by kind of layer.

    Args:
        damage: {name of a layer: how much worse the model is}; the first number in a name is its block, its last part
            the kind.
        title, ylabel: words over and beside the picture.
        named: how many of the tallest bars are named.

    Returns:
        a Picture.
    """
    kinds = list(dict.fromkeys(map(kind_of, damage)))
    colours = dict(zip(kinds, seaborn.color_palette("colorblind", len(kinds)), strict=True))
    worst = sorted(damage, key=damage.get, reverse=True)[:named]
    figure, axis = new_figure(8.4, 3.8)
    x, ticks, last = 0.0, {}, None
    for name, value in damage.items():
        block = block_of(name)
        x += 1 if block == last or last is None else 2.2
        ticks.setdefault(block, []).append(x)
        axis.bar(x, value, color=colours[kind_of(name)], width=0.9)
        if name in worst:
            style = {"ha": "center", "rotation": 90, "fontsize": 9}  # upright, to stay off the bar beside it
            axis.annotate(short_name(name), (x, value), (0, 3), textcoords="offset points", **style)
        last = block
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(title=title, ylabel=ylabel, xticks=[np.mean(places) for places in ticks.values()])
    axis.set_xticklabels([f"block {block}" if block.isdigit() else block for block in ticks])
    axis.tick_params(axis="x", length=0)
    axis.margins(x=0.01, y=0.04)
    bottom, top = axis.get_ylim()
    axis.set_ylim(top=top + 0.15 * (top - bottom))  # room for the upright names
    handles = [Rectangle((0, 0), 1, 1, facecolor=colours[kind]) for kind in kinds]
    axis.legend(handles, [kind.removesuffix("_proj") for kind in kinds], fontsize=9, ncols=2, frameon=False)
    parts = ", ".join(f"{name} {significant(damage[name], 2)}" for name in worst)
    heights = heights_of(axis)
    ends = f"from {significant(min(heights), 2)} to {significant(max(heights), 2)}"
    return Picture(figure, f"{title}: {len(heights)} layers, {ends}. Most: {parts}.")


def block_of(name):
    """The first number among the parts of a dotted name, as text; "" where there is none."""
    return next((part for part in name.split(".") if part.isdigit()), "")


def kind_of(name):
    """The last part of a dotted name: what its parent calls a layer."""
    return name.rpartition(".")[2]


def short_name(name):
    """A layer's block and kind: "0 down" for "model.layers.0.mlp.down_proj"."""
    return f"{block_of(name)} {kind_of(name).removesuffix('_proj')}".strip()


def boxes_on_pictures(pictures, answers, names, truth=None):
    """Pictures with the boxes that detectors draw on them: a row for each detector, a column for each picture.

    A box has the colour of its label. Where the truth is known, a box that is not right (its overlap with a true box
    of its label that no surer box has taken is under a half) is dashed, and what is truly there is counted.

    Args:
        pictures: uint8 tensor of shape (n, 3, height, width).
        answers: {label of a row: a list of n course.models.Boxes, each surest first}.
        names: {number of a label: its name}.
        truth: a list of n Boxes, or None.

    Returns:
        a Picture.
    """
    count = len(pictures)
    figure, axes = new_figure(
        8, 0.4 + 8.3 / max(count, 4) * len(answers), columns=count, rows=len(answers), squeeze=False
    )
    colours = dict(zip(names, seaborn.color_palette("bright") * (1 + len(names) // 10), strict=False))
    seen, parts = set(), []
    for row, (label, found) in zip(axes, answers.items(), strict=True):
        rights = [[True] * len(f.labels) for f in found] if truth is None else list(map(right_boxes, found, truth))
        for axis, picture, boxes, right in zip(row, pictures, found, rights, strict=True):
            axis.imshow(picture.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            for box, number, is_right in zip(boxes.boxes.tolist(), boxes.labels.tolist(), right, strict=True):
                draw_box(axis, box, colours[number], is_right)
                seen.add(number)
        row[0].set_ylabel(label)
        drawn = sum(len(boxes.labels) for boxes in found)
        parts.append(
            f"{label}: {drawn} box{'es' * (drawn != 1)}" + ("" if truth is None else f", {sum(map(sum, rights))} right")
        )
    handles = [Rectangle((0, 0), 1, 1, facecolor="none", edgecolor=colours[n], linewidth=2) for n in names if n in seen]
    if handles:
        words = [names[number] for number in names if number in seen]
        figure.legend(handles, words, loc="outside lower center", ncols=len(words), frameon=False)
    height, width = pictures.shape[-2:]
    there = "" if truth is None else f" with {sum(len(boxes.labels) for boxes in truth)} things on them"
    start = f"{count} picture{'s' * (count > 1)} of {width} x {height} pixels{there}."
    return Picture(figure, f"{start} " + "; ".join(parts) + "." + (" Wrong boxes are dashed." if truth else ""))


def draw_box(axis, box, colour, right):
    """A box on a picture: white underneath, so that its colour shows on any ground."""
    left, top, right_end, bottom = box
    corner, size = (left - 0.5, top - 0.5), (right_end - left, bottom - top)
    if right:
        axis.add_patch(Rectangle(corner, *size, facecolor="none", edgecolor="white", linewidth=3.4))
    style = {"linewidth": 1.8, "linestyle": "-" if right else (0, (3, 2))}
    axis.add_patch(Rectangle(corner, *size, facecolor="none", edgecolor=colour, **style))


def right_boxes(found, truth, least_overlap=0.5):
    """Which of the boxes on one picture are right, as `average_precision` counts them: a list of bools."""
    from course.models.detector import overlap  # which imports transformers

    free, right = [True] * len(truth.labels), []
    for box, label in zip(found.boxes, found.labels.tolist(), strict=True):
        overlaps = overlap(box[None], truth.boxes)[0].tolist()
        fitting = [i for i, other in enumerate(truth.labels.tolist()) if other == label and free[i]]
        best = max(fitting, key=lambda i: overlaps[i], default=None)
        right.append(best is not None and overlaps[best] >= least_overlap)
        if right[-1]:
            free[best] = False
    return right
