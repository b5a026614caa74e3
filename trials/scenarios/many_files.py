"""A job works on far more files than it, its keeper and a restore may have open: it is checkpointed all the same, and rolled
back with each of them."""
import resource

from scenario import *

if os.geteuid() != 0:
    lacks("only root hears what programs do to files")

FILES = 800
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
os.mkdir("data")
program = compile_c("worker", r"""
static void put(int number, const char *suffix, const char *text) {
    char name[64];
    snprintf(name, sizeof name, "data/%d%s", number, suffix);
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    MUST(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && !close(fd));
}
int main(int count, char **words) {
    int files = atoi(words[count - 1]);
    for (int i = 0; i < files; i++) put(i, "", "first");
    say("ready", "");
    for (int i = 0; access("go", F_OK) && i < 30000; i++) {
        if (!access("more", F_OK) && access("changed", F_OK)) {
            char from[64], to[64];
            for (int i = 0; i < files; i++) {
                put(i, "", "second!");
                snprintf(from, sizeof from, "data/%d", i);
                snprintf(to, sizeof to, "data/%d.moved", i);
                if (i % 5 == 1) MUST(!unlink(from));
                if (i % 5 == 2) MUST(!rename(from, to));
                if (i % 5 == 3) put(i, ".newer", "newer");
            }
            say("changed", "");
        }
        if (!access("look", F_OK) && access("runs", F_OK)) say("runs", "");
        usleep(2000);
    }
    say("result", "right");
    return 0;
}
""")
job = Job(program, str(FILES))
ready()
for life in range(2):
    job.checkpoint()
    write("more", "")
    ready("changed")
    for name in ["more", "changed"]:
        os.remove(name)
    job.crash()
    write("look", "")
    ready("runs")
    for name in ["look", "runs"]:
        os.remove(name)
    names = sorted(os.listdir("data"))
    must(names == sorted(map(str, range(FILES))), f"{len(names)} names: {[n for n in names if not n.isdigit()][:5]}")
    texts = {read(f"data/{number}") for number in range(FILES)}
    must(texts == {"first"}, f"not rolled back: {texts}")
must(result() == "right", read("result"))
job.end()
