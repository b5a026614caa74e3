// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stopping a task: a callback that it runs on its way to user mode, and in which it waits.
 *
 * A gate is what all tasks of one freeze wait at; once it is open it stays open. A park is one task at a gate. It has two
 * references, of the session and of the queued callback, and a callback that runs late finds the gate open and returns.
 * Each park counts as a user of the module.
 */
#include <linux/hashtable.h>
#include <linux/hrtimer.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/ptrace.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/task_work.h>
#include <linux/wait.h>

#include "glue.h"

struct hk_gate {
	refcount_t refs;
	atomic_t queued;
	bool open;
	wait_queue_head_t tasks;
	wait_queue_head_t caller;
};

struct hk_park {
	struct callback_head work;
	struct hlist_node node;
	refcount_t refs;
	atomic_t state;
	spinlock_t jobs;	/* for the next two */
	struct hk_job *job;	/* what it is to do, with a reference */
	bool leaves;		/* takes no job any more */
	struct mutex reading;	/* a task that is killed leaves the callback, and then its stack, only without it */
	struct task_struct *task;
	struct hk_gate *gate;
};

/* Which task stands at which gate; a task stands at one at a time. */
static DEFINE_HASHTABLE(hk_registry, 12);
static DEFINE_SPINLOCK(hk_registry_lock);

struct hk_gate *hk_gate_new(void)
{
	struct hk_gate *gate = kzalloc(sizeof(*gate), GFP_KERNEL_ACCOUNT);

	if (!gate)
		return NULL;
	refcount_set(&gate->refs, 1);
	init_waitqueue_head(&gate->tasks);
	init_waitqueue_head(&gate->caller);
	return gate;
}

void hk_gate_put(struct hk_gate *gate)
{
	if (refcount_dec_and_test(&gate->refs))
		kfree(gate);
}

void hk_gate_open(struct hk_gate *gate)
{
	smp_store_release(&gate->open, true);
	wake_up_all(&gate->tasks);
}

/* Waits until every callback has run, or for a time; -EINTR when the caller got a signal. */
long hk_gate_wait(struct hk_gate *gate, u64 ns)
{
	ktime_t time = ns_to_ktime(ns);
	long result = 0;
	DEFINE_WAIT(wait);

	prepare_to_wait(&gate->caller, &wait, TASK_INTERRUPTIBLE);
	if (atomic_read(&gate->queued) > 0) {
		if (signal_pending(current))
			result = -EINTR;
		else
			schedule_hrtimeout_range(&time, 0, HRTIMER_MODE_REL);
	}
	finish_wait(&gate->caller, &wait);
	return result;
}

static void hk_park_put(struct hk_park *park)
{
	if (!refcount_dec_and_test(&park->refs))
		return;
	put_task_struct(park->task);
	hk_gate_put(park->gate);
	kfree(park);
	module_put(THIS_MODULE);
}

static void hk_answer(struct hk_park *park, int state)
{
	if (atomic_xchg(&park->state, state) == HK_QUEUED && atomic_dec_and_test(&park->gate->queued))
		wake_up(&park->gate->caller);
}

/* Waits, and does what it is told meanwhile, until the gate opens or the task is killed. */
static void hk_stay(struct hk_park *park)
{
	bool is_over = false;

	while (!is_over) {
		struct hk_job *job;
		int killed = wait_event_state(park->gate->tasks,
					      smp_load_acquire(&park->gate->open) || READ_ONCE(park->job),
					      (TASK_KILLABLE | TASK_FREEZABLE));

		is_over = killed || smp_load_acquire(&park->gate->open);
		spin_lock(&park->jobs);
		job = park->job;
		WRITE_ONCE(park->job, NULL);
		park->leaves = is_over;
		spin_unlock(&park->jobs);
		if (!job)
			continue;
		if (is_over)
			hk_job_refuse(job, -ESRCH);
		else
			hk_job_run(job);
		hk_job_put(job);
	}
}

static void hk_parked(struct callback_head *work)
{
	struct hk_park *park = container_of(work, struct hk_park, work);

	if (current->flags & PF_EXITING) {
		hk_answer(park, HK_GONE);
	} else if (!smp_load_acquire(&park->gate->open)) {
		hk_settle();
		hk_answer(park, HK_PARKED);
		hk_stay(park);
		mutex_lock(&park->reading);
		atomic_set(&park->state, HK_GONE);
		mutex_unlock(&park->reading);
	}
	hk_park_put(park);
}

static struct task_struct *hk_task(s32 tid, u64 start)
{
	struct pid *pid = find_get_pid(tid);
	struct task_struct *task = get_pid_task(pid, PIDTYPE_PID);

	put_pid(pid);
	if (task && hk_start_of(task) != start) {
		put_task_struct(task);
		task = NULL;
	}
	return task;
}

static long hk_register(struct hk_park *park)
{
	struct hk_park *other;
	long result = 0;

	spin_lock(&hk_registry_lock);
	hash_for_each_possible(hk_registry, other, node, (unsigned long)park->task) {
		if (other->task == park->task)
			result = other->gate == park->gate ? -EEXIST : -EBUSY;
	}
	if (!result)
		hash_add(hk_registry, &park->node, (unsigned long)park->task);
	spin_unlock(&hk_registry_lock);
	return result;
}

/* -ESRCH: there is no such task; -EEXIST: it stands at this gate already; -EBUSY: at another one. */
long hk_park_add(struct hk_gate *gate, s32 tid, u64 start, struct hk_park **out)
{
	struct hk_park *park = kzalloc(sizeof(*park), GFP_KERNEL_ACCOUNT);
	long result;

	if (!park)
		return -ENOMEM;
	park->task = hk_task(tid, start);
	if (!park->task) {
		kfree(park);
		return -ESRCH;
	}
	__module_get(THIS_MODULE);
	refcount_inc(&gate->refs);
	park->gate = gate;
	refcount_set(&park->refs, 1);
	INIT_HLIST_NODE(&park->node);
	mutex_init(&park->reading);
	spin_lock_init(&park->jobs);
	atomic_set(&park->state, HK_DEAD);
	result = hk_register(park);
	if (result) {
		hk_park_put(park);
		return result;
	}
	*out = park;
	if (READ_ONCE(park->task->exit_state))
		return 0;
	refcount_inc(&park->refs);
	atomic_set(&park->state, HK_QUEUED);
	atomic_inc(&gate->queued);
	init_task_work(&park->work, hk_parked);
	if (task_work_add(park->task, &park->work, TWA_SIGNAL)) {
		hk_answer(park, HK_DEAD);
		hk_park_put(park);
	}
	return 0;
}

static bool hk_is_work(struct callback_head *work, void *park)
{
	return work->func == hk_parked && container_of(work, struct hk_park, work) == park;
}

/* The session's reference: the task may stand at another gate from now on. The gate is opened first. */
void hk_park_drop(struct hk_park *park)
{
	int state = atomic_read(&park->state);

	spin_lock(&hk_registry_lock);
	hash_del(&park->node);
	spin_unlock(&hk_registry_lock);
	if ((state == HK_QUEUED || state == HK_HELD) && hk_take_back(park->task, hk_is_work, park)) {
		hk_answer(park, HK_GONE);
		hk_park_put(park);
	}
	hk_park_put(park);
}

u32 hk_park_state(const struct hk_park *park)
{
	return atomic_read(&park->state);
}

/* From now on it is not waited for. False: it has answered meanwhile. */
bool hk_park_hold(struct hk_park *park)
{
	if (atomic_cmpxchg(&park->state, HK_QUEUED, HK_HELD) != HK_QUEUED)
		return false;
	atomic_dec(&park->gate->queued);
	return true;
}

struct task_struct *hk_park_task(const struct hk_park *park)
{
	return park->task;
}

/* -EBUSY: it is not parked, and its stack may go at any moment. */
long hk_park_registers(struct hk_park *park, u32 note, void *out, u32 room)
{
	long result = -EBUSY;

	if (mutex_lock_killable(&park->reading))
		return -EINTR;
	if (atomic_read(&park->state) == HK_PARKED)
		result = hk_registers(park->task, note, out, room);
	mutex_unlock(&park->reading);
	return result;
}

/* As for registers. */
long hk_park_waiting(struct hk_park *park, struct hk_waits *out)
{
	long result = -EBUSY;

	if (mutex_lock_killable(&park->reading))
		return -EINTR;
	if (atomic_read(&park->state) == HK_PARKED) {
		hk_waits(park->task, task_pt_regs(park->task)->di, out);
		result = 0;
	}
	mutex_unlock(&park->reading);
	return result;
}

/* -EBUSY: it is not parked, or has something to do already. */
long hk_park_run(struct hk_park *park, struct hk_job *job, u64 ns)
{
	bool is_taken = false;

	spin_lock(&park->jobs);
	if (atomic_read(&park->state) == HK_PARKED && !park->leaves && !park->job) {
		WRITE_ONCE(park->job, hk_job_get(job));
		is_taken = true;
	}
	spin_unlock(&park->jobs);
	if (!is_taken)
		return -EBUSY;
	wake_up_process(park->task);
	return hk_job_await(job, ns);
}
