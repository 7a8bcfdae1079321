/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/facts.h"

#include <json-c/json.h>

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

static void
add_names(struct json_object *o, const struct image *im, bool *failed)
{
	if (im->backing)
		member_text(o, "backing-filename", im->backing, failed);
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
	add_names(o, im, failed);
	if (im->format == IMAGE_QCOW2)
		add_snapshots(o, im, failed);
	member_bool(o, "dirty-flag", im->dirty, failed);
	member_bool(o, "corrupt", im->corrupt, failed);
	return o;
}
