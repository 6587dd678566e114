"""Rules that read a letter: what each makes of answers that tell them apart."""

import pytest

from streamjax.errors import InputError
from streamjax.evals.benchmarks import choices

# Answer -> what official, lmms_eval_legacy and lmms_eval_2026 read.
READ = {
    "C": "CCC",
    "(B) a dog": "BBB",
    "Answer: C": "CAC",
    "Option: C": "CCC",
    "The best option is C": "CCC",
    "Best answer: C": "BBC",
    "Best answer:Best option: C": "CCC",
    "Based on the video, it is (D).": "BBD",
    "Because A is wrong, the answer is D, not C": "BBC",
    "b": "   ",
    "": "   ",
    "A or B? B.": "AAA",
    "I rule out A. So it is D": "AAD",
    "I rule out A. So it is Dog": "AAA",
    "it is Dog, not Cat": "DDC",
    "the Answer: B": "BAB",
    "my answer is B! The answer is A, clearly": "BBA",
    "정답은 C 입니다": "CCC",
    "'D'.": "DDD",
}


@pytest.mark.parametrize("text", READ)
def test_what_the_rules_make_of_an_answer(text):
    assert [read(text) or " " for read in choices.PARSERS.values()] == list(READ[text])


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("B. a dog", "B"),
        ("e.  x", "E"),
        ("(c)", "C"),
        ("It is a dog", "A"),
        ("It is the dog.", "it is the dog"),
        ("B.\nbecause", "B"),
        ("B.", "B"),
        ("1,000 (B)", "B"),
        ("dog/B", "B"),
        ("[B]", "B"),
        ("The answer: d", "D"),
        ("F", "f"),
        ("", ""),
    ],
)
def test_a_lone_letter_of_either_case(text, read):
    assert choices.lone_letter(text) == read


def test_more_letters_and_other_phrases():
    assert (
        choices.first_letter("The best option is E", choices.LONGVIDEOBENCH_PHRASES, "ABCDE") == "E"
    )
    assert choices.first_letter("Best option: E", choices.LONGVIDEOBENCH_PHRASES, "ABCDE") == "E"
    assert choices.first_letter("Best option: E", choices.LEGACY_PHRASES, "ABCDE") == "B"


def test_which_option_is_right():
    assert choices.index_of(("x", "y"), "y", letter=False) == 1
    assert choices.index_of(("x", "y"), "A", letter=True) == 0
    for letter in (False, True):
        with pytest.raises(InputError, match="answer 'C' is none of its options"):
            choices.index_of(("x", "y"), "C", letter=letter)
    with pytest.raises(InputError, match="is a list, wanted a record with 'q'"):
        choices.text_of([], "q")
    with pytest.raises(InputError, match="'start' is 'soon', wanted seconds"):
        choices.number_of({"start": "soon"}, "start")
