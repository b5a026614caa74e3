// SPDX-License-Identifier: GPL-2.0-only
/*
 * Work by a thread of the kernel, with the caller's credentials. The caller always joins it.
 *
 * When the caller is being killed the thread is sent SIGKILL, which ends what it waits for in a file system.
 */
#include <linux/completion.h>
#include <linux/cred.h>
#include <linux/kthread.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>

#include "glue.h"

struct hk_job {
	struct completion done;
	void *work;
	const struct cred *cred;
	long result;
};

static int hk_thread(void *data)
{
	struct hk_job *job = data;
	const struct cred *old;

	allow_signal(SIGKILL);
	old = override_creds(job->cred);
	job->result = hdcr_rs_work(job->work);
	revert_creds(old);
	/* Ends outside of the module's text. */
	kthread_complete_and_exit(&job->done, 0);
}

long hk_run_in_thread(void *work)
{
	struct hk_job job = { .work = work, .cred = current_cred() };
	struct task_struct *thread;

	init_completion(&job.done);
	thread = kthread_create(hk_thread, &job, "hdcr/%d", task_tgid_nr(current));
	if (IS_ERR(thread))
		return PTR_ERR(thread);
	get_task_struct(thread);
	wake_up_process(thread);
	if (wait_for_completion_killable(&job.done)) {
		send_sig(SIGKILL, thread, 1);
		wait_for_completion(&job.done);
	}
	put_task_struct(thread);
	return job.result;
}

struct hk_twin {
	struct completion done;
	struct mm_struct *mm;
};

/* The only thing that a twin ever does. It inherits from the thread to ignore all signals. */
static int hk_be_twin(void *data)
{
	struct hk_twin *twin = data;

	twin->mm = get_task_mm(current);
	kernel_sigaction(SIGKILL, SIG_DFL);
	send_sig(SIGKILL, current, 1);
	complete(&twin->done);
	/* The signal ends it before its first instruction. */
	return 0;
}

/*
 * A copy on write of an address space, by a thread of the kernel: it adopts the address space, has a child that gets a
 * copy, takes a reference on that, and the child dies. Nothing of it belongs to the task whose memory it is.
 */
long hk_copy_on_write(struct mm_struct *mm, struct mm_struct **copy)
{
	struct hk_twin twin = {};
	struct kernel_clone_args args = {
		.flags = CLONE_UNTRACED,
		.exit_signal = SIGCHLD,
		.fn = hk_be_twin,
		.fn_arg = &twin,
	};
	long got;

	init_completion(&twin.done);
	kthread_use_mm(mm);
	got = hk_kernel_clone(&args);
	kthread_unuse_mm(mm);
	if (got < 0)
		return got;
	wait_for_completion(&twin.done);
	*copy = twin.mm;
	return twin.mm ? 0 : -ESRCH;
}

bool hk_called_off(void)
{
	return signal_pending(current);
}
