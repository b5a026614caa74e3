// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory: of the module, of the caller, of frozen tasks, and on its way to a file.
 */
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/hugetlb_inline.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "glue.h"

/* Zeroed, and at the expense of the caller's memory cgroup. */
void *hk_alloc(size_t size)
{
	return kvzalloc(size, GFP_KERNEL_ACCOUNT);
}

void hk_free(void *at)
{
	kvfree(at);
}

long hk_from_user(void *to, u64 from, size_t size)
{
	return copy_from_user(to, u64_to_user_ptr(from), size) ? -EFAULT : 0;
}

long hk_to_user(u64 to, const void *from, size_t size)
{
	return copy_to_user(u64_to_user_ptr(to), from, size) ? -EFAULT : 0;
}

u64 hk_now(void)
{
	return ktime_get_ns();
}

/* For a moment, asleep: on one processor a task must be let to the point where it is waited for. */
void hk_pause(void)
{
	usleep_range(20, 50);
}

struct mm_struct *hk_mm(struct task_struct *task)
{
	return get_task_mm(task);
}

void hk_mm_put(struct mm_struct *mm)
{
	mmput(mm);
}

static const char *hk_word(struct vm_area_struct *vma)
{
	struct mm_struct *mm = vma->vm_mm;

	if (vma->vm_ops && vma->vm_ops->name)
		return vma->vm_ops->name(vma);
	if (vma->vm_file)
		return NULL;
	if (vma->vm_start <= mm->brk && vma->vm_end >= mm->start_brk)
		return "[heap]";
	if (vma->vm_start <= mm->start_stack && vma->vm_end >= mm->start_stack)
		return "[stack]";
	return NULL;
}

/* A path, if there is a file, else a word; 0 for neither, and for a path that is too long. */
static u32 hk_name(struct vm_area_struct *vma, u8 *name, u32 room)
{
	const char *word = hk_word(vma);
	u32 length;

	if (!word && vma->vm_file) {
		word = d_path(&vma->vm_file->f_path, name, room);
		if (IS_ERR(word))
			return 0;
	}
	if (!word)
		return 0;
	length = min_t(u32, strlen(word), room);
	memmove(name, word, length);
	return length;
}

/* Bits of the interface, whatever those of the kernel are. */
static u32 hk_flags(struct vm_area_struct *vma)
{
	vm_flags_t flags = vma->vm_flags;
	bool special = !vma->vm_file && vma->vm_ops && vma->vm_ops->name;

	return (flags & VM_MAYSHARE ? 1 : 0) | (flags & VM_GROWSDOWN ? 2 : 0) | (flags & (VM_IO | VM_PFNMAP) ? 4 : 0) |
	       (is_vm_hugetlb_page(vma) ? 8 : 0) | (special ? 16 : 0) | (flags & VM_DONTCOPY ? 32 : 0) |
	       (flags & VM_WIPEONFORK ? 64 : 0) | (flags & VM_LOCKED ? 128 : 0);
}

static u32 hk_prot(struct vm_area_struct *vma)
{
	return (vma->vm_flags & VM_READ ? PROT_READ : 0) | (vma->vm_flags & VM_WRITE ? PROT_WRITE : 0) |
	       (vma->vm_flags & VM_EXEC ? PROT_EXEC : 0);
}

/* The first mapping that ends behind an address. 1: here it is; 0: there is none. */
long hk_next_mapping(struct mm_struct *mm, u64 from, struct hk_vma *out, u8 *name, u32 room)
{
	struct vm_area_struct *vma;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	vma = find_vma(mm, from);
	if (vma) {
		memset(out, 0, sizeof(*out));
		out->start = vma->vm_start;
		out->end = vma->vm_end;
		out->prot = hk_prot(vma);
		out->flags = hk_flags(vma);
		if (vma->vm_file) {
			out->offset = (u64)vma->vm_pgoff << PAGE_SHIFT;
			out->inode = file_inode(vma->vm_file)->i_ino;
			out->device = new_encode_dev(file_inode(vma->vm_file)->i_sb->s_dev);
		}
		out->name = hk_name(vma, name, room);
	}
	mmap_read_unlock(mm);
	return vma ? 1 : 0;
}

#define HK_BATCH 64

static long hk_pin(struct mm_struct *mm, u64 at, u32 count, struct page **pages)
{
	long result;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
	result = get_user_pages_remote(mm, at, count, FOLL_FORCE, pages, NULL);
#else
	result = get_user_pages_remote(mm, at, count, FOLL_FORCE, pages, NULL, NULL);
#endif
	mmap_read_unlock(mm);
	return result;
}

static void hk_copy_pages(struct page **pages, long count, void *into)
{
	long i;

	for (i = 0; i < count; i++) {
		void *from = kmap_local_page(pages[i]);

		memcpy(into + i * PAGE_SIZE, from, PAGE_SIZE);
		kunmap_local(from);
		put_page(pages[i]);
	}
}

/* Whole pages. Returns how many bytes could be read before the first page that could not. */
long hk_read_pages(struct mm_struct *mm, u64 at, void *into, u32 bytes)
{
	struct page *pages[HK_BATCH];
	u32 done = 0;

	while (done < bytes) {
		long count = hk_pin(mm, at + done, min_t(u32, HK_BATCH, (bytes - done) >> PAGE_SHIFT), pages);

		if (count <= 0)
			return done ? done : count ? count : -EFAULT;
		hk_copy_pages(pages, count, into + done);
		done += count << PAGE_SHIFT;
	}
	return done;
}

/* A regular file, open for writing or for reading; NULL otherwise. Anything else could be waited for for ever. */
struct file *hk_file(s32 fd, bool writes)
{
	struct file *file = fd < 0 ? NULL : fget(fd);
	fmode_t mode = writes ? FMODE_WRITE : FMODE_READ;

	/* What is appended goes elsewhere than it is told to. */
	if (file && (!S_ISREG(file_inode(file)->i_mode) || !(file->f_mode & mode) ||
		     (writes && (file->f_flags & O_APPEND)))) {
		fput(file);
		file = NULL;
	}
	return file;
}

void hk_file_put(struct file *file)
{
	fput(file);
}

/* Exactly so many bytes. */
long hk_read(struct file *file, void *into, size_t size, u64 at)
{
	loff_t place = at;

	while (size) {
		ssize_t got = kernel_read(file, into, size, &place);

		if (got <= 0)
			return got ? got : -ENODATA;
		into += got;
		size -= got;
	}
	return 0;
}

u64 hk_size(struct file *file)
{
	return i_size_read(file_inode(file));
}

/* All of it. */
long hk_write(struct file *file, const void *from, size_t size, u64 *at)
{
	loff_t place = *at;

	while (size) {
		ssize_t written = kernel_write(file, from, size, &place);

		if (written <= 0)
			return written ? written : -EIO;
		from += written;
		size -= written;
		*at = place;
	}
	return 0;
}
