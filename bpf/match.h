/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * A rule against what is known of a connection: ternary matching, value and mask, word by word.
 *
 * Strategy: no branch. The datapath goes through up to 4,096 rules in a bounded loop, which a verifier
 * without bpf_loop() (before Linux 5.17) walks round by round: each branch inside would leave one more
 * state behind per round (it gives up at 8,192 of them), and have what follows walked once more. Straight
 * code is walked once per rule: about 130 instructions of the million that the verifier allows.
 *
 * Pure: plain pointers. Included by qos.bpf.c and by native tests.
 */
#ifndef QOS_MATCH_H
#define QOS_MATCH_H

#include "types.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/* Neighbouring fields as one word. */
typedef u64 __attribute__((may_alias)) match_word;
#define MATCH_WORD(field) (*(const match_word *)&(field))
/* So that the compiler does not see what a number is for: it would make branches of what has none. */
#define MATCH_OPAQUE(number) __asm__ volatile("" : "+r"(number))

/* All bits where `x` is not 0. */
static __always_inline u64 match_all_if(u64 x)
{
	u64 mask = x | -x;

	MATCH_OPAQUE(mask);
	mask = -(mask >> 63);
	MATCH_OPAQUE(mask);
	return mask;
}

/* Not 0 where `port` lies outside of first .. last. */
static __always_inline u64 match_outside(u64 port, u64 first, u64 last)
{
	return ((port - first) | (last - port)) >> 63;
}

/* 0 where the rule matches; else any other number. */
static __always_inline u64 match_difference(const struct rule *r, const struct facts *f)
{
	u64 difference;

	difference = (MATCH_WORD(f->of.local_be[0]) & MATCH_WORD(r->local_mask_be[0])) ^ MATCH_WORD(r->local_be[0]);
	difference |= (MATCH_WORD(f->of.local_be[2]) & MATCH_WORD(r->local_mask_be[2])) ^ MATCH_WORD(r->local_be[2]);
	difference |= (MATCH_WORD(f->of.remote_be[0]) & MATCH_WORD(r->remote_mask_be[0])) ^ MATCH_WORD(r->remote_be[0]);
	difference |= (MATCH_WORD(f->of.remote_be[2]) & MATCH_WORD(r->remote_mask_be[2])) ^ MATCH_WORD(r->remote_be[2]);
	/* ifindex */
	difference |= (MATCH_WORD(f->uid) & MATCH_WORD(r->uid_mask)) ^ MATCH_WORD(r->uid);
	/* protocol, family, dscp, traffic */
	difference |= (MATCH_WORD(f->executable) & MATCH_WORD(r->executable_mask)) ^ MATCH_WORD(r->executable);
	difference |= (f->netns_cookie ^ r->netns_cookie) & match_all_if(r->netns_cookie);
	difference |= f->cgroup_ids[r->cgroup_level & (QOS_CGROUP_LEVELS - 1)] ^ r->cgroup_id;
	difference |= match_outside(f->of.local_port, r->local_port_first, r->local_port_last);
	difference |= match_outside(f->of.remote_port, r->remote_port_first, r->remote_port_last);
	return difference;
}

/* Takes the act of a rule into `act` if the rule matches and no rule before it has: `act` is then 0. */
static __always_inline u64 match_take(u64 act, const struct rule *r, const struct facts *f)
{
	return act | (MATCH_WORD(r->flow_id) & ~match_all_if(match_difference(r, f) | act));
}

/* Of the word that match_take() takes. */
static __always_inline u32 match_flow_id(u64 act)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return (u32)act;
#else
	return act >> 32;
#endif
}

static __always_inline u32 match_pool(u64 act)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return act >> 32 & 0xffff;
#else
	return act >> 16 & 0xffff;
#endif
}

static __always_inline u32 match_bucket(u64 act)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return act >> 48 & 0xff;
#else
	return act >> 8 & 0xff;
#endif
}

/* Whether two connections are the same one; `cookie` is not compared. */
static __always_inline int match_same(const struct connection *a, const struct connection *b)
{
	return !((MATCH_WORD(a->local_be[0]) ^ MATCH_WORD(b->local_be[0])) |
		 (MATCH_WORD(a->local_be[2]) ^ MATCH_WORD(b->local_be[2])) |
		 (MATCH_WORD(a->remote_be[0]) ^ MATCH_WORD(b->remote_be[0])) |
		 (MATCH_WORD(a->remote_be[2]) ^ MATCH_WORD(b->remote_be[2])) |
		 (MATCH_WORD(a->local_port) ^ MATCH_WORD(b->local_port)) | /* remote_port, ifindex */
		 (MATCH_WORD(a->protocol) ^ MATCH_WORD(b->protocol)));	   /* family, dscp, traffic, reserved */
}

#endif
