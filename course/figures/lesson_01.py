"""What lesson 1 draws: bytes as boxes, memory, and the calculator that says whether a model fits."""

import numpy as np
import seaborn
from matplotlib.patches import Rectangle

from course.figures.picture import row_labels, words_of
from course.figures.shared import BLUE, GREY, ORANGE, Explorer, bars_html, choice, slider
from qlib.plot import VALUES, Picture, new_figure, points_of, significant
from qlib.report import as_text, fit_text, in_units, weight_bytes

__all__ = ["byte_boxes", "fit_calculator", "memory_bars", "size_and_quality"]


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
            label_box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
            number = significant(numbers[index])
            axis.text(left + size / 2, row + 0.4, number, ha="center", va="center", bbox=label_box)
        axis.set(xlim=(-0.1, width), ylim=(rows, -0.1), aspect="equal", title=f"{label}: {matrix.nbytes} bytes")
        axis.axis("off")
        parts.append(
            f"{label}: {len(axis.texts)} numbers of {size} byte{'s' * (size > 1)} each, {len(axis.patches)} in all"
        )
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
    labels = row_labels(axis)
    fitting = [label for label, bar in zip(labels, axis.patches, strict=True) if not bar.get_hatch()]
    parts = ", ".join(f"{label} {words}" for label, words in zip(labels, words_of(axis)))  # the last word is the device
    verdict = f"What fits: {', '.join(fitting)}." if fitting else "None of them fits."
    return Picture(figure, f"Bytes of the weights against the {in_units(memory)} of {device}: {parts}. {verdict}")


def size_and_quality(points, title, xlabel, ylabel):
    """Named points over a logarithmic size, so that each halving is the same step to the left. Returns a Picture.

    Args:
        points: {label: (size, quality)}, such as those of one model at several widths.
        title, xlabel, ylabel: words over and beside the picture.
    """
    figure, axis = new_figure(8, 3.6)
    for (label, (x, y)), colour in zip(points.items(), seaborn.color_palette("colorblind", len(points)), strict=True):
        axis.plot([x], [y], "o", color=colour, markersize=9)
        axis.annotate(label, (x, y), (0, -17), textcoords="offset points", ha="center")
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.margins(x=0.12, y=0.15)
    axis.grid(alpha=0.3)
    drawn = [(label, *points_of(line)[0]) for label, line in zip(words_of(axis), axis.lines, strict=True)]
    parts = [f"{label}: {as_text(float(y), 3)} at {as_text(float(x), 2)}" for label, x, y in drawn]
    return Picture(figure, f"{title}: {ylabel} over {xlabel}. " + "; ".join(parts) + ".")


# ---------------------------------------------------------------- will it fit?

# Memory as the makers' data sheets give it, in units of 10^9 bytes.
DEVICES = {"a laptop with 8 GB": 8, "an NVIDIA T4": 16, "an NVIDIA RTX 4090": 24, "an NVIDIA A100": 80}


def fit_calculator(billions=70, bits=4, group_size=64, device="an NVIDIA T4"):
    """Controls that tell whether a model's weights fit into a device's memory.

    Args:
        billions: of weights, to begin with.
        bits: 2, 3, 4, 8, 16 or 32; floats at 16 and 32.
        group_size: 32, 64, 128, or None for one scale for so many weights that it does not matter.
        device: a key of DEVICES.

    Returns:
        an Explorer.
    """
    sizes = sorted({0.1, 0.5, 1, 3, 7, 8, 13, 34, 70, 180, 405, billions})
    groups = {"one scale for very many": None, "32": 32, "64": 64, "128": 128}
    controls = {
        "billions": slider("billions of weights", sizes, billions),
        "bits": slider("bits a weight", [2, 3, 4, 8, 16, 32], bits),
        "group_size": choice("weights in a group", groups, group_size),
        "device": choice("memory of", list(DEVICES), device),
    }

    def measured(billions, bits, group_size, device):
        """(weights, group size or None, bytes of the weights, bytes of the memory)."""
        count, group_size = round(billions * 1e9), None if bits >= 16 else group_size
        return count, group_size, weight_bytes(count, bits, group_size), DEVICES[device] * 10**9

    def live(**values):
        count, group_size, nbytes, memory = measured(**values)
        controls["group_size"].disabled = values["bits"] >= 16  # a float carries its own scale
        text = fit_text(count, values["bits"], group_size, memory, values["device"])
        weights = ("weights", [(nbytes, BLUE if nbytes <= memory else ORANGE)], in_units(nbytes))
        return text, bars_html([weights, ("memory", [(memory, GREY)], in_units(memory))])

    def still(**values):
        _, group_size, nbytes, memory = measured(**values)
        groups = f" in groups of {group_size}" if group_size else ""
        label = f"{values['billions']} billion weights\nof {values['bits']} bits{groups}"
        return memory_bars({label: nbytes}, memory, values["device"])

    return Explorer(controls, live, still)
