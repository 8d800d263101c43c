/* SPDX-License-Identifier: MIT */
/* Signals, thread cancellation and a sandbox without poll(): no call fails or hangs by them. */
#include "stage.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/time.h>

static atomic_int ticks;
static HANDLE handle;
static SOCKET sock;

static void tick(int signal)
{
	(void)signal;
	ticks++;
}

/* Without SA_RESTART, some thousands per second. */
static void flood(bool on)
{
	struct sigaction action = {.sa_handler = tick};
	struct itimerval often = {.it_interval.tv_usec = on ? 200 : 0, .it_value.tv_usec = on ? 200 : 0};

	EXPECT_EQUAL(0, sigaction(SIGALRM, &action, NULL));
	EXPECT_EQUAL(0, setitimer(ITIMER_REAL, &often, NULL));
}

static void *block_until_congested(void *argument)
{
	EXPECT_OK(QOSNotifyFlow(handle, *(QOS_FLOWID *)argument, QOSNotifyCongested, NULL, NULL, 0, NULL));
	return NULL;
}

static void test_flood_of_signals(void)
{
	QOS_FLOWID flow = add(handle, sock, 7, 0);
	int before = ticks;
	pthread_t waits;

	flood(true);
	EXPECT_EQUAL(0, pthread_create(&waits, NULL, block_until_congested, &flow));
	for (int round = 0; round < 300; round++) {
		EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, add(handle, sock, 8, QOS_NON_ADAPTIVE_FLOW), 0));
		if (round % 10 == 0)
			EXPECT_OK(QOSCloseHandle(create()));
	}
	flood(false);
	stage("congested %" PRIu32 " 1", flow);
	EXPECT_EQUAL(0, pthread_join(waits, NULL));
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	EXPECT(ticks > before);
}

/* The thread that the library makes takes no signals of the program. */
static void test_helper_takes_no_signals(void)
{
	QOS_FLOWID flow = add(handle, sock, 7, 0);
	OVERLAPPED pending = overlapped(EFD_NONBLOCK);
	struct sigaction action = {.sa_handler = tick};
	sigset_t usr1, waiting;
	int before = ticks;

	EXPECT_EQUAL(0, sigaction(SIGUSR1, &action, NULL));
	EXPECT_ERROR(ERROR_IO_PENDING, QOSNotifyFlow(handle, flow, QOSNotifyCongested, NULL, NULL, 0, &pending));
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	EXPECT_EQUAL(0, pthread_sigmask(SIG_BLOCK, &usr1, NULL));
	EXPECT_EQUAL(0, kill(getpid(), SIGUSR1));
	/* No thread can take it, so it stays pending for the process. */
	sleep_ms(20);
	EXPECT_EQUAL(0, sigpending(&waiting));
	EXPECT(sigismember(&waiting, SIGUSR1));
	EXPECT_EQUAL(before, ticks);
	EXPECT_EQUAL(0, pthread_sigmask(SIG_UNBLOCK, &usr1, NULL));
	EXPECT_EQUAL(before + 1, ticks);
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
	expect_completed(&pending, ERROR_OPERATION_ABORTED);
	close(event_of(&pending));
}

/* A thread that is cancelled leaves its call first: nobody else waits for it in vain. */
static void test_thread_cancellation(void)
{
	QOS_FLOWID flow = add(handle, sock, 7, 0);
	pthread_t waits;
	void *end;

	EXPECT_EQUAL(0, pthread_create(&waits, NULL, block_until_congested, &flow));
	while (stage("pending") != 1)
		sleep_ms(1);
	EXPECT_EQUAL(0, pthread_cancel(waits));
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, add(handle, sock, 8, QOS_NON_ADAPTIVE_FLOW), 0));
	stage("congested %" PRIu32 " 1", flow);
	EXPECT_EQUAL(0, pthread_join(waits, &end));
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
}

static long used_cpu_ms(void)
{
	struct timespec used;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	return used.tv_sec * 1000 + used.tv_nsec / 1000000;
}

/* poll() needs one descriptor below RLIMIT_NOFILE; some sandboxes have it at 0. */
static void test_without_poll(void)
{
	struct rlimit before, none;
	QOS_FLOWID flow = add(handle, sock, 7, 0);
	pthread_t waits;
	long before_ms;

	EXPECT_EQUAL(0, getrlimit(RLIMIT_NOFILE, &before));
	none = before;
	none.rlim_cur = 0;
	EXPECT_EQUAL(0, setrlimit(RLIMIT_NOFILE, &none));
	EXPECT_EQUAL(0, pthread_create(&waits, NULL, block_until_congested, &flow));
	for (int round = 0; round < 20; round++)
		EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, add(handle, sock, 8, QOS_NON_ADAPTIVE_FLOW), 0));
	/* It waits, and does not ask again and again. */
	before_ms = used_cpu_ms();
	sleep_ms(300);
	EXPECT(used_cpu_ms() - before_ms < 150);
	stage("congested %" PRIu32 " 1", flow);
	EXPECT_EQUAL(0, pthread_join(waits, NULL));
	EXPECT_EQUAL(0, setrlimit(RLIMIT_NOFILE, &before));
	EXPECT_OK(QOSRemoveSocketFromFlow(handle, 0, flow, 0));
}

/* And without any left a new handle fails, with the reason. */
static void test_without_descriptors(void)
{
	struct rlimit before, none;
	QOS_VERSION version = {1, 0};
	HANDLE never = NULL;

	EXPECT_EQUAL(0, getrlimit(RLIMIT_NOFILE, &before));
	none = before;
	none.rlim_cur = 3;
	EXPECT_EQUAL(0, setrlimit(RLIMIT_NOFILE, &none));
	EXPECT_ERROR(ERROR_NO_SYSTEM_RESOURCES, QOSCreateHandle(&version, &never));
	EXPECT(never == NULL);
	EXPECT_EQUAL(0, setrlimit(RLIMIT_NOFILE, &before));
}

int main(void)
{
	int descriptors = open_descriptors(), threads = threads_at_rest();

	handle = create();
	sock = udp_socket();
	test_flood_of_signals();
	test_helper_takes_no_signals();
	test_thread_cancellation();
	test_without_poll();
	test_without_descriptors();
	EXPECT_OK(QOSCloseHandle(handle));
	close(sock);
	EXPECT_EQUAL(descriptors, open_descriptors());
	expect_threads(threads);
	return 0;
}
