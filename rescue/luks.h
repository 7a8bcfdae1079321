/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/luks.h - LUKS version 1: from a passphrase to the master key's cipher.
 *
 * A header is hostile input: every number in it is bounded before it is used.
 *
 * Units      bytes.
 * Context    coroutine or any thread, as the read function given wants it;
 *            luks_unlock() computes for seconds.
 * Errors     0 or -1 with *errp.
 */
#ifndef RESCUE_LUKS_H
#define RESCUE_LUKS_H

#include <stddef.h>
#include <stdint.h>

struct cipher;
struct error;

enum {
	LUKS_HEADER = 592,
	LUKS_SLOTS = 8,
	LUKS_STRIPES = 4000,		/* no program has ever used another number */
	LUKS_KEY_MAX = 64,
	LUKS_ITERATIONS_MAX = 50 * 1000 * 1000,
};

struct luks_slot {
	uint32_t iterations;		/* 0: the slot is not used, or unsound */
	uint8_t salt[32];
	uint64_t material;		/* offset from the header's start */
};

struct luks {
	char alg[33], mode[33], ivgen[33], ivhash[33], hash[33];
	uint32_t key_len;
	uint8_t digest[20], digest_salt[32];
	uint32_t digest_iterations;
	uint64_t payload;		/* offset; means nothing within qcow2 */
	struct luks_slot slot[LUKS_SLOTS];
	char damage[80];		/* why a slot is not used that seems to be; "": none */
};

/* Understand a header in an area, which holds the key material too, of this
 * length.  At least one slot can be used then. */
int luks_parse(const uint8_t header[LUKS_HEADER], uint64_t area, struct luks *ret,
	       struct error **errp);

/* Read len bytes at off, counted from the header's start: 0 or -errno. */
typedef int luks_read_fn(void *user, uint64_t off, void *buf, size_t len);

enum luks_result { LUKS_OK, LUKS_WRONG = 1, LUKS_FAILED = -1 };

/* Try a passphrase on all slots that are used.  LUKS_OK: *ret_cipher decrypts
 * the payload, and *ret_slot tells which slot it was. */
enum luks_result luks_unlock(const struct luks *l, luks_read_fn *read, void *user,
			     const void *pass, size_t pass_len, struct cipher **ret_cipher,
			     unsigned *ret_slot, struct error **errp);

#endif
