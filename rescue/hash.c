/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/hash.h"

#include <assert.h>
#include <nettle/nettle-meta.h>
#include <nettle/version.h>
#include <stdint.h>
#include <string.h>

#include "base/cleanup.h"

const struct nettle_hash *
hash_find(const char *name)
{
	static const struct nettle_hash *const all[] = {
		&nettle_sha1,	&nettle_sha224, &nettle_sha256,
		&nettle_sha384, &nettle_sha512, &nettle_ripemd160,
		&nettle_md5,
#if NETTLE_VERSION_MAJOR > 3 || NETTLE_VERSION_MINOR >= 8
		&nettle_sm3,
#endif
	};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		if (!strcmp(all[i]->name, name))
			return all[i];
	return NULL;
}

void
hash_digest(const struct nettle_hash *hash, const void *buf, size_t len, void *out)
{
	uint8_t ctx[HASH_CTX_MAX] __attribute__((aligned(16)));

	assert(hash->context_size <= sizeof(ctx));
	hash->init(ctx);
	hash->update(ctx, len, buf);
	hash->digest(ctx, hash->digest_size, out);
	explicit_bzero(ctx, sizeof(ctx));
}
