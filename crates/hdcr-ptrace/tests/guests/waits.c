// Waits of 300 ms that any stop ends with EINTR, each to end by its time alone, and by the program's own clock not before.
// "waits KIND": says "ready ...", waits, and says "ok" or what is wrong.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void say(const char *s) { if (write(1, s, strlen(s)) < 0) _exit(8); }
static void line(void) { char c = 0; while (read(0, &c, 1) == 1 && c != '\n'); if (c != '\n') _exit(7); }
static void check(int ok, const char *what) { if (!ok) { say(what); say("\n"); _exit(3); } }
static void ready(void) { char t[64]; snprintf(t, sizeof t, "ready %d\n", getpid()); say(t); }

static struct timespec limit = {0, 300000000};

static long waits_epoll(int ep, int pwait) {
    struct epoll_event e;
    return pwait ? epoll_pwait(ep, &e, 1, 300, NULL) : epoll_wait(ep, &e, 1, 300);
}

static void waits(const char *kind) {
    struct epoll_event e = {.events = EPOLLIN};
    struct timeval tv = {0, 300000};
    struct timespec begin, end;
    struct sembuf op = {.sem_op = -1};
    sigset_t set;
    int pair[2], other[2], sem = -1, ep = epoll_create1(0);
    char byte;
    long got, ended = -1;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || pipe(other)) _exit(9);
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    epoll_ctl(ep, EPOLL_CTL_ADD, other[0], &e);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (!strcmp(kind, "sem")) sem = semget(IPC_PRIVATE, 1, 0600);
    ready();
    clock_gettime(CLOCK_MONOTONIC, &begin);
    errno = EAGAIN;
    if (!strcmp(kind, "epoll")) got = waits_epoll(ep, 0), ended = 0;
    else if (!strcmp(kind, "epoll_pwait")) got = waits_epoll(ep, 1), ended = 0;
    else if (!strcmp(kind, "epoll_pwait2")) got = syscall(441, ep, &e, 1, &limit, NULL, 0L), ended = 0;
    else if (!strcmp(kind, "signal")) got = sigtimedwait(&set, NULL, &limit);
    else if (!strcmp(kind, "sem")) got = semtimedop(sem, &op, 1, &limit);
    else got = recv(pair[0], &byte, 1, 0);
    if (sem >= 0) semctl(sem, 0, IPC_RMID);
    check(got == ended && errno == EAGAIN, "ended otherwise");
    clock_gettime(CLOCK_MONOTONIC, &end);
    check((end.tv_sec - begin.tv_sec) * 1000000000 + end.tv_nsec - begin.tv_nsec >= limit.tv_nsec, "too early");
}

/* A wait that ends at once after a freeze, work without any sleep, and the same wait again: it has its whole time. */
static void waits_anew(void) {
    struct epoll_event e = {.events = EPOLLIN};
    struct timespec begin, end;
    int ep = epoll_create1(0);
    long got, took;
    epoll_ctl(ep, EPOLL_CTL_ADD, 0, &e);
    ready();
    for (int told = 0; told < 2; told += got) {
        clock_gettime(CLOCK_MONOTONIC, &begin);
        got = waits_epoll(ep, 0);
        clock_gettime(CLOCK_MONOTONIC, &end);
        took = (end.tv_sec - begin.tv_sec) * 1000000000 + end.tv_nsec - begin.tv_nsec;
        check(got == 1 || (got == 0 && took >= limit.tv_nsec), "too early");
        if (got == 0 && told) return;
        if (got == 0) continue;
        line();
        do clock_gettime(CLOCK_MONOTONIC, &begin);
        while ((begin.tv_sec - end.tv_sec) * 1000000000 + begin.tv_nsec - end.tv_nsec < 200000000);
    }
    check(0, "told twice");
}

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "";
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!strcmp(kind, "anew")) waits_anew(); else waits(kind);
    say("ok\n");
    return 0;
}
