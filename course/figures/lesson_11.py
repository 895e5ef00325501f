"""What lesson 11 draws: models as trees of modules, a box each, coloured by what it is."""

from collections import Counter

import seaborn
import torch
from matplotlib.patches import Rectangle

from qlib.model import is_linear, tensors_of
from qlib.plot import Picture, new_figure
from qlib.report import in_units, state_dict_bytes

__all__ = ["module_trees"]


SMALL_INTEGERS = {torch.int8, torch.uint8}


def module_trees(models, weightless=True):
    """Models as trees side by side, such as one before and after its layers were replaced.

    A module is a box with its name and its kind, and its children stand under it, moved to the right. Linear layers are
    blue, layers of small integers green, embeddings orange, other modules with weights grey, and those without white.
    Of neighbours that are alike the first is drawn, and stands for all. What shares its weight with another is "tied".

    Args:
        models: {label: torch.nn.Module}.
        weightless: whether to draw modules that hold no tensor and no module that does, such as activations.

    Returns:
        a Picture.
    """
    rows = {label: tree_rows(model, weightless) for label, model in models.items()}
    longest = max(map(len, rows.values()))
    figure, axes = new_figure(max(6, 3.8 * len(models)), 0.5 + 0.27 * longest, columns=len(models), squeeze=False)
    for axis, (label, lines) in zip(axes.flat, rows.items(), strict=True):
        last_at = {}  # depth -> the last row drawn there: the parent of the next row that is one deeper
        for row, (depth, name, words, colour) in enumerate(lines):
            left, last_at[depth] = 0.45 * depth, row
            box = Rectangle((left, row), 12 - left, 0.84, facecolor=(*colour, 0.35), edgecolor="grey", linewidth=0.7)
            axis.add_patch(box)
            if depth:
                below = last_at[depth - 1] + 0.84
                axis.plot(
                    [left - 0.25, left - 0.25, left], [below, row + 0.42, row + 0.42], color="grey", linewidth=0.7
                )
            axis.text(left + 0.12, row + 0.45, name, va="center", fontsize=9.5, fontweight="bold")
            axis.text(11.88, row + 0.45, words, va="center", ha="right", fontsize=9.5)
        axis.set(xlim=(-0.05, 12.05), ylim=(longest, -0.05), title=label)
        axis.axis("off")
    hidden = "" if weightless else " Modules without weights are not drawn."
    return Picture(figure, " ".join(f"{label}: {tree_text(model)}." for label, model in models.items()) + hidden)


def tree_rows(model, weightless):
    """(depth, name, words, colour) of each box of a model's tree, from top to bottom."""
    tied = {name for names in tied_names(model) for name in names}
    rows, seen = [], {}

    def walk(path, name, module, depth):
        words, colour = words_of(module), colour_of(module)
        if id(module) in seen:
            rows.append((depth, name, f"the same layer as {seen[id(module)]}", colour))
            return
        seen[id(module)] = path
        rows.append((depth, name, f"{words}, tied" if path in tied else words, colour))
        children = [
            (key, child)
            for key, child in module._modules.items()  # named_children would leave out a layer's second place
            if child is not None and (weightless or holds_tensors(child))
        ]
        while children:
            key, child = children[0]
            alike = run_of_alike(children)
            label = key if alike == 1 else f"{key} … {children[alike - 1][0]}"
            walk(f"{path}.{key}".lstrip("."), label, child, depth + 1)
            children = children[alike:]

    walk("", "the model", model, 0)
    return rows


def run_of_alike(children):
    """How many of the first modules in a list, numbered ones that hold modules themselves, look the same."""
    alike = 1
    first_key, first = children[0]
    if first_key.isdigit() and first._modules:
        while (
            alike < len(children) and outline(children[alike][1]) == outline(first) and children[alike][1] is not first
        ):
            alike += 1
    return alike


def outline(module):
    """What a module and those in it look like: two modules of the same outline are drawn as one."""
    return [(name, words_of(inner)) for name, inner in module.named_modules()]


def holds_tensors(module):
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def is_small_integer(module):
    """Whether a module itself holds a matrix of int8 or uint8."""
    return any(tensor.dtype in SMALL_INTEGERS and tensor.ndim > 1 for tensor in module.buffers(recurse=False))


def words_of(module):
    """The kind of a module and the size of its matrix: "Linear 4 → 8", "Embedding 10 x 4"."""
    kind = type(module).__name__
    if hasattr(module, "in_features"):
        width = f", {module.scheme.bits}-bit" if hasattr(module, "scheme") else ""
        return f"{kind} {module.in_features} → {module.out_features}{width}"
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    matrix = next((tensor for tensor in tensors if tensor.ndim == 2 and tensor.dtype != torch.int64), None)
    if matrix is None:
        return kind
    if is_small_integer(module):
        return f"{kind} {matrix.shape[1]} → {matrix.shape[0]}"
    if is_linear(module):  # Conv1D, whose weight lies transposed
        return f"{kind} {matrix.shape[0]} → {matrix.shape[1]}"
    return f"{kind} {matrix.shape[0]} x {matrix.shape[1]}"


def colour_of(module):
    blue, orange, green = seaborn.color_palette("colorblind")[:3]
    if is_small_integer(module):
        return green
    if is_linear(module):
        return blue
    if isinstance(module, torch.nn.Embedding):
        return orange
    own = [*module.parameters(recurse=False)]
    return (0.6, 0.6, 0.6) if own else (1.0, 1.0, 1.0)


def tree_text(model):
    """A model in words: how many modules it has, how many of each kind hold weights of their own, and its bytes."""
    modules = list(model.modules())
    own = (m for m in modules if next(m.parameters(recurse=False), None) is not None or is_small_integer(m))
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(type(m).__name__ for m in own).items())
    tensors = tensors_of(model)
    size = "on meta" if any(t.is_meta for t in tensors.values()) else in_units(state_dict_bytes(tensors))
    ties = [f"; {' and '.join(names)} share a weight" for names in tied_names(model)]
    return f"{len(modules)} modules, of which {kinds} hold weights{''.join(ties)}; {size}"


def tied_names(model):
    """The names of the modules that hold one weight together, a list for each such weight."""
    holders = {}
    for name, module in model.named_modules():
        if module._parameters.get("weight") is not None:
            holders.setdefault(id(module._parameters["weight"]), []).append(name)
    return [names for names in holders.values() if len(names) > 1]
