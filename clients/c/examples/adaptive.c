/* SPDX-License-Identifier: MIT */
/*
 * Follow congestion: adaptive ADDRESS PORT BITS_PER_SECOND SECONDS
 *
 * Sends datagrams at a rate, at IP level, on an adaptive flow. When the path is congested it goes down to a tenth, and
 * waits until the whole rate is available again; so it goes on until the time is over. The wait is an eventfd in the
 * loop that sends. Where nothing can be learnt about the path (the peer is not on this link) it sends as it is told.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <qos2.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define PAYLOAD_BYTES 1200
#define TICK_MS	      25
#define LOWERED	      10 /* to one part in so many */

static HANDLE qos;
static QOS_FLOWID flow;
static SOCKET sock;

static void fail(const char *call)
{
	fprintf(stderr, "%s: error %u: %s\n", call, (unsigned int)GetLastError(), qos2_last_error_message());
	exit(EXIT_FAILURE);
}

static double now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* What is known of the path, once something is; false: nothing ever will be. */
static bool look_at_path(QOS_FLOW_FUNDAMENTALS *known, double until_s)
{
	ULONG size = sizeof(*known);

	while (!QOSQueryFlow(qos, flow, QOSQueryFlowFundamentals, &size, known, 0, NULL)) {
		if (GetLastError() == ERROR_NOT_SUPPORTED)
			return false;
		if (GetLastError() != ERROR_NO_DATA && GetLastError() != ERROR_RETRY)
			fail("QOSQueryFlow");
		if (now_s() >= until_s)
			return false;
		sleep(1);
	}
	if (known->AvailableBandwidthSet)
		printf("available %llu\n", (unsigned long long)known->AvailableBandwidth);
	return true;
}

/* Agree on a rate; where the path has no room for it now, on a tenth. What was agreed on, in bits/s. */
static UINT64 set_rate(UINT64 wanted, QOS_FLOWRATE_REASON reason)
{
	QOS_FLOWRATE_OUTGOING rate = {.Bandwidth = wanted, .ShapingBehavior = QOSShapeAndMark, .Reason = reason};

	if (!QOSSetFlow(qos, flow, QOSSetOutgoingRate, sizeof(rate), &rate, 0, NULL)) {
		if (GetLastError() != ERROR_NETWORK_BUSY && GetLastError() != ERROR_RETRY)
			fail("QOSSetFlow");
		rate.Bandwidth = wanted / LOWERED;
		if (!QOSSetFlow(qos, flow, QOSSetOutgoingRate, sizeof(rate), &rate, 0, NULL))
			fail("QOSSetFlow");
	}
	printf("rate %llu\n", (unsigned long long)rate.Bandwidth);
	fflush(stdout);
	return rate.Bandwidth;
}

/* Have the event of `pending` written when the path is congested, or when there is room for `target` bits/s. */
static void wait_for(LPOVERLAPPED pending, bool congestion, UINT64 target)
{
	ULONG size = sizeof(target);
	BOOL done;

	if (congestion)
		done = QOSNotifyFlow(qos, flow, QOSNotifyCongested, NULL, NULL, 0, pending);
	else
		done = QOSNotifyFlow(qos, flow, QOSNotifyAvailable, &size, &target, 0, pending);
	/* TRUE: it is so already. The event is written in that case too. */
	if (!done && GetLastError() != ERROR_IO_PENDING)
		fail("QOSNotifyFlow");
	printf("waiting for %s\n", congestion ? "congestion" : "room");
	fflush(stdout);
}

/* Send what the time since the last tick allows for. Bursts are levelled by the flow's shaping. */
static void send_tick(UINT64 rate, double *owed_bits)
{
	static char payload[PAYLOAD_BYTES];
	const ULONG packet_bits = 8 * (PAYLOAD_BYTES + QOS_HEADER_OVERHEAD(AF_INET, IPPROTO_UDP));

	*owed_bits += (double)rate * TICK_MS / 1000;
	for (; *owed_bits >= packet_bits; *owed_bits -= packet_bits)
		send(sock, payload, sizeof(payload), MSG_DONTWAIT);
}

static void run(UINT64 target, double until_s)
{
	QOS_FLOW_FUNDAMENTALS known;
	int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	OVERLAPPED pending = {.hEvent = (HANDLE)(intptr_t)event};
	struct pollfd watched = {.fd = event, .events = POLLIN};
	bool informed = look_at_path(&known, until_s), high;
	UINT64 rate = set_rate(target, QOSFlowRateNotApplicable);
	double owed_bits = 0;
	DWORD bytes;

	if (event < 0) {
		perror("eventfd");
		exit(EXIT_FAILURE);
	}
	high = rate == target;
	if (informed)
		wait_for(&pending, high, target);
	while (now_s() < until_s) {
		send_tick(rate, &owed_bits);
		if (poll(&watched, 1, TICK_MS) != 1)
			continue;
		if (!GetOverlappedResult(qos, &pending, &bytes, FALSE))
			fail("QOSNotifyFlow");
		if (high)
			rate = set_rate(target / LOWERED, QOSFlowRateCongestion);
		else
			rate = set_rate(target, QOSFlowRateNotApplicable);
		high = rate == target;
		wait_for(&pending, high, target);
	}
	/* A notification that still waits ends with its handle. */
	if (!QOSCloseHandle(qos))
		fail("QOSCloseHandle");
	close(event);
}

int main(int count, char **arguments)
{
	struct sockaddr_in peer = {.sin_family = AF_INET};
	QOS_VERSION version = {1, 0};

	if (count != 5 || inet_pton(AF_INET, arguments[1], &peer.sin_addr) != 1) {
		fprintf(stderr, "usage: adaptive ADDRESS PORT BITS_PER_SECOND SECONDS\n");
		return EXIT_FAILURE;
	}
	peer.sin_port = htons((in_port_t)atoi(arguments[2]));
	sock = socket(AF_INET, SOCK_DGRAM, 0);
	if (sock < 0 || connect(sock, (struct sockaddr *)&peer, sizeof(peer)) != 0) {
		perror("connect");
		return EXIT_FAILURE;
	}
	if (!QOSCreateHandle(&version, &qos))
		fail("QOSCreateHandle");
	/* Flags 0: adaptive. A connected socket needs no address. */
	if (!QOSAddSocketToFlow(qos, sock, NULL, QOSTrafficTypeAudioVideo, 0, &flow))
		fail("QOSAddSocketToFlow");
	run(strtoull(arguments[3], NULL, 10), now_s() + atof(arguments[4]));
	close(sock);
	return EXIT_SUCCESS;
}
