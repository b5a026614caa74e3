// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a stop does to a task that its program would notice, put right by the task itself before it waits.
 */
#include <linux/ptrace.h>
#include <linux/rseq.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/uaccess.h>
#include <asm/syscall.h>

#include "glue.h"

/* Calls that the kernel ends with EINTR on every stop, though no signal came; the second half on sockets with a time limit. */
static bool hk_is_made_again(long nr)
{
	switch (nr) {
	case __NR_epoll_wait:
	case __NR_epoll_pwait:
	case __NR_epoll_pwait2:
	case __NR_rt_sigtimedwait:
	case __NR_semop:
	case __NR_semtimedop:
	case __NR_io_getevents:
	case __NR_io_pgetevents:
	case __NR_read:
	case __NR_readv:
	case __NR_accept:
	case __NR_accept4:
	case __NR_recvfrom:
	case __NR_recvmsg:
	case __NR_recvmmsg:
	case __NR_write:
	case __NR_writev:
	case __NR_connect:
	case __NR_sendto:
	case __NR_sendmsg:
	case __NR_sendmmsg:
		return true;
	default:
		return false;
	}
}

/*
 * Out of a restartable sequence, as the kernel leads a task out of it that was not at work for a moment: its registers are
 * looked at, and may be put into another task. What is odd is left to the kernel, which ends such a task.
 */
static void hk_leave_sequence(struct pt_regs *regs)
{
	u64 __user *named = (u64 __user *)((unsigned long)current->rseq + offsetof(struct rseq, rseq_cs));
	struct rseq_cs section;
	u32 signature;
	u64 at;

	if (!current->rseq || get_user(at, named) || !at || at >= TASK_SIZE_MAX)
		return;
	if (copy_from_user(&section, (void __user *)(unsigned long)at, sizeof(section)))
		return;
	if (section.version || regs->ip - section.start_ip >= section.post_commit_offset ||
	    section.abort_ip < sizeof(signature) || section.abort_ip >= TASK_SIZE_MAX)
		return;
	if (get_user(signature, (u32 __user *)(unsigned long)(section.abort_ip - sizeof(signature))) ||
	    signature != current->rseq_sig || put_user(0ULL, named))
		return;
	regs->ip = section.abort_ip;
	regs->orig_ax = -1;
}

void hk_settle(void)
{
	struct pt_regs *regs = current_pt_regs();

	if (regs->ax == (unsigned long)-EINTR && hk_is_made_again((long)regs->orig_ax) && !task_sigpending(current) &&
	    user_64bit_mode(regs)) {
		regs->ax = regs->orig_ax;
		regs->orig_ax = -1;
		regs->ip -= 2;
	}
	hk_leave_sequence(regs);
}
