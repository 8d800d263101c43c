/* SPDX-License-Identifier: MIT */
/* The helper thread of a connection; see helper.h. */
#include "helper.h"

#include <limits.h>
#include <signal.h>
#include <sys/prctl.h>

#include "transport.h"

/* What receiving and parsing take is a few KiB; the rest is for what the C library and sanitizers put there. */
#define STACK_BYTES ((size_t)256 * 1024)

static void *run(void *argument)
{
	struct connection *connection = argument;

	prctl(PR_SET_NAME, "qwave");
	pthread_mutex_lock(&connection->lock);
	while (connection->unattended > 0) {
		if (connection->receiving)
			pthread_cond_wait(&connection->helper_wake, &connection->lock);
		else
			connection_receive(connection, TRANSPORT_NEVER, false);
	}
	connection->helper = HELPER_ENDED;
	if (!connection->receiving)
		connection_hand_over(connection);
	pthread_mutex_unlock(&connection->lock);
	return NULL;
}

static bool create(struct connection *connection)
{
	pthread_attr_t attributes;
	bool created;

	if (pthread_attr_init(&attributes) != 0)
		return false;
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	created = pthread_create(&connection->helper_thread, &attributes, run, connection) == 0;
	pthread_attr_destroy(&attributes);
	/* Thread-local variables of the program lie on the stack too: where they need more, the usual size. */
	return created || pthread_create(&connection->helper_thread, NULL, run, connection) == 0;
}

bool helper_start(struct connection *connection)
{
	sigset_t all, before;

	if (connection->helper == HELPER_RUNNING)
		return true;
	/* It has left the lock for good, so joining it does not wait for anything. */
	if (connection->helper == HELPER_ENDED)
		pthread_join(connection->helper_thread, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	connection->helper = create(connection) ? HELPER_RUNNING : HELPER_NONE;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return connection->helper == HELPER_RUNNING;
}

void helper_join(struct connection *connection)
{
	enum helper_state state;

	pthread_mutex_lock(&connection->lock);
	state = connection->helper;
	connection->helper = HELPER_NONE;
	pthread_cond_signal(&connection->helper_wake);
	pthread_mutex_unlock(&connection->lock);
	if (state != HELPER_NONE)
		pthread_join(connection->helper_thread, NULL);
}
