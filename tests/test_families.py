"""Architectures of transformers on every way through qlib: a dozen in `make test`, all in `make test-families`."""

import pytest

from tests.families import FAMILIES, STEPS, Trial

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

families = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in DOZEN else pytest.mark.families) for name in FAMILIES]
)


@families
@pytest.mark.parametrize("step", STEPS)
def test_a_family(name, step, tmp_path):
    getattr(Trial(name, tmp_path), step)()
