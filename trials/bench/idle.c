// Work of the kinds that tools of this sort are known to slow down, each for so many milliseconds; a line `NAME COUNT` each, with how often it
// was done.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static int up[2], down[2];

static void must(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void memory(void) {
    static void *held[64];
    static unsigned seed = 1;
    for (int i = 0; i < 64; i++) {
        seed = seed * 1103515245 + 12345;
        free(held[i]);
        held[i] = malloc(16 + (seed >> 16) % 4000);
        must(held[i] != NULL, "malloc");
        memset(held[i], 1, 16);
    }
}

static void map(void) {
    char *space = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(space != MAP_FAILED, "mmap");
    for (int i = 0; i < 1 << 20; i += 4096) space[i] = 1;
    must(munmap(space, 1 << 20) == 0, "munmap");
}

static void execute(void) {
    char *words[] = {"/bin/true", NULL};
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0) {
        execv(words[0], words);
        _exit(1);
    }
    int status = 1;
    must(waitpid(pid, &status, 0) == pid && status == 0, "waitpid");
}

static void *nothing(void *argument) { return argument; }

static void thread(void) {
    pthread_t made;
    must(pthread_create(&made, NULL, nothing, NULL) == 0, "pthread_create");
    must(pthread_join(made, NULL) == 0, "pthread_join");
}

static void make(void) {
    int file = open("made.part", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    must(file >= 0 && write(file, "some text\n", 10) == 10, "made.part");
    must(close(file) == 0 && rename("made.part", "made") == 0 && unlink("made") == 0, "made");
}

static void append(void) {
    int file = open("log", O_WRONLY | O_CREAT | O_APPEND, 0644);
    must(file >= 0 && write(file, "some text\n", 10) == 10, "log");
    must(close(file) == 0, "close");
}

static void look(void) {
    int file = open("/etc/passwd", O_RDONLY);
    char text[64];
    must(file >= 0 && read(file, text, sizeof text) > 0, "/etc/passwd");
    must(close(file) == 0, "close");
}

static void talk(void) {
    char byte = 0;
    must(write(down[1], &byte, 1) == 1 && read(up[0], &byte, 1) == 1, "pipe");
}

static void on_signal(int number) { (void)number; }

static void hear(void) { must(raise(SIGUSR1) == 0, "raise"); }

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int count, char **words) {
    double seconds = count > 1 ? atof(words[1]) / 1000 : 0.3;
    must(pipe(up) == 0 && pipe(down) == 0, "pipe");
    pid_t echo = fork();
    must(echo >= 0, "fork");
    if (echo == 0) {
        close(down[1]);
        for (char byte; read(down[0], &byte, 1) == 1;) must(write(up[1], &byte, 1) == 1, "echo");
        _exit(0);
    }
    close(down[0]);
    signal(SIGUSR1, on_signal);
    const struct {
        const char *name;
        void (*work)(void);
    } kinds[] = {{"malloc", memory}, {"mmap", map}, {"fork-exec", execute}, {"thread", thread}, {"file", make},
                 {"append", append}, {"read", look}, {"pipe", talk}, {"signal", hear}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        unsigned long done = 0;
        for (double end = now() + seconds; now() < end; done++) kinds[i].work();
        printf("%s %lu\n", kinds[i].name, done);
    }
    close(down[1]);
    must(waitpid(echo, NULL, 0) == echo, "echo");
    return 0;
}
