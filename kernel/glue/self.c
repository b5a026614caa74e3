// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a task that builds itself sets of itself.
 */
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/mount.h>
#include <linux/namei.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/version.h>

#include "glue.h"

void hk_set_action(u32 signal, const u64 *from)
{
	struct k_sigaction *action = &current->sighand->action[signal - 1];

	spin_lock_irq(&current->sighand->siglock);
	action->sa.sa_handler = (__sighandler_t)(unsigned long)from[0];
	action->sa.sa_flags = from[1];
	action->sa.sa_restorer = (__sigrestore_t)(unsigned long)from[2];
	action->sa.sa_mask.sig[0] = from[3] & ~(sigmask(SIGKILL) | sigmask(SIGSTOP));
	spin_unlock_irq(&current->sighand->siglock);
}

/* unused, stack_at, stack_size, clear_tid, robust_list, rseq; rseq_size, rseq_signature, stack_flags */
long hk_set_thread(const u64 *wide, const u32 *narrow, const u8 *comm)
{
	u64 end = TASK_SIZE_MAX - 64;

	if (wide[3] > end || wide[4] > end || wide[5] > end || (wide[5] && wide[5] & 31) || wide[1] > end)
		return -EINVAL;
	current->sas_ss_sp = wide[1];
	current->sas_ss_size = wide[2];
	current->sas_ss_flags = narrow[2];
	current->set_child_tid = NULL;
	current->clear_child_tid = (int __user *)(unsigned long)wide[3];
	current->robust_list = (struct robust_list_head __user *)(unsigned long)wide[4];
	current->rseq = (struct rseq __user *)(unsigned long)wide[5];
	current->rseq_sig = wide[5] ? narrow[1] : 0;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	current->rseq_len = wide[5] ? narrow[0] : 0;
#endif
	task_lock(current);
	memcpy(current->comm, comm, TASK_COMM_LEN - 1);
	current->comm[TASK_COMM_LEN - 1] = 0;
	task_unlock(current);
	return 0;
}

long hk_set_folder(const char *name)
{
	struct fs_struct *fs = current->fs;
	struct path path, old;
	long result = kern_path(name, LOOKUP_FOLLOW | LOOKUP_DIRECTORY, &path);

	if (result)
		return result;
	spin_lock(&fs->lock);
	write_seqcount_begin(&fs->seq);
	old = fs->pwd;
	fs->pwd = path;
	write_seqcount_end(&fs->seq);
	spin_unlock(&fs->lock);
	path_put(&old);
	return 0;
}

/* One that the task could execute. */
long hk_set_program(struct file *file)
{
	if (!S_ISREG(file_inode(file)->i_mode) || (file->f_path.mnt->mnt_flags & MNT_NOEXEC) ||
	    (file_inode(file)->i_sb->s_iflags & SB_I_NOEXEC))
		return -EACCES;
	if (file_permission(file, MAY_EXEC))
		return -EACCES;
	return hk_replace_program(current->mm, file);
}

long hk_map_vdso(u64 at)
{
	return hk_arch_prctl(current, 0x2003 /* ARCH_MAP_VDSO_64 */, at);
}
