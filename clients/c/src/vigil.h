/* SPDX-License-Identifier: MIT */
/*
 * Whether it pays to wait awake for a reply. To fall asleep and to be woken on an idle CPU takes longer than the daemon
 * takes for a request; but where it has others to serve, or no CPU of its own, waiting awake is in vain. After a wait in
 * vain some occasions are passed over: twice as many each time, until one has paid.
 */
#ifndef QWAVE_VIGIL_H
#define QWAVE_VIGIL_H

#include <stdbool.h>

/* How long a wait is awake: longer than a request takes, shorter than to fall asleep and be woken. */
#define VIGIL_AWAKE_NS 60000
/* The longest pause after waits in vain is 2 to the power of this, in occasions. */
#define VIGIL_MOST_IN_VAIN 10

struct vigil {
	unsigned int in_vain;
	unsigned int skip;
};

/* To be asked once at each occasion. */
static inline bool vigil_is_due(struct vigil *vigil)
{
	if (vigil->skip == 0)
		return true;
	vigil->skip--;
	return false;
}

static inline void vigil_ends(struct vigil *vigil, bool paid)
{
	if (paid) {
		vigil->in_vain = 0;
		return;
	}
	if (vigil->in_vain < VIGIL_MOST_IN_VAIN)
		vigil->in_vain++;
	vigil->skip = 1U << vigil->in_vain;
}

#endif
