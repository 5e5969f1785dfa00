"""What the kernel says of one path: its signature, with the birth time where the system tells it.

Python 3.11's os.stat does not know birth times on Linux, so statx(2) is called through ctypes; where that does not
exist the birth time is unknown, and everything works without it.
"""

import ctypes
import os

from trackwatch.track import Signature

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800
_STATX_BYTES = 256
_MASK_OFFSET, _BTIME_OFFSET = 0, 80  # struct statx of <linux/stat.h>: stx_mask, stx_btime {s64 sec, u32 nsec}


def _find_statx() -> "ctypes._NamedFuncPointer | None":
    try:
        function = ctypes.CDLL(None, use_errno=True).statx
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    return function


_statx = _find_statx()


def birth_ns(path: bytes, dir_fd: int = _AT_FDCWD) -> int | None:
    """Return when the file was made, in nanoseconds since 1970; None where nobody knows. Symlinks are not followed.

    An empty path with a descriptor asks for the open file itself.
    """
    if _statx is None:
        return None
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    flags = _AT_SYMLINK_NOFOLLOW if path else _AT_EMPTY_PATH
    if _statx(dir_fd, path, flags, _STATX_BTIME, buffer) != 0:
        return None
    raw = buffer.raw
    if not int.from_bytes(raw[_MASK_OFFSET : _MASK_OFFSET + 4], "little") & _STATX_BTIME:
        return None
    seconds = int.from_bytes(raw[_BTIME_OFFSET : _BTIME_OFFSET + 8], "little", signed=True)
    return seconds * 1_000_000_000 + int.from_bytes(raw[_BTIME_OFFSET + 8 : _BTIME_OFFSET + 12], "little")


def signature_of(path: bytes) -> Signature:
    """Return the signature of a path, not following a symlink. Raises OSError."""
    return Signature.of(os.lstat(path), birth_ns(path))
