"""Trainable models, one file per architecture."""
