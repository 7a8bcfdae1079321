/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/status.h - metadata contexts: what block status can tell.
 *
 * A table of contexts; options choose among them by name, and block status
 * asks each of the chosen ones.
 */
#ifndef EXPORT_NBD_STATUS_H
#define EXPORT_NBD_STATUS_H

#include <stdbool.h>
#include <stdint.h>

struct nbd_export;
struct nbd_request;
struct nbd_session;

/* Bits in nbd_session.contexts; also their ids on the wire.  An export's bitmaps come
 * behind the others. */
enum nbd_context {
	NBD_CONTEXT_ALLOCATION = 0,
	NBD_CONTEXT_DEPTH = 1,
	NBD_CONTEXT_BITMAPS = 2,
	NBD_CONTEXTS_MAX = 64,

	NBD_BITMAPS_MAX = NBD_CONTEXTS_MAX - NBD_CONTEXT_BITMAPS,
	NBD_CONTEXT_NAME_SIZE = 1100,
};

/* The bits of those that an export offers. */
uint64_t nbd_status_offered(const struct nbd_export *e);

/* Write a context's name to `to`, which has room for NBD_CONTEXT_NAME_SIZE. */
void nbd_status_context_name(const struct nbd_export *e, unsigned context, char *to);

/* The contexts of e that a query names; wildcards only where listing. */
uint64_t nbd_status_query(const struct nbd_export *e, const char *query, bool listing);

/* Find out which contexts a request asks, and for how long a range: false if that
 * is wrong, and the error is queued. */
bool nbd_status_unpack(struct nbd_request *q);

/* How much memory the answer takes at most. */
uint32_t nbd_status_memory(const struct nbd_session *session, uint16_t flags, uint64_t len);

/* Answer NBD_CMD_BLOCK_STATUS.  Coroutine. */
void nbd_status_run(struct nbd_request *q);

#endif
