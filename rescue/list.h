/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/list.h - what there is to rescue, for people. */
#ifndef RESCUE_LIST_H
#define RESCUE_LIST_H

#include <stdio.h>

struct image_chain;

/* Print each layer, the topmost first: format, size, encryption; and the command
 * to run next, if any of them is encrypted. */
void list_print(const struct image_chain *chain, FILE *to);

#endif
