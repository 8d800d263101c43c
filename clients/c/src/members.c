/* SPDX-License-Identifier: MIT */
/* QOSAddSocketToFlow and QOSRemoveSocketFromFlow. */
#include "address.h"
#include "visit.h"

/* Of QOSRemoveSocketFromFlow: the whole flow. */
#define NO_SOCKET 0

static void add_socket(struct visit *visit, SOCKET socket, PSOCKADDR dest, QOS_TRAFFIC_TYPE traffic_type, DWORD flags,
		       PQOS_FLOWID flow)
{
	struct call call = visit_call(visit, REPLY_ADDED);
	struct request request;
	struct address address;

	if (flow == NULL) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "FlowId is NULL");
		return;
	}
	if ((flags & ~(DWORD)QOS_NON_ADAPTIVE_FLOW) != 0) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Flags are 0 or QOS_NON_ADAPTIVE_FLOW");
		return;
	}
	if (socket < 0) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Socket is no descriptor");
		return;
	}
	if (dest != NULL && !address_read(dest, &address)) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "DestAddr is neither AF_INET nor AF_INET6");
		return;
	}
	if (!connection_enlist(visit->connection, &call))
		return;
	request_begin(&request, "add_socket", call.id);
	/* As a signed number: the daemon judges also what is none of the enumeration. */
	request_number(&request, "traffic_type", (int32_t)traffic_type);
	request_number(&request, "flow", *flow);
	if (dest != NULL) {
		request_text(&request, "address", address.text);
		request_number(&request, "port", address.port);
	}
	if (flags == 0)
		request_true(&request, "adaptive");
	visit_ask_with(visit, &call, &request, socket, ERROR_INVALID_PARAMETER);
	if (visit->outcome.error == ERROR_SUCCESS)
		*flow = call.reply.flow;
}

BOOL QOSAddSocketToFlow(HANDLE QOSHandle, SOCKET Socket, PSOCKADDR DestAddr, QOS_TRAFFIC_TYPE TrafficType, DWORD Flags,
			PQOS_FLOWID FlowId)
{
	struct visit visit;

	if (visit_enter(&visit, QOSHandle))
		add_socket(&visit, Socket, DestAddr, TrafficType, Flags, FlowId);
	return visit_end(&visit);
}

static void remove_socket(struct visit *visit, SOCKET socket, QOS_FLOWID flow, DWORD flags)
{
	struct call call = visit_call(visit, REPLY_DONE);
	struct request request;

	if (flags != 0) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Flags are 0");
		return;
	}
	if (socket < 0) {
		outcome_fail(&visit->outcome, ERROR_NOT_FOUND, "Socket is no descriptor (0 means the whole flow)");
		return;
	}
	if (!connection_enlist(visit->connection, &call))
		return;
	request_begin(&request, "remove_socket", call.id);
	request_number(&request, "flow", flow);
	/* A socket that is closed by now has left its flow, and what is no socket was never in it. */
	visit_ask_with(visit, &call, &request, socket == NO_SOCKET ? -1 : socket, ERROR_NOT_FOUND);
	if (visit->outcome.error == ERROR_INVALID_PARAMETER)
		visit->outcome.error = ERROR_NOT_FOUND;
}

BOOL QOSRemoveSocketFromFlow(HANDLE QOSHandle, SOCKET Socket, QOS_FLOWID FlowId, DWORD Flags)
{
	struct visit visit;

	if (visit_enter(&visit, QOSHandle))
		remove_socket(&visit, Socket, FlowId, Flags);
	return visit_end(&visit);
}
