// Programs in states that a freeze must cope with. "scenes NAME": says "ready ..." when it is in the state, then waits
// for a line on stdin, checks itself and says "ok" or what is wrong.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/seccomp.h>
#include <time.h>
#include <unistd.h>

static volatile int caught[65];
static void handler(int n) { __sync_fetch_and_add(&caught[n], 1); }
static void say(const char *s) { if (write(1, s, strlen(s)) < 0) _exit(8); }
static void line(void) { char c = 0; while (read(0, &c, 1) == 1 && c != '\n'); if (c != '\n') _exit(7); }
static void check(int ok, const char *what) { if (!ok) { say(what); say("\n"); _exit(3); } }
static void catch(int n) { struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART}; sigaction(n, &a, NULL); }
static void *sleeper(void *a) { for (;;) pause(); return a; }
static void ready(void) { char t[64]; snprintf(t, sizeof t, "ready %d\n", getpid()); say(t); }

static void pending(void) {
    sigset_t set, all;
    union sigval v;
    siginfo_t info;
    struct timespec none = {0, 0};
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    catch(SIGUSR2);
    raise(SIGUSR1);
    v.sival_int = 7, sigqueue(getpid(), SIGRTMIN, v);
    v.sival_int = 8, sigqueue(getpid(), SIGRTMIN, v);
    ready();
    line();
    sigprocmask(SIG_BLOCK, NULL, &all);
    check(sigismember(&all, SIGUSR1) && sigismember(&all, SIGRTMIN) && !sigismember(&all, SIGUSR2), "mask");
    check(caught[SIGUSR2] == 1, "SIGUSR2");
    check(sigtimedwait(&set, &info, &none) == SIGUSR1, "SIGUSR1");
    check(sigtimedwait(&set, &info, &none) == SIGRTMIN && info.si_value.sival_int == 7, "first RT");
    check(sigtimedwait(&set, &info, &none) == SIGRTMIN && info.si_value.sival_int == 8, "second RT");
    check(sigtimedwait(&set, &info, &none) == -1, "one too many");
}

static void tree(void) {
    pthread_t t;
    int made[2];
    char one;
    if (pipe(made)) _exit(9);
    pthread_create(&t, NULL, sleeper, NULL);
    for (int i = 0; i < 2; i++)
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            pthread_create(&t, NULL, sleeper, NULL);
            if (i == 0 && write(made[1], "", 1) != 1) _exit(9);
            if (i == 1 && fork() == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                if (read(made[0], &one, 1) == 1) ready();
                sleeper(NULL);
            }
            sleeper(NULL);
        }
    line();
}

static void stopped(void) {
    setpgid(0, 0);
    ready();
    kill(getpid(), SIGTSTP);
    line();
}

static void vforks(void) {
    struct timespec t = {0, 2000000};
    ready();
    for (int n = 0;; n++) {
        pid_t pid = vfork();
        if (pid == 0) { syscall(SYS_nanosleep, &t, NULL); _exit(5); }
        int status;
        check(waitpid(pid, &status, 0) == pid && status == 5 << 8, "vfork child");
    }
}

static void *spin(void *a) {
    for (;;) *(volatile long *)a += 1;
}

static void vfork_waits(void) {
    static long turns;
    pthread_t thread;
    pthread_create(&thread, NULL, spin, &turns);
    if (vfork() == 0) { say("ready 1\n"); char c; if (read(0, &c, 1) != 1) _exit(1); _exit(0); }
}

static void zombie(void) {
    if (fork() == 0) _exit(4);
    siginfo_t i;
    waitid(P_ALL, 0, &i, WEXITED | WNOWAIT);
    ready();
    line();
    int status;
    check(wait(&status) > 0 && status == 4 << 8, "zombie");
}

static void *survivor(void *a) {
    struct timespec t = {0, 100000};
    char p[64], s[256];
    snprintf(p, sizeof p, "/proc/self/task/%d/stat", getpid());
    for (;;) {
        FILE *f = fopen(p, "r");
        if (f && fgets(s, sizeof s, f) && strstr(s, ") Z")) break;
        if (f) fclose(f);
        nanosleep(&t, NULL);
    }
    ready();
    line();
    say("ok\n");
    _exit(0);
    return a;
}

static void dead_leader(void) {
    pthread_t t;
    pthread_create(&t, NULL, survivor, NULL);
    syscall(SYS_exit, 0);
}

static void catches_all(void) {
    for (int i = 1; i < 65; i++) if (i != SIGKILL && i != SIGSTOP && i != 32 && i != 33) catch(i);
    ready();
    line();
    for (int i = 1; i < 65; i++) check(caught[i] == 0, "a handler ran");
}

static void blocks_all(void) {
    sigset_t all, left;
    siginfo_t info;
    struct timespec none = {0, 0};
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    if (fork() == 0) { prctl(PR_SET_PDEATHSIG, SIGKILL); sleeper(NULL); }
    ready();
    line();
    struct timespec t = {10, 0};
    for (int i = 0, seen[2] = {SIGCHLD, SIGURG}; i < 2; i++) {
        sigemptyset(&left);
        sigaddset(&left, seen[i]);
        check(sigtimedwait(&left, &info, &t) == seen[i], seen[i] == SIGCHLD ? "SIGCHLD" : "SIGURG");
    }
    check(sigtimedwait(&all, &info, &none) == -1, "one too many");
}

// Works in an rseq critical section for ever; every stop in it must lead to the abort handler. The line says how many
// stops there were.
static volatile int aborts, enough, started;
extern char abort_handler[];
static void *in_section(void *a) {
    extern const ptrdiff_t __rseq_offset;
    uint64_t *section = (uint64_t *)((char *)__builtin_thread_pointer() + __rseq_offset + 8);
    started = 1; // Registered by glibc before this function.
    while (!enough) {
        int aborted;
        __asm__ volatile(
            ".pushsection __rseq_cs,\"aw\"\n .balign 32\n 3: .long 0, 0\n .quad 1f, 2f - 1f, abort_handler\n .popsection\n"
            "lea 3b(%%rip), %%rax\n mov %%rax, %1\n"
            "1: mov $1000000, %%ecx\n 5: dec %%ecx\n jnz 5b\n 2: xor %%eax, %%eax\n jmp 6f\n"
            ".byte 0x0f, 0xb9, 0x3d\n .long 0x53053053\n .globl abort_handler\n abort_handler: mov $1, %%eax\n 6: mov %%eax, %0\n"
            : "=m"(aborted), "=m"(*section) : : "rax", "rcx", "memory", "cc");
        aborts += aborted;
    }
    return a;
}

static void rseq(void) {
    pthread_t t;
    int stops;
    char text[64];
    pthread_create(&t, NULL, in_section, NULL);
    while (!started) sched_yield();
    snprintf(text, sizeof text, "ready %d\n", (int)(long)abort_handler);
    say(text);
    check(scanf("%d", &stops) == 1, "line");
    enough = 1;
    pthread_join(t, NULL);
    check(stops > 0, "never stopped in it");
    check(aborts >= stops, "an abort was lost");
}

static void filtered(void) {
    ready();
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
    line();
    say("ok\n");
    syscall(SYS_exit, 0);
}

static void *chain(void *a) {
    pthread_t t;
    pthread_attr_t d;
    pthread_attr_init(&d);
    pthread_attr_setdetachstate(&d, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&d, 32768);
    while (pthread_create(&t, &d, chain, NULL)) sched_yield();
    return a;
}

static void threads_storm(void) {
    for (int i = 0; i < 8; i++) chain(NULL);
    ready();
    line();
}

// A chain of processes, each born of the one before, which exits at once. It ends by itself: when its time is over, when
// there were too many, or when the first process is gone.
static void forks_storm(void) {
    pid_t top = getpid();
    struct timespec pace = {0, 200000};
    volatile int *links = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    time_t end = time(NULL) + 10;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    signal(SIGCHLD, SIG_IGN);
    for (int i = 0; i < 2; i++)
        if (fork() == 0)
            for (;;) {
                nanosleep(&pace, NULL);
                if (__sync_fetch_and_add(links, 1) > 5000 || time(NULL) > end || kill(top, 0) || fork() != 0) _exit(0);
            }
    ready();
    line();
    *links = 1 << 20;
}

static int one_more(void) {
    int again = getenv("AGAIN") ? atoi(getenv("AGAIN")) : 0;
    char number[16];
    if (!again) ready();
    if (again > 20000) return 0;
    snprintf(number, sizeof number, "%d", again + 1);
    setenv("AGAIN", number, 1);
    return 1;
}

static void *execs_again(void *self) {
    execl(self, self, "thread_execs_storm", NULL);
    return NULL;
}

/* Each new image is asked for by another thread than the first, which it replaces. */
static void thread_execs_storm(char *self) {
    pthread_t t;
    if (!one_more()) return;
    pthread_create(&t, NULL, execs_again, self);
    pthread_join(t, NULL);
}

static void execs_storm(const char *self) {
    pthread_t t;
    if (!one_more()) return;
    for (int i = 0; i < 3; i++) pthread_create(&t, NULL, sleeper, NULL);
    execl(self, self, "execs_storm", NULL);
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!strcmp(name, "pending")) pending();
    else if (!strcmp(name, "tree")) tree();
    else if (!strcmp(name, "stopped")) stopped();
    else if (!strcmp(name, "vforks")) vforks();
    else if (!strcmp(name, "vfork_waits")) vfork_waits();
    else if (!strcmp(name, "zombie")) zombie();
    else if (!strcmp(name, "dead_leader")) dead_leader();
    else if (!strcmp(name, "catches_all")) catches_all();
    else if (!strcmp(name, "blocks_all")) blocks_all();
    else if (!strcmp(name, "rseq")) rseq();
    else if (!strcmp(name, "filtered")) filtered();
    else if (!strcmp(name, "threads_storm")) threads_storm();
    else if (!strcmp(name, "forks_storm")) forks_storm();
    else if (!strcmp(name, "execs_storm")) execs_storm(argv[0]);
    else if (!strcmp(name, "thread_execs_storm")) thread_execs_storm(argv[0]);
    else return 9;
    say("ok\n");
    return 0;
}
