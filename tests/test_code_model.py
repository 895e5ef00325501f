"""The code model: perplexity against numbers worked by hand, greedy writing, and the checkpoint against its card."""

import math
import re
import types

import pytest
import torch
import transformers

from course.models import DATA, complete, load_code_model, load_code_tokens, perplexity
from qlib import INT8, QLinear, quantize_model


class Fixed:
    """A language model that gives the next token the same scores whatever it reads, and remembers what it read."""

    def __init__(self, scores):
        self.scores, self.read = torch.tensor(scores), []

    def __call__(self, input_ids, use_cache):
        self.read.append(input_ids)
        return types.SimpleNamespace(logits=self.scores.expand(*input_ids.shape, len(self.scores)))


class Successor:
    """A language model that is torn between the next two numbers, and sees nothing but the last token."""

    def __call__(self, input_ids, use_cache):
        one, two = (torch.nn.functional.one_hot((input_ids + step) % 10, 10) for step in (1, 2))
        return types.SimpleNamespace(logits=(one + two).float() * 100)


@pytest.fixture(scope="module")
def shipped():
    return load_code_model()


# ---------------------------------------------------------------- perplexity


def test_perplexity_is_the_one_worked_by_hand():
    three_to_one = Fixed([math.log(3), 0.0])  # 3/4 for token 0, 1/4 for token 1
    tokens = torch.tensor([1, 0, 1, 0])  # the first is given; guessed are 0, 1, 0
    by_hand = (3 / 4 * 1 / 4 * 3 / 4) ** (-1 / 3)
    assert perplexity(three_to_one, tokens, window=4) == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("vocabulary", [2, 7, 1024])
def test_a_model_that_knows_nothing_has_the_size_of_its_vocabulary(vocabulary):
    tokens = torch.arange(64) % vocabulary
    assert perplexity(Fixed([0.0] * vocabulary), tokens, window=16) == pytest.approx(vocabulary, rel=1e-6)


def test_a_model_torn_between_two_has_2_and_one_that_is_sure_and_wrong_has_no_limit():
    assert perplexity(Successor(), torch.arange(40) % 10, window=8) == pytest.approx(2)
    assert perplexity(Fixed([0.0, 30.0]), torch.zeros(8).long(), window=8) > 1e12


def test_each_window_is_read_on_its_own_and_what_is_left_over_is_not():
    model, tokens = Fixed([0.0, 0.0]), torch.tensor([0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1])
    perplexity(model, tokens, window=3)
    assert torch.equal(torch.cat(model.read), tokens[:9].view(3, 3))


def test_the_first_token_of_a_window_is_given_and_not_guessed():
    sure_of_0 = Fixed([50.0, 0.0])
    assert perplexity(sure_of_0, torch.tensor([1, 0, 0, 1, 0, 0]), window=3) == pytest.approx(1)


def test_windows_weigh_the_same_in_whatever_batch_they_come():
    model, tokens = Fixed([1.0, 0.0, -2.0]), torch.arange(17 * 4) % 3
    perplexity(model, tokens, window=4)
    assert [len(batch) for batch in model.read] == [8, 8, 1]
    logs = torch.log_softmax(torch.tensor([1.0, 0.0, -2.0]), 0)[tokens.view(17, 4)[:, 1:]]
    assert perplexity(model, tokens, window=4) == pytest.approx((-logs.mean()).exp().item(), rel=1e-6)


def test_less_than_a_window_is_refused_in_words():
    with pytest.raises(ValueError, match="5 tokens do not fill one window of 6"):
        perplexity(Fixed([0.0, 0.0]), torch.zeros(5).long(), window=6)


# ---------------------------------------------------------------- writing


def test_completing_takes_the_likeliest_token_each_time(shipped):
    model, tokenizer = shipped
    prompt = "def read_file(path):"
    ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        for _ in range(6):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    text = complete(model, tokenizer, prompt, tokens=6)
    assert text == tokenizer.decode(ids[1:])
    assert text.startswith(prompt) and len(text) > len(prompt)


def test_it_writes_a_docstring_that_fits_and_a_body(shipped):
    text = complete(*shipped, "def read_file(path):", tokens=20)
    assert re.match(r'def read_file\(path\):\n    """Return [a-z ]*file[a-z ]*\."""\n    return ', text)


def test_a_text_that_has_ended_is_not_gone_on_with(shipped):
    model, tokenizer = shipped
    ends = transformers.LlamaForCausalLM(model.config).eval()
    with torch.no_grad():
        for parameter in ends.parameters():
            parameter.zero_()  # all scores are 0, so the first token is taken, and that is the end of a file
    assert complete(ends, tokenizer, "import os", tokens=5) == "import os"


# ---------------------------------------------------------------- the checkpoint and its card


def test_the_card_tells_the_truth_about_size_and_perplexity(shipped):
    model, tokenizer = shipped
    card = (DATA / "code" / "README.md").read_text(encoding="utf-8")
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters" in card
    assert f"BPE of {len(tokenizer):,} tokens" in card
    stated = float(re.search(r"perplexity ([\d.]+) on the 32,768 held-out tokens", card)[1])
    assert perplexity(model, load_code_tokens(count=32768)) == pytest.approx(stated, abs=0.01)


def test_it_is_loaded_in_float32_to_be_measured_and_its_head_is_tied(shipped):
    model, _ = shipped
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training and model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_loading_says_nothing_and_reaches_for_no_network(capfd):
    load_code_model()
    assert capfd.readouterr() == ("", "")


def test_the_tokens_are_two_texts_in_whole_windows(shipped):
    _, tokenizer = shipped
    held_out, calibration = (load_code_tokens(part, count=32768) for part in ("held_out", "calibration"))
    for tokens in (held_out, calibration):
        assert tokens.shape == (32768,) and tokens.dtype == torch.int64
        assert tokens.min() >= 0 and tokens.max() < len(tokenizer)
    assert torch.equal(load_code_tokens(count=512), held_out[:512])
    windows = {tuple(window) for window in held_out.view(-1, 256).tolist()}
    assert len(windows) == 128 and not windows & {tuple(window) for window in calibration.view(-1, 256).tolist()}


def test_the_tokenizer_writes_any_text_and_gives_it_back(shipped):
    _, tokenizer = shipped
    for text in ("def f(x):\n\treturn x  # tabs", "Grüße, 你好", "\x00\x7f", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


# ---------------------------------------------------------------- other models through the same door


def tiny_opt():
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=1024, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, word_embed_proj_dim=16, bos_token_id=0, eos_token_id=0, pad_token_id=1,
        )
    )  # fmt: skip


def tiny_codegen():
    sizes = {
        "vocab_size": 1024,
        "n_positions": 64,
        "n_ctx": 64,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 4,
        "rotary_dim": 4,
    }
    return transformers.CodeGenForCausalLM(transformers.CodeGenConfig(**sizes, bos_token_id=0, eos_token_id=0))


@pytest.mark.parametrize(("make", "layers", "head"), [(tiny_opt, 6, "tied to"), (tiny_codegen, 4, "ignored")])
def test_the_courses_models_go_through_the_same_code(make, layers, head, shipped, tmp_path):
    torch.manual_seed(0)
    make().save_pretrained(tmp_path)
    shipped[1].save_pretrained(tmp_path)
    model, tokenizer = load_code_model(tmp_path)
    tokens = load_code_tokens(count=64)
    before = perplexity(model, tokens, window=32)
    report = quantize_model(model, INT8, progress=False)
    assert sum(isinstance(module, QLinear) for module in model.modules()) == len(report.quantized) == layers
    assert next(layer.why for layer in report.skipped if layer.name == "lm_head").startswith(head)
    assert perplexity(model, tokens, window=32) == pytest.approx(before, rel=0.01)
    assert complete(model, tokenizer, "def f", tokens=3).startswith("def f")
