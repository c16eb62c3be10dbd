"""Watching a run: where its numbers, its samples and its logs go, and how they are shown."""
