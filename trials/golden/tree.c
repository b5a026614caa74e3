/* A tree: a child, a zombie, an orphan in the session of a leader that is gone; pipes, sockets and files between them. */
#include "golden.h"

#define PAGE 4096

struct board {
	uint64_t words[64];
	volatile int orphan, child, round;
	volatile int orphan_right, child_right;
};

int main(void)
{
	struct board *board = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int down[2], up[2], pair[2], status;
	char text[64], bytes[3000];
	siginfo_t info;

	MUST(board != MAP_FAILED && pipe(down) == 0 && pipe(up) == 0);
	MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) == 0);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	fill(board->words, sizeof board->words, 8);
	int shared = open("shared", O_RDWR | O_CREAT | O_TRUNC, 0600);
	MUST(shared >= 0 && write(shared, "abcdefghij", 10) == 10 && lseek(shared, 2, SEEK_SET) == 2);
	pid_t root = getpid();

	/* Reads what was written before the checkpoint, and says what it sees. */
	pid_t child = fork();
	if (child == 0) {
		prctl(PR_SET_NAME, "golden child");
		MUST(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && setpgid(0, 0) == 0);
		close(down[1]);
		close(up[0]);
		board->child = getpid();
		while (!board->round)
			poll(NULL, 0, 5);
		MUST(read(down[0], bytes, sizeof bytes) == 3000 && filled(bytes, 3000, 9));
		MUST(recv(pair[1], text, sizeof text, 0) == 5 && memcmp(text, "first", 5) == 0);
		MUST(recv(pair[1], text, sizeof text, 0) == 0);
		MUST(recv(pair[1], text, sizeof text, 0) == 6 && memcmp(text, "second", 6) == 0);
		MUST(read(shared, text, 3) == 3 && memcmp(text, "cde", 3) == 0);
		int death;
		MUST(prctl(PR_GET_PDEATHSIG, &death) == 0 && death == SIGKILL);
		board->child_right = getppid() == root && getpgrp() == getpid() && getsid(0) == root &&
				     filled(board->words, sizeof board->words, 8);
		MUST(write(up[1], "done", 4) == 4);
		_exit(5);
	}
	/* Its parent begins a session and ends: it is the root's now. */
	pid_t leader = fork();
	if (leader == 0) {
		setsid();
		if (fork() == 0) {
			while (getppid() != root)
				poll(NULL, 0, 5);
			pid_t session = getsid(0);
			prctl(PR_SET_NAME, "golden orphan");
			board->orphan = getpid();
			while (!board->round)
				poll(NULL, 0, 5);
			board->orphan_right = getppid() == root && getsid(0) == session && getpgrp() == session &&
					      kill(session, 0) != 0;
			_exit(6);
		}
		_exit(0);
	}
	pid_t zombie = fork();
	if (zombie == 0)
		_exit(42);
	MUST(child > 0 && leader > 0 && zombie > 0);
	MUST(waitpid(leader, &status, 0) == leader && status == 0);
	MUST(waitid(P_PID, zombie, &info, WEXITED | WNOWAIT) == 0);
	while (!board->orphan || !board->child)
		poll(NULL, 0, 5);
	close(down[0]);
	close(up[1]);
	fill(bytes, sizeof bytes, 9);
	MUST(write(down[1], bytes, sizeof bytes) == 3000);
	MUST(send(pair[0], "first", 5, 0) == 5 && send(pair[0], "", 0, 0) == 0 && send(pair[0], "second", 6, 0) == 6);

	until_go();

	MUST(getpid() == root && filled(board->words, sizeof board->words, 8));
	board->round = 1;
	MUST(read(up[0], text, sizeof text) == 4 && memcmp(text, "done", 4) == 0);
	MUST(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5);
	MUST(waitpid(board->orphan, &status, 0) == board->orphan && WEXITSTATUS(status) == 6);
	MUST(board->child_right && board->orphan_right);
	MUST(waitpid(zombie, &status, 0) == zombie && WIFEXITED(status) && WEXITSTATUS(status) == 42);
	MUST(waitpid(-1, &status, 0) < 0 && errno == ECHILD);
	MUST(lseek(shared, 0, SEEK_CUR) == 5 && read(up[0], text, 1) == 0);
	tell("result", "pass");
	return 0;
}
