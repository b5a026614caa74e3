// Attributes that a call or a file sets for a process: limits, prctl, memory, descriptor table.
// zoo: rounds=3 static=yes needs=root
// zoo: covers=rlimits,proc_files,membarrier,ldt,mlockall,umask
#include "attributes.h"

static struct attributes before;

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

static void prepare(int round)
{
	if (round == 1) {
		set_process();
		before = look_process();
	}
}

static void check(int round)
{
	struct attributes now = look_process();

	(void)round;
	compare("process", &before, &now);
}
