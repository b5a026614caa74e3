"""A file mapped shared with a process outside of the tree: both see each other's writes again after a restore."""
import mmap
from scenario import *

with open("shared", "wb") as file:
    file.write(b"\0" * 8192)
program = compile_c("sharer", r"""
int main(void) {
    int fd = open("shared", O_RDWR);
    volatile char *m = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(m != MAP_FAILED);
    close(fd);
    m[0] = 'p';
    say("ready", "");
    until("go");
    m[4096] = m[1] + 1;
    say("result", "right");
    return 0;
}
""")
file = open("shared", "r+b")
ours = mmap.mmap(file.fileno(), 8192)
child = start(program)
ready()
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
restore("image")
must(ours[0:1] == b"p", "what the program wrote before is lost to the outsider")
ours[1:2] = b"A"
must(result() == "right", read("result"))
must(ours[4096:4097] == b"B", "program and outsider do not see each other any more")
