/* The two ends of an echo over TLS, in C with OpenSSL on the descriptor.

     tls serve CERTIFICATES KEY              the limit: prints its port, answers each line of its input with the
                                             processor time used so far, and ends with its input
     tls load PORT CONNECTIONS SIZE SECONDS  prints how many messages came back
     tls shake PORT SECONDS                  prints how many handshakes were done, one after another

   Trusts anybody: it is for connections to itself. */
#define _GNU_SOURCE
#include "net.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/epoll.h>

enum { RECORD = 16 * 1024, CHUNK = 256 * 1024, EVENTS = 512, BACKLOG = 4096 };

struct connection {
    int fd, writes; /* what it waits for */
    SSL *tls;
    char *data;
    size_t length, done;
};

static int epoll;
static size_t messages;

static void watch(int operation, struct connection *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll, operation, c->fd, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
}

static void want(struct connection *c, int writes) {
    if (c->writes != writes)
        watch(EPOLL_CTL_MOD, c, writes ? EPOLLOUT : EPOLLIN);
    c->writes = writes;
}

/* Whether to go on; if not, the connection waits, or -1: it has ended. */
static int went(struct connection *c, int result) {
    if (result > 0)
        return 1;
    int error = SSL_get_error(c->tls, result);
    ERR_clear_error();
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
        want(c, error == SSL_ERROR_WANT_WRITE);
        return 0;
    }
    return -1;
}

static struct connection *begin(SSL_CTX *context, int fd, size_t room) {
    struct connection *c = allocate(1, sizeof *c);
    c->fd = fd;
    c->tls = SSL_new(context);
    c->data = room ? allocate(room, 1) : NULL;
    if (c->tls == NULL || !SSL_set_fd(c->tls, fd))
        fail("SSL_new");
    return c;
}

static void end(struct connection *c) {
    close(c->fd);
    SSL_free(c->tls);
    free(c->data);
    free(c);
}

static SSL_CTX *make_context(const SSL_METHOD *method) {
    SSL_CTX *context = SSL_CTX_new(method);
    if (context == NULL)
        fail("SSL_CTX_new");
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
    return context;
}

/* ---- the server */

static char chunk[CHUNK];

/* Sends what there is, and keeps the rest. */
static int echo_data(struct connection *c, const char *data, size_t length) {
    size_t sent = 0;
    int result = 1;
    while (sent < length && (result = SSL_write(c->tls, data + sent, (int)(length - sent))) > 0)
        sent += (size_t)result;
    int going = sent == length ? 1 : went(c, result);
    if (going == 0 && c->data == NULL) {
        c->length = length - sent;
        c->done = 0;
        c->data = allocate(c->length, 1);
        memcpy(c->data, data + sent, c->length);
    } else if (c->data != NULL)
        c->done += sent;
    return going;
}

static int echo(struct connection *c) {
    if (c->data != NULL) {
        int going = echo_data(c, c->data + c->done, c->length - c->done);
        if (going != 1)
            return going;
        free(c->data);
        c->data = NULL;
        want(c, 0);
    }
    size_t length = 0;
    int result = 1, going = 1;
    while (length + RECORD <= CHUNK && (result = SSL_read(c->tls, chunk + length, RECORD)) > 0) {
        length += (size_t)result;
        if (result < RECORD)
            break;
    }
    if (result <= 0)
        going = went(c, result);
    if (length && going >= 0)
        going = echo_data(c, chunk, length);
    return going;
}

static void serve(SSL_CTX *context) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    struct connection listener = {.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
    struct connection standard_input = {.fd = STDIN_FILENO};
    if (listener.fd < 0 || bind(listener.fd, (struct sockaddr *)&address, length) < 0 ||
        listen(listener.fd, BACKLOG) < 0 || getsockname(listener.fd, (struct sockaddr *)&address, &length) < 0)
        fail("a listening socket: %s", strerror(errno));
    watch(EPOLL_CTL_ADD, &listener, EPOLLIN);
    watch(EPOLL_CTL_ADD, &standard_input, EPOLLIN);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    struct epoll_event events[EVENTS];
    for (;;) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == &standard_input)
                answer();
            else if (c == &listener) {
                int fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (fd < 0)
                    continue;
                no_delay(fd);
                c = begin(context, fd, 0);
                SSL_set_accept_state(c->tls);
                watch(EPOLL_CTL_ADD, c, EPOLLIN);
            } else if (echo(c) < 0)
                end(c);
        }
    }
}

/* ---- the load */

static int talk(struct connection *c, size_t size) {
    for (;;) {
        int result = 1;
        while (c->length < size && (result = SSL_write(c->tls, c->data, (int)(size - c->length))) > 0)
            c->length += (size_t)result;
        if (c->length < size)
            return went(c, result);
        want(c, 0);
        while (c->done < size && (result = SSL_read(c->tls, c->data, (int)(size - c->done))) > 0)
            c->done += (size_t)result;
        if (c->done < size)
            return went(c, result);
        c->length = c->done = 0;
        messages++;
    }
}

static void load(SSL_CTX *context, int port, int connections, size_t size, double seconds) {
    for (int i = 0; i < connections; i++) {
        struct connection *c = begin(context, connect_to(port, (unsigned)i), size);
        if (SSL_connect(c->tls) != 1)
            fail("SSL_connect");
        make_nonblocking(c->fd);
        watch(EPOLL_CTL_ADD, c, EPOLLIN | EPOLLOUT);
        c->writes = -1;
    }
    struct epoll_event events[EVENTS];
    uint64_t last = nanoseconds() + (uint64_t)(seconds * 1e9);
    while (nanoseconds() < last) {
        int n = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < n; i++)
            if (talk(events[i].data.ptr, size) < 0)
                fail("a connection has ended");
    }
}

static void shake(SSL_CTX *context, int port, double seconds) {
    uint64_t last = nanoseconds() + (uint64_t)(seconds * 1e9);
    while (nanoseconds() < last) {
        struct connection *c = begin(context, connect_to(port, (unsigned)messages), 0);
        char byte = 'x';
        if (SSL_connect(c->tls) != 1 || SSL_write(c->tls, &byte, 1) != 1 || SSL_read(c->tls, &byte, 1) != 1)
            fail("a handshake");
        end(c);
        messages++;
    }
}

int main(int count, char **arguments) {
    signal(SIGPIPE, SIG_IGN);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (count == 4 && strcmp(arguments[1], "serve") == 0) {
        SSL_CTX *context = make_context(TLS_server_method());
        if (SSL_CTX_use_certificate_chain_file(context, arguments[2]) != 1 ||
            SSL_CTX_use_PrivateKey_file(context, arguments[3], SSL_FILETYPE_PEM) != 1)
            fail("no certificate");
        serve(context);
    }
    SSL_CTX *context = make_context(TLS_client_method());
    if (count == 6 && strcmp(arguments[1], "load") == 0)
        load(context, atoi(arguments[2]), atoi(arguments[3]), (size_t)number("size", arguments[4], 1),
             number("seconds", arguments[5], 0));
    else if (count == 4 && strcmp(arguments[1], "shake") == 0)
        shake(context, atoi(arguments[2]), number("seconds", arguments[3], 0));
    else
        fail("tls serve CERTIFICATES KEY | load PORT CONNECTIONS SIZE SECONDS | shake PORT SECONDS");
    printf("%zu\n", messages);
    return 0;
}
