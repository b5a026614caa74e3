// membarrier registrations.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <linux/membarrier.h>

static int barrier(int command)
{
	return syscall(SYS_membarrier, command, 0, 0);
}

static long supported;

static void prepare(int round)
{
	if (round > 1)
		return;
	supported = SYS(barrier(MEMBARRIER_CMD_QUERY));
	SYS(barrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED));
	SYS(barrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED));
	if (supported & MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE)
		SYS(barrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE));
}

static void check(int round)
{
	/* Without its registration each of these ends with EPERM. */
	SYS(barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED));
	if (supported & MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE)
		SYS(barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE));
	SYS(barrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED));
	(void)round;
}
