// SPDX-License-Identifier: GPL-2.0-only
/*
 * Making tasks: each is cloned with its number, begins in the kernel, builds itself, and parks before its first
 * instruction. The process that asked is the parent of the first, waits until all are parked, puts the registers in, and
 * lets all go at once; or kills all.
 *
 * A site is one restore. What is being built is counted before it is cloned, nothing is cloned once the site has failed,
 * and the site is left when nobody builds any more; a task whose site failed never comes to user mode.
 */
#include <linux/elf.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/ptrace.h>
#include <linux/regset.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/task_work.h>
#include <linux/tty.h>
#include <linux/wait.h>

#include "glue.h"

struct hk_built {
	struct callback_head work;
	struct hk_site *site;
	struct task_struct *task;
	u64 blocked;
	bool left;
	u32 number;
};

struct hk_site {
	refcount_t refs;
	atomic_t building;
	atomic_t parked;
	int failed;	/* the first error */
	bool open;
	struct mutex setting;	/* a task that is killed leaves its park, and then its stack, only without it */
	wait_queue_head_t tasks;
	wait_queue_head_t caller;
	const void *plan;
	u32 count;
	struct hk_built built[];
};

static void hk_site_unref(struct hk_site *site)
{
	u32 i;

	if (!refcount_dec_and_test(&site->refs))
		return;
	for (i = 0; i < site->count; i++)
		if (site->built[i].task)
			put_task_struct(site->built[i].task);
	kvfree(site);
	module_put(THIS_MODULE);
}

struct hk_site *hk_site_new(const void *plan, u32 count)
{
	struct hk_site *site = kvzalloc(struct_size(site, built, count), GFP_KERNEL_ACCOUNT);
	u32 i;

	if (!site)
		return NULL;
	__module_get(THIS_MODULE);
	refcount_set(&site->refs, 1);
	mutex_init(&site->setting);
	init_waitqueue_head(&site->tasks);
	init_waitqueue_head(&site->caller);
	site->plan = plan;
	site->count = count;
	for (i = 0; i < count; i++) {
		site->built[i].site = site;
		site->built[i].number = i;
	}
	return site;
}

static void hk_block_all(sigset_t *old)
{
	sigset_t all;

	sigfillset(&all);
	sigdelsetmask(&all, sigmask(SIGKILL) | sigmask(SIGSTOP));
	sigprocmask(SIG_BLOCK, &all, old);
}

static void hk_park_built(struct callback_head *work)
{
	struct hk_built *built = container_of(work, struct hk_built, work);
	struct hk_site *site = built->site;

	atomic_inc(&site->parked);
	wake_up(&site->caller);
	wait_event_state(site->tasks, smp_load_acquire(&site->open) || READ_ONCE(site->failed), TASK_KILLABLE);
	mutex_lock(&site->setting);
	built->left = true;
	mutex_unlock(&site->setting);
	if (smp_load_acquire(&site->open)) {
		sigset_t blocked = { .sig = { built->blocked } };

		sigdelsetmask(&blocked, sigmask(SIGKILL) | sigmask(SIGSTOP));
		sigprocmask(SIG_SETMASK, &blocked, NULL);
	} else {
		send_sig(SIGKILL, current, 1);
	}
	hk_site_unref(site);
}

/* The first thing that a new task does. */
static int hk_begin_task(void *data)
{
	struct hk_built *built = data;
	struct hk_site *site = built->site;
	long result;

	built->task = get_task_struct(current);
	result = hdcr_rs_build(site->plan, site, built->number);
	if (result)
		cmpxchg(&site->failed, 0, (int)result);
	init_task_work(&built->work, hk_park_built);
	/* A task that is not ending takes it. */
	if (task_work_add(current, &built->work, TWA_RESUME)) {
		cmpxchg(&site->failed, 0, -ESRCH);
		send_sig(SIGKILL, current, 1);
		hk_site_unref(site);
	}
	atomic_dec(&site->building);
	wake_up(&site->caller);
	return 0;
}

/* A child of the calling task, or a thread of its process. */
long hk_clone(struct hk_site *site, u32 number, s32 tid, bool thread, u32 exit_signal)
{
	struct kernel_clone_args args = {
		.flags = CLONE_UNTRACED,
		.exit_signal = thread ? 0 : exit_signal,
		.fn = hk_begin_task,
		.fn_arg = &site->built[number],
		.set_tid = &tid,
		.set_tid_size = 1,
	};
	sigset_t old;
	long got;

	if (thread)
		args.flags |= CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
	refcount_inc(&site->refs);
	atomic_inc(&site->building);
	hk_block_all(&old);
	got = READ_ONCE(site->failed) ? -EINTR : hk_kernel_clone(&args);
	sigprocmask(SIG_SETMASK, &old, NULL);
	if (got < 0) {
		atomic_dec(&site->building);
		hk_site_unref(site);
		return got;
	}
	return 0;
}

/* The signals that a task blocks when it is let go. */
void hk_set_blocked(struct hk_site *site, u32 number, u64 blocked)
{
	site->built[number].blocked = blocked;
}

static bool hk_is_off(struct task_struct *task)
{
	return (READ_ONCE(task->__state) & TASK_UNINTERRUPTIBLE) && !smp_load_acquire(&task->on_cpu);
}

/* Until all are parked and off their processors. */
long hk_site_wait(struct hk_site *site, u64 until)
{
	u32 i;

	while (!READ_ONCE(site->failed) && atomic_read(&site->parked) < site->count) {
		if (wait_event_killable_timeout(site->caller, READ_ONCE(site->failed) ||
						atomic_read(&site->parked) >= site->count, HZ / 50 + 1) < 0)
			return -EINTR;
		if (ktime_get_ns() > until)
			return -ETIMEDOUT;
	}
	for (i = 0; i < site->count && !READ_ONCE(site->failed); i++) {
		while (!hk_is_off(site->built[i].task)) {
			if (fatal_signal_pending(current))
				return -EINTR;
			if (ktime_get_ns() > until)
				return -ETIMEDOUT;
			hk_pause();
		}
	}
	return READ_ONCE(site->failed);
}

/* Every task that was made is killed, and nobody builds any more when this returns. */
void hk_site_fail(struct hk_site *site)
{
	u32 i;

	cmpxchg(&site->failed, 0, -ECANCELED);
	do {
		wake_up_all(&site->tasks);
		for (i = 0; i < site->count; i++)
			if (READ_ONCE(site->built[i].task))
				send_sig(SIGKILL, site->built[i].task, 1);
		wait_event_timeout(site->caller, !atomic_read(&site->building), HZ / 50 + 1);
	} while (atomic_read(&site->building));
}

void hk_site_open(struct hk_site *site)
{
	smp_store_release(&site->open, true);
	wake_up_all(&site->tasks);
}

void hk_site_put(struct hk_site *site)
{
	hk_site_unref(site);
}

static long hk_set(struct task_struct *task, u32 note, const void *from, u32 size)
{
	const struct user_regset *set = hk_regset(task, note);

	if (!set || set->n * set->size != size)
		return -EINVAL;
	return set->set(task, set, 0, size, from, NULL);
}

/* Of a task that is parked. */
long hk_set_registers(struct hk_site *site, u32 number, const void *general, u32 general_size, const void *xstate,
		      u32 xstate_size)
{
	struct task_struct *task = site->built[number].task;
	long result = -ESRCH;

	mutex_lock(&site->setting);
	if (!site->built[number].left)
		result = hk_set(task, NT_PRSTATUS, general, general_size);
	if (!result)
		result = hk_set(task, NT_X86_XSTATE, xstate, xstate_size);
	mutex_unlock(&site->setting);
	return result;
}

/* Makes a process a member of the session and the group that other processes of the site lead; -1: of none of them. */
void hk_set_ids(struct hk_site *site, u32 number, s32 session, s32 group)
{
	struct task_struct *task = site->built[number].task;

	hk_lock_tasks();
	/* Whoever was killed meanwhile may be gone. */
	if (pid_alive(task) && session >= 0 && pid_alive(site->built[session].task)) {
		struct tty_struct *tty;

		hk_change_pid(task, PIDTYPE_SID, task_pid(site->built[session].task));
		task->signal->leader = (u32)session == number;
		spin_lock(&task->sighand->siglock);
		tty = task->signal->tty;
		task->signal->tty = NULL;
		spin_unlock(&task->sighand->siglock);
		tty_kref_put(tty);
	}
	if (pid_alive(task) && group >= 0 && pid_alive(site->built[group].task))
		hk_change_pid(task, PIDTYPE_PGID, task_pid(site->built[group].task));
	hk_unlock_tasks();
}
