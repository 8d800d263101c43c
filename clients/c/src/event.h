/* SPDX-License-Identifier: MIT */
/*
 * The events of OVERLAPPEDs: eventfds of the program, of which duplicates are held while calls are under way.
 *
 * The program may have made them blocking or not, and as semaphores or not. An event is -1 where there is none.
 */
#ifndef QWAVE_EVENT_H
#define QWAVE_EVENT_H

#include <stdbool.h>

#include "outcome.h"

/* A duplicate of the eventfd that an hEvent carries, emptied. False: `outcome` failed. */
bool event_take(HANDLE from, int *event, struct outcome *outcome);

/* Add 1 to it and close it. */
void event_signal(int event);

/* Close it. */
void event_drop(int event);

#endif
