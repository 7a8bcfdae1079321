/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/meta.c - options that list and choose metadata contexts. */
#include <string.h>

#include "export/nbd/conn.h"
#include "export/nbd/export.h"
#include "export/nbd/option.h"
#include "export/nbd/status.h"

/* Which contexts of e the queries in the data name; false: it is replied. */
static bool
get_queries(struct nbd_handshake *h, const struct nbd_export *e, uint64_t *ret)
{
	bool listing = h->option == NBD_OPT_LIST_META_CONTEXT;
	char query[NBD_STRING_MAX + 1];
	uint64_t found = 0;
	const uint8_t *p;
	uint32_t count, len;

	if (!nbd_option_get_u32(h, &count))
		return false;
	if (!count && listing)
		found = nbd_status_offered(e);
	while (count--) {
		if (!nbd_option_get_u32(h, &len))
			return false;
		/* Nothing of ours has so long a name. */
		if (len > NBD_STRING_MAX) {
			if (!nbd_option_get_bytes(h, len, &p))
				return false;
			continue;
		}
		if (!nbd_option_get_chars(h, len, query))
			return false;
		found |= nbd_status_query(e, query, listing);
	}
	*ret = found;
	return nbd_option_get_end(h);
}

static void
reply_context(struct nbd_handshake *h, const struct nbd_export *e, unsigned context)
{
	bool listing = h->option == NBD_OPT_LIST_META_CONTEXT;
	char name[NBD_CONTEXT_NAME_SIZE];

	nbd_status_context_name(e, context, name);
	nbd_option_head(h, NBD_REP_META_CONTEXT, 4 + strlen(name));
	nbd_option_put_u32(h, listing ? 0 : context);
	nbd_option_put(h, name, strlen(name));
}

enum nbd_step
nbd_meta_option(struct nbd_handshake *h)
{
	struct nbd_session *session = &h->conn->session;
	bool listing = h->option == NBD_OPT_LIST_META_CONTEXT;
	char name[NBD_STRING_MAX + 1];
	struct nbd_export *e;
	uint64_t found;

	if (!listing && session->mode < NBD_MODE_STRUCTURED)
		return nbd_option_error(h, NBD_REP_ERR_INVALID,
					"request option '%s' when structured reply is not negotiated",
					nbd_proto_option_name(h->option));
	/* Setting replaces what was set, also where it fails. */
	if (!listing) {
		session->meta_export = 0;
		session->contexts = 0;
	}
	if (!nbd_option_get_name(h, name))
		return NBD_STEP_NEXT;
	e = nbd_option_find_export(h, name);
	if (!e)
		return nbd_option_unknown_export(h, name);
	if (!get_queries(h, e, &found))
		return NBD_STEP_NEXT;
	for (unsigned i = 0; i < NBD_CONTEXTS_MAX; i++)
		if (found >> i & 1)
			reply_context(h, e, i);
	if (!listing) {
		session->meta_export = e->base.serial;
		session->contexts = found;
	}
	return nbd_option_ack(h);
}
