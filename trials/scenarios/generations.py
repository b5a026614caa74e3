"""A restored program is checkpointed again, ten generations; what each is made of does not grow."""
from scenario import *

program = compile_c("heir", r"""
int main(int n, char **v) {
    (void)n;
    int fd = open("count", O_RDWR | O_CREAT, 0644), pipes[2];
    MUST(!pipe(pipes) && write(pipes[1], "x", 1) == 1);
    char *heap = malloc(1 << 20);
    memset(heap, 1, 1 << 20);
    pid_t child = fork();
    if (child == 0) for (;;) pause();
    for (int i = 0; i <= 10; i++) {
        char name[32];
        lseek(fd, 0, SEEK_SET);
        dprintf(fd, "%d", i);
        snprintf(name, sizeof name, "ready.%d", i);
        say(name, "");
        snprintf(name, sizeof name, "go.%d", i);
        until(name);
        MUST(heap[(1 << 20) - 1] == i + 1);
        memset(heap, i + 2, 1 << 20);
    }
    MUST(!kill(child, SIGKILL) && waitpid(child, 0, 0) == child);
    say("result", "right");
    return !v[0];
}
""")
child = start(program)
pid = child.pid
maps = calls = None
for generation in range(11):
    until("the program", lambda: os.path.exists(f"ready.{generation}"))
    if generation < 10:
        image = f"image.{generation}"
        hdcr("checkpoint", pid, "-o", image, "--kill")
        until("the family's end", lambda: (reap(), not below(os.getpid()))[1])
        must(restore(image) == pid, "another pid")
        now = [line.split()[0] for line in read(f"/proc/{pid}/maps").splitlines()]
        must(maps in (None, now), "the mappings differ from those of the generation before")
        maps = now
        open_files = sorted(os.listdir(f"/proc/{pid}/fd"), key=int)
        must(open_files == ["0", "1", "2", "3", "4", "5"], f"open files: {open_files}")
    write(f"go.{generation}", "")
sizes = [os.path.getsize(f"image.{generation}") for generation in range(1, 10)]
must(max(sizes) < min(sizes) * 1.2, f"images grow: {sizes}")
must(until("the result", lambda: read("result")) == "right", read("result"))
