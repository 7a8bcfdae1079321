/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/resume.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/cipher.h"
#include "rescue/digest.h"
#include "rescue/image.h"
#include "rescue/layer.h"
#include "rescue/target.h"

enum { SALT = 16, HEADER = 64 * 1024, LINE_MAX_BYTES = 512, SPARE = 64 * 1024 };

static const char magic[] = "quoin rescue state 2\n";
static const char doubt[] = "doubtful\n";

struct resume {
	char *target;		/* for people */
	char *path, *next;	/* the state, and the one that will replace it */
	int spare;		/* next, empty, with room for a state; -1: it is not there */
	char salt[2 * SALT + 1];
	char *bound;		/* the lines that must be the same */
	struct resume_copy *copies;
	size_t n;
	unsigned layers;
	bool doubtful;
};

static int
no_memory(struct error **errp)
{
	return error_set(errp, "Cannot allocate memory");
}

static int
sync_folder(const struct resume *r)
{
	const char *slash = strrchr(r->path, '/');
	CLEANUP(cleanup_free) char *folder = slash ? strndup(r->path, (size_t)(slash + 1 - r->path))
						   : strdup(".");
	CLEANUP(cleanup_close) int fd = -1;

	if (!folder)
		return -1;
	fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -1 : fsync(fd);
}

static int
fail(const struct resume *r, struct error **errp)
{
	error_set_errno(errp, errno, "Could not write '%s'", r->path);
	return -1;
}

/* ---- what it is bound to ---- */

static int
describe_file(const struct image *im, unsigned i, FILE *to, struct error **errp)
{
	CLEANUP(cleanup_free) uint8_t *head = malloc(HEADER);
	CLEANUP(cleanup_close) int fd = open(im->filename, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	char hex[DIGEST_HEX];
	struct timespec when = im->mtime;
	struct digest d;
	ssize_t n = -1;

	if (!head)
		return no_memory(errp);
	if (fd >= 0)
		n = pread(fd, head, HEADER, 0);
	if (n < 0) {
		error_set_errno(errp, errno, "Could not read '%s'", im->filename);
		return -1;
	}
	digest_init(&d);
	digest_update(&d, head, (size_t)n);
	digest_hex(&d, hex);
	/* A device's time is that of its name. */
	if (im->is_device)
		when = (struct timespec){ 0, 0 };
	fprintf(to, "file %u %" PRIu64 " %s\ntime %u %" PRIi64 ".%09ld\n", i, im->file_size, hex,
		i, (int64_t)when.tv_sec, when.tv_nsec);
	return 0;
}

static void
describe_key(const struct resume *r, const struct layer *l, unsigned i, FILE *to)
{
	uint8_t sector[CIPHER_SECTOR] = { 0 };
	char hex[DIGEST_HEX];
	struct digest d;

	if (!l->cipher)
		return;		/* nothing of it is encrypted */
	cipher_decrypt(l->cipher, 0, sector, sizeof(sector));
	digest_init(&d);
	digest_update(&d, r->salt, strlen(r->salt));
	digest_update(&d, sector, sizeof(sector));
	digest_hex(&d, hex);
	fprintf(to, "key %u %s\n", i, hex);
}

static int
describe(struct resume *r, const struct image_chain *chain, const struct layers *layers,
	 const char *options, struct error **errp)
{
	const struct image *im;
	size_t len;
	FILE *to = open_memstream(&r->bound, &len);
	int ret = 0;

	if (!to)
		return no_memory(errp);
	fprintf(to, "options %s\n", options);
	for (unsigned i = 0; ret == 0 && (im = image_chain_file(chain, i)); i++)
		ret = describe_file(im, i, to, errp);
	for (unsigned i = 0; i < layers->count && ret == 0; i++)
		describe_key(r, &layers->layer[i], i, to);
	if (fclose(to) != 0 && ret == 0)
		ret = no_memory(errp);
	return ret;
}

/* ---- reading ---- */

static int
refuse(const struct resume *r, const char *why, struct error **errp)
{
	return error_set(errp, "Could not go on with '%s': %s since it was begun; remove '%s' to "
			 "begin anew", r->target, why, r->path);
}

/* Compare the bound lines with those of the state, which are read up to their end. */
static int
check_bound(struct resume *r, FILE *from, struct error **errp)
{
	char line[LINE_MAX_BYTES];

	for (const char *want = r->bound, *end; *want; want = end + 1) {
		end = strchr(want, '\n');
		if (!fgets(line, sizeof(line), from))
			return refuse(r, "its state was damaged", errp);
		if (strlen(line) == (size_t)(end + 1 - want) && !memcmp(line, want, strlen(line)))
			continue;
		if (!strncmp(want, "time", 4) && !strncmp(line, "time", 4)) {
			r->doubtful = true;
			continue;
		}
		if (!strncmp(want, "options", 7))
			return refuse(r, "the options were changed", errp);
		if (!strncmp(want, "key", 3))
			return refuse(r, "the key was changed", errp);
		return refuse(r, "the source was changed", errp);
	}
	return 0;
}

static int
read_done(struct resume *r, const char *line)
{
	uint64_t done;
	unsigned i;

	if (sscanf(line, "done %u %" SCNu64, &i, &done) != 2 || i >= r->n ||
	    done > r->copies[i].size)
		return -1;
	r->copies[i].done = done;
	return 0;
}

static int
read_lost(struct resume *r, const char *line)
{
	uint64_t off, len;
	unsigned i, why, layer;

	if (sscanf(line, "lost %u %" SCNu64 " %" SCNu64 " %u %u", &i, &off, &len, &why,
		   &layer) != 5 ||
	    i >= r->n || why > LOST_BEYOND_END || layer >= r->layers ||
	    !range_within(off, len, r->copies[i].size))
		return -1;
	return lost_add(r->copies[i].lost, off, len,
			&(struct lost_range){ .why = why, .layer = layer });
}

static int
read_progress(struct resume *r, FILE *from)
{
	char line[LINE_MAX_BYTES];

	while (fgets(line, sizeof(line), from)) {
		if (!strcmp(line, "end\n"))
			return 0;
		if (!strcmp(line, doubt)) {
			r->doubtful = true;
			continue;
		}
		if (read_done(r, line) < 0 && read_lost(r, line) < 0)
			return -1;
	}
	return -1;
}

static bool
read_salt(struct resume *r, FILE *from)
{
	char line[LINE_MAX_BYTES];

	return fgets(line, sizeof(line), from) && !strcmp(line, magic) &&
	       fgets(line, sizeof(line), from) && strlen(line) == 5 + 2 * SALT + 1 &&
	       sscanf(line, "salt %32[0-9a-f]", r->salt) == 1 && strlen(r->salt) == 2 * SALT;
}

static int
make_salt(struct resume *r, struct error **errp)
{
	uint8_t raw[SALT];

	if (getrandom(raw, sizeof(raw), 0) != sizeof(raw)) {
		error_set_errno(errp, errno, "Could not get random bytes");
		return -1;
	}
	for (size_t i = 0; i < SALT; i++)
		snprintf(r->salt + 2 * i, 3, "%02x", raw[i]);
	return 0;
}

static FILE *
open_state(const struct resume *r)
{
	int fd = open(r->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat st;

	if (fd < 0)
		return NULL;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid())
		return fdopen(fd, "r");
	close(fd);
	return NULL;
}

/* ---- */

static struct resume *
alloc(const char *target, struct resume_copy *copies, size_t n)
{
	struct resume *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->spare = -1;
	r->target = strdup(target);
	r->path = target_hidden_path(target, "rescue-state");
	r->next = target_hidden_path(target, "rescue-state.new");
	r->copies = copies;
	r->n = n;
	if (r->target && r->path && r->next)
		return r;
	resume_free(r);
	return NULL;
}

/* Is what the state speaks of still there? */
static bool
has_partial(const struct resume *r)
{
	CLEANUP(cleanup_free) char *partial = target_hidden_path(r->target, "rescue");

	return partial && access(partial, F_OK) == 0;
}

static int
refuse_doubt(const struct resume *r, struct error **errp)
{
	refuse(r, "the source was changed", errp);
	error_append(errp, ", or let --verify compare all of it");
	return -1;
}

static int
take_up(struct resume *r, const struct image_chain *chain, const struct layers *layers,
	const char *options, bool compared, FILE *from, struct error **errp)
{
	if (!read_salt(r, from))
		return refuse(r, "its state was damaged", errp);
	if (describe(r, chain, layers, options, errp) < 0)
		return -1;
	if (check_bound(r, from, errp) < 0)
		return -1;
	if (read_progress(r, from) < 0)
		return refuse(r, "its state was damaged", errp);
	return r->doubtful && !compared ? refuse_doubt(r, errp) : 0;
}

/* An old state must be gone before there is a partial target that it could be taken to
 * speak of. */
static int
begin(struct resume *r, const struct image_chain *chain, const struct layers *layers,
      const char *options, struct error **errp)
{
	if (make_salt(r, errp) < 0 || describe(r, chain, layers, options, errp) < 0)
		return -1;
	if (resume_end(r, errp) < 0)
		return -1;
	return sync_folder(r) < 0 ? fail(r, errp) : 0;
}

int
resume_start(const char *target, const struct image_chain *chain, const struct layers *layers,
	     const char *options, bool compared, struct resume_copy *copies, size_t n,
	     struct resume **ret, struct error **errp)
{
	struct resume *r = alloc(target, copies, n);
	FILE *from;
	int err;

	if (!r)
		return no_memory(errp);
	r->layers = chain->count;
	from = has_partial(r) ? open_state(r) : NULL;
	if (from) {
		err = take_up(r, chain, layers, options, compared, from, errp);
		fclose(from);
	} else {
		err = begin(r, chain, layers, options, errp);
	}
	if (err < 0) {
		resume_free(r);
		return -1;
	}
	*ret = r;
	return 0;
}

bool
resume_is_doubtful(const struct resume *r)
{
	return r->doubtful;
}

/* ---- writing ---- */

static void
print_state(const struct resume *r, FILE *to)
{
	fprintf(to, "%ssalt %s\n%s%s", magic, r->salt, r->bound, r->doubtful ? doubt : "");
	for (size_t i = 0; i < r->n; i++) {
		const struct resume_copy *c = &r->copies[i];

		fprintf(to, "done %zu %" PRIu64 "\n", i, c->done);
		pthread_mutex_lock(&c->lost->lock);
		for (size_t j = 0; j < c->lost->n; j++) {
			struct lost_range x = c->lost->range[j];

			if (x.off >= c->done)
				break;
			fprintf(to, "lost %zu %" PRIu64 " %" PRIu64 " %u %u\n", i, x.off,
				min_u64(x.len, c->done - x.off), (unsigned)x.why,
				(unsigned)x.layer);
		}
		pthread_mutex_unlock(&c->lost->lock);
	}
	fputs("end\n", to);
}

/* The state matters most when the disk is full: it must have its room before. */
static int
make_spare(struct resume *r)
{
	/* What a run that was killed left there; whatever else it is, it is not written to. */
	(void)unlink(r->next);
	r->spare = open(r->next, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (r->spare >= 0)
		(void)fallocate(r->spare, FALLOC_FL_KEEP_SIZE, 0, SPARE);
	return r->spare < 0 ? -1 : 0;
}

int
resume_record(struct resume *r, struct error **errp)
{
	FILE *to = NULL;
	bool bad;

	if (r->spare >= 0 || make_spare(r) == 0)
		to = fdopen(r->spare, "w");
	if (!to)
		return fail(r, errp);
	r->spare = -1;
	print_state(r, to);
	bad = fflush(to) != 0 || fsync(fileno(to)) < 0;
	if (fclose(to) != 0 || bad || rename(r->next, r->path) < 0)
		return fail(r, errp);
	/* The old state has made room for it, if there is none else. */
	(void)make_spare(r);
	return sync_folder(r) < 0 ? fail(r, errp) : 0;
}

static void
drop_spare(struct resume *r)
{
	(void)unlink(r->next);
	cleanup_close(&r->spare);
	r->spare = -1;
}

int
resume_end(struct resume *r, struct error **errp)
{
	drop_spare(r);
	return unlink(r->path) < 0 && errno != ENOENT ? fail(r, errp) : 0;
}

void
resume_free(struct resume *r)
{
	if (!r)
		return;
	if (r->spare >= 0)
		drop_spare(r);
	free(r->target);
	free(r->path);
	free(r->next);
	free(r->bound);
	free(r);
}
