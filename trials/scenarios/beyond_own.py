"""An image of root with a limit, a policy or a score that a user may not set is refused to that user by name, before anything runs or is rolled back."""
import resource
import shutil
from scenario import *

USER = 54321
if os.geteuid() != 0:
    lacks("only root can start a program with more than a user may have")
os.chmod(".", 0o755)
if subprocess.run([HDCR, "--version"], user=USER, group=USER, extra_groups=[], capture_output=True, check=False).returncode:
    lacks("another user cannot run the program here")
if subprocess.run(["unshare", "-U", "true"], user=USER, group=USER, extra_groups=[], capture_output=True, check=False).returncode:
    lacks("an ordinary user has no namespaces here")

program = compile_c("program", r"""
#include <sched.h>
#include <sys/resource.h>
int main(void) {
    struct rlimit limit;
    struct sched_param param;
    char text[200], score[16] = "";
    int file = open("theirs/data", O_RDWR | O_TRUNC), adj = open("/proc/self/oom_score_adj", O_RDONLY | O_CLOEXEC);
    MUST(file > 0 && write(file, "old", 3) == 3);
    close(adj);
    say("theirs/ready", "");
    until("theirs/go");
    adj = open("/proc/self/oom_score_adj", O_RDONLY);
    MUST(adj > 0 && read(adj, score, sizeof score - 1) > 0 && !getrlimit(RLIMIT_NOFILE, &limit) && !sched_getparam(0, &param));
    snprintf(text, sizeof text, "%ld of %d, %d, io %ld, %d", (long)limit.rlim_max, sched_getscheduler(0) * 100 + param.sched_priority,
             getpriority(PRIO_PROCESS, 0), syscall(SYS_ioprio_get, 1, 0) >> 13, atoi(score));
    say("theirs/result", text);
    return 0;
}
""")


def score(value):
    def settle():
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(value)
    return settle


def limits(number, value):
    return lambda: resource.setrlimit(number, (min(value, 500), value))


def ioprio(value):
    return lambda: LIBC.syscall(251, 1, 0, value << 13 | 4) and os._exit(77)


def nothing():
    """What everybody may have."""


RTPRIO, NICE = getattr(resource, "RLIMIT_RTPRIO", 14), getattr(resource, "RLIMIT_NICE", 13)
# What the program has, what its user may have: not enough and enough, the code, the word that names it, what it says then.
VALUES = [
    ("limit-above-own", "limit", limits(resource.RLIMIT_NOFILE, 5000), limits(resource.RLIMIT_NOFILE, 4000), limits(resource.RLIMIT_NOFILE, 5000),
     "5000 of 0, 0, io 0, 0"),
    ("scheduling-beyond-own", "real-time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(7)), limits(RTPRIO, 0), limits(RTPRIO, 7),
     "4000 of 107, 0, io 0, 0"),
    ("scheduling-beyond-own", "nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5), limits(NICE, 0), limits(NICE, 25), "4000 of 0, -5, io 0, 0"),
    ("scheduling-beyond-own", "input and output", ioprio(1), nothing, None, "4000 of 0, 0, io 1, 0"),
    ("oom-score-below-own", "oom_score_adj", score("-500"), score("0"), score("-500"), "4000 of 0, 0, io 0, -500"),
]


def becomes(settle):
    """How a process gets a value, and then becomes the user's."""
    def become():
        try:
            settle()
            if resource.getrlimit(resource.RLIMIT_NOFILE)[1] != 5000:
                resource.setrlimit(resource.RLIMIT_NOFILE, (500, 4000))
        except (OSError, ValueError):
            os._exit(77)
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    return become


def asked(words, settle, ok):
    """A command of the user."""
    return hdcr(*words, ok=ok, preexec_fn=becomes(settle), env={**os.environ, "HOME": os.path.abspath("theirs"),
                "HDCR_STORE": os.path.abspath("theirs/store"), "XDG_RUNTIME_DIR": os.path.abspath("theirs")})


lacking = []
for code, word, has, less, enough, says in VALUES:
    shutil.rmtree("theirs", ignore_errors=True)
    os.mkdir("theirs")
    write("theirs/data", "")
    for path in ["theirs", "theirs/data"]:
        os.chown(path, USER, USER)
    child = start(program, preexec_fn=becomes(has))
    until(f"{word}", lambda: os.path.exists("theirs/ready") or child.poll() is not None)
    if child.poll() == 77:
        lacking.append(word)
        continue
    must(child.poll() is None, f"{word}: ended: {read('result')}")
    hdcr("checkpoint", child.pid, "-o", "theirs/image", "--kill")
    child.wait()
    os.chown("theirs/image", USER, USER)
    write("theirs/data", "of later")
    os.chown("theirs/data", USER, USER)
    write("theirs/go", "")
    for words in [["check", "./theirs/image"], ["restore", "./theirs/image"], ["restore", "./theirs/image", "--new-pids", "--detach"]]:
        text = asked(words, less, False)
        must(f"[{code}]" in text and word in text, f"{word}: not refused rightly: {text}")
    must(text.count("[") == 2, f"{word}: something else was refused: {text}")
    must(not os.path.exists("theirs/result") and read("theirs/data") == "of later" and not below(os.getpid()), f"{word}: something was touched")
    # Root may, and so may a user who is allowed it.
    for who in ["root", "user"]:
        if who == "root":
            hdcr("check", "./theirs/image")
            hdcr("restore", "./theirs/image", "--trust-store")
        elif enough and subprocess.run(["true"], preexec_fn=becomes(enough), check=False).returncode == 0:
            asked(["check", "./theirs/image"], enough, True)
            asked(["restore", "./theirs/image"], enough, True)
        else:
            continue
        must(read("theirs/result") == says, f"{word}, {who}: {read('theirs/result')}, not {says}")
        must(read("theirs/data") == "old", f"{word}, {who}: the file was not rolled back")
        os.remove("theirs/result")
print("this machine does not have: " + (", ".join(lacking) or "nothing"))
must(len(lacking) < len(VALUES), "nothing could be tried")
