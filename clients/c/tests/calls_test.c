/* SPDX-License-Identifier: MIT */
/* A tour of the eleven calls: what they return, what they write, what they leave open. */
#include "stage.h"

#include <errno.h>
#include <fcntl.h>

static void test_bad_handles(void)
{
	HANDLE closed = create();
	HANDLE bad[] = {NULL, INVALID_HANDLE_VALUE, (HANDLE)(uintptr_t)4, (HANDLE)(uintptr_t)0x7ffffffc, NULL, NULL};
	QOS_FLOWID flow = 0;
	ULONG size = 0;

	EXPECT_OK(QOSCloseHandle(closed));
	bad[4] = closed;
	bad[5] = &flow;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		EXPECT_ERROR(ERROR_INVALID_PARAMETER, QOSCloseHandle(bad[i]));
		EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSEnumerateFlows(bad[i], &size, NULL));
		EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSAddSocketToFlow(bad[i], -1, NULL, 0, 99, NULL));
		EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSRemoveSocketFromFlow(bad[i], 0, 0, 99));
		EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSSetFlow(bad[i], 0, 0, 0, NULL, 99, NULL));
		EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSQueryFlow(bad[i], 0, 0, NULL, NULL, 99, NULL));
		EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSNotifyFlow(bad[i], 0, 0, NULL, NULL, 99, NULL));
		EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSCancel(bad[i], NULL));
		EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSStartTrackingClient(bad[i], NULL, 99));
		EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSStopTrackingClient(bad[i], NULL, 99));
	}
}

/* A place in the table is given out again and again, its handle never. */
static void test_handles_are_not_used_again(void)
{
	enum {
		ROUNDS = 200
	};
	static HANDLE had[ROUNDS];

	for (int i = 0; i < ROUNDS; i++) {
		had[i] = create();
		for (int j = 0; j < i; j++)
			EXPECT(had[j] != had[i]);
		EXPECT_OK(QOSCloseHandle(had[i]));
	}
}

static void test_many_handles(void)
{
	static HANDLE open[300];
	size_t count = sizeof(open) / sizeof(open[0]);

	for (size_t i = 0; i < count; i++)
		open[i] = create();
	EXPECT_EQUAL(count, stage("handles"));
	for (size_t i = 0; i < count; i++)
		EXPECT_OK(QOSCloseHandle(open[i]));
	EXPECT_EQUAL(0, stage("handles"));
}

static void test_errno_is_left_alone(void)
{
	HANDLE handle = create();

	errno = ENOTDIR;
	EXPECT_ERROR(ERROR_NOT_FOUND, QOSRemoveSocketFromFlow(handle, 999, 1, 0));
	EXPECT_EQUAL(ENOTDIR, errno);
	EXPECT_OK(QOSCloseHandle(handle));
	EXPECT_EQUAL(ENOTDIR, errno);
}

static void test_messages(void)
{
	HANDLE handle = create();

	EXPECT_ERROR(ERROR_NOT_FOUND, QOSRemoveSocketFromFlow(handle, 0, 77, 0));
	EXPECT(strstr(qos2_last_error_message(), "77") != NULL);
	EXPECT(strstr(qos2_last_error_message(), "(") != NULL); /* the hint */
	/* Words are told only of the error that they are about. */
	SetLastError(ERROR_NO_DATA);
	EXPECT(strstr(qos2_last_error_message(), "77") == NULL);
	SetLastError(ERROR_NOT_FOUND);
	EXPECT(strstr(qos2_last_error_message(), "77") != NULL);
	SetLastError(0);
	EXPECT_EQUAL(0, strcmp(qos2_last_error_message(), ""));
	EXPECT_OK(QOSCloseHandle(handle));
}

static void test_flow(void)
{
	HANDLE handle = create();
	SOCKET sock = udp_socket();
	QOS_FLOWID flow = add(handle, sock, 7, QOS_NON_ADAPTIVE_FLOW), same = flow;
	QOS_FLOWRATE_OUTGOING rate = {2000000, QOSShapeAndMark, QOSFlowRateUserCaused};
	QOS_TRAFFIC_TYPE type = QOSTrafficTypeAudioVideo;
	QOS_PACKET_PRIORITY priority;
	struct sockaddr_in second = peer(8);
	UINT64 bandwidth = 1;
	ULONG size = sizeof(bandwidth);

	EXPECT_OK(QOSAddSocketToFlow(handle, sock, (PSOCKADDR)&second, 99, QOS_NON_ADAPTIVE_FLOW, &same));
	EXPECT_EQUAL(flow, same);
	EXPECT_OK(QOSSetFlow(handle, flow, QOSSetOutgoingRate, sizeof(rate), &rate, 0, NULL));
	EXPECT_OK(QOSQueryFlow(handle, flow, QOSQueryOutgoingRate, &size, &bandwidth, 0, NULL));
	EXPECT_EQUAL(2000000, bandwidth);
	rate.Bandwidth = UINT64_MAX;
	EXPECT_ERROR(ERROR_INVALID_PARAMETER,
		     QOSSetFlow(handle, flow, QOSSetOutgoingRate, sizeof(rate), &rate, 0, NULL));
	EXPECT_OK(QOSSetFlow(handle, flow, QOSSetTrafficType, sizeof(type), &type, 0, NULL));
	size = sizeof(priority);
	EXPECT_OK(QOSQueryFlow(handle, flow, QOSQueryPacketPriority, &size, &priority, 0, NULL));
	EXPECT_EQUAL(40, priority.ConformantDSCPValue);
	EXPECT_EQUAL(0, priority.NonConformantDSCPValue);
	size = sizeof(priority) - 1;
	EXPECT_ERROR(ERROR_INSUFFICIENT_BUFFER,
		     QOSQueryFlow(handle, flow, QOSQueryPacketPriority, &size, &priority, 0, NULL));
	EXPECT_EQUAL(sizeof(priority), size);
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, sock, flow, 0));
	EXPECT_ERROR(ERROR_NOT_FOUND, QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	EXPECT_OK(QOSCloseHandle(handle));
	close(sock);
}

/* More ids than a message holds; the buffer exactly as large as is told, and one byte smaller. */
static void test_enumeration_in_pages(void)
{
	enum {
		FLOWS = 3000
	};
	HANDLE handle = create();
	SOCKET sock = udp_socket();
	uint64_t sum = 0, told = 0;
	ULONG size = 0, needed;
	QOS_FLOWID *ids;

	for (int i = 0; i < FLOWS; i++)
		sum += add(handle, sock, i % 250, QOS_NON_ADAPTIVE_FLOW);
	EXPECT_ERROR(ERROR_INSUFFICIENT_BUFFER, QOSEnumerateFlows(handle, &size, NULL));
	EXPECT_EQUAL(FLOWS * sizeof(*ids), size);
	needed = size;
	ids = malloc(needed);
	EXPECT(ids != NULL);
	size = needed - 1;
	EXPECT_ERROR(ERROR_INSUFFICIENT_BUFFER, QOSEnumerateFlows(handle, &size, ids));
	EXPECT_EQUAL(needed, size);
	EXPECT_OK(QOSEnumerateFlows(handle, &size, ids));
	EXPECT_EQUAL(needed, size);
	for (int i = 0; i < FLOWS; i++)
		told += ids[i];
	EXPECT_EQUAL(sum, told);
	free(ids);
	EXPECT_OK(QOSCloseHandle(handle));
	close(sock);
}

/* Buffers may lie anywhere: programs cast parts of messages. */
static void test_unaligned_pointers(void)
{
	HANDLE handle = create();
	SOCKET sock = udp_socket();
	struct sockaddr_in address = peer(7);
	_Alignas(8) char odd[sizeof(QOS_FLOWRATE_OUTGOING) + 1];
	QOS_FLOWRATE_OUTGOING rate = {64000, QOSShapeOnly, QOSFlowRateNotApplicable};
	UINT64 bandwidth;
	ULONG size = sizeof(bandwidth);
	QOS_FLOWID flow = 0;

	memcpy(odd + 1, &address, sizeof(address));
	EXPECT_OK(QOSAddSocketToFlow(handle, sock, (PSOCKADDR)(void *)(odd + 1), QOSTrafficTypeVoice,
				     QOS_NON_ADAPTIVE_FLOW, &flow));
	memcpy(odd + 1, &rate, sizeof(rate));
	EXPECT_OK(QOSSetFlow(handle, flow, QOSSetOutgoingRate, sizeof(rate), odd + 1, 0, NULL));
	EXPECT_OK(QOSQueryFlow(handle, flow, QOSQueryOutgoingRate, &size, odd + 1, 0, NULL));
	memcpy(&bandwidth, odd + 1, sizeof(bandwidth));
	EXPECT_EQUAL(64000, bandwidth);
	EXPECT_OK(QOSCloseHandle(handle));
	close(sock);
}

/* A program without stdin, stdout and stderr must not write into its connection by printf(). */
static void test_the_connection_is_none_of_the_standard_streams(void)
{
	int saved[3], before;
	HANDLE handle;

	for (int fd = 0; fd < 3; fd++) {
		saved[fd] = fcntl(fd, F_DUPFD_CLOEXEC, 10);
		close(fd);
	}
	handle = create();
	before = fcntl(0, F_GETFD) < 0 && fcntl(1, F_GETFD) < 0 && fcntl(2, F_GETFD) < 0;
	EXPECT_OK(QOSCloseHandle(handle));
	for (int fd = 0; fd < 3; fd++) {
		EXPECT_EQUAL(fd, dup2(saved[fd], fd));
		close(saved[fd]);
	}
	EXPECT(before);
}

int main(void)
{
	int descriptors = open_descriptors(), threads = threads_at_rest();

	test_bad_handles();
	test_handles_are_not_used_again();
	test_many_handles();
	test_errno_is_left_alone();
	test_messages();
	test_flow();
	test_enumeration_in_pages();
	test_unaligned_pointers();
	test_the_connection_is_none_of_the_standard_streams();
	EXPECT_EQUAL(descriptors, open_descriptors());
	expect_threads(threads);
	EXPECT_EQUAL(0, stage("flows"));
	return 0;
}
