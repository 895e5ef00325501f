"""A Picture is a figure with a description computed from what it draws; here is what all pictures share."""

import base64
import io

import matplotlib
import seaborn
from matplotlib.figure import Figure

from qlib.report import as_text

VALUES, ERRORS = "viridis", "RdBu_r"  # perceptual for values; diverging, centred on 0, for errors
BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # behind words that a line would strike through


class Picture:
    """A figure and its caption, which stands under the picture and is its text for a screen reader.

    The caption is computed from the data, so a test that compares text compares what is drawn.
    """

    def __init__(self, figure, caption):
        self.figure = figure
        self.caption = caption

    def save(self, path):
        """Write the picture to a PNG or SVG file."""
        self.figure.savefig(path, dpi=144, bbox_inches="tight")

    def bundles(self):
        """What a notebook keeps of it: the image and, under it, the caption, which is the text of both."""
        png = io.BytesIO()
        self.figure.savefig(png, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        image = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": self.caption}
        return [image, {"text/markdown": f"*{self.caption}*", "text/plain": self.caption}]

    def _ipython_display_(self):
        from IPython.display import display

        for bundle in self.bundles():
            display(bundle, raw=True)

    def __repr__(self):
        return self.caption


def new_figure(width, height, columns=1, rows=1, **options):
    """A figure in the course's style and its axes. It belongs to no window, so that nothing draws it a second time."""
    with matplotlib.rc_context(
        {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


def told_apart(lines):
    """(label, points, colour, marker) of each line in {label: points}: no two look alike."""
    looks = zip(seaborn.color_palette("colorblind") * 2, "osD^vP*Xosd^vP*X", strict=False)
    return [(label, points, *look) for (label, points), look in zip(lines.items(), looks, strict=False)]


def significant(number, digits=4):
    """A number with `digits` significant digits: as text for captions, where magnitudes differ widely."""
    return f"{number:.{digits}g}" if number else "0"


def shape_text(tensor):
    """ "A 384 x 1536 matrix" for a matrix, "A vector of 4" for one row."""
    return (
        f"A {tensor.shape[0]} x {tensor.shape[1]} matrix" if tensor.shape[0] > 1 else f"A vector of {tensor.shape[1]}"
    )


def points_text(points):
    """The points of a line in words: all of them if they are few, else the ends, the lowest and the highest."""

    def at(x, y):
        return f"{as_text(float(y), 3)} at {as_text(float(x), 2)}"

    if len(points) <= 8:
        return ", ".join(at(*point) for point in points)
    lowest, highest = (pick(points, key=lambda point: point[1]) for pick in (min, max))
    return f"from {at(*points[0])} to {at(*points[-1])}, lowest {at(*lowest)}, highest {at(*highest)}"
