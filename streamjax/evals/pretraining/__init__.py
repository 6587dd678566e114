"""StreamFormer's six tasks of pre-training: sums per task, run on records nobody trained on."""
