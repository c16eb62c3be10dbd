"""Environments that a robot learns in, and what it brings back from them."""
