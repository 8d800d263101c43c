/* SPDX-License-Identifier: MIT */
/* fork(): the child has no part in its parent's handles, and can make its own. */
#include "stage.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

static HANDLE handle;
static QOS_FLOWID flow;
static OVERLAPPED pending;

/*
 * Runs `body` in a child; it says by exit code 0 that all was as expected. With exit() what it leaks is found too,
 * which a leak checker cannot do in the child of a process with threads.
 */
static void in_child_that_ends_by(void (*end)(int), void (*body)(void))
{
	int status = -1;
	pid_t child = fork();

	EXPECT(child >= 0);
	if (child == 0) {
		body();
		end(0);
	}
	while (waitpid(child, &status, 0) != child)
		EXPECT_EQUAL(EINTR, errno);
	EXPECT_EQUAL(0, status);
}

static void in_child(void (*body)(void))
{
	in_child_that_ends_by(_exit, body);
}

static void use_the_parents_handle(void)
{
	ULONG size = 0;
	DWORD bytes;

	EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSEnumerateFlows(handle, &size, NULL));
	EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSCancel(handle, &pending));
	EXPECT_ERROR(ERROR_INVALID_HANDLE, GetOverlappedResult(handle, &pending, &bytes, TRUE));
}

/* Its copy can be closed, once, and that touches nothing of the parent's. */
static void close_the_parents_handle(void)
{
	use_the_parents_handle();
	EXPECT_OK(QOSCloseHandle(handle));
	EXPECT_ERROR(ERROR_INVALID_PARAMETER, QOSCloseHandle(handle));
	EXPECT_ERROR(ERROR_INVALID_HANDLE, QOSRemoveSocketFromFlow(handle, 0, flow, 0));
}

static void make_its_own(void)
{
	HANDLE own = create();
	SOCKET sock = udp_socket();
	OVERLAPPED waiting = overlapped(EFD_NONBLOCK);
	QOS_FLOWID adaptive;

	EXPECT(own != handle);
	adaptive = add(own, sock, 9, 0);
	EXPECT_ERROR(ERROR_IO_PENDING, QOSNotifyFlow(own, adaptive, QOSNotifyCongested, NULL, NULL, 0, &waiting));
	/* A thread of its own receives for it. */
	EXPECT_OK(QOSRemoveSocketFromFlow(own, 0, adaptive, 0));
	expect_completed(&waiting, ERROR_OPERATION_ABORTED);
	use_the_parents_handle();
	/* And in the next generation. */
	in_child(use_the_parents_handle);
	EXPECT_OK(QOSCloseHandle(own));
}

/* One descriptor to the daemon and the duplicate of one event were open; the rest is the test's. */
static int descriptors_of_library;

static void count_descriptors(void)
{
	EXPECT_EQUAL(descriptors_of_library, open_descriptors());
}

static void test_children(void)
{
	SOCKET sock = udp_socket();
	int before;

	pending = overlapped(EFD_NONBLOCK);
	before = open_descriptors();
	handle = create();
	flow = add(handle, sock, 7, 0);
	EXPECT_ERROR(ERROR_IO_PENDING, QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, &pending));
	EXPECT_EQUAL(before + 2, open_descriptors());
	descriptors_of_library = before;
	in_child(count_descriptors);
	in_child(use_the_parents_handle);
	in_child(close_the_parents_handle);
	in_child(make_its_own);
	/* The parent's goes on as if nothing had been. */
	EXPECT_EQUAL(1, stage("handles"));
	EXPECT_EQUAL(STATUS_PENDING, pending.Internal);
	stage("congested %" PRIu32 " 1", flow);
	expect_completed(&pending, ERROR_SUCCESS);
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	EXPECT_OK(QOSCloseHandle(handle));
	close(event_of(&pending));
	close(sock);
}

static void test_nothing_is_leaked_in_the_child(void)
{
	handle = create();
	pending = (OVERLAPPED){.Internal = STATUS_PENDING};
	in_child_that_ends_by(exit, use_the_parents_handle);
	in_child_that_ends_by(exit, close_the_parents_handle);
	EXPECT_OK(QOSCloseHandle(handle));
}

/* Of a flow, its owner's end is the end, whatever children are there. */
static void test_a_child_does_not_keep_the_flow(void)
{
	SOCKET sock = udp_socket();
	int status, go[2];
	pid_t child;
	char byte;

	EXPECT_EQUAL(0, pipe(go));
	handle = create();
	flow = add(handle, sock, 7, QOS_NON_ADAPTIVE_FLOW);
	child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		close(go[1]);
		EXPECT_EQUAL(0, read(go[0], &byte, 1)); /* until the parent has judged */
		_exit(0);
	}
	EXPECT_OK(QOSCloseHandle(handle));
	EXPECT_EQUAL(0, stage("flows"));
	EXPECT_EQUAL(0, stage("handles"));
	close(go[0]);
	close(go[1]);
	EXPECT_EQUAL(child, waitpid(child, &status, 0));
	EXPECT_EQUAL(0, status);
	close(sock);
}

static atomic_bool stop;

static void *be_busy(void *argument)
{
	SOCKET sock = udp_socket();

	(void)argument;
	while (!stop) {
		EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, add(handle, sock, 3, QOS_NON_ADAPTIVE_FLOW), 0));
		EXPECT_OK(QOSCloseHandle(create()));
	}
	close(sock);
	return NULL;
}

static void close_and_use(void)
{
	HANDLE own;

	EXPECT_OK(QOSCloseHandle(handle));
	own = create();
	EXPECT_OK(QOSCloseHandle(own));
}

/* Wherever the other threads are in that moment, the child does not wait for them. */
static void test_fork_among_busy_threads(void)
{
	pthread_t threads[3];

	handle = create();
	for (int i = 0; i < 3; i++)
		EXPECT_EQUAL(0, pthread_create(&threads[i], NULL, be_busy, NULL));
	for (int round = 0; round < 50; round++)
		in_child(close_and_use);
	stop = true;
	for (int i = 0; i < 3; i++)
		EXPECT_EQUAL(0, pthread_join(threads[i], NULL));
	EXPECT_EQUAL(1, stage("handles"));
	EXPECT_OK(QOSCloseHandle(handle));
}

int main(void)
{
	int descriptors = open_descriptors(), threads = threads_at_rest();

	test_nothing_is_leaked_in_the_child();
	test_children();
	test_a_child_does_not_keep_the_flow();
	test_fork_among_busy_threads();
	EXPECT_EQUAL(descriptors, open_descriptors());
	expect_threads(threads);
	return 0;
}
