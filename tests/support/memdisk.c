/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/memdisk.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "aio/co.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/node.h"

struct memdisk_private {
	pthread_mutex_t lock;
	uint8_t *start;		/* content at the checkpoint */
	uint64_t start_size;
	struct driver driver;	/* with this disk's capabilities */
};

/* ---- content ---- */

static int
make_room(struct memdisk *m, uint64_t size)
{
	uint64_t room = m->room ? m->room : 4096;
	uint8_t *p;

	if (size <= m->room)
		return 0;
	if (m->max_size && size > m->max_size)
		return -ENOSPC;
	while (room < size)
		room *= 2;
	p = realloc(m->content, room);
	if (!p)
		return -ENOMEM;
	memset(p + m->room, 0, room - m->room);
	m->content = p;
	m->room = room;
	return 0;
}

static int
grow(struct memdisk *m, uint64_t size)
{
	int err = make_room(m, size);

	if (!err && size > m->size)
		m->size = size;
	return err;
}

struct memdisk *
memdisk_new(uint64_t size)
{
	struct memdisk *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	m->private = calloc(1, sizeof(*m->private));
	if (!m->private || grow(m, size) < 0) {
		memdisk_free(m);
		return NULL;
	}
	pthread_mutex_init(&m->private->lock, NULL);
	memdisk_checkpoint(m);
	return m;
}

static void
drop_log(struct memdisk *m)
{
	for (size_t i = 0; i < m->log_count; i++)
		free(m->log[i].data);
	m->log_count = 0;
}

void
memdisk_free(struct memdisk *m)
{
	if (!m)
		return;
	drop_log(m);
	free(m->log);
	free(m->content);
	if (m->private)
		free(m->private->start);
	free(m->private);
	free(m);
}

void
memdisk_checkpoint(struct memdisk *m)
{
	struct memdisk_private *p = m->private;

	drop_log(m);
	free(p->start);
	p->start_size = m->size;
	p->start = malloc(m->size ? m->size : 1);
	if (p->start && m->size)
		memcpy(p->start, m->content, m->size);
}

/* ---- faults and log ---- */

static int
count_down(struct memdisk_fault *f)
{
	if (!f->count)
		return 0;
	if (f->count > 1) {
		f->count--;
		return 0;
	}
	if (!f->sticky)
		f->count = 0;
	return f->err;
}

/* Under the lock: shall this call fail, and note it. */
static int
begin(struct memdisk *m, enum memdisk_op op)
{
	int err;

	m->calls[op]++;
	err = count_down(&m->fault[op]);
	if (!err && op != MEMDISK_READ)
		err = count_down(&m->any_fault);
	return err;
}

static int
record(struct memdisk *m, enum memdisk_op op, unsigned flags, uint64_t off,
       uint64_t len, const struct iov *src)
{
	static _Atomic uint64_t seq;
	struct memdisk_entry *e;

	if (m->no_log)
		return 0;
	if (m->log_count == m->log_room) {
		size_t room = m->log_room ? 2 * m->log_room : 64;
		struct memdisk_entry *p = realloc(m->log, room * sizeof(*p));

		if (!p)
			return -ENOMEM;
		m->log = p;
		m->log_room = room;
	}
	e = &m->log[m->log_count];
	*e = (struct memdisk_entry){ .op = op, .flags = flags, .off = off, .len = len,
				     .seq = ++seq };
	if (src) {
		e->data = malloc(len ? len : 1);
		if (!e->data)
			return -ENOMEM;
		iov_read(src, 0, e->data, len);
	}
	m->log_count++;
	return 0;
}

void
memdisk_fail(struct memdisk *m, unsigned ops, unsigned nth, int err, bool sticky)
{
	pthread_mutex_lock(&m->private->lock);
	for (int i = 0; i < MEMDISK_OPS; i++)
		if (ops & (1U << i))
			m->fault[i] = (struct memdisk_fault){ nth, err, sticky };
	pthread_mutex_unlock(&m->private->lock);
}

void
memdisk_fail_any(struct memdisk *m, unsigned nth, int err, bool sticky)
{
	pthread_mutex_lock(&m->private->lock);
	m->any_fault = (struct memdisk_fault){ nth, err, sticky };
	pthread_mutex_unlock(&m->private->lock);
}

/* ---- the driver ---- */

static struct memdisk *
disk_of(struct node *n)
{
	return *(struct memdisk **)n->state;
}

static void
let_others_run(const struct memdisk *m)
{
	for (unsigned i = 0; i < m->yields && co_self(); i++)
		co_yield();
}

static int
mem_open(struct node *n, struct opener *op, struct error **errp)
{
	struct memdisk *m = n->open_arg;

	(void)op;
	(void)errp;
	*(struct memdisk **)n->state = m;
	atomic_store(&n->size, m->size);
	n->limits.align = m->align;
	n->limits.mem_align = m->mem_align;
	n->limits.max_transfer = m->max_transfer;
	n->limits.zero_align = m->zero_align;
	n->limits.discard_align = m->discard_align;
	n->filename = strdup("/mem/disk");
	return n->filename ? 0 : error_set(errp, "Cannot allocate memory");
}

static int
mem_read(struct node *n, uint64_t off, const struct iov *dst)
{
	struct memdisk *m = disk_of(n);
	int err;

	let_others_run(m);
	pthread_mutex_lock(&m->private->lock);
	err = begin(m, MEMDISK_READ);
	if (!err) {
		uint64_t have = off < m->size ? min_u64(m->size - off, dst->len) : 0;

		if (have)
			iov_write(dst, 0, m->content + off, have);
		if (have < dst->len)
			iov_fill(dst, have, 0, dst->len - have);
	}
	pthread_mutex_unlock(&m->private->lock);
	return err;
}

static int
mem_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	struct memdisk *m = disk_of(n);
	int err;

	let_others_run(m);
	pthread_mutex_lock(&m->private->lock);
	err = begin(m, MEMDISK_WRITE);
	if (!err)
		err = grow(m, off + src->len);
	if (!err)
		err = record(m, MEMDISK_WRITE, flags, off, src->len, src);
	if (!err)
		iov_read(src, 0, m->content + off, src->len);
	pthread_mutex_unlock(&m->private->lock);
	let_others_run(m);
	return err;
}

static int
mem_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct memdisk *m = disk_of(n);
	int err;

	let_others_run(m);
	pthread_mutex_lock(&m->private->lock);
	err = begin(m, MEMDISK_ZERO);
	if (!err)
		err = grow(m, off + len);
	if (!err)
		err = record(m, MEMDISK_ZERO, flags, off, len, NULL);
	if (!err)
		memset(m->content + off, 0, len);
	pthread_mutex_unlock(&m->private->lock);
	return err;
}

static int
mem_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct memdisk *m = disk_of(n);
	int err;

	let_others_run(m);
	for (unsigned i = 0; i < m->slow_discard && co_self(); i++)
		co_yield();
	pthread_mutex_lock(&m->private->lock);
	err = begin(m, MEMDISK_DISCARD);
	if (!err)
		err = record(m, MEMDISK_DISCARD, 0, off, len, NULL);
	if (!err && off < m->size)
		memset(m->content + off, 0, min_u64(len, m->size - off));
	pthread_mutex_unlock(&m->private->lock);
	return err;
}

static int
mem_flush(struct node *n)
{
	struct memdisk *m = disk_of(n);
	int err;

	let_others_run(m);
	pthread_mutex_lock(&m->private->lock);
	err = begin(m, MEMDISK_FLUSH);
	if (!err)
		err = record(m, MEMDISK_FLUSH, 0, 0, 0, NULL);
	pthread_mutex_unlock(&m->private->lock);
	return err;
}

static int
mem_truncate(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
	     struct error **errp)
{
	struct memdisk *m = disk_of(n);
	int err;

	(void)exact;
	(void)prealloc;
	let_others_run(m);
	pthread_mutex_lock(&m->private->lock);
	err = begin(m, MEMDISK_TRUNCATE);
	if (!err)
		err = make_room(m, size);
	if (!err)
		err = record(m, MEMDISK_TRUNCATE, 0, size, 0, NULL);
	if (!err) {
		if (size < m->size)
			memset(m->content + size, 0, m->size - size);
		m->size = size;
		atomic_store(&n->size, size);
	}
	pthread_mutex_unlock(&m->private->lock);
	return err ? error_set_errno(errp, err, "Failed to resize file"), -1 : 0;
}

static const struct driver mem_driver = {
	.name = "mem",
	.caps = DRIVER_PROTOCOL | DRIVER_GROWS | DRIVER_FUA | DRIVER_ZERO_UNMAP |
		DRIVER_ZERO_FAST,
	.state_size = sizeof(struct memdisk *),
	.open = mem_open,
	.read = mem_read,
	.write = mem_write,
	.zero = mem_zero,
	.discard = mem_discard,
	.flush = mem_flush,
	.truncate = mem_truncate,
};

int
memdisk_open(struct memdisk *m, const char *node_name, bool read_only,
	     struct node **ret_node, struct error **errp)
{
	struct driver *d = &m->private->driver;

	*d = mem_driver;
	if (m->no_zero)
		d->zero = NULL;
	if (m->no_discard)
		d->discard = NULL;
	if (m->no_fua)
		d->caps &= ~(unsigned)DRIVER_FUA;
	if (m->no_grow)
		d->caps &= ~(unsigned)DRIVER_GROWS;
	return node_open_driver(d, node_name, m, read_only, ret_node, errp);
}

/* ---- power cuts ---- */

static void
apply(const struct memdisk_entry *e, uint8_t *image, uint64_t *size)
{
	switch (e->op) {
	case MEMDISK_WRITE:
		memcpy(image + e->off, e->data, e->len);
		*size = max_u64(*size, e->off + e->len);
		break;
	case MEMDISK_ZERO:
		memset(image + e->off, 0, e->len);
		*size = max_u64(*size, e->off + e->len);
		break;
	case MEMDISK_DISCARD:
		if (e->off < *size)
			memset(image + e->off, 0, min_u64(e->len, *size - e->off));
		break;
	case MEMDISK_TRUNCATE:
		if (e->off < *size)
			memset(image + e->off, 0, *size - e->off);
		*size = e->off;
		break;
	default:
		break;
	}
}

uint8_t *
memdisk_image(const struct memdisk *m, size_t count, bool (*keep)(size_t i, void *arg),
	      void *arg, uint64_t *ret_size)
{
	uint64_t size = m->private->start_size, most = size;
	uint8_t *image;
	size_t safe = 0;

	for (size_t i = 0; i < count; i++) {
		if (m->log[i].op == MEMDISK_FLUSH)
			safe = i;
		most = max_u64(most, m->log[i].off + m->log[i].len);
	}
	image = calloc(1, most ? most : 1);
	if (!image)
		return NULL;
	memcpy(image, m->private->start, size);
	for (size_t i = 0; i < count; i++)
		if (i < safe || m->log[i].flags & IO_FUA || !keep || keep(i, arg))
			apply(&m->log[i], image, &size);
	*ret_size = size;
	return image;
}
