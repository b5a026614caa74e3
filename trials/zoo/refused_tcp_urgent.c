// Refused: an urgent byte that waits in a connection.
// zoo: rounds=1 refused=tcp-urgent covers=tcp
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
	EQ(write(client, "before", 6), 6);
	EQ(send(client, "!", 1, MSG_OOB), 1);
	EQ(write(client, "behind", 6), 6);
	(void)round;
}

static void check(int round)
{
	char text[16] = "";

	EQ(recv(server, text, 1, MSG_OOB), 1);
	EQ(text[0], '!');
	EQ(recv(server, text, sizeof text, 0), 6);
	EQ(recv(server, text, sizeof text, 0), 6);
	CHECK(memcmp(text, "behind", 6) == 0, "what came behind");
	(void)round;
}
