// Scheduling: policies with their parameters, deadlines, clamps, reset-on-fork, nice, of the session too, I/O priority, oom_score_adj, affinity.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <sys/resource.h>

struct attr {
	uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; uint32_t min, max;
};

enum { DEADLINE = 5, CLAMPED, COUNT };

static pid_t child[COUNT];
static char group[64];

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
	/* One with a deadline must be allowed everywhere. */
	if (i != DEADLINE)
		SYS(sched_setaffinity(0, sizeof cpus, &cpus));
	SYS(syscall(SYS_ioprio_set, 1, 0, (1 + i % 3) << 13 | (i % 3 == 2 ? 0 : i)));
	adjust("/proc/self/oom_score_adj", i == 0 ? "0" : "300");
	adjust("/proc/self/coredump_filter", i == 1 ? "0x7f" : "0x23");
	static const int policies[COUNT] = { SCHED_OTHER, SCHED_BATCH, SCHED_IDLE, SCHED_FIFO, SCHED_RR, 6 /* SCHED_DEADLINE */, SCHED_OTHER };
	a.policy = policies[i];
	a.nice = i < 3 ? 5 + i : 0;
	a.priority = i == 3 || i == 4 ? 7 + i : 0;
	a.flags = i % 2;	/* reset on fork */
	if (i == DEADLINE)
		a.runtime = 3000000, a.deadline = 50000000, a.period = 70000000;
	if (i == CLAMPED)
		a.flags = 0x60 /* both clamps */, a.min = 100, a.max = 800;
	/* A real-time policy may be out of bounds for this user or its group, and a kernel without clamps: then nothing is shown of it. */
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

/* The nice value of the session, as the kernel shows it. */
static const char *autogroup(void)
{
	static char text[64];
	int fd = open("/proc/self/autogroup", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);

	close(fd);
	text[n > 0 ? n : 0] = 0;
	return strstr(text, " nice ") ? strstr(text, " nice ") : "";
}

static void prepare(int round)
{
	if (round == 1 && *autogroup()) {
		adjust("/proc/self/autogroup", "7");
		strcpy(group, autogroup());
		CHECK(strcmp(group, " nice 7\n") == 0, "the session has%s", group);
	}
	for (int i = 0; i < COUNT && round == 1; i++) {
		child[i] = SYS(fork());
		if (child[i] == 0)
			live(i);
		zoo_await("up", i);
	}
}

static void check(int round)
{
	CHECK(strcmp(group, autogroup()) == 0, "the session has%s, not%s", autogroup(), group);
	for (int i = 0; i < COUNT && round == zoo_rounds; i++)
		zoo_reap(child[i], (20 + i) << 8);
}
