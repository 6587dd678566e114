"""Architectures: one file each, holding its config, its named sizes and its modules."""
