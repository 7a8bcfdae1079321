/* SPDX-License-Identifier: Apache-2.0 */
/* base/id.h - the names that clients give to nodes, jobs, exports and objects. */
#ifndef BASE_ID_H
#define BASE_ID_H

#include <stdbool.h>

/* QEMU's rule (util/id.c): a letter, then letters, digits, '-', '.' and '_'. */
bool id_is_well_formed(const char *id);

#endif
