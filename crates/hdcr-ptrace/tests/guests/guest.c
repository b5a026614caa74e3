// The guest of the trials: a target that checks itself at every turn, and a feeder outside of the scope that wakes it,
// watches its progress and reports it. "guest KINDS": one thread a letter. Commands on stdin: p (has every thread made
// turns since?), q (end; status and errors).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 2048 };
struct lane { volatile uint64_t turns; uint64_t sent; volatile uint32_t word; int pipe[2]; };
static struct shared { volatile int stop; volatile int ready; volatile int errors; char text[256]; struct lane lane[MOST]; } *sh;
static const char *kinds;

static void bad(const char *what, long got) {
    if (__sync_fetch_and_add(&sh->errors, 1) == 0)
        snprintf(sh->text, sizeof sh->text, "%s got %ld errno %d", what, got, errno);
}
static int bare; // Without a vdso (a kind V).
static uint64_t now(void) {
    struct timespec t;
    if (bare) syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t); else clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}
static void unmap_vdso(void) {
    char line[512];
    unsigned long start, end;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        if (strstr(line, "[vdso]") && sscanf(line, "%lx-%lx", &start, &end) == 2 && munmap((void *)start, end - start)) bad("munmap", -1);
    if (maps) fclose(maps);
}

// Fills the registers with a pattern, spins, and looks whether all are as they were.
static int spin(uint64_t seed) {
    uint64_t wrong = 0, vec[4] = {seed, seed ^ 1, seed ^ 2, seed ^ 3}, out[4] = {0};
    int avx = __builtin_cpu_supports("avx");
    if (avx) __asm__ volatile("vmovdqu %0, %%ymm7" : : "m"(vec) : "xmm7");
    __asm__ volatile(
        "push %%rbp\n mov %1, %%rax\n"
        "lea 1(%%rax),%%rbx\n lea 2(%%rax),%%rdx\n lea 3(%%rax),%%rsi\n lea 4(%%rax),%%rdi\n lea 5(%%rax),%%r8\n"
        "lea 6(%%rax),%%r9\n lea 7(%%rax),%%r10\n lea 8(%%rax),%%r12\n lea 9(%%rax),%%r13\n lea 10(%%rax),%%r14\n"
        "lea 11(%%rax),%%r15\n lea 12(%%rax),%%rbp\n lea 13(%%rax),%%r11\n mov $200000,%%ecx\n"
        "mov %%rax,-24(%%rsp)\n"
        "1: stc\n jnc 8f\n dec %%ecx\n jnc 8f\n jnz 1b\n"
        "cmp %%rax,-24(%%rsp)\n jne 8f\n"
        "sub %%rax,%%rbx\n cmp $1,%%rbx\n jne 8f\n sub %%rax,%%rdx\n cmp $2,%%rdx\n jne 8f\n"
        "sub %%rax,%%rsi\n cmp $3,%%rsi\n jne 8f\n sub %%rax,%%rdi\n cmp $4,%%rdi\n jne 8f\n"
        "sub %%rax,%%r8\n cmp $5,%%r8\n jne 8f\n sub %%rax,%%r9\n cmp $6,%%r9\n jne 8f\n"
        "sub %%rax,%%r10\n cmp $7,%%r10\n jne 8f\n sub %%rax,%%r12\n cmp $8,%%r12\n jne 8f\n"
        "sub %%rax,%%r13\n cmp $9,%%r13\n jne 8f\n sub %%rax,%%r14\n cmp $10,%%r14\n jne 8f\n"
        "sub %%rax,%%r15\n cmp $11,%%r15\n jne 8f\n sub %%rax,%%rbp\n cmp $12,%%rbp\n jne 8f\n"
        "sub %%rax,%%r11\n cmp $13,%%r11\n jne 8f\n"
        "pop %%rbp\n xor %%eax,%%eax\n jmp 9f\n"
        "8: pop %%rbp\n mov $1,%%eax\n"
        "9: mov %%rax,%0\n"
        : "=m"(wrong) : "r"(seed) : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    if (avx) { __asm__ volatile("vmovdqu %%ymm7, %0" : "=m"(out) : : ); if (memcmp(vec, out, 32)) wrong |= 2; }
    return wrong;
}

static void take(struct lane *l) {
    uint64_t got = 0;
    long n = read(l->pipe[0], &got, 8);
    if (n != 8 || got != l->turns + 1) bad(n == 8 ? "message out of order" : "read", n == 8 ? (long)got : n);
}

static void turn(char kind, struct lane *l, int ep) {
    struct timespec t = {0, 2000000}, two = {2, 0};
    struct pollfd p = {.fd = l->pipe[0], .events = POLLIN};
    struct epoll_event e;
    uint64_t start = now();
    uint32_t seen = l->word;
    long n;
    switch (kind) {
    case 'V':
    case 's': if ((n = spin(start))) bad("spin", n); break;
    case 'r': take(l); break;
    case 'p': if ((n = poll(&p, 1, -1)) != 1) bad("poll", n); else take(l); break;
    case 'f':
    case 'F':
        n = syscall(SYS_futex, &l->word, FUTEX_WAIT, seen, kind == 'F' ? &two : NULL, NULL, 0);
        if (n == -1 && errno != EAGAIN) bad("futex", n);
        break;
    case 'n':
        if ((n = nanosleep(&t, NULL))) bad("nanosleep", n);
        if (now() - start < 2000000) bad("short nanosleep", now() - start);
        break;
    case 't':
        if ((n = poll(NULL, 0, 4))) bad("poll with time", n);
        if (now() - start < 4000000) bad("short poll", now() - start);
        break;
    case 'e':
    case 'E': // The one window that stays open when a tool dies: between the stop and its repair.
        do n = epoll_wait(ep, &e, 1, -1); while (n == -1 && errno == EINTR && kind == 'E');
        if (n != 1) bad("epoll_wait", n); else take(l);
        break;
    case 'T':
        do n = epoll_wait(ep, &e, 1, 20); while (n == -1 && errno == EINTR);
        if (n) bad("epoll_wait with time", n);
        if (now() - start < 20000000) bad("short epoll_wait", now() - start);
        break;
    case 'N':
        t.tv_nsec = 300000000;
        if ((n = syscall(SYS_nanosleep, &t, NULL))) bad("long nanosleep", n);
        if (now() - start < 300000000) bad("short long nanosleep", now() - start);
        break;
    case 'W':
        t.tv_nsec = 300000000;
        n = syscall(SYS_futex, &l->word, FUTEX_WAIT, seen, &t, NULL, 0);
        if (n != -1 || errno != ETIMEDOUT) bad("long futex", n);
        if (now() - start < 300000000) bad("short long futex", now() - start);
        break;
    case 'C':
        t.tv_nsec = 300000000;
        if ((n = clock_nanosleep(CLOCK_MONOTONIC, 0, &t, &two))) bad("long clock_nanosleep", n);
        if (now() - start < 300000000) bad("short long clock_nanosleep", now() - start);
        break;
    case 'L': if ((n = poll(NULL, 0, 300))) bad("long poll", n); if (now() - start < 300000000) bad("short long poll", now() - start); break;
    }
    l->turns++;
}

static void *work(void *arg) {
    long i = (long)arg;
    struct lane *l = &sh->lane[i];
    int ep = -1;
    sigset_t mask, mine;
    char name[16];
    snprintf(name, sizeof name, "lane-%ld", i);
    prctl(PR_SET_NAME, name);
    sigemptyset(&mine);
    sigaddset(&mine, SIGRTMIN + (int)(i % 16));
    pthread_sigmask(SIG_SETMASK, &mine, NULL);
    if (strchr("eET", kinds[i])) {
        struct epoll_event e = {.events = EPOLLIN};
        ep = epoll_create1(0);
        if (kinds[i] != 'T') epoll_ctl(ep, EPOLL_CTL_ADD, l->pipe[0], &e);
    }
    __sync_fetch_and_add(&sh->ready, 1);
    while (!sh->stop) {
        turn(kinds[i], l, ep);
        pthread_sigmask(SIG_SETMASK, NULL, &mask);
        if (memcmp(&mask, &mine, 8)) bad("signal mask", *(long *)&mask);
    }
    return NULL;
}

static void target(int count) {
    pthread_t t[MOST];
    pthread_attr_t a;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    bare = strchr(kinds, 'V') != NULL;
    if (bare) unmap_vdso();
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 64 * 1024);
    for (long i = 1; i < count; i++)
        if (pthread_create(&t[i], &a, work, (void *)i)) bad("pthread_create", i);
    work((void *)0);
    for (long i = 1; i < count; i++) pthread_join(t[i], NULL);
    exit(sh->errors ? 3 : 0);
}

static void feed(int count) {
    for (int i = 0; i < count; i++) {
        struct lane *l = &sh->lane[i];
        if (strchr("fF", kinds[i])) {
            __sync_fetch_and_add(&l->word, 1);
            syscall(SYS_futex, &l->word, FUTEX_WAKE, 1, NULL, NULL, 0);
        } else if (strchr("rpeE", kinds[i]) && l->sent == l->turns) {
            uint64_t next = ++l->sent;
            if (write(l->pipe[1], &next, 8) != 8) bad("feed", 0);
        }
    }
}

int main(int argc, char **argv) {
    kinds = argc > 1 ? argv[1] : "s";
    int count = strlen(kinds), status = 0;
    signal(SIGPIPE, SIG_IGN);
    sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < count; i++)
        if (strchr("rpeE", kinds[i]) && pipe(sh->lane[i].pipe)) return 9;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pid_t pid = fork();
    if (pid == 0) { close(0); close(1); target(count); }
    while (sh->ready < count) { feed(count); usleep(200); }
    printf("ready %d\n", pid);
    fflush(stdout);
    uint64_t before[MOST];
    for (;;) {
        struct pollfd p = {.fd = 0, .events = POLLIN};
        feed(count);
        if (poll(&p, 1, 1) != 1) continue;
        char c = 'q';
        if (read(0, &c, 1) != 1) c = 'x';
        if (c == '\n') continue;
        if (c == 'p') {
            int stuck = -1;
            uint64_t until = now() + 10000000000ull;
            for (int i = 0; i < count; i++) before[i] = sh->lane[i].turns;
            for (int i = 0; i < count; i++)
                while (sh->lane[i].turns < before[i] + 2 && stuck < 0) {
                    feed(count);
                    usleep(300);
                    if (now() > until || waitpid(pid, &status, WNOHANG) == pid) stuck = i;
                }
            printf("turns stuck %d status %x errors %d %s\n", stuck, status, sh->errors, sh->text);
        } else {
            if (c == 'x') kill(pid, SIGKILL);
            sh->stop = 1;
            pid_t got = 0;
            for (int n = 0; n < 50000 && got == 0; n++) { feed(count); usleep(200); got = waitpid(pid, &status, WNOHANG); }
            if (got == 0) kill(pid, SIGKILL);
            printf("end %d status %x errors %d %s\n", got == pid, status, sh->errors, sh->text);
            return 0;
        }
        fflush(stdout);
    }
}
