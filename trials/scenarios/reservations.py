"""Huge reservations: terabytes of PROT_NONE and untouched memory, the address sanitizer; small images, at once."""
from scenario import *

program = compile_c("huge", r"""
int main(void) {
    size_t tib = 1UL << 40;
    char *none = mmap(0, tib, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *sparse = mmap(0, tib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int fd = memfd_create("sparse", 0);
    MUST(none != MAP_FAILED && sparse != MAP_FAILED && !ftruncate(fd, tib));
    char *shared = mmap(0, tib, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    MUST(shared != MAP_FAILED);
    for (size_t at = 0; at < tib; at += tib / 16) sparse[at] = 1 + at / (tib / 16), shared[at + 4096] = 5;
    say("ready", "");
    until("go");
    for (size_t at = 0; at < tib; at += tib / 16)
        MUST(sparse[at] == (char)(1 + at / (tib / 16)) && !sparse[at + 4096] && shared[at + 4096] == 5 && !shared[at]);
    MUST(!mprotect(none, 4096, PROT_READ | PROT_WRITE));
    none[0] = 1;
    say("result", "right");
    return 0;
}
""")
child = start(program)
ready()
began = time.monotonic()
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
restore("image")
must(result() == "right", read("result"))
must(os.path.getsize("image") < 4 << 20, f"the image has {os.path.getsize('image')} bytes")
# Three tebibytes that were looked at page by page would take minutes.
took = time.monotonic() - began
must(took < 10, f"checkpoint and restore took {took:.1f} s")
gone(child.pid)
for name in ["ready", "go", "result", "image"]:
    os.remove(name)

write("asan.c", PRELUDE + r"""
int main(void) {
    char *heap = malloc(1000);
    memset(heap, 7, 1000);
    say("ready", "");
    until("go");
    int sum = 0;
    for (int i = 0; i < 1000; i++) sum += heap[i];
    char *freed = malloc(10);
    free(freed);
    say("result", sum == 7000 ? "right" : "wrong");
    if (access("poke", F_OK) == 0) return ((volatile char *)heap)[1000];
    free(heap);
    return 0;
}
""")
built = subprocess.run(["gcc", "-fsanitize=address", "-o", "asan", "asan.c"], capture_output=True, text=True)
if built.returncode != 0:
    lacks(f"the address sanitizer of gcc: {built.stderr.strip()[-200:]}")
write("poke", "")
job = Job(os.path.abspath("asan"))
ready()
job.checkpoint()
job.crash()
must(result() == "right", read("result"))
job.end(expected=1)
must("heap-buffer-overflow" in read("job.err"), "the restored sanitizer does not see an overflow")
