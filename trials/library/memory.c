// Memory that is left out, in part and for a while, and secrets: zeros after each way back, and only there.
#define _GNU_SOURCE
#include <hdcr.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) \
	do { \
		if (!(what)) { \
			printf("line %d: not %s\n", __LINE__, #what); \
			fflush(stdout); \
			_exit(1); \
		} \
	} while (0)

#define MIB (1UL << 20)

static unsigned char *some(size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(at != MAP_FAILED);
	return at;
}

/* What no compression makes smaller. */
static void fill(unsigned char *at, size_t size, unsigned long seed)
{
	unsigned long *words = (unsigned long *)at;
	for (size_t n = 0; n < size / sizeof(*words); n++) {
		seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
		words[n] = seed;
	}
}

static int is(const unsigned char *at, size_t size, unsigned long seed)
{
	unsigned char *same = some(size);
	fill(same, size, seed);
	int equal = memcmp(at, same, size) == 0;
	munmap(same, size);
	return equal;
}

static int zero(const unsigned char *at, size_t size)
{
	for (size_t n = 0; n < size; n++)
		if (at[n])
			return 0;
	return 1;
}

int main(int count, char **words)
{
	struct hdcr_report report = HDCR_REPORT;
	CHECK(count == 2);
	const unsigned long marked = strtoul(words[1], NULL, 16);
	unsigned char *kept = some(24 * MIB), *scratch = some(8 * MIB), *mixed = some(4 * MIB), *own = some(MIB);
	unsigned char *hole = mixed + MIB, *secret = some(MIB);
	void *others = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(hdcr_exclude(others, MIB, &report) == -1 && strcmp(report.code, "not-private") == 0);
	CHECK(hdcr_exclude(scratch + 1, 4096, &report) == -1 && strcmp(report.code, "no-page") == 0);
	CHECK(hdcr_exclude(scratch, 8 * MIB, NULL) == 0 && hdcr_exclude(hole, MIB, NULL) == 0);
	CHECK(hdcr_secret(secret, MIB, NULL) == 0);
	fill(kept, 24 * MIB, 1), fill(scratch, 8 * MIB, 2), fill(mixed, 4 * MIB, 3), fill(secret, MIB, marked), fill(own, MIB, 5);
	int ways[2];
	CHECK(pipe(ways) == 0);
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		char word;
		close(ways[1]);
		CHECK(read(ways[0], &word, 1) == 0);
		/* It asked for nothing, so all of its copy is kept but for what it never had. */
		CHECK(is(kept, 24 * MIB, 1) && is(scratch, 8 * MIB, 2) && zero(secret, MIB));
		_exit(7);
	}
	close(ways[0]);
	int branch = hdcr_checkpoint(NULL, &report);
	if (branch == HDCR_CONTINUED) {
		CHECK(is(scratch, 8 * MIB, 2) && !zero(secret, MIB));
		hdcr_rollback(0, NULL);
	}
	CHECK(branch == HDCR_RESTORED && report.count == 1);
	CHECK(is(kept, 24 * MIB, 1) && zero(scratch, 8 * MIB) && zero(secret, MIB) && is(own, MIB, 5));
	unsigned char *whole = some(4 * MIB);
	fill(whole, 4 * MIB, 3);
	CHECK(memcmp(mixed, whole, MIB) == 0 && zero(hole, MIB));
	CHECK(memcmp(hole + MIB, whole + 2 * MIB, 2 * MIB) == 0);
	/* Once more, with other contents; one part is kept from now on, and another one no more. */
	CHECK(hdcr_include(hole, MIB, NULL) == 0 && hdcr_exclude(own, MIB, NULL) == 0);
	fill(scratch, 8 * MIB, 6), fill(hole, MIB, 7), fill(kept + MIB, MIB, 8), fill(secret, MIB, marked);
	branch = hdcr_checkpoint(NULL, &report);
	if (branch == HDCR_CONTINUED)
		hdcr_rollback(0, NULL);
	CHECK(branch == HDCR_RESTORED && report.count == 2);
	CHECK(is(kept, MIB, 1) && is(kept + MIB, MIB, 8) && is(hole, MIB, 7));
	CHECK(zero(scratch, 8 * MIB) && zero(secret, MIB) && zero(own, MIB));
	int status;
	close(ways[1]);
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
	printf("done\n");
	return 0;
}
