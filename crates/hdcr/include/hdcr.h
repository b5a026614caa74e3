/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The manual page hdcr(3) is made from this file: a comment, one declaration below it, an empty line.
 */

/* libhdcr: what a program that runs under `hdcr run` may ask of HDCR, and what it is told.
 *
 * A program needs none of this to be checkpointed and rolled back. Without HDCR every call returns at once. Every function
 * may be called by any thread; none may be called in a signal handler, or between vfork(2) and exec. A child of fork(2)
 * begins as if it had never called any of them.
 *
 * What is given room for begins with its size, which HDCR_OPTIONS and HDCR_REPORT set: a program that was compiled with an
 * older header is written no further than it knows. A null pointer for options stands for those of `hdcr run`; a null
 * pointer for a report says that it is not wanted.
 *
 * What fails says why by a code: a stable word in the report, beside a message for people. The codes are listed with each
 * call and explained in docs/errors.md.
 */

#ifndef HDCR_H
#define HDCR_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- outcomes ---- */

/* On which branch a program is. */
enum hdcr_branch {
	HDCR_FAILED = -1,   /* there is no checkpoint; the report says why */
	HDCR_CONTINUED = 0, /* the checkpoint is durable, the program goes on */
	HDCR_RESTORED = 1,  /* a later life, brought back from an image taken during the call */
	HDCR_PENDING = 2    /* not known yet (hdcr_request_wait) */
};

/* What can be done about a failure. */
enum hdcr_class {
	HDCR_REFUSED = 1, /* it cannot be done as things are; nothing was touched */
	HDCR_CHANGED = 2, /* something changed meanwhile; trying again may work */
	HDCR_SYSTEM = 3,  /* the system failed */
	HDCR_CORRUPT = 4  /* an image is not what was written */
};

/* How a checkpoint is wanted. HDCR_OPTIONS sets the size; what is 0 is left to `hdcr run`. */
struct hdcr_options {
	size_t size;
	uint64_t timeout_ms; /* how long the job may stand still */
};

/* Initializes options. */
#define HDCR_OPTIONS { sizeof(struct hdcr_options), 0 }

/* What became of it. HDCR_REPORT sets the size. Texts end with a zero; what does not fit is cut off. */
struct hdcr_report {
	size_t size;
	uint64_t count;     /* restored: how often the job was brought back, this time included */
	uint64_t passed_ms; /* restored: from the checkpoint to the restore, by the clock of the day */
	int class_;         /* failed: enum hdcr_class */
	int reserved;
	char image[320];    /* continued, restored: JOB@NUMBER */
	char reason[32];    /* restored: crash, rollback, resume, hand */
	char code[64];      /* failed: a stable word */
	char message[1024]; /* failed: for people */
};

/* Initializes a report. */
#define HDCR_REPORT { sizeof(struct hdcr_report), 0, 0, 0, 0, "", "", "", "" }

/* ---- this life ---- */

/* 1 under a keeper that has answered, else 0. The first call asks; later ones are one load. */
int hdcr_is_enabled(void);

/* The name of the job with a zero, when there is room for all of it; its length, or -1 without HDCR. */
ssize_t hdcr_job(char *name, size_t room);

/* How often the job was brought back from a checkpoint, or begun anew after a crash. */
uint64_t hdcr_restart_count(void);

/* Where this life came from: 1 and a report, or 0 when it was never restored. */
int hdcr_restored(struct hdcr_report *report);

/* ---- checkpoints ---- */

/* This is a good moment for a checkpoint: the algorithm of the job may be waiting for one (--algorithm cooperative). Does not
 * wait. */
void hdcr_good_moment(void);

/* Takes a checkpoint of the whole job and waits until it is durable. Returns HDCR_CONTINUED, and HDCR_RESTORED in every
 * life that begins from an image in which this call was under way; HDCR_FAILED when there is no checkpoint.
 *
 * Codes: `no-keeper`, `in-hook`, `in-section`, `vetoed`, `keeper-gone`, `keeper-unheard`, and those of hdcr-checkpoint(1). */
int hdcr_checkpoint(const struct hdcr_options *options, struct hdcr_report *report);

/* Gives up this life of the job and goes back to its checkpoint with this number, the newest one for 0. Returns only when
 * that cannot be done: HDCR_FAILED.
 *
 * Codes: `no-keeper`, `in-hook`, `in-section`, `no-such-checkpoint`, `rollback-runs`, `overtaken`, `keeper-gone`,
 * `keeper-unheard`. */
int hdcr_rollback(uint64_t to, struct hdcr_report *report);

/* A checkpoint that is asked for and not waited for. */
typedef struct hdcr_request hdcr_request;

/* Asks for a checkpoint. Null and a report when it cannot be asked for.
 *
 * Codes: `no-keeper`, `in-hook`, `in-section`, `keeper-unheard`. */
hdcr_request *hdcr_request_begin(const struct hdcr_options *options, struct hdcr_report *report);

/* A descriptor for poll(2): it can be read when the request is met or has failed. Not to be read or closed. -1 for null. */
int hdcr_request_fd(const hdcr_request *request);

/* Waits for so many milliseconds, without an end when negative. HDCR_PENDING, or the branch, which is said once.
 *
 * Codes: as of hdcr_checkpoint; `overtaken`. HDCR_FAILED without a report for a request that is null. */
int hdcr_request_wait(const hdcr_request *request, int64_t limit_ms, struct hdcr_report *report);

/* Gives a request back, or null; a checkpoint that has not begun is not taken then. */
void hdcr_request_free(hdcr_request *request);

/* ---- hooks ---- */

/* When a hook is called. */
enum hdcr_when {
	HDCR_BEFORE = 1,        /* before each checkpoint, in ascending order */
	HDCR_AFTER = 2,         /* after each one before which hooks were called, in descending order */
	HDCR_AFTER_RESTORE = 3  /* in each life that begins from an image, in descending order */
};

/* What a hook is told. */
struct hdcr_event {
	size_t size;
	int when;
	int captured;                     /* HDCR_AFTER: 1: the program was captured; 0: there was no checkpoint after all */
	const struct hdcr_report *report; /* HDCR_AFTER_RESTORE: from what */
	char *text;                       /* HDCR_BEFORE: room for the reason of a veto */
	size_t room;
};

/* Called on the library's own thread, which takes no signals. Only what HDCR_BEFORE returns counts: 0, ready; a positive
 * number, not now; a negative one, never as long as this process lives. Who does not return within some seconds is not
 * waited for: the checkpoint is taken without it. A hook may not ask for a checkpoint. */
typedef int hdcr_hook(struct hdcr_event *event, void *data);

/* Sets a hook: its number, or 0 when there is no such time or no hook. A child of fork(2) has none. */
uint64_t hdcr_on(int when, int order, hdcr_hook *hook, void *data);

/* Takes a hook away, by its number. One that runs at the moment comes to its end. */
void hdcr_off(uint64_t hook);

/* ---- critical sections ---- */

/* While some thread is in a section, no checkpoint is taken: it waits for some seconds, then it is skipped, and told who was
 * inside. While one is being taken, nobody enters. Sections may be nested. A thread in one may not ask for a checkpoint. */
typedef struct hdcr_section hdcr_section;

/* Makes a section. To be made once: there is no way to give it back. The label is what is told of who is inside. */
hdcr_section *hdcr_section_new(const char *label);

/* Enters a section; waits while a checkpoint is being taken. */
void hdcr_enter(const hdcr_section *section);

/* Enters a section unless that has to wait. 1: inside; 0: it would have to wait. */
int hdcr_try_enter(const hdcr_section *section);

/* Leaves the innermost section of this thread. */
void hdcr_leave(void);

/* ---- memory ---- */

/* Leaves memory out of checkpoints: the pages that lie wholly in it hold zeros in every life that begins from an image. For
 * what can be computed again. Only private memory that shows no file (malloc, mmap, .bss). Of this process alone: a child
 * of fork(2) keeps its copy unless it asks itself. To be included again before it is freed or used for anything else. 0,
 * or -1 and a report. Not to be called in a hook.
 *
 * Codes: `in-hook`, `no-page`, `not-private`, `too-many-regions`, `no-keeper`, `keeper-gone`, `keeper-unheard`. */
int hdcr_exclude(const void *start, size_t length, struct hdcr_report *report);

/* The same for what nobody else may see: it is in no image, and a child of fork(2) and a core dump have zeros there. To be
 * called before the secret is written to it. 0, or -1 and a report.
 *
 * Codes: as of hdcr_exclude. */
int hdcr_secret(const void *start, size_t length, struct hdcr_report *report);

/* Keeps memory again, as if it had never been left out; a child of fork(2) and a core dump have zeros for a secret still. 0,
 * or -1 and a report.
 *
 * Codes: `no-keeper`, `keeper-gone`, `keeper-unheard`. */
int hdcr_include(const void *start, size_t length, struct hdcr_report *report);

#ifdef __cplusplus
}
#endif

#endif
