"""What quantization cost and what it saved: true bytes, errors, and the helpers that show numbers rounded."""

import dataclasses
import html
import math
import pathlib
import re

import torch
import torch.utils._python_dispatch
import torch.utils._pytree

from qlib.scheme import Scheme
from qlib.tensor import plain_tensors, stored_bytes

# ---------------------------------------------------------------- bytes


def state_dict_bytes(state_dict):
    """Bytes that the tensors of a state dict keep in memory, each storage counted once, however many share it.

    Tied weights are two names for one storage. A view keeps the whole storage that it looks into, and not just its
    own part of it. Tensors on the meta device have no memory, and no address to tell them apart by.

    Args:
        state_dict: {name: tensor}, as `model.state_dict()` gives it: any dtypes, buffers included.

    Returns:
        int, bytes.
    """
    storages = [tensor.untyped_storage() for tensor in state_dict.values()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def quantized_bytes(tensors):
    """Bytes of {name: tensor or QTensor}: packed integers, scales and zero points, and what was left as it was.

    What two names share counts once.
    """
    return state_dict_bytes(dict(enumerate(tensor for _, tensor in plain_tensors(tensors))))


def file_bytes(path):
    """Bytes on disk of a file, or of all the files in a folder; FileNotFoundError if there is neither."""
    path = pathlib.Path(path)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def weight_bytes(count, bits, group_size=None, symmetric=False):
    """Bytes of `count` weights of `bits` bits each, packed, with their scales and zero points, as a QTensor keeps them.

    Args:
        count: number of weights.
        bits: width of a weight, 1 to 32.
        group_size: weights that share a float32 scale (4 bytes) and, unless `symmetric`, an int8 zero point (1 byte);
            None leaves them out, for floats, and where so many weights share a scale that its bytes do not matter.
        symmetric: whether the zero point is 0 and need not be kept.

    Returns:
        int, bytes.
    """
    if group_size is None:
        return -(-count * bits // 8)
    return stored_bytes((1, count), Scheme(bits, symmetric, group_size=group_size))


def bits_per_weight(shape, scheme):
    """Bits that one weight of a matrix costs in all, its share of the scales and zero points counted.

    What a QTensor of that shape and scheme keeps, calculated without making one: each row packed on its own into
    whole bytes, a float32 scale (4 bytes) for each block of weights that shares one, and in asymmetric mode an int8
    zero point (1 byte) beside it.

    Args:
        shape: (rows, columns), at least one of each.
        scheme: a Scheme.

    Returns:
        float, bits.
    """
    rows, columns = shape
    if scheme.scales != "float32":  # another format of scales counts its own parts
        return 8 * stored_bytes(shape, scheme) / math.prod(shape)
    groups_in_a_row = math.ceil(columns / (scheme.group_size or columns))
    blocks = {None: 1, 0: rows * groups_in_a_row, 1: columns}[scheme.axis]
    packed_bytes = rows * math.ceil(columns * scheme.bits / 8)
    scale_bytes = blocks * (4 if scheme.symmetric else 5)
    return 8 * (packed_bytes + scale_bytes) / (rows * columns)


def fit_text(count, bits, group_size, memory, device):
    """Whether `count` weights fit into a memory, in words: their bytes, the bits of a weight, and what is left.

    Args:
        count, bits, group_size: as for `weight_bytes`.
        memory: bytes of the device's memory.
        device: its name, such as "an NVIDIA T4".
    """
    nbytes = weight_bytes(count, bits, group_size)
    groups = "" if group_size is None else f" in groups of {group_size}"
    cost = f"{as_text(count / 1e9, 1)} billion weights of {bits} bits{groups} take {in_units(nbytes)}"
    difference = in_units(abs(nbytes - memory))
    more_or_less, verdict = ("more", "do not fit") if nbytes > memory else ("less", "fit")
    return (
        f"{cost}, {as_text(8 * nbytes / count, 3)} bits a weight. That is {difference} {more_or_less} than the "
        f"{as_text(memory / 1e9, 1)} GB of {device}: they {verdict}."
    )


def peak_memory():
    """The most bytes of memory that this process has held at once: its peak resident set, mapped files included."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # on Linux, where getrusage would also count what the parent held when it started this process
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_units(nbytes):
    """Bytes in words, in powers of 1000 as disks and papers count them: 280000000000 is "280 GB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if nbytes < 999.5 or unit == "TB":
            return f"{nbytes:.0f} {unit}" if unit == "bytes" or nbytes >= 99.95 else f"{nbytes:.1f} {unit}"
        nbytes /= 1000


def memory_traffic(function, *args):
    """Bytes that PyTorch's operations read and write while a function runs, as if nothing stayed in a cache.

    Each operation counts the tensors that it is given as read and those that it makes as written; one that only looks
    at the same memory in another shape counts nothing. Tensors on the meta device will do, for they have sizes.

    Args:
        function: called with `args`; of its own loops and kernels that are not PyTorch's nothing is known.

    Returns:
        {"read": bytes, "written": bytes}.
    """
    moved = {"read": 0, "written": 0}

    def nbytes(tree):
        tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            out = operation(*args, **(kwargs or {}))
            if not operation.is_view:
                moved["read"] += nbytes((args, kwargs))
                moved["written"] += nbytes(out)
            return out

    with Counter():
        function(*args)
    return moved


# ---------------------------------------------------------------- errors


def quantization_error(original, dequantized):
    """The mean squared error between a tensor and what came back of it, a float in the unit of `original` squared."""
    return (original.float() - dequantized.float()).square().mean().item()


def sqnr(original, dequantized):
    """The signal-to-quantization-noise ratio in decibels: 10 log10 of signal power over error power; inf if equal."""
    signal = noise = torch.zeros((), dtype=torch.float64)
    # A piece at a time: a large weight should not be in memory three times over in float64.
    for piece, other in zip(original.reshape(-1).split(2**18), dequantized.reshape(-1).split(2**18), strict=True):
        piece = piece.double()
        signal = signal + piece.square().sum()
        noise = noise + (piece - other.double()).square().sum()
    return (10 * torch.log10(signal / noise)).item() if noise else float("inf")


def cosine(reference, embeddings):
    """The mean cosine between the rows of two (rows, features) tensors, a float: 1.0 where all directions agree."""
    return torch.nn.functional.cosine_similarity(reference.double(), embeddings.double()).mean().item()


def top1_agreement(reference, embeddings):
    """The share of rows whose nearest other row (by cosine) is the same one in both tensors, a float in [0, 1]."""
    return (nearest(reference) == nearest(embeddings)).double().mean().item()


def nearest(embeddings):
    """For each row of (rows, features), the index of the other row with the largest cosine; int64 of shape (rows,)."""
    unit = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    return (unit @ unit.T).fill_diagonal_(-2).argmax(-1)


def frontier(points):
    """The points that are worth their price: no other costs no more and is better (the Pareto frontier).

    Args:
        points: {name: (cost, quality)}, quality the better the larger, such as bits per weight and SQNR.

    Returns:
        list of names, from the cheapest to the dearest. Each is better than all before it.
    """
    names, best = [], -math.inf
    for name, (_, quality) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if quality > best:
            names.append(name)
            best = quality
    return names


# ---------------------------------------------------------------- showing numbers


def as_text(value, digits=4):
    """`value` (a number, a tensor, an array or a list) as text with `digits` decimals at most and no negative zero.

    Every result in a lesson is shown through this helper: the last bits of a float differ from one CPU to another,
    and rounded they are the same.
    """
    if hasattr(value, "tolist"):  # tensors, and NumPy's arrays and numbers
        value = value.tolist()
    if isinstance(value, float):
        text = f"{value:.{digits}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return "0" if text in ("-0", "") else text
    if isinstance(value, (list, tuple)):
        if value and isinstance(value[0], (list, tuple)):
            return matrix(value, digits)
        return "[" + ", ".join(as_text(item, digits) for item in value) + "]"
    return str(value)


def matrix(rows, digits):
    """A nested list as lines of right-aligned columns (deeper nestings one matrix after the other)."""
    if rows[0] and isinstance(rows[0][0], (list, tuple)):
        return "\n\n".join(matrix(row, digits) for row in rows)
    cells = [[as_text(item, digits) for item in row] for row in rows]
    width = max((len(cell) for row in cells for cell in row), default=0)
    return "\n".join("[" + "  ".join(cell.rjust(width) for cell in row) + "]" for row in cells)


class Table:
    """Rows of {column: value} as plain text and as HTML, numbers rounded to `digits` decimals at most."""

    def __init__(self, rows, digits=4):
        columns = dict.fromkeys(key for row in rows for key in row)
        self.columns = [str(column) for column in columns]
        self.cells = [[as_text(row.get(column, ""), digits) for column in columns] for row in rows]

    def __repr__(self):
        lines = [self.columns, *self.cells]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(" ".join(map(str.rjust, line, widths)) for line in lines)

    def _repr_html_(self):
        head, *body = (self.row_html(line, tag) for tag, line in self.tagged_lines())
        head = head.replace("<tr>", '<tr style="text-align: right;">')
        return "\n".join(
            ['<table class="dataframe">', "  <thead>", head, "  </thead>", "  <tbody>", *body, "  </tbody>", "</table>"]
        )

    def row_html(self, line, tag):
        cells = [f"      <{tag}{style}>{cell_html(cell)}</{tag}>" for cell, style in zip(line, self.styles())]
        return "\n".join(["    <tr>", *cells, "    </tr>"])

    def tagged_lines(self):
        return [("th", self.columns), *(("td", line) for line in self.cells)]

    def styles(self):
        """What each column's cells say of themselves: words begin on the left, numbers end on the right."""
        return [' style="text-align: left"' if holds_words(column) else "" for column in zip(*self.cells)]


def cell_html(text):
    """A cell's text for a narrow window: a size stays on one line, a long dotted name may be broken after a dot."""
    text = re.sub(r"(?<=\d) (?=(bytes|[kMGT]?B)$)", "&nbsp;", html.escape(text, quote=False))
    return re.sub(r"[\w.]{24,}", lambda name: name[0].replace(".", ".<wbr>"), text)


def holds_words(cells):
    """Whether most of a column's cells are more than a number and its unit: then it begins on the left, as text."""
    number = re.compile(r"[-+−]?([\d.,]+(e[-+]?\d+)?(%|×| bytes| [kMGT]?B)?|inf|nan)")
    filled = [cell for cell in cells if cell != ""]
    return sum(number.fullmatch(cell) is None for cell in filled) > len(filled) / 2


# ---------------------------------------------------------------- what became of a model


@dataclasses.dataclass(frozen=True)
class QuantizedLayer:
    """One layer of a Report: its scheme, its weight's bytes before and after, bits per weight and SQNR in decibels.

    `shared_with` is the layer whose weight it is too, or None.
    """

    name: str
    scheme: Scheme
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    sqnr: float
    shared_with: str | None = None


@dataclasses.dataclass(frozen=True)
class SkippedLayer:
    """One module that was left as it was, why, and the bytes of its matrices."""

    name: str
    why: str
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What `quantize_model` did: each layer, what was left alone and why, and the model's true bytes.

    Args:
        quantized: list of QuantizedLayer.
        skipped: list of SkippedLayer.
        bytes_before, bytes_after: of the model's unique storages, buffers included.
    """

    quantized: list
    skipped: list
    bytes_before: int
    bytes_after: int

    @property
    def table(self):
        """A Table with a line for each layer, those left alone at the end."""
        rows = [
            {
                "layer": layer.name,
                "scheme": str(layer.scheme) + (f", shared with {layer.shared_with}" if layer.shared_with else ""),
                "before": in_units(layer.bytes_before),
                "after": in_units(layer.bytes_after),
                "bits per weight": layer.bits_per_weight,
                "SQNR in dB": layer.sqnr,
            }
            for layer in self.quantized
        ]
        left = [{"layer": layer.name, "scheme": layer.why, "before": in_units(layer.nbytes)} for layer in self.skipped]
        return Table(rows + left, digits=2)

    def __repr__(self):
        left = f"; {len(self.skipped)} left as they were" if self.skipped else ""
        return (
            f"{len(self.quantized)} layers quantized{left}. "
            f"{in_units(self.bytes_before)} before, {in_units(self.bytes_after)} after.\n{self.table!r}"
        )

    def _repr_html_(self):
        return f"<p>{html.escape(repr(self).splitlines()[0])}</p>{self.table._repr_html_()}"
