"""Measures every method of lesson 17 on the same models and the same data, for data/methods/results.json.

    python scripts/measure_methods.py

What a method looks at before it quantizes never is what it is measured on: the code model is calibrated on modules
that it was trained on and measured on modules that it never saw, the encoder on other sentences. Takes some minutes.
"""

import copy
import dataclasses
import functools
import json
import math

import torch

from course.models import DATA, embed, load_code_model, load_code_tokens, load_encoder, load_sentences, perplexity
from qlib import NF4, Scheme, quantize_model
from qlib.console import progress_bar
from qlib.methods import (
    awq_model,
    awq_rescale,
    emulate_outliers,
    gptq_model,
    hqq_model,
    llm_int8_model,
    smooth,
)
from qlib.report import cosine

RESULTS = DATA / "methods" / "results.json"
CODE, EMULATED, ENCODER = "code", "code, outliers emulated", "encoder"
RATIO = 128.0  # of the emulated outlier channel to the median channel
WINDOW, WINDOWS = 256, 8  # of calibration
HELD_OUT = 4096  # tokens
GROUPS = [(4, 64), (3, 64), (3, 32), (2, 64), (2, 32)]  # (bits, group size)
ALPHAS = [0.0, 0.25, 0.5, 0.6, 0.75, 1.0]


def awq_then_gptq(model, scheme, calibration, act_order=False):
    awq_rescale(model, scheme, calibration)
    return gptq_model(model, scheme, calibration, act_order=act_order)


def awq_dividing(model, scheme, calibration):
    """AWQ with a division at run time where no layer before can take it, as before most layers of the encoder."""
    awq_rescale(model, scheme, calibration, divide=True)
    return quantize_model(model, scheme)


WEIGHT_METHODS = {
    "rounding": lambda model, scheme, _: quantize_model(model, scheme),
    "AWQ": awq_model,
    "GPTQ": gptq_model,
    "GPTQ, act-order": functools.partial(gptq_model, act_order=True),
    "AWQ, then GPTQ": awq_then_gptq,
    "AWQ, then GPTQ, act-order": functools.partial(awq_then_gptq, act_order=True),
    "AWQ, dividing at run time": awq_dividing,
    "HQQ": lambda model, scheme, _: hqq_model(model, scheme),
    "HQQ, whole zero points": lambda model, scheme, _: hqq_model(model, scheme, torch.int8),
    "NF4": lambda model, scheme, _: quantize_model(model, Scheme(4, group_size=scheme.group_size, grid="nf4")),
    "NF4, double quantization": lambda model, scheme, _: quantize_model(
        model, dataclasses.replace(NF4, group_size=scheme.group_size)
    ),
}


def not_after_a_norm(name, layer):
    """A rule for `ignore`: leave the layers of the encoder whose input is not a layer norm's output."""
    return name.endswith("output.dense") or name == "pooler.dense"


def quantize_both(model, calibration, method, per_token, alpha=None):
    """W8A8 in one of its forms, in place; returns the Report."""
    threshold = 6.0 if method == "LLM.int8()" else math.inf
    if alpha is not None:
        # Where no layer before can take the division, as in the encoder, it is done at run time.
        smooth(model, calibration, alpha, not_after_a_norm if "norms" in method else (), divide=True)
    return llm_int8_model(model, threshold=threshold, ignore=(), per_token=per_token)


def bits_per_weight(report):
    """True bits that one weight of the quantized layers costs, its share of scales and zero points counted."""
    before, after = (
        sum(getattr(layer, part) for layer in report.quantized) for part in ("bytes_before", "bytes_after")
    )
    return 8 * after / (before / 4)


@functools.cache
def subject(name):
    """(model, calibration, quality) of a name: quality(model) is what the table shows."""
    if name == ENCODER:
        model, tokenizer = load_encoder()
        sentences = load_sentences()
        held_out, rest = sentences[:64], sentences[64:128]
        calibration = dict(tokenizer(rest, padding=True, truncation=True, return_tensors="pt"))
        reference = embed(model, tokenizer, held_out)
        return model, calibration, lambda other: cosine(reference, embed(other, tokenizer, held_out))
    model, _ = load_code_model()
    calibration, held_out = calibration_windows(WINDOWS), load_code_tokens("held_out", HELD_OUT)
    if name == EMULATED:
        emulate_outliers(model, calibration, RATIO)
    return model, calibration, lambda other: perplexity(other, held_out)


def calibration_windows(count):
    return load_code_tokens("calibration", count * WINDOW).view(-1, WINDOW)


def nudge_weights(model, seed):
    """Change every weight by about one part in ten million, in place: what another CPU's order of summing does too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-7 * torch.randn(parameter.shape, generator=generator))


def measure(model, method, bits=8, group_size=None, activations=None, alpha=None, windows=WINDOWS, nudge=None):
    """One row of the table.

    Args:
        model: CODE, EMULATED or ENCODER.
        method: a key of WEIGHT_METHODS; for quantized activations "W8A8", "LLM.int8()", "SmoothQuant", or
            "SmoothQuant after norms", which leaves the other layers' inputs as they are.
        bits, group_size: of the weights, asymmetric; of quantized activations 8 bits and a scale a row, symmetric.
        activations: None for float32; "per token" or "per tensor".
        alpha: of SmoothQuant.
        windows: of calibration tokens, for the code model.
        nudge: a seed for `nudge_weights` beforehand, to see how steady a figure is; None for the weights as they are.

    Returns:
        a dict: the arguments, "bits_per_weight" and "quality" (perplexity of the code model, where less is better, and
        cosine of the encoder, where 1 is best).
    """
    row = {name: value for name, value in locals().items() if value is not None}
    original, calibration, quality = subject(model)
    changed = copy.deepcopy(original)
    if nudge is not None:
        nudge_weights(changed, nudge)
    if windows != WINDOWS:
        calibration = calibration_windows(windows)
    if activations is None:
        report = WEIGHT_METHODS[method](changed, Scheme(bits, symmetric=False, group_size=group_size), calibration)
    else:
        report = quantize_both(changed, calibration, method, activations == "per token", alpha)
    return row | {"bits_per_weight": round(bits_per_weight(report), 4), "quality": round(quality(changed), 5)}


def plan():
    """The arguments of every row."""
    for bits, group_size in GROUPS:
        for method in ("rounding", "AWQ", "GPTQ", "GPTQ, act-order", "HQQ"):
            yield {"model": CODE, "method": method, "bits": bits, "group_size": group_size}
    for method in ("NF4", "NF4, double quantization", "HQQ, whole zero points"):
        yield {"model": CODE, "method": method, "bits": 4, "group_size": 64}
    at_two_bits = {"model": CODE, "bits": 2, "group_size": 32}
    for method in ("HQQ, whole zero points", "AWQ, then GPTQ", "AWQ, then GPTQ, act-order"):
        yield at_two_bits | {"method": method}
    yield at_two_bits | {"method": "GPTQ, act-order", "windows": 32}
    for method in ("rounding", "GPTQ", "AWQ, then GPTQ", "GPTQ, act-order", "AWQ, then GPTQ, act-order"):
        for seed in (1, 2, 3):
            yield at_two_bits | {"method": method, "nudge": seed}
    for method in ("rounding", "AWQ", "GPTQ", "GPTQ, act-order", "HQQ", "NF4, double quantization"):
        yield {"model": EMULATED, "method": method, "bits": 4, "group_size": 64}
    for bits, group_size in ((4, 64), (2, 32)):
        for method in ("rounding", "AWQ", "AWQ, dividing at run time", "GPTQ", "GPTQ, act-order", "HQQ"):
            yield {"model": ENCODER, "method": method, "bits": bits, "group_size": group_size}
    yield {"model": ENCODER, "method": "NF4, double quantization", "bits": 4, "group_size": 64}
    for model in (CODE, EMULATED, ENCODER):
        for activations in ("per token", "per tensor"):
            for method in ("W8A8", "LLM.int8()"):
                yield {"model": model, "method": method, "activations": activations}
            for method in ("SmoothQuant", "SmoothQuant after norms")[: 1 + (model == ENCODER)]:
                for alpha in ALPHAS:
                    yield {"model": model, "method": method, "activations": activations, "alpha": alpha}


def main():
    torch.set_num_threads(1)
    as_they_are = {name: subject(name) for name in (CODE, EMULATED, ENCODER)}
    floats = {name: round(quality(model), 5) for name, (model, _, quality) in as_they_are.items()}
    rows = [measure(**arguments) for arguments in progress_bar(list(plan()), "measuring")]
    RESULTS.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    RESULTS.write_text(f'{{\n  "float32": {json.dumps(floats)},\n  "rows": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
    for row in rows:
        print(*row.values())


if __name__ == "__main__":
    main()
