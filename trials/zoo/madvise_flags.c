// Flags of madvise: WIPEONFORK, DONTFORK, DONTDUMP, HUGEPAGE, NOHUGEPAGE, MERGEABLE, and that they still act.
// zoo: rounds=3 static=yes
#include "zoo.h"

enum { WIPED, UNFORKED, UNDUMPED, HUGE, SMALL, PLAIN, SEQUENTIAL, RANDOM, COUNT };

static const int advice[COUNT] = {
	MADV_WIPEONFORK, MADV_DONTFORK, MADV_DONTDUMP, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_NORMAL, MADV_SEQUENTIAL, MADV_RANDOM,
};
static const char *const shown[COUNT] = { " wf", " dc", " dd", " hg", " nh", "", " sr", " rr" };
static char *at[COUNT];

/* Whether smaps shows this flag for the mapping that begins here. */
static int has_flag(const char *start, const char *flag)
{
	char line[512], wanted[32];
	int found = 0, inside = 0;
	FILE *f = fopen("/proc/self/smaps", "re");

	CHECK(f, "smaps");
	snprintf(wanted, sizeof wanted, "%lx-", (unsigned long)start);
	while (fgets(line, sizeof line, f)) {
		if (strstr(line, wanted) == line)
			inside = 1;
		if (inside && strncmp(line, "VmFlags:", 8) == 0) {
			found = strstr(line, flag) != NULL;
			break;
		}
	}
	fclose(f);
	return found;
}

static void prepare(int round)
{
	for (int i = 0; i < COUNT; i++) {
		if (round == 1) {
			/* A page of no access before each keeps the mappings apart. */
			at[i] = mmap(NULL, 5 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			CHECK(at[i] != MAP_FAILED, "map");
			at[i] += PAGE;
			SYS(mprotect(at[i], 4 * PAGE, PROT_READ | PROT_WRITE));
			SYS(madvise(at[i], 4 * PAGE, advice[i]));
		}
		zoo_fill(at[i], 4 * PAGE, round * 10 + i);
	}
}

static void check(int round)
{
	unsigned char there;

	for (int i = 0; i < COUNT; i++) {
		CHECK(has_flag(at[i], shown[i]), "mapping %d lost%s", i, shown[i]);
		EQ(zoo_differs(at[i], 4 * PAGE, round * 10 + i), -1);
	}
	pid_t pid = SYS(fork());
	if (pid == 0) {
		EQ(at[WIPED][100], 0);
		EQ(mincore(at[UNFORKED], PAGE, &there), -1);
		EQ(errno, ENOMEM);
		EQ(zoo_differs(at[PLAIN], 4 * PAGE, round * 10 + PLAIN), -1);
		_exit(0);
	}
	zoo_reap(pid, 0);
}
