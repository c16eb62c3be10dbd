"""Memory between the heavy phases of a process."""

import ctypes


def return_freed_memory() -> None:
    """Gives the system what this process has freed.

    glibc keeps freed memory for itself. Engine and learner take turns, and the engine needs its gigabyte of
    intermediate results only while it generates: given back, the two peaks do not add up.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return  # not glibc: its allocator keeps its own counsel
