/* SPDX-License-Identifier: Apache-2.0 */
/* schema/encode.h - values of the schema's types as JSON text.
 *
 * The text is one line of ASCII, ", " and ": " between things, as QEMU writes.
 *
 * Context    any thread.
 * Errors     none but the buffer's own: it is marked as failed.
 */
#ifndef SCHEMA_ENCODE_H
#define SCHEMA_ENCODE_H

struct buf;
struct meta;

/* p: a value as of schema/meta.h; of a struct type, usually. */
void encode_value(struct buf *out, const struct meta *type, const void *p);

/* slot: as of schema/meta.h; a list that is NULL is written as []. */
void encode_slot(struct buf *out, const struct meta *type, const void *slot);

/* Any bytes as a JSON string: what is not UTF-8 becomes U+FFFD, and the two
 * bytes C0 80 stand for U+0000. */
void encode_string(struct buf *out, const char *s);

void encode_number(struct buf *out, double d);

#endif
