"""Architectures of transformers on every way through qlib: a dozen in `make test`, all in `make test-families`."""

import pytest

from qlib import Scheme, quantize_model
from tests.families import FAMILIES, STEPS, Trial, tiny_family

# Each of these once showed a fault that others hid.
DOZEN = {
    "NomicBert",
    "Jina v3",
    "DeBERTa-v2",
    "T5",
    "Swin v2",
    "wav2vec2",
    "SpeechT5",
    "SigLIP",
    "Gemma3",
    "Mamba",
    "Mixtral",
    "gpt-oss",
}

# Where a refusal is the right answer, its words. Of Qwen2-VL's own names transformers takes some for those of older
# checkpoints, if it is the base model that is loaded. FNet's Fourier transform is refused by PyTorch, in float too.
REFUSED = {
    ("Qwen2-VL", "gives_its_base_to_transformers"): r"lacks visual\.blocks.*, a part of a quantized layer",
    ("FNet", "runs_in_bfloat16"): "Unsupported dtype BFloat16",
}

families = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in DOZEN else pytest.mark.families) for name in FAMILIES]
)


@families
@pytest.mark.parametrize("step", STEPS)
def test_a_family(name, step, tmp_path):
    trial = Trial(name, tmp_path)
    if (name, step) in REFUSED:
        with pytest.raises((ValueError, RuntimeError), match=REFUSED[name, step]):
            getattr(trial, step)()
    else:
        getattr(trial, step)()


def test_a_model_that_writes_to_its_weights_is_refused_in_words():
    """RWKV divides some by powers of two before it computes, unless it is told not to."""
    model, inputs = tiny_family("RWKV")
    model.config.rescale_every = 1
    quantize_model(model, Scheme(bits=8))
    with pytest.raises(ValueError, match=r"what is written to it would be lost.*\(div_\)"):
        model(**inputs)
