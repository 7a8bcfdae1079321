/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/keyring_search.h"

#include <stdio.h>
#include <string.h>

#include "aio/timer.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/cipher.h"
#include "rescue/image.h"
#include "rescue/layer.h"
#include "rescue/list.h"
#include "rescue/prompt.h"
#include "rescue/wordlist.h"

enum { LINE = 1400 };

#define SAY_NS (10 * INT64_C(1000000000))

/* ---- AES: judged ---- */

/* What the qcow formats make of a password: its first 16 bytes, or fewer and
 * zeroes. */
static void
derive(const struct key *k, uint8_t to[static KEYRING_QCOW_KEY])
{
	memset(to, 0, KEYRING_QCOW_KEY);
	memcpy(to, k->bytes, k->len < KEYRING_QCOW_KEY ? k->len : KEYRING_QCOW_KEY);
}

/* Has the same been tried before?  If not, it is now; where many are tried there is no
 * room to remember all. */
static bool
is_repeated(struct keyring_search *s, const uint8_t derived[static KEYRING_QCOW_KEY])
{
	for (unsigned i = 0; i < s->n_tried; i++)
		if (!memcmp(s->tried + (size_t)i * KEYRING_QCOW_KEY, derived, KEYRING_QCOW_KEY))
			return true;
	if (s->n_tried < KEYRING_TRIED_MAX)
		memcpy(s->tried + (size_t)s->n_tried++ * KEYRING_QCOW_KEY, derived, KEYRING_QCOW_KEY);
	return false;
}

static int
rank(enum verdict v)
{
	return v == VERDICT_PLAUSIBLE ? 2 : v == VERDICT_UNKNOWN;
}

/* Of all keys, this one has the best to be said for it. */
static void
set_best(struct keyring_search *s, const struct key *k, struct cipher *c)
{
	cipher_free(s->best_cipher);
	s->best_cipher = c;
	memcpy(s->best.origin, k->origin, sizeof(s->best.origin));
	s->best.form = k->form;
}

/* k's cipher; none if the same has been tried before. */
static int
make_cipher(struct keyring_search *s, const struct key *k, struct cipher **ret,
	    struct error **errp)
{
	uint8_t derived[KEYRING_QCOW_KEY];
	int r = 0;

	derive(k, derived);
	if (!is_repeated(s, derived))
		r = cipher_new(&cipher_qcow_aes, derived, KEYRING_QCOW_KEY, ret, errp);
	explicit_bzero(derived, sizeof(derived));
	return r;
}

static int
try_aes(struct keyring_search *s, const struct key *k, struct error **errp)
{
	CLEANUP(cipher_freep) struct cipher *c = NULL;
	struct judge_report report;

	if (make_cipher(s, k, &c, errp) < 0)
		return -1;
	if (!c)
		return 0;
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
try_luks(struct keyring_search *s, const struct key *k, struct error **errp)
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
try_exact(struct keyring_search *s, const struct key *k, struct error **errp)
{
	return (s->is_luks ? try_luks : try_aes)(s, k, errp);
}

bool
keyring_search_found(const struct keyring_search *s)
{
	return s->best.slot >= 0 ||
	       (s->best.judged && s->best.report.verdict == VERDICT_PLAUSIBLE);
}

static int
try_key(struct keyring_search *s, const struct key *k, struct error **errp)
{
	s->best.tried++;
	if (try_exact(s, k, errp) < 0)
		return -1;
	/* The end of a line behind the bytes that count makes no other key. */
	if (!s->is_luks && k->len >= KEYRING_QCOW_KEY + 2)
		return 0;
	for (unsigned i = 0; i < KEY_VARIANTS && !keyring_search_found(s); i++) {
		CLEANUP(key_freep) struct key *variant = NULL;

		if (key_variant(k, i, &variant, errp) < 0 || try_exact(s, variant, errp) < 0)
			return -1;
	}
	return 0;
}

/* Is there a reason to ask no more? */
static bool
answered(const struct keyring_search *s)
{
	return keyring_search_found(s) || (s->best.judged && s->ring->accept_unverified);
}

static void
say_wrong(const struct keyring_search *s)
{
	if (s->is_luks)
		keyring_say(s->ring, "This is not the password: it opens no key slot");
	else if (s->best.report.verdict == VERDICT_UNKNOWN)
		keyring_say(s->ring, "It cannot be judged whether this is the password: %s",
		    s->best.report.evidence);
	else
		keyring_say(s->ring, "This cannot be the password: %s", s->best.report.evidence);
}

static int
ask(struct keyring_search *s, struct error **errp)
{
	const struct image *im = s->layer->image;
	char question[LINE];

	snprintf(question, sizeof(question), "Password for %s (%s): ", im->filename,
		 cipher_kind_name(im->encryption));
	list_tame(question);
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
try_given(struct keyring_search *s, struct error **errp)
{
	const struct keyring *ring = s->ring;

	for (unsigned i = 0; i < ring->count && !keyring_search_found(s); i++)
		if ((ring->key[i]->layer == KEY_ANY_LAYER ||
		     ring->key[i]->layer == (int)s->layer->number) &&
		    try_key(s, ring->key[i], errp) < 0)
			return -1;
	return 0;
}

/* All candidates once.  They may take hours: now and then it is said how far it is. */
static int
try_words(struct keyring_search *s, struct error **errp)
{
	struct wordlist *words = s->ring->words;
	size_t before = s->best.tried, all = wordlist_count(words);
	int64_t next = clock_ns() + SAY_NS;

	wordlist_rewind(words);
	while (!keyring_search_found(s)) {
		CLEANUP(key_freep) struct key *k = NULL;

		if (wordlist_next(words, &k, errp) < 0 || (k && try_key(s, k, errp) < 0))
			return -1;
		if (!k)
			break;
		if (clock_ns() < next)
			continue;
		next = clock_ns() + SAY_NS;
		keyring_say(s->ring, "%zu of %zu candidates tried%s", s->best.tried - before, all,
		    s->glance ? ", at a first glance" : "");
	}
	return 0;
}

/* A right key of an ordinary disk is found at a glance.  Only if none is, each candidate
 * is judged by all there is. */
static int
try_list(struct keyring_search *s, struct error **errp)
{
	size_t before = s->best.tried;

	if (!s->is_luks && s->n > JUDGE_GLANCE) {
		s->glance = true;
		if (try_words(s, errp) < 0)
			return -1;
		s->glance = false;
		if (keyring_search_found(s))
			return 0;
		s->best.tried = before;
		s->n_tried = 0;
	}
	return try_words(s, errp);
}

int
keyring_search_run(struct keyring_search *s, struct error **errp)
{
	if (try_given(s, errp) < 0)
		return -1;
	if (s->ring->words && !keyring_search_found(s) && try_list(s, errp) < 0)
		return -1;
	if (s->ring->ask && !keyring_search_found(s))
		return ask(s, errp);
	return s->best.tried ? 0 : error_set(errp, "no key was given for it, which is layer %u",
					     s->layer->number);
}
