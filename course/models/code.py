"""The code model, which writes Python, and how well it guesses a text that it has not seen."""

import safetensors.torch
import torch
import transformers

from course.models.loading import DATA, quiet_loading


def load_code_model(source=None):
    """A small Llama that this project trained on the Python standard library: 4.2 million parameters, 6 layers.

    Args:
        source: None for the course's own, whose card is data/code/README.md; a folder or a Hub id, such as
            "facebook/opt-125m" or "Salesforce/codegen-350M-mono", for another causal language model.

    Returns:
        (model, tokenizer) of transformers, the model in float32 and evaluation mode.
    """
    source = DATA / "code" if source is None else source
    with quiet_loading():
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    return model.eval(), tokenizer


def load_code_tokens(part="held_out", count=8192):
    """Tokens of the standard library's source, in windows of 256 that come from all over it.

    Args:
        part: "held_out" for modules that the code model has never seen, to measure on; "calibration" for some that it
            was trained on, for methods that look at data before they quantize.
        count: how many, 32,768 at most.

    Returns:
        int64 tensor of shape (count,).
    """
    return safetensors.torch.load_file(DATA / "code" / "tokens.safetensors")[part][:count].long()


def complete(model, tokenizer, prompt, tokens=48):
    """Let a language model go on with a text, each time by the token it finds likeliest (greedy decoding).

    Args:
        model, tokenizer: as `load_code_model` gives them.
        prompt: the beginning, a string.
        tokens: how many to add at most; fewer if the model ends its file.

    Returns:
        the prompt and what follows, a string.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = torch.tensor([start + tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        ids = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def perplexity(model, tokens, window=256):
    """How many tokens a language model is torn between, on average, when it guesses the next one: exp(mean loss).

    Args:
        model: a causal language model of transformers.
        tokens: int64 tensor of shape (n,), a held-out text. It is cut into windows, and each window is read on its
            own; what is left over at the end is not read.
        window: how many tokens the model sees at a time, its own first one included.

    Returns:
        a float, 1 at best; the vocabulary's size for a model that knows nothing.

    Raises:
        ValueError: there is not one whole window of tokens.
    """
    windows = tokens[: len(tokens) // window * window].view(-1, window)
    if not len(windows):
        raise ValueError(f"{len(tokens)} tokens do not fill one window of {window}")
    losses = []
    with torch.inference_mode():
        for batch in windows.split(8):
            scores = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(scores.mT, batch[:, 1:], reduction="none"))
    return torch.cat(losses).double().mean().exp().item()
