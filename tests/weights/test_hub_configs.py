"""config.json as the released folders have it, every key: read as that size, and written back."""

import dataclasses

import jax
import ml_dtypes  # noqa: F401, numpy's bfloat16
import numpy as np
import pytest

from streamjax.folders import family_of
from streamjax.models import internvl, qwen2_5_vl, qwen3_vl

# What a PretrainedConfig of transformers 4.37 writes into every part.
OLD = {
    "_attn_implementation_autoset": True, "add_cross_attention": False, "bad_words_ids": None,
    "begin_suppress_tokens": None, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0,
    "do_sample": False, "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None, "finetuning_task": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "id2label": {"0": "LABEL_0"}, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0}, "length_penalty": 1.0,
    "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1,
    "num_beams": 1, "num_return_sequences": 1, "output_attentions": False,
    "output_hidden_states": False, "output_scores": False, "pad_token_id": None, "prefix": None,
    "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False,
    "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False,
    "sep_token_id": None, "suppress_tokens": None, "task_specific_params": None,
    "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False,
    "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torch_dtype": "bfloat16",
    "torchscript": False, "transformers_version": "4.37.2", "typical_p": 1.0, "use_bfloat16": True,
}  # fmt: skip


def sizes(hidden, layers, heads, kv, mlp, vocab):
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "intermediate_size": mlp, "vocab_size": vocab,
        "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02,
        "rms_norm_eps": 1e-06, "use_cache": True,
    }  # fmt: skip


def qwen25(*text, tied, windows):
    return sizes(*text) | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "bos_token_id": 151643,
        "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
        "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656,
        "max_position_embeddings": 128000, "max_window_layers": windows,
        "model_type": "qwen2_5_vl", "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": tied, "torch_dtype": "bfloat16", "transformers_version": "4.41.2",
        "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {
            "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420,
            "num_heads": 16, "in_chans": 3, "out_hidden_size": text[0], "patch_size": 14,
            "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    }  # fmt: skip


def qwen3(*text, tied, depth, width, mlp, levels):
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": 151655,
        "model_type": "qwen3_vl", "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0", "video_token_id": 151656,
        "vision_end_token_id": 151653, "vision_start_token_id": 151652,
        "text_config": sizes(*text) | {
            "attention_bias": False, "bos_token_id": 151643, "dtype": "bfloat16",
            "eos_token_id": 151645, "head_dim": 128, "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text", "rope_theta": 5000000, "tie_word_embeddings": tied,
            "rope_scaling": {
                "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default",
            },
        },
        "vision_config": {
            "deepstack_visual_indexes": levels, "depth": depth, "hidden_size": width,
            "hidden_act": "gelu_pytorch_tanh", "in_channels": 3, "initializer_range": 0.02,
            "intermediate_size": mlp, "model_type": "qwen3_vl", "num_heads": 16,
            "num_position_embeddings": 2304, "out_hidden_size": text[0], "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
    }  # fmt: skip


def qwen2(*text):
    return sizes(*text, 151674) | {
        "max_position_embeddings": 32768, "max_window_layers": 70, "model_type": "qwen2",
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "rope_theta": 1000000.0, "sliding_window": None, "use_sliding_window": False,
        "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151643,
    }  # fmt: skip


INTERN_VIT = {
    "architectures": ["InternVisionModel"], "attention_dropout": 0.0, "dropout": 0.0,
    "hidden_act": "gelu", "hidden_size": 1024, "initializer_factor": 0.1,
    "initializer_range": 1e-10, "intermediate_size": 4096, "layer_norm_eps": 1e-06,
    "norm_type": "layer_norm", "num_attention_heads": 16, "num_channels": 3,
    "num_hidden_layers": 24, "torch_dtype": "bfloat16",
}  # fmt: skip


def opengvlab(*text):
    return {
        "_commit_hash": None, "_name_or_path": "work_dirs/InternVL3-MPO",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": 448,
        "hidden_size": text[0], "image_fold": None, "max_dynamic_patch": 12,
        "min_dynamic_patch": 1, "model_type": "internvl_chat", "pad2square": False,
        "ps_version": "v2", "select_layer": -1, "system_message": None, "template": "internvl2_5",
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": None,
        "use_backbone_lora": 0, "use_llm_lora": 0, "use_thumbnail": True,
        "llm_config": OLD | qwen2(*text) | {
            "_name_or_path": "./pretrained/Qwen2.5-32B-Instruct", "moe_config": None,
            "tie_word_embeddings": False, "attn_implementation": "flash_attention_2",
        },
        "vision_config": OLD | INTERN_VIT | {
            "_name_or_path": "OpenGVLab/InternViT-6B-448px-V1-5", "bos_token_id": None,
            "auto_map": {"AutoModel": "modeling_intern_vit.InternVisionModel"},
            "capacity_factor": 1.2, "drop_path_rate": 0.1, "eos_token_id": None,
            "eval_capacity_factor": 1.4, "image_size": 448, "laux_allreduce": "all_nodes",
            "model_type": "intern_vit_6b", "moe_coeff_ratio": 0.5, "moe_intermediate_size": 768,
            "moe_output_scale": 4.0, "noisy_gate_policy": "RSample_before", "num_experts": 8,
            "num_routed_experts": 4, "num_shared_experts": 4, "patch_size": 14,
            "qk_normalization": False, "qkv_bias": True, "shared_expert_intermediate_size": 3072,
            "tie_word_embeddings": True, "use_flash_attn": True, "use_moe": False,
            "use_residual": True, "use_rts": False, "use_weighted_residual": False,
        },
    }  # fmt: skip


def hugging_face(*text):
    """The -hf folders keep some of the original's words in vision_config, beside the new ones."""
    return {
        "architectures": ["InternVLForConditionalGeneration"], "downsample_ratio": 0.5,
        "image_seq_length": 256, "image_token_id": 151667, "model_type": "internvl",
        "projector_hidden_act": "gelu", "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0.dev0", "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "text_config": qwen2(*text) | {"eos_token_id": 151645, "torch_dtype": "bfloat16"},
        "vision_config": INTERN_VIT | {
            "attention_bias": True, "hidden_dropout_prob": 0.0, "image_size": [448, 448],
            "layer_scale_init_value": 0.1, "model_type": "internvl_vision", "patch_size": [14, 14],
            "projection_dropout": 0.0, "use_absolute_position_embeddings": True,
            "use_mask_token": False, "use_mean_pooling": True, "use_qk_norm": False,
        },
    }  # fmt: skip


SMALL = {"depth": 24, "width": 1024, "mlp": 4096, "levels": [5, 11, 17]}
LARGE = {"depth": 27, "width": 1152, "mlp": 4304, "levels": [8, 16, 24]}
INTERNVL3 = {
    "1B": (896, 24, 14, 2, 4864), "2B": (1536, 28, 12, 2, 8960), "8B": (3584, 28, 28, 4, 18944),
}  # fmt: skip
FOLDERS = {
    "Qwen2.5-VL-3B-Instruct": (
        qwen25(2048, 36, 16, 2, 11008, 151936, tied=True, windows=70), qwen2_5_vl.SIZES["3B"],
    ),
    "Qwen2.5-VL-7B-Instruct": (
        qwen25(3584, 28, 28, 4, 18944, 152064, tied=False, windows=28), qwen2_5_vl.SIZES["7B"],
    ),
    "Qwen3-VL-2B-Instruct": (
        qwen3(2048, 28, 16, 8, 6144, 151936, tied=True, **SMALL), qwen3_vl.SIZES["2B"],
    ),
    "Qwen3-VL-4B-Instruct": (
        qwen3(2560, 36, 32, 8, 9728, 151936, tied=True, **SMALL), qwen3_vl.SIZES["4B"],
    ),
    "Qwen3-VL-8B-Instruct": (
        qwen3(4096, 36, 32, 8, 12288, 151936, tied=False, **LARGE), qwen3_vl.SIZES["8B"],
    ),
    **{f"InternVL3-{n}-hf": (hugging_face(*text), internvl.SIZES[n])
       for n, text in INTERNVL3.items()},
    **{f"InternVL3-{n}-original": (opengvlab(*text), internvl.SIZES[n])
       for n, text in INTERNVL3.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_released_config_is_that_of_its_size(tmp_path, name):
    """Whose tensors are known: the tests of the families' folders hold them to the manifests."""
    raw, wanted = FOLDERS[name]
    (tmp_path / "added_tokens.json").write_text('{"<IMG_CONTEXT>": 151667}')
    source = tmp_path / "config.json"
    found = family_of(raw, source).config_of(raw, source)
    if "InternVL" in name:  # only what fresh weights are drawn with differs
        vision = dataclasses.replace(found.vision, initializer_range=0.02)
        found = dataclasses.replace(found, vision=vision)
    assert found == wanted


@pytest.mark.parametrize(
    "name", [n for n in FOLDERS if "3B" in n or ("-2B-" in n and "orig" not in n)]
)
def test_what_is_written_says_the_same_unread_keys_included(name):
    raw, _ = FOLDERS[name]
    family, one = family_of(raw, "config.json"), np.zeros((), "bfloat16")
    model = family.blank(raw, "config.json")
    written, _ = family.dump(jax.tree.map(lambda a: np.broadcast_to(one, a.shape), model))
    parts = raw.keys() & {"text_config", "vision_config"}
    assert written | raw | {key: written[key] | raw[key] for key in parts} == written
