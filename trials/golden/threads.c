/* Threads: own storage, masks and names; one in a timed sleep, one in a wait for a lock, one in a read, one with rseq. */
#include "golden.h"

#define SIGNATURE 0x53053053

struct rseq_area {
	uint32_t cpu_start, cpu, section[2], flags, node, mm, padding;
} __attribute__((aligned(32)));

static __thread uint64_t own[8];
static __thread struct rseq_area area;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, robust;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static volatile int waiting, go_on, started;
static volatile long remaining;
static int ends[2];

static void nothing(int signal)
{
	(void)signal;
}

static void begin(const char *name, uint64_t seed)
{
	fill(own, sizeof own, seed);
	prctl(PR_SET_NAME, name);
	__sync_fetch_and_add(&started, 1);
}

static void ended(const char *name, uint64_t seed)
{
	char text[16];
	MUST(filled(own, sizeof own, seed) && prctl(PR_GET_NAME, text) == 0 && strcmp(text, name) == 0);
}

static void *sleeper(void *unused)
{
	struct timespec left = { 0 };
	begin("sleeper", 11);
	MUST(nanosleep(&(struct timespec){ 3600, 0 }, &left) == -1 && errno == EINTR);
	remaining = left.tv_sec;
	ended("sleeper", 11);
	return unused;
}

static void *waiter(void *unused)
{
	begin("waiter", 12);
	MUST(pthread_mutex_lock(&lock) == 0);
	waiting = 1;
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 3600L * 24 * 365 * 100;
	while (!go_on)
		MUST(pthread_cond_timedwait(&condition, &lock, &until) == 0);
	MUST(pthread_mutex_unlock(&lock) == 0);
	ended("waiter", 12);
	return unused;
}

static void *reader(void *unused)
{
	char byte = 0;
	sigset_t set, pending;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	MUST(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0 && pthread_kill(pthread_self(), SIGUSR2) == 0);
	begin("reader", 13);
	MUST(read(ends[0], &byte, 1) == 1 && byte == 'x');
	MUST(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR2));
	ended("reader", 13);
	return unused;
}

static void *holder(void *unused)
{
	MUST(pthread_mutex_lock(&robust) == 0);
	MUST(syscall(SYS_rseq, &area, sizeof area, 0, SIGNATURE) == 0);
	begin("holder", 14);
	while (!go_on)
		poll(NULL, 0, 5);
	MUST(syscall(SYS_rseq, &area, sizeof area, 0, SIGNATURE) == -1 && errno == EBUSY);
	unsigned cpu;
	MUST(syscall(SYS_getcpu, &cpu, NULL, NULL) == 0 && area.cpu < 1u << 16);
	MUST(syscall(SYS_rseq, &area, sizeof area, 1, SIGNATURE) == 0);
	ended("holder", 14);
	/* The lock is still held: its next owner is told. */
	return unused;
}

int main(void)
{
	pthread_t threads[4];
	void *(*bodies[4])(void *) = { sleeper, waiter, reader, holder };
	pthread_mutexattr_t attributes;

	MUST(signal(SIGUSR1, nothing) != SIG_ERR && pipe(ends) == 0);
	pthread_mutexattr_init(&attributes);
	MUST(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0);
	/* Only then musl tells the kernel of it. */
	MUST(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0);
	MUST(pthread_mutex_init(&robust, &attributes) == 0);
	fill(own, sizeof own, 10);
	for (int i = 0; i < 4; i++)
		MUST(pthread_create(&threads[i], NULL, bodies[i], NULL) == 0);
	while (started < 4 || !waiting)
		poll(NULL, 0, 5);
	MUST(pthread_mutex_lock(&lock) == 0 && pthread_mutex_unlock(&lock) == 0);

	until_go();

	MUST(filled(own, sizeof own, 10) && pthread_mutex_trylock(&robust) == EBUSY);
	MUST(pthread_kill(threads[0], SIGUSR1) == 0 && write(ends[1], "x", 1) == 1);
	MUST(pthread_mutex_lock(&lock) == 0);
	go_on = 1;
	MUST(pthread_cond_signal(&condition) == 0 && pthread_mutex_unlock(&lock) == 0);
	for (int i = 0; i < 4; i++)
		MUST(pthread_join(threads[i], NULL) == 0);
	MUST(remaining > 3000 && remaining < 3600);
	MUST(pthread_mutex_lock(&robust) == EOWNERDEAD);
	tell("result", "pass");
	return 0;
}
