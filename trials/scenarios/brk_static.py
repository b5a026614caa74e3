"""The break of a static-pie program: its heap grows on after a restore, where it was."""
from scenario import *

for flags in [["-static-pie", "-fPIE"], ["-static", "-no-pie"], ["-fPIE", "-pie"]]:
    program = compile_c("heap", r"""
int main(void) {
    char *old = sbrk(100000);
    MUST(old != (void *)-1);
    memset(old, 3, 100000);
    say("ready", "");
    until("go");
    MUST(sbrk(0) == old + 100000 && old[99999] == 3);
    char *more = sbrk(1 << 20);
    MUST(more == old + 100000);
    memset(more, 4, 1 << 20);
    MUST(sbrk(-(1 << 20)) != (void *)-1);
    char *m[100];
    for (int i = 0; i < 100; i++) MUST((m[i] = malloc(10000)));
    for (int i = 0; i < 100; i++) memset(m[i], i, 10000), free(m[i]);
    say("result", "right");
    return 0;
}
""", *flags)
    child = start(program)
    ready()
    hdcr("checkpoint", child.pid, "-o", "image", "--kill")
    gone(child.pid)
    restore("image")
    must(result() == "right", f"{flags[0]}: {read('result')}")
    gone(child.pid)
    for name in ["ready", "go", "result", "image"]:
        os.remove(name)
