"""Models and words that the tests of streams share, so that they share compiled programs too."""

import functools

import pytest


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A small tokenizer."""
    from tests.stream import oracle

    return oracle.make_tokenizer(tmp_path_factory.mktemp("stream_words"))


@pytest.fixture(scope="session")
def models(words):
    """family -> its tiny model."""
    from tests.stream import oracle

    return functools.cache(lambda family: oracle.make_model(family, words))
