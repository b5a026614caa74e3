"""One image restored ten times: the same program each time, and nothing piles up beside its files."""
from scenario import *

program = compile_c("again", r"""
int main(void) {
    int fd = open("data", O_RDWR | O_CREAT, 0644), log = open("log", O_WRONLY | O_CREAT | O_APPEND, 0644);
    MUST(write(fd, "before", 6) == 6 && write(log, "a\n", 2) == 2);
    say("ready", "");
    until("go");
    char text[16] = "";
    MUST(pread(fd, text, 16, 0) == 6 && !strcmp(text, "before") && lseek(fd, 0, SEEK_CUR) == 6);
    MUST(pwrite(fd, "after!, and more", 16, 0) == 16 && write(log, "b\n", 2) == 2);
    MUST(lseek(log, 0, SEEK_END) == 4);
    int journal = open("data-journal", O_WRONLY | O_CREAT | O_EXCL, 0644);
    MUST(journal >= 0);
    say("result", "right");
    pause();
    return 0;
}
""")
child = start(program)
ready()
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
for time_ in range(10):
    must(restore("image") == child.pid, "another pid")
    must(result() == "right", f"restore {time_ + 1}: {read('result')}")
    kill(child.pid)
    os.remove("go")
    os.remove("result")
aside = [name for name in os.listdir(".") if ".hdcr-" in name]
must(len(aside) <= 10 and all("newer" in name for name in aside), f"left behind: {aside}")
hdcr("verify", "./image")
