"""QEmbedding: an embedding kept like a linear layer's weight, and a head tied to it on the same packed memory."""

import copy

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import qlib.hf  # noqa: F401 - it registers itself with transformers
from course.models import load_encoder
from qlib import (
    INT4,
    MXFP4,
    NF4,
    NVFP4,
    QLinear,
    Scheme,
    load_quantized,
    quantize_model,
    quantize_tensor,
    save_quantized,
)
from qlib.linear import QEmbedding
from qlib.model import tensors_of
from qlib.report import file_bytes, state_dict_bytes
from tests.strategies import schemes
from tests.tiny_models import MODELS, assert_same_outputs, outputs, tiny_model

SCHEME = Scheme(4, symmetric=False, group_size=16)
OTHER_GRIDS = st.sampled_from([NF4, MXFP4, NVFP4, Scheme(8, grid="e4m3"), Scheme(4, group_size=8, scales="float16")])


def table(rows=12, width=20, **options):
    embedding = torch.nn.Embedding(rows, width, **options)
    with torch.no_grad():
        embedding.weight.copy_(torch.randn(rows, width, generator=torch.Generator().manual_seed(0)))
    return embedding


@given(schemes() | OTHER_GRIDS, st.sampled_from([(5,), (), (2, 3), (0,), (1, 1)]))
def test_it_gives_the_rows_of_the_dequantized_table(scheme, shape):
    embedding, ids = table(), (torch.arange(6) * 5 % 12)[: torch.Size(shape).numel()].reshape(shape)
    layer = QEmbedding.from_embedding(embedding, scheme)
    assert torch.equal(layer(ids), quantize_tensor(embedding.weight, scheme).dequantize()[ids])
    assert torch.equal(layer.weight[ids], layer(ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_what_it_returns_follows_the_models_dtype_and_its_scales_do_not(dtype):
    layer = QEmbedding.from_embedding(table(), SCHEME)
    ids, weight = torch.tensor([3, 1]), layer.weight
    cast = copy.deepcopy(layer).to(dtype)
    assert cast(ids).dtype == dtype and torch.equal(cast(ids), layer(ids).to(dtype))
    assert torch.equal(cast.weight, weight.to(dtype)) and cast.scale.dtype == torch.float32
    assert QEmbedding.from_embedding(table().to(dtype), SCHEME)(ids).dtype == dtype


def test_padding_stays_an_exact_zero_and_wrong_ids_are_refused():
    layer = QEmbedding.from_embedding(torch.nn.Embedding(9, 16, padding_idx=4), SCHEME)
    assert layer.padding_idx == 4 and not layer(torch.tensor([4])).any()
    with pytest.raises(IndexError):
        layer(torch.tensor([9]))


class Scaled(torch.nn.Embedding):
    def forward(self, ids):
        return 3 * super().forward(ids)


def test_an_embedding_that_does_something_else_is_left_with_a_word():
    model = torch.nn.Sequential(Scaled(9, 16), torch.nn.Embedding(9, 16, max_norm=1.0), torch.nn.Embedding(9, 16))
    report = quantize_model(model, SCHEME, embeddings=True)
    assert [layer.name for layer in report.quantized] == ["2"]
    assert {left.name: left.why for left in report.skipped} == {
        "0": "not a linear layer: Scaled",
        "1": "not a linear layer: Embedding",
    }


@pytest.mark.parametrize("name", ["Llama, head tied", "OPT", "GPT-2", "T5", "Whisper"])
def test_a_head_that_is_tied_shares_the_packed_memory_before_and_after_a_save(name, tmp_path):
    model = tiny_model(name)
    plain = copy.deepcopy(model)
    report = quantize_model(model, SCHEME, embeddings=True)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, QEmbedding) and isinstance(head, QLinear) and head.packed is embedding.packed
    shared = [layer for layer in report.quantized if layer.shared_with]
    assert shared and all(f"shared with {layer.shared_with}" in repr(report) for layer in shared)
    assert report.bytes_after == state_dict_bytes(tensors_of(model))
    assert quantize_model(plain, SCHEME).bytes_after > report.bytes_after

    save_quantized(model, tmp_path / "model")
    assert file_bytes(tmp_path / "model" / "model.safetensors") < state_dict_bytes(model.state_dict()) + 30000
    by_transformers = getattr(transformers, MODELS[name][0]).from_pretrained(tmp_path / "model").eval()
    for loaded in (load_quantized(tmp_path / "model"), by_transformers):
        assert_same_outputs(model, loaded)
        assert loaded.get_output_embeddings().packed is loaded.get_input_embeddings().packed
    by_transformers.save_pretrained(tmp_path / "again")
    assert_same_outputs(model, load_quantized(tmp_path / "again"))


def test_what_a_tied_model_computes_is_what_the_dequantized_one_computes():
    model, reference = tiny_model("Llama, head tied"), tiny_model("Llama, head tied")
    quantize_model(model, SCHEME, embeddings=True)
    with torch.no_grad():
        for layer in reference.modules():
            if isinstance(layer, (torch.nn.Linear, torch.nn.Embedding)):
                layer.weight = torch.nn.Parameter(quantize_tensor(layer.weight, SCHEME).dequantize())
        reference.lm_head.weight = reference.model.embed_tokens.weight
        reference.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight)
        reference.lm_head.weight = reference.model.embed_tokens.weight
    torch.testing.assert_close(outputs(model)[0], outputs(reference)[0], rtol=1e-4, atol=1e-4)


def test_in_the_sentence_encoder_half_of_the_bytes_are_embeddings():
    encoder, _ = load_encoder()
    tables = sum(m.weight.nbytes for m in encoder.modules() if isinstance(m, torch.nn.Embedding))
    assert tables / state_dict_bytes(tensors_of(encoder)) == pytest.approx(0.53, abs=0.01)
    linear_alone = quantize_model(copy.deepcopy(encoder), INT4)
    everything = quantize_model(encoder, INT4, embeddings=True)
    assert linear_alone.bytes_before == everything.bytes_before
    # 47.7 MB of tables at 4.625 bits a weight in place of 32.
    saved = linear_alone.bytes_after - everything.bytes_after
    assert saved == pytest.approx(tables * (1 - 4.625 / 32), rel=1e-3)
