/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/facts.h"

#include "base/cleanup.h"
#include "cli/member.h"
#include "rescue/image.h"

enum { NS = 1000000000 };

static bool
print_snapshot(void *out, const struct image_snapshot *s)
{
	struct member_out *o = out;

	member_begin(o, NULL, "{}");
	member_text(o, "id", s->id);
	member_text(o, "name", s->name);
	member_number(o, "virtual-size", s->disk_size);
	member_number(o, "vm-state-size", s->vm_state_size);
	member_number(o, "date-sec", s->date_sec);
	member_number(o, "date-nsec", s->date_nsec);
	member_number(o, "vm-clock-sec", s->vm_clock_nsec / NS);
	member_number(o, "vm-clock-nsec", s->vm_clock_nsec % NS);
	if (s->icount != UINT64_MAX)
		member_number(o, "icount", s->icount);
	member_end(o, "{}");
	return true;
}

static int
print_snapshots(struct member_out *o, const struct image *im)
{
	int r;

	member_begin(o, "snapshots", "[]");
	r = image_each_snapshot(im, print_snapshot, o);
	member_end(o, "[]");
	if (im->shown)
		member_number(o, "snapshot", im->shown->index);
	return r;
}

static bool
print_bitmap(void *out, const struct image_bitmap *b)
{
	struct member_out *o = out;

	member_begin(o, NULL, "{}");
	member_begin(o, "flags", "[]");
	if (b->in_use)
		member_text(o, NULL, "in-use");
	if (b->is_auto)
		member_text(o, NULL, "auto");
	member_end(o, "[]");
	member_text(o, "name", b->name);
	member_number(o, "granularity", b->granularity);
	member_end(o, "{}");
	return true;
}

static int
print_bitmaps(struct member_out *o, const struct image *im)
{
	int r;

	member_begin(o, "bitmaps", "[]");
	r = image_each_bitmap(im, print_bitmap, o);
	member_end(o, "[]");
	return r;
}

static int
print_qcow2(struct member_out *o, const struct image *im)
{
	member_text(o, "compat", im->version < 3 ? "0.10" : "1.1");
	member_text(o, "compression-type", im->zstd ? "zstd" : "zlib");
	member_number(o, "refcount-bits", im->refcount_bits);
	member_bool(o, "lazy-refcounts", im->lazy_refcounts);
	member_bool(o, "extended-l2", im->subclusters);
	if (im->external_data)
		member_bool(o, "data-file-raw", im->data_raw);
	return print_snapshots(o, im) < 0 || print_bitmaps(o, im) < 0 ? -1 : 0;
}

/* ---- encryption ---- */

static void
print_slot(struct member_out *o, const struct image_luks_slot *s)
{
	member_begin(o, NULL, "{}");
	member_bool(o, "active", s->active);
	if (s->active) {
		member_number(o, "iters", s->iterations);
		member_number(o, "stripes", s->stripes);
	}
	member_number(o, "key-offset", s->offset);
	member_end(o, "{}");
}

static void
print_luks(struct member_out *o, const struct image *im)
{
	member_text(o, "uuid", im->luks->uuid);
	member_number(o, "payload-offset", im->luks->payload);
	member_number(o, "master-key-iters", im->luks->iterations);
	member_bool(o, "detached-header", im->header);
	member_begin(o, "slots", "[]");
	for (unsigned i = 0; i < IMAGE_LUKS_SLOTS; i++)
		print_slot(o, &im->luks->slot[i]);
	member_end(o, "[]");
}

static void
print_encrypt(struct member_out *o, const struct image *im)
{
	struct image_cipher c;
	const struct {
		const char *name, *value;
	} members[] = {
		{ "cipher-alg", c.alg }, { "cipher-mode", c.mode }, { "ivgen-alg", c.ivgen },
		{ "ivgen-hash-alg", c.ivgen_hash }, { "hash-alg", c.hash },
	};

	image_describe_cipher(im, &c);
	member_begin(o, "encrypt", "{}");
	member_text(o, "format",
		    im->encryption == CIPHER_QCOW2_LUKS || im->encryption == CIPHER_LUKS ? "luks"
											: "aes");
	for (size_t i = 0; i < ARRAY_SIZE(members); i++)
		if (*members[i].value)
			member_text(o, members[i].name, members[i].value);
	if (im->luks)
		print_luks(o, im);
	member_end(o, "{}");
}

/* ---- all of it ---- */

static int
print_names(struct member_out *o, const struct image *im)
{
	CLEANUP(cleanup_free) char *full = im->backing ? image_path_beside(im, im->backing) : NULL;

	if (im->backing)
		member_text(o, "backing-filename", im->backing);
	if (full)
		member_text(o, "full-backing-filename", full);
	else if (im->backing)
		return -1;
	if (im->backing_format)
		member_text(o, "backing-filename-format", im->backing_format);
	if (im->data_file)
		member_text(o, "data-file", im->data ? im->data->filename : im->data_file);
	if (im->header)
		member_text(o, "header", im->header->filename);
	return 0;
}

int
facts_print(struct member_out *o, const struct image *im)
{
	member_text(o, "filename", im->filename);
	member_text(o, "format", image_format_name(im->format));
	if (im->version)
		member_number(o, "version", im->version);
	member_number(o, "virtual-size", im->virtual_size);
	member_number(o, "file-size", im->file_size);
	member_number(o, "actual-size", im->disk_size);
	if (im->cluster_size)
		member_number(o, "cluster-size", im->cluster_size);
	member_bool(o, "encrypted", im->encryption != CIPHER_NONE);
	if (im->encryption != CIPHER_NONE)
		member_text(o, "encryption", cipher_kind_name(im->encryption));
	if (*im->cipher)
		member_text(o, "cipher", im->cipher);
	if (im->encryption != CIPHER_NONE)
		print_encrypt(o, im);
	if (print_names(o, im) < 0 || (im->format == IMAGE_QCOW2 && print_qcow2(o, im) < 0))
		return -1;
	member_bool(o, "dirty-flag", im->dirty);
	member_bool(o, "corrupt", im->corrupt);
	return 0;
}
