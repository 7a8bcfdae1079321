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
#include "rescue/keyring_search.h"
#include "rescue/layer.h"
#include "rescue/luks.h"
#include "rescue/secret.h"
#include "rescue/wordlist.h"

enum { LINE = 1400 };

#define EITHER_WAY "%s, as it is, with and without a newline or CR LF at its end"
#define OVERRULE "--accept-unverified-key decrypts with it all the same"

void
keyring_say(const struct keyring *ring, const char *fmt, ...)
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
	if (key->len > KEYRING_BYTES - ring->bytes) {
		key_free(key);
		return error_set(errp, "The keys are longer than %d bytes in all", KEYRING_BYTES);
	}
	ring->bytes += key->len;
	ring->key[ring->count++] = key;
	return 0;
}

void
keyring_forget(struct keyring *ring)
{
	for (unsigned i = 0; i < ring->count; i++)
		key_free(ring->key[i]);
	ring->count = 0;
	ring->bytes = 0;
	wordlist_free(ring->words);
	ring->words = NULL;
}

void
keyring_done(struct keyring *ring)
{
	keyring_forget(ring);
	free(ring->finding);
	ring->finding = NULL;
	ring->n_findings = 0;
}

static int
note(struct keyring *ring, const struct keyring_finding *f)
{
	struct keyring_finding *to = realloc(ring->finding, (ring->n_findings + 1) * sizeof(*to));

	if (!to)
		return -1;
	ring->finding = to;
	to[ring->n_findings++] = *f;
	return 0;
}

const struct keyring_finding *
keyring_find(const struct keyring *ring, unsigned layer)
{
	for (unsigned i = 0; i < ring->n_findings; i++)
		if (ring->finding[i].layer == layer)
			return &ring->finding[i];
	return NULL;
}

bool
keyring_fits(const struct keyring *ring)
{
	for (unsigned i = 0; i < ring->n_findings; i++)
		if (ring->finding[i].result != KEYRING_OK)
			return false;
	return ring->n_findings;
}

const char *
keyring_state_name(const struct keyring_finding *f)
{
	if (f->result == KEYRING_OK)
		return f->needless ? "not-needed" : f->unverified ? "unverified" : "fits";
	return f->result == KEYRING_WRONG ? "wrong" : f->result == KEYRING_UNKNOWN ? "not-judged"
										   : "failed";
}

/* ---- what came out for one layer ---- */

static enum keyring_result
take(struct keyring_search *s)
{
	layer_set_cipher(s->layer, STEAL(s->best_cipher));
	return KEYRING_OK;
}

/* What did not fit, for people. */
static const char *
name_keys(const struct keyring_search *s, char buf[static KEY_ORIGIN])
{
	if (s->best.tried == 1)
		return s->best.origin;
	snprintf(buf, KEY_ORIGIN, "each of %zu keys", s->best.tried);
	return buf;
}

/* A key proves that it is that of the header.  Where the header is apart, it may be
 * that of another volume. */
static enum keyring_result
conclude_volume(struct keyring_search *s, struct error **errp)
{
	const struct image *im = s->layer->image;
	struct judge_report *r = &s->best.report;

	if (layer_sample(s->layer, &s->samples, &s->n, errp) < 0)
		return KEYRING_FAILED;
	judge_prepare(s->samples, s->n);
	judge_key(s->best_cipher, s->samples, s->n, &s->disk, r);
	s->best.judged = true;
	s->best.unverified = r->verdict != VERDICT_PLAUSIBLE;
	if (!s->best.unverified || s->ring->accept_unverified) {
		keyring_say(s->ring, "%s: the header in %s %s: %s", im->filename, im->header->filename,
		    s->best.unverified ? "is taken unverified" : "fits", r->evidence);
		return take(s);
	}
	error_set(errp, "%s: the header in %s may be that of another volume: %s; " OVERRULE,
		  im->filename, im->header->filename, r->evidence);
	return r->verdict == VERDICT_UNKNOWN ? KEYRING_UNKNOWN : KEYRING_WRONG;
}

static enum keyring_result
conclude_luks(struct keyring_search *s, struct error **errp)
{
	const char *file = s->layer->image->filename;
	char keys[KEY_ORIGIN];

	if (!keyring_search_found(s)) {
		error_set(errp, "%s: the key is wrong: " EITHER_WAY ", opens no key slot", file,
			  name_keys(s, keys));
		if (*s->luks.damage)
			error_append(errp, "; but the header is damaged: %s", s->luks.damage);
		return KEYRING_WRONG;
	}
	keyring_say(s->ring, "%s: %s fits: it opens key slot %d", file, s->best.origin, s->best.slot);
	return s->layer->image->header ? conclude_volume(s, errp) : take(s);
}

static enum keyring_result
conclude_aes(struct keyring_search *s, struct error **errp)
{
	const char *file = s->layer->image->filename, *evidence = s->best.report.evidence;
	char keys[KEY_ORIGIN];

	if (keyring_search_found(s)) {
		keyring_say(s->ring, "%s: %s fits: %s", file, s->best.origin, evidence);
		return take(s);
	}
	if (s->ring->accept_unverified) {
		keyring_say(s->ring, "%s: %s is taken unverified: %s", file, s->best.origin, evidence);
		s->best.unverified = true;
		return take(s);
	}
	if (s->best.report.verdict == VERDICT_UNKNOWN) {
		error_set(errp, "%s: it cannot be judged whether %s is right: %s; " OVERRULE,
			  file, s->best.origin, evidence);
		return KEYRING_UNKNOWN;
	}
	error_set(errp, "%s: the key is wrong, or the disk holds nothing but noise, which looks the "
		  "same: with " EITHER_WAY ", %s; only in the second case " OVERRULE, file,
		  name_keys(s, keys), evidence);
	return KEYRING_WRONG;
}

/* A layer that stores nothing encrypted: say so, and let any key do. */
static enum keyring_result
unlock_empty(struct keyring_search *s, struct error **errp)
{
	static const uint8_t any[KEYRING_QCOW_KEY];

	if (cipher_new(&cipher_qcow_aes, any, KEYRING_QCOW_KEY, &s->best_cipher, errp) < 0)
		return KEYRING_FAILED;
	keyring_say(s->ring, "%s: nothing in it is stored encrypted, it needs no key",
	    s->layer->image->filename);
	s->best.needless = true;
	return take(s);
}

static int
read_luks(struct keyring_search *s, struct error **errp)
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
search_luks(struct keyring_search *s, struct error **errp)
{
	if (read_luks(s, errp) < 0 || keyring_search_run(s, errp) < 0) {
		error_prepend(errp, "%s: ", s->layer->image->filename);
		return KEYRING_FAILED;
	}
	return conclude_luks(s, errp);
}

static enum keyring_result
search_aes(struct keyring_search *s, struct error **errp)
{
	if (layer_sample(s->layer, &s->samples, &s->n, errp) < 0)
		return KEYRING_FAILED;
	s->disk.damaged = s->layer->damaged;
	if (!s->n && !s->disk.damaged)
		return unlock_empty(s, errp);
	judge_prepare(s->samples, s->n);
	s->tried = secret_alloc(KEYRING_TRIED_MAX * KEYRING_QCOW_KEY);
	if (!s->tried) {
		error_set(errp, "Cannot allocate memory for a key");
		return KEYRING_FAILED;
	}
	if (keyring_search_run(s, errp) < 0) {
		error_prepend(errp, "%s: ", s->layer->image->filename);
		return KEYRING_FAILED;
	}
	return conclude_aes(s, errp);
}

enum keyring_result
keyring_unlock(struct keyring *ring, struct layer *l, struct error **errp)
{
	struct keyring_search s = { .ring = ring, .layer = l,
			    .best = { .layer = l->number, .slot = -1 } };

	s.disk.sectors = node_size(l->node) / CIPHER_SECTOR;
	s.disk.fetch = layer_fetch;
	s.disk.user = l;
	s.is_luks = l->image->encryption == CIPHER_QCOW2_LUKS ||
		    l->image->encryption == CIPHER_LUKS;
	s.best.result = (s.is_luks ? search_luks : search_aes)(&s, errp);
	if (note(ring, &s.best) < 0 && s.best.result == KEYRING_OK) {
		error_set(errp, "Cannot allocate memory");
		s.best.result = KEYRING_FAILED;
	}
	cipher_free(s.best_cipher);
	secret_free(s.tried);
	free(s.samples);
	return s.best.result;
}
