/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/signature.h"

#include <stddef.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"

enum { PARTITIONS_MAX = 64, GPT_ENTRIES_MAX = 128, GPT_ENTRY = 128 };

struct search {
	signature_read_fn *read;
	void *user;
	uint64_t sectors;
	uint64_t starts[PARTITIONS_MAX];
	unsigned n_starts;
	struct signatures *out;
};

/* ---- one function a kind; s is a sector, the result a name or NULL ---- */

static bool
boot_mark(const uint8_t *s)
{
	return s[510] == 0x55 && s[511] == 0xaa;
}

static const char *
is_ext(const uint8_t *s)
{
	if (get_le16(s + 56) != 0xef53 || get_le32(s + 24) > 6 || get_le32(s + 76) > 1 ||
	    get_le16(s + 58) > 7 || !get_le32(s + 4))
		return NULL;
	if (get_le32(s + 96) & 0x2c0)	/* extents, 64bit, flex_bg */
		return "ext4 file system";
	return get_le32(s + 92) & 4 ? "ext3 file system" : "ext2 file system";
}

static const char *
is_xfs(const uint8_t *s)
{
	uint32_t block = get_be32(s + 4);

	return !memcmp(s, "XFSB", 4) && is_pow2(block) && block >= 512 && block <= 65536
		       ? "XFS file system" : NULL;
}

static const char *
is_btrfs(const uint8_t *s)
{
	return !memcmp(s + 64, "_BHRfS_M", 8) ? "btrfs file system" : NULL;
}

static const char *
is_ntfs(const uint8_t *s)
{
	if (!memcmp(s + 3, "NTFS    ", 8))
		return "NTFS file system";
	if (!memcmp(s + 3, "EXFAT   ", 8))
		return "exFAT file system";
	return !memcmp(s + 3, "-FVE-FS-", 8) ? "BitLocker volume" : NULL;
}

static const char *
is_fat(const uint8_t *s)
{
	uint16_t bytes = get_le16(s + 11);

	return boot_mark(s) && (s[0] == 0xeb || s[0] == 0xe9) && is_pow2(bytes) &&
			       bytes >= 512 && bytes <= 4096 && is_pow2(s[13]) &&
			       get_le16(s + 14) && (s[16] == 1 || s[16] == 2) && s[21] >= 0xf0
		       ? "FAT file system" : NULL;
}

static const char *
is_lvm(const uint8_t *s)
{
	return !memcmp(s, "LABELONE", 8) && !memcmp(s + 24, "LVM2 001", 8)
		       ? "LVM2 physical volume" : NULL;
}

static const char *
is_luks(const uint8_t *s)
{
	return !memcmp(s, "LUKS\xba\xbe", 6) && (get_be16(s + 6) == 1 || get_be16(s + 6) == 2)
		       ? "LUKS volume" : NULL;
}

static const char *
is_swap(const uint8_t *s)
{
	return !memcmp(s + 502, "SWAPSPACE2", 10) || !memcmp(s + 502, "SWAP-SPACE", 10)
		       ? "swap space" : NULL;
}

static const char *
is_iso9660(const uint8_t *s)
{
	return !memcmp(s, "\1CD001\1", 7) ? "ISO 9660 file system" : NULL;
}

static const char *
is_f2fs(const uint8_t *s)
{
	return get_le32(s) == 0xf2f52010 && get_le32(s + 8) <= 12 && get_le32(s + 12) <= 3
		       ? "F2FS file system" : NULL;
}

static const char *
is_hfs(const uint8_t *s)
{
	uint32_t block = get_be32(s + 40);

	return (!memcmp(s, "H+\0\4", 4) || !memcmp(s, "HX\0\5", 4)) && is_pow2(block)
		       ? "HFS+ file system" : NULL;
}

static const char *
is_apfs(const uint8_t *s)
{
	uint32_t block = get_le32(s + 36);

	return !memcmp(s + 32, "NXSB", 4) && is_pow2(block) && block >= 4096
		       ? "APFS container" : NULL;
}

static const char *
is_md(const uint8_t *s)
{
	return get_le32(s) == 0xa92b4efc && get_le32(s + 4) == 1 ? "Linux RAID member" : NULL;
}

static const char *
is_zfs(const uint8_t *s)
{
	return get_le64(s) == 0x00bab10c || get_be64(s) == 0x00bab10c ? "ZFS pool" : NULL;
}

static const struct {
	unsigned sector;	/* counted from the volume's start */
	const char *(*match)(const uint8_t *s);
} kinds[] = {
	{ 0, is_ntfs },	 { 0, is_fat },	   { 0, is_xfs },  { 0, is_luks }, { 0, is_lvm },
	{ 0, is_apfs },	 { 1, is_lvm },	   { 2, is_ext },  { 2, is_f2fs }, { 2, is_hfs },
	{ 7, is_swap },	 { 8, is_md },	   { 64, is_iso9660 },
	{ 128, is_btrfs }, { 256, is_zfs },
};

/* ---- partition tables ---- */

static void
add_start(struct search *f, uint64_t start)
{
	if (!start || start >= f->sectors || f->n_starts == PARTITIONS_MAX)
		return;
	for (unsigned i = 0; i < f->n_starts; i++)
		if (f->starts[i] == start)
			return;
	f->starts[f->n_starts++] = start;
}

static void
found(struct search *f, const char *name, uint64_t base)
{
	if (f->out->count < SIGNATURE_MAX)
		f->out->found[f->out->count++] = (struct signature){ name, base };
}

/* A table of four entries, each empty or with a legal boot flag and a place on
 * the disk, and not all of them empty. */
static bool
is_mbr(const uint8_t *s, uint64_t sectors)
{
	unsigned used = 0;

	if (!boot_mark(s))
		return false;
	for (const uint8_t *e = s + 446; e < s + 510; e += 16) {
		if (e[0] & 0x7f)
			return false;
		if (!e[4] && !bytes_are_zero(e, 16))
			return false;
		if (!e[4])
			continue;
		if (!get_le32(e + 8) || get_le32(e + 8) >= sectors || !get_le32(e + 12))
			return false;
		used++;
	}
	return used;
}

static void
search_mbr(struct search *f)
{
	uint8_t s[512];

	if (!f->read(f->user, 0, s))
		return;
	f->out->boot_mark = boot_mark(s);
	if (!is_mbr(s, f->sectors))
		return;
	found(f, "MBR partition table", 0);
	for (const uint8_t *e = s + 446; e < s + 510; e += 16)
		if (e[4])
			add_start(f, get_le32(e + 8));
}

static void
search_gpt(struct search *f)
{
	uint8_t s[512];
	uint64_t table;

	if (!f->read(f->user, 1, s) || memcmp(s, "EFI PART", 8))
		return;
	found(f, "GPT partition table", 0);
	table = get_le64(s + 72);
	for (unsigned i = 0; i < GPT_ENTRIES_MAX * GPT_ENTRY / 512; i++) {
		if (table >= f->sectors || !f->read(f->user, table + i, s))
			return;
		for (const uint8_t *e = s; e < s + 512; e += GPT_ENTRY)
			if (!bytes_are_zero(e, 16))
				add_start(f, get_le64(e + 32));
	}
}

static void
search_volume(struct search *f, uint64_t base)
{
	uint8_t s[512];
	unsigned have = 0;
	bool ok = f->read(f->user, base, s);

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		const char *name;

		if (kinds[i].sector != have) {
			have = kinds[i].sector;
			ok = base + have < f->sectors && f->read(f->user, base + have, s);
		}
		name = ok ? kinds[i].match(s) : NULL;
		if (name)
			found(f, name, base);
	}
}

void
signature_search(signature_read_fn *read, void *user, uint64_t sectors, struct signatures *ret)
{
	struct search f = { .read = read, .user = user, .sectors = sectors, .out = ret };

	*ret = (struct signatures){ 0 };
	search_mbr(&f);
	search_gpt(&f);
	/* Where partitions have started for decades: the table may be in another
	 * layer, or lost. */
	add_start(&f, 63);
	add_start(&f, 2048);
	search_volume(&f, 0);
	for (unsigned i = 0; i < f.n_starts; i++)
		search_volume(&f, f.starts[i]);
}
