/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/cipher.h - decrypting disks, 512-byte sector by sector.
 *
 * A cipher is an algorithm, a mode, a way to make each sector's initialization
 * vector, and a key; the key's length picks the algorithm's variant.  There is
 * nothing here that encrypts.
 *
 * Units      sectors of 512 bytes.
 * Context    any thread; many threads may decrypt with one cipher at a time.
 * Ownership  keys are copied; the copies are in locked memory (rescue/secret.h).
 */
#ifndef RESCUE_CIPHER_H
#define RESCUE_CIPHER_H

#include <stddef.h>
#include <stdint.h>

enum { CIPHER_SECTOR = 512 };

struct cipher;
struct error;

struct cipher_spec {
	const char *alg;	/* aes, serpent, twofish, cast5; sm4 if nettle has it */
	const char *mode;	/* cbc, xts, ecb, ctr */
	const char *ivgen;	/* plain, plain64, essiv; ecb: not used */
	const char *ivhash;	/* essiv only: see rescue/hash.h */
};

/* What qcow and qcow2 images of crypt_method 1 use, with a key of 16 bytes. */
extern const struct cipher_spec cipher_qcow_aes;

/* -1 with *errp where spec with a key of this length is not supported, or there
 * is no memory. */
int cipher_new(const struct cipher_spec *spec, const void *key, size_t key_len,
	       struct cipher **ret, struct error **errp);
void cipher_free(struct cipher *c);	/* takes NULL */
void cipher_freep(struct cipher **c);	/* for CLEANUP */

/* Decrypt len bytes in place, a multiple of 512; sector is the number that the
 * first one's initialization vector is made of. */
void cipher_decrypt(const struct cipher *c, uint64_t sector, void *buf, size_t len);

#endif
