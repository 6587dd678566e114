"""The training benchmark of a video LLM: full rows of three dialogues, a step that is told of."""

import numpy as np
import pytest

from streamjax import cli
from streamjax.bench import train_vlm


def test_rows_are_full_of_whole_turns():
    config = train_vlm.MODELS["tiny"]
    batch = train_vlm.packed(config, 512, 2)
    assert batch["tokens"].shape == (2, 512)
    turns, turn = 512 // 78, train_vlm.VISUAL + train_vlm.TEXT
    assert ((batch["segments"] >= 0).sum(1) == turns * turn).all()
    assert set(np.unique(batch["segments"])) == {-1, 0, 1, 2}
    seen = batch["tokens"] == config.image_token_id
    assert (seen.sum(1) == turns * train_vlm.VISUAL).all()
    # Text has labels, but for the first word of a dialogue; pictures and padding have none.
    assert ((batch["labels"] >= 0).sum(1) == turns * train_vlm.TEXT - 3).all()
    assert not (batch["labels"][seen] >= 0).any()


def test_bench_train_tells_tokens_and_operations(capsys):
    asked = ["bench", "train", "--family", "qwen2_5_vl", "--size", "tiny"]
    assert cli.main([*asked, "--context", "256", "--steps", "2"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "tokens"
    tokens, step, rate, flops, speed, share, _ = row.split()
    assert (tokens, share) == ("256", "-")
    assert float(rate) == pytest.approx(256e3 / float(step), rel=0.05)
    assert float(speed) == pytest.approx(1e3 * float(flops) / float(step), rel=0.3, abs=1)
    assert cli.main([*asked, "--dtype", "bfloat16", "--peers"]) == 2
    assert "compared in float32" in capsys.readouterr().err
    assert cli.main(["bench", "encode", "--size", "3B"]) == 2
    assert "--size 3B goes with" in capsys.readouterr().err
