"""Dialogues: every golden case word for word, each repair on the smallest case that needs it."""

import json

import numpy as np
import pytest

from streamjax.data.dialogue import (
    DEFAULT_QUESTION,
    DEFAULT_SYSTEM_PROMPT,
    RESPONSE,
    SILENCE,
    STANDBY,
    frame_indices,
    frame_questions,
    frame_states,
    num_turns,
    parse_answer,
    parse_time,
    time_tag,
    to_image,
    to_stream,
    user_content,
    window_messages,
)
from streamjax.errors import InputError


@pytest.fixture(scope="module")
def cases(golden):
    def read(name):
        return json.loads((golden / "streamo" / f"{name}.json").read_text())

    return read


def record(*responses, question="Q?", at="1"):
    asked = [{"content": question, "time": at}]
    return {"video_path": "clip.mp4", "question": asked, "response": list(responses)}


def span(content, start, end):
    return {"content": content, "st_time": start, "end_time": end, "time": ""}


def instant(content, time):
    return {"content": content, "time": time}


def said(stream):
    return [m["content"] for m in stream["messages"] if m["role"] == "assistant"]


def asked(stream):
    return [m["content"] for m in stream["messages"] if m["role"] == "user"]


# --- the originals, word for word ---------------------------------------------------------------


def test_prompt_and_question_are_the_originals(cases):
    golden = cases("a_to_stream")
    assert golden["default_system_prompt"] == DEFAULT_SYSTEM_PROMPT
    assert golden["default_question"] == DEFAULT_QUESTION


def test_to_stream_golden(cases):
    golden = cases("a_to_stream")["cases"]
    assert len(golden) == 45
    for case in golden:
        given = dict(case["params"])
        exists, fails = given.pop("exists"), given.pop("open_fails")
        frames = given.pop("num_frames")
        frames = frames if exists and not fails else 0
        found = to_stream(case["raw"], frames, parity="upstream", **given)
        assert found == case["expected"], case["name"]


def test_states_and_questions_golden(cases):
    for case in cases("a_to_stream")["cases"]:
        inner = case["build_frame_states"]
        if inner is None:
            continue
        raw, n, fps = case["raw"], case["params"]["num_frames"], case["params"]["fps"]
        states = frame_states(raw.get("response", []), n, fps=fps, parity="upstream")
        assert states == inner["frame_states"], case["name"]


def test_parse_time_golden(cases):
    golden = cases("a_to_stream")
    for case in golden["parse_time"]:
        found = parse_time(case["value"], case["fps"], parity="upstream")
        assert found == case["expected"], case
    with pytest.raises(OverflowError):
        parse_time(golden["parse_time_raises"][0]["value"], 1.0, parity="upstream")


def test_to_image_golden(cases):
    for case in cases("a_to_image")["cases"]:
        readable = case["video_exists"] and not case["extract_error"]
        frames = case["extracted_frames"] if readable else None
        found = to_image(
            case["row"], frames, frame_tolerance=case["frame_tolerance"], parity="upstream"
        )
        assert found == case["expected"], case["name"]


def test_frames_golden(cases):
    golden = cases("g_frames")["cases"]
    assert len(golden) == 28
    for case in golden:
        video, fps = (case["video_fps"], case["total_frames"]), case["target_fps"]
        assert num_turns(*video, fps=fps, parity="upstream") == case["to_stream_turns"]
        shown = frame_indices(*video, fps=fps, max_frames=case["max_frames"], parity="upstream")
        # The extractor stops at the first frame that cannot be decoded.
        shown = [i for i in shown if i < case["decodable_frames"]]
        assert shown == case["train_extract_indices"], case
        rounds = frame_indices(*video, fps=fps, rule="inference", parity="upstream")
        assert rounds == case["inference"]["frame_index_per_round"], case


def test_windows_golden(cases):
    rules = {
        "inference.get_data_stream_video_window": "inference",
        "inference.get_data_stream_video": "plain",
        "ovo_script.get_data_stream_window": "ovo",
    }
    names = {"inference": "frame_{}", "plain": "frame_{}", "ovo": "V/frame_{:06d}.png"}
    for case in cases("f_window")["cases"]:
        rule, pattern = rules[case["function"]], case["answer_pattern"]
        for shot in case["snapshots"]:
            answers = [
                SILENCE if i < case["question_time"] else pattern[i % len(pattern)]
                for i in range(shot["round"])
            ]
            found = window_messages(
                shot["round"],
                answers,
                question=case["question"],
                question_time=case["question_time"],
                max_rounds=case["max_rounds"],
                global_question=bool(case["global_question"]),
                system=case["system"],
                rule=rule,
                parity="upstream",
            )
            step = 2 if rule == "ovo" else 1  # its folders hold two frames a second
            assert found["messages"] == shot["messages"], (case["name"], shot["round"])
            assert [names[rule].format(step * i) for i in found["frames"]] == shot["images"]
            assert found["model_called"] == shot["model_called"]


# --- the repairs --------------------------------------------------------------------------------


def test_an_answer_is_not_erased_by_a_later_standby():
    contiguous = record(span("one", 1, 2), span("two", 3, 4), span("three", 4, 5))
    assert said(to_stream(contiguous, 7)) == [
        STANDBY,
        STANDBY,
        f"{RESPONSE} one",
        STANDBY,
        f"{RESPONSE} two",
        f"{RESPONSE} three",
        SILENCE,
    ]
    upstream = to_stream(contiguous, 7, parity="upstream")
    assert f"{RESPONSE} one" not in said(upstream)


def test_an_event_that_ends_on_the_last_frame_answers_there():
    ending = record(span("done", 2, 4))
    assert said(to_stream(ending, 4)) == [SILENCE, STANDBY, STANDBY, f"{RESPONSE} done"]
    upstream = to_stream(ending, 4, parity="upstream")
    assert said(upstream)[-1] == STANDBY


def test_two_answers_due_on_the_last_frame_are_both_kept():
    both = record(span("first", 1, 3), span("second.", 2, 4), span("third.", 1, 4))
    assert said(to_stream(both, 4))[-1] == f"{RESPONSE} first second. third."


def test_an_event_that_outlasts_the_video_is_not_told():
    assert said(to_stream(record(span("never", 2, 9)), 4)) == [SILENCE, *[STANDBY] * 3]


def test_every_answer_survives(rng):
    for _ in range(200):
        n = int(rng.integers(2, 12))
        due, responses = set(), []
        for i in range(int(rng.integers(0, 5))):
            start, end = sorted(int(x) for x in rng.integers(1, n + 1, 2))
            if min(end, n - 1) in due:
                continue
            due.add(min(end, n - 1))
            responses.append(span(f"answer {i}", start, end))
        told = " ".join(frame_states(responses, n))
        assert all(r["content"] in told for r in responses), (n, responses)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", float("inf"), float("nan")])
def test_a_time_that_is_no_time_is_absent(value):
    assert parse_time(value) is None
    assert said(to_stream(record(instant("x", value)), 3)) == [SILENCE] * 3


@pytest.mark.parametrize("value", [5, 5.0, "5", " 5 ", "5.0", "00:05", "0:00:05"])
def test_every_form_of_a_time_is_in_seconds(value):
    assert parse_time(value, 2.0) == 10
    assert parse_time(value, 0.5) == 2


def test_the_sign_of_a_clock_time_covers_all_of_it():
    assert parse_time("-0:05") == -5
    assert parse_time("-1:05") == -65


def test_time_tags_are_in_seconds():
    stream = to_stream(record(instant("x", 1.5)), 4, fps=2.0)
    assert [user.split("\n")[-2] for user in asked(stream)] == [
        "<0s-0.5s>",
        "<0.5s-1s>",
        "<1s-1.5s>",
        "<1.5s-2s>",
    ]
    assert said(stream)[2] == f"{RESPONSE} x"
    assert time_tag(12) == "<12s-13s>"
    assert time_tag(299, 29.97) == "<9.977s-10.01s>"


@pytest.mark.parametrize("mark", ["<image>", "<stream>", "<video>", SILENCE, STANDBY, RESPONSE])
def test_marks_inside_words_are_rejected(mark):
    with pytest.raises(InputError, match=rf"clip\.mp4: question contains '{mark}'"):
        to_stream(record(question=f"What is {mark}?"), 3)
    with pytest.raises(InputError, match=r"clip\.mp4: response contains"):
        to_stream(record(instant(f"a {mark}", 2)), 3)


def test_records_that_cannot_be_used():
    with pytest.raises(InputError, match="no video_path"):
        to_stream({"question": [], "response": []}, 3)
    with pytest.raises(InputError, match=r"clip.mp4: 0 frames at 1 fps"):
        to_stream(record(), 0)
    for wrong in ("text", [1], [{"content": 3}]):
        with pytest.raises(InputError, match="response is"):
            to_stream({**record(), "response": wrong}, 3)
    with pytest.raises(InputError, match="parity='newest'"):
        parse_time("5", parity="newest")


def test_a_question_for_later_need_not_stand_at_the_start():
    late = record(at="3")
    assert asked(to_stream(late, 4))[0] == "Q?\n<0s-1s>\n<stream>"
    only = to_stream(late, 4, question_at_start=False)
    assert [user.startswith("Q?") for user in asked(only)] == [False, False, True, False]
    # Without a usable time there is nowhere else to ask.
    assert frame_questions([{"content": "Q?", "time": "x"}], 4, question_at_start=False) == {
        0: "Q?"
    }


@pytest.mark.parametrize("video_fps", [29.97, 23.976, 30000 / 1001, 12.5, 30, 7, 0.5])
@pytest.mark.parametrize("fps", [1.0, 2.0, 0.5])
def test_frames_do_not_drift(video_fps, fps):
    total = round(video_fps * 100)
    shown = frame_indices(video_fps, total, fps=fps)
    assert shown == frame_indices(video_fps, total, fps=fps, rule="inference")
    assert len(shown) == num_turns(video_fps, total, fps=fps) == pytest.approx(100 * fps, abs=1)
    for turn, index in enumerate(shown):
        assert index < total
        assert index == total - 1 or abs(index / video_fps - turn / fps) <= 0.5 / video_fps + 1e-9
    assert frame_indices(video_fps, total, fps=fps, max_frames=3) == shown[:3]


def test_impossible_frame_rates():
    with pytest.raises(InputError, match="video_fps=0"):
        frame_indices(0.0, 10)
    with pytest.raises(InputError, match="rule='seek'"):
        frame_indices(30.0, 10, rule="seek")


def test_frames_that_do_not_fit_the_dialogue_say_so():
    stream = to_stream(record(), 4)
    assert len(to_image(stream, np.zeros((3, 2, 2, 3)))["images"]) == 4
    with pytest.raises(InputError, match=r"clip.mp4: 2 frames for 4 turns, wanted within 1"):
        to_image(stream, "ab")
    with pytest.raises(InputError, match="0 frames"):
        to_image(stream, None)
    stream["messages"][2] = {"role": "assistant", "content": f"{RESPONSE} see <stream>"}
    with pytest.raises(InputError, match="inside the assistant's words"):
        to_image(stream, "abcd")


def test_a_window_shows_the_question_only_after_it_was_asked():
    def heads(at, parity):
        answers = [SILENCE] * 9
        for turn in range(10):
            window = window_messages(
                turn, answers, question="Q?", question_time=at, max_rounds=3, parity=parity
            )
            users = [m["content"] for m in window["messages"] if m["role"] == "user"]
            yield [user.startswith("Q?") for user in users]

    fixed, upstream = list(heads(4, "fixed")), list(heads(4, "upstream"))
    assert not any(any(shown) for shown in fixed[:4]) and upstream[0] == [True]
    assert all(sum(shown) == 1 for shown in fixed[4:])
    assert fixed[6] == [True, False, False] and upstream[5] == [True, True, False]


def test_a_window_without_a_system_prompt_is_turns_only():
    answers = [f"{RESPONSE} {i}" for i in range(4)]
    window = window_messages(4, answers, question="Q?", max_rounds=2, system=None)
    assert [m["role"] for m in window["messages"]] == ["user", "assistant", "user"]
    assert window["messages"][1]["content"] == f"{RESPONSE} 3" and window["frames"] == [3, 4]
    with pytest.raises(InputError, match="needs the 4 answers"):
        window_messages(4, answers[:2])


def test_words_of_a_turn():
    assert user_content(3, "Why?") == "Why?\n<3s-4s>\n<image>"
    assert user_content(3) == "<3s-4s>\n<image>"
    assert parse_answer(SILENCE) == (0, "")
    assert parse_answer(f"{RESPONSE} A dog.") == (2, "A dog.")
    assert parse_answer("A dog.") == (None, "A dog.")
