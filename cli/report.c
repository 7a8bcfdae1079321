/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/report.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "block/node.h"
#include "rescue/cipher.h"
#include "rescue/image.h"
#include "rescue/keyring.h"
#include "rescue/layer.h"
#include "rescue/mixed.h"
#include "rescue/plan.h"
#include "rescue/run.h"

enum { TIME_TEXT = 32 };

struct report {
	struct json_object *top, *messages;	/* messages is within top */
	struct timespec began;			/* CLOCK_MONOTONIC */
	bool failed;				/* something was left out */
};

/* ---- members ---- */

static void
add(struct report *r, struct json_object *to, const char *name, struct json_object *value)
{
	if (json_object_object_add(to, name, value) < 0)
		r->failed = true;
}

/* Bytes of one UTF-8 sequence at s; 0: it is none. */
static size_t
utf8_length(const unsigned char *s)
{
	size_t n = *s < 0x80 ? 1 : *s >= 0xc2 && *s < 0xe0 ? 2 : *s >= 0xe0 && *s < 0xf0 ? 3
		 : *s >= 0xf0 && *s < 0xf5 ? 4 : 0;

	for (size_t i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	return n;
}

/* File names are bytes, JSON is UTF-8: what is none becomes a question mark. */
static struct json_object *
text_new(struct report *r, const char *text)
{
	CLEANUP(cleanup_free) char *copy = strdup(text);
	struct json_object *o;

	for (char *s = copy; s && *s;) {
		size_t n = utf8_length((unsigned char *)s);

		if (!n)
			*s = '?';
		s += n ? n : 1;
	}
	o = copy ? json_object_new_string(copy) : NULL;
	r->failed |= !o;
	return o;
}

static void
add_text(struct report *r, struct json_object *to, const char *name, const char *text)
{
	add(r, to, name, text_new(r, text));
}

static void
add_number(struct report *r, struct json_object *to, const char *name, uint64_t n)
{
	add(r, to, name, json_object_new_uint64(n));
}

static void
append(struct report *r, struct json_object *to, struct json_object *value)
{
	if (!value || json_object_array_add(to, value) < 0)
		r->failed = true;
}

/* ---- the parts ---- */

static struct json_object *
structure_object(struct report *r, const struct signature *sig)
{
	struct json_object *o = json_object_new_object();

	add_text(r, o, "name", sig->name);
	add_number(r, o, "offset", sig->base * CIPHER_SECTOR);
	return o;
}

static struct json_object *
evidence_object(struct report *r, const struct judge_report *j)
{
	struct json_object *o = json_object_new_object(), *structures = json_object_new_array();

	add_text(r, o, "verdict", judge_verdict_name(j->verdict));
	add_number(r, o, "sampled-sectors", j->sampled);
	add_number(r, o, "noise-sectors", j->noise);
	add_number(r, o, "odd-sectors", j->odd);
	add_number(r, o, "clear-sectors", j->clear);
	add_number(r, o, "zero-sectors", j->zero);
	add_number(r, o, "text-sectors", j->text);
	add_number(r, o, "unencrypted-sectors", j->unencrypted);
	add(r, o, "boot-mark", json_object_new_boolean(j->signatures.boot_mark));
	for (unsigned i = 0; i < j->signatures.count; i++)
		append(r, structures, structure_object(r, &j->signatures.found[i]));
	add(r, o, "structures", structures);
	return o;
}

static struct json_object *
key_object(struct report *r, const struct keyring_finding *f)
{
	struct json_object *o = json_object_new_object();

	add_text(r, o, "state", keyring_state_name(f));
	add_number(r, o, "tried", f->tried);
	if (*f->origin) {
		add_text(r, o, "origin", f->origin);
		add_text(r, o, "form", key_form_name(f->form));
	}
	if (f->slot >= 0)
		add_number(r, o, "slot", (uint64_t)f->slot);
	if (f->judged)
		add(r, o, "evidence", evidence_object(r, &f->report));
	return o;
}

static struct json_object *
mixed_array(struct report *r, const struct mixed *m)
{
	struct json_object *array = json_object_new_array();

	for (size_t i = 0; i < m->n; i++) {
		struct json_object *o = json_object_new_object();

		add_number(r, o, "offset", m->range[i].off);
		add_number(r, o, "length", m->range[i].len);
		add_text(r, o, "reading", mixed_reading_name(m->range[i].reading));
		append(r, array, o);
	}
	return array;
}

/* What was found out of an encrypted layer. */
static void
add_findings(struct report *r, struct json_object *o, const struct run_view *v, unsigned layer)
{
	const struct keyring_finding *key = keyring_find(v->o->keys, layer);

	if (key)
		add(r, o, "key", key_object(r, key));
	for (unsigned i = 0; i < v->layers->count; i++) {
		const struct layer *l = &v->layers->layer[i];

		if (l->number == layer && l->mixed)
			add(r, o, "mixed", mixed_array(r, l->mixed));
		if (l->number == layer && l->suspects)
			add_number(r, o, "suspect-sectors", l->suspects);
	}
}

static struct json_object *
layer_object(struct report *r, const struct image *im)
{
	struct json_object *o = json_object_new_object();

	add_text(r, o, "filename", im->filename);
	add_text(r, o, "format", image_format_name(im->format));
	add_number(r, o, "virtual-size", im->virtual_size);
	add_number(r, o, "file-size", im->file_size);
	add_number(r, o, "actual-size", im->disk_size);
	if (im->cluster_size)
		add_number(r, o, "cluster-size", im->cluster_size);
	add(r, o, "encrypted", json_object_new_boolean(im->encryption != CIPHER_NONE));
	if (im->encryption != CIPHER_NONE)
		add_text(r, o, "encryption", cipher_kind_name(im->encryption));
	if (*im->cipher)
		add_text(r, o, "cipher", im->cipher);
	if (im->backing)
		add_text(r, o, "backing-filename", im->backing);
	if (im->data)
		add_text(r, o, "data-file", im->data->filename);
	return o;
}

static struct json_object *
lost_object(struct report *r, const struct copy *c, const struct lost_range *lost)
{
	struct json_object *o = json_object_new_object();

	add_number(r, o, "offset", lost->off);
	add_number(r, o, "length", lost->len);
	add_text(r, o, "filename", copy_blamed(c, lost));
	add_text(r, o, "reason", lost_why_text(lost->why));
	return o;
}

static struct json_object *
copy_object(struct report *r, struct copy *c)
{
	struct json_object *o = json_object_new_object(), *lost = json_object_new_array();

	add_text(r, o, "target", c->spec.name);
	add_text(r, o, "format", c->spec.qcow2 ? "qcow2" : "raw");
	if (c->spec.backing)
		add_text(r, o, "backing-filename", c->spec.backing);
	add_number(r, o, "layer", c->layer);
	add_number(r, o, "size", node_size(c->source));
	add_number(r, o, "data-bytes", c->size.data);
	add_number(r, o, "resumed-at", c->resumed_at);
	if (*c->digest)
		add_text(r, o, "sha256", c->digest);
	if (c->verified)
		add_text(r, o, "verified", c->verified);
	add_number(r, o, "lost-bytes", lost_bytes(&c->lost));
	for (size_t i = 0; i < c->lost.n; i++)
		append(r, lost, lost_object(r, c, &c->lost.range[i]));
	add(r, o, "lost", lost);
	return o;
}

static const char *
status_name(int status)
{
	switch (status) {
	case RUN_OK:
		return "complete";
	case RUN_INCOMPLETE:
		return "incomplete";
	case RUN_WRONG_KEY:
		return "wrong-key";
	case RUN_NOT_JUDGED:
		return "not-judged";
	default:
		return status > RUN_INTERRUPTED ? "interrupted" : "failed";
	}
}

/* ---- */

struct report *
report_new(void)
{
	struct report *r = calloc(1, sizeof(*r));
	char text[TIME_TEXT];
	time_t now = time(NULL);
	struct tm tm;

	if (!r)
		return NULL;
	r->top = json_object_new_object();
	r->messages = json_object_new_array();
	if (!r->top || !r->messages) {
		report_free(r);
		return NULL;
	}
	clock_gettime(CLOCK_MONOTONIC, &r->began);
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
	add_text(r, r->top, "version", PACKAGE_VERSION);
	add_text(r, r->top, "started", text);
	add(r, r->top, "messages", r->messages);
	return r;
}

void
report_free(struct report *r)
{
	if (!r)
		return;
	json_object_put(r->top);
	free(r);
}

void
report_say(struct report *r, const char *line)
{
	append(r, r->messages, text_new(r, line));
}

void
report_take(const struct run_view *v, void *report)
{
	struct json_object *layers = json_object_new_array(), *copies = json_object_new_array();
	struct report *r = report;

	add_text(r, r->top, "source", v->o->source);
	if (v->o->target)
		add_text(r, r->top, "target", v->o->target);
	for (unsigned i = 0; i < v->chain->count; i++) {
		struct json_object *o = layer_object(r, v->chain->layer[i]);

		add_findings(r, o, v, i);
		append(r, layers, o);
	}
	for (unsigned i = 0; i < v->plan->count; i++)
		append(r, copies, copy_object(r, &v->plan->copy[i]));
	add(r, r->top, "layers", layers);
	add(r, r->top, "copies", copies);
	if (v->error)
		add_text(r, r->top, "error", error_text(v->error));
}

int
report_print(struct report *r, int exit_status)
{
	struct timespec now;
	const char *text;

	clock_gettime(CLOCK_MONOTONIC, &now);
	add(r, r->top, "seconds",
	    json_object_new_double((double)(now.tv_sec - r->began.tv_sec) +
				   (double)(now.tv_nsec - r->began.tv_nsec) / 1e9));
	add_text(r, r->top, "status", status_name(exit_status));
	add_number(r, r->top, "exit-status", (uint64_t)exit_status);
	text = json_object_to_json_string_ext(r->top, JSON_C_TO_STRING_PRETTY |
							      JSON_C_TO_STRING_NOSLASHESCAPE);
	if (r->failed || !text)
		return -1;
	return puts(text) < 0 || fflush(stdout) != 0 ? -1 : 0;
}
