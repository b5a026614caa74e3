// SPDX-License-Identifier: GPL-2.0-only
/*
 * What of a frozen task no image of the module's own can hold, and what a restored one has from whoever restores it.
 */
#include <linux/cred.h>
#include <linux/fs_struct.h>
#include <linux/mm.h>
#include <linux/nsproxy.h>
#include <linux/oom.h>
#include <linux/personality.h>
#include <linux/ptrace.h>
#include <linux/resource.h>
#include <linux/sched/coredump.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/seccomp.h>
#include <linux/timekeeping.h>
#include <linux/utsname.h>
#include <linux/version.h>

#include "glue.h"

/* Its numbers are those of hdcr_abi::obstacle. */
static u32 hk_task_obstacle(struct task_struct *task)
{
	if (task->ptrace)
		return 1;
	if (test_tsk_thread_flag(task, TIF_ADDR32))
		return 2;
#ifdef CONFIG_SECCOMP
	if (READ_ONCE(task->seccomp.mode) != SECCOMP_MODE_DISABLED)
		return 3;
#endif
	if (!list_empty(&task->pending.list) || !list_empty(&task->signal->shared_pending.list))
		return 4;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
	if (!hlist_empty(&task->signal->posix_timers))
		return 5;
#else
	if (!list_empty(&task->signal->posix_timers))
		return 5;
#endif
	if (hrtimer_active(&task->signal->real_timer) || task->signal->it[0].expires || task->signal->it[1].expires)
		return 5;
#ifdef CONFIG_IO_URING
	if (task->io_uring)
		return 6;
#endif
	if (task->pdeath_signal || task->signal->is_child_subreaper)
		return 7;
	if (task->thread.ptrace_bps[0] || task->thread.io_bitmap ||
	    memchr_inv(task->thread.tls_array, 0, sizeof(task->thread.tls_array)))
		return 8;
	return 0;
}

static u32 hk_place_obstacle(struct task_struct *task)
{
	u32 obstacle = 0;

	task_lock(task);
	if (!task->fs || !task->nsproxy)
		obstacle = 9;
	else if (task->nsproxy != current->nsproxy || task_cred_xxx(task, user_ns) != current_user_ns())
		obstacle = 10;
	else if (!path_equal(&task->fs->root, &current->fs->root))
		obstacle = 11;
	task_unlock(task);
	return obstacle;
}

static u32 hk_mm_obstacle(struct mm_struct *mm)
{
	if (mm->def_flags & VM_LOCKED)
		return 12;
#ifdef CONFIG_AIO
	if (rcu_access_pointer(mm->ioctx_table))
		return 13;
#endif
#ifdef CONFIG_MODIFY_LDT_SYSCALL
	if (mm->context.ldt)
		return 8;
#endif
#ifdef CONFIG_MEMBARRIER
	if (atomic_read(&mm->membarrier_state))
		return 14;
#endif
	return 0;
}

u32 hk_obstacle(struct task_struct *task, struct mm_struct *mm)
{
	u32 obstacle = hk_task_obstacle(task);

	if (!obstacle)
		obstacle = hk_place_obstacle(task);
	return obstacle ? obstacle : hk_mm_obstacle(mm);
}

static u32 hk_caps(const kernel_cap_t *caps, u64 *out)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	out[0] = caps->val;
#else
	out[0] = caps->cap[0] | (u64)caps->cap[1] << 32;
#endif
	return 1;
}

static u32 hk_credentials(const struct cred *cred, u64 *out)
{
	u32 n = 0;
	int i;

	out[n++] = cred->uid.val | (u64)cred->euid.val << 32;
	out[n++] = cred->suid.val | (u64)cred->fsuid.val << 32;
	out[n++] = cred->gid.val | (u64)cred->egid.val << 32;
	out[n++] = cred->sgid.val | (u64)cred->fsgid.val << 32;
	n += hk_caps(&cred->cap_inheritable, out + n);
	n += hk_caps(&cred->cap_permitted, out + n);
	n += hk_caps(&cred->cap_effective, out + n);
	n += hk_caps(&cred->cap_bset, out + n);
	n += hk_caps(&cred->cap_ambient, out + n);
	out[n++] = cred->securebits;
	out[n] = cred->group_info->ngroups;
	for (i = 0; i < cred->group_info->ngroups; i++)
		out[n] = out[n] * 31 + cred->group_info->gid[i].val;
	return n + 1;
}

/* Which kernel this is: another one may have another vdso. */
static u64 hk_kernel(void)
{
	const char *words[] = { init_utsname()->release, init_utsname()->version };
	u64 sum = 0;
	u32 i;

	for (i = 0; i < ARRAY_SIZE(words); i++) {
		const char *at;

		for (at = words[i]; *at; at++)
			sum = sum * 1099511628211ULL + (u8)*at;
	}
	return sum;
}

/* Numbers that are equal when a child of the one would be as the other. At most HK_SURROUNDINGS. No task: the caller. */
u32 hk_surroundings(struct task_struct *task, u64 *out)
{
	u32 n, i;

	if (!task)
		task = current;
	rcu_read_lock();
	n = hk_credentials(__task_cred(task), out);
	rcu_read_unlock();
	out[n++] = hk_kernel();
	out[n++] = task_no_new_privs(task);
	out[n++] = (u64)(u32)task->policy << 32 | task->rt_priority;
	out[n++] = task->static_prio;
	out[n++] = task->personality;
	out[n++] = task->timer_slack_ns;
	out[n++] = (u16)task->signal->oom_score_adj;
	out[n++] = cpumask_weight(task->cpus_ptr);
	task_lock(task);
	out[n++] = task->fs ? task->fs->umask : 0;
	for (i = 0; i < RLIM_NLIMITS; i++) {
		out[n++] = task->signal->rlim[i].rlim_cur;
		out[n++] = task->signal->rlim[i].rlim_max;
	}
	out[n++] = task->mm ? task->mm->flags & MMF_DUMPABLE_MASK : 0;
	task_unlock(task);
	return n;
}

/* handler, flags, restorer, mask */
void hk_action(struct task_struct *task, u32 signal, u64 *out)
{
	const struct k_sigaction *action;
	struct sighand_struct *sighand;

	memset(out, 0, 4 * sizeof(*out));
	rcu_read_lock();
	/* A task that was killed and waited for has none. */
	sighand = rcu_dereference(task->sighand);
	if (sighand) {
		action = &sighand->action[signal - 1];
		out[0] = (u64)(unsigned long)action->sa.sa_handler;
		out[1] = action->sa.sa_flags;
		out[2] = (u64)(unsigned long)action->sa.sa_restorer;
		out[3] = action->sa.sa_mask.sig[0];
	}
	rcu_read_unlock();
}

/*
 * The number of the call whose time the kernel keeps while it is interrupted; -1: none that is known. The functions that
 * go on with such calls are known by their names only.
 */
s32 hk_timed_call(struct task_struct *task, u64 first_argument)
{
	char name[64];

	snprintf(name, sizeof(name), "%ps", task->restart_block.fn);
	if (!strcmp(name, "do_restart_poll"))
		return 7;
	if (!strcmp(name, "futex_wait_restart"))
		return 202;
	if (!strcmp(name, "hrtimer_nanosleep_restart"))
		return first_argument < PAGE_SIZE ? 230 : 35;
	return -1;
}

static s64 hk_clock(clockid_t clock)
{
	switch (clock) {
	case CLOCK_REALTIME:
	case CLOCK_REALTIME_ALARM:
		return ktime_get_real();
	case CLOCK_BOOTTIME:
	case CLOCK_BOOTTIME_ALARM:
		return ktime_get_boottime();
	case CLOCK_TAI:
		return ktime_get_clocktai();
	default:
		return ktime_get();
	}
}

/* kernel/futex: the wait is by the clock of the day. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)
#define HK_FUTEX_REALTIME 0x20
#else
#define HK_FUTEX_REALTIME 0x02
#endif

/* The call that a task is interrupted in, if the kernel keeps its time. */
void hk_waits(struct task_struct *task, u64 first_argument, struct hk_waits *out)
{
	const struct restart_block *block = &task->restart_block;
	s64 end;

	out->call = hk_timed_call(task, first_argument);
	out->ends = 1;
	out->rest_ns = 0;
	switch (out->call) {
	case 7:
		out->ends = !!block->poll.has_timeout;
		end = ktime_set(block->poll.tv_sec, block->poll.tv_nsec);
		out->rest_ns = end - ktime_get();
		break;
	case 202:
		end = block->futex.time;
		out->rest_ns = end - hk_clock(block->futex.flags & HK_FUTEX_REALTIME ? CLOCK_REALTIME : CLOCK_MONOTONIC);
		break;
	case 35:
	case 230:
		end = block->nanosleep.expires;
		out->rest_ns = end - hk_clock(block->nanosleep.clockid);
		break;
	default:
		out->ends = 0;
	}
}
