/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/digest.h - SHA-256, of a disk's content and of what a state is bound to.
 *
 * Context    any thread, one at a time.
 */
#ifndef RESCUE_DIGEST_H
#define RESCUE_DIGEST_H

#include <nettle/sha2.h>
#include <stddef.h>
#include <stdint.h>

enum { DIGEST_HEX = 2 * SHA256_DIGEST_SIZE + 1 };

struct digest {
	struct sha256_ctx ctx;
};

void digest_init(struct digest *d);
void digest_update(struct digest *d, const void *buf, size_t len);
void digest_zeroes(struct digest *d, uint64_t len);

/* In lower-case hexadecimal; the digest starts anew. */
void digest_hex(struct digest *d, char out[static DIGEST_HEX]);

#endif
