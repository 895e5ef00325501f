"""Adapters of peft, on a quantized model and in one that is quantized afterwards."""

import peft
import pytest
import torch

from qlib import INT4, NF4, QLinear, quantize_model
from tests.tiny_models import VOCABULARY, outputs, tiny_model

IDS = torch.randint(3, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(2))


def with_adapters(model):
    """A model with adapters on all its linear layers that change what it computes from the start."""
    torch.manual_seed(3)
    return peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    ).eval()


@pytest.fixture(params=[INT4, NF4], ids=["INT4", "NF4"])
def scheme(request):
    return request.param


def test_adapters_on_all_layers_of_a_quantized_model_learn_and_come_back(scheme, tmp_path):
    model = tiny_model("Llama")
    layers = [layer.name for layer in quantize_model(model, scheme).quantized]
    packed = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    adapted = with_adapters(model)
    wrapped = [n for n, m in adapted.base_model.model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert wrapped == layers

    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(layers)
    optimizer, losses = torch.optim.Adam(trained, lr=3e-2), []
    for _ in range(15):
        losses.append(adapted(input_ids=IDS, labels=IDS).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.95 * losses[0]

    adapted.save_pretrained(tmp_path / "adapter")
    again = tiny_model("Llama")
    quantize_model(again, scheme)
    loaded = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    assert torch.equal(outputs_of(loaded), outputs_of(adapted))
    for key, tensor in adapted.unload().state_dict().items():
        assert torch.equal(tensor, packed[key])


def outputs_of(adapted):
    with torch.inference_mode():
        return adapted(input_ids=IDS).logits


@pytest.mark.parametrize("safe", [False, True])
def test_to_merge_adapters_into_quantized_layers_is_refused_in_words(scheme, safe):
    model = tiny_model("Llama")
    quantize_model(model, scheme)
    adapted = with_adapters(model)
    before = outputs_of(adapted)
    with pytest.raises(
        ValueError, match="what is written to it would be lost: change, merge or tie float weights before"
    ):
        adapted.merge_and_unload(safe_merge=safe)
    assert torch.equal(outputs_of(adapted), before)


def test_adapters_stay_float_and_trainable_when_the_model_below_them_is_quantized(scheme):
    adapted, reference = with_adapters(tiny_model("Llama")), tiny_model("Llama")
    adapters = {name: p.clone() for name, p in adapted.named_parameters() if p.requires_grad}
    report = quantize_model(adapted, scheme)
    expected = [layer.name for layer in quantize_model(reference, scheme).quantized]
    inside = "base_model.model."
    assert [layer.name for layer in report.quantized] == [f"{inside}{name}.base_layer" for name in expected]
    left = {layer.name: layer.why for layer in report.skipped}
    assert {name for name, why in left.items() if why == "an adapter"} == {
        f"{inside}{name}.{part}.default" for name in expected for part in ("lora_A", "lora_B")
    }
    assert set(left.values()) == {"an adapter", "not a linear layer: Embedding", "ignored"}
    still = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert still.keys() == adapters.keys() and all(torch.equal(still[name], adapters[name]) for name in still)
    with pytest.raises(ValueError, match="the weight of a quantized layer"):
        adapted.merge_and_unload()
    assert torch.equal(outputs(adapted.unload())[0], outputs(reference)[0])


def test_a_layer_of_an_adapted_model_computes_the_quantized_one_and_the_adapter():
    linear, x = torch.nn.Linear(64, 8), torch.linspace(-1, 1, 128).reshape(2, 64)
    model = torch.nn.Sequential(linear)
    quantize_model(model, INT4)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    wrapped = adapted.base_model.model[0]
    assert isinstance(wrapped.base_layer, QLinear)
    added = x @ wrapped.lora_A["default"].weight.T @ wrapped.lora_B["default"].weight.T * wrapped.scaling["default"]
    torch.testing.assert_close(adapted(x), wrapped.base_layer(x) + added)
