"""How this process asks the system for memory."""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MMAP_THRESHOLD_MAX = 32 * 2**20  # glibc refuses more


def keep_freed_memory() -> bool:
    """Has glibc keep memory that a training step frees for the next step to use; returns whether it could.

    By default glibc maps every buffer over 128 KiB afresh and returns it when freed, so that a training step on the
    CPU spends a tenth of its time on page faults. What is kept grows by fragmentation: give it back now and then with
    :func:`return_freed_memory`.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_MAX)
        and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        and mallopt(_M_TOP_PAD, 256 * 2**20)
    )


def return_freed_memory() -> None:
    """Gives the system what this process has freed."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return  # not glibc: its allocator keeps its own counsel
