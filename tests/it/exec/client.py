"""What llama.cpp does with a model file, one libc call at a time: a program for
the tests to run through `exec`. `client.py WHAT FILE [OUT]`; an assertion that
fails ends it with a traceback and status 1."""

import ctypes
import mmap
import os
import resource
import sys
import threading

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from without_memfd import forbid_memfd

libc = ctypes.CDLL(None, use_errno=True)
for name, result, arguments in [
    ("fopen", ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]),
    ("fclose", ctypes.c_int, [ctypes.c_void_p]),
    ("fileno", ctypes.c_int, [ctypes.c_void_p]),
    ("fseeko", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]),
    ("ftello", ctypes.c_int64, [ctypes.c_void_p]),
    ("fread", ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]),
    ("mmap", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_int64]),
    ("munmap", ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t]),
    ("posix_memalign", ctypes.c_int, [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]),
    ("free", None, [ctypes.c_void_p]),
    ("open", ctypes.c_int, [ctypes.c_char_p, ctypes.c_int]),
]:
    getattr(libc, name).restype = result
    getattr(libc, name).argtypes = arguments

PAGE = mmap.PAGESIZE
FAILED = ctypes.c_void_p(-1).value


class Stream:
    """A stream as llama.cpp opens it, and its length."""

    def __init__(self, path):
        self.handle = libc.fopen(path.encode(), b"rb")
        assert self.handle, os.strerror(ctypes.get_errno())
        assert libc.fseeko(self.handle, 0, os.SEEK_END) == 0
        self.len = libc.ftello(self.handle)
        assert libc.fseeko(self.handle, 0, os.SEEK_SET) == 0

    def read(self, at, n):
        out = ctypes.create_string_buffer(n)
        assert libc.fseeko(self.handle, at, os.SEEK_SET) == 0
        got = libc.fread(out, 1, n, self.handle)
        return out.raw[:got]

    def map(self, at=0, n=None, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED | 0x8000):
        # 0x8000: MAP_POPULATE
        n = self.len - at if n is None else n
        return libc.mmap(None, n, prot, flags, libc.fileno(self.handle), at)

    def close(self):
        assert libc.fclose(self.handle) == 0


def allocate(n):
    pointer = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(pointer), 64, n) == 0
    return pointer.value


def mappings():
    with open("/proc/self/maps") as maps:
        return len(maps.readlines())


def pss(start, n):
    """PSS in bytes of the mappings within `start..start + n`."""
    total, inside = 0, False
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            first = line.split(maxsplit=1)[0]
            if "-" in first and not first.endswith(":"):
                low, high = (int(x, 16) for x in first.split("-"))
                inside = low < start + n and high > start
            elif first == "Pss:" and inside:
                total += int(line.split()[1]) * 1024
    return total


def read(path, out):
    """Copies the stream to `out`, in odd pieces from both ends."""
    stream = Stream(path)
    with open(out, "wb") as copy:
        step = 7777
        for at in list(range(0, stream.len, 2 * step)) + list(range(step, stream.len, 2 * step))[::-1]:
            copy.seek(at)
            copy.write(stream.read(at, step))
    assert stream.read(stream.len, 1) == b""
    stream.close()


def map_(path, out):
    """Copies a mapping to `out`, also after its start and end are unmapped and
    the stream is closed, as llama.cpp does."""
    stream = Stream(path)
    start = stream.map()
    assert start != FAILED, os.strerror(ctypes.get_errno())
    content = ctypes.string_at(start, stream.len)
    with open(out, "wb") as copy:
        copy.write(content)
    for at, n in [(PAGE, 3 * PAGE + 5), (5 * PAGE, None)]:
        part = stream.map(at, n)
        n = stream.len - at if n is None else n
        assert ctypes.string_at(part, n) == content[at : at + n]
        assert libc.munmap(part, n) == 0
    private = stream.map(prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE)
    ctypes.memset(private, 7, stream.len)
    assert libc.munmap(private, stream.len) == 0
    assert stream.map(prot=mmap.PROT_READ | mmap.PROT_WRITE) == FAILED
    assert libc.munmap(start, 2 * PAGE) == 0
    assert ctypes.string_at(start + 2 * PAGE, stream.len - 2 * PAGE) == content[2 * PAGE :]

    written = stream.map(prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE)
    ctypes.memset(written, 7, stream.len)
    stream.close()
    assert ctypes.string_at(written, stream.len) == b"\7" * stream.len
    assert libc.munmap(written, stream.len) == 0
    assert libc.munmap(start + 2 * PAGE, stream.len - 2 * PAGE) == 0

    stream = Stream(path)
    start = stream.map()
    end = stream.len - 3 * PAGE
    assert libc.munmap(start, 2 * PAGE) == 0
    assert libc.munmap(start + end, stream.len - end) == 0
    descriptor = libc.fileno(stream.handle)
    stream.close()
    try:
        os.fstat(descriptor)
        raise AssertionError("the descriptor is still open")
    except OSError:
        pass
    assert ctypes.string_at(start + 2 * PAGE, end - 2 * PAGE) == content[2 * PAGE : end]
    assert libc.munmap(start + 2 * PAGE, end - 2 * PAGE) == 0


def cycles(path):
    """50 loads leave neither mappings nor descriptors behind; Python's own
    allocations come and go, but are far fewer."""

    def load():
        stream = Stream(path)
        start = stream.map()
        buffer = allocate(4 << 20)
        ctypes.memset(buffer, 3, 4 << 20)
        stream.close()
        assert ctypes.string_at(buffer, 4 << 20) == b"\3" * (4 << 20)
        libc.free(buffer)
        assert libc.munmap(start, stream.len) == 0

    load()
    before, descriptors = mappings(), len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        load()
    assert abs(mappings() - before) < 10
    assert len(os.listdir("/proc/self/fd")) == descriptors


def fold(path):
    """Equal pages of a buffer are in memory once, and stay the program's own."""
    half = 6 << 20
    weights = os.urandom(half)
    stream = Stream(path)
    buffer = allocate(2 * half + 100)
    for at in (0, half):
        ctypes.memmove(buffer + at, weights, half)
    unfolded = pss(buffer, 2 * half)
    stream.close()
    content = weights + weights
    assert ctypes.string_at(buffer, 2 * half) == content
    folded = pss(buffer, 2 * half)
    print(f"{unfolded >> 10} KiB, folded {folded >> 10} KiB")
    assert folded < unfolded - half + (1 << 20)
    ctypes.memset(buffer + half, 1, PAGE)
    ctypes.memset(buffer + PAGE, 2, PAGE)
    assert ctypes.string_at(buffer, PAGE) == weights[:PAGE]
    assert ctypes.string_at(buffer + half + PAGE, PAGE) == weights[PAGE : 2 * PAGE]
    child = os.fork()
    if child == 0:
        ctypes.memset(buffer, 5, 2 * half)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ctypes.string_at(buffer + 2 * PAGE, half - 2 * PAGE) == weights[2 * PAGE :]
    libc.free(buffer)
    again = allocate(2 * half)
    ctypes.memset(again, 9, 2 * half)
    libc.free(again)


def unfolded(path):
    """What cannot be folded stays as it is: here without memfd_create."""
    half = 2 << 20
    weights = os.urandom(half)
    forbid_memfd()
    stream = Stream(path)
    memory = allocate(2 * half)
    for at in (0, half):
        ctypes.memmove(memory + at, weights, half)
    stream.close()
    assert ctypes.string_at(memory, 2 * half) == weights + weights
    libc.free(memory)


def freed(path):
    """Buffers that are freed during loading are left alone."""
    n = 8 << 20
    stream = Stream(path)
    buffer = allocate(n)
    ctypes.memset(buffer, 1, n)
    libc.free(buffer)
    # Most likely the same addresses, now not a buffer's.
    other = libc.mmap(buffer, n, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    ctypes.memset(other, 1, n)
    before = pss(other, n)
    stream.close()
    assert ctypes.string_at(other, n) == b"\1" * n
    assert pss(other, n) == before
    assert libc.munmap(other, n) == 0
    # The same addresses, now one buffer's again: it is not its own copy.
    stream = Stream(path)
    libc.free(allocate(n))
    buffer = allocate(n)
    ctypes.memmove(buffer, os.urandom(n), n)
    stream.close()
    with open("/proc/self/maps") as maps:
        assert "headshare-folded" not in maps.read()
    libc.free(buffer)


def no_files(path):
    """A process that may not write files loads, and nothing is folded."""
    n = 2 << 20
    stream = Stream(path)
    buffer = allocate(n)
    ctypes.memset(buffer, 4, n)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    stream.close()
    assert ctypes.string_at(buffer, n) == b"\4" * n
    libc.free(buffer)


def threads(path):
    """Many threads at once, and a stream that another thread closes."""
    expected = Stream(path)
    content = expected.read(0, expected.len)
    errors = []

    def work():
        try:
            for _ in range(10):
                stream = Stream(path)
                start = stream.map()
                assert ctypes.string_at(start, stream.len) == content
                assert stream.read(12345, 999) == content[12345 : 12345 + 999]
                buffer = allocate(1 << 20)
                ctypes.memset(buffer, 8, 1 << 20)
                stream.close()
                assert ctypes.string_at(buffer, 1 << 20) == b"\10" * (1 << 20)
                libc.free(buffer)
                libc.munmap(start, stream.len)
        except Exception as error:
            errors.append(error)

    running = [threading.Thread(target=work) for _ in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not errors, errors
    other = threading.Thread(target=expected.close)
    other.start()
    other.join()
    many = [Stream(path) for _ in range(64)]
    assert not libc.fopen(path.encode(), b"rb")
    for stream in many:
        stream.close()
    fold(path)


def stored(path):
    """Everything but fopen sees the file as it is stored."""
    with open(path, "rb") as file:
        content = file.read()
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == content
    assert len(content) == os.stat(path).st_size
    descriptor = libc.open(path.encode(), os.O_RDONLY)
    assert os.pread(descriptor, len(content), 0) == content
    os.close(descriptor)
    # llama.cpp falls back to fopen when this fails.
    assert libc.open(path.encode(), os.O_RDONLY | os.O_DIRECT) == -1
    handle = libc.fopen(path.encode(), b"r+b")
    assert libc.fileno(handle) >= 0
    assert libc.fseeko(handle, 0, os.SEEK_END) == 0 and libc.ftello(handle) == len(content)
    libc.fclose(handle)


def others(path):
    """Files that are not in the plan are what they are, beside one that is."""
    stream = Stream(path)
    own = os.path.abspath(__file__)
    with open(own, "rb") as file:
        content = file.read()
    other = Stream(own)
    assert other.len == len(content) and other.read(0, other.len) == content
    mapped = other.map(flags=mmap.MAP_PRIVATE)
    assert ctypes.string_at(mapped, other.len) == content
    assert libc.munmap(mapped, other.len) == 0
    other.close()
    stream.close()


def changed(path):
    """A file that was written to after `exec` looked at it is left as it is."""
    with open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"more")
    assert Stream(path).len == os.stat(path).st_size


def replaced(path):
    """Replaced by another file, a mapping keeps the old one."""
    stream = Stream(path)
    start = stream.map()
    content = ctypes.string_at(start, stream.len)
    stream.close()
    with open(path + ".new", "wb") as file:
        file.write(b"new")
    os.rename(path + ".new", path)
    assert ctypes.string_at(start, stream.len) == content
    assert libc.fileno(libc.fopen(path.encode(), b"rb")) >= 0


def truncated(path):
    """Cut off while it is mapped: the process is ended by SIGBUS."""
    stream = Stream(path)
    start = stream.map()
    stream.close()
    os.truncate(path, PAGE)
    ctypes.string_at(start, stream.len)


def limited(path):
    """Without address space for the mapping: an error and no crash."""
    stream = Stream(path)
    soft = int(open("/proc/self/statm").read().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (soft + (4 << 20), resource.RLIM_INFINITY))
    assert stream.map() == FAILED
    assert ctypes.get_errno() == 12  # ENOMEM
    assert stream.read(0, 4) == b"GGUF"
    stream.close()


def children(path, script):
    """Children read the file, too, also with all descriptors closed."""
    import subprocess

    for close_fds in (True, False):
        subprocess.run([sys.executable, script, "others", path], check=True, close_fds=close_fds)
        subprocess.run(
            ["sh", "-c", '"$0" "$1" length "$2"', sys.executable, script, path], check=True, close_fds=close_fds
        )


def length(path):
    print(Stream(path).len)


if __name__ == "__main__":
    what = {"map": map_}.get(sys.argv[1]) or globals()[sys.argv[1]]
    what(*(argument.removeprefix("--model=") for argument in sys.argv[2:]))
