/* SPDX-License-Identifier: MIT */
/* QOSCreateHandle, QOSCloseHandle and QOSEnumerateFlows: what concerns a handle as a whole. */
#include <stdlib.h>
#include <string.h>

#include "handles.h"
#include "visit.h"

static void create_handle(struct visit *visit, const QOS_VERSION *version, PHANDLE handle)
{
	struct connection *connection;
	HANDLE reserved;

	if (version == NULL || handle == NULL) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "a NULL pointer");
		return;
	}
	if (version->MajorVersion != 1 || version->MinorVersion != 0) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "there is no version but 1.0");
		return;
	}
	connection = connection_new();
	if (connection == NULL) {
		outcome_fail(&visit->outcome, ERROR_NOT_ENOUGH_MEMORY, NULL);
		return;
	}
	reserved = handles_reserve(connection);
	if (reserved == NULL) {
		outcome_fail(&visit->outcome, ERROR_NO_SYSTEM_RESOURCES, "this process has too many handles");
		connection_release(connection);
		return;
	}
	if (!connection_open(connection, &visit->outcome)) {
		handles_forget(reserved);
		return;
	}
	handles_publish(reserved);
	*handle = reserved;
}

BOOL QOSCreateHandle(PQOS_VERSION Version, PHANDLE QOSHandle)
{
	struct visit visit;

	visit_begin(&visit);
	create_handle(&visit, Version, QOSHandle);
	return visit_end(&visit);
}

BOOL QOSCloseHandle(HANDLE QOSHandle)
{
	struct visit visit;

	visit_begin(&visit);
	if (!handles_retire(QOSHandle, &visit.connection)) {
		/* Here and nowhere else a bad handle is a bad parameter, as on Windows. */
		outcome_fail(&visit.outcome, ERROR_INVALID_PARAMETER, "no open handle of this process");
	} else if (visit.connection != NULL) {
		connection_close(visit.connection);
		handles_forget(QOSHandle);
	}
	return visit_end(&visit);
}

/* All pages of one list. */
static void read_ids(struct visit *visit, struct id_list *list)
{
	struct call call;
	struct request request;

	do {
		call = visit_call(visit, REPLY_FLOW_IDS);
		call.ids = list;
		if (!connection_enlist(visit->connection, &call))
			return;
		request_begin(&request, "enumerate", call.id);
		request_number(&request, "after", (int64_t)list->count);
		visit_ask(visit, &call, &request);
	} while (visit->outcome.error == ERROR_SUCCESS && call.reply.flows.more);
}

static void enumerate_flows(struct visit *visit, PULONG size, PVOID buffer)
{
	struct id_list list = {.ids = NULL};
	ULONG needed;

	if (size == NULL || (buffer == NULL && *size != 0)) {
		outcome_fail(&visit->outcome, ERROR_INVALID_PARAMETER, "a NULL pointer");
		return;
	}
	read_ids(visit, &list);
	needed = (ULONG)(list.count * sizeof(QOS_FLOWID));
	if (visit->outcome.error == ERROR_SUCCESS) {
		if (needed > *size)
			outcome_fail(&visit->outcome, ERROR_INSUFFICIENT_BUFFER, NULL);
		else if (needed > 0)
			memcpy(buffer, list.ids, needed);
		*size = needed;
	}
	free(list.ids);
}

BOOL QOSEnumerateFlows(HANDLE QOSHandle, PULONG Size, PVOID Buffer)
{
	struct visit visit;

	if (visit_enter(&visit, QOSHandle))
		enumerate_flows(&visit, Size, Buffer);
	return visit_end(&visit);
}
