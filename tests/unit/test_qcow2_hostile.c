/* SPDX-License-Identifier: Apache-2.0 */
/* Broken images: each header field, and entries of tables, at the edges of what
 * they can hold.  Opening them says what is wrong, or using them goes on without
 * a crash, a hang or much memory. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/dirty.h"
#include "block/driver.h"
#include "block/qcow/qcow.h"
#include "block/qcow2/check.h"
#include "block/qcow2/format.h"
#include "block/qcow2/qcow2.h"
#include "tests/unit/aio_test.h"
#include "tests/unit/qcow2_mem.h"

enum { SIZE = 1 << 20 };

static const struct qcow2_format plain = {
	.size = SIZE, .version = 3, .cluster_bits = 12, .refcount_order = 4,
};

/* An image with something in it. */
static struct node *
sample(void)
{
	struct node *file = mem_new(), *n = q2_make(file, &plain, NULL);
	char buf[10000];

	memset(buf, 0x11, sizeof(buf));
	assert_int_equal(node_pwrite(n, 5000, buf, sizeof(buf)), 0);
	assert_int_equal(node_pwrite(n, 900000, buf, sizeof(buf)), 0);
	assert_int_equal(node_zero(n, 200000, 100000, 0), 0);
	assert_int_equal(q2_close(n), 0);
	return file;
}

static void
use(struct node *n)
{
	size_t size = min_u64(atomic_load(&n->size), SIZE);
	char *buf = calloc(1, size + 1);
	struct check_result c;

	(void)node_pread(n, 0, buf, size);
	if (!n->read_only) {
		(void)node_pwrite(n, 4000, buf, min_u64(size, 9000));
		(void)node_zero(n, 0, min_u64(size, 300000), IO_MAY_UNMAP);
		(void)node_discard(n, 0, size);
		(void)node_flush(n);
		(void)qcow2_settle(n->state);
	}
	(void)qcow2_check(n->state, n->read_only ? 0 : CHECK_FIX_LEAKS | CHECK_FIX_ERRORS, NULL, &c);
	free(buf);
	(void)q2_close(n);
}

/* Open and use; the error's text, or NULL. */
static char *
attempt(struct node *file, bool read_only)
{
	char *text = NULL;
	struct node *n = q2_open(file, NULL, read_only, &text);

	if (n)
		use(n);
	else
		assert_true(text && *text);
	return text;
}

static void
patch(struct node *file, uint64_t off, unsigned width, uint64_t v)
{
	uint8_t *p = mem_data(file) + off;

	if (width == 8)
		put_be64(p, v);
	else if (width == 4)
		put_be32(p, (uint32_t)v);
	else
		*p = (uint8_t)v;
}

static const uint64_t edges[] = {
	0, 1, 2, 3, 8, 9, 21, 22, 63, 64, 72, 104, 112, 511, 512, 513, 4095, 4096, 4097, 65535,
	65536, 65537, (8 << 20) / 4096, (8 << 20) / 4096 + 1, (32 << 20) / 8, (32 << 20) / 8 + 1,
	1 << 21, (1 << 21) + 1, UINT64_C(1) << 31, (UINT64_C(1) << 31) - 1, UINT64_C(1) << 32,
	(UINT64_C(1) << 56) - 512, UINT64_C(1) << 56, UINT64_C(1) << 62, UINT64_C(1) << 63,
	(UINT64_C(1) << 63) - 4096, (UINT64_C(1) << 63) - 1, UINT64_MAX, UINT64_MAX - 4095,
};

static void
header_fields(void *arg)
{
	static const struct { uint8_t off, width; } fields[] = {
		{ 0, 4 }, { 4, 4 }, { 8, 8 }, { 16, 4 }, { 20, 4 }, { 24, 8 }, { 32, 4 }, { 36, 4 },
		{ 40, 8 }, { 48, 8 }, { 56, 4 }, { 60, 4 }, { 64, 8 }, { 72, 8 }, { 80, 8 },
		{ 88, 8 }, { 96, 4 }, { 100, 4 }, { 104, 1 },
	};

	(void)arg;
	for (size_t f = 0; f < ARRAY_SIZE(fields); f++) {
		for (size_t e = 0; e < ARRAY_SIZE(edges); e++) {
			for (int ro = 0; ro < 2; ro++) {
				struct node *file = sample();

				patch(file, fields[f].off, fields[f].width, edges[e]);
				free(attempt(file, ro));
				mem_free(file);
			}
		}
	}
}

/* Entries of the L1 table, an L2 table, the refcount table and a block. */
static void
table_entries(void *arg)
{
	struct node *file = sample(), *n = q2_open(file, NULL, true, NULL);
	struct qcow2 *q = n->state;
	uint64_t l1 = q->header.l1_off, l2 = q->l1[0] & QCOW2_OFFSET_MASK;
	uint64_t table = q->header.reftable_off, block = q->reftable[0];
	const uint64_t places[] = { l1, l2 + 8, l2 + 16, l2 + 64, table, table + 8, block, block + 8 };

	(void)arg;
	(void)q2_close(n);
	mem_free(file);
	for (size_t p = 0; p < ARRAY_SIZE(places); p++) {
		for (size_t e = 0; e < ARRAY_SIZE(edges); e++) {
			for (unsigned flags = 0; flags < 4; flags++) {
				file = sample();
				patch(file, places[p], 8, edges[e] ^ (uint64_t)flags << 62);
				free(attempt(file, false));
				mem_free(file);
			}
		}
	}
}

static void
extensions(void *arg)
{
	static const uint32_t types[] = { QCOW2_EXT_BACKING_FORMAT, QCOW2_EXT_FEATURE_TABLE,
					  QCOW2_EXT_BITMAPS, QCOW2_EXT_CRYPTO, QCOW2_EXT_DATA_FILE, 77 };
	static const uint32_t lens[] = { 0, 1, 15, 16, 17, 23, 24, 25, 48, 3960, 3976, 3977, 4096,
					 1u << 31, UINT32_MAX };

	(void)arg;
	for (size_t t = 0; t < ARRAY_SIZE(types); t++) {
		for (size_t l = 0; l < ARRAY_SIZE(lens); l++) {
			for (int crypt = 0; crypt < 3; crypt++) {
				struct node *file = sample();

				patch(file, 112, 4, types[t]);
				patch(file, 116, 4, lens[l]);
				patch(file, 32, 4, (uint64_t)crypt);
				patch(file, 88, 8, 1);
				free(attempt(file, true));
				mem_free(file);
			}
		}
	}
}

static void
expect(uint64_t off, unsigned width, uint64_t v, const char *want)
{
	struct node *file = sample();
	char *text;

	patch(file, off, width, v);
	text = attempt(file, false);
	assert_non_null(text);
	assert_string_equal(text, want);
	free(text);
	mem_free(file);
}

static void
texts(void *arg)
{
	(void)arg;
	expect(0, 4, 1, "Image is not in qcow2 format");
	expect(4, 4, 4, "Unsupported qcow2 version 4");
	expect(8, 8, 4097, "Invalid backing file offset");
	expect(20, 4, 8, "Unsupported cluster size: 2^8");
	expect(20, 4, 22, "Unsupported cluster size: 2^22");
	expect(24, 8, UINT64_C(1) << 40, "L1 table is too small");
	expect(24, 8, UINT64_C(1) << 63, "Image is too big");
	expect(32, 4, 3, "Unsupported encryption method 3");
	expect(36, 4, (32 << 20) / 8 + 1, "Active L1 table too large");
	expect(40, 8, 512, "Active L1 table offset invalid");
	expect(40, 8, UINT64_C(1) << 63, "Active L1 table offset invalid");
	expect(48, 8, 100, "Reference count table offset invalid");
	expect(56, 4, 0, "Image does not contain a reference count table");
	expect(56, 4, 2049, "Reference count table too large");
	expect(60, 4, 65537, "Snapshot table too large");
	expect(72, 8, 1 << 7, "Unsupported qcow2 feature(s): Unknown incompatible feature: 80");
	expect(72, 8, 1 << 3, "qcow2: Compression type incompatible feature bit must not be set");
	expect(96, 4, 7, "Reference count entry width too large; may not exceed 64 bits");
	expect(100, 4, 100, "qcow2 header too short");
	expect(100, 4, 4104, "qcow2 header exceeds cluster size");
	expect(104, 1, 1, "qcow2: Compression type incompatible feature bit must be set");
	expect(104, 1, 2, "qcow2: unknown compression type: 2");
}

/* ---- stored bitmaps ---- */

/* An image with two of them, one in use; *ret_dir and *ret_table are where the
 * directory and the first one's table lie. */
static struct node *
sample_with_bitmaps(uint64_t *ret_dir, uint64_t *ret_table)
{
	struct node *file = sample(), *n = q2_open(file, NULL, false, NULL);
	struct qcow2 *q = n->state;
	struct dirty_options o = { .granularity = 512, .persistent = true };

	o.name = "bitmap-b";
	assert_int_equal(dirty_add(n, &o, NULL), 0);
	o.name = "bitmap-a";
	assert_int_equal(dirty_add(n, &o, NULL), 0);
	assert_int_equal(node_pwrite(n, 7000, "x", 1), 0);
	*ret_dir = q->exts.bitmap_dir_off;
	assert_int_equal(q2_close(n), 0);
	*ret_table = get_be64(mem_data(file) + *ret_dir);
	mem_data(file)[*ret_dir + 32 + 15] |= 1;	/* the second's flags */
	return file;
}

/* As attempt(), and bitmaps are merged, cleared and removed. */
static void
use_bitmaps(struct node *file, bool read_only)
{
	char *text = NULL;
	struct node *n = q2_open(file, NULL, read_only, &text);
	struct dirty_bitmap *b, *next;

	if (!n) {
		assert_true(text && *text);
		free(text);
		return;
	}
	for (b = dirty_after(n, NULL); b; b = next) {
		uint64_t off, len;

		next = dirty_after(n, b);
		(void)dirty_next_run(b, 0, UINT64_MAX, &off, &len);
		(void)node_pwrite(n, 9000, "y", 1);
		(void)dirty_clear(b, NULL);
		(void)dirty_remove(b, NULL);
	}
	use(n);
}

static void
bitmap_entries(void *arg)
{
	static const struct { uint8_t off, width; } fields[] = {
		{ 0, 8 }, { 8, 4 }, { 12, 4 }, { 16, 1 }, { 17, 1 }, { 18, 4 }, { 20, 4 },
		{ 24, 8 },
	};
	uint64_t dir, table;

	(void)arg;
	for (size_t f = 0; f < ARRAY_SIZE(fields); f++) {
		for (size_t e = 0; e < ARRAY_SIZE(edges); e++) {
			for (unsigned k = 0; k < 4; k++) {
				struct node *file = sample_with_bitmaps(&dir, &table);

				patch(file, dir + (k & 1 ? 32 : 0) + fields[f].off,
				      fields[f].width, edges[e]);
				use_bitmaps(file, k & 2);
				mem_free(file);
			}
		}
	}
}

static void
bitmap_tables(void *arg)
{
	uint64_t dir, table;

	(void)arg;
	for (size_t e = 0; e < ARRAY_SIZE(edges); e++) {
		for (unsigned k = 0; k < 4; k++) {
			struct node *file = sample_with_bitmaps(&dir, &table);

			patch(file, table, 8, edges[e] ^ (uint64_t)(k & 1));
			use_bitmaps(file, k & 2);
			mem_free(file);
		}
	}
}

/* The extension is found by its head, and its fields put to their edges. */
static void
bitmap_extension(void *arg)
{
	static const struct { uint8_t off, width; } fields[] = {
		{ 4, 4 }, { 8, 4 }, { 12, 4 }, { 16, 8 }, { 24, 8 },
	};
	uint64_t dir, table;

	(void)arg;
	for (size_t f = 0; f < ARRAY_SIZE(fields); f++) {
		for (size_t e = 0; e < ARRAY_SIZE(edges); e++) {
			struct node *file = sample_with_bitmaps(&dir, &table);
			uint64_t at = 0;

			while (get_be32(mem_data(file) + at) != QCOW2_EXT_BITMAPS)
				at += 8;
			patch(file, at + fields[f].off, fields[f].width, edges[e]);
			use_bitmaps(file, e & 1);
			mem_free(file);
		}
	}
}

static void
expect_of_bitmaps(unsigned entry, uint64_t off, unsigned width, uint64_t v, const char *want)
{
	uint64_t dir, table;
	struct node *file = sample_with_bitmaps(&dir, &table);
	char *text = NULL;

	patch(file, dir + 32 * entry + off, width, v);
	assert_null(q2_open(file, NULL, true, &text));
	assert_non_null(text);
	assert_string_equal(text, want);
	free(text);
	mem_free(file);
}

static void
bitmap_texts(void *arg)
{
	static const char sound[] = "Bitmap 'bitmap-a' doesn't satisfy the constraints";

	(void)arg;
	expect_of_bitmaps(0, 0, 8, 0, sound);
	expect_of_bitmaps(0, 0, 8, 4097, sound);
	expect_of_bitmaps(0, 8, 4, 0, sound);
	expect_of_bitmaps(0, 8, 4, 0x8000001, sound);
	expect_of_bitmaps(0, 12, 4, 4, sound);
	expect_of_bitmaps(0, 16, 1, 2, sound);
	expect_of_bitmaps(0, 17, 1, 8, sound);
	expect_of_bitmaps(0, 17, 1, 32, sound);
	expect_of_bitmaps(0, 20, 4, 8, "Bitmap extra data is not supported");
	expect_of_bitmaps(1, 18, 4, 1 << 24, "Broken bitmap directory");
	expect_of_bitmaps(0, 8, 4, 2,
			  "Could not read bitmap 'bitmap-a' from image: Invalid argument");
	expect_of_bitmaps(1, 24, 8, UINT64_C(0x6269746d61702d61), "Bitmap already exists: bitmap-a");
}

/* What is read from behind the end of a file is zeroes; in a bitmap they would say that
 * nothing was changed. */
static void
bitmap_cut_off(void *arg)
{
	uint64_t dir, table;

	(void)arg;
	for (int k = 0; k < 2; k++) {
		struct node *file = sample_with_bitmaps(&dir, &table), *n;
		struct dirty_bitmap *b;

		patch(file, k ? table : dir, 8, UINT64_C(1) << 40);
		for (int again = 0; again < 2; again++) {
			n = q2_open(file, NULL, false, NULL);
			assert_non_null(n);
			b = dirty_find(n, "bitmap-a");
			assert_non_null(b);
			assert_non_null(strstr(dirty_reason(b), again ? "in use" : "behind the end"));
			/* From now on the image says so too, however large it becomes. */
			assert_int_equal(node_pwrite(n, 7000, "x", 1), 0);
			assert_int_equal(q2_close(n), 0);
		}
		mem_free(file);
	}
}

/* A name of eight bytes, of which all but the first are zeroes. */
static void
bitmap_short_name(void *arg)
{
	uint64_t dir, table;
	struct node *file = sample_with_bitmaps(&dir, &table), *n;

	(void)arg;
	memset(mem_data(file) + dir + 25, 0, 7);
	n = q2_open(file, NULL, false, NULL);
	assert_non_null(n);
	assert_non_null(dirty_find(n, "b"));
	assert_int_equal(node_pwrite(n, 7000, "x", 1), 0);
	assert_int_equal(q2_close(n), 0);
	n = q2_open(file, NULL, true, NULL);
	assert_non_null(n);
	assert_int_equal(q2_close(n), 0);
	mem_free(file);
}

/* To mark the bitmaps as in use would write into the L1 table. */
static void
bitmap_directory_in_l1(void *arg)
{
	uint64_t dir, table;
	struct node *file = sample_with_bitmaps(&dir, &table), *n;
	uint8_t before[64];

	(void)arg;
	patch(file, 40, 8, dir);
	memcpy(before, mem_data(file) + dir, sizeof(before));
	n = q2_open(file, NULL, false, NULL);
	assert_non_null(n);
	assert_int_equal(node_pwrite(n, 7000, "x", 1), -EIO);
	assert_memory_equal(mem_data(file) + dir, before, sizeof(before));
	(void)q2_close(n);
	mem_free(file);
}

/* Each read of an open fails in turn. */
static void
failing_reads(void *arg)
{
	struct node *file = sample();
	bool opened = false;

	(void)arg;
	for (long at = 1; !opened; at++) {
		struct mem_faults *f = mem_faults(file);
		char *text = NULL;
		struct node *n;

		f->error = -EIO;
		f->fail_at = at;
		n = q2_open(file, NULL, true, &text);
		opened = n != NULL;
		assert_true(opened || strstr(text, "Input/output error"));
		f->fail_at = 0;
		free(text);
		if (n)
			(void)q2_close(n);
	}
	mem_free(file);
}

static void
version_1_fields(void *arg)
{
	static const struct { uint8_t off, width; } fields[] = {
		{ 0, 4 }, { 4, 4 }, { 8, 8 }, { 16, 4 }, { 24, 8 }, { 32, 1 }, { 33, 1 }, { 36, 4 },
		{ 40, 8 },
	};

	(void)arg;
	for (size_t f = 0; f < ARRAY_SIZE(fields); f++) {
		for (size_t e = 0; e < ARRAY_SIZE(edges); e++) {
			uint8_t head[QCOW_HEADER] = { 'Q', 'F', 'I', 0xfb, 0, 0, 0, 1 };
			struct error *err = NULL;
			struct qcow_header h;

			put_be64(head + 24, SIZE);
			head[32] = 12;
			head[33] = 9;
			if (fields[f].width == 8)
				put_be64(head + fields[f].off, edges[e]);
			else if (fields[f].width == 4)
				put_be32(head + fields[f].off, (uint32_t)edges[e]);
			else
				head[fields[f].off] = (uint8_t)edges[e];
			if (qcow_header_parse(head, &h, &err)) {
				assert_non_null(err);
				error_free(err);
				continue;
			}
			assert_in_range(h.cluster_bits, 9, 16);
			assert_in_range(h.l2_bits, 6, 13);
			assert_in_range(h.l1_size, 1, INT32_MAX / 8);
			assert_true(h.backing_off == 0 || h.backing_len <= 1023);
		}
	}
}

#define HOSTILE_TEST(fn, name)                                                     \
	static void name(void **state)                                             \
	{                                                                          \
		(void)state;                                                       \
		run(fn, NULL);                                                     \
	}

HOSTILE_TEST(header_fields, header_fields_at_their_edges)
HOSTILE_TEST(table_entries, table_entries_at_their_edges)
HOSTILE_TEST(extensions, extensions_of_odd_lengths)
HOSTILE_TEST(texts, the_error_names_the_field)
HOSTILE_TEST(bitmap_entries, bitmap_directories_at_their_edges)
HOSTILE_TEST(bitmap_tables, bitmap_tables_at_their_edges)
HOSTILE_TEST(bitmap_extension, the_bitmap_extension_at_its_edges)
HOSTILE_TEST(bitmap_texts, the_error_names_the_bitmap)
HOSTILE_TEST(bitmap_cut_off, a_bitmap_behind_the_end_is_not_trusted)
HOSTILE_TEST(bitmap_short_name, the_name_of_a_bitmap_may_end_early)
HOSTILE_TEST(bitmap_directory_in_l1, a_directory_in_a_table_is_not_written)
HOSTILE_TEST(failing_reads, each_read_of_an_open_may_fail)
HOSTILE_TEST(version_1_fields, fields_of_version_1_at_their_edges)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CO_TEST(header_fields_at_their_edges),
		CO_TEST(table_entries_at_their_edges),
		CO_TEST(extensions_of_odd_lengths),
		CO_TEST(the_error_names_the_field),
		CO_TEST(bitmap_directories_at_their_edges),
		CO_TEST(bitmap_tables_at_their_edges),
		CO_TEST(the_bitmap_extension_at_its_edges),
		CO_TEST(the_error_names_the_bitmap),
		CO_TEST(a_bitmap_behind_the_end_is_not_trusted),
		CO_TEST(the_name_of_a_bitmap_may_end_early),
		CO_TEST(a_directory_in_a_table_is_not_written),
		CO_TEST(each_read_of_an_open_may_fail),
		CO_TEST(fields_of_version_1_at_their_edges),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
