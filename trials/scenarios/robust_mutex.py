"""Robust and priority-inheriting mutexes in a shared file, held at the checkpoint: no kill marks them as left behind."""
from scenario import *

program = compile_c("holder", r"""
typedef struct { pthread_mutex_t plain, robust, pi, both; int value; } Shared;
static void make(pthread_mutex_t *m, int robust, int pi) {
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
    if (robust) pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
    if (pi) pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT);
    MUST(!pthread_mutex_init(m, &a));
}
int main(int n, char **v) {
    int fd = open(v[1], O_RDWR | O_CREAT, 0644);
    MUST(fd >= 0 && !ftruncate(fd, 4096));
    Shared *s = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    pthread_mutex_t *all[] = {&s->plain, &s->robust, &s->pi, &s->both};
    for (int i = 0; i < 4; i++) make(all[i], i & 1, i & 2);
    pid_t child = n > 2 ? fork() : 0;
    if (child == 0 && n > 2) {
        until("locked");
        say("waits", "");
        /* Blocks in the kernel until the parent lets go; an owner that died would be told. */
        MUST(pthread_mutex_lock(&s->robust) == 0 && pthread_mutex_lock(&s->both) == 0);
        s->value++;
        pthread_mutex_unlock(&s->both);
        pthread_mutex_unlock(&s->robust);
        _exit(0);
    }
    for (int i = 0; i < 4; i++) MUST(!pthread_mutex_lock(all[i]));
    say("locked", "");
    if (n > 2) until("waits");
    usleep(20000);
    say("ready", "");
    until("go");
    s->value++;
    for (int i = 3; i >= 0; i--) MUST(!pthread_mutex_unlock(all[i]));
    int status = 0;
    if (n > 2) MUST(waitpid(child, &status, 0) == child && status == 0);
    for (int i = 0; i < 4; i++) MUST(!pthread_mutex_lock(all[i]) && !pthread_mutex_unlock(all[i]));
    say("result", s->value == 1 + (n > 2) ? "right" : "wrong value");
    return 0;
}
""")
SHM = f"/dev/shm/hdcr-trouble-{os.getpid()}"
try:
    for where in ["shared", SHM]:
        for how in [[], ["family"]]:
            child = start(program, where, *how)
            ready()
            hdcr("checkpoint", child.pid, "-o", "image")
            for _ in range(2):
                # The waiting child first: it would rightly be told of an owner that died.
                for pid in reversed([child.pid, *below(child.pid)]):
                    os.kill(pid, signal.SIGKILL)
                gone(child.pid)
                until("the family's end", lambda: (reap(), not below(os.getpid()))[1])
                restore("image")
            must(result() == "right", f"{where} {how}: {read('result')}")
            gone(child.pid)
            for name in ["ready", "go", "result", "image", "locked", "waits", where]:
                if os.path.exists(name):
                    os.remove(name)
            child = start(program, where, *how)
            ready()
            hdcr("checkpoint", child.pid, "-o", "image", "--kill")
            gone(child.pid)
            until("the family's end", lambda: (reap(), not below(os.getpid()))[1])
            restore("image")
            must(result() == "right", f"killed by hdcr: {where} {how}: {read('result')}")
            gone(child.pid)
            for name in ["ready", "go", "result", "image", "locked", "waits", where]:
                if os.path.exists(name):
                    os.remove(name)
finally:
    if os.path.exists(SHM):
        os.remove(SHM)
