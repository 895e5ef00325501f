"""The exercise of lesson 18: the capstone, which is scored."""

import torch

from course import capstone
from course.exercises.exercise import Exercise
from course.exercises.mistakes import Mistake
from course.models import load_code_tokens, perplexity
from qlib import Scheme, fake_quantize, quantize_model
from qlib.linear import QLinear
from qlib.model import layers_to_quantize, sensitivity


def coarse(group_size=128, bits=2):
    return Scheme(bits=bits, symmetric=False, group_size=group_size)


def rounded(model, scheme, ignore=()):
    quantize_model(model, scheme, ignore=ignore, progress=False)
    return model.half()


def forgets_to_return(model, tokens, budget):
    rounded(model, coarse())


def returns_the_report(model, tokens, budget):
    return quantize_model(model.half(), coarse(), ignore=(), progress=False)


def returns_the_weights(model, tokens, budget):
    return rounded(model, coarse()).state_dict()


def only_halves(model, tokens, budget):
    return model.half()


def puts_rounded_weights_back(model, tokens, budget):
    with torch.no_grad():
        for name in layers_to_quantize(model, ()):
            weight = model.get_submodule(name).weight
            weight.copy_(fake_quantize(weight, Scheme(bits=2)))
    return model.half()


def leaves_the_attention(model, tokens, budget):
    return rounded(model, coarse(), ignore=("*.self_attn.*",))


def quantizes_the_head_apart(model, tokens, budget):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return rounded(model, coarse(112))


def keeps_the_embedding_in_float32(model, tokens, budget):
    quantize_model(model, coarse(), ignore=(), progress=False)
    return model


def counts_the_integers_alone(model, tokens, budget):
    return rounded(model, coarse(group_size=8))


def four_bits_for_all(model, tokens, budget):
    return rounded(model, Scheme(bits=4))


def one_width_for_all(model, tokens, budget):
    return rounded(model, coarse())


def widens_where_it_matters_least(model, tokens, budget):
    harm = {name: rise / model.get_submodule(name).weight.numel() for name, rise in capstone.load_results()["damage"].items()}
    wide = sorted(harm, key=harm.get)[:2]
    quantize_model(model, coarse(bits=3), ignore=lambda name, _: name not in wide, progress=False)
    return rounded(model, coarse())


def measures_on_the_held_out_text(model, tokens, budget):
    held_out = load_code_tokens(count=1024)
    alone = sensitivity(model, layers_to_quantize(model, ())[:2], coarse(), lambda model: perplexity(model, held_out))
    wide = max(alone, key=alone.get)
    quantize_model(model, coarse(bits=3), ignore=lambda name, _: name != wide, progress=False)
    return rounded(model, coarse())


def casts_the_scales_to_integers(model, tokens, budget):
    for layer in rounded(model, coarse()).modules():
        if isinstance(layer, QLinear):
            layer.scale = layer.scale.to(torch.int8)
    return model


def rounds_the_embedding_to_whole_numbers(model, tokens, budget):
    embedding = model.get_input_embeddings().weight
    embedding.data = (embedding.data / 4).round()
    return rounded(model, coarse())


COMPRESS = Exercise(
    id="18.1",
    name="compress",
    key=capstone.compress,
    trial=capstone.Trial(capstone.code_task),
    mistakes=[
        Mistake(forgets_to_return, "Is there a `return` at the end?"),
        Mistake(returns_the_report, "the Report of a method; return the model, which was changed in place"),
        Mistake(returns_the_weights, "where the model is asked for"),
        Mistake(only_halves, capstone.AS_FLOATS),
        Mistake(puts_rounded_weights_back, capstone.ROUNDED_FLOATS),
        Mistake(leaves_the_attention, capstone.LAYERS_LEFT),
        Mistake(quantizes_the_head_apart, capstone.UNTIED),
        Mistake(keeps_the_embedding_in_float32, capstone.WIDE_FLOATS),
        Mistake(counts_the_integers_alone, capstone.NO_SCALES),
        Mistake(four_bits_for_all, capstone.TOO_WIDE),
        Mistake(one_width_for_all, capstone.ONE_WIDTH),
        Mistake(widens_where_it_matters_least, capstone.WRONG_LAYERS),
        Mistake(measures_on_the_held_out_text, capstone.PEEKED),
        Mistake(casts_the_scales_to_integers, "does not come back from its folder"),
        Mistake(rounds_the_embedding_to_whole_numbers, capstone.BROKEN),
    ],
    hints=[
        "Three questions, each of them a lesson. Where are the bytes, and must all of them be there (lessons 8 and 16)? "
        "Which layers mind most, and what does one more bit cost each (lesson 12)? And who rounds better than rounding "
        "(lesson 17)?",
        "The embedding and the scales need not be stored in float32: `model.half()`, `layer.scale.half()`, and for the "
        "embedding even torch.float8_e4m3fn. The perplexity with one layer at 2 bits, less the float model's, over "
        "the bytes of a third bit, numel / 8, says who should have it. `gptq_model(…, act_order=True)` does the rest.",
        "In this order: `sensitivity` at 2 bits in groups of 64, measured on 1,024 calibration tokens; "
        "`layers_to_leave(damage, price, …)` with what `saved_bytes` of a rounded copy leaves of the budget; "
        "`gptq_model` at 3 bits with `ignore=lambda name, layer: name not in wide`, then again at 2 bits for the rest; "
        "floats made small; `return model`.",
    ],
)

EXERCISES = [COMPRESS]
