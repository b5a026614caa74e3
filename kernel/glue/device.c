// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device, its sessions, and the beginning and end of the module.
 *
 * A session belongs to the process that opened it: no other may use the descriptor, wherever it came by it. The freeze
 * ends with the last descriptor, and with the death of that process even when others still hold a descriptor.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>

#include "glue.h"

struct hk_session {
	struct mutex lock;
	struct pid *owner;
	void *rust;
};

static int hk_begin_session(struct inode *inode, struct file *file)
{
	struct hk_session *session = kzalloc(sizeof(*session), GFP_KERNEL_ACCOUNT);

	if (!session)
		return -ENOMEM;
	session->rust = hdcr_rs_open();
	if (!session->rust) {
		kfree(session);
		return -ENOMEM;
	}
	mutex_init(&session->lock);
	session->owner = get_pid(task_tgid(current));
	file->private_data = session;
	return 0;
}

static long hk_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct hk_session *session = file->private_data;
	long result;

	if (session->owner != task_tgid(current))
		return -EPERM;
	if (mutex_lock_killable(&session->lock))
		return -EINTR;
	result = hdcr_rs_ioctl(session->rust, command, argument);
	mutex_unlock(&session->lock);
	return result;
}

static int hk_flush(struct file *file, fl_owner_t id)
{
	struct hk_session *session = file->private_data;

	if (session->owner == task_tgid(current) && (current->flags & PF_EXITING)) {
		mutex_lock(&session->lock);
		hdcr_rs_thaw(session->rust);
		mutex_unlock(&session->lock);
	}
	return 0;
}

static int hk_release(struct inode *inode, struct file *file)
{
	struct hk_session *session = file->private_data;

	hdcr_rs_release(session->rust);
	put_pid(session->owner);
	kfree(session);
	return 0;
}

static const struct file_operations hk_operations = {
	.owner = THIS_MODULE,
	.open = hk_begin_session,
	.unlocked_ioctl = hk_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.flush = hk_flush,
	.release = hk_release,
	.llseek = noop_llseek,
};

static struct miscdevice hk_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "hdcr",
	.fops = &hk_operations,
	.mode = 0660,
};

/* A panic of the Rust half. */
void __noreturn hk_give_up(const u8 *text, u32 length)
{
	pr_emerg("hdcr: %.*s\n", (int)length, text);
	BUG();
}

static int __init hk_begin(void)
{
	hk_find_symbols();
	return misc_register(&hk_device);
}

static void __exit hk_end(void)
{
	misc_deregister(&hk_device);
	/* A callback gives its reference on the module back before its last instruction. */
	synchronize_rcu_tasks();
}

module_init(hk_begin);
module_exit(hk_end);
MODULE_LICENSE("GPL v2");
MODULE_DESCRIPTION("Checkpoint and rollback-recovery of process trees");
