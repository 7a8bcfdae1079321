/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/qmp.h"

#include <getopt.h>
#include <json-c/json.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio/timer.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "cli/qmp_client.h"
#include "qmp/json.h"
#include "qmp/keyval.h"
#include "schema/arguments.h"
#include "schema/encode.h"
#include "schema/meta.h"

enum { EXIT_USAGE = 2 };

static const char help[] =
	"Usage: quoin qmp [OPTION]... SOCKET COMMAND [KEY=VALUE... | JSON]\n"
	"\n"
	"Send one command to the daemon at SOCKET and print what it returns.\n"
	"\n"
	"Arguments stand one a word: node-name=disk file.filename=/a,b bitmaps.0=x.\n"
	"Keys are paths into the command's arguments; switches are on or off; what is of\n"
	"the type size takes suffixes (1G), what is of another type, as in block_resize, is\n"
	"a number.  Or all of them stand in one word of JSON: '{\"node-name\": ...}'.\n"
	"\n"
	"      --pretty     print the reply over several lines\n"
	"      --events     print events that come before the reply, too\n"
	"      --timeout S  give up after S seconds (default: never)\n"
	"  -h, --help       display this help and exit\n"
	"\n"
	"Exit status: 0, 1 if the daemon answers with an error, 2 for bad usage or if the\n"
	"daemon cannot be talked to.\n";

static int
complain(const char *text)
{
	fprintf(stderr, "quoin: %s\n", text);
	return EXIT_USAGE;
}

/* The words as one text for keyval_parse(): commas in values are doubled. */
static void
join(char **words, int n, struct buf *out)
{
	buf_adds(out, "");
	for (int i = 0; i < n; i++) {
		const char *p = words[i];
		size_t key = strcspn(p, "=");

		if (i > 0)
			buf_addc(out, ',');
		buf_add(out, p, key);
		for (p += key; *p; p++) {
			if (*p == ',')
				buf_addc(out, ',');
			buf_addc(out, *p);
		}
	}
}

/* Words as the arguments' JSON text.  Of a command that this program knows the
 * types say what a number is; for others every value is a string. */
static int
encode_words(const char *command, char **words, int n, struct buf *out,
	     struct error **errp)
{
	CLEANUP(buf_done) struct buf text = { 0 };
	CLEANUP(json_freep) struct json_object *tree = NULL;
	const struct meta *type;
	void *args;

	join(words, n, &text);
	if (text.failed)
		return error_set(errp, "Cannot allocate memory");
	if (arguments_of(command, &type) && type) {
		if (keyval_decode(type, text.data, NULL, &args, errp) < 0)
			return -1;
		encode_value(out, type, args);
		meta_free(type, args);
		return 0;
	}
	if (keyval_parse(text.data, NULL, &tree, errp) < 0)
		return -1;
	json_write(out, tree);
	return 0;
}

static int
make_request(const char *command, char **words, int n, struct buf *out,
	     struct error **errp)
{
	CLEANUP(json_freep) struct json_object *tree = NULL;

	buf_adds(out, "{\"execute\": ");
	encode_string(out, command);
	if (n > 0)
		buf_adds(out, ", \"arguments\": ");
	if (n == 1 && words[0][0] == '{') {
		if (json_parse(words[0], &tree, errp) < 0)
			return -1;
		json_write(out, tree);
	} else if (n > 0 && encode_words(command, words, n, out, errp) < 0) {
		return -1;
	}
	buf_adds(out, "}\n");
	return out->failed ? error_set(errp, "Cannot allocate memory") : 0;
}

static int
print(struct json_object *tree, bool pretty)
{
	CLEANUP(buf_done) struct buf line = { 0 };
	CLEANUP(buf_done) struct buf laid_out = { 0 };

	json_write(&line, tree);
	if (!line.failed && pretty)
		json_pretty(&laid_out, line.data);
	if (line.failed || laid_out.failed)
		return -1;
	puts(pretty ? laid_out.data : line.data);
	return fflush(stdout) == 0 ? 0 : -1;
}

static void
print_event(struct json_object *event)
{
	(void)print(event, false);
}

static int
print_reply(struct json_object *reply, bool pretty)
{
	struct json_object *value, *desc = NULL;

	if (json_object_object_get_ex(reply, "return", &value)) {
		if (print(value, pretty) == 0)
			return EXIT_SUCCESS;
		return complain("Cannot write the reply");
	}
	json_object_object_get_ex(reply, "error", &value);
	json_object_object_get_ex(value, "desc", &desc);
	complain(desc ? json_object_get_string(desc) : "The daemon reports an error");
	return EXIT_FAILURE;
}

struct options {
	bool pretty, events;
	int64_t deadline;
};

static int
talk(const struct options *o, const char *socket, const char *request)
{
	CLEANUP(error_freep) struct error *err = NULL;
	CLEANUP(json_freep) struct json_object *reply = NULL;
	struct qmp_client *c;
	int r;

	if (qmp_client_open(socket, o->deadline, &c, &err) < 0)
		return complain(error_text(err));
	r = qmp_client_ask(c, request, o->events ? print_event : NULL, &reply, &err);
	qmp_client_close(c);
	if (r < 0)
		return complain(error_text(err));
	return print_reply(reply, o->pretty);
}

static bool
parse_seconds(const char *text, int64_t *deadline)
{
	char *end;
	double s = strtod(text, &end);

	if (end == text || *end || !isfinite(s) || s < 0 || s > 1e9)
		return false;
	*deadline = clock_ns() + (int64_t)(s * 1e9);
	return true;
}

int
cli_qmp(int argc, char **argv)
{
	static const struct option options[] = {
		{ "pretty", no_argument, NULL, 'p' },
		{ "events", no_argument, NULL, 'e' },
		{ "timeout", required_argument, NULL, 't' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	CLEANUP(error_freep) struct error *err = NULL;
	CLEANUP(buf_done) struct buf request = { 0 };
	struct options o = { .deadline = INT64_MAX };
	int c;

	while ((c = getopt_long(argc, argv, "+h", options, NULL)) != -1) {
		if (c == 'p') {
			o.pretty = true;
		} else if (c == 'e') {
			o.events = true;
		} else if (c == 'h') {
			fputs(help, stdout);
			return EXIT_SUCCESS;
		} else if (c != 't') {
			return EXIT_USAGE;
		} else if (!parse_seconds(optarg, &o.deadline)) {
			return complain("--timeout takes a number of seconds");
		}
	}
	if (argc - optind < 2)
		return complain("qmp needs SOCKET and COMMAND; see quoin qmp --help");
	argv += optind;
	argc -= optind;
	if (make_request(argv[1], argv + 2, argc - 2, &request, &err) < 0)
		return complain(error_text(err));
	return talk(&o, argv[0], request.data);
}
