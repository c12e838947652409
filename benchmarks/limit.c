/* The limit: an echo server that does nothing but what an echo server must do, over level-triggered epoll.

   limit [datagrams]

   Prints its port. A line on standard input is answered by the processor time used so far, as a line of
   JSON; the end of standard input ends the program. The servers in Python speak the same way. */
#define _GNU_SOURCE
#include "net.h"

#include <stdbool.h>
#include <sys/epoll.h>

enum { CHUNK = 256 * 1024, EVENTS = 512, BACKLOG = 4096 };

/* What a peer would not take yet. Level-triggered: while there is something, only EPOLLOUT is asked for. */
struct connection {
    int fd;
    size_t length, sent;
    char *unsent;
};

static char chunk[CHUNK];
static int epoll;

static void watch(int operation, struct connection *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll, operation, c->fd, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
}

static void end(struct connection *c) {
    close(c->fd);
    free(c->unsent);
    free(c);
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN)
                return;
            fail("accept: %s", strerror(errno));
        }
        no_delay(fd);
        struct connection *c = allocate(1, sizeof *c);
        c->fd = fd;
        watch(EPOLL_CTL_ADD, c, EPOLLIN);
    }
}

static void echo(struct connection *c) {
    ssize_t n = recv(c->fd, chunk, CHUNK, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        end(c);
        return;
    }
    ssize_t sent = send(c->fd, chunk, (size_t)n, MSG_NOSIGNAL);
    if (sent == n)
        return;
    if (sent < 0) {
        if (errno != EAGAIN) {
            end(c);
            return;
        }
        sent = 0;
    }
    c->length = (size_t)(n - sent);
    c->sent = 0;
    c->unsent = allocate(c->length, 1);
    memcpy(c->unsent, chunk + sent, c->length);
    watch(EPOLL_CTL_MOD, c, EPOLLOUT);
}

static void echo_datagram(int fd) {
    struct sockaddr_in sender;
    socklen_t length = sizeof sender;
    ssize_t n = recvfrom(fd, chunk, CHUNK, 0, (struct sockaddr *)&sender, &length);
    if (n >= 0)
        sendto(fd, chunk, (size_t)n, 0, (struct sockaddr *)&sender, length);
}

static void send_rest(struct connection *c) {
    ssize_t n = send(c->fd, c->unsent + c->sent, c->length - c->sent, MSG_NOSIGNAL);
    if (n < 0) {
        if (errno != EAGAIN)
            end(c);
        return;
    }
    c->sent += (size_t)n;
    if (c->sent == c->length) {
        free(c->unsent);
        c->unsent = NULL;
        watch(EPOLL_CTL_MOD, c, EPOLLIN);
    }
}

int main(int count, char **arguments) {
    bool datagrams = count > 1 && strcmp(arguments[1], "datagrams") == 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    struct connection listener = {.fd = socket(AF_INET, (datagrams ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
    struct connection standard_input = {.fd = STDIN_FILENO};
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || listener.fd < 0 || bind(listener.fd, (struct sockaddr *)&address, length) < 0 ||
        (!datagrams && listen(listener.fd, BACKLOG) < 0) || getsockname(listener.fd, (struct sockaddr *)&address, &length) < 0)
        fail("a listening socket: %s", strerror(errno));
    watch(EPOLL_CTL_ADD, &listener, EPOLLIN);
    watch(EPOLL_CTL_ADD, &standard_input, EPOLLIN);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    struct epoll_event events[EVENTS];
    for (;;) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        if (n < 0 && errno != EINTR)
            fail("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == &listener && datagrams)
                echo_datagram(listener.fd);
            else if (c == &listener)
                accept_all(listener.fd);
            else if (c == &standard_input)
                answer();
            else if (c->unsent != NULL)
                send_rest(c);
            else
                echo(c);
        }
    }
}
