// A guest that checks itself at every turn: `guest THREADS CHILDREN DIR`.
// Its board lies at one fixed address, so that a watcher can read it in /proc/PID/mem before and after a restore.
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
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { LANES = 1024, BLOCK = 256 * 1024 };
#define PLACE ((void *)0x6f0000000000ull)
#define MAGIC 0x6864637266617565ull

struct lane { volatile uint64_t turns; char rest[56]; };
static struct board {
    uint64_t magic, lanes;
    volatile uint64_t errors;
    char text[104];
    struct lane lane[LANES];
} *board;

static uint64_t *block, block_sum;
static int log_fd;
static uint64_t log_lines;

static void bad(const char *what, long got) {
    if (__sync_fetch_and_add(&board->errors, 1) == 0)
        snprintf(board->text, sizeof board->text, "pid %d: %s got %ld errno %d", getpid(), what, got, errno);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

// Holds a pattern in general and vector registers and the red zone for a while.
static long spin(uint64_t seed) {
    uint64_t wrong = 0, vec[2] = {seed, ~seed}, out[2] = {0};
    __asm__ volatile("movdqu %0, %%xmm7" : : "m"(vec) : "xmm7");
    __asm__ volatile(
        "push %%rbp\n mov %1, %%rax\n mov %%rax,-24(%%rsp)\n"
        "lea 1(%%rax),%%rbx\n lea 2(%%rax),%%rdx\n lea 3(%%rax),%%r8\n lea 4(%%rax),%%r12\n lea 5(%%rax),%%rbp\n"
        "lea 6(%%rax),%%r11\n mov $20000,%%ecx\n"
        "1: dec %%ecx\n jnz 1b\n"
        "cmp %%rax,-24(%%rsp)\n jne 8f\n"
        "sub %%rax,%%rbx\n cmp $1,%%rbx\n jne 8f\n sub %%rax,%%rdx\n cmp $2,%%rdx\n jne 8f\n"
        "sub %%rax,%%r8\n cmp $3,%%r8\n jne 8f\n sub %%rax,%%r12\n cmp $4,%%r12\n jne 8f\n"
        "sub %%rax,%%r11\n cmp $6,%%r11\n jne 8f\n sub %%rax,%%rbp\n cmp $5,%%rbp\n jne 8f\n"
        "pop %%rbp\n xor %%eax,%%eax\n jmp 9f\n"
        "8: pop %%rbp\n mov $1,%%eax\n"
        "9: mov %%rax,%0\n"
        : "=m"(wrong) : "r"(seed)
        : "rax", "rbx", "rcx", "rdx", "r8", "r11", "r12", "memory", "cc");
    __asm__ volatile("movdqu %%xmm7, %0" : "=m"(out));
    if (memcmp(vec, out, sizeof vec)) wrong |= 2;
    return (long)wrong;
}

static uint64_t sum_of_block(void) {
    uint64_t sum = 0;
    for (size_t i = 0; i < BLOCK / 8; i++) sum = (sum << 7 | sum >> 57) ^ block[i];
    return sum;
}

// A file that only grows, and whose length the memory knows: both must roll back together.
static void write_log(void) {
    char line[32], back[32];
    int n = snprintf(line, sizeof line, "%015llu\n", (unsigned long long)log_lines);
    if (write(log_fd, line, (size_t)n) != n) bad("write", n);
    log_lines++;
    if (lseek(log_fd, 0, SEEK_END) != (off_t)(log_lines * 16)) bad("length of the log", lseek(log_fd, 0, SEEK_END));
    if (pread(log_fd, back, 16, (off_t)(log_lines - 1) * 16) != 16 || memcmp(line, back, 16)) bad("the log", 0);
}

static void turn(int kind, struct lane *lane, int *pipes) {
    static volatile uint32_t word;
    struct timespec short_time = {0, 1500000};
    uint64_t start = now(), got = 0;
    long n;
    switch (kind) {
    case 0:
        if (sum_of_block() != block_sum) bad("digest of the block", 0);
        if (nanosleep(&short_time, NULL)) bad("nanosleep", errno);
        break;
    case 1:
        if ((n = spin(start))) bad("registers", n);
        if (poll(NULL, 0, 1)) bad("poll", errno);
        if (now() - start < 1000000) bad("a short poll", (long)(now() - start));
        break;
    case 2:
        if (write(pipes[1], &start, 8) != 8 || read(pipes[0], &got, 8) != 8 || got != start) bad("pipe", (long)got);
        if (nanosleep(&short_time, NULL)) bad("nanosleep", errno);
        if (now() - start < 1500000) bad("a short nanosleep", (long)(now() - start));
        break;
    case 3:
        n = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &short_time, NULL, 0);
        if (n != -1 || errno != ETIMEDOUT) bad("futex", n);
        break;
    }
    lane->turns++;
}

static void *work(void *argument) {
    long at = (long)argument;
    sigset_t mine, mask;
    int pipes[2];
    sigemptyset(&mine);
    sigaddset(&mine, SIGRTMIN + (int)(at % 16));
    pthread_sigmask(SIG_SETMASK, &mine, NULL);
    if (pipe2(pipes, O_CLOEXEC)) bad("pipe2", 0);
    for (;;) {
        turn((int)(at % 4), &board->lane[at], pipes);
        if (at == 0) write_log();
        pthread_sigmask(SIG_SETMASK, NULL, &mask);
        if (memcmp(&mask, &mine, 8)) bad("signal mask", *(long *)&mask);
    }
    return NULL;
}

static void fill(void) {
    uint64_t x = 88172645463325252ull;
    block = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < BLOCK / 8; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        block[i] = x;
    }
    block_sum = sum_of_block();
}

int main(int count, char **words) {
    int threads = count > 1 ? atoi(words[1]) : 1, children = count > 2 ? atoi(words[2]) : 0;
    char path[4096];
    if (threads + children > LANES || threads < 1) return 2;
    snprintf(path, sizeof path, "%s/log", count > 3 ? words[3] : ".");
    log_fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    board = mmap(PLACE, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (log_fd < 0 || board != PLACE) return 2;
    fill();
    board->lanes = (uint64_t)(threads + children);
    for (long i = 0; i < children; i++)
        if (fork() == 0) work((void *)(threads + i));
    for (long i = 1; i < threads; i++) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, 64 * 1024);
        if (pthread_create(&thread, &attributes, work, (void *)i)) bad("pthread_create", i);
    }
    board->magic = MAGIC;
    work((void *)0);
}
