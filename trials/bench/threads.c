// What the kernel asks for each thread of a program that is stopped and looked at: THREADS idle ones, ROUNDS times; a line
// `NAME NANOSECONDS` each, for one thread, the median of the rounds. With a third argument the program only has them, and says `ready`.
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { STOP, ONLY_STOP, REGISTERS, SIGNALS, STAT, STATUS, CHILDREN, NAMESPACES, CALL, KINDS };
static const char *names[KINDS] = {"stop-and-go", "stop", "registers", "signals", "stat", "status", "children", "namespaces", "a-call"};
static int threads, rounds;
static pid_t program, *tids;
static double *times[KINDS];

static void must(int good, const char *what) {
    if (good) return;
    perror(what);
    if (program > 0) kill(program, SIGKILL);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void *idle(void *unused) {
    for (;;) pause();
    return unused;
}

static void be_the_program(int ready) {
    pthread_attr_t small;
    pthread_t thread;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (int i = 1; i < threads; i++) must(pthread_create(&thread, &small, idle, NULL) == 0, "pthread_create");
    must(write(ready, "ready\n", 6) == 6, "write");
    idle(NULL);
}

static void stop_all(void) {
    int status;
    for (int i = 0; i < threads; i++) {
        must(ptrace(PTRACE_SEIZE, tids[i], 0, 0) == 0, "PTRACE_SEIZE");
        must(ptrace(PTRACE_INTERRUPT, tids[i], 0, 0) == 0, "PTRACE_INTERRUPT");
    }
    for (int i = 0; i < threads; i++) must(waitpid(tids[i], &status, __WALL) == tids[i] && WIFSTOPPED(status), "waitpid");
}

static void let_all_go(void) {
    for (int i = 0; i < threads; i++) must(ptrace(PTRACE_DETACH, tids[i], 0, 0) == 0, "PTRACE_DETACH");
}

static void registers(pid_t tid) {
    static char state[16384];
    struct user_regs_struct plain;
    struct iovec all = {state, sizeof state}, few = {&plain, sizeof plain};
    must(ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &few) == 0, "PTRACE_GETREGSET");
    must(ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &all) == 0, "PTRACE_GETREGSET");
}

static void signals(pid_t tid) {
    siginfo_t found[16];
    unsigned long mask;
    struct __ptrace_peeksiginfo_args from = {0, 0, 16};
    must(ptrace(PTRACE_GETSIGMASK, tid, sizeof mask, &mask) == 0, "PTRACE_GETSIGMASK");
    must(ptrace(PTRACE_PEEKSIGINFO, tid, &from, found) >= 0, "PTRACE_PEEKSIGINFO");
}

static void proc_file(pid_t tid, const char *name) {
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%d/task/%d/%s", program, tid, name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    must(file >= 0 && read(file, text, sizeof text) >= 0, path);
    close(file);
}

static void namespaces(pid_t tid) {
    static const char *all[] = {"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "user", "uts", "time", "time_for_children"};
    char path[64], link[64];
    snprintf(path, sizeof path, "/proc/%d/task/%d/ns", program, tid);
    int folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) must(readlinkat(folder, all[i], link, sizeof link) > 0, path);
    close(folder);
}

/* Where all make the call in which they sleep: they stand behind it, or before it when it is to be made again. */
static unsigned long long call_at;

static void find_call(pid_t tid) {
    struct user_regs_struct regs;
    struct iovec its = {&regs, sizeof regs};
    must(ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &its) == 0, "PTRACE_GETREGSET");
    for (int behind = 0; behind <= 2; behind += 2)
        if ((ptrace(PTRACE_PEEKTEXT, tid, regs.rip - behind, 0) & 0xffff) == 0x050f) call_at = regs.rip - behind;
    must(call_at != 0, "no system call");
}

/* One system call of the thread itself. */
static void call(pid_t tid) {
    struct user_regs_struct before, regs;
    struct iovec its = {&before, sizeof before}, new = {&regs, sizeof regs};
    int status;
    must(ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &its) == 0, "PTRACE_GETREGSET");
    regs = before;
    regs.rip = call_at;
    regs.rax = SYS_getpid;
    regs.orig_rax = -1;
    must(ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &new) == 0, "PTRACE_SETREGSET");
    must(ptrace(PTRACE_SINGLESTEP, tid, 0, 0) == 0, "PTRACE_SINGLESTEP");
    must(waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status), "waitpid");
    must(ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &new) == 0, "PTRACE_GETREGSET");
    must(regs.rip == call_at + 2 && regs.rax == (unsigned long)program, "the call");
    must(ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &its) == 0, "PTRACE_SETREGSET");
}

/* A thread that sleeps in the call in which all end up; it may not have come to it yet. */
static void until_asleep(pid_t tid) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/task/%d/syscall", program, tid);
    for (int i = 0; i < 1000000; i++) {
        int file = open(path, O_RDONLY | O_CLOEXEC), number = -1;
        ssize_t len = file < 0 ? -1 : read(file, text, sizeof text - 1);
        if (file >= 0) close(file);
        if (len > 0 && (text[len] = 0, sscanf(text, "%d", &number) == 1) && number == SYS_pause) return;
        sched_yield();
    }
    must(0, "a thread does not come to rest");
}

static double each(void (*act)(pid_t, const char *), const char *name) {
    double start = now();
    for (int i = 0; i < threads; i++) act(tids[i], name);
    return (now() - start) / threads;
}

static double each_of(void (*act)(pid_t)) {
    double start = now();
    for (int i = 0; i < threads; i++) act(tids[i]);
    return (now() - start) / threads;
}

static void one_round(int round) {
    double start = now();
    stop_all();
    times[ONLY_STOP][round] = (now() - start) / threads;
    times[REGISTERS][round] = each_of(registers);
    times[SIGNALS][round] = each_of(signals);
    times[STAT][round] = each(proc_file, "stat");
    times[STATUS][round] = each(proc_file, "status");
    times[CHILDREN][round] = each(proc_file, "children");
    times[NAMESPACES][round] = each_of(namespaces);
    find_call(tids[0]);
    times[CALL][round] = each_of(call);
    let_all_go();
    start = now();
    stop_all();
    let_all_go();
    times[STOP][round] = (now() - start) / threads;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    char line[8], path[64];
    int ready[2];
    must(argc > 2, "threads.c: THREADS ROUNDS");
    threads = atoi(argv[1]);
    rounds = atoi(argv[2]);
    must(threads > 0 && rounds > 0, "threads.c: THREADS ROUNDS");
    if (argc > 3) be_the_program(1);
    must(pipe(ready) == 0, "pipe");
    program = fork();
    must(program >= 0, "fork");
    if (program == 0) be_the_program(ready[1]);
    must(read(ready[0], line, 6) == 6, "read");
    tids = calloc(threads, sizeof *tids);
    snprintf(path, sizeof path, "/proc/%d/task", program);
    for (int i = 0; i < KINDS; i++) times[i] = calloc(rounds, sizeof **times);
    // Numbers of threads that were made one after the other, as far as nobody else made any: those that are not there are left out.
    int found = 0;
    for (pid_t tid = program; found < threads && tid < program + 100 * threads; tid++) {
        snprintf(path, sizeof path, "/proc/%d/task/%d", program, tid);
        if (access(path, F_OK) == 0) tids[found++] = tid;
    }
    must(found == threads, "numbers of threads that do not follow one another: try again");
    for (int i = 0; i < threads; i++) until_asleep(tids[i]);
    for (int i = 0; i < rounds; i++) one_round(i);
    for (int i = 0; i < KINDS; i++) {
        qsort(times[i], rounds, sizeof **times, by_value);
        printf("%s %.0f\n", names[i], times[i][rounds / 2]);
    }
    kill(program, SIGKILL);
    return 0;
}
