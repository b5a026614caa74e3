"""Files that are written in place and too large to be kept are refused before anything is touched; a sparse one is kept, and
so is one that only grows."""
from scenario import *

BINARY = compile_c("writer", r"""
int main(int argc, char **argv) {
    (void)argc;
    int fd = open(argv[1], O_RDWR | O_CREAT, 0644), grows = open("grows", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    long size = strtol(argv[2], 0, 10), *map = 0;
    static char block[1 << 20];
    MUST(fd >= 0 && grows >= 0 && ftruncate(fd, size) == 0);
    memset(block, 7, sizeof block);
    if (!strcmp(argv[3], "full")) for (long at = 0; at < size; at += sizeof block) MUST(pwrite(fd, block, sizeof block, at) > 0);
    map = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(map != MAP_FAILED);
    for (int i = 0; i < 5; i++) MUST(write(grows, block, sizeof block) > 0);
    say("ready", "");
    for (long turn = 1; access("go", F_OK) != 0; turn++) { map[0] = turn; map[size / 16] = turn; usleep(500); }
    char text[64];
    snprintf(text, sizeof text, "%s", map[0] == map[size / 16] ? "good" : "bad");
    say("result", text);
    return 0;
}
""")
SIZE = 8 << 20


def writer(name, kind):
    for old in ("ready", "go", "result", name):
        if os.path.exists(old):
            os.remove(old)
    program = start(BINARY, name, str(SIZE), kind)
    ready()
    return program


full = writer("full", "full")
text = hdcr("checkpoint", full.pid, "-o", "none.hdcr", "--file-limit", "4MiB", ok=False)
must("[file-beyond-limit]" in text and "/full" in text, "not refused by name: " + text)
must(not os.path.exists("none.hdcr"), "a refused checkpoint left an image")
hdcr("checkpoint", full.pid, "-o", "kept.hdcr", "--file-limit", "4MiB", "--files", os.path.abspath("full"))
hdcr("checkpoint", full.pid, "-o", "left.hdcr", "--file-limit", "4MiB", "--file-policy", f"{os.path.abspath('full')}=ignore")
kill(full.pid)
os.truncate("full", 0)
restore("./kept.hdcr")
must(os.path.getsize("full") == SIZE, "the file did not come back")
must(result() == "good", "the program found other contents than its memory knows")
sparse = writer("sparse", "sparse")
hdcr("checkpoint", sparse.pid, "-o", "sparse.hdcr", "--file-limit", "4MiB", "--kill")
gone(sparse.pid)
with open("sparse", "r+b") as file:
    file.write(b"something else")
restore("./sparse.hdcr")
must(result() == "good", "a sparse file did not come back")

# Told its length by its offset, and then written by offsets of their own.
AT_END = compile_c("at_end", r"""
int main(void) {
    int fd = open("store", O_RDWR | O_CREAT, 0644);
    static char block[1 << 20];
    for (int i = 0; i < 8; i++) MUST(write(fd, block, sizeof block) > 0);
    say("ready", "");
    for (long turn = 1; access("go", F_OK) != 0; turn++) { MUST(pwrite(fd, &turn, sizeof turn, 0) > 0); usleep(500); }
    return 0;
}
""")
for old in ("ready", "go"):
    if os.path.exists(old):
        os.remove(old)
store = start(AT_END)
ready()
must("[file-beyond-limit]" in hdcr("checkpoint", store.pid, "-o", "store.hdcr", "--file-limit", "4MiB", ok=False), "not refused")
kill(store.pid)
# One that grows all the time is never taken for one that is written in place.
grows = start("bash", "-c", "exec > grows2; while :; do echo 0123456789012345678901234567890123456789; done")
until("a large file", lambda: os.path.exists("grows2") and os.path.getsize("grows2") > 5 << 20)
for _ in range(20):
    hdcr("checkpoint", grows.pid, "-o", "grows.hdcr", "--file-limit", "4MiB")
kill(grows.pid)

# One that grows, and whose header is written over each time (a WAVE file): header and length go back together.
HEADER = compile_c("header", r"""
int main(void) {
    int fd = open("wave", O_WRONLY | O_CREAT | O_TRUNC, 0644), look = open("wave", O_RDONLY);
    static char block[1 << 20];
    long seen = 0, turn = 0;
    for (int i = 0; i < 8; i++) MUST(write(fd, block, sizeof block) > 0);
    say("ready", "");
    while (access("go", F_OK) != 0) {
        MUST(pread(look, &seen, sizeof seen, 0) == sizeof seen);
        if (seen != turn) { say("result", "bad"); return 1; }
        turn++;
        MUST(pwrite(fd, &turn, sizeof turn, 0) > 0 && write(fd, &turn, sizeof turn) > 0);
        usleep(500);
    }
    say("result", lseek(fd, 0, SEEK_END) == (8 << 20) + 8 * turn ? "good" : "bad");
    return 0;
}
""")
for old in ("ready", "go", "result"):
    if os.path.exists(old):
        os.remove(old)
wave = start(HEADER)
ready()
for turn in range(3):
    image = f"wave{turn}.hdcr"
    hdcr("checkpoint", wave.pid, "-o", image, "--file-limit", "4MiB")
    size = os.path.getsize("wave")
    until("a longer file", lambda: os.path.getsize("wave") > size + 100)
kill(wave.pid)
for turn in (2, 1, 0):
    pid = restore(f"./wave{turn}.hdcr")
    size = os.path.getsize("wave")
    until("a longer file", lambda: os.path.getsize("wave") > size + 100)
    if turn:
        kill(wave.pid)
must(result() == "good", "header and length do not fit together")
