/* SPDX-License-Identifier: MIT */
/* Calls with an OVERLAPPED; see overlapped.h. */
#include "overlapped.h"

#include <stdlib.h>

#include "event.h"
#include "helper.h"
#include "transport.h"

static void store_internal(LPOVERLAPPED overlapped, ULONG_PTR status)
{
	__atomic_store_n(&overlapped->Internal, status, __ATOMIC_RELEASE);
}

static ULONG_PTR load_internal(const OVERLAPPED *overlapped)
{
	return __atomic_load_n(&overlapped->Internal, __ATOMIC_ACQUIRE);
}

/* ---- Calls that complete at once ------------------------------------------------------------------------- */

static bool is_busy(struct connection *connection, LPOVERLAPPED overlapped)
{
	bool busy;

	pthread_mutex_lock(&connection->lock);
	busy = connection_find(connection, overlapped) != NULL;
	pthread_mutex_unlock(&connection->lock);
	return busy;
}

bool overlapped_prepare(struct visit *visit, LPOVERLAPPED overlapped, int *event)
{
	*event = -1;
	if (overlapped == NULL)
		return true;
	if (is_busy(visit->connection, overlapped)) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "a call is under way with this OVERLAPPED");
		return false;
	}
	if (!event_take(overlapped->hEvent, event, &visit->outcome))
		return false;
	overlapped->InternalHigh = 0;
	store_internal(overlapped, STATUS_PENDING);
	return true;
}

void overlapped_finish(const struct visit *visit, LPOVERLAPPED overlapped, int event, ULONG bytes)
{
	if (overlapped != NULL) {
		overlapped->InternalHigh = bytes;
		store_internal(overlapped, visit->outcome.error);
	}
	/* A call that returns an error has not begun anything that could be waited for. */
	if (visit->outcome.error == ERROR_SUCCESS)
		event_signal(event);
	else
		event_drop(event);
}

/* ---- Calls that may take their time ---------------------------------------------------------------------- */

/* With the lock held. */
static void completed(struct connection *connection, struct call *call)
{
	struct operation *operation = (struct operation *)call;
	LPOVERLAPPED overlapped = call->overlapped;

	if (--connection->unattended == 0)
		pthread_cond_signal(&connection->helper_wake);
	if (operation->beginning)
		return;
	overlapped->InternalHigh = answer_settle(&operation->answer, &operation->outcome, &call->reply);
	store_internal(overlapped, operation->outcome.error);
	event_signal(operation->event);
	free(operation);
	pthread_cond_broadcast(&connection->completed);
}

/* In a forked child. */
static void abandoned(struct call *call)
{
	struct operation *operation = (struct operation *)call;

	event_drop(operation->event);
	free(operation);
}

static bool enlist(struct connection *connection, struct operation *operation)
{
	bool enlisted = false;

	pthread_mutex_lock(&connection->lock);
	if (connection_enlist_locked(connection, &operation->call)) {
		connection->unattended++;
		enlisted = helper_start(connection);
		if (enlisted) {
			connection->beginning++;
		} else {
			connection->unattended--;
			connection_withdraw(connection, &operation->call);
			outcome_fail(&operation->outcome, ERROR_NO_SYSTEM_RESOURCES, "no thread can be made");
		}
	}
	pthread_mutex_unlock(&connection->lock);
	return enlisted;
}

struct operation *overlapped_enlist(struct visit *visit, LPOVERLAPPED overlapped, enum reply_kind expected,
				    const struct answer *answer)
{
	struct operation *operation = malloc(sizeof(*operation));
	int event;

	if (operation == NULL) {
		outcome_fail(&visit->outcome, ERROR_NOT_ENOUGH_MEMORY, NULL);
		return NULL;
	}
	if (!overlapped_prepare(visit, overlapped, &event)) {
		free(operation);
		return NULL;
	}
	operation->call = (struct call){
		.expected = expected,
		.deadline_ns = TRANSPORT_NEVER,
		.outcome = &operation->outcome,
		.overlapped = overlapped,
		.completed = completed,
		.abandoned = abandoned,
	};
	outcome_succeed(&operation->outcome);
	operation->answer = *answer;
	operation->event = event;
	operation->beginning = true;
	if (!enlist(visit->connection, operation)) {
		outcome_fail(&visit->outcome, operation->outcome.error, operation->outcome.text);
		overlapped_finish(visit, overlapped, event, 0);
		free(operation);
		return NULL;
	}
	return operation;
}

/*
 * The daemon deals with the requests of a connection one after the other. So when it has answered a question that was
 * put behind a request, that request is refused, fulfilled, or really pending. What the answer is does not matter.
 */
static void wait_until_looked_at(struct connection *connection, QOS_FLOWID flow)
{
	struct outcome unread;
	struct call question = {
		.expected = REPLY_RATE,
		.deadline_ns = transport_now_ns() + TRANSPORT_TIMEOUT_NS,
		.outcome = &unread,
	};
	struct request request;

	if (!connection_enlist(connection, &question))
		return;
	request_begin(&request, "rate", question.id);
	request_number(&request, "flow", flow);
	request_finish(&request);
	connection_send(connection, &question, &request, -1, ERROR_GEN_FAILURE);
	connection_await(connection, &question);
}

void overlapped_begin(struct visit *visit, struct operation *operation, struct request *request, QOS_FLOWID flow)
{
	struct connection *connection = visit->connection;
	LPOVERLAPPED overlapped = operation->call.overlapped;
	ULONG bytes;
	bool done;

	request_finish(request);
	connection_send(connection, &operation->call, request, -1, ERROR_GEN_FAILURE);
	wait_until_looked_at(connection, flow);
	pthread_mutex_lock(&connection->lock);
	operation->beginning = false;
	done = operation->call.done;
	if (!done)
		connection->beginning--;
	pthread_mutex_unlock(&connection->lock);
	if (!done) {
		/* Or complete and freed by now. */
		outcome_fail(&visit->outcome, ERROR_IO_PENDING, NULL);
		return;
	}
	bytes = answer_settle(&operation->answer, &operation->outcome, &operation->call.reply);
	outcome_fail(&visit->outcome, operation->outcome.error, operation->outcome.text);
	overlapped_finish(visit, overlapped, operation->event, bytes);
	free(operation);
	pthread_mutex_lock(&connection->lock);
	connection->beginning--;
	pthread_cond_broadcast(&connection->completed);
	pthread_mutex_unlock(&connection->lock);
}

void overlapped_cancel(struct visit *visit, LPOVERLAPPED overlapped)
{
	struct connection *connection = visit->connection;
	struct call call = visit_call(visit, REPLY_DONE), *pending;
	struct request request;
	uint64_t id = 0;

	pthread_mutex_lock(&connection->lock);
	pending = connection_find(connection, overlapped);
	if (pending != NULL)
		id = pending->id;
	pthread_mutex_unlock(&connection->lock);
	if (id == 0) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "nothing is pending with this OVERLAPPED");
		return;
	}
	if (!connection_enlist(connection, &call))
		return;
	request_begin(&request, "cancel", call.id);
	request_number(&request, "request", (int64_t)id);
	visit_ask(visit, &call, &request);
}

/* ---- GetOverlappedResult() ------------------------------------------------------------------------------- */

static void wait_for(struct visit *visit, LPOVERLAPPED overlapped)
{
	struct connection *connection = visit->connection;

	pthread_mutex_lock(&connection->lock);
	while (load_internal(overlapped) == STATUS_PENDING &&
	       (connection_find(connection, overlapped) != NULL || connection->beginning > 0))
		pthread_cond_wait(&connection->completed, &connection->lock);
	pthread_mutex_unlock(&connection->lock);
	if (load_internal(overlapped) == STATUS_PENDING)
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "no call of this handle has this OVERLAPPED");
}

__attribute__((weak)) BOOL GetOverlappedResult(HANDLE hFile, LPOVERLAPPED lpOverlapped,
					       LPDWORD lpNumberOfBytesTransferred, BOOL bWait)
{
	struct visit visit;
	ULONG_PTR status;

	if (lpOverlapped == NULL || lpNumberOfBytesTransferred == NULL) {
		visit_begin(&visit);
		outcome_fail(&visit.outcome, ERROR_INVALID_PARAMETER, "a NULL pointer");
		return visit_end(&visit);
	}
	if (load_internal(lpOverlapped) == STATUS_PENDING && bWait) {
		visit_enter(&visit, hFile);
		/* Where its daemon is gone, the call is complete or becomes so in this moment. */
		if (visit.connection != NULL)
			wait_for(&visit, lpOverlapped);
	} else {
		visit_begin(&visit);
		outcome_fail(&visit.outcome, ERROR_IO_INCOMPLETE, NULL);
	}
	status = load_internal(lpOverlapped);
	if (status != STATUS_PENDING) {
		*lpNumberOfBytesTransferred = (DWORD)lpOverlapped->InternalHigh;
		outcome_succeed(&visit.outcome);
		if (status != ERROR_SUCCESS)
			outcome_fail(&visit.outcome, (DWORD)status, NULL);
	}
	return visit_end(&visit);
}
