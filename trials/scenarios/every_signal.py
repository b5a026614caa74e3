"""Every signal number has a handler, is blocked and waits: all come after the restore, none of ours is lost or seen."""
from scenario import *

program = compile_c("signals", r"""
static volatile int seen[65], value[65];
static void on(int s, siginfo_t *i, void *c) { (void)c; seen[s]++; value[s] = i->si_value.sival_int; }
struct action { void *handler; unsigned long flags; void *restorer; unsigned long mask; };
static int skip(int s) { return s == SIGKILL || s == SIGSTOP; }
int main(int n, char **v) {
    (void)v;
    unsigned long all = ~0UL;
    struct sigaction like;
    /* 32 and 33 belong to the C library, which does not hand them out: the kernel's call with its own restorer. */
    struct action a = {0}, old;
    memset(&like, 0, sizeof like);
    like.sa_sigaction = on;
    like.sa_flags = SA_SIGINFO;
    MUST(!sigaction(SIGUSR1, &like, 0) && !syscall(SYS_rt_sigaction, SIGUSR1, 0, &a, 8));
    for (int s = 1; s <= 64; s++) if (!skip(s)) MUST(!syscall(SYS_rt_sigaction, s, &a, &old, 8));
    MUST(!syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, 0, 8));
    for (int s = 1; s <= 64; s++) {
        siginfo_t i = {.si_signo = s, .si_code = SI_QUEUE, .si_pid = getpid()};
        i.si_value.sival_int = 1000 + s;
        if (!skip(s) && (s != SIGWINCH || n > 1)) MUST(!syscall(SYS_rt_sigqueueinfo, getpid(), s, &i));
    }
    say("ready", "");
    until("go");
    for (int s = 1; s <= 64; s++) MUST(skip(s) || !seen[s]);
    unsigned long none = 0;
    MUST(!syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, 8));
    for (int s = 1; s <= 64; s++) {
        char text[64];
        snprintf(text, sizeof text, "signal %d seen %d times with %d", s, seen[s], value[s]);
        /* SIGCONT takes away what asks to stop, and the other way round: as without a checkpoint. */
        if (!skip(s) && (s != SIGWINCH || n > 1) && s != SIGTSTP && s != SIGTTIN && s != SIGTTOU && s != SIGCONT)
            if (seen[s] != 1 || value[s] != 1000 + s) { say("result", text); return 1; }
    }
    for (int s = 1; s <= 64; s++) {
        if (skip(s)) continue;
        int before = seen[s];
        MUST(!syscall(SYS_tgkill, getpid(), getpid(), s));
        MUST(seen[s] == before + 1);
    }
    say("result", "right");
    return 0;
}
""")
child = start(program)
ready()
hdcr("checkpoint", child.pid, "-o", "running")
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
restore("image")
must(result() == "right", read("result"))
gone(child.pid)
for name in ["ready", "go", "result"]:
    os.remove(name)
# With every number waiting there is none left by which the mechanism could meet the program: refused, nothing harmed.
child = start(program, "all")
ready()
text = hdcr("checkpoint", child.pid, "-o", "none", ok=False)
must("signal" in text and not os.path.exists("none"), f"not refused by name: {text}")
must(result() == "right", read("result"))
