/* SPDX-License-Identifier: MIT */
/* Calls with an OVERLAPPED: at once and later, cancelled, ended with their flow and handle; events of every kind. */
#include "stage.h"

#include <pthread.h>

static HANDLE handle;
static int threads; /* before the library made any */
static SOCKET sock;

static QOS_FLOWID adaptive_flow(void)
{
	QOS_FLOWID flow = add(handle, sock, 7, 0);
	QOS_FLOWRATE_OUTGOING rate = {1000000, QOSShapeAndMark, QOSFlowRateNotApplicable};

	EXPECT_OK(QOSSetFlow(handle, flow, QOSSetOutgoingRate, sizeof(rate), &rate, 0, NULL));
	return flow;
}

static void close_event(const OVERLAPPED *of)
{
	close(event_of(of));
}

static void test_notify_later(int flags)
{
	QOS_FLOWID flow = adaptive_flow();
	OVERLAPPED pending = overlapped(flags);
	DWORD bytes = 99;

	/* An event that was left signalled is emptied. */
	EXPECT_EQUAL(0, eventfd_write(event_of(&pending), 3));
	EXPECT_ERROR(ERROR_IO_PENDING, QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, &pending));
	EXPECT_EQUAL(STATUS_PENDING, pending.Internal);
	EXPECT(!HasOverlappedIoCompleted(&pending));
	EXPECT(!is_signalled(event_of(&pending), 0));
	EXPECT_ERROR(ERROR_IO_INCOMPLETE, GetOverlappedResult(handle, &pending, &bytes, FALSE));
	EXPECT_EQUAL(99, bytes);
	/* Ordinary calls go on meanwhile. */
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, add(handle, sock, 8, QOS_NON_ADAPTIVE_FLOW), 0));
	stage("congested %" PRIu32 " 1", flow);
	expect_completed(&pending, ERROR_SUCCESS);
	EXPECT(HasOverlappedIoCompleted(&pending));
	EXPECT_OK(GetOverlappedResult(handle, &pending, &bytes, FALSE));
	EXPECT_EQUAL(0, bytes);
	close_event(&pending);
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
}

static void test_notify_at_once(void)
{
	QOS_FLOWID flow = adaptive_flow();
	OVERLAPPED done = overlapped(EFD_NONBLOCK);

	stage("congested %" PRIu32 " 1", flow);
	EXPECT_OK(QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, &done));
	expect_completed(&done, ERROR_SUCCESS);
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	close_event(&done);
}

/* What is wrong is told by the call itself, and nothing is to be waited for. */
static void test_refused_at_once(void)
{
	QOS_FLOWID flow = adaptive_flow(), plain = add(handle, sock, 8, QOS_NON_ADAPTIVE_FLOW);
	OVERLAPPED pending = overlapped(EFD_NONBLOCK), refused = overlapped(EFD_NONBLOCK);
	UINT64 bandwidth = 1000000;
	ULONG size = sizeof(bandwidth);

	EXPECT_ERROR(ERROR_NOT_FOUND, QOSNotifyFlow(handle, 0, QOSNotifyCongested, NULL, NULL, 0, &refused));
	EXPECT_EQUAL(ERROR_NOT_FOUND, refused.Internal);
	EXPECT_ERROR(ERROR_NOT_SUPPORTED, QOSNotifyFlow(handle, plain, QOSNotifyCongested, NULL, NULL, 0, &refused));
	EXPECT_ERROR(ERROR_INVALID_PARAMETER,
		     QOSNotifyFlow(handle, flow, QOSNotifyAvailable, &size, &bandwidth, 0, &refused));
	size = 7;
	EXPECT_ERROR(ERROR_INSUFFICIENT_BUFFER,
		     QOSNotifyFlow(handle, flow, QOSNotifyAvailable, &size, &bandwidth, 0, &refused));
	EXPECT_EQUAL(8, size);
	EXPECT_ERROR(ERROR_IO_PENDING, QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, &pending));
	EXPECT_ERROR(ERROR_ALREADY_EXISTS, QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, &refused));
	/* An OVERLAPPED serves one call at a time. */
	EXPECT_ERROR(ERROR_INVALID_PARAMETER,
		     QOSNotifyFlow(handle, flow, QOSNotifyUncongested, NULL, NULL, 0, &pending));
	size = sizeof(bandwidth);
	EXPECT_ERROR(ERROR_INVALID_PARAMETER,
		     QOSQueryFlow(handle, flow, QOSQueryOutgoingRate, &size, &bandwidth, 0, &pending));
	EXPECT_EQUAL(STATUS_PENDING, pending.Internal);
	EXPECT(!is_signalled(event_of(&refused), 0));
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	expect_completed(&pending, ERROR_OPERATION_ABORTED);
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, plain, 0));
	close_event(&pending);
	close_event(&refused);
}

static void test_bad_events(void)
{
	QOS_FLOWID flow = adaptive_flow();
	OVERLAPPED bad = {.hEvent = INVALID_HANDLE_VALUE};
	UINT64 bandwidth;
	ULONG size = sizeof(bandwidth);
	char read_back[16];
	int ends[2];

	EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, &bad));
	bad.hEvent = (HANDLE)(intptr_t)987654;
	EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, &bad));
	/* Nothing is written to what is no event, nor read from it. */
	EXPECT_EQUAL(0, pipe(ends));
	EXPECT_EQUAL(8, write(ends[1], "01234567", 8));
	for (int i = 0; i < 3; i++) {
		bad.hEvent = (HANDLE)(intptr_t)(i < 2 ? ends[i] : sock);
		EXPECT_ERROR(ERROR_INVALID_HANDLE,
			     QOSQueryFlow(handle, flow, QOSQueryOutgoingRate, &size, &bandwidth, 0, &bad));
	}
	EXPECT_EQUAL(8, read(ends[0], read_back, sizeof(read_back)));
	EXPECT_EQUAL(0, memcmp(read_back, "01234567", 8));
	close(ends[0]);
	close(ends[1]);
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
}

static void test_quick_calls(void)
{
	QOS_FLOWID flow = adaptive_flow();
	OVERLAPPED done = overlapped(0);
	QOS_FLOWRATE_OUTGOING rate = {500000, QOSShapeAndMark, QOSFlowRateCongestion};
	UINT64 bandwidth = 0;
	ULONG size = sizeof(bandwidth);
	DWORD bytes = 99;

	EXPECT_OK(QOSSetFlow(handle, flow, QOSSetOutgoingRate, sizeof(rate), &rate, 0, &done));
	expect_completed(&done, ERROR_SUCCESS);
	EXPECT_OK(QOSQueryFlow(handle, flow, QOSQueryOutgoingRate, &size, &bandwidth, 0, &done));
	expect_completed(&done, ERROR_SUCCESS);
	EXPECT_EQUAL(500000, bandwidth);
	EXPECT_OK(GetOverlappedResult(NULL, &done, &bytes, TRUE));
	EXPECT_EQUAL(sizeof(bandwidth), bytes);
	EXPECT_ERROR(ERROR_NOT_FOUND, QOSQueryFlow(handle, 1, QOSQueryOutgoingRate, &size, &bandwidth, 0, &done));
	EXPECT_ERROR(ERROR_NOT_FOUND, GetOverlappedResult(NULL, &done, &bytes, TRUE));
	EXPECT_EQUAL(0, bytes);
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	close_event(&done);
}

static void test_fresh(void)
{
	QOS_FLOWID flow = adaptive_flow();
	OVERLAPPED pending = overlapped(EFD_NONBLOCK);
	QOS_FLOW_FUNDAMENTALS known, untouched;
	ULONG size = sizeof(known);
	DWORD bytes;

	memset(&known, 0xa5, sizeof(known));
	memset(&untouched, 0xa5, sizeof(untouched));
	EXPECT_ERROR(ERROR_NO_DATA, QOSQueryFlow(handle, flow, QOSQueryFlowFundamentals, &size, &known, 0, NULL));
	EXPECT_ERROR(ERROR_IO_PENDING, QOSQueryFlow(handle, flow, QOSQueryFlowFundamentals, &size, &known,
						    QOS_QUERYFLOW_FRESH, &pending));
	EXPECT_EQUAL(0, memcmp(&known, &untouched, sizeof(known)));
	stage("measure 100000000 40000000 1500");
	expect_completed(&pending, ERROR_SUCCESS);
	EXPECT_OK(GetOverlappedResult(handle, &pending, &bytes, FALSE));
	EXPECT_EQUAL(sizeof(known), bytes);
	EXPECT_EQUAL(sizeof(known), size);
	EXPECT(known.BottleneckBandwidthSet == TRUE && known.AvailableBandwidthSet == TRUE && known.RTTSet == TRUE);
	EXPECT_EQUAL(100000000, known.BottleneckBandwidth);
	EXPECT_EQUAL(40000000, known.AvailableBandwidth);
	EXPECT_EQUAL(1500, known.RTT);
	/* A buffer that is too small is told at once, not after a measurement. */
	size = sizeof(known) - 1;
	EXPECT_ERROR(ERROR_INSUFFICIENT_BUFFER, QOSQueryFlow(handle, flow, QOSQueryFlowFundamentals, &size, &known,
							     QOS_QUERYFLOW_FRESH, &pending));
	EXPECT_EQUAL(sizeof(known), size);
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	close_event(&pending);
}

static void test_cancel(void)
{
	QOS_FLOWID flow = adaptive_flow();
	OVERLAPPED first = overlapped(0), second = {.hEvent = NULL}, never = {.hEvent = NULL};
	UINT64 bandwidth = 5000000;
	ULONG size = sizeof(bandwidth);
	DWORD bytes;

	EXPECT_ERROR(ERROR_IO_PENDING, QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, &first));
	EXPECT_ERROR(ERROR_IO_PENDING, QOSNotifyFlow(handle, flow, QOSNotifyAvailable, &size, &bandwidth, 0, &second));
	EXPECT_ERROR(ERROR_INVALID_PARAMETER, QOSCancel(handle, NULL));
	EXPECT_ERROR(ERROR_INVALID_PARAMETER, QOSCancel(handle, &never));
	EXPECT_OK(QOSCancel(handle, &first));
	expect_completed(&first, ERROR_OPERATION_ABORTED);
	EXPECT_ERROR(ERROR_INVALID_PARAMETER, QOSCancel(handle, &first));
	EXPECT_EQUAL(STATUS_PENDING, second.Internal);
	EXPECT_OK(QOSCancel(handle, &second));
	EXPECT_ERROR(ERROR_OPERATION_ABORTED, GetOverlappedResult(handle, &second, &bytes, TRUE));
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	close_event(&first);
}

/* The event may be closed, the OVERLAPPED freed as soon as it is complete; also while it is pending. */
static void test_event_closed_while_pending(void)
{
	QOS_FLOWID flow = adaptive_flow();
	OVERLAPPED *pending = malloc(sizeof(*pending));
	int twin;

	EXPECT(pending != NULL);
	*pending = overlapped(EFD_NONBLOCK);
	twin = dup(event_of(pending));
	EXPECT_ERROR(ERROR_IO_PENDING, QOSNotifyFlow(handle, flow, QOSNotifyUncongested, NULL, NULL, 0, pending));
	close_event(pending);
	stage("congested %" PRIu32 " 0", flow);
	EXPECT(is_signalled(twin, PATIENCE_MS));
	EXPECT(HasOverlappedIoCompleted(pending));
	free(pending);
	close(twin);
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
}

static void *wait_for_result(void *argument)
{
	LPOVERLAPPED pending = argument;
	DWORD bytes;

	/* It may come too late for a good handle; otherwise it waits for the end of the call. */
	EXPECT(!GetOverlappedResult(handle, pending, &bytes, TRUE));
	EXPECT(GetLastError() == ERROR_OPERATION_ABORTED || GetLastError() == ERROR_INVALID_HANDLE);
	return NULL;
}

static void *wait_for_congestion(void *argument)
{
	QOS_FLOWID flow = *(QOS_FLOWID *)argument;

	EXPECT_ERROR(ERROR_OPERATION_ABORTED, QOSNotifyFlow(handle, flow, QOSNotifyUncongested, NULL, NULL, 0, NULL));
	return NULL;
}

/* The end of the handle ends what is pending, however it is waited for. */
static void test_close_completes(void)
{
	HANDLE before = handle;
	OVERLAPPED pending = overlapped(EFD_NONBLOCK);
	pthread_t waits, blocks;
	QOS_FLOWID flow;

	handle = create();
	flow = adaptive_flow();
	EXPECT_ERROR(ERROR_IO_PENDING, QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, &pending));
	EXPECT_EQUAL(0, pthread_create(&waits, NULL, wait_for_result, &pending));
	EXPECT_EQUAL(0, pthread_create(&blocks, NULL, wait_for_congestion, &flow));
	while (stage("pending") != 2)
		sleep_ms(1);
	sleep_ms(20);
	EXPECT_OK(QOSCloseHandle(handle));
	EXPECT_EQUAL(ERROR_OPERATION_ABORTED, pending.Internal);
	expect_completed(&pending, ERROR_OPERATION_ABORTED);
	EXPECT_EQUAL(0, pthread_join(waits, NULL));
	EXPECT_EQUAL(0, pthread_join(blocks, NULL));
	close_event(&pending);
	handle = before;
}

static void *block_until_uncongested(void *argument)
{
	EXPECT_OK(QOSNotifyFlow(handle, *(QOS_FLOWID *)argument, QOSNotifyUncongested, NULL, NULL, 0, NULL));
	return NULL;
}

/* The helper ends also where another thread receives the last reply that it was there for. */
static void test_helper_is_not_kept_by_others(void)
{
	QOS_FLOWID flow = adaptive_flow();
	OVERLAPPED pending = overlapped(EFD_NONBLOCK);
	pthread_t blocks;

	EXPECT_EQUAL(0, pthread_create(&blocks, NULL, block_until_uncongested, &flow));
	while (stage("pending") != 1)
		sleep_ms(1);
	EXPECT_ERROR(ERROR_IO_PENDING, QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, &pending));
	expect_threads(threads + 2);
	stage("congested %" PRIu32 " 1", flow);
	expect_completed(&pending, ERROR_SUCCESS);
	expect_threads(threads + 1);
	stage("congested %" PRIu32 " 0", flow);
	EXPECT_EQUAL(0, pthread_join(blocks, NULL));
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	close_event(&pending);
}

/* Many at a time, on one handle, with one event of the semaphore kind for all of them. */
static void test_many(void)
{
	enum {
		COUNT = 200
	};
	static OVERLAPPED pending[COUNT];
	static QOS_FLOWID flows[COUNT];
	int event = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);

	for (int i = 0; i < COUNT; i++) {
		flows[i] = add(handle, sock, i, 0);
		pending[i].hEvent = (HANDLE)(intptr_t)event;
		EXPECT_ERROR(ERROR_IO_PENDING,
			     QOSNotifyFlow(handle, flows[i], QOSNotifyCongested, NULL, NULL, 0, &pending[i]));
	}
	expect_threads(threads + 1);
	for (int i = COUNT - 1; i >= 0; i--)
		stage("congested %" PRIu32 " 1", flows[i]);
	for (int i = 0; i < COUNT; i++) {
		uint64_t one = 0;

		EXPECT(is_signalled(event, PATIENCE_MS));
		EXPECT_EQUAL(sizeof(one), read(event, &one, sizeof(one)));
		EXPECT_EQUAL(1, one);
	}
	for (int i = 0; i < COUNT; i++) {
		EXPECT(HasOverlappedIoCompleted(&pending[i]));
		EXPECT_EQUAL(0, pending[i].Internal);
		EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flows[i], 0));
	}
	expect_threads(threads);
	close(event);
}

int main(void)
{
	int descriptors = open_descriptors();

	threads = threads_at_rest();
	handle = create();
	sock = udp_socket();
	test_notify_later(0);
	test_notify_later(EFD_NONBLOCK);
	test_notify_later(EFD_SEMAPHORE);
	test_notify_at_once();
	test_refused_at_once();
	test_bad_events();
	test_quick_calls();
	test_fresh();
	test_cancel();
	test_event_closed_while_pending();
	test_close_completes();
	test_helper_is_not_kept_by_others();
	test_many();
	/* Nothing is pending any more: no thread is left, also before the handle is closed. */
	expect_threads(threads);
	EXPECT_OK(QOSCloseHandle(handle));
	close(sock);
	EXPECT_EQUAL(descriptors, open_descriptors());
	expect_threads(threads);
	return 0;
}
