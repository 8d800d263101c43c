/* SPDX-License-Identifier: MIT */
/*
 * The stage of a test: the daemon that answers the library here, steered by lines on stdout.
 *
 * tests/unit/test_libqwave_native.py starts both and knows the words. Each line is answered by a number.
 */
#ifndef STAGE_H
#define STAGE_H

#include <arpa/inet.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "expect.h"

/* How long the library may take for anything that it does, in ms; sanitizers and busy machines included. */
#define PATIENCE_MS 20000

/* Have the stage do something; its answer. */
__attribute__((format(printf, 1, 2))) static inline long long stage(const char *format, ...)
{
	va_list arguments;
	char line[64];

	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	fflush(stdout);
	EXPECT(fgets(line, sizeof(line), stdin) != NULL);
	return strtoll(line, NULL, 10);
}

static inline HANDLE create(void)
{
	QOS_VERSION version = {1, 0};
	HANDLE handle = NULL;

	EXPECT_OK(QOSCreateHandle(&version, &handle));
	EXPECT(handle != NULL && handle != INVALID_HANDLE_VALUE);
	return handle;
}

/* Where the tests' sockets send; the number is the last byte of the address. */
static inline struct sockaddr_in peer(int number)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(5004)};

	address.sin_addr.s_addr = htonl(0xc0000200u + (unsigned int)number); /* 192.0.2.0/24, RFC 5737 */
	return address;
}

static inline SOCKET udp_socket(void)
{
	SOCKET sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	EXPECT(sock > 2);
	return sock;
}

/* A flow of its own to that peer. */
static inline QOS_FLOWID add(HANDLE handle, SOCKET sock, int number, DWORD flags)
{
	struct sockaddr_in address = peer(number);
	QOS_FLOWID flow = 0;

	EXPECT_OK(QOSAddSocketToFlow(handle, sock, (PSOCKADDR)&address, QOSTrafficTypeVoice, flags, &flow));
	EXPECT(flow != 0);
	return flow;
}

/* An OVERLAPPED with an eventfd of these flags. */
static inline OVERLAPPED overlapped(int flags)
{
	OVERLAPPED made = {.Internal = 12345, .InternalHigh = 12345};
	int event = eventfd(0, EFD_CLOEXEC | flags);

	EXPECT(event > 2);
	made.hEvent = (HANDLE)(intptr_t)event;
	return made;
}

static inline int event_of(const OVERLAPPED *of)
{
	return (int)(intptr_t)of->hEvent;
}

/* Whether the event is written within so many ms. */
static inline bool is_signalled(int event, int timeout_ms)
{
	struct pollfd watched = {.fd = event, .events = POLLIN};

	return poll(&watched, 1, timeout_ms) == 1;
}

/* Wait for the event; it has the value 1, and the call's result is there before it. */
static inline void expect_completed(const OVERLAPPED *of, DWORD error)
{
	uint64_t count = 0;

	EXPECT(is_signalled(event_of(of), PATIENCE_MS));
	EXPECT_EQUAL(error, __atomic_load_n(&of->Internal, __ATOMIC_ACQUIRE));
	EXPECT_EQUAL(sizeof(count), read(event_of(of), &count, sizeof(count)));
	EXPECT_EQUAL(1, count);
}

static inline void sleep_ms(long ms)
{
	struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

	while (nanosleep(&time, &time) != 0)
		;
}

/* Return when so many threads run; one that was joined may still be on its last way out. */
static inline void expect_threads(int expected)
{
	for (int waited_ms = 0; running_threads() != expected; waited_ms++) {
		EXPECT(waited_ms < PATIENCE_MS);
		sleep_ms(1);
	}
}

static inline void *tell_number(void *task)
{
	snprintf((char *)task, 64, "/proc/self/task/%ld", (long)gettid());
	return NULL;
}

/* How many threads a program has that has made some: with the first, a sanitizer makes one of its own. */
static inline int threads_at_rest(void)
{
	char task[64];
	pthread_t first;

	EXPECT_EQUAL(0, pthread_create(&first, NULL, tell_number, task));
	EXPECT_EQUAL(0, pthread_join(first, NULL));
	for (int waited_ms = 0; access(task, F_OK) == 0; waited_ms++) {
		EXPECT(waited_ms < PATIENCE_MS);
		sleep_ms(1);
	}
	return running_threads();
}

#endif
