/* SPDX-License-Identifier: Apache-2.0 */
/* The way from a passphrase to the data, as the LUKS1 on-disk format has it:
 * each slot holds the master key, blown up to LUKS_STRIPES times its size so
 * that it can be wiped for good, and encrypted with a key that PBKDF2 makes of
 * the passphrase.  Whether a passphrase is right is told by a digest of the
 * master key. */
#include "rescue/luks.h"

#include <assert.h>
#include <nettle/hmac.h>
#include <nettle/memops.h>
#include <nettle/nettle-meta.h>
#include <nettle/pbkdf2.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/cipher.h"
#include "rescue/hash.h"
#include "rescue/secret.h"

enum {
	SECTOR = 512,
	SLOTS_AT = 208,
	SLOT_LEN = 48,
	SLOT_ENABLED = 0x00ac71f3,
	SLOT_DISABLED = 0x0000dead,
};

/* ---- the header ---- */

static int
take_name(const uint8_t *from, char to[33], const char *what, struct error **errp)
{
	memcpy(to, from, 32);
	to[32] = '\0';
	for (const char *c = to; *c; c++)
		if (*c <= 0x20 || *c > 0x7e)
			return error_set(errp, "Not a sound LUKS header: the %s is no name", what);
	return *to ? 0 : error_set(errp, "Not a sound LUKS header: no %s is named", what);
}

/* "cbc-essiv:sha256" */
static void
split_mode(struct luks *l)
{
	char *dash = strchr(l->mode, '-'), *colon;

	if (!dash)
		return;
	*dash++ = '\0';
	colon = strchr(dash, ':');
	if (colon) {
		*colon++ = '\0';
		strcpy(l->ivhash, colon);
	}
	strcpy(l->ivgen, dash);
}

static uint64_t
material_len(const struct luks *l)
{
	return round_up((uint64_t)l->key_len * LUKS_STRIPES, SECTOR);
}

/* A slot that makes no sense is passed over: the others are as good as before. */
static void __attribute__((format(printf, 3, 4)))
pass_over(struct luks *l, unsigned slot, const char *fmt, ...)
{
	va_list ap;
	int n;

	if (*l->damage)
		return;
	n = snprintf(l->damage, sizeof(l->damage), "key slot %u ", slot);
	va_start(ap, fmt);
	vsnprintf(l->damage + n, sizeof(l->damage) - (size_t)n, fmt, ap);
	va_end(ap);
}

static void
parse_slot(struct luks *l, unsigned i, const uint8_t *h, uint64_t area)
{
	uint32_t state = get_be32(h), iterations = get_be32(h + 4), stripes = get_be32(h + 44);
	uint64_t material = (uint64_t)get_be32(h + 40) * SECTOR;
	struct luks_slot *s = &l->slot[i];

	if (state == SLOT_DISABLED)
		return;
	if (state != SLOT_ENABLED) {
		pass_over(l, i, "is in no legal state");
	} else if (!iterations || iterations > LUKS_ITERATIONS_MAX) {
		pass_over(l, i, "wants %u iterations", iterations);
	} else if (stripes != LUKS_STRIPES) {
		pass_over(l, i, "has %u stripes", stripes);
	} else if (material < LUKS_HEADER || !range_within(material, material_len(l), area)) {
		pass_over(l, i, "lies outside of the header");
	} else {
		s->iterations = iterations;
		s->material = material;
		memcpy(s->salt, h + 8, sizeof(s->salt));
	}
}

/* Of two slots that overlap one is sound at most; the passphrase tells. */
static void
find_overlap(struct luks *l)
{
	for (unsigned i = 0; i < LUKS_SLOTS; i++)
		for (unsigned k = 0; k < i; k++)
			if (l->slot[i].iterations && l->slot[k].iterations &&
			    l->slot[i].material < l->slot[k].material + material_len(l) &&
			    l->slot[k].material < l->slot[i].material + material_len(l))
				pass_over(l, i, "overlaps key slot %u", k);
}

static int
parse_slots(struct luks *l, const uint8_t *h, uint64_t area, struct error **errp)
{
	unsigned usable = 0;

	for (unsigned i = 0; i < LUKS_SLOTS; i++) {
		parse_slot(l, i, h + (size_t)SLOT_LEN * i, area);
		usable += l->slot[i].iterations != 0;
	}
	find_overlap(l);
	if (usable)
		return 0;
	if (*l->damage)
		return error_set(errp, "Not a sound LUKS header: %s", l->damage);
	return error_set(errp, "No key slot of the LUKS header is used, so no passphrase opens it");
}

int
luks_parse(const uint8_t h[LUKS_HEADER], uint64_t area, struct luks *ret, struct error **errp)
{
	struct luks l = { .key_len = get_be32(h + 108),
			  .digest_iterations = get_be32(h + 164),
			  .payload = (uint64_t)get_be32(h + 104) * SECTOR };

	if (memcmp(h, "LUKS\xba\xbe", 6))
		return error_set(errp, "There is no LUKS header");
	if (get_be16(h + 6) != 1)
		return error_set(errp, "LUKS version %u is not supported, only version 1",
				 get_be16(h + 6));
	if (take_name(h + 8, l.alg, "cipher", errp) < 0 ||
	    take_name(h + 40, l.mode, "cipher's mode", errp) < 0 ||
	    take_name(h + 72, l.hash, "hash", errp) < 0)
		return -1;
	split_mode(&l);
	memcpy(l.digest, h + 112, sizeof(l.digest));
	memcpy(l.digest_salt, h + 132, sizeof(l.digest_salt));
	if (!hash_find(l.hash))
		return error_set(errp, "The hash %s is not supported", l.hash);
	if (!l.key_len || l.key_len > LUKS_KEY_MAX)
		return error_set(errp, "Not a sound LUKS header: keys of %u bytes", l.key_len);
	if (!l.digest_iterations || l.digest_iterations > LUKS_ITERATIONS_MAX)
		return error_set(errp, "Not a sound LUKS header: %u iterations are wanted to check "
				 "a key", l.digest_iterations);
	if (parse_slots(&l, h + SLOTS_AT, area, errp) < 0)
		return -1;
	*ret = l;
	return 0;
}

/* ---- PBKDF2 with any hash ---- */

struct mac {
	const struct nettle_hash *hash;
	uint8_t outer[HASH_CTX_MAX] __attribute__((aligned(16)));
	uint8_t inner[HASH_CTX_MAX] __attribute__((aligned(16)));
	uint8_t state[HASH_CTX_MAX] __attribute__((aligned(16)));
};

static void
mac_update(void *ctx, size_t len, const uint8_t *data)
{
	struct mac *m = ctx;

	hmac_update(m->state, m->hash, len, data);
}

static void
mac_digest(void *ctx, size_t len, uint8_t *digest)
{
	struct mac *m = ctx;

	hmac_digest(m->outer, m->inner, m->state, m->hash, len, digest);
}

static void
derive(const struct luks *l, const void *secret, size_t secret_len, const uint8_t salt[32],
       uint32_t iterations, uint8_t *out, size_t len)
{
	struct mac m = { .hash = hash_find(l->hash) };

	assert(m.hash->context_size <= HASH_CTX_MAX);
	hmac_set_key(m.outer, m.inner, m.state, m.hash, secret_len, secret);
	pbkdf2(&m, mac_update, mac_digest, m.hash->digest_size, iterations, 32, salt, len, out);
	explicit_bzero(&m, sizeof(m));
	secret_clear_traces();
}

/* ---- the anti-forensic split ---- */

/* Hash buf, digest by digest, each with its number in front. */
static void
diffuse(const struct nettle_hash *hash, uint8_t *buf, size_t len)
{
	uint8_t in[4 + HASH_DIGEST_MAX], out[HASH_DIGEST_MAX];
	uint32_t i = 0;

	for (size_t at = 0; at < len; at += hash->digest_size, i++) {
		size_t n = min_u64(hash->digest_size, len - at);

		put_be32(in, i);
		memcpy(in + 4, buf + at, n);
		hash_digest(hash, in, 4 + n, out);
		memcpy(buf + at, out, n);
	}
	explicit_bzero(in, sizeof(in));
	explicit_bzero(out, sizeof(out));
}

static void
merge(const struct luks *l, const uint8_t *material, uint8_t *key)
{
	const struct nettle_hash *hash = hash_find(l->hash);

	memset(key, 0, l->key_len);
	for (unsigned s = 0; s < LUKS_STRIPES; s++) {
		for (uint32_t i = 0; i < l->key_len; i++)
			key[i] ^= material[(size_t)s * l->key_len + i];
		if (s < LUKS_STRIPES - 1)
			diffuse(hash, key, l->key_len);
	}
}

/* ---- unlocking ---- */

struct keys {
	uint8_t slot[LUKS_KEY_MAX];	/* opens the key material */
	uint8_t master[LUKS_KEY_MAX];
	uint8_t digest[20];
	uint8_t material[];
};

static int
make_cipher(const struct luks *l, const uint8_t *key, struct cipher **ret, struct error **errp)
{
	struct cipher_spec spec = { .alg = l->alg, .mode = l->mode,
				    .ivgen = *l->ivgen ? l->ivgen : NULL,
				    .ivhash = *l->ivhash ? l->ivhash : NULL };

	return cipher_new(&spec, key, l->key_len, ret, errp);
}

static enum luks_result
try_slot(const struct luks *l, const struct luks_slot *s, luks_read_fn *read, void *user,
	 const void *pass, size_t pass_len, struct keys *k, struct error **errp)
{
	CLEANUP(cipher_freep) struct cipher *c = NULL;
	int r;

	derive(l, pass, pass_len, s->salt, s->iterations, k->slot, l->key_len);
	if (make_cipher(l, k->slot, &c, errp) < 0)
		return LUKS_FAILED;
	r = read(user, s->material, k->material, material_len(l));
	if (r < 0) {
		error_set_errno(errp, r, "Could not read a LUKS key slot");
		return LUKS_FAILED;
	}
	cipher_decrypt(c, 0, k->material, material_len(l));
	merge(l, k->material, k->master);
	derive(l, k->master, l->key_len, l->digest_salt, l->digest_iterations, k->digest,
	       sizeof(k->digest));
	return memeql_sec(k->digest, l->digest, sizeof(k->digest)) ? LUKS_OK : LUKS_WRONG;
}

enum luks_result
luks_unlock(const struct luks *l, luks_read_fn *read, void *user, const void *pass,
	    size_t pass_len, struct cipher **ret_cipher, unsigned *ret_slot,
	    struct error **errp)
{
	CLEANUP(secret_freep) struct keys *k = secret_alloc(sizeof(*k) + material_len(l));

	if (!k) {
		error_set(errp, "Cannot allocate memory for a key");
		return LUKS_FAILED;
	}
	for (unsigned i = 0; i < LUKS_SLOTS; i++) {
		enum luks_result r;

		if (!l->slot[i].iterations)
			continue;
		r = try_slot(l, &l->slot[i], read, user, pass, pass_len, k, errp);
		if (r == LUKS_OK && make_cipher(l, k->master, ret_cipher, errp) < 0)
			return LUKS_FAILED;
		if (r == LUKS_OK)
			*ret_slot = i;
		if (r != LUKS_WRONG)
			return r;
	}
	return LUKS_WRONG;
}
