"""Transparent huge pages are huge pages again, and memory of which only some pages were there does not grow."""
from scenario import *

program = compile_c("huge", r"""
#define MIB (1UL << 20)
static char *aligned(unsigned long len) {
    char *all = mmap(0, len + 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(all != MAP_FAILED);
    return (char *)(((unsigned long)all + 2 * MIB - 1) & ~(2 * MIB - 1));
}
int main(void) {
    char *full = aligned(32 * MIB), *sparse = aligned(64 * MIB);
    MUST(!madvise(full, 32 * MIB, MADV_HUGEPAGE) && !madvise(sparse, 64 * MIB, MADV_NOHUGEPAGE));
    for (unsigned long at = 0; at < 32 * MIB; at += 64) full[at] = (char)(at >> 6 | 1);
    for (unsigned long at = 0; at < 64 * MIB; at += MIB) sparse[at] = (char)(at >> 20 | 1);
    /* Asked for only now: its pages are small. */
    MUST(!madvise(sparse, 64 * MIB, MADV_HUGEPAGE));
    say("ready", "");
    until("go");
    for (unsigned long at = 0; at < 32 * MIB; at += 64) MUST(full[at] == (char)(at >> 6 | 1));
    for (unsigned long at = 0; at < 64 * MIB; at += MIB) MUST(sparse[at] == (char)(at >> 20 | 1) && !sparse[at + 4096]);
    say("result", "right");
    pause();
    return 0;
}
""")


def kib(pid, field):
    return int(re.search(rf"^{field}: *(\d+) kB", read(f"/proc/{pid}/smaps_rollup"), re.M).group(1))


child = start(program)
ready()
huge, all_ = kib(child.pid, "AnonHugePages"), kib(child.pid, "Rss")
if huge < 16 << 10:
    lacks("no huge pages here")
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
pid = restore("image")
now = kib(pid, "AnonHugePages"), kib(pid, "Rss")
print(f"huge, resident KiB: {huge, all_} before, {now} after", flush=True)
must(now[0] >= huge, f"{now[0]} KiB in huge pages, {huge} before")
must(now[1] < all_ + (4 << 10), f"{now[1]} KiB resident, {all_} before")
must(result() == "right", f"restore: {read('result')}")
