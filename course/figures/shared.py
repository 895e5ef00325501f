"""What several lessons draw and nobody takes home: explorers, texts side by side, bits, rulers and small matrices."""

import dataclasses
import html
import itertools
import math
from collections import Counter

import numpy as np
import seaborn
import torch
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from course.figures.picture import rows_of_words, words_of
from qlib.affine import block_range, expand_groups, quant_range
from qlib.plot import VALUES, Picture, line_styles, new_figure, significant
from qlib.report import as_text, frontier

BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # behind words that a line would strike through
PALE = (0.75, 0.75, 0.75)  # of boxes that no scale colours


def draw_cell(axis, left, top, words, colour, width=0.95, height=0.95, **style):
    """A box with words in it, on an axis that counts downwards; `style` is that of the words."""
    face = (*colour[:3], 0.45)
    axis.add_patch(Rectangle((left, top), width, height, facecolor=face, edgecolor="white"))
    axis.text(left + width / 2, top + height / 2, words, ha="center", va="center", **style)


# ---------------------------------------------------------------- texts


def without_exponent(number, digits=3):
    """A number as text with `digits` significant digits and no exponent, such as "17.0" or "4,650"."""
    return f"{float(f'{number:.{digits}g}'):,.{max(digits - len(str(int(abs(number)))), 0)}f}"


class Completions:
    """Texts that models wrote from one prompt. From where one leaves the first text on, it is marked.

    Args:
        texts: {label: text}; the first is what the others are compared with.
        prompt: what all of them begin with.
    """

    def __init__(self, texts, prompt):
        self.texts, self.prompt = texts, prompt

    def shared(self, text):
        """How many characters of a text are those of the first one, the prompt counted."""
        pairs = zip(text, next(iter(self.texts.values())), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def __repr__(self):
        parts = []
        for number, (label, text) in enumerate(self.texts.items()):
            shared = self.shared(text) - len(self.prompt)
            same = text == next(iter(self.texts.values()))
            how = "" if number == 0 else " (the same)" if same else f" (the same for {shared} characters)"
            parts.append(f"--- {label}{how}\n{text}")
        return "\n".join(parts)

    def _repr_html_(self):
        first = next(iter(self.texts.values()))
        cells = []
        for label, text in self.texts.items():
            prompt, shared = len(self.prompt), max(self.shared(text), len(self.prompt))
            body = (
                f"<b>{html.escape(text[:prompt])}</b>{html.escape(text[prompt:shared])}"
                f'<span style="background-color: rgba(222, 143, 5, 0.35);">{html.escape(text[shared:])}</span>'
            )
            verdict = "" if text is first else "the same" if text == first else "differs from the colour on"
            head = f"<b>{html.escape(label)}</b>" + (f" <i>{verdict}</i>" if verdict else "")
            wrap = "white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere;"  # not within a word
            pre = f'<pre style="margin: 2px 0 0 0; {wrap} font-family: monospace;">{body}</pre>'
            cells.append(
                '<div style="border-left: 3px solid #8a8f98; padding: 2px 0 2px 6px; min-width: 22em; flex: 1 1 22em;">'
                f"{head}{pre}</div>"
            )
        return f'<div style="display: flex; flex-wrap: wrap; gap: 8px;">{"".join(cells)}</div>'


# ---------------------------------------------------------------- explorers: controls that move a picture

GREY, BLUE, ORANGE = "#8a8f98", "#0173b2", "#de8f05"  # the last two of the "colorblind" palette


class Explorer:
    """Controls, and under them a picture and a text that follow them.

    `text` is what it says at the moment, `shown.value` is the HTML of the picture and the text.

    Args:
        controls: {name: an ipywidgets control}.
        live: called with the controls' values by name; gives (text, HTML of the picture).
        still: called with the same; gives a Picture, of whose figure and the text the still picture is made.
    """

    def __init__(self, controls, live, still):
        import ipywidgets

        self.controls, self.live, self.still = controls, live, still
        self.shown = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([*controls.values(), self.shown])
        for control in controls.values():
            control.observe(self.update, names="value")
        self.update()

    @property
    def values(self):
        """{name: what the control says}."""
        return {name: control.value for name, control in self.controls.items()}

    def update(self, change=None):
        """Set `text` and what is shown to what the controls say."""
        self.text, picture = self.live(**self.values)
        # To a screen reader the text says what the picture shows; of the two it reads the text.
        self.shown.value = (
            f'<div aria-hidden="true">{picture}</div>'
            '<div role="status" style="max-width: 52em; line-height: 1.4; margin-top: 0.4em">'
            f"{html.escape(self.text)}</div>"
        )

    @property
    def picture(self):
        """The still Picture of what is shown at the moment; its caption is the text."""
        return Picture(self.still(**self.values).figure, self.text)

    def _ipython_display_(self):
        import ipywidgets
        from IPython.display import display

        # In a running notebook the widget is shown; in a saved one it is gone with its kernel, and the picture stays.
        # The caption has a widget of its own that shows nothing, for where the widget is there is no need of it.
        nothing = ipywidgets.HTML(layout={"display": "none"})
        for widget, kept in zip((self.widget, nothing), self.picture.bundles(), strict=True):
            display(widget._repr_mimebundle_() | kept, raw=True)

    def __repr__(self):
        return self.text


LOOK = {"style": {"description_width": "9.5em"}, "layout": {"width": "34em", "max_width": "calc(100% - 4px)"}}


def slider(description, values, value):
    """A slider: over integers if `values` is a range, else over the items of a list, or of a dict by its keys."""
    import ipywidgets

    if isinstance(values, range):
        return ipywidgets.IntSlider(value, values[0], values[-1], values.step, description=description, **LOOK)
    return ipywidgets.SelectionSlider(options=values, value=value, description=description, **LOOK)


def choice(description, options, value):
    """Buttons, one for each item of a list, or of a dict by its keys.

    Buttons and not a menu: in a menu JupyterLab takes the arrow keys, and the letters, for commands to the notebook.
    """
    import ipywidgets

    style = LOOK["style"] | {"button_width": "auto"}
    buttons = ipywidgets.ToggleButtons(options=options, value=value, description=description, style=style)
    # As sliders are laid out: the name to the left, and not above.
    return buttons.add_class("jupyter-widgets").add_class("widget-inline-hbox")


def tick(description, value):
    """A box to tick."""
    import ipywidgets

    return ipywidgets.Checkbox(value=value, description=description, indent=True, **LOOK)


def svg(parts, width, height):
    """SVG elements as a picture that takes the theme's colour for words and shrinks with the page."""
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" style="max-width: 100%; height: auto" '
        f'font-size="14" fill="currentColor">{"".join(parts)}</svg>'
    )


def ticks_svg(view, across, y):
    """Round numbers between the ends of `view` as SVG, each at its `across`, on a line of height `y`."""
    margin = 0.04 * (view[1] - view[0])  # a number nearer to the edge would be cut off
    return [
        f'<text x="{across(number):.1f}" y="{y}" text-anchor="middle">{significant(number)}</text>'
        for number in MaxNLocator(7).tick_values(*view)
        if view[0] + margin < number < view[1] - margin
    ]


def bar_tops(counts, ground):
    """Where the bars of a histogram over a line of height `ground` end; counts on a logarithmic scale, none for 0."""
    unit = (ground - 8) / math.log(counts.max() + 1)
    return [ground - 4 - unit * math.log(count) if count else ground for count in counts]


def bars_html(rows):
    """Bars under each other. `rows` is [(label, [(size, colour), …] from the left, words behind the bar)]."""
    longest = max(sum(size for size, _ in parts) for _, parts, _ in rows) or 1
    drawn = ""
    for label, parts, words in rows:
        pieces = "".join(
            f'<span style="width: {75 * size / longest:.2f}%; height: 1.2em; background: {colour}"></span>'
            for size, colour in parts
        )
        drawn += (
            '<div style="display: flex; align-items: center; margin: 3px 0; max-width: 36em">'
            f'<span style="width: 7em">{label}</span><div style="display: flex; align-items: center; flex: 1">{pieces}'
            f'<span style="margin-left: 0.5em; white-space: nowrap">{words}</span></div></div>'
        )
    return drawn


# ---------------------------------------------------------------- bits

# Eight colours for eight values; the palette's grey is left out, for a bit that belongs to no value is grey.
COLOURS = [seaborn.color_palette("colorblind")[i] for i in (0, 1, 2, 4, 8, 3, 9, 5)]


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
        return in_fours(f"{self.number:0{self.width}b}")

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


def in_fours(digits):
    """ "10110001" as "1011 0001"; a shorter group comes first."""
    return " ".join(digits[max(end - 4, 0) : end] for end in range(len(digits) % 4 or 4, len(digits) + 1, 4))


def box_colour(bit, owner):
    """The face of a bit's box as (red, green, blue, opacity): a 1 is strong, a 0 is pale, nobody's bit is grey."""
    if owner is None:
        return (0.54, 0.56, 0.6, 0.45 if bit else 0.06)
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
    _, *drawn = rows_of_words(axis)  # over the rows stands what each place counts
    words = "; ".join(f"{label}: {in_fours(''.join(bits))} {number}" for label, *bits, number in drawn)
    return Picture(figure, f"{title or 'Bits, the highest on the left'}. {words}.")


# ---------------------------------------------------------------- rulers


def rulers(tensor, choices, title=""):
    """The numbers of a tensor on the real line and, under them, rulers: the reals that a map's integers stand for.

    On a ruler, the marks that the numbers can use are blue, those that lie beyond them grey, and a stretch of the
    numbers' range that no mark reaches is red. A tick stands for every mark, or for every few if they are dense.

    Args:
        tensor: real numbers, any shape.
        choices: {label: (scale, zero_point, bits)}, one ruler each. A zero point that is no integer of the range
            shows as a 0.0 without a mark.
        title: words over the picture.

    Returns:
        a Picture.
    """
    numbers = tensor.detach().double().flatten()
    choices = {label: (float(scale), float(zero_point), bits) for label, (scale, zero_point, bits) in choices.items()}
    low, high = numbers.min().item(), numbers.max().item()
    ends = [0.0, low, high, *(end for choice in choices.values() for end in reach(*choice))]
    width = max(ends) - min(ends)
    figure, axis = new_figure(8, 0.9 + 0.75 * (len(choices) + 1))
    axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axis.plot(numbers, torch.zeros_like(numbers), "|" if len(numbers) > 64 else "o", color="black", markersize=6)
    for number, side in ((low, "right"), (high, "left")):
        axis.text(number, -0.17, significant(number), ha=side, va="bottom", fontsize=9)
    for row, (label, choice) in enumerate(choices.items(), start=1):
        draw_ruler(axis, row, numbers, choice, width)
        axis.text(min(ends), row - 0.2, label, va="bottom", fontsize=10, bbox=BLANK)
    axis.set(title=title, xlabel="real number", ylim=(len(choices) + 0.6, -0.6), yticks=[])
    axis.spines["left"].set_visible(False)
    parts = [f"{label}: {ruler_text(numbers, *choice)}" for label, choice in choices.items()]
    span = f"{len(numbers)} number{'s' * (len(numbers) != 1)} from {significant(low)} to {significant(high)}"
    return Picture(figure, f"{span}. " + " ".join(parts))


def reach(scale, zero_point, bits):
    """The smallest and the largest real number that an integer stands for; a negative scale turns the ends round."""
    qmin, qmax = quant_range(bits)
    return sorted((scale * (qmin - zero_point), scale * (qmax - zero_point)))


def draw_ruler(axis, row, numbers, choice, width):
    """One ruler of `rulers`, at height `row` of an axis that is `width` wide in the unit of the numbers."""
    scale, zero_point, bits = choice
    half = abs(scale) / 2
    qmin, qmax = quant_range(bits)
    first, last = reach(*choice)
    low, high = numbers.min().item(), numbers.max().item()
    every = 1
    while every * 2 * half < width / 160 and every < qmax - qmin:
        every *= 2
    zero = [zero_point] if is_mark(zero_point, bits) else []
    marks = torch.tensor([*range(qmin, qmax, every), *zero, qmax], dtype=torch.float64)
    reals = scale * (marks - zero_point)
    used = (reals >= low - half) & (reals <= high + half)
    axis.plot([first, last], [row, row], color="grey", linewidth=0.8)
    for chosen, colour in ((~used, "darkgrey"), (used, seaborn.color_palette("colorblind")[0])):
        axis.plot(reals[chosen], torch.full_like(reals[chosen], row), "|", color=colour, markersize=10)
    for start, end in ((low, min(first, high)), (max(last, low), high)):
        if end - start > half:
            axis.plot([start, end], [row, row], color="firebrick", linewidth=4, alpha=0.6, solid_capstyle="butt")
    labelled = []
    for mark in [*zero, qmin, qmax, *(range(qmin, qmax) if bits <= 4 else [])]:
        real = scale * (mark - zero_point)
        if all(abs(real - other) > 0.045 * width for other in labelled):
            labelled.append(real)
            style = {"fontweight": "bold", "bbox": BLANK} if mark == zero_point else {}
            axis.text(real, row + 0.2, f"{mark:.0f}", ha="center", va="top", fontsize=9, **style)


def is_mark(zero_point, bits):
    """Whether a zero point is an integer that `bits` bits can hold."""
    qmin, qmax = quant_range(bits)
    return zero_point == round(zero_point) and qmin <= zero_point <= qmax


def ruler_text(numbers, scale, zero_point, bits):
    """A ruler of `rulers` in words: how far it reaches, its step, where 0.0 lies, what it misses and what it wastes."""
    (qmin, qmax), (first, last), half = quant_range(bits), reach(scale, zero_point, bits), abs(scale) / 2
    reals = scale * (torch.arange(qmin, qmax + 1).double() - zero_point)
    spare = ((reals < numbers.min() - half) | (reals > numbers.max() + half)).sum().item()
    clipped = ((numbers < first - half) | (numbers > last + half)).sum().item()
    zero = f"0.0 is the integer {zero_point:.0f}" if is_mark(zero_point, bits) else "0.0 has no integer of its own"
    return (
        f"{len(reals)} marks from {significant(first)} to {significant(last)}, {significant(2 * half)} apart; {zero}; "
        f"{clipped} of {len(numbers)} numbers clipped, {spare} mark{'s' * (spare != 1)} unused."
    )


# ---------------------------------------------------------------- matrices and pictures


def integers(panels, bits):
    """Small matrices of integers side by side, in colours that span the whole range of `bits` bits. Returns a Picture.

    Args:
        panels: {title: (rows, columns) integers}, at most about 8 of each.
        bits: width of the integers.
    """
    qmin, qmax = quant_range(bits)
    figure, axes = new_figure(3.3 * len(panels), 3.3, columns=len(panels), squeeze=False)
    parts = []
    for axis, (title, values) in zip(axes.flat, panels.items(), strict=True):
        draw_numbers(axis, values, cmap=VALUES, vmin=qmin, vmax=qmax)
        axis.set_title(title)
        used = {int(words) for words in words_of(axis)}
        parts.append(f"{title}: {len(used)} different ones from {min(used)} to {max(used)}")
    size = " x ".join(map(str, values.shape))
    return Picture(figure, f"The integers of {size} weights, of {qmin} to {qmax} that there are. {'; '.join(parts)}.")


def draw_numbers(axis, values, **colours):
    """A small matrix of whole numbers, each written in its cell; `colours` as seaborn.heatmap takes them."""
    frame = {"square": True, "linewidths": 1, "cbar": False, "xticklabels": False, "yticklabels": False}
    seaborn.heatmap(values, ax=axis, annot=True, fmt="d", **frame, **colours)


def block_numbers(shape, scheme):
    """int64 tensor of `shape`: for each weight, the number of its block, counted from 0 in reading order."""
    scales = block_range(torch.empty(shape, device="meta"), scheme)[0].shape
    number = torch.arange(scales.numel()).reshape(scales)
    return expand_groups(number, torch.empty(shape), scheme.group_size).broadcast_to(shape)


def channel_maxima(tensor, title):
    """The largest magnitude in each row and in each column of a matrix, as points on a log scale. Returns a Picture."""
    magnitude = tensor.detach().double().abs()
    figure, axes = new_figure(7.6, 3, columns=2, sharey=True)
    blue, orange = seaborn.color_palette("colorblind")[:2]
    parts = []
    for axis, what, maxima in zip(axes, ("row", "column"), (magnitude.amax(1), magnitude.amax(0)), strict=True):
        place, count, median = maxima.argmax().item(), len(maxima), maxima.median().item()
        axis.plot(maxima, ".", color=blue, markersize=3)
        axis.plot([place], [maxima[place]], "o", color=orange)
        axis.annotate(f"{what} {place}", (place, maxima[place]), (0, 6), textcoords="offset points", ha="center")
        axis.margins(y=0.15)  # room for these words
        axis.set(title=f"in each of {count} {what}s", xlabel=what, yscale="log")
        parts.append(
            f"in the {count} {what}s the median is {significant(median, 3)}, "
            f"the largest {significant(maxima[place].item())} in {what} {place}"
        )
    axes[0].set_ylabel("largest magnitude")
    figure.suptitle(title, fontsize=11)
    return Picture(figure, f"{title}. Of the largest magnitudes, {'; '.join(parts)}.")


def digit_pictures(pictures, labels, answers):
    """Small pictures of digits, eight in a row, with a net's answers over them; a wrong answer is orange and says so.

    Args:
        pictures: (n, height, width), 0 for paper and 1 for ink.
        labels, answers: (n,), what each picture shows and what the net reads.

    Returns:
        a Picture.
    """
    count, columns = len(pictures), min(8, len(pictures))
    rows = -(-count // columns)
    figure, axes = new_figure(8, 1.3 * rows, columns=columns, rows=rows, squeeze=False)
    orange = seaborn.color_palette("colorblind")[3]
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, label, answer in zip(axes.flat, pictures, labels, answers):  # there may be more axes
        axis.imshow(np.asarray(picture), cmap="gray_r", vmin=0, vmax=1)
        if answer == label:
            axis.set_title(f"{int(answer)}")
        else:
            axis.set_title(f"{int(answer)}, is {int(label)}", color=orange)
    read = [axis.get_title().partition(", is ") for axis in axes.flat[:count]]
    wrong = [f"picture {place}, which is {label}, as {said}" for place, (said, _, label) in enumerate(read) if label]
    caption = (
        f"{count} picture{'s' * (count > 1)} of {pictures.shape[1]} x {pictures.shape[2]} pixels, "
        f"{count - len(wrong)} read right."
    )
    return Picture(figure, caption + (f" Read wrong: {'; '.join(wrong)}." if wrong else ""))


# ---------------------------------------------------------------- quality over cost


def price_curves(panels, title, xlabel, ylabel):
    """Quality over cost, panels side by side, and behind them the staircase of what is not beaten.

    A point is beaten by one, of any panel, that costs no more and is better. Those that are not beaten are ringed.

    Args:
        panels: {panel: {label: [(cost, quality), …]}}; a label has the same colour in each panel.
        title, xlabel, ylabel: words over and beside the picture.

    Returns:
        a Picture.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    styles = dict(zip(labels, line_styles(len(labels)), strict=True))
    points = {
        (panel, label, cost): (cost, quality)
        for panel, lines in panels.items()
        for label, line in lines.items()
        for cost, quality in line
    }
    best = frontier(points)
    stairs = [points[name] for name in best]
    figure, axes = new_figure(max(8, 4.2 * len(panels)), 5, columns=len(panels), sharey=True, squeeze=False)
    for axis, (panel, lines) in zip(axes.flat, panels.items(), strict=True):
        axis.step(*zip(*stairs, strict=True), where="post", color="grey", linewidth=6, alpha=0.25)
        for label, line in lines.items():
            xs, ys = zip(*sorted(line), strict=True)
            axis.plot(xs, ys, label=label, linewidth=1.2, markersize=5, **styles[label])
        for ringed in (points[name] for name in best if name[0] == panel):
            axis.plot(*ringed, "o", color="black", fillstyle="none", markersize=10)
        axis.set(title=panel, xlabel=xlabel)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel(ylabel)
    axes[0, -1].legend(fontsize=9)
    figure.suptitle(title, fontsize=11)
    return Picture(figure, f"{title}: {ylabel} over {xlabel}. {price_text(points, best)}")


def price_text(points, best):
    """The points of `price_curves` in words: how many, from where to where, and which are not beaten."""
    costs, qualities = zip(*points.values(), strict=True)
    ends = (
        f"{len(points)} ways from {as_text(min(costs), 2)} to {as_text(max(costs), 2)}, "
        f"{as_text(min(qualities), 2)} to {as_text(max(qualities), 2)}."
    )
    if len(best) > 16:
        panels = Counter(panel for panel, _, _ in points), Counter(panel for panel, _, _ in best)
        parts = ", ".join(f"{panels[1][panel]} of {count} {panel}" for panel, count in panels[0].items())
        return f"{ends} Not beaten by any that costs no more: {parts}."
    steps = (
        f"{label} at {as_text(cost, 2)}: {as_text(points[panel, label, cost][1], 2)}" for panel, label, cost in best
    )
    return f"{ends} Not beaten by any that costs no more: {'; '.join(steps)}."
