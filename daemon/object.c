/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/object.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "aio/loop.h"
#include "aio/tls.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/id.h"
#include "base/list.h"
#include "base/log.h"
#include "block/open.h"
#include "daemon/authz.h"
#include "schema/types.h"

struct object {
	struct list link;
	struct ObjectOptions *opts;	/* as it was made; our own copy */
	struct loop *loop;		/* of an iothread */
	unsigned users;			/* and who holds it */
	struct tls_creds *creds;	/* of TLS credentials */
};

static struct list objects = LIST_INIT(objects);

static struct object *
find(const char *id)
{
	struct object *o;

	LIST_FOREACH(o, &objects, link)
		if (!strcmp(o->opts->id, id))
			return o;
	return NULL;
}

/* ---- iothreads ---- */

/* All of these tune QEMU's loops.  Ours tune themselves, so a legal value is taken
 * as the hint that it is; an illegal one is refused as QEMU refuses it. */
static int
check_iothread(const struct IothreadProperties *p, struct error **errp)
{
	const struct {
		const char *name;
		bool has;
		int64_t value;
	} tuning[] = {
		{ "poll-max-ns", p->has_poll_max_ns, p->poll_max_ns },
		{ "poll-grow", p->has_poll_grow, p->poll_grow },
		{ "poll-shrink", p->has_poll_shrink, p->poll_shrink },
		{ "aio-max-batch", p->has_aio_max_batch, p->aio_max_batch },
		{ "thread-pool-min", p->has_thread_pool_min, p->thread_pool_min },
		{ "thread-pool-max", p->has_thread_pool_max, p->thread_pool_max },
	};

	for (size_t i = 0; i < ARRAY_SIZE(tuning); i++)
		if (tuning[i].has && tuning[i].value < 0)
			return error_set(errp, "%s value must be in range [0, %lld]",
					 tuning[i].name, (long long)INT64_MAX);
	return 0;
}

static int
make_iothread(struct object *o, struct error **errp)
{
	if (check_iothread(&o->opts->u.iothread, errp) < 0)
		return -1;
	return loop_add(o->opts->id, &o->loop, errp) < 0 ? -1 : 0;
}

struct loop *
object_take_iothread(const char *id, struct error **errp)
{
	struct object *o = find(id);

	if (!o || !o->loop) {
		error_set(errp, "iothread \"%s\" not found", id);
		return NULL;
	}
	o->users++;
	return o->loop;
}

void
object_release_iothread(struct loop *l)
{
	struct object *o;

	LIST_FOREACH(o, &objects, link)
		if (l && o->loop == l)
			o->users--;
}

/* ---- TLS credentials ---- */

static int
load_creds(struct object *o, const struct tls_config *config, struct error **errp)
{
	if (tls_creds_load(config, &o->creds, errp) < 0)
		return -1;
	if (tls_creds_exposed(o->creds))
		log_line(LOG_LEVEL_WARNING, "object '%s': everybody may read the secret in %s",
			 o->opts->id, tls_creds_exposed(o->creds));
	return 0;
}

static int
make_x509(struct object *o, struct error **errp)
{
	const struct TlsCredsX509Properties *p = &o->opts->u.tls_creds_x509;

	if (p->passwordid)
		return error_set(errp, "No secret with id '%s'", p->passwordid);
	return load_creds(o, &(struct tls_config){
		.kind = TLS_X509, .dir = p->dir, .priority = p->priority,
		.server = p->endpoint == QCRYPTO_TLS_CREDS_ENDPOINT_SERVER,
		.verify_peer = p->has_verify_peer ? p->verify_peer : true,
		.sanity_check = p->has_sanity_check ? p->sanity_check : true,
	}, errp);
}

static int
make_psk(struct object *o, struct error **errp)
{
	const struct TlsCredsPskProperties *p = &o->opts->u.tls_creds_psk;

	return load_creds(o, &(struct tls_config){
		.kind = TLS_PSK, .dir = p->dir, .priority = p->priority,
		.server = p->endpoint == QCRYPTO_TLS_CREDS_ENDPOINT_SERVER,
		.username = p->username,
	}, errp);
}

static int
make_anon(struct object *o, struct error **errp)
{
	const struct TlsCredsAnonProperties *p = &o->opts->u.tls_creds_anon;

	return load_creds(o, &(struct tls_config){
		.kind = TLS_ANON, .dir = p->dir, .priority = p->priority,
		.server = p->endpoint == QCRYPTO_TLS_CREDS_ENDPOINT_SERVER,
	}, errp);
}

struct tls_creds *
object_take_tls_creds(const char *id, struct error **errp)
{
	struct object *o = find(id);

	if (o && o->creds)
		return tls_creds_ref(o->creds);
	if (o)
		error_set(errp, "Object with id '%s' is not TLS credentials", id);
	else
		error_set(errp, "No TLS credentials with id '%s'", id);
	return NULL;
}

static struct tls_creds *
take_client_creds(const char *id, struct error **errp)
{
	struct tls_creds *creds = object_take_tls_creds(id, errp);

	if (!creds || !tls_creds_is_server(creds))
		return creds;
	tls_creds_unref(creds);
	error_set(errp, "Expected TLS credentials for a client endpoint");
	return NULL;
}

void
object_init(void)
{
	static const struct tls_client client = {
		.take = take_client_creds, .drop = tls_creds_unref, .start = tls_start,
	};

	open_set_tls_client(&client);
}

/* ---- authorization ---- */

bool
object_is_authorized(const char *id, const char *identity)
{
	struct object *o = find(id);

	if (!o || !identity)
		return false;
	switch (o->opts->qom_type) {
	case OBJECT_TYPE_AUTHZ_SIMPLE:
		return !strcmp(o->opts->u.authz_simple.identity, identity);
	case OBJECT_TYPE_AUTHZ_LIST:
		return authz_list_allows(&o->opts->u.authz_list, identity);
	default:
		return false;
	}
}

/* ---- all kinds ---- */

static int
refuse_secret(struct error **errp)
{
	return error_set(errp,
			 "Object type 'secret' is not offered: this daemon opens no encrypted"
			 " image and so takes no key; decrypt the image first with:"
			 " quoin rescue SOURCE TARGET");
}

/* NULL: all that it needs are its options. */
static int (*const makers[])(struct object *o, struct error **errp) = {
	[OBJECT_TYPE_AUTHZ_LIST] = NULL,
	[OBJECT_TYPE_AUTHZ_SIMPLE] = NULL,
	[OBJECT_TYPE_IOTHREAD] = make_iothread,
	[OBJECT_TYPE_TLS_CREDS_ANON] = make_anon,
	[OBJECT_TYPE_TLS_CREDS_PSK] = make_psk,
	[OBJECT_TYPE_TLS_CREDS_X509] = make_x509,
};

/* What was made of it so far. */
static void
object_free(struct object *o)
{
	list_remove(&o->link);
	if (o->loop)
		loop_remove(o->loop);
	tls_creds_unref(o->creds);
	ObjectOptions_free(o->opts);
	free(o);
}

static int
check_id(const struct ObjectOptions *opts, struct error **errp)
{
	/* Its refusal is what its users are to read, whatever else is wrong. */
	if (opts->qom_type == OBJECT_TYPE_SECRET)
		return refuse_secret(errp);
	if (!id_is_well_formed(opts->id))
		return error_set(errp, "Parameter 'id' expects an identifier");
	if (find(opts->id))
		return error_set(errp,
				 "attempt to add duplicate property '%s' to object"
				 " (type 'container')",
				 opts->id);
	return 0;
}

int
object_add(const struct ObjectOptions *opts, struct error **errp)
{
	int (*make)(struct object *o, struct error **errp) = makers[opts->qom_type];
	struct object *o;

	if (check_id(opts, errp) < 0)
		return -1;
	o = calloc(1, sizeof(*o));
	if (!o || !(o->opts = meta_clone(&ObjectOptions_meta, opts))) {
		free(o);
		return error_set(errp, "Cannot allocate memory");
	}
	list_init(&o->link);
	/* Making it may have waited, and the id be another's by now. */
	if ((make && make(o, errp) < 0) || check_id(opts, errp) < 0) {
		object_free(o);
		return -1;
	}
	list_append(&objects, &o->link);
	return 0;
}

int
object_del(const char *id, struct error **errp)
{
	struct object *o = find(id);

	if (!o)
		return error_set(errp, "object '%s' not found", id);
	if (o->users)
		return error_set(errp, "object '%s' is in use, can not be deleted", id);
	object_free(o);
	return 0;
}

void
object_del_all(void)
{
	struct object *o, *tmp;

	LIST_FOREACH_SAFE(o, tmp, &objects, link)
		object_free(o);
}
