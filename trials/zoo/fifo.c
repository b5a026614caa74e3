// FIFOs: bytes in them, both ends inside, a reader that has no writer yet, removed while open.
// zoo: rounds=3 static=yes
#include "zoo.h"

static int in, out, lonely, gone;

static void prepare(int round)
{
	if (round == 1) {
		SYS(mkfifo(zoo_path("fifo"), 0600));
		in = SYS(open(zoo_path("fifo"), O_RDONLY | O_NONBLOCK));
		out = SYS(open(zoo_path("fifo"), O_WRONLY | O_CLOEXEC));
		SYS(mkfifo(zoo_path("lonely"), 0600));
		lonely = SYS(open(zoo_path("lonely"), O_RDONLY | O_NONBLOCK));
		SYS(mkfifo(zoo_path("gone"), 0600));
		gone = SYS(open(zoo_path("gone"), O_RDWR));
		SYS(unlink(zoo_path("gone")));
	}
	EQ(write(out, "through the fifo", 16), 16);
	EQ(write(gone, "kept", 4), 4);
}

static void check(int round)
{
	char text[100];

	EQ(read(in, text, sizeof text), 16);
	CHECK(memcmp(text, "through the fifo", 16) == 0, "bytes");
	EQ(read(in, text, sizeof text), -1);
	EQ(errno, EAGAIN);
	EQ(read(lonely, text, sizeof text), 0);
	EQ(read(gone, text, sizeof text), 4);
	EQ(fcntl(out, F_GETFD), FD_CLOEXEC);
	EQ(fcntl(out, F_GETFL) & O_ACCMODE, O_WRONLY);
	/* The name still leads to the same FIFO. */
	int more = SYS(open(zoo_path("fifo"), O_WRONLY | O_NONBLOCK));
	EQ(write(more, "x", 1), 1);
	EQ(read(in, text, sizeof text), 1);
	SYS(close(more));
	(void)round;
}
