# What a program may do with its memory while that is still coming. Each line of `sums` has to be like the first.
import ctypes, mmap, os, sys, threading, zlib
libc = ctypes.CDLL(None)
word = ctypes.c_size_t
libc.mprotect.argtypes = [word, word, ctypes.c_int]
libc.madvise.argtypes = [word, word, ctypes.c_int]
libc.mmap.argtypes = [word, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, word]
libc.mremap.argtypes = [word, word, word, ctypes.c_int, word]
libc.mmap.restype = libc.mremap.restype = word
sys.setswitchinterval(0.0001)
PAGE, PIECE, SMALL, SIZE = 4096, 1 << 20, 1 << 16, 48 << 20
DONTNEED, WIPEONFORK, KEEPONFORK, GUARD, UNGUARD = 4, 18, 19, 102, 103
# Where the kernel puts nothing by itself: a hole stays one.
PARTED, MOVED, WIPED, GIVEN_UP, AWAY, GUARDED = (at << 40 for at in (0x60, 0x61, 0x62, 0x63, 0x64, 0x65))
LOW = 1 << 16


def view(at, size):
    return memoryview((ctypes.c_ubyte * size).from_address(at)).cast("B")


def zeros(at, size):
    return bytes(view(at, size)) == bytes(size)


def make(at, size):
    # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    assert libc.mmap(at, size, 3, 0x100022, -1, 0) == at
    return fill(at, size)


def fill(at, size):
    memory = view(at, size)
    for page in range(0, size, PAGE):
        memory[page:page + PAGE] = ((at >> 40) * 40503 + page * 2654435761).to_bytes(8, "little") * 512
    return memory


def move(at, size, to):
    # MREMAP_MAYMOVE | MREMAP_FIXED
    assert libc.mremap(at, size, size, 3, to) == to, "mremap"


def there_and_back(at, size, to):
    move(at, size, to)
    sum = zlib.crc32(view(to, size))
    move(to, size, at)
    return sum


def part(turn):
    for page in range(turn % 7, SIZE // PAGE, 211):
        libc.mprotect(PARTED + page * PAGE, PAGE, 1 + 2 * (turn + page & 1))


def parts():
    turn = 0
    while True:
        turn += 1
        part(turn)
        at = GIVEN_UP + turn % 64 * PAGE
        libc.madvise(at, PAGE, DONTNEED)
        if not zeros(at, PAGE):
            print("a page that was given up has come back", file=sys.stderr, flush=True)
            os._exit(1)


def guarded():
    """A guard that is set while memory comes, and removed when all is there: what it covered is zeros."""
    global has_guard
    with open("/proc/self/smaps") as maps:
        coming = any(line.startswith("VmFlags:") and " um " in line for line in maps)
    if coming and not has_guard:
        has_guard = libc.madvise(GUARDED + 8 * PAGE, 8 * PAGE, GUARD) == 0
    elif has_guard and not coming:
        libc.madvise(GUARDED + 8 * PAGE, 8 * PAGE, UNGUARD)
        is_zeros = zeros(GUARDED + 8 * PAGE, 8 * PAGE)
        fill(GUARDED, PIECE)
        has_guard = False
        return is_zeros
    return True


def child(turn):
    """Its own copy of all, and zeros where its parent said so."""
    piece = MOVED + turn % 48 * PIECE
    wanted, before = sums[turn % 48], zlib.crc32(view(piece, PIECE))
    there = AWAY + PIECE
    move(piece, PIECE, there)
    seen = (before == wanted, zlib.crc32(view(there, PIECE)) == wanted, zeros(WIPED, PIECE))
    os._exit(0 if all(seen) else 1)


def forked(turn):
    libc.madvise(WIPED, PIECE, WIPEONFORK)
    pid = os.fork()
    if pid == 0:
        child(turn)
    libc.madvise(WIPED, PIECE, KEEPONFORK)
    return os.waitpid(pid, 0)[1]


parted, moved, wiped, given_up = make(PARTED, SIZE), make(MOVED, SIZE), make(WIPED, PIECE), make(GIVEN_UP, 64 * PAGE)
sums = [zlib.crc32(moved[at:at + PIECE]) for at in range(0, SIZE, PIECE)]
crowd, turn, where, has_guard = int(sys.argv[1]), 0, MOVED, False
make(GUARDED, PIECE)
# Where the kernel shows guards.
shows = tuple(int(word) for word in os.uname().release.split(".")[:2]) >= (6, 16)
for _ in range(crowd):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
if not crowd:
    threading.Thread(target=parts, daemon=True).start()
while True:
    turn += 1
    if crowd:
        # Who does it cannot be seen among so many; there is time between one and the next.
        part(turn)
        found = []
        for at in range(0, SIZE, SIZE // 2):
            there = AWAY if where == MOVED else MOVED
            move(where, PIECE, there)
            where = there
            found.append(zlib.crc32(parted[at:at + SIZE // 2]))
        found += [zlib.crc32(view(where, PIECE)), zlib.crc32(moved[PIECE:]), zlib.crc32(wiped)]
    else:
        found = []
        for at in range(0, SIZE, PIECE):
            found.append(there_and_back(MOVED + at, PIECE, AWAY))
            # From the middle of what is read together, to the lowest addresses there are.
            found.append(there_and_back(MOVED + at + 8 * SMALL, SMALL, LOW))
            if at % (8 * PIECE) == 0:
                found += [forked(turn + (at >> 20)), guarded() if shows else True]
            found.append(zlib.crc32(parted[at:at + PIECE]))
        found.append(zlib.crc32(wiped))
    with open("sums", "a") as out:
        print(zlib.crc32(repr(found).encode()), file=out)
