/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/judge.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "rescue/cipher.h"
#include "rescue/signature.h"

enum {
	CLEAR_HIGH = 860,
	CLEAR_LOW = 345,
	ODD_HIGH = 680,
	ODD_LOW = 400,
	ODD_ENOUGH = 3,
};

unsigned
judge_measure(const uint8_t data[512])
{
	uint16_t count[256] = { 0 };
	unsigned pairs = 0;

	/* Each byte makes a pair with every equal one before it. */
	for (size_t i = 0; i < 512; i++)
		pairs += count[data[i]]++;
	return pairs;
}

static bool
is_clear(unsigned measure)
{
	return measure >= CLEAR_HIGH || measure <= CLEAR_LOW;
}

bool
judge_is_clear(const uint8_t data[512])
{
	return is_clear(judge_measure(data));
}

bool
judge_is_text(const uint8_t *data, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if ((data[i] < 0x20 || data[i] > 0x7e) && data[i] != '\n' &&
		    data[i] != '\r' && data[i] != '\t')
			return false;
	return true;
}

/* What is clear before it is decrypted was never encrypted: preallocated space, or an
 * old program that forgot to. */
void
judge_prepare(struct judge_sample *samples, size_t n)
{
	for (size_t i = 0; i < n; i++)
		samples[i].unencrypted = judge_is_clear(samples[i].data);
}

static void
count_sample(const struct cipher *c, const struct judge_sample *s, struct judge_report *r)
{
	uint8_t plain[512];
	unsigned measure;

	if (s->unencrypted) {
		r->unencrypted++;
		return;
	}
	memcpy(plain, s->data, sizeof(plain));
	cipher_decrypt(c, s->sector, plain, sizeof(plain));
	measure = judge_measure(plain);
	r->sampled++;
	if (measure < ODD_HIGH && measure > ODD_LOW) {
		r->noise++;
		return;
	}
	r->odd++;
	if (!is_clear(measure))
		return;
	r->clear++;
	if (bytes_are_zero(plain, sizeof(plain)))
		r->zero++;
	else if (judge_is_text(plain, sizeof(plain)))
		r->text++;
}

static void
count_places(const struct judge_sample *samples, size_t n, struct judge_report *r)
{
	uint64_t last = UINT64_MAX;

	for (size_t i = 0; i < n; i++) {
		uint64_t place = samples[i].sector / JUDGE_PLACE;

		if (samples[i].unencrypted || place == last)
			continue;
		r->places++;
		r->start |= place < JUDGE_START;
		last = place;
	}
}

bool
judge_glance(const struct cipher *c, const struct judge_sample *samples, size_t n)
{
	size_t step = n > JUDGE_GLANCE ? n / JUDGE_GLANCE : 1;

	for (size_t i = 0; i < n; i += step) {
		struct judge_report r = { 0 };

		count_sample(c, &samples[i], &r);
		if (r.clear)
			return true;
	}
	return false;
}

/* ---- evidence ---- */

struct writer {
	char *buf;
	size_t size, len;
};

static void __attribute__((format(printf, 2, 3)))
put(struct writer *w, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(w->buf + w->len, w->size - w->len, fmt, ap);
	va_end(ap);
	if (n > 0)
		w->len = min_u64(w->len + n, w->size - 1);
}

static void
put_offset(struct writer *w, uint64_t sector)
{
	if (!sector)
		put(w, "at the start of the disk");
	else if (sector % 2048 == 0)
		put(w, "at %llu MiB", (unsigned long long)sector / 2048);
	else
		put(w, "at byte %llu", (unsigned long long)sector * 512);
}

static void
describe_signatures(struct writer *w, const struct signatures *sig)
{
	for (unsigned i = 0; i < sig->count; i++) {
		put(w, "%s ", sig->found[i].name);
		put_offset(w, sig->found[i].base);
		put(w, ", ");
	}
}

static void
describe(struct judge_report *r)
{
	struct writer w = { .buf = r->evidence, .size = sizeof(r->evidence) };
	size_t odd = r->odd;

	describe_signatures(&w, &r->signatures);
	if (r->sampled && odd) {
		put(&w, "%zu of %zu sampled sectors are not noise", odd, r->sampled);
		if (r->zero || r->text)
			put(&w, " (%zu zero, %zu text)", r->zero, r->text);
	} else if (r->sampled) {
		put(&w, "all of %zu sampled sectors are noise", r->sampled);
		if (r->verdict == VERDICT_UNKNOWN && !r->signatures.boot_mark)
			put(&w, ", which is too little to tell: they lie in %zu %s of 64 KiB",
			    r->places, r->places == 1 ? "place" : "places");
	} else if (!r->unencrypted && r->verdict == VERDICT_UNKNOWN) {
		put(&w, "nothing that may be encrypted can be read");
	} else if (!r->unencrypted) {
		put(&w, "no encrypted sector is there to judge by");
	} else {
		put(&w, "no sampled sector holds ciphertext");
	}
	if (r->verdict == VERDICT_UNKNOWN && r->signatures.boot_mark)
		put(&w, ", though the first ends in a boot mark");
	if (r->unencrypted)
		put(&w, "; %zu more were never encrypted", r->unencrypted);
}

/* ---- the verdict ---- */

struct lookup {
	const struct cipher *cipher;
	const struct judge_disk *disk;
};

static bool
read_plain(void *user, uint64_t sector, uint8_t data[512])
{
	struct lookup *l = user;

	if (!l->disk->fetch(l->disk->user, sector, data) || judge_is_clear(data))
		return false;
	cipher_decrypt(l->cipher, sector, data, 512);
	return true;
}

/* Would noise only be a surprise, if the key was right? */
static bool
is_enough(const struct judge_report *r)
{
	return r->sampled >= JUDGE_ENOUGH && (r->places >= JUDGE_PLACES || r->start);
}

static enum verdict
decide(const struct judge_report *r, bool damaged)
{
	if (r->signatures.count || r->clear || r->odd >= ODD_ENOUGH)
		return VERDICT_PLAUSIBLE;
	/* Where nothing is encrypted any key will do. */
	if (!r->sampled && !r->unencrypted)
		return damaged ? VERDICT_UNKNOWN : VERDICT_PLAUSIBLE;
	if (r->odd || r->signatures.boot_mark || !is_enough(r))
		return VERDICT_UNKNOWN;
	return VERDICT_IMPLAUSIBLE;
}

void
judge_key(const struct cipher *c, const struct judge_sample *samples, size_t n,
	  const struct judge_disk *disk, struct judge_report *ret)
{
	struct lookup l = { .cipher = c, .disk = disk };

	*ret = (struct judge_report){ 0 };
	for (size_t i = 0; i < n; i++)
		count_sample(c, &samples[i], ret);
	count_places(samples, n, ret);
	signature_search(read_plain, &l, disk->sectors, &ret->signatures);
	ret->verdict = decide(ret, disk->damaged);
	describe(ret);
}

const char *
judge_verdict_name(enum verdict v)
{
	static const char *const names[] = {
		[VERDICT_PLAUSIBLE] = "plausible",
		[VERDICT_IMPLAUSIBLE] = "implausible",
		[VERDICT_UNKNOWN] = "not-judged",
	};

	return names[v];
}
