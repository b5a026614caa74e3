// SPDX-License-Identifier: GPL-2.0-only
/*
 * Work by a thread of the kernel, which the caller always joins.
 *
 * When the caller is being killed the thread is sent SIGKILL, which ends what it waits for in a file system.
 */
#include <linux/completion.h>
#include <linux/kthread.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>

#include "glue.h"

struct hk_job {
	struct completion done;
	void *work;
	long result;
};

static int hk_thread(void *data)
{
	struct hk_job *job = data;

	allow_signal(SIGKILL);
	job->result = hdcr_rs_work(job->work);
	/* Ends outside of the module's text. */
	kthread_complete_and_exit(&job->done, 0);
}

long hk_run_in_thread(void *work)
{
	struct hk_job job = { .work = work };
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

bool hk_called_off(void)
{
	return signal_pending(current);
}
