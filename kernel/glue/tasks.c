// SPDX-License-Identifier: GPL-2.0-only
/*
 * Looking at tasks: which there are, how one stands, what is known of one that is frozen.
 *
 * All numbers are those of the caller's pid namespace; what it does not see has the number 0 and is left out.
 */
#include <linux/capability.h>
#include <linux/cgroup.h>
#include <linux/cred.h>
#include <linux/elf.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/pid_namespace.h>
#include <linux/ptrace.h>
#include <linux/rcupdate.h>
#include <linux/regset.h>
#include <linux/sched/jobctl.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/sched/task_stack.h>
#include <linux/version.h>


#include "glue.h"

u64 hk_start_of(const struct task_struct *task)
{
	return task->start_boottime;
}

/* Under RCU. */
static bool hk_in_cgroup(struct task_struct *task, u64 id)
{
	struct cgroup *cgroup;

	for (cgroup = task_dfl_cgroup(task); cgroup; cgroup = cgroup_parent(cgroup))
		if (cgroup_id(cgroup) == id)
			return true;
	return false;
}

/* Under RCU. */
static void hk_fill_row(struct hk_row *row, struct task_struct *task, struct pid_namespace *ns, u64 cgroup)
{
	row->tid = task_pid_nr_ns(task, ns);
	row->tgid = task_tgid_nr_ns(task, ns);
	row->ppid = task_tgid_nr_ns(rcu_dereference(task->real_parent), ns);
	row->pgid = task_pgrp_nr_ns(task, ns);
	row->sid = task_session_nr_ns(task, ns);
	row->start = hk_start_of(task);
	row->flags = 0;
	if (task->flags & (PF_KTHREAD | PF_IO_WORKER))
		row->flags |= HK_ROW_KERNEL;
	if (READ_ONCE(task->exit_state))
		row->flags |= HK_ROW_DEAD;
	if (is_global_init(task))
		row->flags |= HK_ROW_INIT;
	if (same_thread_group(task, current))
		row->flags |= HK_ROW_CALLER;
	if (cgroup && hk_in_cgroup(task, cgroup))
		row->flags |= HK_ROW_IN_CGROUP;
}

/* Returns how many there are; rows that do not fit are left out. Parents mostly come before their children. */
long hk_scan(struct hk_row *rows, u32 room, u64 cgroup)
{
	struct pid_namespace *ns = task_active_pid_ns(current);
	struct task_struct *process, *task;
	long count = 0;

	rcu_read_lock();
	for_each_process(process) {
		for_each_thread(process, task) {
			if (!task_pid_nr_ns(task, ns))
				continue;
			if (count < room)
				hk_fill_row(&rows[count], task, ns, cgroup);
			count++;
		}
	}
	rcu_read_unlock();
	return count;
}

/* The child on whose end or exec a task waits in vfork: that child points into the task's stack. Under RCU. */
static struct task_struct *hk_vfork_child(struct task_struct *parent)
{
	unsigned long stack = (unsigned long)task_stack_page(parent);
	struct task_struct *process, *task;

	for_each_process(process) {
		for_each_thread(process, task) {
			unsigned long done = (unsigned long)READ_ONCE(task->vfork_done);

			if (done >= stack && done < stack + THREAD_SIZE)
				return task;
		}
	}
	return NULL;
}

/* A tracer lets such a task go on to its next instruction, not to a system call that it stands before. */
static bool hk_is_past_calls(struct task_struct *task)
{
	return !READ_ONCE(task->ptrace_message) && !(task->ptrace & PT_EVENT_FLAG(PTRACE_EVENT_SECCOMP));
}

void hk_look(struct task_struct *task, struct hk_look *out)
{
	struct pid_namespace *ns = task_active_pid_ns(current);
	struct task_struct *child;

	out->state = READ_ONCE(task->__state);
	out->off_cpu = !smp_load_acquire(&task->on_cpu);
	out->other = 0;
	rcu_read_lock();
	if (READ_ONCE(task->exit_state)) {
		out->kind = HK_KIND_ENDED;
	} else if (READ_ONCE(task->flags) & PF_EXITING) {
		out->kind = HK_KIND_ENDING;
	} else if (task_is_traced(task)) {
		out->kind = hk_is_past_calls(task) ? HK_KIND_TRACED : HK_KIND_TRACED_CALL;
		out->other = task_tgid_nr_ns(rcu_dereference(task->parent), ns);
	} else if (task_is_stopped(task)) {
		out->kind = HK_KIND_STOPPED;
	} else if (!(out->state & TASK_UNINTERRUPTIBLE)) {
		out->kind = HK_KIND_RUNNING;
	} else {
		child = hk_vfork_child(task);
		out->kind = child ? HK_KIND_VFORK : HK_KIND_SLEEPS;
		out->other = child ? task_tgid_nr_ns(child, ns) : 0;
	}
	rcu_read_unlock();
}

static void hk_rseq_facts(struct task_struct *task, struct hk_facts *out)
{
	out->rseq = (u64)(unsigned long)task->rseq;
	out->rseq_signature = task->rseq_sig;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	out->rseq_size = out->rseq ? task->rseq_len : 0;
#else
	out->rseq_size = out->rseq ? 32 : 0;
#endif
}

void hk_facts(struct task_struct *task, struct hk_facts *out)
{
	struct pid_namespace *ns = task_active_pid_ns(current);

	memset(out, 0, sizeof(*out));
	rcu_read_lock();
	out->alive = pid_alive(task);
	if (out->alive) {
		out->tid = task_pid_nr_ns(task, ns);
		out->tgid = task_tgid_nr_ns(task, ns);
		out->ppid = task_tgid_nr_ns(rcu_dereference(task->real_parent), ns);
		out->pgid = task_pgrp_nr_ns(task, ns);
		out->sid = task_session_nr_ns(task, ns);
	}
	out->exit_signal = task->exit_signal;
	out->exit_code = READ_ONCE(task->exit_state) ? task->exit_code : 0;
	if (out->exit_code == 0 && READ_ONCE(task->exit_state) && (task->signal->flags & SIGNAL_GROUP_EXIT))
		out->exit_code = task->signal->group_exit_code;
	out->stop_signal = task->jobctl & JOBCTL_STOP_SIGMASK;
	out->mm = (u64)(unsigned long)READ_ONCE(task->mm);
	out->files = (u64)(unsigned long)READ_ONCE(task->files);
	out->fs = (u64)(unsigned long)READ_ONCE(task->fs);
	out->sighand = (u64)(unsigned long)rcu_access_pointer(task->sighand);
	/* While sigsuspend and its kin wait the thread's own mask is kept aside. */
	out->blocked = test_tsk_restore_sigmask(task) ? task->saved_sigmask.sig[0] : task->blocked.sig[0];
	out->clear_tid = (u64)(unsigned long)task->clear_child_tid;
	out->robust_list = (u64)(unsigned long)task->robust_list;
	out->stack_at = task->sas_ss_sp;
	out->stack_size = task->sas_ss_size;
	out->stack_flags = task->sas_ss_flags;
	hk_rseq_facts(task, out);
	rcu_read_unlock();
	get_task_comm(out->comm, task);
}

/*
 * The check of ptrace. Where it is not found only those pass who pass it for every task: what could be asked through
 * files lies in a mount namespace that the caller may have made himself.
 */
bool hk_may_access(struct task_struct *task)
{
	if (hk_features() & (1ULL << HK_ACCESS_CHECK))
		return hk_may_access_exact(task);
	return capable(CAP_SYS_PTRACE);
}

/* The whole process. False: it has ended. */
bool hk_kill(struct task_struct *task)
{
	struct pid *pid = get_task_pid(task, PIDTYPE_TGID);
	bool killed = pid && kill_pid(pid, SIGKILL, 1) == 0;

	put_pid(pid);
	return killed;
}

const struct user_regset *hk_regset(struct task_struct *task, u32 note)
{
	const struct user_regset_view *view = task_user_regset_view(task);
	unsigned int i;

	for (i = 0; i < view->n; i++)
		if (view->regsets[i].core_note_type == note)
			return &view->regsets[i];
	return NULL;
}

u32 hk_xstate_size(void)
{
	const struct user_regset *set = hk_regset(current, NT_X86_XSTATE);

	return set ? set->n * set->size : 0;
}

/* Of a task that is off the processor. Returns how many bytes there were. */
long hk_registers(struct task_struct *task, u32 note, void *out, u32 room)
{
	const struct user_regset *set = hk_regset(task, note);

	if (!set)
		return -ENODEV;
	return regset_get(task, set, room, out);
}

static long hk_list_signals(const struct sigpending *queue, u8 *out, u32 room)
{
	struct sigqueue *entry;
	long count = 0;

	list_for_each_entry(entry, &queue->list, list) {
		if (count < room)
			memcpy(out + count * sizeof(siginfo_t), &entry->info, sizeof(entry->info));
		count++;
	}
	return count;
}

/* The rows are zero. Returns how many there are; those that do not fit are left out. */
long hk_signals(struct task_struct *task, bool shared, u8 *out, u32 room)
{
	struct sighand_struct *sighand;
	unsigned long flags;
	long count = -ESRCH;

	rcu_read_lock();
	while ((sighand = rcu_dereference(task->sighand))) {
		spin_lock_irqsave(&sighand->siglock, flags);
		if (sighand == rcu_access_pointer(task->sighand)) {
			count = hk_list_signals(shared ? &task->signal->shared_pending : &task->pending, out, room);
			spin_unlock_irqrestore(&sighand->siglock, flags);
			break;
		}
		spin_unlock_irqrestore(&sighand->siglock, flags);
	}
	rcu_read_unlock();
	return count;
}
