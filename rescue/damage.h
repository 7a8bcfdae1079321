/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/damage.h - reading on where a source is damaged.
 *
 * Context    coroutine, any loop.
 */
#ifndef RESCUE_DAMAGE_H
#define RESCUE_DAMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct extent;
struct lost_range;
struct pipeline;

enum { DAMAGE_UNIT = 512 };	/* the least that is lost */

/* Is this error one of the place that was read, so that another may be sound? */
bool damage_is(int err);

/* -ENODATA for data that would lie behind the end of its file: a file that was cut
 * off.  (A hole at a file's end is no such thing, nor is a cluster that is cut.) */
int damage_check_extent(const struct extent *x);

/* Where the disk from at on, which x describes, leaves the file that it lies in;
 * UINT64_MAX: it does not. */
uint64_t damage_end_of_file(const struct extent *x, uint64_t at, uint64_t cluster);

/* Why [off, off + DAMAGE_UNIT) failed with err, and in which layer; of no length. */
void damage_explain(struct pipeline *p, uint64_t off, int err, struct lost_range *ret);

/* Note a lost range; the cause is found at its start.  0 or as lost_add().  When a copy is
 * compared nothing more may be lost than in the copying: err. */
int damage_note(struct pipeline *p, uint64_t off, uint64_t len, int err);

/* Read what can be read of a range that failed as a whole; the rest becomes zero and
 * is noted. */
int damage_read(struct pipeline *p, uint64_t off, uint8_t *buf, size_t len);

/* Where within a range that failed the first bad place is. */
uint64_t damage_find(struct pipeline *p, uint64_t off, uint8_t *buf, size_t len);

#endif
