/* SPDX-License-Identifier: MIT */
/* A socket address of a program as the text that travels; see address.h. */
#include "address.h"

#include <arpa/inet.h>
#include <stddef.h>
#include <string.h>

/* Dotted decimal. For IPv4 by hand: inet_ntop() goes through sprintf(), once per datagram of some programs. */
static void write_ipv4(const struct in_addr *from, char *text)
{
	const unsigned char *bytes = (const unsigned char *)from;

	for (int i = 0; i < 4; i++) {
		if (i > 0)
			*text++ = '.';
		if (bytes[i] >= 100)
			*text++ = (char)('0' + bytes[i] / 100);
		if (bytes[i] >= 10)
			*text++ = (char)('0' + bytes[i] / 10 % 10);
		*text++ = (char)('0' + bytes[i] % 10);
	}
	*text = '\0';
}

bool address_read(const struct sockaddr *given, struct address *address)
{
	sa_family_t family;

	if (given == NULL)
		return false;
	memcpy(&family, (const char *)given + offsetof(struct sockaddr, sa_family), sizeof(family));
	if (family == AF_INET) {
		struct sockaddr_in ipv4;

		memcpy(&ipv4, given, sizeof(ipv4));
		write_ipv4(&ipv4.sin_addr, address->text);
		address->port = ntohs(ipv4.sin_port);
		return true;
	}
	if (family == AF_INET6) {
		struct sockaddr_in6 ipv6;

		memcpy(&ipv6, given, sizeof(ipv6));
		address->port = ntohs(ipv6.sin6_port);
		return inet_ntop(AF_INET6, &ipv6.sin6_addr, address->text, sizeof(address->text)) != NULL;
	}
	return false;
}
