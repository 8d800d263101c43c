/* SPDX-License-Identifier: MIT */
/* One connection to the daemon; see connection.h. */
#include "connection.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "helper.h"
#include "transport.h"

/* More flows than the daemon can have: their ids have 20 bits for the place of a flow. */
#define MOST_IDS (UINT32_C(1) << 20)

static const char *const foreign = "the reply is none to this call: library and daemon of different versions?";

static const char *const unresponsive = "the daemon does not answer (see its log; make a new handle)";

static void init_monotonic(pthread_cond_t *condition)
{
	pthread_condattr_t attributes;

	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(condition, &attributes);
	pthread_condattr_destroy(&attributes);
}

struct connection *connection_new(void)
{
	struct connection *connection = calloc(1, sizeof(*connection));

	if (connection == NULL)
		return NULL;
	atomic_init(&connection->references, 1);
	atomic_init(&connection->state, CONNECTION_OPEN);
	connection->fd = -1;
	pthread_mutex_init(&connection->lock, NULL);
	pthread_cond_init(&connection->completed, NULL);
	pthread_cond_init(&connection->helper_wake, NULL);
	return connection;
}

void connection_release(struct connection *connection)
{
	if (atomic_fetch_sub(&connection->references, 1) != 1)
		return;
	if (connection->fd >= 0)
		close(connection->fd);
	pthread_cond_destroy(&connection->helper_wake);
	pthread_cond_destroy(&connection->completed);
	pthread_mutex_destroy(&connection->lock);
	free(connection);
}

void connection_abandon(struct connection *connection)
{
	struct call *call = connection->newest, *older;

	for (; call != NULL; call = older) {
		older = call->older;
		/* Those on the stacks of threads that do not exist here are nobody's. */
		if (call->abandoned != NULL)
			call->abandoned(call);
	}
	if (connection->fd >= 0)
		close(connection->fd);
	pthread_mutex_unlock(&connection->lock);
	pthread_mutex_destroy(&connection->lock);
	/* The conditions are left as they are: destroying one waits for its waiters, and there are none here. */
	free(connection);
}

/* ---- The pending calls ----------------------------------------------------------------------------------- */

void connection_withdraw(struct connection *connection, struct call *call)
{
	if (call->newer != NULL)
		call->newer->older = call->older;
	else
		connection->newest = call->older;
	if (call->older != NULL)
		call->older->newer = call->newer;
}

bool connection_enlist_locked(struct connection *connection, struct call *call)
{
	switch (atomic_load(&connection->state)) {
	case CONNECTION_LOST:
		outcome_fail(call->outcome, ERROR_DEVICE_REINITIALIZATION_NEEDED, NULL);
		return false;
	case CONNECTION_CLOSING:
		outcome_fail(call->outcome, ERROR_OPERATION_ABORTED, "the handle is being closed");
		return false;
	default:
		break;
	}
	call->id = ++connection->last_id;
	call->done = false;
	call->asleep = false;
	call->newer = NULL;
	call->older = connection->newest;
	if (call->older != NULL)
		call->older->newer = call;
	connection->newest = call;
	return true;
}

bool connection_enlist(struct connection *connection, struct call *call)
{
	bool enlisted;

	pthread_mutex_lock(&connection->lock);
	enlisted = connection_enlist_locked(connection, call);
	pthread_mutex_unlock(&connection->lock);
	return enlisted;
}

struct call *connection_find(struct connection *connection, const OVERLAPPED *overlapped)
{
	struct call *call = connection->newest;

	while (call != NULL && call->overlapped != overlapped)
		call = call->older;
	return call;
}

/* The call has its outcome: whoever waits for it may go on. It may be gone afterwards. */
static void complete(struct connection *connection, struct call *call)
{
	connection_withdraw(connection, call);
	call->done = true;
	if (call->completed != NULL)
		call->completed(connection, call);
	else if (call->asleep)
		pthread_cond_signal(&call->wake);
}

static void lose(struct connection *connection, DWORD error, const char *why)
{
	int open = CONNECTION_OPEN;
	struct call *call;

	if (!atomic_compare_exchange_strong(&connection->state, &open, CONNECTION_LOST)) {
		error = open == CONNECTION_CLOSING ? ERROR_OPERATION_ABORTED : error;
		why = open == CONNECTION_CLOSING ? "the handle was closed" : why;
	}
	/* Wakes whoever is in recv(), and tells a daemon that comes back to life that the handle has ended. */
	shutdown(connection->fd, SHUT_RDWR);
	while ((call = connection->newest) != NULL) {
		outcome_fail(call->outcome, error, why);
		complete(connection, call);
	}
}

/* ---- Replies --------------------------------------------------------------------------------------------- */

static void keep_ids(struct call *call, const struct reply *reply)
{
	struct id_list *list = call->ids;
	struct json_cursor cursor = json_enter(&reply->flows.ids);
	struct json_value id;
	size_t needed = list->count + reply->flows.count;

	if (needed > MOST_IDS) {
		outcome_fail(call->outcome, ERROR_GEN_FAILURE, foreign);
		return;
	}
	if (needed > list->capacity) {
		uint32_t *ids = realloc(list->ids, 2 * needed * sizeof(*ids));

		if (ids == NULL) {
			outcome_fail(call->outcome, ERROR_NOT_ENOUGH_MEMORY, NULL);
			return;
		}
		list->ids = ids;
		list->capacity = 2 * needed;
	}
	while (json_next(&cursor, &id))
		list->ids[list->count++] = (uint32_t)id.integer;
}

static void answer(struct call *call, const struct reply *reply)
{
	if (reply->kind == REPLY_ERROR) {
		call->outcome->error = reply->error.win32;
		/* It was under way when another thread closed the handle, and came behind that at the daemon. */
		if (call->outcome->error == ERROR_INVALID_HANDLE)
			call->outcome->error = ERROR_OPERATION_ABORTED;
		reply_error_text(reply, call->outcome->text, sizeof(call->outcome->text));
		return;
	}
	if (reply->kind != call->expected) {
		outcome_fail(call->outcome, ERROR_GEN_FAILURE, foreign);
		return;
	}
	outcome_succeed(call->outcome);
	call->reply = *reply;
	if (reply->kind == REPLY_FLOW_IDS && call->ids != NULL)
		keep_ids(call, reply);
}

static void deliver(struct connection *connection, size_t bytes)
{
	struct call *call = connection->newest;
	struct reply reply;

	if (!reply_read(connection->buffer, bytes, &reply)) {
		lose(connection, ERROR_DEVICE_REINITIALIZATION_NEEDED,
		     "what came is no reply: library and daemon of different versions?");
		return;
	}
	if (reply.id == 0 && reply.kind == REPLY_ERROR) {
		/* The daemon's last words: it is full, say. */
		char text[OUTCOME_TEXT_BYTES];

		reply_error_text(&reply, text, sizeof(text));
		lose(connection, reply.error.win32, text);
		return;
	}
	while (call != NULL && call->id != reply.id)
		call = call->older;
	if (call == NULL) {
		lose(connection, ERROR_DEVICE_REINITIALIZATION_NEEDED, foreign);
		return;
	}
	answer(call, &reply);
	complete(connection, call);
}

/* Where a reply is to be expected soon. */
static enum transport_result receive_awake(struct connection *connection, size_t *bytes)
{
	enum transport_result result;

	if (!vigil_is_due(&connection->vigil))
		return TRANSPORT_LATE;
	result = transport_look(connection->fd, connection->buffer, sizeof(connection->buffer),
				transport_now_ns() + VIGIL_AWAKE_NS, bytes);
	vigil_ends(&connection->vigil, result == TRANSPORT_DONE);
	return result;
}

void connection_receive(struct connection *connection, int64_t deadline_ns, bool direct)
{
	enum transport_result result = TRANSPORT_LATE;
	size_t bytes;

	connection->receiving = true;
	pthread_mutex_unlock(&connection->lock);
	if (direct)
		result = receive_awake(connection, &bytes);
	if (result == TRANSPORT_LATE)
		result = transport_receive(connection->fd, connection->buffer, sizeof(connection->buffer), deadline_ns,
					   direct, &bytes);
	pthread_mutex_lock(&connection->lock);
	connection->receiving = false;
	if (result == TRANSPORT_DONE)
		deliver(connection, bytes);
	else if (result == TRANSPORT_LOST)
		lose(connection, ERROR_DEVICE_REINITIALIZATION_NEEDED, NULL);
}

void connection_hand_over(struct connection *connection)
{
	struct call *call = connection->newest;

	while (call != NULL && !call->asleep)
		call = call->older;
	if (call != NULL)
		pthread_cond_signal(&call->wake);
	else if (connection->unattended > 0)
		pthread_cond_signal(&connection->helper_wake);
}

/* ---- The waiting thread ---------------------------------------------------------------------------------- */

void connection_send(struct connection *connection, struct call *call, const struct request *request, int descriptor,
		     DWORD not_open)
{
	enum transport_result result =
		transport_send(connection->fd, request->text, request->bytes, descriptor, call->deadline_ns);

	/* Of a daemon that is gone, whoever receives finds the last words and then the end. */
	if (result == TRANSPORT_DONE || result == TRANSPORT_LOST)
		return;
	pthread_mutex_lock(&connection->lock);
	if (result == TRANSPORT_LATE) {
		lose(connection, ERROR_DEVICE_REINITIALIZATION_NEEDED, unresponsive);
	} else if (!call->done) { /* otherwise the connection was lost before, which completed the call */
		if (result == TRANSPORT_REFUSED)
			outcome_fail(call->outcome, not_open, "the socket is not open");
		else if (result == TRANSPORT_NO_ROOM)
			outcome_fail(call->outcome, ERROR_NO_SYSTEM_RESOURCES,
				     "too many descriptors of this user are under way");
		else
			outcome_fail(call->outcome, ERROR_NOT_ENOUGH_MEMORY, NULL);
		complete(connection, call);
	}
	pthread_mutex_unlock(&connection->lock);
}

static void sleep_until_woken(struct connection *connection, struct call *call)
{
	if (!call->asleep) {
		init_monotonic(&call->wake);
		call->asleep = true;
	}
	if (call->deadline_ns == TRANSPORT_NEVER) {
		pthread_cond_wait(&call->wake, &connection->lock);
	} else {
		struct timespec until = {
			.tv_sec = (time_t)(call->deadline_ns / 1000000000),
			.tv_nsec = (long)(call->deadline_ns % 1000000000),
		};

		pthread_cond_timedwait(&call->wake, &connection->lock, &until);
	}
}

void connection_await(struct connection *connection, struct call *call)
{
	bool direct = call->deadline_ns != TRANSPORT_NEVER;

	pthread_mutex_lock(&connection->lock);
	while (!call->done) {
		if (!connection->receiving) {
			connection_receive(connection, call->deadline_ns, direct);
			direct = false;
		} else {
			sleep_until_woken(connection, call);
		}
		if (!call->done && call->deadline_ns != TRANSPORT_NEVER && transport_now_ns() >= call->deadline_ns)
			lose(connection, ERROR_DEVICE_REINITIALIZATION_NEEDED, unresponsive);
	}
	if (!connection->receiving)
		connection_hand_over(connection);
	pthread_mutex_unlock(&connection->lock);
	if (call->asleep)
		pthread_cond_destroy(&call->wake);
}

/* ---- Its beginning and its end --------------------------------------------------------------------------- */

bool connection_open(struct connection *connection, struct outcome *outcome)
{
	int64_t deadline_ns = transport_now_ns() + TRANSPORT_TIMEOUT_NS;
	struct call call = {.expected = REPLY_OPENED, .deadline_ns = deadline_ns, .outcome = outcome};
	struct request request;

	/* Under the lock, so that a child forked meanwhile has it closed. */
	pthread_mutex_lock(&connection->lock);
	connection->fd = transport_socket(outcome);
	pthread_mutex_unlock(&connection->lock);
	if (connection->fd < 0 || !transport_connect(connection->fd, transport_path(), deadline_ns, outcome) ||
	    !connection_enlist(connection, &call))
		return false;
	request_begin(&request, "open_handle", call.id);
	request_finish(&request);
	connection_send(connection, &call, &request, -1, ERROR_GEN_FAILURE);
	connection_await(connection, &call);
	if (outcome->error == ERROR_DEVICE_REINITIALIZATION_NEEDED)
		outcome_fail(outcome, ERROR_SERVICE_DEPENDENCY_FAIL, "the daemon does not answer (see its log)");
	return outcome->error == ERROR_SUCCESS;
}

void connection_close(struct connection *connection)
{
	struct outcome outcome;
	struct call call = {
		.expected = REPLY_DONE,
		.deadline_ns = transport_now_ns() + TRANSPORT_TIMEOUT_NS,
		.outcome = &outcome,
	};
	struct request request;
	bool asked;

	pthread_mutex_lock(&connection->lock);
	asked = connection->fd >= 0 && connection_enlist_locked(connection, &call);
	if (asked)
		atomic_store(&connection->state, CONNECTION_CLOSING);
	pthread_mutex_unlock(&connection->lock);
	if (asked) {
		/* Whatever the answer is, the end of the connection ends the handle as well. */
		request_begin(&request, "close_handle", call.id);
		request_finish(&request);
		connection_send(connection, &call, &request, -1, ERROR_GEN_FAILURE);
		connection_await(connection, &call);
	}
	pthread_mutex_lock(&connection->lock);
	lose(connection, ERROR_OPERATION_ABORTED, "the handle was closed");
	pthread_mutex_unlock(&connection->lock);
	helper_join(connection);
}
