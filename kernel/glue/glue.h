/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the Rust half and the C half say to one another. The Rust half knows no struct of the kernel: it gets whole
 * numbers and opaque pointers, so that one object of it fits every kernel. Functions named hk_ are C, hdcr_rs_ Rust.
 *
 * Lock order: session mutex (device.c) -> mmap lock of a target -> hk_registry_lock (park.c). RCU is innermost.
 */
#ifndef HDCR_GLUE_H
#define HDCR_GLUE_H

#include <linux/kernel.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <linux/types.h>

struct hk_gate;
struct hk_park;
struct hk_site;
struct hk_job;
struct mm_struct;
struct file;
struct pid;
struct kernel_clone_args;
struct user_regset;

/* Rust, called by device.c and thread.c. */
void *hdcr_rs_open(void);
long hdcr_rs_ioctl(void *session, unsigned int command, u64 argument);
void hdcr_rs_thaw(void *session);
void hdcr_rs_release(void *session);
long hdcr_rs_work(void *work);
long hdcr_rs_build(const void *plan, struct hk_site *site, u32 number);

/* device.c */
void __noreturn hk_give_up(const u8 *text, u32 length);

/* symbols.c */
#define HK_ACCESS_CHECK 0
#define HK_TAKE_BACK 1
#define HK_CLONE 2
#define HK_VDSO 3
#define HK_PIPES 4
#define HK_PROGRAM 5
#define HK_IDS 6
#define HK_CALLS 7
void hk_find_symbols(void);
u64 hk_features(void);
bool hk_may_access_exact(struct task_struct *task);
bool hk_take_back(struct task_struct *task, bool (*match)(struct callback_head *, void *), void *data);
pid_t hk_kernel_clone(struct kernel_clone_args *args);
long hk_arch_prctl(struct task_struct *task, int option, unsigned long at);
long hk_pipe(struct file **files);
long hk_replace_program(struct mm_struct *mm, struct file *file);
void hk_change_pid(struct task_struct *task, enum pid_type type, struct pid *pid);
long hk_system_call(const struct pt_regs *regs, unsigned int number);
void hk_lock_tasks(void);
void hk_unlock_tasks(void);

/* park.c */
#define HK_QUEUED 1	/* the callback has not run */
#define HK_HELD 2	/* not run, and it need not be waited for: it runs before the task's next instruction */
#define HK_PARKED 3	/* the task waits in the callback */
#define HK_GONE 4	/* the task is ending */
#define HK_DEAD 5	/* it had ended when it was looked at */
struct hk_gate *hk_gate_new(void);
long hk_gate_wait(struct hk_gate *gate, u64 ns);
void hk_gate_open(struct hk_gate *gate);
void hk_gate_put(struct hk_gate *gate);
long hk_park_add(struct hk_gate *gate, s32 tid, u64 start, struct hk_park **out);
void hk_park_drop(struct hk_park *park);
u32 hk_park_state(const struct hk_park *park);
bool hk_park_hold(struct hk_park *park);
long hk_park_registers(struct hk_park *park, u32 note, void *out, u32 room);
struct hk_waits {
	s64 rest_ns;
	s32 call;
	u32 ends;
};
long hk_park_waiting(struct hk_park *park, struct hk_waits *out);
long hk_park_run(struct hk_park *park, struct hk_job *job, u64 ns);
struct task_struct *hk_park_task(const struct hk_park *park);

/* settle.c */
void hk_settle(void);

/* calls.c */
#define HK_ARGUMENT_DATA 1
#define HK_ARGUMENT_RESULT 2
struct hk_call {
	u64 nr, args[6];
	s64 result;
	u8 kinds[6], stops, reserved;
};
struct hk_pointer {
	u32 place, target;
};
struct hk_job *hk_job_new(u32 count, u32 size, u32 places);
struct hk_job *hk_job_get(struct hk_job *job);
void hk_job_put(struct hk_job *job);
struct hk_call *hk_job_calls(struct hk_job *job);
u8 *hk_job_data(struct hk_job *job);
struct hk_pointer *hk_job_pointers(struct hk_job *job);
u32 hk_job_made(const struct hk_job *job);
long hk_job_await(struct hk_job *job, u64 ns);
void hk_job_run(struct hk_job *job);
void hk_job_refuse(struct hk_job *job, long result);

/* tasks.c */
#define HK_ROW_KERNEL 1		/* a kernel thread, or one that serves io_uring */
#define HK_ROW_DEAD 2		/* has ended */
#define HK_ROW_INIT 4		/* the first process of the system */
#define HK_ROW_CALLER 8		/* a thread of the caller */
#define HK_ROW_IN_CGROUP 16	/* in the cgroup that was asked for */
struct hk_row {
	s32 tid, tgid, ppid, pgid, sid;
	u32 flags;
	u64 start;
};
u64 hk_start_of(const struct task_struct *task);
long hk_scan(struct hk_row *rows, u32 room, u64 cgroup);

#define HK_KIND_RUNNING 1	/* runs, or can be woken */
#define HK_KIND_STOPPED 2
#define HK_KIND_TRACED 3	/* in a stop of a tracer that lets it go on to no system call */
#define HK_KIND_TRACED_CALL 4	/* in any other stop of a tracer */
#define HK_KIND_SLEEPS 5
#define HK_KIND_ENDED 6
#define HK_KIND_VFORK 7
#define HK_KIND_ENDING 8	/* runs no instruction any more */
struct hk_look {
	u32 kind;
	u32 state;		/* bits of __state */
	u32 off_cpu;
	s32 other;		/* tgid of the tracer or of the vfork child */
};
void hk_look(struct task_struct *task, struct hk_look *out);

struct hk_facts {
	s32 tid, tgid, ppid, pgid, sid, exit_signal, exit_code;
	u32 stop_signal;
	u64 mm, files, fs, sighand;	/* identities: never leave the module */
	u64 blocked, clear_tid, robust_list, rseq;
	u32 rseq_size, rseq_signature;
	u64 stack_at, stack_size;
	u32 stack_flags;
	u32 alive;
	u8 comm[16];
};
void hk_facts(struct task_struct *task, struct hk_facts *out);
bool hk_may_access(struct task_struct *task);
bool hk_kill(struct task_struct *task);
u32 hk_xstate_size(void);
const struct user_regset *hk_regset(struct task_struct *task, u32 note);
long hk_registers(struct task_struct *task, u32 note, void *out, u32 room);
long hk_signals(struct task_struct *task, bool shared, u8 *out, u32 room);

/* memory.c */
struct hk_vma {
	u64 start, end, offset, inode;
	u32 device, prot, flags, name;
};
void *hk_alloc(size_t size);
void hk_free(void *at);
long hk_from_user(void *to, u64 from, size_t size);
long hk_to_user(u64 to, const void *from, size_t size);
struct mm_struct *hk_mm(struct task_struct *task);
void hk_mm_put(struct mm_struct *mm);
long hk_next_mapping(struct mm_struct *mm, u64 from, struct hk_vma *out, u8 *name, u32 room);
long hk_read_pages(struct mm_struct *mm, u64 at, void *into, u32 bytes);
struct file *hk_file(s32 fd, bool writes);
void hk_file_put(struct file *file);
long hk_write(struct file *file, const void *from, size_t size, u64 *at);
long hk_read(struct file *file, void *into, size_t size, u64 at);
u64 hk_size(struct file *file);
u64 hk_now(void);
void hk_pause(void);

/* files.c */
#define HK_FDS 65536
#define HK_FD_OTHER 0
#define HK_FD_PATH 1	/* opening its path makes it again */
#define HK_FD_READER 2	/* of a pipe without a name */
#define HK_FD_WRITER 3
struct hk_fd {
	u64 file, object;	/* identities: never leave the module */
	u64 place;
	u32 fd, closes, kind, flags, mode, readers, writers, name;
	u32 references, reserved;	/* how many refer to the file, without the one who looks */
};
long hk_next_fd(struct task_struct *task, u32 from, struct hk_fd *out, u8 *name, u32 room);
void hk_describe_mapped(struct file *file, struct hk_fd *out, u8 *name, u32 room);
u32 hk_folder(struct task_struct *task, u8 *name, u32 room);
long hk_pipe_bytes(struct task_struct *task, u32 fd, u8 *into, u32 room);
struct file *hk_open(const char *path, u32 flags, u32 mode, u64 place);
void hk_set_flags(struct file *file, u32 flags);
long hk_install(u32 fd, struct file *file, bool closes);
void hk_free_number(u32 fd);
void hk_close_all(void);

/* space.c */
#define HK_MAPPED_OTHER 0
#define HK_MAPPED_NOTHING 1	/* private memory without a file */
#define HK_MAPPED_FILE 2
#define HK_MAPPED_VDSO 3
#define HK_MAPPED_VVAR 4
#define HK_LONGEST_RUN (1 << 20)
long hk_mapped(struct mm_struct *mm, u64 at, u64 *flags, struct hk_fd *out, u8 *name, u32 room);
bool hk_program(struct mm_struct *mm, struct hk_fd *out, u8 *name, u32 room);
void hk_marks(struct mm_struct *mm, u64 *marks, u64 *auxiliary);
long hk_filled(struct mm_struct *mm, u64 from, u64 end, u64 *start, u64 *stop);
long hk_unmap_all(void);
long hk_map(u64 start, u64 length, u32 prot, u64 flags, struct file *file, u64 offset);
long hk_fill(u64 at, void *from, u32 length);
long hk_set_marks(const u64 *marks, const u64 *auxiliary);

/* survey.c */
#define HK_SURROUNDINGS 64
u32 hk_obstacle(struct task_struct *task, struct mm_struct *mm);
u32 hk_surroundings(struct task_struct *task, u64 *out);
s32 hk_timed_call(struct task_struct *task, u64 first_argument);
void hk_waits(struct task_struct *task, u64 first_argument, struct hk_waits *out);
void hk_action(struct task_struct *task, u32 signal, u64 *out);

/* build.c */
struct hk_site *hk_site_new(const void *plan, u32 count);
long hk_clone(struct hk_site *site, u32 number, s32 tid, bool thread, u32 exit_signal);
long hk_site_wait(struct hk_site *site, u64 until);
void hk_site_fail(struct hk_site *site);
void hk_site_open(struct hk_site *site);
void hk_site_put(struct hk_site *site);
long hk_set_registers(struct hk_site *site, u32 number, const void *general, u32 general_size, const void *xstate,
		      u32 xstate_size);
void hk_set_ids(struct hk_site *site, u32 number, s32 session, s32 group);
void hk_set_blocked(struct hk_site *site, u32 number, u64 blocked);

/* self.c */
void hk_set_action(u32 signal, const u64 *from);
long hk_set_thread(const u64 *wide, const u32 *narrow, const u8 *comm);
long hk_set_folder(const char *name);
long hk_set_program(struct file *file);
long hk_map_vdso(u64 at);

/* thread.c */
long hk_run_in_thread(void *work);
bool hk_called_off(void);
long hk_copy_on_write(struct mm_struct *mm, struct mm_struct **copy);

/* The Rust half holds its own structs to the same sizes. */
static_assert(sizeof(struct hk_row) == 32 && sizeof(struct hk_look) == 16);
static_assert(sizeof(struct hk_facts) == 144 && offsetof(struct hk_facts, comm) == 128);
static_assert(sizeof(struct hk_vma) == 48 && sizeof(struct hk_fd) == 64);
static_assert(sizeof(struct hk_waits) == 16 && sizeof(struct hk_call) == 72 && sizeof(struct hk_pointer) == 8);

#endif
