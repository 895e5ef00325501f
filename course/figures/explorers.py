"""Controls that move a picture and the words under it. They need a running notebook; a still picture is left of them.

An explorer is made of three things: controls by name (`slider`, `choice`, `tick`), a function that makes of their
values a text and a live picture in HTML, and one that makes of them a figure, for a notebook that does not run. The
live picture is HTML and not a drawn figure: it takes a hundredth of the time, and has the theme's colours.
"""

import base64
import functools
import html
import math

from matplotlib.ticker import MaxNLocator

from course.figures.charts import PERCENTS, Clip, Grid, clipping, grid_over_histogram, memory_bars, mode_qparams
from course.figures.matrices import block_edges, block_png, blocks, blocks_text, usual_magnitude
from course.figures.numbers import LinearMap, there_and_back
from course.figures.picture import ERRORS, VALUES, Picture, significant
from qlib.report import fit_text, in_units, weight_bytes
from qlib.scheme import Scheme
from qlib.tensor import fake_quantize

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


# ---------------------------------------------------------------- controls


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


# ---------------------------------------------------------------- pieces of live pictures


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


# ---------------------------------------------------------------- lesson 1: will it fit?

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


# ---------------------------------------------------------------- lesson 3: scale, zero point, rounding, ends


def map_svg(mapped, width=580, height=120):
    """Numbers above, the marks of a scale and zero point below, and from each number a line to where it comes back."""
    left, right = mapped.view
    first, last = mapped.reach

    def across(real):
        return min(max((real - left) / (right - left), 0), 1) * width

    parts = ticks_svg(mapped.view, across, 13)
    begin, end = across(first), across(last)
    parts.append(f'<rect x="{begin:.1f}" y="80" width="{end - begin:.1f}" height="16" fill="{BLUE}" opacity="0.35"/>')
    marks = "".join(f"M{across(real):.1f} 80v16" for real in mapped.marks)
    parts.append(f'<path d="{marks}" stroke="{BLUE}"/>')
    for (number, _, back, _), beyond in zip(mapped.cells, mapped.beyond.flatten().tolist(), strict=True):
        colour = ORANGE if beyond else "currentColor"
        parts.append(f'<circle cx="{across(number):.1f}" cy="26" r="4" fill="{colour}"/>')
        parts.append(f'<path d="M{across(number):.1f} 26L{across(back):.1f} 80" stroke="{colour}"/>')
    for real, integer in mapped.labels:
        parts.append(f'<text x="{across(real):.1f}" y="112" text-anchor="middle">{integer}</text>')
    return svg(parts, width, height)


def cells_html(mapped):
    """A small matrix in figures: each number, its integer, what comes back, the error; red too high, blue too low."""
    drawn = ""
    for number, value, back, error in mapped.cells:
        colour = f"rgba({'178, 24, 43' if error > 0 else '33, 102, 172'}, {mapped.strength(error):.2f})"
        drawn += (
            f'<div style="background: {colour}; border: 1px solid {GREY}; padding: 2px 6px; line-height: 1.35">'
            f"{significant(number)} → <b>{value}</b> → {significant(back)}<br/>error {significant(error, 3)}</div>"
        )
    columns = f"repeat({mapped.tensor.shape[1]}, 1fr)"
    return f'<div style="display: grid; grid-template-columns: {columns}; max-width: 52em">{drawn}</div>'


def map_explorer(tensor, scale, zero_point, scales=(1, 8, 0.1)):
    """Controls for the linear map of lesson 3, and for two mistakes: another rounding, and no clamp.

    Args:
        tensor: a small matrix.
        scale, zero_point: to begin with.
        scales: the smallest and the largest scale of the slider, and its step.

    Returns:
        an Explorer.
    """
    import ipywidgets

    lowest, highest, step = scales
    controls = {
        "scale": ipywidgets.FloatSlider(
            scale, min=lowest, max=highest, step=step, readout_format=".1f", description="scale", **LOOK
        ),
        "zero_point": slider("zero point", range(-128, 128), zero_point),
        "rounding": choice("rounding", list(LinearMap.ROUNDINGS), "to the nearest"),
        "beyond": choice("beyond the ends", list(LinearMap.BEYOND), "clamped to the end"),
    }

    def live(**values):
        mapped = LinearMap(tensor, **values)
        return mapped.text, map_svg(mapped) + cells_html(mapped)

    return Explorer(controls, live, lambda **values: there_and_back(tensor, **values))


# ---------------------------------------------------------------- lesson 5: bits and mode


def grid_svg(grid, width=580, height=190):
    """The picture of `grid_over_histogram` as SVG."""
    left, right = grid.view
    ground, below = height - 50, height - 20

    def across(real):
        return (real - left) / (right - left) * width

    outline = f"M{across(grid.edges[0]):.1f} {ground}"
    for count, edge in zip(grid.counts, grid.edges[1:]):
        top = ground - (4 + (ground - 8) * math.log(count) / math.log(grid.counts.max() + 1) if count else 0)
        outline += f"V{top:.1f}H{across(edge):.1f}"
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


# ---------------------------------------------------------------- lesson 8: granularity, bits and mode

GRANULARITIES = {
    "the matrix": {"axis": None},
    "each row": {"axis": 0},
    **{f"each {size}": {"group_size": size} for size in (256, 128, 64, 32, 16, 8)},
}


def explore_groups(matrix, rows, columns, granularity="each 32", bits=4):
    """Controls for what shares a scale, for the bits and the mode, over a part of a matrix.

    Args:
        matrix: (rows, columns); all of it is quantized.
        rows, columns: slices, the part to draw, such as 16 x 64.
        granularity: a key of GRANULARITIES, to begin with.
        bits: 2, 3, 4, 5, 6 or 8, to begin with.

    Returns:
        an Explorer.
    """
    part = rows, columns
    limit = usual_magnitude(matrix[part])
    controls = {
        "granularity": slider("a scale for", list(GRANULARITIES), granularity),
        "bits": slider("bits", [2, 3, 4, 5, 6, 8], bits),
        "zero_point": tick("zero point (asymmetric)", True),
    }

    def scheme_of(granularity, bits, zero_point):
        return Scheme(bits, not zero_point, **GRANULARITIES[granularity])

    def live(**values):
        scheme = scheme_of(**values)
        back = fake_quantize(matrix, scheme)
        edges = block_edges(matrix.shape, scheme, *part)
        drawn = ""
        panels = (("What comes back", back, VALUES, 255), ("Error", back - matrix, ERRORS, 128))
        for title, panel, colours, line in panels:
            png = base64.b64encode(block_png(panel[part] / limit, colours, *edges, line)).decode()
            drawn += f'<div>{title}</div><img style="max-width: 100%" alt="" src="data:image/png;base64,{png}"/>'
        return blocks_text(matrix, back, scheme, *part), drawn

    return Explorer(controls, live, lambda **values: blocks(matrix, scheme_of(**values), *part))


# ---------------------------------------------------------------- lesson 9: clipping


def clip_svg(clip, width=580, height=150):
    """The histogram of `clipping` as SVG."""
    first, last = view = (min(clip.edges[0], 0), clip.edges[-1])
    ground = height - 20

    def across(real):
        return (real - first) / ((last - first) or 1) * width

    parts = []
    for count, start, end in zip(clip.counts, clip.edges, clip.edges[1:]):
        if count:
            tall = 4 + (ground - 8) * math.log(count) / math.log(clip.counts.max() + 1)
            colour = GREY if start >= clip.low and end <= clip.high else ORANGE
            parts.append(
                f'<rect x="{across(start):.1f}" y="{ground - tall:.1f}" width="{across(end) - across(start):.1f}" '
                f'height="{tall:.1f}" fill="{colour}"/>'
            )
    parts.append(f'<path d="M{across(clip.high):.1f} 0V{ground}" stroke="currentColor" stroke-dasharray="4"/>')
    return svg(parts + ticks_svg(view, across, height - 4), width, height)


def clipping_explorer(inputs, percent=99, bits=4):
    """Controls for the percentile at which a layer's inputs are clipped, and the two errors that pull against it.

    Args:
        inputs: {layer: tensor of all that flowed in}; the last one is shown first.
        percent: one of PERCENTS, to begin with.
        bits: 2 to 8, to begin with.

    Returns:
        an Explorer.
    """
    controls = {
        "layer": choice("inputs of", list(inputs), list(inputs)[-1]),
        "percent": slider("percentile", PERCENTS, percent),
        "bits": slider("bits", range(2, 9), bits),
    }

    # Percentiles of what is sorted already are found in half the time.
    inputs = {layer: values.detach().double().flatten().sort().values for layer, values in inputs.items()}

    @functools.cache
    def clip_at(layer, percent, bits):
        return Clip(inputs[layer], percent, bits, f"inputs of {layer}")

    def live(layer, percent, bits):
        clip, whole = clip_at(layer, percent, bits), clip_at(layer, 100, bits)
        both, unclipped = clip.rounding + clip.clipping, whole.rounding + whole.clipping
        parts = [(clip.rounding, BLUE), (clip.clipping, ORANGE)]
        bars = [
            ("this range", parts, significant(both, 3)),
            ("whole range", [(unclipped, GREY)], significant(unclipped, 3)),
        ]
        key = f'<span style="color: {BLUE}">■</span> rounding <span style="color: {ORANGE}">■</span> clipping'
        text = f"{clip.text} With the whole range it would be {significant(unclipped, 3)}."
        return text, f"{clip_svg(clip)}<div>mean squared error: {key}</div>{bars_html(bars)}"

    def still(layer, percent, bits):
        return clipping(inputs[layer], percent, bits, f"inputs of {layer}")

    return Explorer(controls, live, still)
