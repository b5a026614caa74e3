// What wait(2) has still to tell of children that were stopped and that went on, and what it has told already: neither lost
// nor told twice, with and without a SIGCHLD that waits. And a process that waits for the stop of a child, as a shell does.
// zoo: rounds=4 static=yes
#include "zoo.h"

enum { STOP_TOLD, STOP_UNTOLD, CONT_TOLD, CONT_UNTOLD, CONT_OVER_STOP, CONT_OF_THREADS, MASKED, KINDS };
static pid_t kids[KINDS];
static pid_t shell, job;

static void *linger(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static sigset_t only(int signal)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signal);
	return set;
}

static pid_t make(int kind)
{
	pid_t pid = SYS(fork());

	if (pid == 0) {
		pthread_t thread;
		sigset_t set = only(SIGCONT);
		SYS(setpgid(0, 0));
		if (kind == CONT_OF_THREADS)
			SYS(-pthread_create(&thread, NULL, linger, NULL));
		/* The signal stays in its queue, and the process goes on all the same. */
		SYS(sigprocmask(kind == MASKED ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL));
		zoo_mark("born", getpid());
		linger(NULL);
	}
	zoo_await("born", pid);
	return pid;
}

/* Waits until there is this to be told, and leaves it so. */
static void untold(pid_t pid, int options)
{
	siginfo_t info;

	SYS(waitid(P_PID, pid, &info, options | WNOWAIT));
	EQ(info.si_pid, pid);
}

static void told(pid_t pid, int options, int wanted)
{
	int status;

	EQ(SYS(waitpid(pid, &status, options)), pid);
	EQ(status, wanted);
}

static void make_shell(void)
{
	int status;

	shell = SYS(fork());
	if (shell == 0) {
		job = SYS(fork());
		if (job == 0)
			linger(NULL);
		char text[32];
		snprintf(text, sizeof text, "%d", job);
		zoo_write(zoo_path("job"), text);
		told(job, WUNTRACED, SIGSTOP << 8 | 0x7f);
		SYS(kill(job, SIGCONT));
		told(job, WCONTINUED, 0xffff);
		SYS(kill(job, SIGKILL));
		zoo_reap(job, SIGKILL);
		(void)status;
		_exit(9);
	}
	zoo_await_path(zoo_path("job"), 60000);
	char text[32] = "";
	int fd = SYS(open(zoo_path("job"), O_RDONLY | O_CLOEXEC));
	SYS(read(fd, text, sizeof text - 1));
	close(fd);
	SYS(unlink(zoo_path("job")));
	job = atoi(text);
	zoo_await_state(shell, 'S');
}

static void prepare(int round)
{
	sigset_t child = only(SIGCHLD);

	SYS(sigprocmask(SIG_BLOCK, &child, NULL));
	make_shell();
	for (int i = 0; i < KINDS; i++) {
		kids[i] = make(i);
		SYS(kill(kids[i], SIGSTOP));
		if (i == STOP_UNTOLD || i == CONT_OVER_STOP)
			untold(kids[i], WSTOPPED);
		else
			told(kids[i], WUNTRACED, SIGSTOP << 8 | 0x7f);
		if (i == STOP_TOLD || i == STOP_UNTOLD)
			continue;
		SYS(kill(kids[i], SIGCONT));
		if (i == CONT_TOLD)
			told(kids[i], WCONTINUED, 0xffff);
		else
			untold(kids[i], WCONTINUED);
		/* Its other threads have gone on, too. */
		zoo_await_state(kids[i], 'S');
	}
	while (sigtimedwait(&child, NULL, &(struct timespec){ 0 }) > 0)
		;
	if (round % 2 == 0) {
		SYS(kill(kids[CONT_UNTOLD], SIGSTOP));
		untold(kids[CONT_UNTOLD], WSTOPPED);
		while (sigtimedwait(&child, NULL, &(struct timespec){ 0 }) > 0)
			;
		SYS(kill(kids[CONT_UNTOLD], SIGCONT));
		untold(kids[CONT_UNTOLD], WCONTINUED);
	}
	/* SIGCHLD comes after what wait(2) tells: all that was to come has come when this one has. */
	for (int i = 0; round % 2 == 0 && i < 6000; i++) {
		sigset_t pending;
		SYS(sigpending(&pending));
		if (sigismember(&pending, SIGCHLD))
			return;
		zoo_nap(10);
	}
}

static void check(int round)
{
	int status;
	siginfo_t info;
	sigset_t child = only(SIGCHLD), pending;

	int signal = sigtimedwait(&child, &info, &(struct timespec){ 0 });
	if (round % 2 == 0) {
		EQ(signal, SIGCHLD);
		EQ(info.si_code, CLD_CONTINUED);
		EQ(info.si_pid, kids[CONT_UNTOLD]);
		signal = sigtimedwait(&child, &info, &(struct timespec){ 0 });
	}
	EQ(signal, -1);
	EQ(zoo_state(kids[STOP_TOLD]), 'T');
	EQ(zoo_state(kids[STOP_UNTOLD]), 'T');
	EQ(waitpid(kids[STOP_TOLD], &status, WUNTRACED | WCONTINUED | WNOHANG), 0);
	EQ(waitpid(kids[CONT_TOLD], &status, WUNTRACED | WCONTINUED | WNOHANG), 0);
	EQ(waitpid(kids[STOP_UNTOLD], &status, WUNTRACED | WCONTINUED | WNOHANG), kids[STOP_UNTOLD]);
	EQ(status, SIGSTOP << 8 | 0x7f);
	for (int i = CONT_UNTOLD; i < KINDS; i++) {
		EQ(waitpid(kids[i], &status, WUNTRACED | WNOHANG), 0);
		EQ(waitpid(kids[i], &status, WUNTRACED | WCONTINUED | WNOHANG), kids[i]);
		EQ(status, 0xffff);
	}
	/* None is told twice. */
	EQ(waitpid(-1, &status, WUNTRACED | WCONTINUED | WNOHANG), 0);
	SYS(kill(job, SIGSTOP));
	zoo_reap(shell, 9 << 8);
	for (int i = 0; i < KINDS; i++) {
		SYS(kill(kids[i], SIGKILL));
		zoo_reap(kids[i], SIGKILL);
	}
	SYS(sigpending(&pending));
}
