/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The senders of the benchmarks, compiled into a library at run time and called from Python, so that
 * the sender is not the bottleneck. Sockets are made, connected and registered by the caller.
 *
 * Each function runs for `seconds` and returns how often it wrote, or -errno.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* Datagrams of `bytes` by connected sockets, chosen at random. ENOBUFS is a full queue below: not sent. */
long udp_flood(const int *fds, unsigned int count, unsigned int bytes, double seconds)
{
	static char payload[65536];
	double end = now_s() + seconds;
	uint64_t random = 88172645463325252ull;
	long sent = 0;

	do {
		for (int i = 0; i < 64; i++) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			if (send(fds[(random >> 32) * count >> 32], payload, bytes, 0) >= 0)
				sent++;
			else if (errno != ENOBUFS)
				return -errno;
		}
	} while (now_s() < end);
	return sent;
}

/* Writes of `bytes` into any one socket, as fast as it takes them. EAGAIN: its own time limit, tried again. */
long write_flood(int fd, unsigned int bytes, double seconds)
{
	static char payload[1 << 20];
	double end = now_s() + seconds;
	long sent = 0;

	do {
		if (send(fd, payload, bytes, MSG_NOSIGNAL) >= 0)
			sent++;
		else if (errno != EAGAIN && errno != ENOBUFS)
			return -errno;
	} while (now_s() < end);
	return sent;
}

/* Reads a stream to its end; how many bytes. */
long stream_drain(int fd)
{
	char buffer[1 << 16];
	long total = 0, got;

	while ((got = read(fd, buffer, sizeof(buffer))) > 0)
		total += got;
	return got < 0 && errno != ECONNRESET ? -errno : total;
}
