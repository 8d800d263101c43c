/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Where a packet's IP header is, what it says about QoS, and where the packet goes. Pure: computes over
 * plain pointers, knows no map, no socket and no skb, so the same code runs in the kernel and in tests.
 *
 * Two steps, because most packets need only the first: packet_network() finds the IP header and its
 * DS field; packet_destination() walks options and extension headers to the destination port, for
 * sockets whose flow depends on the destination. Nothing here writes to a packet, and nothing may:
 * one direct write makes the kernel pull every cloned skb at the program's entry.
 *
 * Every read is preceded by a comparison with `data_end` in the shape that the verifier recognises.
 */
#ifndef QOS_PACKET_H
#define QOS_PACKET_H

#include "types.h"

#ifdef __KERNEL__
#include <uapi/linux/if_ether.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#else
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#endif

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/* A constant in network byte order. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define PACKET_BE16(x) __builtin_bswap16(x)
#else
#define PACKET_BE16(x) ((u16)(x))
#endif

/*
 * Makes the compiler forget how a pointer or an offset was computed. The verifier ties a range check
 * to one computation of `data + offset`: a compiler that computes the same sum again behind the check
 * (LLVM does) gets "invalid access to packet". It also keeps LLVM from copying code per branch taken,
 * which multiplies what the verifier has to walk.
 */
#define PACKET_OPAQUE(variable) __asm__ volatile("" : "+r"(variable))

#define PACKET_TAGS	  2   /* VLAN tags walked: 802.1Q, or 802.1ad around 802.1Q */
#define PACKET_EXTENSIONS 8   /* IPv6 extension headers walked */
#define PACKET_L3_MASK	  31u /* over ETH_HLEN + 4 * PACKET_TAGS: an offset out of memory stays bounded */
#define PACKET_IP_MIN	  20u /* bytes of the least IP header */

/* IANA "Assigned Internet Protocol Numbers"; uapi headers lack some and clash with libc on others. */
enum packet_protocol {
	PACKET_HOP_BY_HOP = 0,
	PACKET_TCP = 6,
	PACKET_UDP = 17,
	PACKET_DCCP = 33,
	PACKET_ROUTING = 43,
	PACKET_FRAGMENT = 44,
	PACKET_AUTHENTICATION = 51,
	PACKET_DESTINATION_OPTIONS = 60,
	PACKET_SCTP = 132,
	PACKET_MOBILITY = 135,
	PACKET_UDPLITE = 136,
	PACKET_HIP = 139,
	PACKET_SHIM6 = 140,
};

enum packet_fragment {
	PACKET_WHOLE = 0, /* also the IPv6 "atomic fragment" (RFC 6946) */
	PACKET_FIRST = 1, /* has the ports */
	PACKET_LATER = 2, /* has not */
};

struct packet {
	/* by packet_network() */
	u8 family;  /* 4 or 6 */
	u8 dsfield; /* DSCP << 2 | ECN */
	/* by packet_destination() */
	u8 protocol; /* of the transport; where the walk stopped, if it never got there */
	u8 fragment; /* enum packet_fragment */
	/* by packet_network() */
	u16 l3_offset; /* of the IP header from `data` */
	/* by packet_destination() */
	u16 port_be;	   /* destination port of TCP, UDP, UDP-Lite, SCTP, DCCP; else 0 */
	u32 address_be[4]; /* destination; IPv4 in [0], the rest 0 */
	u32 fragment_id;   /* bits as they lie in the packet; 0 for PACKET_WHOLE */
	u16 source_port_be;
	u16 reserved;
};
QOS_SIZE(struct packet, 32);

/* uapi/linux/if_vlan.h has no such structure. */
struct packet_tag {
	u16 tci_be;
	u16 type_be; /* EtherType of what follows */
};

/* The first eight bytes of any IPv6 extension header (RFC 8200 section 4; RFC 4302 for AH). */
struct packet_extension {
	u8 next;
	u8 length;	 /* unit and base depend on the header */
	u16 fragment_be; /* fragment header: offset in 8 bytes << 3 | reserved << 1 | more */
	u32 id;		 /* fragment header */
};

static __always_inline int packet_is_tag(u16 type_be)
{
	return type_be == PACKET_BE16(ETH_P_8021Q) || type_be == PACKET_BE16(ETH_P_8021AD) ||
	       type_be == PACKET_BE16(ETH_P_QINQ1);
}

static __always_inline int packet_is_extension(u8 next)
{
	return next == PACKET_HOP_BY_HOP || next == PACKET_ROUTING || next == PACKET_FRAGMENT ||
	       next == PACKET_AUTHENTICATION || next == PACKET_DESTINATION_OPTIONS || next == PACKET_MOBILITY ||
	       next == PACKET_HIP || next == PACKET_SHIM6;
}

/*
 * Length of an IPv6 extension header: (length + 1) * 8; AH (length + 2) * 4; the fragment header has
 * no length, always 8. Without branches, and masked: were the sum a different range on each path, the
 * verifier would walk what follows once per combination of headers (measured: 20 times the work).
 * So 8 headers end at most 8 * 4095 bytes on, below the 64 KiB up to which it follows an offset.
 */
static __always_inline u32 packet_extension_bytes(u8 extension, u8 length)
{
	u64 authentication = 1ull << PACKET_AUTHENTICATION, fragment = 1ull << PACKET_FRAGMENT;
	u32 is_authentication, is_fragment, bytes;

	PACKET_OPAQUE(authentication);
	PACKET_OPAQUE(fragment);
	is_authentication = authentication >> (extension & 63) & 1;
	is_fragment = fragment >> (extension & 63) & 1;
	bytes = ((length & (is_fragment - 1)) + 1 + is_authentication) << (3 - is_authentication);
	PACKET_OPAQUE(bytes);
	return bytes & 0xfff;
}

/* All of these begin with source port, destination port. */
static __always_inline int packet_has_ports(u8 protocol)
{
	return protocol == PACKET_TCP || protocol == PACKET_UDP || protocol == PACKET_UDPLITE ||
	       protocol == PACKET_SCTP || protocol == PACKET_DCCP;
}

/* The IP header that packet_network() found. `data` may have been reloaded since. */
static __always_inline const void *packet_l3(const void *data, const struct packet *p)
{
	const void *l3 = data + (p->l3_offset & PACKET_L3_MASK);

	PACKET_OPAQUE(l3);
	return l3;
}

/*
 * Find the IP header and read its DS field: fills `family`, `dsfield`, `l3_offset`.
 * `link_bytes`: ETH_HLEN on Ethernet devices, 0 on devices without a link header (tun, ipip, ppp).
 * A tag that the device will insert itself is not in the data, and needs no walk.
 * Returns 0, or -QOS_COUNTER_NOT_IP, or -QOS_COUNTER_TRUNCATED when the fixed header is not all there.
 */
static __always_inline int packet_network(const void *data, const void *data_end, u32 link_bytes, struct packet *p)
{
	const struct ipv6hdr *ip6;
	const struct iphdr *ip4;
	const u8 *version;
	u32 offset = 0;
	u16 type_be = 0; /* 0: no link header to say it */

	if (link_bytes == ETH_HLEN) {
		const struct ethhdr *ethernet = data;

		if ((const void *)(ethernet + 1) > data_end)
			return -QOS_COUNTER_TRUNCATED;
		type_be = ethernet->h_proto;
		offset = ETH_HLEN;
#pragma unroll
		for (int i = 0; i < PACKET_TAGS; i++) {
			const struct packet_tag *tag = data + offset;

			if (!packet_is_tag(type_be))
				break;
			if ((const void *)(tag + 1) > data_end)
				return -QOS_COUNTER_TRUNCATED;
			type_be = tag->type_be;
			offset += sizeof(*tag);
		}
		if (type_be != PACKET_BE16(ETH_P_IP) && type_be != PACKET_BE16(ETH_P_IPV6))
			return -QOS_COUNTER_NOT_IP;
	} else if (link_bytes) {
		return -QOS_COUNTER_NOT_IP;
	}

	version = data + offset;
	if ((const void *)(version + 1) > data_end)
		return -QOS_COUNTER_TRUNCATED;
	if (*version >> 4 == 4 && type_be != PACKET_BE16(ETH_P_IPV6)) {
		ip4 = data + offset;
		if ((const void *)(ip4 + 1) > data_end)
			return -QOS_COUNTER_TRUNCATED;
		p->family = 4;
		p->dsfield = ip4->tos;
	} else if (*version >> 4 == 6 && type_be != PACKET_BE16(ETH_P_IP)) {
		ip6 = data + offset;
		if ((const void *)(ip6 + 1) > data_end)
			return -QOS_COUNTER_TRUNCATED;
		p->family = 6;
		p->dsfield = (u8)(ip6->priority << 4) | (ip6->flow_lbl[0] >> 4);
	} else {
		return -QOS_COUNTER_NOT_IP;
	}
	p->l3_offset = offset;
	return 0;
}

/* The ports at `offset`, where the transport header begins. */
static __always_inline int packet_port(const void *data, const void *data_end, u32 offset, struct packet *p)
{
	const u16 *ports = data + offset;

	if (!packet_has_ports(p->protocol))
		return 0;
	PACKET_OPAQUE(ports);
	if ((const void *)(ports + 2) > data_end)
		return -QOS_COUNTER_TRUNCATED;
	p->source_port_be = ports[0];
	p->port_be = ports[1];
	return 0;
}

static __always_inline int packet_destination_ipv4(const void *data, const void *data_end, struct packet *p)
{
	const struct iphdr *ip = packet_l3(data, p);
	u32 header_bytes;

	if ((const void *)(ip + 1) > data_end)
		return -QOS_COUNTER_TRUNCATED;
	p->protocol = ip->protocol;
	p->address_be[0] = ip->daddr;
	header_bytes = (u32)ip->ihl * 4;
	if (header_bytes < sizeof(*ip))
		return -QOS_COUNTER_TRUNCATED;

	if (ip->frag_off & PACKET_BE16(0x3fff)) { /* more fragments, or an offset */
		p->fragment_id = ip->id;
		if (ip->frag_off & PACKET_BE16(0x1fff)) {
			p->fragment = PACKET_LATER;
			return 0;
		}
		p->fragment = PACKET_FIRST;
	}
	return packet_port(data, data_end, (p->l3_offset & PACKET_L3_MASK) + header_bytes, p);
}

static __always_inline int packet_destination_ipv6(const void *data, const void *data_end, struct packet *p)
{
	u32 offset = (p->l3_offset & PACKET_L3_MASK) + sizeof(struct ipv6hdr);
	const struct ipv6hdr *ip = packet_l3(data, p);

	if ((const void *)(ip + 1) > data_end)
		return -QOS_COUNTER_TRUNCATED;
	p->protocol = ip->nexthdr;
	p->address_be[0] = ip->daddr.in6_u.u6_addr32[0];
	p->address_be[1] = ip->daddr.in6_u.u6_addr32[1];
	p->address_be[2] = ip->daddr.in6_u.u6_addr32[2];
	p->address_be[3] = ip->daddr.in6_u.u6_addr32[3];

#pragma unroll
	for (int i = 0; i < PACKET_EXTENSIONS; i++) {
		const struct packet_extension *extension = data + offset;

		if (!packet_is_extension(p->protocol))
			break;
		PACKET_OPAQUE(extension);
		if ((const void *)(extension + 1) > data_end)
			return -QOS_COUNTER_TRUNCATED;
		offset += packet_extension_bytes(p->protocol, extension->length);
		if (p->protocol == PACKET_FRAGMENT && extension->fragment_be & PACKET_BE16(0xfff9)) {
			p->fragment_id = extension->id;
			p->fragment = PACKET_FIRST; /* more fragments, or an offset */
			if (extension->fragment_be & PACKET_BE16(0xfff8)) {
				p->fragment = PACKET_LATER;
				p->protocol = extension->next;
				return 0;
			}
		}
		p->protocol = extension->next;
	}
	if (packet_is_extension(p->protocol))
		return -QOS_COUNTER_EXTENSION_LIMIT;
	return packet_port(data, data_end, offset, p);
}

/*
 * Where the packet goes: fills what packet_network() does not. The address is the one in the IP
 * header as on the wire, so with a routing header it is the next hop of that route, not the last.
 * ESP and "no next header" end the walk: `port_be` is 0 then. A later fragment's `protocol` is what
 * its own headers say, which in IPv6 may be an extension header of the first.
 * Returns 0, or -QOS_COUNTER_TRUNCATED (an IHL below 5 too), or -QOS_COUNTER_EXTENSION_LIMIT; with
 * these the port is 0 and the rest as far as it was read.
 */
static __always_inline int packet_destination(const void *data, const void *data_end, struct packet *p)
{
	p->protocol = 0;
	p->fragment = PACKET_WHOLE;
	p->port_be = 0;
	p->source_port_be = 0;
	p->reserved = 0;
	p->address_be[0] = 0;
	p->address_be[1] = 0;
	p->address_be[2] = 0;
	p->address_be[3] = 0;
	p->fragment_id = 0;
	if (p->family == 4)
		return packet_destination_ipv4(data, data_end, p);
	return packet_destination_ipv6(data, data_end, p);
}

/*
 * Where the packet comes from: fills `address_be` (IPv4 in [0], the rest 0). Returns as packet_network(),
 * which must have found the header.
 */
static __always_inline int packet_source(const void *data, const void *data_end, const struct packet *p,
					 u32 address_be[4])
{
	const void *l3 = packet_l3(data, p);

	if (p->family == 4) {
		const struct iphdr *ip4 = l3;

		if ((const void *)(ip4 + 1) > data_end)
			return -QOS_COUNTER_TRUNCATED;
		address_be[0] = ip4->saddr;
		address_be[1] = 0;
		address_be[2] = 0;
		address_be[3] = 0;
	} else {
		const struct ipv6hdr *ip6 = l3;

		if ((const void *)(ip6 + 1) > data_end)
			return -QOS_COUNTER_TRUNCATED;
		address_be[0] = ip6->saddr.in6_u.u6_addr32[0];
		address_be[1] = ip6->saddr.in6_u.u6_addr32[1];
		address_be[2] = ip6->saddr.in6_u.u6_addr32[2];
		address_be[3] = ip6->saddr.in6_u.u6_addr32[3];
	}
	return 0;
}

/*
 * Bytes at IP level that the segments of this skb will have on the wire, each with its own headers.
 * `wire_len` is the kernel's qdisc packet length: at tc egress it counts, for each GSO segment, all
 * headers from the link header on, so a link header (in-band tags included) is taken off per segment.
 * `gso_segs` is 0 for an skb that is not GSO. Never less than a bare IP header: nothing is free, and
 * a segment count that does not fit the length cannot wrap around.
 */
static __always_inline u32 packet_ip_bytes(u32 wire_len, u32 gso_segs, u32 l3_offset)
{
	u64 link_bytes = (u64)l3_offset * (gso_segs ? gso_segs : 1);

	if (wire_len < link_bytes + PACKET_IP_MIN)
		return PACKET_IP_MIN;
	return wire_len - (u32)link_bytes;
}

#endif
