"""Runs a program in a process that may not call memfd_create:

  without_memfd.py PROGRAM ARGS...
"""

import ctypes
import os
import struct
import sys


def forbid_memfd() -> None:
    """Forbids memfd_create to this process and its children (seccomp)."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 319, "aarch64": 279}[os.uname().machine]
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
    )
    buffer = ctypes.create_string_buffer(program)

    class Filter(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    rules = Filter(4, ctypes.addressof(buffer))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.byref(rules), 0, 0) == 0  # PR_SET_SECCOMP


if __name__ == "__main__":
    forbid_memfd()
    os.execvp(sys.argv[1], sys.argv[1:])
