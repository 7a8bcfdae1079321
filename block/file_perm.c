/* SPDX-License-Identifier: Apache-2.0 */
/* The file driver's part in changes of the graph: locks that say on the file what
 * its users do, and a descriptor that can write once somebody writes.
 *
 * The descriptor's number never changes: a reopened file is moved onto it by
 * dup3(), which requests in flight do not notice.  The locks belong to what the
 * number refers to, so they are taken anew before the move; the old ones end
 * with it, and shared locks of our own never contradict each other. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "aio/work.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/file.h"
#include "block/node.h"

enum { PERM_ANY_WRITE = PERM_WRITE | PERM_WRITE_UNCHANGED | PERM_RESIZE };

/* The same file in another mode: by its descriptor, because its path may name
 * something else by now; by its path where there is no /proc. */
static int
open_again(const struct file *f, const char *path, bool writable, bool direct)
{
	int flags = O_CLOEXEC | (writable ? O_RDWR : O_RDONLY) | (direct ? O_DIRECT : 0);
	struct stat now, then;
	char self[32];
	int fd;

	snprintf(self, sizeof(self), "/proc/self/fd/%d", f->fd);
	fd = open(self, flags);
	if (fd >= 0 || errno != ENOENT)
		return fd < 0 ? -errno : fd;
	fd = open(path, flags);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &now) < 0 || fstat(f->fd, &then) < 0 ||
	    now.st_dev != then.st_dev || now.st_ino != then.st_ino) {
		close(fd);
		return -ESTALE;
	}
	return fd;
}

/* Let f->fd refer to fd's file description. */
static void
move_onto(struct file *f, int fd, bool writable)
{
	struct lock_set none = { 0 };

	if (f->locking)
		(void)lock_take(fd, &none, f->held, NULL);
	while (dup3(fd, f->fd, O_CLOEXEC) < 0 && (errno == EINTR || errno == EBUSY))
		;
	close(fd);
	f->writable = writable;
}

struct prepare {
	struct node *node;
	struct lock_set want;
	bool writes;
	struct error **errp;
};

static int
prepare_locks(struct file *f, const struct prepare *p)
{
	struct lock_set all = { f->held.perm | p->want.perm,
				f->held.unshared | p->want.unshared };

	/* Only letting go: nobody can object. */
	if (all.perm == f->held.perm && all.unshared == f->held.unshared)
		return 0;
	if (lock_take(f->fd, &f->held, all, p->errp) < 0)
		return -1;
	return lock_check(f->fd, p->want, p->node->filename, p->errp);
}

static int
prepare_work(void *arg)
{
	struct prepare *p = arg;
	struct file *f = p->node->state;
	int fd = -1;

	if (p->writes && !f->writable && !p->node->read_only) {
		fd = open_again(f, p->node->filename, true, p->node->direct);
		if (fd < 0)
			return error_set_errno(p->errp, fd, "Could not open '%s'",
					       p->node->filename), -1;
	}
	f->before = f->held;
	if (f->locking && prepare_locks(f, p) < 0) {
		lock_drop(f->fd, &f->held, f->before);
		if (fd >= 0)
			close(fd);
		return -1;
	}
	f->next_fd = fd;
	return 0;
}

int
file_perm_prepare(struct node *n, perm_set perm, perm_set shared, struct error **errp)
{
	struct prepare p = {
		.node = n,
		.want = { perm, ~shared & PERM_ALL },
		.writes = perm & PERM_ANY_WRITE,
		.errp = errp,
	};

	return work_run(prepare_work, &p);
}

void
file_perm_commit(struct node *n, perm_set perm, perm_set shared)
{
	struct file *f = n->state;
	struct lock_set want = { perm, ~shared & PERM_ALL };

	if (f->next_fd >= 0)
		move_onto(f, f->next_fd, true);
	f->next_fd = -1;
	if (f->locking)
		lock_drop(f->fd, &f->held, want);
}

void
file_perm_abort(struct node *n)
{
	struct file *f = n->state;

	if (f->next_fd >= 0)
		close(f->next_fd);
	f->next_fd = -1;
	if (f->locking)
		lock_drop(f->fd, &f->held, f->before);
}

struct switch_mode {
	struct node *node;
	bool read_only;
	struct error **errp;
};

static int
switch_work(void *arg)
{
	struct switch_mode *s = arg;
	struct file *f = s->node->state;
	int fd;

	if (f->writable == !s->read_only)
		return 0;
	fd = open_again(f, s->node->filename, !s->read_only, s->node->direct);
	if (fd < 0)
		return error_set_errno(s->errp, fd, "Could not reopen file"), -1;
	move_onto(f, fd, !s->read_only);
	return 0;
}

int
file_set_read_only(struct node *n, bool read_only, struct error **errp)
{
	struct switch_mode s = { n, read_only, errp };

	return work_run(switch_work, &s);
}
