"""Pictures of lesson 18: the library as a map, and the capstone's curve of size and quality."""

import ast
import functools
import pathlib

import seaborn
from matplotlib.patches import FancyBboxPatch

from course.figures.picture import BLANK, Picture, new_figure

# ---------------------------------------------------------------- the library as a map

# Each module or package of qlib: what it does, and the lessons that build it beyond those whose exercises are in it.
ROOMS = {
    "scheme": ("bits, mode, granularity", (6, 8)),
    "affine": ("r = s (q - z), and its scales", ()),
    "packing": ("integers into bytes, and back", ()),
    "tensor": ("QTensor: codes and scales", (8,)),
    "observers": ("the ranges of activations", ()),
    "kernels": ("fast products of packed rows", (16,)),
    "report": ("true bytes, errors, tables", ()),
    "linear": ("layers: QLinear, W8A8", (10,)),
    "model": ("whole models, layer by layer", ()),
    "methods": ("LLM.int8() to QAT", ()),
    "kinds": ("what config.json says of a layer", (13, 17)),
    "checkpoint": ("folders of safetensors", ()),
    "models": ("the real models and texts", (1, 9, 12)),
    "hf": ("from_pretrained, push_to_hub", (13,)),
    "export": ("the layouts of others", (14,)),
    "capstone": ("a budget of bytes", ()),
    "course": ("the video course's names", ()),
    "plot": ("the pictures", ()),
    "exercises": ("check, hint, solution", ()),
}
READERS = ("course", "plot", "exercises")  # they read from all the others, so their arrows would say nothing
QLIB = pathlib.Path(__file__).parent.parent.parent / "qlib"


def rooms_of(path):
    """The module or package of qlib that a file of it belongs to: "affine" for affine.py, "plot" for plot/bits.py."""
    return path.relative_to(QLIB).parts[0].removesuffix(".py")


@functools.cache
def imports_between_rooms():
    """{room: set of the rooms that it imports}, read from the package's own source."""
    rooms = {rooms_of(path): set() for path in QLIB.rglob("*.py") if path.name != "__init__.py" or path.parent != QLIB}
    for path in QLIB.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "qlib":
                named = node.module.split(".")[1:2] or [alias.name for alias in node.names]
                rooms.get(rooms_of(path), set()).update(set(named) & rooms.keys() - {rooms_of(path)})
    return rooms


def floors(imports):
    """{room: its floor}: 0 for those that import nothing, else one above the highest that it imports."""

    @functools.cache
    def floor(room):
        return max((floor(other) + 1 for other in imports[room]), default=0)

    return {room: floor(room) for room in imports}


def direct(imports):
    """The imports that are not there by way of another: the arrows that a map needs."""

    def reaches(room):
        return imports[room].union(*(reaches(other) for other in imports[room]))

    return {
        room: {other for other in needed if not any(other in reaches(third) for third in needed - {other})}
        for room, needed in imports.items()
    }


def library_map(asked_for):
    """qlib as it is, floor upon floor: each module on those that it imports, with the lessons that build it.

    Args:
        asked_for: {room: {lesson: names}}, as `course.exercises.exercise.asked_for` gives it.

    Returns:
        a Picture.
    """
    imports = {room: needed - set(READERS) for room, needed in imports_between_rooms().items() if room not in READERS}
    on_floor = {}
    for room, floor in floors(imports).items():
        on_floor.setdefault(floor, []).append(room)
    order = list(ROOMS)
    places, arrows = {}, direct(imports)
    for floor, rooms in sorted(on_floor.items()):
        for place, room in enumerate(sorted(rooms, key=order.index)):
            places[room] = (place - (len(rooms) - 1) / 2) * 2.9, floor
        if floor and len(rooms) == 1:  # over what it stands on, so that no other's arrow runs through it
            below = [places[other][0] for other in arrows[rooms[0]]]
            places[rooms[0]] = sum(below) / len(below), floor
    figure, axis = new_figure(8, 0.72 * (len(on_floor) + 1))
    colours = seaborn.color_palette("viridis", 18)
    for room, needed in arrows.items():
        for other in needed:
            arrow = {"arrowstyle": "-|>", "color": "grey", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
            (x, y), (to_x, to_y) = places[room], places[other]
            axis.annotate("", (to_x, to_y + 0.34), (x, y - 0.34), arrowprops=arrow, zorder=1)
    roof = len(on_floor)
    places |= {room: ((place - 1) * 2.9, roof) for place, room in enumerate(READERS)}
    for room, (x, y) in places.items():
        numbers = lessons_of(room, asked_for)
        colour = colours[numbers[0] - 1] if numbers else (0.6, 0.6, 0.6)
        style = {"boxstyle": "round,pad=0,rounding_size=0.08", "edgecolor": colour, "linewidth": 1.6}
        axis.add_patch(FancyBboxPatch((x - 1.33, y - 0.34), 2.66, 0.68, facecolor="white", **style, zorder=2))
        title = f"{room}  " + (f"({in_words(numbers)})" if numbers else "")
        axis.text(x, y + 0.13, title, ha="center", va="center", fontsize=9, fontweight="bold", zorder=3)
        axis.text(x, y - 0.15, ROOMS[room][0], ha="center", va="center", fontsize=8, zorder=3)
    axis.set(xlim=(-4.4, 4.4), ylim=(-0.5, roof + 0.5))
    axis.axis("off")
    return Picture(figure, map_text(imports, on_floor, asked_for))


def lessons_of(room, asked_for):
    """The numbers of the lessons that build a room, in order."""
    if room == "course":
        return []
    return sorted({*ROOMS[room][1], *asked_for.get(room, {})})


def in_words(numbers):
    """[3, 4, 5, 8] as "3-5, 8"."""
    runs = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def map_text(imports, on_floor, asked_for):
    """What `library_map` draws, in words."""
    parts = [
        ", ".join(
            f"{room} ({in_words(lessons_of(room, asked_for)) or 'all'})"
            for room in sorted(rooms, key=list(ROOMS).index)
        )
        for _, rooms in sorted(on_floor.items())
    ]
    arrows = sum(len(needed) for needed in direct(imports).values())
    return (
        f"{len(imports)} modules of qlib on {len(on_floor)} floors, each above all that it imports ({arrows} arrows), "
        f"with the lessons that build them, from the ground up: {'; '.join(parts)}. On the roof, reading from all: "
        f"{', '.join(READERS)}."
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
    for (bits, points), colour, marker in zip(lines.items(), palette, "os^D", strict=False):
        label = f"round-to-nearest, {bits} bits"
        axis.plot(*zip(*sorted(points), strict=True), marker + "-", color=colour, label=label, markersize=4)
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
