"""Tens of thousands of mappings: all that the kernel allows a process by default."""
from scenario import *

program = compile_c("mapper", r"""
enum { N = 60000 };
int main(void) {
    char *m = mmap(0, (N + 1) * 4096UL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(m != MAP_FAILED);
    for (int i = 0; i < N; i += 10) m[i * 4096UL] = 1 + i % 100;
    for (int i = 1; i < N; i += 2) MUST(!mprotect(m + i * 4096UL, 4096, PROT_READ));
    say("ready", "");
    until("go");
    for (int i = 0; i < N; i++) MUST(m[i * 4096UL] == (i % 10 ? 0 : 1 + i % 100));
    for (int i = 1; i < N; i += 2) MUST(!mprotect(m + i * 4096UL, 4096, PROT_READ | PROT_WRITE));
    memset(m, 1, N * 4096UL);
    say("result", "right");
    return 0;
}
""")
child = start(program)
ready()
before = len(read(f"/proc/{child.pid}/maps").splitlines())
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
restore("image")
after = len(read(f"/proc/{child.pid}/maps").splitlines())
must(before == after and before > 60000, f"{before} mappings before, {after} after")
must(result() == "right", read("result"))
