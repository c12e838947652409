/* Connections that come and go: each sends one message, reads its echo, and closes.

   visitors --port P --concurrency C (--seconds S | --total N --every E)   come and go
   visitors --port P --hold N                                             come and stay

   With --seconds prints one line of JSON. With --total prints the number of connections closed so far at
   every E of them. With --hold prints "open" when N connections stand and have had their echo, and keeps
   them until its standard input ends. */
#define _GNU_SOURCE
#include "net.h"

#include <getopt.h>
#include <sys/epoll.h>

enum { SIZE = 1024, EVENTS = 512 };

static char message[SIZE], echoed[SIZE];
static int port;
static unsigned opened;

/* A fresh connection whose message is on its way. */
static int visit(void) {
    int fd = connect_to(port, opened++);
    if (send(fd, message, SIZE, MSG_NOSIGNAL) != SIZE)
        fail("send on connection %u: %s", opened, strerror(errno));
    return fd;
}

/* Bytes received after what `received` says had come; 0 when nothing is there. */
static size_t receive(int fd, size_t received, int flags) {
    ssize_t n = recv(fd, echoed, SIZE - received, flags);
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n <= 0)
        fail("a connection ended before its echo: %s", n < 0 ? strerror(errno) : "end of file");
    if (memcmp(echoed, message + received, (size_t)n) != 0)
        fail("wrong bytes came back");
    return (size_t)n;
}

static void hold(unsigned count) {
    int *connections = allocate(count, sizeof *connections);
    for (unsigned i = 0; i < count; i++) {
        connections[i] = visit();
        for (size_t received = 0; received < SIZE;)
            received += receive(connections[i], received, 0);
    }
    printf("open\n");
    fflush(stdout);
    while (read(STDIN_FILENO, echoed, SIZE) > 0)
        ;
}

static void come_and_go(unsigned concurrency, double seconds, uint64_t total, uint64_t every) {
    struct visitor {
        int fd;
        size_t received;
    } *visitors = allocate(concurrency, sizeof *visitors);
    struct epoll_event events[EVENTS];
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    uint64_t closed = 0, started = nanoseconds(), deadline = started + (uint64_t)(seconds * 1e9), progress = started;
    unsigned standing = 0;
    for (; standing < concurrency && (total == 0 || standing < total); standing++) {
        visitors[standing].fd = visit();
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = standing};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, visitors[standing].fd, &event) < 0)
            fail("epoll_ctl: %s", strerror(errno));
    }
    while (standing > 0) {
        int n = epoll_wait(epoll, events, EVENTS, 100);
        if (n < 0 && errno != EINTR)
            fail("epoll_wait: %s", strerror(errno));
        uint64_t now = nanoseconds();
        if (total == 0 && now >= deadline)
            break;
        if (n > 0)
            progress = now;
        else if (now - progress > 5000000000u)
            fail("no echo for 5 seconds, after %llu connections", (unsigned long long)closed);
        for (int i = 0; i < n; i++) {
            struct visitor *v = &visitors[events[i].data.u32];
            v->received += receive(v->fd, v->received, MSG_DONTWAIT);
            if (v->received < SIZE)
                continue;
            close(v->fd);
            closed++;
            if (total != 0 && closed % every == 0) {
                printf("%llu\n", (unsigned long long)closed);
                fflush(stdout);
            }
            if (total != 0 && closed + standing > total) {
                standing--;
                continue;
            }
            v->fd = visit();
            v->received = 0;
            struct epoll_event event = {.events = EPOLLIN, .data.u32 = events[i].data.u32};
            if (epoll_ctl(epoll, EPOLL_CTL_ADD, v->fd, &event) < 0)
                fail("epoll_ctl: %s", strerror(errno));
        }
    }
    if (total == 0) {
        double elapsed = (double)(nanoseconds() - started) / 1e9;
        if (closed == 0)
            fail("not one connection had its echo in %.1f seconds", elapsed);
        printf("{\"connections\": %llu, \"seconds\": %.6f, \"per_second\": %.3f}\n", (unsigned long long)closed,
               elapsed, (double)closed / elapsed);
    }
}

int main(int count, char **arguments) {
    enum { PORT, CONCURRENCY, SECONDS, TOTAL, EVERY, HOLD };
    static const struct option options[] = {
        {"port", required_argument, NULL, PORT},       {"concurrency", required_argument, NULL, CONCURRENCY},
        {"seconds", required_argument, NULL, SECONDS}, {"total", required_argument, NULL, TOTAL},
        {"every", required_argument, NULL, EVERY},     {"hold", required_argument, NULL, HOLD},
        {NULL, 0, NULL, 0},
    };
    double seconds = 0;
    unsigned concurrency = 20, held = 0;
    uint64_t total = 0, every = 10000;
    for (int option, index; (option = getopt_long(count, arguments, "", options, &index)) != -1;) {
        switch (option) {
        case PORT: port = (int)number("--port", optarg, 1); break;
        case CONCURRENCY: concurrency = (unsigned)number("--concurrency", optarg, 1); break;
        case SECONDS: seconds = number("--seconds", optarg, 0.001); break;
        case TOTAL: total = (uint64_t)number("--total", optarg, 1); break;
        case EVERY: every = (uint64_t)number("--every", optarg, 1); break;
        case HOLD: held = (unsigned)number("--hold", optarg, 1); break;
        default: return 2;
        }
    }
    if (port == 0 || (seconds > 0) + (total > 0) + (held > 0) != 1)
        fail("usage: visitors --port P (--concurrency C (--seconds S | --total N --every E) | --hold N)");
    for (size_t i = 0; i < SIZE; i++)
        message[i] = (char)(i * 7 + i / 256);
    if (held > 0)
        hold(held);
    else
        come_and_go(concurrency, seconds, total, every);
    return 0;
}
