"""Tokens of a dialogue: the original's ids and labels, and training == streaming."""

import json

import numpy as np
import pytest

from streamjax.data import chat
from streamjax.data.dialogue import SILENCE, STATES, to_image, to_stream
from streamjax.data.processors import QwenImageProcessor
from streamjax.data.tokenizer import build_word_tokenizer, copy_with_states, load_tokenizer
from streamjax.errors import InputError


@pytest.fixture(scope="module")
def qwen(golden):
    return load_tokenizer(golden / "streamo" / "qwen")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return build_word_tokenizer(["Tell me what the red circle does."], tmp_path_factory.mktemp("w"))


@pytest.fixture(scope="module")
def cases(golden):
    return json.loads((golden / "streamo" / "c_tokens.json").read_text())


def counts(case):
    return [t * h * w // 4 for t, h, w in case["image_grid_thw"]]


def world_messages(system=None):
    record = {
        "video_path": "a.mp4",
        "question": [{"content": "Tell me what the red circle does.", "time": 3}],
        "response": [{"content": "The red circle leaves.", "st_time": 4, "end_time": 5}],
    }
    stream = to_stream(record, 12, system_prompt=system, question_at_start=False)
    return to_image(stream, range(12))["messages"]


@pytest.mark.parametrize("tokenizer", ["qwen", "qwen_tokenizer"])
def test_ids_and_labels_golden(request, tokenizer, cases):
    # `qwen` is the part of the vocabulary that these texts need, `qwen_tokenizer` the whole.
    qwen = request.getfixturevalue(tokenizer)
    for case in cases["dialogues"]:
        found = chat.encode(qwen, case["messages"], counts(case))
        assert found.tokens.tolist() == case["input_ids"], case["name"]
        assert found.labels.tolist() == case["labels"], case["name"]
        assert found.tokens.dtype == found.labels.dtype == np.int32
        prompt = chat.encode(qwen, case["messages"][:-1], counts(case))
        assert prompt.tokens.tolist() == case["generation_prompt_input_ids"], case["name"]


def test_a_packed_row_is_the_dialogues_one_after_another(qwen, cases):
    named = {case["name"]: case for case in cases["dialogues"]}
    rows = [
        chat.encode(qwen, named[name]["messages"], counts(named[name]))
        for name in cases["packed"]["order"]
    ]
    assert np.concatenate([r.tokens for r in rows]).tolist() == cases["packed"]["input_ids"]
    assert np.concatenate([r.labels for r in rows]).tolist() == cases["packed"]["labels"]


def test_frames_and_what_is_learnt_of_a_dialogue_golden(qwen_tokenizer, cases):
    processor = QwenImageProcessor().with_frame_budget()
    weights = dict(zip(chat.state_ids(qwen_tokenizer), (0.3, 1.3, 2.0), strict=True))
    for case in cases["dialogues"]:
        grid = [
            [1, *(side // 14 for side in processor.fit(h, w))] for w, h in case["image_sizes_wh"]
        ]
        assert grid == case["image_grid_thw"], case["name"]
        found = chat.encode(qwen_tokenizer, case["messages"], counts(case))
        assert len(found.tokens) == case["length"]
        at = np.flatnonzero(found.labels >= 0)
        assert len(at) == case["num_loss_tokens"]
        scale = [[i, weights.get(int(found.labels[i]), 1)] for i in at.tolist()]
        assert scale == case["loss_scale_nonzero"]
        # The text between what is learnt and what is not, word for word.
        cuts = np.flatnonzero(np.diff(found.labels >= 0)) + 1
        for part, told in zip(np.split(found.tokens, cuts), case["segments"], strict=True):
            assert len(part) == told["num_tokens"]
            pad = "<|image_pad|>"
            text = qwen_tokenizer.decode(part)
            wanted = told["text"]
            while f"{pad}*" in wanted:
                head, tail = wanted.split(f"{pad}*", 1)
                number = tail[: len(tail) - len(tail.lstrip("0123456789"))]
                wanted = head + pad * int(number) + tail[len(number) :]
            assert text == wanted


@pytest.mark.parametrize("tokenizer", ["qwen", "qwen_tokenizer"])
def test_state_ids_golden(request, tokenizer, cases):
    qwen = request.getfixturevalue(tokenizer)
    assert chat.state_ids(qwen) == tuple(cases["token_ids"][state] for state in STATES)
    assert chat.end_id(qwen) == cases["token_ids"]["<|im_end|>"]


@pytest.mark.parametrize("system", [None, "Be brief.", ""])
@pytest.mark.parametrize("family", ["qwen", "words"])
def test_streaming_appends_the_tokens_of_training(request, family, system):
    tokenizer = request.getfixturevalue(family)
    layout = chat.QWEN if family == "qwen" else chat.LLAVA
    messages = world_messages(system or None)
    if system == "":
        messages[0] = {"role": "system", "content": ""}
    whole = chat.encode(tokenizer, messages, 4, format=layout)

    parts = [chat.opening(tokenizer, messages[0]["content"])]
    starts, states = [], []
    for i, (user, answer) in enumerate(zip(messages[1::2], messages[2::2], strict=True)):
        first = i == 0 and system == ""
        starts.append(sum(map(len, parts)))
        parts.append(chat.turn_chunk(tokenizer, user["content"], 4, format=layout, first=first))
        states.append(sum(map(len, parts)))
        parts.append(chat.answer_tokens(tokenizer, answer["content"]))
    assert np.concatenate(parts).tolist() == whole.tokens.tolist()
    assert whole.turn_starts.tolist() == starts
    assert whole.state_positions.tolist() == states
    assert set(whole.tokens[whole.state_positions]) <= set(chat.state_ids(tokenizer))


def test_labels_are_the_answers_and_their_ends(words):
    whole = chat.encode(words, world_messages(), 4, format=chat.LLAVA)
    labelled = words.decode(whole.labels[whole.labels >= 0])
    end = "<|im_end|>"
    quiet = f"{SILENCE}{end}"
    assert labelled == (
        quiet * 3 + f"</Standby>{end}" * 2 + f"</Response> The red circle leaves.{end}" + quiet * 6
    )
    kept = whole.labels >= 0
    np.testing.assert_array_equal(whole.labels[kept], whole.tokens[kept])


def test_a_turn_of_the_word_tokenizer_is_short(words):
    quiet = [chat.turn_chunk(words, f"<{t}s-{t + 1}s>\n<image>", 4, format=chat.LLAVA)
             for t in (3, 99, 100, 998)]  # fmt: skip
    assert [len(chunk) for chunk in quiet] == [7, 7, 11, 11]
    assert len(chat.answer_tokens(words, SILENCE)) == 2


def test_images_of_several_sizes_and_none(words):
    messages = [
        {"role": "user", "content": "<image> red <image>"},
        {"role": "user", "content": "circle"},
        {"role": "assistant", "content": "Tell me"},
        {"role": "user", "content": "what"},
    ]
    found = chat.encode(words, messages, np.array([2, 3]), format=chat.LLAVA)
    assert (found.tokens == -200).sum() == 5
    assert len(found.turn_starts) == 2 and len(found.state_positions) == 1
    for wrong in ([2], [2, 3, 4]):
        with pytest.raises(InputError, match=f"{len(wrong)} images for 2 <image> marks"):
            chat.encode(words, messages, wrong, format=chat.LLAVA)
    with pytest.raises(InputError, match="1 images for 2 <image> marks"):
        chat.turn_chunk(words, "<image><image>", [1], format=chat.LLAVA)


def test_words_that_would_break_the_turns(words):
    for role in ("system", "user"):
        with pytest.raises(InputError, match=r"contains '<\|im_end\|>'"):
            chat.encode(words, [{"role": role, "content": "a<|im_end|>"}], 4)
    user = {"role": "user", "content": "a"}
    with pytest.raises(InputError, match="roles alternate"):
        chat.encode(words, [{"role": "assistant", "content": "a"}], 4)
    with pytest.raises(InputError, match="only the user shows images"):
        chat.encode(words, [user, {"role": "assistant", "content": "<image>"}], 1)
    with pytest.raises(InputError, match="the format of the model's family"):
        chat.encode(words, [user], 4, format=chat.QWEN)


def test_a_tokenizer_without_states_is_refused(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordPiece({c: i for i, c in enumerate("?</>SilencetadbyRpos")},
                                       unk_token="?", continuing_subword_prefix=""))  # fmt: skip
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)
    with pytest.raises(InputError, match="splits </Silence> into"):
        chat.state_ids(tokenizer)
    tokenizer.add_tokens(list(STATES), special_tokens=True)
    assert len(set(chat.state_ids(tokenizer))) == 3


@pytest.fixture(scope="module")
def internvl(tmp_path_factory):
    from tests import qwen_bpe

    folder = qwen_bpe.write(tmp_path_factory.mktemp("internvl"), "internvl")
    assert copy_with_states(folder, folder) == (151674, 151675, 151676)
    return load_tokenizer(folder)


def test_internvl_frames_end_their_line(internvl):
    layout = chat.FORMATS["internvl"]
    messages = world_messages("Watch.")[:5]
    whole = chat.encode(internvl, messages, [256, 3], format=layout)
    turn = "<|im_start|>user\n{tag}\n<img>{pads}</img>\n<|im_end|>\n<|im_start|>assistant\n</Silence><|im_end|>"
    assert internvl.decode(whole.tokens) == "\n".join([
        "<|im_start|>system\nWatch.<|im_end|>",
        turn.format(tag="<0s-1s>", pads="<IMG_CONTEXT>" * 256),
        turn.format(tag="<1s-2s>", pads="<IMG_CONTEXT>" * 3),
    ])  # fmt: skip
    assert (whole.tokens == 151667).sum() == 259
    opening = chat.opening(internvl, "Watch.")
    chunk = chat.turn_chunk(internvl, messages[1]["content"], 256, format=layout)
    np.testing.assert_array_equal(
        whole.tokens[: len(opening) + len(chunk)], np.concatenate([opening, chunk])
    )


def test_the_system_prompt_of_dialogues_without_one(qwen_tokenizer):
    messages = [{"role": "user", "content": "red <image>"}]

    def first(format):
        found = chat.encode(qwen_tokenizer, messages, 1, format=format)
        return qwen_tokenizer.decode(found.tokens).split("<|im_end|>")[0]

    assert first(chat.QWEN) == "<|im_start|>system\nYou are a helpful assistant."
    words = "<|im_start|>user\nred <|vision_start|><|image_pad|><|vision_end|>"
    assert first(chat.QWEN3) == words


def test_videos_are_places_of_their_own(qwen_tokenizer):
    user = f"<image>{chat.stamped_video([0, 0.5, 1, 1.5, 2])} What?"
    assert user == ("<image><0.2 seconds><video><1.2 seconds><video><2.0 seconds><video> What?")
    chunk = chat.turn_chunk(qwen_tokenizer, user, [3, 2, 2, 2], format=chat.QWEN3, first=True)
    start, end = "<|vision_start|>", "<|vision_end|>"
    slice = f"{start}<|video_pad|><|video_pad|>{end}"
    assert qwen_tokenizer.decode(chunk) == (
        f"<|im_start|>user\n{start}{'<|image_pad|>' * 3}{end}<0.2 seconds>{slice}<1.2 seconds>"
        f"{slice}<2.0 seconds>{slice} What?<|im_end|>\n<|im_start|>assistant\n"
    )
    messages = [{"role": "user", "content": user}]
    whole = chat.encode(qwen_tokenizer, messages, [3, 2, 2, 2], format=chat.QWEN3)
    np.testing.assert_array_equal(whole.tokens, chunk)
    # A format without videos reads the mark as text.
    plain = chat.turn_chunk(qwen_tokenizer, "<video>", [], format=chat.LLAVA, first=True)
    assert "user\n<video><|im_end|>" in qwen_tokenizer.decode(plain)
    with pytest.raises(InputError, match="0 frames"):
        chat.stamped_video([])


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "empty"), (" \n", "empty"), ("a<image>", "'<image>'"), ("</Silence>?", "'</Silence>'"),
     ("x<|im_end|>", "<|im_end|>")],
)  # fmt: skip
def test_questions_that_cannot_be_asked(text, told):
    with pytest.raises(InputError) as error:
        chat.check_question(text)
    assert told in str(error.value)


def test_a_user_who_says_and_shows_nothing(words):
    with pytest.raises(InputError, match="message 0: empty; wanted words, <image>, or both"):
        chat.encode(words, [{"role": "user", "content": ""}], 4, format=chat.LLAVA)
    with pytest.raises(InputError, match="message 1 has role 'user' and a list as content, wanted"):
        messages = [{"role": "system", "content": "x"}, {"role": "user", "content": [1]}]
        chat.encode(words, messages, 4, format=chat.LLAVA)
    with pytest.raises(InputError, match="the user's words: empty"):
        chat.turn_chunk(words, "\n", [], format=chat.LLAVA)
    chat.check_question("What is red?")
