/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/drivers.h"
#include "block/io.h"
#include "block/open.h"
#include "block/qcow/qcow.h"
#include "schema/types.h"

static int
load(struct qcow *q, struct error **errp)
{
	struct node *file = q->node->file->child;
	struct qcow_header *h = &q->header;
	char name[QCOW_BACKING_MAX + 1] = { 0 };
	uint8_t head[QCOW_HEADER];
	int r = node_pread(file, 0, head, sizeof(head));

	if (r < 0)
		return error_set_errno(errp, r, "Could not read qcow header"), -1;
	if (qcow_header_parse(head, h, errp))
		return -1;
	q->cluster_size = UINT32_C(1) << h->cluster_bits;
	if (!h->backing_off)
		return 0;
	r = node_pread(file, h->backing_off, name, h->backing_len);
	if (r < 0)
		return error_set_errno(errp, r, "Could not read backing file name"), -1;
	q->backing_name = strdup(name);
	return q->backing_name ? 0 : error_set(errp, "Cannot allocate memory");
}

static int
open_encrypted(struct qcow *q, struct opener *op, struct error **errp)
{
	struct node *n = q->node;
	struct crypt_layer layer = {
		.filename = node_filename(n->file->child),
		.node_name = n->name,
		.format = "qcow",
		.kind = CIPHER_QCOW_AES,
		.file = n->file->child,
		.depth = opener_depth(op),
	};

	if (opener_encrypted(op, n, &layer, &q->key, errp))
		return -1;
	if (q->key)
		q->decryptor = opener_policy(op)->decryptor;
	return 0;
}

static int
open_backing(struct qcow *q, struct opener *op, const struct BlockdevOptionsQcow *o,
	     struct error **errp)
{
	struct node *n = q->node;

	if (o->backing)
		return opener_backing(op, n, o->backing, &n->backing, errp);
	if (!q->backing_name || !*q->backing_name)
		return 0;
	/* This format has no place for the backing file's format. */
	return opener_backing_named(op, n, q->backing_name, NULL, &n->backing, errp);
}

static int
qcow_open(struct node *n, struct opener *op, struct error **errp)
{
	const struct BlockdevOptionsQcow *o = &n->options->u.qcow;
	struct qcow *q = n->state;

	q->node = n;
	if (opener_child(op, n, o->file, "file", ROLE_IMAGE, &n->file, errp))
		return -1;
	if (qcow_cache_init(&q->cache, n->read_only ? opener_policy(op)->table_memory : 0)) {
		error_set(errp, "Cannot allocate memory");
		goto fail;
	}
	if (load(q, errp))
		goto fail;
	atomic_store(&n->size, round_down(q->header.size, 512));
	n->limits.align = 512;
	if (q->header.aes && open_encrypted(q, op, errp))
		goto fail;
	if (open_backing(q, op, o, errp))
		goto fail;
	if (q->key && !n->read_only) {
		error_set(errp, "An encrypted image can only be opened read-only");
		goto fail;
	}
	q->end = atomic_load(&n->file->child->size);
	return 0;

fail:
	if (q->key)
		opener_policy(op)->decryptor->forget(q->key);
	qcow_cache_done(&q->cache);
	free(q->backing_name);
	return -1;
}

/* All that was changed, for good. */
static int
store(struct node *n)
{
	int r = qcow_flush(n);

	return r < 0 || n->read_only ? r : node_flush(n->file->child);
}

static int
qcow_close(struct node *n)
{
	struct qcow *q = n->state;
	int r = store(n);

	if (q->key)
		q->decryptor->forget(q->key);
	qcow_cache_done(&q->cache);
	free(q->backing_name);
	return r;
}

static int
qcow_set_read_only(struct node *n, bool read_only, struct error **errp)
{
	const struct qcow *q = n->state;
	int r = read_only ? store(n) : 0;

	if (r < 0)
		return error_set_errno(errp, r, "Could not write back the image's tables"), -1;
	if (!read_only && q->header.aes)
		return error_set(errp, "An encrypted image can only be opened read-only");
	return 0;
}

static int
qcow_info(struct node *n, struct ImageInfo *info, struct error **errp)
{
	const struct qcow *q = n->state;

	info->has_cluster_size = true;
	info->cluster_size = q->cluster_size;
	if (q->header.aes)
		info->has_encrypted = info->encrypted = true;
	if (!q->backing_name || !*q->backing_name)
		return 0;
	info->backing_filename = strdup(q->backing_name);
	return info->backing_filename ? 0 : error_set(errp, "Cannot allocate memory");
}

const struct driver driver_qcow = {
	.name = "qcow",
	.caps = DRIVER_BACKING,
	.state_size = sizeof(struct qcow),
	.open = qcow_open,
	.close = qcow_close,
	.set_read_only = qcow_set_read_only,
	.read = qcow_read,
	.write = qcow_write,
	.flush = qcow_flush,
	.status = qcow_status,
	.info = qcow_info,
	.create = qcow_create,
};
