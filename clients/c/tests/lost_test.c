/* SPDX-License-Identifier: MIT */
/* A daemon that is not there, goes away, comes back. */
#include "stage.h"

#include <pthread.h>

static HANDLE handle;

static void *block(void *argument)
{
	EXPECT_ERROR(ERROR_DEVICE_REINITIALIZATION_NEEDED,
		     QOSNotifyFlow(handle, *(QOS_FLOWID *)argument, QOSNotifyUncongested, NULL, NULL, 0, NULL));
	return NULL;
}

static void expect_lost(QOS_FLOWID flow, SOCKET sock)
{
	struct sockaddr_in address = peer(7);
	UINT64 bandwidth;
	ULONG size = sizeof(bandwidth);
	DWORD dscp = 46;

	for (int again = 0; again < 2; again++) {
		EXPECT_ERROR(ERROR_DEVICE_REINITIALIZATION_NEEDED,
			     QOSSetFlow(handle, flow, QOSSetOutgoingDSCPValue, sizeof(dscp), &dscp, 0, NULL));
		EXPECT_ERROR(ERROR_DEVICE_REINITIALIZATION_NEEDED,
			     QOSQueryFlow(handle, flow, QOSQueryOutgoingRate, &size, &bandwidth, 0, NULL));
		EXPECT_ERROR(ERROR_DEVICE_REINITIALIZATION_NEEDED, QOSRemoveSocketFromFlow(handle, 0, flow, 0));
		EXPECT_ERROR(ERROR_DEVICE_REINITIALIZATION_NEEDED,
			     QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, NULL));
		EXPECT_ERROR(ERROR_DEVICE_REINITIALIZATION_NEEDED,
			     QOSStartTrackingClient(handle, (PSOCKADDR)&address, 0));
		EXPECT_ERROR(ERROR_DEVICE_REINITIALIZATION_NEEDED, QOSEnumerateFlows(handle, &size, NULL));
		EXPECT_ERROR(ERROR_DEVICE_REINITIALIZATION_NEEDED,
			     QOSAddSocketToFlow(handle, sock, (PSOCKADDR)&address, QOSTrafficTypeVoice,
						QOS_NON_ADAPTIVE_FLOW, &flow));
	}
}

static void test_gone_and_back(void)
{
	QOS_VERSION version = {1, 0};
	SOCKET sock = udp_socket();
	OVERLAPPED pending = overlapped(EFD_NONBLOCK);
	QOS_FLOWID flow;
	HANDLE second, never = NULL;
	pthread_t blocks;

	handle = create();
	second = create();
	flow = add(handle, sock, 7, 0);
	EXPECT_ERROR(ERROR_IO_PENDING, QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, &pending));
	EXPECT_EQUAL(0, pthread_create(&blocks, NULL, block, &flow));
	while (stage("pending") != 2)
		sleep_ms(1);
	stage("stop");
	expect_completed(&pending, ERROR_DEVICE_REINITIALIZATION_NEEDED);
	EXPECT_EQUAL(0, pthread_join(blocks, NULL));
	expect_lost(flow, sock);
	EXPECT_ERROR(ERROR_SERVICE_DEPENDENCY_FAIL, QOSCreateHandle(&version, &never));
	EXPECT(never == NULL);
	stage("start");
	/* What was lost stays lost; what is new works. */
	expect_lost(flow, sock);
	EXPECT_OK(QOSCloseHandle(handle));
	EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	/* One that had nothing to do meanwhile finds out by its first call. */
	EXPECT_ERROR(ERROR_DEVICE_REINITIALIZATION_NEEDED, QOSRemoveSocketFromFlow(second, 0, flow, 0));
	EXPECT_OK(QOSCloseHandle(second));
	handle = create();
	flow = add(handle, sock, 7, QOS_NON_ADAPTIVE_FLOW);
	EXPECT_EQUAL(1, stage("flows"));
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	EXPECT_OK(QOSCloseHandle(handle));
	close(event_of(&pending));
	close(sock);
}

/* The end comes before the handle is closed, and nobody has noticed yet. */
static void test_close_after_the_end(void)
{
	HANDLE idle = create();

	stage("stop");
	EXPECT_OK(QOSCloseHandle(idle));
	stage("start");
}

int main(void)
{
	int descriptors = open_descriptors(), threads = threads_at_rest();

	for (int round = 0; round < 3; round++)
		test_gone_and_back();
	test_close_after_the_end();
	EXPECT_EQUAL(descriptors, open_descriptors());
	expect_threads(threads);
	return 0;
}
