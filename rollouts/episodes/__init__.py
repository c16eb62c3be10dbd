"""Episodes on disk: the store, other formats in and out, and what a store holds in numbers."""
