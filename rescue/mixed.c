/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/mixed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "rescue/cipher.h"
#include "rescue/judge.h"

enum {
	BLOCK = 16,		/* of AES: what an IV disturbs */
	IV_BYTES = 8,		/* ... of which it has that many that are not zero */
	GLANCE = 64,		/* bytes of a first look */
	GLANCE_FEW = 6,

	/* In bits, as evidence is.  What was never encrypted is so beyond any doubt.
	 * Changes to and from the usual reading are dear, so that one sector's IV alone
	 * cannot pay for them; at the cluster's edges they are cheaper by a little, so
	 * that what says nothing there goes with its neighbours. */
	SURE = 80,
	FILE_IV_MIN = 3,	/* one sector's say about its IV */
	FILE_IV_MAX = 30,
	PRICE_EDGE = 32,
	PRICE_CHANGE = 33,
};

/* ---- one sector ---- */

static int
log2_floor(unsigned n)
{
	return 31 - __builtin_clz(n);
}

/* How much likelier the first block is with the other IV, which differs from the usual
 * one by diff, in bits: by how often its bytes are found in the rest of the sector. */
static int
weigh_ivs(const uint8_t plain[512], uint64_t diff)
{
	uint16_t count[256] = { 0 };
	uint8_t mask[IV_BYTES];
	int bits = 0;

	for (size_t i = BLOCK; i < 512; i++)
		count[plain[i]]++;
	put_le64(mask, diff);
	for (size_t i = 0; i < IV_BYTES; i++)
		bits += log2_floor(2 * count[plain[i] ^ mask[i]] + 1U) -
			log2_floor(2 * count[plain[i]] + 1U);
	return bits > FILE_IV_MAX ? FILE_IV_MAX : bits < -FILE_IV_MAX ? -FILE_IV_MAX : bits;
}

/* Is its end, at least, text or one byte over and over? */
static bool
is_even(const uint8_t plain[512])
{
	return judge_is_text(plain + BLOCK, 512 - BLOCK) ||
	       !memcmp(plain + BLOCK, plain + BLOCK + 1, 512 - BLOCK - 1);
}

struct mixed_vote
mixed_look(const struct cipher *c, uint64_t guest, uint64_t file, const uint8_t stored[512])
{
	struct mixed_vote v = { .leaning = 0 };
	uint8_t plain[512];

	if (judge_is_clear(stored)) {
		v.weight[MIXED_PLAIN] = SURE;
		return v;
	}
	memcpy(plain, stored, sizeof(plain));
	cipher_decrypt(c, guest, plain, sizeof(plain));
	if (!judge_is_clear(plain))
		return v;
	v.weight[MIXED_PLAIN] = -SURE;
	v.leaning = (int16_t)weigh_ivs(plain, guest ^ file);
	if (is_even(plain))
		v.weight[MIXED_FILE_IV] = v.leaning;
	return v;
}

/* ---- in passing ---- */

/* How many of 64 bytes have their highest bit set.  Of noise it is half of them. */
static unsigned
count_high(const uint8_t *p)
{
	uint64_t sum = 0, word;

	for (size_t i = 0; i < GLANCE; i += 8) {
		memcpy(&word, p + i, 8);
		sum += word >> 7 & 0x0101010101010101;
	}
	return (unsigned)(sum * 0x0101010101010101 >> 56);
}

bool
mixed_seems_plain(const uint8_t stored[512])
{
	unsigned high = count_high(stored);

	/* Noise gets past this once in 10^11 sectors. */
	return (high <= GLANCE_FEW || high >= GLANCE - GLANCE_FEW) && judge_is_clear(stored);
}

bool
mixed_seems_zero(const uint8_t plain[512], uint64_t diff)
{
	return diff && get_le64(plain) == diff && bytes_are_zero(plain + 8, 512 - 8);
}

/* ---- one cluster ---- */

/* The best course that ends in each reading, and from where it came. */
struct course {
	int weight[MIXED_READINGS];
	uint8_t from[MIXED_READINGS];
};

static void
step(const struct course *before, const struct mixed_vote *v, struct course *ret)
{
	for (unsigned to = 0; to < MIXED_READINGS; to++) {
		/* Of equals the one that changes nothing. */
		unsigned best = to;

		for (unsigned from = 0; from < MIXED_READINGS; from++)
			if (before->weight[from] - PRICE_CHANGE * (from != to) >
			    before->weight[best] - PRICE_CHANGE * (best != to))
				best = from;
		ret->from[to] = (uint8_t)best;
		ret->weight[to] = before->weight[best] - PRICE_CHANGE * (best != to) +
				  v->weight[to];
	}
}

static void
begin(const struct mixed_vote *v, struct course *ret)
{
	for (unsigned i = 0; i < MIXED_READINGS; i++)
		ret->weight[i] = v->weight[i] - (i == MIXED_USUAL ? 0 : PRICE_EDGE);
}

/* The best course at the cluster's other edge. */
static unsigned
end(const struct course *last)
{
	unsigned best = MIXED_USUAL;

	for (unsigned i = 0; i < MIXED_READINGS; i++)
		if (i != MIXED_USUAL && last->weight[i] - PRICE_EDGE > last->weight[best] -
		    (best == MIXED_USUAL ? 0 : PRICE_EDGE))
			best = i;
	return best;
}

/* A sector that shows little of its IV has the usual one: in each cluster that was
 * filled up there is something that a guest wrote. */
static enum mixed_reading
settle(enum mixed_reading r, const struct mixed_vote *v)
{
	return r == MIXED_FILE_IV && v->leaning < FILE_IV_MIN ? MIXED_USUAL : r;
}

int
mixed_decide(const struct mixed_vote *votes, size_t n, enum mixed_reading *ret)
{
	struct course *course = malloc(n * sizeof(*course));
	unsigned at;

	if (!course)
		return -ENOMEM;
	begin(&votes[0], &course[0]);
	for (size_t i = 1; i < n; i++)
		step(&course[i - 1], &votes[i], &course[i]);
	at = end(&course[n - 1]);
	for (size_t i = n; i-- > 0;) {
		ret[i] = settle(at, &votes[i]);
		if (i)
			at = course[i].from[at];
	}
	free(course);
	return 0;
}

/* ---- the ranges ---- */

static int
append(struct mixed *m, uint64_t off, uint64_t len, enum mixed_reading reading)
{
	struct mixed_range *last = m->n ? &m->range[m->n - 1] : NULL;

	m->bytes[reading] += len;
	if (last && last->reading == reading && last->off + last->len == off) {
		last->len += len;
		return 0;
	}
	if (m->n + m->others >= MIXED_RANGES_MAX)
		return -E2BIG;
	if (is_pow2(m->n) || !m->n) {
		struct mixed_range *more = realloc(m->range, (m->n ? 2 * m->n : 1) * sizeof(*more));

		if (!more)
			return -ENOMEM;
		m->range = more;
	}
	m->range[m->n++] = (struct mixed_range){ off, len, reading };
	return 0;
}

int
mixed_add(struct mixed *m, uint64_t off, const enum mixed_reading *readings, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		int r = readings[i] == MIXED_USUAL
				? 0 : append(m, off + i * CIPHER_SECTOR, CIPHER_SECTOR, readings[i]);

		if (r < 0)
			return r;
	}
	return 0;
}

enum mixed_reading
mixed_find(const struct mixed *m, uint64_t off, size_t *len)
{
	size_t low = 0, high = m->n;

	/* The first range that ends behind off. */
	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (m->range[mid].off + m->range[mid].len <= off)
			low = mid + 1;
		else
			high = mid;
	}
	if (low == m->n)
		return MIXED_USUAL;
	if (m->range[low].off > off) {
		*len = min_u64(*len, m->range[low].off - off);
		return MIXED_USUAL;
	}
	*len = min_u64(*len, m->range[low].off + m->range[low].len - off);
	return m->range[low].reading;
}

void
mixed_free(struct mixed *m)
{
	if (!m)
		return;
	free(m->range);
	free(m);
}

const char *
mixed_reading_name(enum mixed_reading reading)
{
	static const char *const names[] = {
		[MIXED_USUAL] = "usual",
		[MIXED_FILE_IV] = "file-iv",
		[MIXED_PLAIN] = "plain-text",
	};

	return names[reading];
}
