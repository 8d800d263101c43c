/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The DS field: six bits of DSCP over two of ECN (RFC 2474 section 3, RFC 3168 section 5), the same
 * byte in both families, only placed differently. The ECN bits belong to the transport and the
 * network: whatever is computed here keeps them.
 *
 * Pure: dsfield_rewrite() does not touch the packet, it computes the bytes that one
 * bpf_skb_store_bytes() at the start of the IP header puts there. Reading is in packet.h.
 */
#ifndef QOS_DSFIELD_H
#define QOS_DSFIELD_H

#include "types.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define DSFIELD_ECN_BITS  2
#define DSFIELD_ECN_MASK  0x03u
#define DSFIELD_DSCP_MASK 0x3fu

#define DSFIELD_IPV4_BYTES 12u /* up to and with the header checksum */
#define DSFIELD_IPV6_BYTES 4u

/*
 * Where the DSCP lies in the first word of the header as loaded by the CPU, and where the 16-bit
 * words of IPv4's checksum do. One's complement sums do not mind the byte order (RFC 1071 section 2),
 * so nothing needs swapping. IPv6's class straddles two bytes: version, class | class, flow label.
 */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define DSFIELD_IPV4_MASK	0x0000fc00u
#define DSFIELD_IPV4_WORD(dscp) ((u32)(dscp) << 10)
#define DSFIELD_IPV6_MASK	0x0000c00fu
#define DSFIELD_IPV6_WORD(dscp) ((u32)(dscp) >> 2 | ((u32)(dscp) << 14 & 0xc000u))
#define DSFIELD_FIRST_SHIFT	0  /* of the 16 bits with the DS field in word 0 */
#define DSFIELD_CHECKSUM_SHIFT	16 /* of the checksum in word 2 */
#elif __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define DSFIELD_IPV4_MASK	0x00fc0000u
#define DSFIELD_IPV4_WORD(dscp) ((u32)(dscp) << 18)
#define DSFIELD_IPV6_MASK	0x0fc00000u
#define DSFIELD_IPV6_WORD(dscp) ((u32)(dscp) << 22)
#define DSFIELD_FIRST_SHIFT	16
#define DSFIELD_CHECKSUM_SHIFT	0
#else
#error "byte order"
#endif

/* The DSCP, 0..63, in a DS field. */
static __always_inline u8 dsfield_dscp(u8 dsfield)
{
	return dsfield >> DSFIELD_ECN_BITS;
}

/* A DS field with this DSCP and the ECN bits it had. */
static __always_inline u8 dsfield_with(u8 dsfield, u8 dscp)
{
	return (u8)((dscp & DSFIELD_DSCP_MASK) << DSFIELD_ECN_BITS) | (dsfield & DSFIELD_ECN_MASK);
}

/*
 * RFC 1624 equation 3: HC' = ~(~HC + ~m + m'). Unlike equation 2 of RFC 1141 it never makes 0xffff
 * out of a sum that is 0x0000. A checksum that was wrong stays wrong by the same amount, so damage
 * is not hidden.
 */
static __always_inline u32 dsfield_checksum(u32 checksum, u32 old, u32 new)
{
	u32 sum = (~checksum & 0xffff) + (~old & 0xffff) + new;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum & 0xffff;
}

/*
 * What to store at the start of the IP header `l3` to give it this DSCP: fills `out`, returns the
 * number of bytes of it: 12 for family 4, 4 for family 6 (`out[1]` and `out[2]` are then untouched),
 * 0 when the header ends before. Words are read and built whole: a helper that copies them right
 * away would stall on bytes stored one by one.
 */
static __always_inline u32 dsfield_rewrite(const void *l3, const void *data_end, u8 family, u8 dscp, u32 out[3])
{
	const u32 *word = l3;
	u32 checksum;

	/* So that the reads below use the very pointer that was compared: see PACKET_OPAQUE in packet.h. */
	__asm__ volatile("" : "+r"(word));
	dscp &= DSFIELD_DSCP_MASK;
	if (family == 4) {
		if ((const void *)(word + 3) > data_end)
			return 0;
		out[0] = (word[0] & ~DSFIELD_IPV4_MASK) | DSFIELD_IPV4_WORD(dscp);
		out[1] = word[1];
		checksum = dsfield_checksum(word[2] >> DSFIELD_CHECKSUM_SHIFT & 0xffff,
					    word[0] >> DSFIELD_FIRST_SHIFT & 0xffff,
					    out[0] >> DSFIELD_FIRST_SHIFT & 0xffff);
		out[2] = (word[2] & ~(0xffffu << DSFIELD_CHECKSUM_SHIFT)) | checksum << DSFIELD_CHECKSUM_SHIFT;
		return DSFIELD_IPV4_BYTES;
	}
	if ((const void *)(word + 1) > data_end)
		return 0;
	out[0] = (word[0] & ~DSFIELD_IPV6_MASK) | DSFIELD_IPV6_WORD(dscp);
	return DSFIELD_IPV6_BYTES;
}

#endif
