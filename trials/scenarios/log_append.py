"""Output that grew since the checkpoint: logs, appended and plain, are cut back; no line is there twice."""
from scenario import *

program = compile_c("writer", r"""
int main(void) {
    int a = open("append.log", O_WRONLY | O_CREAT | O_APPEND, 0644), p = open("plain.log", O_WRONLY | O_CREAT, 0644);
    MUST(a >= 0 && p >= 0);
    say("ready", "");
    int last = 0;
    for (int i = 1; last < 50; i++) {
        if (access("go", F_OK) == 0) last++;
        dprintf(a, "line %d\n", i);
        dprintf(p, "line %d\n", i);
        usleep(500);
    }
    say("result", "right");
    return 0;
}
""")


def lines(log):
    return [int(line.split()[1]) for line in read(log).splitlines()]


child = start(program)
ready()
hdcr("checkpoint", child.pid, "-o", "image")
for _ in range(3):
    now = len(lines("append.log"))
    until("more output", lambda: len(lines("append.log")) > now + 100)
    kill(child.pid)
    must(restore("image") == child.pid, "another pid")
must(result() == "right", "the program failed")
gone(child.pid)
for log in ["append.log", "plain.log"]:
    found = lines(log)
    must(found == list(range(1, len(found) + 1)), f"{log}: lines lost or twice")
