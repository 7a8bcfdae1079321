/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/systemd.h"

#ifdef HAVE_LIBSYSTEMD

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#include "aio/timer.h"

static struct {
	char **names;		/* of the sockets; an emptied string was taken */
	int count;
	int64_t watchdog_ns;	/* between two signs of life; 0: none wanted */
	struct timer watchdog;
} systemd;

void
systemd_start(void)
{
	uint64_t usec;
	int n;

	n = sd_listen_fds_with_names(1, &systemd.names);
	systemd.count = n > 0 ? n : 0;
	/* Twice as often as asked for, so that a late turn does no harm. */
	if (sd_watchdog_enabled(1, &usec) > 0)
		systemd.watchdog_ns = (int64_t)(usec / 2) * 1000;
}

/* The place of one that nobody took yet; -1: none. */
static int
find_socket(const char *name)
{
	for (int i = 0; i < systemd.count; i++)
		if (*name && !strcmp(systemd.names[i], name))
			return i;
	return -1;
}

bool
systemd_has_socket(const char *name)
{
	return find_socket(name) >= 0;
}

int
systemd_take_socket(const char *name)
{
	int i = find_socket(name);

	if (i < 0)
		return -1;
	systemd.names[i][0] = '\0';
	return SD_LISTEN_FDS_START + i;
}

const char *
systemd_untaken(void)
{
	for (int i = 0; i < systemd.count; i++)
		if (systemd.names[i][0])
			return systemd.names[i];
	return NULL;
}

static void
watchdog(struct timer *t)
{
	sd_notify(0, "WATCHDOG=1");
	timer_set(t, clock_ns() + systemd.watchdog_ns);
}

void
systemd_ready(void)
{
	sd_notify(0, "READY=1");
	if (systemd.watchdog_ns) {
		systemd.watchdog.fn = watchdog;
		watchdog(&systemd.watchdog);
	}
}

void
systemd_stopping(void)
{
	sd_notify(0, "STOPPING=1");
}

void
systemd_status(const char *fmt, ...)
{
	char line[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	sd_notifyf(0, "STATUS=%s", line);
}

void
systemd_stop(void)
{
	if (systemd.watchdog_ns)
		timer_cancel(&systemd.watchdog);
	for (int i = 0; i < systemd.count; i++)
		free(systemd.names[i]);
	free(systemd.names);
	memset(&systemd, 0, sizeof(systemd));
}

#else

#include <stddef.h>

void
systemd_start(void)
{
}

bool
systemd_has_socket(const char *name)
{
	(void)name;
	return false;
}

int
systemd_take_socket(const char *name)
{
	(void)name;
	return -1;
}

const char *
systemd_untaken(void)
{
	return NULL;
}

void
systemd_ready(void)
{
}

void
systemd_stopping(void)
{
}

void
systemd_status(const char *fmt, ...)
{
	(void)fmt;
}

void
systemd_stop(void)
{
}

#endif
