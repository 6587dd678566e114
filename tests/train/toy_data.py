"""The toy's data, apart from its model so that worker processes import only numpy."""

import numpy as np


def records():
    return [{"path": f"clip{i}.mp4", "label": i % 3} for i in range(64)]


def transform(record, rng):
    x = rng.normal(size=8).astype(np.float32)
    x[record["label"]] += 2
    # Every third row has half its labels, so that a token mean is not a row mean.
    labels = np.full(4, record["label"], np.int32)
    labels[2:] = -100 if record["label"] == 0 else labels[2:]
    return {"x": x, "labels": labels}
