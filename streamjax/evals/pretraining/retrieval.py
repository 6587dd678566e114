"""A sentence finds its video among all videos, and a video its sentence.

    similarity  = cosine of features; row i of the texts belongs to row i of the videos
    rank        = 1 + others whose similarity is not below the true one's
    R@k         = queries of rank <= k / queries
    median rank = median over the queries

The truth is the diagonal alone, as published: another video with the same or an equally fitting
caption counts as a mistake. Ties count against the model, so constant features find nothing; so
does a similarity that is no number.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

CUTS = (1, 5, 10)
_NONE = np.zeros(0, np.int64)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The rank of the true one for every query, in both directions.

    `a + b` scores the queries of two galleries together; each was ranked within its own.
    """

    text_to_video: Int[np.ndarray, " n"] = dataclasses.field(default_factory=lambda: _NONE)
    video_to_text: Int[np.ndarray, " n"] = dataclasses.field(default_factory=lambda: _NONE)

    def __add__(self, other: "Ranks") -> "Ranks":
        return Ranks(
            np.concatenate([self.text_to_video, other.text_to_video]),
            np.concatenate([self.video_to_text, other.video_to_text]),
        )

    @property
    def count(self) -> int:
        return len(self.text_to_video)

    def row(self) -> dict[str, float]:
        """The scores by name, as tables and JSON show them."""
        scores = {}
        for name, ranks in (("t2v", self.text_to_video), ("v2t", self.video_to_text)):
            for k in CUTS:
                scores[f"{name}_r{k}"] = recall(ranks, k)
            scores[f"{name}_median"] = float(np.median(ranks)) if len(ranks) else 0.0
        return scores


def score(text: Float[np.ndarray, "n d"], video: Float[np.ndarray, "n d"]) -> Ranks:
    """Ranks of n texts among n videos and back, by the cosine of their features.

    One row of `text` is one caption of the video in the same row of `video`.
    """
    return score_similarity(_unit(text) @ _unit(video).T)


def score_similarity(similarity: Float[np.ndarray, "n n"]) -> Ranks:
    """Ranks from similarities [texts, videos] whose diagonal is the truth."""
    return Ranks(_ranks(similarity), _ranks(similarity.T))


def recall(ranks: Int[np.ndarray, " n"], k: int) -> float:
    """The share of queries that have their own among the first k."""
    return float((ranks <= k).mean()) if len(ranks) else 0.0


def _ranks(similarity: np.ndarray) -> np.ndarray:
    own = np.diag(similarity)[:, None]
    return (~(similarity < own)).sum(1).astype(np.int64)  # itself and whatever is not below


def _unit(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a zero vector has no direction: NaN, and so last
        return x / np.linalg.norm(x, axis=-1, keepdims=True)
