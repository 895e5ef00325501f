"""The capstone of lesson 18: a language model in a budget of bytes, and the library's own way to spend it.

How an answer is scored is in course/exercises/trial.py; scripts/measure_capstone.py measures what it is held against.
"""

import copy
import json
import pathlib
import tempfile

import torch

from course.models import DATA, perplexity
from qlib.checkpoint import load_quantized, save_quantized
from qlib.linear import QLinear
from qlib.methods import gptq_model
from qlib.model import layers_to_leave, layers_to_quantize, quantize_model, sensitivity
from qlib.scheme import Scheme

BUDGET = 1_750_000  # bytes of the safetensors files
HELD_OUT = 4096  # tokens that an answer is measured on
SLACK = 1000  # bytes: the header of the file is a little longer where its numbers have more digits

# ---------------------------------------------------------------- the library's answer


def compress(model, tokens, budget):
    """Quantize a language model: keep its saved file to a budget of bytes, and its perplexity low.

    Every layer gets 2 bits; those that would suffer most for each byte get 3, for as long as the budget lasts. GPTQ
    rounds them, and what is left in floats is stored as small as it can be.

    Args:
        model: a causal language model of transformers, float32. It is changed.
        tokens: int64 of shape (n,), at least 1,024, for calibration.
        budget: bytes of the saved folder's safetensors files.

    Returns:
        the model.
    """
    low, high = (Scheme(bits=bits, symmetric=False, group_size=64) for bits in (2, 3))
    names = layers_to_quantize(model, ())
    # Which layers suffer most at 2 bits, and what a third bit costs each.
    before = perplexity(model, tokens[:1024])
    alone = sensitivity(model, names, low, lambda model: perplexity(model, tokens[:1024]))
    damage = {name: after - before for name, after in alone.items()}
    price = {name: model.get_submodule(name).weight.numel() // 8 for name in names}
    # What is left of the budget when all are at 2 bits goes to the dearest.
    trial = copy.deepcopy(model)
    quantize_model(trial, low, ignore=(), progress=False)
    wide = layers_to_leave(damage, price, budget - saved_bytes(store_small(trial)) - SLACK)
    windows = tokens[:8192].view(-1, 256)
    gptq_model(model, high, windows, ignore=lambda name, layer: name not in wide, act_order=True)
    gptq_model(model, low, windows, ignore=(), act_order=True)
    return store_small(model)


def store_small(model):
    """Store what is not packed in fewer bytes, in place: norms and scales in float16, the embedding in float8.

    float8_e4m3 has three bits of mantissa: a number above 1/64 is off by a sixteenth at most, and one above 448 does
    not fit. To run, the
    model is brought back by `in_float32`.

    Args:
        model: a causal language model whose linear layers are quantized; its tied head follows the embedding.

    Returns:
        the model.
    """
    model.half()
    for layer in model.modules():
        if isinstance(layer, QLinear):
            layer.scale = layer.scale.half()
    embedding = model.get_input_embeddings().weight
    embedding.data = embedding.data.to(torch.float8_e4m3fn)
    return model


def in_float32(model):
    """A model brought back to float32, in place: its parameters and, unlike with `model.float()`, all its scales."""
    for module in model.float().modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.float())
    return model


def saved_bytes(model):
    """Bytes of the safetensors files that `save_quantized` writes of a model, headers included."""
    with tempfile.TemporaryDirectory() as folder:
        save_quantized(model, pathlib.Path(folder) / "model")
        return weight_file_bytes(pathlib.Path(folder) / "model")


def weight_file_bytes(folder):
    """Bytes of the safetensors files in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


# ---------------------------------------------------------------- round-to-nearest, to compare with

GROUPS = (32, 64, 96, 112, 128, None)


def rounded_model(model, scheme):
    """A copy of a float model, every linear layer rounded to nearest by one scheme, the rest in float16."""
    small = copy.deepcopy(model)
    quantize_model(small, scheme, ignore=(), progress=False)
    return small.half()


def rounding_curve(model, tokens, bits=(2, 3, 4), groups=GROUPS):
    """What round-to-nearest at one width gives: [{"bits", "group_size", "bytes", "perplexity"}, …], asymmetric all.

    Args:
        model: float, a causal language model.
        tokens: int64 (n,), to measure on.
        bits, groups: what to try.
    """
    points = []
    for width in bits:
        for group_size in groups:
            small = rounded_model(model, Scheme(bits=width, symmetric=False, group_size=group_size))
            size, value = saved_bytes(small), perplexity(small.float(), tokens)
            points.append({"bits": width, "group_size": group_size, "bytes": size, "perplexity": value})
    return points


def best_within(points, budget):
    """The point with the lowest perplexity of those that keep to a budget."""
    return min((point for point in points if point["bytes"] <= budget), key=lambda point: point["perplexity"])


def load_results():
    """What scripts/measure_capstone.py measured and wrote down: see `course.exercises.trial.Task`."""
    return json.loads((DATA / "capstone" / "results.json").read_text(encoding="utf-8"))


def load_best():
    """The best code model within the budget that this project could make, float32; its card is data/capstone."""
    return in_float32(load_quantized(DATA / "capstone"))
