// Refused: an established connection.
// zoo: rounds=1 refused=tcp
#include "zoo.h"
#include <netinet/in.h>
#include <sys/socket.h>

static int client, server;

static void prepare(int round)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof at;
	int listener = SYS(socket(AF_INET, SOCK_STREAM, 0));

	SYS(bind(listener, (struct sockaddr *)&at, sizeof at));
	SYS(listen(listener, 1));
	SYS(getsockname(listener, (struct sockaddr *)&at, &len));
	client = SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(connect(client, (struct sockaddr *)&at, sizeof at));
	server = SYS(accept(listener, NULL, NULL));
	(void)round;
}

static void check(int round)
{
	char c = 0;

	EQ(write(client, "x", 1), 1);
	EQ(read(server, &c, 1), 1);
	EQ(c, (char)120);
	(void)round;
}
