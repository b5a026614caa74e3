// Refused: a client of the tree that has sent something and waits to be accepted by the tree itself.
// zoo: rounds=1 refused=late:tcp-unaccepted covers=tcp
#include "zoo.h"
#include <netinet/in.h>
#include <sys/socket.h>

static int listener, client;

static void prepare(int round)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof at;

	listener = SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(bind(listener, (struct sockaddr *)&at, sizeof at));
	SYS(listen(listener, 1));
	SYS(getsockname(listener, (struct sockaddr *)&at, &len));
	client = SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(connect(client, (struct sockaddr *)&at, sizeof at));
	EQ(write(client, "x", 1), 1);
	(void)round;
}

static void check(int round)
{
	int server = SYS(accept(listener, NULL, NULL));
	char c = 0;

	EQ(read(server, &c, 1), 1);
	EQ(c, 'x');
	(void)round;
}
