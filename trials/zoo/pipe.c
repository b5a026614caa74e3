// Pipes: bytes in them, size, packets, O_NONBLOCK, closed ends, an end shared with a child.
// zoo: rounds=3 static=yes musl=yes
#include "zoo.h"
#include <sys/ioctl.h>

static int plain[2], packet[2], full[2], no_reader[2], no_writer[2], small[2];
static char block[70000], back[70000];
static long in_full;

static void prepare(int round)
{
	if (round == 1) {
		SYS(pipe(plain));
		SYS(pipe2(packet, O_DIRECT | O_CLOEXEC));
		SYS(pipe2(full, O_NONBLOCK));
		SYS(pipe(no_reader));
		SYS(close(no_reader[0]));
		SYS(pipe(small));
		EQ(fcntl(small[1], F_SETPIPE_SZ, 4096), 4096);
		EQ(fcntl(plain[0], F_SETPIPE_SZ, 1 << 20), 1 << 20);
		SYS(fcntl(small[0], F_SETFL, O_NONBLOCK));
		SYS(fcntl(small[1], F_SETFD, FD_CLOEXEC));
		signal(SIGPIPE, SIG_IGN);
	}
	SYS(pipe(no_writer));
	zoo_fill(block, sizeof block, round);
	EQ(write(plain[1], block, sizeof block), sizeof block);
	EQ(write(packet[1], "first", 5), 5);
	EQ(write(packet[1], "second one", 10), 10);
	EQ(write(packet[1], "", 0), 0);
	for (in_full = 0; write(full[1], block + in_full / 4096, 4096) == 4096; in_full += 4096)
		;
	EQ(errno, EAGAIN);
	EQ(write(small[1], block, 4096), 4096);
	EQ(write(no_writer[1], "last words", 10), 10);
	SYS(close(no_writer[1]));
}

static void check(int round)
{
	int queued;

	SYS(ioctl(plain[0], FIONREAD, &queued));
	EQ(queued, sizeof block);
	EQ(fcntl(plain[0], F_GETPIPE_SZ), 1 << 20);
	EQ(fcntl(small[0], F_GETPIPE_SZ), 4096);
	for (long got = 0; got < (long)sizeof back; )
		got += SYS(read(plain[0], back + got, sizeof back - got));
	CHECK(memcmp(block, back, sizeof back) == 0, "bytes of the plain pipe");
	EQ(read(packet[0], back, sizeof back), 5);
	EQ(read(packet[0], back, sizeof back), 10);
	CHECK(memcmp(back, "second one", 10) == 0, "packet");
	errno = 0;
	EQ(write(full[1], block, 1), -1);
	EQ(errno, EAGAIN);
	long got = 0, n;
	while ((n = read(full[0], back, 4096)) > 0) {
		CHECK(memcmp(back, block + got / 4096, n) == 0, "full pipe at %ld", got);
		got += n;
	}
	EQ(got, in_full);
	EQ(fcntl(full[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	EQ(fcntl(plain[0], F_GETFL) & O_NONBLOCK, 0);
	EQ(fcntl(packet[1], F_GETFL) & O_DIRECT, O_DIRECT);
	EQ(fcntl(packet[1], F_GETFD), FD_CLOEXEC);
	EQ(fcntl(small[1], F_GETFD), FD_CLOEXEC);
	EQ(fcntl(small[0], F_GETFD), 0);
	EQ(read(small[0], back, 5000), 4096);
	EQ(read(small[0], back, 1), -1);
	EQ(write(no_reader[1], "x", 1), -1);
	EQ(errno, EPIPE);
	EQ(read(no_writer[0], back, 100), 10);
	CHECK(memcmp(back, "last words", 10) == 0, "closed writer");
	EQ(read(no_writer[0], back, 100), 0);
	SYS(close(no_writer[0]));
	(void)round;
}
