/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/folder.h - a folder that appears under its name when all in it is whole.
 *
 * Until folder_publish() it is hidden beside its place, as ".NAME.PID-N", and goes with
 * all that is in it on every way out but SIGKILL and power loss.  Files are best
 * filled without a name (rescue/target.h), so that even then little is left.
 * A partial folder, ".NAME.rescue", outlives the run.
 *
 * The mode is 0700.  It never replaces anything.
 *
 * Context    any thread; blocks.
 * Errors     0 or -1 with *errp.
 */
#ifndef RESCUE_FOLDER_H
#define RESCUE_FOLDER_H

#include <stdbool.h>

struct error;
struct folder;

int folder_check_place(const char *path, struct error **errp);

int folder_new(const char *path, bool partial, struct folder **ret, struct error **errp);
int folder_fd(const struct folder *f);

/* Is all that a partial one holds already what this run would make? */
int folder_check_content(struct folder *f, bool (*is_known)(const char *name, void *user),
			 void *user, struct error **errp);

/* Wait until the names of its files are on disk. */
int folder_sync(struct folder *f, struct error **errp);

/* What is in it has been fsynced. */
int folder_publish(struct folder *f, struct error **errp);

void folder_free(struct folder *f);	/* takes NULL */

#endif
