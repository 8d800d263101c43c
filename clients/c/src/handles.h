/* SPDX-License-Identifier: MIT */
/*
 * The handles of this process: numbers of places in a table, never pointers.
 *
 * A place has a generation that changes each time it is given out, so that a handle which is closed, copied wrongly
 * or invented is recognised, and no memory is touched by it. The table knows connections from before they have a
 * socket until after they have lost it: what a fork() in between leaves to the child is closed there.
 */
#ifndef QWAVE_HANDLES_H
#define QWAVE_HANDLES_H

#include "connection.h"

/* Take over the caller's reference. The handle is known to fork() only, until it is published. NULL: no room. */
HANDLE handles_reserve(struct connection *connection);

/* From now on the handle is good. */
void handles_publish(HANDLE handle);

/* The connection of a good handle, with a reference for the caller; or NULL. */
struct connection *handles_acquire(HANDLE handle);

/*
 * The handle is good no longer. False: it was not before. The connection comes with a reference; it is NULL for a
 * handle of the parent process, of which nothing is left to close. Then the handle is gone, otherwise it is to be
 * forgotten by handles_forget().
 */
bool handles_retire(HANDLE handle, struct connection **connection);

/* Free the place of a handle that is not good, and drop the table's reference. */
void handles_forget(HANDLE handle);

#endif
