/* SPDX-License-Identifier: MIT */
/* The events of OVERLAPPEDs; see event.h. */
#include "event.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

/* Above those of stdin, stdout and stderr, which others take for granted. */
#define FIRST_DESCRIPTOR 3

static bool is_ready(int event, short condition)
{
	struct pollfd watched = {.fd = event, .events = condition};

	return poll(&watched, 1, 0) == 1 && (watched.revents & condition) != 0;
}

/* Asked first whether it would block: nothing says how the program made it. */
static void reset(int event)
{
	uint64_t count;

	while (is_ready(event, POLLIN)) {
		if (read(event, &count, sizeof(count)) < 0 && errno != EINTR)
			return;
	}
}

void event_signal(int event)
{
	const uint64_t one = 1;

	if (event < 0)
		return;
	/* One that takes no more is signalled as it is. */
	while (is_ready(event, POLLOUT) && write(event, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	close(event);
}

/* Files, sockets, pipes and devices have a type, an eventfd has none: whoever mixed up numbers shall not write there. */
static bool is_anonymous(int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 && (status.st_mode & S_IFMT) == 0;
}

bool event_take(HANDLE from, int *event, struct outcome *outcome)
{
	intptr_t given = (intptr_t)from;

	*event = -1;
	if (from == NULL)
		return true;
	if (given < 0 || given > INT_MAX || !is_anonymous((int)given)) {
		outcome_fail(outcome, ERROR_INVALID_HANDLE, "hEvent is no eventfd: (HANDLE)(intptr_t)fd, or NULL");
		return false;
	}
	*event = fcntl((int)given, F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR);
	if (*event < 0) {
		outcome_fail(outcome, ERROR_NO_SYSTEM_RESOURCES, "no descriptor is left for a duplicate of hEvent");
		return false;
	}
	reset(*event);
	return true;
}

void event_drop(int event)
{
	if (event >= 0)
		close(event);
}
