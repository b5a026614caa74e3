// A keyring of the process with a key in it.
// zoo: refused=late:keyring
#include "zoo.h"

static void prepare(int round)
{
	(void)round;
	/* KEY_SPEC_PROCESS_KEYRING */
	SYS(syscall(SYS_add_key, "user", "hdcr-zoo", "secret", 6, -2));
}

static void check(int round)
{
	(void)round;
}
