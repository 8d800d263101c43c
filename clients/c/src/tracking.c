/* SPDX-License-Identifier: MIT */
/* QOSStartTrackingClient and QOSStopTrackingClient. */
#include "address.h"
#include "visit.h"

static void track(struct visit *visit, const char *op, PSOCKADDR dest, DWORD flags)
{
	struct call call = visit_call(visit, REPLY_DONE);
	struct request request;
	struct address address;

	if (flags != 0) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "Flags are 0");
		return;
	}
	if (!address_read(dest, &address)) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "DestAddr is neither AF_INET nor AF_INET6");
		return;
	}
	if (!connection_enlist(visit->connection, &call))
		return;
	request_begin(&request, op, call.id);
	request_text(&request, "address", address.text);
	visit_ask(visit, &call, &request);
}

BOOL QOSStartTrackingClient(HANDLE QOSHandle, PSOCKADDR DestAddr, DWORD Flags)
{
	struct visit visit;

	if (visit_enter(&visit, QOSHandle))
		track(&visit, "start_tracking", DestAddr, Flags);
	return visit_end(&visit);
}

BOOL QOSStopTrackingClient(HANDLE QOSHandle, PSOCKADDR DestAddr, DWORD Flags)
{
	struct visit visit;

	if (visit_enter(&visit, QOSHandle))
		track(&visit, "stop_tracking", DestAddr, Flags);
	return visit_end(&visit);
}
