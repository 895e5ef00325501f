"""SmoothQuant: equation 4 by hand, and a model whose outputs stay whatever alpha is."""

import math

import pytest
import torch

from qlib import Scheme
from qlib.checkpoint import load_quantized, save_quantized
from qlib.methods import (
    DividedInput,
    channel_magnitudes,
    emulate_outliers,
    llm_int8_model,
    smooth,
    smoothing_scale,
    smoothquant_model,
)
from tests.tiny_models import VOCABULARY, outputs, tiny_model

IDS = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(2))
ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0]


def test_equation_4_worked_by_hand():
    x = torch.tensor([[16.0, -1.0, 0.0, 3.0], [-4.0, 0.25, 0.0, 2.0]])
    weights = [torch.tensor([[1.0, 2.0, 5.0, 0.0]]), torch.tensor([[-4.0, 0.0, 1.0, 0.0], [0.0, -4.0, 0.0, 0.0]])]
    # sqrt(16 / 4) and sqrt(1 / 4); the third channel is never active, and no weight reads the fourth.
    assert smoothing_scale(weights, x, 0.5).tolist() == [2.0, 0.5, 1.0, 1.0]


def test_the_ends_of_alpha_even_out_the_weights_or_the_activations():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(20, 6, generator=generator), torch.randn(4, 6, generator=generator)
    for alpha, evened in (
        (0.0, weight * smoothing_scale([weight], x, 0.0)),
        (1.0, x / smoothing_scale([weight], x, 1.0)),
    ):
        torch.testing.assert_close(evened.abs().amax(0), torch.ones(6), msg=f"alpha {alpha}")


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("name", "divide"), [("Llama", False), ("OPT", False), ("BERT", True)])
def test_the_outputs_stay_but_for_rounding(name, divide, alpha):
    model = tiny_model(name)
    before = outputs(model)[0]
    scales = smooth(model, IDS, alpha, divide=divide)
    assert any(scale is not None for scale in scales.values())
    torch.testing.assert_close(outputs(model)[0], before, rtol=1e-3, atol=1e-5)


def test_it_takes_an_outlier_out_of_the_activations():
    model = tiny_model("Llama")
    channel, ratios = emulate_outliers(model, IDS, ratio=32.0)
    smooth(model, IDS)
    after = channel_magnitudes(model, IDS)
    for name, ratio in ratios.items():
        assert after[name][channel] / after[name].median() < ratio / 8


@pytest.mark.parametrize("per_token", [True, False])
def test_it_mends_what_an_outlier_does_to_w8a8(per_token):
    before = outputs(tiny_model("Llama"))[0]

    def error(quantize):
        model = tiny_model("Llama")
        emulate_outliers(model, IDS, ratio=256.0)
        quantize(model)
        return (outputs(model)[0] - before).square().mean()

    plain = error(lambda model: llm_int8_model(model, threshold=math.inf, per_token=per_token))
    smoothed = error(lambda model: smoothquant_model(model, IDS, per_token=per_token))
    assert smoothed < plain / 10


def test_a_smoothed_model_is_saved_and_loaded(tmp_path):
    model = tiny_model("Llama")
    report = smoothquant_model(model, IDS)
    assert {layer.scheme for layer in report.quantized} == {Scheme()}
    save_quantized(model, tmp_path / "model")
    assert torch.equal(outputs(load_quantized(tmp_path / "model"))[0], outputs(model)[0])


def test_a_model_with_divided_inputs_is_saved_and_loaded_like_any_other(tmp_path):
    model = tiny_model("BERT")
    smoothquant_model(model, IDS, divide=True)
    layer = model.bert.encoder.layer[0].intermediate.dense
    assert isinstance(layer, DividedInput) and layer.layer.activation_bits == 8
    save_quantized(model, tmp_path / "model")
    assert torch.equal(outputs(load_quantized(tmp_path / "model"))[0], outputs(model)[0])
    with pytest.raises(ValueError, match=r"does not fit the model: .*query is a DividedInput; only nn\.Linear"):
        load_quantized(tmp_path / "model", model)
