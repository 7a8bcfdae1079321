/* SPDX-License-Identifier: Apache-2.0 */
/* cli/facts.h - what an image says of itself, as JSON.
 *
 * docs/quoin-info.1 describes the members; they are named as those of qemu-img info
 * where it has them.
 */
#ifndef CLI_FACTS_H
#define CLI_FACTS_H

#include <stdbool.h>

struct image;
struct json_object;

/* The caller owns it.  *failed as in cli/member.h. */
struct json_object *facts_new(const struct image *im, bool *failed);

#endif
