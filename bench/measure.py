"""The measurements: single layers, a whole model, and the memory that a model takes.

Absolute times drift by a factor of two on a machine that others use; ratios taken side by side hold. So all ways run
in one process, in turn and in a new order each round, with float32 after every few of them, and what is kept of a run
is its ratio to the float32 runs just before and just after it.
"""

import copy
import ctypes
import gc
import itertools
import json
import pathlib
import random
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import torch
from torch import nn


class Sizes(NamedTuple):
    """What is measured, and for how long."""

    shapes: tuple = ((768, 768), (4096, 4096), (11008, 4096))  # of a layer: outputs, inputs
    batches: tuple = (1, 8, 64, 512)
    # A Llama of 219 million parameters
    vocabulary: int = 32000
    width: int = 1024
    inner: int = 2816
    depth: int = 12
    heads: int = 16
    prompt: int = 256  # tokens
    tokens: int = 12  # to decode after the prompt
    rounds: int = 5
    from_memory: int = 96 << 20  # bytes of weights that pass before the first come again: more than a cache holds
    least: float = 0.02  # seconds that a run of a layer takes, at least: a quick one is called more often
    most: float = 4.0  # seconds after which a way is not run again at this place


class WrongResultError(Exception):
    """A way does not compute what it should, so that its time would mean nothing."""


# ---------------------------------------------------------------- side by side


def compare(runs, sizes, progress):
    """Time several ways side by side.

    Args:
        runs: {name: function that runs a way once and gives a tuple of seconds}; "float32" is among them.
        sizes: Sizes; `rounds` and `most` are used.
        progress: called once for each way and round, and once more for each way.

    Returns:
        {name: (figures of each thing timed, ...)}, see `figures`; {name: the exception} where one was raised.
    """
    pairs, failed, spent = {name: [] for name in runs}, {}, dict.fromkeys(runs, 0.0)

    def run(name):
        """A run's seconds, or None from a way that failed or has had its time."""
        progress()
        if name in failed or spent[name] > sizes.most:
            return None
        start = time.perf_counter()
        try:
            return runs[name]()
        except Exception as problem:
            failed[name] = problem
        finally:
            spent[name] += time.perf_counter() - start

    for name in runs:
        run(name)  # what is done the first time only, such as compiling, is not counted
        spent[name] = 0.0
    for turn in range(sizes.rounds):
        order = random.Random(turn).sample(list(runs), len(runs))
        before = runs["float32"]()
        for first in range(0, len(order), 4):
            taken = {name: run(name) for name in order[first : first + 4]}
            after = runs["float32"]()
            around = [(a + b) / 2 for a, b in zip(before, after)]
            for name, seconds in taken.items():
                if seconds is not None:
                    pairs[name].append((seconds, around))
            before = after
    return {name: failed.get(name) or figures(pairs[name]) for name in runs}


def figures(pairs):
    """What is kept of a way's runs: (seconds of each thing timed, float32's seconds around them) for each run.

    Returns:
        for each thing timed {"seconds": their median, "ratio": lower quartile, median and upper quartile of float32's
        seconds over the way's; above 1 is faster}.
    """
    kept = []
    for thing in zip(*(zip(seconds, around) for seconds, around in pairs)):
        ratios = [reference / own for own, reference in thing]
        quartiles = statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3
        kept.append({"seconds": statistics.median(own for own, _ in thing), "ratio": quartiles})
    return tuple(kept)


def prepare(ways, make, progress):
    """{way's name: make(way), or the exception that it raised}."""
    made = {}
    for way in ways:
        try:
            made[way.name] = make(way)
        except Exception as problem:
            made[way.name] = problem
        progress()
    return made


def without_failures(made):
    return {name: value for name, value in made.items() if not isinstance(value, Exception)}


def only_failures(made):
    """{name: {"problem": one line}} of those that are exceptions."""
    return {name: {"problem": one_line(value)} for name, value in made.items() if isinstance(value, Exception)}


def in_order(found, ways):
    return {way.name: found[way.name] for way in ways if way.name in found}


def one_line(problem):
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text[:160]}{'…' if len(text) > 160 else ''}"


def distance(found, expected):
    """Length of the difference over the length of what is expected; WrongResultError if it is no number."""
    error = ((found.float() - expected).norm() / expected.norm()).item()
    if found.shape != expected.shape or error != error:
        raise WrongResultError(f"the result is NaN, or of another shape: {tuple(found.shape)}")
    return error


# ---------------------------------------------------------------- single layers


def measure_layers(ways, sizes, progress):
    """{place: {way's name: figures with the product's error, or its problem}}; a place is a shape and a batch."""
    places = {}
    for outputs, inputs in sizes.shapes:
        torch.manual_seed(0)
        layer = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
        nn.init.normal_(layer.weight, std=0.02)
        made = prepare(ways, lambda way: LayerRuns(way, layer, sizes), progress)  # noqa: B023 - called at once
        usable = without_failures(made)
        for batch in sizes.batches:
            x = torch.randn(batch, inputs)
            found = compare({name: runs.of(x) for name, runs in usable.items()}, sizes, progress)
            failed = only_failures(made) | only_failures(found)
            errors = {name: {"error": usable[name].error} for name in usable}
            good = {name: errors[name] | found[name][0] for name in usable if name not in failed}
            places[f"{outputs} × {inputs}, batch {batch}"] = in_order(good | failed, ways)
        del made, usable
        gc.collect()
    return places


class LayerRuns:
    """A layer in one way, as often as it takes for the weights to come from memory and not from the cache.

    A model of such layers would find them so. More than 72 copies, the layers of a small model, there are never.

    Raises:
        WrongResultError: the layer's product is further from float32's than its bits explain.
    """

    def __init__(self, way, layer, sizes):
        self.way, self.least = way, sizes.least
        count = min(72, max(2, -(-sizes.from_memory * 8 // (layer.weight.numel() * way.bits))))
        first = converted(way, layer)
        self.error = self.check(first, layer)
        self.layers = itertools.cycle([first, *(another(first) for _ in range(count - 1))])

    def check(self, first, layer):
        x = torch.randn(3, layer.in_features)
        with torch.no_grad():
            error = distance(first(x.to(self.way.dtype)), layer(x))
        if error > self.way.tolerance:
            raise WrongResultError(f"its product is off by {error:.0%}; {self.way.tolerance:.0%} is to be expected")
        return error

    def of(self, x):
        """A function that multiplies x with one copy after the other and gives (seconds a call,)."""
        x = x.to(self.way.dtype)

        @torch.no_grad()
        def run():
            calls = []
            while not calls or sum(calls) < self.least:
                layer, start = next(self.layers), time.perf_counter()
                layer(x)
                calls.append(time.perf_counter() - start)
            return (statistics.median(calls),)  # a call that another program interrupted is passed over

        return run


def converted(way, layer):
    """The layer in one way; `layer` stays as it is."""
    with torch.no_grad():
        return way.convert(nn.ModuleList([copy.deepcopy(layer)]).eval())[0]


def another(layer):
    """A copy of a converted layer, with weights in memory of their own."""
    unwilling = [weight for weight in layer.parameters() if hasattr(weight, "__tensor_flatten__")]
    return copy.deepcopy(layer, {id(weight): nn.Parameter(rebuilt(weight), False) for weight in unwilling})


def rebuilt(tensor):
    """A copy of a peer's tensor that is made of others, and may refuse to be copied as a whole."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.clone()
    names, about = tensor.__tensor_flatten__()
    parts = {name: rebuilt(getattr(tensor, name)) for name in names}
    return type(tensor).__tensor_unflatten__(parts, about, tensor.shape, tensor.stride())


# ---------------------------------------------------------------- a whole model


def llama(sizes):
    """A Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def measure_model(ways, sizes, progress):
    """{"prefill" and "decode": {way's name: figures with the error of the prompt's logits, or its problem}}."""
    model = llama(sizes)
    prompt = torch.randint(sizes.vocabulary, (1, sizes.prompt))
    with torch.no_grad():
        expected = model(input_ids=prompt).logits

    def make(way):
        with torch.no_grad():
            own = way.convert(copy.deepcopy(model))
        with torch.no_grad():
            error = distance(own(input_ids=prompt).logits, expected)
        return lambda: generate(own, prompt, sizes.tokens), error

    made = prepare([way for way in ways if way.whole_model], make, progress)
    usable = without_failures(made)
    found = compare({name: run for name, (run, _) in usable.items()}, sizes, progress)
    failed = only_failures(made) | only_failures(found)
    good = [name for name in usable if name not in failed]
    return {
        place: in_order({name: {"error": usable[name][1]} | found[name][thing] for name in good} | failed, ways)
        for thing, place in enumerate(("prefill", "decode"))
    }


@torch.no_grad()
def generate(model, prompt, tokens):
    """Read a prompt, then choose the likeliest token again and again; gives seconds for the prompt, and for a token."""
    moments = [time.perf_counter()]
    token, cache = prompt, None
    for _ in range(1 + tokens):
        out = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        moments.append(time.perf_counter())
    prefill, *decode = (end - start for start, end in itertools.pairwise(moments))
    return prefill, statistics.median(decode)


# ---------------------------------------------------------------- memory


def measure_memory(ways, sizes, progress):
    """{way's name: see `memory_of`, or its problem}, each measured in a process of its own."""

    def make(way):
        command = [sys.executable, "-m", "bench", "--memory-of", way.name, "--sizes", json.dumps(sizes._asdict())]
        folder = pathlib.Path(__file__).parents[1]
        child = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        lines = [line for line in child.stderr.splitlines() if line.strip()]
        if child.returncode:
            raise RuntimeError(lines[-1] if lines else f"the process ended with code {child.returncode}")
        return json.loads(child.stdout.splitlines()[-1])

    made = prepare([way for way in ways if way.whole_model], make, progress)
    return in_order(without_failures(made) | only_failures(made), ways)


def memory_of(way, sizes):
    """The memory that the model takes in one way, beyond what the process had before: {what for: bytes}.

    "converting" is the most while the model is made, float32 weights included; "at rest" is what it keeps; "running"
    is the most while it reads a prompt and decodes. Linux alone tells.
    """
    tiny = sizes._replace(vocabulary=128, width=128, inner=256, depth=1, heads=2)
    with torch.no_grad():
        # What imports and first calls take is not the model's.
        generate(way.convert(llama(tiny)), torch.zeros(1, 64, dtype=torch.int64), 2)
    before = settled_memory()
    with torch.no_grad():
        model = way.convert(llama(sizes))
    converting, at_rest = peak_memory(), settled_memory()
    generate(model, torch.zeros(1, sizes.prompt, dtype=torch.int64), 2)
    memory = {"converting": converting, "at rest": at_rest, "running": peak_memory()}
    return {what: nbytes - before for what, nbytes in memory.items()}


def settled_memory():
    """Bytes that the process holds, when what it has freed is handed back; the peak is counted anew from here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak_memory():
    return status("VmHWM")


def status(entry):
    """An entry of Linux's /proc/self/status, in bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))
