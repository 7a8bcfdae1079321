/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/digest.h"

#include <stdio.h>

#include "base/bytes.h"

enum { ZEROES = 64 * 1024 };

void
digest_init(struct digest *d)
{
	sha256_init(&d->ctx);
}

void
digest_update(struct digest *d, const void *buf, size_t len)
{
	sha256_update(&d->ctx, len, buf);
}

void
digest_zeroes(struct digest *d, uint64_t len)
{
	static const uint8_t zeroes[ZEROES];

	for (uint64_t n; len; len -= n) {
		n = min_u64(len, ZEROES);
		sha256_update(&d->ctx, n, zeroes);
	}
}

void
digest_hex(struct digest *d, char out[static DIGEST_HEX])
{
	uint8_t raw[SHA256_DIGEST_SIZE];

	sha256_digest(&d->ctx, sizeof(raw), raw);
	for (size_t i = 0; i < sizeof(raw); i++)
		snprintf(out + 2 * i, 3, "%02x", raw[i]);
}
