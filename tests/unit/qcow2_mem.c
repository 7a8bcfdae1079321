/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/qcow2_mem.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio/co.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/graph.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/format.h"
#include "block/io.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/snapshots.h"
#include "tests/support/snapview.h"

enum { MEM_MAX = 512 << 20 };	/* a disk is full some time */

struct mem {
	pthread_mutex_t lock;
	uint8_t *data;
	size_t size, room;
	struct mem_faults faults;
	long calls;
};

static int
fault(struct mem *m, bool is_flush)
{
	bool yields;
	int r = 0;

	pthread_mutex_lock(&m->lock);
	m->calls++;
	yields = m->faults.yields;
	if (m->faults.fail_at && !(is_flush && m->faults.spare_flush)) {
		if (m->faults.fail_at == 1)
			r = m->faults.error;
		if (m->faults.fail_at > 1 || !m->faults.for_good)
			m->faults.fail_at--;
	}
	pthread_mutex_unlock(&m->lock);
	if (yields && co_self())
		co_yield();
	return r;
}

static uint64_t
max_size(const struct mem *m)
{
	return m->faults.max ? m->faults.max : MEM_MAX;
}

/* With the lock held. */
static void
grow(struct mem *m, uint64_t size)
{
	if (size <= m->size)
		return;
	if (size > m->room) {
		size_t room = round_up(size + size / 2, 65536);

		m->data = realloc(m->data, room);
		assert(m->data);
		m->room = room;
	}
	memset(m->data + m->size, 0, size - m->size);
	m->size = size;
}

static int
mem_read(struct node *n, uint64_t off, const struct iov *dst)
{
	struct mem *m = n->state;
	int r = fault(m, false);

	if (r < 0)
		return r;
	pthread_mutex_lock(&m->lock);
	assert(off + dst->len <= m->size);
	iov_write(dst, 0, m->data + off, dst->len);
	pthread_mutex_unlock(&m->lock);
	return 0;
}

static int
mem_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	struct mem *m = n->state;
	int r = fault(m, false);

	(void)flags;
	if (r < 0 && !m->faults.lands)
		return r;
	if (off + src->len > max_size(m))
		return -ENOSPC;
	pthread_mutex_lock(&m->lock);
	grow(m, off + src->len);
	iov_read(src, 0, m->data + off, src->len);
	pthread_mutex_unlock(&m->lock);
	return r;
}

static int
mem_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct mem *m = n->state;

	pthread_mutex_lock(&m->lock);
	memset(m->data + off, 0, len);
	pthread_mutex_unlock(&m->lock);
	return 0;
}

static int
mem_flush(struct node *n)
{
	return fault(n->state, true);
}

static int
mem_truncate(struct node *n, uint64_t size, bool exact, enum prealloc prealloc,
	     struct error **errp)
{
	struct mem *m = n->state;
	int r = fault(m, false);

	(void)exact;
	(void)prealloc;
	if (!r && size > max_size(m))
		r = -ENOSPC;
	if (r < 0)
		return error_set_errno(errp, r, "Could not resize"), -1;
	pthread_mutex_lock(&m->lock);
	grow(m, size);
	m->size = size;
	pthread_mutex_unlock(&m->lock);
	return 0;
}

static const struct driver mem_driver = {
	.name = "file",
	.caps = DRIVER_PROTOCOL | DRIVER_GROWS,
	.state_size = sizeof(struct mem),
	.read = mem_read,
	.write = mem_write,
	.discard = mem_discard,
	.flush = mem_flush,
	.truncate = mem_truncate,
};

static void
plain_limits(struct node *n)
{
	n->limits = (struct limits){ .align = 1, .mem_align = 1, .zero_align = 1,
				     .discard_align = 1, .max_transfer = UINT64_C(1) << 62,
				     .max_zero = UINT64_C(1) << 62,
				     .max_discard = UINT64_C(1) << 62 };
}

struct node *
mem_new(void)
{
	struct node *n = graph_node_new(&mem_driver, NULL, NULL);
	struct mem *m = n->state;

	pthread_mutex_init(&m->lock, NULL);
	plain_limits(n);
	n->discard_unmap = true;
	return n;
}

void
mem_free(struct node *n)
{
	struct mem *m = n->state;

	free(m->data);
	pthread_mutex_destroy(&m->lock);
	graph_node_free(n);
}

struct mem_faults *
mem_faults(struct node *n)
{
	return &((struct mem *)n->state)->faults;
}

long
mem_calls(struct node *n)
{
	struct mem *m = n->state;
	long calls = m->calls;

	m->calls = 0;
	return calls;
}

uint8_t *
mem_data(struct node *n)
{
	return ((struct mem *)n->state)->data;
}

void
mem_save(struct node *n, const char *path)
{
	struct mem *m = n->state;
	FILE *f = fopen(path, "w");

	assert(f && fwrite(m->data, 1, m->size, f) == m->size);
	fclose(f);
}

void
mem_load(struct node *n, const char *path)
{
	struct mem *m = n->state;
	FILE *f = fopen(path, "r");
	size_t len;

	assert(f && !fseek(f, 0, SEEK_END));
	len = (size_t)ftell(f);
	rewind(f);
	grow(m, len);
	len = fread(m->data, 1, len, f);
	m->size = len;
	atomic_store(&n->size, len);
	fclose(f);
}

/* ---- qcow2 ---- */

static const struct driver q2_driver = {
	.name = "qcow2",
	.caps = DRIVER_BACKING | DRIVER_ZERO_UNMAP | DRIVER_ZERO_FAST | DRIVER_COMPRESSED,
	.state_size = sizeof(struct qcow2),
	.read = qcow2_read,
	.write = qcow2_write,
	.zero = qcow2_zero,
	.discard = qcow2_discard,
	.flush = qcow2_flush,
	.status = qcow2_status,
	.truncate = qcow2_truncate,
	.bitmaps = &qcow2_bitmap_ops,
};

static struct edge *
join(struct node *parent, struct node *child, const char *name, unsigned role)
{
	struct edge *e = graph_edge_new(parent, name, role);

	graph_edge_point(e, child);
	return e;
}

static void
part(struct edge *e)
{
	if (e) {
		graph_edge_point(e, NULL);
		graph_edge_free(e);
	}
}

static struct node *data_file;

void
q2_use_data(struct node *data)
{
	data_file = data;
}

static void
drop(struct node *n)
{
	struct edge *file = n->file, *backing = n->backing;

	n->file = n->backing = NULL;
	part(file);
	part(backing);
	part(edge_find(n, "data-file"));
	graph_node_free(n);
}

struct node *
q2_open(struct node *file, struct node *backing, bool read_only, char **ret_error)
{
	struct node *n = graph_node_new(&q2_driver, NULL, NULL);
	struct error *err = NULL;
	struct qcow2 *q = n->state;

	n->read_only = read_only;
	n->discard_unmap = true;
	plain_limits(n);
	n->file = join(n, file, "file", ROLE_IMAGE);
	n->backing = backing ? join(n, backing, "backing", ROLE_COW) : NULL;
	q->node = n;
	if (qcow2_load(q, 0, &err)) {
		if (ret_error)
			*ret_error = strdup(error_text(err));
		error_free(err);
		drop(n);
		return NULL;
	}
	if (qcow2_bitmaps_load(q, &err)) {
		if (ret_error)
			*ret_error = strdup(error_text(err));
		error_free(err);
		qcow2_unload(q);
		drop(n);
		return NULL;
	}
	if (!read_only)
		qcow2_bitmaps_watch(q);
	if (q->external_data)
		q->data_edge = join(n, data_file, "data-file", ROLE_DATA);
	n->limits.zero_align = q->data_raw ? q->cluster_size : q->sub_size;
	n->limits.discard_align = q->cluster_size;
	q->pass_discard[QCOW2_FREE_REQUEST] = true;
	return n;
}

int
q2_close(struct node *n)
{
	int r = qcow2_close(n);

	drop(n);
	return r;
}

int
q2_read_snapshot(struct node *n, const char *name, uint8_t *buf, uint64_t len)
{
	struct qcow2 *q = n->state;
	const struct qcow2_snapshot *s = q->snapshots;

	while (strcmp(s->name, name))
		assert(++s < q->snapshots + q->nb_snapshots);
	assert(s->disk_size == len);
	return snapview_read(n, s, buf, len);
}

struct node *
q2_make(struct node *file, const struct qcow2_format *f, struct node *backing)
{
	struct error *err = NULL;
	struct node *n;
	char *text = NULL;

	if (qcow2_format(file, f, &err)) {
		fprintf(stderr, "%s\n", error_text(err));
		abort();
	}
	n = q2_open(file, backing, false, &text);
	if (!n) {
		fprintf(stderr, "%s\n", text);
		abort();
	}
	return n;
}
