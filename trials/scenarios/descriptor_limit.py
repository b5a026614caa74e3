"""A program that holds the highest descriptor that its limit allows, as shells do, comes back within the same limit."""
import resource

from scenario import *

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
program = compile_c("holder", r"""
int main(void) {
    int file = open("data", O_RDWR | O_CREAT, 0600);
    MUST(file >= 0 && dup2(file, 127) == 127);
    close(file);
    MUST(write(127, "held", 4) == 4);
    say("ready", "");
    until("go");
    char text[5] = "";
    MUST(pread(127, text, 4, 0) == 4 && !strcmp(text, "held") && lseek(127, 0, SEEK_CUR) == 4);
    for (int number = 3; number < 127; number++) MUST(fcntl(number, F_GETFD) == -1);
    say("result", "right");
    return 0;
}
""")
child = start(program)
ready()
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
restore("image")
must(result() == "right", read("result"))
