/* SPDX-License-Identifier: MIT */
/*
 * Makes the calls that it is told by lines on stdin, and says for each what GetLastError() and the message are: for
 * tests whose daemon is a script that misbehaves. Its handle is one at a time, its socket one for all.
 */
#include "stage.h"

static HANDLE handle;
static OVERLAPPED pending;
static SOCKET sock;

static BOOL make(const char *call)
{
	struct sockaddr_in address = peer(7);
	QOS_VERSION version = {1, 0};
	QOS_FLOW_FUNDAMENTALS known;
	QOS_FLOWID flow = 0;
	UINT64 bandwidth = 0;
	ULONG size = sizeof(known);
	DWORD bytes;
	static QOS_FLOWID ids[1 << 16];

	if (strcmp(call, "create") == 0)
		return QOSCreateHandle(&version, &handle);
	if (strcmp(call, "close") == 0)
		return QOSCloseHandle(handle);
	if (strcmp(call, "add") == 0)
		return QOSAddSocketToFlow(handle, sock, (PSOCKADDR)&address, QOSTrafficTypeVoice, 2, &flow);
	if (strcmp(call, "rate") == 0) {
		size = sizeof(bandwidth);
		return QOSQueryFlow(handle, 1, QOSQueryOutgoingRate, &size, &bandwidth, 0, NULL);
	}
	if (strcmp(call, "fundamentals") == 0)
		return QOSQueryFlow(handle, 1, QOSQueryFlowFundamentals, &size, &known, 0, NULL);
	if (strcmp(call, "notify") == 0)
		return QOSNotifyFlow(handle, 1, QOSNotifyCongested, NULL, NULL, 0, &pending);
	if (strcmp(call, "result") == 0)
		return GetOverlappedResult(handle, &pending, &bytes, FALSE);
	if (strcmp(call, "enumerate") == 0) {
		size = sizeof(ids);
		return QOSEnumerateFlows(handle, &size, ids);
	}
	EXPECT_EQUAL(0, strcmp(call, "remove"));
	return QOSRemoveSocketFromFlow(handle, 0, 1, 0);
}

int main(void)
{
	int descriptors = open_descriptors(), threads = threads_at_rest();
	char line[64];

	sock = udp_socket();
	while (fgets(line, sizeof(line), stdin) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		if (make(line))
			printf("0\n");
		else
			printf("%u %s\n", (unsigned int)GetLastError(), qos2_last_error_message());
		fflush(stdout);
	}
	close(sock);
	EXPECT_EQUAL(descriptors, open_descriptors());
	expect_threads(threads);
	return 0;
}
