// A pipe whose other end a process outside of the tree holds: refused, unless the end policy says otherwise.
// zoo: rounds=1 refused=outside covers=outside
#include "zoo.h"

static void prepare(int round)
{
	int ends[2], status;
	char c;

	SYS(pipe(ends));
	pid_t child = SYS(fork());
	if (child == 0) {
		/* Its child is nobody's of this tree any more, and ends with the pipe. */
		if (fork() == 0) {
			close(ends[1]);
			while (read(ends[0], &c, 1) > 0)
				;
		}
		_exit(0);
	}
	SYS(waitpid(child, &status, 0));
	SYS(close(ends[0]));
	(void)round;
}

static void check(int round)
{
	(void)round;
}
