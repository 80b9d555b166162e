"""Disks that are full, for tests whose user may be root."""

import contextlib
import resource


@contextlib.contextmanager
def limited(size):
    """Lets no file of this process grow beyond `size` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
