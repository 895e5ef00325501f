"""The table and the picture of what was measured, and the words about the machine that go with them."""

import datetime
import importlib.metadata
import os
import pathlib
import platform

import matplotlib.figure
import seaborn
import torch

PACKAGES = ["torch", "numba", "transformers", "optimum-quanto", "torchao", "bitsandbytes", "onnxruntime"]


# ---------------------------------------------------------------- the machine


def about():
    """What the results depend on: {what: value}."""
    versions = [f"{package} {version(package)}" for package in PACKAGES]
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{cpu()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "waiting": os.environ.get("OMP_WAIT_POLICY", "default"),
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
    }


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is missing"


def cpu():
    """The CPU's name, as Linux knows it; elsewhere as Python does."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def load():
    """The load average of the last minute: how many programs wanted a core."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


# ---------------------------------------------------------------- the table

INTRODUCTION = """\
Ratios of float32's time to a way's, both taken in the same process within the same second: above 1 is faster than
float32. Each is the median of the rounds, with the quartiles behind it; float32's own row shows how far two runs of
the same thing lie apart. In ways named bfloat16 all that flows through the model is bfloat16, in the others float32.
The error is the length of the difference from float32's result over the length of that, on random weights. 8-bit
weights have a scale a row, fewer bits a scale for each group of 64 (quanto: its own choice, 128; onnxruntime: 64 at 8
bits, too)."""


BUSY = (
    ": other programs were at work, which slows down most those ways whose threads wait for one another, so these "
    "ratios are only rough"
)


def page(results):
    """The results as Markdown: a table for the model and one for each shape of a layer, and how they were taken.

    Args:
        results: {part: {"about", "sizes", "measured"}} as `python -m bench` keeps it; parts may be missing.
    """
    text = ["# qlib beside other ways to run a linear layer", INTRODUCTION]
    if "model" in results:
        text += ["## A whole model", model_words(results["model"]["sizes"]), model_table(results)]
    for shape, batches in shapes(results).items():
        text += [f"## One layer, {shape}", layer_table(batches)]
    text += ["## What did not run", problems(results), "## How it was measured", conditions(results)]
    return "\n\n".join(text) + "\n"


def table(head, rows):
    """A Markdown table; the first column is text, all others are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def model_words(sizes):
    return (
        f"A Llama of random weights, {sizes['depth']} layers {sizes['width']} wide ({sizes['inner']} inside), "
        f"{sizes['vocabulary']} words, head and embedding apart; the head is converted with the other layers, the "
        f"embedding stays as it is. A prompt of {sizes['prompt']} tokens, then {sizes['tokens']} tokens one at a time. "
        "Memory in MB, beyond that of a process that has run a tiny model in the same way: what the model keeps, the "
        "most while it runs, and the most while it is converted, with the float32 model still there."
    )


def model_table(results):
    decode, prefill = (results["model"]["measured"][place] for place in ("decode", "prefill"))
    memory = results.get("memory", {}).get("measured", {})
    head = ["way", "decode, tokens/s", "decode, ratio", "prefill, ratio", "error of logits"]
    head += ["kept, MB", "running, MB", "converting, MB"]
    rows = []
    for name in decode:
        tokens = "–" if "problem" in decode[name] else f"{1 / decode[name]['seconds']:.1f}"
        megabytes = [memory.get(name, {}).get(what) for what in ("at rest", "running", "converting")]
        rows.append(
            [name, tokens, ratio(decode[name]), ratio(prefill[name]), error(decode[name])]
            + ["–" if nbytes is None else f"{nbytes / 1e6:.0f}" for nbytes in megabytes]
        )
    return table(head, rows)


def layer_table(batches):
    """batches: {batch: {way's name: figures}}"""
    first = next(iter(batches.values()))
    head = ["way"]
    for batch, found in batches.items():
        head.append(f"{batch} ({found['float32']['seconds'] * 1e3:.3g} ms)")
    rows = [[name, *(ratio(found[name]) for found in batches.values()), error(first[name])] for name in first]
    return table([*head, "error"], rows)


def shapes(results):
    """{shape: {"batch 1": what was measured}}"""
    found = {}
    for place, figures in results.get("layers", {}).get("measured", {}).items():
        shape, batch = place.split(", ")
        found.setdefault(shape, {})[batch] = figures
    return found


def ratio(figures):
    if "problem" in figures:
        return "–"
    low, median, high = (f"{value:.2f}" if value < 0.95 else f"{value:.1f}" for value in figures["ratio"])
    return f"{median} ({low}–{high})"


def error(figures):
    return "–" if "problem" in figures else f"{figures['error']:.1%}"


def problems(results):
    """A line for each way that failed somewhere: where, and why."""
    places = {
        f"{shape}, {batch}": found for shape, batches in shapes(results).items() for batch, found in batches.items()
    }
    if "model" in results:
        places["the model"] = results["model"]["measured"]["decode"]
    if "memory" in results:
        places["the model's memory"] = results["memory"]["measured"]
    found = {}
    for place, figures in places.items():
        for name in figures:
            if "problem" in figures[name]:
                found.setdefault((name, figures[name]["problem"]), []).append(place)
    lines = [f"- {name}: {problem} ({'; '.join(where)})" for (name, problem), where in found.items()]
    return "\n".join(lines) or "Everything ran."


def conditions(results):
    """A line for each part: when, on what and beside how much else it was measured."""
    lines = []
    for part, result in results.items():
        about, rounds = result["about"], result["sizes"]["rounds"]
        before, after = about["load"]
        measured = result["measured"]
        ways = len(measured if part == "memory" else next(iter(measured.values())))
        lines.append(
            f"- {part}: {about['date']}, {about['minutes']} minutes, {ways} ways, {rounds} rounds, {about['cpu']}, "
            f"{about['threads']} threads (OMP_WAIT_POLICY {about['waiting']}), load average {before} before and "
            f"{after} after{BUSY if part != 'memory' and (before or 0) > 0.5 else ''}. {about['versions']}."
        )
    return "\n".join(lines)


# ---------------------------------------------------------------- the picture


def picture(results):
    """A matplotlib figure: the ratios in the model, and at the smallest and largest batch of a layer."""
    panels = dict(reversed(results["model"]["measured"].items())) if "model" in results else {}
    for shape, batches in list(shapes(results).items())[1:2] or list(shapes(results).items()):
        smallest_and_largest = list(batches)[:: max(1, len(batches) - 1)]
        panels |= {f"{shape}, {batch}": batches[batch] for batch in smallest_and_largest}
    longest_first = sorted(panels.values(), key=len, reverse=True)
    rows = list(dict.fromkeys(name for found in longest_first for name in found if name != "float32"))
    figure = matplotlib.figure.Figure(figsize=(3 * len(panels) + 2, 0.3 * len(rows) + 1.6), layout="constrained")
    families = list(dict.fromkeys(name.split()[0] for name in rows))
    colours = dict(zip(families, seaborn.color_palette("colorblind", len(families))))
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, found) in zip(all_axes, panels.items()):
        draw(axes, title, [(name, found.get(name, {}).get("ratio"), colours[name.split()[0]]) for name in rows])
    figure.suptitle("Speed, float32 = 1 (bars: median; lines: quartiles)")
    return figure


def draw(axes, title, bars):
    """One panel; bars: (name, the three quartiles or None, colour) from top to bottom."""
    for y, (_, quartiles, colour) in enumerate(bars):
        if quartiles is None:
            continue
        low, median, high = quartiles
        axes.barh(y, median - 1, left=1, color=colour)
        axes.plot([low, high], [y, y], color="black", linewidth=1)
        axes.annotate(
            f" {median:.1f} " if median >= 0.95 else f" {median:.2f} ",
            (max(high, 1) if median >= 1 else min(low, 1), y),
            ha="left" if median >= 1 else "right",
            va="center",
            fontsize=8,
        )
    axes.set(title=title, xscale="log", yticks=range(len(bars)), yticklabels=[name for name, _, _ in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.margins(x=0.25)
    axes.axvline(1, color="black", linewidth=0.8)
    low, high = axes.get_xlim()
    between = (0.02, 0.05, 0.2, 0.5, 2, 5, 20) if high / low < 60 else ()
    ticks = [tick for tick in (0.01, 0.1, 1, 10, 100, *between) if low < tick < high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
