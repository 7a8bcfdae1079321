/* SPDX-License-Identifier: Apache-2.0 */
#include "export/nbd/option.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio/sock.h"
#include "base/bytes.h"
#include "export/nbd/conn.h"
#include "export/nbd/export.h"
#include "export/nbd/server.h"

enum { NAME_ECHOED = 80 };	/* of an unknown name, in a text */

/* ---- replies ---- */

void
nbd_option_put(struct nbd_handshake *h, const void *from, size_t len)
{
	if (h->out_len + len > h->out_size && !h->out_failed) {
		size_t size = (h->out_len + len) * 2 + 512;
		uint8_t *p = realloc(h->out, size);

		h->out_failed = !p;
		if (p) {
			h->out = p;
			h->out_size = size;
		}
	}
	if (h->out_failed)
		return;
	if (len)
		memcpy(h->out + h->out_len, from, len);
	h->out_len += len;
}

void
nbd_option_put_u16(struct nbd_handshake *h, uint16_t v)
{
	uint8_t be[2];

	put_be16(be, v);
	nbd_option_put(h, be, sizeof(be));
}

void
nbd_option_put_u32(struct nbd_handshake *h, uint32_t v)
{
	uint8_t be[4];

	put_be32(be, v);
	nbd_option_put(h, be, sizeof(be));
}

void
nbd_option_put_u64(struct nbd_handshake *h, uint64_t v)
{
	uint8_t be[8];

	put_be64(be, v);
	nbd_option_put(h, be, sizeof(be));
}

void
nbd_option_head(struct nbd_handshake *h, uint32_t type, size_t len)
{
	nbd_option_put_u64(h, NBD_REPLY_MAGIC);
	nbd_option_put_u32(h, h->option);
	nbd_option_put_u32(h, type);
	nbd_option_put_u32(h, (uint32_t)len);
}

enum nbd_step
nbd_option_ack(struct nbd_handshake *h)
{
	nbd_option_head(h, NBD_REP_ACK, 0);
	return NBD_STEP_NEXT;
}

enum nbd_step
nbd_option_error(struct nbd_handshake *h, uint32_t type, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	nbd_option_head(h, type, strlen(text));
	nbd_option_put(h, text, strlen(text));
	return NBD_STEP_NEXT;
}

struct nbd_export *
nbd_option_find_export(const struct nbd_handshake *h, const char *name)
{
	struct nbd_export *e = nbd_export_find(h->conn->server, name);

	return e && e->needs_tls && !h->conn->tls ? NULL : e;
}

enum nbd_step
nbd_option_unknown_export(struct nbd_handshake *h, const char *name)
{
	const char *dots = strlen(name) >= NAME_ECHOED ? "..." : "";
	bool asks = h->option == NBD_OPT_INFO || h->option == NBD_OPT_GO;

	/* Without TLS nobody finds out which names there are with it. */
	if (asks && h->conn->server->creds && !h->conn->tls)
		return nbd_option_error(h, NBD_REP_ERR_TLS_REQD,
					"export '%.*s%s' not present without TLS", NAME_ECHOED,
					name, dots);
	return nbd_option_error(h, NBD_REP_ERR_UNKNOWN, "export '%.*s%s' not present",
				NAME_ECHOED, name, dots);
}

int
nbd_option_send(struct nbd_handshake *h)
{
	int r = h->out_failed ? -ENOMEM : sock_send(h->conn->sock, h->out, h->out_len);

	h->out_len = 0;
	return r;
}

/* ---- the reader: each call replies by itself if it fails ---- */

bool
nbd_option_get_bytes(struct nbd_handshake *h, size_t len, const uint8_t **ret)
{
	if (len > h->left) {
		nbd_option_error(h, NBD_REP_ERR_INVALID, "Inconsistent lengths in option %s",
				 nbd_proto_option_name(h->option));
		return false;
	}
	*ret = h->data;
	h->data += len;
	h->left -= len;
	return true;
}

bool
nbd_option_get_u16(struct nbd_handshake *h, uint16_t *ret)
{
	const uint8_t *p;

	if (!nbd_option_get_bytes(h, 2, &p))
		return false;
	*ret = get_be16(p);
	return true;
}

bool
nbd_option_get_u32(struct nbd_handshake *h, uint32_t *ret)
{
	const uint8_t *p;

	if (!nbd_option_get_bytes(h, 4, &p))
		return false;
	*ret = get_be32(p);
	return true;
}

bool
nbd_option_get_chars(struct nbd_handshake *h, uint32_t len, char *to)
{
	const uint8_t *p;

	assert(len <= NBD_STRING_MAX);
	if (!nbd_option_get_bytes(h, len, &p))
		return false;
	if (memchr(p, 0, len)) {
		nbd_option_error(h, NBD_REP_ERR_INVALID, "Unexpected embedded NUL in option %s",
				 nbd_proto_option_name(h->option));
		return false;
	}
	memcpy(to, p, len);
	to[len] = '\0';
	return true;
}

bool
nbd_option_get_name(struct nbd_handshake *h, char *to)
{
	uint32_t len;

	if (!nbd_option_get_u32(h, &len))
		return false;
	if (len > NBD_STRING_MAX) {
		nbd_option_error(h, NBD_REP_ERR_INVALID, "Invalid name length: %" PRIu32, len);
		return false;
	}
	return nbd_option_get_chars(h, len, to);
}

bool
nbd_option_get_end(struct nbd_handshake *h)
{
	if (!h->left)
		return true;
	nbd_option_error(h, NBD_REP_ERR_INVALID, "option '%s' has unexpected length",
			 nbd_proto_option_name(h->option));
	return false;
}
