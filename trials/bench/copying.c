// What a checkpoint cannot do without: another process's memory read while that process works, and a file written over.
// And a restore: fresh memory filled from a file by two threads, while nothing else works.
// usage: copying FILE
// Prints lines "read GIB_PER_S", "over GIB_PER_S" and "both GIB_PER_S": the last reads all and writes half of it, by one thread.
// Then "huge GIB_PER_S", into huge pages, and "small GIB_PER_S", into pages of 4 KiB by UFFDIO_COPY.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SIZE (256UL << 20)
#define PIECE (1UL << 20)
#define ROUNDS 5
/* What is filled; the file is read several times for it. */
#define FILLED (1UL << 30)
#define THREADS 2
#define FRESH_ROUNDS 3
/* Seconds: the host of a guest may take back memory that has been free for some time, as it is before a restore. */
#define IDLE 3

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

/* Fresh memory, and where its pages come by: -1 for huge pages, which come as it is written. */
static char *fresh;
static int faults;

/* One half of it: two threads in one huge page would both get a whole one. */
static void *fill(void *which)
{
	char *piece = malloc(PIECE);
	size_t start = (size_t)which * (FILLED / THREADS);

	must(piece != NULL, "memory");
	for (size_t at = start; at < start + FILLED / THREADS; at += PIECE) {
		char *into = faults < 0 ? fresh + at : piece;

		must(pread(file, into, PIECE, at % SIZE) == PIECE, "pread");
		if (faults >= 0) {
			struct uffdio_copy copy = { (uintptr_t)fresh + at, (uintptr_t)piece, PIECE, 0, 0 };

			must(ioctl(faults, UFFDIO_COPY, &copy) == 0, "UFFDIO_COPY");
		}
	}
	free(piece);
	return NULL;
}

static void take_part(void)
{
	struct uffdio_api api = { UFFD_API, 0, 0 };
	struct uffdio_register all = { { (uintptr_t)fresh, FILLED }, UFFDIO_REGISTER_MODE_MISSING, 0 };

	faults = syscall(SYS_userfaultfd, O_CLOEXEC);
	must(faults >= 0, "userfaultfd");
	must(ioctl(faults, UFFDIO_API, &api) == 0, "UFFDIO_API");
	must(ioctl(faults, UFFDIO_REGISTER, &all) == 0, "UFFDIO_REGISTER");
}

/* The same for fresh memory, by threads. */
static void tell_of_fresh(const char *what, int huge)
{
	double all[FRESH_ROUNDS];

	for (int round = 0; round < FRESH_ROUNDS; round++) {
		pthread_t threads[THREADS];
		/* Room for a whole number of huge pages. */
		char *room = mmap(NULL, FILLED + (2UL << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		double began;

		must(room != MAP_FAILED, "mmap");
		fresh = (char *)(((uintptr_t)room + (2UL << 20) - 1) & -(2UL << 20));
		madvise(fresh, FILLED, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		faults = -1;
		if (!huge)
			take_part();
		sleep(IDLE);
		began = now();
		for (size_t i = 0; i < THREADS; i++)
			must(pthread_create(&threads[i], NULL, fill, (void *)i) == 0, "pthread_create");
		for (size_t i = 0; i < THREADS; i++)
			pthread_join(threads[i], NULL);
		all[round] = now() - began;
		if (!huge)
			close(faults);
		munmap(room, FILLED + (2UL << 20));
	}
	qsort(all, FRESH_ROUNDS, sizeof *all, larger);
	printf("%s %f\n", what, FILLED / 1073741824.0 / all[FRESH_ROUNDS / 2]);
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
	worker = 0;
	tell_of_fresh("huge", 1);
	tell_of_fresh("small", 0);
	return unlink(argv[1]) != 0;
}
