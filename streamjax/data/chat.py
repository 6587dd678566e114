"""From a dialogue to tokens: ChatML with one image per turn, in pieces that a stream can append.

Text is tokenised piece by piece, and the pieces end exactly where a stream stops to think: after
the assistant's header and after its answer. So the tokens that a stream appends turn by turn *are*
the tokens of training, for any tokenizer:

    opening(system) + turn_chunk(turn 0) + answer_tokens(answer 0) + turn_chunk(turn 1) + ...
        == encode(messages).tokens

A turn starts with the newline that ends the turn before it, so that no newline follows the last
answer. specs/streamo.md section 3.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamjax.data.dialogue import RESERVED, STATES
from streamjax.errors import InputError

IGNORE = -100
DEFAULT_SYSTEM = "You are a helpful assistant."
START, END = "<|im_start|>", "<|im_end|>"
IMAGE, VIDEO = "<image>", "<video>"

Tokens = np.ndarray
"""int32 [l]"""

Counts = int | np.integer | Sequence[int] | np.ndarray
"""Visual tokens: one number for every image, or one per image (and video) in reading order."""


@dataclass(frozen=True)
class ChatFormat:
    """How a family writes an image: `prefix`, then `placeholder` once per visual token, `suffix`.

    `placeholder` is a token's text, or an id that no tokenizer has (LLaVA's -200). `video` is the
    one of videos, between the same marks; None where `<video>` means nothing and is text. `system`:
    the system prompt of dialogues that bring none, empty for no system block.
    """

    placeholder: str | int
    prefix: str = ""
    suffix: str = ""
    video: str | None = None
    system: str = DEFAULT_SYSTEM


QWEN = ChatFormat("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", video="<|video_pad|>")
QWEN3 = replace(QWEN, system="")
# The newline is the original's: behind a frame, in front of `<|im_end|>`.
INTERNVL = ChatFormat("<IMG_CONTEXT>", "<img>", "</img>\n", system="")
LLAVA = ChatFormat(-200)

FORMATS: dict[str, ChatFormat] = {
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN3,
    "internvl": INTERNVL,
    "internvl_chat": INTERNVL,
    "llava_qwen": LLAVA,
    "llava_llama": LLAVA,
}
"""The format of a family, by config.json's model_type."""


@dataclass(frozen=True)
class Encoded:
    """A dialogue as tokens.

    `tokens`, `labels` int32 [l]: labels are the tokens of every answer and of the `<|im_end|>`
    after it, -100 elsewhere, unshifted. `state_positions` int32 [answers]: where each answer's
    first token stands, which is its state in a streaming dialogue. `turn_starts` int32 [turns]:
    where each turn's chunk begins; before the first is the opening.
    """

    tokens: Tokens
    labels: Tokens
    state_positions: Tokens
    turn_starts: Tokens


def encode(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    visual_tokens: Counts,
    *,
    format: ChatFormat = QWEN,
) -> Encoded:
    """Tokens and labels of `messages`; each `<image>` becomes that many visual tokens.

    So does each `<video>`, of a format that has videos. Without a system message the system prompt
    is the format's; an empty one leaves the block out. Messages that end with the user's give the
    prompt for the answer that is missing. Messages of one role in a row are joined.

    Raises InputError when the number of images differs from the number of `<image>`, when roles do
    not alternate, when a message is no text, a user's is empty, or one contains `<|im_start|>` or
    `<|im_end|>`.
    """
    system, turns = _turns(messages, format)
    marks = [_marks(format).findall(user) for user, _ in turns]
    counts = iter(_counts(visual_tokens, sum(map(len, marks))))

    # All pieces in one call: the tokenizer's own loop is many times faster than ours.
    pieces = [_opening(system)]
    for i, (user, answer) in enumerate(turns):
        pieces += _turn_pieces(user, format, first=i == 0 and not system)
        pieces += [] if answer is None else [answer, END]
    ids = iter(_ids(tokenizer, pieces))
    pads = _placeholders(tokenizer, format, {IMAGE}.union(*marks))

    tokens = list(next(ids))
    labels = [IGNORE] * len(tokens)
    state_positions, turn_starts = [], []
    for (_, answer), shown in zip(turns, marks, strict=True):
        turn_starts.append(len(tokens))
        tokens += next(ids)
        for mark in shown:
            tokens += [pads[mark]] * next(counts)
            tokens += next(ids)
        labels += [IGNORE] * (len(tokens) - len(labels))
        if answer is not None:
            state_positions.append(len(tokens))
            tokens += [*next(ids), *next(ids)]
            labels += tokens[len(labels) :]
    return Encoded(
        *(np.asarray(x, np.int32) for x in (tokens, labels, state_positions, turn_starts))
    )


def opening(tokenizer: Any, system: str = DEFAULT_SYSTEM) -> Tokens:
    """The tokens before the first turn: the system block, empty for an empty system prompt."""
    return _array(_ids(tokenizer, [_opening(system)]))


def turn_chunk(
    tokenizer: Any,
    user: str,
    visual_tokens: Counts,
    *,
    format: ChatFormat = QWEN,
    first: bool = False,
) -> Tokens:
    """The tokens that a stream appends for one turn, up to where the answer begins.

    `user` is the user's words with `<image>` where the frame goes (`dialogue.user_content`). What
    comes before is the opening or an answer closed by `<|im_end|>` (`answer_tokens`). `first` only
    for the first turn after an *empty* opening: there is no line to end.
    """
    _check_user(user, "the user's words")
    marks = _marks(format).findall(user)
    counts = _counts(visual_tokens, len(marks))
    head, *rest = _ids(tokenizer, _turn_pieces(user, format, first=first))
    pads = _placeholders(tokenizer, format, {IMAGE, *marks})
    pieces = [head]
    for mark, count, piece in zip(marks, counts, rest, strict=True):
        pieces += [[pads[mark]] * count, piece]
    return _array(pieces)


def answer_tokens(tokenizer: Any, answer: str) -> Tokens:
    """An answer's tokens and the `<|im_end|>` after them: the labelled part of a turn."""
    check_words(answer, "the answer")
    return _array(_ids(tokenizer, [answer, END]))


def stamped_video(seconds: Sequence[float | int], *, temporal: int = 2) -> str:
    """Qwen3-VL's words for a video: before every temporal slice, when it is: `<1.5 seconds>`.

    seconds: of every frame; `temporal` frames make a slice, the last one repeated where they do not
    come out even, and its stamp is the middle between its first and last. Each slice is a `<video>`
    of its own in the dialogue, with a grid row's rows x columns of visual tokens.
    """
    if len(seconds) == 0:
        raise InputError("0 frames, wanted at least one")
    times = [*seconds, *[seconds[-1]] * (-len(seconds) % temporal)]
    slices = [(times[i], times[i + temporal - 1]) for i in range(0, len(times), temporal)]
    return "".join(f"<{(first + last) / 2:.1f} seconds>{VIDEO}" for first, last in slices)


def check_question(text: str) -> None:
    """Raises InputError for a question that cannot be asked: an empty one, or one that contains a
    mark of the dialogue (`<image>`, a state, `<|im_end|>`, ...)."""
    if not text.strip():
        raise InputError("the question is empty: say what to watch for")
    for mark in (START, END, *RESERVED):
        if mark in text:
            raise InputError(f"the question contains {mark!r}, which means something else: reword")


def state_ids(tokenizer: Any) -> tuple[int, int, int]:
    """The ids of `</Silence>`, `</Standby>`, `</Response>`, in this order.

    Raises InputError when one of them is not a single token of its own: upstream then trains on
    the token "</" as if it were all three, or without any state weights.
    """
    found = _ids(tokenizer, list(STATES))
    for state, ids in zip(STATES, found, strict=True):
        if len(ids) != 1:
            raise InputError(
                f"the tokenizer splits {state} into {len(ids)} tokens, wanted one: "
                f"register the state tokens: {_HOW}"
            )
    silence, standby, response = (ids[0] for ids in found)
    if len({silence, standby, response}) != 3:
        raise InputError(
            f"the state tokens share ids {silence}, {standby}, {response}: the tokenizer does not "
            f"know them; register them: {_HOW}"
        )
    return silence, standby, response


def end_id(tokenizer: Any) -> int:
    """The id of `<|im_end|>`, which closes an answer."""
    (ids,) = _ids(tokenizer, [END])
    if len(ids) != 1:
        raise InputError(f"the tokenizer splits {END} into {len(ids)} tokens, wanted one")
    return ids[0]


_HOW = "streamjax.data.tokenizer.copy_with_states(its_folder, new_folder)"


def _turns(
    messages: Sequence[Mapping[str, Any]], format: ChatFormat
) -> tuple[str, list[tuple[str, str | None]]]:
    """The system prompt, and the (user, answer) pairs; the last answer may be missing."""
    joined: list[tuple[str, str]] = []
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise InputError(
                f"message {i} has role {role!r} and a {type(content).__name__} as content, wanted "
                f"text, with {IMAGE} where a picture goes"
            )
        if joined and joined[-1][0] == role:
            content = joined.pop()[1] + content
        joined.append((role, content))
    system = joined.pop(0)[1] if joined and joined[0][0] == "system" else format.system
    check_words(system, "the system prompt")
    turns: list[tuple[str, str | None]] = []
    for i, (role, content) in enumerate(joined):
        wanted = ("user", "assistant")[i % 2]
        if role != wanted:
            raise InputError(f"message {i} is the {role}'s, wanted the {wanted}'s: roles alternate")
        if role == "user":
            _check_user(content, f"message {i}")
            turns.append((content, None))
            continue
        check_words(content, f"message {i}")
        if shown := _marks(format).search(content):
            raise InputError(f"message {i}: {shown[0]} in an answer; only the user shows images")
        turns[-1] = (turns[-1][0], content)
    return system, turns


def _opening(system: str) -> str:
    return f"{START}system\n{system}{END}" if system else ""


def _turn_pieces(user: str, format: ChatFormat, *, first: bool) -> list[str]:
    """The text around the images of one turn: one piece more than there are images."""
    text = f"{'' if first else chr(10)}{START}user\n{user}{END}\n{START}assistant\n"
    marks = _marks(format)
    return marks.split(marks.sub(lambda mark: format.prefix + mark[0] + format.suffix, text))


def _marks(format: ChatFormat) -> re.Pattern[str]:
    return re.compile(IMAGE if format.video is None else f"{IMAGE}|{VIDEO}")


def _ids(tokenizer: Any, pieces: list[str]) -> list[list[int]]:
    return tokenizer(pieces, add_special_tokens=False)["input_ids"]


def _array(pieces: Sequence[Sequence[int]]) -> Tokens:
    return np.asarray([token for piece in pieces for token in piece], np.int32)


def _counts(visual_tokens: Counts, images: int) -> list[int]:
    counts = np.asarray(visual_tokens)
    if counts.ndim == 0:
        return [int(counts)] * images
    if len(counts) != images:
        raise InputError(f"{len(counts)} images for {images} <image> marks: wanted one each")
    return counts.tolist()


def _placeholders(tokenizer: Any, format: ChatFormat, marks: set[str]) -> dict[str, int]:
    """The id that stands for a visual token, of every mark."""
    found: dict[str, int] = {}
    for mark in marks:
        text = format.placeholder if mark == IMAGE else format.video
        if isinstance(text, int):
            found[mark] = text
            continue
        assert text is not None  # a format without videos has no marks of them
        (ids,) = _ids(tokenizer, [text])
        if len(ids) != 1:
            raise InputError(
                f"the tokenizer splits {text} into {len(ids)} tokens, wanted one: is this the "
                "format of the model's family?"
            )
        found[mark] = ids[0]
    return found


def _check_user(text: str, where: str) -> None:
    if not text.strip():
        raise InputError(f"{where}: empty; wanted words, {IMAGE}, or both")
    check_words(text, where)


def check_words(text: str, where: str) -> None:
    """Raises InputError when `text` holds a mark that would end its turn."""
    for mark in (START, END):
        if mark in text:
            raise InputError(f"{where} contains {mark!r}, which would end the turn: remove it")
