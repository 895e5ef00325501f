"""The real models come from this computer and are the ones measured; batches change no vector."""

import os
import shutil
import socket

import pytest
import torch
import transformers

from course import models
from course.models import embed, encoder_folder, load_encoder, load_sentences, quiet_loading

SENTENCES = [
    "The cat is asleep on the windowsill.",
    "A cat naps by the window.",
    "Quantization maps real numbers to small integers, and a scale and a zero point map them back again.",
    "Rain.",
    "",
]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture
def copied_folder(tmp_path, monkeypatch):
    """A copy of the encoder's folder, which load_encoder takes for the installed one."""
    copy = shutil.copytree(encoder_folder(), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(encoder_folder() / "model.safetensors", copy)
    monkeypatch.setattr(models.encoder, "encoder_folder", lambda: copy)
    return copy


# ---------------------------------------------------------------- loading


def test_these_tests_cannot_reach_the_network():
    with pytest.raises(pytest.fail.Exception, match=r"reached for the network: '192\.0\.2\.1'"):
        socket.create_connection(("192.0.2.1", 443), timeout=1)
    with pytest.raises(pytest.fail.Exception, match=r"reached for the network: 'example\.org'"):
        socket.getaddrinfo("example.org", 443)
    server = socket.create_server(("127.0.0.1", 0))
    socket.create_connection(server.getsockname()).close()
    server.close()


def test_the_encoder_loads_offline_whole_and_ready_to_measure(encoder):
    model, tokenizer = encoder
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_216
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert not model.training
    assert len(tokenizer) == 30522


def test_the_encoder_reaches_for_no_network_even_where_it_might(monkeypatch):
    import huggingface_hub

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    load_encoder()


def test_loading_says_nothing_and_leaves_transformers_as_it_was(capfd):
    verbosity = transformers.logging.get_verbosity()
    load_encoder()
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == verbosity


@pytest.mark.parametrize("had_bar", [True, False])
def test_quiet_loading_puts_the_progress_bar_back_as_it_was(had_bar):
    was = transformers.logging.is_progress_bar_enabled()
    switch = {True: transformers.logging.enable_progress_bar, False: transformers.logging.disable_progress_bar}
    switch[had_bar]()
    try:
        with pytest.raises(ZeroDivisionError), quiet_loading():
            assert not transformers.logging.is_progress_bar_enabled()
            assert transformers.logging.get_verbosity() == transformers.logging.ERROR
            1 / 0  # noqa: B018 - what goes wrong inside must not leave transformers mute
        assert transformers.logging.is_progress_bar_enabled() == had_bar
    finally:
        switch[was]()


def test_weights_with_one_byte_changed_are_refused(copied_folder):
    weights = copied_folder / "model.safetensors"
    with open(weights, "r+b") as file:
        file.seek(weights.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ValueError, match=r"model\.safetensors .* is not the file the lessons measured: its sha256 is"):
        load_encoder()


def test_weights_that_are_missing_are_named(copied_folder):
    (copied_folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_encoder()


def test_an_encoder_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"not installed: pip install -r requirements\.txt"):
        load_encoder()


def test_another_folder_is_loaded_by_the_same_code_and_not_held_to_the_checksum(tmp_path):
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(tmp_path)
    model, tokenizer = load_encoder(tmp_path)
    assert embed(model, tokenizer, SENTENCES).shape == (len(SENTENCES), 8)


# ---------------------------------------------------------------- vectors


def test_a_sentence_becomes_384_numbers_of_length_1(encoder):
    vectors = embed(*encoder, SENTENCES)
    assert (vectors.shape, vectors.dtype) == ((len(SENTENCES), 384), torch.float32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(SENTENCES)), rtol=0, atol=1e-6)


def test_neither_the_batch_nor_the_padding_changes_a_vector(encoder):
    together = embed(*encoder, SENTENCES)
    for batch_size in (1, 2, 3):
        torch.testing.assert_close(embed(*encoder, SENTENCES, batch_size=batch_size), together, rtol=0, atol=1e-5)
    reversed_order = embed(*encoder, SENTENCES[::-1], batch_size=2).flip(0)
    torch.testing.assert_close(reversed_order, together, rtol=0, atol=1e-5)


def test_sentences_that_mean_the_same_are_closer_than_others(encoder):
    cosines = embed(*encoder, SENTENCES[:3]) @ embed(*encoder, SENTENCES[:3]).T
    assert cosines[0, 1] > 0.7 > 0.3 > cosines[0, 2]


def test_a_text_longer_than_the_encoder_reads_is_cut_and_not_refused(encoder):
    assert torch.isfinite(embed(*encoder, ["word " * 5000])).all()


def test_vectors_can_be_used_outside_of_inference_mode(encoder):
    vectors = embed(*encoder, SENTENCES[:2])
    assert not vectors.requires_grad and not vectors.is_inference()


def test_the_sentences_are_about_200_in_pairs_and_no_two_are_the_same():
    sentences = load_sentences()
    assert 190 <= len(sentences) <= 210 and len(sentences) % 2 == 0
    assert len(set(sentences)) == len(sentences)
    assert all(sentence == sentence.strip() and sentence for sentence in sentences)
