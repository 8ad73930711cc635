"""Checks and measurements on a machine with a GPU: see `__main__.py`."""
