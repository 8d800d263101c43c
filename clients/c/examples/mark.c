/* SPDX-License-Identifier: MIT */
/*
 * Mark a socket: mark ADDRESS PORT
 *
 * Sends five datagrams with the mark of voice traffic, and tells which mark that is. To see it:
 * tcpdump -v -n udp port PORT
 */
#include <arpa/inet.h>
#include <qos2.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int failed(const char *call)
{
	fprintf(stderr, "%s: error %u: %s\n", call, (unsigned int)GetLastError(), qos2_last_error_message());
	return EXIT_FAILURE;
}

int main(int count, char **arguments)
{
	struct sockaddr_in peer = {.sin_family = AF_INET};
	QOS_VERSION version = {1, 0};
	QOS_PACKET_PRIORITY priority;
	ULONG size = sizeof(priority);
	QOS_FLOWID flow = 0; /* 0: begin a flow */
	HANDLE qos;
	SOCKET sock;

	if (count != 3 || inet_pton(AF_INET, arguments[1], &peer.sin_addr) != 1) {
		fprintf(stderr, "usage: mark ADDRESS PORT\n");
		return EXIT_FAILURE;
	}
	peer.sin_port = htons((in_port_t)atoi(arguments[2]));
	sock = socket(AF_INET, SOCK_DGRAM, 0);
	if (sock < 0) {
		perror("socket");
		return EXIT_FAILURE;
	}
	if (!QOSCreateHandle(&version, &qos))
		return failed("QOSCreateHandle");
	if (!QOSAddSocketToFlow(qos, sock, (PSOCKADDR)&peer, QOSTrafficTypeVoice, QOS_NON_ADAPTIVE_FLOW, &flow))
		return failed("QOSAddSocketToFlow");
	if (!QOSQueryFlow(qos, flow, QOSQueryPacketPriority, &size, &priority, 0, NULL))
		return failed("QOSQueryFlow");
	printf("flow %u: DSCP %u\n", (unsigned int)flow, (unsigned int)priority.ConformantDSCPValue);
	for (int i = 0; i < 5; i++) {
		if (sendto(sock, "marked", 6, 0, (struct sockaddr *)&peer, sizeof(peer)) < 0)
			perror("sendto");
	}
	/* Socket 0: the whole flow. Closing the handle, or the end of the program, would end it as well. */
	if (!QOSRemoveSocketFromFlow(qos, 0, flow, 0))
		return failed("QOSRemoveSocketFromFlow");
	if (!QOSCloseHandle(qos))
		return failed("QOSCloseHandle");
	close(sock);
	return EXIT_SUCCESS;
}
