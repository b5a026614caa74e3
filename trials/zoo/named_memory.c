// Names of anonymous memory (PR_SET_VMA), private and shared: shown as before, and still to be changed.
// zoo: rounds=3 static=yes
#include "zoo.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

enum { WHOLE, PARTED, SHARED, UNTOUCHED, COUNT };

static const char *const names[COUNT] = { "whole", "a name (with) odd: characters", "of all", "never touched" };
static char *at[COUNT];
static int shared_too = 1;

/* Whether maps shows this name for the mapping that begins here. */
static int is_named(const char *start, const char *kind, const char *name)
{
	char line[512], wanted[32], shown[128];
	int found = 0;
	FILE *f = fopen("/proc/self/maps", "re");

	CHECK(f, "maps");
	snprintf(wanted, sizeof wanted, "%lx-", (unsigned long)start);
	snprintf(shown, sizeof shown, "[%s:%s]", kind, name);
	while (fgets(line, sizeof line, f))
		found |= strstr(line, wanted) == line && strstr(line, shown) != NULL;
	fclose(f);
	return found;
}

static void prepare(int round)
{
	for (int i = 0; i < COUNT && round == 1; i++) {
		int kind = i == SHARED ? MAP_SHARED : MAP_PRIVATE;

		at[i] = mmap(NULL, 9 * PAGE, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0);
		CHECK(at[i] != MAP_FAILED, "map");
		if (i != UNTOUCHED)
			zoo_fill(at[i], 9 * PAGE, i);
		if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at[i], 9 * PAGE, names[i]) == 0)
			continue;
		/* A kernel that knows no names is no kernel for this guest; shared memory has some since Linux 6.2. */
		if (i == 0 && errno == EINVAL)
			exit(77);
		CHECK(i == SHARED && errno == EBADF, "no name for mapping %d", i);
		shared_too = 0;
	}
	if (round == 1)
		SYS(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at[PARTED] + 3 * PAGE, 3 * PAGE, "the middle"));
}

static void check(int round)
{
	char text[32];

	for (int i = 0; i < COUNT; i++)
		CHECK((i == SHARED && !shared_too) || is_named(at[i], i == SHARED ? "anon_shmem" : "anon", names[i]), "mapping %d has lost its name", i);
	snprintf(text, sizeof text, round == 1 ? "the middle" : "of round %d", round);
	CHECK(is_named(at[PARTED] + 3 * PAGE, "anon", text), "the middle has lost its name");
	CHECK(is_named(at[PARTED] + 6 * PAGE, "anon", names[PARTED]), "the end has lost its name");
	for (int i = 0; i < UNTOUCHED; i++)
		EQ(zoo_differs(at[i], 9 * PAGE, i), -1);
	snprintf(text, sizeof text, "of round %d", round + 1);
	SYS(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at[PARTED] + 3 * PAGE, 3 * PAGE, text));
}
