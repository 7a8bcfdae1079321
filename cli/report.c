/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/report.h"

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
	struct member_out out;		/* open from report_take() on */
	char **message;
	size_t messages;
	time_t started;
	struct timespec began;		/* CLOCK_MONOTONIC */
	bool failed;			/* something was left out */
};

static void
print_structure(struct member_out *o, const struct signature *sig)
{
	member_begin(o, NULL, "{}");
	member_text(o, "name", sig->name);
	member_number(o, "offset", sig->base * CIPHER_SECTOR);
	member_end(o, "{}");
}

static void
print_evidence(struct member_out *o, const struct judge_report *j)
{
	member_begin(o, "evidence", "{}");
	member_text(o, "verdict", judge_verdict_name(j->verdict));
	member_number(o, "sampled-sectors", j->sampled);
	member_number(o, "noise-sectors", j->noise);
	member_number(o, "odd-sectors", j->odd);
	member_number(o, "clear-sectors", j->clear);
	member_number(o, "zero-sectors", j->zero);
	member_number(o, "text-sectors", j->text);
	member_number(o, "unencrypted-sectors", j->unencrypted);
	member_number(o, "places", j->places);
	member_bool(o, "boot-mark", j->signatures.boot_mark);
	member_begin(o, "structures", "[]");
	for (unsigned i = 0; i < j->signatures.count; i++)
		print_structure(o, &j->signatures.found[i]);
	member_end(o, "[]");
	member_end(o, "{}");
}

static void
print_key(struct member_out *o, const struct keyring_finding *f)
{
	member_begin(o, "key", "{}");
	member_text(o, "state", keyring_state_name(f));
	member_number(o, "tried", f->tried);
	if (*f->origin) {
		member_text(o, "origin", f->origin);
		member_text(o, "form", key_form_name(f->form));
	}
	if (f->slot >= 0)
		member_number(o, "slot", (uint64_t)f->slot);
	if (f->judged)
		print_evidence(o, &f->report);
	member_end(o, "{}");
}

static void
print_mixed(struct member_out *o, const struct mixed *m)
{
	member_begin(o, "mixed", "[]");
	for (size_t i = 0; i < m->n; i++) {
		member_begin(o, NULL, "{}");
		member_number(o, "offset", m->range[i].off);
		member_number(o, "length", m->range[i].len);
		member_text(o, "reading", mixed_reading_name(m->range[i].reading));
		member_end(o, "{}");
	}
	member_end(o, "[]");
}

/* What was found out of an encrypted layer. */
static void
print_findings(struct member_out *o, const struct run_view *v, unsigned layer)
{
	const struct keyring_finding *key = keyring_find(v->o->keys, layer);

	if (key)
		print_key(o, key);
	for (unsigned i = 0; i < v->layers->count; i++) {
		const struct layer *l = &v->layers->layer[i];

		if (l->number == layer && l->mixed)
			print_mixed(o, l->mixed);
		if (l->number == layer && l->suspects)
			member_number(o, "suspect-sectors", l->suspects);
	}
}

static void
print_lost(struct member_out *o, const struct copy *c, const struct lost_range *lost)
{
	member_begin(o, NULL, "{}");
	member_number(o, "offset", lost->off);
	member_number(o, "length", lost->len);
	member_text(o, "filename", copy_blamed(c, lost));
	member_text(o, "reason", lost_why_text(lost->why));
	member_end(o, "{}");
}

static void
print_copy(struct member_out *o, struct copy *c)
{
	member_begin(o, NULL, "{}");
	member_text(o, "target", c->spec.name);
	member_text(o, "format", c->spec.qcow2 ? "qcow2" : "raw");
	if (c->spec.backing)
		member_text(o, "backing-filename", c->spec.backing);
	member_number(o, "layer", c->layer);
	member_number(o, "size", node_size(c->source));
	member_number(o, "data-bytes", c->size.data);
	member_number(o, "resumed-at", c->resumed_at);
	if (*c->digest)
		member_text(o, "sha256", c->digest);
	if (c->verified)
		member_text(o, "verified", c->verified);
	member_number(o, "lost-bytes", lost_bytes(&c->lost));
	member_begin(o, "lost", "[]");
	for (size_t i = 0; i < c->lost.n; i++)
		print_lost(o, c, &c->lost.range[i]);
	member_end(o, "[]");
	member_end(o, "{}");
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

	if (!r)
		return NULL;
	r->out.to = stdout;
	r->started = time(NULL);
	clock_gettime(CLOCK_MONOTONIC, &r->began);
	return r;
}

void
report_free(struct report *r)
{
	if (!r)
		return;
	for (size_t i = 0; i < r->messages; i++)
		free(r->message[i]);
	free(r->message);
	free(r);
}

void
report_say(struct report *r, const char *line)
{
	char **more = realloc(r->message, (r->messages + 1) * sizeof(*more));

	if (more)
		r->message = more;
	if (more && (more[r->messages] = strdup(line)))
		r->messages++;
	else
		r->failed = true;
}

static void
begin(struct report *r)
{
	char text[TIME_TEXT];
	struct tm tm;

	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&r->started, &tm));
	member_begin(&r->out, NULL, "{}");
	member_text(&r->out, "version", PACKAGE_VERSION);
	member_text(&r->out, "started", text);
}

void
report_take(const struct run_view *v, void *report)
{
	struct report *r = report;
	struct member_out *o = &r->out;

	begin(r);
	member_text(o, "source", v->o->source);
	if (v->o->target)
		member_text(o, "target", v->o->target);
	member_begin(o, "layers", "[]");
	for (unsigned i = 0; i < v->chain->count; i++) {
		member_begin(o, NULL, "{}");
		r->failed |= facts_print(o, v->chain->layer[i]) < 0;
		print_findings(o, v, i);
		member_end(o, "{}");
	}
	member_end(o, "[]");
	member_begin(o, "copies", "[]");
	for (unsigned i = 0; i < v->plan->count; i++)
		print_copy(o, &v->plan->copy[i]);
	member_end(o, "[]");
	if (v->error)
		member_text(o, "error", error_text(v->error));
}

int
report_print(struct report *r, int exit_status)
{
	struct member_out *o = &r->out;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (!o->depth)
		begin(r);
	member_begin(o, "messages", "[]");
	for (size_t i = 0; i < r->messages; i++)
		member_text(o, NULL, r->message[i]);
	member_end(o, "[]");
	member_seconds(o, "seconds", (double)(now.tv_sec - r->began.tv_sec) +
				     (double)(now.tv_nsec - r->began.tv_nsec) / 1e9);
	member_text(o, "status", status_name(exit_status));
	member_number(o, "exit-status", (uint64_t)exit_status);
	member_end(o, "{}");
	return r->failed || ferror(stdout) || fflush(stdout) != 0 ? -1 : 0;
}
