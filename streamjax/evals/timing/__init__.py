"""When an assistant speaks: timed dialogues held with a model, their scores, curves, pictures."""
