/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/keyring.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio/timer.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/node.h"
#include "rescue/cipher.h"
#include "rescue/judge.h"
#include "rescue/key.h"
#include "rescue/layer.h"
#include "rescue/luks.h"
#include "rescue/prompt.h"
#include "rescue/secret.h"
#include "rescue/wordlist.h"

enum {
	QCOW_KEY = 16,
	LINE = 1400,
	TRIED_MAX = (KEYRING_MAX + KEYRING_TRIES) * (1 + KEY_VARIANTS),
};

#define SAY_NS (10 * INT64_C(1000000000))
#define EITHER_WAY "%s, as it is, with and without a newline or CR LF at its end"
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
	uint8_t *tried;			/* TRIED_MAX keys of QCOW_KEY bytes, locked */
	unsigned n_tried;
	bool glance;			/* judge only what a first look speaks for */
	struct keyring_finding best;	/* of all that were tried so far */
	struct cipher *best_cipher;	/* owned */
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
	wordlist_free(ring->words);
	ring->words = NULL;
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

/* ---- AES: judged ---- */

/* What the qcow formats make of a password: its first 16 bytes, or fewer and
 * zeroes. */
static void
derive(const struct key *k, uint8_t to[static QCOW_KEY])
{
	memset(to, 0, QCOW_KEY);
	memcpy(to, k->bytes, k->len < QCOW_KEY ? k->len : QCOW_KEY);
}

/* Has the same been tried before?  If not, it is now; where many are tried there is no
 * room to remember all. */
static bool
is_repeated(struct search *s, const uint8_t derived[static QCOW_KEY])
{
	for (unsigned i = 0; i < s->n_tried; i++)
		if (!memcmp(s->tried + (size_t)i * QCOW_KEY, derived, QCOW_KEY))
			return true;
	if (s->n_tried < TRIED_MAX)
		memcpy(s->tried + (size_t)s->n_tried++ * QCOW_KEY, derived, QCOW_KEY);
	return false;
}

static int
rank(enum verdict v)
{
	return v == VERDICT_PLAUSIBLE ? 2 : v == VERDICT_UNKNOWN;
}

/* Of all keys, this one has the best to be said for it. */
static void
set_best(struct search *s, const struct key *k, struct cipher *c)
{
	cipher_free(s->best_cipher);
	s->best_cipher = c;
	memcpy(s->best.origin, k->origin, sizeof(s->best.origin));
	s->best.form = k->form;
}

static int
try_aes(struct search *s, const struct key *k, struct error **errp)
{
	CLEANUP(cipher_freep) struct cipher *c = NULL;
	struct judge_report report;
	uint8_t derived[QCOW_KEY];
	int r;

	derive(k, derived);
	if (is_repeated(s, derived))
		return 0;
	r = cipher_new(&cipher_qcow_aes, derived, QCOW_KEY, &c, errp);
	explicit_bzero(derived, sizeof(derived));
	if (r < 0)
		return -1;
	if (s->glance && !judge_glance(c, s->samples, s->n))
		return 0;
	judge_key(c, s->samples, s->n, &s->disk, &report);
	if (s->best.judged && rank(report.verdict) <= rank(s->best.report.verdict))
		return 0;
	set_best(s, k, STEAL(c));
	s->best.judged = true;
	s->best.report = report;
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
	if (r == LUKS_OK)
		s->best.slot = (int)slot;
	if (r == LUKS_OK || !*s->best.origin)
		set_best(s, k, c);
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
	return s->best.slot >= 0 ||
	       (s->best.judged && s->best.report.verdict == VERDICT_PLAUSIBLE);
}

static int
try_key(struct search *s, const struct key *k, struct error **errp)
{
	s->best.tried++;
	if (try_exact(s, k, errp) < 0)
		return -1;
	/* The end of a line behind the bytes that count makes no other key. */
	if (!s->is_luks && k->len >= QCOW_KEY + 2)
		return 0;
	for (unsigned i = 0; i < KEY_VARIANTS && !found(s); i++) {
		CLEANUP(key_freep) struct key *variant = NULL;

		if (key_variant(k, i, &variant, errp) < 0 || try_exact(s, variant, errp) < 0)
			return -1;
	}
	return 0;
}

/* Is there a reason to ask no more? */
static bool
answered(const struct search *s)
{
	return found(s) || (s->best.judged && s->ring->accept_unverified);
}

static void
say_wrong(const struct search *s)
{
	if (s->is_luks)
		say(s->ring, "This is not the password: it opens no key slot");
	else if (s->best.report.verdict == VERDICT_UNKNOWN)
		say(s->ring, "It cannot be judged whether this is the password: %s",
		    s->best.report.evidence);
	else
		say(s->ring, "This cannot be the password: %s", s->best.report.evidence);
}

static int
ask(struct search *s, struct error **errp)
{
	const struct image *im = s->layer->image;
	char question[LINE];

	snprintf(question, sizeof(question), "Password for %s (%s): ", im->filename,
		 cipher_kind_name(im->encryption));
	for (unsigned i = 0; i < KEYRING_TRIES; i++) {
		CLEANUP(key_freep) struct key *k = NULL;

		if (prompt_key(question, &k, errp) < 0 || try_key(s, k, errp) < 0)
			return -1;
		/* Other layers may have the same. */
		if (answered(s))
			return keyring_add(s->ring, STEAL(k), errp);
		say_wrong(s);
	}
	return 0;
}

static int
try_given(struct search *s, struct error **errp)
{
	const struct keyring *ring = s->ring;

	for (unsigned i = 0; i < ring->count && !found(s); i++)
		if ((ring->key[i]->layer == KEY_ANY_LAYER ||
		     ring->key[i]->layer == (int)s->layer->number) &&
		    try_key(s, ring->key[i], errp) < 0)
			return -1;
	return 0;
}

/* All candidates once.  They may take hours: now and then it is said how far it is. */
static int
try_words(struct search *s, struct error **errp)
{
	struct wordlist *words = s->ring->words;
	size_t before = s->best.tried, all = wordlist_count(words);
	int64_t next = clock_ns() + SAY_NS;

	wordlist_rewind(words);
	while (!found(s)) {
		CLEANUP(key_freep) struct key *k = NULL;

		if (wordlist_next(words, &k, errp) < 0 || (k && try_key(s, k, errp) < 0))
			return -1;
		if (!k)
			break;
		if (clock_ns() < next)
			continue;
		next = clock_ns() + SAY_NS;
		say(s->ring, "%zu of %zu candidates tried%s", s->best.tried - before, all,
		    s->glance ? ", at a first glance" : "");
	}
	return 0;
}

/* A right key of an ordinary disk is found at a glance.  Only if none is, each candidate
 * is judged by all there is. */
static int
try_list(struct search *s, struct error **errp)
{
	size_t before = s->best.tried;

	if (!s->is_luks && s->n > JUDGE_GLANCE) {
		s->glance = true;
		if (try_words(s, errp) < 0)
			return -1;
		s->glance = false;
		if (found(s))
			return 0;
		s->best.tried = before;
		s->n_tried = 0;
	}
	return try_words(s, errp);
}

static int
try_all(struct search *s, struct error **errp)
{
	if (try_given(s, errp) < 0)
		return -1;
	if (s->ring->words && !found(s) && try_list(s, errp) < 0)
		return -1;
	if (s->ring->ask && !found(s))
		return ask(s, errp);
	return s->best.tried ? 0 : error_set(errp, "no key was given for it, which is layer %u",
					     s->layer->number);
}

static enum keyring_result
take(struct search *s)
{
	layer_set_cipher(s->layer, STEAL(s->best_cipher));
	return KEYRING_OK;
}

/* What did not fit, for people. */
static const char *
name_keys(const struct search *s, char buf[static KEY_ORIGIN])
{
	if (s->best.tried == 1)
		return s->best.origin;
	snprintf(buf, KEY_ORIGIN, "each of %zu keys", s->best.tried);
	return buf;
}

/* A key proves that it is that of the header.  Where the header is apart, it may be
 * that of another volume. */
static enum keyring_result
conclude_volume(struct search *s, struct error **errp)
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
		say(s->ring, "%s: the header in %s %s: %s", im->filename, im->header->filename,
		    s->best.unverified ? "is taken unverified" : "fits", r->evidence);
		return take(s);
	}
	error_set(errp, "%s: the header in %s may be that of another volume: %s; " OVERRULE,
		  im->filename, im->header->filename, r->evidence);
	return r->verdict == VERDICT_UNKNOWN ? KEYRING_UNKNOWN : KEYRING_WRONG;
}

static enum keyring_result
conclude_luks(struct search *s, struct error **errp)
{
	const char *file = s->layer->image->filename;
	char keys[KEY_ORIGIN];

	if (!found(s)) {
		error_set(errp, "%s: the key is wrong: " EITHER_WAY ", opens no key slot", file,
			  name_keys(s, keys));
		if (*s->luks.damage)
			error_append(errp, "; but the header is damaged: %s", s->luks.damage);
		return KEYRING_WRONG;
	}
	say(s->ring, "%s: %s fits: it opens key slot %d", file, s->best.origin, s->best.slot);
	return s->layer->image->header ? conclude_volume(s, errp) : take(s);
}

static enum keyring_result
conclude_aes(struct search *s, struct error **errp)
{
	const char *file = s->layer->image->filename, *evidence = s->best.report.evidence;
	char keys[KEY_ORIGIN];

	if (found(s)) {
		say(s->ring, "%s: %s fits: %s", file, s->best.origin, evidence);
		return take(s);
	}
	if (s->ring->accept_unverified) {
		say(s->ring, "%s: %s is taken unverified: %s", file, s->best.origin, evidence);
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
unlock_empty(struct search *s, struct error **errp)
{
	static const uint8_t any[QCOW_KEY];

	if (cipher_new(&cipher_qcow_aes, any, QCOW_KEY, &s->best_cipher, errp) < 0)
		return KEYRING_FAILED;
	say(s->ring, "%s: nothing in it is stored encrypted, it needs no key",
	    s->layer->image->filename);
	s->best.needless = true;
	return take(s);
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
	return conclude_luks(s, errp);
}

static enum keyring_result
search_aes(struct search *s, struct error **errp)
{
	if (layer_sample(s->layer, &s->samples, &s->n, errp) < 0)
		return KEYRING_FAILED;
	s->disk.damaged = s->layer->damaged;
	if (!s->n && !s->disk.damaged)
		return unlock_empty(s, errp);
	judge_prepare(s->samples, s->n);
	s->tried = secret_alloc(TRIED_MAX * QCOW_KEY);
	if (!s->tried) {
		error_set(errp, "Cannot allocate memory for a key");
		return KEYRING_FAILED;
	}
	if (try_all(s, errp) < 0) {
		error_prepend(errp, "%s: ", s->layer->image->filename);
		return KEYRING_FAILED;
	}
	return conclude_aes(s, errp);
}

enum keyring_result
keyring_unlock(struct keyring *ring, struct layer *l, struct error **errp)
{
	struct search s = { .ring = ring, .layer = l,
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
