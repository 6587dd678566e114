"""SigLIP's text: its canonical form, the prompts of class names, and rows of token ids.

A text is lower-cased, loses its punctuation and its surplus blanks, is cut into pieces, ended by
`</s>` (id 1) and padded with the same id: no mask is passed, so the padding is part of what the
text tower sees. specs/streamformer.md section 4 and appendix A.
"""

import importlib.util
import json
import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from streamjax.data.tokenizer import load_tokenizer
from streamjax.errors import InputError

END, END_ID = "</s>", 1
LENGTH = 64  # of a SigLIP text: its number of positions
_SPIECE = "spiece.model"
_LOWER_ONE_EIGHTH = "▁"  # sentencepiece's blank
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)

_MEDIA = ("photo", "video", "example", "demonstration")
_FORMS = (
    "a {m} of {{}}.", "a {m} of a person {{}}.", "a {m} of a person using {{}}.",
    "a {m} of a person doing {{}}.", "a {m} of a person during {{}}.",
    "a {m} of a person performing {{}}.", "a {m} of a person practicing {{}}.",
)  # fmt: skip
# Of the classes of actions (recognition, localisation), in the original's order; "a example" is
# the original's too. Of the classes of things (segmentation), the bare name.
CLASS_TEMPLATES = tuple(form.format(m=medium) for medium in _MEDIA for form in _FORMS)
NAME_TEMPLATES = ("{}",)
# One of these, drawn, before a class name makes the caption of a localised moment.
SENTENCE_PREFIXES = (
    "A video of an action where", "A video showing", "A video that demonstrates",
    "A video clip of", "A video recording of", "A video featuring", "A video capturing",
    "A video displaying", "A video presenting", "A video illustrating",
    "Watch this action where", "Look at this scene showing", "Here is a demonstration of",
    "This clip captures", "Observe this recording of", "This moment shows",
    "Witness this scene of",
)  # fmt: skip


def canonical(text: str) -> str:
    """The form in which SigLIP reads a text: lower case, no ASCII punctuation, single blanks.

    "Pushing [something], slowly." becomes "pushing something slowly".
    """
    text = text.replace(_LOWER_ONE_EIGHTH, " ").lower().translate(_WITHOUT_PUNCTUATION)
    return re.sub(r"\s+", " ", text).strip()


class CaptionTokenizer:
    """Texts to rows of ids, as SigLIP's own tokenizer makes them; picklable, for data workers.

    folder: with spiece.model, tokenizer.json, or both. The first is read by transformers'
    SiglipTokenizer, which the original uses, where the package sentencepiece is installed;
    without it tokenizer.json is. length: of a row. Raises FileNotFoundError for a folder without
    either, InputError for one that cannot be read, whose `</s>` is not id 1, or that has only
    spiece.model when sentencepiece is missing.
    """

    def __init__(self, folder: str | Path, *, length: int = LENGTH):
        self.folder, self.length = Path(folder), length
        self._tokenizer = _load(self.folder)
        found = self._tokenizer.convert_tokens_to_ids(END)
        if found != END_ID:
            raise InputError(
                f"{self.folder}: the tokenizer's {END} is id {found}, wanted {END_ID} as SigLIP "
                "has it: use the tokenizer of a SigLIP folder"
            )

    def __len__(self) -> int:
        """How many ids there are: the rows of embeddings that a text tower needs."""
        return len(self._tokenizer)

    def __call__(self, caption: str) -> Int32[np.ndarray, " l"]:
        """A caption's row; of one that is too long the end is cut off, its `</s>` stays.

        Raises InputError for a caption of which the canonical form leaves nothing.
        """
        return self._row(self._pieces(caption)[: self.length - 1])

    def prompts(
        self, labels: Iterable[str], templates: Sequence[str] = CLASS_TEMPLATES
    ) -> Int32[np.ndarray, "c m l"]:
        """The rows of every class name in every template, `{}` standing for the name.

        Raises InputError for a name that is empty, and for one that makes a prompt longer than a
        row: the name of a class is never cut, because two could become one.
        """
        rows = []
        for label in labels:
            if not canonical(label):
                raise InputError(f"label {label!r} is empty, wanted the name of a class")
            for template in templates:
                pieces = self._pieces(template.format(label))
                if len(pieces) >= self.length:
                    raise InputError(
                        f"label {label!r} makes a prompt of {len(pieces) + 1} tokens, wanted at "
                        f"most {self.length}: shorten the name"
                    )
                rows.append(self._row(pieces))
        return np.reshape(np.asarray(rows, np.int32), (-1, len(templates), self.length))

    def _pieces(self, text: str) -> list[int]:
        short = canonical(text)
        if not short:
            raise InputError(f"text {text!r} is empty without punctuation, wanted words")
        return self._tokenizer.encode(short, add_special_tokens=False)

    def _row(self, pieces: list[int]) -> Int32[np.ndarray, " l"]:
        row = np.full(self.length, END_ID, np.int32)
        row[: len(pieces)] = pieces
        return row


def build_caption_tokenizer(texts: Iterable[str], folder: str | Path) -> CaptionTokenizer:
    """A small tokenizer laid out as SigLIP's, whose pieces are the words of `texts`.

    Saved to `folder` and loaded from there. What is not among the words is spelt out byte by byte,
    so nothing is unknown. Ids do not depend on the order of the texts.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = sorted({word for text in texts for word in canonical(text).split()})
    split = [
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    in_bytes = [split[1].pre_tokenize_str(word)[0][0] for word in words]
    special = ("<pad>", END, "<unk>")
    pieces = dict.fromkeys([*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *in_bytes])
    # The longest piece first inside a word, every byte a piece.
    model = models.WordPiece(
        {piece: i for i, piece in enumerate(pieces)},
        unk_token="<unk>",
        continuing_subword_prefix="",
        max_input_chars_per_word=1_000_000,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END,
        "unk_token": "<unk>", "model_max_length": LENGTH,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    return CaptionTokenizer(folder)


def _load(folder: Path) -> Any:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, wanted a SigLIP folder's tokenizer")
    pieces = folder / _SPIECE
    if pieces.is_file():
        if importlib.util.find_spec("sentencepiece") is not None:
            from transformers import SiglipTokenizer

            try:
                return SiglipTokenizer(str(pieces))
            except Exception as error:  # sentencepiece raises bare RuntimeError and OSError
                line = " ".join(str(error).split())[:200]
                raise InputError(f"{pieces}: the tokenizer cannot be read: {line}") from error
        if not (folder / "tokenizer.json").is_file():
            raise InputError(
                f"{pieces}: read by the package sentencepiece, which is not installed, and there "
                "is no tokenizer.json beside it: pip install sentencepiece"
            )
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no tokenizer of captions, wanted {_SPIECE} or tokenizer.json: take those "
            "of the SigLIP folder that the text tower came from"
        )
    return load_tokenizer(folder)
