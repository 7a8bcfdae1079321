/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/prompt.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/key.h"
#include "rescue/secret.h"

enum { ANSWER_MAX = 4096 };	/* what a terminal gives as one line at most */

static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP };
static volatile sig_atomic_t caught;

static void
on_signal(int signo)
{
	caught = signo;
}

/* How things were before the question; see leave(). */
struct quiet {
	int tty;
	struct termios before;
	struct sigaction old[ARRAY_SIZE(signals)];
	sigset_t mask;
};

static void
leave(struct quiet *q)
{
	(void)tcsetattr(q->tty, TCSAFLUSH, &q->before);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		sigaction(signals[i], &q->old[i], NULL);
	pthread_sigmask(SIG_SETMASK, &q->mask, NULL);
}

/* Turn echo off, and catch signals, which come while wait_for() waits and at no other
 * time.  0 or -errno. */
static int
enter(struct quiet *q, int tty)
{
	struct sigaction act = { .sa_handler = on_signal };
	struct termios t;
	sigset_t block;

	q->tty = tty;
	if (tcgetattr(tty, &q->before) < 0)
		return -errno;
	sigemptyset(&act.sa_mask);
	sigemptyset(&block);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(&block, signals[i]);
	pthread_sigmask(SIG_BLOCK, &block, &q->mask);
	caught = 0;
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
		sigaction(signals[i], NULL, &q->old[i]);
		/* Ignored ones stay ignored. */
		if (q->old[i].sa_handler != SIG_IGN)
			sigaction(signals[i], &act, NULL);
	}
	t = q->before;
	t.c_lflag &= ~(tcflag_t)(ECHO | ECHOE | ECHOK | ECHONL);
	t.c_lflag |= ICANON | ISIG;
	if (tcsetattr(tty, TCSAFLUSH, &t) < 0) {
		int err = -errno;

		leave(q);
		return err;
	}
	return 0;
}

/* One line: the count of its bytes, or -errno; -EINTR with caught set,
 * -ENODATA at the end of the input. */
static ssize_t
read_line(const struct quiet *q, uint8_t *buf, size_t size)
{
	struct pollfd p = { .fd = q->tty, .events = POLLIN };
	size_t len = 0;

	while (len < size) {
		ssize_t n;
		int ready = ppoll(&p, 1, NULL, &q->mask);

		if (caught)
			return -EINTR;
		/* Signals are blocked here: never read what might not be there. */
		if (ready < 0 && errno == EINTR)
			continue;
		if (ready < 0)
			return -errno;
		n = read(q->tty, buf + len, 1);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (!n)
			return -ENODATA;
		if (n > 0 && buf[len++] == '\n')
			return (ssize_t)len - 1;
	}
	return (ssize_t)len;
}

static void
say(int tty, const char *text)
{
	ssize_t n = write(tty, text, strlen(text));

	(void)n;	/* a terminal that takes no question may still give an answer */
}

static ssize_t
ask(int tty, const char *question, uint8_t *buf)
{
	struct quiet q;
	ssize_t len;

	do {
		say(tty, question);
		len = enter(&q, tty);
		if (len < 0)
			return len;
		len = read_line(&q, buf, ANSWER_MAX);
		leave(&q);
		say(tty, "\n");
		/* Now that the terminal is as it was, let the signal do what it does:
		 * end the program, or stop it until it is continued. */
		if (len == -EINTR)
			raise(caught);
	} while (len == -EINTR);
	return len;
}

int
prompt_key(const char *question, struct key **ret, struct error **errp)
{
	CLEANUP(cleanup_close) int tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
	CLEANUP(secret_freep) uint8_t *buf = secret_alloc(ANSWER_MAX);
	ssize_t len;

	if (tty < 0) {
		error_set_errno(errp, errno, "No key option was given, and there is no terminal to "
					     "ask for the password");
		return -1;
	}
	if (!buf)
		return error_set(errp, "Cannot allocate memory for a key");
	len = ask(tty, question, buf);
	if (len == -ENODATA)
		return error_set(errp, "No password was given");
	if (len < 0) {
		error_set_errno(errp, (int)len, "Cannot read the password from the terminal");
		return -1;
	}
	return key_new(buf, (size_t)len, "the password", ret, errp);
}
