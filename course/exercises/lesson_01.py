"""Exercises of lesson 1: introduction."""

import sys

import torch

from course.exercises.exercise import Case, Exercise, Mistake
from qlib.report import state_dict_bytes


class TinyModel(torch.nn.Module):
    """An embedding, a norm with buffers, and a head that is tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(1000, 16)
        self.norm = torch.nn.BatchNorm1d(16)
        self.head = torch.nn.Linear(16, 1000, bias=False)
        self.head.weight = self.embedding.weight


FLOATS = {"bias": torch.ones(4), "weight": torch.zeros(4, 2)}
MIXED = {
    "weight": torch.zeros(8, 8, dtype=torch.bfloat16),
    "values": torch.zeros(8, 8, dtype=torch.int8),
    "scale": torch.ones(8, 1),
    "step": torch.tensor(3),
}
ALIKE = {
    "layers.0.weight": torch.zeros(5, 5),
    "layers.1.weight": torch.zeros(5, 5),
    "layers.2.weight": torch.ones(5, 5),
}
FUSED = torch.zeros(12, 4)
VIEWS = {"query": FUSED[:6], "qkv": FUSED, "key": FUSED[8:10], "value": FUSED[10:]}
SAME = {"embedding.weight": FUSED, "lm_head.weight": FUSED}
PART = {"mask": torch.zeros(64, 64)[0], "none": torch.empty(0, 7), "nothing": torch.empty(0)}


def unique_storages(state_dict):
    """{address: storage}, for the mistakes that get this far."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in state_dict.values()}


def counts_elements(state_dict):
    return sum(storage.nbytes() // 4 for storage in unique_storages(state_dict).values())


def counts_elements_of_every_name(state_dict):
    return sum(tensor.numel() for tensor in state_dict.values())


def four_bytes_each(state_dict):
    return sum(4 * tensor.numel() for tensor in state_dict.values())


def four_bytes_each_of_unique(state_dict):
    kept = {tensor.untyped_storage().data_ptr(): tensor for tensor in state_dict.values()}
    return sum(4 * tensor.numel() for tensor in kept.values())


def counts_bits(state_dict):
    return 8 * state_dict_bytes(state_dict)


def counts_every_name(state_dict):
    return sum(tensor.nbytes for tensor in state_dict.values())


def counts_the_storage_of_every_name(state_dict):
    return sum(tensor.untyped_storage().nbytes() for tensor in state_dict.values())


def compares_the_objects(state_dict):
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in state_dict.values()}.values())


def compares_the_shapes(state_dict):
    return sum(tensor.nbytes for tensor in {(t.shape, t.dtype): t for t in state_dict.values()}.values())


def compares_the_values(state_dict):
    unique = []
    for tensor in state_dict.values():
        if not any(tensor.dtype == other.dtype and torch.equal(tensor, other) for other in unique):
            unique.append(tensor)
    return sum(tensor.nbytes for tensor in unique)


def compares_the_last_word_of_the_name(state_dict):
    return sum(tensor.nbytes for tensor in {name.split(".")[-1]: t for name, t in state_dict.items()}.values())


def compares_where_the_views_begin(state_dict):
    return sum(tensor.nbytes for tensor in {tensor.data_ptr(): tensor for tensor in state_dict.values()}.values())


def skips_views_that_begin_where_one_did(state_dict):
    unique = {}
    for tensor in state_dict.values():
        unique.setdefault(tensor.data_ptr(), tensor.nbytes)
    return sum(unique.values())


def compares_where_the_views_begin_and_end(state_dict):
    unique = {(tensor.data_ptr(), tensor.shape): tensor for tensor in state_dict.values()}
    return sum(tensor.nbytes for tensor in unique.values())


def counts_the_first_view(state_dict):
    unique = {}
    for tensor in state_dict.values():
        unique.setdefault(tensor.untyped_storage().data_ptr(), tensor.nbytes)
    return sum(unique.values())


def counts_the_last_view(state_dict):
    return sum({tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in state_dict.values()}.values())


def counts_floats_only(state_dict):
    return state_dict_bytes({name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()})


def counts_weights_and_biases_only(state_dict):
    return state_dict_bytes({n: t for n, t in state_dict.items() if n.split(".")[-1] in ("weight", "bias")})


def counts_matrices_only(state_dict):
    return state_dict_bytes({name: tensor for name, tensor in state_dict.items() if tensor.ndim == 2})


def measures_the_python_objects(state_dict):
    return sum(sys.getsizeof(tensor) for tensor in state_dict.values())


def measures_the_dictionary(state_dict):
    return sys.getsizeof(state_dict)


def returns_inside_the_loop(state_dict):
    total = 0
    for tensor in state_dict.values():
        total += tensor.untyped_storage().nbytes()
        return total


def in_megabytes(state_dict):
    return state_dict_bytes(state_dict) / 1e6


STATE_DICT_BYTES = Exercise(
    id="01.1",
    name="state_dict_bytes",
    key=state_dict_bytes,
    cases=[
        Case("a bias of 4 and a 4 x 2 weight, both float32", (FLOATS,)),
        Case("a small model whose head is tied to its embedding", (TinyModel().state_dict(),)),
        Case("bfloat16, int8, float32 and an int64 scalar together", (MIXED,)),
        Case("one tensor object under two names", (SAME,)),
        Case("three matrices of their own that look alike", (ALIKE,)),
        Case("a matrix of 12 rows, and views of some of its rows under other names", (VIEWS,)),
        Case("the first row of a 64 x 64 mask that is nowhere else, and two empty tensors", (PART,)),
        Case("an empty state dict", ({},)),
    ],
    mistakes=[
        Mistake(counts_elements_of_every_name, "when you count elements; a float32 takes 4 bytes, an int8 one"),
        Mistake(counts_elements, "when you count storages in units of 4 bytes; `.nbytes()` is in bytes as it stands"),
        Mistake(four_bytes_each, "with 4 bytes for every element, whatever its dtype, and every name counted"),
        Mistake(
            four_bytes_each_of_unique, "with 4 bytes for every element; bfloat16 takes 2, int8 takes 1, int64 takes 8"
        ),
        Mistake(counts_bits, "in bits; a byte has eight of them"),
        Mistake(
            counts_every_name, "when you add up every name: tied weights, which are in memory once, are counted twice"
        ),
        Mistake(
            counts_the_storage_of_every_name,
            "when you add up the storage of every name, and so count one that is shared as often as it is named",
        ),
        Mistake(
            compares_the_objects,
            "when you tell tensors apart as Python objects (`id`, or a set of tensors): `state_dict()` makes a new object "
            "for each name, and two of them may look into one storage",
        ),
        Mistake(compares_the_shapes, "when you take tensors of one shape for tied; each may have memory of its own"),
        Mistake(
            compares_the_values, "when you take tensors of equal values for tied; two copies take twice the memory"
        ),
        Mistake(
            compares_the_last_word_of_the_name,
            "when a later `weight` takes the place of an earlier one; keep every name",
        ),
        Mistake(
            compares_where_the_views_begin,
            "with the tensor's own `.data_ptr()`: a view that begins further along in a storage looks like another one",
        ),
        Mistake(
            skips_views_that_begin_where_one_did,
            "when you skip a tensor whose own `.data_ptr()` was there before, and add the bytes of the others: "
            "two views may begin at different places of one storage, or take part of it only",
        ),
        Mistake(
            compares_where_the_views_begin_and_end,
            "when you tell tensors apart by where they begin and by their shape: two views of one storage may differ in both",
        ),
        Mistake(
            counts_the_first_view, "with the bytes of the first view of a storage; ask the storage for its own bytes"
        ),
        Mistake(
            counts_the_last_view, "with the bytes of the last view of a storage; ask the storage for its own bytes"
        ),
        Mistake(counts_floats_only, "when you leave out the tensors that are not floats; they take memory as well"),
        Mistake(counts_weights_and_biases_only, "when you count weights and biases only; buffers take memory as well"),
        Mistake(counts_matrices_only, "when you count matrices only; vectors and scalars take memory as well"),
        Mistake(
            measures_the_python_objects,
            "from `sys.getsizeof` of each tensor, which measures the Python object around it",
        ),
        Mistake(
            measures_the_dictionary, "from `sys.getsizeof` of the dictionary, which does not look at the tensors in it"
        ),
        Mistake(returns_inside_the_loop, "with the `return` inside the loop: it ends at the first tensor"),
        Mistake(in_megabytes, "in units of a million bytes; return the bytes themselves"),
    ],
    hints=[
        "Names are not memory. Go through the tensors, ask each for its storage, and count each storage once.",
        "The bytes are the sum over the *different* storages. Two storages are the same if they begin at the same address.",
        "A dictionary keeps one entry a key: put each storage's `.nbytes()` in under the key `.data_ptr()`, "
        "both asked of `tensor.untyped_storage()`, and add up the values.",
    ],
)

EXERCISES = [STATE_DICT_BYTES]
