// A process whose first thread has ended while others live: descriptors, memory, a child, signals and a join stay.
// zoo: rounds=3 static=yes musl=yes
#define ZOO_OWN_MAIN
#include "zoo.h"

static pthread_t leader, driver, worker;
static int ends[2], back[2], file;
static volatile sig_atomic_t seen;
static char *shared;
static pid_t child;

static void on_signal(int signal)
{
	(void)signal;
	seen++;
}

static void *work(void *unused)
{
	char byte;

	SYS(-pthread_setname_np(pthread_self(), "survivor 2"));
	while (read(ends[0], &byte, 1) == 1) {
		byte++;
		SYS(write(back[1], &byte, 1));
	}
	return unused;
}

/* Answers by its exit status when the guest lets it go. */
static void be_child(void)
{
	for (int round = 1; round <= zoo_rounds; round++)
		zoo_wait(round);
	_exit(getppid() == *(pid_t *)(shared + 64) ? 9 : 10);
}

static void prepare(int round)
{
	sigset_t mask;

	if (round == 1) {
		SYS(-pthread_join(leader, NULL));
		zoo_await_state(getpid(), 'Z');
		SYS(pipe2(ends, O_CLOEXEC));
		SYS(pipe2(back, 0));
		file = SYS(open(zoo_path("data"), O_RDWR | O_CREAT | O_EXCL, 0600));
		SYS(ftruncate(file, 2 * PAGE));
		SYS(lseek(file, 77, SEEK_SET));
		shared = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
		CHECK(shared != MAP_FAILED, "mmap");
		*(pid_t *)(shared + 64) = getpid();
		signal(SIGUSR1, on_signal);
		sigemptyset(&mask);
		sigaddset(&mask, SIGUSR2);
		SYS(-pthread_sigmask(SIG_BLOCK, &mask, NULL));
		child = SYS(fork());
		if (child == 0)
			be_child();
		SYS(-pthread_create(&worker, NULL, work, NULL));
		char byte = 0;
		SYS(write(ends[1], &byte, 1));
		EQ(SYS(read(back[0], &byte, 1)), 1);
		/* For the process, not for a thread: any thread may take it. */
		SYS(kill(getpid(), SIGUSR2));
	}
	zoo_fill(shared + PAGE, PAGE, round);
}

static void check(int round)
{
	char byte = 'a', name[16];
	sigset_t set;
	struct timespec none = { 0 };

	EQ(zoo_state(getpid()), 'Z');
	CHECK(getpid() != gettid(), "the leader");
	EQ(SYS(lseek(file, 0, SEEK_CUR)), 77);
	EQ(zoo_differs(shared + PAGE, PAGE, round), -1);
	SYS(write(ends[1], &byte, 1));
	EQ(SYS(read(back[0], &byte, 1)), 1);
	EQ(byte, 'b');
	SYS(-pthread_getname_np(worker, name, sizeof name));
	CHECK(strcmp(name, "survivor 2") == 0, "%s", name);
	int before = seen;
	SYS(kill(getpid(), SIGUSR1));
	while (seen == before)
		zoo_nap(1);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	if (round == zoo_rounds) {
		EQ(SYS(sigtimedwait(&set, NULL, &none)), SIGUSR2);
		zoo_reap(child, 9 << 8);
		close(ends[1]);
		SYS(-pthread_join(worker, NULL));
	}
}

static void *drive(void *unused)
{
	for (int round = 1; round <= zoo_rounds; round++) {
		prepare(round);
		zoo_sync(round);
		check(round);
	}
	zoo_verdict("pass\n");
	return unused;
}

int main(int argc, char **argv)
{
	zoo_start(argc, argv);
	leader = pthread_self();
	SYS(-pthread_create(&driver, NULL, drive, NULL));
	pthread_exit(NULL);
}
