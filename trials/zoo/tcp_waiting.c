// Clients of the tree that wait to be accepted by a listening socket of the tree: in their order, one with its end shut.
// zoo: rounds=2 covers=tcp,tcp_restore
#include "zoo.h"
#include <netinet/in.h>
#include <sys/socket.h>

static int listener, clients[3], six, six_client;
static struct sockaddr_in at = { .sin_family = AF_INET };
static struct sockaddr_in6 at6 = { .sin6_family = AF_INET6 };
static in_port_t ports[3];

static void prepare(int round)
{
	socklen_t len = sizeof at, len6 = sizeof at6;
	struct sockaddr_in name;
	int on = 1;

	if (round == 1) {
		at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		at6.sin6_addr = in6addr_loopback;
		listener = SYS(socket(AF_INET, SOCK_STREAM, 0));
		six = SYS(socket(AF_INET6, SOCK_STREAM, 0));
		/* As servers do, which lets an ordinary user bind its port again at once. */
		SYS(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
		SYS(setsockopt(six, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
		SYS(bind(listener, (struct sockaddr *)&at, len));
		SYS(bind(six, (struct sockaddr *)&at6, len6));
		SYS(listen(listener, 10));
		SYS(listen(six, 10));
		SYS(getsockname(listener, (struct sockaddr *)&at, &len));
		SYS(getsockname(six, (struct sockaddr *)&at6, &len6));
	}
	for (int i = 0; i < 3; i++) {
		clients[i] = SYS(socket(AF_INET, SOCK_STREAM, 0));
		SYS(connect(clients[i], (struct sockaddr *)&at, sizeof at));
		len = sizeof name;
		SYS(getsockname(clients[i], (struct sockaddr *)&name, &len));
		ports[i] = name.sin_port;
		zoo_nap(30);
	}
	SYS(shutdown(clients[1], SHUT_WR));
	six_client = SYS(socket(AF_INET6, SOCK_STREAM, 0));
	SYS(connect(six_client, (struct sockaddr *)&at6, sizeof at6));
}

static void check(int round)
{
	char text[16];
	int server;

	for (int i = 0; i < 3; i++) {
		struct sockaddr_in name;
		socklen_t len = sizeof name;

		server = SYS(accept(listener, (struct sockaddr *)&name, &len));
		EQ(name.sin_port, ports[i]);
		EQ(write(server, "welcome", 7), 7);
		EQ(recv(clients[i], text, 7, MSG_WAITALL), 7);
		if (i == 1) {
			EQ(read(server, text, sizeof text), 0);
		} else {
			EQ(write(clients[i], "thanks", 6), 6);
			EQ(recv(server, text, 6, MSG_WAITALL), 6);
		}
		SYS(close(server));
		SYS(close(clients[i]));
	}
	server = SYS(accept(six, NULL, NULL));
	EQ(write(six_client, "six", 3), 3);
	EQ(recv(server, text, 3, MSG_WAITALL), 3);
	SYS(close(server));
	SYS(close(six_client));
	(void)round;
}
