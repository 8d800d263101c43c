/* A client of group `requests` in C, over libqwave: the twin of client.py, line by line.
 *
 * `pairs`, with $QOS2_SOCKET: says `ready`, then takes lines "SECONDS PAIRS_PER_SECOND" (0: as many as it can), and
 * answers each with a line of JSON: the latencies of all calls, add and remove in turn, in microseconds.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <qos2.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

enum {
	MOST_CALLS = 1 << 20
};

static float latencies_us[MOST_CALLS];

static double now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void sleep_until(double time_s)
{
	struct timespec until = {.tv_sec = (time_t)time_s};

	until.tv_nsec = (long)((time_s - (double)until.tv_sec) * 1e9);
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0)
		;
}

/* One round; how many calls it made, -1 where one failed. */
static int round_of(HANDLE handle, SOCKET sock, double seconds, double rate)
{
	double begin_s = now_s(), end_s = begin_s + seconds;
	int calls = 0;

	for (int pair = 0; calls + 2 <= MOST_CALLS; pair++) {
		QOS_FLOWID flow = 0;
		double before_s, between_s;

		if (rate > 0 && begin_s + pair / rate > now_s())
			sleep_until(begin_s + pair / rate);
		before_s = now_s();
		if (before_s >= end_s)
			break;
		if (!QOSAddSocketToFlow(handle, sock, NULL, QOSTrafficTypeVoice, QOS_NON_ADAPTIVE_FLOW, &flow))
			return -1;
		between_s = now_s();
		if (!QOSRemoveSocketFromFlow(handle, 0, flow, 0))
			return -1;
		latencies_us[calls++] = (float)((between_s - before_s) * 1e6);
		latencies_us[calls++] = (float)((now_s() - between_s) * 1e6);
	}
	return calls;
}

int main(void)
{
	struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(9)};
	QOS_VERSION version = {1, 0};
	SOCKET sock = socket(AF_INET, SOCK_DGRAM, 0);
	double seconds, rate;
	HANDLE handle;
	char line[64];

	peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (sock < 0 || connect(sock, (struct sockaddr *)&peer, sizeof(peer)) != 0 ||
	    !QOSCreateHandle(&version, &handle))
		return 1;
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) != NULL && sscanf(line, "%lf %lf", &seconds, &rate) == 2) {
		int calls = round_of(handle, sock, seconds, rate);

		if (calls < 0) {
			fprintf(stderr, "pairs: a call failed with %u\n", (unsigned)GetLastError());
			return 1;
		}
		putchar('[');
		for (int call = 0; call < calls; call++)
			printf("%s%.1f", call ? "," : "", (double)latencies_us[call]);
		printf("]\n");
		fflush(stdout);
	}
	return !QOSCloseHandle(handle);
}
