// Eight threads: TLS, names, affinity, nice, policy, signal masks, alternate stacks, robust lists, join.
// zoo: rounds=3 static=yes musl=yes
#include "zoo.h"
#include <sys/resource.h>

#define N 8

static __thread long tls_zero, tls_set = 77;
/* musl counts those of the calling thread alone. */
static long processors;
static pthread_t thread[N];
static pthread_barrier_t met;
static char stacks[N][32768];
static struct { void *robust; pid_t tid; } seen[N];

static void *robust_head(void)
{
	void *head;
	size_t len;

	SYS(syscall(SYS_get_robust_list, 0, &head, &len));
	EQ(len, 24);
	return head;
}

static void set_up(int i)
{
	char name[16];
	sigset_t mask;
	cpu_set_t cpus;
	struct sched_param none = { 0 };
	stack_t alt = { .ss_sp = stacks[i], .ss_size = sizeof stacks[i] };

	snprintf(name, sizeof name, "worker) %d", i);
	SYS(-pthread_setname_np(pthread_self(), name));
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1 + 2 * (i % 2));
	sigaddset(&mask, SIGRTMIN + i);
	SYS(-pthread_sigmask(SIG_SETMASK, &mask, NULL));
	CPU_ZERO(&cpus);
	CPU_SET(i % processors, &cpus);
	SYS(sched_setaffinity(0, sizeof cpus, &cpus));
	SYS(setpriority(PRIO_PROCESS, gettid(), i));
	SYS(syscall(SYS_sched_setscheduler, 0, i == 1 ? SCHED_BATCH : i == 2 ? SCHED_IDLE : SCHED_OTHER, &none));
	SYS(sigaltstack(&alt, NULL));
	tls_zero = i;
	tls_set = 1000 + i;
	seen[i].robust = robust_head();
	seen[i].tid = gettid();
}

static void look(int i, int round)
{
	char name[16], want[16];
	sigset_t mask;
	cpu_set_t cpus;
	stack_t alt;

	snprintf(want, sizeof want, "worker) %d", i);
	SYS(-pthread_getname_np(pthread_self(), name, sizeof name));
	CHECK(strcmp(name, want) == 0, "%s", name);
	SYS(-pthread_sigmask(SIG_SETMASK, NULL, &mask));
	for (int s = 1; s < 65; s++)
		if (s != 32 && s != 33)
			EQ(sigismember(&mask, s), s == SIGUSR1 + 2 * (i % 2) || s == SIGRTMIN + i);
	SYS(sched_getaffinity(0, sizeof cpus, &cpus));
	EQ(CPU_COUNT(&cpus), 1);
	CHECK(CPU_ISSET(i % processors, &cpus), "affinity");
	EQ(getpriority(PRIO_PROCESS, gettid()), i);
	EQ(syscall(SYS_sched_getscheduler, 0), i == 1 ? SCHED_BATCH : i == 2 ? SCHED_IDLE : SCHED_OTHER);
	SYS(sigaltstack(NULL, &alt));
	CHECK(alt.ss_sp == stacks[i] && alt.ss_size == sizeof stacks[i] && alt.ss_flags == 0, "alternate stack");
	EQ(tls_zero, i + (round - 1) * 10);
	EQ(tls_set, 1000 + i);
	CHECK(robust_head() == seen[i].robust, "robust list");
	EQ(gettid(), seen[i].tid);
	tls_zero += 10;
}

static void *run(void *arg)
{
	int i = (int)(long)arg;

	set_up(i);
	pthread_barrier_wait(&met);
	for (int round = 1; round <= zoo_rounds; round++) {
		zoo_wait(round);
		look(i, round);
		pthread_barrier_wait(&met);
	}
	return (void *)(100L + i);
}

static void prepare(int round)
{
	if (round > 1)
		return;
	processors = sysconf(_SC_NPROCESSORS_ONLN);
	SYS(-pthread_barrier_init(&met, NULL, N + 1));
	for (long i = 0; i < N; i++)
		SYS(-pthread_create(&thread[i], NULL, run, (void *)i));
	pthread_barrier_wait(&met);
}

static void check(int round)
{
	pthread_barrier_wait(&met);
	if (round < zoo_rounds)
		return;
	/* Join waits on the word that the kernel clears at clear_child_tid. */
	for (long i = 0; i < N; i++) {
		void *result;
		SYS(-pthread_join(thread[i], &result));
		EQ((long)result, 100 + i);
	}
}
