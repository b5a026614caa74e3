// A pseudo-terminal with both ends inside: attributes, size, bytes in both directions, job control of a session on it.
// zoo: rounds=3 static=yes volatile=/
#include "zoo.h"
#include <sys/ioctl.h>
#include <termios.h>

static int master;
static pid_t shell, job;
static volatile int *job_pid;

/* A session on the terminal, with a job of its own in the foreground. */
static void be_shell(const char *name)
{
	SYS(setsid());
	/* Whoever started all this may have ignored it. */
	signal(SIGINT, SIG_DFL);
	int slave = SYS(open(name, O_RDWR));
	SYS(ioctl(slave, TIOCSCTTY, 0));
	signal(SIGTTOU, SIG_IGN);
	pid_t pid = SYS(fork());
	if (pid == 0) {
		char text[100];
		SYS(setpgid(0, 0));
		SYS(tcsetpgrp(slave, getpid()));
		*job_pid = getpid();
		zoo_mark("job", 0);
		for (int round = 1; round <= zoo_rounds; round++) {
			ssize_t n = read(slave, text, sizeof text);
			EQ(n, 6);
			CHECK(memcmp(text, "line", 4) == 0 && text[4] == '0' + round, "the job read %.*s", (int)n, text);
			EQ(tcgetpgrp(slave), getpid());
			EQ(write(slave, "said", 4), 4);
		}
		pause();
	}
	setpgid(pid, pid);
	int status;
	EQ(SYS(waitpid(pid, &status, 0)), pid);
	EQ(status, SIGINT);
	int tty = SYS(open("/dev/tty", O_RDWR));
	EQ(tcgetsid(tty), getpid());
	_exit(6);
}

static void make(void)
{
	struct termios t;
	struct winsize size = { .ws_row = 33, .ws_col = 111 };

	job_pid = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	master = SYS(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
	SYS(grantpt(master));
	SYS(unlockpt(master));
	SYS(ioctl(master, TIOCSWINSZ, &size));
	SYS(tcgetattr(master, &t));
	t.c_lflag &= ~ECHO;
	t.c_cc[VERASE] = 'E';
	SYS(tcsetattr(master, TCSANOW, &t));
	char name[64];
	SYS(ptsname_r(master, name, sizeof name));
	shell = SYS(fork());
	if (shell == 0)
		be_shell(name);
	zoo_await("job", 0);
	job = *job_pid;
}

static void prepare(int round)
{
	if (round == 1)
		make();
	/* Half a line waits in the terminal until the checkpoint is over. */
	EQ(write(master, "lin", 3), 3);
}

static void check(int round)
{
	struct termios t;
	struct winsize size;
	char text[100], rest[] = { 'e', '0' + round, '\n' };

	SYS(ioctl(master, TIOCGWINSZ, &size));
	EQ(size.ws_row, 33);
	EQ(size.ws_col, 111);
	SYS(tcgetattr(master, &t));
	EQ(t.c_lflag & ECHO, 0);
	EQ(t.c_cc[VERASE], 'E');
	EQ(tcgetsid(master), shell);
	EQ(tcgetpgrp(master), job);
	EQ(write(master, rest, 3), 3);
	EQ(read(master, text, sizeof text), 4);
	CHECK(memcmp(text, "said", 4) == 0, "answer");
	if (round < zoo_rounds)
		return;
	EQ(write(master, "\003", 1), 1);
	zoo_reap(shell, 6 << 8);
}
