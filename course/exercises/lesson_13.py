"""Exercises of lesson 13: reading a file by hand, and filling a model that has no memory yet."""

import pathlib
import tempfile
import tracemalloc

import safetensors
import safetensors.torch
import torch
from torch.nn import Embedding, Linear, ModuleDict, Parameter, Sequential

from course.exercises.exercise import Case, Exercise, Property, Words
from course.exercises.mistakes import Mistake, edit
from qlib.checkpoint import put_tensor
from qlib.files import read_tensor
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


def from_raw_bytes(count="end - start", dtype="tensor.dtype"):
    """The edit that makes the tensor of `count` raw bytes, as the lesson's text does."""
    return edit(
        "start, _", "start, end", "file.readinto(tensor.reshape(-1).view(torch.uint8).numpy())", f"tensor = torch.frombuffer(bytearray(file.read({count})), dtype={dtype}).reshape(tensor.shape)"
    )


def asks_the_library(path, key):
    with safetensors.safe_open(path, framework="pt") as file:
        return file.get_tensor(key)


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
        Mistake(edit("8 + length + start", "start"), "with the offsets counted from the file's beginning; they begin where the header ends"),
        Mistake(edit("8 + length", "length"), "without the eight bytes of the length, which come before the header"),
        Mistake(edit("file.seek(8 + length + start)", "pass"), "when the file is read on right after the header, wherever the tensor begins"),
        Mistake(edit('"little"', '"big"'), "with the eight bytes read highest first; the lowest comes first"),
        Mistake(edit("read(8)", "read(4)"), "with four bytes taken for the header's length; there are eight"),
        Mistake(edit("read(length)", "read()"), "with all that follows taken for the header; it is `length` bytes long"),
        Mistake(from_raw_bytes(count="end"), "with the end taken for the count of bytes; it is the place where they end"),
        Mistake(from_raw_bytes(count=""), "with everything up to the file's end; the tensor's bytes end before that"),
        Mistake(from_raw_bytes(dtype="torch.float32"), "with every tensor read as float32; the header says its dtype"),
        Mistake(from_raw_bytes(dtype="torch.uint8"), "with the bytes themselves; the header says what dtype they are"),
        Mistake(edit('DTYPES[entry["dtype"]]', 'entry["dtype"]'), "with the dtype's name in place of the dtype; `DTYPES` has it under that name"),
        Mistake(edit("return tensor", "return tensor.flatten()"), "with the numbers in one row; the header says the shape"),
        Mistake(asks_the_library, "with the library, which will not touch a file that is not whole; here the tensor is to be read by hand"),
        Mistake(edit("as file:", "as file:\n        everything = file.read(); file.seek(0)"), "with the whole file in memory; seek to the tensor's bytes and read only those"),
    ],
    equivalent={"torch.uint8 -> torch.int8": "the bytes are only moved, and have no sign", "tensor.reshape(-1) -> tensor": "only a tensor of shape () needs it, and the lesson reads none"},
    hints=[
        "The first eight bytes say how long the header is, and the header says where the tensor lies: read those, and you know how far to jump.",
        "The tensor's bytes begin at 8 + the header's length + the first of its data_offsets, and there are as many as the two offsets are apart.",
        '`int.from_bytes(…, "little")`, then `json.loads(…)[key]`, then `file.seek(…)`, then `torch.frombuffer(bytearray(…), dtype=DTYPES[…])`, and `reshape`.',
    ],
)


# ---------------------------------------------------------------- 13.2 still_on_meta


class Rotary(torch.nn.Module):
    """As in a Llama: angles that are calculated when the model is built and stand in no file."""

    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", torch.tensor([1.0, 0.1]), persistent=False)


def block():
    """A model with a tensor of its own, a layer, a quantized layer and angles."""
    parts = {"rotary": Rotary(), "up": Linear(2, 3), "packed": QLinear(4, 2, INT4)}
    model = ModuleDict({"block": ModuleDict(parts), "head": Linear(3, 2, bias=False)})
    model.register_parameter("start", Parameter(torch.zeros(2)))
    return model


def names_found(answer, parts):
    """What an answer says of `block` with some of its parts on the meta device; in any order and any container."""
    model = block()
    for part in parts:
        model.get_submodule(part).to("meta")
    found = answer(model)
    if not isinstance(found, (list, tuple, set)):
        return Words("a dictionary") if isinstance(found, dict) else found
    odd = sorted({type(name).__name__ for name in found if not isinstance(name, str)})
    return Words("a list of " + ", ".join(odd)) if odd else sorted(found)


STILL_ON_META = Exercise(
    id="13.2",
    name="still_on_meta",
    key=still_on_meta,
    cases=[
        Case("a model whose head alone is on meta", (["head"],), use=names_found),
        Case("a model whose rotary angles are on meta", (["block.rotary"],), use=names_found),
        Case("a model whose quantized layer is on meta", (["block.packed"],), use=names_found),
        Case("a model that is all on meta, with a tensor that it owns itself", ([""],), use=names_found),
        Case("a model that is all there", ([],), use=names_found),
    ],
    mistakes=[
        Mistake(edit(", *model.named_buffers()", ""), "with the parameters alone; a model has buffers too"),
        Mistake(edit("*model.named_parameters(), ", ""), "with the buffers alone; a model has parameters too"),
        Mistake(
            edit("[*model.named_parameters(), *model.named_buffers()]", "model.state_dict().items()"),
            "with the state dict, which leaves out buffers that are not persistent: just those that no file fills",
        ),
        Mistake(edit("tensor.is_meta", 'tensor.device == "meta"'), "with a comparison that never holds; a tensor itself says `is_meta`"),
        Mistake(edit("parameters()", "parameters(recurse=False)", "buffers()", "buffers(recurse=False)"), "with the tensors of the model itself; those of its layers count"),
        Mistake(edit("return [", "return bool([", "is_meta]", "is_meta])"), "with whether there are any; their names are asked for"),
        Mistake(edit("return [", "return len([", "is_meta]", "is_meta])"), "with how many there are; their names are asked for"),
        Mistake(edit("[name for", '[*{name.rpartition(".")[0]: name for', "is_meta]", "is_meta}]"), "with the names of the layers; those of their tensors are asked for"),
        Mistake(edit("[name for", '[name.rpartition(".")[2] for'), "with the last part of each name alone; the path says which layer's it is"),
        Mistake(edit("[name for", "[(name, tensor) for"), "with (name, tensor) pairs; the names alone are asked for"),
        Mistake(edit("[name for", "[tensor for"), "with the tensors; their names are asked for"),
        Mistake(edit("if tensor", "if not tensor"), "with the tensors that do have values; those that have none are asked for"),
    ],
    hints=[
        "A tensor of a module is either a parameter or a buffer, and a module can list both by name.",
        "`named_parameters()` and `named_buffers()` give pairs of a name and a tensor, and `tensor.is_meta` is True or False.",
        "`[name for name, tensor in [*…, *…] if …]`",
    ],
)


# ---------------------------------------------------------------- 13.3 put_tensor

VALUES = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 0.25]])


def layer(device="meta", requires_grad=True):
    model = ModuleDict({"up": Linear(2, 3, bias=False)}).requires_grad_(requires_grad)
    torch.nn.init.ones_(model["up"].weight)
    return model.to(device)


def nested():
    return ModuleDict({"block": Sequential(Linear(2, 2), layer())})


def quantized():
    return ModuleDict({"up": QLinear(4, 3, INT4, bias=False, device="meta")})


def tied():
    # To draw random numbers on the meta device, PyTorch loads its compiler: many seconds. So it gets there afterwards.
    model = ModuleDict({"embedding": Embedding(3, 2), "head": Linear(2, 3, bias=False)}).to("meta")
    model["head"].weight = model["embedding"].weight
    return model


def attributes(model):
    """The names of all that the modules of a model hold, tensors and plain attributes alike."""
    parts = {name: {**vars(module), **module._parameters, **module._buffers} for name, module in model.named_modules()}
    return {f"{name}.{part}".lstrip(".") for name, held in parts.items() for part in held}


def state_after(answer, make, names, tensor):
    """What the exercise compares: what became of a model's tensor when the answer has put another in its place."""
    model = make()
    before = attributes(model)
    answer(model, names, tensor)
    new = sorted(attributes(model) - before)
    tensors = [getattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    left = [name for name, found in zip(names, tensors, strict=True) if found.is_meta]
    if left:
        return (left, new, *[None] * 5)
    return (
        left,
        new,
        tensors[0].detach().clone(),
        isinstance(tensors[0], Parameter),
        all(found is tensors[0] for found in tensors),
        tensors[0].requires_grad,
        tensors[0].data_ptr() == tensor.data_ptr(),
    )


PACKED = torch.tensor([[138, 15], [250, 4], [248, 11]], dtype=torch.uint8)
SCALES = torch.tensor([[104.0], [42.25], [97.75]])

# The parts of the key that several mistakes change.
NEW = "torch.nn.Parameter(tensor, requires_grad=old.requires_grad)"
SET = "setattr(module, part, tensor)"

PUT_TENSOR = Exercise(
    id="13.3",
    name="put_tensor",
    key=put_tensor,
    cases=[
        Case("the weight of a layer", (layer, ["up.weight"], VALUES), use=state_after),
        Case("a weight deep in the model", (nested, ["block.1.up.weight"], VALUES), use=state_after),
        Case("packed integers, a buffer", (quantized, ["up.packed"], PACKED), use=state_after),
        Case("scales, a buffer of float32", (quantized, ["up.scale"], SCALES), use=state_after),
        Case("a weight with two names", (tied, ["embedding.weight", "head.weight"], VALUES), use=state_after),
        Case("a layer that is not on meta, but full of ones", (lambda: layer("cpu"), ["up.weight"], VALUES), use=state_after),
        Case("a weight that takes no gradients", (lambda: layer(requires_grad=False), ["up.weight"], VALUES), use=state_after),
    ],
    parts=(
        "what is left on the meta device",
        "what the modules hold that they did not hold before",
        "the new tensor",
        "whether it is a Parameter",
        "whether all its names stand for one tensor",
        "whether it takes gradients",
        "whether it is the tensor that was given, and no copy",
    ),
    mistakes=[
        Mistake(edit(SET, "old.data.copy_(tensor)"), "with a copy into the old tensor: on the meta device there is nothing to copy into"),
        Mistake(edit(SET, "old.data = tensor"), "with `.data = …`: a tensor on the meta device does not take the memory of one that is not; set the module's attribute"),
        Mistake(edit(" and not isinstance(tensor, torch.nn.Parameter)", ""), "with a new Parameter for each name, as load_state_dict(assign=True) makes them; the names are to share one"),
        Mistake(edit("in names", "in names[:1]"), "with the first name alone; a tied tensor is to be put at all its names"),
        Mistake(edit(NEW, "tensor", SET, "setattr(model, name, tensor)"), 'with setattr on the model itself, which makes an attribute "up.weight"; the layer owns it'),
        Mistake(edit(SET, "setattr(model, name, tensor)"), "with setattr on the model itself, which takes no Parameter under a name with a dot; the layer owns it"),
        Mistake(edit(SET, "module.part = tensor"), "with `module.part = …`, which sets an attribute called part; `setattr(module, part, …)` takes the name that the variable holds"),
        Mistake(edit("submodule(owner)", "submodule(name)"), "with the whole name taken for a module's; its last part is an attribute"),
        Mistake(edit("rpartition", "partition"), "with the name cut at its first dot; the attribute comes after the last one"),
        Mistake(edit(NEW, "tensor"), "with a plain tensor where a Parameter was"),
        Mistake(edit("isinstance(old, torch.nn.Parameter) and ", ""), "with a Parameter where a buffer was"),
        Mistake(edit("(tensor, requires", "(tensor.clone(), requires"), "with a copy of the tensor; put the tensor itself there"),
        Mistake(edit(", requires_grad=old.requires_grad", ""), "with gradients, which the old Parameter did not take"),
        Mistake(edit("old.requires_grad", "False"), "without gradients, which the old Parameter took"),
    ],
    hints=[
        'The tensor "block.up.weight" is the attribute "weight" of the module "block.up": find that module and set its attribute.',
        "If the old attribute is a Parameter, the new one must be one too, with the same `requires_grad`; and only one is made, however many names there are.",
        '`owner, _, part = name.rpartition(".")`, then `module = model.get_submodule(owner)`, then `setattr(module, part, …)`.',
    ],
)

EXERCISES = [READ_TENSOR, STILL_ON_META, PUT_TENSOR]
