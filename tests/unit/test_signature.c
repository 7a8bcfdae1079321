/* SPDX-License-Identifier: Apache-2.0 */
/* Structures that disks hold: each kind, where it stands, and what only looks like it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "rescue/signature.h"

enum { SECTORS = 16384 };

/* A disk of few sectors; the others cannot be read. */
static struct {
	uint64_t sector;
	uint8_t data[512];
} disk[8];
static unsigned n_sectors, reads;

static uint8_t *
add_sector(uint64_t sector)
{
	assert_true(n_sectors < ARRAY_SIZE(disk));
	memset(&disk[n_sectors], 0, sizeof(disk[0]));
	disk[n_sectors].sector = sector;
	return disk[n_sectors++].data;
}

static bool
read_sector(void *user, uint64_t sector, uint8_t data[512])
{
	reads++;
	for (unsigned i = 0; i < n_sectors; i++)
		if (disk[i].sector == sector) {
			memcpy(data, disk[i].data, 512);
			return true;
		}
	return false;
}

static struct signatures
search(void)
{
	struct signatures s;

	reads = 0;
	signature_search(read_sector, NULL, SECTORS, &s);
	return s;
}

static int
empty(void **state)
{
	n_sectors = 0;
	return 0;
}

/* What a kind has in one of its sectors, beside zeroes. */
struct bytes {
	unsigned at, len;
	const char *text;
};

static const struct {
	const char *name;
	unsigned sector;
	struct bytes bytes[8];
} kinds[] = {
	{ "NTFS file system", 0, { { 3, 8, "NTFS    " } } },
	{ "exFAT file system", 0, { { 3, 8, "EXFAT   " } } },
	{ "BitLocker volume", 0, { { 3, 8, "-FVE-FS-" } } },
	{ "FAT file system", 0, { { 0, 3, "\xeb\x3c\x90" }, { 11, 2, "\0\2" }, { 13, 1, "\4" },
				  { 14, 2, "\1\0" }, { 16, 1, "\2" }, { 21, 1, "\xf8" },
				  { 510, 2, "\x55\xaa" } } },
	{ "XFS file system", 0, { { 0, 4, "XFSB" }, { 4, 4, "\0\0\x10\0" } } },
	{ "LUKS volume", 0, { { 0, 6, "LUKS\xba\xbe" }, { 6, 2, "\0\1" } } },
	{ "LUKS volume", 0, { { 0, 6, "LUKS\xba\xbe" }, { 6, 2, "\0\2" } } },
	{ "LVM2 physical volume", 0, { { 0, 8, "LABELONE" }, { 24, 8, "LVM2 001" } } },
	{ "LVM2 physical volume", 1, { { 0, 8, "LABELONE" }, { 24, 8, "LVM2 001" } } },
	{ "APFS container", 0, { { 32, 4, "NXSB" }, { 36, 4, "\0\x10\0\0" } } },
	{ "ext2 file system", 2, { { 4, 4, "\0\1\0\0" }, { 56, 2, "\x53\xef" }, { 58, 2, "\1\0" } } },
	{ "ext3 file system", 2, { { 4, 4, "\0\1\0\0" }, { 56, 2, "\x53\xef" }, { 92, 1, "\4" } } },
	{ "ext4 file system", 2, { { 4, 4, "\0\1\0\0" }, { 56, 2, "\x53\xef" }, { 92, 1, "\4" },
				   { 96, 1, "\x40" } } },
	{ "F2FS file system", 2, { { 0, 4, "\x10\x20\xf5\xf2" }, { 8, 1, "\x9" }, { 12, 1, "\3" } } },
	{ "HFS+ file system", 2, { { 0, 4, "H+\0\4" }, { 40, 4, "\0\0\x10\0" } } },
	{ "swap space", 7, { { 502, 10, "SWAPSPACE2" } } },
	{ "Linux RAID member", 8, { { 0, 4, "\xfc\x4e\x2b\xa9" }, { 4, 1, "\1" } } },
	{ "ISO 9660 file system", 64, { { 0, 7, "\1CD001\1" } } },
	{ "btrfs file system", 128, { { 64, 8, "_BHRfS_M" } } },
	{ "ZFS pool", 256, { { 0, 4, "\x0c\xb1\xba\0" } } },
};

static void
put_kind(size_t i, uint64_t base)
{
	uint8_t *s = add_sector(base + kinds[i].sector);

	for (const struct bytes *b = kinds[i].bytes; b->len; b++)
		memcpy(s + b->at, b->text, b->len);
}

static void
test_each_kind_is_found_at_the_start_and_in_a_partition(void **state)
{
	static const uint64_t bases[] = { 0, 63, 2048 };

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		for (size_t j = 0; j < ARRAY_SIZE(bases); j++) {
			struct signatures s;

			n_sectors = 0;
			put_kind(i, bases[j]);
			s = search();
			if (s.count != 1 || strcmp(s.found[0].name, kinds[i].name))
				fail_msg("%s: %u found, %s", kinds[i].name, s.count,
					 s.count ? s.found[0].name : "nothing");
			assert_int_equal(s.found[0].base, bases[j]);
		}
}

/* Any byte that a kind asks for, changed, and it is no such thing. */
static void
test_what_differs_in_one_byte_is_none_of_them(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		for (const struct bytes *b = kinds[i].bytes; b->len; b++)
			for (unsigned at = b->at; at < b->at + b->len; at++) {
				struct signatures s;

				/* Fields that may have many values, and a jump's target. */
				if (b->len < 4 && !(b->len == 2 && b->text[0] == '\x55') &&
				    !(b->len == 2 && b->text[0] == '\x53'))
					continue;
				if (b->len == 4 && !memcmp(b->text, "\0\1\0\0", 4))
					continue;
				n_sectors = 0;
				put_kind(i, 0);
				disk[0].data[at] ^= 0x5a;
				s = search();
				if (s.count)
					fail_msg("%s with byte %u changed is %s", kinds[i].name, at,
						 s.found[0].name);
			}
}

static uint8_t *
put_mbr(uint32_t start)
{
	uint8_t *s = add_sector(0);

	s[446 + 4] = 0x83;
	put_le32(s + 446 + 8, start);
	put_le32(s + 446 + 12, 1000);
	s[510] = 0x55;
	s[511] = 0xaa;
	return s;
}

static void
test_a_partition_table_leads_on(void **state)
{
	struct signatures s;

	put_mbr(5000);
	put_kind(4, 5000);
	s = search();
	assert_int_equal(s.count, 2);
	assert_string_equal(s.found[0].name, "MBR partition table");
	assert_string_equal(s.found[1].name, "XFS file system");
	assert_int_equal(s.found[1].base, 5000);
	assert_true(s.boot_mark);
}

static void
test_a_table_with_an_impossible_entry_is_none(void **state)
{
	uint8_t *s = put_mbr(5000);

	s[446 + 16] = 0x01;	/* no boot flag */
	assert_int_equal(search().count, 0);
	assert_true(search().boot_mark);
	s[446 + 16] = 0;
	put_le32(s + 446 + 8, SECTORS);	/* behind the end */
	assert_int_equal(search().count, 0);
	put_le32(s + 446 + 8, 5000);
	assert_int_equal(search().count, 1);
	s[446 + 4] = 0;		/* no type, but a place */
	assert_int_equal(search().count, 0);
	memset(s + 446, 0, 16);	/* nothing in it */
	assert_int_equal(search().count, 0);
}

/* Numbers that a hostile or damaged table holds lead nowhere, and to no endless search. */
static void
test_numbers_of_a_gpt_are_bounded(void **state)
{
	static const uint64_t tables[] = { 2, SECTORS - 1, SECTORS, UINT64_MAX, UINT64_MAX - 3 };

	for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
		uint8_t *gpt, *entries;

		n_sectors = 0;
		gpt = add_sector(1);
		memcpy(gpt, "EFI PART", 8);
		put_le64(gpt + 72, tables[i]);
		entries = add_sector(2);
		for (int e = 0; e < 4; e++) {
			entries[e * 128] = 1;
			put_le64(entries + e * 128 + 32, UINT64_MAX - (uint64_t)e);
		}
		assert_int_equal(search().count, 1);
		assert_true(reads < 200);
	}
}

static void
test_noise_is_nothing(void **state)
{
	uint64_t seed = 1;

	for (int i = 0; i < 100000; i++) {
		struct signatures s;
		uint8_t *sector;

		n_sectors = 0;
		for (unsigned j = 0; j < 3; j++) {
			sector = add_sector(j);
			for (size_t at = 0; at < 512; at += 8) {
				uint64_t z = seed += 0x9e3779b97f4a7c15ULL;

				z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
				put_le64(sector + at, z ^ z >> 29);
			}
		}
		s = search();
		assert_int_equal(s.count, 0);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_each_kind_is_found_at_the_start_and_in_a_partition,
				       empty),
		cmocka_unit_test_setup(test_what_differs_in_one_byte_is_none_of_them, empty),
		cmocka_unit_test_setup(test_a_partition_table_leads_on, empty),
		cmocka_unit_test_setup(test_a_table_with_an_impossible_entry_is_none, empty),
		cmocka_unit_test_setup(test_numbers_of_a_gpt_are_bounded, empty),
		cmocka_unit_test_setup(test_noise_is_nothing, empty),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
