// Refused: a listening socket whose segments are signed: clients without the key would get in.
// zoo: rounds=1 refused=tcp-signed needs=root
#include "zoo.h"
#include <netinet/in.h>
#include <linux/tcp.h>

static int listener;

static void prepare(int round)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct tcp_md5sig key = { .tcpm_keylen = 3, .tcpm_key = "abc" };

	listener = SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(bind(listener, (void *)&at, sizeof at));
	SYS(listen(listener, 5));
	memcpy(&key.tcpm_addr, &at, sizeof at);
	SYS(setsockopt(listener, IPPROTO_TCP, TCP_MD5SIG, &key, sizeof key));
	(void)round;
}

static void check(int round)
{
	SYS(fcntl(listener, F_GETFD));
	(void)round;
}
