/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target: a LUKS volume, from its header over the key slots and the
 * anti-forensic split to the first sectors of its data. */
#include <errno.h>
#include <nettle/pbkdf2.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/cipher.h"
#include "rescue/luks.h"

enum { DATA = 4096, ITERATIONS_MAX = 1000 };

struct volume {
	const uint8_t *bytes;
	size_t len;
};

typedef void derive_fn(void *ctx, nettle_hash_update_func *update, nettle_hash_digest_func *digest,
		       size_t digest_size, unsigned iterations, size_t salt_len,
		       const uint8_t *salt, size_t len, uint8_t *dst);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
derive_fn __real_nettle_pbkdf2, __wrap_nettle_pbkdf2;

/* No more iterations than the seeds have, or it would do nothing else. */
void
__wrap_nettle_pbkdf2(void *ctx, nettle_hash_update_func *update, nettle_hash_digest_func *digest,
		     size_t digest_size, unsigned iterations, size_t salt_len, const uint8_t *salt,
		     size_t len, uint8_t *dst)
{
	if (iterations > ITERATIONS_MAX)
		iterations = ITERATIONS_MAX;
	__real_nettle_pbkdf2(ctx, update, digest, digest_size, iterations, salt_len, salt, len, dst);
}

static int
read_volume(void *user, uint64_t off, void *buf, size_t len)
{
	const struct volume *v = user;

	if (!range_within(off, len, v->len))
		return -EIO;
	memcpy(buf, v->bytes + off, len);
	return 0;
}

static void
open_volume(struct volume *v, const struct luks *l, const char *pass)
{
	CLEANUP(error_freep) struct error *err = NULL;
	CLEANUP(cipher_freep) struct cipher *c = NULL;
	uint8_t data[DATA] = { 0 };
	unsigned slot = LUKS_SLOTS;

	switch (luks_unlock(l, read_volume, v, pass, strlen(pass), &c, &slot, &err)) {
	case LUKS_OK:
		if (slot >= LUKS_SLOTS || !l->slot[slot].iterations)
			abort();
		(void)read_volume(v, l->payload, data, sizeof(data));
		cipher_decrypt(c, 0, data, sizeof(data));
		break;
	case LUKS_FAILED:
		if (!*error_text(err))
			abort();
		break;
	case LUKS_WRONG:
		break;
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	CLEANUP(error_freep) struct error *err = NULL;
	struct volume v = { data, len };
	struct luks l;

	if (len < LUKS_HEADER)
		return 0;
	if (luks_parse(data, len, &l, &err) == 0)
		open_volume(&v, &l, "geheim");
	else if (!*error_text(err))
		abort();
	return 0;
}
