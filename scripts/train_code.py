"""Trains the code model of lessons 12 to 18 on the Python standard library's source and writes it to data/code.

    python scripts/train_code.py [threads]

A small Llama. Its text is the library of the Python that runs this, without tests, tables and generated files, and with
HELD_OUT kept apart to measure on; another Python has another library, so another model. The training can be stopped at
any time and goes on where it was: every few minutes it writes its state under build/. Takes about 65 minutes on one
core that has bfloat16 arithmetic.
"""

import math
import pathlib
import sys
import sysconfig
import time

import safetensors.torch
import tokenizers
import torch
import tqdm
import transformers

from course.models import DATA, perplexity

OUT = DATA / "code"
STATE = pathlib.Path(__file__).parent.parent / "build" / "train_code.safetensors"

# Modules that the model never sees: of several kinds, and nothing else in the library is a copy of them.
HELD_OUT = [
    *("bisect.py", "calendar.py", "configparser.py", "csv.py", "fractions.py", "functools.py", "glob.py", "gzip.py"),
    *("heapq.py", "json/decoder.py", "logging/handlers.py", "queue.py", "sched.py", "shelve.py", "shutil.py"),
    *("statistics.py", "textwrap.py", "threading.py", "timeit.py", "unittest/suite.py", "xml/dom/pulldom.py"),
]
# Tests, tables, others' packages; and wave.py, half of which is sunau.py: it is neither unseen nor to be learnt.
LEFT_OUT = {
    *("test", "tests", "idle_test", "turtledemo", "encodings", "pydoc_data"),
    *("site-packages", "dist-packages", "__pycache__", "wave.py"),
}
VOCABULARY, CONTEXT = 1024, 256
STEPS, BATCH, WINDOW, WARM_UP = 5000, 12, 192, 100
MATRIX_RATE, OTHER_RATE = 0.02, 0.004  # of Muon and of AdamW
SAMPLE = 32768  # tokens of each text that are stored, for the lessons to measure and to calibrate on


def modules():
    """The library's modules: (those to train on, those held out), each {name: text}."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    texts = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not LEFT_OUT & set(name.split("/")) and "_sysconfigdata" not in name:
            texts[name] = path.read_text(encoding="utf-8", errors="replace")
    held_out = {name: texts.pop(name) for name in HELD_OUT}
    return texts, held_out


def train_tokenizer(texts):
    """A byte-level BPE: every text can be written in it, for each byte is a token too."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|file|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|file|>", eos_token="<|file|>", clean_up_tokenization_spaces=False
    )


def tokens_of(tokenizer, texts):
    """All the texts one after the other, each behind a <|file|>: int64 tensor of shape (tokens,)."""
    ids = [token for text in texts for token in [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]]
    return torch.tensor(ids)


def new_model(tokenizer):
    """A Llama of 4.2 million parameters: 6 layers, 256 wide, 8 heads on 2 key-value heads, its head tied."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.LlamaForCausalLM(config)


def optimizers_of(model):
    """Muon for the matrices inside the blocks, AdamW for the embeddings and the norms."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim == 1 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.1, adjust_lr_fn="original")
    return [muon, torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.01)]


def rate_at(step):
    """What the learning rates are times: up in a line, then down a cosine to a twentieth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP))) / 2


def train_step(model, optimizers, tokens, step):
    """One step on a batch of windows that depends on the step alone, so that a training that resumes sees the same."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(tokens) - WINDOW - 1, (BATCH,), generator=generator)
    batch = torch.stack([tokens[start : start + WINDOW + 1] for start in starts])
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(input_ids=batch[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(scores.float().flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("first_lr", group["lr"])
            group["lr"] = group["first_lr"] * rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def save_state(model, optimizers, step):
    """Write the weights and what the optimizers remember, as tensors under one name each, whole or not at all."""
    state = {f"model.{name}": weight.detach() for name, weight in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, memory in optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{index}.{key}": value for key, value in memory.items()}
    STATE.parent.mkdir(exist_ok=True)
    unfinished = STATE.with_suffix(".unfinished")
    safetensors.torch.save_file(state, unfinished, metadata={"step": str(step)})
    unfinished.replace(STATE)


def load_state(model, optimizers):
    """Take up what `save_state` wrote; returns the step to go on with, 0 when there is nothing."""
    if not STATE.exists():
        return 0
    with safetensors.safe_open(STATE, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        step = int(file.metadata()["step"])
    for name, weight in model.named_parameters():
        weight.data.copy_(state.pop(f"model.{name}"))
    memories = [{} for _ in optimizers]
    for key, value in state.items():
        _, number, index, name = key.split(".")
        memories[int(number)].setdefault(int(index), {})[name] = value
    for optimizer, memory in zip(optimizers, memories, strict=True):
        optimizer.load_state_dict({"state": memory, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def sample(tokens):
    """Windows of CONTEXT tokens from all over a text, in no order: int64, (SAMPLE,)."""
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    return windows[order[: SAMPLE // CONTEXT]].flatten()


def write(model, tokenizer, tokens, held_out):
    """Write the checkpoint in float16 and a sample of both texts, and say how well the stored weights do."""
    model.half().save_pretrained(OUT)
    tokenizer.save_pretrained(OUT)
    held_out, calibration = sample(held_out), sample(tokens)
    stored = {"held_out": held_out.to(torch.int16), "calibration": calibration.to(torch.int16)}
    safetensors.torch.save_file(stored, OUT / "tokens.safetensors", metadata={"format": "pt"})
    print(f"held-out perplexity {perplexity(model.float().eval(), held_out):.2f} on {len(held_out):,} tokens")


def main(threads=1):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    texts, held_out = modules()
    tokenizer = train_tokenizer(texts.values())
    tokens, held_out = tokens_of(tokenizer, texts.values()), tokens_of(tokenizer, held_out.values())
    print(f"{len(texts)} modules, {len(tokens):,} tokens to train on, {len(held_out):,} held out")
    model = new_model(tokenizer)
    optimizers = optimizers_of(model)
    first = load_state(model, optimizers)
    saved, mean_loss = time.monotonic(), None
    bar = tqdm.trange(first, STEPS, initial=first, total=STEPS, mininterval=10)
    for step in bar:
        loss = train_step(model, optimizers, tokens, step)
        mean_loss = loss if mean_loss is None else 0.98 * mean_loss + 0.02 * loss
        bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
        if time.monotonic() - saved > 180:
            save_state(model, optimizers, step + 1)
            saved = time.monotonic()
    save_state(model, optimizers, STEPS)
    write(model, tokenizer, tokens, held_out)


if __name__ == "__main__":
    main(*(int(threads) for threads in sys.argv[1:]))
