/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/hash.h - hashes by the names that LUKS headers use. */
#ifndef RESCUE_HASH_H
#define RESCUE_HASH_H

#include <stddef.h>

enum { HASH_DIGEST_MAX = 64, HASH_CTX_MAX = 512 };

struct nettle_hash;

const struct nettle_hash *hash_find(const char *name);	/* NULL: not known */

/* The digest of buf; out has room for the hash's digest_size.  Any thread. */
void hash_digest(const struct nettle_hash *hash, const void *buf, size_t len, void *out);

#endif
