/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/meta.c - options that list and choose metadata contexts. */
#include <string.h>

#include "export/nbd/conn.h"
#include "export/nbd/export.h"
#include "export/nbd/option.h"
#include "export/nbd/status.h"

/* Which of the offered contexts the queries in the data name, or -1 after a
 * reply. */
static int
get_queries(struct nbd_handshake *h, bool listing, unsigned offered)
{
	char query[NBD_STRING_MAX + 1];
	unsigned found = 0;
	const uint8_t *p;
	uint32_t count, len;

	if (!nbd_option_get_u32(h, &count))
		return -1;
	if (!count && listing)
		found = ~0u;
	while (count--) {
		if (!nbd_option_get_u32(h, &len))
			return -1;
		/* Nothing of ours has so long a name. */
		if (len > NBD_STRING_MAX) {
			if (!nbd_option_get_bytes(h, len, &p))
				return -1;
			continue;
		}
		if (!nbd_option_get_chars(h, len, query))
			return -1;
		found |= nbd_status_query(query, listing);
	}
	return nbd_option_get_end(h) ? (int)(found & offered) : -1;
}

enum nbd_step
nbd_meta_option(struct nbd_handshake *h)
{
	struct nbd_session *session = &h->conn->session;
	bool listing = h->option == NBD_OPT_LIST_META_CONTEXT;
	char name[NBD_STRING_MAX + 1];
	struct nbd_export *e;
	int found;

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
	e = nbd_export_find(h->conn->server, name);
	if (!e)
		return nbd_option_unknown_export(h, name);
	found = get_queries(h, listing, nbd_status_offered(e));
	if (found < 0)
		return NBD_STEP_NEXT;
	for (unsigned i = 0; i < NBD_CONTEXTS; i++) {
		const char *context = nbd_status_context_name(i);

		if (!((unsigned)found & (1u << i)))
			continue;
		nbd_option_head(h, NBD_REP_META_CONTEXT, 4 + strlen(context));
		nbd_option_put_u32(h, listing ? 0 : i);
		nbd_option_put(h, context, strlen(context));
	}
	if (!listing) {
		session->meta_export = e->base.serial;
		session->contexts = (unsigned)found;
	}
	return nbd_option_ack(h);
}
