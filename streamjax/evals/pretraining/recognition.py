"""Which class a clip shows: top-1 and top-5, from class logits or from a linear probe.

    rank of a clip = 1 + classes, other than its own, whose logit is not below its own's
    top-k          = clips of rank <= k / clips

A tie counts against the model (constant logits are right about nothing), and so does a logit that
is no number. Of at most five classes top-5 is always 1.

A linear probe is multinomial logistic regression on frozen features, fitted here in float64 by
L-BFGS from zero: no seed, one answer.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from streamjax.errors import InputError

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclasses.dataclass(frozen=True)
class TopK:
    """Clips, and how many of them have their class first, or among the first five."""

    first: int = 0
    five: int = 0
    count: int = 0

    def __add__(self, other: "TopK") -> "TopK":
        return TopK(self.first + other.first, self.five + other.five, self.count + other.count)

    def row(self) -> dict[str, float]:
        """The scores by name, as tables and JSON show them."""
        return {"top1": _share(self.first, self.count), "top5": _share(self.five, self.count)}


def score(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> TopK:
    """The sums of n clips. Raises ValueError for a label that is no row of the classes."""
    check_labels(labels, logits.shape[1])
    own = logits[np.arange(len(labels)), labels][:, None]
    ranks = (~(logits < own)).sum(1)  # itself included; whatever is not below, NaN too, is before
    return TopK(int((ranks <= 1).sum()), int((ranks <= 5).sum()), len(labels))


def merge_views(logits: Float[np.ndarray, "n v c"]) -> Float[np.ndarray, "n c"]:
    """One row a clip from v views of it (clips of a video, crops): the mean of their softmax, as
    its logarithm, so that classes far behind stay apart."""
    z = logits.astype(np.float64)
    z = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
    return np.logaddexp.reduce(z, axis=1) - np.log(logits.shape[1])


@dataclasses.dataclass(frozen=True)
class Probe:
    """A fitted linear classifier: `probe(features)` gives logits.

    kernel and bias are for features as they come: the standardisation is inside. decay: the
    chosen one.
    """

    kernel: Float[np.ndarray, "d c"]
    bias: Float[np.ndarray, " c"]
    decay: float

    def __call__(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        return features.astype(np.float64) @ self.kernel + self.bias


def fit_probe(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    classes: int,
    *,
    decays: Sequence[float] = DECAYS,
    held_out: int = 5,
) -> Probe:
    """Multinomial logistic regression on standardised features.

    Minimises mean cross-entropy + decay / 2 * |kernel|^2 (the bias is free). Of `decays` the one is
    taken that has the lowest cross-entropy on every `held_out`-th clip of each class, fitted on the
    rest (the larger of two that are even); then all clips are fitted with it. Classes that no clip
    shows stay possible answers.

    InputError: no clip, or features that are no numbers. ValueError: a label that is no class.
    """
    check_labels(labels, classes)
    if not len(features):
        raise InputError("a linear probe of 0 clips: wanted training clips with labels")
    if not np.isfinite(features).all():
        raise InputError("a linear probe on features that are no numbers (inf or NaN)")
    x = features.astype(np.float64)
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 1e-12 * np.maximum(np.abs(mean), 1e-12), std, 1.0)  # constants count as 0
    x = (x - mean) / std
    apart = np.zeros(len(x), bool)
    for label in np.unique(labels):
        apart[np.flatnonzero(labels == label)[held_out - 1 :: held_out]] = True
    decay = max(decays)
    if len(decays) > 1 and apart.any():
        losses, start = {}, None
        for decay in sorted(decays, reverse=True):  # from smooth to sharp: each starts at the last
            start = _fit(x[~apart], labels[~apart], classes, decay, start)
            losses[decay] = _cross_entropy(x[apart] @ start[0] + start[1], labels[apart])[0]
        decay = min(losses, key=lambda d: (losses[d], -d))
    kernel, bias = _fit(x, labels, classes, decay, None)
    kernel = kernel / std[:, None]
    return Probe(kernel, bias - mean @ kernel, decay)


def _fit(x, labels, classes, decay, start):
    from scipy.optimize import minimize

    d = x.shape[1]
    if start is None:
        start = np.zeros((d, classes)), np.zeros(classes)

    def objective(flat):
        kernel, bias = flat[: d * classes].reshape(d, classes), flat[d * classes :]
        loss, slope = _cross_entropy(x @ kernel + bias, labels)
        gradient = np.concatenate([(x.T @ slope + decay * kernel).ravel(), slope.sum(0)])
        return loss + decay / 2 * (kernel**2).sum(), gradient

    options = {"maxiter": 500, "gtol": 1e-6, "ftol": 1e-12}
    flat = np.concatenate([start[0].ravel(), start[1]])
    found = minimize(objective, flat, jac=True, method="L-BFGS-B", options=options).x
    return found[: d * classes].reshape(d, classes), found[d * classes :]


def _cross_entropy(logits, labels):
    """The mean over the rows, and its gradient [n c]."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(1, keepdims=True)
    total = np.exp(shifted).sum(1)
    loss = float((np.log(total) - shifted[rows, labels]).mean())
    slope = np.exp(shifted) / total[:, None]
    slope[rows, labels] -= 1
    return loss, slope / len(labels)


def check_labels(labels: Int[np.ndarray, " n"], classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(f"label {wrong[0]} is none of the {classes} classes")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
