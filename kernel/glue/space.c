// SPDX-License-Identifier: GPL-2.0-only
/*
 * Address spaces: what an image holds of one, and how it is made again.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/pgtable.h>
#include <linux/sched/mm.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "glue.h"

/* Whatever else a mapping may be, it is nothing that mapping it again would bring back. */
#define HK_PLAIN                                                                                              \
	(VM_READ | VM_WRITE | VM_EXEC | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_SHARED | VM_MAYSHARE |     \
	 VM_GROWSDOWN | VM_ACCOUNT | VM_NORESERVE | VM_SOFTDIRTY)

/* Since 6.7 this is what MAP_STACK makes; before, only advice does. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)
#define HK_STACK VM_NOHUGEPAGE
#else
#define HK_STACK 0
#endif

/* What lies behind the mapping at an address: one of HK_MAPPED_; out and name are filled in for a file. */
long hk_mapped(struct mm_struct *mm, u64 at, u64 *flags, struct hk_fd *out, u8 *name, u32 room)
{
	struct vm_area_struct *vma;
	long kind = HK_MAPPED_OTHER;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	vma = find_vma(mm, at);
	if (vma && vma->vm_start == at) {
		*flags = (vma->vm_flags & VM_MAYSHARE ? MAP_SHARED : MAP_PRIVATE) |
			 (vma->vm_flags & VM_GROWSDOWN ? MAP_GROWSDOWN : 0) |
			 (vma->vm_flags & VM_NORESERVE ? MAP_NORESERVE : 0) |
			 (vma->vm_flags & HK_STACK ? MAP_STACK : 0);
		if (!vma->vm_file && vma->vm_ops && vma->vm_ops->name) {
			const char *word = vma->vm_ops->name(vma);

			kind = word && !strcmp(word, "[vdso]") ? HK_MAPPED_VDSO : HK_MAPPED_VVAR;
		} else if (!(vma->vm_flags & ~(HK_PLAIN | HK_STACK))) {
			kind = vma->vm_file ? HK_MAPPED_FILE : HK_MAPPED_NOTHING;
		}
		if (kind == HK_MAPPED_FILE) {
			hk_describe_mapped(vma->vm_file, out, name, room);
			kind = out->kind == HK_FD_PATH && S_ISREG(out->mode) ? HK_MAPPED_FILE : HK_MAPPED_OTHER;
		}
	}
	mmap_read_unlock(mm);
	return kind;
}

/* The program of a process. False: there is none with a path. */
bool hk_program(struct mm_struct *mm, struct hk_fd *out, u8 *name, u32 room)
{
	struct file *file;

	memset(out, 0, sizeof(*out));
	rcu_read_lock();
	file = rcu_dereference(mm->exe_file);
	if (file)
		hk_describe_mapped(file, out, name, room);
	rcu_read_unlock();
	return file && out->kind == HK_FD_PATH;
}

void hk_marks(struct mm_struct *mm, u64 *marks, u64 *auxiliary)
{
	u32 i;

	marks[0] = mm->start_code;
	marks[1] = mm->end_code;
	marks[2] = mm->start_data;
	marks[3] = mm->end_data;
	marks[4] = mm->start_brk;
	marks[5] = mm->brk;
	marks[6] = mm->start_stack;
	marks[7] = mm->arg_start;
	marks[8] = mm->arg_end;
	marks[9] = mm->env_start;
	marks[10] = mm->env_end;
	for (i = 0; i < AT_VECTOR_SIZE; i++)
		auxiliary[i] = mm->saved_auxv[i];
}

/* Whether a page holds what no file has: never the zero page. */
static bool hk_is_filled(pte_t pte)
{
	unsigned long pfn;

	if (pte_none(pte))
		return false;
	if (!pte_present(pte))
		return true;
	pfn = pte_pfn(pte);
	return !is_zero_pfn(pfn) && pfn_valid(pfn) && PageAnon(pfn_to_page(pfn));
}

/* Under the mmap lock. How far the same answer goes is put into `end`. */
static bool hk_look_up(struct mm_struct *mm, u64 at, u64 *end)
{
	pgd_t *pgd = pgd_offset(mm, at);
	p4d_t *p4d;
	pud_t *pud;
	pmd_t *pmd, seen;
	pte_t *pte;
	bool filled;

	*end = (at & PGDIR_MASK) + PGDIR_SIZE;
	if (pgd_none(*pgd) || pgd_bad(*pgd))
		return false;
	p4d = p4d_offset(pgd, at);
	*end = (at & P4D_MASK) + P4D_SIZE;
	if (p4d_none(*p4d) || p4d_bad(*p4d))
		return false;
	pud = pud_offset(p4d, at);
	*end = (at & PUD_MASK) + PUD_SIZE;
	if (pud_none(*pud))
		return false;
	/* Nothing private is mapped in pieces of a GiB. */
	if (pud_bad(*pud))
		return true;
	pmd = pmd_offset(pud, at);
	*end = (at & PMD_MASK) + PMD_SIZE;
	seen = READ_ONCE(*pmd);
	if (pmd_none(seen))
		return false;
	if (!pmd_present(seen) || pmd_leaf(seen))
		return true;
	*end = at + PAGE_SIZE;
	/* RCU keeps the table; when it was taken away meanwhile, its entries are none or of whole pages. */
	pte = pte_offset_kernel(&seen, at);
	filled = hk_is_filled(READ_ONCE(*pte));
	return filled;
}

/* The next filled pages in a range: 1 and where they are; 0: none. */
long hk_filled(struct mm_struct *mm, u64 from, u64 end, u64 *start, u64 *stop)
{
	bool found = false;
	u64 at = from;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	rcu_read_lock();
	while (at < end) {
		u64 next;
		bool filled = hk_look_up(mm, at, &next);

		next = min(next, end);
		if (filled && !found)
			*start = at;
		if (!filled && found)
			break;
		found |= filled;
		at = next;
		*stop = at;
		if (found && *stop - *start >= HK_LONGEST_RUN) {
			*stop = *start + HK_LONGEST_RUN;
			break;
		}
	}
	rcu_read_unlock();
	mmap_read_unlock(mm);
	return found;
}

/* All that follows is for the calling task, whose address space nobody shares yet. */

long hk_unmap_all(void)
{
	return vm_munmap(0, TASK_SIZE);
}

long hk_map(u64 start, u64 length, u32 prot, u64 flags, struct file *file, u64 offset)
{
	unsigned long got = vm_mmap(file, start, length, prot, flags | MAP_FIXED_NOREPLACE | (file ? 0 : MAP_ANONYMOUS),
				    offset);

	if (IS_ERR_VALUE(got))
		return (long)got;
	return got == start ? 0 : -EINVAL;
}

/* Also to where the task itself may not write. */
long hk_fill(u64 at, void *from, u32 length)
{
	int done;

	if (!copy_to_user(u64_to_user_ptr(at), from, length))
		return 0;
	done = access_process_vm(current, at, from, length, FOLL_FORCE | FOLL_WRITE);
	return done == (int)length ? 0 : -EFAULT;
}

long hk_set_marks(const u64 *marks, const u64 *auxiliary)
{
	struct mm_struct *mm = current->mm;
	u32 i;

	for (i = 0; i < 11; i++)
		if (marks[i] >= TASK_SIZE_MAX)
			return -EINVAL;
	if (mmap_write_lock_killable(mm))
		return -EINTR;
	mm->start_code = marks[0];
	mm->end_code = marks[1];
	mm->start_data = marks[2];
	mm->end_data = marks[3];
	mm->start_brk = marks[4];
	mm->brk = marks[5];
	mm->start_stack = marks[6];
	mm->arg_start = marks[7];
	mm->arg_end = marks[8];
	mm->env_start = marks[9];
	mm->env_end = marks[10];
	for (i = 0; i < AT_VECTOR_SIZE; i++)
		mm->saved_auxv[i] = auxiliary[i];
	mmap_write_unlock(mm);
	return 0;
}
