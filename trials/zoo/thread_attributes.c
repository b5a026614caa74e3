// Attributes that a call sets for a thread: prctl, scheduling, input and output, memory policy, segments.
// zoo: rounds=3 static=yes needs=root
// zoo: covers=mempolicy,thread_area,sched,comm,thread_ids
#include "attributes.h"
#include <sys/personality.h>

#define THREADS 2

static struct attributes of_thread[THREADS];
static pthread_t thread[THREADS];
static pthread_barrier_t met;

/* The same layout as in linux/sched/types.h, which clashes with libc. */
struct sched { unsigned size, policy; unsigned long flags; int nice; unsigned priority; unsigned long time[3]; unsigned clamp[2]; };

static struct attributes look_thread(void)
{
	struct attributes a = { 0 };
	struct sched s = { 0 };
	cpu_set_t cpus;
	char name[16] = "";
	unsigned long nodes[17] = { 0 };
	int mode = -1;

	add(&a, personality(0xffffffff));
	SYS(prctl(PR_GET_NAME, name));
	for (int i = 0; i < 16; i += 8) {
		long word;
		memcpy(&word, name + i, 8);
		add(&a, word);
	}
	add(&a, look_int(PR_GET_TSC));
	add(&a, look_int(PR_GET_PDEATHSIG));
	add(&a, SYS(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0)));
	add(&a, SYS(prctl(PR_GET_TIMERSLACK)));
	for (int what = 0; what < 3; what++)
		add(&a, maybe(prctl(PR_GET_SPECULATION_CTRL, what, 0, 0, 0)));
	add(&a, maybe(syscall(SYS_arch_prctl, ARCH_GET_CPUID, 0)));
	SYS(syscall(SYS_sched_getattr, 0, &s, sizeof s, 0));
	add(&a, s.policy); add(&a, s.flags); add(&a, s.nice); add(&a, s.priority);
	add(&a, s.time[0]); add(&a, s.time[1]); add(&a, s.time[2]);
	add(&a, s.clamp[0]); add(&a, s.clamp[1]);
	add(&a, SYS(getpriority(PRIO_PROCESS, 0) + 100));
	SYS(sched_getaffinity(0, sizeof cpus, &cpus));
	add(&a, CPU_COUNT(&cpus) * 1000 + CPU_ISSET(0, &cpus));
	add(&a, SYS(syscall(SYS_ioprio_get, 1, 0)));
	add(&a, maybe(syscall(SYS_get_mempolicy, &mode, nodes, 1025, 0, 0)));
	add(&a, mode); add(&a, nodes[0]);
	for (int entry = 12; entry < 15; entry++) {
		struct user_desc d = { .entry_number = entry };
		add(&a, maybe(syscall(SYS_get_thread_area, &d)));
		add(&a, d.base_addr); add(&a, d.limit); add(&a, d.seg_32bit + 2 * d.contents + 8 * d.read_exec_only + 16 * d.useable);
	}
	return a;
}

static void set_thread(int who)
{
	struct sched_param param = { .sched_priority = who ? 3 : 0 };
	struct user_desc d = { .entry_number = 13, .base_addr = 0x2000 + who, .limit = 0xfff, .seg_32bit = 1, .useable = 1 };
	unsigned long node = 1;
	cpu_set_t cpus;

	SYS(personality(who ? ADDR_NO_RANDOMIZE : UNAME26));
	SYS(prctl(PR_SET_NAME, who ? "a) b\n\\(" : "\xff\xfe odd"));
	SYS(prctl(PR_SET_TSC, who ? PR_TSC_SIGSEGV : PR_TSC_ENABLE));
	SYS(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, who ? PR_MCE_KILL_EARLY : PR_MCE_KILL_LATE, 0, 0));
	SYS(prctl(PR_SET_TIMERSLACK, 77777 + who));
	/* Ignored by default: the restoring command may well end before the guest does. */
	SYS(prctl(PR_SET_PDEATHSIG, who ? SIGURG : SIGWINCH));
	(void)!prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0);
	(void)!syscall(SYS_set_thread_area, &d);
	(void)!syscall(SYS_set_mempolicy, 2 + who, &node, 65);
	SYS(syscall(SYS_ioprio_set, 1, 0, (2 << 13) | (5 + who)));
	SYS(setpriority(PRIO_PROCESS, 0, 3 + who));
	SYS(sched_setscheduler(0, (who ? SCHED_BATCH : SCHED_IDLE) | SCHED_RESET_ON_FORK, &(struct sched_param){ 0 }));
	if (who)
		(void)!sched_setscheduler(0, SCHED_RR, &param);
	SYS(sched_getaffinity(0, sizeof cpus, &cpus));
	for (int cpu = 0; CPU_COUNT(&cpus) > 1; cpu++)
		CPU_CLR(cpu, &cpus);
	SYS(sched_setaffinity(0, sizeof cpus, &cpus));
}

static void *live(void *arg)
{
	long who = (long)arg;

	set_thread(who);
	of_thread[who] = look_thread();
	pthread_barrier_wait(&met);
	for (int round = 1; round <= zoo_rounds; round++) {
		pthread_barrier_wait(&met);
		zoo_wait(round);
		struct attributes now = look_thread();
		compare(who ? "thread 1" : "thread 0", &of_thread[who], &now);
		pthread_barrier_wait(&met);
	}
	return NULL;
}

static void prepare(int round)
{
	if (round == 1) {
		SYS(-pthread_barrier_init(&met, NULL, THREADS + 1));
		for (long who = 0; who < THREADS; who++)
			SYS(-pthread_create(&thread[who], NULL, live, (void *)who));
		pthread_barrier_wait(&met);
	}
	pthread_barrier_wait(&met);
}

static void check(int round)
{
	pthread_barrier_wait(&met);
	if (round == zoo_rounds)
		for (int who = 0; who < THREADS; who++)
			SYS(-pthread_join(thread[who], NULL));
}
