"""The capstone of lesson 18: a language model in a budget of bytes, the library's own answer, and how one is scored.

What counts is what is on disk. A score says how far an answer is on the way from round-to-nearest at the same budget to
the best that this project could do; scripts/measure_capstone.py measures both ends.
"""

import copy
import dataclasses
import functools
import json
import math
import pathlib
import tempfile
from collections.abc import Callable

import torch

from course.models import DATA, load_code_model, load_code_tokens, perplexity
from qlib.checkpoint import QUANTIZED, load_quantized, save_quantized
from qlib.linear import QLinear, weight_of
from qlib.methods import gptq_model
from qlib.model import layers_to_leave, layers_to_quantize, quantize_model, sensitivity
from qlib.report import Report
from qlib.scheme import Scheme
from qlib.tensor import fake_quantize

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
    not fit. `in_float32` brings the model back, to run it.

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
    """What scripts/measure_capstone.py measured and wrote down: see `Task`."""
    return json.loads((DATA / "capstone" / "results.json").read_text(encoding="utf-8"))


def load_best():
    """The best code model within the budget that this project could make, float32; its card is data/capstone."""
    return in_float32(load_quantized(DATA / "capstone"))


# ---------------------------------------------------------------- what an answer is given, and held against


@dataclasses.dataclass(frozen=True)
class Task:
    """What an answer is given and held against.

    Args:
        model: float32, a causal language model; each answer gets a copy.
        calibration: int64 (n,), what an answer may look at.
        held_out: int64 (n,), what it is measured on.
        forbidden: int64 (n,), what it may not look at, `held_out` among it.
        budget: bytes.
        stored: what was measured beforehand: "float", a perplexity; "rounding", points as of `rounding_curve`;
            "library" and "best", points of `compress` and of the best that this project could do; "damage", {layer:
            what the perplexity rises by when it alone is at 2 bits}.
    """

    model: torch.nn.Module
    calibration: torch.Tensor
    held_out: torch.Tensor
    forbidden: torch.Tensor
    budget: int
    stored: dict

    @property
    def rounding(self):
        """The best point of round-to-nearest within the budget."""
        return best_within(self.stored["rounding"], self.budget)

    @property
    def best(self):
        return self.stored["best"]

    def share(self, value):
        """How far a perplexity is on the way from round-to-nearest, 0, to this project's best, 1, by its logarithm."""
        start, end = math.log(self.rounding["perplexity"]), math.log(self.best["perplexity"])
        return (start - math.log(value)) / (start - end)


@functools.cache
def code_task():
    """The capstone itself: the code model and a budget of 1,750,000 bytes."""
    model, _ = load_code_model()
    calibration, everything = (load_code_tokens(part, count=32768) for part in ("calibration", "held_out"))
    return Task(model, calibration, everything[:HELD_OUT], everything, BUDGET, load_results())


# ---------------------------------------------------------------- the score

BETTER = 0.995  # an answer must be better than round-to-nearest by half a percent, more than CPUs differ by

# The mistakes that can be told from what came back. Each fits after "That is what you get".
AS_FLOATS = "when the model is not quantized at all"
ROUNDED_FLOATS = "when rounded weights are put back as floats: `fake_quantize` shows the error, and saves no byte"
LAYERS_LEFT = "when linear layers are left as floats"
TOO_WIDE = "with more bits for the weights than the budget has, whatever the rest takes"
UNTIED = "when the head is quantized apart from the embedding: the model then holds that matrix twice"
WIDE_FLOATS = "when the embedding stays in float32: half of its bytes say nothing, for the checkpoint was float16"
NO_SCALES = "when the integers alone are counted; the scales and zero points of the groups are bytes as well"
ONE_WIDTH = "with round-to-nearest at one width for all layers, which is what there is to beat"
WRONG_LAYERS = "with the wide layers where they matter least: the order is turned round"
PEEKED = "with the text that measures it; calibrate on `tokens`, or the number says nothing of other text"
BROKEN = "when numbers are lost on the way, such as small ones in a dtype of whole numbers: it knows nothing any more"


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of an answer.

    Args:
        wrong: a sentence that says what is wrong, or None.
        mistake: of what mistake this comes, one of those above, or None.
        bytes, perplexity: as far as it came, else None.
        advice: a sentence for a right answer, or "".
    """

    wrong: str | None = None
    mistake: str | None = None
    bytes: int | None = None
    perplexity: float | None = None
    advice: str = ""


@dataclasses.dataclass(frozen=True)
class Trial:
    """How the capstone is judged.

    Args:
        make_task: makes the Task, when it is first needed.
        limit: seconds that an answer may take.
    """

    make_task: Callable
    limit: float = 1800

    def score(self, answer, run):
        """Try an answer: run it on a copy of the task's model, save what it returns, count, load and measure.

        Args:
            answer: compress(model, tokens, budget).
            run: run(answer, *arguments) gives (what is wrong, what it returned).

        Returns:
            a Result.
        """
        task, read = self.make_task(), []
        wrong, small = run(answer, watched_copy(task.model, read), task.calibration.clone(), task.budget)
        if wrong:
            return Result(wrong)
        if not isinstance(small, type(task.model)):
            return Result(no_model(small))
        if not any(isinstance(layer, QUANTIZED) for layer in small.modules()):
            mistake = ROUNDED_FLOATS if is_on_grids(small) else AS_FLOATS
            return Result("no layer of it is quantized, and `save_quantized` refuses it.", mistake)
        if has_read(read, task.forbidden):
            return Result("the model it was given has read the held-out text.", PEEKED)
        return score_of_files(task, small)

    def words(self, result):
        """The score of a right answer, in words."""
        task = self.make_task()
        share = task.share(result.perplexity)
        beaten = "You have beaten it. " if share > 1.001 else ""  # the stored figures are rounded
        return (
            f"{result.bytes:,} bytes of {task.budget:,}, and a perplexity of {result.perplexity:.2f} on held-out text."
            f"\nRound-to-nearest at this budget has {task.rounding['perplexity']:.2f}, the float model "
            f"{task.stored['float']:.2f}, the project's best {task.best['perplexity']:.2f}. "
            f"Your score: {100 * share:.0f}% of the way from rounding to that best. {beaten}{result.advice}"
        ).rstrip()

    def picture(self, result):
        """The point of an answer on the curve of size and quality, or None where it did not come so far."""
        if result.perplexity is None:
            return None
        from course.figures.lesson_18 import budget_curve  # figures take a second to load

        task = self.make_task()
        yours = {"bytes": result.bytes, "perplexity": result.perplexity}
        return budget_curve(task.stored, task.budget, yours)


def score_of_files(task, small):
    """The Result of a quantized model: its files are written, counted and loaded, and what came back is measured."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder) / "model"
        try:
            save_quantized(small, folder)
            size = weight_file_bytes(folder)
            if size > task.budget:
                return over_budget(task, small, size)
            loaded = in_float32(load_quantized(folder))
            if is_the_stored_best(loaded):
                copied = "it is the model in data/capstone, to the last bit: take it apart, and make one of your own."
                return Result(copied, bytes=size)
            value = perplexity(loaded, task.held_out)
        except Exception as error:  # whatever a strange model does to the writer or the reader
            words = str(error).replace(f"{folder}/", "").replace(str(folder), "the folder")
            return Result(f"the model does not come back from its folder. {type(error).__name__}: {words}")
    if not value < BETTER * task.rounding["perplexity"]:
        return no_better_than_rounding(task, loaded, size, value)
    calm = widens_the_calmest(task, loaded)
    advice = "There is more in it: the wide layers are those that mind least." if calm else ""
    return Result(None, None, size, value, advice)


# ---------------------------------------------------------------- what an answer has read

GRAM = 32  # tokens in a row by which a text is known again
SHARED = 150  # so many of them may be in both texts: the two have a licence in common


def watched_copy(model, read):
    """A copy of a model that adds the hash of every GRAM tokens in a row that it reads to the list `read`."""

    def note(_, inputs):
        if inputs[0].shape[-1] >= GRAM:
            read.append(hashes(inputs[0]).flatten().unique())

    model = copy.deepcopy(model)
    model.get_input_embeddings().register_forward_pre_hook(note)
    return model


def hashes(tokens):
    """A number for every GRAM tokens in a row: int64 (..., n - GRAM + 1) of (..., n)."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (GRAM,), generator=generator)
    return (tokens.unfold(-1, GRAM, 1) * factors).sum(-1)  # wraps around, as a hash may


def has_read(read, text):
    """Whether of the tokens that a `watched_copy` noted more than a few are those of a text."""
    seen = torch.cat(read).unique() if read else torch.zeros(0, dtype=torch.int64)
    return torch.isin(seen, hashes(text)).sum().item() > SHARED


# ---------------------------------------------------------------- what is wrong with an answer


def no_model(returned):
    """A sentence on something that is no model of this kind."""
    if returned is None:
        return "it returned None. Is there a `return` at the end? It should give the model."
    if isinstance(returned, Report):
        return "it returned the Report of a method; return the model, which was changed in place."
    return f"it returned a value of the type {type(returned).__name__}, where the model is asked for."


def is_on_grids(model):
    """Whether the rows of a model's linear layers hold few different numbers, as rounded ones do."""
    rows = [weight_of(model.get_submodule(name), name)[0] for name in layers_to_quantize(model, ())]
    return all(len(row.unique()) < len(row) / 2 for row in rows)


def is_the_stored_best(loaded):
    """Whether a loaded model is the stored best one, to the last bit."""
    best, found = load_best().state_dict(), loaded.state_dict()
    return best.keys() == found.keys() and all(
        best[key].dtype == found[key].dtype and torch.equal(best[key], found[key]) for key in best
    )


def over_budget(task, small, size):
    """The Result of a model that is too large."""
    over = size - task.budget
    savings = possible_savings(small)
    enough = [mistake for mistake, saved in savings.items() if saved >= over]
    if not enough and sum(savings.values()) >= over:
        enough = [max(savings, key=savings.get)]
    wrong = f"its files take {size:,} bytes, {over:,} more than the {task.budget:,} there are."
    return Result(wrong, enough[0] if enough else TOO_WIDE, size)


def possible_savings(small):
    """{a mistake: the bytes that it costs}, the likeliest first."""
    layers = quantized_layers(small).values()
    floats = [weight_of(small.get_submodule(name), name) for name in layers_to_quantize(small, ())]
    embedding = small.get_input_embeddings().weight
    head = small.get_output_embeddings()
    tied = getattr(head, "weight", None) is embedding
    scales = sum(part.nbytes for layer in layers for part in (layer.scale, layer.zero_point) if part is not None)
    return {
        LAYERS_LEFT: sum(weight.nbytes - weight.numel() // 4 for weight in floats if weight is not embedding),
        UNTIED: 0 if tied else sum(tensor.nbytes for tensor in head.state_dict().values()),
        WIDE_FLOATS: embedding.nbytes // 2 if embedding.dtype == torch.float32 else 0,
        NO_SCALES: scales,
    }


def no_better_than_rounding(task, loaded, size, value):
    """The Result of a model within the budget that round-to-nearest is as good as."""
    bar = task.rounding["perplexity"]
    wrong = f"{size:,} bytes, and a perplexity of {value:.2f}: no better than the {bar:.2f} of round-to-nearest."
    schemes = {layer.scheme for layer in quantized_layers(loaded).values()}
    mistake = None
    if not math.isfinite(value) or value > 0.9 * task.model.config.vocab_size:
        mistake = BROKEN
    elif len(schemes) == 1 and is_rounded(task, loaded):
        mistake = ONE_WIDTH
    elif widens_the_calmest(task, loaded):
        mistake = WRONG_LAYERS
    return Result(wrong, mistake, size, value)


def is_rounded(task, loaded):
    """Whether the layers of a loaded model hold what rounding to nearest makes of the task's weights."""
    linear = set(layers_to_quantize(task.model, ()))
    for name, layer in quantized_layers(loaded).items():
        if name not in linear:  # it stands inside another layer, such as one that divides its input
            return False
        weight = weight_of(task.model.get_submodule(name), name)
        off = (layer.weight - fake_quantize(weight, layer.scheme)).abs().max()
        if off > 1e-2 * weight.abs().max():  # not 0: its scales may have been float16
            return False
    return True


def widens_the_calmest(task, loaded):
    """Whether the layers with more bits are, on the whole, those that mind few bits least for each of their weights."""
    damage = task.stored["damage"]
    layers = {name: layer for name, layer in quantized_layers(loaded).items() if name in damage}
    harm = {name: damage[name] / layer.qtensor.shape.numel() for name, layer in layers.items()}
    bits = {name: layer.qtensor.bits_per_weight for name, layer in layers.items()}
    middle = (min(bits.values()) + max(bits.values())) / 2 if bits else 0
    wide, narrow = ([harm[n] for n in harm if (bits[n] > middle) is side] for side in (True, False))
    return bool(wide and narrow) and sum(wide) / len(wide) < sum(narrow) / len(narrow)


def quantized_layers(model):
    """{name: QLinear} of a model."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QLinear)}
