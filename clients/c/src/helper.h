/* SPDX-License-Identifier: MIT */
/*
 * The helper thread of a connection: it receives while overlapped calls are pending and no other thread does.
 *
 * It begins with the first of them and ends with the last; all signals are blocked in it.
 */
#ifndef QWAVE_HELPER_H
#define QWAVE_HELPER_H

#include "connection.h"

/* With the lock held: have it running. False: no thread can be made. */
bool helper_start(struct connection *connection);

/* Return when its thread is gone. No call is pending any more, and none becomes so. */
void helper_join(struct connection *connection);

#endif
