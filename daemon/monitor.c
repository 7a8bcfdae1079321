/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/monitor.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "aio/sock.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/list.h"
#include "base/log.h"
#include "base/ownfile.h"
#include "daemon/systemd.h"
#include "qmp/server.h"
#include "schema/types.h"

enum { BACKLOG = 64, ADDRESSES_MAX = 8 };

/* A character device: listening sockets, or a stream that is there already. */
struct chardev {
	struct list link;
	char *id;		/* NULL: made by --qmp or systemd */
	bool monitored;
	unsigned flags;		/* enum qmp_stream_flag */
	int listeners[ADDRESSES_MAX];
	int n_listeners;
	int in, out;		/* -1: none yet */
	struct ownfile file;	/* of the socket, where it has one */
};

static struct list chardevs = LIST_INIT(chardevs);

static struct chardev *
chardev_new(const char *id, struct error **errp)
{
	struct chardev *c = calloc(1, sizeof(*c));

	if (!c || (id && !(c->id = strdup(id)))) {
		free(c);
		error_set(errp, "Cannot allocate memory");
		return NULL;
	}
	c->in = c->out = -1;
	list_init(&c->link);
	return c;
}

static void
close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void
chardev_free(struct chardev *c)
{
	list_remove(&c->link);
	for (int i = 0; i < c->n_listeners; i++)
		close_fd(&c->listeners[i]);
	if (c->out != c->in)
		close_fd(&c->out);
	close_fd(&c->in);
	ownfile_remove(&c->file);
	free(c->id);
	free(c);
}

static struct chardev *
chardev_find(const char *id)
{
	struct chardev *c;

	LIST_FOREACH(c, &chardevs, link)
		if (c->id && !strcmp(c->id, id))
			return c;
	return NULL;
}

static int
listen_unix(struct chardev *c, const char *path, bool abstract, unsigned mode,
	    struct error **errp)
{
	CLEANUP(cleanup_free) char *name = NULL;
	size_t n = strlen(path);
	int r;

	name = malloc(n + 2);
	if (!name)
		return error_set(errp, "Cannot allocate memory");
	name[0] = '@';
	memcpy(name + 1, path, n + 1);
	if (sock_listen_unix(abstract ? name : name + 1, mode, BACKLOG, c->listeners, errp) < 0)
		return -1;
	c->n_listeners = 1;
	r = abstract ? 0 : ownfile_note(&c->file, path);
	return r < 0 ? error_set_errno(errp, r, "Cannot find socket %s again", path) : 0;
}

static int
listen_socket(struct chardev *c, const struct ChardevSocketOptions *o, struct error **errp)
{
	int n;

	if (o->path)
		return listen_unix(c, o->path, o->has_abstract && o->abstract, 0600, errp);
	if (o->has_fd) {
		c->listeners[c->n_listeners++] = (int)o->fd;
		return 0;
	}
	n = sock_listen_tcp(o->host, o->port, BACKLOG, c->listeners, ADDRESSES_MAX, errp);
	if (n < 0)
		return -1;
	c->n_listeners = n;
	return 0;
}

static int
connect_socket(struct chardev *c, const struct ChardevSocketOptions *o, struct error **errp)
{
	CLEANUP(cleanup_free) char *name = NULL;
	int r;

	if (o->has_fd) {
		c->in = (int)o->fd;
	} else if (o->path) {
		name = malloc(strlen(o->path) + 2);
		if (!name)
			return error_set(errp, "Cannot allocate memory");
		name[0] = '@';
		strcpy(name + 1, o->path);
		r = sock_connect_unix(o->has_abstract && o->abstract ? name : name + 1, &c->in,
				      errp);
		if (r < 0)
			return -1;
	} else {
		r = sock_connect_tcp(o->host, o->port, INT64_MAX, &c->in, errp);
		if (r < 0)
			return -1;
	}
	c->out = c->in;
	return 0;
}

/* wait=on: the options that follow have to wait for the first client. */
static int
wait_for_client(struct chardev *c, struct error **errp)
{
	struct sock *listener;
	int r;

	log_line(LOG_LEVEL_INFO, "waiting for connection on character device '%s'", c->id);
	r = sock_new(c->listeners[0], &listener);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to wait for a client");
	r = sock_accept(listener, &c->in);
	c->listeners[0] = sock_detach(listener);
	if (r < 0)
		return error_set_errno(errp, r, "Failed to wait for a client");
	c->out = c->in;
	return 0;
}

static int
check_socket(const struct ChardevSocketOptions *o, struct error **errp)
{
	if (!!o->path + !!o->host + !!o->has_fd > 1)
		return error_set(errp,
				 "None or one of 'path', 'fd' and 'host' option required.");
	if (!o->path && !o->has_fd && !o->port)
		return error_set(errp, "chardev: socket: no port given");
	if (o->has_fd && (o->fd < 0 || o->fd > INT32_MAX))
		return error_set(errp, "Parameter 'fd' expects the number of an open socket");
	return 0;
}

static int
open_socket(struct chardev *c, const struct ChardevSocketOptions *o, struct error **errp)
{
	bool server = o->has_server && o->server;

	if (check_socket(o, errp) < 0)
		return -1;
	if (!server)
		return connect_socket(c, o, errp);
	if (listen_socket(c, o, errp) < 0)
		return -1;
	return o->has_wait && !o->wait ? 0 : wait_for_client(c, errp);
}

int
monitor_add_chardev(const struct ChardevOptions *opts, struct error **errp)
{
	struct chardev *c;

	if (chardev_find(opts->id))
		return error_set(errp, "Chardev with id '%s' already exists", opts->id);
	c = chardev_new(opts->id, errp);
	if (!c)
		return -1;
	switch (opts->backend) {
	case CHARDEV_KIND_SOCKET:
		if (open_socket(c, &opts->u.socket, errp) < 0) {
			chardev_free(c);
			return -1;
		}
		break;
	case CHARDEV_KIND_STDIO:
		c->in = STDIN_FILENO;
		c->out = STDOUT_FILENO;
		break;
	default:	/* null: nobody there */
		break;
	}
	list_append(&chardevs, &c->link);
	return 0;
}

int
monitor_add(const struct MonitorOptions *opts, struct error **errp)
{
	struct chardev *c = chardev_find(opts->chardev);

	if (!c)
		return error_set(errp, "chardev \"%s\" not found", opts->chardev);
	if (c->monitored)
		return error_set(errp, "chardev '%s' is already in use", opts->chardev);
	c->monitored = true;
	if (opts->has_pretty && opts->pretty)
		c->flags |= QMP_STREAM_PRETTY;
	return 0;
}

/* Octal digits, as chmod(1) takes them. */
static int
parse_mode(const char *text, unsigned *ret_mode, struct error **errp)
{
	char *end;
	unsigned long v;

	v = strtoul(text, &end, 8);
	if (*text < '0' || *text > '7' || *end || v > 0777)
		return error_set(errp, "Parameter 'mode' expects octal permissions up to 0777");
	*ret_mode = (unsigned)v;
	return 0;
}

int
monitor_add_qmp(const struct QmpSocketOptions *opts, struct error **errp)
{
	struct chardev *c;
	unsigned mode = 0600;

	if (opts->mode && parse_mode(opts->mode, &mode, errp) < 0)
		return -1;
	c = chardev_new(NULL, errp);
	if (!c)
		return -1;
	if (listen_unix(c, opts->path, false, mode, errp) < 0) {
		chardev_free(c);
		return -1;
	}
	c->monitored = true;
	if (opts->has_read_only && opts->read_only)
		c->flags |= QMP_STREAM_READ_ONLY;
	list_append(&chardevs, &c->link);
	return 0;
}

static int
add_passed(const char *name, unsigned flags, struct error **errp)
{
	struct chardev *c;
	int fd;

	while ((fd = systemd_take_socket(name)) >= 0) {
		c = chardev_new(NULL, errp);
		if (!c) {
			close(fd);
			return -1;
		}
		c->listeners[c->n_listeners++] = fd;
		c->monitored = true;
		c->flags = flags;
		list_append(&chardevs, &c->link);
	}
	return 0;
}

int
monitor_add_systemd(struct error **errp)
{
	if (add_passed("qmp", 0, errp) < 0)
		return -1;
	return add_passed("qmp-ro", QMP_STREAM_READ_ONLY, errp);
}

/* The server takes over each fd that it accepted. */
static int
open_one(struct chardev *c, struct error **errp)
{
	for (int i = 0; i < c->n_listeners; i++) {
		if (qmp_server_add_listener(c->listeners[i], c->flags, errp) < 0)
			return -1;
		c->listeners[i] = -1;
	}
	if (c->in < 0)
		return 0;
	if (qmp_server_add_stream(c->in, c->out, c->flags, errp) < 0)
		return -1;
	c->in = c->out = -1;
	return 0;
}

int
monitor_open_all(struct error **errp)
{
	struct chardev *c;

	LIST_FOREACH(c, &chardevs, link)
		if (c->monitored && open_one(c, errp) < 0)
			return -1;
	return 0;
}

void
monitor_close_all(void)
{
	struct chardev *c, *tmp;

	LIST_FOREACH_SAFE(c, tmp, &chardevs, link)
		chardev_free(c);
}
