// Refused: a connection whose other end is held by a process outside of the tree.
// zoo: rounds=1 refused=tcp-established covers=tcp
#include "zoo.h"
#include <netinet/in.h>
#include <sys/socket.h>

static int client;

static void prepare(int round)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof at;
	int listener = SYS(socket(AF_INET, SOCK_STREAM, 0)), status;
	char c;

	SYS(bind(listener, (struct sockaddr *)&at, sizeof at));
	SYS(listen(listener, 1));
	SYS(getsockname(listener, (struct sockaddr *)&at, &len));
	pid_t child = SYS(fork());
	if (child == 0) {
		/* Its child is nobody's of this tree any more, and ends with the connection. */
		if (fork() == 0) {
			int server = SYS(accept(listener, NULL, NULL));

			close(listener);
			while (read(server, &c, 1) > 0)
				EQ(write(server, &c, 1), 1);
		}
		_exit(0);
	}
	SYS(waitpid(child, &status, 0));
	SYS(close(listener));
	client = SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(connect(client, (struct sockaddr *)&at, sizeof at));
	EQ(write(client, "x", 1), 1);
	EQ(read(client, &c, 1), 1);
	(void)round;
}

static void check(int round)
{
	char c = 0;

	EQ(write(client, "x", 1), 1);
	EQ(read(client, &c, 1), 1);
	EQ(c, 'x');
	(void)round;
}
