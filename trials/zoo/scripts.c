// A shell that reads its script while the file is already deleted, in a pipeline with another one.
// zoo: rounds=1 volatile=/
#include "zoo.h"

static pid_t shell;

static void prepare(int round)
{
	char text[2000], script[480], out[480];

	strcpy(script, zoo_path("script"));
	strcpy(out, zoo_path("out"));
	snprintf(text, sizeof text,
		 "echo begun > %s\n"
		 "rm %s\n"
		 "while [ ! -e %s.go.%d ]; do sleep 0.01; done | cat\n"
		 "n=0; while [ $n -lt 5 ]; do n=$((n + 1)); echo line $n; done | sort -r >> %s\n"
		 "exit 17\n", out, script, zoo_status, round, out);
	zoo_write(script, text);
	shell = SYS(fork());
	if (shell == 0) {
		execl("/bin/sh", "sh", script, NULL);
		_exit(1);
	}
	while (access(script, F_OK) == 0)
		zoo_nap(1);
}

static void check(int round)
{
	char text[200] = "";

	zoo_reap(shell, 17 << 8);
	int fd = SYS(open(zoo_path("out"), O_RDONLY));
	SYS(read(fd, text, sizeof text - 1));
	CHECK(strcmp(text, "begun\nline 5\nline 4\nline 3\nline 2\nline 1\n") == 0, "%s", text);
	(void)round;
}
