/* SPDX-License-Identifier: Apache-2.0 */
/* blockdev-create of a qcow image: header, backing file's name, an empty L1 table. */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/io.h"
#include "block/node.h"
#include "block/open.h"
#include "block/qcow/qcow.h"
#include "block/root.h"
#include "schema/types.h"

enum { SECTOR = 512 };

static int
plan(const struct BlockdevCreateOptionsQcow *o, struct qcow_header *h, struct error **errp)
{
	size_t name = o->backing_file ? strlen(o->backing_file) : 0;

	if (o->encrypt)
		return error_set(errp, "Cannot create an encrypted image: Quoin serves no encrypted "
				       "images; leave out 'encrypt'");
	if (!o->size)
		return error_set(errp, "Image size is too small, cannot be zero length");
	if (name > QCOW_BACKING_MAX)
		return error_set(errp, "Backing file name too long");
	/* An overlay's clusters are sectors, so that none is ever copied up. */
	*h = (struct qcow_header){
		.size = o->size,
		.cluster_bits = name ? 9 : 12,
		.l2_bits = name ? 12 : 9,
		.backing_off = name ? QCOW_HEADER : 0,
		.backing_len = (uint32_t)name,
		.l1_off = round_up(QCOW_HEADER + name, 8),
	};
	return 0;
}

/* The header last: only a whole image is one. */
static int
fill(struct node *file, const struct BlockdevCreateOptionsQcow *o, struct qcow_header *h,
     struct error **errp)
{
	CLEANUP(cleanup_free) uint8_t *head = calloc(1, h->l1_off);
	struct qcow_header judged;
	int r;

	if (!head)
		return error_set(errp, "Cannot allocate memory");
	qcow_header_encode(h, head);
	/* The same limits as for opening it; says how large the L1 table is. */
	if (qcow_header_parse(head, &judged, errp))
		return -1;
	memcpy(head + QCOW_HEADER, o->backing_file ? o->backing_file : "", h->backing_len);
	if (node_truncate(file, 0, false, PREALLOC_OFF, errp))
		return -1;
	r = node_zero(file, h->l1_off, round_up(8 * judged.l1_size, SECTOR), 0);
	if (!r)
		r = node_flush(file);
	if (!r)
		r = node_pwrite(file, 0, head, h->l1_off);
	if (!r)
		r = node_flush(file);
	return r < 0 ? (error_set_errno(errp, r, "Failed to write qcow header"), -1) : 0;
}

int
qcow_create(const struct BlockdevCreateOptions *opts, struct error **errp)
{
	const struct BlockdevCreateOptionsQcow *o = &opts->u.qcow;
	CLEANUP(node_unrefp) struct node *file = NULL;
	struct root *claim;
	struct qcow_header h;
	int r;

	if (plan(o, &h, errp) || node_open_ref(o->file, &open_policy_default, &file, errp))
		return -1;
	if (root_new(file, "root", PERM_WRITE | PERM_RESIZE | PERM_CONSISTENT_READ, PERM_ALL, NULL,
		     NULL, &claim, errp))
		return -1;
	r = fill(file, o, &h, errp);
	root_free(claim);
	return r;
}
