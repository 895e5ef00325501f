"""Measures what the capstone of lesson 18 is held against, and writes it to data/capstone, with the best.

    python scripts/measure_capstone.py

Round-to-nearest at every width and group size; the library's own answer; how much each layer minds; and the best that
this project could do: the library's answer, whose scales and norms are then trained to give what the float model
gives (the second of the two phases of EfficientQAT, Chen et al. 2024, arXiv:2407.11062, with the float model's own
answers in the place of labels). Only calibration text is trained on. Takes about ten minutes on one core.
"""

import copy
import datetime
import json

import torch
from torch.nn.functional import kl_div, linear, log_softmax

from course.capstone import BUDGET, HELD_OUT, compress, in_float32, rounding_curve, saved_bytes, store_small
from course.models import DATA, load_code_model, load_code_tokens, perplexity
from qlib import Scheme, save_quantized
from qlib.affine import expand_groups
from qlib.console import progress_bar
from qlib.linear import QLinear
from qlib.model import layers_to_quantize, sensitivity, set_submodule

EPOCHS, BATCH, RATE = 2, 8, 3e-4


class TunedLinear(torch.nn.Module):
    """The integers of a QLinear, fixed, and its scales, which are trained."""

    def __init__(self, layer):
        super().__init__()
        qtensor = layer.qtensor
        zero_point = expand_groups(qtensor.zero_point, qtensor.values, layer.scheme.group_size)
        self.register_buffer("steps", qtensor.values.float() - zero_point.float())
        self.scale = torch.nn.Parameter(layer.scale.clone())
        self.group_size = layer.scheme.group_size

    def forward(self, x):
        return linear(x, self.steps * expand_groups(self.scale, self.steps, self.group_size))


def tune(model, teacher, tokens):
    """Train the scales and norms of a quantized model, in place, to give what its float model gives."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QLinear)}
    tuned = {name: TunedLinear(layer) for name, layer in layers.items()}
    for name, layer in tuned.items():
        set_submodule(model, name, layer)
    model.requires_grad_(False)
    scales = [layer.scale.requires_grad_() for layer in tuned.values()]
    norms = [weight.requires_grad_() for name, weight in model.named_parameters() if "norm" in name]
    optimizer = torch.optim.Adam([{"params": scales, "lr": RATE}, {"params": norms, "lr": 10 * RATE}])
    windows = tokens.view(-1, 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(windows) // BATCH)
    torch.manual_seed(0)
    for _ in progress_bar(range(EPOCHS), "tuning scales"):
        for picked in torch.randperm(len(windows)).split(BATCH):
            with torch.no_grad():
                wanted = log_softmax(teacher(windows[picked]).logits, -1)
            given = log_softmax(model(windows[picked]).logits, -1)
            loss = kl_div(given, wanted, log_target=True, reduction="batchmean") / windows.shape[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.requires_grad_(False)
    for name, layer in layers.items():
        layer.scale = tuned[name].scale.detach()
        set_submodule(model, name, layer)


def point(model, tokens):
    """The bytes and the perplexity of a model that is stored small."""
    size = saved_bytes(model)
    return {"bytes": size, "perplexity": round(perplexity(in_float32(model), tokens), 4)}


def main():
    torch.set_num_threads(1)
    model, _ = load_code_model()
    held_out, calibration = load_code_tokens(count=HELD_OUT), load_code_tokens("calibration", count=32768)
    rounding = rounding_curve(model, held_out)
    print(len(rounding), "points of round-to-nearest")
    small = compress(copy.deepcopy(model), calibration, BUDGET)
    library = point(copy.deepcopy(small), held_out)
    print("library", library)
    best = in_float32(small)
    tune(best, model, calibration)
    save_quantized(store_small(best), DATA / "capstone")
    best = point(best, held_out)
    print("best", best)

    coarse = Scheme(bits=2, symmetric=False, group_size=64)
    before = perplexity(model, calibration[:1024])
    alone = sensitivity(
        model, layers_to_quantize(model, ()), coarse, lambda model: perplexity(model, calibration[:1024])
    )
    found = {
        "date": datetime.date.today().isoformat(),
        "budget": BUDGET,
        "held_out": HELD_OUT,
        "float": round(perplexity(model, held_out), 4),
        "rounding": [point | {"perplexity": round(point["perplexity"], 4)} for point in rounding],
        "library": library | {"recipe": "course.capstone.compress"},
        "best": best | {"recipe": "course.capstone.compress, then scales and norms trained on the calibration text"},
        "damage": {name: round(value - before, 4) for name, value in alone.items()},
    }
    (DATA / "capstone" / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
