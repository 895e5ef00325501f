"""Tiny models of a dozen architectures with everything in them random, an input for each, and what the two give."""

import torch
import transformers
from transformers import (
    BertConfig,
    ConditionalDetrConfig,
    DetrConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    ResNetConfig,
    T5Config,
    ViTConfig,
    WhisperConfig,
)

WIDE, HEADS, VOCABULARY = 64, 4, 100


def decoder(**changes):
    """What most configurations call their sizes."""
    sizes = {"hidden_size": WIDE, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    return sizes | {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | changes


def detr(config_class):
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIDE.items()}
    return config_class(backbone_config=backbone, d_model=WIDE, num_queries=5, num_labels=3, **sides)


SIDE = {"ffn_dim": 96, "layers": 1, "attention_heads": HEADS}
WHISPER = {
    "d_model": WIDE,
    "vocab_size": VOCABULARY,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    **{f"{token}_token_id": i for i, token in enumerate(("pad", "bos", "eos", "decoder_start"))},
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    **{f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIDE.items()},
}

# name: (class, configuration). GPT-2 has Conv1D layers; OPT, T5, Whisper and one Llama have tied heads.
MODELS = {
    "Llama": ("LlamaForCausalLM", LlamaConfig(**decoder(num_key_value_heads=2))),
    "Llama, head tied": ("LlamaForCausalLM", LlamaConfig(**decoder(tie_word_embeddings=True))),
    "OPT": (
        "OPTForCausalLM",
        OPTConfig(ffn_dim=96, word_embed_proj_dim=WIDE, max_position_embeddings=64, **decoder()),
    ),
    "GPT-2": (
        "GPT2LMHeadModel",
        GPT2Config(n_embd=WIDE, n_layer=2, n_head=HEADS, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2),
    ),
    "GPT-NeoX": ("GPTNeoXForCausalLM", GPTNeoXConfig(**decoder())),
    "BERT": ("BertForMaskedLM", BertConfig(**decoder())),
    "T5": (
        "T5ForConditionalGeneration",
        T5Config(d_model=WIDE, d_ff=96, d_kv=16, num_layers=2, num_heads=HEADS, vocab_size=VOCABULARY),
    ),
    "ViT": ("ViTForImageClassification", ViTConfig(image_size=32, patch_size=8, **decoder())),
    "Whisper": ("WhisperForConditionalGeneration", WhisperConfig(**WHISPER)),
    "Mixtral": ("MixtralForCausalLM", MixtralConfig(num_local_experts=4, num_key_value_heads=2, **decoder())),
    "DETR": ("DetrForObjectDetection", detr(DetrConfig)),
    "Conditional DETR": ("ConditionalDetrForObjectDetection", detr(ConditionalDetrConfig)),
}


def tiny_model(name):
    """A model of this architecture with random weights, always the same, in evaluation mode."""
    model_class, config = MODELS[name]
    return randomize(getattr(transformers, model_class)(config)).eval()


def randomize(model, seed=0):
    """Draw every number of a model that a file would hold, in place; returns the model.

    A fresh model's biases are zero and its norms are one, and what loses or re-initializes them looks right. What is
    not in a file, such as the frequencies of a rotary embedding, is calculated from the configuration, and stays.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in unique_floats(model):
            if tensor.ndim > 1 or name.endswith("bias"):
                tensor.normal_(0, 0.1, generator=generator)
            else:  # norms, variances, gates, temperatures: near one, and positive
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model


def unique_floats(model):
    """(name, tensor) of each floating-point tensor that transformers would save; one that is tied comes once."""
    unsaved = getattr(model, "_keys_to_ignore_on_save", None) or ()
    tensors = {
        id(tensor): (name, tensor)
        for name, tensor in model.state_dict(keep_vars=True).items()
        if tensor.is_floating_point() and name not in unsaved
    }
    return list(tensors.values())


def outputs(model):
    """What a tiny model gives for one fixed input: a list of tensors."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=generator)
    inputs = {"input_ids": ids}
    if model.main_input_name == "pixel_values":
        inputs = {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    elif model.main_input_name == "input_features":
        inputs = {"input_features": torch.randn(2, 8, 40, generator=generator)}
    if type(model).__name__ in ("T5ForConditionalGeneration", "WhisperForConditionalGeneration"):
        inputs["decoder_input_ids"] = ids[:, :4]
    with torch.inference_mode():
        output = model(**inputs)
    return [output.logits] + ([output.pred_boxes] if "pred_boxes" in output else [])


def assert_same_outputs(model, other):
    """Equal to the element."""
    for ours, theirs in zip(outputs(model), outputs(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
