/* SPDX-License-Identifier: MIT */
/* Many threads on one handle; handles made and closed by many; a handle that is closed under its users. */
#include "stage.h"

#include <pthread.h>

enum {
	THREADS = 8
};

static HANDLE shared;

static int rounds(void)
{
	const char *wanted = getenv("ROUNDS");

	return wanted == NULL ? 200 : atoi(wanted);
}

/* Ordinary calls, each answer for the one who asked: the rates differ from thread to thread and round to round. */
static void *call_away(void *argument)
{
	int self = *(int *)argument;
	SOCKET sock = udp_socket();

	for (int round = 1; round <= rounds(); round++) {
		QOS_FLOWID flow = add(shared, sock, self, QOS_NON_ADAPTIVE_FLOW);
		QOS_FLOWRATE_OUTGOING rate = {100000 + 1000 * (UINT64)round + (UINT64)self, QOSShapeAndMark, 0};
		UINT64 told = 0;
		ULONG size = sizeof(told);

		EXPECT_OK(QOSSetFlow(shared, flow, QOSSetOutgoingRate, sizeof(rate), &rate, 0, NULL));
		EXPECT_OK(QOSQueryFlow(shared, flow, QOSQueryOutgoingRate, &size, &told, 0, NULL));
		EXPECT_EQUAL(rate.Bandwidth, told);
		EXPECT_OK(QOSRemoveSocketFromFlow(shared, 0, flow, 0));
	}
	close(sock);
	return NULL;
}

/* Overlapped calls among them, cancelled or ended with their flow. */
static void *notify_away(void *argument)
{
	int self = *(int *)argument;
	OVERLAPPED pending = overlapped(EFD_NONBLOCK);
	SOCKET sock = udp_socket();

	for (int round = 0; round < rounds() / 4; round++) {
		QOS_FLOWID flow = add(shared, sock, self, 0);

		EXPECT_ERROR(ERROR_IO_PENDING,
			     QOSNotifyFlow(shared, flow, QOSNotifyCongested, NULL, NULL, 0, &pending));
		if (round % 2 == 0)
			EXPECT_OK(QOSCancel(shared, &pending));
		EXPECT_OK(QOSRemoveSocketFromFlow(shared, 0, flow, 0));
		expect_completed(&pending, ERROR_OPERATION_ABORTED);
	}
	close(event_of(&pending));
	close(sock);
	return NULL;
}

static void *open_and_close(void *argument)
{
	(void)argument;
	for (int round = 0; round < rounds() / 4; round++)
		EXPECT_OK(QOSCloseHandle(create()));
	return NULL;
}

static void test_storm(void)
{
	void *(*const what[])(void *) = {call_away, call_away, notify_away, open_and_close};
	pthread_t threads[THREADS];
	int numbers[THREADS];

	shared = create();
	for (int i = 0; i < THREADS; i++) {
		numbers[i] = i;
		EXPECT_EQUAL(0, pthread_create(&threads[i], NULL, what[i % 4], &numbers[i]));
	}
	for (int i = 0; i < THREADS; i++)
		EXPECT_EQUAL(0, pthread_join(threads[i], NULL));
	EXPECT_EQUAL(0, stage("flows"));
	EXPECT_EQUAL(1, stage("handles"));
	EXPECT_OK(QOSCloseHandle(shared));
}

/* Until the handle is closed: then what is under way ends with 995, and what comes later with 6. */
static void *call_until_closed(void *argument)
{
	SOCKET sock = *(SOCKET *)argument;
	struct sockaddr_in address = peer(1);
	DWORD error = ERROR_SUCCESS;

	while (error == ERROR_SUCCESS) {
		QOS_FLOWID flow = 0;

		if (!QOSAddSocketToFlow(shared, sock, (PSOCKADDR)&address, QOSTrafficTypeVoice, QOS_NON_ADAPTIVE_FLOW,
					&flow) ||
		    !QOSRemoveSocketFromFlow(shared, 0, flow, 0))
			error = GetLastError();
	}
	EXPECT(error == ERROR_OPERATION_ABORTED || error == ERROR_INVALID_HANDLE);
	return NULL;
}

static void *close_it(void *argument)
{
	(void)argument;
	return (void *)(intptr_t)QOSCloseHandle(shared);
}

static void test_closing_a_handle_in_use(void)
{
	for (int round = 0; round < rounds() / 8; round++) {
		pthread_t callers[THREADS], closers[2];
		SOCKET socks[THREADS];
		void *closed[2];

		shared = create();
		for (int i = 0; i < THREADS; i++) {
			socks[i] = udp_socket();
			EXPECT_EQUAL(0, pthread_create(&callers[i], NULL, call_until_closed, &socks[i]));
		}
		sleep_ms(round % 4);
		for (int i = 0; i < 2; i++)
			EXPECT_EQUAL(0, pthread_create(&closers[i], NULL, close_it, NULL));
		for (int i = 0; i < 2; i++)
			EXPECT_EQUAL(0, pthread_join(closers[i], &closed[i]));
		/* One of the two was first. */
		EXPECT_EQUAL(1, (intptr_t)closed[0] + (intptr_t)closed[1]);
		for (int i = 0; i < THREADS; i++) {
			EXPECT_EQUAL(0, pthread_join(callers[i], NULL));
			close(socks[i]);
		}
	}
	EXPECT_EQUAL(0, stage("flows"));
}

/* The last error is one per thread. */
static void *fail_otherwise(void *argument)
{
	(void)argument;
	EXPECT_EQUAL(0, GetLastError());
	EXPECT_ERROR(ERROR_INVALID_PARAMETER, QOSCloseHandle(NULL));
	return NULL;
}

static void test_last_error_is_per_thread(void)
{
	pthread_t thread;

	SetLastError(42);
	EXPECT_EQUAL(0, pthread_create(&thread, NULL, fail_otherwise, NULL));
	EXPECT_EQUAL(0, pthread_join(thread, NULL));
	EXPECT_EQUAL(42, GetLastError());
}

int main(void)
{
	int descriptors = open_descriptors(), threads = threads_at_rest();

	test_storm();
	test_closing_a_handle_in_use();
	test_last_error_is_per_thread();
	EXPECT_EQUAL(descriptors, open_descriptors());
	expect_threads(threads);
	return 0;
}
