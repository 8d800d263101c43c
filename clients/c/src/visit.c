/* SPDX-License-Identifier: MIT */
/* One call of a program into the library; see visit.h. */
#include "visit.h"

#include <errno.h>

#include "handles.h"
#include "transport.h"

void visit_begin(struct visit *visit)
{
	outcome_succeed(&visit->outcome);
	visit->connection = NULL;
	visit->errno_before = errno;
	/* A thread that ended within recv() would leave the others without anybody who receives. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &visit->cancel_before);
}

bool visit_enter(struct visit *visit, HANDLE handle)
{
	visit_begin(visit);
	visit->connection = handles_acquire(handle);
	if (visit->connection == NULL) {
		outcome_fail(&visit->outcome, ERROR_INVALID_HANDLE, NULL);
		return false;
	}
	if (atomic_load(&visit->connection->state) == CONNECTION_LOST) {
		outcome_fail(&visit->outcome, ERROR_DEVICE_REINITIALIZATION_NEEDED, NULL);
		return false;
	}
	return true;
}

BOOL visit_end(struct visit *visit)
{
	BOOL succeeded = visit->outcome.error == ERROR_SUCCESS;

	if (visit->connection != NULL)
		connection_release(visit->connection);
	if (!succeeded)
		outcome_publish(&visit->outcome);
	pthread_setcancelstate(visit->cancel_before, NULL);
	errno = visit->errno_before;
	return succeeded;
}

struct call visit_call(struct visit *visit, enum reply_kind expected)
{
	struct call call = {
		.expected = expected,
		.deadline_ns = transport_now_ns() + TRANSPORT_TIMEOUT_NS,
		.outcome = &visit->outcome,
	};

	return call;
}

void visit_ask(struct visit *visit, struct call *call, struct request *request)
{
	visit_ask_with(visit, call, request, -1, ERROR_GEN_FAILURE);
}

void visit_ask_with(struct visit *visit, struct call *call, struct request *request, int descriptor, DWORD not_open)
{
	request_finish(request);
	connection_send(visit->connection, call, request, descriptor, not_open);
	connection_await(visit->connection, call);
}
