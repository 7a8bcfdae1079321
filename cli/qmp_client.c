/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/qmp_client.h"

#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "aio/sock.h"
#include "aio/timer.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "qmp/json.h"

struct qmp_client {
	int fd;
	int64_t deadline;
	struct json_parser *parser;
	char chunk[4096];
	const char *at, *end;	/* of chunk, not yet parsed */
};

static int
wait_for(struct qmp_client *c, short events, struct error **errp)
{
	struct pollfd p = { .fd = c->fd, .events = events };
	int ms = -1, r;

	if (c->deadline != INT64_MAX) {
		int64_t left = (c->deadline - clock_ns() + 999999) / 1000000;

		ms = left < 0 ? 0 : left > 1 << 30 ? 1 << 30 : (int)left;
	}
	r = poll(&p, 1, ms);
	if (r > 0 || (r < 0 && errno == EINTR))
		return 0;
	if (r == 0)
		return error_set(errp, "The daemon did not answer in time");
	error_set_errno(errp, errno, "Cannot wait for the daemon");
	return -1;
}

static int
send_all(struct qmp_client *c, const char *data, size_t len, struct error **errp)
{
	while (len > 0) {
		ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n >= 0) {
			data += n;
			len -= (size_t)n;
		} else if (errno != EAGAIN && errno != EINTR) {
			error_set_errno(errp, errno, "Cannot send to the daemon");
			return -1;
		} else if (wait_for(c, POLLOUT, errp) < 0) {
			return -1;
		}
	}
	return 0;
}

static int
fill(struct qmp_client *c, struct error **errp)
{
	ssize_t n = recv(c->fd, c->chunk, sizeof(c->chunk), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return wait_for(c, POLLIN, errp);
	if (n == 0)
		return error_set(errp, "The daemon closed the connection");
	if (n < 0) {
		error_set_errno(errp, errno, "Cannot receive from the daemon");
		return -1;
	}
	c->at = c->chunk;
	c->end = c->chunk + n;
	return 0;
}

/* The next message, whatever it is. */
static int
receive(struct qmp_client *c, struct json_object **ret, struct error **errp)
{
	int r;

	while ((r = json_parser_next(c->parser, &c->at, c->end, ret, errp)) == 0)
		if (fill(c, errp) < 0)
			return -1;
	if (r < 0)
		error_prepend(errp, "The daemon does not speak QMP: ");
	return r < 0 ? -1 : 0;
}

static bool
has(struct json_object *message, const char *member)
{
	return json_object_is_type(message, json_type_object) &&
	       json_object_object_get_ex(message, member, NULL);
}

int
qmp_client_ask(struct qmp_client *c, const char *request,
	       void (*event)(struct json_object *), struct json_object **ret,
	       struct error **errp)
{
	struct json_object *message;

	if (send_all(c, request, strlen(request), errp) < 0)
		return -1;
	for (;;) {
		if (receive(c, &message, errp) < 0)
			return -1;
		if (!has(message, "event"))
			break;
		if (event)
			event(message);
		json_free(message);
	}
	if (has(message, "return") || has(message, "error")) {
		*ret = message;
		return 0;
	}
	json_free(message);
	return error_set(errp, "The daemon does not speak QMP");
}

static int
negotiate(struct qmp_client *c, struct error **errp)
{
	CLEANUP(json_freep) struct json_object *message = NULL;
	bool greeted;

	if (receive(c, &message, errp) < 0)
		return -1;
	greeted = has(message, "QMP");
	json_freep(&message);
	message = NULL;
	if (!greeted)
		return error_set(errp, "The daemon does not speak QMP");
	if (qmp_client_ask(c, "{\"execute\": \"qmp_capabilities\"}\n", NULL,
			   &message, errp) < 0)
		return -1;
	if (has(message, "error"))
		return error_set(errp, "The daemon refuses the session");
	return 0;
}

int
qmp_client_open(const char *path, int64_t deadline_ns, struct qmp_client **ret,
		struct error **errp)
{
	struct qmp_client *c = calloc(1, sizeof(*c));

	if (!c)
		return error_set(errp, "Cannot allocate memory");
	c->fd = -1;
	c->deadline = deadline_ns;
	c->parser = json_parser_new();
	if (!c->parser) {
		error_set(errp, "Cannot allocate memory");
		goto fail;
	}
	if (sock_connect_unix(path, &c->fd, errp) < 0 || negotiate(c, errp) < 0)
		goto fail;
	*ret = c;
	return 0;

fail:
	qmp_client_close(c);
	return -1;
}

void
qmp_client_close(struct qmp_client *c)
{
	if (!c)
		return;
	json_parser_free(c->parser);
	if (c->fd >= 0)
		close(c->fd);
	free(c);
}
