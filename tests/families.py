"""Tiny models of the architectures that transformers knows, everything in them random, and an input for each.

`python -m tests.families` prints what each of them does; `python -m tests.families Falcon Swin` does a few.
"""

import copy
import pathlib
import sys
import tempfile

import torch
import transformers

import qlib.hf
from qlib import Scheme, load_quantized, quantize_checkpoint, quantize_model, save_quantized
from qlib.export import export_compressed_tensors
from qlib.linear import is_conv1d
from tests.tiny_models import HEADS, VOCABULARY, WIDE, decoder, randomize

# ---------------------------------------------------------------- inputs


def ids(length=9, low=5):
    return torch.randint(low, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def text():
    return {"input_ids": ids()}


def text_pair():
    return {"input_ids": ids(), "decoder_input_ids": ids(4)}


def pixels(size=32):
    return lambda: {"pixel_values": normal(2, 3, size, size)}


def wave():
    return {"input_values": normal(2, 800)}


def wave_to_text():
    return wave() | {"decoder_input_ids": ids(4)}


def spectrogram(frames=40, bins=8, **more):
    return lambda: {"input_features": normal(2, frames, bins)} | {key: make() for key, make in more.items()}


def image_and_text(size=32):
    return lambda: text() | pixels(size)()


def image_in_text(tokens, token=3, **more):
    """A picture's place in the text is `tokens` tokens long."""

    def inputs():
        words = torch.cat([torch.full((2, tokens), token), ids()], dim=1)
        return {"input_ids": words} | {key: make() for key, make in more.items()}

    return inputs


# ---------------------------------------------------------------- configurations


def encoder(**changes):
    return decoder(type_vocab_size=2, max_position_embeddings=64, **changes)


def sides(**changes):
    """The sizes of an encoder and a decoder, as BART calls them."""
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIDE.items()}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return {"d_model": WIDE, "vocab_size": VOCABULARY, "max_position_embeddings": 64} | sizes | special | changes


def t5(**changes):
    sizes = {"d_model": WIDE, "d_ff": 96, "d_kv": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": HEADS}
    return sizes | {"vocab_size": VOCABULARY, "decoder_start_token_id": 0} | changes


def vision(**changes):
    sizes = {"hidden_size": WIDE, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    return sizes | {"image_size": 32, "patch_size": 8} | changes


def pyramid(**changes):
    """A vision model in stages, each twice as wide as the one before."""
    sizes = {
        "embed_dim": 32,
        "depths": [1, 1],
        "num_heads": [2, 4],
        "window_size": 4,
        "image_size": 32,
        "patch_size": 4,
    }
    return sizes | changes


def speech(**changes):
    convolutions = {"conv_dim": [32, 32], "conv_stride": [5, 4], "conv_kernel": [10, 8]}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    return decoder(apply_spec_augment=False, **convolutions, **positions) | changes


def experts(**changes):
    few = {"num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 64}
    return decoder(**few | changes)


def deepseek(**changes):
    ranks = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
    routed = {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
    return experts(num_key_value_heads=HEADS, n_group=1, topk_group=1, **ranks | routed | changes)


def resnet():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return {"model_type": "resnet", "out_features": ["stage2"], **sizes}


def detr():
    return sides(backbone_config=resnet(), num_queries=5, num_labels=3)


SIDE = {"ffn_dim": 96, "layers": 2, "attention_heads": HEADS}
KV = {"num_key_value_heads": 2}
LLAMA = {"model_type": "llama", **decoder(**KV)}
GPT2 = {"n_embd": WIDE, "n_layer": 2, "n_head": HEADS, "n_positions": 64, "vocab_size": VOCABULARY}
NO_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MAMBA = {"hidden_size": WIDE, "state_size": 8, "num_hidden_layers": 2, "vocab_size": VOCABULARY, **NO_SPECIAL}
CLIP_SIDES = {
    "text_config": decoder(max_position_embeddings=64, projection_dim=32),
    "vision_config": vision(projection_dim=32),
}
ROPE = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [2, 3, 3]}

# ---------------------------------------------------------------- the families

# name: (class, configuration, what makes its inputs)
FAMILIES = {
    # text, decoders
    "Llama": ("LlamaForCausalLM", decoder(**KV), text),
    "Llama, head tied": ("LlamaForCausalLM", decoder(**KV, tie_word_embeddings=True), text),
    "Mistral": ("MistralForCausalLM", decoder(**KV), text),
    "Qwen2": ("Qwen2ForCausalLM", decoder(**KV), text),
    "Qwen3 base": ("Qwen3Model", decoder(**KV, head_dim=16), text),
    "Gemma2": ("Gemma2ForCausalLM", decoder(**KV, head_dim=16), text),
    "Gemma3 text": ("Gemma3ForCausalLM", decoder(**KV, head_dim=16), text),
    "Phi": ("PhiForCausalLM", decoder(**KV), text),
    "Phi3": ("Phi3ForCausalLM", decoder(**KV), text),
    "OLMo2": ("Olmo2ForCausalLM", decoder(**KV), text),
    "StableLM": ("StableLmForCausalLM", decoder(**KV), text),
    "Cohere": ("CohereForCausalLM", decoder(**KV), text),
    "GLM4": ("Glm4ForCausalLM", decoder(**KV, head_dim=16), text),
    "Falcon": ("FalconForCausalLM", decoder(), text),
    "Falcon, new": ("FalconForCausalLM", decoder(new_decoder_architecture=True, num_kv_heads=2, bias=True), text),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", GPT2 | NO_SPECIAL, text),
    "GPT-2": ("GPT2LMHeadModel", GPT2 | NO_SPECIAL, text),
    "GPT-J": ("GPTJForCausalLM", GPT2 | NO_SPECIAL | {"rotary_dim": 8}, text),
    "GPT-Neo": (
        "GPTNeoForCausalLM",
        decoder(num_layers=2, num_heads=HEADS, attention_types=[[["global", "local"], 1]]),
        text,
    ),
    "GPT-NeoX": ("GPTNeoXForCausalLM", decoder(), text),
    "CodeGen": ("CodeGenForCausalLM", GPT2 | NO_SPECIAL | {"rotary_dim": 8}, text),
    "BLOOM": (
        "BloomForCausalLM",
        {"hidden_size": WIDE, "n_layer": 2, "n_head": HEADS} | NO_SPECIAL | {"vocab_size": 100},
        text,
    ),
    "MPT": ("MptForCausalLM", {"d_model": WIDE, "n_layers": 2, "n_heads": HEADS, "vocab_size": VOCABULARY}, text),
    "OPT": ("OPTForCausalLM", decoder(ffn_dim=96, word_embed_proj_dim=32, max_position_embeddings=64), text),
    "XGLM": ("XGLMForCausalLM", sides() | {"num_layers": 2, "ffn_dim": 96, "attention_heads": HEADS}, text),
    # text, encoders
    "BERT": ("BertForMaskedLM", encoder(), text),
    "RoBERTa": ("RobertaForSequenceClassification", encoder(), text),
    "ALBERT": ("AlbertForMaskedLM", encoder(embedding_size=32), text),
    "ELECTRA": ("ElectraForPreTraining", encoder(embedding_size=32), text),
    "DistilBERT": (
        "DistilBertForMaskedLM",
        {"dim": WIDE, "hidden_dim": 96, "n_layers": 2, "n_heads": HEADS, "vocab_size": VOCABULARY},
        text,
    ),
    "DeBERTa": ("DebertaModel", encoder(relative_attention=True, pos_att_type=["c2p", "p2c"]), text),
    "DeBERTa-v2": (
        "DebertaV2ForSequenceClassification",
        encoder(relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8, norm_rel_ebd="layer_norm"),
        text,
    ),
    "MobileBERT": (
        "MobileBertForMaskedLM",
        encoder(embedding_size=32, intra_bottleneck_size=32, true_hidden_size=32),
        text,
    ),
    "ModernBERT": ("ModernBertForMaskedLM", decoder(cls_token_id=1, sep_token_id=2), text),
    "NomicBert": ("NomicBertModel", encoder(), text),
    "Jina v3": ("JinaEmbeddingsV3Model", encoder(), text),
    "MPNet": ("MPNetModel", encoder(), text),
    "XLM": ("XLMModel", {"emb_dim": WIDE, "n_layers": 2, "n_heads": HEADS, "n_words": VOCABULARY}, text),
    "XLNet": (
        "XLNetLMHeadModel",
        {"d_model": WIDE, "n_layer": 2, "n_head": HEADS, "d_inner": 96, "vocab_size": 100},
        text,
    ),
    "FNet": ("FNetForMaskedLM", encoder(), text),
    "Funnel": (
        "FunnelModel",
        {
            "d_model": WIDE,
            "n_head": HEADS,
            "d_head": 16,
            "d_inner": 96,
            "block_sizes": [1, 1],
            "vocab_size": VOCABULARY,
        },
        text,
    ),
    "Splinter": ("SplinterModel", encoder(), text),
    "SqueezeBERT": ("SqueezeBertModel", encoder(embedding_size=WIDE), text),
    "RoFormer": ("RoFormerModel", encoder(embedding_size=32), text),
    "ConvBERT": ("ConvBertModel", encoder(embedding_size=32), text),
    "Longformer": ("LongformerModel", encoder(attention_window=4), text),
    # text, both sides
    "T5": ("T5ForConditionalGeneration", t5(), text_pair),
    "mT5": ("MT5ForConditionalGeneration", t5(feed_forward_proj="gated-gelu"), text_pair),
    "BART": ("BartForConditionalGeneration", sides(), text_pair),
    "Pegasus": ("PegasusForConditionalGeneration", sides(), text_pair),
    "Marian": ("MarianMTModel", sides(), text_pair),
    "M2M-100": ("M2M100ForConditionalGeneration", sides(), text_pair),
    "ProphetNet": (
        "ProphetNetForConditionalGeneration",
        {"hidden_size": WIDE, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "ngram": 2}
        | {"encoder_ffn_dim": 96, "num_encoder_layers": 2, "num_encoder_attention_heads": HEADS}
        | {"decoder_ffn_dim": 96, "num_decoder_layers": 2, "num_decoder_attention_heads": HEADS},
        text_pair,
    ),
    # vision
    "ViT": ("ViTForImageClassification", vision(), pixels()),
    "DeiT": ("DeiTModel", vision(), pixels()),
    "BEiT": ("BeitForImageClassification", vision(use_relative_position_bias=True), pixels()),
    "DINOv2": ("Dinov2Model", vision(mlp_ratio=2), pixels()),
    "SigLIP vision": ("SiglipVisionModel", vision(), pixels()),
    "CLIP vision": ("CLIPVisionModelWithProjection", vision(projection_dim=32), pixels()),
    "Swin": ("SwinForImageClassification", pyramid(), pixels()),
    "Swin v2": ("Swinv2Model", pyramid(), pixels()),
    "ConvNeXt": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [32, 64], "depths": [1, 1], "num_stages": 2},
        pixels(),
    ),
    "SegFormer": (
        "SegformerForSemanticSegmentation",
        {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [32, 64], "num_attention_heads": [1, 2]}
        | {
            "sr_ratios": [2, 1],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 32,
        },
        pixels(),
    ),
    "DETR": ("DetrForObjectDetection", detr(), pixels()),
    "Conditional DETR": ("ConditionalDetrForObjectDetection", detr(), pixels()),
    "YOLOS": ("YolosForObjectDetection", vision(image_size=[32, 32], num_detection_tokens=4), pixels()),
    "ResNet": ("ResNetForImageClassification", resnet() | {"out_features": None}, pixels()),
    # sound
    "wav2vec2": ("Wav2Vec2ForCTC", speech(), wave),
    "HuBERT": ("HubertModel", speech(), wave),
    "WavLM": ("WavLMModel", speech(), wave),
    "Whisper": (
        "WhisperForConditionalGeneration",
        sides(num_mel_bins=8, max_source_positions=20, max_target_positions=20),
        lambda: {"input_features": normal(2, 8, 40), "decoder_input_ids": ids(4)},
    ),
    "SpeechT5": (
        "SpeechT5ForSpeechToText",
        speech() | sides(hidden_size=WIDE, max_text_positions=64, max_speech_positions=64, num_mel_bins=8),
        wave_to_text,
    ),
    "Speech to text": (
        "Speech2TextForConditionalGeneration",
        sides(input_feat_per_channel=8, max_source_positions=64, max_target_positions=64, conv_channels=32),
        spectrogram(decoder_input_ids=lambda: ids(4)),
    ),
    "SeamlessM4T": (
        "SeamlessM4TForTextToText",
        sides(hidden_size=WIDE, speech_encoder_layers=1, speech_encoder_attention_heads=HEADS)
        | {"speech_encoder_intermediate_size": 96, "feature_projection_input_dim": 16},
        text_pair,
    ),
    "SeamlessM4T v2, speech": (
        "SeamlessM4Tv2ForSpeechToText",
        sides(hidden_size=WIDE, speech_encoder_layers=1, speech_encoder_attention_heads=HEADS)
        | {"speech_encoder_intermediate_size": 96, "feature_projection_input_dim": 16, "adaptor_kernel_size": 4}
        | {"adaptor_stride": 4},
        spectrogram(bins=16, decoder_input_ids=lambda: ids(4)),
    ),
    "AST": (
        "ASTForAudioClassification",
        vision(max_length=40, num_mel_bins=16),
        lambda: {"input_values": normal(2, 40, 16)},
    ),
    "CLAP": (
        "ClapModel",
        {
            "text_config": encoder(projection_dim=32),
            "audio_config": {"spec_size": 32, "num_mel_bins": 8, "window_size": 4, "patch_embeds_hidden_size": 32}
            | {"depths": [1, 1], "num_attention_heads": [2, 4], "hidden_size": 64, "num_hidden_layers": 2}
            | {"projection_dim": 32},
            "projection_dim": 32,
        },
        lambda: text() | {"input_features": normal(2, 1, 128, 8), "is_longer": torch.zeros(2, 1, dtype=torch.bool)},
    ),
    # pictures and text
    "CLIP": ("CLIPModel", {**CLIP_SIDES, "projection_dim": 32}, image_and_text()),
    "SigLIP": ("SiglipModel", CLIP_SIDES, lambda: {"input_ids": ids(64)} | pixels()()),
    "LLaVA": (
        "LlavaForConditionalGeneration",
        {
            "text_config": LLAMA,
            "vision_config": {"model_type": "clip_vision_model", **vision()},
            "image_token_index": 3,
        },
        image_in_text(16, pixel_values=lambda: normal(2, 3, 32, 32)),
    ),
    "Gemma3": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": decoder(**KV, head_dim=16),
            "vision_config": vision(),
            "mm_tokens_per_image": 4,
            "image_token_index": 3,
            "boi_token_index": 4,
        },
        image_in_text(4, pixel_values=lambda: normal(2, 3, 32, 32)),
    ),
    "PaliGemma": (
        "PaliGemmaForConditionalGeneration",
        {
            "text_config": {"model_type": "gemma", **decoder(**KV, head_dim=16)},
            "vision_config": {"model_type": "siglip_vision_model", **vision(projection_dim=WIDE)},
            "projection_dim": WIDE,
            "image_token_index": 3,
        },
        image_in_text(16, pixel_values=lambda: normal(2, 3, 32, 32)),
    ),
    "Qwen2-VL": (
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": decoder(**KV, rope_parameters=ROPE),
            "vision_config": {"embed_dim": 32, "depth": 2, "num_heads": 2, "hidden_size": WIDE, "patch_size": 4}
            | {"mlp_ratio": 2, "spatial_merge_size": 2, "temporal_patch_size": 2},
            "image_token_id": 3,
            "video_token_id": 4,
            "vision_start_token_id": 98,
            "vision_end_token_id": 99,
        },
        image_in_text(
            4,
            pixel_values=lambda: normal(32, 3 * 2 * 4 * 4),
            image_grid_thw=lambda: torch.tensor([[1, 4, 4], [1, 4, 4]]),
            mm_token_type_ids=lambda: torch.tensor([[1] * 4 + [0] * 9] * 2),
        ),
    ),
    "BLIP": (
        "BlipForConditionalGeneration",
        {
            "text_config": encoder(projection_dim=32, encoder_hidden_size=WIDE, sep_token_id=2),
            "vision_config": vision(projection_dim=32),
            "projection_dim": 32,
        },
        image_and_text(),
    ),
    "Idefics3": (
        "Idefics3ForConditionalGeneration",
        {"text_config": LLAMA, "vision_config": vision(), "scale_factor": 2, "image_token_id": 3},
        image_in_text(4, pixel_values=lambda: normal(2, 1, 3, 32, 32)),
    ),
    "Florence-2": (
        "Florence2ForConditionalGeneration",
        {
            "text_config": {"model_type": "bart", **sides()},
            "vision_config": {"depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1]}
            | {"patch_prenorm": [False, True], "embed_dim": [32, 64], "num_heads": [2, 4], "num_groups": [2, 4]}
            | {"window_size": 4, "projection_dim": WIDE},
            "image_token_id": 3,
        },
        image_in_text(17, pixel_values=lambda: normal(2, 3, 32, 32), decoder_input_ids=lambda: ids(4)),
    ),
    "ViLT": ("ViltModel", encoder() | vision(), image_and_text()),
    "InternVL": (
        "InternVLForConditionalGeneration",
        {
            "text_config": {"model_type": "qwen2", **decoder(**KV)},
            "vision_config": vision(image_size=[32, 32], patch_size=[8, 8]),
            "image_token_id": 3,
        },
        image_in_text(4, pixel_values=lambda: normal(2, 3, 32, 32)),
    ),
    # state spaces and their kin
    "Mamba": ("MambaForCausalLM", MAMBA, text),
    "Mamba2": (
        "Mamba2ForCausalLM",
        MAMBA | {"num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
        text,
    ),
    "FalconMamba": ("FalconMambaForCausalLM", MAMBA, text),
    "Jamba": (
        "JambaForCausalLM",
        experts(
            num_experts=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, use_mamba_kernels=False
        ),
        text,
    ),
    "RWKV": (
        "RwkvForCausalLM",
        {"hidden_size": WIDE, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "rescale_every": 0},
        text,
    ),
    "Bamba": (
        "BambaForCausalLM",
        decoder(**KV, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=16, mamba_d_state=8, mamba_chunk_size=8),
        text,
    ),
    "RecurrentGemma": ("RecurrentGemmaForCausalLM", decoder(**KV, lru_width=WIDE, num_hidden_layers=3), text),
    # mixtures of experts
    "Mixtral": ("MixtralForCausalLM", experts(num_local_experts=4), text),
    "Qwen2-MoE": (
        "Qwen2MoeForCausalLM",
        experts(num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=48),
        text,
    ),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", experts(num_experts=4, moe_intermediate_size=32, head_dim=16), text),
    "gpt-oss": ("GptOssForCausalLM", experts(num_local_experts=4, head_dim=16), text),
    "DeepSeek-V2": ("DeepseekV2ForCausalLM", deepseek(), text),
    "DeepSeek-V3": ("DeepseekV3ForCausalLM", deepseek(), text),
    "DeepSeek-V4": (
        "DeepseekV4ForCausalLM",
        experts(n_routed_experts=4, moe_intermediate_size=32, q_lora_rank=32, o_lora_rank=32, head_dim=32, o_groups=2)
        | {"num_key_value_heads": 1, "index_n_heads": 2, "index_head_dim": 32, "index_topk": 4, "hc_mult": 2},
        text,
    ),
    "OLMoE": ("OlmoeForCausalLM", experts(num_experts=4), text),
    "PhiMoE": ("PhimoeForCausalLM", experts(num_local_experts=4), text),
    "GraniteMoE": ("GraniteMoeForCausalLM", experts(num_local_experts=4), text),
    "Llama4 text": (
        "Llama4ForCausalLM",
        experts(num_local_experts=4, head_dim=16, intermediate_size_mlp=96) | {"num_experts_per_tok": 1},
        text,
    ),
    "MiniMax": (
        "MiniMaxForCausalLM",
        experts(num_local_experts=4, layer_types=["linear_attention", "full_attention"], block_size=8, head_dim=16),
        text,
    ),
    "DBRX": (
        "DbrxForCausalLM",
        {"d_model": WIDE, "n_heads": HEADS, "n_layers": 2, "max_seq_len": 64, "vocab_size": VOCABULARY, **NO_SPECIAL}
        | {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}}
        | {"ffn_config": {"hidden_size": WIDE, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2}},
        text,
    ),
    "NLLB-MoE": ("NllbMoeForConditionalGeneration", sides(num_experts=4, expert_capacity=16), text_pair),
    "Switch": ("SwitchTransformersForConditionalGeneration", t5(num_experts=4, expert_capacity=16), text_pair),
    "JetMoe": (
        "JetMoeForCausalLM",
        experts(num_local_experts=4, kv_channels=16) | {"num_key_value_heads": 2},
        text,
    ),
    "GLM4-MoE": ("Glm4MoeForCausalLM", deepseek(head_dim=16), text),
}


def tiny_family(name):
    """A model of this family with everything in it random, always the same, in evaluation mode; and its inputs."""
    class_name, sizes, inputs = FAMILIES[name]
    model_class = getattr(transformers, class_name)
    return randomize(model_class(model_class.config_class(**sizes))).eval(), inputs()


# ---------------------------------------------------------------- what each is to do

SCHEME = Scheme(bits=4, symmetric=False, group_size=32)
ON_THE_FLY = {"bits": 4, "symmetric": False, "group_size": 32}
SMALL = 0.01  # of a model's bytes: what a report need not name


class Trial:
    """One family on its way through qlib; the folders that it leaves are inside `folder`."""

    def __init__(self, name, folder):
        self.folder = pathlib.Path(folder)
        self.model, self.inputs = tiny_family(name)
        self.quantized = copy.deepcopy(self.model)
        self.report = quantize_model(self.quantized, SCHEME, progress=False)

    def outputs(self, model):
        """All tensors that a model gives, whatever the file that it came from: where a tensor begins in memory decides
        in which order some products are summed up, and a mapped file has it begin anywhere."""
        model = copy.deepcopy(model)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(0)  # SpeechT5 drops some of its inputs even in evaluation mode
            return list(tensors_in(model(**self.inputs).to_tuple()))

    def assert_same(self, model, expected):
        """Equal to the element, in what they hold and in what they give."""
        assert_same_tensors(model.state_dict(), expected.state_dict())
        for ours, theirs in zip(self.outputs(model), self.outputs(expected), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)

    def float_folder(self):
        self.model.save_pretrained(self.folder / "float")
        return self.folder / "float"

    def load(self, folder, **more):
        return type(self.model).from_pretrained(folder, **more).eval()

    def loaded_and_quantized(self, folder):
        """What the other ways to quantize a float folder are measured against."""
        model = self.load(folder)
        quantize_model(model, SCHEME, progress=False)
        return model

    def quantized_parameters(self):
        """The names of all float parameters that the report says are quantized, those of other places included."""
        named = {f"{layer.name}{end}" for layer in self.report.quantized for end in ("", ".weight")}
        parameters = list(self.model.named_parameters(remove_duplicate=False))
        identities = {id(parameter) for name, parameter in parameters if name in named}
        return [name for name, parameter in parameters if id(parameter) in identities]

    # Each of these raises where something is not as it should be.

    def computes_with_the_dequantized_weights(self):
        oracle, chosen = copy.deepcopy(self.model), self.quantized_parameters()
        with torch.no_grad():
            for name in chosen:
                owner, _, key = name.rpartition(".")
                weight = getattr(self.quantized.get_submodule(owner), key)
                transposed = is_conv1d(oracle.get_submodule(owner))
                oracle.get_parameter(name).copy_(weight.T if transposed else weight)
        for ours, theirs in zip(self.outputs(self.quantized), self.outputs(oracle), strict=True):
            size = theirs[theirs.isfinite()].abs().max().item() if theirs.is_floating_point() else 0
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * size)

    def leaves_the_rest_as_it_was(self):
        chosen = self.quantized_parameters()
        rest = {name: tensor for name, tensor in self.model.state_dict().items() if name not in chosen}
        kept = self.quantized.state_dict()
        assert_same_tensors({name: tensor for name, tensor in kept.items() if name in rest}, rest)
        still_there = [name for name in chosen if name in kept and kept[name].numel()]  # empty ones mark the places
        assert not still_there, f"still float: {', '.join(still_there)}"

    def names_what_stays_float(self):
        chosen, left = self.quantized_parameters(), {layer.name for layer in self.report.skipped}
        state = self.model.state_dict()
        total = sum(tensor.nbytes for tensor in state.values())
        large = [name for name, tensor in state.items() if tensor.nbytes > SMALL * total and name not in chosen]
        unnamed = [name for name in large if not {name, name.rpartition(".")[0]} & left]
        assert not unnamed, f"the report names neither as quantized nor as left: {', '.join(unnamed)}"

    def is_loaded_by_qlib(self):
        save_quantized(self.quantized, self.folder / "saved")
        self.assert_same(load_quantized(self.folder / "saved"), self.quantized)

    def is_loaded_by_transformers(self):
        save_quantized(self.quantized, self.folder / "saved")
        self.assert_same(self.load(self.folder / "saved"), self.quantized)

    def is_quantized_while_it_loads(self):
        folder = self.float_folder()
        model = self.load(folder, quantization_config=qlib.hf.QlibConfig(**ON_THE_FLY))
        self.assert_same(model, self.loaded_and_quantized(folder))

    def is_saved_by_transformers(self):
        model = self.load(self.float_folder(), quantization_config=qlib.hf.QlibConfig(**ON_THE_FLY))
        model.save_pretrained(self.folder / "again")
        self.assert_same(self.load(self.folder / "again"), model)

    def is_quantized_on_disk_for_qlib(self):
        folder = self.float_folder()
        quantize_checkpoint(folder, self.folder / "streamed", SCHEME)
        self.assert_same(load_quantized(self.folder / "streamed"), self.loaded_and_quantized(folder))

    def is_quantized_on_disk_for_transformers(self):
        folder = self.float_folder()
        quantize_checkpoint(folder, self.folder / "streamed", SCHEME)
        self.assert_same(self.load(self.folder / "streamed"), self.loaded_and_quantized(folder))

    def gives_its_base_to_transformers(self):
        """A folder of a model with a head is a folder of the model without it, which may have parts of its own."""
        base, own = type(self.model.base_model), self.quantized.base_model.state_dict().keys()
        expected = base.from_pretrained(self.float_folder())
        quantize_model(expected, SCHEME, progress=False)
        save_quantized(self.quantized, self.folder / "saved")
        found = base.from_pretrained(self.folder / "saved")
        found, expected = ({k: v for k, v in m.state_dict().items() if k in own} for m in (found, expected))
        assert_same_tensors(found, expected)

    def runs_in_bfloat16(self):
        """What reads a layer's weight, or only its dtype, finds bfloat16."""
        model = copy.deepcopy(self.model).bfloat16()
        inputs = {key: x.bfloat16() if x.is_floating_point() else x for key, x in self.inputs.items()}
        with torch.inference_mode():
            expected = next(tensors_in(model(**inputs).to_tuple())).dtype
            quantize_model(model, SCHEME, progress=False)
            found = next(tensors_in(model(**inputs).to_tuple())).dtype
        assert found == expected, f"{found} comes out, of the float model {expected}"

    def is_exported(self):
        """Only tried, for the table."""
        export_compressed_tensors(self.quantized, self.folder / "exported")


STEPS = [
    "computes_with_the_dequantized_weights",
    "leaves_the_rest_as_it_was",
    "names_what_stays_float",
    "is_loaded_by_qlib",
    "is_loaded_by_transformers",
    "is_quantized_while_it_loads",
    "is_saved_by_transformers",
    "is_quantized_on_disk_for_qlib",
    "is_quantized_on_disk_for_transformers",
    "gives_its_base_to_transformers",
    "runs_in_bfloat16",
]


def tensors_in(output):
    """The tensors of what a model gives, those inside tuples and lists included."""
    for value in output:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors_in(value)
        elif isinstance(value, transformers.utils.ModelOutput):
            yield from tensors_in(value.to_tuple())


def assert_same_tensors(ours, expected):
    """The same names, and under each the same numbers in the same dtype."""
    differing = sorted(ours.keys() ^ expected.keys())
    assert not differing, f"only one of the two has {', '.join(differing[:3])}"
    for name, tensor in expected.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=0, atol=0, equal_nan=True, msg=lambda words, name=name: f"{name}: {words}"
        )


# ---------------------------------------------------------------- the table


def words_of(name, step):
    """ "pass", or the kind of the error and its first words."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            getattr(Trial(name, folder), step)()
        except Exception as error:
            words = " ".join(str(error).split()) or "no words"
            return f"{type(error).__name__}: {words[:120]}"
    return "pass"


def main(names):
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in names or FAMILIES:
        lines = {step: words_of(name, step) for step in [*STEPS, "is_exported"]}
        failed = {step: words for step, words in lines.items() if words != "pass"}
        print(f"{name:24} {len(lines) - len(failed)} of {len(lines)} pass", flush=True)
        for step, words in failed.items():
            print(f"    {step:38} {words}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
