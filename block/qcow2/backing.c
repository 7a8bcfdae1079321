/* SPDX-License-Identifier: Apache-2.0 */
/* Writing another backing file's name and format into the header. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/rewrite.h"

int
qcow2_change_backing(struct node *n, const char *file, const char *fmt, struct error **errp)
{
	struct qcow2 *q = n->state;
	CLEANUP(cleanup_free) char *new_file = file ? strdup(file) : NULL;
	CLEANUP(cleanup_free) char *new_fmt = file && fmt ? strdup(fmt) : NULL;
	struct qcow2_header h;
	int r;

	if ((file && !new_file) || (file && fmt && !new_fmt))
		return error_set(errp, "Cannot allocate memory");
	if ((file && strlen(file) > QCOW2_BACKING_MAX) ||
	    (fmt && strlen(fmt) > QCOW2_EXT_FORMAT_MAX))
		return error_set(errp, "Backing file name too long");
	co_mutex_lock(&q->checkpoint);
	h = q->header;
	r = qcow2_ext_set(&q->exts, QCOW2_EXT_BACKING_FORMAT, new_fmt,
			  new_fmt ? (uint32_t)strlen(new_fmt) : 0);
	if (!r)
		r = qcow2_rewrite_header(q, &h, file, NULL);
	if (!r) {
		char *old_file = q->backing_name, *old_fmt = q->backing_format;

		qcow2_lock(q);
		q->header.backing_off = h.backing_off;
		q->header.backing_len = h.backing_len;
		qcow2_unlock(q);
		q->backing_name = STEAL(new_file);
		q->backing_format = STEAL(new_fmt);
		free(old_file);
		free(old_fmt);
	} else {	/* the header still says the old one */
		(void)qcow2_ext_set(&q->exts, QCOW2_EXT_BACKING_FORMAT, q->backing_format,
				    q->backing_format ? (uint32_t)strlen(q->backing_format) : 0);
	}
	co_mutex_unlock(&q->checkpoint);
	if (r == -ENOSPC)
		return error_set(errp, "No space left in the file header");
	return r < 0 ? (error_set_errno(errp, r, "Could not update qcow2 header"), -1) : 0;
}
