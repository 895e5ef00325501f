"""Exercises of lesson 1: introduction."""

import sys

import torch

from course.exercises.exercise import Case, Exercise
from course.exercises.mistakes import Mistake, edit
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
MIXED = {"weight": torch.zeros(8, 8, dtype=torch.bfloat16), "values": torch.zeros(8, 8, dtype=torch.int8), "scale": torch.ones(8, 1), "step": torch.tensor(3)}
ALIKE = {"layers.0.weight": torch.zeros(5, 5), "layers.1.weight": torch.zeros(5, 5), "layers.2.weight": torch.ones(5, 5)}
FUSED = torch.zeros(12, 4)
VIEWS = {"query": FUSED[:6], "qkv": FUSED, "key": FUSED[8:10], "value": FUSED[10:]}
SAME = {"embedding.weight": FUSED, "lm_head.weight": FUSED}
PART = {"mask": torch.zeros(64, 64)[0], "none": torch.empty(0, 7), "nothing": torch.empty(0)}


# What several mistakes have in common: they ask the tensors, not their storages; or they add up every name.
ASK_TENSORS = (".untyped_storage()", "", "storage.nbytes()", "storage.nbytes")
EVERY_NAME = ("sum({storage.data_ptr(): ", "sum([", "}.values()", "]")


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
        Mistake(edit(*ASK_TENSORS, *EVERY_NAME, "storage.nbytes", "storage.numel()"), "when you count elements; a float32 takes 4 bytes, an int8 one"),
        Mistake(edit("storage.nbytes()", "storage.nbytes() // 4"), "when you count storages in units of 4 bytes; `.nbytes()` is in bytes as it stands"),
        Mistake(
            edit(*ASK_TENSORS, "data_ptr(): storage.nbytes", "untyped_storage().data_ptr(): storage.storage().size()"),
            "when you count the elements of each storage; an element takes as many bytes as its dtype says",
        ),
        Mistake(edit(*ASK_TENSORS, *EVERY_NAME, "storage.nbytes", "4 * storage.numel()"), "with 4 bytes for every element, whatever its dtype, and every name counted"),
        Mistake(edit(*ASK_TENSORS, "data_ptr(): storage.nbytes", "untyped_storage().data_ptr(): 4 * storage.numel()"), "with 4 bytes for every element; bfloat16 takes 2, int8 takes 1, int64 takes 8"),
        Mistake(edit("sum(", "8 * sum("), "in bits; a byte has eight of them"),
        Mistake(edit(*ASK_TENSORS, *EVERY_NAME), "when you add up every name: tied weights, which are in memory once, are counted twice"),
        Mistake(edit(*EVERY_NAME), "when you add up the storage of every name, and so count one that is shared as often as it is named"),
        Mistake(edit("{storage.data_ptr(): storage.nbytes()", "{storage.nbytes()", "}.values()", "}"), "with a set of the sizes, which keeps one of several storages that are equally large"),
        Mistake(
            edit(*ASK_TENSORS, "storage.data_ptr()", "id(storage)"),
            "when you tell tensors apart as Python objects (`id`, or a set of tensors): `state_dict()` makes a new object for each name, and two of them may look into one storage",
        ),
        Mistake(edit(*ASK_TENSORS, "storage.data_ptr()", "(storage.shape, storage.dtype)"), "when you take tensors of one shape for tied; each may have memory of its own"),
        Mistake(edit(*ASK_TENSORS, "storage.data_ptr()", "(storage.dtype, str(storage.tolist()))"), "when you take tensors of equal values for tied; two copies take twice the memory"),
        Mistake(edit("state_dict.values()", "{name.split('.')[-1]: t for name, t in state_dict.items()}.values()"), "when a later `weight` takes the place of an earlier one; keep every name"),
        Mistake(edit(*ASK_TENSORS), "with the tensor's own `.data_ptr()`: a view that begins further along in a storage looks like another one"),
        Mistake(
            edit(*ASK_TENSORS, "in storages", "in storages[::-1]"),
            "when you skip a tensor whose own `.data_ptr()` was there before, and add the bytes of the others: two views may begin at different places of one storage, or take part of it only",
        ),
        Mistake(
            edit(*ASK_TENSORS, "storage.data_ptr()", "(storage.data_ptr(), storage.shape)"),
            "when you tell tensors apart by where they begin and by their shape: two views of one storage may differ in both",
        ),
        Mistake(
            edit(*ASK_TENSORS, ".data_ptr()", ".untyped_storage().data_ptr()", "in storages", "in storages[::-1]"), "with the bytes of the first view of a storage; ask the storage for its own bytes"
        ),
        Mistake(edit(*ASK_TENSORS, ".data_ptr()", ".untyped_storage().data_ptr()"), "with the bytes of the last view of a storage; ask the storage for its own bytes"),
        Mistake(edit("state_dict.values()", "state_dict.values() if tensor.is_floating_point()"), "when you leave out the tensors that are not floats; they take memory as well"),
        Mistake(
            edit("tensor in state_dict.values()", "name, tensor in state_dict.items() if name.endswith(('weight', 'bias'))"), "when you count weights and biases only; buffers take memory as well"
        ),
        Mistake(edit("state_dict.values()", "state_dict.values() if tensor.ndim == 2"), "when you count matrices only; vectors and scalars take memory as well"),
        Mistake(lambda state_dict: sum(sys.getsizeof(tensor) for tensor in state_dict.values()), "from `sys.getsizeof` of each tensor, which measures the Python object around it"),
        Mistake(lambda state_dict: sys.getsizeof(state_dict), "from `sys.getsizeof` of the dictionary, which does not look at the tensors in it"),
        Mistake(edit("sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())", "storages[0].nbytes()"), "with the `return` inside the loop: it ends at the first tensor"),
        Mistake(
            edit(*ASK_TENSORS, "storage.data_ptr(): storage.nbytes", "id(storage): storage.untyped_storage().nbytes()"),
            "when you add up the storage of every tensor object: two of them may look into one storage",
        ),
        Mistake(edit(*ASK_TENSORS, "storage.nbytes", "storage.untyped_storage().nbytes()"), "when you count a storage once for each place at which a view of it begins"),
        Mistake(
            edit(*ASK_TENSORS, ".data_ptr()", ".untyped_storage().data_ptr()", "in storages", "in sorted(storages, key=lambda t: t.nbytes)"),
            "with the bytes of the largest view of a storage; ask the storage for its own bytes",
        ),
        Mistake(edit("sum(", "len("), "when you count the storages; add up their bytes"),
        Mistake(edit("state_dict.values()", "state_dict.values() if tensor.requires_grad"), "when you count tensors with a gradient only; those of a state dict have none"),
        Mistake(edit("sum(", "1.0 * sum("), "with a float; bytes are whole numbers, an int"),
        Mistake(edit("sum(", "2**-10 * sum("), "in units of 1024 bytes; return the bytes themselves"),
        Mistake(edit("sum(", "1e-6 * sum("), "in units of a million bytes; return the bytes themselves"),
        Mistake(edit("sum(", "2**-20 * sum("), "in units of 1024 * 1024 bytes; return the bytes themselves"),
    ],
    equivalent={"storage.data_ptr() -> storage": "a storage is one Python object for as long as it lives, and the list keeps it alive"},
    hints=[
        "Names are not memory. Go through the tensors, ask each for its storage, and count each storage once.",
        "The bytes are the sum over the *different* storages. Two storages are the same if they begin at the same address.",
        "A dictionary keeps one entry a key: put each storage's `.nbytes()` in under the key `.data_ptr()`, both asked of `tensor.untyped_storage()`, and add up the values.",
    ],
)

EXERCISES = [STATE_DICT_BYTES]
