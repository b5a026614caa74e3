// Children stopped by a signal: one whose stop the parent has seen, one whose stop it has not, one with threads. And the
// report of another one that has ended, which the parent has not taken yet.
// zoo: rounds=3 static=yes
#include "zoo.h"

static pid_t seen, unseen, threaded;
static pid_t ended;
static volatile int *beats;

static void *beat(void *unused)
{
	for (;;) {
		__atomic_add_fetch(&beats[1], 1, __ATOMIC_RELAXED);
		zoo_nap(1);
	}
	return unused;
}

static sigset_t only_child(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	return set;
}

static pid_t make(int with_thread)
{
	pid_t pid = SYS(fork());

	if (pid == 0) {
		pthread_t thread;
		/* A group of its own in the session: in an orphaned one SIGTSTP would do nothing. */
		SYS(setpgid(0, 0));
		zoo_mark("born", getpid());
		if (with_thread)
			SYS(-pthread_create(&thread, NULL, beat, NULL));
		for (;;) {
			__atomic_add_fetch(&beats[0], 1, __ATOMIC_RELAXED);
			zoo_nap(1);
		}
	}
	zoo_await("born", pid);
	return pid;
}

static void prepare(int round)
{
	int status;
	sigset_t child = only_child();
	siginfo_t info;

	SYS(sigprocmask(SIG_BLOCK, &child, NULL));
	if (round == 1)
		beats = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	seen = make(0);
	unseen = make(0);
	threaded = make(1);
	SYS(kill(seen, SIGSTOP));
	EQ(SYS(waitpid(seen, &status, WUNTRACED)), seen);
	EQ(status, SIGSTOP << 8 | 0x7f);
	/* From here on SIGCHLD is pending, and tells of one that has ended. */
	while (sigtimedwait(&child, NULL, &(struct timespec){ 0 }) > 0)
		;
	ended = SYS(fork());
	if (ended == 0)
		_exit(7);
	SYS(waitid(P_PID, ended, &info, WEXITED | WNOWAIT));
	SYS(kill(unseen, SIGTSTP));
	SYS(kill(threaded, SIGSTOP));
	zoo_await_state(unseen, 'T');
	zoo_await_state(threaded, 'T');
}

static void check(int round)
{
	int status, before[2] = { beats[0], beats[1] };
	siginfo_t info;
	sigset_t child = only_child();

	EQ(sigtimedwait(&child, &info, &(struct timespec){ 0 }), SIGCHLD);
	EQ(info.si_pid, ended);
	EQ(info.si_code, CLD_EXITED);
	zoo_reap(ended, 7 << 8);
	zoo_nap(50);
	EQ(beats[0], before[0]);
	EQ(beats[1], before[1]);
	EQ(zoo_state(seen), 'T');
	EQ(zoo_state(unseen), 'T');
	/* A stop that was seen is not told again; one that was not is. */
	EQ(waitpid(seen, &status, WUNTRACED | WNOHANG), 0);
	EQ(waitpid(unseen, &status, WUNTRACED | WNOHANG), unseen);
	EQ(status, SIGTSTP << 8 | 0x7f);
	SYS(waitid(P_PID, threaded, &info, WSTOPPED | WNOHANG));
	EQ(info.si_pid, threaded);
	EQ(info.si_status, SIGSTOP);
	pid_t all[] = { seen, unseen, threaded };
	for (int i = 0; i < 3; i++) {
		SYS(kill(all[i], SIGCONT));
		EQ(SYS(waitpid(all[i], &status, WCONTINUED)), all[i]);
		EQ(status, 0xffff);
	}
	for (int i = 0; beats[0] == before[0] || beats[1] == before[1]; i++) {
		CHECK(i < 5000, "no beat after SIGCONT");
		zoo_nap(1);
	}
	for (int i = 0; i < 3; i++) {
		SYS(kill(all[i], SIGKILL));
		zoo_reap(all[i], SIGKILL);
	}
	(void)round;
}
