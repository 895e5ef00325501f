"""What lesson 18 draws: the library as a map, the capstone's curve of size and quality, and texts side by side."""

import ast
import dataclasses
import functools
import graphlib
import pathlib
import re
import textwrap

import seaborn
from matplotlib.patches import FancyBboxPatch

from course.figures.picture import words_of
from course.figures.shared import BLANK, Completions
from qlib.plot import Picture, line_styles, new_figure

__all__ = ["Completions", "budget_curve", "library_map"]


# ---------------------------------------------------------------- the library as a map

FOLDER = pathlib.Path(__file__).parents[2]  # where qlib and course lie
WIDE = 4  # so many rooms of the course stand side by side; a floor of qlib is as wide as it is


@dataclasses.dataclass(frozen=True)
class Room:
    """A module of a package, or a package in it: what it says of itself, and the rooms beside it that it imports."""

    sentence: str
    imports: frozenset


@functools.cache
def rooms_of(package):
    """{name: Room} of "qlib" or "course", read from the source."""
    files = {}
    for path in sorted((FOLDER / package).rglob("*.py")):  # an __init__.py comes before the modules beside it
        files.setdefault(path.relative_to(FOLDER / package).parts[0].removesuffix(".py"), []).append(path)
    del files["__init__"]
    rooms = {}
    for name, paths in files.items():
        trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
        imported = {room for tree in trees for room in imported_rooms(tree, package)}
        rooms[name] = Room(first_sentence(ast.get_docstring(trees[0])), frozenset(imported & files.keys() - {name}))
    return rooms


def imported_rooms(tree, package):
    """The names of all that a module's source imports from a package, wherever in it: "affine" for qlib.affine."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            yield from node.module.split(".")[1:2] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            dotted = [alias.name.split(".") for alias in node.names]
            yield from (parts[1] for parts in dotted if parts[0] == package and len(parts) > 1)


def first_sentence(docstring):
    """A docstring's first sentence, on one line and without the full stop."""
    return re.split(r"\.(?=\s|$)", " ".join(docstring.split()))[0]


def reached_from(room, imports):
    """All rooms that a room imports, also by way of others."""
    reached, waiting = set(), list(imports[room])
    while waiting:
        if (other := waiting.pop()) not in reached:
            reached.add(other)
            waiting += imports[other]
    return reached


def floors(imports):
    """{room: its floor}: 0 for those that import nothing, else one above the highest that it imports.

    Raises:
        graphlib.CycleError: rooms import each other; it names them.
    """
    floor = {}
    for room in graphlib.TopologicalSorter(imports).static_order():
        floor[room] = max((floor[other] + 1 for other in imports[room]), default=0)
    return floor


def arrows_needed(imports):
    """[(room, room that it imports)] without the imports that are there by way of another."""
    return [
        (room, other)
        for room in imports
        for other in sorted(imports[room])
        if not any(other in reached_from(third, imports) for third in imports[room])
    ]


def library_map(asked_for):
    """qlib as it is, floor upon floor: each room on those that it imports, with the lessons whose exercises are in it.

    On the roof stand the rooms of the course, which read from all of qlib's.

    Args:
        asked_for: {room: {lesson: names}}, as `course.exercises.exercise.asked_for` gives it.

    Returns:
        a Picture.
    """
    rooms, roof = rooms_of("qlib"), rooms_of("course")
    imports = {name: room.imports for name, room in rooms.items()}
    floor, arrows = floors(imports), arrows_needed(imports)
    rows = [sorted(name for name in rooms if floor[name] == level) for level in range(max(floor.values()) + 1)]
    height = len(rows)
    rows += [sorted(roof)[start : start + WIDE] for start in range(0, len(roof), WIDE)]
    places = {name: (place - (len(row) - 1) / 2, y) for y, row in enumerate(rows) for place, name in enumerate(row)}
    wide = max(map(len, rows))
    figure, axis = new_figure(2.3 * wide, 0.86 * len(rows))
    for room, other in arrows:
        (x, y), (to_x, to_y) = places[room], places[other]
        arrow = {"arrowstyle": "-|>", "color": "grey", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", (to_x, to_y + 0.38), (x, y - 0.38), arrowprops=arrow, zorder=1)
    colours = seaborn.color_palette("viridis", 18)
    for name, room in (rooms | roof).items():
        (x, y), numbers = places[name], sorted(asked_for.get(name, {}))
        colour = colours[numbers[0] - 1] if numbers else (0.6, 0.6, 0.6)
        style = {"boxstyle": "round,pad=0,rounding_size=0.04", "edgecolor": colour, "linewidth": 1.6}
        axis.add_patch(FancyBboxPatch((x - 0.47, y - 0.38), 0.94, 0.76, facecolor="white", **style, zorder=2))
        title = f"{name} ({in_words(numbers)})" if numbers else name
        axis.text(x, y + 0.26, title, ha="center", va="center", fontsize=8.5, fontweight="bold", zorder=3)
        words = textwrap.fill(room.sentence, 38)
        axis.text(x, y - 0.1, words, ha="center", va="center", fontsize=7, linespacing=1.05, zorder=3)
    axis.axhline(height - 0.5, color="grey", linestyle=":", linewidth=1)
    axis.set(xlim=(-wide / 2, wide / 2), ylim=(-0.5, len(rows) - 0.5))
    axis.axis("off")
    return Picture(figure, map_text(axis, floor, roof, len(arrows)))


def in_words(numbers):
    """[3, 4, 5, 8] as "3-5, 8"."""
    runs = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def map_text(axis, floor, roof, arrows):
    """What `library_map` draws, in words: the names with their lessons are those that stand in the boxes."""
    titles = {words.partition(" (")[0]: words for words in words_of(axis)}
    levels = [
        ", ".join(titles[name] for name in sorted(floor) if floor[name] == level)
        for level in range(max(floor.values()) + 1)
    ]
    above = ", ".join(titles[name] for name in sorted(roof))
    return (
        f"{len(floor)} rooms of qlib on {len(levels)} floors, each above all that it imports ({arrows} arrows), with "
        f"the lessons that ask for what is in them, from the ground up: {'; '.join(levels)}. "
        f"On the roof, reading from all, the course: {above}."
    )


# ---------------------------------------------------------------- size and quality


TICKS = (10.2, 10.5, 11, 12, 15, 20, 30, 50, 70)


def budget_curve(stored, budget, yours=None):
    """Perplexity over bytes on disk: round-to-nearest at each width, the budget, and what has been reached within it.

    The scale of the perplexity is logarithmic in what it has more than the float model, so that good models are told
    apart as well as bad ones.

    Args:
        stored: what data/capstone/results.json holds: see `course.capstone.Task`.
        budget: bytes, drawn as a line.
        yours: {"bytes", "perplexity"} of an answer, or None.

    Returns:
        a Picture.
    """

    def place(point):
        return point["bytes"] / 1e6, max(point["perplexity"] - stored["float"], 0.1)

    lines = {}
    for point in stored["rounding"]:
        lines.setdefault(point["bits"], []).append(place(point))
    palette = seaborn.color_palette("colorblind")
    figure, axis = new_figure(8, 4.4)
    for (bits, points), style in zip(lines.items(), line_styles(len(lines)), strict=True):
        label = f"round-to-nearest, {bits} bits"
        axis.plot(*zip(*sorted(points), strict=True), label=label, markersize=4, **style)
    axis.axvline(budget / 1e6, color="black", linestyle="--", linewidth=1)
    marked = {"the library's answer": (stored["library"], "P", palette[4])}
    marked["the project's best"] = (stored["best"], "*", "black")
    marked |= {"yours": (yours, "X", palette[3])} if yours else {}
    for label, (point, marker, colour) in marked.items():
        axis.plot(*place(point), marker, color=colour, markersize=12, markeredgecolor="white", label=label, zorder=3)
    ylabel = f"perplexity, held-out text (float32: {stored['float']:.2f})"
    axis.set(xlabel="MB on disk", ylabel=ylabel, yscale="log")
    low, high = axis.get_ylim()
    shown = [tick for tick in TICKS if low < tick - stored["float"] < high]
    axis.set_yticks([tick - stored["float"] for tick in shown], [f"{tick:g}" for tick in shown])
    axis.minorticks_off()
    axis.grid(axis="y", alpha=0.3)
    axis.annotate(f"{budget:,} bytes", (budget / 1e6, high), (5, -12), textcoords="offset points", bbox=BLANK)
    axis.legend(fontsize=9, loc="upper right")
    return Picture(figure, curve_text(stored, budget, yours))


def curve_text(stored, budget, yours):
    """What `budget_curve` draws, in words."""
    bar = min((p for p in stored["rounding"] if p["bytes"] <= budget), key=lambda p: p["perplexity"])
    groups = f"groups of {bar['group_size']}" if bar["group_size"] else "a scale a row"
    points = {
        f"round-to-nearest, {bar['bits']} bits, {groups}": bar,
        "the library's answer": stored["library"],
        "the project's best": stored["best"],
    }
    points |= {"yours": yours} if yours else {}
    parts = "; ".join(f"{name}: {p['perplexity']:.2f} at {p['bytes']:,} bytes" for name, p in points.items())
    return (
        f"Perplexity over bytes on disk, {len(stored['rounding'])} ways to round to nearest and a budget of {budget:,} "
        f"bytes; float32 has {stored['float']:.2f}. Within the budget: {parts}."
    )
