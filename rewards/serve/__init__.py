"""Scores over HTTP: a service that batches, the app around it, and its clients."""
