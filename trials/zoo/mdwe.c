// A process that may not have memory that is writable and executable (PR_SET_MDWE), with threads and a child.
// zoo: rounds=3 static=yes musl=yes
#include "zoo.h"

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif
#define BOTH (PROT_READ | PROT_WRITE | PROT_EXEC)

static pthread_t threads[3];
static pthread_barrier_t met;
static pid_t child;
static char *code;

static void look(void)
{
	EQ(prctl(PR_GET_MDWE, 0, 0, 0, 0), 1);
	CHECK(mmap(NULL, PAGE, BOTH, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED, "writable code");
	EQ(errno, EACCES);
	CHECK(((int (*)(void))code)() == 42, "code");
}

static void *run(void *unused)
{
	pthread_barrier_wait(&met);
	for (int round = 1; round <= zoo_rounds; round++) {
		zoo_wait(round);
		look();
		pthread_barrier_wait(&met);
	}
	return unused;
}

static void prepare(int round)
{
	if (round > 1)
		return;
	/* mov $42, %eax; ret */
	code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(code != MAP_FAILED, "mmap");
	memcpy(code, "\xb8\x2a\0\0\0\xc3", 6);
	SYS(mprotect(code, PAGE, PROT_READ | PROT_EXEC));
	if (prctl(PR_SET_MDWE, 1, 0, 0, 0) != 0)
		exit(77);
	SYS(-pthread_barrier_init(&met, NULL, 4));
	for (int i = 0; i < 3; i++)
		SYS(-pthread_create(&threads[i], NULL, run, NULL));
	pthread_barrier_wait(&met);
	child = SYS(fork());
	if (child == 0) {
		zoo_wait(zoo_rounds);
		look();
		_exit(5);
	}
}

static void check(int round)
{
	look();
	pthread_barrier_wait(&met);
	if (round < zoo_rounds)
		return;
	for (int i = 0; i < 3; i++)
		SYS(-pthread_join(threads[i], NULL));
	zoo_reap(child, 5 << 8);
}
