/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/list.h"

struct item {
	int n;
	struct list link;
};

/* The numbers on a list as the digits of one number; both ways must agree. */
static int
digits(struct list *head)
{
	struct item *it;
	int forth = 0, back = 0, place = 1;

	LIST_FOREACH(it, head, link)
		forth = forth * 10 + it->n;
	for (struct list *l = head->prev; l != head; l = l->prev, place *= 10)
		back += LIST_ENTRY(l, struct item, link)->n * place;
	assert_int_equal(forth, back);
	return forth;
}

static void
append_and_push_order(void **state)
{
	struct list head = LIST_INIT(head);
	struct item a = { .n = 1 }, b = { .n = 2 }, c = { .n = 3 };

	assert_true(list_empty(&head));
	assert_null(LIST_FIRST(&head, struct item, link));
	list_append(&head, &a.link);
	list_append(&head, &b.link);
	list_push(&head, &c.link);
	assert_int_equal(digits(&head), 312);
	assert_ptr_equal(LIST_FIRST(&head, struct item, link), &c);
}

static void
a_removed_link_may_be_removed_again(void **state)
{
	struct list head = LIST_INIT(head);
	struct item a = { .n = 1 }, b = { .n = 2 };

	list_append(&head, &a.link);
	list_append(&head, &b.link);
	list_remove(&a.link);
	list_remove(&a.link);
	assert_int_equal(digits(&head), 2);
	assert_true(list_empty(&a.link));
	list_remove(&b.link);
	assert_true(list_empty(&head));
}

static void
splice_moves_all_to_the_end(void **state)
{
	struct list one = LIST_INIT(one), two = LIST_INIT(two);
	struct item items[4] = { { .n = 1 }, { .n = 2 }, { .n = 3 }, { .n = 4 } };

	list_append(&one, &items[0].link);
	for (int i = 1; i < 4; i++)
		list_append(&two, &items[i].link);
	list_splice(&one, &two);
	assert_int_equal(digits(&one), 1234);
	assert_true(list_empty(&two));
	list_splice(&one, &two);
	assert_int_equal(digits(&one), 1234);
	list_splice(&two, &one);
	assert_int_equal(digits(&two), 1234);
}

static void
the_body_of_a_safe_walk_may_free(void **state)
{
	struct list head = LIST_INIT(head);
	struct item *it, *next;

	for (int i = 1; i <= 5; i++) {
		it = calloc(1, sizeof(*it));
		assert_non_null(it);
		it->n = i;
		list_append(&head, &it->link);
	}
	LIST_FOREACH_SAFE(it, next, &head, link) {
		if (it->n % 2) {
			list_remove(&it->link);
			free(it);
		}
	}
	assert_int_equal(digits(&head), 24);
	LIST_FOREACH_SAFE(it, next, &head, link)
		free(it);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(append_and_push_order),
		cmocka_unit_test(a_removed_link_may_be_removed_again),
		cmocka_unit_test(splice_moves_all_to_the_end),
		cmocka_unit_test(the_body_of_a_safe_walk_may_free),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
