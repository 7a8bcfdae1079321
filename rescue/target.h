/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/target.h - a file that appears under its name only when it is whole.
 *
 * Until target_publish() the file has no name at all (O_TMPFILE), so nothing
 * can be left behind, not even by SIGKILL.  Where the file system cannot do
 * that, it has a hidden name beside the final one, ".NAME.PID-N", which is
 * removed on every way out but SIGKILL and power loss.
 *
 * A partial target is the exception: it is made to outlive the run, as
 * ".NAME.rescue" beside its place, so that another run can go on with it.
 *
 * The mode is 0600, whatever the umask: it is somebody's decrypted disk.
 *
 * Units      bytes.
 * Context    loop 0 or a worker; blocks; one caller at a time.
 * Errors     0 or -1 with *errp.
 */
#ifndef RESCUE_TARGET_H
#define RESCUE_TARGET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

struct error;
struct target;

enum { TARGET_HIDDEN_NAME = 200 };	/* so much of NAME is in a hidden one */

/* May files be made in the folder of path? */
int target_check_folder(const char *path, struct error **errp);

/* Could path be made now?  What exists there is an error unless force, and if
 * it is not a regular file, always. */
int target_check_place(const char *path, bool force, struct error **errp);

/* Are these the same name in the same folder, whatever is or is not there? */
bool target_is_same_place(const char *a, const char *b);

/* Start a file that will be path, after the same checks. */
int target_new(const char *path, bool force, struct target **ret, struct error **errp);

/* The same in a folder (-1: in that of path) without a look at what is there.  path is for
 * people; its last part is the name. */
int target_new_in(int folder, const char *path, bool force, struct target **ret,
		  struct error **errp);

/* Start or take up a partial one, which nobody else may work on meanwhile.  In a
 * folder (-1: in that of path) it has its own name from the start.  *ret_fresh: it
 * was not there before. */
int target_partial(int folder, const char *path, bool force, struct target **ret,
		   bool *ret_fresh, struct error **errp);
/* ".NAME.rescue" in the folder of path, or with another ending; malloc'ed, NULL on no
 * memory. */
char *target_hidden_path(const char *path, const char *ending);

/* Give up what was not published, leaving nothing, unless it is partial.  Takes NULL. */
void target_free(struct target *t);
void target_freep(struct target **t);	/* for CLEANUP */

int target_fd(const struct target *t);
/* A path under which the unfinished file can be opened, by this process. */
const char *target_open_path(const struct target *t);

/* Is there room for this many more bytes?  Compression is not thought of. */
int target_check_space(const struct target *t, uint64_t bytes, struct error **errp);

/* Wait until the data is on disk. */
int target_sync(struct target *t, struct error **errp);

/* Give the file its name, and wait until that is on disk.  Without force it
 * never replaces what has come to be there meanwhile. */
int target_publish(struct target *t, struct error **errp);

/* The same of a small file; one with its content that is there already will do. */
int target_publish_or_find(struct target *t, struct error **errp);

#endif
