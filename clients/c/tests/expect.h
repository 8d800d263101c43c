/* SPDX-License-Identifier: MIT */
/* What the tests of the library expect: the first claim that is not true ends the program with its place. */
#ifndef EXPECT_H
#define EXPECT_H

#include <dirent.h>
#include <qos2.h>
#include <stdio.h>
#include <stdlib.h>

/* No call leaves this as the last error. */
#define UNTOUCHED 0xdeadu

#define EXPECT(claim)                                                                       \
	do {                                                                                \
		if (!(claim)) {                                                             \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #claim); \
			exit(1);                                                            \
		}                                                                           \
	} while (0)

#define EXPECT_EQUAL(expected, value)                                                                        \
	do {                                                                                                 \
		long long expected_ = (long long)(expected), value_ = (long long)(value);                    \
                                                                                                             \
		if (expected_ != value_) {                                                                   \
			fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #value, value_, \
				expected_);                                                                  \
			exit(1);                                                                             \
		}                                                                                            \
	} while (0)

/* The call returns FALSE with this last error; 0: it returns TRUE and leaves the last error alone. */
#define EXPECT_ERROR(number, call)                                                                        \
	do {                                                                                              \
		SetLastError(UNTOUCHED);                                                                  \
		DWORD error_ = (call) ? ERROR_SUCCESS : GetLastError();                                   \
                                                                                                          \
		if (error_ != (DWORD)(number)) {                                                          \
			fprintf(stderr, "%s:%d: %s gives %u (%s), not %u\n", __FILE__, __LINE__, #call,   \
				(unsigned int)error_, qos2_last_error_message(), (unsigned int)(number)); \
			exit(1);                                                                          \
		}                                                                                         \
		if (error_ == ERROR_SUCCESS)                                                              \
			EXPECT_EQUAL(UNTOUCHED, GetLastError());                                          \
	} while (0)

#define EXPECT_OK(call) EXPECT_ERROR(ERROR_SUCCESS, call)

/* How many entries a directory has: of threads in /proc/self/task, of descriptors in /proc/self/fd. */
static inline int entries_of(const char *path)
{
	DIR *directory = opendir(path);
	int count = 0;

	EXPECT(directory != NULL);
	while (readdir(directory) != NULL)
		count++;
	closedir(directory);
	return count;
}

static inline int open_descriptors(void)
{
	return entries_of("/proc/self/fd");
}

static inline int running_threads(void)
{
	return entries_of("/proc/self/task");
}

#endif
