// What prctl(2) and arch_prctl(2) set: each attribute in a child of its own where it cannot be taken back.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <asm/prctl.h>

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#ifndef PR_SET_THP_DISABLE
#define PR_SET_THP_DISABLE 41
#define PR_GET_THP_DISABLE 42
#endif

/* Sets an attribute; reads it as one number. */
struct attribute { const char *name; long (*set)(void); long (*get)(void); };

static long out(int option) { int v = -1; SYS(prctl(option, &v)); return v; }

static long set_subreaper(void) { return prctl(PR_SET_CHILD_SUBREAPER, 1); }
static long get_subreaper(void) { return out(PR_GET_CHILD_SUBREAPER); }
static long set_pdeathsig(void) { return prctl(PR_SET_PDEATHSIG, SIGUSR2); }
static long get_pdeathsig(void) { return out(PR_GET_PDEATHSIG); }
static long set_slack(void) { return prctl(PR_SET_TIMERSLACK, 123456); }
static long get_slack(void) { return prctl(PR_GET_TIMERSLACK); }
static long set_thp(void) { return prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0); }
static long get_thp(void) { return prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0); }
static long set_merge(void) { return prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0); }
static long get_merge(void) { return prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0); }
static long set_keep(void) { return prctl(PR_SET_KEEPCAPS, 1); }
static long get_keep(void) { return prctl(PR_GET_KEEPCAPS); }
static long set_tsc(void) { return prctl(PR_SET_TSC, PR_TSC_SIGSEGV); }
static long get_tsc(void) { return out(PR_GET_TSC); }
static long set_mce(void) { return prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0); }
static long get_mce(void) { return prctl(PR_MCE_KILL_GET, 0, 0, 0, 0); }
static long set_spec(void) { return prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0); }
static long get_spec(void) { return prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0); }
static long set_cpuid(void) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0); }
static long get_cpuid(void) { return syscall(SYS_arch_prctl, ARCH_GET_CPUID, 0); }
static long set_name(void) { return prctl(PR_SET_NAME, "odd) name"); }
static long set_io(void) { return prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0); }
static long get_io(void) { return prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0); }

static long get_name(void)
{
	long name[3] = { 0 };

	SYS(prctl(PR_GET_NAME, name));
	return name[0] ^ name[1];
}

static const struct attribute all[] = {
	{ "subreaper", set_subreaper, get_subreaper }, { "pdeathsig", set_pdeathsig, get_pdeathsig },
	{ "timerslack", set_slack, get_slack }, { "thp_disable", set_thp, get_thp }, 
	{ "memory_merge", set_merge, get_merge }, { "keepcaps", set_keep, get_keep }, { "tsc", set_tsc, get_tsc },
	{ "mce_kill", set_mce, get_mce }, { "speculation", set_spec, get_spec }, { "cpuid", set_cpuid, get_cpuid },
	{ "name", set_name, get_name }, { "io_flusher", set_io, get_io },
};
#define COUNT (int)(sizeof all / sizeof *all)

static pid_t child[COUNT];

static void live(int i)
{
	/* One that this kernel or processor lacks is left alone. */
	int lacking = all[i].set() != 0;
	long before = lacking ? 0 : all[i].get();

	zoo_mark("up", i);
	for (int r = 1; r <= zoo_rounds; r++) {
		zoo_wait(r);
		if (!lacking)
			CHECK(all[i].get() == before, "%s is %ld, was %ld", all[i].name, all[i].get(), before);
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
