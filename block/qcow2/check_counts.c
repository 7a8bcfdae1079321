/* SPDX-License-Identifier: Apache-2.0 */
/* Counters come in pages, which exist where something was counted: two bytes for
 * a cluster, and four once a counter of the page needs them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/qcow2/check_int.h"

enum { PAGE_BITS = 14, PAGE = 1 << PAGE_BITS };	/* clusters */
/* QEMU's limit too. */
#define CLUSTERS_MAX (UINT64_C(1) << 31)

struct qcow2_count_page {
	uint16_t *narrow;
	uint32_t *wide;		/* instead of narrow; both NULL: all zero */
};

static void
page_done(struct qcow2_count_page *p)
{
	free(p->narrow);
	free(p->wide);
	memset(p, 0, sizeof(*p));
}

int
qcow2_counts_grow(struct qcow2_counts *c, uint64_t n)
{
	size_t n_pages = (size_t)((n + PAGE - 1) >> PAGE_BITS);
	struct qcow2_count_page *pages;

	if (n > CLUSTERS_MAX)
		return -EFBIG;
	if (n_pages > c->n_pages) {
		n_pages += n_pages / 2;
		pages = realloc(c->pages, n_pages * sizeof(*pages));
		if (!pages)
			return -ENOMEM;
		memset(pages + c->n_pages, 0, (n_pages - c->n_pages) * sizeof(*pages));
		c->pages = pages;
		c->n_pages = n_pages;
	}
	if (n > c->n)
		c->n = n;
	return 0;
}

void
qcow2_counts_done(struct qcow2_counts *c)
{
	for (size_t i = 0; i < c->n_pages; i++)
		page_done(&c->pages[i]);
	free(c->pages);
	memset(c, 0, sizeof(*c));
}

uint64_t
qcow2_counts_get(const struct qcow2_counts *c, uint64_t cluster)
{
	const struct qcow2_count_page *p;
	size_t i = cluster & (PAGE - 1);

	if (cluster >= c->n)
		return 0;
	p = &c->pages[cluster >> PAGE_BITS];
	if (p->wide)
		return p->wide[i];
	return p->narrow ? p->narrow[i] : 0;
}

static int
widen(struct qcow2_count_page *p)
{
	p->wide = calloc(PAGE, sizeof(*p->wide));
	if (!p->wide)
		return -ENOMEM;
	for (size_t i = 0; p->narrow && i < PAGE; i++)
		p->wide[i] = p->narrow[i];
	free(p->narrow);
	p->narrow = NULL;
	return 0;
}

int
qcow2_counts_set(struct qcow2_counts *c, uint64_t cluster, uint64_t count)
{
	struct qcow2_count_page *p = &c->pages[cluster >> PAGE_BITS];
	size_t i = cluster & (PAGE - 1);

	if (count > UINT16_MAX && !p->wide && widen(p))
		return -ENOMEM;
	if (!p->wide && !p->narrow) {
		p->narrow = calloc(PAGE, sizeof(*p->narrow));
		if (!p->narrow)
			return -ENOMEM;
	}
	if (p->wide)
		p->wide[i] = (uint32_t)count;
	else
		p->narrow[i] = (uint16_t)count;
	return 0;
}

uint64_t
qcow2_counts_next(const struct qcow2_counts *c, uint64_t cluster)
{
	while (cluster < c->n) {
		const struct qcow2_count_page *p = &c->pages[cluster >> PAGE_BITS];

		if (p->narrow || p->wide)
			return cluster;
		cluster = round_down(cluster, PAGE) + PAGE;
	}
	return c->n;
}
