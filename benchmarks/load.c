/* The load: connections that play ping-pong with a server for a fixed time.

   load --port P --connections C --seconds S --warmup W (--size N [--datagrams] | --http BODY)

   With --size, each connection sends N bytes and waits until as many came back, with --datagrams in one
   datagram: as many as there are connections must have room in the server's socket. With --http it sends a GET
   request, always the same, and waits for a response of status 200 whose body is BODY. Prints "measuring"
   when the warm-up is over and, at the end, one line of JSON. Any wrong byte or closed connection ends the
   program with a message and status 1.

   What came back is checked at a cost that does not show: messages start at ever different places of a
   random pattern, so that a byte lost, repeated, or left from an earlier message shifts or contradicts what
   is expected; the first message of a connection is compared in full, later ones at both ends of each
   chunk received. */
#define _GNU_SOURCE
#include "net.h"

#include <getopt.h>
#include <stdbool.h>
#include <strings.h>
#include <sys/epoll.h>

enum { CHUNK = 256 * 1024, SHIFTS = 4096, EVENTS = 512, EDGE = 64, RESPONSE = 4096 };
static const uint64_t PATIENCE = 10000000000u; /* nanoseconds */
enum { STEPS = 64, OCTAVES = 40 }; /* latencies: 64 steps in each power of two of nanoseconds */

static const char REQUEST[] = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n";

struct connection {
    int fd;
    bool waiting;        /* a message is under way */
    uint32_t turn;       /* messages that came back */
    const char *message; /* what is being sent */
    size_t sent, received;
    size_t expected;     /* bytes that will come back; for HTTP 0 until the header is complete */
    uint64_t started;
    char *response;
};

static size_t size;       /* of what is sent */
static const char *body;  /* expected of an HTTP server; NULL for echo */
static char *pattern;
static char chunk[CHUNK];
static bool sending = true;
static int under_way;
static uint64_t messages;
static uint64_t latencies[OCTAVES * STEPS];

/* ---- latencies */

static size_t latency_slot(uint64_t ns) {
    if (ns < STEPS)
        return ns;
    int octave = 63 - __builtin_clzll(ns) - 6;
    size_t slot = (size_t)(octave + 1) * STEPS + ((ns >> octave) - STEPS);
    return slot < OCTAVES * STEPS ? slot : OCTAVES * STEPS - 1;
}

static double slot_microseconds(size_t slot) {
    size_t octave = slot / STEPS, step = slot % STEPS;
    return octave == 0 ? step / 1e3 : (double)((STEPS + step) << (octave - 1)) / 1e3;
}

static double percentile(double share) {
    uint64_t rank = (uint64_t)(share * (double)(messages - 1)), seen = 0;
    for (size_t slot = 0; slot < OCTAVES * STEPS; slot++)
        if ((seen += latencies[slot]) > rank)
            return slot_microseconds(slot);
    return slot_microseconds(OCTAVES * STEPS - 1);
}

/* ---- messages */

static void continue_sending(struct connection *c) {
    while (c->sent < size) {
        ssize_t n = send(c->fd, c->message + c->sent, size - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN)
                return; /* the edge will tell */
            fail("send after %u messages of a connection: %s", c->turn, strerror(errno));
        }
        c->sent += (size_t)n;
    }
}

static void start_message(struct connection *c, unsigned id) {
    c->waiting = true;
    under_way++;
    c->sent = c->received = 0;
    c->expected = body ? 0 : size;
    c->message = body ? REQUEST : pattern + (id * 31 + c->turn * 17) % SHIFTS;
    continue_sending(c);
}

static void finish_message(struct connection *c, unsigned id) {
    uint64_t now = nanoseconds();
    latencies[latency_slot(now - c->started)]++;
    messages++;
    c->turn++;
    c->waiting = false;
    under_way--;
    c->started = now;
    if (sending)
        start_message(c, id);
}

static void check_echo(struct connection *c, size_t n) {
    const char *expected = c->message + c->received;
    bool right = c->received + n <= c->sent;
    if (right && (c->turn == 0 || n <= 2 * EDGE))
        right = memcmp(chunk, expected, n) == 0;
    else if (right)
        right = memcmp(chunk, expected, EDGE) == 0 &&
                memcmp(chunk + n - EDGE, expected + n - EDGE, EDGE) == 0;
    if (!right)
        fail("wrong bytes came back: message %u of a connection, %zu bytes at offset %zu", c->turn, n, c->received);
}

static void check_response(struct connection *c) {
    c->response[c->received] = '\0';
    char *end = strstr(c->response, "\r\n\r\n");
    if (end == NULL || c->expected != 0)
        return;
    char *length = strcasestr(c->response, "\r\nContent-Length:");
    if (strncmp(c->response, "HTTP/1.1 200 ", 13) != 0 || length == NULL || length > end)
        fail("not a response of status 200 with a Content-Length: %.60s", c->response);
    size_t header = (size_t)(end + 4 - c->response), content = strtoul(length + 17, NULL, 10);
    if (content != strlen(body) || header + content > RESPONSE)
        fail("a body of %zu bytes instead of %zu", content, strlen(body));
    c->expected = header + content;
}

/* Whether the message is complete. */
static bool receive(struct connection *c) {
    for (;;) {
        char *into = body ? c->response + c->received : chunk;
        size_t room = body ? RESPONSE - c->received : CHUNK;
        ssize_t n = recv(c->fd, into, room, 0);
        if (n < 0 && errno == EAGAIN)
            return false;
        if (n <= 0)
            fail("a connection ended after %u messages: %s", c->turn, n < 0 ? strerror(errno) : "end of file");
        if (!c->waiting)
            fail("bytes came that nobody asked for, after %u messages", c->turn);
        if (!body)
            check_echo(c, (size_t)n);
        c->received += (size_t)n;
        if (body)
            check_response(c);
        if (c->expected != 0 && c->received >= c->expected) {
            if (c->received > c->expected)
                fail("%zu bytes came back instead of %zu", c->received, c->expected);
            if (body && memcmp(c->response + c->expected - strlen(body), body, strlen(body)) != 0)
                fail("the body is not '%s'", body);
            return true;
        }
        if ((size_t)n < room)
            return false; /* drained: there will be a new edge */
        if (body && c->received == RESPONSE)
            fail("a response longer than %d bytes", RESPONSE);
    }
}

static void run_until(int epoll, struct connection *connections, uint64_t deadline) {
    struct epoll_event events[EVENTS];
    for (;;) {
        uint64_t now = nanoseconds();
        if (now >= deadline || (!sending && under_way == 0))
            return;
        int n = epoll_wait(epoll, events, EVENTS, (int)((deadline - now) / 1000000) + 1);
        if (n < 0 && errno != EINTR)
            fail("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < n; i++) {
            unsigned id = events[i].data.u32;
            struct connection *c = &connections[id];
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && receive(c))
                finish_message(c, id);
            else if (c->waiting && events[i].events & EPOLLOUT)
                continue_sending(c);
        }
    }
}

int main(int count, char **arguments) {
    enum { PORT, CONNECTIONS, SECONDS, WARMUP, SIZE, DATAGRAMS, HTTP };
    static const struct option options[] = {
        {"port", required_argument, NULL, PORT},       {"connections", required_argument, NULL, CONNECTIONS},
        {"seconds", required_argument, NULL, SECONDS}, {"warmup", required_argument, NULL, WARMUP},
        {"size", required_argument, NULL, SIZE},       {"http", required_argument, NULL, HTTP},
        {"datagrams", no_argument, NULL, DATAGRAMS},   {NULL, 0, NULL, 0},
    };
    int port = 0;
    unsigned total = 1;
    bool datagrams = false;
    double seconds = 1, warmup = 0.1;
    for (int option, index; (option = getopt_long(count, arguments, "", options, &index)) != -1;) {
        switch (option) {
        case PORT: port = (int)number("--port", optarg, 1); break;
        case CONNECTIONS: total = (unsigned)number("--connections", optarg, 1); break;
        case SECONDS: seconds = number("--seconds", optarg, 0.001); break;
        case WARMUP: warmup = number("--warmup", optarg, 0); break;
        case SIZE: size = (size_t)number("--size", optarg, 1); break;
        case DATAGRAMS: datagrams = true; break;
        case HTTP: body = optarg; break;
        default: return 2;
        }
    }
    if (port == 0 || (size == 0) == (body == NULL))
        fail("usage: load --port P --connections C --seconds S --warmup W (--size N [--datagrams] | --http BODY)");
    if (body)
        size = sizeof REQUEST - 1;

    pattern = allocate(size + SHIFTS, 1);
    uint64_t random = 0x9E3779B97F4A7C15u;
    for (size_t i = 0; i < size + SHIFTS; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17; /* xorshift */
        pattern[i] = (char)(random >> 32);
    }

    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        fail("epoll_create1: %s", strerror(errno));
    struct connection *connections = allocate(total, sizeof *connections);
    for (unsigned id = 0; id < total; id++) {
        struct connection *c = &connections[id];
        c->fd = datagrams ? connect_datagrams(port) : connect_to(port, id);
        make_nonblocking(c->fd);
        if (body)
            c->response = allocate(RESPONSE + 1, 1);
        /* Edges, so that the interest never changes and a message costs one recv and one send. */
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = id};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) < 0)
            fail("epoll_ctl: %s", strerror(errno));
    }

    uint64_t started = nanoseconds();
    for (unsigned id = 0; id < total; id++) {
        connections[id].started = nanoseconds();
        start_message(&connections[id], id);
    }
    run_until(epoll, connections, started + (uint64_t)(warmup * 1e9));

    printf("measuring\n");
    fflush(stdout);
    messages = 0;
    memset(latencies, 0, sizeof latencies);
    double user, system, user_before, system_before;
    processor_time(&user_before, &system_before);
    started = nanoseconds();
    uint64_t end = started;
    do { /* on a machine that is busy with something else, the first message may take longer than all was to last */
        end += (uint64_t)(seconds * 1e9);
        run_until(epoll, connections, end);
    } while (messages == 0 && end - started < PATIENCE);
    double elapsed = (double)(nanoseconds() - started) / 1e9;
    processor_time(&user, &system);
    if (messages == 0)
        fail("not one message came back in %.1f seconds", elapsed);
    printf("{\"messages\": %llu, \"seconds\": %.6f, \"per_second\": %.3f, \"client_busy\": %.3f, \"latency_us\": "
           "{\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"p99.9\": %.3f, \"max\": %.3f}}\n",
           (unsigned long long)messages, elapsed, (double)messages / elapsed,
           (user - user_before + system - system_before) / elapsed, percentile(0.5), percentile(0.9),
           percentile(0.99), percentile(0.999), percentile(1));
    fflush(stdout);

    /* Let what is under way come back, so that the server sees an orderly end of its connections. */
    sending = false;
    run_until(epoll, connections, nanoseconds() + 2000000000u);
    return 0;
}
