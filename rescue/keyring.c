/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/keyring.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "block/node.h"
#include "rescue/cipher.h"
#include "rescue/judge.h"
#include "rescue/key.h"
#include "rescue/layer.h"
#include "rescue/luks.h"
#include "rescue/secret.h"

enum { QCOW_KEY = 16, LINE = 1400 };

#define EITHER_WAY "%s, with and without a newline at its end"
#define OVERRULE "--accept-unverified-key decrypts with it all the same"

/* One layer's search. */
struct search {
	struct keyring *ring;
	struct layer *layer;
	struct judge_sample *samples;
	size_t n;
	struct judge_disk disk;
	bool is_luks;
	struct luks luks;
	uint8_t *tried;			/* KEYRING_MAX * 2 keys of QCOW_KEY bytes, locked */
	unsigned n_tried;
	struct judge_report best;	/* of all that were tried so far */
	struct cipher *best_cipher;	/* owned */
	char best_origin[256];
};

static void __attribute__((format(printf, 2, 3)))
say(const struct keyring *ring, const char *fmt, ...)
{
	char line[LINE];
	va_list ap;

	if (!ring->say)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	ring->say(line);
}

int
keyring_add(struct keyring *ring, struct key *key, struct error **errp)
{
	if (ring->count == KEYRING_MAX) {
		key_free(key);
		return error_set(errp, "More than %d keys were given", KEYRING_MAX);
	}
	ring->key[ring->count++] = key;
	return 0;
}

void
keyring_done(struct keyring *ring)
{
	for (unsigned i = 0; i < ring->count; i++)
		key_free(ring->key[i]);
	ring->count = 0;
}

/* ---- AES: judged ---- */

/* What the qcow formats make of a password: its first 16 bytes, or fewer and
 * zeroes.  false: these were tried already. */
static bool
derive(struct search *s, const struct key *k, uint8_t **ret)
{
	uint8_t *to = s->tried + (size_t)s->n_tried * QCOW_KEY;

	memset(to, 0, QCOW_KEY);
	memcpy(to, k->bytes, k->len < QCOW_KEY ? k->len : QCOW_KEY);
	for (unsigned i = 0; i < s->n_tried; i++)
		if (!memcmp(s->tried + (size_t)i * QCOW_KEY, to, QCOW_KEY))
			return false;
	s->n_tried++;
	*ret = to;
	return true;
}

static int
rank(enum verdict v)
{
	return v == VERDICT_PLAUSIBLE ? 2 : v == VERDICT_UNKNOWN;
}

static int
try_aes(struct search *s, const struct key *k, struct error **errp)
{
	CLEANUP(cipher_freep) struct cipher *c = NULL;
	struct judge_report report;
	uint8_t *derived;

	if (!derive(s, k, &derived))
		return 0;
	if (cipher_new(&cipher_qcow_aes, derived, QCOW_KEY, &c, errp) < 0)
		return -1;
	judge_key(c, s->samples, s->n, &s->disk, &report);
	if (s->best_cipher && rank(report.verdict) <= rank(s->best.verdict))
		return 0;
	cipher_free(s->best_cipher);
	s->best_cipher = STEAL(c);
	s->best = report;
	memcpy(s->best_origin, k->origin, sizeof(s->best_origin));
	return 0;
}

/* ---- LUKS: known ---- */

static int
try_luks(struct search *s, const struct key *k, struct error **errp)
{
	struct cipher *c = NULL;
	unsigned slot = 0;
	enum luks_result r = luks_unlock(&s->luks, layer_read_luks, s->layer, k->bytes, k->len, &c,
					 &slot, errp);

	if (r == LUKS_FAILED)
		return -1;
	if (r == LUKS_OK || !s->n_tried++)
		memcpy(s->best_origin, k->origin, sizeof(s->best_origin));
	if (r == LUKS_OK) {
		s->best_cipher = c;
		s->best.verdict = VERDICT_PLAUSIBLE;
		snprintf(s->best.evidence, sizeof(s->best.evidence), "it opens key slot %u", slot);
	} else {
		s->best.verdict = VERDICT_IMPLAUSIBLE;
		snprintf(s->best.evidence, sizeof(s->best.evidence), "it opens no key slot");
	}
	return 0;
}

/* ---- the search ---- */

static int
try_exact(struct search *s, const struct key *k, struct error **errp)
{
	return (s->is_luks ? try_luks : try_aes)(s, k, errp);
}

static bool
found(const struct search *s)
{
	return s->best_cipher && s->best.verdict == VERDICT_PLAUSIBLE;
}

static int
try_key(struct search *s, const struct key *k, struct error **errp)
{
	CLEANUP(key_freep) struct key *variant = NULL;

	if (try_exact(s, k, errp) < 0)
		return -1;
	if (found(s))
		return 0;
	if (key_variant(k, &variant, errp) < 0)
		return -1;
	return try_exact(s, variant, errp);
}

static int
ask(struct search *s, struct error **errp)
{
	const struct image *im = s->layer->image;
	char question[LINE];

	snprintf(question, sizeof(question), "Password for %s (%s): ", im->filename,
		 cipher_kind_name(im->encryption));
	for (unsigned i = 0; i < KEYRING_TRIES; i++) {
		struct key *k;

		if (key_prompt(question, &k, errp) < 0 || keyring_add(s->ring, k, errp) < 0 ||
		    try_key(s, k, errp) < 0)
			return -1;
		if (s->best.verdict != VERDICT_IMPLAUSIBLE ||
		    (s->ring->accept_unverified && !s->is_luks))
			return 0;
		say(s->ring, "This cannot be the password: %s", s->best.evidence);
	}
	return 0;
}

static int
try_all(struct search *s, struct error **errp)
{
	for (unsigned i = 0; i < s->ring->count && !found(s); i++)
		if (try_key(s, s->ring->key[i], errp) < 0)
			return -1;
	if (s->ring->ask && !found(s))
		return ask(s, errp);
	return 0;
}

static void
take(struct search *s)
{
	layer_set_cipher(s->layer, STEAL(s->best_cipher));
}

static enum keyring_result
conclude(struct search *s, struct error **errp)
{
	const char *file = s->layer->image->filename;

	if (found(s)) {
		say(s->ring, "%s: %s fits: %s", file, s->best_origin, s->best.evidence);
		take(s);
		return KEYRING_OK;
	}
	if (s->is_luks) {
		error_set(errp, "%s: the key is wrong: " EITHER_WAY ", opens no key slot", file,
			  s->best_origin);
		if (*s->luks.damage)
			error_append(errp, "; but the header is damaged: %s", s->luks.damage);
		return KEYRING_WRONG;
	}
	if (s->ring->accept_unverified) {
		say(s->ring, "%s: %s is taken unverified: %s", file, s->best_origin,
		    s->best.evidence);
		take(s);
		return KEYRING_OK;
	}
	if (s->best.verdict == VERDICT_UNKNOWN) {
		error_set(errp, "%s: it cannot be judged whether %s is right: %s; " OVERRULE,
			  file, s->best_origin, s->best.evidence);
		return KEYRING_UNKNOWN;
	}
	error_set(errp, "%s: the key is wrong, or the disk holds nothing but noise, which looks the "
		  "same: with " EITHER_WAY ", %s; only in the second case " OVERRULE, file,
		  s->best_origin, s->best.evidence);
	return KEYRING_WRONG;
}

/* A layer that stores nothing encrypted: say so, and let any key do. */
static enum keyring_result
unlock_empty(struct search *s, struct error **errp)
{
	static const uint8_t any[QCOW_KEY];

	if (cipher_new(&cipher_qcow_aes, any, QCOW_KEY, &s->best_cipher, errp) < 0)
		return KEYRING_FAILED;
	say(s->ring, "%s: nothing in it is stored encrypted, it needs no key",
	    s->layer->image->filename);
	take(s);
	return KEYRING_OK;
}

static int
read_luks(struct search *s, struct error **errp)
{
	uint8_t header[LUKS_HEADER];
	int r = layer_read_luks(s->layer, 0, header, sizeof(header));

	if (r < 0) {
		error_set_errno(errp, r, "Could not read the LUKS header");
		return -1;
	}
	return luks_parse(header, s->layer->header_len, &s->luks, errp);
}

static enum keyring_result
search_luks(struct search *s, struct error **errp)
{
	if (read_luks(s, errp) < 0 || try_all(s, errp) < 0) {
		error_prepend(errp, "%s: ", s->layer->image->filename);
		return KEYRING_FAILED;
	}
	return conclude(s, errp);
}

static enum keyring_result
search_aes(struct search *s, struct error **errp)
{
	if (layer_sample(s->layer, &s->samples, &s->n, errp) < 0)
		return KEYRING_FAILED;
	if (!s->n)
		return unlock_empty(s, errp);
	s->tried = secret_alloc((2 * KEYRING_MAX + 1) * QCOW_KEY);
	if (!s->tried) {
		error_set(errp, "Cannot allocate memory for a key");
		return KEYRING_FAILED;
	}
	if (try_all(s, errp) < 0)
		return KEYRING_FAILED;
	return conclude(s, errp);
}

enum keyring_result
keyring_unlock(struct keyring *ring, struct layer *l, struct error **errp)
{
	struct search s = { .ring = ring, .layer = l };
	enum keyring_result r;

	s.disk.sectors = node_size(l->node) / CIPHER_SECTOR;
	s.disk.fetch = layer_fetch;
	s.disk.user = l;
	s.is_luks = l->image->encryption == CIPHER_QCOW2_LUKS ||
		    l->image->encryption == CIPHER_LUKS;
	r = (s.is_luks ? search_luks : search_aes)(&s, errp);
	cipher_free(s.best_cipher);
	secret_free(s.tried);
	free(s.samples);
	return r;
}
