/* SPDX-License-Identifier: MIT */
/* The handles of this process; see handles.h. */
#include "handles.h"

#include <stdlib.h>

/*
 * A handle is a generation above a place above two zero bits, as on Windows, where handles are multiples of 4. With
 * a generation of 1 or more it is never NULL, and without the highest bit never INVALID_HANDLE_VALUE.
 */
#define PLACE_BITS	14
#define PLACES		((size_t)1 << PLACE_BITS)
#define GENERATION_BITS (8 * sizeof(uintptr_t) - 3 - PLACE_BITS)
#define GENERATIONS	((uintptr_t)1 << GENERATION_BITS)
#define FIRST_PLACES	8

enum place_state {
	PLACE_FREE,
	PLACE_RESERVED, /* being opened or closed */
	PLACE_OPEN,
	PLACE_INHERITED /* of the parent process, and not closed here yet */
};

struct place {
	uintptr_t generation;
	enum place_state state;
	struct connection *connection; /* unless free or inherited */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct place *places; /* never freed: their generations outlive the handles */
static size_t capacity;
static size_t last_taken;
static bool forks_are_watched; /* without that, no handle is made */

static HANDLE handle_of(size_t place)
{
	return (HANDLE)((places[place].generation << PLACE_BITS | place) << 2);
}

/* The place that a handle names, or NULL where it names none, or another generation of it. */
static struct place *find(HANDLE handle)
{
	uintptr_t value = (uintptr_t)handle;
	size_t place = value >> 2 & (PLACES - 1);

	if (place >= capacity || places[place].state == PLACE_FREE || handle_of(place) != handle)
		return NULL;
	return &places[place];
}

/* ---- fork() ---------------------------------------------------------------------------------------------- */

/* All locks are held over a fork(), so that the child finds everything whole, and can unlock what it has. */
static void before_fork(void)
{
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < capacity; i++) {
		if (places[i].connection != NULL)
			pthread_mutex_lock(&places[i].connection->lock);
	}
}

static void after_fork_in_parent(void)
{
	for (size_t i = 0; i < capacity; i++) {
		if (places[i].connection != NULL)
			pthread_mutex_unlock(&places[i].connection->lock);
	}
	pthread_mutex_unlock(&lock);
}

/* A flow lives as long as any copy of its connection is open: it shall end with its owner, so close them here. */
static void after_fork_in_child(void)
{
	for (size_t i = 0; i < capacity; i++) {
		if (places[i].connection == NULL)
			continue;
		connection_abandon(places[i].connection);
		places[i].connection = NULL;
		/* One that was being opened or closed is not known to anybody here. */
		places[i].state = places[i].state == PLACE_OPEN ? PLACE_INHERITED : PLACE_FREE;
	}
	pthread_mutex_unlock(&lock);
}

/*
 * When the library is loaded and not by the first handle, so that no fork() comes in between. It is never unloaded
 * (see the Makefile), so this is done once.
 */
__attribute__((constructor)) static void watch_forks(void)
{
	forks_are_watched = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0;
}

/* ---- The table ------------------------------------------------------------------------------------------- */

static bool grow(void)
{
	size_t larger = capacity == 0 ? FIRST_PLACES : 2 * capacity;
	struct place *grown;

	if (larger > PLACES)
		return false;
	grown = realloc(places, larger * sizeof(*grown));
	if (grown == NULL)
		return false;
	places = grown;
	for (; capacity < larger; capacity++)
		places[capacity] = (struct place){.generation = 0, .state = PLACE_FREE};
	return true;
}

/* A free place, one that was given back as long ago as possible; PLACES: there is none. */
static size_t free_place(void)
{
	for (size_t i = 1; i <= capacity; i++) {
		size_t place = (last_taken + i) % capacity;

		if (places[place].state == PLACE_FREE)
			return place;
	}
	return PLACES;
}

HANDLE handles_reserve(struct connection *connection)
{
	HANDLE handle = NULL;
	size_t place;

	pthread_mutex_lock(&lock);
	place = free_place();
	if (place == PLACES && grow())
		place = free_place();
	if (forks_are_watched && place != PLACES) {
		/* From 1, and to 1 again when all have been had. */
		places[place].generation = places[place].generation % (GENERATIONS - 1) + 1;
		places[place].state = PLACE_RESERVED;
		places[place].connection = connection;
		last_taken = place;
		handle = handle_of(place);
	}
	pthread_mutex_unlock(&lock);
	return handle;
}

void handles_publish(HANDLE handle)
{
	pthread_mutex_lock(&lock);
	find(handle)->state = PLACE_OPEN;
	pthread_mutex_unlock(&lock);
}

struct connection *handles_acquire(HANDLE handle)
{
	struct connection *connection = NULL;
	struct place *place;

	pthread_mutex_lock(&lock);
	place = find(handle);
	if (place != NULL && place->state == PLACE_OPEN) {
		connection = place->connection;
		atomic_fetch_add(&connection->references, 1);
	}
	pthread_mutex_unlock(&lock);
	return connection;
}

bool handles_retire(HANDLE handle, struct connection **connection)
{
	struct place *place;
	bool good;

	*connection = NULL;
	pthread_mutex_lock(&lock);
	place = find(handle);
	good = place != NULL && (place->state == PLACE_OPEN || place->state == PLACE_INHERITED);
	if (good && place->state == PLACE_OPEN) {
		place->state = PLACE_RESERVED;
		*connection = place->connection;
		atomic_fetch_add(&place->connection->references, 1);
	} else if (good) {
		place->state = PLACE_FREE;
	}
	pthread_mutex_unlock(&lock);
	return good;
}

void handles_forget(HANDLE handle)
{
	struct connection *connection;
	struct place *place;

	pthread_mutex_lock(&lock);
	place = find(handle);
	connection = place->connection;
	place->connection = NULL;
	place->state = PLACE_FREE;
	pthread_mutex_unlock(&lock);
	connection_release(connection);
}
