"""What a stream costs here: a frame beside its floor, a turn under each window policy."""
