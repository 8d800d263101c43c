/* SPDX-License-Identifier: MIT */
/* QOSSetFlow and QOSQueryFlow. */
#include <string.h>

#include "answer.h"
#include "overlapped.h"
#include "transport.h"
#include "visit.h"

/* ---- QOSSetFlow ------------------------------------------------------------------------------------------ */

/* The bytes that an operation reads from its buffer; 0: there is no such operation. */
static ULONG bytes_to_set(QOS_SET_FLOW operation)
{
	switch (operation) {
	case QOSSetTrafficType:
		return sizeof(QOS_TRAFFIC_TYPE);
	case QOSSetOutgoingRate:
		return sizeof(QOS_FLOWRATE_OUTGOING);
	case QOSSetOutgoingDSCPValue:
		return sizeof(DWORD);
	}
	return 0;
}

/* The request's operation, and its values from a buffer that nothing aligns. The daemon judges them. */
static void write_setting(struct request *request, uint64_t id, QOS_FLOWID flow, QOS_SET_FLOW operation,
			  const void *buffer)
{
	QOS_FLOWRATE_OUTGOING rate;
	int32_t traffic_type;
	DWORD dscp;

	switch (operation) {
	case QOSSetTrafficType:
		memcpy(&traffic_type, buffer, sizeof(traffic_type));
		request_begin(request, "set_traffic_type", id);
		request_number(request, "traffic_type", traffic_type);
		break;
	case QOSSetOutgoingRate:
		memcpy(&rate, buffer, sizeof(rate));
		request_begin(request, "set_rate", id);
		/* The protocol's numbers are signed; both are far beyond what is allowed. */
		request_number(request, "bandwidth", rate.Bandwidth > INT64_MAX ? INT64_MAX : (int64_t)rate.Bandwidth);
		request_number(request, "shaping", (int32_t)rate.ShapingBehavior);
		request_number(request, "reason", (int32_t)rate.Reason);
		break;
	case QOSSetOutgoingDSCPValue:
		memcpy(&dscp, buffer, sizeof(dscp));
		request_begin(request, "set_dscp", id);
		request_number(request, "dscp", dscp);
		break;
	}
	request_number(request, "flow", flow);
}

static void set_flow(struct visit *visit, QOS_FLOWID flow, QOS_SET_FLOW operation, ULONG size, PVOID buffer,
		     DWORD flags, LPOVERLAPPED overlapped)
{
	ULONG needed = bytes_to_set(operation);
	struct call call = visit_call(visit, REPLY_DONE);
	struct request request;
	int event;

	if (needed == 0) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Operation is none of QOS_SET_FLOW");
		return;
	}
	if (buffer == NULL || size < needed) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Buffer is NULL or too small");
		return;
	}
	if (flags != 0) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Flags are 0");
		return;
	}
	if (!overlapped_prepare(visit, overlapped, &event))
		return;
	if (connection_enlist(visit->connection, &call)) {
		write_setting(&request, call.id, flow, operation, buffer);
		visit_ask(visit, &call, &request);
	}
	overlapped_finish(visit, overlapped, event, 0);
}

BOOL QOSSetFlow(HANDLE QOSHandle, QOS_FLOWID FlowId, QOS_SET_FLOW Operation, ULONG Size, PVOID Buffer, DWORD Flags,
		LPOVERLAPPED Overlapped)
{
	struct visit visit;

	if (visit_enter(&visit, QOSHandle))
		set_flow(&visit, FlowId, Operation, Size, Buffer, Flags, Overlapped);
	return visit_end(&visit);
}

/* ---- QOSQueryFlow ---------------------------------------------------------------------------------------- */

static void write_query(struct request *request, uint64_t id, QOS_FLOWID flow, QOS_QUERY_FLOW operation, bool fresh)
{
	static const char *const names[] = {
		[QOSQueryFlowFundamentals] = "fundamentals",
		[QOSQueryPacketPriority] = "priority",
		[QOSQueryOutgoingRate] = "rate",
	};

	request_begin(request, names[operation], id);
	request_number(request, "flow", flow);
	if (fresh)
		request_true(request, "fresh");
}

static void query_now(struct visit *visit, QOS_FLOWID flow, QOS_QUERY_FLOW operation, enum reply_kind expected,
		      bool fresh, const struct answer *answer, LPOVERLAPPED overlapped)
{
	struct call call = visit_call(visit, expected);
	struct request request;
	ULONG bytes = 0;
	int event;

	if (fresh)
		call.deadline_ns = TRANSPORT_NEVER;
	if (!overlapped_prepare(visit, overlapped, &event))
		return;
	if (connection_enlist(visit->connection, &call)) {
		write_query(&request, call.id, flow, operation, fresh);
		visit_ask(visit, &call, &request);
		bytes = answer_settle(answer, &visit->outcome, &call.reply);
	}
	overlapped_finish(visit, overlapped, event, bytes);
}

static void query_later(struct visit *visit, QOS_FLOWID flow, enum reply_kind expected, const struct answer *answer,
			LPOVERLAPPED overlapped)
{
	struct operation *operation = overlapped_enlist(visit, overlapped, expected, answer);
	struct request request;

	if (operation == NULL)
		return;
	write_query(&request, operation->call.id, flow, QOSQueryFlowFundamentals, true);
	overlapped_begin(visit, operation, &request, flow);
}

static void query_flow(struct visit *visit, QOS_FLOWID flow, QOS_QUERY_FLOW operation, PULONG size, PVOID buffer,
		       DWORD flags, LPOVERLAPPED overlapped)
{
	static const struct {
		enum answer_kind answer;
		enum reply_kind reply;
	} kinds[] = {
		[QOSQueryFlowFundamentals] = {ANSWER_FUNDAMENTALS, REPLY_FUNDAMENTALS},
		[QOSQueryPacketPriority] = {ANSWER_PRIORITY, REPLY_PRIORITY},
		[QOSQueryOutgoingRate] = {ANSWER_RATE, REPLY_RATE},
	};
	struct answer answer = {.size = size, .buffer = buffer};
	bool fresh;

	if ((unsigned int)operation > QOSQueryOutgoingRate) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Operation is none of QOS_QUERY_FLOW");
		return;
	}
	if (size == NULL || buffer == NULL) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Size or Buffer is NULL");
		return;
	}
	if ((flags & ~(DWORD)QOS_QUERYFLOW_FRESH) != 0) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Flags are 0 or QOS_QUERYFLOW_FRESH");
		return;
	}
	answer.kind = kinds[operation].answer;
	answer.room = *size;
	/* For an answer that cannot be given nobody needs to wait. */
	fresh = flags != 0 && operation == QOSQueryFlowFundamentals && !answer_lacks_room(&answer);
	if (fresh && overlapped != NULL)
		query_later(visit, flow, kinds[operation].reply, &answer, overlapped);
	else
		query_now(visit, flow, operation, kinds[operation].reply, fresh, &answer, overlapped);
}

BOOL QOSQueryFlow(HANDLE QOSHandle, QOS_FLOWID FlowId, QOS_QUERY_FLOW Operation, PULONG Size, PVOID Buffer, DWORD Flags,
		  LPOVERLAPPED Overlapped)
{
	struct visit visit;

	if (visit_enter(&visit, QOSHandle))
		query_flow(&visit, FlowId, Operation, Size, Buffer, Flags, Overlapped);
	return visit_end(&visit);
}
