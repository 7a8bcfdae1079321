/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/report.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "block/node.h"
#include "cli/facts.h"
#include "cli/member.h"
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

static struct json_object *
structure_object(struct report *r, const struct signature *sig)
{
	struct json_object *o = json_object_new_object();

	member_text(o, "name", sig->name, &r->failed);
	member_number(o, "offset", sig->base * CIPHER_SECTOR, &r->failed);
	return o;
}

static struct json_object *
evidence_object(struct report *r, const struct judge_report *j)
{
	struct json_object *o = json_object_new_object(), *structures = json_object_new_array();

	member_text(o, "verdict", judge_verdict_name(j->verdict), &r->failed);
	member_number(o, "sampled-sectors", j->sampled, &r->failed);
	member_number(o, "noise-sectors", j->noise, &r->failed);
	member_number(o, "odd-sectors", j->odd, &r->failed);
	member_number(o, "clear-sectors", j->clear, &r->failed);
	member_number(o, "zero-sectors", j->zero, &r->failed);
	member_number(o, "text-sectors", j->text, &r->failed);
	member_number(o, "unencrypted-sectors", j->unencrypted, &r->failed);
	member_number(o, "places", j->places, &r->failed);
	member_bool(o, "boot-mark", j->signatures.boot_mark, &r->failed);
	for (unsigned i = 0; i < j->signatures.count; i++)
		member_append(structures, structure_object(r, &j->signatures.found[i]), &r->failed);
	member_add(o, "structures", structures, &r->failed);
	return o;
}

static struct json_object *
key_object(struct report *r, const struct keyring_finding *f)
{
	struct json_object *o = json_object_new_object();

	member_text(o, "state", keyring_state_name(f), &r->failed);
	member_number(o, "tried", f->tried, &r->failed);
	if (*f->origin) {
		member_text(o, "origin", f->origin, &r->failed);
		member_text(o, "form", key_form_name(f->form), &r->failed);
	}
	if (f->slot >= 0)
		member_number(o, "slot", (uint64_t)f->slot, &r->failed);
	if (f->judged)
		member_add(o, "evidence", evidence_object(r, &f->report), &r->failed);
	return o;
}

static struct json_object *
mixed_array(struct report *r, const struct mixed *m)
{
	struct json_object *array = json_object_new_array();

	for (size_t i = 0; i < m->n; i++) {
		struct json_object *o = json_object_new_object();

		member_number(o, "offset", m->range[i].off, &r->failed);
		member_number(o, "length", m->range[i].len, &r->failed);
		member_text(o, "reading", mixed_reading_name(m->range[i].reading), &r->failed);
		member_append(array, o, &r->failed);
	}
	return array;
}

/* What was found out of an encrypted layer. */
static void
add_findings(struct report *r, struct json_object *o, const struct run_view *v, unsigned layer)
{
	const struct keyring_finding *key = keyring_find(v->o->keys, layer);

	if (key)
		member_add(o, "key", key_object(r, key), &r->failed);
	for (unsigned i = 0; i < v->layers->count; i++) {
		const struct layer *l = &v->layers->layer[i];

		if (l->number == layer && l->mixed)
			member_add(o, "mixed", mixed_array(r, l->mixed), &r->failed);
		if (l->number == layer && l->suspects)
			member_number(o, "suspect-sectors", l->suspects, &r->failed);
	}
}

static struct json_object *
lost_object(struct report *r, const struct copy *c, const struct lost_range *lost)
{
	struct json_object *o = json_object_new_object();

	member_number(o, "offset", lost->off, &r->failed);
	member_number(o, "length", lost->len, &r->failed);
	member_text(o, "filename", copy_blamed(c, lost), &r->failed);
	member_text(o, "reason", lost_why_text(lost->why), &r->failed);
	return o;
}

static struct json_object *
copy_object(struct report *r, struct copy *c)
{
	struct json_object *o = json_object_new_object(), *lost = json_object_new_array();

	member_text(o, "target", c->spec.name, &r->failed);
	member_text(o, "format", c->spec.qcow2 ? "qcow2" : "raw", &r->failed);
	if (c->spec.backing)
		member_text(o, "backing-filename", c->spec.backing, &r->failed);
	member_number(o, "layer", c->layer, &r->failed);
	member_number(o, "size", node_size(c->source), &r->failed);
	member_number(o, "data-bytes", c->size.data, &r->failed);
	member_number(o, "resumed-at", c->resumed_at, &r->failed);
	if (*c->digest)
		member_text(o, "sha256", c->digest, &r->failed);
	if (c->verified)
		member_text(o, "verified", c->verified, &r->failed);
	member_number(o, "lost-bytes", lost_bytes(&c->lost), &r->failed);
	for (size_t i = 0; i < c->lost.n; i++)
		member_append(lost, lost_object(r, c, &c->lost.range[i]), &r->failed);
	member_add(o, "lost", lost, &r->failed);
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
	member_text(r->top, "version", PACKAGE_VERSION, &r->failed);
	member_text(r->top, "started", text, &r->failed);
	member_add(r->top, "messages", r->messages, &r->failed);
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
	member_append(r->messages, member_new_text(line, &r->failed), &r->failed);
}

void
report_take(const struct run_view *v, void *report)
{
	struct json_object *layers = json_object_new_array(), *copies = json_object_new_array();
	struct report *r = report;

	member_text(r->top, "source", v->o->source, &r->failed);
	if (v->o->target)
		member_text(r->top, "target", v->o->target, &r->failed);
	for (unsigned i = 0; i < v->chain->count; i++) {
		struct json_object *o = facts_new(v->chain->layer[i], &r->failed);

		add_findings(r, o, v, i);
		member_append(layers, o, &r->failed);
	}
	for (unsigned i = 0; i < v->plan->count; i++)
		member_append(copies, copy_object(r, &v->plan->copy[i]), &r->failed);
	member_add(r->top, "layers", layers, &r->failed);
	member_add(r->top, "copies", copies, &r->failed);
	if (v->error)
		member_text(r->top, "error", error_text(v->error), &r->failed);
}

int
report_print(struct report *r, int exit_status)
{
	struct timespec now;
	const char *text;

	clock_gettime(CLOCK_MONOTONIC, &now);
	member_add(r->top, "seconds",
	    json_object_new_double((double)(now.tv_sec - r->began.tv_sec) +
				   (double)(now.tv_nsec - r->began.tv_nsec) / 1e9), &r->failed);
	member_text(r->top, "status", status_name(exit_status), &r->failed);
	member_number(r->top, "exit-status", (uint64_t)exit_status, &r->failed);
	text = json_object_to_json_string_ext(r->top, JSON_C_TO_STRING_PRETTY |
							      JSON_C_TO_STRING_NOSLASHESCAPE);
	if (r->failed || !text)
		return -1;
	return puts(text) < 0 || fflush(stdout) != 0 ? -1 : 0;
}
