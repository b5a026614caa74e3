/* A list of attributes, looked at before and after. */
#ifndef ATTRIBUTES_H
#define ATTRIBUTES_H
#include "zoo.h"
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <sys/resource.h>

struct attributes { int n; long value[200]; };

static void add(struct attributes *a, long value)
{
	CHECK(a->n < 200, "too many attributes");
	a->value[a->n++] = value;
}

/* What a call gives that this machine may not have: its result, or its error. */
static long maybe(long result) { return result < 0 ? -errno : result; }

static int look_int(int option)
{
	int value = -1;

	SYS(prctl(option, &value, 0, 0, 0));
	return value;
}

static void compare(const char *whose, const struct attributes *before, const struct attributes *now)
{
	EQ(now->n, before->n);
	for (int i = 0; i < now->n; i++)
		CHECK(now->value[i] == before->value[i], "%s, attribute %d: %ld, not %ld", whose, i, now->value[i], before->value[i]);
}
#endif
