// SPDX-License-Identifier: GPL-2.0-only
/*
 * System calls that a parked task makes on itself. A job is what it is to do: it belongs to whoever has a reference, and is
 * whole also when its caller is killed meanwhile.
 *
 * What the calls read and write lies in memory of the task's own that is mapped for the time of the job.
 */
#include <linux/compat.h>
#include <linux/completion.h>
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/ptrace.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "glue.h"

struct hk_job {
	refcount_t refs;
	struct completion done;
	long result;
	u32 count, size, places, made;
	struct hk_call *calls;
	struct hk_pointer *pointers;
	u8 *data;
};

struct hk_job *hk_job_new(u32 count, u32 size, u32 places)
{
	size_t calls = array_size(count, sizeof(struct hk_call));
	size_t pointers = array_size(places, sizeof(struct hk_pointer));
	struct hk_job *job = hk_alloc(sizeof(*job) + calls + pointers + size);

	if (!job)
		return NULL;
	refcount_set(&job->refs, 1);
	init_completion(&job->done);
	job->count = count;
	job->size = size;
	job->places = places;
	job->calls = (struct hk_call *)(job + 1);
	job->pointers = (struct hk_pointer *)(job->calls + count);
	job->data = (u8 *)(job->pointers + places);
	return job;
}

struct hk_job *hk_job_get(struct hk_job *job)
{
	refcount_inc(&job->refs);
	return job;
}

void hk_job_put(struct hk_job *job)
{
	if (refcount_dec_and_test(&job->refs))
		hk_free(job);
}

struct hk_call *hk_job_calls(struct hk_job *job)
{
	return job->calls;
}

u8 *hk_job_data(struct hk_job *job)
{
	return job->data;
}

struct hk_pointer *hk_job_pointers(struct hk_job *job)
{
	return job->pointers;
}

u32 hk_job_made(const struct hk_job *job)
{
	return job->made;
}

/* What came of it; -EINTR or -ETIMEDOUT: it may still be at work, and nobody may look at it any more. */
long hk_job_await(struct hk_job *job, u64 ns)
{
	long left = wait_for_completion_killable_timeout(&job->done, nsecs_to_jiffies(ns) + 1);

	if (left > 0)
		return job->result;
	return left ? -EINTR : -ETIMEDOUT;
}

/* It was not begun. */
void hk_job_refuse(struct hk_job *job, long result)
{
	job->result = result;
	complete(&job->done);
}

static unsigned long hk_argument(const struct hk_job *job, const struct hk_call *call, u32 number, unsigned long base)
{
	switch (call->kinds[number]) {
	case HK_ARGUMENT_DATA:
		return base + call->args[number];
	case HK_ARGUMENT_RESULT:
		return job->calls[call->args[number]].result;
	default:
		return call->args[number];
	}
}

static void hk_make_calls(struct hk_job *job, unsigned long base)
{
	u32 i;

	for (i = 0; i < job->count; i++) {
		struct hk_call *call = &job->calls[i];
		struct pt_regs regs = {
			.di = hk_argument(job, call, 0, base),
			.si = hk_argument(job, call, 1, base),
			.dx = hk_argument(job, call, 2, base),
			.r10 = hk_argument(job, call, 3, base),
			.r8 = hk_argument(job, call, 4, base),
			.r9 = hk_argument(job, call, 5, base),
			.orig_ax = call->nr,
		};

		if (fatal_signal_pending(current))
			break;
		call->result = hk_system_call(&regs, call->nr);
		job->made = i + 1;
		if (call->stops && IS_ERR_VALUE(call->result))
			break;
		cond_resched();
	}
}

/* With the data at its place. */
static long hk_with_data(struct hk_job *job)
{
	unsigned long room = PAGE_ALIGN(job->size), base;
	long result = 0;
	u32 i;

	if (!room) {
		hk_make_calls(job, 0);
		return 0;
	}
	base = vm_mmap(NULL, 0, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0);
	if (IS_ERR_VALUE(base))
		return base;
	for (i = 0; i < job->places; i++) {
		u64 target = base + job->pointers[i].target;

		memcpy(job->data + job->pointers[i].place, &target, sizeof(target));
	}
	if (copy_to_user((void __user *)base, job->data, job->size))
		result = -EFAULT;
	if (!result)
		hk_make_calls(job, base);
	if (!result && copy_from_user(job->data, (void __user *)base, job->size))
		result = -EFAULT;
	vm_munmap(base, room);
	return result;
}

/* By the parked task. What it is interrupted in stays what it is. */
void hk_job_run(struct hk_job *job)
{
	struct restart_block kept = current->restart_block;
	long result;

	if (!(hk_features() & (1ULL << HK_CALLS)) || in_compat_syscall() || !user_64bit_mode(current_pt_regs()))
		result = -EOPNOTSUPP;
#ifdef CONFIG_SECCOMP
	else if (READ_ONCE(current->seccomp.mode) != SECCOMP_MODE_DISABLED)
		result = -EPERM;
#endif
	else
		result = hk_with_data(job);
	current->restart_block = kept;
	job->result = result;
	complete(&job->done);
}
