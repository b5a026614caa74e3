"""A file that is shorter than its mapping: pages beyond its end still give SIGBUS, and come to be when it grows."""
from scenario import *

program = compile_c("shorter", r"""
#include <setjmp.h>
static sigjmp_buf back;
static void bus(int s) { (void)s; siglongjmp(back, 1); }
static int touches(volatile char *p) { if (sigsetjmp(back, 1)) return 0; (void)*p; return 1; }
int main(void) {
    int fd = open("short", O_RDWR | O_CREAT, 0644);
    MUST(write(fd, "short", 5) == 5);
    char *shared = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *private = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    private[1] = 'H';
    signal(SIGBUS, bus);
    MUST(!touches(shared + 8192) && !touches(private + 8192));
    say("ready", "");
    until("go");
    MUST(!memcmp(shared, "short", 5) && !memcmp(private, "sHort", 5));
    MUST(!touches(shared + 8192) && !touches(private + 8192));
    MUST(lseek(fd, 0, SEEK_END) == 5 && !ftruncate(fd, 65536));
    MUST(touches(shared + 8192) && touches(private + 8192));
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
