/* SPDX-License-Identifier: Apache-2.0 */
/* One connection, from the first command to the last.
 *
 *	idle --a command--> dialling --ok--> up --lost--> dialling ...
 *	  ^                    |                  |
 *	  '---- too late ------'------- no reconnect-delay: commands fail
 *
 * The runner is the coroutine that does all of this; there is none while the link
 * is idle.  Commands that come meanwhile wait; they fail together when the runner
 * gives up. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "aio/co.h"
#include "aio/sock.h"
#include "aio/timer.h"
#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/nbd/lib.h"
#include "block/nbd/nbd.h"

enum {
	/* A command that finds no connection waits so long for one at least. */
	GRACE_NS = 1000 * 1000 * 1000,
	/* Between attempts, growing. */
	RETRY_MIN_NS = 20 * 1000 * 1000,
	RETRY_MAX_NS = 1000 * 1000 * 1000,
};

void
nbd_link_init(struct nbd_link *l, struct nbd_client *c, struct loop *loop)
{
	*l = (struct nbd_link){ .client = c, .loop = loop, .lost_at = INT64_MIN / 2 };
	list_init(&l->waiting);
	list_init(&l->asked);
}

/* ---- commands ---- */

static void
command_done(struct nbd_client_command *k, int result)
{
	struct co *waiter = k->waiter;

	bitmap_free(STEAL(k->came));
	k->result = result;
	atomic_store(&k->done, true);
	co_wake(waiter);
}

static struct nbd_client_command *
take_waiting(struct nbd_link *l)
{
	struct nbd_client_command *k = LIST_FIRST(&l->waiting, struct nbd_client_command, in_link);

	if (k)
		list_remove(&k->in_link);
	return k;
}

static void
fail_waiting(struct nbd_link *l, int err)
{
	struct nbd_client_command *k;

	while ((k = take_waiting(l)))
		command_done(k, err);
}

/* libnbd's callback: the command has ended, with an errno of the server's or, where
 * the connection died first, with one that no server can send: it will be asked
 * again. */
static int
on_completed(void *command, int *error)
{
	struct nbd_client_command *k = command;

	if (*error != ENOTCONN) {
		bool whole = k->op != NBD_CLIENT_READ || k->covered == k->len;

		list_remove(&k->in_link);
		command_done(k, *error || whole ? -*error : -EIO);
	}
	return 1;
}

/* Note what came of a read.  -EPROTO: some of it had come before.  Servers answer in
 * order, as a rule; only from the first piece on that is out of it each byte has a bit. */
static int
note_chunk(struct nbd_client_command *k, uint64_t at, uint64_t len)
{
	int r;

	if (!range_within(at, len, k->len))
		return -EPROTO;
	if (!k->came && at != k->covered) {
		r = bitmap_new(k->len, 1, &k->came);
		if (r < 0)
			return r;
		if (k->covered)
			bitmap_set(k->came, 0, k->covered);
	}
	if (k->came) {
		if (bitmap_any(k->came, at, len))
			return -EPROTO;
		bitmap_set(k->came, at, len);
	}
	k->covered += len;
	return 0;
}

/* A piece of what is read came, of data or a hole.  libnbd has seen to it that it lies
 * within; that no byte comes twice, and none is left out, is for us to see. */
static int
on_chunk(void *command, const void *buf, size_t len, uint64_t offset, unsigned status, int *error)
{
	struct nbd_client_command *k = command;
	int r = status == LIBNBD_READ_ERROR ? 0 : note_chunk(k, offset - k->off, len);

	(void)buf;
	if (r < 0)
		*error = -r;
	return r < 0 ? -1 : 0;
}

static int
on_extents(void *command, const char *context, uint64_t offset, uint32_t *entries, size_t count,
	   int *error)
{
	struct nbd_client_command *k = command;

	(void)error;
	if (offset == k->off && count >= 2 && !strcmp(context, k->link->client->context)) {
		k->extent_len = entries[0];
		k->extent_flags = entries[1];
	}
	return 0;
}

static int64_t
ask(struct nbd_handle *h, struct nbd_client_command *k)
{
	nbd_completion_callback done = { .callback = on_completed, .user_data = k };
	nbd_extent_callback extents = { .callback = on_extents, .user_data = k };
	nbd_chunk_callback chunks = { .callback = on_chunk, .user_data = k };

	switch (k->op) {
	case NBD_CLIENT_READ:
		k->covered = 0;
		bitmap_free(STEAL(k->came));
		return lib.nbd_aio_pread_structured(h, k->buf, k->len, k->off, chunks, done,
						    k->flags);
	case NBD_CLIENT_WRITE:
		return lib.nbd_aio_pwrite(h, k->buf, k->len, k->off, done, k->flags);
	case NBD_CLIENT_ZERO:
		return lib.nbd_aio_zero(h, k->len, k->off, done, k->flags);
	case NBD_CLIENT_TRIM:
		return lib.nbd_aio_trim(h, k->len, k->off, done, k->flags);
	case NBD_CLIENT_FLUSH:
		return lib.nbd_aio_flush(h, done, k->flags);
	case NBD_CLIENT_STATUS:
		k->extent_len = 0;
		return lib.nbd_aio_block_status(h, k->len, k->off, extents, done, k->flags);
	}
	abort();
}

static bool
is_lost(const struct nbd_link *l)
{
	return lib.nbd_aio_is_dead(l->line.handle) || lib.nbd_aio_is_closed(l->line.handle);
}

static void
write_rest(void *link)
{
	struct nbd_link *l = link;

	while (l->up && lib.nbd_aio_get_direction(l->line.handle) & LIBNBD_AIO_DIRECTION_WRITE) {
		if (sock_wait(l->sock, SOCK_WRITE, INT64_MAX) < 0 || !l->up)
			break;
		(void)lib.nbd_aio_notify_write(l->line.handle);
	}
	l->writing = false;
	co_wake(l->runner);
}

/* After each call on the handle: what it could not send at once follows. */
static void
see_to_writing(struct nbd_link *l)
{
	if (!(lib.nbd_aio_get_direction(l->line.handle) & LIBNBD_AIO_DIRECTION_WRITE) || l->writing)
		return;
	l->writing = true;
	if (co_start(write_rest, l) < 0) {
		l->writing = false;
		sock_shutdown(l->sock, SHUT_RDWR);
	}
}

/* On a link that is up. */
static void
submit(struct nbd_link *l, struct nbd_client_command *k)
{
	if (list_empty(&l->asked))
		l->heard_at = clock_ns();	/* until now it had nothing to say */
	list_append(&l->asked, &k->in_link);
	if (ask(l->line.handle, k) >= 0) {
		see_to_writing(l);
	} else if (!is_lost(l)) {
		int err = lib.nbd_get_errno();

		list_remove(&k->in_link);
		command_done(k, err ? -err : -EIO);
	}
	/* The runner waits for the socket, and learns of the end there. */
	if (is_lost(l))
		sock_shutdown(l->sock, SHUT_RDWR);
}

/* ---- the runner ---- */

static bool
is_same_export(const struct nbd_client_export *a, const struct nbd_client_export *b)
{
	return a->size == b->size && a->min_block == b->min_block &&
	       a->max_block == b->max_block && a->read_only == b->read_only &&
	       a->flush >= b->flush && a->fua >= b->fua && a->trim >= b->trim &&
	       a->zero >= b->zero && a->fast_zero >= b->fast_zero && a->status >= b->status;
}

/* What was learnt at open must be true of every connection, and that a flush on one
 * covers the others of each that is one of many. */
static int
dial(struct nbd_link *l)
{
	struct nbd_client_export export;
	int64_t late = clock_ns() + NBD_DIAL_NS;
	int r = nbd_dial(l->client, late < l->give_up_at ? late : l->give_up_at, &l->line, &export,
			 NULL);

	if (r < 0)
		return r;
	if (is_same_export(&export, &l->client->export) && (export.multi || l->client->n_links == 1))
		return 0;
	nbd_dial_undo(&l->line);
	return -ESTALE;
}

/* Connect, again and again until it is too late. */
static int
connect_in_time(struct nbd_link *l)
{
	int64_t pause = RETRY_MIN_NS;

	for (;;) {
		int r = dial(l);

		if (!r || l->closing)
			return r;
		if (l != l->client->links) {
			/* More than one connection was an offer, no need. */
			atomic_store(&l->client->single, true);
			return r;
		}
		if (clock_ns() + pause > l->give_up_at)
			return r;
		r = co_sleep(pause);
		if (r < 0)
			return r;
		pause = pause < RETRY_MAX_NS / 2 ? 2 * pause : RETRY_MAX_NS;
	}
}

/* Until the connection is lost, or the link is closed. */
static void
serve(struct nbd_link *l)
{
	struct nbd_client_command *k;

	l->up = true;
	while (!is_lost(l) && (k = take_waiting(l)))
		submit(l, k);
	while (!is_lost(l) && sock_wait(l->sock, SOCK_READ, INT64_MAX) == 0) {
		l->heard_at = clock_ns();
		(void)lib.nbd_aio_notify_read(l->line.handle);
		see_to_writing(l);
		/* Those whose answers came go on before the next ones are looked at. */
		co_yield();
	}
	l->up = false;
}

/* Close the connection, in whatever state.  Commands without an answer wait again. */
static void
hang_up(struct nbd_link *l)
{
	bool cancelled = co_cancelled();

	if (cancelled)
		co_uncancel();
	if (!is_lost(l) && lib.nbd_aio_disconnect(l->line.handle, 0) == 0)
		(void)lib.nbd_aio_notify_write(l->line.handle);
	sock_shutdown(l->sock, SHUT_RDWR);
	while (l->writing)
		co_park();
	sock_detach(STEAL(l->sock));
	nbd_dial_undo(&l->line);
	list_splice(&l->waiting, &l->asked);
	if (cancelled)
		co_cancel(co_self());
}

static int
watch(struct nbd_link *l)
{
	int r = 0;

	if (l->sock)
		return 0;
	if (l->line.tunnel)
		r = nbd_tunnel_run(l->line.tunnel);
	if (r >= 0)
		r = sock_new(l->line.fd, &l->sock);
	if (r < 0)
		nbd_dial_undo(&l->line);
	return r;
}

/* What waits here goes the way that there is. */
static void
move_waiting(struct nbd_link *l, struct nbd_link *to)
{
	struct nbd_client_command *k;

	while ((k = take_waiting(l)))
		nbd_link_post(to, k);
}

static void
run(void *link)
{
	struct nbd_link *l = link, *first = l->client->links;
	int r = 0;

	l->runner = co_self();
	while (!l->closing && !l->giving_up) {
		if (!l->line.handle)
			r = connect_in_time(l);
		if (!r)
			r = watch(l);
		if (r < 0)
			break;
		serve(l);
		hang_up(l);
		l->lost_at = clock_ns();
		l->give_up_at = l->lost_at + l->client->reconnect_ns;
		if (!l->client->reconnect_ns)
			break;
	}
	l->runner = NULL;
	if (l != first && !l->giving_up && atomic_load(&l->client->single))
		move_waiting(l, first);
	fail_waiting(l, l->giving_up ? -ECANCELED : -EIO);
	l->giving_up = false;
	if (l->closer)
		co_wake(l->closer);
}

static void
start_runner(struct nbd_link *l)
{
	int64_t soon = clock_ns() + GRACE_NS, late = l->lost_at + l->client->reconnect_ns;

	l->give_up_at = soon > late ? soon : late;
	if (co_start(run, l) < 0)
		fail_waiting(l, -ENOMEM);
}

/* ---- from outside ---- */

static void
on_posted(struct loop_task *t)
{
	struct nbd_client_command *k = CONTAINER_OF(t, struct nbd_client_command, task);
	struct nbd_link *l = k->link;

	if (l->up) {
		submit(l, k);
		return;
	}
	if (!l->runner)
		l->heard_at = clock_ns();
	list_append(&l->waiting, &k->in_link);
	if (!l->runner)
		start_runner(l);
}

void
nbd_link_post(struct nbd_link *l, struct nbd_client_command *k)
{
	k->link = l;
	k->task.fn = on_posted;
	if (l->loop == loop_self())
		on_posted(&k->task);
	else
		loop_post(l->loop, &k->task);
}

struct adoption {
	struct nbd_link *link;
	struct nbd_line line;
	int result;
};

static void
adopt(void *arg)
{
	struct adoption *a = arg;
	struct nbd_link *l = a->link;

	l->line = a->line;
	a->result = watch(l);
	if (!a->result && co_start(run, l) < 0) {
		sock_detach(STEAL(l->sock));
		nbd_dial_undo(&l->line);
		a->result = -ENOMEM;
	}
}

int
nbd_link_adopt(struct nbd_link *l, const struct nbd_line *line)
{
	struct adoption a = { .link = l, .line = *line };

	if (co_call(l->loop, adopt, &a) < 0) {
		nbd_dial_undo(&a.line);
		return -ENOMEM;
	}
	return a.result;
}

/* Where there is no memory for a stack there, it is tried until there is. */
static void
call(struct nbd_link *l, void (*fn)(void *), void *arg)
{
	while (co_call(l->loop, fn, arg) < 0)
		(void)co_sleep(RETRY_MIN_NS);
}

struct giving_up {
	struct nbd_link *link;
	int64_t silent_ns;
};

static void
give_up(void *arg)
{
	struct giving_up *g = arg;
	struct nbd_link *l = g->link;

	if (!l->runner || (list_empty(&l->asked) && list_empty(&l->waiting)) ||
	    clock_ns() < l->heard_at + g->silent_ns)
		return;
	l->giving_up = true;
	co_cancel(l->runner);
}

void
nbd_link_give_up(struct nbd_link *l, int64_t silent_ns)
{
	struct giving_up g = { .link = l, .silent_ns = silent_ns };

	call(l, give_up, &g);
}

static void
end(void *link)
{
	struct nbd_link *l = link;

	l->closing = true;
	l->closer = co_self();
	if (l->runner)
		co_cancel(l->runner);
	while (l->runner)
		co_park();
	assert(!l->line.handle && !l->writing && list_empty(&l->waiting));
}

void
nbd_link_close(struct nbd_link *l)
{
	call(l, end, l);
}
