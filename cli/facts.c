/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/facts.h"

#include <json-c/json.h>

#include "base/cleanup.h"
#include "cli/member.h"
#include "rescue/image.h"

enum { NS = 1000000000 };

static struct json_object *
snapshot_object(const struct image_snapshot *s, bool *failed)
{
	struct json_object *o = json_object_new_object();

	member_text(o, "id", s->id, failed);
	member_text(o, "name", s->name, failed);
	member_number(o, "virtual-size", s->disk_size, failed);
	member_number(o, "vm-state-size", s->vm_state_size, failed);
	member_number(o, "date-sec", s->date_sec, failed);
	member_number(o, "date-nsec", s->date_nsec, failed);
	member_number(o, "vm-clock-sec", s->vm_clock_nsec / NS, failed);
	member_number(o, "vm-clock-nsec", s->vm_clock_nsec % NS, failed);
	if (s->icount != UINT64_MAX)
		member_number(o, "icount", s->icount, failed);
	return o;
}

static void
add_snapshots(struct json_object *o, const struct image *im, bool *failed)
{
	struct json_object *list = json_object_new_array();

	for (unsigned i = 0; i < im->snapshots; i++)
		member_append(list, snapshot_object(&im->snapshot[i], failed), failed);
	member_add(o, "snapshots", list, failed);
	if (im->shown)
		member_number(o, "snapshot", (uint64_t)(im->shown - im->snapshot), failed);
}

static struct json_object *
bitmap_object(const struct image_bitmap *b, bool *failed)
{
	struct json_object *o = json_object_new_object(), *flags = json_object_new_array();

	if (b->in_use)
		member_append(flags, member_new_text("in-use", failed), failed);
	if (b->is_auto)
		member_append(flags, member_new_text("auto", failed), failed);
	member_add(o, "flags", flags, failed);
	member_text(o, "name", b->name, failed);
	member_number(o, "granularity", b->granularity, failed);
	return o;
}

static void
add_qcow2(struct json_object *o, const struct image *im, bool *failed)
{
	struct json_object *bitmaps = json_object_new_array();

	member_text(o, "compat", im->version < 3 ? "0.10" : "1.1", failed);
	member_text(o, "compression-type", im->zstd ? "zstd" : "zlib", failed);
	member_number(o, "refcount-bits", im->refcount_bits, failed);
	member_bool(o, "lazy-refcounts", im->lazy_refcounts, failed);
	member_bool(o, "extended-l2", im->subclusters, failed);
	if (im->external_data)
		member_bool(o, "data-file-raw", im->data_raw, failed);
	add_snapshots(o, im, failed);
	for (unsigned i = 0; i < im->bitmaps; i++)
		member_append(bitmaps, bitmap_object(&im->bitmap[i], failed), failed);
	member_add(o, "bitmaps", bitmaps, failed);
}

/* ---- encryption ---- */

static struct json_object *
slot_object(const struct image_luks_slot *s, bool *failed)
{
	struct json_object *o = json_object_new_object();

	member_bool(o, "active", s->active, failed);
	if (s->active) {
		member_number(o, "iters", s->iterations, failed);
		member_number(o, "stripes", s->stripes, failed);
	}
	member_number(o, "key-offset", s->offset, failed);
	return o;
}

static void
add_luks(struct json_object *o, const struct image *im, bool *failed)
{
	struct json_object *slots = json_object_new_array();

	member_text(o, "uuid", im->luks->uuid, failed);
	member_number(o, "payload-offset", im->luks->payload, failed);
	member_number(o, "master-key-iters", im->luks->iterations, failed);
	member_bool(o, "detached-header", im->header, failed);
	for (unsigned i = 0; i < IMAGE_LUKS_SLOTS; i++)
		member_append(slots, slot_object(&im->luks->slot[i], failed), failed);
	member_add(o, "slots", slots, failed);
}

static struct json_object *
encrypt_object(const struct image *im, bool *failed)
{
	struct json_object *o = json_object_new_object();
	struct image_cipher c;
	const struct {
		const char *name, *value;
	} members[] = {
		{ "cipher-alg", c.alg }, { "cipher-mode", c.mode }, { "ivgen-alg", c.ivgen },
		{ "ivgen-hash-alg", c.ivgen_hash }, { "hash-alg", c.hash },
	};

	image_describe_cipher(im, &c);
	member_text(o, "format",
		    im->encryption == CIPHER_QCOW2_LUKS || im->encryption == CIPHER_LUKS ? "luks"
											: "aes",
		    failed);
	for (size_t i = 0; i < ARRAY_SIZE(members); i++)
		if (*members[i].value)
			member_text(o, members[i].name, members[i].value, failed);
	if (im->luks)
		add_luks(o, im, failed);
	return o;
}

/* ---- all of it ---- */

static void
add_names(struct json_object *o, const struct image *im, bool *failed)
{
	CLEANUP(cleanup_free) char *full = im->backing ? image_path_beside(im, im->backing) : NULL;

	if (im->backing)
		member_text(o, "backing-filename", im->backing, failed);
	if (full)
		member_text(o, "full-backing-filename", full, failed);
	else if (im->backing)
		*failed = true;
	if (im->backing_format)
		member_text(o, "backing-filename-format", im->backing_format, failed);
	if (im->data_file)
		member_text(o, "data-file", im->data ? im->data->filename : im->data_file, failed);
	if (im->header)
		member_text(o, "header", im->header->filename, failed);
}

struct json_object *
facts_new(const struct image *im, bool *failed)
{
	struct json_object *o = json_object_new_object();

	member_text(o, "filename", im->filename, failed);
	member_text(o, "format", image_format_name(im->format), failed);
	if (im->version)
		member_number(o, "version", im->version, failed);
	member_number(o, "virtual-size", im->virtual_size, failed);
	member_number(o, "file-size", im->file_size, failed);
	member_number(o, "actual-size", im->disk_size, failed);
	if (im->cluster_size)
		member_number(o, "cluster-size", im->cluster_size, failed);
	member_bool(o, "encrypted", im->encryption != CIPHER_NONE, failed);
	if (im->encryption != CIPHER_NONE)
		member_text(o, "encryption", cipher_kind_name(im->encryption), failed);
	if (*im->cipher)
		member_text(o, "cipher", im->cipher, failed);
	if (im->encryption != CIPHER_NONE)
		member_add(o, "encrypt", encrypt_object(im, failed), failed);
	add_names(o, im, failed);
	if (im->format == IMAGE_QCOW2)
		add_qcow2(o, im, failed);
	member_bool(o, "dirty-flag", im->dirty, failed);
	member_bool(o, "corrupt", im->corrupt, failed);
	return o;
}
