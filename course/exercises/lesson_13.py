"""Exercises of lesson 13: reading a file by hand, and filling a model that has no memory yet."""

import json
import pathlib
import tempfile
import tracemalloc

import safetensors
import safetensors.torch
import torch
from torch.nn import Embedding, Linear, ModuleDict, Parameter, Sequential

from course.exercises.exercise import Case, Exercise, Mistake, Property
from qlib.checkpoint import put_tensor
from qlib.files import DTYPES, read_tensor
from qlib.linear import QLinear
from qlib.model import still_on_meta
from qlib.report import in_units
from qlib.scheme import INT4

# ---------------------------------------------------------------- 13.1 read_tensor

ONE = {"weight": torch.tensor([[1.5, -2.0, 0.25], [3.0, 0.5, -1.0]])}
LAYER = {
    "packed": torch.tensor([[138, 15], [250, 4], [248, 11]], dtype=torch.uint8),
    "scale": torch.tensor([[104.0], [42.25], [97.75]]),
    "zero_point": torch.tensor([[-3], [4], [0]], dtype=torch.int8),
}
HALVES = {"a": torch.tensor([1.5, -0.125]).half(), "b": torch.tensor([[2.0, -384.0], [0.5, 1.0]]).bfloat16()}


def from_a_file(answer, tensors, key, missing=0):
    """What an answer reads from a file of these tensors, whose last `missing` bytes have been cut off."""
    whole = safetensors.torch.save(tensors, metadata={"format": "pt"})
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        path.write_bytes(whole[: len(whole) - missing])
        return answer(path, key)


def reads_too_much(answer):
    """A property: with a small tensor in a large file, no more than the header and the tensor is held."""
    tensors = {"large": torch.zeros(10**6), "small": torch.tensor([3, 1, 2], dtype=torch.uint8)}
    tracemalloc.start()
    try:
        from_a_file(lambda path, key: (tracemalloc.reset_peak(), answer(path, key)), tensors, "small")
        held = tracemalloc.get_traced_memory()[1] - 4 * 10**6  # our own copy of the file's bytes
    finally:
        tracemalloc.stop()
    if held > 10**6:
        return f"to read a tensor of 3 bytes from a file of 4 MB it holds {in_units(round(held, -6))} in memory."
    return None


def reads_by_hand(path, key, byteorder="little", skip=8, count=lambda start, end: end - start, dtype=None, flat=False):
    """The right way to read, with places to go wrong at."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), byteorder)
        entry = json.loads(file.read(length))[key]
        start, end = entry["data_offsets"]
        file.seek((skip + length if skip is not None else 0) + start)
        data = bytearray(file.read(count(start, end)))
    tensor = torch.frombuffer(data, dtype=dtype or DTYPES[entry["dtype"]])
    return tensor if flat else tensor.reshape(entry["shape"])


def counts_from_the_file(path, key):
    return reads_by_hand(path, key, skip=None)


def forgets_the_eight_bytes(path, key):
    return reads_by_hand(path, key, skip=0)


def reads_the_length_backwards(path, key):
    return reads_by_hand(path, key, byteorder="big")


def takes_the_end_for_a_count(path, key):
    return reads_by_hand(path, key, count=lambda start, end: end)


def reads_to_the_end(path, key):
    return reads_by_hand(path, key, count=lambda start, end: -1)


def reads_all_as_float32(path, key):
    return reads_by_hand(path, key, dtype=torch.float32)


def reads_all_as_bytes(path, key):
    return reads_by_hand(path, key, dtype=torch.uint8)


def leaves_it_flat(path, key):
    return reads_by_hand(path, key, flat=True)


def takes_no_heed_of_seek(path, key):
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[key]
        start, end = entry["data_offsets"]
        data = bytearray(file.read(end - start))
    return torch.frombuffer(data, dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])


def asks_the_library(path, key):
    with safetensors.safe_open(path, framework="pt") as file:
        return file.get_tensor(key)


def reads_the_whole_file(path, key):
    data = pathlib.Path(path).read_bytes()
    first = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:first])[key]
    start, end = entry["data_offsets"]
    values = bytearray(data[first + start : first + end])
    return torch.frombuffer(values, dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])


READ_TENSOR = Exercise(
    id="13.1",
    name="read_tensor",
    key=read_tensor,
    cases=[
        Case("a file with one tensor, float32 of shape (2, 3)", (ONE, "weight"), use=from_a_file),
        Case("the second tensor of a file, uint8", (LAYER, "packed"), use=from_a_file),
        Case("the first tensor of a file of three", (LAYER, "scale"), use=from_a_file),
        Case("the last tensor of a file, int8", (LAYER, "zero_point"), use=from_a_file),
        Case("bfloat16 in a file of halves", (HALVES, "b"), use=from_a_file),
        Case("a file that is cut off behind the tensor", (LAYER, "scale"), {"missing": 4}, use=from_a_file),
    ],
    properties=[Property(reads_too_much)],
    mistakes=[
        Mistake(
            counts_from_the_file,
            "with the offsets counted from the file's beginning; they begin where the header ends",
        ),
        Mistake(forgets_the_eight_bytes, "without the eight bytes of the length, which come before the header"),
        Mistake(takes_no_heed_of_seek, "when the file is read on right after the header, wherever the tensor begins"),
        Mistake(reads_the_length_backwards, "with the eight bytes read highest first; the lowest comes first"),
        Mistake(takes_the_end_for_a_count, "with the end taken for the count of bytes; it is the place where they end"),
        Mistake(reads_to_the_end, "with everything up to the file's end; the tensor's bytes end before that"),
        Mistake(reads_all_as_float32, "with every tensor read as float32; the header says its dtype"),
        Mistake(reads_all_as_bytes, "with the bytes themselves; the header says what dtype they are"),
        Mistake(leaves_it_flat, "with the numbers in one row; the header says the shape"),
        Mistake(
            asks_the_library,
            "with the library, which will not touch a file that is not whole; here the tensor is to be read by hand",
        ),
        Mistake(reads_the_whole_file, "with the whole file in memory; seek to the tensor's bytes and read only those"),
    ],
    hints=[
        "The first eight bytes say how long the header is, and the header says where the tensor lies: read those, and "
        "you know how far to jump.",
        "The tensor's bytes begin at 8 + the header's length + the first of its data_offsets, and there are as many "
        "as the two offsets are apart.",
        '`int.from_bytes(…, "little")`, then `json.loads(…)[key]`, then `file.seek(…)`, then '
        "`torch.frombuffer(bytearray(…), dtype=DTYPES[…])`, and `reshape`.",
    ],
)


# ---------------------------------------------------------------- 13.2 still_on_meta


class Rotary(torch.nn.Module):
    """As in a Llama: angles that are calculated when the model is built and stand in no file."""

    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", torch.tensor([1.0, 0.1]), persistent=False)


def block():
    parts = {"rotary": Rotary(), "up": Linear(2, 3), "packed": QLinear(4, 2, INT4)}
    return ModuleDict({"block": ModuleDict(parts), "head": Linear(3, 2, bias=False)})


def on_meta(part=""):
    """`block` with one of its parts, or all of it, on the meta device."""
    model = block()
    model.get_submodule(part).to("meta")
    return model


def a_layer_on_meta():
    return on_meta("head")


def a_rotary_on_meta():
    return on_meta("block.rotary")


def a_quantized_layer_on_meta():
    return on_meta("block.packed")


def a_weight_of_its_own():
    """A model that owns a tensor itself, beside its layers, and has it on the meta device."""
    model = block()
    model.register_parameter("start", Parameter(torch.empty(2, device="meta")))
    return model


def names_found(answer, make):
    """What an answer says of the model that `make` builds; in any order and any container."""
    found = answer(make())
    if isinstance(found, (list, tuple, set)) and all(isinstance(name, str) for name in found):
        return sorted(found)
    return found


def looks_at_parameters(model):
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


def looks_at_buffers(model):
    return [name for name, buffer in model.named_buffers() if buffer.is_meta]


def looks_at_the_state_dict(model):
    return [name for name, tensor in model.state_dict().items() if tensor.is_meta]


def compares_with_a_string(model):
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in tensors if str(tensor) == "meta" or tensor.device is torch.device("meta")]


def looks_at_the_top(model):
    tensors = [*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]
    return [name for name, tensor in tensors if tensor.is_meta]


def says_whether(model):
    return bool(still_on_meta(model))


def counts(model):
    return len(still_on_meta(model))


def names_the_layers(model):
    return list(dict.fromkeys(name.rpartition(".")[0] for name in still_on_meta(model)))


def names_what_is_there(model):
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in tensors if not tensor.is_meta]


STILL_ON_META = Exercise(
    id="13.2",
    name="still_on_meta",
    key=still_on_meta,
    cases=[
        Case("a model whose head alone is on meta", (a_layer_on_meta,), use=names_found),
        Case("a model whose rotary angles are on meta", (a_rotary_on_meta,), use=names_found),
        Case("a model whose quantized layer is on meta", (a_quantized_layer_on_meta,), use=names_found),
        Case("a model that owns a tensor on meta itself", (a_weight_of_its_own,), use=names_found),
        Case("a model that is all on meta", (on_meta,), use=names_found),
        Case("a model that is all there", (block,), use=names_found),
    ],
    mistakes=[
        Mistake(looks_at_parameters, "with the parameters alone; a model has buffers too"),
        Mistake(looks_at_buffers, "with the buffers alone; a model has parameters too"),
        Mistake(
            looks_at_the_state_dict,
            "with the state dict, which leaves out buffers that are not persistent: just those that no file fills",
        ),
        Mistake(compares_with_a_string, "with a comparison that never holds; a tensor itself says `is_meta`"),
        Mistake(looks_at_the_top, "with the tensors of the model itself; those of its layers count"),
        Mistake(says_whether, "with whether there are any; their names are asked for"),
        Mistake(counts, "with how many there are; their names are asked for"),
        Mistake(names_the_layers, "with the names of the layers; those of their tensors are asked for"),
        Mistake(names_what_is_there, "with the tensors that do have values; those that have none are asked for"),
    ],
    hints=[
        "A tensor of a module is either a parameter or a buffer, and a module can list both by name.",
        "`named_parameters()` and `named_buffers()` give pairs of a name and a tensor, and `tensor.is_meta` is True or "
        "False.",
        "`[name for name, tensor in [*…, *…] if …]`",
    ],
)


# ---------------------------------------------------------------- 13.3 put_tensor

VALUES = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 0.25]])


def layer_without_memory():
    return ModuleDict({"up": Linear(2, 3, bias=False, device="meta")})


def layer_with_memory():
    model = ModuleDict({"up": Linear(2, 3, bias=False)})
    torch.nn.init.ones_(model["up"].weight)
    return model


def nested_without_memory():
    return ModuleDict({"block": Sequential(Linear(2, 2), ModuleDict({"up": Linear(2, 3, bias=False, device="meta")}))})


def quantized_without_memory():
    return ModuleDict({"up": QLinear(4, 3, INT4, bias=False, device="meta")})


def tied_without_memory():
    model = ModuleDict({"embedding": Embedding(3, 2, device="meta"), "head": Linear(2, 3, bias=False, device="meta")})
    model["head"].weight = model["embedding"].weight
    return model


def frozen_without_memory():
    return layer_without_memory().requires_grad_(False)


def state_after(answer, make, names, tensor):
    """What the exercise compares: what became of a model's tensor when the answer has put another in its place."""
    model = make()
    answer(model, names, tensor)
    tensors = [getattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    left = [name for name, found in zip(names, tensors, strict=True) if found.is_meta]
    if left:
        return (left, *[None] * 4)
    return (
        left,
        tensors[0].detach().clone(),
        isinstance(tensors[0], Parameter),
        all(found is tensors[0] for found in tensors),
        tensors[0].requires_grad,
    )


def puts(module, part, tensor):
    """One name, right."""
    old = getattr(module, part)
    if isinstance(old, Parameter) and not isinstance(tensor, Parameter):
        tensor = Parameter(tensor, requires_grad=old.requires_grad)
    setattr(module, part, tensor)


def copies(model, names, tensor):
    for name in names:
        owner, _, part = name.rpartition(".")
        getattr(model.get_submodule(owner), part).data.copy_(tensor)


def puts_each_name(model, names, tensor):
    for name in names:
        owner, _, part = name.rpartition(".")
        puts(model.get_submodule(owner), part, tensor)


def puts_the_first_name(model, names, tensor):
    puts_each_name(model, names[:1], tensor)


def sets_the_dotted_name(model, names, tensor):
    for name in names:
        setattr(model, name, tensor)


def puts_a_plain_tensor(model, names, tensor):
    for name in names:
        owner, _, part = name.rpartition(".")
        setattr(model.get_submodule(owner), part, tensor)


def always_makes_a_parameter(model, names, tensor):
    parameter = Parameter(tensor, requires_grad=False)
    for name in names:
        owner, _, part = name.rpartition(".")
        old = getattr(model.get_submodule(owner), part)
        setattr(model.get_submodule(owner), part, parameter.requires_grad_(old.requires_grad))


def always_wants_gradients(model, names, tensor):
    for name in names:
        owner, _, part = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(getattr(module, part), Parameter) and not isinstance(tensor, Parameter):
            tensor = Parameter(tensor)
        setattr(module, part, tensor)


def never_wants_gradients(model, names, tensor):
    for name in names:
        owner, _, part = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(getattr(module, part), Parameter) and not isinstance(tensor, Parameter):
            tensor = Parameter(tensor, requires_grad=False)
        setattr(module, part, tensor)


PACKED = torch.tensor([[138, 15], [250, 4], [248, 11]], dtype=torch.uint8)
SCALES = torch.tensor([[104.0], [42.25], [97.75]])

PUT_TENSOR = Exercise(
    id="13.3",
    name="put_tensor",
    key=put_tensor,
    cases=[
        Case("the weight of a layer", (layer_without_memory, ["up.weight"], VALUES), use=state_after),
        Case("a weight deep in the model", (nested_without_memory, ["block.1.up.weight"], VALUES), use=state_after),
        Case("packed integers, a buffer", (quantized_without_memory, ["up.packed"], PACKED), use=state_after),
        Case("scales, a buffer of float32", (quantized_without_memory, ["up.scale"], SCALES), use=state_after),
        Case(
            "a weight with two names",
            (tied_without_memory, ["embedding.weight", "head.weight"], VALUES),
            use=state_after,
        ),
        Case(
            "a layer that is not on meta, but full of ones", (layer_with_memory, ["up.weight"], VALUES), use=state_after
        ),
        Case("a weight that takes no gradients", (frozen_without_memory, ["up.weight"], VALUES), use=state_after),
    ],
    parts=(
        "what is left on the meta device",
        "the new tensor",
        "whether it is a Parameter",
        "whether all its names stand for one tensor",
        "whether it takes gradients",
    ),
    mistakes=[
        Mistake(copies, "with a copy into the old tensor: on the meta device there is nothing to copy into"),
        Mistake(
            puts_each_name,
            "with a new Parameter for each name, as load_state_dict(assign=True) makes them; the names are to share one",
        ),
        Mistake(puts_the_first_name, "with the first name alone; a tied tensor is to be put at all its names"),
        Mistake(
            sets_the_dotted_name,
            'with setattr on the model itself, which makes an attribute "up.weight"; the layer owns it',
        ),
        Mistake(puts_a_plain_tensor, "with a plain tensor where a Parameter was"),
        Mistake(always_makes_a_parameter, "with a Parameter where a buffer was"),
        Mistake(always_wants_gradients, "with gradients, which the old Parameter did not take"),
        Mistake(never_wants_gradients, "without gradients, which the old Parameter took"),
    ],
    hints=[
        'The tensor "block.up.weight" is the attribute "weight" of the module "block.up": find that module and set its '
        "attribute.",
        "If the old attribute is a Parameter, the new one must be one too, with the same `requires_grad`; and only one "
        "is made, however many names there are.",
        '`owner, _, part = name.rpartition(".")`, then `module = model.get_submodule(owner)`, then '
        "`setattr(module, part, …)`.",
    ],
)

EXERCISES = [READ_TENSOR, STILL_ON_META, PUT_TENSOR]
