"""The toy of tests/train as a recipe of its own, for runs that are started from outside."""

import functools
import time

from streamjax.train import CheckpointConfig, DataConfig
from tests.train import toy
from tests.train.toy_data import records, transform


def slow(record, rng, pause):
    time.sleep(pause)
    return transform(record, rng)


def config(pause: float = 0.0):
    """pause: seconds that a sample takes, so that a signal finds the run at work."""
    data = DataConfig(source=records, transform=functools.partial(slow, pause=pause))
    return toy.config(steps=30, data=data, checkpoint=CheckpointConfig(every=10), log_every=5)
