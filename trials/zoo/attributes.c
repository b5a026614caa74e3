// Attributes that a call or a file sets, of a process and of each thread: limits, prctl, scheduling, descriptor tables.
// zoo: rounds=3 static=yes needs=root
// zoo: covers=thread_attributes,process_attributes,rlimits,proc_files,membarrier,mempolicy,ldt,thread_area,mlockall,sched,comm
#include "zoo.h"
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <sys/personality.h>
#include <sys/resource.h>

#define THREADS 2
#define MOST 200

struct attributes { int n; long value[MOST]; };

static struct attributes of_process, of_thread[THREADS];
static pthread_t thread[THREADS];
static pthread_barrier_t met;

static void add(struct attributes *a, long value)
{
	CHECK(a->n < MOST, "too many attributes");
	a->value[a->n++] = value;
}

/* What a call gives that this machine may not have: its result, or its error. */
static long maybe(long result) { return result < 0 ? -errno : result; }

static void add_text(struct attributes *a, const char *path)
{
	char text[256] = "";
	long sum = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		SYS(read(fd, text, sizeof text - 1));
		close(fd);
	}
	for (const char *at = text; *at; at++)
		sum = sum * 31 + (unsigned char)*at;
	add(a, sum);
}

static void put_text(const char *path, const char *text)
{
	int fd = SYS(open(path, O_WRONLY | O_CLOEXEC));

	SYS(write(fd, text, strlen(text)));
	close(fd);
}

static int look_int(int option)
{
	int value = -1;

	SYS(prctl(option, &value, 0, 0, 0));
	return value;
}

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

static struct attributes look_process(void)
{
	struct attributes a = { 0 };
	unsigned long table[8] = { 0 };

	for (int resource = 0; resource < 16; resource++) {
		struct rlimit limit;
		SYS(getrlimit(resource, &limit));
		add(&a, limit.rlim_cur); add(&a, limit.rlim_max);
	}
	add(&a, look_int(PR_GET_CHILD_SUBREAPER));
	add(&a, SYS(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0)));
	add(&a, SYS(prctl(PR_GET_DUMPABLE)));
	add(&a, maybe(prctl(68 /* PR_GET_MEMORY_MERGE */, 0, 0, 0, 0)));
	add(&a, maybe(syscall(SYS_membarrier, 1 << 9 /* GET_REGISTRATIONS */, 0, 0)));
	add(&a, maybe(syscall(SYS_modify_ldt, 0, table, sizeof table)));
	for (int i = 0; i < 8; i++)
		add(&a, table[i]);
	add_text(&a, "/proc/self/oom_score_adj");
	add_text(&a, "/proc/self/coredump_filter");
	mode_t mask = umask(0);
	umask(mask);
	add(&a, mask);
	/* Locked from now on: of a new page nothing can be given back. */
	char *page = SYS((long)mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) + (char *)0;
	add(&a, maybe(madvise(page, PAGE, MADV_DONTNEED)));
	SYS(munmap(page, PAGE));
	return a;
}

static void compare(const char *whose, const struct attributes *before, const struct attributes *now)
{
	EQ(now->n, before->n);
	for (int i = 0; i < now->n; i++)
		CHECK(now->value[i] == before->value[i], "%s, attribute %d: %ld, not %ld", whose, i, now->value[i], before->value[i]);
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

static void set_process(void)
{
	struct user_desc d = { .entry_number = 3, .base_addr = 0x1000, .limit = 0xfff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1 };
	int resources[] = { RLIMIT_NOFILE, RLIMIT_CORE, RLIMIT_SIGPENDING, RLIMIT_STACK, RLIMIT_AS };

	for (unsigned i = 0; i < sizeof resources / sizeof *resources; i++) {
		struct rlimit limit;
		SYS(getrlimit(resources[i], &limit));
		limit.rlim_cur = resources[i] == RLIMIT_AS ? 1UL << 40 : 100 + i;
		if (limit.rlim_max > 200000000UL && resources[i] != RLIMIT_AS)
			limit.rlim_max = 200000000UL;
		SYS(setrlimit(resources[i], &limit));
	}
	SYS(prctl(PR_SET_CHILD_SUBREAPER, 1));
	SYS(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	(void)!prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0);
	(void)!syscall(SYS_membarrier, 1 << 4 /* REGISTER_PRIVATE_EXPEDITED */, 0, 0);
	(void)!syscall(SYS_modify_ldt, 0x11, &d, sizeof d);
	put_text("/proc/self/oom_score_adj", "321");
	put_text("/proc/self/coredump_filter", "0x7f");
	(void)!umask(0157);
	(void)!mlockall(MCL_FUTURE | MCL_ONFAULT);
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
		set_process();
		of_process = look_process();
	}
	pthread_barrier_wait(&met);
}

static void check(int round)
{
	struct attributes now = look_process();

	compare("process", &of_process, &now);
	pthread_barrier_wait(&met);
	if (round == zoo_rounds)
		for (int who = 0; who < THREADS; who++)
			SYS(-pthread_join(thread[who], NULL));
}
