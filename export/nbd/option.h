/* SPDX-License-Identifier: Apache-2.0 */
/* export/nbd/option.h - what the handlers of options are made of.
 *
 * An option's data is in memory as a whole; the reader goes through it and cannot
 * leave it.  Replies are gathered in memory, and sent when the option is done.
 *
 * Context    coroutine, loop 0; none of these waits but nbd_option_send().
 * Errors     the reader replies by itself where the data is malformed, and gives
 *            false: nothing is left to be said.  No memory for a reply shows when
 *            it is to be sent.
 */
#ifndef EXPORT_NBD_OPTION_H
#define EXPORT_NBD_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "aio/timer.h"
#include "export/nbd/proto.h"

struct nbd_conn;
struct nbd_export;

/* Where a handshake stands; handshake.c says how it goes on. */
enum nbd_state { NBD_HS_FLAGS, NBD_HS_PLAIN, NBD_HS_FIXED, NBD_HS_OLD, NBD_HS_DONE,
		 NBD_HS_STATES };

/* What an option's handler wants next. */
enum nbd_step { NBD_STEP_NEXT, NBD_STEP_TLS, NBD_STEP_TRANSMIT, NBD_STEP_END };

struct nbd_handshake {
	struct nbd_conn *conn;
	struct timer limit;
	enum nbd_state state;
	bool no_zeroes;
	uint32_t option;	/* the one at hand */

	/* its data, as the reader goes through it */
	const uint8_t *data;
	size_t left;

	/* replies that wait to be sent */
	uint8_t *out;
	size_t out_len, out_size;
	bool out_failed;	/* no memory for one */
};

/* ---- replies ---- */

/* The header of one with len bytes of data, which follow. */
void nbd_option_head(struct nbd_handshake *h, uint32_t type, size_t len);
void nbd_option_put(struct nbd_handshake *h, const void *from, size_t len);
void nbd_option_put_u16(struct nbd_handshake *h, uint16_t v);
void nbd_option_put_u32(struct nbd_handshake *h, uint32_t v);
void nbd_option_put_u64(struct nbd_handshake *h, uint64_t v);

/* Whole ones; they give NBD_STEP_NEXT. */
enum nbd_step nbd_option_ack(struct nbd_handshake *h);
enum nbd_step nbd_option_error(struct nbd_handshake *h, uint32_t type, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* The export that the client means, if it may know of it; else NULL, and what to
 * reply then. */
struct nbd_export *nbd_option_find_export(const struct nbd_handshake *h, const char *name);
enum nbd_step nbd_option_unknown_export(struct nbd_handshake *h, const char *name);

/* Send what was gathered: 0 or -errno. */
int nbd_option_send(struct nbd_handshake *h);

/* ---- the reader ---- */

bool nbd_option_get_bytes(struct nbd_handshake *h, size_t len, const uint8_t **ret);
bool nbd_option_get_u16(struct nbd_handshake *h, uint16_t *ret);
bool nbd_option_get_u32(struct nbd_handshake *h, uint32_t *ret);
/* len bytes as a string; to has room for NBD_STRING_MAX + 1. */
bool nbd_option_get_chars(struct nbd_handshake *h, uint32_t len, char *to);
/* A string behind its length. */
bool nbd_option_get_name(struct nbd_handshake *h, char *to);
/* Nothing is left. */
bool nbd_option_get_end(struct nbd_handshake *h);

/* ---- meta.c ---- */

/* NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
enum nbd_step nbd_meta_option(struct nbd_handshake *h);

#endif
