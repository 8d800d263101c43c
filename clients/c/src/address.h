/* SPDX-License-Identifier: MIT */
/* A socket address of a program as the text that travels. */
#ifndef QWAVE_ADDRESS_H
#define QWAVE_ADDRESS_H

#include <netinet/in.h>
#include <stdbool.h>

struct address {
	char text[INET6_ADDRSTRLEN];
	in_port_t port; /* in host order */
};

/* False: NULL, or neither IPv4 nor IPv6. The address may be unaligned, as what casts make of buffers. */
bool address_read(const struct sockaddr *given, struct address *address);

#endif
