"""config.json of a Hugging Face folder: read strictly, and kept for writing back."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from streamjax.errors import InputError
from streamjax.weights.tensors import Tensor

C = TypeVar("C")

# What transformers writes into every config.json and no forward here reads.
INFORMATIONAL = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
    "add_cross_attention", "architectures", "auto_map", "bad_words_ids", "begin_suppress_tokens",
    "bos_token_id", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label", "is_decoder",
    "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length", "model_type",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix",
    "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params",
    "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version",
    "typical_p", "use_bfloat16",
})  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Extras:
    """What a folder holds beside the parameters, kept so that saving writes it back.

    Compared by identity, because it travels in the static part of a model. config: config.json as
    found. tensors: accepted and unused, under their full names. prefix: before the model's names.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    prefix: str = ""


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. FileNotFoundError when absent, InputError when it is not one."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        line = f"{path}: missing, wanted a folder with config.json, or a run"
        raise FileNotFoundError(line) from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds a {type(config).__name__}, wanted an object of settings")
    return config


def parse_config(
    cls: type[C], raw: Mapping[str, Any], *, source: Any, also: frozenset[str] = frozenset()
) -> C:
    """A config dataclass from the keys of config.json; absent keys take the class's defaults.

    also: keys of this family that no forward reads. Raises InputError for a key that is neither a
    field nor informational (naming the nearest right one), a value of the wrong type, and whatever
    the class itself refuses.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyrefly: ignore[bad-argument-type]
    values = {}
    for key, value in raw.items():
        if key in fields:
            values[key] = _typed(fields[key].type, key, value, source)
        elif key not in INFORMATIONAL | also:
            near = difflib.get_close_matches(key, [*fields, *also], n=1, cutoff=0.5)
            hint = f": did you mean {near[0]!r}?" if near else ": remove it"
            raise InputError(f"{source}: unknown key {key!r}{hint}")
    try:
        return cls(**values)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


def _typed(wanted: Any, key: str, value: Any, source: Any) -> Any:
    if wanted is float and type(value) is int:
        return float(value)
    if wanted in (int, float, bool, str) and type(value) is not wanted:
        raise InputError(f"{source}: {key} is {value!r}, wanted {wanted.__name__}")
    return value
