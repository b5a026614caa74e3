// SPDX-License-Identifier: GPL-2.0-only
/*
 * Open files: those of frozen tasks, and those of restored ones.
 */
#include <linux/err.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/highmem.h>
#include <linux/magic.h>
#include <linux/major.h>
#include <linux/pipe_fs_i.h>
#include <linux/sched/task.h>
#include <linux/version.h>

#include "glue.h"
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
#include <linux/filelock.h>
#endif

static bool hk_has_locks(struct inode *inode)
{
	struct file_lock_context *locks = locks_inode_context(inode);

	return locks && !(list_empty_careful(&locks->flc_flock) && list_empty_careful(&locks->flc_posix) &&
			  list_empty_careful(&locks->flc_lease));
}

/* One that opening its path makes again. */
static bool hk_is_of_path(struct file *file)
{
	struct inode *inode = file_inode(file);
	umode_t mode = inode->i_mode;
	bool is_plain = S_ISREG(mode) || S_ISDIR(mode) || (S_ISCHR(mode) && MAJOR(inode->i_rdev) == MEM_MAJOR);

	return is_plain && !d_unlinked(file->f_path.dentry) &&
	       !hk_has_locks(inode) && !(file->f_flags & FASYNC) && !(file->f_mode & FMODE_PATH);
}

static void hk_describe(struct file *file, struct hk_fd *out)
{
	struct pipe_inode_info *pipe = S_ISFIFO(file_inode(file)->i_mode) ? file_inode(file)->i_pipe : NULL;

	out->file = (u64)(unsigned long)file;
	out->flags = file->f_flags;
	out->mode = file_inode(file)->i_mode;
	out->place = file->f_pos;
	out->kind = HK_FD_OTHER;
	if (pipe && file_inode(file)->i_sb->s_magic == PIPEFS_MAGIC && pipe->max_usage == PIPE_DEF_BUFFERS && !(file->f_flags & (FASYNC | O_DIRECT))) {
		out->object = (u64)(unsigned long)pipe;
		out->kind = file->f_mode & FMODE_READ ? HK_FD_READER : HK_FD_WRITER;
		out->readers = pipe->readers;
		out->writers = pipe->writers;
	} else if (hk_is_of_path(file)) {
		out->kind = HK_FD_PATH;
	}
}

/* The first descriptor from a number on, with a reference on its file. NULL: there is none. */
static struct file *hk_next_file(struct task_struct *task, u32 *fd, bool *closes)
{
	struct file *file = NULL;
	struct fdtable *table;

	task_lock(task);
	if (task->files) {
		spin_lock(&task->files->file_lock);
		table = files_fdtable(task->files);
		for (; *fd < table->max_fds && !file; (*fd)++) {
			file = rcu_dereference_check_fdtable(task->files, table->fd[*fd]);
			if (!file)
				continue;
			get_file(file);
			*closes = test_bit(*fd, table->close_on_exec);
			break;
		}
		spin_unlock(&task->files->file_lock);
	}
	task_unlock(task);
	return file;
}

static u32 hk_path(const struct path *path, u8 *name, u32 room)
{
	char *text = d_path(path, name, room);
	u32 length = IS_ERR(text) ? 0 : strlen(text);

	memmove(name, text, length);
	return length;
}

/* The first descriptor from a number on, and the path of its file. 1: here it is; 0: there is none. */
long hk_next_fd(struct task_struct *task, u32 from, struct hk_fd *out, u8 *name, u32 room)
{
	bool closes = false;
	struct file *file = hk_next_file(task, &from, &closes);

	if (!file)
		return 0;
	memset(out, 0, sizeof(*out));
	hk_describe(file, out);
	out->fd = from;
	out->closes = closes;
	out->references = file_count(file) - 1;
	out->name = hk_path(&file->f_path, name, room);
	fput(file);
	return 1;
}

/* Of a mapping with a file: the file as hk_next_fd would show it, but without a number. */
void hk_describe_mapped(struct file *file, struct hk_fd *out, u8 *name, u32 room)
{
	memset(out, 0, sizeof(*out));
	hk_describe(file, out);
	out->name = hk_path(&file->f_path, name, room);
}

u32 hk_folder(struct task_struct *task, u8 *name, u32 room)
{
	struct path path = {};
	u32 length;

	task_lock(task);
	if (task->fs) {
		path = task->fs->pwd;
		path_get(&path);
	}
	task_unlock(task);
	if (!path.dentry)
		return 0;
	length = d_unlinked(path.dentry) ? 0 : hk_path(&path, name, room);
	path_put(&path);
	return length;
}

/* What is in the pipe behind a descriptor, which nobody uses meanwhile. -EOVERFLOW: more than there is room. */
long hk_pipe_bytes(struct task_struct *task, u32 fd, u8 *into, u32 room)
{
	bool closes;
	struct file *file = hk_next_file(task, &fd, &closes);
	struct pipe_inode_info *pipe = file && S_ISFIFO(file_inode(file)->i_mode) ? file_inode(file)->i_pipe : NULL;
	unsigned int at;
	long used = 0;

	if (!pipe) {
		if (file)
			fput(file);
		return -EBADF;
	}
	pipe_lock(pipe);
	for (at = pipe->tail; at != pipe->head && used >= 0; at++) {
		struct pipe_buffer *buf = &pipe->bufs[at & (pipe->ring_size - 1)];
		u8 *from;

		if (used + buf->len > room || pipe_buf_confirm(pipe, buf)) {
			used = -EOVERFLOW;
			break;
		}
		from = kmap_local_page(buf->page);
		memcpy(into + used, from + buf->offset, buf->len);
		kunmap_local(from);
		used += buf->len;
	}
	pipe_unlock(pipe);
	fput(file);
	return used;
}

/* Opens a path in the caller's name, at a place. NULL: it cannot be, or is another kind of file. */
struct file *hk_open(const char *path, u32 flags, u32 mode, u64 place)
{
	u32 keep = O_ACCMODE | O_APPEND | O_NONBLOCK | O_SYNC | O_DSYNC | O_DIRECT | O_LARGEFILE | O_NOATIME | O_DIRECTORY;
	struct file *file = filp_open(path, (flags & keep) | O_NOCTTY | O_NOFOLLOW, 0);

	if (IS_ERR(file))
		return NULL;
	if ((file_inode(file)->i_mode ^ mode) & S_IFMT || (s64)place < 0) {
		fput(file);
		return NULL;
	}
	spin_lock(&file->f_lock);
	file->f_flags &= ~O_NOFOLLOW;
	spin_unlock(&file->f_lock);
	if (file->f_mode & FMODE_LSEEK)
		file->f_pos = place;
	return file;
}

/* Of an end of a new pipe, which nobody else knows. */
void hk_set_flags(struct file *file, u32 flags)
{
	spin_lock(&file->f_lock);
	file->f_flags |= flags & (O_NONBLOCK | O_APPEND | O_NOATIME);
	spin_unlock(&file->f_lock);
}

/* Puts a file at a number of the calling task, which is free. */
long hk_install(u32 fd, struct file *file, bool closes)
{
	u32 flags = closes ? O_CLOEXEC : 0, gaps = 0;
	int got = get_unused_fd_flags(flags);

	/* Those below that are free are taken for a moment. */
	while (got >= 0 && (u32)got < fd && gaps < HK_FDS) {
		gaps++;
		got = get_unused_fd_flags(flags);
	}
	if (got != (int)fd) {
		if (got >= 0)
			put_unused_fd(got);
		return got < 0 ? got : -EINVAL;
	}
	get_file(file);
	fd_install(fd, file);
	return 0;
}

/* Gives back a number that was taken for a moment. */
void hk_free_number(u32 fd)
{
	put_unused_fd(fd);
}

/* Of the calling task, whose table nobody shares. */
void hk_close_all(void)
{
	u32 fd, end;

	rcu_read_lock();
	end = files_fdtable(current->files)->max_fds;
	rcu_read_unlock();
	for (fd = 0; fd < end; fd++)
		close_fd(fd);
}
