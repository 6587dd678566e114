"""One small written world for every test that reads its files."""

from pathlib import Path

from streamjax.data.assistant import SYSTEM_PROMPT
from streamjax.data.tokenizer import build_word_tokenizer
from streamjax.data.world import WorldConfig
from streamjax.data.world_dialogues import vocabulary
from streamjax.data.world_files import write_world

CONFIG = WorldConfig(seconds=(8, 10), events=(1, 2), things=(2, 3))
KINDS = ("narrate", "caption", "light_now", "alert_action")
CLIPS = 6


def make(folder: Path) -> Path:
    """folder/world with `CLIPS` training clips, folder/tokenizer."""
    write_world(
        folder / "world", "train", CLIPS, CONFIG,
        tasks=("streamo", "grounding", "localization", "vis"), kinds=KINDS,
    )  # fmt: skip
    words = (*vocabulary(CONFIG), SYSTEM_PROMPT)
    build_word_tokenizer(words, folder / "tokenizer", numbers=100, tags=30)
    return folder
