"""Judgement of robot episodes: whether a task was done, and what each step is then worth."""
