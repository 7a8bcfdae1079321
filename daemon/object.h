/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/object.h - objects of object-add: iothreads, TLS credentials, authorization.
 *
 * An iothread is an I/O loop with a name, for exports that ask for it.  Who
 * uses one holds it; object-del refuses while anybody does.  TLS credentials
 * are referenced by who uses them, and may be deleted before; authorization
 * is looked up by its name whenever somebody connects.
 *
 * Context    loop 0.
 */
#ifndef DAEMON_OBJECT_H
#define DAEMON_OBJECT_H

#include <stdbool.h>

struct ObjectOptions;
struct error;
struct loop;
struct tls_creds;

/* 0, or -1 with *errp and nothing made.  Coroutine. */
int object_add(const struct ObjectOptions *opts, struct error **errp);
int object_del(const char *id, struct error **errp);

/* Hold the loop of the iothread id; NULL with *errp if there is none. */
struct loop *object_take_iothread(const char *id, struct error **errp);
void object_release_iothread(struct loop *l);	/* takes NULL */

/* A reference to the TLS credentials id; NULL with *errp if there are none. */
struct tls_creds *object_take_tls_creds(const char *id, struct error **errp);

/* Have nodes find their TLS credentials here. */
void object_init(void);

/* Does the authorization object id let identity in?  Nobody, if there is none of
 * this id; and never one whose identity is not known (NULL). */
bool object_is_authorized(const char *id, const char *identity);

/* End them all: at the end of the program, when nobody uses any. */
void object_del_all(void);

#endif
