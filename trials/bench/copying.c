// What a checkpoint cannot do without: another process's memory read while that process works, and a file written over.
// usage: copying FILE
// Prints lines "read GIB_PER_S", "over GIB_PER_S" and "both GIB_PER_S": the last reads all and writes half of it, by one thread.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SIZE (256UL << 20)
#define PIECE (1UL << 20)
#define ROUNDS 5

static char *memory, *buffer;
static int file;
static pid_t worker;

static void must(int fine, const char *what)
{
	if (fine)
		return;
	perror(what);
	if (worker > 0)
		kill(worker, SIGKILL);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* Works on its memory until it is killed, in a session of its own as a job's program does. */
static void work(int said)
{
	uint64_t at = 1;

	setsid();
	for (size_t i = 0; i < SIZE; i += 8)
		*(uint64_t *)(memory + i) = at += 0x9e3779b97f4a7c15;
	must(write(said, "r", 1) == 1, "write");
	for (;;) {
		at = at * 6364136223846793005 + 1442695040888963407;
		memory[at % SIZE] ^= 1;
		for (volatile int i = 0; i < 20000; i++) /* some 50 MiB of pages a second */
			;
	}
}

static void take(size_t at)
{
	struct iovec here = { buffer, PIECE }, there = { memory + at, PIECE };

	must(process_vm_readv(worker, &here, 1, &there, 1, 0) == PIECE, "process_vm_readv");
}

static void give(size_t at, size_t len)
{
	must(pwrite(file, buffer, len, at) == (ssize_t)len, "pwrite");
}

static int larger(const void *a, const void *b)
{
	return *(const double *)a > *(const double *)b ? 1 : -1;
}

/* The median of some rounds, in GiB of memory a second. */
static void tell(const char *what, int reads, size_t written)
{
	double all[ROUNDS];

	for (int round = 0; round < ROUNDS; round++) {
		double began = now();

		for (size_t at = 0; at < SIZE; at += PIECE) {
			if (reads)
				take(at);
			if (written)
				give(at, written);
		}
		all[round] = now() - began;
	}
	qsort(all, ROUNDS, sizeof *all, larger);
	printf("%s %f\n", what, SIZE / 1073741824.0 / all[ROUNDS / 2]);
}

int main(int argc, char **argv)
{
	int said[2];
	char byte;

	must(argc == 2, "usage: copying FILE");
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	buffer = malloc(PIECE);
	must(memory != MAP_FAILED && buffer, "memory");
	madvise(memory, SIZE, MADV_NOHUGEPAGE);
	memset(buffer, 1, PIECE);
	must(pipe(said) == 0, "pipe");
	worker = fork();
	must(worker >= 0, "fork");
	if (worker == 0)
		work(said[1]);
	must(read(said[0], &byte, 1) == 1, "read");
	file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	must(file >= 0, argv[1]);
	for (size_t at = 0; at < SIZE; at += PIECE)
		give(at, PIECE);
	tell("read", 1, 0);
	tell("over", 0, PIECE);
	tell("both", 1, PIECE / 2);
	kill(worker, SIGKILL);
	waitpid(worker, NULL, 0);
	return unlink(argv[1]) != 0;
}
