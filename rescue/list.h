/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/list.h - what there is to rescue, for people. */
#ifndef RESCUE_LIST_H
#define RESCUE_LIST_H

#include <stdio.h>

struct image;
struct image_chain;
struct run_options;

/* Print each layer, the topmost first: format, size, encryption, and what is known of
 * its key; and the command to run next, if any of them is encrypted: with the options
 * that were given, and the keys if all fit.  Nothing of a chain that could not be read. */
void list_print(const struct image_chain *chain, const struct run_options *o, FILE *to);

/* A line for each internal snapshot: its ID, name, time and disk size. */
void list_snapshots(const struct image *im, FILE *to);

/* What an image says, with question marks for what a terminal would obey. */
void list_text(const char *text, FILE *to);
void list_tame(char *text);	/* the same in place */

#endif
