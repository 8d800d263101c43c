/* SPDX-License-Identifier: MIT */
/* QOSNotifyFlow and QOSCancel. */
#include <string.h>

#include "overlapped.h"
#include "transport.h"
#include "visit.h"

static void write_notify(struct request *request, uint64_t id, QOS_FLOWID flow, QOS_NOTIFY_FLOW operation,
			 UINT64 bandwidth)
{
	request_begin(request, "notify", id);
	request_number(request, "flow", flow);
	request_number(request, "condition", operation);
	if (operation == QOSNotifyAvailable) {
		/* The protocol's numbers are signed; so much is never available. */
		request_number(request, "bandwidth", bandwidth > INT64_MAX ? INT64_MAX : (int64_t)bandwidth);
	}
}

static void notify_now(struct visit *visit, QOS_FLOWID flow, QOS_NOTIFY_FLOW operation, UINT64 bandwidth,
		       const struct answer *answer)
{
	struct call call = visit_call(visit, REPLY_DONE);
	struct request request;

	call.deadline_ns = TRANSPORT_NEVER;
	if (!connection_enlist(visit->connection, &call))
		return;
	write_notify(&request, call.id, flow, operation, bandwidth);
	visit_ask(visit, &call, &request);
	answer_settle(answer, &visit->outcome, &call.reply);
}

static void notify_later(struct visit *visit, QOS_FLOWID flow, QOS_NOTIFY_FLOW operation, UINT64 bandwidth,
			 const struct answer *answer, LPOVERLAPPED overlapped)
{
	struct operation *pending = overlapped_enlist(visit, overlapped, REPLY_DONE, answer);
	struct request request;

	if (pending == NULL)
		return;
	write_notify(&request, pending->call.id, flow, operation, bandwidth);
	overlapped_begin(visit, pending, &request, flow);
}

static void notify_flow(struct visit *visit, QOS_FLOWID flow, QOS_NOTIFY_FLOW operation, PULONG size, PVOID buffer,
			DWORD flags, LPOVERLAPPED overlapped)
{
	struct answer answer = {.kind = ANSWER_NOTHING, .size = size};
	UINT64 bandwidth = 0;

	if ((unsigned int)operation > QOSNotifyAvailable) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Operation is none of QOS_NOTIFY_FLOW");
		return;
	}
	if (flags != 0) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Flags are 0");
		return;
	}
	if (operation != QOSNotifyAvailable && (size != NULL || buffer != NULL)) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER,
			     "Size and Buffer are for QOSNotifyAvailable only, else NULL");
		return;
	}
	if (operation == QOSNotifyAvailable) {
		if (size == NULL || buffer == NULL) {
			outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Size or Buffer is NULL");
			return;
		}
		answer.kind = ANSWER_AVAILABLE;
		answer.room = *size;
		/* Without a number to be had, the daemon is asked for 0: what else is wrong comes first. */
		if (!answer_lacks_room(&answer))
			memcpy(&bandwidth, buffer, sizeof(bandwidth));
	}
	if (overlapped == NULL)
		notify_now(visit, flow, operation, bandwidth, &answer);
	else
		notify_later(visit, flow, operation, bandwidth, &answer, overlapped);
}

BOOL QOSNotifyFlow(HANDLE QOSHandle, QOS_FLOWID FlowId, QOS_NOTIFY_FLOW Operation, PULONG Size, PVOID Buffer,
		   DWORD Flags, LPOVERLAPPED Overlapped)
{
	struct visit visit;

	if (visit_enter(&visit, QOSHandle))
		notify_flow(&visit, FlowId, Operation, Size, Buffer, Flags, Overlapped);
	return visit_end(&visit);
}

BOOL QOSCancel(HANDLE QOSHandle, LPOVERLAPPED Overlapped)
{
	struct visit visit;

	if (visit_enter(&visit, QOSHandle)) {
		if (Overlapped == NULL)
			outcome_fail(&visit.outcome, ERROR_INVALID_PARAMETER, "Overlapped is NULL");
		else
			overlapped_cancel(&visit, Overlapped);
	}
	return visit_end(&visit);
}
