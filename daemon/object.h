/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/object.h - objects of object-add: iothreads.
 *
 * An iothread is an I/O loop with a name, for exports that ask for it.  Who
 * uses one holds it; object-del refuses while anybody does.
 *
 * Context    loop 0.
 */
#ifndef DAEMON_OBJECT_H
#define DAEMON_OBJECT_H

struct ObjectOptions;
struct error;
struct loop;

/* 0, or -1 with *errp and nothing made. */
int object_add(const struct ObjectOptions *opts, struct error **errp);
int object_del(const char *id, struct error **errp);

/* Hold the loop of the iothread id; NULL with *errp if there is none. */
struct loop *object_take_iothread(const char *id, struct error **errp);
void object_release_iothread(struct loop *l);	/* takes NULL */

/* End them all: at the end of the program, when nobody uses any. */
void object_del_all(void);

#endif
