/* SPDX-License-Identifier: Apache-2.0 */
/* cli/facts.h - what an image says of itself, as JSON.
 *
 * docs/quoin-info.1 describes the members; they are named as those of qemu-img info
 * where it has them.
 */
#ifndef CLI_FACTS_H
#define CLI_FACTS_H

struct image;
struct member_out;

/* Into an object that is open.  -1: some of it could not be had. */
int facts_print(struct member_out *out, const struct image *im);

#endif
