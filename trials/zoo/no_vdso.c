// A program without the code that the kernel gives every program, as valgrind starts them.
// The page of its text that calls are made from is a private one afterwards, which the system accounts for ("ac" in maps).
// zoo: rounds=3 volatile=maps/
#include "zoo.h"
#include <sys/time.h>

/* Libc would jump into it. */
int clock_gettime(clockid_t clock, struct timespec *t)
{
	return syscall(SYS_clock_gettime, clock, t);
}

int gettimeofday(struct timeval *restrict t, void *restrict zone)
{
	return syscall(SYS_gettimeofday, t, zone);
}

time_t time(time_t *t)
{
	return syscall(SYS_time, t);
}

static pid_t child;
static volatile int *up;

/* Where a mapping of this name begins, 0: there is none. */
static unsigned long find(const char *name, unsigned long *end)
{
	char line[512];
	unsigned long start = 0;
	FILE *f = fopen("/proc/self/maps", "re");

	while (fgets(line, sizeof line, f))
		if (strstr(line, name))
			sscanf(line, "%lx-%lx", &start, end);
	fclose(f);
	return start;
}

static void *second(void *round)
{
	*up = (int)(long)round;
	zoo_wait((int)(long)round);
	return round;
}

static void prepare(int round)
{
	unsigned long end = 0, start = find("[vdso]", &end);
	pthread_t thread;

	if (round == 1) {
		SYS(munmap((void *)start, end - start));
		up = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		CHECK(up != MAP_FAILED, "shared");
	}
	/* From the second round on, without the data of that code as well. */
	start = find("[vvar]", &end);
	if (round == 2 && start)
		SYS(munmap((void *)start, end - start));
	child = SYS(fork());
	if (child == 0) {
		EQ(pthread_create(&thread, NULL, second, (void *)(long)round), 0);
		EQ(pthread_join(thread, NULL), 0);
		_exit(7);
	}
	while (*up != round)
		zoo_nap(1);
}

static void check(int round)
{
	unsigned long end = 0;

	EQ(find("[vdso]", &end), 0);
	CHECK(time(NULL) > 0, "the time");
	if (round >= 2)
		EQ(find("[vvar]", &end), 0);
	zoo_reap(child, 7 << 8);
}
