/* SPDX-License-Identifier: Apache-2.0 */
/* Modes work on BATCH bytes at a time: one call into the block cipher for
 * several sectors, or for their initialization vectors, keeps its pipeline full,
 * which a call for each of them or for each block does not.  The block cipher runs
 * from buf into a scratch buffer on the stack; what chains the blocks is then a pass
 * of exclusive ors. */
#include "rescue/cipher.h"

#include <assert.h>
#include <nettle/ctr.h>
#include <nettle/nettle-meta.h>
#include <nettle/version.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/hash.h"
#include "rescue/secret.h"

enum {
	BATCH = 8 * CIPHER_SECTOR,
	BLOCK_MAX = 16,
	IVS_MAX = BATCH / CIPHER_SECTOR * BLOCK_MAX,
	CTX_MAX = 8192,		/* an upper bound of all contexts' sizes */
};

struct mode;

struct cipher {
	const struct nettle_cipher *alg;	/* of data */
	const struct nettle_cipher *iv_alg;	/* essiv, xts's tweak; else NULL */
	const struct mode *mode;
	bool iv_32bit;				/* plain */
	uint8_t ctx[CTX_MAX] __attribute__((aligned(16)));	/* to decrypt; ctr: to encrypt */
	uint8_t iv_ctx[CTX_MAX] __attribute__((aligned(16)));
	uint8_t tweak_ctx[CTX_MAX] __attribute__((aligned(16)));	/* xts */
};

struct mode {
	const char *name;
	void (*decrypt)(const struct cipher *c, uint64_t sector, uint8_t *buf, size_t len);
	unsigned keys;		/* as many as it takes, one behind the other */
	unsigned block;		/* the only block size that it works with; 0: any */
	bool encrypts;		/* runs the block cipher forward */
	bool has_iv;
};

static const struct {
	const char *name;
	const struct nettle_cipher *alg;
} algs[] = {
	{ "aes", &nettle_aes128 },	   { "aes", &nettle_aes192 },
	{ "aes", &nettle_aes256 },	   { "serpent", &nettle_serpent128 },
	{ "serpent", &nettle_serpent192 }, { "serpent", &nettle_serpent256 },
	{ "twofish", &nettle_twofish128 }, { "twofish", &nettle_twofish192 },
	{ "twofish", &nettle_twofish256 }, { "cast5", &nettle_cast128 },
#if NETTLE_VERSION_MAJOR > 3 || NETTLE_VERSION_MINOR >= 9
	{ "sm4", &nettle_sm4 },
#endif
};

const struct cipher_spec cipher_qcow_aes = { .alg = "aes", .mode = "cbc", .ivgen = "plain64" };

typedef uint64_t word __attribute__((aligned(1), may_alias));
typedef uint64_t vector __attribute__((vector_size(16), aligned(1), may_alias));

/* to = a ^ b; len is a multiple of 8. */
static void
xor_words(uint8_t *to, const uint8_t *a, const uint8_t *b, size_t len)
{
	for (; len; len -= sizeof(word)) {
		size_t at = len - sizeof(word);

		*(word *)(to + at) = *(const word *)(a + at) ^ *(const word *)(b + at);
	}
}

/* The same for more.  From the end to the start: a or b may be to itself, or overlap it
 * from in front. */
static void
xor_bytes(uint8_t *to, const uint8_t *a, const uint8_t *b, size_t len)
{
#pragma GCC unroll 4
	for (; len >= sizeof(vector); len -= sizeof(vector)) {
		size_t at = len - sizeof(vector);

		*(vector *)(to + at) = *(const vector *)(a + at) ^ *(const vector *)(b + at);
	}
	xor_words(to, a, b, len);
}

/* The initialization vectors of n sectors, each as long as a block. */
static void
make_ivs(const struct cipher *c, uint64_t sector, size_t n, uint8_t ivs[static IVS_MAX])
{
	unsigned block = c->alg->block_size;

	memset(ivs, 0, n * block);
	for (size_t i = 0; i < n; i++, sector++)
		put_le64(ivs + i * block, c->iv_32bit ? (uint32_t)sector : sector);
	if (c->iv_alg)
		c->iv_alg->encrypt(c->iv_ctx, n * block, ivs, ivs);
}

static void
decrypt_cbc(const struct cipher *c, uint64_t sector, uint8_t *buf, size_t len)
{
	unsigned block = c->alg->block_size;
	uint8_t plain[BATCH], ivs[IVS_MAX], *iv = ivs;

	c->alg->decrypt(c->ctx, len, plain, buf);
	make_ivs(c, sector, len / CIPHER_SECTOR, ivs);
	for (size_t at = 0; at < len; at += CIPHER_SECTOR, iv += block) {
		xor_bytes(buf + at + block, plain + at + block, buf + at, CIPHER_SECTOR - block);
		xor_words(buf + at, plain + at, iv, block);
	}
	explicit_bzero(ivs, sizeof(ivs));
}

static void
decrypt_ecb(const struct cipher *c, uint64_t sector, uint8_t *buf, size_t len)
{
	(void)sector;
	c->alg->decrypt(c->ctx, len, buf, buf);
}

static void
decrypt_ctr(const struct cipher *c, uint64_t sector, uint8_t *buf, size_t len)
{
	uint8_t ivs[IVS_MAX], *counter = ivs;

	make_ivs(c, sector, len / CIPHER_SECTOR, ivs);
	for (size_t at = 0; at < len; at += CIPHER_SECTOR, counter += c->alg->block_size)
		ctr_crypt(c->ctx, c->alg->encrypt, c->alg->block_size, counter,
			  CIPHER_SECTOR, buf + at, buf + at);
}

/* Each of a sector's tweaks is the one before times x in GF(2^128).  So it is the one
 * STRIDE before times x^8, and several are worked out at a time. */
enum { STRIDE = 8 };

static void
make_tweaks(const uint8_t first[static BLOCK_MAX], uint8_t *tweaks)
{
	uint64_t lo = get_le64(first), hi = get_le64(first + 8), carry;
	size_t at = 0;

	for (; at < STRIDE * BLOCK_MAX; at += BLOCK_MAX) {
		put_le64(tweaks + at, lo);
		put_le64(tweaks + at + 8, hi);
		carry = hi >> 63;
		hi = hi << 1 | lo >> 63;
		lo = lo << 1 ^ (carry ? 0x87 : 0);
	}
#pragma GCC unroll 4
	for (; at < CIPHER_SECTOR; at += BLOCK_MAX) {
		lo = get_le64(tweaks + at - STRIDE * BLOCK_MAX);
		hi = get_le64(tweaks + at - STRIDE * BLOCK_MAX + 8);
		carry = hi >> 56;
		put_le64(tweaks + at, lo << 8 ^ carry ^ carry << 1 ^ carry << 2 ^ carry << 7);
		put_le64(tweaks + at + 8, hi << 8 | lo >> 56);
	}
}

static void
decrypt_xts(const struct cipher *c, uint64_t sector, uint8_t *buf, size_t len)
{
	uint8_t tweaks[BATCH], ivs[IVS_MAX];
	size_t n = len / CIPHER_SECTOR;

	make_ivs(c, sector, n, ivs);
	c->alg->encrypt(c->tweak_ctx, n * BLOCK_MAX, ivs, ivs);
	for (size_t i = 0; i < n; i++)
		make_tweaks(ivs + i * BLOCK_MAX, tweaks + i * CIPHER_SECTOR);
	xor_bytes(buf, buf, tweaks, len);
	c->alg->decrypt(c->ctx, len, buf, buf);
	xor_bytes(buf, buf, tweaks, len);
}

static const struct mode modes[] = {
	{ "cbc", decrypt_cbc, .keys = 1, .has_iv = true },
	{ "xts", decrypt_xts, .keys = 2, .block = 16, .has_iv = true },
	{ "ecb", decrypt_ecb, .keys = 1 },
	{ "ctr", decrypt_ctr, .keys = 1, .encrypts = true, .has_iv = true },
};

static const struct nettle_cipher *
find_alg(const char *name, size_t key_len)
{
	for (size_t i = 0; i < ARRAY_SIZE(algs); i++)
		if (!strcmp(algs[i].name, name) && algs[i].alg->key_size == key_len)
			return algs[i].alg;
	return NULL;
}

static const struct mode *
find_mode(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++)
		if (!strcmp(modes[i].name, name))
			return &modes[i];
	return NULL;
}

/* ESSIV: the vector is the sector's number, encrypted under the key's hash. */
static int
set_essiv(struct cipher *c, const struct cipher_spec *spec, const void *key, size_t len)
{
	const struct nettle_hash *hash = spec->ivhash ? hash_find(spec->ivhash) : NULL;
	uint8_t digest[HASH_DIGEST_MAX];

	if (!hash)
		return -1;
	c->iv_alg = find_alg(spec->alg, hash->digest_size);
	if (!c->iv_alg)
		return -1;
	hash_digest(hash, key, len, digest);
	c->iv_alg->set_encrypt_key(c->iv_ctx, digest);
	explicit_bzero(digest, sizeof(digest));
	return 0;
}

static int
set_ivgen(struct cipher *c, const struct cipher_spec *spec, const void *key, size_t len)
{
	if (!c->mode->has_iv)
		return 0;
	if (!spec->ivgen)
		return -1;
	if (!strcmp(spec->ivgen, "essiv"))
		return set_essiv(c, spec, key, len);
	c->iv_32bit = !strcmp(spec->ivgen, "plain");
	return c->iv_32bit || !strcmp(spec->ivgen, "plain64") ? 0 : -1;
}

static int
set_up(struct cipher *c, const struct cipher_spec *spec, const uint8_t *key, size_t len)
{
	c->mode = find_mode(spec->mode);
	if (!c->mode || len % c->mode->keys)
		return -1;
	c->alg = find_alg(spec->alg, len / c->mode->keys);
	if (!c->alg || (c->mode->block && c->alg->block_size != c->mode->block))
		return -1;
	assert(c->alg->context_size <= CTX_MAX);
	(c->mode->encrypts ? c->alg->set_encrypt_key : c->alg->set_decrypt_key)(c->ctx, key);
	if (c->mode->keys == 2)
		c->alg->set_encrypt_key(c->tweak_ctx, key + len / 2);
	return set_ivgen(c, spec, key, len);
}

int
cipher_new(const struct cipher_spec *spec, const void *key, size_t key_len,
	   struct cipher **ret, struct error **errp)
{
	struct cipher *c = secret_alloc(sizeof(*c));
	int r;

	if (!c)
		return error_set(errp, "Cannot allocate memory for a key");
	r = set_up(c, spec, key, key_len);
	secret_clear_traces();
	if (r < 0) {
		cipher_free(c);
		return error_set(errp, "The cipher %s-%s%s%s%s%s with a key of %zu bits is not supported",
				 spec->alg, spec->mode, spec->ivgen ? "-" : "",
				 spec->ivgen ? spec->ivgen : "", spec->ivhash ? ":" : "",
				 spec->ivhash ? spec->ivhash : "", key_len * 8);
	}
	*ret = c;
	return 0;
}

void
cipher_free(struct cipher *c)
{
	secret_free(c);
}

void
cipher_freep(struct cipher **c)
{
	cipher_free(*c);
	*c = NULL;
}

void
cipher_decrypt(const struct cipher *c, uint64_t sector, void *buf, size_t len)
{
	uint8_t *p = buf;

	assert(len % CIPHER_SECTOR == 0);
	while (len) {
		size_t n = len < BATCH ? len : BATCH;

		c->mode->decrypt(c, sector, p, n);
		sector += n / CIPHER_SECTOR;
		p += n;
		len -= n;
	}
	secret_clear_registers();
}
