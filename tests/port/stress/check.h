/* Checks that stay in every build, and say what failed. */

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                        \
    do {                                                                                                        \
        if (!(condition)) {                                                                                     \
            fprintf(stderr, "FAILED %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);            \
            abort();                                                                                            \
        }                                                                                                       \
    } while (0)
