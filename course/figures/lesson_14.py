"""What lesson 14 draws: operations on bits, a byte to play with, and which weight lies where in a word."""

import html

import numpy as np
import torch
from matplotlib.patches import Rectangle

from course.figures.picture import rows_of_words
from course.figures.shared import COLOURS, Bits, Explorer, bit_rows, box_colour, slider
from qlib.packing import unpack
from qlib.plot import Picture, new_figure

__all__ = ["Bits", "bit_rows", "byte_explorer", "word_layouts"]


def word_layouts(layouts, shape=(8, 32)):
    """Which weights of a matrix share the first word of 32 bits, and in what order: a row for each layout.

    On the left the corner of the matrix, an output a row and an input a column, with the weights of that word
    coloured. On the right the word, its highest bits on the left, in the same colours.

    Args:
        layouts: {label: [(output, input), …]}, the weights of the first word, that of its lowest bits first.
        shape: (outputs, inputs) of the corner that is drawn.

    Returns:
        a Picture.
    """
    outputs, inputs = shape
    figure, axes = new_figure(8, 0.2 + 1.35 * len(layouts), columns=2, rows=len(layouts), squeeze=False)
    parts = []
    for (corner, word), (label, places) in zip(axes, layouts.items(), strict=True):
        image = np.ones((outputs, inputs, 3)) * 0.93
        for index, place in enumerate(places):
            image[place] = COLOURS[index % len(COLOURS)]
        corner.imshow(image, aspect="equal", extent=(-0.5, inputs - 0.5, outputs - 0.5, -0.5))
        corner.set_xticks(np.arange(-0.5, inputs), minor=True)
        corner.set_yticks(np.arange(-0.5, outputs), minor=True)
        corner.grid(which="minor", color="white", linewidth=0.8)
        corner.tick_params(which="both", length=0, labelsize=8)
        corner.set(xticks=range(0, inputs, 8), yticks=[0, outputs - 1])
        corner.tick_params(labelbottom=corner is axes[-1][0])
        corner.spines[["left", "bottom"]].set_visible(False)
        corner.set_title(label, loc="left", fontsize=10)
        corner.set_ylabel("output", fontsize=8)
        for index, (output, input) in enumerate(places):
            left = len(places) - 1 - index
            face = (*COLOURS[index % len(COLOURS)], 0.5)
            word.add_patch(Rectangle((left, 0), 1, 0.6, facecolor=face, edgecolor="black", linewidth=0.8))
            word.text(left + 0.5, 0.3, f"{output},{input}", ha="center", va="center", fontsize=9)
        word.set(xlim=(-0.1, len(places) + 0.1), ylim=(1.1, -0.5))
        word.axis("off")
        [drawn] = rows_of_words(word)
        parts.append(f"{label}: {' '.join(drawn)}")
    axes[-1][0].set_xlabel("input", fontsize=8)
    axes[0][1].set_title("the word: highest bits on the left", fontsize=9)
    ends = "the highest bits first, as output,input"
    return Picture(figure, f"The {len(places)} weights in the first word, {ends}. {'; '.join(parts)}.")


# ---------------------------------------------------------------- a byte to play with


def boxes_html(bits):
    """The boxes of Bits as HTML, which follows a slider at once and takes the theme's colours."""
    spans = []
    for place in reversed(range(bits.width)):
        bit = bits.number >> place & 1
        red, green, blue, opacity = box_colour(bit, bits.owners[place])
        face = f"rgba({255 * red:.0f}, {255 * green:.0f}, {255 * blue:.0f}, {opacity})"
        spans.append(
            '<span style="display: inline-block; width: 2em; text-align: center; border: 1px solid #8a8f98; '
            f'background: {face}">{bit}</span>'
        )
    return "".join(spans)


def byte_explorer(number=177, shift=4, keep=2, bits=2):
    """Sliders that shift a byte of coloured boxes and mask it.

    Args:
        number: 0 to 255, to begin with.
        shift: places to the right, or, negative, to the left, to begin with.
        keep: how many of the lowest bits the mask keeps, 1 to 8, to begin with.
        bits: width of the values that the byte holds, each in a colour of its own, to begin with: 1, 2, 4 or 8.

    Returns:
        an Explorer.
    """
    controls = {
        "number": slider("the byte", range(256), number),
        "bits": slider("bits of a value", [1, 2, 4, 8], bits),
        "shift": slider("places to the right", range(-8, 9), shift),
        "keep": slider("lowest bits kept", range(1, 9), keep),
    }

    def steps(number, bits, shift, keep):
        """{what is done: Bits}, one below the other."""
        byte = Bits.packed(number, bits)
        moved = byte >> shift if shift >= 0 else byte << -shift
        how = f">> {shift}" if shift >= 0 else f"<< {-shift}"
        return {f"{number}": byte, how: moved, f"& {2**keep - 1}": moved & (2**keep - 1)}

    def live(**values):
        drawn = steps(**values)
        rows = "".join(
            f'<div style="margin: 3px 0"><span style="display: inline-block; width: 4em">{html.escape(label)}</span>'
            f'{boxes_html(bits)}<span style="margin-left: 0.5em">= {bits.number}</span></div>'
            for label, bits in drawn.items()
        )
        return byte_text(*drawn.items(), values["bits"], values["shift"]), rows

    return Explorer(controls, live, lambda **values: bit_rows(steps(**values)))


def byte_text(byte, moved, kept, bits, shift):
    """What `byte_explorer` shows, in words; the first three are pairs of what is done and the Bits that it makes."""
    (number, byte), (how, moved), (mask, kept) = byte, moved, kept
    values = unpack(torch.tensor([byte.number], dtype=torch.uint8), bits).tolist()
    digits = f"{byte.number:08b}"
    lost = digits[8 - shift :] if shift >= 0 else digits[:-shift]
    return (
        f"{number} is {byte.digits}, which holds {', '.join(map(str, values))} at {bits} bits. "
        f"{how} makes {moved.digits}, {moved.number}; what falls off the {'lower' if shift >= 0 else 'upper'} end: "
        f"{lost or 'nothing'}. {mask} keeps {kept.digits}, {kept.number}."
    )
