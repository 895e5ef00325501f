"""How the answer to a scored exercise is tried: given a model and a budget, saved, counted, loaded and measured.

What counts is what is on disk. A score says how far an answer is on the way from round-to-nearest at the same budget to
the best that this project could do.
"""

import copy
import dataclasses
import functools
import math
import pathlib
import tempfile
from collections.abc import Callable

import torch

from course.capstone import BUDGET, HELD_OUT, best_within, in_float32, load_best, load_results, weight_file_bytes
from course.figures.lesson_18 import budget_curve
from course.models import load_code_model, load_code_tokens, perplexity
from qlib.checkpoint import QUANTIZED, load_quantized, save_quantized
from qlib.linear import QLinear, weight_of
from qlib.model import layers_to_quantize
from qlib.report import Report
from qlib.tensor import fake_quantize

GRAM = 32  # tokens in a row by which a text is known again
BETTER = 0.995  # an answer must be better than round-to-nearest by half a percent, more than CPUs differ by
SHARED = 150  # so many of them may be in both texts: the two have a licence in common

# ---------------------------------------------------------------- the task


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


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of an answer: what is wrong with it, or None; and, as far as it came, its bytes and perplexity."""

    wrong: str | None = None
    bytes: int | None = None
    perplexity: float | None = None
    advice: str = ""


# ---------------------------------------------------------------- scoring

# What is said of the mistakes that can be told from what came back. Each fits after "That is what you get".
AS_FLOATS = "when the model is not quantized at all"
ROUNDED_FLOATS = "when rounded weights are put back as floats: `fake_quantize` shows the error, and saves no byte"
LAYERS_LEFT = "when linear layers are left as floats"
TOO_WIDE = "with more bits for the weights than the budget has, whatever the rest takes"
UNTIED = "when the head is quantized apart from the embedding: the model then holds that matrix twice"
WIDE_FLOATS = "when the embedding stays in float32: half of its bytes say nothing, for the checkpoint was float16"
NO_SCALES = "when the integers alone are counted; the scales and zero points of the groups are bytes as well"
ONE_WIDTH = "with round-to-nearest at one width for all layers, which is what there is to beat"
INVERSE = "with the wide layers where they matter least: the order is turned round"
PEEKED = "with the text that measures it; calibrate on `tokens`, or the number says nothing of other text"
COPIED = "it is the model in data/capstone, to the last bit: take it apart, and make one of your own."
BROKEN = "when numbers are lost on the way, such as small ones in a dtype of whole numbers: it knows nothing any more"


def watched(model, found):
    """A copy of a model that adds the hash of every GRAM tokens in a row that it reads to the list `found`."""

    def note(_, inputs):
        if inputs[0].shape[-1] >= GRAM:
            found.append(hashes(inputs[0]).flatten().unique())

    model = copy.deepcopy(model)
    model.get_input_embeddings().register_forward_pre_hook(note)
    return model


def hashes(tokens):
    """A number for every GRAM tokens in a row: int64 (..., n - GRAM + 1) of (..., n)."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (GRAM,), generator=generator)
    return (tokens.unfold(-1, GRAM, 1) * factors).sum(-1)  # wraps around, as a hash may


def has_read(found, text):
    """Whether of the tokens that `watched` noted more than a few are those of a text."""
    seen = torch.cat(found).unique() if found else torch.zeros(0, dtype=torch.int64)
    return torch.isin(seen, hashes(text)).sum().item() > SHARED


def what_is_wrong_at_once(task, returned):
    """A sentence if what an answer returned is no model of this kind, or None."""
    if returned is None:
        return "it returned None. Is there a `return` at the end? It should give the model."
    if isinstance(returned, Report):
        return "it returned the Report of a method; return the model, which was changed in place."
    if not isinstance(returned, type(task.model)):
        return f"it returned a value of the type {type(returned).__name__}, where the model is asked for."
    if not any(isinstance(layer, QUANTIZED) for layer in returned.modules()):
        cause = ROUNDED_FLOATS if is_on_grids(returned) else AS_FLOATS
        return f"no layer of it is quantized, and `save_quantized` refuses it. {so(cause)}"
    return None


def is_on_grids(model):
    """Whether the rows of a model's linear layers hold few different numbers, as rounded ones do."""
    rows = [weight_of(model.get_submodule(name), name)[0] for name in layers_to_quantize(model, ())]
    return all(len(row.unique()) < len(row) / 2 for row in rows)


def score(task, answer, run):
    """Try an answer: run it on a copy of the task's model, save what it returns, count, load and measure.

    Args:
        task: a Task.
        answer: compress(model, tokens, budget).
        run: run(answer, *arguments) gives (what is wrong, what it returned).

    Returns:
        a Result.
    """
    read = []
    wrong, small = run(answer, watched(task.model, read), task.calibration.clone(), task.budget)
    wrong = wrong or what_is_wrong_at_once(task, small)
    if not wrong and has_read(read, task.forbidden):
        wrong = f"the model it was given has read the held-out text. {so(PEEKED)}"
    if wrong:
        return Result(wrong)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder) / "model"
        try:
            save_quantized(small, folder)
            size = weight_file_bytes(folder)
            if size > task.budget:
                return Result(over_budget(task, small, size), size)
            loaded = in_float32(load_quantized(folder))
            if is_a_copy(loaded):
                return Result(COPIED, size)
            value = perplexity(loaded, task.held_out)
        except Exception as error:  # whatever a strange model does to the writer or the reader
            words = str(error).replace(f"{folder}/", "").replace(str(folder), "the folder")
            return Result(f"the model does not come back from its folder. {type(error).__name__}: {words}")
    if not value < BETTER * task.rounding["perplexity"]:
        return Result(too_bad(task, loaded, size, value), size, value)
    advice = "There is more in it: the wide layers are those that mind least." if is_inverse(task, loaded) else ""
    return Result(None, size, value, advice)


def is_a_copy(loaded):
    """Whether a loaded model is the stored best one, to the last bit."""
    best, found = load_best().state_dict(), loaded.state_dict()
    return best.keys() == found.keys() and all(
        best[key].dtype == found[key].dtype and torch.equal(best[key], found[key]) for key in best
    )


def over_budget(task, small, size):
    """What is wrong with a model that is too large, in words."""
    over = size - task.budget
    message = f"its files take {size:,} bytes, {over:,} more than the {task.budget:,} there are."
    savings = possible_savings(small)
    enough = [cause for cause, saved in savings.items() if saved >= over]
    if not enough and sum(savings.values()) >= over:
        enough = [max(savings, key=savings.get)]
    return f"{message} {so(enough[0] if enough else TOO_WIDE)}"


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


def too_bad(task, loaded, size, value):
    """What is wrong with a model that is no better than round-to-nearest, in words."""
    bar = task.rounding["perplexity"]
    message = f"{size:,} bytes, and a perplexity of {value:.2f}: no better than the {bar:.2f} of round-to-nearest."
    schemes = {layer.scheme for layer in quantized_layers(loaded).values()}
    if not math.isfinite(value) or value > 0.9 * task.model.config.vocab_size:
        return f"{message} {so(BROKEN)}"
    if len(schemes) == 1 and is_rounded(task, loaded):
        return f"{message} {so(ONE_WIDTH)}"
    return f"{message} {so(INVERSE)}" if is_inverse(task, loaded) else message


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


def is_inverse(task, loaded):
    """Whether the layers with more bits are, on the whole, those that mind few bits least for each of their weights."""
    harm = {name: task.stored["damage"][name] / layer.qtensor.shape.numel() for name, layer in known(task, loaded)}
    bits = {name: layer.qtensor.bits_per_weight for name, layer in known(task, loaded)}
    middle = (min(bits.values()) + max(bits.values())) / 2 if bits else 0
    wide, narrow = ([harm[n] for n in harm if (bits[n] > middle) is side] for side in (True, False))
    return bool(wide and narrow) and sum(wide) / len(wide) < sum(narrow) / len(narrow)


def known(task, loaded):
    """The (name, QLinear) of a model of which it is known what they mind."""
    return [(name, layer) for name, layer in quantized_layers(loaded).items() if name in task.stored["damage"]]


def quantized_layers(model):
    """{name: QLinear} of a model."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QLinear)}


def so(cause):
    return f"That is what you get {cause}."


def score_text(task, result):
    """The score of a right answer, in words."""
    share = task.share(result.perplexity)
    beaten = "You have beaten it. " if share > 1.001 else ""  # the stored figures are rounded
    return (
        f"{result.bytes:,} bytes of {task.budget:,}, and a perplexity of {result.perplexity:.2f} on held-out text.\n"
        f"Round-to-nearest at this budget has {task.rounding['perplexity']:.2f}, the float model "
        f"{task.stored['float']:.2f}, the project's best {task.best['perplexity']:.2f}. "
        f"Your score: {100 * share:.0f}% of the way from rounding to that best. {beaten}{result.advice}"
    ).rstrip()


@dataclasses.dataclass(frozen=True)
class Trial:
    """How a scored exercise is judged.

    Args:
        make_task: makes the Task, when it is first needed.
        limit: seconds that an answer may take.
    """

    make_task: Callable
    limit: float = 1800

    def score(self, answer, run):
        """The Result of an answer: see `score`."""
        return score(self.make_task(), answer, run)

    def words(self, result):
        """The score of a right answer, in words."""
        return score_text(self.make_task(), result)

    def picture(self, result):
        """The point of an answer on the curve of size and quality, or None where it did not come so far."""
        if result.perplexity is None:
            return None
        task = self.make_task()
        yours = {"bytes": result.bytes, "perplexity": result.perplexity}
        return budget_curve(task.stored, task.budget, yours)
