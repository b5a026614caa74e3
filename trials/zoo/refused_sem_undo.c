// Refused: a SysV semaphore adjustment to be made at exit, which nothing shows.
// zoo: rounds=1 refused=undo
#include "zoo.h"
#include <sys/sem.h>

static int set;

static void prepare(int round)
{
	struct sembuf up = { 0, 1, SEM_UNDO };

	set = SYS(semget(IPC_PRIVATE, 1, 0600));
	SYS(semop(set, &up, 1));
	(void)round;
}

static void check(int round)
{
	EQ(semctl(set, 0, GETVAL), 1);
	SYS(semctl(set, 0, IPC_RMID));
	(void)round;
}
