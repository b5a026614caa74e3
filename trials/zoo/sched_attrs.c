// Scheduling: policies with their parameters, reset-on-fork, nice, I/O priority, oom_score_adj, affinity.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <sys/resource.h>

struct attr {
	uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; uint32_t min, max;
};

enum { COUNT = 5 };

static pid_t child[COUNT];

static struct attr get(void)
{
	struct attr a;

	memset(&a, 0, sizeof a);
	SYS(syscall(SYS_sched_getattr, 0, &a, sizeof a, 0));
	return a;
}

static void adjust(const char *file, const char *text)
{
	int fd = SYS(open(file, O_WRONLY | O_CLOEXEC));

	SYS(write(fd, text, strlen(text)));
	close(fd);
}

static void settle(int i)
{
	struct attr a = { .size = sizeof a };
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(i % 2 % sysconf(_SC_NPROCESSORS_ONLN), &cpus);
	SYS(sched_setaffinity(0, sizeof cpus, &cpus));
	SYS(syscall(SYS_ioprio_set, 1, 0, (1 + i % 3) << 13 | (i % 3 == 2 ? 0 : i)));
	adjust("/proc/self/oom_score_adj", i == 0 ? "0" : "300");
	adjust("/proc/self/coredump_filter", i == 1 ? "0x7f" : "0x23");
	a.policy = i == 0 ? SCHED_OTHER : i == 1 ? SCHED_BATCH : i == 2 ? SCHED_IDLE : i == 3 ? SCHED_FIFO : SCHED_RR;
	a.nice = i < 3 ? 5 + i : 0;
	a.priority = i < 3 ? 0 : 7 + i;
	a.flags = i % 2;	/* reset on fork */
	/* A real-time policy may be out of bounds for this user or its group: then nothing is shown of it. */
	if (syscall(SYS_sched_setattr, 0, &a, 0) != 0 && i < 3)
		FAIL("sched_setattr of %d", i);
}

static void live(int i)
{
	settle(i);
	struct attr before = get(), now;
	long io = syscall(SYS_ioprio_get, 1, 0);
	cpu_set_t cpus, cpus_now;

	SYS(sched_getaffinity(0, sizeof cpus, &cpus));
	zoo_mark("up", i);
	for (int r = 1; r <= zoo_rounds; r++) {
		zoo_wait(r);
		now = get();
		CHECK(memcmp(&now, &before, sizeof now) == 0, "child %d: policy %u nice %d priority %u flags %lx", i, now.policy,
		      now.nice, now.priority, (long)now.flags);
		EQ(syscall(SYS_ioprio_get, 1, 0), io);
		SYS(sched_getaffinity(0, sizeof cpus_now, &cpus_now));
		CHECK(CPU_EQUAL(&cpus, &cpus_now), "affinity");
	}
	_exit(20 + i);
}

static void prepare(int round)
{
	for (int i = 0; i < COUNT && round == 1; i++) {
		child[i] = SYS(fork());
		if (child[i] == 0)
			live(i);
		zoo_await("up", i);
	}
}

static void check(int round)
{
	for (int i = 0; i < COUNT && round == zoo_rounds; i++)
		zoo_reap(child[i], (20 + i) << 8);
}
