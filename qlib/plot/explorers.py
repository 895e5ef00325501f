"""Controls that move a picture. They need a running notebook; each has a static picture beside it."""

import math
from typing import ClassVar

from matplotlib.ticker import MaxNLocator

from qlib.affine import fake_quantize
from qlib.plot.charts import PERCENTS, Clip, Grid, mode_qparams
from qlib.plot.matrices import block_edges, block_png, blocks_text, usual_magnitude
from qlib.plot.picture import ERRORS, VALUES, significant
from qlib.report import fit_text, in_units, weight_bytes
from qlib.scheme import Scheme


class Explorer:
    """Controls over something that follows them; `text` is what it says at the moment."""

    def begin(self, controls, shown):
        """Stack the controls over what they move, and let it follow them."""
        import ipywidgets

        self.controls = controls
        for control in controls:
            control.observe(self.update, names="value")
        self.widget = ipywidgets.VBox([*controls, *shown])
        self.update()

    def update(self, change=None):
        """Set `text`, and what is shown, to what the controls say."""
        raise NotImplementedError

    def _ipython_display_(self):
        from IPython.display import display

        # In a saved notebook the widget is gone with its kernel: the words stay.
        display(self.widget._repr_mimebundle_() | {"text/plain": self.text}, raw=True)

    def __repr__(self):
        return self.text


class GroupExplorer(Explorer):
    """The sliders that `explore_groups` returns; `text` and `images` are what they say and draw at the moment."""

    GRANULARITIES: ClassVar = {
        "the whole matrix": {"axis": None},
        "each row": {"axis": 0},
        **{f"groups of {size}": {"group_size": size} for size in (256, 128, 64, 32, 16, 8)},
    }

    def __init__(self, matrix, rows, columns, granularity, bits):
        import ipywidgets

        self.matrix, self.part = matrix, (rows, columns)
        look = {"style": {"description_width": "8em"}, "layout": {"width": "32em"}}
        self.granularity = ipywidgets.SelectionSlider(
            options=list(self.GRANULARITIES), value=granularity, description="a scale for", **look
        )
        self.bits = ipywidgets.SelectionSlider(options=[2, 3, 4, 5, 6, 8], value=bits, description="bits", **look)
        self.zero_point = ipywidgets.Checkbox(
            value=True, description="with a zero point (asymmetric)", indent=True, **look
        )
        self.images = {title: ipywidgets.Image(format="png") for title in ("What comes back", "Error")}
        self.words = ipywidgets.HTML()
        drawn = [part for title, image in self.images.items() for part in (ipywidgets.HTML(title), image)]
        self.begin([self.granularity, self.bits, self.zero_point], [self.words, *drawn])

    @property
    def scheme(self):
        """The Scheme that the controls stand for."""
        return Scheme(self.bits.value, not self.zero_point.value, **self.GRANULARITIES[self.granularity.value])

    def update(self, change=None):
        """Follow the controls."""
        back = fake_quantize(self.matrix, self.scheme)
        edges = block_edges(self.matrix.shape, self.scheme, *self.part)
        limit = usual_magnitude(self.matrix[self.part])
        self.text = blocks_text(self.matrix, back, self.scheme, *self.part)
        # Images of ipywidgets have no alternative text: the words over them say what they show.
        self.words.value = f'<div role="status" style="max-width: 48em; line-height: 1.4">{self.text}</div>'
        error = back - self.matrix
        for title, panel, colours, line in (("What comes back", back, VALUES, 255), ("Error", error, ERRORS, 0)):
            self.images[title].value = block_png(panel[self.part] / limit, colours, *edges, line)


def explore_groups(matrix, rows, columns, granularity="groups of 32", bits=4):
    """Sliders for what shares a scale and for the bits, over a part of a matrix. Needs a running notebook to move.

    Args:
        matrix: (rows, columns); all of it is quantized.
        rows, columns: slices, the part to draw, such as 16 x 64.
        granularity: a key of GroupExplorer.GRANULARITIES, to begin with.
        bits: 2, 3, 4, 5, 6 or 8.

    Returns:
        a GroupExplorer.
    """
    return GroupExplorer(matrix, rows, columns, granularity, bits)


# Memory as the makers' data sheets give it, in units of 10^9 bytes.
DEVICES = {"a laptop with 8 GB": 8, "an NVIDIA T4": 16, "an NVIDIA RTX 4090": 24, "an NVIDIA A100": 80}


class FitCalculator(Explorer):
    """The calculator that `fit_calculator` returns; `text` and `bars` are what it says and draws at the moment."""

    def __init__(self, billions, bits, group_size, device):
        import ipywidgets

        look = {"style": {"description_width": "11em"}, "layout": {"width": "32em"}}
        sizes = sorted({0.1, 0.5, 1, 3, 7, 8, 13, 34, 70, 180, 405, billions})
        self.billions = ipywidgets.SelectionSlider(
            options=sizes, value=billions, description="billions of weights", **look
        )
        self.bits = ipywidgets.SelectionSlider(
            options=[2, 3, 4, 8, 16, 32], value=bits, description="bits a weight", **look
        )
        self.group_size = ipywidgets.Dropdown(
            options={"one scale for very many": None, "32": 32, "64": 64, "128": 128},
            value=group_size,
            description="weights in a group",
            **look,
        )
        self.device = ipywidgets.Dropdown(options=list(DEVICES), value=device, description="memory of", **look)
        self.bars = ipywidgets.HTML()
        self.begin([self.billions, self.bits, self.group_size, self.device], [self.bars])

    def update(self, change=None):
        """Follow the controls."""
        count, memory = round(self.billions.value * 1e9), DEVICES[self.device.value] * 10**9
        self.group_size.disabled = self.bits.value >= 16  # a float carries its own scale
        group_size = None if self.group_size.disabled else self.group_size.value
        nbytes = weight_bytes(count, self.bits.value, group_size)
        self.text = fit_text(count, self.bits.value, group_size, memory, self.device.value)
        # Bars in HTML and not a drawn figure: they follow a slider at once, and take the theme's colours.
        longest = max(nbytes, memory)
        colour = "#0173b2" if nbytes <= memory else "#de8f05"
        rows = [("weights", nbytes, colour), ("memory", memory, "#8a8f98")]
        bars = "".join(
            f'<div style="display: flex; align-items: center; margin: 3px 0"><span style="width: 5em">{label}</span>'
            f'<span style="width: {25 * size / longest:.2f}em; height: 1.2em; background: {fill}"></span>'
            f'<span style="margin-left: 0.5em">{in_units(size)}</span></div>'
            for label, size, fill in rows
        )
        self.bars.value = f'<div aria-hidden="true">{bars}</div><div role="status">{self.text}</div>'


def fit_calculator(billions=70, bits=4, group_size=64, device="an NVIDIA T4"):
    """Sliders that tell whether a model's weights fit into a device's memory. Needs a running notebook to move.

    Args:
        billions: of weights, to begin with.
        bits: 2, 3, 4, 8, 16 or 32; floats at 16 and 32.
        group_size: 32, 64, 128, or None for one scale for so many weights that it does not matter.
        device: a key of DEVICES.

    Returns:
        a FitCalculator.
    """
    return FitCalculator(billions, bits, group_size, device)


def grid_svg(grid, width=720, height=190):
    """The picture of `grid_over_histogram` as SVG, which follows a slider at once and takes the theme's colours."""
    left, right = grid.view
    ground, below = height - 50, height - 20

    def across(real):
        return f"{(real - left) / (right - left) * width:.1f}"

    outline = f"M{across(grid.edges[0])} {ground}"
    for count, edge in zip(grid.counts, grid.edges[1:]):
        top = ground - (4 + (ground - 8) * math.log(count) / math.log(grid.counts.max() + 1) if count else 0)
        outline += f"V{top:.1f}H{across(edge)}"
    parts = [f'<path d="{outline}V{ground}Z" fill="#8a8f98"/>']
    for used, colour, end in ((False, "#8a8f98", below - 12), (True, "#0173b2", below)):
        start = 0 if len(grid.codes) <= 32 else ground + 4
        reals = [real for real, is_used in zip(grid.reals, grid.used) if is_used is used and left <= real <= right]
        path = "".join(f"M{across(real)} {start}V{end}" for real in reals)
        parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="1.2"/>')
    for tick in MaxNLocator(7).tick_values(left, right):
        if left < tick < right:
            parts.append(f'<text x="{across(tick)}" y="{height - 4}" text-anchor="middle">{significant(tick)}</text>')
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" style="max-width: 100%; height: auto" '
        f'font-size="12" fill="currentColor" aria-hidden="true">{"".join(parts)}</svg>'
    )


class GridExplorer(Explorer):
    """The explorer that `grid_explorer` returns; `text` is what it says at the moment."""

    def __init__(self, tensors, bits, mode):
        import ipywidgets

        look = {"style": {"description_width": "6em"}, "layout": {"width": "32em"}}
        self.tensors = {label: tensor.detach() for label, tensor in tensors.items()}
        self.numbers = ipywidgets.Dropdown(options=list(tensors), description="numbers", **look)
        modes = ["symmetric", "asymmetric", "full range"]
        self.mode = ipywidgets.Dropdown(options=modes, value=mode, description="mode", **look)
        self.bits = ipywidgets.IntSlider(value=bits, min=2, max=8, description="bits", **look)
        self.picture = ipywidgets.HTML()
        self.begin([self.numbers, self.mode, self.bits], [self.picture])

    def update(self, change=None):
        """Follow the controls."""
        tensor, bits, mode = self.tensors[self.numbers.value], self.bits.value, self.mode.value
        grid = Grid(tensor, *mode_qparams(tensor, bits, mode), bits, f"{self.numbers.value}, {mode}")
        self.text = grid.text
        self.picture.value = f'{grid_svg(grid)}<div role="status" style="max-width: 52em">{self.text}</div>'


def grid_explorer(tensors, bits=4, mode="symmetric"):
    """Controls for bits and mode that move a grid over a histogram. Needs a running notebook to move.

    Args:
        tensors: {label: tensor}, to choose from; each is mapped with one scale.
        bits: 2 to 8, to begin with.
        mode: "symmetric", "asymmetric" or "full range", to begin with.

    Returns:
        a GridExplorer.
    """
    return GridExplorer(tensors, bits, mode)


def clip_svg(clip, width=720, height=150):
    """The histogram of `clipping` as SVG, which follows a slider at once and takes the theme's colours."""
    first, last = min(clip.edges[0], 0), clip.edges[-1]
    ground = height - 20

    def across(real):
        return (real - first) / (last - first) * width

    parts = []
    for count, start, end in zip(clip.counts, clip.edges, clip.edges[1:]):
        if count:
            tall = 4 + (ground - 8) * math.log(count) / math.log(clip.counts.max() + 1)
            colour = "#8a8f98" if start >= clip.low and end <= clip.high else "#de8f05"
            parts.append(
                f'<rect x="{across(start):.1f}" y="{ground - tall:.1f}" width="{across(end) - across(start):.1f}" '
                f'height="{tall:.1f}" fill="{colour}"/>'
            )
    parts.append(f'<path d="M{across(clip.high):.1f} 0V{ground}" stroke="currentColor" stroke-dasharray="4"/>')
    for tick in MaxNLocator(7).tick_values(first, last):
        if first <= tick <= last:
            parts.append(
                f'<text x="{across(tick):.1f}" y="{ground + 16}" text-anchor="middle">{significant(tick)}</text>'
            )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" style="max-width: 100%; height: auto" '
        f'font-size="12" fill="currentColor" aria-hidden="true">{"".join(parts)}</svg>'
    )


class ClippingExplorer(Explorer):
    """The explorer that `clipping_explorer` returns; `text` is what it says at the moment."""

    def __init__(self, inputs, percent, bits):
        import ipywidgets

        look = {"style": {"description_width": "6em"}, "layout": {"width": "32em"}}
        self.inputs = inputs
        self.layer = ipywidgets.Dropdown(options=list(inputs), value=list(inputs)[-1], description="inputs of", **look)
        self.percent = ipywidgets.SelectionSlider(options=PERCENTS, value=percent, description="percentile", **look)
        self.bits = ipywidgets.IntSlider(value=bits, min=2, max=8, description="bits", **look)
        self.picture = ipywidgets.HTML()
        self.begin([self.layer, self.percent, self.bits], [self.picture])

    def update(self, change=None):
        """Follow the controls."""
        layer = self.layer.value
        clip = Clip(self.inputs[layer], self.percent.value, self.bits.value, f"Inputs of {layer}")
        self.text = clip.text
        self.picture.value = f'{clip_svg(clip)}<div role="status" style="max-width: 52em">{self.text}</div>'


def clipping_explorer(inputs, percent=99, bits=4):
    """Controls for the percentile at which a layer's inputs are clipped. Needs a running notebook to move.

    Args:
        inputs: {layer: tensor of all that flowed in}; the last one is shown first.
        percent: one of PERCENTS, to begin with.
        bits: 2 to 8, to begin with.

    Returns:
        a ClippingExplorer.
    """
    return ClippingExplorer(inputs, percent, bits)
