// SPDX-License-Identifier: GPL-2.0-only
/*
 * Functions of the kernel that are not exported, found by name. Each is called through a static call, which becomes a
 * direct call: a pointer would fault on processors with IBT, as the kernel seals what is never called by pointer.
 * Whatever is not found is missing in hk_features(), and its caller has another way or says so.
 */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/ptrace.h>
#include <linux/sched/task.h>
#include <linux/static_call.h>
#include <linux/task_work.h>

#include "glue.h"

static ulong hide;
module_param(hide, ulong, 0400);
MODULE_PARM_DESC(hide, "features that are taken for missing, as bits (for tests)");

static u64 hk_found;

static unsigned long hk_no_name(const char *name)
{
	return 0;
}

static bool hk_no_access(struct task_struct *task, unsigned int mode)
{
	return false;
}

static struct callback_head *hk_no_match(struct task_struct *task, bool (*match)(struct callback_head *, void *),
					 void *data)
{
	return NULL;
}

static pid_t hk_no_clone(struct kernel_clone_args *args)
{
	return -EOPNOTSUPP;
}

static long hk_no_prctl(struct task_struct *task, int option, unsigned long at)
{
	return -EOPNOTSUPP;
}

static int hk_no_pipe(struct file **files, int flags)
{
	return -EOPNOTSUPP;
}

static void hk_no_pid(struct task_struct *task, enum pid_type type, struct pid *pid)
{
}

static int hk_no_program(struct mm_struct *mm, struct file *file)
{
	return -EOPNOTSUPP;
}

static long hk_no_call(const struct pt_regs *regs, unsigned int number)
{
	return -EOPNOTSUPP;
}

static rwlock_t *hk_tasks_lock;

DEFINE_STATIC_CALL(hk_sc_clone, hk_no_clone);
DEFINE_STATIC_CALL(hk_sc_prctl, hk_no_prctl);
DEFINE_STATIC_CALL(hk_sc_pipe, hk_no_pipe);
DEFINE_STATIC_CALL(hk_sc_pid, hk_no_pid);
DEFINE_STATIC_CALL(hk_sc_program, hk_no_program);
DEFINE_STATIC_CALL(hk_sc_call, hk_no_call);
DEFINE_STATIC_CALL(hk_sc_name, hk_no_name);
DEFINE_STATIC_CALL(hk_sc_access, hk_no_access);
DEFINE_STATIC_CALL(hk_sc_match, hk_no_match);

/* The address where kallsyms_lookup_name begins, its ENDBR included. */
static unsigned long hk_lookup(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long at;
	u32 before;

	if (register_kprobe(&probe))
		return 0;
	at = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	memcpy(&before, (void *)(at - 4), sizeof(before));
	return before == 0xfa1e0ff3 ? at - 4 : at;
}

#define HK_FIND(bit, call, type, symbol)                                                  \
	do {                                                                              \
		unsigned long at_ = (hide >> (bit)) & 1 ? 0 : static_call(hk_sc_name)(symbol); \
		if (at_) {                                                                \
			static_call_update(call, (type)at_);                              \
			hk_found |= 1ULL << (bit);                                        \
		}                                                                         \
	} while (0)

void hk_find_symbols(void)
{
	unsigned long lookup = hk_lookup();

	if (!lookup)
		return;
	static_call_update(hk_sc_name, (unsigned long (*)(const char *))lookup);
	HK_FIND(HK_ACCESS_CHECK, hk_sc_access, bool (*)(struct task_struct *, unsigned int), "ptrace_may_access");
	HK_FIND(HK_TAKE_BACK, hk_sc_match,
		struct callback_head *(*)(struct task_struct *, bool (*)(struct callback_head *, void *), void *),
		"task_work_cancel_match");
	HK_FIND(HK_CLONE, hk_sc_clone, pid_t (*)(struct kernel_clone_args *), "kernel_clone");
	HK_FIND(HK_VDSO, hk_sc_prctl, long (*)(struct task_struct *, int, unsigned long), "do_arch_prctl_64");
	HK_FIND(HK_PIPES, hk_sc_pipe, int (*)(struct file **, int), "create_pipe_files");
	HK_FIND(HK_PROGRAM, hk_sc_program, int (*)(struct mm_struct *, struct file *), "replace_mm_exe_file");
	HK_FIND(HK_CALLS, hk_sc_call, long (*)(const struct pt_regs *, unsigned int), "x64_sys_call");
	hk_tasks_lock = (rwlock_t *)static_call(hk_sc_name)("tasklist_lock");
	if (hk_tasks_lock)
		HK_FIND(HK_IDS, hk_sc_pid, void (*)(struct task_struct *, enum pid_type, struct pid *), "change_pid");
}

u64 hk_features(void)
{
	return hk_found;
}

bool hk_may_access_exact(struct task_struct *task)
{
	return static_call(hk_sc_access)(task, PTRACE_MODE_ATTACH_FSCREDS);
}

bool hk_take_back(struct task_struct *task, bool (*match)(struct callback_head *, void *), void *data)
{
	return static_call(hk_sc_match)(task, match, data) != NULL;
}

pid_t hk_kernel_clone(struct kernel_clone_args *args)
{
	return static_call(hk_sc_clone)(args);
}

long hk_arch_prctl(struct task_struct *task, int option, unsigned long at)
{
	return static_call(hk_sc_prctl)(task, option, at);
}

/* The end that is read from, then the one that is written to. */
long hk_pipe(struct file **files)
{
	return static_call(hk_sc_pipe)(files, 0);
}

long hk_replace_program(struct mm_struct *mm, struct file *file)
{
	return static_call(hk_sc_program)(mm, file);
}

/* As the calling task. */
long hk_system_call(const struct pt_regs *regs, unsigned int number)
{
	return static_call(hk_sc_call)(regs, number);
}

/* Only with HK_IDS, under hk_lock_tasks(). */
void hk_change_pid(struct task_struct *task, enum pid_type type, struct pid *pid)
{
	static_call(hk_sc_pid)(task, type, pid);
}

void hk_lock_tasks(void)
{
	write_lock_irq(hk_tasks_lock);
}

void hk_unlock_tasks(void)
{
	write_unlock_irq(hk_tasks_lock);
}
