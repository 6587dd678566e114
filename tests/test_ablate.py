"""`streamjax ablate`: its table, its manners, and (slow) two variants from an empty folder."""

import json

import pytest

from streamjax import ablate
from streamjax.cli import main
from streamjax.errors import InputError
from streamjax.evals.timing.assistant import kept


def scored(f1, calibrated):
    row = {"macro_f1": f1, "precision": 0.8, "recall": 0.6, "text": 0.9, "dialogues": 90}
    curve = [{"respond": r, "precision": p, "recall": q, "macro_f1": f1}
             for r, p, q in ((0.2, 0.5, 1.0), (0.4, 0.8, 0.8))]  # fmt: skip
    return {
        "test": row,
        "selective": row,
        "curve": curve,
        "calibrated": {**row, "macro_f1": calibrated},
    }


def test_the_table_gives_means_deviations_and_gains_by_seed():
    found = {
        "ce": [scored(0.70, 0.72), scored(0.74, 0.74)],
        "focal": [scored(0.72, 0.72), scored(0.74, 0.76)],
    }
    scores, points = ablate.table(found).split("\n\n")
    header, _, ce, focal = scores.splitlines()
    assert "90 dialogues, 2 seeds" in header
    assert ce.split(" | ")[1] == "0.720 ± 0.028" and ce.endswith("-0.010 ± 0.014 |")
    assert focal.startswith("| focal, as released | 0.730 ± 0.014") and focal.endswith("| - |")
    ce, focal = points.splitlines()[2:]
    assert "| 0.800 ± 0.000 | 0.80, 0.80 |" in ce and ce.endswith("+0.010 ± 0.014 |")


def test_what_is_not_there_is_said(tmp_path, capsys):
    with pytest.raises(InputError, match="no variant 'fokal': wanted one of ce, scale"):
        ablate.run(tmp_path, variants=("fokal",))
    with pytest.raises(InputError, match="0 seeds of 4 variants"):
        ablate.run(tmp_path, seeds=0)
    assert not list(tmp_path.iterdir())
    (tmp_path / "size.json").write_text(json.dumps({"train": 3}))
    assert main(["ablate", "--folder", str(tmp_path)]) == 2
    assert "has another size" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_scored_is_not_trained_again(tmp_path, monkeypatch, capsys):
    first = ablate.run(tmp_path, seeds=1, variants=("ce", "contrast"), fast=True)
    assert list(first["runs"]) == ["ce", "contrast"]
    home = tmp_path / "ce" / "seed0"
    said = kept(home / "test.json")
    assert len(said) == 16 and len(said[0].probabilities) == len(said[0].wanted.states)
    scores = json.loads((home / "scores.json").read_text())
    assert set(scores["thresholds"]) == {"respond", "standby", "hysteresis"}
    for name in ("ablation.json", "ablation.md", "ablation.svg", "ablation.html"):
        assert (tmp_path / name).stat().st_size > 200

    (home / "scores.json").unlink()  # scored again from what was answered
    monkeypatch.setattr(ablate, "train", None)  # would be called, and is no function
    assert ablate.run(tmp_path, seeds=1, variants=("ce", "contrast"), fast=True) == first
    assert "cross-entropy" in capsys.readouterr().out
