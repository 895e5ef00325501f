"""Pictures of packing: bytes as coloured boxes, operations on their bits, and which value lies where."""

import dataclasses
import html

import numpy as np
import seaborn
import torch
from matplotlib.patches import Rectangle

from course.figures.explorers import Explorer, slider
from course.figures.picture import Picture, new_figure
from qlib.packing import pack, unpack

# Eight colours for eight values; the palette's grey is left out, for a bit that belongs to no value is grey.
COLOURS = [seaborn.color_palette("colorblind")[i] for i in (0, 1, 2, 4, 8, 3, 9, 5)]
GREY = (0.54, 0.56, 0.6)


@dataclasses.dataclass(frozen=True)
class Bits:
    """A number as bits, each with the value that it belongs to: a bit keeps its colour wherever a shift takes it.

    The operators << >> & | ^ ~ do with the bits what they do with an unsigned number of `width` bits: what is shifted
    over an end is gone, and zeros that belong to nobody come in at the other.

    Args:
        number: an int from 0 to 2**width - 1.
        owners: the number of the value that each bit belongs to, or None; the lowest bit first.
        width: how many bits.
    """

    number: int
    owners: tuple = (None,) * 8
    width: int = 8

    @classmethod
    def value(cls, value, bits, index=0, width=8):
        """A value on its own in the lowest bits: number `index` of those that will be packed."""
        return cls(value, (index,) * bits + (None,) * (width - bits), width)

    @classmethod
    def packed(cls, number, bits, width=8):
        """A number that holds values of `bits` bits, the first one in the lowest bits."""
        return cls(number, tuple(place // bits for place in range(width)), width)

    @property
    def digits(self):
        """The bits as text, the highest first, in fours: "1011 0001"."""
        digits = f"{self.number:0{self.width}b}"
        return " ".join(digits[max(end - 4, 0) : end] for end in range(self.width % 4 or 4, self.width + 1, 4))

    def __lshift__(self, amount):
        owners = ((None,) * amount + self.owners)[: self.width]
        return dataclasses.replace(self, number=(self.number << amount) & self.all_ones, owners=owners)

    def __rshift__(self, amount):
        owners = (self.owners + (None,) * amount)[amount:]
        return dataclasses.replace(self, number=self.number >> amount, owners=owners)

    def __and__(self, other):
        """A bit keeps its owner where both are 1, and also where the mask that it meets lets it through."""
        other = self.of_my_width(other)
        mine = [owner if other.number >> place & 1 else None for place, owner in enumerate(self.owners)]
        return dataclasses.replace(self, number=self.number & other.number, owners=tuple(mine))

    def __or__(self, other):
        other = self.of_my_width(other)
        return dataclasses.replace(self, number=self.number | other.number, owners=self.owners_with(other))

    def __xor__(self, other):
        other = self.of_my_width(other)
        return dataclasses.replace(self, number=self.number ^ other.number, owners=self.owners_with(other))

    def __invert__(self):
        return dataclasses.replace(self, number=self.number ^ self.all_ones)

    @property
    def all_ones(self):
        return 2**self.width - 1

    def of_my_width(self, other):
        """An operand as Bits: a plain number belongs to nobody."""
        return other if isinstance(other, Bits) else Bits(other & self.all_ones, (None,) * self.width, self.width)

    def owners_with(self, other):
        """Each bit's owner in either operand: of the one that has a 1 there, else of the one that has an owner."""
        theirs = [
            owner is None or (other.number & ~self.number) >> place & 1 for place, owner in enumerate(self.owners)
        ]
        return tuple(b if taken else a for taken, a, b in zip(theirs, self.owners, other.owners, strict=True))


def box_colour(bit, owner):
    """The face of a bit's box as (red, green, blue, opacity): a 1 is strong, a 0 is pale, nobody's bit is grey."""
    if owner is None:
        return (*GREY, 0.45 if bit else 0.06)
    return (*COLOURS[owner % len(COLOURS)], 0.65 if bit else 0.22)


def draw_boxes(axis, row, bits, left=0):
    """The boxes of Bits at height `row`, the highest bit at `left`."""
    for place in range(bits.width):
        bit = bits.number >> place & 1
        x = left + bits.width - 1 - place
        face = box_colour(bit, bits.owners[place])
        axis.add_patch(Rectangle((x, row), 1, 0.72, facecolor=face, edgecolor="black", linewidth=0.8))
        axis.text(x + 0.5, row + 0.37, str(bit), ha="center", va="center", fontsize=9, family="monospace")


def bit_rows(rows, title=""):
    """Bytes under each other, a box a bit, the highest bit on the left, and what each byte is as a number.

    Args:
        rows: {label: Bits, or a plain int}; all of one width.
        title: words over the picture.

    Returns:
        a Picture.
    """
    rows = {label: bits if isinstance(bits, Bits) else Bits(bits) for label, bits in rows.items()}
    width = next(iter(rows.values())).width
    longest = max(len(label) for label in rows)
    margin = 0.6 + 0.24 * longest
    figure, axis = new_figure(0.42 * (width + margin + 2), 0.55 + 0.4 * len(rows))
    for place in range(width):
        axis.text(width - place - 0.5, -0.12, str(2**place), ha="center", va="bottom", fontsize=7, color="dimgrey")
    for row, (label, bits) in enumerate(rows.items()):
        draw_boxes(axis, row, bits)
        axis.text(-0.3, row + 0.37, label, ha="right", va="center", fontsize=9, family="monospace")
        axis.text(width + 0.3, row + 0.37, f"= {bits.number}", va="center", fontsize=9)
    axis.set(xlim=(-margin, width + 2), ylim=(len(rows), -0.6))
    axis.set_title(title)
    axis.axis("off")
    words = "; ".join(f"{label}: {bits.digits} = {bits.number}" for label, bits in rows.items())
    return Picture(figure, f"{title or 'Bits, the highest on the left'}. {words}.")


def packed_bytes(values, bits):
    """A row of values packed low bits first, drawn as one long number: value 0 and byte 0 are at the right end.

    Args:
        values: integers from 0 to 2**bits - 1, a list; up to 32 bits of them can be read on a page.
        bits: width of a value, 1 to 8.

    Returns:
        a Picture. Bits that fill up the last byte are grey.
    """
    octets = pack(values, bits).tolist()
    used, width = len(values) * bits, 8 * len(octets)
    number = int.from_bytes(bytes(octets), "little")
    owners = tuple(place // bits if place < used else None for place in range(width))
    figure, axis = new_figure(min(8, 0.33 * (width + 1)), 1.5)
    draw_boxes(axis, 0, Bits(number, owners, width))
    for index, value in enumerate(values):
        right = width - index * bits
        colour = COLOURS[index % len(COLOURS)]
        axis.plot([right - bits + 0.12, right - 0.12], [-0.13, -0.13], color=colour, linewidth=3)
        axis.text(right - bits / 2, -0.25, str(value), ha="center", va="bottom", fontsize=10)
    for index, octet in enumerate(octets):
        left = width - 8 * (index + 1)
        axis.add_patch(Rectangle((left, 0), 8, 0.72, fill=False, edgecolor="black", linewidth=2.5))
        axis.text(left + 4, 0.92, f"byte {index} = {octet}", ha="center", va="top", fontsize=9)
    axis.set(xlim=(-0.2, width + 0.2), ylim=(1.3, -0.75))
    axis.axis("off")
    cut = [index for index in range(len(values)) if index * bits // 8 != (index * bits + bits - 1) // 8]
    crossing = f" Values {', '.join(map(str, cut))} lie across a border." if cut else " No value lies across a border."
    spare = f" {width - used} bits of the last byte are left over, zeros." if width > used else ""
    return Picture(
        figure,
        f"{len(values)} values of {bits} bits in {len(octets)} byte{'s' * (len(octets) > 1)}, read from the right: "
        f"values {', '.join(map(str, values))}; bytes {', '.join(map(str, octets))}.{crossing}{spare}",
    )


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
    axes[-1][0].set_xlabel("input", fontsize=8)
    axes[0][1].set_title("the word: highest bits on the left", fontsize=9)
    parts = []
    for label, places in layouts.items():
        named = " ".join(f"{output},{input}" for output, input in reversed(places))
        parts.append(f"{label}: {named}")
    ends = "the highest bits first, as output,input"
    return Picture(figure, f"The {len(places)} weights in the first word, {ends}. {'; '.join(parts)}.")


def file_parts(files, minima):
    """Files as bars, each made of its parts, and a mark at the smallest that the weights alone could take.

    Args:
        files: {label: {part: bytes}}, the same parts in each.
        minima: {label: bytes}, one for each file.

    Returns:
        a Picture.
    """
    figure, axis = new_figure(8, 1.1 + 0.42 * len(files))
    for row, (label, parts) in enumerate(files.items()):
        left = 0
        for colour, (part, nbytes) in zip(COLOURS, parts.items(), strict=False):
            axis.barh(
                row, nbytes, left=left, color=(*colour, 0.75), height=0.6, label=None if row else part.replace("_", " ")
            )
            left += nbytes
        axis.plot([minima[label]] * 2, [row - 0.42, row + 0.42], color="black", linewidth=2)
        axis.annotate(f"{left:,} bytes", (left, row), (6, 0), textcoords="offset points", va="center")
    axis.plot([], [], color="black", linewidth=2, label="weights x bits / 8")
    axis.set(yticks=range(len(files)), yticklabels=list(files), ylim=(len(files) - 0.5, -0.5), xticks=[])
    axis.spines["bottom"].set_visible(False)
    axis.margins(x=0.2)
    figure.legend(loc="outside lower center", ncols=len(next(iter(files.values()))) + 1, frameon=False)
    first, *rest = (part.replace("_", " ") for part in next(iter(files.values())))
    words = []
    for label, parts in files.items():
        weights = next(iter(parts.values()))
        words.append(f"{label}: {sum(parts.values()):,}, of which {first} {weights:,}, at least {minima[label]:,}")
    return Picture(figure, f"Bytes of each file; what is not {first} is {', '.join(rest)}. {'; '.join(words)}.")


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
